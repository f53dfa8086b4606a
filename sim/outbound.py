"""Outbound connections of the model: the scripted hosts of `sim.remote`, events instead of sockets.

The rules are those of mta/outbound.py: each `open` is answered once, by ready or failed; each `start` by
done, and by closed as well if the connection did not survive; each connection that became ready is
told closed once, whoever ended it.

A transaction is one event: the host says what it answers and how long that takes, and our own patience
cuts it short. Time-outs are never scheduled beside what they would cut.
"""

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from mta.core.address import mailbox_key
from mta.core.ids import EvpId, SessionId
from mta.core.instructions import OpenConnection
from mta.core.limits import MtaLimits
from mta.core.reply import Outcome, Reply
from mta.core.stimuli import (
    ConnectionClosed,
    ConnectionFailed,
    ConnectionReady,
    Result,
    Stimulus,
    TransactionDone,
)
from sim.costs import Costs
from sim.cpu import EventLoop
from sim.kernel import Kernel
from sim.remote import TAKEN, RemoteHost, TransactionVerdict
from sim.tls import FIRST_TLS, Security

if TYPE_CHECKING:
    from sim.behaviours.base import Conn

PEER: Final = "127.0.0.1"
"""Our address, as the hosts see it, unless a rule says which to send from."""

REFUSED: Final = "Connection refused"
RESET: Final = "Connection reset by peer"
TIMED_OUT: Final = "Connection timeout"
"""Words of mta/outconnection.py and mta/smtpclient.py, so that a trace of the model reads like one of the server."""

QUIT_PATIENCE_S: Final = 5.0
TRANSACTION_PATIENCE: Final = 12.0
"""Longest transaction, in units of `session_timeout_s`: an hour for the RFC's five minutes."""

_TAKEN_STATUS: Final = str(TAKEN)
_OK: Final = Outcome.OK
_new: Final = tuple.__new__  # of a named tuple, without a call of Python code
_TEMPFAIL: Final = Outcome.TEMPFAIL

_Answer: TypeAlias = tuple["Connection", TransactionVerdict, tuple[EvpId, ...], bool]


class State(enum.Enum):
    """Where a connection stands."""

    CONNECTING = "connecting"
    IDLE = "idle"
    BUSY = "busy"
    CLOSING = "closing"
    OVER = "over"


class Host:
    """One address: the host behind it and who is connected to it."""

    __slots__ = ("address", "connections", "remote", "seen_at")

    def __init__(self, address: str, remote: RemoteHost) -> None:
        self.address = address
        self.remote = remote
        self.connections: set[Connection] = set()
        self.seen_at = -math.inf
        """The latest instant that the host was told of; its clock does not go back."""

    def at(self, instant: float) -> float:
        """Return the instant, or the latest one that the host knows of."""
        if instant > self.seen_at:
            self.seen_at = instant
        return self.seen_at


class Connection:
    """One connection of ours."""

    __slots__ = ("conn", "host", "secured", "security", "session", "source", "state")

    def __init__(
        self, session: SessionId, host: Host, source: str, security: Security | None = None
    ) -> None:
        self.session = session
        self.source = source
        self.host = host
        self.state = State.CONNECTING
        self.conn: Conn | None = None
        """None until the host let us in."""
        self.security = security
        """What comes of TLS after the first EHLO; None for nothing."""
        self.secured = False
        """The handshake is over."""


class Outbound:
    """All outbound connections."""

    def __init__(
        self,
        kernel: Kernel,
        loop: EventLoop,
        costs: Costs,
        limits: MtaLimits,
        *,
        hosts: Mapping[str, RemoteHost],
        tell: Callable[[Stimulus], None],
        security: Callable[[str, str], Security] | None = None,
    ) -> None:
        """Get ready, and watch for hosts that go away.

        Args:
            kernel: the clock.
            loop: our CPU.
            costs: what a connection and a transaction cost.
            limits: how patient we are.
            hosts: every address that can be connected to.
            tell: takes what happened.
            security: says what TLS a connection for a domain to an address has; None if none has any.
        """
        self._kernel = kernel
        self._loop = loop
        self._costs = costs
        self._limits = limits
        self.limits_changed()
        self._tell = tell
        self._security = security
        self.handshakes = 0
        self._answered: Callable[[_Answer], None] = partial(loop.do, self._finish)
        self._statuses: dict[Reply, tuple[Outcome, str]] = {}
        self.hosts = {address: Host(address, remote) for address, remote in hosts.items()}
        self.connections: dict[SessionId, Connection] = {}
        self.opened = 0
        self.failed = 0
        self.transactions = 0
        for host in self.hosts.values():
            self._watch(host)

    def limits_changed(self) -> None:
        """Take changed limits over."""
        self._patience_s = self._limits.session_timeout_s
        self._transaction_s = self._patience_s * TRANSACTION_PATIENCE

    # Connecting

    def open(self, instruction: OpenConnection) -> None:
        """Connect, read the greeting, say EHLO."""
        self.opened += 1
        self._loop.done_at += self._costs.connect_s
        host = self.hosts.get(instruction.address)
        if host is None:
            # Nothing listens where the scenario has no host.
            host = Host(instruction.address, _NOBODY)
        security = None
        if self._security is not None:
            security = self._security(instruction.domain, instruction.address)
        connection = Connection(instruction.session, host, instruction.source or PEER, security)
        self.connections[instruction.session] = connection
        self._after(0.0, self._connect, connection)

    def _after(
        self, seconds: float, function: Callable[["Connection"], None], argument: "Connection"
    ) -> None:
        """Call a function so many seconds after the job that runs is done."""
        kernel = self._kernel
        self._kernel.schedule(
            max(self._loop.done_at - kernel.now, 0.0) + seconds, function, argument
        )

    def _connect(self, connection: Connection) -> None:
        host = connection.host
        now = host.at(self._kernel.now)
        remote = host.remote
        if remote is _NOBODY or not remote.listening(now):
            self._loop.do(self._fail, (connection, REFUSED))
            return
        conn, verdict = remote.connect(connection.source, now)
        if verdict.reply is None and verdict.close:
            self._loop.do(self._fail, (connection, RESET))
            return
        connection.conn = conn
        host.connections.add(connection)
        if verdict.reply is None:
            self._kernel.schedule(self._patience_s, self._time_out, connection)
            return
        seconds = verdict.due_at(now, now) - now
        if seconds > self._patience_s:
            self._kernel.schedule(self._patience_s, self._time_out, connection)
        elif verdict.reply.code >= 400:
            self._kernel.schedule(seconds, self._refused, (connection, str(verdict.reply)))
        else:
            self._kernel.schedule(seconds, self._greeted, connection)

    def _greeted(self, connection: Connection) -> None:
        self._say_hello(connection, "EHLO")

    def _say_hello(self, connection: Connection, verb: str) -> None:
        if connection.state is not State.CONNECTING:
            return
        host, conn = connection.host, connection.conn
        assert conn is not None
        if conn.closed:
            return  # The host is gone, and the news (`_changed`) still waits in our event loop.
        now = host.at(self._kernel.now)
        verdict = host.remote.command(conn, verb, "relay", now)
        if verdict.reply is None:
            if verdict.close:
                self._refused((connection, RESET))
            else:
                self._kernel.schedule(self._patience_s, self._time_out, connection)
            return
        seconds = verdict.due_at(now, now) - now
        if seconds > self._patience_s:
            self._kernel.schedule(self._patience_s, self._time_out, connection)
        elif verdict.reply.code >= 400:
            if verb == "EHLO" and verdict.reply.code >= 500 and not verdict.close:
                # RFC 5321 3.2: a host that does not know EHLO is asked again.
                self._kernel.schedule(seconds, self._old_fashioned, connection)
            else:
                self._kernel.schedule(seconds, self._refused, (connection, str(verdict.reply)))
        else:
            if not connection.secured:
                seconds += self._costs.connect_network_s
            self._kernel.schedule(seconds, self._answered_hello, connection)

    def _old_fashioned(self, connection: Connection) -> None:
        self._say_hello(connection, "HELO")

    def _answered_hello(self, connection: Connection) -> None:
        self._loop.do(self._ready, connection)

    def _ready(self, connection: Connection) -> None:
        if connection.state is State.CONNECTING:
            security = connection.security
            if (
                security is not None
                and not connection.secured
                and self._secures(connection, security)
            ):
                return
            connection.state = State.IDLE
            self._tell(ConnectionReady(connection.session))

    def _secures(self, connection: Connection, security: Security) -> bool:
        """Do what comes after the first EHLO; return False if that is mail in clear."""
        loop, costs = self._loop, self._costs
        if security.handshake:
            self.handshakes += 1
            connection.secured = True
            loop.done_at += costs.tls_connect_s
            self._after(costs.tls_network_s, self._shaken_hands, connection)
        elif security.again:
            # `OutboundConnection` does it, the core hears of neither: one more connection.
            host, conn = connection.host, connection.conn
            host.connections.discard(connection)
            if conn is not None and not conn.closed:
                host.remote.disconnect(conn, host.at(self._kernel.now))
            connection.conn = connection.security = None
            loop.done_at += costs.connect_s
            self._after(costs.network_s, self._connect, connection)
        elif security.failure:
            self._fail((connection, security.failure))
        else:
            return False
        return True

    def _shaken_hands(self, connection: Connection) -> None:
        """Begin anew under TLS (RFC 3207 4.2), unless the certificate is not good enough."""
        security = connection.security
        assert security is not None
        if security.failure:
            self._refused((connection, security.failure))
        else:
            self._say_hello(connection, "EHLO")

    def _time_out(self, connection: Connection) -> None:
        self._refused((connection, TIMED_OUT))

    def _refused(self, failure: tuple[Connection, str]) -> None:
        self._loop.do(self._fail, failure)

    def _fail(self, failure: tuple[Connection, str]) -> None:
        """A connection did not become ready."""
        connection, reason = failure
        if connection.state is State.CONNECTING:
            self.failed += 1
            self._forget(connection)
            self._tell(ConnectionFailed(connection.session, reason))

    # Transactions

    def start(
        self,
        session: SessionId,
        evpids: tuple[EvpId, ...],
        sender: str,
        rcpts: Sequence[str],
        size: int,
    ) -> bool:
        """Send one message; return False if the connection is gone, as its end has said or will say.

        Envelopes to one address are one recipient, whose verdict is that of all: see `ClientSession.start`.
        """
        connection = self.connections.get(session)
        if connection is None or connection.state is not State.IDLE:
            return False
        self.transactions += 1
        connection.state = State.BUSY
        costs, loop, kernel = self._costs, self._loop, self._kernel
        loop.done_at += costs.transaction_s + costs.sent_byte_s * size
        sent_at = loop.done_at
        host, conn = connection.host, connection.conn
        assert conn is not None
        places: list[int] | None = None
        if len(rcpts) > 1:
            rcpts, places = _distinct(rcpts)
        if conn.closed:
            # The host is gone, and the news still waits in our event loop.
            verdict = TransactionVerdict(0.0, (None,) * len(evpids), usable=False)
        elif connection.security is not None and connection.security.refused:
            verdict = TransactionVerdict(0.0, (FIRST_TLS,) * len(evpids), usable=True)
        else:
            seen_at = host.seen_at
            if sent_at > seen_at:
                seen_at = host.seen_at = sent_at  # `Host.at`, without the call
            verdict = host.remote.transaction(conn, sender, rcpts, size, seen_at)
            if places is not None:
                results = tuple([verdict.results[place] for place in places])
                verdict = verdict._replace(results=results)
        seconds, patient = verdict.duration_s, True
        if seconds > self._transaction_s:
            # A host that never answers is left at the first reply that does not come; one that
            # answers each command in time but too many of them, at the end of all patience.
            seconds = self._patience_s if seconds == math.inf else self._transaction_s
            patient = False
        # A reset comes from the kernel: no process has to find the time to send it.
        if verdict.usable or None not in verdict.results or not patient:
            seconds += costs.network_s
        kernel.schedule(
            sent_at - kernel.now + seconds, self._answered, (connection, verdict, evpids, patient)
        )
        return True

    def _finish(self, answer: _Answer) -> None:
        connection, verdict, evpids, patient = answer
        self._loop.done_at += self._costs.delivery_s * len(evpids)
        replies = verdict.results
        usable = verdict.usable and patient
        if usable and len(evpids) == 1 and replies[0] is TAKEN:
            connection.state = State.IDLE
            results: tuple[Result, ...] = (_new(Result, (evpids[0], _OK, _TAKEN_STATUS, False)),)
            self._tell(_new(TransactionDone, (connection.session, results, True)))
            return
        reason = RESET if patient else TIMED_OUT
        results = tuple(
            [
                Result(evpid, *self._meaning(reply, reason, patient))
                for evpid, reply in zip(evpids, replies, strict=True)
            ]
        )
        if usable:
            connection.state = State.IDLE
            self._tell(TransactionDone(connection.session, results, True))
            return
        # The core asks for the end of a connection that is over; see `close`.
        connection.state = State.CLOSING
        self._tell(TransactionDone(connection.session, results, False))
        last = next((str(reply) for reply in reversed(replies) if reply is not None), reason)
        self._lose((connection, last if patient else reason))

    def _meaning(self, reply: Reply | None, reason: str, patient: bool) -> tuple[Outcome, str]:
        """Return what a reply means for its envelope; without one it is temporary."""
        if reply is TAKEN and patient:
            return _OK, _TAKEN_STATUS
        if reply is None or (reply.code < 400 and not patient):
            return _TEMPFAIL, reason
        meaning = self._statuses.get(reply)
        if meaning is None:
            meaning = self._statuses[reply] = (reply.outcome, str(reply))
        return meaning

    # The end

    def close(self, session: SessionId) -> None:
        """Say QUIT and close. Does nothing if the connection is on its way out already."""
        connection = self.connections.get(session)
        if connection is None or connection.state is State.CLOSING:
            return
        assert connection.state is State.IDLE, connection.state
        connection.state = State.CLOSING
        host, conn = connection.host, connection.conn
        assert conn is not None
        at = host.at(self._loop.done_at)
        seconds = QUIT_PATIENCE_S
        if not conn.closed:
            verdict = host.remote.command(conn, "QUIT", "", at)
            if verdict.reply is not None:
                seconds = min(verdict.due_at(at, at) - at, seconds)
            elif verdict.close:
                seconds = 0.0
        self._after(seconds + self._costs.network_s, self._quit, connection)

    def _quit(self, connection: Connection) -> None:
        self._loop.do(self._lose, (connection, "quit"))

    def _lose(self, end: tuple[Connection, str]) -> None:
        """A connection that had been ready is gone."""
        connection, reason = end
        if connection.state is not State.OVER:
            self._forget(connection)
            self._tell(ConnectionClosed(connection.session, reason))

    def _forget(self, connection: Connection) -> None:
        connection.state = State.OVER
        del self.connections[connection.session]
        host, conn = connection.host, connection.conn
        host.connections.discard(connection)
        if conn is not None and not conn.closed:
            host.remote.disconnect(conn, host.at(self._kernel.now))

    # The end of the process

    def taken(
        self, function: Callable[[Any], None], argument: Any, early_s: float
    ) -> Sequence[EvpId]:
        """Return the envelopes that a host has taken, if a call would have told us so.

        Args:
            function: what would have been called, by the clock or by the loop.
            argument: with what.
            early_s: how long before, seconds; what left the host by then has arrived, whoever reads it.
        """
        if function is not self._answered and function != self._finish:
            return ()
        _, verdict, evpids, patient = argument
        if not patient or early_s > self._costs.network_s / 2:
            return ()
        return [
            evpid
            for evpid, reply in zip(evpids, verdict.results, strict=True)
            if reply is not None and reply.code < 400
        ]

    def lose(self) -> None:
        """The process is gone: its kernel resets every connection, and hosts notice.

        Calls that the clock still has are the caller's to forget; hosts are watched from now on.
        """
        for session in sorted(self.connections):
            connection = self.connections[session]
            connection.state = State.OVER
            host, conn = connection.host, connection.conn
            host.connections.discard(connection)
            if conn is not None and not conn.closed:
                host.remote.disconnect(conn, host.at(self._kernel.now))
        self.connections.clear()
        for host in self.hosts.values():
            self._watch(host)

    # Hosts that go away

    def _watch(self, host: Host) -> None:
        now = self._kernel.now
        change = host.remote.next_change(now)
        if change is not None:
            self._kernel.schedule(max(change - now, 0.0), self._changed, host)

    def _changed(self, host: Host) -> None:
        """A host went away or came back. Who goes away resets what is open, as a dying process does."""
        now = host.at(self._kernel.now)
        if not host.remote.listening(now):
            # In the order of their ids: a set has none that a seed could reproduce.
            for connection in sorted(host.connections, key=_by_session):
                conn = connection.conn
                assert conn is not None
                if connection.state is State.BUSY:
                    continue  # its transaction knows: `RemoteHost.transaction`
                host.remote.disconnect(conn, now)
                if connection.state is State.CONNECTING:
                    self._loop.do(self._fail, (connection, RESET))
                else:
                    self._loop.do(self._reset, connection)
        self._watch(host)

    def _reset(self, connection: Connection) -> None:
        if connection.state is State.BUSY:
            return  # It was given a transaction meanwhile, and that fails.
        self._lose((connection, RESET))


def _distinct(rcpts: Sequence[str]) -> tuple[Sequence[str], list[int] | None]:
    """Return each recipient once, and the place there of each that was given; None if all differ."""
    first: dict[str, str] = {}
    keys = [mailbox_key(rcpt) for rcpt in rcpts]
    for key, rcpt in zip(keys, rcpts, strict=True):
        first.setdefault(key, rcpt)
    if len(first) == len(rcpts):
        return rcpts, None
    place_of = {key: place for place, key in enumerate(first)}
    return list(first.values()), [place_of[key] for key in keys]


def _by_session(connection: Connection) -> SessionId:
    return connection.session


_NOBODY: Final = RemoteHost(())
