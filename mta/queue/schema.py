"""The durable queue's tables, and the SQL that is run on them.

Three tables, because their lives differ: an envelope changes with each attempt, a message never, and a
body is only ever read whole. A start counts and restores without touching a body, and a deferral
rewrites some 100 bytes instead of the message.

A batch is one INSERT into the view ``change``, whose triggers do the work. Why? The writer's thread
gives the interpreter lock away for each step, and has to win it back from an event loop that is busy:
measured with a saturated loop, a transaction of nine statements took 18 ms at best and seconds at
worst, of which SQLite needed one. One statement in autocommit mode is one step, its fsync included.

The statement comes in sizes, powers of two, and a batch uses the next size up with rows of NULLs in
the unused places; no trigger fires for those. So the texts are few, and SQLite keeps them prepared.
"""

# ruff: noqa: S608  # SQL is put together from constants of this module only

import enum
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final, TypeAlias

Row: TypeAlias = tuple[Any, ...]

APPLICATION_ID: Final = 0x4D544151
"""``MTAQ``: what `file` and we know our databases by (SQLite's ``application_id``)."""
VERSION: Final = 1
"""Of the tables (SQLite's ``user_version``)."""
SQLITE_MIN: Final = (3, 32, 0)
"""The first SQLite with iif() and 32,766 parameters."""
ROWS_MAX: Final = 1024
"""Changes per statement; thirteen columns each stay below SQLite's 32,766 parameters."""

TABLES: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE message (
    msgid INTEGER PRIMARY KEY,
    created_at REAL NOT NULL,    -- seconds since the epoch
    expires_at REAL NOT NULL,
    size INTEGER NOT NULL,       -- bytes of the body
    in_file INTEGER NOT NULL,    -- 1: the body is in bodies/<msgid as 8 hexadecimal digits>
    details TEXT NOT NULL        -- JSON array: the fields of mta.core.envelopes.base.Transaction
);
CREATE TABLE body (msgid INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE envelope (
    evpid INTEGER PRIMARY KEY,   -- msgid << 32 | number of the recipient, from 1
    address TEXT NOT NULL,
    domain TEXT NOT NULL,        -- of a local delivery more: see mta/queue/recipients.py
    notify TEXT NOT NULL,
    orcpt TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    due_at REAL NOT NULL,
    flags INTEGER NOT NULL,
    status TEXT NOT NULL         -- last reply in one line
);
"""


class Change(enum.IntEnum):
    """The kinds of rows of the view ``change``: (kind, id, c1 ... c11)."""

    MESSAGE = 1
    """msgid; created_at, expires_at, size, in_file, details, body or NULL, and of its first recipient
    address, domain, notify, orcpt, flags."""
    ENVELOPE = 2
    """evpid; due_at, five NULLs, address, domain, notify, orcpt, flags."""
    DEFER = 3
    """evpid; attempts, due_at, status."""
    FLAGS = 4
    """evpid; flags."""
    REMOVE = 5
    """evpid."""
    MARK = 6
    """Message ids below this are spoken for; 1 if they have started again at 1."""
    BEGIN = 7
    """NULL. Forgets what the batch before this one removed."""


COLUMNS: Final = 13
"""Of the view ``change``."""

_CHILDREN = "SELECT 1 FROM envelope WHERE evpid BETWEEN {0} << 32 AND {0} << 32 | 4294967295"
_FINISHED = f"msgid = NEW.id >> 32 AND NOT EXISTS ({_CHILDREN.format('(NEW.id >> 32)')})"
_MEANINGS: Final = {
    Change.MESSAGE: (
        "INSERT INTO message VALUES (NEW.id, NEW.c1, NEW.c2, NEW.c3, NEW.c4, NEW.c5);"
        "INSERT INTO body SELECT NEW.id, NEW.c6 WHERE NEW.c6 IS NOT NULL;"
        "INSERT INTO envelope VALUES"
        " (NEW.id << 32 | 1, NEW.c7, NEW.c8, NEW.c9, NEW.c10, 0, NEW.c1, NEW.c11, '');"
    ),
    Change.ENVELOPE: (
        "INSERT INTO envelope VALUES"
        " (NEW.id, NEW.c7, NEW.c8, NEW.c9, NEW.c10, 0, NEW.c1, NEW.c11, '');"
    ),
    Change.DEFER: (
        "UPDATE envelope SET attempts = NEW.c1, due_at = NEW.c2, status = NEW.c3"
        " WHERE evpid = NEW.id;"
    ),
    Change.FLAGS: "UPDATE envelope SET flags = NEW.c1 WHERE evpid = NEW.id;",
    Change.REMOVE: (
        "INSERT INTO gone SELECT NULL, 0, 0 FROM envelope WHERE evpid = NEW.id;"
        "DELETE FROM envelope WHERE evpid = NEW.id;"
        f"INSERT INTO gone SELECT msgid, size, in_file FROM message WHERE {_FINISHED};"
        f"DELETE FROM body WHERE {_FINISHED};"
        f"DELETE FROM message WHERE {_FINISHED};"
    ),
    Change.MARK: (
        "INSERT OR REPLACE INTO meta VALUES ('msgid', NEW.id);"
        "INSERT OR REPLACE INTO meta VALUES ('wrapped', NEW.c1);"
    ),
    Change.BEGIN: "DELETE FROM gone;",
}

WRITER: Final = (
    "CREATE TEMP TABLE gone (msgid, size, in_file)",  # msgid NULL: an envelope; else a message
    "CREATE TEMP VIEW change (kind, id, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11) AS"
    " SELECT 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 WHERE 0",
    *(
        f"CREATE TEMP TRIGGER change_{kind.name.lower()} INSTEAD OF INSERT ON change"
        f" WHEN NEW.kind = {kind.value} BEGIN {meaning} END"
        for kind, meaning in _MEANINGS.items()
    ),
)
"""What the writer's connection has for itself: the file does not show how it is written."""

GONE: Final = (
    "SELECT count(*) - count(msgid), count(msgid), coalesce(sum(size), 0),"
    " group_concat(iif(in_file, msgid, NULL)) FROM gone"
)
"""What the last batch removed: envelopes, messages, bytes, messages that had body files."""

ENVELOPE: Final = (
    "SELECT e.evpid, e.address, e.domain, e.notify, e.orcpt, e.attempts, e.due_at, e.flags, e.status,"
    " m.created_at, m.expires_at, m.details FROM envelope e JOIN message m ON m.msgid = e.evpid >> 32"
)
"""Everything of envelopes; a WHERE on ``e.evpid`` follows."""

BODY: Final = "SELECT m.in_file, b.data FROM message m LEFT JOIN body b ON b.msgid = m.msgid WHERE m.msgid = ?"
TOTALS: Final = (
    "SELECT (SELECT count(*) FROM envelope), (SELECT count(*) FROM message),"
    " (SELECT coalesce(sum(size), 0) FROM message)"
)
CHILDLESS: Final = (
    f"SELECT msgid FROM message WHERE NOT EXISTS ({_CHILDREN.format('message.msgid')}) LIMIT 256"
)
"""Messages without envelopes: none, unless somebody edited the database by hand."""


@cache
def change(rows: int) -> str:
    """Return SQL that makes up to ``rows`` changes."""
    row = f"({', '.join('?' * COLUMNS)})"
    return f"INSERT INTO change VALUES {', '.join([row] * rows)}"


@cache
def _nulls(columns: int) -> tuple[None, ...]:
    return (None,) * columns


def statements(rows: Sequence[Row]) -> Iterator[tuple[str, list[Any]]]:
    """Return the statements that make all changes, each with its parameters; one if there are few."""
    for start in range(0, len(rows), ROWS_MAX):
        chunk = rows[start : start + ROWS_MAX]
        size = 1 << (len(chunk) - 1).bit_length()
        values: list[Any] = []
        for row in chunk:
            values += row
            if len(row) < COLUMNS:
                values += _nulls(COLUMNS - len(row))
        values += _nulls(COLUMNS * (size - len(chunk)))
        yield change(size), values
