"""The writer: one thread that commits whatever waits, and nobody else writes.

It takes what has gathered while the last commit was on its way to the disk, commits it in one
transaction, and tells the event loop once. What it keeps: a submission is answered after its commit
and never before; what lags (removals, deferrals, flags, the mark) is never forgotten, it goes with a
later commit; after a failed commit nothing is accepted until a fresh connection has committed a probe.

A mistake of ours (an exception that nobody foresaw) is met like a failed commit: whoever waited is refused, the
connection is thrown away, and work goes on with a fresh one, which keeps sessions and deliveries alive. What happens
more than `RESTARTS_MAX` times within `RESTARTS_S` is not cured by that: the writer ends for good and says so, and
the server stops, for only a new process has none of the old state.

Why not simply commit again after an error? Linux marks pages clean whose write-back failed, so a
second fsync succeeds without having written them (Rebello et al., USENIX ATC 2020). A new connection
writes new pages.
"""

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from mta.core.ids import EvpId
from mta.effects import Effects
from mta.queue.base import QueueUnavailableError
from mta.queue.batch import Batch, Commit, Item, Lagging, Marker, Waiting
from mta.queue.database import Database, QueueCorruptError, Removed, Totals
from mta.queue.schema import Change, Row

PROBE_FIRST_S: Final = 1.0
"""Seconds after a failed commit before the first probe; doubled after each probe that fails."""
PROBE_MAX_S: Final = 30.0
IDLE_CHECKPOINT_S: Final = 5.0
"""Seconds without work after which the log is copied into the database."""
UNTOLD_MAX: Final = 16
"""Commits after which the counts are brought up to date even if more work waits."""
RESTARTS_MAX: Final = 3
"""Mistakes of ours within `RESTARTS_S` after which the writer goes on."""
RESTARTS_S: Final = 300.0
_DEAD: Final = "the queue's writer has died"
DEFERS_MAX: Final = 65_536
"""Deferrals remembered while the disk takes nothing; the oldest go first: each is one early retry."""

_DATA_ERRORS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    UnicodeEncodeError,
)
"""What the database says about what it was given, not about its own state."""


_NOTHING: Final = Batch()


class Writer:
    """The thread and what waits for it. Public methods are for the event loop's thread."""

    def __init__(
        self,
        database: Database,
        reopen: Callable[[], Database],
        *,
        effects: Effects,
        batch_max: int,
        on_commit: Callable[[Commit], None],
        on_removed: Callable[[Removed], None],
        on_health: Callable[[str, Totals | None], None],
        on_death: Callable[[str], None],
        remove_bodies: Callable[[Sequence[int]], None],
    ) -> None:
        """Get ready; `start` begins.

        All callbacks are called on the writer's thread and must not raise.

        Args:
            database: committed to until it fails.
            reopen: returns another connection.
            effects: the clock.
            batch_max: submissions per commit, and as many removals, deferrals and flags.
            on_commit: told of each commit, done or failed.
            on_removed: told what a commit took out.
            on_health: told a problem when the disk fails, or "" and what is there when it works again.
            on_death: told why the thread has ended though nobody asked for it.
            remove_bodies: removes the body files of messages that have no row.
        """
        self._database: Database | None = database
        self._reopen = reopen
        self._effects = effects
        self._batch_max = batch_max
        self._on_commit = on_commit
        self._on_removed = on_removed
        self._on_health = on_health
        self._on_death = on_death
        self._remove_bodies = remove_bodies
        self._inbox: deque[Waiting] = deque()
        self._lagging = Lagging({}, {}, {})
        self._committing = Lagging({}, {}, {})
        self._mark: tuple[int, bool] | None = None
        # Why a mutex? The loop adds to what lags while the writer takes it; both are short.
        self._mutex = threading.Lock()
        # A binary semaphore: locked means that there is nothing to do.
        self._bell = threading.Lock()
        self._bell.acquire()
        # Another: unlocked when the writer has the interpreter, and `let_run` waits for that.
        self._turn = threading.Lock()
        self._turn.acquire()
        self._stopping = False
        self._dead = False
        """The thread ended by a mistake of ours: nothing is committed any more."""
        self._suspicion = ""
        self._has_to_shrink = False
        self._asleep = False
        self._untold = 0
        self._suspects: list[Item] = []
        self._in_hand = _NOTHING
        """What is being committed."""
        self._mistakes: deque[float] = deque()
        """When the last mistakes of ours came to light."""
        self._thread = threading.Thread(target=self._run, name="queue-writer", daemon=True)

    # ---- the loop's side

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, item: Waiting) -> None:
        """Add a submission or a marker; `ring` follows. May be called on any thread."""
        self._inbox.append(item)
        # Read after the append: whoever of the two threads comes second finds the item.
        if self._dead:
            self._fail_inbox(_DEAD)

    def remove(self, evpid: EvpId) -> int:
        """Forget an envelope with some later commit; return how many removals wait."""
        with self._mutex:
            lagging = self._lagging
            lagging.removes[evpid] = None
            lagging.defers.pop(evpid, None)
            lagging.flags.pop(evpid, None)
            return len(lagging.removes)

    def defer(self, row: Row) -> int:
        """Write a deferral down with some later commit; return how many wait."""
        with self._mutex:
            defers = self._lagging.defers
            defers.pop(row[1], None)
            defers[row[1]] = row
            if len(defers) > DEFERS_MAX:
                del defers[next(iter(defers))]
            return len(defers)

    def set_flags(self, evpid: EvpId, flags: int) -> int:
        """Write flags down with some later commit; return how many wait."""
        with self._mutex:
            self._lagging.flags[evpid] = flags
            return len(self._lagging.flags)

    def set_mark(self, mark: int, wrapped: bool) -> None:
        """Write down with the next commit that message ids below ``mark`` are spoken for."""
        with self._mutex:
            self._mark = (mark, wrapped)

    def sicken(self, problem: str) -> None:
        """Have the disk probed: somebody else met an I/O error."""
        self._suspicion = problem
        self.ring()

    def shrink(self) -> None:
        """Let go of cached pages when there is time."""
        self._has_to_shrink = True
        self.ring()

    def ring(self) -> None:
        """Wake the writer. May be called on any thread."""
        _open(self._bell)

    def ring_and_yield(self, seconds: float) -> None:
        """Wake the writer, and if it sleeps let it take what waits first."""
        asleep = self._asleep
        self._turn.acquire(blocking=False)
        self.ring()
        if asleep:
            self.let_run(seconds)

    def let_run(self, seconds: float) -> None:
        """Give the interpreter to the writer, for at most ``seconds`` if it does not want it.

        Why? A thread that waits for the interpreter is woken each time that another lets go of it, and
        a busy event loop, which lets go of it only for moments, has taken it back by then. Measured:
        commits of 1 ms took 80 to 150 ms in the mean under a saturated loop.
        """
        self._turn.acquire(timeout=seconds)

    def is_removed(self, evpid: EvpId) -> bool:
        """Say whether a removal waits or is being committed."""
        return evpid in self._lagging.removes or evpid in self._committing.removes

    def deferral(self, evpid: EvpId) -> Row | None:
        """Return the deferral that waits or is being committed."""
        return self._lagging.defers.get(evpid) or self._committing.defers.get(evpid)

    def flags(self, evpid: EvpId) -> int | None:
        """Return the flags that wait or are being committed."""
        flags = self._lagging.flags.get(evpid)
        return self._committing.flags.get(evpid) if flags is None else flags

    @property
    def lagging(self) -> int:
        """How many removals, deferrals and flags wait."""
        return self._lagging.count_all()

    def stop(self) -> None:
        """Let the thread commit what waits, and end."""
        self._stopping = True
        self.ring()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread's end, and return whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # ---- the writer's side

    def _run(self) -> None:
        try:
            while True:
                try:
                    self._work()
                except BaseException as error:  # noqa: BLE001  # ours, whatever it is
                    problem = f"writer: internal error: {error!r}"
                    self._on_health(problem, None)
                    self._abandon_work(problem)
                    if not self._may_go_on():
                        self._die(problem)
                        return
                else:
                    return
        except BaseException as error:  # noqa: BLE001  # the thread's last words: nobody else hears it
            self._die(f"writer: internal error: {error!r}")
        finally:
            if self._database is not None:
                self._database.close()

    def _abandon_work(self, problem: str) -> None:
        """Refuse whoever waited for the commit that a mistake of ours ended, and drop the connection."""
        if self._database is not None:
            self._database.close()
            self._database = None
        self._untold = 0
        batch, self._in_hand = self._in_hand, _NOTHING
        # What lagged may be done already; to do it again changes nothing.
        left = Batch([item for item in batch.items if not item.told], batch.lagging, batch.mark)
        if left:
            self._give_back(left, problem, self._effects.monotonic())

    def _may_go_on(self) -> bool:
        """Count a mistake; return whether there were few enough."""
        now = self._effects.monotonic()
        self._mistakes.append(now)
        while now - self._mistakes[0] > RESTARTS_S:
            self._mistakes.popleft()
        return len(self._mistakes) <= RESTARTS_MAX and not self._stopping

    def _die(self, problem: str) -> None:
        self._stopping = self._dead = True
        self._fail_inbox(_DEAD)
        self._on_death(problem)

    def _work(self) -> None:
        while self._database is not None or self._recover():
            has_log = self._database is not None and self._database.has_log
            self._asleep = True
            rung = self._bell.acquire(timeout=IDLE_CHECKPOINT_S if has_log else -1)
            self._asleep = False
            _open(self._turn)
            # Read before the last look at what waits: what was asked for before `stop` is done.
            stopping = self._stopping
            if self._suspicion:
                problem, self._suspicion = self._suspicion, ""
                self._sicken(problem)
            self._commit_all()
            if self._has_to_shrink and self._database is not None:
                self._has_to_shrink = False
                self._database.shrink()
            if stopping or not rung:
                self._checkpoint(always=True)
            if stopping:
                self._fail_inbox("the queue is closed")
                return

    def _commit_all(self) -> None:
        """Commit until nothing waits or the disk fails."""
        while self._database is not None:
            batch = self._take()
            if not batch:
                self._tell_removed()
                return
            self._in_hand = batch
            self._commit(batch)
            self._in_hand = _NOTHING
            if self._untold >= UNTOLD_MAX:
                self._tell_removed()
            self._checkpoint()

    def _take(self) -> Batch:
        """Take what waits, as much as one commit may have."""
        batch = Batch()
        count: int | None = None if self._stopping else self._batch_max
        while self._inbox and len(batch.items) < self._batch_max:
            item = self._inbox.popleft()
            batch.items.append(item)
            if isinstance(item, Marker):
                count = None
                break
        with self._mutex:
            lagging = self._lagging
            batch.lagging = lagging.first(count)
            batch.mark, self._mark = self._mark, None
            # In this order: a reader looks into what waits first, so it finds a thing in one of them.
            self._committing = batch.lagging
            self._lagging = lagging.without(batch.lagging)
        return batch

    def _commit(self, batch: Batch) -> None:
        """Commit a batch, and tell everybody; afterwards there is no database if that failed."""
        assert self._database is not None
        began = self._effects.monotonic()
        # What was removed is kept in the database until it has been told.
        changes, size_bytes = batch.changes(begin=not self._untold)
        try:
            self._database.commit(changes, size_bytes=size_bytes)
            _open(self._turn)
        except _DATA_ERRORS as error:
            # Why apart? Nothing that a client sends may get here, but if it does, it must not
            # take its neighbours with it, nor what lags, again and again.
            parts = batch.apart()
            if len(parts) < 2:
                self._refuse_unwritten(batch.items, f"not storable: {error!r}", began)
                return
            for part in parts:
                if self._database is None:
                    self._give_back(part, "the queue's disk failed", began)
                else:
                    self._commit(part)
        except (sqlite3.Error, OSError, MemoryError) as error:
            self._sicken(f"commit: {error}")
            self._give_back(batch, f"commit: {error}", began)
        else:
            seconds = self._effects.monotonic() - began
            if batch.lagging.removes or any(item.replaces for item in batch.items):
                self._untold += 1
            if batch.items and isinstance(batch.items[-1], Marker):
                # Whoever waits for everything wants the counts right, too.
                self._tell_removed()
            for item in batch.items:
                item.told = True
            self._on_commit(Commit(batch.items, seconds, batch.lagging.count_all(), ""))

    def _tell_removed(self) -> None:
        """Say what the last commits removed. Seldom: nobody waits for it, and it is a step more."""
        if self._database is None or not self._untold:
            return
        self._untold = 0
        try:
            removed = self._database.removed()
        except (sqlite3.Error, OSError, MemoryError) as error:
            # The counts are wrong now; they are taken again when the probe has succeeded.
            self._sicken(f"removed: {error}")
        else:
            self._on_removed(removed)
            self._remove_bodies(removed.files)

    def _give_back(self, batch: Batch, problem: str, began: float) -> None:
        """Fail a batch's submissions, and keep what lags for later.

        A commit that failed may be in the log all the same, if only its fsync failed. So the
        submissions are suspects until the next probe; a body file goes when its row can't be there.
        """
        self._suspects += [item for item in batch.items if isinstance(item, Item)]
        with self._mutex:
            self._lagging = batch.lagging.and_then(self._lagging)
            if self._mark is None:
                self._mark = batch.mark
        self._refuse(batch.items, problem, began)

    def _refuse(self, items: Sequence[Waiting], problem: str, began: float) -> None:
        for item in items:
            item.error = QueueUnavailableError(problem)
            item.told = True
        self._on_commit(Commit(items, self._effects.monotonic() - began, 0, problem))

    def _refuse_unwritten(self, items: Sequence[Waiting], problem: str, began: float) -> None:
        """Fail submissions that no commit has seen, or one that the database did not take."""
        self._refuse(items, problem, began)
        self._remove_bodies(
            [item.msgid for item in items if isinstance(item, Item) and item.in_file]
        )

    def _fail_inbox(self, problem: str) -> None:
        began = self._effects.monotonic()
        items: list[Waiting] = []
        with suppress(IndexError):  # another thread may take the last one between test and take
            while self._inbox:
                items.append(self._inbox.popleft())
        if items:
            self._refuse_unwritten(items, problem, began)

    def _checkpoint(self, *, always: bool = False) -> None:
        """Copy the log into the database if it is long, or ``always``."""
        if self._database is None or not (always or self._database.checkpoint_is_due):
            return
        try:
            self._database.checkpoint()
        except (sqlite3.Error, OSError, MemoryError) as error:
            self._sicken(f"checkpoint: {error}")

    # ---- sickness

    def _sicken(self, problem: str) -> None:
        """Stop trusting the connection, and say so before anybody learns of a failed submission."""
        assert self._database is not None
        self._database.close()
        self._database = None
        self._untold = 0
        self._on_health(problem, None)

    def _recover(self) -> bool:
        """Wait until a new connection commits a probe; return False if the queue closes instead."""
        delay = PROBE_FIRST_S
        while True:
            probe_at = self._effects.monotonic() + delay
            # First whoever was in line when the disk failed; the bell does not ring again for them.
            self._fail_inbox("the queue's disk failed")
            while not self._stopping and (left := probe_at - self._effects.monotonic()) > 0:
                self._bell.acquire(timeout=left)
                self._fail_inbox("the queue's disk failed")
            totals = self._probe()
            if totals is not None:
                self._on_health("", totals)
                self.ring()
                return True
            if self._stopping:
                return False
            delay = min(delay * 2, PROBE_MAX_S)

    def _probe(self) -> Totals | None:
        """Open a new connection, commit something, and count again; None if the disk is still sick."""
        try:
            database = self._reopen()
        except (sqlite3.Error, OSError, MemoryError, QueueCorruptError):
            return None
        try:
            database.probe()
            files = self._clear_suspects(database)
            totals = database.totals()
        except (sqlite3.Error, OSError, MemoryError):
            database.close()
            return None
        self._database = database
        self._suspects.clear()
        self._remove_bodies(files)
        return totals

    def _clear_suspects(self, database: Database) -> list[int]:
        """Remove what was refused and is there all the same; return whose body files have no row.

        Not a bounce: if it is there, what it reports is not, and the next start sends it.
        """
        database.commit(
            [
                (Change.BEGIN,),
                *(
                    (Change.REMOVE, item.msgid << 32 | number)
                    for item in self._suspects
                    if not item.replaces
                    for number in range(1, item.envelopes + 1)
                ),
            ],
            size_bytes=0,
        )
        return [
            item.msgid
            for item in self._suspects
            if item.in_file and not database.has_message(item.msgid)
        ]


def _open(gate: threading.Lock) -> None:
    """Unlock a binary semaphore; harmless if it is unlocked."""
    try:
        if gate.locked():
            gate.release()
    except RuntimeError:
        pass  # somebody else did it between the two
