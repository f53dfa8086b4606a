"""Outbound connections: `ClientSession` on asyncio, one protocol object per connection.

The rules that the driver can rely on: each `Outbound.open` is answered once, by `on_ready` or
`on_failed`; each `Outbound.start` that returned True is answered once, by `on_done`; each connection
that became ready is answered once, at its end, by `on_closed`, whoever ended it. Callbacks are called
from the event loop, never from inside `open`, `start` or `close`; only `abort_all` calls them itself.
A connection that is no longer usable closes itself.

No connection waits for ever: connecting is bounded by ``limits.connect_timeout_s``, each step of SMTP
by `Timeouts`, QUIT by 5 s.
"""

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from mta.core.envelopes.base import MtaEnvelope
from mta.core.ids import EvpId, MsgId, SessionId, show_evpid, show_session
from mta.core.instructions import OpenConnection
from mta.core.limits import MtaLimits
from mta.core.reply import OUTCOME_WORDS, Outcome
from mta.core.stimuli import (
    ConnectionClosed,
    ConnectionFailed,
    ConnectionReady,
    Result,
    TransactionDone,
)
from mta.effects import NotLoopbackError
from mta.smtpclient import (
    CLOSED_BY_PEER,
    ClientSession,
    Closed,
    Event,
    Failed,
    Ready,
    State,
    Timeouts,
    TransactionResult,
)

CONNECT_TIMED_OUT = "Connection timed out"
LOCAL_FAULT = "Local resource shortage"
"""What a reply, a bounce or a log says when we could not connect for a reason of our own."""
NOT_LOOPBACK = "Not a loopback address, and relay.allow is loopback"
STOPPED = "Server is stopping"

_NETWORK_ERRNOS = frozenset(
    (
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.EHOSTDOWN,
        errno.ETIMEDOUT,
        errno.EPIPE,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
    )
)
"""Errors that say something about the network. All others are ours, and nobody's business."""


class ConnectEffects(Protocol):
    """What this module needs of `mta.effects.Effects`."""

    def now(self) -> float:
        """Return seconds since the epoch."""
        ...

    async def create_connection(
        self,
        protocol_factory: Callable[[], asyncio.Protocol],
        address: str,
        port: int,
        *,
        timeout_s: float,
        source: str = "",
        site: str,
    ) -> Any:
        """Connect.

        Raises:
            OSError: it did not work; `TimeoutError` if it took too long.
        """
        ...


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


class OutboundStats:
    """Counters since the start."""

    __slots__ = ("ambiguous", "closed", "failed", "opened", "ready", "transactions")

    def __init__(self) -> None:
        self.opened = 0
        """Connections asked for."""
        self.ready = 0
        self.failed = 0
        self.closed = 0
        self.transactions = 0
        """Transactions started."""
        self.ambiguous = 0
        """Transactions whose fate is unknown: lost between the final dot and its reply. Each may
        make one duplicate per envelope."""


class Outbound:
    """All outbound connections of a server."""

    def __init__(
        self,
        effects: ConnectEffects,
        hostname: str,
        port: int,
        limits: MtaLimits,
        *,
        on_ready: Callable[[ConnectionReady], None],
        on_failed: Callable[[ConnectionFailed], None],
        on_done: Callable[[TransactionDone], None],
        on_closed: Callable[[ConnectionClosed], None],
        log: Callable[[str], None],
        timeouts: Timeouts | None = None,
        pipelining: bool = True,
    ) -> None:
        """Open nothing yet.

        Args:
            effects: for the clock and for connecting.
            hostname: our name, for EHLO.
            port: port of remote hosts.
            limits: time-outs and the limit of failures.
            on_ready: told when a connection can take a transaction.
            on_failed: told when a connection did not become ready.
            on_done: told when a transaction ended.
            on_closed: told when a connection that had been ready is gone.
            log: takes one line.
            timeouts: longest waits; by default those of the RFC, scaled by
                ``limits.session_timeout_s``.
            pipelining: use PIPELINING where it is offered.
        """
        self.effects = effects
        self.hostname = hostname
        self.port = port
        self.limits = limits
        self.on_ready = on_ready
        self.on_failed = on_failed
        self.on_done = on_done
        self.on_closed = on_closed
        self.log = log
        self.timeouts = timeouts or Timeouts.scaled(limits.session_timeout_s)
        self.pipelining = pipelining
        self.stats = OutboundStats()
        self.sessions: dict[SessionId, OutboundConnection] = {}
        """Connections whose last callback was not made yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._open_transports = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def open(self, instruction: OpenConnection) -> None:
        """Connect, read the greeting, say EHLO. Answered by `on_ready` or `on_failed`."""
        session = instruction.session
        assert session not in self.sessions, instruction
        connection = OutboundConnection(self, instruction)
        self.sessions[session] = connection
        self.stats.opened += 1
        address = instruction.address
        shown = f"[{address}]" if ":" in address else address
        self.log(
            f"{show_session(session)} mta connecting address=smtp://{shown}:{self.port}"
            f" host={instruction.host}"
        )
        task = asyncio.get_running_loop().create_task(
            self._connect(connection), name=f"connect {show_session(session)}"
        )
        connection.task = task
        self._tasks.add(task)
        self._idle.clear()
        task.add_done_callback(self._connect_ended)

    async def _connect(self, connection: "OutboundConnection") -> None:
        instruction = connection.instruction
        timeout_s = self.limits.connect_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self.effects.create_connection(
                    lambda: connection,
                    instruction.address,
                    self.port,
                    source=instruction.source,
                    timeout_s=timeout_s,
                    site="outbound",
                )
        except TimeoutError:
            reason = CONNECT_TIMED_OUT
        except OSError as error:
            reason = network_error(error)
        except asyncio.CancelledError:
            connection.task = None
            connection.fail(STOPPED)
            raise
        else:
            connection.task = None
            return
        # The task must not be found, and cancelled, by what it is calling.
        connection.task = None
        connection.fail(reason)

    def _connect_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._settle()
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error  # ours: the loop's exception handler has to see it

    def start(
        self,
        session: SessionId,
        msgid: MsgId,
        envelopes: Sequence[tuple[EvpId, MtaEnvelope]],
        body: bytes,
    ) -> bool:
        """Send one message. Answered by `on_done`.

        Returns:
            False if the connection is gone meanwhile: `on_closed` has said so.
        """
        connection = self.sessions.get(session)
        if connection is None or not connection.can_start:
            return False
        self.stats.transactions += 1
        connection.start(msgid, envelopes, body)
        return True

    def close(self, session: SessionId) -> None:
        """Say QUIT and close, after the transaction if one is running. Answered by `on_closed`.

        Does nothing if the connection is gone: `on_closed` has said so.
        """
        connection = self.sessions.get(session)
        if connection is not None:
            connection.quit()

    def abort_all(self, reason: str = STOPPED) -> None:
        """End every connection at once; all callbacks that are due are made before this returns."""
        for connection in list(self.sessions.values()):
            connection.fail(reason)

    async def wait_idle(self) -> None:
        """Wait until no connection is left, down to the last descriptor. For after `abort_all`."""
        await self._idle.wait()

    def rows(self) -> list[SessionRow]:
        """Return all connections, oldest first."""
        return [connection.row() for connection in self.sessions.values()]

    # For the connections.

    def transport_opened(self) -> None:
        """Count a transport."""
        self._open_transports += 1
        self._idle.clear()

    def transport_closed(self) -> None:
        """Count a transport out."""
        self._open_transports -= 1
        self._settle()

    def _settle(self) -> None:
        if not self._tasks and not self._open_transports:
            self._idle.set()


class OutboundConnection(asyncio.Protocol):
    """One connection: moves bytes and time between a transport and a `ClientSession`."""

    __slots__ = (
        "_evpids",
        "_handle",
        "_handle_at",
        "_loop",
        "_name",
        "_over",
        "_owner",
        "_paused",
        "_session",
        "_transport",
        "instruction",
        "msgid",
        "opened_at",
        "task",
    )

    def __init__(self, owner: Outbound, instruction: OpenConnection) -> None:
        self._owner = owner
        self.instruction = instruction
        self.opened_at = owner.effects.now()
        self.msgid: MsgId | None = None
        self.task: asyncio.Task[None] | None = None
        self._evpids: tuple[EvpId, ...] = ()
        self._loop = asyncio.get_running_loop()
        self._name = show_session(instruction.session)
        self._session: ClientSession | None = None
        self._transport: asyncio.Transport | None = None
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
        if session is None or session.state in (State.BANNER, State.EHLO, State.HELO):
            self._loop.call_soon(self.fail, STOPPED)
        elif self.msgid is not None and session.state is State.READY:
            # The result of a transaction that was refused here is on its way: see `start`.
            self._loop.call_soon(self.quit)
        else:
            session.quit(self._loop.time())
            self._pump()

    def fail(self, reason: str) -> None:
        """End now, whatever the state; the callbacks that are due are made. Idempotent."""
        if self._over or (self._session is not None and self._session.closed):
            return  # in the second case, its last events are being told further up the stack
        if self._session is not None:
            if self.msgid is not None and self._session.state is State.READY:
                self._finish_refused(reason)
            self._act(self._session.lost(reason, self._loop.time()))
            assert self._over, self._session.state
            return
        self._end()
        self._log_error(reason)
        self._owner.stats.failed += 1
        self._owner.on_failed(ConnectionFailed(self.instruction.session, reason))

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
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        owner = self._owner
        owner.transport_opened()
        if self._over:
            # Given up while the loop was about to tell us.
            self._transport.abort()  # type: ignore[union-attr]
            return
        owner.log(f"{self._name} mta connected")
        self._session = ClientSession(
            owner.hostname,
            now=self._loop.time(),
            pipelining=owner.pipelining,
            timeouts=owner.timeouts,
            max_failures=owner.limits.max_failures_per_session,
        )
        self._arm(self._session)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the host."""
        session = self._session
        if session is None or self._over:
            return
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
        self._transport = None
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
        while not self._paused and (chunk := session.data_to_send(now)):
            transport.write(chunk)
        self._arm(session)

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
                    done = tuple(
                        [
                            Result(evpid, outcome, status)
                            for evpid, (outcome, status) in zip(self._evpids, results, strict=True)
                        ]
                    )
                    self.msgid = None
                    self._evpids = ()
                    owner.stats.ambiguous += ambiguous
                    owner.on_done(TransactionDone(session_id, done, usable))
                case Ready():
                    owner.stats.ready += 1
                    owner.on_ready(ConnectionReady(session_id))
                case Failed(reason):
                    self._end()
                    self._log_error(reason)
                    owner.stats.failed += 1
                    owner.on_failed(ConnectionFailed(session_id, reason))
                case Closed(reason):
                    self._end()
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

    def _end(self) -> None:
        """Release everything. The transport's descriptor goes with the loop's next turn."""
        self._over = True
        del self._owner.sessions[self.instruction.session]
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self.task is not None:
            self.task.cancel()
        if self._transport is not None:
            # Not close(): that would wait until the host has read what it will not answer.
            self._transport.abort()


def network_error(error: OSError) -> str:
    """Return an error of the network in words; faults of this machine all look alike."""
    if isinstance(error, TimeoutError):
        return CONNECT_TIMED_OUT
    if isinstance(error, NotLoopbackError):
        return NOT_LOOPBACK
    # asyncio raises one OSError without errno when several attempts failed.
    with contextlib.suppress(TypeError, ValueError):
        if error.errno in _NETWORK_ERRNOS:
            return os.strerror(error.errno)
    return LOCAL_FAULT


def delivery_line(
    session: SessionId,
    evpid: EvpId,
    *,
    sender: str,
    rcpt: str,
    source: str,
    relay: str,
    delay_s: float,
    outcome: Outcome,
    status: str,
) -> str:
    """Return the log line of one attempt, as OpenSMTPD mta.c, mta_delivery_log.

    Args:
        session: 0 for an envelope that failed without a connection.
        evpid: the envelope.
        sender: reverse-path; empty for ``<>``.
        rcpt: forward-path.
        source: local address, or empty.
        relay: ``address (host)``, or the domain if there was no connection.
        delay_s: seconds since the envelope was created.
        outcome: what became of it.
        status: the reply in one line.
    """
    return (
        f"{show_session(session)} mta delivery evpid={show_evpid(evpid)} from=<{sender}>"
        f' to=<{rcpt}> rcpt=<-> source="{source or "-"}" relay="{relay}"'
        f" delay={show_duration(delay_s)}"
        f' result="{OUTCOME_WORDS[outcome]}" stat="{status}"'
    )


def show_duration(seconds: float) -> str:
    """Return ``1d2h3m4s`` without the parts that are 0, as OpenSMTPD to.c, duration_to_text."""
    whole = int(seconds)
    if whole == 0:
        return "0s"
    sign, whole = ("-", -whole) if whole < 0 else ("", whole)
    minutes, s = divmod(whole, 60)
    hours, m = divmod(minutes, 60)
    d, h = divmod(hours, 24)
    parts = ((d, "d"), (h, "h"), (m, "m"), (s, "s"))
    return sign + "".join([f"{value}{unit}" for value, unit in parts if value])
