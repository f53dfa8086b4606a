"""The log: one fact per line, cheap, and never a reason for mail to stop.

Lines look as OpenSMTPD's do in maillog: ``Mmm dd hh:mm:ss host mta[pid]: line``, local time. They are
collected and written at most `FLUSH_S` seconds later, so what a kill can cost is the last tenth of a
second. A log that can't be written (disk full, a pipe that nobody reads) loses lines, counts them, and
says so when it can write again; it neither blocks the server nor grows without limit.

Everything here is called on the event loop's thread, or before there is a loop.
"""

import asyncio
import os
import select
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from mta.effects import Effects

FLUSH_S: Final = 0.1
"""Longest time that a line waits to be written, seconds."""
BUFFER_MAX: Final = 1 << 20
"""Bytes that wait to be written; over it lines are lost."""
FLUSH_BYTES: Final = 1 << 16
"""Bytes that are written at once, without waiting for the timer."""
LINE_MAX: Final = 4096
"""Characters of a line; the rest is cut off. A reply of a hostile host must not fill the disk."""

_MONTHS: Final = (
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "May",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
)


class LineFile:
    """Lines on their way to a file, or to standard error: collected, bounded, never in the way.

    `lost` counts lines that were never written. A write that fails may leave part of its bytes behind,
    so nothing of it is tried again: the next one starts on a new line and says how many are missing.
    """

    def __init__(
        self,
        effects: Effects,
        path: Path | None,
        *,
        site: str,
        buffer_max: int = BUFFER_MAX,
        flush_s: float = FLUSH_S,
    ) -> None:
        """Open the file to append to.

        Args:
            effects: how it is opened and written.
            path: the file; None for standard error.
            site: what effects call this place.
            buffer_max: bytes that may wait.
            flush_s: longest time that a line waits, seconds.

        Raises:
            OSError: the file can't be opened.
        """
        self.lost = 0
        """Lines that were not written, ever."""
        self.path = path
        self._effects = effects
        self._site = site
        self._buffer_max = buffer_max
        self._flush_s = flush_s
        self._lines: list[bytes] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._untold = 0
        self._torn = False
        self._descriptor = 2 if path is None else effects.open_append(path, site=site)
        self._poll = _poller(self._descriptor)

    def add(self, line: bytes) -> None:
        """Take one line, with its end."""
        if self._size + len(line) > self._buffer_max or self._closed:
            self._lose(1)
            return
        self._lines.append(line)
        self._size += len(line)
        if self._timer is None:
            self._arm()
        elif self._size >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits, as far as that is possible without waiting."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._lines or self._closed:
            return
        if self._poll is None:
            self._write(b"".join(self._lines), len(self._lines))
            self._lines, self._size = [], 0
        else:
            self._flush_to_pipe(self._poll)

    def reopen(self) -> None:
        """Open the file by its name again: whoever rotates logs has renamed it.

        Raises:
            OSError: it can't be opened; the old one stays in use.
        """
        self.flush()
        if self.path is None or self._closed:
            return
        fresh = self._effects.open_append(self.path, site=self._site)
        old, self._descriptor = self._descriptor, fresh
        self._poll = _poller(fresh)
        self._torn = False
        self._close(old)

    def close(self) -> None:
        """Write what waits and close the file. Idempotent."""
        if self._closed:
            return
        self.flush()
        self._lose(len(self._lines))
        self._lines, self._size = [], 0
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.path is not None:
            self._close(self._descriptor)

    def missing(self, lines: int) -> bytes:
        """Return the line that says how many are missing before it."""
        return b"%d lines lost\n" % lines

    def _close(self, descriptor: int) -> None:
        try:
            self._effects.close(descriptor, site=self._site)
        except OSError:
            # Some file systems tell only now that the disk was full; how many lines, nobody knows.
            self._lose(1)

    def _arm(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()  # before there is a loop, and after it
        else:
            self._timer = loop.call_later(self._flush_s, self.flush)

    def _lose(self, lines: int) -> None:
        self.lost += lines
        self._untold += lines

    def _write(self, data: bytes, lines: int) -> bool:
        """Write whole lines; return False if that failed."""
        told = self._untold
        if told:
            data = (b"\n" if self._torn else b"") + self.missing(told) + data
        try:
            self._effects.write(self._descriptor, data, site=self._site)
        except OSError:
            self._torn = True
            self._lose(lines)
            return False
        self._torn = False
        self._untold -= told
        return True

    def fit(self, line: bytes) -> bytes | None:
        """Return what of a line that is longer than `select.PIPE_BUF` may go into a pipe."""
        return None

    def _flush_to_pipe(self, poll: select.poll) -> None:
        """Write line by line while there is room, so that a reader that stands still can't stop us.

        A pipe that polls as writable takes PIPE_BUF bytes (4,096) without waiting, and no more for sure.
        """
        if self._untold and poll.poll(0):
            self._write(b"", 0)
        count = 0
        for line in self._lines:
            if self._untold or not poll.poll(0):
                break
            count += 1
            self._size -= len(line)
            whole = line if len(line) <= select.PIPE_BUF else self.fit(line)
            if whole is None:
                self._lose(1)
            elif not self._write(whole, 1):
                break
        del self._lines[:count]
        if self._lines:
            self._arm_again()

    def _arm_again(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # the next line tries again
        self._timer = loop.call_later(self._flush_s, self.flush)


def _poller(descriptor: int) -> "select.poll | None":
    """Return how to ask whether a write would wait; None for a file, which never says no."""
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
    except OSError:
        return None
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return poll


class _LogFile(LineFile):
    """The file of a log: what is missing is a line of the log as well."""

    def __init__(self, effects: Effects, path: Path | None, log: "Log") -> None:
        super().__init__(effects, path, site="log")
        self._log = log

    def missing(self, lines: int) -> bytes:
        return self._log.line(f"warn: log: {lines} lines lost")

    def fit(self, line: bytes) -> bytes | None:
        # Not in the middle of a character.
        return line[: select.PIPE_BUF - 4].decode(errors="ignore").encode() + b"...\n"


class Log:
    """Where the server says what it does."""

    def __init__(
        self,
        effects: Effects,
        path: Path | None = None,
        *,
        host: str,
        pid: int,
        verbose: bool = False,
        program: str = "mta",
    ) -> None:
        """Open the log.

        Args:
            effects: the clock, and how the file is written.
            path: the file, appended to; None for standard error.
            host: the name of this host, as syslog would print it.
            pid: of this process.
            verbose: write debug lines too.
            program: what the lines say that we are.

        Raises:
            OSError: the file can't be opened.
        """
        self.verbose = verbose
        """Debug lines are written (`mtactl log verbose`). One test before a costly line is made."""
        self._now = effects.now
        self._who = f" {host} {program}[{pid}]: "
        self._second = -1
        self._prefix = ""
        self._file = _LogFile(effects, path, self)

    @property
    def lost(self) -> int:
        """Lines that could not be written, ever."""
        return self._file.lost

    def info(self, line: str) -> None:
        """Say what happened to mail."""
        self._file.add(self.line(line))

    def warn(self, line: str) -> None:
        """Say what a human should look at."""
        self._file.add(self.line("warn: " + line))

    def debug(self, line: str) -> None:
        """Say what only we want to know; dropped unless verbose."""
        if self.verbose:
            self._file.add(self.line("debug: " + line))

    def line(self, text: str) -> bytes:
        """Return the line as it is written: with time and name, on one line, printable."""
        now = int(self._now())
        if now != self._second:
            self._second = now
            # Why not strftime? Its month names follow the locale, and log readers do not.
            at = datetime.fromtimestamp(now, UTC).astimezone()
            self._prefix = f"{_MONTHS[at.month - 1]} {at.day:2d} {at:%H:%M:%S}{self._who}"
        if len(text) > LINE_MAX:
            text = text[: LINE_MAX - 3] + "..."
        if not text.isprintable():
            text = printable(text)
        return f"{self._prefix}{text}\n".encode()

    def flush(self) -> None:
        """Write what waits."""
        self._file.flush()

    def reopen(self) -> None:
        """Follow a rotation (SIGHUP); if the file can't be opened, say so in the old one."""
        try:
            self._file.reopen()
        except OSError as error:
            self.warn(
                f"log: {self._file.path}: {error.strerror or type(error).__name__}, old file kept"
            )

    def close(self) -> None:
        """Write what waits and close. Idempotent."""
        self._file.close()


def printable(text: str) -> str:
    r"""Return text with everything that could move a cursor or end a line written as ``\x1b``."""
    return "".join(
        char
        if char.isprintable()
        else char.encode("unicode_escape", "backslashreplace").decode("ascii")
        for char in text
    )
