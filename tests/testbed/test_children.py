"""Processes of the bench: started, watched, ended."""

import os
import signal
import sys
from pathlib import Path

import pytest

from testbed.children import LINE_SHOWN, Child, RunError, UsageError, last_line

STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


def child(tmp_path: Path, code: str) -> Child:
    return Child("server", [sys.executable, "-c", code], log=tmp_path / "log")


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_its_last_words_are_told(tmp_path: Path) -> None:
    """A child that died is one line: how, and what it said last."""
    one = child(
        tmp_path, "import sys; print('first'); print('disk full', file=sys.stderr); sys.exit(3)"
    )
    assert 3 == one.wait(20)

    with pytest.raises(RunError, match=r"^server ended with status 3: disk full$"):
        one.check()


def test_status_2_is_the_operators_fault(tmp_path: Path) -> None:
    """Our programs exit with 2 when they were told nonsense; so does the bench then."""
    one = child(
        tmp_path, "import sys; sys.exit('mta: mta.toml: envelope: no such') if 0 else sys.exit(2)"
    )
    assert 2 == one.wait(20)

    with pytest.raises(UsageError):
        one.check()


def test_a_running_child_is_fine(tmp_path: Path) -> None:
    """Nothing to complain about; SIGTERM ends it, and ending twice is harmless."""
    one = child(tmp_path, "import time; time.sleep(600)")
    one.check()

    assert -signal.SIGTERM == one.end()
    assert -signal.SIGTERM == one.end()
    assert "SIGTERM" in one.describe_end()
    assert gone(one.pid)


def test_one_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    """Nothing outlives a run, whatever it does with its signals."""
    one = child(tmp_path, STUBBORN)
    while "ready" not in one.log.read_text():
        one.wait(0.01)

    assert -signal.SIGKILL == one.end(grace_s=0.1)
    assert gone(one.pid)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    """The bench says that it could not start something, and what."""
    with pytest.raises(RunError, match="load: can't be started"):
        Child("load", [str(tmp_path / "nothing")], log=tmp_path / "log")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ""),
        (b"\n\n", ""),
        (b"one\ntwo\n\n", "two"),
        (b"no end", "no end"),
        (b"a\x1b[31mb\xff\n", "a [31mb\N{REPLACEMENT CHARACTER}"),
        (b"x" * 5000, "x" * (LINE_SHOWN - 1) + "…"),
    ],
)
def test_last_line(tmp_path: Path, content: bytes, expected: str) -> None:
    """One printable line, however long or strange the log is."""
    log = tmp_path / "log"
    log.write_bytes(content)

    assert expected == last_line(log)
    assert "" == last_line(tmp_path / "nothing")
