"""Tables in SQLite: answers, queries that are no use, and databases that break and come back."""

import sqlite3
from pathlib import Path

import pytest

from mta.core.lookup import NOT_FOUND, Found, TemporaryError
from mta.core.settings import ConfigError
from mta.effects import Effects
from mta.tables import (
    SqliteTable,
    TableConfig,
    TableEffects,
    TableLimits,
)
from tests.support.faults import FaultyEffects, Plan, io_error
from tests.support.tables import texts

QUERY = TableConfig().query


def sqlite_table(path: Path, effects: Effects | None = None, query: str = QUERY, **options):
    log: list[str] = []
    table = SqliteTable(path, query, TableEffects(effects or Effects()), log=log.append, **options)
    return table, log


def test_sqlite(database, fds):
    """Every row of the answer counts; a change counts at once; the key is never part of the query."""
    table, log = sqlite_table(database)
    table.load()
    assert texts(table.lookup("info")) == ["alice", "bob", "carol@example.test"]
    assert table.lookup("nobody") == NOT_FOUND
    assert table.lookup("' OR 1=1 --") == NOT_FOUND
    assert table.lookup("empty") == Found()
    connection = sqlite3.connect(database)
    with connection:
        connection.execute("INSERT INTO aliases VALUES ('nobody', 'root')")
    connection.close()
    assert texts(table.lookup("nobody")) == ["root"]
    assert table.update() == f"{database}: opened"
    assert log == []
    table.close()
    table.close()


@pytest.mark.parametrize("key", ["bad", "null", "number", "blob"])
def test_sqlite_answers_that_are_no_entries(database, key):
    """Temporary: somebody will mend the row. The log says it once."""
    table, log = sqlite_table(database)
    assert isinstance(table.lookup(key), TemporaryError)
    assert isinstance(table.lookup(key), TemporaryError)
    assert len(log) == 1
    table.close()


@pytest.mark.parametrize(
    "query",
    [
        "SELECT value FROM nothing WHERE key = ?",
        "SELECT value FROM aliases",
        "SELECT value FROM aliases WHERE key = ? AND value = ?",
        "SELECT 1; SELECT value FROM aliases WHERE key = ?",
        "DELETE FROM aliases WHERE key = ?",
        "WITH k(x) AS (SELECT ?) DELETE FROM aliases WHERE key IN k",
        "ATTACH ? AS other",
        "nonsense",
    ],
)
def test_sqlite_queries_that_cannot_be_used(database, fds, query):
    """One line at the start, and nothing was changed."""
    table, _ = sqlite_table(database, query=query)
    with pytest.raises(ConfigError) as caught:
        table.load()
    assert str(caught.value).startswith(f"{database}: query = ")
    assert query in table.update()
    assert texts(sqlite_table(database)[0].lookup("info")) == ["alice", "bob", "carol@example.test"]


def test_sqlite_makes_no_database(tmp_path):
    """A path that was mistyped is an error, not a new empty file."""
    table, _ = sqlite_table(tmp_path / "missing.db")
    with pytest.raises(ConfigError, match="unable to open"):
        table.load()
    assert list(tmp_path.iterdir()) == []


def test_sqlite_that_breaks_and_comes_back(database):
    """Gone or garbage is temporary; once it is back it is opened again."""
    table, log = sqlite_table(database)
    assert texts(table.lookup("info"))
    whole = database.read_bytes()
    database.write_bytes(b"garbage" * 1000)
    assert isinstance(table.lookup("info"), TemporaryError)
    database.unlink()
    assert isinstance(table.lookup("info"), TemporaryError)
    database.write_bytes(whole)
    assert texts(table.lookup("info")) == ["alice", "bob", "carol@example.test"]
    assert 1 <= len(log) <= 2
    table.close()


def test_sqlite_that_is_locked(database):
    """A writer that holds the database for long makes a temporary error, not a wait."""
    table, _ = sqlite_table(database, limits=TableLimits(sqlite_busy_s=0.01))
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        assert table.lookup("info") == TemporaryError("database is locked")
    finally:
        connection.close()
    assert texts(table.lookup("info")) == ["alice", "bob", "carol@example.test"]
    table.close()


def test_sqlite_queries_end(database):
    """One that would take for ever is stopped, and an answer without end is refused."""

    class Late(Effects):
        """Whose clock goes on a second at each look."""

        def __init__(self) -> None:
            super().__init__()
            self.time = 0.0
            self.monotonic = self.tick

        def tick(self) -> float:
            self.time += 1
            return self.time

    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT 'a' FROM n"
    table, _ = sqlite_table(database, Late(), query=f"{endless} WHERE i < 0 AND ? != ''")
    assert table.lookup("info") == TemporaryError("interrupted")
    table.close()
    table, _ = sqlite_table(database, query=f"{endless} WHERE ? != ''")
    assert table.lookup("info") == TemporaryError("an answer has more than 1000 rows")
    table.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_sqlite_can_fail_anywhere(database, fds, when):
    """A temporary error, and right the next time."""
    failed = 0
    for number in range(1, 10):
        effects = FaultyEffects(Plan(number, io_error, when=when))
        table, _ = sqlite_table(database, effects)
        answer = table.lookup("info")
        failed += isinstance(answer, TemporaryError)
        effects.heal()
        assert texts(table.lookup("info")) == ["alice", "bob", "carol@example.test"]
        table.close()
    assert failed == 2  # connect, query
