"""The durable queue's tables, and the SQL that is run on them.

Three tables, because their lives differ: an envelope changes with each attempt, a message never, and a
body is only ever read whole. A start counts and restores without touching a body, and a deferral
rewrites some 100 bytes instead of the message.

Statements come in sizes, powers of two, and a batch uses the next size up with NULLs in the unused
places. So a batch takes few steps whatever its size: after each step the writer's thread has to ask
for the interpreter lock back from a busy event loop. The texts are few, so SQLite keeps them prepared.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain, islice
from typing import Any, Final, TypeAlias, TypeVar

Row: TypeAlias = tuple[Any, ...]
_T = TypeVar("_T")

APPLICATION_ID: Final = 0x4D544151
"""``MTAQ``: what `file` and we know our databases by (SQLite's ``application_id``)."""
VERSION: Final = 1
"""Of the tables (SQLite's ``user_version``)."""
SQLITE_MIN: Final = (3, 33, 0)
"""The first SQLite with UPDATE ... FROM."""
ROWS_MAX: Final = 256
"""Rows per statement; nine columns each stay far below SQLite's 32,766 parameters."""

MSGID_LAST: Final = 0x7FFFFFFF
"""Last message id given out before starting again at 1: an `EvpId` must fit SQLite's signed 64 bits."""
MSGID_BLOCK: Final = 4096
"""Message ids reserved at once, so that ids are not written one by one; a crash skips at most so many."""

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
    domain TEXT NOT NULL,
    notify TEXT NOT NULL,
    orcpt TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    due_at REAL NOT NULL,
    flags INTEGER NOT NULL,
    status TEXT NOT NULL         -- last reply in one line
);
"""

_OF_MESSAGE = "BETWEEN message.msgid << 32 AND message.msgid << 32 | 4294967295"

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
    "SELECT msgid FROM message WHERE NOT EXISTS"
    f" (SELECT 1 FROM envelope WHERE evpid {_OF_MESSAGE}) LIMIT 256"
)
"""Messages without envelopes: none, unless somebody edited the database by hand."""


def size_for(count: int) -> int:
    """Return the size of statement to use for ``count`` rows: the next power of two, at most `ROWS_MAX`."""
    assert 0 < count <= ROWS_MAX, count
    return int(1 << (count - 1).bit_length())


@cache
def insert(table: str, columns: int, rows: int) -> str:
    """Return SQL that inserts up to ``rows`` rows; rows whose key is NULL are left out."""
    row = f"({', '.join('?' * columns)})"
    # Why SELECT around VALUES? It can leave out the rows that only fill the statement up.
    return (
        f"INSERT INTO {table} SELECT * FROM (VALUES {', '.join([row] * rows)})"
        " WHERE column1 IS NOT NULL"
    )


@cache
def defer(rows: int) -> str:
    """Return SQL that takes (evpid, attempts, due_at, status) for up to ``rows`` envelopes."""
    return (
        "UPDATE envelope SET attempts = v.column2, due_at = v.column3, status = v.column4"
        f" FROM (VALUES {', '.join(['(?, ?, ?, ?)'] * rows)}) AS v WHERE envelope.evpid = v.column1"
    )


@cache
def set_flags(rows: int) -> str:
    """Return SQL that takes (evpid, flags) for up to ``rows`` envelopes."""
    return (
        "UPDATE envelope SET flags = v.column2"
        f" FROM (VALUES {', '.join(['(?, ?)'] * rows)}) AS v WHERE envelope.evpid = v.column1"
    )


@cache
def delete(table: str, key: str, rows: int) -> str:
    """Return SQL that deletes up to ``rows`` rows by key."""
    return f"DELETE FROM {table} WHERE {key} IN ({', '.join('?' * rows)})"


@cache
def finished(rows: int) -> str:
    """Return SQL that says which of up to ``rows`` messages have no envelope left.

    One row: bytes of them, their ids joined with commas, the ids of those with a body file likewise.
    """
    return (
        "SELECT coalesce(sum(size), 0), group_concat(msgid), group_concat(iif(in_file, msgid, NULL))"
        f" FROM message WHERE msgid IN ({', '.join('?' * rows)})"
        f" AND NOT EXISTS (SELECT 1 FROM envelope WHERE evpid {_OF_MESSAGE})"
    )


def chunks(items: Iterable[_T]) -> Iterator[list[_T]]:
    """Split into lists of at most `ROWS_MAX`."""
    rest = iter(items)
    while chunk := list(islice(rest, ROWS_MAX)):
        yield chunk


def parameters(rows: Sequence[Row], size: int) -> list[Any]:
    """Return the rows end to end, filled up with NULLs to ``size`` rows."""
    flat = list(chain.from_iterable(rows))
    flat.extend([None] * (len(rows[0]) * (size - len(rows))))
    return flat
