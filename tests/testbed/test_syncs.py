"""Counting syncs: what strace's table says, and that no table is no answer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from testbed import syncs
from testbed.children import RunError

TABLE = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 90.00    0.000184         184       121           fsync
  5.00    0.000184         184         7         2 fdatasync
  5.00    0.000184         184         3         1 execve
------ ----------- ----------- --------- --------- ----------------
100.00    0.000184         184       131         3 total
"""


def test_calls_are_read_out_of_the_table() -> None:
    """With errors or without; execve is there so that no table is empty, and counts for nothing."""
    assert dict(syncs.counted(TABLE.splitlines())) == {"fsync": 121, "fdatasync": 7}


class NoTable:
    """A server that takes no mail, and whose strace said nothing."""

    name = "silent"
    smtp_address = ("127.0.0.1", 1)

    def start(self) -> None: ...
    def stop(self) -> int:
        return 0

    def check(self) -> None: ...
    def stats(self) -> Mapping[str, float]:
        return {}


def test_without_a_table_there_is_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is not zero."""
    monkeypatch.setattr(syncs, "TABLE_S", 0.01)
    empty = tmp_path / "table"
    empty.touch()

    def make(directory: Path) -> Any:
        return NoTable(), empty

    with pytest.raises(RunError, match="silent: counting syncs: strace left no table"):
        syncs.count(make, tmp_path / "run", lambda i: f"u{i}@a.test")
