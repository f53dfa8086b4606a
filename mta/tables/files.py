"""Tables of the configuration and of files, and included files.

A file is read whole and kept. It is read again when it has changed. One that can't be read or understood any
more changes nothing: what was read before goes on to count, and the log says so once for each version.
"""

import os
import stat
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from mta.core.aliases import (
    Entry,
    ParseError,
    alias_key,
    decode,
    parse_aliases,
    parse_domains,
    parse_entries,
)
from mta.core.lookup import NOT_FOUND, Answer, Found, TemporaryError
from mta.core.settings import ConfigError
from mta.tables.base import TableLimits
from mta.tables.effects import RefusedFileError, TableEffects, Version

_SITE: Final = "table"

AT_ONCE_BYTES: Final = 16 * 1024
"""Files up to this size are read again where they are asked: 1,000 aliases, 5 ms."""

Entries = Mapping[str, tuple[Entry, ...]]


def trusted(_: os.stat_result, found: os.stat_result) -> None:
    """Refuse a file that anybody may write: its commands run as the server.

    Raises:
        RefusedFileError: anybody may.
    """
    if found.st_mode & stat.S_IWOTH:
        raise RefusedFileError("is writable by everybody")


def why_not(error: OSError) -> str:
    """Return in a few words why a file could not be read; for the log."""
    if isinstance(error, RefusedFileError):
        return error.why
    return error.strerror or type(error).__name__


class StaticTable:
    """A table that the configuration holds."""

    def __init__(self, name: str, entries: Mapping[str, str], *, source: str) -> None:
        """Read the entries.

        Raises:
            ConfigError: one of them is malformed.
        """
        self._entries: dict[str, Found] = {}
        for key, value in entries.items():
            where = f"tables.{name}.entries.{key}"
            normal = alias_key(key)
            found = parse_entries(value)
            if normal is None:
                raise ConfigError(source, where, key, "is neither a name nor an address")
            if normal in self._entries:
                raise ConfigError(source, where, key, "was given before")
            if isinstance(found, ParseError):
                raise ConfigError(source, where, value, found.why)
            self._entries[normal] = Found(tuple(found))

    def load(self) -> None:
        """Do nothing: it is read."""

    def lookup(self, key: str) -> Answer:
        """Return what the configuration says to a key."""
        return self._entries.get(key, NOT_FOUND)

    def update(self) -> str:
        """Do nothing: the configuration is read once."""
        return f"{len(self._entries)} keys of the configuration"

    def close(self) -> None:
        """Do nothing."""


class _Reread(threading.Thread):
    """Reads a file while others go on asking."""

    def __init__(self, read: Callable[[], "tuple[Entries, Version] | str"], about: Version) -> None:
        super().__init__(name="table", daemon=True)
        self._read = read
        self.about = about
        """The version that was there to be read."""
        self.found: tuple[Entries, Version] | str | None = None
        """What was read, or why nothing was; None until then."""

    def run(self) -> None:
        """Read."""
        try:
            self.found = self._read()
        except BaseException as error:  # noqa: BLE001  # the thread's last words: nobody else hears it
            self.found = type(error).__name__


class FileTable:
    """An alias file, or a list of domains, kept in memory."""

    def __init__(
        self,
        path: Path,
        effects: TableEffects,
        *,
        log: Callable[[str], None],
        limits: TableLimits | None = None,
        domains: bool = False,
    ) -> None:
        """Make a table; `load` reads it.

        Args:
            path: the file; may be a symbolic link.
            effects: how it is read.
            log: is told in one line what a human should look at.
            limits: how large it may be, and how often to look for changes.
            domains: it has a domain per line.
        """
        self._path = path
        self._effects = effects
        self._log = log
        self._limits = limits or TableLimits()
        self._parse = parse_domains if domains else parse_aliases
        self._entries: Entries | None = None
        self._version: Version | None = None
        self._bad: Version | str | None = None
        """What was complained about last: once is enough."""
        self._checked_at = float("-inf")
        self._reread: _Reread | None = None
        self._mutex = threading.Lock()

    def load(self) -> None:
        """Read the file.

        Raises:
            ConfigError: it can't be read or understood.
        """
        with self._mutex:
            problem = self._read()
        if problem:
            raise ConfigError(str(self._path), problem=problem)

    def lookup(self, key: str) -> Answer:
        """Return what the file says to a key; look first whether it has changed, if it is time."""
        now = self._effects.effects.monotonic()
        is_time = now - self._checked_at >= self._limits.check_s or self._reread is not None
        if is_time and self._mutex.acquire(blocking=False):
            # Not acquired: another thread is reading it, and what was read before still counts.
            try:
                self._checked_at = now
                self._refresh()
            finally:
                self._mutex.release()
        entries = self._entries
        if entries is None:
            return TemporaryError(f"{self._path} was never read")
        found = entries.get(key)
        return NOT_FOUND if found is None else Found(found)

    def update(self) -> str:
        """Read the file again, changed or not."""
        with self._mutex:
            problem = self._read()
        if problem:
            return f"{self._path}: {problem}; what was read before still counts"
        return f"{self._path}: {len(self._entries or ())} keys"

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _refresh(self) -> None:
        reread = self._reread
        if reread is not None:
            if reread.found is not None:
                self._reread = None
                self._say(self._keep(reread.found), reread.about)
            return
        try:
            version = self._effects.version(self._path, site=_SITE)
        except OSError as error:
            self._complain(why_not(error), why_not(error))
            return
        if version == self._version:
            self._bad = None
            return
        if version == self._bad:
            return
        if version.size <= AT_ONCE_BYTES:
            self._say(self._read(), version)
            return
        reread = _Reread(self._load, version)
        try:
            reread.start()
        except RuntimeError:  # no thread left
            self._complain("no thread to read it with", version)
        else:
            self._reread = reread

    def _say(self, problem: str, about: Version) -> None:
        if problem:
            self._complain(problem, about)
        else:
            self._log(f"info: table {self._path}: read again, {len(self._entries or ())} keys")

    def _complain(self, problem: str, about: Version | str) -> None:
        if about != self._bad:
            self._bad = about
            self._log(f"warn: table {self._path}: {problem}; what was read before still counts")

    def _read(self) -> str:
        """Read the file; return what is wrong with it, or nothing."""
        return self._keep(self._load())

    def _keep(self, found: "tuple[Entries, Version] | str") -> str:
        """Keep what was read; return why nothing was, or nothing."""
        if isinstance(found, str):
            return found
        self._entries, self._version = found
        self._bad = None
        return ""

    def _load(self) -> "tuple[Entries, Version] | str":
        """Return what is in the file, or what is wrong with it. On any thread."""
        try:
            data, version = self._effects.read_checked(
                self._path, trusted, max_bytes=self._limits.file_bytes, follow=True, site=_SITE
            )
        except OSError as error:
            return why_not(error)
        text = decode(data)
        parsed = text if isinstance(text, ParseError) else self._parse(text)
        if isinstance(parsed, ParseError):
            return str(parsed)
        return parsed, version


def read_include(path: str, effects: TableEffects, *, max_bytes: int) -> Answer:
    """Return the entries of an included file. One that is not there is `NotFound`."""
    try:
        data, _ = effects.read_checked(
            Path(path), trusted, max_bytes=max_bytes, follow=True, site="include"
        )
    except (FileNotFoundError, NotADirectoryError):
        return NOT_FOUND
    except OSError as error:
        return TemporaryError(why_not(error))
    return entries_of(data)


def entries_of(data: bytes) -> Answer:
    """Return the entries of a file, or where it can't be understood."""
    text = decode(data)
    entries = text if isinstance(text, ParseError) else parse_entries(text)
    if isinstance(entries, ParseError):
        return TemporaryError(str(entries))
    return Found(tuple(entries))
