"""One connection to the queue's database: opening, checking, and committing a batch.

Synchronous, and used by one thread at a time. After any error the connection is of no use: close it,
and open another.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from mta.effects import Effects
from mta.queue import schema
from mta.queue.schema import Change, Row

CACHE_KIB: Final = 2048
"""SQLite's page cache per connection: memory must not grow with the queue."""
CHECKPOINT_BYTES: Final = 8 * 1024 * 1024
"""Bytes of log after which it is copied into the database. Guess: SQLite's default is half of it;
twice as rare costs nothing while the log is still in the page cache."""
LOG_BYTES_MAX: Final = 64 * 1024 * 1024
"""A log that grew longer than this is cut back when it starts again (``journal_size_limit``)."""


class QueueCorruptError(Exception):
    """The database is not a queue, or it is damaged. The operator has to look at it."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class Removed(NamedTuple):
    """What a commit took out of the queue."""

    envelopes: int
    messages: int
    size_bytes: int
    files: tuple[int, ...]
    """Messages whose body files have no row any more."""


class Totals(NamedTuple):
    """What is in the queue."""

    envelopes: int
    messages: int
    size_bytes: int


class Database:
    """A connection to ``queue.db``."""

    def __init__(self, path: Path, effects: Effects, *, writer: bool) -> None:
        """Open the database; a writer makes it if it is missing.

        Raises:
            QueueCorruptError: this is not a database of ours, or it is damaged.
            sqlite3.Error, OSError: it can't be opened now.
        """
        self.path = path
        self._effects = effects
        self._since_checkpoint = 0
        self._connection = effects.sqlite(path, site="queue")
        try:
            self._prepare(writer=writer)
        except sqlite3.OperationalError:
            self.close()
            raise
        except sqlite3.DatabaseError as error:
            self.close()
            raise QueueCorruptError(path, str(error)) from error
        except BaseException:
            self.close()
            raise

    def _prepare(self, *, writer: bool) -> None:
        if sqlite3.sqlite_version_info < schema.SQLITE_MIN:
            raise QueueCorruptError(self.path, f"SQLite {sqlite3.sqlite_version} is too old")
        self.run(f"PRAGMA cache_size = -{CACHE_KIB}", site="open")
        self.run("PRAGMA mmap_size = 0", site="open")
        if not writer:
            self.run("PRAGMA query_only = ON", site="open")
            return
        application = self.run("PRAGMA application_id", site="open")[0][0]
        version = self.run("PRAGMA user_version", site="open")[0][0]
        fresh = not self.run("SELECT 1 FROM sqlite_master LIMIT 1", site="open")
        if not fresh and application != schema.APPLICATION_ID:
            raise QueueCorruptError(self.path, "is the database of another program")
        if not fresh and version != schema.VERSION:
            raise QueueCorruptError(
                self.path, f"has version {version}, and we know {schema.VERSION}"
            )
        mode = self.run("PRAGMA journal_mode = WAL", site="open")[0][0]
        if mode != "wal":
            raise QueueCorruptError(self.path, f"journal mode {mode}: no WAL on this file system")
        self.run("PRAGMA synchronous = FULL", site="open")
        self.run("PRAGMA temp_store = MEMORY", site="open")
        self.run("PRAGMA wal_autocheckpoint = 0", site="open")
        self.run(f"PRAGMA journal_size_limit = {LOG_BYTES_MAX}", site="open")
        # Why? Debian compiles SQLite to overwrite what is deleted; that doubles what we write.
        self.run("PRAGMA secure_delete = OFF", site="open")
        if fresh:
            with self._transaction("create"):
                for statement in schema.TABLES.split(";\n"):
                    if statement.strip():
                        self.run(statement, site="create")
                self.run(f"PRAGMA application_id = {schema.APPLICATION_ID}", site="create")
                self.run(f"PRAGMA user_version = {schema.VERSION}", site="create")
        for statement in schema.WRITER:
            self.run(statement, site="open")

    def close(self) -> None:
        """Close the connection. Idempotent, and it never raises: nothing depends on it."""
        with suppress(sqlite3.Error):
            self._connection.close()

    def shrink(self) -> None:
        """Let go of cached pages. Never raises: nothing depends on it."""
        with suppress(sqlite3.Error, OSError):
            self.run("PRAGMA shrink_memory", site="shrink")

    def run(self, sql: str, values: Sequence[Any] = (), *, site: str) -> list[Row]:
        """Run one statement and return all its rows."""
        self._effects.point("sqlite", site)
        rows = self._connection.execute(sql, values).fetchall()
        self._effects.done("sqlite", site)
        return rows

    @contextmanager
    def any_text(self, otherwise: str) -> Iterator[None]:
        """Read text that is not UTF-8 as ``otherwise``, instead of failing."""

        def text(raw: bytes) -> str:
            try:
                return raw.decode()
            except UnicodeDecodeError:
                return otherwise

        usual = self._connection.text_factory
        self._connection.text_factory = text
        try:
            yield
        finally:
            self._connection.text_factory = usual

    def stream(self, sql: str, *, site: str) -> Iterator[Row]:
        """Run one query and iterate over its rows, which SQLite need not hold all at once."""
        self._effects.point("sqlite", site)
        yield from self._connection.execute(sql)
        self._effects.done("sqlite", site)

    @contextmanager
    def _transaction(self, site: str) -> Iterator[None]:
        self.run("BEGIN IMMEDIATE", site=f"{site}.begin")
        try:
            yield
            self.run("COMMIT", site=f"{site}.commit")
        except BaseException:
            # A full disk or an I/O error may have ended the transaction already.
            with suppress(sqlite3.Error):
                if self._connection.in_transaction:
                    self._connection.rollback()
            raise

    # ---- the writer's

    def commit(self, changes: Sequence[Row], *, size_bytes: int) -> None:
        """Make a batch of changes durable, all of it or nothing.

        Args:
            changes: rows of the view ``change``, the first of them `Change.BEGIN`.
            size_bytes: of the bodies among them, to know when the log is long.

        Raises:
            sqlite3.Error, OSError: nothing was kept.
        """
        if len(changes) <= schema.ROWS_MAX:
            # In autocommit mode the statement is its own transaction; see mta.queue.schema.
            for sql, values in schema.statements(changes):
                self.run(sql, values, site="commit")
        else:
            with self._transaction("commit"):
                for sql, values in schema.statements(changes):
                    self.run(sql, values, site="commit.part")
        # An estimate, good to a factor of two: each change dirties a page, neighbours share some.
        self._since_checkpoint += size_bytes + 4096 * (4 + len(changes))

    def removed(self) -> Removed:
        """Return what the last commit took out."""
        envelopes, messages, size_bytes, files = self.run(schema.GONE, site="removed")[0]
        return Removed(
            envelopes,
            messages,
            size_bytes,
            tuple(int(text) for text in files.split(",")) if files else (),
        )

    @property
    def checkpoint_is_due(self) -> bool:
        """The log has grown enough to be copied into the database."""
        return self._since_checkpoint >= CHECKPOINT_BYTES

    @property
    def has_log(self) -> bool:
        """Something was committed since the last checkpoint."""
        return self._since_checkpoint > 0

    def checkpoint(self) -> None:
        """Copy the log into the database as far as no reader needs it; waits for nobody."""
        self._since_checkpoint = 0
        self.run("PRAGMA wal_checkpoint(PASSIVE)", site="checkpoint")

    def probe(self) -> None:
        """Commit something, to see whether the disk takes it.

        It also writes over what a commit that failed may have left in the log, so that a crash
        cannot bring that to life.
        """
        with self._transaction("probe"):
            self.run("INSERT OR REPLACE INTO meta VALUES ('probe', random())", site="probe")

    def has_message(self, msgid: int) -> bool:
        """Say whether a message is there."""
        return bool(self.run("SELECT 1 FROM message WHERE msgid = ?", (msgid,), site="probe"))

    def totals(self) -> Totals:
        """Count everything. Takes as long as reading the small tables."""
        return Totals(*self.run(schema.TOTALS, site="open")[0])

    def remove_childless(self) -> int:
        """Delete messages that have no envelope, and return how many there were."""
        count = 0
        while rows := self.run(schema.CHILDLESS, site="open"):
            # Removing an envelope that is not there removes its message, if that has none.
            self.commit(
                [(Change.BEGIN,), *((Change.REMOVE, row[0] << 32) for row in rows)], size_bytes=0
            )
            count += len(rows)
        return count

    def meta(self, name: str, default: int) -> int:
        """Return a number from the table ``meta``."""
        rows = self.run("SELECT value FROM meta WHERE name = ?", (name,), site="open")
        return int(rows[0][0]) if rows else default
