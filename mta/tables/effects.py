"""What looking things up does to the world, beyond `mta.effects`: files that must be trusted, users, SQLite.

Every effect here is a point of the server's one `Effects` (see there). A file is opened once, judged by what
was opened, and only then read: who swaps it meanwhile gains nothing. Opening never waits, also not for the
other end of a FIFO.
"""

import errno
import os
import pwd
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from mta.effects import Effects

_PLACE: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
"""To name files below a directory, search permission is enough: homes are often 0711."""
_FILE: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

Check: TypeAlias = Callable[[os.stat_result, os.stat_result], None]
"""Is given the directory and the file, both open, and raises to refuse."""


class RefusedFileError(OSError):
    """A file is there and must not be read; the text says why, and nothing of what is in it."""

    def __init__(self, why: str) -> None:
        super().__init__(errno.EACCES, why)
        self.why = why


class Version(NamedTuple):
    """What of a file changes when somebody changes the file."""

    changed_ns: int
    size: int
    inode: int
    device: int


def version_of(found: os.stat_result) -> Version:
    """Return the version of a file."""
    return Version(found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev)


class TableEffects:
    """Looks things up through the server's `Effects`."""

    __slots__ = ("effects",)

    def __init__(self, effects: Effects) -> None:
        self.effects = effects

    def version(self, path: Path, *, site: str) -> Version:
        """Return a file's version, links followed.

        Raises:
            OSError: as `stat` does.
        """
        self.effects.point("stat", site)
        found = os.stat(path)  # noqa: PTH116  # a method of a path would be a side door
        self.effects.done("stat", site)
        return version_of(found)

    def read_checked(
        self, path: Path, check: Check, *, max_bytes: int, follow: bool, site: str
    ) -> tuple[bytes, Version]:
        """Return a regular file's bytes and version.

        Args:
            path: the file.
            check: judges directory and file before anything is read.
            max_bytes: a longer file is refused.
            follow: the last part of the path may be a symbolic link.
            site: who asks.

        Raises:
            RefusedFileError: it is no regular file, longer, a link, or ``check`` said no.
            OSError: as `open` and `read` do.
        """
        self.effects.point("open", site)
        directory = os.open(path.parent, _PLACE)
        try:
            descriptor = self._open_in(directory, path.name, follow)
            try:
                self.effects.done("open", site)
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise RefusedFileError("is not a regular file")
                check(os.fstat(directory), found)
                if found.st_size > max_bytes:
                    raise RefusedFileError(f"is longer than {max_bytes} bytes")
                return self._read(descriptor, max_bytes, site), version_of(found)
            finally:
                os.close(descriptor)
        finally:
            os.close(directory)

    def _open_in(self, directory: int, name: str, follow: bool) -> int:
        try:
            return os.open(name, _FILE if follow else _FILE | os.O_NOFOLLOW, dir_fd=directory)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise RefusedFileError("is a symbolic link") from None
            raise

    def _read(self, descriptor: int, max_bytes: int, site: str) -> bytes:
        self.effects.point("read", site)
        parts = []
        left = max_bytes + 1
        while left and (part := os.read(descriptor, left)):
            parts.append(part)
            left -= len(part)
        self.effects.done("read", site)
        if not left:
            raise RefusedFileError(f"is longer than {max_bytes} bytes")
        return b"".join(parts)

    def passwd(self, name: str, *, site: str) -> "pwd.struct_passwd | None":
        """Return the system's user of this name, or None.

        Raises:
            OSError: the user database can't say.
        """
        self.effects.point("getpwnam", site)
        try:
            found = pwd.getpwnam(name)
        except (KeyError, ValueError):  # ValueError: NUL, or what the locale has no bytes for
            found = None
        self.effects.done("getpwnam", site)
        return found

    def sqlite_reader(self, path: Path, *, timeout_s: float, site: str) -> sqlite3.Connection:
        """Open a SQLite database that is there, for reading only.

        The connection may be used by any one thread at a time.

        Raises:
            sqlite3.Error: it can't be opened.
        """
        self.effects.point("sqlite.connect", site)
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True,
            timeout=timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self.effects.done("sqlite.connect", site)
        except BaseException:
            connection.close()
            raise
        return connection
