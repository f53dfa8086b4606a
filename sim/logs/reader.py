"""Opens logs: plain, gzip, bzip2 or xz, sets in any order, directories; finds out whose they are; feeds the reader.

Nothing in a file stops the reading. A file that can't be opened does, because the operator named it.
"""

import bz2
import gzip
import lzma
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Final, Protocol, cast

from mta.core.settings import ConfigError
from sim.logs.exim import EximReader
from sim.logs.lines import LINE_MAX, Clock, Line, any_line
from sim.logs.opensmtpd import OpenSmtpdReader
from sim.logs.postfix import PostfixReader
from sim.logs.record import MESSAGES_MAX, OPEN_MAX, Record
from sim.logs.writers import Writers, writers_in, written_by

FILES_MAX: Final = 1000
"""Files of a set: rotated daily, nearly three years."""

SNIFFED: Final = 5000
"""Lines at the beginning that are looked at to find out whose log it is."""

SNIFFED_LATER: Final = 200
"""The same, of the other files of a set: to tell that one is another server's."""

BACKWARDS_S: Final = 5.0
"""A line this much older than one before it is counted: syslog's clock was set, or files overlap."""

JUMP_S: Final = 30 * 86_400.0
"""A line so far from those before it was written by a wrong clock (a machine that has just started has none), unless more follow."""

STRAYS_MAX: Final = 1000
"""Lines after a jump that are kept in memory until one tells whether the log goes on there."""

WRITERS_SOUGHT: Final = 20_000
"""Lines at the beginning of each file in which hosts are sought, to name them to who asked for another."""
WRITERS_NAMED: Final = 8

_MAGIC: Final[tuple[tuple[bytes, Callable[[IO[bytes]], Any]], ...]] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\x00", lzma.LZMAFile),
)
"""First bytes -> what reads it; names lie."""

_DAMAGE: Final = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


class LogReader(Protocol):
    """Takes the lines of one kind of server."""

    name: str

    def __init__(self, record: Record) -> None:
        """Tell ``record``."""
        ...

    @staticmethod
    def knows(line: Line) -> bool:
        """Return whether a line is this server's."""
        ...

    def take(self, line: Line) -> bool:
        """Take a line; return False if it matters and can't be understood."""
        ...

    def finish(self) -> None:
        """Nothing more comes."""
        ...


READERS: Final[dict[str, type[LogReader]]] = {
    "postfix": PostfixReader,
    "opensmtpd": OpenSmtpdReader,
    "exim": EximReader,
}


class MailLog:
    """A log that was read."""

    def __init__(self, record: Record, kind: str, files: Sequence[Path], lines: int) -> None:
        self.record = record
        self.kind = kind
        """Name of the reader."""
        self.files = tuple(files)
        """In the order of their first lines."""
        self.lines = lines


def read(
    names: Iterable[str],
    *,
    kind: str = "",
    year: int | None = None,
    host: str = "",
    open_max: int = OPEN_MAX,
    messages_max: int = MESSAGES_MAX,
) -> MailLog:
    """Read a log, which may be in several files.

    Args:
        names: files, in any order, or directories, all of whose files are of the set.
        kind: a name in `READERS`; by default what fits most of the first lines.
        year: of the first line, if lines do not say; by default so that the last one is not after the file was
            written.
        host: whose lines are read, as they say, whole or up to the first dot; by default all.
        open_max: as `sim.logs.record.OPEN_MAX`.
        messages_max: as `sim.logs.record.MESSAGES_MAX`.

    Raises:
        ConfigError: a file can't be read, there are too many, or nothing in them is a mail log's.
    """
    if kind and kind not in READERS:
        raise ConfigError("--kind", value=kind, problem=f"must be one of {', '.join(READERS)}")
    files = _ordered(list(_files(names)), year)
    record = Record(open_max=open_max, messages_max=messages_max)
    reader: LogReader | None = READERS[kind](record) if kind else None
    lines = 0
    for path, started in files:
        clock = Clock(started)
        raws = _raw_lines(path, record)
        if host:
            raws = written_by(raws, host.encode(), Clock(started), record)
        head = list(islice(raws, SNIFFED if reader is None else SNIFFED_LATER))
        votes = _whose(head, started)
        if reader is None:
            found = max(votes, key=lambda name: votes[name])
            if not votes[found]:
                lines += len(head)
                record.kinds["line of nobody known"] += len(head)
                continue
            reader = READERS[found](record)
        mine = type(reader).name
        for name, count in votes.items():
            if count and name != mine:
                record.kinds[
                    f"line of {name} at the beginning of a file, left out with the rest"
                ] += count
        lines += feed(chain(head, raws), reader, record, clock)
    if host and not lines:
        raise ConfigError("--host", value=host, problem=_nothing_of(files))
    if reader is None or not record.messages:
        what = f"no {kind} log" if kind else "no log of Postfix, OpenSMTPD or Exim"
        raise ConfigError(str(files[0][0]), problem=f"is {what}: not one message in {lines} lines")
    reader.finish()
    return MailLog(record, reader.name, [path for path, _ in files], lines)


def _nothing_of(files: Sequence[tuple[Path, int]]) -> str:
    """Return what to say if a host wrote nothing: who did."""
    found: set[bytes] = set()
    for path, started in files:
        found |= writers_in(islice(_raw_lines(path, Record()), WRITERS_SOUGHT), Clock(started))
    names = sorted(name.decode("utf-8", "replace") for name in found)
    more = ", ..." if len(names) > WRITERS_NAMED else ""
    said = (
        f"lines are of {', '.join(names[:WRITERS_NAMED])}{more}"
        if names
        else "lines do not say who did"
    )
    return f"wrote nothing of this; {said}"


def feed(raws: Iterable[bytes], reader: LogReader, record: Record, clock: Clock) -> int:
    """Give lines to a reader, in their order; return how many there were."""
    take, kinds = reader.take, record.kinds
    count = 0
    writers = Writers(record)

    def lines() -> Iterator[Line]:
        nonlocal count
        for raw in raws:
            count += 1
            if len(raw) > LINE_MAX:
                kinds["line cut: too long"] += 1
                raw = raw[:LINE_MAX]
            line = any_line(raw, clock)
            if line is None and raw.startswith(b"\0"):
                # What a crash left of a block that was not written; the line after it is whole.
                line = any_line(raw.lstrip(b"\0"), clock)
            if line is None:
                kinds["line without an instant" if raw.strip() else "empty line"] += 1
            else:
                yield line

    newest = record.last_at
    first = record.first_at
    host = None
    for line in _without_strays(lines(), record):
        at = line.at
        if at > newest:
            record.last_at = newest = at
        elif at < newest - BACKWARDS_S:
            kinds["line out of order"] += 1
        if at < first:
            record.first_at = first = at
        if line.host != host:
            host = line.host
            writers.seen(host)
        if not take(line):
            kinds["line not understood"] += 1
    return count


def _without_strays(lines: Iterator[Line], record: Record) -> Iterator[Line]:
    """Leave lines out whose clock was wrong: a few that are far from all others, which go on where they were."""
    last: float | None = None
    strays: list[Line] = []
    for line in lines:
        if last is None or abs(line.at - last) <= JUMP_S:
            if strays:
                record.kinds["line of a wrong clock"] += len(strays)
                strays.clear()
            last = line.at
            yield line
            continue
        strays.append(line)
        if len(strays) > STRAYS_MAX:
            yield from strays
            strays.clear()
            last = line.at
    yield from strays


def _whose(head: Sequence[bytes], year: int) -> dict[str, int]:
    """Return how many of the lines each reader knows."""
    clock = Clock(year)
    votes = dict.fromkeys(READERS, 0)
    for raw in head:
        line = any_line(raw[:LINE_MAX], clock)
        if line is not None:
            for name, reader in READERS.items():
                if reader.knows(line):
                    votes[name] += 1
                    break
    return votes


def _files(names: Iterable[str]) -> Iterator[Path]:
    count = 0
    for name in names:
        path = Path(name)
        try:
            found = (
                sorted(each for each in path.iterdir() if each.is_file())
                if path.is_dir()
                else [path]
            )
        except OSError as error:
            raise ConfigError(name, problem=f"can't be read: {error.strerror}") from None
        for each in found:
            count += 1
            if count > FILES_MAX:
                raise ConfigError(name, problem=f"is more than {FILES_MAX} files")
            yield each


def _ordered(paths: Sequence[Path], year: int | None) -> list[tuple[Path, int]]:
    """Return files by their first instant, each with the year of its first line."""
    if not paths:
        raise ConfigError("log", problem="there are no files")
    found: list[tuple[float, Path, int]] = []
    for path in paths:
        try:
            written_at = path.stat().st_mtime
            with path.open("rb"):
                pass
        except OSError as error:
            raise ConfigError(str(path), problem=f"can't be read: {error.strerror}") from None
        started = year if year is not None else time.gmtime(written_at).tm_year
        first = _first_instant(path, started)
        # A day for zones. Twice at most: a log that is not older than a year, or the 31st of December.
        if year is None and first is not None and first > written_at + 86_400:
            started -= 1
            first = _first_instant(path, started)
        found.append((float("inf") if first is None else first, path, started))
    return [(path, started) for _, path, started in sorted(found, key=lambda each: each[0])]


def _first_instant(path: Path, year: int) -> float | None:
    clock = Clock(year)
    raws = _raw_lines(path, Record())
    for raw in islice(raws, 100):
        line = any_line(raw[:LINE_MAX], clock)
        if line is not None:
            return line.at
    return None


def _raw_lines(path: Path, record: Record) -> Iterator[bytes]:
    """Yield lines with their ends, none longer than `LINE_MAX` by much; a damaged file ends where it is damaged."""
    try:
        with path.open("rb") as file:
            head = file.read(6)
            file.seek(0)
            opener = next((each for magic, each in _MAGIC if head.startswith(magic)), None)
            if opener is None:
                yield from _cut(file)
            else:
                with opener(file) as unpacked:
                    yield from _cut(cast("IO[bytes]", unpacked))
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ConfigError(str(path), problem=f"can't be read: {error.strerror}") from None
        record.kinds["file damaged: it ends early"] += 1


_BLOCK: Final = 1024 * 1024


def _cut(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file. Blocks are much faster than readline of what is compressed, and hold no long line in memory."""
    rest = b""
    skipping = False
    while block := file.read(_BLOCK):
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        if skipping and lines:
            # The end of a line whose beginning was given already.
            lines = lines[1:]
            skipping = False
        yield from lines
        if len(rest) > _BLOCK:
            if not skipping:
                yield rest
            skipping = True
            rest = b""
    if rest and not skipping:
        yield rest
