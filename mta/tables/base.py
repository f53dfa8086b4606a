"""What every table of the server has in common, and how the configuration describes it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from mta.core.limits import Problem
from mta.core.lookup import Answer


@dataclass(slots=True)
class TableConfig:
    """One table, ``[tables.NAME]``."""

    kind: Literal["file", "domains", "sqlite", "static"] = "file"
    """``file``: aliases(5), ``key: entry, ...``. ``domains``: a file with a domain per line. ``sqlite``: a query.
    ``static``: ``entries``, here."""
    path: Path | None = None
    """The file or the database."""
    query: str = "SELECT value FROM aliases WHERE key = ?"
    """SQLite: one SELECT with one ``?``, the key; the first column of each row is ``entry, ...``."""
    entries: dict[str, str] = field(default_factory=dict)
    """Static: key to ``entry, ...``."""

    def problems(self) -> Iterator[Problem]:
        """Yield what is missing or out of place."""
        if self.kind == "static":
            if self.path is not None:
                yield "path", str(self.path), 'is not for kind = "static"'
            return
        if self.path is None:
            yield "path", "", f'is missing for kind = "{self.kind}"'
        if self.entries:
            yield "entries", self.entries, 'are only for kind = "static"'


@dataclass(slots=True)
class UserConfig:
    """One user of a table of users, ``[userbases.NAME.USER]``."""

    home: Path
    """Home directory, absolute: below it are the mail and ``.forward``."""
    uid: int | None = None
    """Numeric user; the server's own if absent."""
    gid: int | None = None
    """Numeric group; the server's own if absent."""

    def problems(self) -> Iterator[Problem]:
        """Yield values that no user can have."""
        if not self.home.is_absolute():
            yield "home", str(self.home), "must be absolute"
        for key in ("uid", "gid"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < 2**32 - 1:
                yield key, value, "must be a number of a user or group"


@dataclass(slots=True)
class TableLimits:
    """How much a table may cost."""

    file_bytes: int = 16 * 1024 * 1024
    """Bytes of an alias file. Ours; about 300,000 aliases. Larger ones belong into a database."""
    check_s: float = 1.0
    """A file is looked at for changes at most so often."""
    sqlite_busy_s: float = 0.25
    """Longest wait for a database that somebody writes to."""
    query_s: float = 1.0
    """Longest time of one query; a query without an index ends here, as a temporary error."""
    rows: int = 1000
    """Rows of one answer."""

    def problems(self) -> Iterator[Problem]:
        """Yield every value out of range."""
        for key in ("file_bytes", "sqlite_busy_s", "query_s", "rows"):
            value = getattr(self, key)
            if not value > 0:
                yield key, value, "must be above 0; a cap of 0 is not unlimited"
        if not self.check_s >= 0:
            yield "check_s", self.check_s, "must not be negative"


class Table(Protocol):
    """One table. Any thread may ask."""

    def load(self) -> None:
        """Read it for the first time.

        Raises:
            ConfigError: it can't be used.
        """
        ...

    def lookup(self, key: str) -> Answer:
        """Return what it says to a key. Never raises."""
        ...

    def update(self) -> str:
        """Read it again now; return in one line what came of it (``mtactl update table``)."""
        ...

    def close(self) -> None:
        """Let go of what is open. Idempotent."""
        ...
