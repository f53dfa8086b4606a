"""The name server of the scripted Internet: UDP and TCP on loopback.

dnspython reads and writes the wire format; `zone.py` knows the names; the behaviours of a destination
(kind ``dns``) decide how late and how wrong an answer is. Bounded: queries that wait, connections,
bytes of a query.
"""

import asyncio
import contextlib
import errno
import socket
import struct
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self, cast

import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype

from mta.core.settings import ConfigError
from sim.behaviours.dns import TRUTH, DnsAnswer, DnsVerdict
from sim.remote import NameServer
from testbed.world.clock import WorldClock
from testbed.world.zone import Zone, bend, key_of, look_up, rrset, soa

QUERIES_MAX: Final = 10_000
"""Answers that wait for their delay; more queries are dropped, as a busy server does."""

CONNECTIONS_MAX: Final = 200
"""Open TCP connections; more are closed at once."""

IDLE_S: Final = 10.0
"""A TCP connection that says nothing for so long is closed (RFC 7766 6.2.3)."""

UDP_MAX: Final = 512
"""Bytes of a UDP answer for a client without EDNS (RFC 1035 4.2.1)."""

TCP_MAX: Final = 65_535
"""Bytes of an answer over TCP (RFC 1035 4.2.2)."""

_UDP_EDNS_MAX: Final = 4096
_HEADER: Final = 12
_QUERY_MAX: Final = 4096


class Answered(NamedTuple):
    """What comes back for one query."""

    delay_s: float
    wire: bytes
    forged: bytes = b""
    """What seems to come from the server just before; empty for nothing."""


class DnsServer:
    """Answers queries. An asynchronous context: serves inside it."""

    def __init__(
        self,
        zone: Zone,
        clock: WorldClock,
        *,
        port: int = 0,
        address: str = "127.0.0.1",
        destinations: Mapping[str, int] | None = None,
        servers: Sequence[NameServer] = (),
        signed: Container[int] = (),
    ) -> None:
        """Set up; `__aenter__` opens.

        Args:
            zone: All names.
            clock: Scenario time.
            port: For UDP and TCP; 0 chooses one.
            address: On loopback.
            destinations: Index into ``servers`` of each name that belongs to one.
            servers: What decides about their answers.
            signed: Destinations whose answers are said to be validated (AD), to those who ask.
        """
        self.zone = zone
        self.port = port
        self.address = address
        self.queries: Counter[str] = Counter()
        """Queries by type and answer: "MX NOERROR" -> how many."""
        self.connections: set[_TcpSession] = set()
        self._clock = clock
        self._destinations = destinations or {}
        self._servers = servers
        self._signed = signed
        self._delayed: set[asyncio.TimerHandle] = set()
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop

    async def __aenter__(self) -> Self:
        """Bind and serve.

        Raises:
            ConfigError: the port is taken.
        """
        self._loop = asyncio.get_running_loop()
        wanted = self.port
        for attempt in range(1 if wanted else 50):
            try:
                await self._open(wanted)
            except OSError as error:
                self._close()
                # A port that is free for TCP may be taken for UDP: choose another.
                if wanted or attempt == 49 or error.errno != errno.EADDRINUSE:
                    taken = error.errno == errno.EADDRINUSE
                    where = f"{self.address}:{wanted or self.port}"
                    problem = f"{where} is taken" if taken else f"{where}: {error.strerror}"
                    raise ConfigError("--dns-port", value=wanted, problem=problem) from None
            except BaseException:
                self._close()
                raise
            else:
                return self
        raise AssertionError("the last try raises")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop; what waits is not answered. Idempotent."""
        self._close()
        # Transports close their sockets in the next turn.
        await asyncio.sleep(0)

    async def _open(self, port: int) -> None:
        # The port of the TCP socket is chosen first, and asked of UDP then.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            sock.bind((self.address, port))
            self.port = sock.getsockname()[1]
            self._tcp = await self._loop.create_server(lambda: _TcpSession(self), sock=sock)
        except BaseException:
            sock.close()
            raise
        transport, _ = await self._loop.create_datagram_endpoint(
            lambda: _Udp(self), local_addr=(self.address, self.port)
        )
        self._udp = transport

    def _close(self) -> None:
        if self._tcp is not None:
            self._tcp.close()
            self._tcp = None
        if self._udp is not None:
            self._udp.close()
            self._udp = None
        for timer in self._delayed:
            timer.cancel()
        self._delayed.clear()
        for session in tuple(self.connections):
            session.abort()

    @property
    def servers(self) -> Sequence[NameServer]:
        """What decides about answers, by destination."""
        return self._servers

    def stats(self) -> dict[str, object]:
        """Return what was counted so far."""
        return {"queries": dict(self.queries), "waiting": len(self._delayed)}

    def later(self, answered: Answered, session: "_Udp | _TcpSession", to: object) -> None:
        """Send an answer when its delay is over, and what is forged before it."""
        if answered.delay_s <= 0:
            session.send(answered.forged, to)
            session.send(answered.wire, to)
            return
        if len(self._delayed) >= QUERIES_MAX:
            self.queries["dropped"] += 1
            return

        def send() -> None:
            self._delayed.discard(timer)
            session.send(answered.forged, to)
            session.send(answered.wire, to)

        timer = self._loop.call_later(answered.delay_s, send)
        self._delayed.add(timer)

    def answer(self, wire: bytes, size_max: int) -> Answered | None:
        """Return what comes back, or None for nothing.

        Args:
            wire: The query as it came; may be anything.
            size_max: Bytes that the transport takes; a UDP client's EDNS may change it.
        """
        if len(wire) < _HEADER or wire[2] & 0x80:
            # Too short to answer, or an answer: answering answers makes loops.
            return None
        try:
            query = dns.message.from_wire(wire)
        except (dns.exception.DNSException, ValueError, struct.error):
            self.queries["FORMERR"] += 1
            flags = bytes((0x80 | wire[2] & 0x79, dns.rcode.FORMERR))
            return Answered(0.0, wire[:2] + flags + bytes(8))
        tcp = size_max == TCP_MAX
        if not tcp and query.edns >= 0:
            size_max = min(max(query.payload, UDP_MAX), _UDP_EDNS_MAX)
        response = dns.message.make_response(query, recursion_available=True)
        response.flags |= dns.flags.AA
        verdict = TRUTH
        if query.opcode() != dns.opcode.QUERY:
            response.set_rcode(dns.rcode.NOTIMP)
            self.queries["NOTIMP"] += 1
        elif len(query.question) != 1:
            response.set_rcode(dns.rcode.FORMERR)
            self.queries["FORMERR"] += 1
        else:
            found = self._fill(query, response)
            if found is None:
                return None
            verdict = found
        if verdict.answer is DnsAnswer.TRUNCATED and not tcp:
            return Answered(verdict.delay_s, _truncated(response))
        forged = b""
        if verdict.answer is DnsAnswer.WRONG_ID and not tcp:
            lie = dns.message.make_response(query, recursion_available=True)
            lie.id ^= 1
            lie.set_rcode(dns.rcode.NXDOMAIN)
            forged = lie.to_wire()
        if verdict.answer is DnsAnswer.WRONG_QUESTION and not tcp:
            other = dns.message.make_query("somebody.else.", query.question[0].rdtype, id=query.id)
            lie = dns.message.make_response(other, recursion_available=True)
            lie.set_rcode(dns.rcode.NXDOMAIN)
            forged = lie.to_wire()
        return Answered(verdict.delay_s, _to_wire(response, size_max), forged)

    def _fill(self, query: dns.message.Message, response: dns.message.Message) -> DnsVerdict | None:
        """Put an answer into a response; return what was decided, or None if nothing comes back."""
        question = query.question[0]
        name, kind = question.name, question.rdtype
        strange = dns.rdatatype.is_metatype(kind) or not 0 < kind < 256
        if question.rdclass != dns.rdataclass.IN or strange:
            # ANY, AXFR and the like (RFC 8482); a type of our own making would fill the counter.
            response.set_rcode(dns.rcode.REFUSED)
            self.queries["REFUSED"] += 1
            return TRUTH
        destination = self._destinations.get(key_of(name))
        verdict = TRUTH
        if destination is not None and self._servers:
            verdict = self._servers[destination].decide(self._clock.now(), key_of(name))
        if destination in self._signed and query.flags & dns.flags.AD:
            response.flags |= dns.flags.AD
        label = dns.rdatatype.to_text(kind)
        if verdict.answer is DnsAnswer.TIMEOUT:
            self.queries[f"{label} timeout"] += 1
            return None
        found = look_up(self.zone, name, kind, verdict.ttl_s)
        found = bend(found, name, kind, verdict)
        response.set_rcode(found.rcode)
        response.answer = found.answer
        negative = found.rcode == dns.rcode.NXDOMAIN or (
            found.rcode == dns.rcode.NOERROR and not found.answer
        )
        if verdict.answer is DnsAnswer.LAME:
            response.flags &= ~(dns.flags.AA | dns.flags.RA)
            root = rrset(dns.name.root, dns.rdatatype.NS, verdict.ttl_s, ["ns.elsewhere.test."])
            response.authority = [root]
        elif negative:
            response.authority = [soa()]
        self.queries[f"{label} {dns.rcode.to_text(found.rcode)}"] += 1
        return verdict


def _truncated(response: dns.message.Message) -> bytes:
    """Return a response with nothing but the word that there is more (RFC 2181 9)."""
    response.flags |= dns.flags.TC
    response.answer, response.authority, response.additional = [], [], []
    return response.to_wire()


def _to_wire(response: dns.message.Message, size_max: int) -> bytes:
    try:
        return response.to_wire(max_size=size_max)
    except dns.exception.TooBig:
        return _truncated(response)


class _Udp(asyncio.DatagramProtocol):
    """The UDP side."""

    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str | object, int]) -> None:
        answered = self._server.answer(data, UDP_MAX)
        if answered is not None:
            self._server.later(answered, self, addr)

    def send(self, wire: bytes, to: object) -> None:
        """Send an answer, if there is one and the socket is still there."""
        if wire and self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(wire, cast("tuple[str, int]", to))


class _TcpSession(asyncio.Protocol):
    """One TCP connection: queries with their length in front (RFC 1035 4.2.2)."""

    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._server.connections.add(self)
        if len(self._server.connections) > CONNECTIONS_MAX:
            self._transport.abort()
            return
        self._rest()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._rest()
        buffer = self._buffer + data
        at = 0
        while len(buffer) - at >= 2:
            size = int.from_bytes(buffer[at : at + 2], "big")
            if size > _QUERY_MAX:
                # A question has no need of this; do not wait for 64 KiB of it.
                self._transport.abort()
                return
            if len(buffer) - at - 2 < size:
                break
            answered = self._server.answer(buffer[at + 2 : at + 2 + size], TCP_MAX)
            if answered is not None:
                self._server.later(answered, self, None)
            at += 2 + size
        self._buffer = buffer[at:]

    def pause_writing(self) -> None:
        """Give up on a client that asks and does not listen."""
        self.abort()

    def send(self, wire: bytes, to: object) -> None:  # the same call as for UDP
        """Send an answer, if there is one and the connection is still there."""
        if wire and self._transport is not None and not self._transport.is_closing():
            self._transport.write(len(wire).to_bytes(2, "big") + wire)

    def abort(self) -> None:
        """Break the connection. Idempotent."""
        if self._transport is not None:
            with contextlib.suppress(OSError):
                self._transport.abort()

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(IDLE_S, self.abort)
