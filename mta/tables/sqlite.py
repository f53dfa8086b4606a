"""Tables in SQLite databases: every question is asked of the database, so a change counts at once.

The database is only read. A question that takes too long, a database that is busy, gone or broken, and a
value that is no list of entries are temporary errors, and the log says which, once until it works again.
"""

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mta.core.aliases import ParseError, parse_entries
from mta.core.lookup import NOT_FOUND, Answer, Found, TemporaryError
from mta.core.settings import ConfigError
from mta.tables.base import TableLimits
from mta.tables.effects import TableEffects

_SITE: Final = "table"
_ERRORS: Final = (sqlite3.Error, sqlite3.Warning, OSError)
"""Before Python 3.12 a second statement in the query is a `sqlite3.Warning`, which is no `sqlite3.Error`."""
_STEPS: Final = 10_000
"""Instructions of SQLite's machine between two looks at the clock; about a tenth of a millisecond."""


class SqliteTable:
    """One query of a SQLite database."""

    def __init__(
        self,
        path: Path,
        query: str,
        effects: TableEffects,
        *,
        log: Callable[[str], None],
        limits: TableLimits | None = None,
    ) -> None:
        """Make a table; `load` tries it.

        Args:
            path: the database.
            query: one SELECT with one ``?``, the key; see `TableConfig.query`.
            effects: how it is opened.
            log: is told in one line what a human should look at.
            limits: how long a question may take, and how long an answer may be.
        """
        self._path = path
        self._query = query
        self._effects = effects
        self._log = log
        self._limits = limits or TableLimits()
        self._connection: sqlite3.Connection | None = None
        self._deadline = 0.0
        self._said = ""
        self._mutex = threading.Lock()

    def load(self) -> None:
        """Try the query.

        Raises:
            ConfigError: the database can't be opened, or the query is none of one key.
        """
        if not self._query.lstrip().upper().startswith(("SELECT", "WITH")):
            raise ConfigError(str(self._path), "query", self._query, "must be a SELECT")
        with self._mutex:
            try:
                self._rows("postmaster")
            except _ERRORS as error:
                self._close()
                raise ConfigError(str(self._path), "query", self._query, str(error)) from None

    def lookup(self, key: str) -> Answer:
        """Return what the database says to a key."""
        with self._mutex:
            try:
                rows = self._rows(key)
            except _ERRORS as error:
                # A new connection next time: the file may have been replaced.
                self._close()
                return self._failed(str(error))
        entries = []
        if len(rows) > self._limits.rows:
            return self._failed(f"an answer has more than {self._limits.rows} rows")
        for row in rows:
            if not isinstance(row[0], str):
                return self._failed("an answer is no text")
            found = parse_entries(row[0])
            if isinstance(found, ParseError):
                return self._failed(f"an answer can't be understood: {found.why}")
            entries += found
        self._said = ""
        return Found(tuple(entries)) if rows else NOT_FOUND

    def update(self) -> str:
        """Open the database anew."""
        with self._mutex:
            self._close()
        try:
            self.load()
        except ConfigError as error:
            return str(error)
        return f"{self._path}: opened"

    def close(self) -> None:
        """Close the database. Idempotent."""
        with self._mutex:
            self._close()

    def _rows(self, key: str) -> list[tuple[object, ...]]:
        effects = self._effects.effects
        if self._connection is None:
            self._connection = self._effects.sqlite_reader(
                self._path, timeout_s=self._limits.sqlite_busy_s, site=_SITE
            )
            self._connection.set_progress_handler(self._is_late, _STEPS)
        effects.point("sqlite.query", _SITE)
        self._deadline = effects.monotonic() + self._limits.query_s
        cursor = self._connection.execute(self._query, (key,))
        try:
            rows = cursor.fetchmany(self._limits.rows + 1)
        finally:
            cursor.close()
        effects.done("sqlite.query", _SITE)
        return rows

    def _is_late(self) -> bool:
        return self._effects.effects.monotonic() > self._deadline

    def _failed(self, problem: str) -> TemporaryError:
        if problem != self._said:
            self._said = problem
            self._log(f"warn: table {self._path}: {problem}")
        return TemporaryError(problem)

    def _close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()
