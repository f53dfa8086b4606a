"""Carries the core's instructions out on real sockets and a real disk, and tells it what happened.

One stimulus at a time: what an instruction causes at once (a connection that is gone already, a message
too large for its host) waits in line until the instructions before it are carried out.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from mta.bouncer import Bouncer
from mta.core.bounce import flags_for, status_of
from mta.core.envelopes.base import (
    MdaEnvelope,
    MtaEnvelope,
    Recipient,
    Transaction,
    mda_envelope,
    to_tick,
)
from mta.core.ids import EvpId, MsgId, SessionId, show_evpid, show_msgid
from mta.core.instructions import (
    BounceKind,
    CloseConnection,
    DeferEnvelope,
    DeliverLocally,
    Note,
    OpenConnection,
    Removal,
    RemoveEnvelope,
    ResolveDomain,
    SendBounce,
    StartTransaction,
    SuspendEnvelope,
)
from mta.core.relay import SessionState
from mta.core.reply import Outcome
from mta.core.routing import Resolution, ResolutionStatus
from mta.core.scheduler import EXPIRED_STATUS
from mta.core.stimuli import (
    ConnectionClosed,
    DomainResolved,
    DrainRequested,
    LocalDeliveryDone,
    MessageSubmitted,
    Result,
    Stimulus,
    TimeReached,
    TransactionDone,
)
from mta.deliverylog import DeliveryLog
from mta.localmail import LocalMail
from mta.outbound import Outbound
from mta.profile import Profile
from mta.queue.base import QueueUnavailableError, Submission
from mta.recent import RecentMessage, RecentMessages
from mta.restorer import Restorer
from mta.steps import StepWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from mta.addressing import Addressing
    from mta.config import Config
    from mta.core.engine import Engine
    from mta.effects import Effects
    from mta.log import Log
    from mta.outtls import OutboundTls
    from mta.queue.base import DurableQueue
    from mta.resolver import Resolver
    from mta.trace import StimulusTrace, Tracer

LOCAL_FAULT = "451 4.3.0 Local error, try again later"

_LOOP_CODE = "5.4.6"
"""RFC 3463 3.5: routing loop detected."""
_EXPIRED = EXPIRED_STATUS.removeprefix("550 5.4.7 ")
"""OpenSMTPD's words (queue.c), which have no code."""
_FAULT_TTL_S = 60.0
"""How long a look-up that failed by a mistake of ours is not made again."""


class Driver:
    """Between the core and the world."""

    def __init__(
        self,
        engine: "Engine",
        config: "Config",
        *,
        effects: "Effects",
        queue: "DurableQueue",
        resolver: "Resolver",
        log: "Log",
        tracer: "Tracer",
        record: "StimulusTrace | None" = None,
        addressing: "Addressing | None" = None,
        tls: "OutboundTls | None" = None,
        profile: "Profile | None" = None,
    ) -> None:
        self.engine = engine
        self.config = config
        self.effects = effects
        self.queue = queue
        self.resolver = resolver
        self.log = log
        self.tracer = tracer
        self.record = record
        limits = config.limits
        self.recent = RecentMessages(
            envelopes_max=limits.queue.cache_envelopes, bytes_max=limits.queue.cache_bytes
        )
        self.outbound = Outbound(
            effects,
            config.hostname,
            config.relay.port,
            limits.mta,
            on_ready=self.tell,
            on_failed=self.tell,
            on_done=self.tell,
            on_closed=self.tell,
            log=log.info,
            tls=tls,
            rules=engine.agent.rules,
        )
        self.addressing = addressing
        self.local = LocalMail(
            config,
            addressing,
            effects=effects,
            log=log,
            load=self._local_details,
            body=self.body,
            on_done=self.tell,
            on_fault=self.report_fault,
        )
        self.bouncer = Bouncer(self)
        self.restorer = Restorer(self)
        self.deliveries = DeliveryLog(
            log.info,
            now=effects.now,
            details=self.details,
            relay_of=engine.agent.rules.key_of,
        )
        self._steps = StepWatch(tracer, profile or Profile(), effects.monotonic)
        self._watch: StepWatch | None = None
        """Sees every step, if anybody wants to."""
        self._steps.watch(self._watched)
        self._watched()
        self.loads_hit = 0
        """Envelopes that a transaction did not have to read."""
        self.loads_missed = 0
        """Envelopes that it had to."""
        self.loops = 0
        """Attempts that failed because mail went round."""
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Stimulus] = deque()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending: dict[SessionId, list[tuple[EvpId, MtaEnvelope]]] = {}
        """What each running transaction carries: for the log."""
        self._stopped = False
        self._carry_out: dict[type, Callable[[Any], None]] = {
            ResolveDomain: self._resolve,
            OpenConnection: self._open,
            StartTransaction: self._start,
            CloseConnection: self._close,
            DeliverLocally: self.local.start,
            DeferEnvelope: self._defer,
            RemoveEnvelope: self._remove,
            SendBounce: self._bounce,
            SuspendEnvelope: self._suspend,
            Note: self._note,
        }

    # In

    def enqueue(
        self,
        msgid: MsgId,
        transaction: Transaction,
        recipients: tuple[Recipient, ...],
        body: bytes,
    ) -> "asyncio.Future[None]":
        """Make a message durable, then let the core know of it; the commit is nobody's to cancel.

        Raises:
            QueueUnavailableError: here or from the future; nothing was kept.
        """
        created_at = to_tick(self.effects.now())
        flags = tuple([int(flags_for(transaction.sender, r.notify)) for r in recipients])
        submission = Submission(
            msgid,
            transaction,
            recipients,
            body,
            created_at,
            self.expiry(created_at, transaction),
            flags,
        )
        committed = self.queue.enqueue(submission)
        answer: asyncio.Future[None] = self._loop.create_future()

        def durable(done: "asyncio.Future[None]") -> None:
            error = QueueUnavailableError("cancelled") if done.cancelled() else done.exception()
            # First the answer: whatever else goes wrong, the message is durable, or is not.
            if not answer.done():
                if error is None:
                    answer.set_result(None)
                else:
                    answer.set_exception(error)
            if self.tracer.queue:
                self._trace_queue(submission, error)
            if error is None:
                self.accepted(submission)

        committed.add_done_callback(durable)
        return answer

    def _trace_queue(self, submission: Submission, error: BaseException | None) -> None:
        result = "durable" if error is None else f"not kept: {error}"
        self.tracer.line(
            "queue",
            f"submit msgid={show_msgid(submission.msgid)} sender=<{submission.transaction.sender}>"
            f" envelopes={len(submission.recipients)} bytes={len(submission.body)} result={result}",
        )

    def expiry(self, created_at: float, transaction: Transaction) -> float:
        """Return when envelopes of a transaction become too old."""
        limits = self.config.limits.scheduler
        ttl = limits.envelope_ttl_s if transaction.sender else limits.bounce_ttl_s
        return to_tick(created_at + ttl)

    def accepted(self, submission: Submission) -> None:
        """Let the core know of a message that is durable."""
        msgid, transaction, recipients, body, created_at = submission[:5]
        self.recent.add(msgid, RecentMessage(transaction, recipients, body, created_at))
        kept = body if self.engine.store.keeps_bodies else None
        self.tell(MessageSubmitted(msgid, transaction, recipients, kept))

    async def restore(self) -> int:
        """Tell the core of every envelope that the queue holds; see `Restorer.restore`."""
        return await self.restorer.restore()

    def tell(self, stimulus: Stimulus) -> None:
        """Give the core a stimulus, now or as soon as it is done with the one before."""
        self._inbox.append(stimulus)
        if self._busy:
            return
        self._busy = True
        try:
            while self._inbox:
                self._handle(self._inbox.popleft())
        finally:
            self._busy = False
        if not self._stopped:
            self._arm()

    def _handle(self, stimulus: Stimulus) -> None:
        now = self.effects.now()
        if self.record is not None:
            self.record.stimulus(stimulus, now)
        self._frame(stimulus)
        carry_out = self._carry_out
        if self._watch is not None:
            self._watch.handle(stimulus, now, self.engine, carry_out)
            return
        for instruction in self.engine.handle(stimulus, now=now):
            carry_out[type(instruction)](instruction)

    def _frame(self, stimulus: Stimulus) -> None:
        """Remember on whose behalf the next instructions come: their log lines say so."""
        kind = type(stimulus)
        if kind is TransactionDone or kind is ConnectionClosed:
            session = self.engine.agent.sessions.get(stimulus.session)  # type: ignore[union-attr]
            envelopes = self._sending.pop(stimulus.session, None)  # type: ignore[union-attr]
            if session is not None and envelopes is not None:
                self.deliveries.of_session(
                    session.id,
                    source=session.route.source,
                    relay=f"{session.route.address} ({session.host})",
                    carried=dict(envelopes),
                )
                return
        elif kind is LocalDeliveryDone:
            details = self.local.carried(stimulus.evpid)  # type: ignore[union-attr]
            if details is not None:
                self.deliveries.of_delivery(stimulus.evpid, details)  # type: ignore[union-attr]
                return
        self.deliveries.of_nobody()

    def _watched(self) -> None:
        """Begin or end to show steps."""
        self._watch = self._steps if self._steps.wanted else None

    # Time

    def _arm(self) -> None:
        wakeup = self.engine.next_wakeup()
        if wakeup is None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return
        if self._timer is not None:
            if self._timer_at <= wakeup:
                return  # It rings early and is set again: cheaper than to move it each time.
            self._timer.cancel()
        self._timer_at = wakeup
        delay = max(0.0, wakeup - self.effects.now())
        self._timer = self._loop.call_later(delay, self._ring)

    def _ring(self) -> None:
        self._timer = None
        wakeup = self.engine.next_wakeup()
        if wakeup is not None and wakeup <= self.effects.now():
            self.tell(TimeReached())
        else:
            self._arm()

    # Out: one method per instruction

    def _resolve(self, instruction: ResolveDomain) -> None:
        self._keep(
            self._loop.create_task(
                self._look_up(instruction.domain), name=f"resolve {instruction.domain}"
            )
        )

    async def _look_up(self, domain: str) -> None:
        try:
            resolution = await self.resolver.resolve(domain)
        except Exception as error:  # noqa: BLE001  # ours; mail for the domain must not wait for ever
            self.report_fault(f"resolve {domain}", error)
            resolution = Resolution(ResolutionStatus.RETRY, (), _FAULT_TTL_S, LOCAL_FAULT)
        if self.tracer.dns:
            self.tracer.line("dns", f"{domain} -> {resolution!r:.500}")
        self.tell(DomainResolved(domain, resolution))

    def _open(self, instruction: OpenConnection) -> None:
        self.outbound.open(instruction)

    def _close(self, instruction: CloseConnection) -> None:
        self.outbound.close(instruction.session)

    def _start(self, instruction: StartTransaction) -> None:
        session, msgid, evpids = instruction
        try:
            envelopes = [(envelope, self._load(envelope)) for envelope in evpids]
            body = self.body(msgid)
        except (QueueUnavailableError, MemoryError) as error:
            self.log.warn(
                f"queue: failed to load message {show_msgid(msgid)}:"
                f" {str(error) or type(error).__name__}"
            )
            results = tuple([Result(e, Outcome.TEMPFAIL, LOCAL_FAULT) for e in evpids])
            self._inbox.append(TransactionDone(session, results, usable=True))
            return
        self._sending[session] = envelopes
        # If it is gone, `on_closed` has said so: that waits in line, and the core fails the
        # transaction with it.
        self.outbound.start(session, msgid, envelopes, body)

    def _load(self, envelope: EvpId) -> MtaEnvelope:
        """Return what a transaction needs of an envelope."""
        found = self._in_memory(envelope)
        if found is not None:
            self.loads_hit += 1
            return found
        self.loads_missed += 1
        found = self.queue.mta_envelope(envelope)
        if self.tracer.queue:
            self.tracer.line("queue", f"load evpid={show_evpid(envelope)}")
        if found is None:
            raise QueueUnavailableError(f"no envelope {show_evpid(envelope)}")
        return found

    def _in_memory(self, envelope: EvpId) -> MtaEnvelope | None:
        store = self.engine.store
        handle = store.find(envelope)
        found = store.mta_envelope_of(handle) if handle is not None else None
        return found if found is not None else self.recent.mta_envelope(envelope)

    def _local_details(self, envelope: EvpId) -> MdaEnvelope | None:
        """Return what a local delivery needs, or None if the envelope is relayed, or not there.

        Raises:
            QueueUnavailableError: it can't be read now.
        """
        store = self.engine.store
        handle = store.find(envelope)
        found = store.mda_envelope_of(handle) if handle is not None else None
        if found is None:
            found = self.recent.mda_envelope(envelope)
        if found is not None:
            return found
        stored = self.queue.envelope(envelope)
        if stored is None or not stored.recipient.delivery:
            return None
        return mda_envelope(stored.transaction, stored.recipient, created_at=stored.created_at)

    def details(self, envelope: EvpId) -> MtaEnvelope | MdaEnvelope | None:
        """Return what an attempt needs: from memory if it is there, else from the queue.

        Raises:
            QueueUnavailableError: it can't be read now.
        """
        if self.engine.scheduler.has_local:
            local = self._local_details(envelope)
            if local is not None:
                return local
        return self._in_memory(envelope) or self.queue.mta_envelope(envelope)

    def body(self, msgid: MsgId) -> bytes:
        """Return a message: from memory if it is there, else from the queue.

        Raises:
            QueueUnavailableError: it can't be read now.
        """
        body = self.engine.store.body_of(msgid)
        if body is not None:
            return body
        recent = self.recent.get(msgid)
        return recent.body if recent is not None else self.queue.body(msgid)

    def _defer(self, instruction: DeferEnvelope) -> None:
        envelope, attempts, due_at, status = instruction
        if status:
            self.deliveries.attempt(envelope, Outcome.TEMPFAIL, status)
        self.recent.tried(envelope)
        self.queue.defer(envelope, attempts=attempts, due_at=due_at, status=status)

    def _remove(self, instruction: RemoveEnvelope) -> None:
        envelope, reason, status = instruction
        if reason is Removal.DELIVERED:
            self.deliveries.attempt(envelope, Outcome.OK, status)
        elif reason is Removal.BOUNCED:
            self._failed(envelope, status)
            self.log.info(f"relay: {show_evpid(envelope)} not bounced: no return path")
        elif reason is Removal.EXPIRED:
            self.deliveries.end(envelope, "Expire", _EXPIRED)
        else:
            self.deliveries.end(envelope, "Remove", status)
        self.recent.tried(envelope)
        self.queue.remove(envelope)

    def _failed(self, envelope: EvpId, status: str) -> None:
        self.deliveries.attempt(envelope, Outcome.PERMFAIL, status)
        self.loops += status_of(status) == _LOOP_CODE

    def _bounce(self, instruction: SendBounce) -> None:
        kind = instruction.kind
        self.bouncer.send(instruction)  # begins; the rest is before its next step
        for envelope, status in instruction.failures:
            if kind is BounceKind.DELAYED:
                # Written down first: better no second warning than one for each start.
                handle = self.engine.store.find(envelope)
                assert handle is not None, instruction
                self.queue.set_flags(envelope, self.engine.store.flags_of(handle))
                continue
            if kind is BounceKind.EXPIRED:
                self.deliveries.end(envelope, "Expire", _EXPIRED)
            elif kind.is_success:
                self.deliveries.attempt(envelope, Outcome.OK, status)
            else:
                self._failed(envelope, status)
            self.recent.tried(envelope)

    def _suspend(self, instruction: SuspendEnvelope) -> None:
        self.queue.set_flags(instruction.evpid, instruction.flags)

    def _note(self, instruction: Note) -> None:
        self.log.info(instruction.text)

    # Tasks, faults, and the end

    def call_later(self, delay_s: float, call: "Callable[[], None]") -> asyncio.TimerHandle:
        """Call something later, if the driver still runs then."""
        return self._loop.call_later(delay_s, call)

    def keep(self, task: "asyncio.Task[None]") -> None:
        """Own a task: it is cancelled when the driver stops."""
        self._keep(task)

    def _keep(self, task: "asyncio.Task[None]") -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def report_fault(self, where: str, error: BaseException) -> None:
        """Say that something of ours failed that nobody foresaw; the loop's handler decides how."""
        self._loop.call_exception_handler({"message": f"{where} failed", "exception": error})

    def limits_changed(self) -> None:
        """Take changed limits over that are kept here and below."""
        limits = self.config.limits
        self.recent.resize(
            envelopes_max=limits.queue.cache_envelopes, bytes_max=limits.queue.cache_bytes
        )
        self.outbound.limits_changed()

    def drain(self) -> None:
        """Start nothing new; let what is in flight end. Idempotent."""
        self.tell(DrainRequested())
        self.bouncer.flush()
        for session in list(self.engine.agent.sessions.values()):
            if session.state is SessionState.CONNECTING:
                self.outbound.close(session.id)  # it carries no mail yet

    def is_quiet(self) -> bool:
        """Return whether no transaction runs and no report waits for the disk."""
        return not (
            self._sending or self.bouncer.messages or self.outbound.sessions or self.local.running
        )

    async def stop(self) -> None:
        """End all connections and tasks. What was in flight is tried again after the next start."""
        # Otherwise each connection that ends would make room for the next one.
        self.drain()
        self._stopped = True
        self.restorer.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.bouncer.flush()
        self.outbound.abort_all()
        await self.local.stop()
        # Reports, too: their commits belong to the queue, and what has none is found at the next start.
        while tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self.outbound.wait_idle()


__all__ = ["Driver"]
