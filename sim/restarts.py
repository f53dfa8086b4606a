"""A server of the model whose process ends and is started again, in the middle of whatever it was doing.

What the process had in memory is gone at that instant: sessions, connections, the core with all that it knew of hosts and
routes, the resolver's cache, changes that no commit had taken. What commits had made durable is there again (`sim.spool`), told to
a new core as `mta/restorer.py` tells it: by the same stimulus, in the same order, `TURN` envelopes at a time, while
mail is taken already.

Two things are then counted that a server which lives for ever does not do. A *duplicate* is delivered again because the end hid
the first time: the host had taken it, the disk did not know. A *stray* is a message that was durable though its client never
heard the 250: the client sends it again, or gives up.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from mta.core.engine import Engine
from mta.core.ids import EvpId, MsgId
from mta.core.instructions import (
    BounceKind,
    DeferEnvelope,
    Removal,
    RemoveEnvelope,
    SendBounce,
    SuspendEnvelope,
)
from mta.core.limitchange import LimitValue, put_limit
from mta.core.limits import Limits
from mta.core.stimuli import DrainRequested
from sim.driver import Driver
from sim.message import Message
from sim.outbound import State
from sim.result import Restart
from sim.spool import Flagged, Put, Spool, Taken
from sim.timeline import Event

TURN: Final = 500
"""Envelopes that a start reads before the loop does other things; mta/restorer.py."""
LOOK_S: Final = 0.05
"""How often a server that stops looks whether it may; mta/server.py."""

_COUNTED: Final = ("tempfail", "bounced", "expired")
"""What a core counts and a result adds up."""


_End: TypeAlias = tuple[Callable[[Any], None], Any, float]
"""A call that will not be made: function, argument, and in how many seconds it would have been."""


class RestartDriver(Driver):
    """A `Driver` with a disk under it."""

    def prepare(
        self,
        limits: Limits,
        *,
        make_engine: Callable[[float], Engine],
        configured: Mapping[str, LimitValue],
        drain_s: float,
    ) -> None:
        """Get ready, before anything else.

        Why no constructor? It would have to hand all that a `Driver` wants through, which mypyc gets wrong.

        Args:
            limits: the server's; a start gives them the values that are configured.
            make_engine: returns the core of a process that is started at an instant of its clock.
            configured: every limit by its key.
            drain_s: longest wait of an orderly stop for what is running.
        """
        self.spool = Spool(limits.scheduler)
        self.queue.settled = self._settled
        self.is_down = False
        self.restoring = False
        self.restarts: list[Restart] = []
        self.accepted_before = 0
        """Messages that were accepted before the last start."""
        self.duplicates = 0
        """Envelopes that were delivered once more because the end of the process hid the time before."""
        self.past: Counter[str] = Counter()
        """What the cores before this one had counted."""
        self.born: Callable[[], None] | None = None
        """Told when the next process has its core."""
        self.died: Callable[[float], None] | None = None
        """Told when the process is gone."""
        self._limits_now = limits
        self._make_engine = make_engine
        self._configured = dict(configured)
        self._drain_s = drain_s
        self._fresh: dict[int, Message] = {}
        """Durable, and the core has not heard of them yet."""
        self._reported: dict[EvpId, BounceKind] = {}
        """Envelopes whose report waits for its commit."""
        self._arrived: set[EvpId] = set()
        """Envelopes that a host has taken and the disk still has."""
        self._strays: dict[MsgId, int] = {}
        """Messages whose clients never heard that they were taken, with their numbers in the schedule."""
        self._stray_deliveries: Counter[int] = Counter()
        self._unheard: set[int] = set()
        """Numbers of strays."""
        self._answered: set[int] = set()
        """Those of them that were sent again and answered."""
        self._order: list[EvpId] = []
        """What a start reads."""
        self._read = 0
        """How much of it has been read."""
        self._event: Event | None = None

    @property
    def duplicates_client(self) -> int:
        """Deliveries that are too many because a client sent again what had been taken."""
        found = self._stray_deliveries
        return sum(count for number, count in found.items() if number in self._answered)

    @property
    def unacknowledged(self) -> int:
        """Deliveries of messages whose clients gave up without having heard that they were taken."""
        return sum(self._stray_deliveries.values()) - self.duplicates_client

    @property
    def is_away(self) -> bool:
        """Whether the server is stopping, down, or not yet what it was."""
        return self._event is not None or self.restoring

    def is_quiet(self) -> bool:
        """See `Driver.is_quiet`; who is down has a queue all the same."""
        return not self.is_away and not len(self.spool) and super().is_quiet()

    # What becomes durable

    def _settled(self, batch: list[Any], lagging: int) -> None:
        for message in batch:
            for replaced in message.reports:
                self.spool.remove(replaced)
                self._reported.pop(replaced, None)
            self._fresh[id(message)] = message
        self.spool.commit(lagging)

    def _accepted(self, message: Message) -> None:
        del self._fresh[id(message)]
        self.spool.add(self._next_msgid, message, self.now)
        if message.number in self._unheard:
            self._answered.add(message.number)
        super()._accepted(message)

    def _defer(self, instruction: DeferEnvelope) -> None:
        envelope, attempts, due_at, _ = instruction
        self.spool.note(Put(envelope, attempts, due_at))
        super()._defer(instruction)

    def _suspend(self, instruction: SuspendEnvelope) -> None:
        self.spool.note(Flagged(*instruction))
        super()._suspend(instruction)

    def _remove(self, instruction: RemoveEnvelope) -> None:
        envelope, reason, _ = instruction
        self.spool.note(Taken(envelope, reason))
        if not self._counted_before(envelope):
            super()._remove(instruction)
            return
        message = self._gone(envelope)
        if reason is Removal.DELIVERED and not message.is_bounce:
            self._delivered_again(envelope)
        self.queue.lag()

    def _delivered_again(self, envelope: EvpId) -> None:
        number = self._strays.get(MsgId(envelope >> 32))
        if number is None:
            self.duplicates += 1
        else:
            self._stray_deliveries[number] += 1

    def _counted_before(self, envelope: EvpId) -> bool:
        return envelope in self._arrived or envelope >> 32 in self._strays

    def _bounce(self, instruction: SendBounce) -> None:
        kind = instruction.kind
        again = 0
        for envelope, _ in instruction.failures:
            if kind is BounceKind.DELAYED:
                handle = self.engine.store.find(envelope)
                assert handle is not None, instruction
                self.spool.flag(envelope, int(self.engine.store.flags_of(handle)))
                continue
            if self._counted_before(envelope):
                again += 1
            else:
                self._reported[envelope] = kind
        super()._bounce(instruction)
        if kind.is_failure:
            self.failed -= again
        elif kind.is_success:
            self.delivered -= again
            if again:
                del self.latency_s[-again:]

    # The end of the process

    def restart(self, event: Event) -> None:
        """Let the process end as the timeline says, and start it again."""
        assert self._event is None, event
        self._event = event
        if event.restart == "stop":
            self.loop.do(self._stop, None)
        else:
            self._die(self.kernel.now)

    def _stop(self, _: None) -> None:
        """Stop in good order: no more mail, no more connections, and what runs may end."""
        self.inbound.stop()
        self.tell(DrainRequested())
        self.kernel.schedule(LOOK_S, self._look, self.kernel.now + self._drain_s)

    def _look(self, deadline: float) -> None:
        running = any(each.state is State.BUSY for each in self.outbound.connections.values())
        waits = running or self.local.running or self.bounces_waiting or self.loop.waiting
        if (waits or not self.queue.is_idle) and self.kernel.now < deadline:
            self.kernel.schedule(LOOK_S, self._look, deadline)
            return
        self._die(self.kernel.now, orderly=True)

    def _die(self, now: float, *, orderly: bool = False) -> None:
        """The process is gone; in good order if its queue was closed before."""
        event = self._event
        assert event is not None
        self.is_down, self.restoring = True, False
        parts = (self.loop, self, self.queue, self.outbound, self.resolver, self.local)
        forgotten = self.kernel.forget(parts)
        jobs = self.loop.lose()
        ends = [(each.function, each.argument, each.at - now) for each in forgotten]
        ends += [(job, argument, 0.0) for job, argument in jobs]
        # The disk first: what a commit has made durable is no news that was lost.
        lost = self._last_commit(ends, orderly=orderly)
        self._last_deliveries(ends)
        unanswered = [message.number for message in lost if message.number >= 0]
        for job, argument in jobs:
            number = self.inbound.number_of(job, argument)
            if number is not None:
                unanswered.append(number)
        for message in self._fresh.values():
            msgid = self._next_msgid
            self._next_msgid = MsgId(msgid + 1)
            self.spool.add(msgid, message, self.now)
            if not message.is_bounce:
                self._strays[msgid] = message.number
                self._unheard.add(message.number)
                unanswered.append(message.number)
        self._fresh.clear()
        self._undo()
        self._count_past()
        self.outbound.lose()
        self.resolver.lose()
        self.local.lose()
        self.messages.clear()
        self.bounces_waiting = 0
        self._inbox.clear()
        self._armed_at = math.inf
        fill = self.fill
        fill.envelopes = fill.local = fill.size_bytes = 0
        if self.died is not None:
            self.died(self.now)
        self.restarts.append(
            Restart(event.at_s, event.restart, now, math.nan, math.nan, len(self.spool))
        )
        self.inbound.lose(unanswered)
        self.kernel.schedule(event.down_s + self._costs.start_s, self._open, None)

    def _last_commit(self, ends: list[_End], *, orderly: bool) -> list[Message]:
        """Let the commit that runs count, if it does; return the messages that are not durable."""
        queue = self.queue
        lost: list[Message] = queue.lose()
        for function, argument, early_s in ends:
            if function == queue._end:
                batch, lagging, _ = argument
                if orderly or queue.outlives(early_s):
                    self._settled(batch, lagging)
                else:
                    lost += batch
        if not orderly:
            return lost
        self._settled(lost, 0)
        self.spool.flush()
        return []

    def _last_deliveries(self, ends: list[_End]) -> None:
        """Note what has been delivered though nobody here will ever hear of it."""
        for function, argument, early_s in ends:
            for envelope in self.outbound.taken(function, argument, early_s):
                self._note_arrival(envelope)
            if early_s <= 0.0:
                delivered = self.local.delivered(function, argument)
                if delivered is not None:
                    self._note_arrival(delivered)

    def _note_arrival(self, envelope: EvpId) -> None:
        """Count an envelope that is delivered and will be again."""
        message = self.messages[MsgId(envelope >> 32)]
        if self._counted_before(envelope):
            if not message.is_bounce:
                self._delivered_again(envelope)
            return
        self._arrived.add(envelope)
        if self.ledger is not None and message.number >= 0:
            self.ledger.settled_at[message.number] = self.kernel.now
            self.ledger.delivered[message.number] = True
        if message.is_bounce:
            self.delivered_bounces += 1
        else:
            self.delivered += 1
            self.latency_s.append(self.kernel.now - message.due_s)

    def _undo(self) -> None:
        """Take back what was counted and did not become durable."""
        for change in self.spool.lose():
            if not isinstance(change, Taken) or self._counted_before(change.envelope):
                continue
            if change.reason is Removal.DELIVERED:
                self._arrived.add(change.envelope)
            elif not self.spool.message_of(change.envelope).is_bounce:
                self.failed -= 1
        for envelope, kind in self._reported.items():
            if kind.is_success:
                self._arrived.add(envelope)
            elif kind.is_failure:
                self.failed -= 1
        self._reported.clear()

    def _count_past(self) -> None:
        counts = self.engine.scheduler.counts
        for name in _COUNTED:
            self.past[name] += getattr(counts, name)

    # The next process

    def _open(self, _: None) -> None:
        """Its door is open; the queue is read beside everything else."""
        for key, value in self._configured.items():
            put_limit(self._limits_now, key, value)
        self.limits_changed()
        self.engine = self._make_engine(self.now)
        self._handle_stimulus = self.engine.handle
        self._next_wakeup = self.engine.next_wakeup
        self.accepted_before = self.inbound.accepted
        if self.born is not None:
            self.born()
        fill = self.fill
        for msgid, message, left in self.spool.messages():
            message.left = left
            self.messages[msgid] = message
            fill.size_bytes += message.transaction.size
            if message.is_local:
                fill.local += 1
        fill.envelopes = len(self.spool)
        self._event = None
        self.is_down, self.restoring = False, True
        self.restarts[-1] = self.restarts[-1]._replace(opened_s=self.kernel.now)
        self.inbound.open()
        self._order, self._read = self.spool.order(), 0
        self.loop.do(self._restore, None)

    def _restore(self, _: None) -> None:
        """Tell the core of the next envelopes."""
        begin = self._read
        self._read += TURN
        for envelope in self._order[begin : self._read]:
            row = self.spool.row(envelope)
            if row is not None:
                self.loop.done_at += self._costs.restore_s
                self.tell(row)
        if self._read < len(self._order):
            self.loop.do(self._restore, None)
            return
        self.restoring = False
        done_s = max(self.kernel.now, self.loop.done_at)
        self.restarts[-1] = self.restarts[-1]._replace(restored_s=done_s)
