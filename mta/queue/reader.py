"""What the queue holds, read on the event loop's thread through a connection of its own.

What a caller asked for is what it reads back, durable or not: removals, deferrals and flags that
still wait for their commit are laid over what the database says.
"""

import sqlite3
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from mta.core.envelopes.base import Transaction
from mta.core.ids import EvpId, MsgId, show_evpid, show_msgid
from mta.effects import Effects
from mta.queue import schema
from mta.queue.base import QueueUnavailableError, StoredEnvelope
from mta.queue.bodies import BodyFiles
from mta.queue.database import Database, QueueCorruptError
from mta.queue.recipients import recipient_of
from mta.queue.schema import Row

_decode = msgspec.json.Decoder(Transaction).decode
_DAMAGED = "\0damaged"
"""Stands for text that is not UTF-8; nothing that we store has a NUL."""


class Lag(Protocol):
    """Changes that were asked for and are not durable yet."""

    def is_removed(self, evpid: EvpId) -> bool:
        """Say whether a removal waits or is being committed."""
        ...

    def deferral(self, evpid: EvpId) -> Row | None:
        """Return the deferral that waits or is being committed."""
        ...

    def flags(self, evpid: EvpId) -> int | None:
        """Return the flags that wait or are being committed."""
        ...


class Reader:
    """Reads one queue. Every method that reads raises `QueueUnavailableError` if that fails."""

    def __init__(
        self,
        path: Path,
        bodies: BodyFiles,
        lag: Lag,
        *,
        effects: Effects,
        note: Callable[[str], None],
    ) -> None:
        """Open a connection.

        Raises:
            QueueCorruptError, sqlite3.Error, OSError: it can't be opened.
        """
        self._path = path
        self._bodies = bodies
        self._lag = lag
        self._effects = effects
        self._note = note
        self._database = Database(path, effects, writer=False)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._database.close()

    def shrink(self) -> None:
        """Let go of cached pages."""
        self._database.shrink()

    def has_message(self, msgid: int) -> bool:
        """Say whether a message is there."""
        return bool(self._read("SELECT 1 FROM message WHERE msgid = ?", (msgid,)))

    def envelope(self, evpid: EvpId) -> StoredEnvelope | None:
        """Return one envelope, or None if it is not there."""
        rows = self._envelopes("e.evpid = ?", (evpid,))
        return self._stored(rows[0]) if rows else None

    def page(self, *, after: int, limit: int) -> list[StoredEnvelope]:
        """Return up to ``limit`` envelopes with ids above ``after``, in order of their ids.

        It is empty only when there are no more.
        """
        while True:
            rows = self._envelopes("e.evpid > ? ORDER BY e.evpid LIMIT ?", (after, limit))
            found = [stored for row in rows if (stored := self._stored(row)) is not None]
            if found or not rows:
                return found
            # All of them are on their way out; whoever asks page by page must not stop here.
            after = rows[-1][0]

    def of_message(self, msgid: MsgId) -> list[StoredEnvelope]:
        """Return the envelopes of a message, in order of their ids."""
        low = msgid << 32
        rows = self._envelopes("e.evpid BETWEEN ? AND ? ORDER BY e.evpid", (low, low | 0xFFFFFFFF))
        return [stored for row in rows if (stored := self._stored(row)) is not None]

    def body(self, msgid: MsgId) -> bytes:
        """Return a message's bytes."""
        rows = self._read(schema.BODY, (msgid,))
        if not rows:
            raise QueueUnavailableError(f"no message {show_msgid(msgid)}")
        in_file, data = rows[0]
        if in_file:
            try:
                return self._bodies.read(msgid)
            except OSError as error:
                self._note(f"queue: body of {show_msgid(msgid)}: {error.strerror}")
                raise QueueUnavailableError("the body can't be read") from error
        if data is None:
            self._note(f"queue: body of {show_msgid(msgid)} is missing")
            raise QueueUnavailableError("the body is missing")
        assert isinstance(data, bytes), type(data)
        return data

    def restore(self) -> Iterator[StoredEnvelope]:
        """Iterate over all envelopes in the order (due_at, evpid); changes meanwhile are fine.

        Takes 8 bytes per envelope while it runs, and no transaction stays open between two chunks: one
        would keep the log from starting again. An envelope that can't be understood is noted and left
        where it is.
        """
        order = self._order()
        for start in range(0, len(order), schema.ROWS_MAX):
            evpids = order[start : start + schema.ROWS_MAX]
            marks = ", ".join("?" * len(evpids))
            rows = self._envelopes(f"e.evpid IN ({marks})", evpids)
            found = {row[0]: row for row in rows}
            for evpid in evpids:
                stored = self._stored(found[evpid]) if evpid in found else None
                if stored is not None:
                    yield stored

    def _order(self) -> "array[int]":
        order = array("q")
        database = None
        try:
            # Why a connection of its own? Sorting a long queue takes more than our page cache, and
            # this one gives that back when it is closed.
            database = Database(self._path, self._effects, writer=False)
            for row in database.stream(
                "SELECT evpid FROM envelope ORDER BY due_at, evpid", site="restore"
            ):
                order.append(row[0])
        except (sqlite3.Error, OSError, QueueCorruptError) as error:
            raise self._unreadable(error) from error
        finally:
            if database is not None:
                database.close()
        return order

    def _envelopes(self, where: str, values: Sequence[int]) -> list[Row]:
        """Return rows of envelopes; one with text that is none has no details, which nothing can be made of."""
        sql = f"{schema.ENVELOPE} WHERE {where}"
        try:
            return self._read(sql, values)
        except QueueUnavailableError as error:
            # One row whose text is no text would hide all others of the answer.
            if "decode" not in str(error.__cause__):
                raise
            with self._database.any_text(_DAMAGED):
                rows = self._read(sql, values)
            return [(*row[:11], "") if _DAMAGED in row else row for row in rows]

    def _read(self, sql: str, values: Sequence[int]) -> list[Row]:
        try:
            return self._database.run(sql, values, site="read")
        except (sqlite3.Error, OSError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> QueueUnavailableError:
        self._note(f"queue: can't be read: {error}")
        return QueueUnavailableError("the queue can't be read")

    def _stored(self, row: Row) -> StoredEnvelope | None:
        """Return an envelope as its asker left it; None if it was removed or makes no sense."""
        evpid = EvpId(row[0])
        if self._lag.is_removed(evpid):
            return None
        attempts, due_at, flags, status = row[5:9]
        deferral = self._lag.deferral(evpid)
        if deferral is not None:
            attempts, due_at, status = deferral[2:]
        waiting_flags = self._lag.flags(evpid)
        try:
            transaction = _decode(row[11])
            recipient = recipient_of(*row[1:5])
        except (msgspec.DecodeError, ValueError, TypeError) as error:
            self._note(f"queue: envelope {show_evpid(evpid)} is damaged and left alone: {error}")
            return None
        return StoredEnvelope(
            evpid,
            recipient,
            transaction,
            row[9],
            row[10],
            attempts,
            due_at,
            flags if waiting_flags is None else waiting_flags,
            status,
        )
