"""Carries the core's instructions out in simulated time, and tells it what happened.

The counterpart of mta/driver.py, method for method: one stimulus at a time, one wake-up at a time,
instructions in their order. What takes time there is drawn or reckoned here.
"""

import math
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

from mta.core.engine import Engine
from mta.core.envelopes.base import Recipient, Transaction
from mta.core.ids import EvpId, MsgId
from mta.core.instructions import (
    BounceKind,
    CloseConnection,
    DeferEnvelope,
    DeliverLocally,
    Instruction,
    Note,
    OpenConnection,
    Removal,
    RemoveEnvelope,
    ResolveDomain,
    SendBounce,
    StartTransaction,
    SuspendEnvelope,
)
from mta.core.limits import Limits
from mta.core.local import TOO_MANY
from mta.core.routing import Resolution
from mta.core.stimuli import DomainResolved, MessageSubmitted, Stimulus, TimeReached
from sim.beside import Beside
from sim.costs import Costs
from sim.cpu import EventLoop
from sim.groups import LocalGroup
from sim.inbound import Inbound
from sim.kernel import Kernel
from sim.local import LocalLedger, LocalMail
from sim.message import Message
from sim.outbound import Outbound
from sim.queue import Fill, GroupCommit
from sim.remote import RemoteHost
from sim.resolver import Resolver
from sim.scenario import Load
from sim.tls import Security
from sim.workload import Schedule

BOUNCE_BYTES: Final = 2048
"""Of a report beside the headers of the message that it reports."""

Observer: TypeAlias = Callable[[Stimulus, float, list[Instruction]], None]
"""Told of each stimulus, the core's clock, and what the core said."""

_DELIVERED: Final = Removal.DELIVERED
_new: Final = tuple.__new__  # of a named tuple, without a call of Python code
_NUMBER_MASK: Final = 0xFFFFFFFF


class Driver:
    """Between the core and the model's world."""

    def __init__(
        self,
        kernel: Kernel,
        engine: Engine,
        costs: Costs,
        limits: Limits,
        *,
        load: Load,
        schedule: Schedule,
        hosts: dict[str, RemoteHost],
        resolver: Callable[[EventLoop], Resolver],
        groups: Sequence[LocalGroup] = (),
        delivery_timeout_s: float = math.inf,
        start: float = 0.0,
        security: Callable[[str, str], Security] | None = None,
    ) -> None:
        """Get ready; `start` lets the load begin.

        Args:
            kernel: the clock, which is the scenario's: seconds since the start of the load.
            engine: the core.
            costs: what everything costs.
            limits: the server's.
            load: how the schedule is sent.
            schedule: every message.
            hosts: every address that can be connected to.
            resolver: makes the resolver.
            groups: the server's own users.
            delivery_timeout_s: longest local delivery.
            start: what the core's clock says at the start of the load.
            security: says what TLS an outbound connection has; see `Outbound`.
        """
        self.kernel = kernel
        self.engine = engine
        self.loop = EventLoop(kernel)
        self.fill = Fill()
        self.queue = GroupCommit(
            kernel,
            costs,
            batch_max=limits.queue.commit_batch_max,
            durable=partial(self.loop.do, self._accepted),
        )
        self.outbound = Outbound(
            kernel, self.loop, costs, limits.mta, hosts=hosts, tell=self.tell, security=security
        )
        self.inbound = Inbound(
            kernel,
            self.loop,
            costs,
            limits,
            load=load,
            schedule=schedule,
            queue=self.queue,
            fill=self.fill,
        )
        self.queue.refuse = self._not_kept
        self.beside: Beside | None = None
        if load.beside:
            self.beside = self.inbound.beside = Beside(
                kernel,
                self.loop,
                costs,
                limits.smtp,
                inbound=self.inbound,
                groups=load.beside,
            )
        self.resolver = resolver(self.loop)
        self.messages: dict[MsgId, Message] = {}
        self.local = LocalMail(
            kernel,
            self.loop,
            costs,
            groups=groups,
            schedule=schedule,
            messages=self.messages,
            tell=self.tell,
            timeout_s=delivery_timeout_s,
        )
        self.ledger = LocalLedger(groups, schedule) if groups else None
        self.bounces_waiting = 0
        """Bounces that are not durable yet."""
        self.delivered = 0
        """Envelopes, bounces not counted."""
        self.delivered_bounces = 0
        self.failed = 0
        """Envelopes that failed for good or expired, reported or not."""
        self.emptied_at = 0.0
        """When the queue became empty for the last time."""
        self.latency_s = array("d")
        """Of each delivery: from the instant at which its message was due."""
        self.observer: Observer | None = None
        self._costs = costs
        self._start = start
        self._handle_stimulus = engine.handle
        self._next_wakeup = engine.next_wakeup
        self._inbox: deque[Stimulus] = deque()
        self._busy = False
        self._armed_at = math.inf
        """When the core's next `TimeReached` is looked at; infinity if it wants none."""
        self._next_msgid = MsgId(1)
        # Empty, because nobody in the core looks into it and a model need not pay for it.
        self._body = b"" if engine.store.keeps_bodies else None
        self._carry_out: dict[type, Callable[[Any], None]] = {
            ResolveDomain: self._resolve,
            OpenConnection: self.outbound.open,
            StartTransaction: self._start_transaction,
            CloseConnection: self._close,
            DeliverLocally: self.local.start,
            DeferEnvelope: self._defer,
            RemoveEnvelope: self._remove,
            SendBounce: self._bounce,
            SuspendEnvelope: self._suspend,
            Note: self._note,
        }

    def start(self) -> None:
        """Let the load begin."""
        self.inbound.start()
        if self.beside is not None:
            self.beside.start()

    def limits_changed(self) -> None:
        """Let the parts that keep a copy of limits look at them again."""
        self.inbound.limits_changed()
        if self.beside is not None:
            self.beside.limits_changed()
        self.outbound.limits_changed()

    @property
    def now(self) -> float:
        """The core's clock. It never decreases, because rounding is monotonic."""
        return self._start + self.kernel.now

    def is_quiet(self) -> bool:
        """Return whether the load is over, the queue is empty and no connection is open."""
        return (
            self.inbound.ended_at is not None
            and not self.messages
            and not self.bounces_waiting
            and not self.outbound.connections
        )

    # In

    def tell(self, stimulus: Stimulus) -> None:
        """Give the core a stimulus, now or as soon as it is done with the one before."""
        if self._busy:
            self._inbox.append(stimulus)
            return
        self._busy = True
        # One clock for all that is told meanwhile: no time goes by in between.
        now = self._start + self.kernel.now
        inbox, carry_out, observer = self._inbox, self._carry_out, self.observer
        while True:
            instructions = self._handle_stimulus(stimulus, now)
            if observer is not None:
                observer(stimulus, now, instructions)
            for instruction in instructions:
                carry_out[type(instruction)](instruction)
            if not inbox:
                break
            stimulus = inbox.popleft()
        self._busy = False
        wakeup = self._next_wakeup()
        # One that rings too early is set again when it does: SimPy can't move it.
        if wakeup is not None and wakeup < self._armed_at:
            self._arm(wakeup)

    def _accepted(self, message: Message) -> None:
        """A message is durable: the core takes it over, then its client is answered."""
        msgid = self._next_msgid
        self._next_msgid = msgid + 1  # type: ignore[assignment]  # a call of MsgId for each is felt
        for replaced in message.reports:
            self._gone(replaced)
        self.messages[msgid] = message
        transaction, recipients, fill = message.transaction, message.recipients, self.fill
        fill.size_bytes += transaction.size
        fill.envelopes += len(recipients)
        if message.is_local:
            fill.local += 1
        self.tell(_new(MessageSubmitted, (msgid, transaction, recipients, self._body)))
        if message.is_bounce:
            self.bounces_waiting -= 1
        else:
            if self.ledger is not None:
                self.ledger.accepted_at[message.number] = self.kernel.now
            self.inbound.durable(message)

    def _not_kept(self, message: Message) -> bool:
        """A commit failed: its message is refused. A report waits, where the server would decide on it anew a little later."""
        if message.is_bounce:
            return False
        self.loop.do(self.inbound.not_kept, message)
        return True

    # Time

    def _arm(self, wakeup: float) -> None:
        self._armed_at = wakeup
        self.kernel.schedule(max(0.0, wakeup - self.now), self._ring, wakeup)

    def _ring(self, wakeup: float) -> None:
        if wakeup == self._armed_at:
            self._armed_at = math.inf
            self.loop.do(self._time_reached, None)

    def _time_reached(self, _: None) -> None:
        wakeup = self._next_wakeup()
        if wakeup is None:
            return
        if wakeup <= self.now:
            self.tell(TimeReached())
        elif wakeup < self._armed_at:
            self._arm(wakeup)

    # Out: one method per instruction

    def _resolve(self, instruction: ResolveDomain) -> None:
        domain = instruction.domain
        known = self.resolver.cached(domain)
        if known is not None:
            self._inbox.append(DomainResolved(domain, known))
            return
        loop = self.loop
        loop.done_at += self._costs.lookup_s
        self.resolver.look_up(domain, loop.done_at - self.kernel.now, self._looked_up)

    def _looked_up(self, answer: tuple[str, Resolution]) -> None:
        self.loop.do(self._resolved, answer)

    def _resolved(self, answer: tuple[str, Resolution]) -> None:
        self.tell(DomainResolved(*answer))

    def _start_transaction(self, instruction: StartTransaction) -> None:
        session, msgid, evpids = instruction
        message = self.messages[msgid]
        recipients = message.recipients
        transaction = message.transaction
        if len(recipients) == 1:
            rcpts = [recipients[0].address]
        else:
            rcpts = [recipients[(envelope & _NUMBER_MASK) - 1].address for envelope in evpids]
        self.outbound.start(session, evpids, transaction.sender, rcpts, transaction.size)

    def _close(self, instruction: CloseConnection) -> None:
        self.outbound.close(instruction.session)

    def _defer(self, instruction: DeferEnvelope) -> None:
        self.loop.done_at += self._costs.deferral_s
        if self.ledger is not None:
            number = self.messages[instruction.evpid >> 32].number  # type: ignore[index]  # as in `_gone`
            if number >= 0:
                self.ledger.put_back(number, instruction.status, TOO_MANY)
        self.queue.lag()

    def _remove(self, instruction: RemoveEnvelope) -> None:
        envelope, reason, _ = instruction
        message = self._gone(envelope)
        if self.ledger is not None and message.number >= 0:
            self.ledger.settled_at[message.number] = self.kernel.now
            self.ledger.delivered[message.number] = reason is _DELIVERED
        if message.is_bounce:
            self.delivered_bounces += reason is _DELIVERED
        elif reason is _DELIVERED:
            self.delivered += 1
            self.latency_s.append(self.kernel.now - message.due_s)
        else:
            self.failed += 1
        self.queue.lag()

    def _gone(self, envelope: EvpId) -> Message:
        """Note that an envelope has left the queue; return its message."""
        messages = self.messages
        msgid: MsgId = envelope >> 32  # type: ignore[assignment]  # `msgid_of`, without its calls
        message = messages[msgid]
        message.left -= 1
        self.fill.envelopes -= 1
        if not message.left:
            del messages[msgid]
            if message.is_local:
                self.fill.local -= 1
            self.fill.size_bytes -= message.transaction.size
            if not messages:
                self.emptied_at = self.kernel.now
        return message

    def _bounce(self, instruction: SendBounce) -> None:
        """Submit a report; its commit takes the envelopes that it reports away, if they left the queue."""
        message = self.messages[instruction.msgid]
        kind = instruction.kind
        if self.ledger is not None and message.number >= 0 and kind is not BounceKind.DELAYED:
            self.ledger.settled_at[message.number] = self.kernel.now
            self.ledger.delivered[message.number] = kind.is_success
        if kind.is_failure:
            self.failed += len(instruction.failures)
        elif kind.is_success:
            self.delivered += len(instruction.failures)
            late_s = self.kernel.now - message.due_s
            self.latency_s.extend([late_s] * len(instruction.failures))
        self.bounces_waiting += 1
        self.loop.done_at += self._costs.message_s
        size = BOUNCE_BYTES + 256 * len(instruction.failures)
        sender = message.transaction.sender
        recipient = Recipient(sender, sender.rpartition("@")[2])
        reports: tuple[EvpId, ...] = ()
        if kind is not BounceKind.DELAYED:
            reports = tuple([envelope for envelope, _ in instruction.failures])
        bounce = Message(self.kernel.now, Transaction("", size), (recipient,), reports)
        self.queue.put(bounce, max(0.0, self.loop.done_at - self.kernel.now))

    def _suspend(self, instruction: SuspendEnvelope) -> None:
        self.queue.lag()

    def _note(self, instruction: Note) -> None:
        """Nobody reads a model's log."""
