"""One outbound connection: moves bytes and time between a transport and a `ClientSession`.

The rule: whatever ends a connection (the host, the network, the clock, the operator, a mistake of the
driver's), what is due to the driver is told once, and the descriptor is given back.
"""

import asyncio
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mta.core.envelopes.base import MtaEnvelope
from mta.core.ids import EvpId, MsgId, SessionId, show_session
from mta.core.instructions import OpenConnection
from mta.core.reply import Outcome
from mta.core.stimuli import (
    ConnectionClosed,
    ConnectionFailed,
    ConnectionReady,
    Result,
    TransactionDone,
)
from mta.outerrors import LOCAL_FAULT, STOPPED, network_error
from mta.outtls import BAD_CERTIFICATE, NO_HANDSHAKE, tls_reason
from mta.smtpclient import CLOSED_BY_PEER, ClientSession
from mta.smtpgreeting import BEFORE_READY
from mta.smtpstates import (
    Closed,
    Event,
    Failed,
    Ready,
    StartTls,
    State,
    TransactionResult,
)
from mta.tlspipe import TlsPipe
from mta.tlsplan import TlsPlan

if TYPE_CHECKING:
    from mta.outbound import Outbound


class SessionRow(NamedTuple):
    """One connection, as `mtactl show sessions` has it."""

    session: SessionId
    domain: str
    source: str
    address: str
    host: str
    state: str
    """``connecting``, or a `State` of the client."""
    messages: int
    """Messages that the host took."""
    msgid: MsgId | None
    """The message that is being sent."""
    opened_at: float


class OutboundConnection(asyncio.Protocol):
    """One connection: moves bytes and time between a transport and a `ClientSession`."""

    __slots__ = (
        "_evpids",
        "_handle",
        "_handle_at",
        "_heard",
        "_loop",
        "_name",
        "_over",
        "_owner",
        "_paused",
        "_session",
        "_stopped",
        "_tls",
        "_transport",
        "instruction",
        "msgid",
        "opened_at",
        "plan",
        "task",
    )

    def __init__(
        self, owner: "Outbound", instruction: OpenConnection, plan: TlsPlan | None = None
    ) -> None:
        self._owner = owner
        self.instruction = instruction
        self.plan = plan
        """What TLS it has; None while that is being looked up."""
        self.opened_at = owner.effects.now()
        self.msgid: MsgId | None = None
        self.task: asyncio.Task[None] | None = None
        self._evpids: tuple[EvpId, ...] = ()
        self._loop = asyncio.get_running_loop()
        self._name = show_session(instruction.session)
        self._session: ClientSession | None = None
        self._transport: asyncio.Transport | None = None
        self._tls: TlsPipe | None = None
        self._heard = False
        """The host has said something under TLS: it works."""
        self._stopped = False
        self._paused = False
        self._over = False
        self._handle: asyncio.TimerHandle | None = None
        self._handle_at = 0.0

    @property
    def can_start(self) -> bool:
        """A transaction can start now."""
        session = self._session
        return session is not None and session.state is State.READY and self.msgid is None

    @property
    def messages(self) -> int:
        """Messages that the host took."""
        return self._session.messages if self._session is not None else 0

    def row(self) -> SessionRow:
        """Return what there is to show."""
        instruction = self.instruction
        session = self._session
        return SessionRow(
            instruction.session,
            instruction.domain,
            instruction.source,
            instruction.address,
            instruction.host,
            "connecting" if session is None else session.state.value,
            self.messages,
            self.msgid,
            self.opened_at,
        )

    # From the owner.

    def start(
        self, msgid: MsgId, envelopes: Sequence[tuple[EvpId, MtaEnvelope]], body: bytes
    ) -> None:
        """Begin a transaction; the connection can start one."""
        session = self._session
        assert session is not None
        self.msgid = msgid
        self._evpids = tuple([evpid for evpid, _ in envelopes])
        events = session.start([envelope for _, envelope in envelopes], body, self._loop.time())
        if events:
            # Refused before anything was sent. The driver hears of it when it has carried out the
            # instructions that it is at, as of every other result.
            self._loop.call_soon(self._deliver, events)
        else:
            self._pump()

    def _deliver(self, events: list[Event]) -> None:
        if not self._over:
            self._act(events)
            self._pump()

    def quit(self) -> None:
        """Close gracefully."""
        session = self._session
        if session is None or session.state in BEFORE_READY:
            self._loop.call_soon(self.fail, STOPPED)
        elif self.msgid is not None and session.state is State.READY:
            # The result of a transaction that was refused here is on its way: see `start`.
            self._loop.call_soon(self.quit)
        else:
            session.quit(self._loop.time())
            self._pump()

    def fail(self, reason: str, *, source_fault: bool = False) -> None:
        """End now, whatever the state; the callbacks that are due are made. Idempotent."""
        if self._over or (self._session is not None and self._session.closed):
            return  # in the second case, its last events are being told further up the stack
        self._stopped = True
        if self._session is not None:
            if self.msgid is not None and self._session.state is State.READY:
                self._finish_refused(reason)
            self._act(self._session.lost(reason, self._loop.time()))
            assert self._over, self._session.state
            return
        self._end()
        self._log_error(reason)
        self._owner.stats.failed += 1
        failed = ConnectionFailed(self.instruction.session, reason, source_fault)
        self._owner.on_failed(failed)

    def _finish_refused(self, reason: str) -> None:
        """Answer a transaction whose local refusal was not delivered yet: it is tried again."""
        results = tuple([Result(evpid, Outcome.TEMPFAIL, reason) for evpid in self._evpids])
        self.msgid = None
        self._evpids = ()
        self._owner.on_done(TransactionDone(self.instruction.session, results, False))

    # From the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the session."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write"), transport
        owner = self._owner
        if self._over:
            # Given up while the loop was about to tell us. It is not counted: uvloop does not tell the end
            # of a transport whose task was cancelled, and the task is waited for.
            transport.abort()  # type: ignore[attr-defined]
            return
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        owner.transport_opened()
        owner.log(f"{self._name} mta connected")
        assert self.plan is not None
        self._session = ClientSession(
            owner.hostname,
            now=self._loop.time(),
            pipelining=owner.pipelining,
            timeouts=owner.timeouts_of(self.instruction.domain),
            max_failures=owner.limits_of(self.instruction.domain).max_failures_per_session,
            hello=self.plan.hello,
        )
        self._arm(self._session)
        if self.plan.hello.implicit:
            self._begin_tls(self._session)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the host."""
        session = self._session
        if session is None or self._over:
            return
        if self._tls is None:
            self._hear(session, data)
        else:
            self._decrypt(session, self._tls, data)

    def _hear(self, session: ClientSession, data: bytes) -> None:
        """Take what the host says."""
        events = session.receive(data, self._loop.time())
        if not session.closed:
            self._pump()
        if events:
            self._act(events)

    def eof_received(self) -> bool:
        """Take the end of the host's bytes: nothing can be answered any more."""
        if self._session is not None and not self._over:
            self._act(self._session.eof(self._loop.time()))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the transport."""
        if self._transport is None:
            return
        self._transport = None
        if self._over and self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._owner.transport_closed()
        session = self._session
        if session is None or self._over:
            return
        if session.closed:
            # The driver raised when it was told of a result. It is told of the end all the same,
            # so that the connection does not stay in its books.
            self._act([Closed(CLOSED_BY_PEER)])
        elif isinstance(exc, OSError):
            self._act(session.lost(network_error(exc), self._loop.time()))
        else:
            self._act(session.eof(self._loop.time()))

    def pause_writing(self) -> None:
        """The transport holds enough."""
        self._paused = True

    def resume_writing(self) -> None:
        """The transport has room."""
        self._paused = False
        if not self._over:
            self._pump()

    def _timer(self) -> None:
        self._handle = None
        session = self._session
        if session is None or self._over:
            return
        events = session.timer(self._loop.time())
        if events:
            self._act(events)
        else:
            self._arm(session)

    # Moving.

    def _pump(self) -> None:
        """Send what there is to send, and have the deadline watched."""
        session = self._session
        transport = self._transport
        if session is None or transport is None or session.closed:
            return
        now = self._loop.time()
        tls = self._tls
        while not self._paused and (chunk := session.data_to_send(now)):
            if tls is None:
                transport.write(chunk)
                continue
            try:
                tls.send(chunk)
            except ssl.SSLError as error:
                # The events must not overtake what the caller is about to tell.
                self._loop.call_soon(self.fail, tls_reason(error, established=True))
                break
            self._write_records(tls)
        self._arm(session)

    # TLS.

    def _begin_tls(self, session: ClientSession) -> None:
        """Send the first record of a handshake."""
        owner = self._owner
        assert self.plan is not None
        assert owner.tls is not None
        try:
            owner.effects.point("tls", "outbound")
            self._tls = owner.tls.pipe(self.plan, self.instruction)
            owner.effects.done("tls", "outbound")
        except ValueError:
            self._act(session.lost(f"{BAD_CERTIFICATE}: no name to verify", self._loop.time()))
        except (OSError, MemoryError):  # ssl.SSLError is one, and here it is ours
            self._stopped = True  # in clear would be no better
            self._act(session.lost(LOCAL_FAULT, self._loop.time()))
        else:
            self._write_records(self._tls)

    def _write_records(self, tls: TlsPipe) -> None:
        if self._transport is not None and (records := tls.take()):
            self._transport.write(records)

    def _decrypt(self, session: ClientSession, tls: TlsPipe, data: bytes) -> None:
        """Take records: of the handshake, then of the dialogue."""
        before = tls.established
        try:
            said = tls.feed(data)
        except (ssl.SSLError, MemoryError) as error:
            self._write_records(tls)  # the alert that tells why
            reason = tls_reason(error, established=before)
            self._act(session.lost(reason, self._loop.time()))
            return
        self._write_records(tls)
        if tls.established and not before:
            owner, plan = self._owner, self.plan
            assert plan is not None
            assert owner.tls is not None
            refusal = owner.tls.inspect(
                tls, plan, self._name, now=owner.effects.now(), log=owner.log
            )
            if refusal:
                self._act(session.lost(refusal, self._loop.time()))
                return
            session.secured(self._loop.time())
            self._pump()
        if said:
            self._heard = True
            self._hear(session, said)
        if tls.ended and not self._over:
            self._act(session.eof(self._loop.time()))

    def _tls_failed(self, reason: str) -> str | None:
        """Take the end of a session before it was ready: was it for want of TLS?

        Returns:
            The reason to report, or None if another connection is being tried.
        """
        owner, plan = self._owner, self.plan
        if owner.tls is None or plan is None or self._tls is None or self._heard or self._stopped:
            return reason
        owner.tls.stats.failed += 1
        owner.tls.forget(plan, self.instruction)
        if not reason.startswith("454 "):
            reason = f"{NO_HANDSHAKE}: {reason}"
        if plan.fallback is None:
            return reason
        owner.fall_back(self, reason)
        return None

    def _arm(self, session: ClientSession) -> None:
        """See to it that `_timer` is called at the deadline or earlier.

        The deadline moves with every reply. The handle is touched only when it would come too
        late; one that comes too early finds the deadline in the future and is set again.
        """
        deadline = session.deadline
        if deadline is None:
            return
        if self._handle is not None:
            if self._handle_at <= deadline:
                return
            self._handle.cancel()
        self._handle_at = deadline
        self._handle = self._loop.call_at(deadline, self._timer)

    def _act(self, events: Sequence[Event]) -> None:
        """Tell the driver. It may call `start` or `close` from within."""
        owner = self._owner
        session_id = self.instruction.session
        for event in events:
            match event:
                case TransactionResult(results, usable, ambiguous):
                    # It was told the wishes of RFC 3461, and reports what it did itself.
                    dsn = self._session is not None and self._session.extensions.dsn
                    done = tuple(
                        [
                            Result(evpid, outcome, status, dsn)
                            for evpid, (outcome, status) in zip(self._evpids, results, strict=True)
                        ]
                    )
                    self.msgid = None
                    self._evpids = ()
                    owner.stats.ambiguous += ambiguous
                    owner.on_done(TransactionDone(session_id, done, usable))
                case StartTls():
                    if self._session is not None and not self._session.closed:
                        self._begin_tls(self._session)
                case Ready():
                    if self._tls is not None and self.plan is not None and owner.tls is not None:
                        owner.tls.keep(self._tls, self.plan, self.instruction)
                    elif self.plan is not None and owner.tls is not None:
                        owner.tls.went_in_clear(self.plan)
                    owner.stats.ready += 1
                    owner.on_ready(ConnectionReady(session_id))
                case Failed(reason):
                    self._end()
                    told = self._tls_failed(reason)
                    if told is None:
                        continue
                    self._log_error(told)
                    owner.stats.failed += 1
                    owner.on_failed(ConnectionFailed(session_id, told))
                case Closed(reason):
                    self._end(clean=reason == "quit")
                    if reason == "quit":
                        owner.log(
                            f"{self._name} mta disconnected reason=quit messages={self.messages}"
                        )
                    else:
                        self._log_error(reason)
                    owner.stats.closed += 1
                    owner.on_closed(ConnectionClosed(session_id, reason))

    def _log_error(self, reason: str) -> None:
        """Log as OpenSMTPD's mta_error does, which has two dialects."""
        count = self.messages
        if count:
            self._owner.log(
                f"smtp-out: Error on session {self._name} after {count}"
                f" message{'s' if count > 1 else ''} sent: {reason}"
            )
        else:
            self._owner.log(f"{self._name} mta error reason={reason}")

    def _end(self, *, clean: bool = False) -> None:
        """Release everything. The transport's descriptor goes with the loop's next turn.

        ``clean``: the host has answered QUIT, and is owed TLS's own good-bye, if it takes it soon.
        """
        self._over = True
        del self._owner.sessions[self.instruction.session]
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._transport is None:
            if self.task is not None:
                self.task.cancel()
            return
        # A host that answers at once may be told of before the task that connected goes on: it is left to
        # end by itself, because uvloop would not tell the end of the transport otherwise.
        if clean and self._tls is not None:
            self._tls.close()
            self._write_records(self._tls)
            self._handle = self._loop.call_later(self._owner.timeouts.quit, self._transport.abort)
            self._transport.close()
            return
        # Not close(): that would wait until the host has read what it will not answer.
        self._transport.abort()
