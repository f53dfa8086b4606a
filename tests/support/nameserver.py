"""A name server that answers from a zone, or as a test says, and a resolver that asks it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from mta.config import DnsConfig
from mta.core.routing import MxHost, ResolutionStatus
from mta.effects import Effects
from mta.resolver import Resolver

OK = ResolutionStatus.OK
RETRY = ResolutionStatus.RETRY
NO_DOMAIN = ResolutionStatus.NO_DOMAIN
NO_MX = ResolutionStatus.NO_MX
NULL_MX = ResolutionStatus.NULL_MX


Answerer = Callable[[dns.message.Message, bool], bytes | None]


class NameServer(asyncio.DatagramProtocol):
    """A name server on UDP and TCP, at one port, that answers from a zone or as a function says."""

    def __init__(self, zone: dict[tuple[str, str], list[str] | str], ttl_s: int) -> None:
        self.zone = zone
        self.ttl_s = ttl_s
        self.asked: list[str] = []
        """``name type`` of each question, with ``/tcp`` if it came that way."""
        self.override: Answerer | None = None
        self.open_max = 0
        self.address = ""
        self.transport: asyncio.DatagramTransport | None = None
        self.held: list[tuple[bytes, Any]] = []
        self.hold = False
        """Collect the answers until `release`."""
        self.close_tcp = False
        self.unsigned: set[str] | None = None
        """Names without DNSSEC; None if none has it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        answer = self.answer(data, tcp=False)
        if answer is not None:
            assert self.transport is not None
            if self.hold:
                self.held.append((answer, addr))
                self.open_max = max(self.open_max, len(self.held))
            else:
                self.transport.sendto(answer, addr)

    def release(self, count: int = 1_000_000) -> None:
        """Send answers that were held."""
        assert self.transport is not None
        for answer, addr in self.held[:count]:
            self.transport.sendto(answer, addr)
        del self.held[:count]

    def answer(self, data: bytes, *, tcp: bool) -> bytes | None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        rdtype = dns.rdatatype.to_text(question.rdtype)
        self.asked.append(f"{name} {rdtype}{'/tcp' if tcp else ''}")
        if self.override is not None:
            return self.override(query, tcp)
        return self.from_zone(query, name, rdtype).to_wire(max_size=65535)

    def from_zone(self, query: dns.message.Message, name: str, rdtype: str) -> dns.message.Message:
        response = dns.message.make_response(query)
        if self.unsigned is not None and name not in self.unsigned and query.flags & dns.flags.AD:
            response.flags |= dns.flags.AD
        for _ in range(20):
            records = self.zone.get((name, rdtype))
            alias = self.zone.get((name, "CNAME"))
            if isinstance(records, str):
                response.set_rcode(dns.rcode.from_text(records))
                break
            if records is None and isinstance(alias, list):
                response.answer.append(self.rrset(name, "CNAME", alias))
                name = alias[0].rstrip(".")
                continue
            if records is not None:
                if records:
                    response.answer.append(self.rrset(name, rdtype, records))
            elif not any(name == known for known, _ in self.zone):
                response.set_rcode(dns.rcode.NXDOMAIN)
            break
        return response

    def rrset(self, name: str, rdtype: str, records: list[str]) -> dns.rrset.RRset:
        return dns.rrset.from_text_list(f"{name}.", self.ttl_s, "IN", rdtype, records)

    async def serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.close_tcp:
                return
            size = int.from_bytes(await reader.readexactly(2), "big")
            answer = self.answer(await reader.readexactly(size), tcp=True)
            if answer is not None:
                writer.write(len(answer).to_bytes(2, "big") + answer)
            await reader.read()
        except (EOFError, ConnectionError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


class ManualClock(Effects):
    """Effects whose clock stands still until it is told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 1000.0
        self.monotonic = lambda: self.time


@dataclass
class Bench:
    """A resolver and its only name server."""

    server: NameServer
    resolver: Resolver
    effects: ManualClock
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)


@contextlib.asynccontextmanager
async def bench(
    zone: dict[tuple[str, str], list[str] | str] | None = None,
    *,
    ttl_s: int = 600,
    max_mx: int = 20,
    max_addresses: int = 20,
    **settings: Any,
) -> AsyncIterator[Bench]:
    """Start a name server and a resolver that uses it; at the end everything is closed."""
    loop = asyncio.get_running_loop()
    server = NameServer(zone or {}, ttl_s)
    for _ in range(20):
        tcp = await asyncio.start_server(server.serve_tcp, "127.0.0.1", 0)
        port = tcp.sockets[0].getsockname()[1]
        try:
            transport, _ = await loop.create_datagram_endpoint(
                lambda: server, local_addr=("127.0.0.1", port)
            )
        except OSError:  # somebody else's UDP port
            tcp.close()
            await tcp.wait_closed()
            continue
        break
    else:
        pytest.fail("no port is free for UDP and TCP")
    server.address = f"127.0.0.1:{port}"
    effects = ManualClock()
    config = DnsConfig(**{"nameserver": server.address, **settings})
    resolver = Resolver(config, effects, max_mx=max_mx, max_addresses=max_addresses)
    try:
        yield Bench(server, resolver, effects)
    finally:
        await resolver.close()
        transport.close()
        tcp.close()
        await tcp.wait_closed()
        await asyncio.sleep(0)


ZONE: dict[tuple[str, str], list[str] | str] = {
    ("example.org", "MX"): ["20 mx2.example.org.", "10 mx1.example.org."],
    ("mx1.example.org", "A"): ["127.0.0.2", "127.0.0.1"],
    ("mx2.example.org", "A"): ["127.0.0.3"],
    ("mx2.example.org", "AAAA"): ["::1"],
}
HOSTS = (
    MxHost(10, "mx1.example.org", ("127.0.0.1", "127.0.0.2")),
    MxHost(20, "mx2.example.org", ("127.0.0.3", "::1")),
)
