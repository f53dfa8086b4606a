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
from collections.abc import Callable, Sequence

from mta.core.envelopes.base import MtaEnvelope
from mta.core.ids import EvpId, MsgId, SessionId, show_evpid, show_session
from mta.core.instructions import OpenConnection
from mta.core.limits import MtaLimits
from mta.core.relayrules import RelayRules
from mta.core.reply import OUTCOME_WORDS, Outcome
from mta.core.stimuli import (
    ConnectionClosed,
    ConnectionFailed,
    ConnectionReady,
    TransactionDone,
)
from mta.effects import Effects
from mta.outconnection import OutboundConnection, SessionRow
from mta.outerrors import CONNECT_TIMED_OUT, LOCAL_FAULT, STOPPED, is_source_fault, network_error
from mta.outtls import OutboundTls
from mta.smtpstates import Timeouts
from mta.tlsplan import TlsPlan


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
        effects: Effects,
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
        tls: OutboundTls | None = None,
        rules: RelayRules | None = None,
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
            tls: decides about TLS and AUTH; None for neither.
            rules: what is different for which destination.
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
        self.tls = tls
        self._rules = rules or RelayRules((), limits)
        self.stats = OutboundStats()
        self.sessions: dict[SessionId, OutboundConnection] = {}
        """Connections whose last callback was not made yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._open_transports = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def limits_changed(self) -> None:
        """Scale time-outs anew; connections that are open keep theirs."""
        self.timeouts = Timeouts.scaled(self.limits.session_timeout_s)

    def open(self, instruction: OpenConnection) -> None:
        """Connect, read the greeting, say EHLO. Answered by `on_ready` or `on_failed`."""
        session = instruction.session
        assert session not in self.sessions, instruction
        connection = OutboundConnection(self, instruction)
        self.sessions[session] = connection
        self.stats.opened += 1
        self._begin(connection)

    def _begin(self, connection: OutboundConnection) -> None:
        session = connection.instruction.session
        task = asyncio.get_running_loop().create_task(
            self._connect(connection), name=f"connect {show_session(session)}"
        )
        connection.task = task
        self._tasks.add(task)
        self._idle.clear()
        task.add_done_callback(self._connect_ended)

    async def _connect(self, connection: OutboundConnection) -> None:
        try:
            reason = await self._reach(connection)
        except TimeoutError:
            reason = CONNECT_TIMED_OUT
        except OSError as error:
            connection.task = None
            connection.fail(
                network_error(error),
                source_fault=is_source_fault(error, connection.instruction.source),
            )
            return
        except BaseException as error:
            # Cancelled, or our own mistake: whichever, the driver is told.
            connection.task = None
            connection.fail(STOPPED if isinstance(error, asyncio.CancelledError) else LOCAL_FAULT)
            raise
        # The task must not be found, and cancelled, by what it is calling.
        connection.task = None
        if reason:
            connection.fail(reason)

    async def _reach(self, connection: OutboundConnection) -> str:
        """Find out what TLS is wanted, then connect; return why not to connect, or nothing."""
        instruction, plan = connection.instruction, connection.plan
        if plan is None:
            plan = TlsPlan() if self.tls is None else await self.tls.plan(instruction)
            connection.plan = plan
        self._log_connecting(instruction, plan)
        if plan.refusal:
            return plan.refusal
        timeout_s = self.limits_of(instruction.domain).connect_timeout_s
        async with asyncio.timeout(timeout_s):
            await self.effects.create_connection(
                lambda: connection,
                instruction.address,
                self.port_of(instruction.domain),
                source=instruction.source,
                timeout_s=timeout_s,
                site="outbound",
            )
        return ""

    def _log_connecting(self, instruction: OpenConnection, plan: TlsPlan) -> None:
        address = instruction.address
        shown = f"[{address}]" if ":" in address else address
        self.log(
            f"{show_session(instruction.session)} mta connecting"
            f" address={plan.scheme}://{shown}:{self.port_of(instruction.domain)} host={instruction.host}"
            f"{f' tls-policy={plan.policy}' if plan.policy else ''}"
        )

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

    def port_of(self, relay: str) -> int:
        """Return the port of a relay's hosts."""
        return self._rules.plan_of(relay).port or self.port

    def limits_of(self, relay: str) -> MtaLimits:
        """Return the limits of a relay, by its key."""
        return self._rules.plan_of(relay).limits

    def timeouts_of(self, relay: str) -> Timeouts:
        """Return how long to wait for a relay's hosts."""
        limits = self.limits_of(relay)
        if limits.session_timeout_s == self.limits.session_timeout_s:
            return self.timeouts
        return Timeouts.scaled(limits.session_timeout_s)

    def fall_back(self, failed: OutboundConnection, reason: str) -> None:
        """Try again as the plan of a connection says that has just ended, under the same session."""
        plan = failed.plan
        assert plan is not None
        assert plan.fallback is not None
        assert self.tls is not None
        self.tls.stats.downgraded += 1
        session = failed.instruction.session
        self.log(f"{show_session(session)} mta closing reason=tls-failure: {reason}")
        self.log(f"smtp-out: Error on session {show_session(session)}: {plan.notice}")
        connection = OutboundConnection(self, failed.instruction, plan.fallback)
        self.sessions[session] = connection
        self._begin(connection)

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
