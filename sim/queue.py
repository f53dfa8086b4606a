"""The durable queue: one writer, group commit, no disk.

Whoever wants to be durable waits for the next commit; a commit takes whatever waits when the one
before it ends. Removals and deferrals lag: they go with a commit that happens anyway, or with one of
their own a little later (mta/queue/writer.py). On a full disk a commit fails: who waited for it is refused, what lags is kept, and
nothing is written until a probe finds room.
"""

from collections.abc import Callable
from typing import Any, Final

from sim.costs import Costs
from sim.kernel import Kernel

LAG_S: Final = 0.05
"""Seconds that removals and deferrals wait for somebody else's commit; mta/queue/wake.py."""
PROBE_FIRST_S: Final = 1.0
"""Seconds after a failed commit before the first probe, doubled after each that fails; mta/queue/writer.py."""
PROBE_MAX_S: Final = 30.0
PROBE_COMMITS: Final = 2
"""What a probe commits before it believes the disk; mta/queue/writer.py."""


class Fill:
    """How full the queue is."""

    __slots__ = ("envelopes", "local", "size_bytes")

    def __init__(self) -> None:
        self.envelopes = 0
        self.local = 0
        """Those of local deliveries."""
        self.size_bytes = 0
        """Bytes of the messages."""


class GroupCommit:
    """The writer: at most one commit at a time."""

    __slots__ = (
        "_busy",
        "_commit_s",
        "_durable",
        "_kernel",
        "_lag_armed",
        "_lagging",
        "_lagging_s",
        "_max",
        "_message_s",
        "_waiting",
        "commits",
        "full",
        "longest_batch",
        "on_commit",
        "refuse",
        "settled",
        "sick",
        "slower",
        "waiting_bytes",
    )

    def __init__(
        self, kernel: Kernel, costs: Costs, *, batch_max: int, durable: Callable[[Any], None]
    ) -> None:
        """Get ready.

        Args:
            kernel: the clock.
            costs: how long a commit takes.
            batch_max: submissions per commit, and as many removals and deferrals.
            durable: told of each submission when its commit is done.
        """
        self._kernel = kernel
        self._commit_s = costs.commit_s
        self._message_s = costs.commit_message_s
        self._lagging_s = costs.commit_lagging_s
        self._max = batch_max
        self._durable = durable
        self._waiting: list[Any] = []
        self._lagging = 0
        self._lag_armed = False
        self._busy = False
        self.slower = 1.0
        """How many times as long as it should a commit takes."""
        self.full = False
        """Whether no commit succeeds."""
        self.sick = False
        """Whether one failed and no probe has succeeded since: nobody may submit."""
        self.refuse: Callable[[Any], bool] | None = None
        """Asked of each submission whose commit failed: True if it is refused, False if it waits for a better disk."""
        self.waiting_bytes = 0
        """Bytes of the submissions that wait."""
        self.commits = 0
        self.longest_batch = 0
        self.on_commit: Callable[[int, int, float], None] | None = None
        """Told of each commit: submissions, removals and deferrals, seconds."""
        self.settled: Callable[[list[Any], int], None] | None = None
        """Told what each commit has made durable, before anybody hears of it: submissions, and how many of what lagged."""

    @property
    def waiting(self) -> int:
        """Submissions that wait for a commit."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is being written."""
        return not (self._busy or self._waiting or self._lagging)

    def lose(self) -> list[Any]:
        """The process is gone: return the submissions that waited, none of which is durable.

        Its calls that the clock still has are the caller's to forget.
        """
        lost, self._waiting = self._waiting, []
        self._lagging = 0
        self._lag_armed = self._busy = self.sick = False
        self.waiting_bytes = 0
        return lost

    def outlives(self, left_s: float) -> bool:
        """Return whether a commit is durable though its process is killed so long before its end.

        It is once it is in its fsync: what was written is the kernel's, and a process that dies takes none of it along. Before
        that its rows are in the process, or in a log without the mark that makes them count.
        """
        return left_s <= self._commit_s * self.slower

    def put(self, submission: Any, after: float, *, last: bool = False) -> None:
        """Make something durable; the writer is rung ``after`` seconds from now.

        Args:
            submission: what `durable` will be told.
            after: when the event loop is done with what it is doing.
            last: it will do nothing for the queue until then, so that what the commit takes is known
                now, and an event is saved.
        """
        self._waiting.append(submission)
        if self._busy:
            return
        self._busy = True
        if last:
            self._begin(after)
        else:
            self._kernel.schedule(after, self._begin, 0.0)

    def lag(self) -> None:
        """Note that an envelope is to be removed or deferred on disk."""
        self._lagging += 1
        if self._busy:
            return
        if self._lagging >= self._max:
            self._busy = True
            self._kernel.schedule(0.0, self._begin, 0.0)
        elif not self._lag_armed:
            self._lag_armed = True
            self._kernel.schedule(LAG_S, self._lag_ends, None)

    def _lag_ends(self, _: None) -> None:
        self._lag_armed = False
        if self._lagging and not self._busy:
            self._busy = True
            self._begin(0.0)

    def _begin(self, after: float) -> None:
        """Take what waits, and commit it ``after`` seconds from now."""
        if self.full:
            self._kernel.schedule(after, self._fail, None)
            return
        batch, most = self._waiting, self._max
        count = len(batch)
        if count > most:
            batch, self._waiting = batch[:most], batch[most:]
            count = most
        else:
            self._waiting = []
        lagging = self._lagging
        if lagging > most:
            lagging = most
        self._lagging -= lagging
        seconds = self._commit_s + self._message_s * count + self._lagging_s * lagging
        seconds *= self.slower
        self._kernel.schedule(after + seconds, self._end, (batch, lagging, seconds))

    def _end(self, done: tuple[list[Any], int, float]) -> None:
        batch, lagging, seconds = done
        self.commits += 1
        if self.on_commit is not None:
            self.on_commit(len(batch), lagging, seconds)
        if self.settled is not None:
            self.settled(batch, lagging)
        if batch:
            if len(batch) > self.longest_batch:
                self.longest_batch = len(batch)
            # Taken before anybody is told: what is told may make more wait.
            durable = self._durable
            for submission in batch:
                durable(submission)
        # The writer goes on while anything waits (Writer._commit_all).
        if self._waiting or self._lagging:
            self._begin(0.0)
        else:
            self._busy = False

    # A full disk

    def _fail(self, _: None) -> None:
        """A commit failed: refuse who waits for it, or is in line behind it; what lags is kept."""
        self.sick = True
        refuse = self.refuse
        assert refuse is not None, "a full disk, and nobody to tell"
        self._waiting = [each for each in self._waiting if not refuse(each)]
        self._kernel.schedule(PROBE_FIRST_S, self._probe, PROBE_FIRST_S)

    def _probe(self, delay_s: float) -> None:
        """See whether the disk takes something again."""
        if self.full:
            delay_s = min(2 * delay_s, PROBE_MAX_S)
            self._kernel.schedule(delay_s, self._probe, delay_s)
        else:
            seconds = PROBE_COMMITS * self._commit_s * self.slower
            self._kernel.schedule(seconds, self._heal, None)

    def _heal(self, _: None) -> None:
        self.sick = False
        if self._waiting or self._lagging:
            self._begin(0.0)
        else:
            self._busy = False
