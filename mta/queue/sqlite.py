"""The durable queue on SQLite: write-ahead log, one writer thread, group commit.

The event loop's thread owns this object. It asks the writer for changes and reads through a
connection of its own, so it never waits for an fsync. What a caller asked for is what it reads back,
durable or not: removals, deferrals and flags that still wait are laid over what the database says.

On disk: ``queue.db`` with its log, ``bodies/`` for large messages, ``lock``.
"""

import asyncio
import errno
import math
import os
import sqlite3
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Self

import msgspec

from mta.core.envelopes.base import MtaEnvelope, Recipient, Transaction, mta_envelope
from mta.core.ids import EvpId, MsgId, show_evpid, show_msgid
from mta.core.limits import QueueLimits
from mta.effects import Effects, FileLock, LockHeldError, Space
from mta.queue import schema
from mta.queue.base import QueueUnavailableError, StoredEnvelope, Submission
from mta.queue.database import Database, QueueCorruptError, Removed, Totals
from mta.queue.schema import Change, Row
from mta.queue.writer import Commit, Item, Marker, Waiting, Writer

TURN_S: Final = 0.0003
"""Seconds that the event loop stands aside for the writer. Enough for a thread to wake up."""
COMMIT_MIN_S: Final = 0.0005
"""Shortest commit that is reckoned with; an fsync of a fast disk."""
TURN_GAP_MAX_S: Final = 0.016
"""Longest time between two such, while a commit takes its time."""
LAG_S: Final = 0.05
"""Seconds that removals, deferrals and flags wait for a commit that happens anyway."""
SPACE_AGE_S: Final = 1.0
"""Seconds for which the answer about free space is used again."""
STATUS_MAX: Final = 1024
"""Characters of a reply that are kept."""
CLOSE_S: Final = 30.0
"""Seconds that `SqliteQueue.close` waits for a disk that hangs."""
BODY_THREADS: Final = 2
"""Threads that write body files, so that a large message does not hold up the commits of small ones."""

_NO_ROOM = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)
"""Errors of one file that say nothing about the disk's health."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Transaction).decode


class QueueLockedError(Exception):
    """Another server uses this queue directory."""

    def __init__(self, directory: Path, pid: int) -> None:
        super().__init__(f"{directory}: in use by process {pid or 'unknown'}")
        self.directory = directory
        self.pid = pid
        """Its process id; 0 if it has not said."""


class QueuePressure(NamedTuple):
    """How full the queue is, for the decision at the door."""

    envelopes: int
    """Durable envelopes."""
    messages: int
    size_bytes: int
    """Bytes of their messages."""
    waiting: int
    """Submissions that wait for a commit."""
    lagging: int
    """Removals, deferrals and flags that wait for a commit."""
    free_bytes: int
    total_bytes: int
    """Of the file system."""
    healthy: bool
    """False from a failed commit until a probe succeeds."""


class SqliteQueue:
    """Messages and envelopes on stable storage; see `mta.queue.base.DurableQueue`."""

    def __init__(
        self,
        directory: Path,
        *,
        effects: Effects,
        limits: QueueLimits,
        note: Callable[[str], None] = lambda line: None,
        on_commit: Callable[[Commit], None] = lambda commit: None,
    ) -> None:
        """Describe a queue; `open` makes it usable.

        Args:
            directory: made with mode 0700 if it is missing.
            effects: the way to the disk.
            limits: caps.
            note: takes a line for the operator's log.
            on_commit: told of each commit, on the event loop; for metrics and calibration.
        """
        self.directory = directory
        self.limits = limits
        self.healthy = False
        """False from a failed commit until a probe succeeds: submissions fail at once."""
        self._effects = effects
        self._note = note
        self._on_commit = on_commit
        self._path = directory / "queue.db"
        self._bodies = directory / "bodies"
        self._lock: FileLock | None = None
        self._reader: Database | None = None
        self._writer: Writer | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._loop: asyncio.AbstractEventLoop
        # Why futures in a dict and not in the items? The writer must not touch them.
        self._futures: dict[Waiting, asyncio.Future[None]] = {}
        self._writing: set[asyncio.Future[None]] = set()
        self._rung = False
        self._lag_timer: asyncio.TimerHandle | None = None
        self._turn_timer: asyncio.TimerHandle | None = None
        self._turn_delay = 0.0
        self._commit_s = COMMIT_MIN_S
        self._closing: asyncio.Future[None] | None = None
        self._envelopes = self._messages = self._size_bytes = 0
        self._space = Space(0, 0)
        self._space_at = -math.inf
        self._next_msgid = 1
        self._reserved = 1
        self._wrapped = False

    # ---- opening and closing

    async def open(self) -> Self:
        """Lock the directory, open the database, count it, start the writer.

        Raises:
            QueueLockedError: another server uses the directory.
            QueueCorruptError: the database can't be read.
            OSError, sqlite3.Error: the directory can't be used.
        """
        assert self._lock is None, "opened twice"
        self._loop = asyncio.get_running_loop()
        effects = self._effects
        effects.mkdir(self.directory, site="queue")
        try:
            self._lock = effects.lock(
                self.directory / "lock", f"{os.getpid()}\n".encode(), site="queue"
            )
        except LockHeldError as error:
            text = error.content.strip()
            raise QueueLockedError(self.directory, int(text) if text.isdigit() else 0) from None
        database = None
        try:
            effects.mkdir(self._bodies, site="queue.bodies")
            database = self._open_database()
            effects.fsync_dir(self.directory, site="queue")
            try:
                lost = database.remove_childless()
                if lost:
                    self._note(f"queue: removed {lost} messages without envelopes")
                self._envelopes, self._messages, self._size_bytes = database.totals()
                self._reserved = self._next_msgid = database.meta("msgid", 1)
                self._wrapped = bool(database.meta("wrapped", 0))
                self._reader = Database(self._path, effects, writer=False)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                raise QueueCorruptError(self._path, str(error)) from error
            self._remove_orphans()
        except BaseException:
            if database is not None:
                database.close()
            self._release()
            raise
        self._pool = ThreadPoolExecutor(BODY_THREADS, thread_name_prefix="queue-body")
        self._writer = Writer(
            database,
            self._open_database,
            effects=effects,
            batch_max=self.limits.commit_batch_max,
            on_commit=lambda commit: self._tell(self._finish, commit),
            on_removed=lambda removed: self._tell(self._count_removed, removed),
            on_health=lambda problem, totals: self._tell(self._set_health, problem, totals),
            remove_bodies=self._remove_bodies,
        )
        self._writer.start()
        self.healthy = True
        return self

    def _open_database(self) -> Database:
        return Database(self._path, self._effects, writer=True)

    def _remove_orphans(self) -> None:
        """Remove body files that have no row: a crash came between the file and its commit."""
        assert self._reader is not None
        sql = "SELECT 1 FROM message WHERE msgid = ? AND in_file"
        count = 0
        for name in self._effects.listdir(self._bodies, site="queue.bodies"):
            try:
                msgid = int(name, 16)
            except ValueError:
                self._note(f"queue: {self._bodies / name} is none of ours")
                continue
            if not self._reader.run(sql, (msgid,), site="open"):
                self._effects.unlink(self._bodies / name, site="queue.orphan")
                count += 1
        if count:
            self._note(f"queue: removed {count} messages that were never accepted")

    def _release(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    async def close(self) -> None:
        """Commit what waits, stop the writer, release the lock. Idempotent; never raises.

        A disk that hangs is given up after `CLOSE_S` seconds: the lock then stays with the process.
        """
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        # Shielded: a caller that is cancelled must not leave the queue half closed.
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._writer is None:
            return
        writer, self.healthy = self._writer, False
        for timer in (self._lag_timer, self._turn_timer):
            if timer is not None:
                timer.cancel()
        if self._writing:
            await asyncio.wait(set(self._writing), timeout=CLOSE_S)
        # Ids that nobody got need not be skipped by the next start.
        writer.set_mark(self._next_msgid, wrapped=self._wrapped)
        writer.stop()
        ended = await asyncio.get_running_loop().run_in_executor(None, writer.join, CLOSE_S)
        assert self._pool is not None
        self._pool.shutdown(wait=False)
        if not ended:
            self._note("queue: the disk hangs; what waits for it is given up")
            for waiting in list(self._futures):
                self._resolve(waiting, QueueUnavailableError("the disk hangs"))
            return
        if writer.lagging:
            self._note(f"queue: {writer.lagging} changes were lost; deliveries may repeat")
        self._release()

    # ---- writing

    async def submit(self, submission: Submission, *, replaces: tuple[EvpId, ...] = ()) -> None:
        """Make a message durable; see `DurableQueue.submit`.

        Whoever is cancelled here gives up the answer only: the message may be durable afterwards.
        """
        await self.enqueue(submission, replaces=replaces)

    def enqueue(
        self, submission: Submission, *, replaces: tuple[EvpId, ...] = ()
    ) -> asyncio.Future[None]:
        """Begin `submit`, and return the future of its end. Cancelling that stops nothing.

        Raises:
            QueueUnavailableError: nothing was begun.
        """
        writer = self._writer
        if writer is None or not self.healthy:
            raise QueueUnavailableError("the queue takes nothing now")
        if len(self._futures) >= self.limits.max_waiting:
            raise QueueUnavailableError("too many submissions wait")
        size = len(submission.body)
        # A bounce that takes envelopes away is let in: refusing it would keep the queue full.
        if not replaces and self._is_over_caps(len(submission.recipients), size):
            raise QueueUnavailableError("the queue is full")
        in_file = size >= self.limits.body_file_bytes
        changes = _changes(submission, in_file=in_file)
        changes += [(Change.REMOVE, evpid) for evpid in replaces]
        item = Item(
            submission.msgid, changes, len(submission.recipients), size, in_file, bool(replaces)
        )
        future = self._loop.create_future()
        self._futures[item] = future
        if in_file:
            self._write_body(item, submission.body)
        else:
            writer.put(item)
            self._ring_soon()
        return future

    def remove(self, evpid: EvpId) -> None:
        """Forget an envelope; see `DurableQueue.remove`."""
        self._lag(self._open_writer().remove(evpid))

    def defer(self, evpid: EvpId, *, attempts: int, due_at: float, status: str) -> None:
        """Write down a temporary failure; see `DurableQueue.defer`."""
        assert math.isfinite(due_at) and attempts >= 0, (due_at, attempts)
        self._lag(
            self._open_writer().defer((Change.DEFER, evpid, attempts, due_at, _clean(status)))
        )

    def set_flags(self, evpid: EvpId, flags: int) -> None:
        """Write down an envelope's flags; see `DurableQueue.set_flags`."""
        self._lag(self._open_writer().set_flags(evpid, int(flags)))

    async def flush(self) -> None:
        """Wait until everything asked for so far is durable.

        Raises:
            QueueUnavailableError: the disk failed; what lags is kept for later.
        """
        writer = self._open_writer()
        if self._writing:
            await asyncio.wait(set(self._writing))
        marker = Marker()
        future = self._futures[marker] = self._loop.create_future()
        writer.put(marker)
        self._ring_soon()
        await future

    def _open_writer(self) -> Writer:
        assert self._writer is not None, "the queue is not open"
        return self._writer

    def _ring_soon(self) -> None:
        """Wake the writer when this turn of the loop is over: what else it submits joins the batch."""
        if not self._rung:
            self._rung = True
            self._loop.call_soon(self._ring)

    def _ring(self) -> None:
        self._rung = False
        if self._lag_timer is not None:
            self._lag_timer.cancel()
            self._lag_timer = None
        self._open_writer().ring_and_yield(TURN_S)
        if self._turn_timer is None and self._futures:
            self._turn_delay = self._commit_s
            self._turn_timer = self._loop.call_later(self._turn_delay, self._let_finish)

    def _let_finish(self) -> None:
        """Give the interpreter to the writer when its commit should be on the disk, and later again."""
        self._turn_timer = None
        if self._futures:
            self._open_writer().let_run(TURN_S)
            self._turn_delay = min(self._turn_delay * 2, TURN_GAP_MAX_S)
            self._turn_timer = self._loop.call_later(self._turn_delay, self._let_finish)

    def _lag(self, waiting: int) -> None:
        if waiting >= self.limits.commit_batch_max:
            self._ring_soon()
        elif self._lag_timer is None and not self._rung:
            self._lag_timer = self._loop.call_later(LAG_S, self._ring)

    def _write_body(self, item: Item, body: bytes) -> None:
        assert self._pool is not None
        written = self._loop.run_in_executor(self._pool, self._body_job, item, body)
        self._writing.add(written)
        written.add_done_callback(self._writing.discard)

    def _body_job(self, item: Item, body: bytes) -> None:
        """Write a body file, durable with its name, and only then line its row up. On a pool thread."""
        writer = self._open_writer()
        try:
            path = self._bodies / show_msgid(item.msgid)
            self._effects.write_new(path, body, site="queue.body")
            try:
                self._effects.fsync_dir(self._bodies, site="queue.bodies")
            except BaseException:
                self._effects.unlink(path, site="queue.body")
                raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the submitter must hear of it
            item.error = QueueUnavailableError(f"body file: {error}")
            sick = not (isinstance(error, OSError) and error.errno in _NO_ROOM)
            self._tell(self._body_failed, item, str(error), sick)
        else:
            writer.put(item)
            writer.ring()

    def _body_failed(self, item: Item, problem: str, sick: bool) -> None:
        self._note(f"queue: body file: {problem}")
        if sick:
            self._open_writer().sicken(f"body file: {problem}")
        self._resolve(item, item.error)

    def _remove_bodies(self, msgids: Sequence[int]) -> None:
        """Remove body files that have no row. On the writer's thread."""
        for msgid in msgids:
            try:
                self._effects.unlink(self._bodies / show_msgid(MsgId(msgid)), site="queue.body")
            except FileNotFoundError:
                pass
            except OSError as error:
                # The next start removes it.
                self._tell(self._note, f"queue: body of {show_msgid(MsgId(msgid))}: {error}")

    # ---- what the writer says

    def _tell(self, callback: Callable[..., None], *values: object) -> None:
        """Call something on the event loop, from any thread."""
        # A loop that is closed has nobody left to tell.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *values)

    def _finish(self, commit: Commit) -> None:
        # The quickest of late: what a commit takes when the writer need not wait for the interpreter.
        self._commit_s = min(max(commit.seconds, COMMIT_MIN_S), self._commit_s * 1.05)
        if self._turn_timer is not None:
            self._turn_timer.cancel()
            self._turn_timer = None
        for waiting in commit.items:
            if isinstance(waiting, Item) and waiting.error is None:
                self._envelopes += waiting.envelopes
                self._messages += 1
                self._size_bytes += waiting.size_bytes
            self._resolve(waiting, waiting.error)
        if commit.problem and self.healthy:
            self._note(f"queue: {commit.problem}")
        if self._futures:
            self._turn_delay = self._commit_s
            self._turn_timer = self._loop.call_later(self._turn_delay, self._let_finish)
        self._on_commit(commit)

    def _resolve(self, waiting: Waiting, error: Exception | None) -> None:
        future = self._futures.pop(waiting)
        if future.done():
            return  # its submitter was cancelled
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def _count_removed(self, removed: Removed) -> None:
        self._envelopes -= removed.envelopes
        self._messages -= removed.messages
        self._size_bytes -= removed.size_bytes

    def _set_health(self, problem: str, totals: Totals | None) -> None:
        if totals is None:
            self.healthy = False
            self._note(f"queue: takes nothing now: {problem}")
        else:
            self._envelopes, self._messages, self._size_bytes = totals
            self.healthy = self._closing is None
            self._note("queue: healthy again")

    # ---- how full

    @property
    def envelopes(self) -> int:
        """Durable envelopes."""
        return self._envelopes

    @property
    def messages(self) -> int:
        """Durable messages."""
        return self._messages

    @property
    def size_bytes(self) -> int:
        """Bytes of the durable messages' bodies."""
        return self._size_bytes

    @property
    def waiting(self) -> int:
        """Submissions that wait for a commit."""
        return len(self._futures)

    def pressure(self) -> QueuePressure:
        """Return how full the queue is; the free space may be `SPACE_AGE_S` old."""
        now = self._effects.monotonic()
        if now - self._space_at >= SPACE_AGE_S:
            self._space_at = now
            try:
                self._space = self._effects.space(self.directory, site="queue")
            except OSError as error:
                # Not knowing is not having.
                self._space = Space(0, 0)
                self._note(f"queue: free space: {error}")
        return QueuePressure(
            self._envelopes,
            self._messages,
            self._size_bytes,
            len(self._futures),
            self._writer.lagging if self._writer is not None else 0,
            self._space.free_bytes,
            self._space.total_bytes,
            self.healthy,
        )

    def full(self, size: int = 0) -> bool:
        """Say whether a message of ``size`` bytes has to be refused now (452 4.3.1)."""
        if not self.healthy or len(self._futures) >= self.limits.max_waiting:
            return True
        if self._is_over_caps(1, size):
            return True
        pressure = self.pressure()
        reserve = max(
            self.limits.min_free_bytes, int(self.limits.min_free_ratio * pressure.total_bytes)
        )
        # Twice: the body goes into the log and into the database.
        return pressure.free_bytes < reserve + 2 * size

    def _is_over_caps(self, recipients: int, size: int) -> bool:
        return (
            self._envelopes + len(self._futures) + recipients > self.limits.max_envelopes
            or self._size_bytes + size > self.limits.max_bytes
        )

    # ---- reading

    def envelope(self, evpid: EvpId) -> StoredEnvelope | None:
        """Return one envelope, or None if it is not there.

        Raises:
            QueueUnavailableError: it can't be read now.
        """
        rows = self._rows_of(evpid)
        return self._stored(rows[0]) if rows else None

    def mta_envelope(self, evpid: EvpId) -> MtaEnvelope | None:
        """Return what the relaying agent needs of one envelope, or None if it is not there.

        Raises:
            QueueUnavailableError: it can't be read now.
        """
        rows = self._rows_of(evpid)
        stored = self._stored(rows[0]) if rows else None
        if stored is None:
            return None
        return mta_envelope(stored.transaction, stored.recipient, created_at=stored.created_at)

    def page(self, *, after: int = 0, limit: int = 256) -> list[StoredEnvelope]:
        """Return up to ``limit`` envelopes with ids above ``after``, in order of their ids.

        Raises:
            QueueUnavailableError: they can't be read now.
        """
        rows = self._read(
            f"{schema.ENVELOPE} WHERE e.evpid > ? ORDER BY e.evpid LIMIT ?", (after, limit)
        )
        return [stored for row in rows if (stored := self._stored(row)) is not None]

    def of_message(self, msgid: MsgId) -> list[StoredEnvelope]:
        """Return the envelopes of a message, in order of their ids.

        Raises:
            QueueUnavailableError: they can't be read now.
        """
        low = msgid << 32
        rows = self._read(
            f"{schema.ENVELOPE} WHERE e.evpid BETWEEN ? AND ? ORDER BY e.evpid",
            (low, low | 0xFFFFFFFF),
        )
        return [stored for row in rows if (stored := self._stored(row)) is not None]

    def body(self, msgid: MsgId) -> bytes:
        """Return a message's bytes; see `DurableQueue.body`."""
        rows = self._read(schema.BODY, (msgid,))
        if not rows:
            raise QueueUnavailableError(f"no message {show_msgid(msgid)}")
        in_file, data = rows[0]
        if in_file:
            try:
                return self._effects.read_file(self._bodies / show_msgid(msgid), site="queue.body")
            except OSError as error:
                self._note(f"queue: body of {show_msgid(msgid)}: {error}")
                raise QueueUnavailableError("body file") from error
        if data is None:
            self._note(f"queue: body of {show_msgid(msgid)} is missing")
            raise QueueUnavailableError("body missing")
        assert isinstance(data, bytes)
        return data

    def restore(self) -> Iterator[StoredEnvelope]:
        """Iterate over all envelopes in the order (due_at, evpid), in chunks; changes meanwhile are fine.

        Takes 8 bytes per envelope while it runs. An envelope that can't be understood is noted and
        left where it is.

        Raises:
            QueueUnavailableError: they can't be read now.
        """
        order = array("q")
        reader = None
        try:
            # Why a connection of its own? Sorting may take a temporary file, and this one may have it.
            reader = Database(self._path, self._effects, writer=False)
            order.extend(
                row[0]
                for row in reader.stream(
                    "SELECT evpid FROM envelope ORDER BY due_at, evpid", site="restore"
                )
            )
        except (sqlite3.Error, OSError, QueueCorruptError) as error:
            raise QueueUnavailableError("the queue can't be read") from error
        finally:
            if reader is not None:
                reader.close()
        for start in range(0, len(order), schema.ROWS_MAX):
            evpids = order[start : start + schema.ROWS_MAX]
            marks = ", ".join("?" * len(evpids))
            rows = self._read(f"{schema.ENVELOPE} WHERE e.evpid IN ({marks})", evpids)
            found = {row[0]: row for row in rows}
            for evpid in evpids:
                stored = self._stored(found[evpid]) if evpid in found else None
                if stored is not None:
                    yield stored

    def _rows_of(self, evpid: EvpId) -> list[Row]:
        return self._read(f"{schema.ENVELOPE} WHERE e.evpid = ?", (evpid,))

    def _read(self, sql: str, values: Sequence[int]) -> list[Row]:
        assert self._reader is not None, "the queue is not open"
        try:
            return self._reader.run(sql, values, site="read")
        except (sqlite3.Error, OSError) as error:
            self._note(f"queue: read: {error}")
            raise QueueUnavailableError("the queue can't be read") from error

    def _stored(self, row: Row) -> StoredEnvelope | None:
        """Return an envelope as its asker left it; None if it was removed or makes no sense."""
        writer = self._open_writer()
        evpid = EvpId(row[0])
        if writer.is_removed(evpid):
            return None
        attempts, due_at, flags, status = row[5:9]
        deferral = writer.deferral(evpid)
        if deferral is not None:
            attempts, due_at, status = deferral[2:]
        waiting_flags = writer.flags(evpid)
        try:
            transaction = _decode(row[11])
        except (msgspec.DecodeError, ValueError) as error:
            self._note(f"queue: envelope {show_evpid(evpid)} is damaged and left alone: {error}")
            return None
        return StoredEnvelope(
            evpid,
            Recipient(row[1], row[2], row[3], row[4]),
            transaction,
            row[9],
            row[10],
            attempts,
            due_at,
            flags if waiting_flags is None else waiting_flags,
            status,
        )

    # ---- ids

    def next_msgid(self) -> MsgId:
        """Return a message id that was never used in this queue.

        Ids count up from 1. After 2**31 - 1 messages, a month at full speed, they start again, and
        those of messages that are still here are left out.
        """
        msgid = self._next_msgid
        while True:
            if msgid > schema.MSGID_LAST:
                msgid, self._reserved, self._wrapped = 1, 1, True
            if not self._wrapped or not self._read(
                "SELECT 1 FROM message WHERE msgid = ?", (msgid,)
            ):
                break
            msgid += 1
        self._next_msgid = msgid + 1
        if self._next_msgid + schema.MSGID_BLOCK // 2 > self._reserved:
            self._reserved = min(self._next_msgid + schema.MSGID_BLOCK, schema.MSGID_LAST + 1)
            self._open_writer().set_mark(self._reserved, wrapped=self._wrapped)
        return MsgId(msgid)


def _changes(submission: Submission, *, in_file: bool) -> list[Row]:
    """Return a message and its envelopes as rows that the database can't object to.

    Raises:
        ValueError: a string is not encodable (a lone surrogate).
    """
    msgid, transaction, recipients, body, created_at, expires_at, flags = submission
    assert 0 < msgid <= schema.MSGID_LAST, msgid
    assert recipients and len(recipients) == len(flags), msgid
    for recipient in recipients:
        for text in recipient:
            if not text.isascii():
                text.encode()
    changes: list[Row] = [
        (
            Change.MESSAGE,
            msgid,
            created_at,
            expires_at,
            len(body),
            in_file,
            _encode(transaction).decode(),
            None if in_file else body,
            *recipients[0],
            int(flags[0]),
        )
    ]
    base = msgid << 32
    for number in range(1, len(recipients)):
        changes.append(
            (
                Change.ENVELOPE,
                base | number + 1,
                created_at,
                None,
                None,
                None,
                None,
                None,
                *recipients[number],
                int(flags[number]),
            )
        )
    return changes


def _clean(status: str) -> str:
    status = status[:STATUS_MAX]
    return status if status.isascii() else status.encode(errors="backslashreplace").decode()
