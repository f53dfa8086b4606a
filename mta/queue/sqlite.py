"""The durable queue on SQLite: write-ahead log, one writer thread, group commit.

The event loop's thread owns this object. It asks the writer for changes and reads through a
connection of its own, so it never waits for an fsync.

On disk: ``queue.db`` with its log, ``bodies/`` for large messages, ``lock``.
"""

import asyncio
import errno
import math
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Self

import msgspec

from mta.core.envelopes.base import MtaEnvelope, mta_envelope
from mta.core.ids import EvpId, MsgId
from mta.core.limits import QueueLimits
from mta.effects import Effects, FileLock, LockHeldError, Space
from mta.queue import msgids
from mta.queue.base import QueueUnavailableError, StoredEnvelope, Submission
from mta.queue.batch import Commit, Item, Marker, Waiting
from mta.queue.bodies import BodyFiles
from mta.queue.database import Database, QueueCorruptError, Removed, Totals
from mta.queue.msgids import MsgIds
from mta.queue.reader import Reader
from mta.queue.recipients import columns_of
from mta.queue.schema import Change, Row
from mta.queue.wake import Waker
from mta.queue.writer import Writer

SPACE_AGE_S: Final = 1.0
"""Seconds for which the answer about free space is used again."""
STATUS_MAX: Final = 1024
"""Characters of a reply that are kept."""
CLOSE_S: Final = 30.0
"""Seconds that `SqliteQueue.close` waits for a disk that hangs."""
BODY_THREADS: Final = 2
"""Threads that write body files, so that a large message does not hold up the commits of small ones."""

_NO_ROOM: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)
"""Errors of one file that say nothing about the disk's health."""

_encode = msgspec.json.Encoder().encode


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
        on_death: Callable[[str], None] = lambda problem: None,
    ) -> None:
        """Describe a queue; `open` makes it usable.

        Args:
            directory: made with mode 0700 if it is missing.
            effects: the way to the disk.
            limits: caps.
            note: takes a line for the operator's log.
            on_commit: told of each commit, on the event loop; for metrics and calibration.
            on_death: told, on the event loop, that nothing can be written until a new process opens the queue.
        """
        self.directory = directory
        self.limits = limits
        self.healthy = False
        """False from a failed commit until a probe succeeds: submissions fail at once."""
        self._effects = effects
        self._note = note
        self._on_commit = on_commit
        self._on_death = on_death
        self._path = directory / "queue.db"
        self._bodies = BodyFiles(directory / "bodies", effects)
        self._loop: asyncio.AbstractEventLoop
        self._lock: FileLock | None = None
        self._writer: Writer | None = None
        self._reader: Reader | None = None
        self._ids: MsgIds
        self._waker: Waker
        self._pool = ThreadPoolExecutor(BODY_THREADS, thread_name_prefix="queue-body")
        # Why futures in a dict and not in the items? The writer must not touch them.
        self._futures: dict[Waiting, asyncio.Future[None]] = {}
        self._writing: set[asyncio.Future[None]] = set()
        self._closing: asyncio.Future[None] | None = None
        self._totals = Totals(0, 0, 0)
        self._space = Space(0, 0)
        self._space_at = -math.inf

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
        self._effects.mkdir(self.directory, site="queue")
        try:
            self._lock = self._effects.lock(
                self.directory / "lock", f"{os.getpid()}\n".encode(), site="queue"
            )
        except LockHeldError as error:
            text = error.content.strip()
            raise QueueLockedError(self.directory, int(text) if text.isdigit() else 0) from None
        database = None
        try:
            self._bodies.open()
            database = self._open_database()
            self._effects.fsync_dir(self.directory, site="queue")
            try:
                self._open_parts(database)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                raise QueueCorruptError(self._path, str(error)) from error
        except BaseException:
            if database is not None:
                database.close()
            self._release()
            raise
        return self

    def _open_parts(self, database: Database) -> None:
        strays = database.remove_childless()
        if strays:
            self._note(f"queue: removed {strays} messages without envelopes")
        self._totals = database.totals()
        mark, wrapped = database.meta("msgid", 1), bool(database.meta("wrapped", 0))
        # Before the first id is given out: one that is never committed may be in a log already.
        reserved = msgids.reserved_from(mark)
        database.commit([(Change.BEGIN,), (Change.MARK, reserved, wrapped)], size_bytes=0)
        writer = Writer(
            database,
            self._open_database,
            effects=self._effects,
            batch_max=self.limits.commit_batch_max,
            on_commit=lambda commit: self._tell(self._finish, commit),
            on_removed=lambda removed: self._tell(self._count_removed, removed),
            on_health=lambda problem, totals: self._tell(self._set_health, problem, totals),
            on_death=lambda problem: self._tell(self._died, problem),
            remove_bodies=self._remove_bodies,
        )
        self._reader = Reader(
            self._path, self._bodies, writer, effects=self._effects, note=self._note
        )
        self._bodies.remove_orphans(self._reader.has_message, self._note)
        self._ids = MsgIds(
            mark, wrapped=wrapped, is_known=self._reader.has_message, set_mark=writer.set_mark
        )
        self._waker = Waker(
            self._loop,
            writer,
            batch_max=self.limits.commit_batch_max,
            is_awaited=lambda: bool(self._futures),
        )
        writer.start()
        self._writer = writer
        self.healthy = True

    def _open_database(self) -> Database:
        return Database(self._path, self._effects, writer=True)

    def _release(self) -> None:
        if self._reader is not None:
            self._reader.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    async def close(self) -> None:
        """Commit what waits, stop the writer, release the lock. Idempotent.

        A disk that hangs is given up after `CLOSE_S` seconds: the lock then stays with the process.
        """
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        # Shielded: a caller that is cancelled must not leave the queue half closed.
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self.healthy = False
        writer = self._writer
        if writer is None:
            return
        self._waker.close()
        if self._writing:
            await asyncio.wait(set(self._writing), timeout=CLOSE_S)
        self._ids.close()
        writer.stop()
        ended = await self._loop.run_in_executor(None, writer.join, CLOSE_S)
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
            ValueError: a string can't be written in UTF-8 (a lone surrogate).
        """
        if not self.healthy:
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
        future = self._futures[item] = self._loop.create_future()
        if in_file:
            written = self._loop.run_in_executor(
                self._pool, self._write_body, item, submission.body
            )
            self._writing.add(written)
            written.add_done_callback(self._writing.discard)
        else:
            self._open_writer().put(item)
            self._waker.ring_soon()
        return future

    def remove(self, evpid: EvpId) -> None:
        """Forget an envelope; see `DurableQueue.remove`."""
        self._waker.lag(self._open_writer().remove(evpid))

    def defer(self, evpid: EvpId, *, attempts: int, due_at: float, status: str) -> None:
        """Write down a temporary failure; see `DurableQueue.defer`."""
        assert math.isfinite(due_at) and attempts >= 0, (due_at, attempts)
        row = (Change.DEFER, evpid, attempts, due_at, _clean(status))
        self._waker.lag(self._open_writer().defer(row))

    def set_flags(self, evpid: EvpId, flags: int) -> None:
        """Write down an envelope's flags; see `DurableQueue.set_flags`."""
        self._waker.lag(self._open_writer().set_flags(evpid, int(flags)))

    async def flush(self) -> None:
        """Wait until everything asked for so far is durable.

        Raises:
            QueueUnavailableError: the disk failed; removals, deferrals and flags are kept for later.
        """
        if self._writing:
            await asyncio.wait(set(self._writing))
        if not self.healthy:
            raise QueueUnavailableError("the queue takes nothing now")
        marker = Marker()
        future = self._futures[marker] = self._loop.create_future()
        self._open_writer().put(marker)
        self._waker.ring_soon()
        await future

    def _open_writer(self) -> Writer:
        assert self._writer is not None, "the queue is not open"
        return self._writer

    def _write_body(self, item: Item, body: bytes) -> None:
        """Write a body file, and only then line its row up. On a thread of the pool."""
        try:
            self._bodies.write(item.msgid, body)
        except Exception as error:  # noqa: BLE001  # whatever it is, the submitter must hear of it
            item.error = QueueUnavailableError("the body can't be written")
            room = isinstance(error, OSError) and error.errno in _NO_ROOM
            self._tell(self._refuse_body, item, f"body file: {error}", room)
        else:
            writer = self._open_writer()
            writer.put(item)
            writer.ring()

    def _refuse_body(self, item: Item, problem: str, room: bool) -> None:
        if room:
            self._note(f"queue: {problem}")
        else:
            self.healthy = False
            self._open_writer().sicken(problem)
        self._resolve(item, item.error)

    def _remove_bodies(self, msgids: Sequence[int]) -> None:
        """Remove body files that have no row. On the writer's thread."""
        problem = self._bodies.remove(msgids)
        if problem:
            self._tell(self._note, f"queue: {problem}")

    # ---- what the writer says

    def _tell(self, callback: Callable[..., None], *values: object) -> None:
        """Call something on the event loop, from any thread."""
        # A loop that is closed has nobody left to tell.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *values)

    def _finish(self, commit: Commit) -> None:
        if commit.problem and self.healthy:
            self._note(f"queue: {commit.problem}")
        envelopes, messages, size_bytes = self._totals
        for waiting in commit.items:
            if isinstance(waiting, Item) and waiting.error is None:
                envelopes += waiting.envelopes
                messages += 1
                size_bytes += waiting.size_bytes
            self._resolve(waiting, waiting.error)
        self._totals = Totals(envelopes, messages, size_bytes)
        self._waker.committed(commit.seconds)
        self._on_commit(commit)

    def _resolve(self, waiting: Waiting, error: Exception | None) -> None:
        future = self._futures.pop(waiting, None)
        if future is None or future.done():
            return  # given up by `close`, or its submitter was cancelled
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def _count_removed(self, removed: Removed) -> None:
        envelopes, messages, size_bytes = self._totals
        self._totals = Totals(
            envelopes - removed.envelopes,
            messages - removed.messages,
            size_bytes - removed.size_bytes,
        )

    def _set_health(self, problem: str, totals: Totals | None) -> None:
        if totals is None:
            self.healthy = False
            self._note(f"queue: takes nothing now: {problem}")
        else:
            self._totals = totals
            self.healthy = self._closing is None
            self._note("queue: healthy again")

    def shrink(self) -> None:
        """Let go of cached pages: memory is short."""
        if self._writer is not None and self._reader is not None:
            self._reader.shrink()
            self._writer.shrink()

    def _died(self, problem: str) -> None:
        self.healthy = False
        if self._closing is None:
            self._note(f"queue: the writer has ended: {problem}")
            self._on_death(problem)

    # ---- how full

    @property
    def envelopes(self) -> int:
        """Durable envelopes."""
        return self._totals.envelopes

    @property
    def messages(self) -> int:
        """Durable messages."""
        return self._totals.messages

    @property
    def size_bytes(self) -> int:
        """Bytes of the durable messages' bodies."""
        return self._totals.size_bytes

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
                self._note(f"queue: free space: {error.strerror}")
        return QueuePressure(
            *self._totals,
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
        totals = self._totals
        return (
            totals.envelopes + len(self._futures) + recipients > self.limits.max_envelopes
            or totals.size_bytes + size > self.limits.max_bytes
        )

    # ---- reading; each raises QueueUnavailableError if the disk fails

    def envelope(self, evpid: EvpId) -> StoredEnvelope | None:
        """Return one envelope, or None if it is not there."""
        return self._open_reader().envelope(evpid)

    def mta_envelope(self, evpid: EvpId) -> MtaEnvelope | None:
        """Return what the relaying agent needs of one envelope, or None if it is not there."""
        found = self._open_reader().envelope(evpid)
        if found is None:
            return None
        return mta_envelope(found.transaction, found.recipient, created_at=found.created_at)

    def page(self, *, after: int = 0, limit: int = 256) -> list[StoredEnvelope]:
        """Return up to ``limit`` envelopes with ids above ``after``, in order of their ids."""
        return self._open_reader().page(after=after, limit=limit)

    def of_message(self, msgid: MsgId) -> list[StoredEnvelope]:
        """Return the envelopes of a message, in order of their ids."""
        return self._open_reader().of_message(msgid)

    def body(self, msgid: MsgId) -> bytes:
        """Return a message's bytes; see `DurableQueue.body`."""
        return self._open_reader().body(msgid)

    def restore(self) -> Iterator[StoredEnvelope]:
        """Iterate over all envelopes, in the order (due_at, evpid). For the start."""
        return self._open_reader().restore()

    def _open_reader(self) -> Reader:
        assert self._reader is not None, "the queue is not open"
        return self._reader

    def next_msgid(self) -> MsgId:
        """Return a message id that was never used in this queue (or not for 2**31 messages)."""
        return self._ids.next()


def _changes(submission: Submission, *, in_file: bool) -> list[Row]:
    """Return a message and its envelopes as rows that the database can't object to.

    Raises:
        ValueError: a string is not encodable (a lone surrogate).
    """
    msgid, transaction, recipients, body, created_at, expires_at, flags = submission
    assert 0 < msgid <= msgids.LAST, msgid
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
            *columns_of(recipients[0]),
            int(flags[0]),
        )
    ]
    base = msgid << 32
    no_message = (None,) * 5
    changes.extend(
        (
            Change.ENVELOPE,
            base | number + 1,
            created_at,
            *no_message,
            *columns_of(recipients[number]),
            int(flags[number]),
        )
        for number in range(1, len(recipients))
    )
    return changes


def _clean(status: str) -> str:
    status = status[:STATUS_MAX]
    return status if status.isascii() else status.encode(errors="backslashreplace").decode()
