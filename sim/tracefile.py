"""Trace files of a server's directory: which there are, in what order, and their lines read fast."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from mta.core import records
from sim.result import later_trace

_decode: Final = msgspec.json.Decoder().decode


def decode(line: bytes) -> Any:
    """Return what a line of JSON says: as `mta.core.records.plain_json`, four times as fast.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return _decode(line)
    except ValueError:
        # Python writes numbers that JSON has not, such as NaN, and reads them.
        return records.plain_json(line)


def parse(lines: Iterable[bytes], *, source: str) -> records.Trace:
    """Read a trace; see `mta.core.records.parse`.

    Raises:
        TraceError: it is none.
    """
    return records.parse(lines, source=source, decode=decode)


def traces_of(directory: Path) -> Iterator[Path]:
    """Yield the traces of a server: one for each of its processes, the first whether it is there or not."""
    number = 1
    path = later_trace(directory / "trace.jsonl", number)
    while number == 1 or path.is_file():
        yield path
        number += 1
        path = later_trace(directory / "trace.jsonl", number)
