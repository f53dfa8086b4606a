"""Scripted mail exchangers on loopback addresses: sockets around `sim.remote.RemoteHost`.

One `Sink` serves many addresses on one port from one event loop. What each host answers, when, and
whether it listens at all is its behaviours' decision; the sink only speaks SMTP (RFC 5321, 2920, 1870,
6152, 2034, 6531). While a host refuses, its socket is really closed and its connections are reset.

Order of shutting down: listeners close, connections are reset, records are flushed. Idempotent.
"""

import asyncio
import contextlib
import errno
import itertools
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from mta.core.settings import ConfigError
from sim.remote import SIZE_MAX, RemoteHost
from testbed.world.clock import WorldClock
from testbed.world.records import Records, Tally
from testbed.world.session import SinkSession
from testbed.world.tls import Authority
from testbed.world.tlssession import TlsSinkSession

BACKLOG: Final = 1024
"""Connections that the kernel keeps for us; short backlogs lose SYNs and make seconds of nothing."""

CONNECTIONS_MAX: Final = 10_000
"""Open connections of one sink; more get 421."""

BYTES_MAX: Final = 256 * 1024 * 1024
"""Bytes of unfinished messages in memory; above it, messages get 452 4.3.1."""

IDLE_S: Final = 300.0
"""A connection that says nothing for so long is closed (RFC 5321 4.5.3.2.7)."""

_SWEEP_S: Final = 10.0
_REOPEN_TRIES: Final = 100
_WAIT_MAX_S: Final = 3600.0
_STOP_S: Final = 2.0


def reserve(
    addresses: Mapping[str, object] | list[str], port: int
) -> tuple[int, list[socket.socket]]:
    """Bind one port on every address, without listening; return the port and the sockets.

    The sockets keep the port for the world while a host does not listen: nobody else gets it, and a
    connection to it is refused. Port 0 chooses a port that is free on all addresses.

    Raises:
        ConfigError: the port is taken, or an address is not on loopback.
    """
    names = list(addresses)
    for name in names:
        if not name.startswith("127."):
            raise ConfigError("world", "address", name, "must be on loopback")
    tries = 1 if port else 50
    for attempt in range(tries):
        guards: list[socket.socket] = []
        chosen = port
        try:
            for address in names:
                guard = _bound(address, chosen)
                guards.append(guard)
                chosen = guard.getsockname()[1]
                # Binding next to another non-listening socket works; whether somebody listens does
                # not: that is EADDRINUSE here already.
        except OSError as error:
            for guard in guards:
                guard.close()
            if error.errno != errno.EADDRINUSE or attempt == tries - 1:
                where = f"{names[len(guards)]}:{chosen}"
                taken = error.errno == errno.EADDRINUSE
                problem = f"{where} is taken" if taken else f"{where}: {error.strerror}"
                raise ConfigError("--smtp-port", value=port, problem=problem) from None
        else:
            return chosen, guards
    raise AssertionError("the last try raises")


def _ehlo(name: str, *more: str) -> bytes:
    lines = (
        name, "PIPELINING", f"SIZE {SIZE_MAX}", "8BITMIME", "ENHANCEDSTATUSCODES", *more, "SMTPUTF8"
    )  # fmt: skip
    heads = ["250-"] * (len(lines) - 1) + ["250 "]
    return "".join(f"{h}{line}\r\n" for h, line in zip(heads, lines, strict=True)).encode("ascii")


def _bound(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock


class Listener:
    """One address: opens and closes its socket as its host says."""

    def __init__(
        self, sink: "Sink", address: str, name: str, host: RemoteHost, tls: str = "none"
    ) -> None:
        self.sink = sink
        self.tls = tls
        """How it does TLS; see `testbed.world.tlssession`."""
        self._tls_context: ssl.SSLContext | None = None
        self._session = SinkSession if tls == "none" else TlsSinkSession
        self.address = address
        self.name = name
        """In greetings."""
        self.host = host
        self.sessions: set[SinkSession] = set()
        self.ehlo = _ehlo(name)
        self.ehlo_with_tls = _ehlo(name, "STARTTLS")
        self._server: asyncio.Server | None = None
        self._changed = asyncio.Event()

    def tls_context(self) -> ssl.SSLContext:
        """Return what the host needs to speak TLS; made when it is first wanted."""
        if self._tls_context is None:
            authority = self.sink.authority
            assert authority is not None
            self._tls_context = authority.context(self.name, self.address, self.tls)
        return self._tls_context

    def set_tls(self, mode: str) -> None:
        """Do TLS like this with those who come from now on."""
        if mode != self.tls:
            self.tls = mode
            self._tls_context = None
            self._session = SinkSession if mode == "none" else TlsSinkSession

    def clock_changed(self) -> None:
        """Look again when the host goes away: the start was set."""
        self._changed.set()

    async def follow(self) -> None:
        """Open and close as the host says, until cancelled."""
        try:
            while True:
                self._changed.clear()
                now = self.sink.clock.now()
                await self.match(now)
                change_at = self.host.next_change(now)
                wait_s = _WAIT_MAX_S
                if change_at is not None:
                    wait_s = min(max(change_at - self.sink.clock.now(), 0.0005), _WAIT_MAX_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._changed.wait()
        finally:
            self.close()

    async def match(self, now: float) -> None:
        """Listen, or do not, as the host does at an instant.

        Raises:
            ConfigError: the port is taken.
        """
        if self.host.listening(now):
            if self._server is None:
                await self._open()
        elif self._server is not None:
            self.close()

    def close(self) -> None:
        """Stop listening and reset what is open. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for session in tuple(self.sessions):
            session.reset()

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        for attempt in range(_REOPEN_TRIES):
            try:
                sock = _bound(self.address, self.sink.port)
                try:
                    self._server = await loop.create_server(
                        lambda: self._session(self), sock=sock, backlog=BACKLOG
                    )
                except BaseException:
                    sock.close()
                    raise
            except OSError as error:
                # The loop closes a listener in its next turn, so that the first try may be too soon.
                if error.errno != errno.EADDRINUSE or not self.sink.serving:
                    raise self._taken(error) from None
                if attempt == _REOPEN_TRIES - 1:
                    raise self._taken(error) from None
                await asyncio.sleep(0.02)
            else:
                return

    def _taken(self, error: OSError) -> ConfigError:
        where = f"{self.address}:{self.sink.port}"
        taken = error.errno == errno.EADDRINUSE
        problem = f"{where} is taken" if taken else f"{where}: {error.strerror}"
        return ConfigError("--smtp-port", value=self.sink.port, problem=problem)


class Sink:
    """All hosts of one process. An asynchronous context: serves inside it."""

    def __init__(
        self,
        hosts: Mapping[str, RemoteHost],
        clock: WorldClock,
        *,
        port: int = 0,
        names: Mapping[str, str] | None = None,
        record: Path | None = None,
        tls: Mapping[str, str] | None = None,
        authority: Authority | None = None,
        label: str = "0",
        idle_s: float = IDLE_S,
        connections_max: int = CONNECTIONS_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        """Set up; `__aenter__` opens.

        Args:
            hosts: By address.
            clock: Scenario time.
            port: The same for all addresses; 0 chooses one.
            names: Of hosts by address, for greetings.
            record: File to append records to; None for none.
            tls: How hosts do TLS, by name; the others do not.
            authority: Of their certificates.
            label: Tells the session ids of several processes apart.
            idle_s: See `IDLE_S`.
            connections_max: See `CONNECTIONS_MAX`.
            bytes_max: See `BYTES_MAX`.
        """
        self.clock = clock
        self.port = port
        self.authority = authority
        modes = tls or {}
        self.tally = Tally()
        self.connections_max = connections_max
        self.bytes_max = bytes_max
        self.bytes_held = 0
        """Bytes of unfinished messages."""
        self.serving = False
        self.records: Records
        self.loop: asyncio.AbstractEventLoop
        self._record = record
        self._label = label
        self._numbers = itertools.count(1)
        self._idle_s = idle_s
        self._guards: list[socket.socket] = []
        self._tasks = asyncio.TaskGroup()
        self._stopping: list[asyncio.Task[None]] = []
        self._all_ended = asyncio.Event()
        self.listeners = []
        for address, host in hosts.items():
            name = (names or {}).get(address, "testbed")
            self.listeners.append(Listener(self, address, name, host, modes.get(name, "none")))

    async def __aenter__(self) -> Self:
        """Bind, open the records, listen.

        Raises:
            ConfigError: the port is taken or the record file can't be opened.
        """
        self.loop = asyncio.get_running_loop()
        self.port, self._guards = reserve([each.address for each in self.listeners], self.port)
        try:
            try:
                self.records = Records(self._record)
            except OSError as error:
                raise ConfigError(
                    "--record-dir", value=str(self._record), problem=str(error.strerror)
                ) from None
            for listener in self.listeners:
                await listener.match(self.clock.now())
            await self._tasks.__aenter__()
        except BaseException:
            self._close()
            raise
        self.serving = True
        for listener in self.listeners:
            task = self._tasks.create_task(listener.follow(), name=f"listen {listener.address}")
            self._stopping.append(task)
        self._stopping.append(self._tasks.create_task(self._sweep(), name="sweep"))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Shut down; see the module for the order."""
        self.serving = False
        for task in self._stopping:
            task.cancel()
        # An error of the user's own is on its way as it is; the group would wrap it. It has to know
        # of a cancellation, which may be its own: a listener has failed.
        if not isinstance(error, asyncio.CancelledError):
            kind = error = trace = None
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            self._all_ended.clear()
            if self.tally.open:
                for listener in self.listeners:
                    listener.close()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_STOP_S):
                        await self._all_ended.wait()
            self._close()
            # Transports close their sockets in the turn after the one that ended them.
            await asyncio.sleep(0)

    def set_start(self, epoch: float) -> None:
        """Learn when the load starts.

        Raises:
            ValueError: see `WorldClock.set_start`.
        """
        self.clock.set_start(epoch)
        for listener in self.listeners:
            listener.clock_changed()

    def stats(self) -> dict[str, object]:
        """Return what was counted so far; flushes the records, so that the file has as much."""
        self.records.flush()
        return self.tally.snapshot() | {
            "records": self.records.written_count,
            "records_lost": self.records.lost_count,
        }

    def next_session_id(self) -> str:
        """Return a new session id."""
        return f"{self._label}-{next(self._numbers)}"

    def session_ended(self) -> None:
        """Take note that a connection is gone."""
        if not self.tally.open:
            self._all_ended.set()

    def _close(self) -> None:
        for listener in self.listeners:
            listener.close()
        for guard in self._guards:
            guard.close()
        self._guards.clear()
        if hasattr(self, "records"):
            self.records.close()

    async def _sweep(self) -> None:
        """Close connections that are idle for too long."""
        while True:
            await asyncio.sleep(min(_SWEEP_S, self._idle_s / 4))
            now, clock_now = self.loop.time(), self.clock.now()
            for listener in self.listeners:
                for session in tuple(listener.sessions):
                    if now - session.active_at >= self._idle_s:
                        session.give_up(clock_now)
