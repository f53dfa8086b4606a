"""Carries the core's instructions out on real sockets and a real disk, and tells it what happened.

One stimulus at a time: what an instruction causes at once (a connection that is gone already, a message
too large for its host) waits in line until the instructions before it are carried out.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from mta.core.bounce import flags_for
from mta.core.envelopes.base import MtaEnvelope, Recipient, Transaction, to_tick
from mta.core.ids import EvpId, MsgId, SessionId, evpid, msgid_of, show_evpid
from mta.core.instructions import (
    BounceKind,
    CloseConnection,
    DeferEnvelope,
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
from mta.core.reply import Outcome
from mta.core.stimuli import (
    ConnectionClosed,
    DomainResolved,
    EnvelopeRestored,
    MessageSubmitted,
    Result,
    Stimulus,
    TimeReached,
    TransactionDone,
)
from mta.dsn import compose
from mta.outbound import Outbound, delivery_line, show_duration
from mta.queue.base import QueueUnavailableError, StoredEnvelope, Submission
from mta.recent import RecentMessage, RecentMessages

if TYPE_CHECKING:
    from collections.abc import Callable

    from mta.config import Config
    from mta.core.engine import Engine
    from mta.effects import Effects
    from mta.log import Log
    from mta.queue.base import DurableQueue
    from mta.resolver import Resolver
    from mta.trace import StimulusTrace, Tracer

NO_SESSION = SessionId(0)
"""OpenSMTPD logs deliveries that failed without a connection under session 0."""

LOCAL_FAULT = "451 4.3.0 Local error, try again later"

_BOUNCE_RETRY_S = 60.0
"""How long a bounce that could not be made durable waits. Ours."""


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
        )
        self.bounces_waiting = 0
        """Bounces that are not durable yet."""
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
            DeferEnvelope: self._defer,
            RemoveEnvelope: self._remove,
            SendBounce: self._bounce,
            SuspendEnvelope: self._suspend,
            Note: self._note,
        }
        self._current: SessionId = NO_SESSION
        self._current_relay = ""
        self._current_source = ""
        self._current_envelopes: dict[EvpId, MtaEnvelope] = {}

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
        recipients = self._routed(recipients)
        flags = tuple([int(flags_for(transaction.sender, r.notify)) for r in recipients])
        committed = self.queue.enqueue(
            Submission(
                msgid,
                transaction,
                recipients,
                body,
                created_at,
                self._expiry(created_at, transaction),
                flags,
            )
        )
        answer: asyncio.Future[None] = self._loop.create_future()

        def durable(done: "asyncio.Future[None]") -> None:
            error = QueueUnavailableError("cancelled") if done.cancelled() else done.exception()
            if error is None:
                self._accepted(msgid, transaction, recipients, body, created_at)
            if answer.done():
                return
            if error is None:
                answer.set_result(None)
            else:
                answer.set_exception(error)

        committed.add_done_callback(durable)
        return answer

    def _routed(self, recipients: tuple[Recipient, ...]) -> tuple[Recipient, ...]:
        """Send everything to the smart host, if there is one: it is the relay's key then."""
        smart_host = self.config.relay.smart_host
        if not smart_host:
            return recipients
        return tuple([recipient._replace(domain=smart_host) for recipient in recipients])

    def _expiry(self, created_at: float, transaction: Transaction) -> float:
        limits = self.config.limits.scheduler
        ttl = limits.envelope_ttl_s if transaction.sender else limits.bounce_ttl_s
        return to_tick(created_at + ttl)

    def _accepted(
        self,
        msgid: MsgId,
        transaction: Transaction,
        recipients: tuple[Recipient, ...],
        body: bytes,
        created_at: float,
    ) -> None:
        self.recent.add(msgid, RecentMessage(transaction, recipients, body, created_at))
        kept = body if self.engine.store.keeps_bodies else None
        self.tell(MessageSubmitted(msgid, transaction, recipients, kept))

    async def restore(self) -> int:
        """Tell the core of every envelope that the queue holds; return how many there were.

        The earliest due come first, and deliveries begin before all are known.
        """
        store = self.engine.store
        count = 0
        for found in self.queue.restore():
            if store.find(found.evpid) is not None:
                continue  # It was accepted while we were reading.
            self.tell(self._restored(found, store.keeps_bodies))
            count += 1
            if count % 500 == 0:
                await asyncio.sleep(0)
        return count

    def _restored(self, found: StoredEnvelope, with_body: bool) -> EnvelopeRestored:
        return EnvelopeRestored(
            found.evpid,
            found.recipient,
            found.transaction,
            found.created_at,
            found.expires_at,
            found.attempts,
            found.due_at,
            found.flags,
            self.queue.body(msgid_of(found.evpid)) if with_body else None,
        )

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
        for instruction in self.engine.handle(stimulus, now=now):
            carry_out[type(instruction)](instruction)
        if self.tracer.mta or self.tracer.scheduler:
            self._trace(stimulus)

    def _frame(self, stimulus: Stimulus) -> None:
        """Remember on whose behalf the next instructions come: their log lines say so."""
        kind = type(stimulus)
        if kind is TransactionDone or kind is ConnectionClosed:
            session = self.engine.agent.sessions.get(stimulus.session)  # type: ignore[union-attr]
            envelopes = self._sending.pop(stimulus.session, None)  # type: ignore[union-attr]
            if session is not None and envelopes is not None:
                self._current = session.id
                self._current_source = session.route.source
                self._current_relay = f"{session.route.address} ({session.host})"
                self._current_envelopes = dict(envelopes)
                return
        if self._current:
            self._current = NO_SESSION
            self._current_envelopes = {}

    def _trace(self, stimulus: Stimulus) -> None:
        kind = type(stimulus).__name__
        subsystem = "mta" if kind.startswith(("Conn", "Trans")) else "scheduler"
        if self.tracer.on(subsystem):
            self.tracer.line(subsystem, f"{kind} {tuple(stimulus)!r:.500}")

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
        self._spawn(self._look_up(instruction.domain), f"resolve {instruction.domain}")

    async def _look_up(self, domain: str) -> None:
        resolution = await self.resolver.resolve(domain)
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
            envelopes = [(envelope, self._must_have(envelope)) for envelope in evpids]
            body = self._body(msgid)
        except QueueUnavailableError as error:
            self.log.warn(f"queue: failed to load message {msgid:08x}: {error}")
            results = tuple([Result(e, Outcome.TEMPFAIL, LOCAL_FAULT) for e in evpids])
            self._inbox.append(TransactionDone(session, results, usable=True))
            return
        self._sending[session] = envelopes
        if not self.outbound.start(session, msgid, envelopes, body):
            # `on_closed` has said so, or is about to: the core fails the transaction with it.
            assert session not in self.outbound.sessions or self._inbox, instruction

    def _must_have(self, envelope: EvpId) -> MtaEnvelope:
        details = self._mta_envelope(envelope)
        if details is None:
            raise QueueUnavailableError(f"no envelope {show_evpid(envelope)}")
        return details

    def _mta_envelope(self, envelope: EvpId) -> MtaEnvelope | None:
        """Return what an attempt needs: from memory if it is there, else from the queue."""
        store = self.engine.store
        handle = store.find(envelope)
        found = store.mta_envelope_of(handle) if handle is not None else None
        if found is None:
            found = self.recent.mta_envelope(envelope)
        return found if found is not None else self.queue.mta_envelope(envelope)

    def _body(self, msgid: MsgId) -> bytes:
        body = self.engine.store.body_of(msgid)
        if body is not None:
            return body
        recent = self.recent.get(msgid)
        return recent.body if recent is not None else self.queue.body(msgid)

    def _defer(self, instruction: DeferEnvelope) -> None:
        envelope, attempts, due_at, status = instruction
        if status:
            self._log_delivery(envelope, Outcome.TEMPFAIL, status)
        self.recent.tried(envelope)
        self.queue.defer(envelope, attempts=attempts, due_at=due_at, status=status)

    def _remove(self, instruction: RemoveEnvelope) -> None:
        envelope, reason, status = instruction
        if reason is Removal.DELIVERED:
            self._log_delivery(envelope, Outcome.OK, status)
        elif reason is Removal.BOUNCED:
            self._log_delivery(envelope, Outcome.PERMFAIL, status)
            self.log.info(f"relay: {show_evpid(envelope)} not bounced: no return path")
        else:
            self._log_end(envelope, "Expire" if reason is Removal.EXPIRED else "Remove", status)
        self.recent.tried(envelope)
        self.queue.remove(envelope)

    def _suspend(self, instruction: SuspendEnvelope) -> None:
        self.queue.set_flags(instruction.evpid, instruction.flags)

    def _note(self, instruction: Note) -> None:
        self.log.info(instruction.text)

    def _log_delivery(self, envelope: EvpId, outcome: Outcome, status: str) -> None:
        details = self._current_envelopes.get(envelope) if self._current else None
        session, relay, source = self._current, self._current_relay, self._current_source
        if details is None:
            session, source = NO_SESSION, ""
            details = self._details_for_log(envelope)
            relay = details.rcpt.rpartition("@")[2] or "-"
        self.log.info(
            delivery_line(
                session,
                envelope,
                sender=details.sender,
                rcpt=details.rcpt,
                source=source,
                relay=relay,
                delay_s=max(0.0, self.effects.now() - details.created_at),
                outcome=outcome,
                status=status,
            )
        )

    def _details_for_log(self, envelope: EvpId) -> MtaEnvelope:
        try:
            details = self._mta_envelope(envelope)
        except QueueUnavailableError:
            details = None
        return details or MtaEnvelope("-", "-", self.effects.now(), 0)

    def _log_end(self, envelope: EvpId, word: str, status: str) -> None:
        """Log an end without an attempt, as OpenSMTPD's queue process does (queue.c)."""
        details = self._details_for_log(envelope)
        delay = show_duration(max(0.0, self.effects.now() - details.created_at))
        self.log.info(
            f"relay: {word} for {show_evpid(envelope)}: from=<{details.sender}>,"
            f" to=<{details.rcpt}>, rcpt=<->, delay={delay}, stat={status}"
        )

    # Bounces

    def _bounce(self, instruction: SendBounce) -> None:
        for envelope, status in instruction.failures:
            if instruction.kind is BounceKind.EXPIRED:
                self._log_end(envelope, "Expire", status)
            else:
                self._log_delivery(envelope, Outcome.PERMFAIL, status)
            self.recent.tried(envelope)
        self.bounces_waiting += 1
        self._spawn(self._send_bounce(instruction), f"bounce {instruction.msgid:08x}")

    async def _send_bounce(self, instruction: SendBounce) -> None:
        """Submit a DSN and forget the envelopes it reports, in one commit; if that fails, later."""
        evpids = tuple([envelope for envelope, _ in instruction.failures])
        try:
            stored = [self.queue.envelope(envelope) for envelope in evpids]
            found = [
                (s, status)
                for s, (_, status) in zip(stored, instruction.failures, strict=True)
                if s
            ]
            if not found:
                self.log.warn(f"queue: nothing left of message {instruction.msgid:08x} to report")
                return
            await self._submit_bounce(instruction, found, evpids)
        except QueueUnavailableError as error:
            self.log.warn(f"bounce: message {instruction.msgid:08x} waits: {error}")
            self._bring_back(evpids)
        finally:
            self.bounces_waiting -= 1

    async def _submit_bounce(
        self,
        instruction: SendBounce,
        found: list[tuple[StoredEnvelope, str]],
        evpids: tuple[EvpId, ...],
    ) -> None:
        original = found[0][0].transaction
        now = self.effects.now()
        msgid = self.queue.next_msgid()
        body = compose(
            instruction.kind,
            original,
            [
                (envelope.recipient, _cause(instruction.kind, envelope, status))
                for envelope, status in found
            ],
            hostname=self.config.hostname,
            message=self._body(instruction.msgid),
            now=now,
            msgid=msgid,
        )
        transaction = Transaction("", len(body), smtputf8=original.smtputf8)
        domain = original.sender.rpartition("@")[2].lower()
        recipients = self._routed((Recipient(original.sender, domain),))
        created_at = to_tick(now)
        await self.queue.submit(
            Submission(
                msgid,
                transaction,
                recipients,
                body,
                created_at,
                self._expiry(created_at, transaction),
                (int(flags_for("")),),
            ),
            replaces=evpids,
        )
        self.log.info(
            f"{show_evpid(evpid(msgid, 1))} bounce message={instruction.msgid:08x}"
            f" to=<{original.sender}> envelopes={len(evpids)} kind={instruction.kind.value}"
        )
        self._accepted(msgid, transaction, recipients, body, created_at)

    def _bring_back(self, evpids: tuple[EvpId, ...]) -> None:
        """Give the core envelopes back whose bounce could not be written: they fail again later."""
        for envelope in evpids:
            try:
                found = self.queue.envelope(envelope)
                if found is not None:
                    later = found._replace(due_at=self.effects.now() + _BOUNCE_RETRY_S)
                    self.tell(self._restored(later, self.engine.store.keeps_bodies))
            except QueueUnavailableError:
                # The queue can't even be read. The envelope is on disk, and a restart finds it.
                self.log.warn(f"queue: envelope {show_evpid(envelope)} is left for the next start")

    # Tasks, and the end

    def _spawn(self, coroutine: Any, name: str) -> None:
        task = self._loop.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler(
                {"message": f"task {task.get_name()} failed", "exception": error, "task": task}
            )

    def is_quiet(self) -> bool:
        """Return whether no transaction runs and no bounce waits for the disk."""
        return not self._sending and not self._tasks and not self.outbound.sessions

    async def stop(self) -> None:
        """End all connections and tasks. What was in flight is tried again after the next start."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.outbound.abort_all()
        tasks = list(self._tasks)
        for task in tasks:
            if not task.get_name().startswith("bounce"):
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.outbound.wait_idle()


def _cause(kind: BounceKind, envelope: StoredEnvelope, status: str) -> str:
    """Return what a report says: of an expired envelope its last failure (RFC 3463 3.5), if there was one."""
    return (envelope.status or status) if kind is BounceKind.EXPIRED else status


__all__ = ["Driver", "Instruction"]
