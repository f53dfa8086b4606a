import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.query
import dns.rcode
import dns.rdatatype
import dns.resolver
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.settings import ConfigError
from sim.remote import NameServer, build_name_servers
from sim.scenario import Destination, Load, Scenario
from testbed.world.clock import WorldClock
from testbed.world.dns import DnsServer
from testbed.world.zone import CNAMES_MAX, destinations_of, look_up, zone_of

ZONE = {
    "a.test": {"MX": ["10 mx0.a.test.", "20 mx1.a.test."]},
    "mx0.a.test": {"A": ["127.0.10.1"], "AAAA": ["::1"]},
    "mx1.a.test": {"A": ["127.0.10.2"]},
    "alias.test": {"CNAME": ["a.test."]},
    "out.test": {"CNAME": ["elsewhere.example."]},
    "loop.test": {"CNAME": ["pool.test."]},
    "pool.test": {"CNAME": ["loop.test."]},
    "many.test": {"MX": [f"{i} mx{i}.many.test." for i in range(200)]},
    "text.test": {"TXT": ['"hello"']},
}
PATIENCE_S = 10.0


@asynccontextmanager
async def a_server(zone: Any = ZONE, clock: WorldClock | None = None, **options: Any):
    async with DnsServer(zone, clock or WorldClock(), **options) as server:
        yield server


async def ask(server: DnsServer, name: str, kind: str, *, tcp: bool = False) -> dns.message.Message:
    query = dns.message.make_query(name, kind)
    query.flags |= dns.flags.RD
    send = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
    return await send(query, "127.0.0.1", port=server.port, timeout=PATIENCE_S)


def texts(response: dns.message.Message) -> list[str]:
    """Return the data of the answer; dnspython shuffles records of one name, as servers do."""
    return [
        text
        for rrset in response.answer
        for text in sorted(item.to_text().lower() for item in rrset)
    ]


def lying(*behaviours: dict[str, Any]) -> tuple[dict[str, int], list[NameServer]]:
    scenario = Scenario("x", destinations=[Destination("a", "a.test", behaviours=list(behaviours))])
    return destinations_of(scenario), build_name_servers(scenario)


class TestAnswers:
    @pytest.mark.parametrize("tcp", [False, True])
    @pytest.mark.parametrize(
        ("name", "kind", "rcode", "answer"),
        [
            ("a.test", "MX", "NOERROR", ["10 mx0.a.test.", "20 mx1.a.test."]),
            ("A.TesT", "MX", "NOERROR", ["10 mx0.a.test.", "20 mx1.a.test."]),
            ("mx0.a.test", "A", "NOERROR", ["127.0.10.1"]),
            ("mx0.a.test", "AAAA", "NOERROR", ["::1"]),
            ("mx1.a.test", "AAAA", "NOERROR", []),
            ("a.test", "A", "NOERROR", []),
            ("nobody.test", "MX", "NXDOMAIN", []),
            ("sub.a.test", "MX", "NXDOMAIN", []),
            (".", "MX", "NXDOMAIN", []),
            ("alias.test", "MX", "NOERROR", ["a.test.", "10 mx0.a.test.", "20 mx1.a.test."]),
            ("alias.test", "CNAME", "NOERROR", ["a.test."]),
            ("out.test", "MX", "NOERROR", ["elsewhere.example."]),
            ("text.test", "TXT", "NOERROR", ['"hello"']),
        ],
    )
    async def test_the_zone_is_the_truth(
        self, name: str, kind: str, rcode: str, answer: list[str], tcp: bool
    ):
        """Records, NODATA, NXDOMAIN and aliases; negative answers carry an SOA (RFC 2308)."""
        async with a_server() as server:
            response = await ask(server, name, kind, tcp=tcp)
        assert rcode == dns.rcode.to_text(response.rcode())
        assert answer == texts(response)
        assert response.flags & dns.flags.AA
        assert bool(answer) != bool(response.authority)

    async def test_a_loop_of_aliases_ends(self):
        """After `CNAMES_MAX`; a resolver has its own limit."""
        found = look_up(ZONE, dns.name.from_text("loop.test."), dns.rdatatype.MX, 60)
        assert len(found.answer) == CNAMES_MAX + 1

    async def test_a_long_answer_comes_over_tcp(self):
        """Truncated over UDP at 512 bytes, whole over TCP: 200 mail exchangers."""
        async with a_server() as server:
            small = await ask(server, "many.test", "MX")
            assert small.flags & dns.flags.TC
            assert texts(small) == []
            whole = await ask(server, "many.test", "MX", tcp=True)
            assert len(texts(whole)) == 200

    async def test_edns_allows_longer_answers_over_udp(self):
        """Up to 4,096 bytes, whatever is asked for."""
        async with a_server(
            {"a.test": {"MX": [f"{i} mx{i}.a.test." for i in range(100)]}}
        ) as server:
            query = dns.message.make_query("a.test", "MX", use_edns=0, payload=65_000)
            response = await dns.asyncquery.udp(
                query, "127.0.0.1", port=server.port, timeout=PATIENCE_S
            )
            assert len(texts(response)) == 100

    @pytest.mark.parametrize(
        ("kind", "rdclass", "rcode"),
        [("ANY", "IN", "REFUSED"), ("AXFR", "IN", "REFUSED"), ("MX", "CH", "REFUSED")],
    )
    async def test_strange_questions_are_refused(self, kind: str, rdclass: str, rcode: str):
        """Everything (RFC 8482), whole zones, and other classes."""
        async with a_server() as server:
            query = dns.message.make_query("a.test", kind, rdclass)
            wire = server.answer(query.to_wire(), 512)
            assert wire is not None
            assert dns.rcode.to_text(dns.message.from_wire(wire[1]).rcode()) == rcode

    async def test_other_operations_are_not_implemented(self):
        """NOTIFY, UPDATE and so on."""
        async with a_server() as server:
            query = dns.message.make_query("a.test", "MX")
            query.set_opcode(dns.opcode.NOTIFY)
            wire = server.answer(query.to_wire(), 512)
            assert wire is not None
            assert dns.message.from_wire(wire[1]).rcode() == dns.rcode.NOTIMP

    @given(st.binary(max_size=200))
    def test_any_bytes_are_survived(self, wire: bytes):
        """No answer, or one with the query's id; answers are never answered."""
        server = DnsServer(ZONE, WorldClock())
        answered = server.answer(wire, 512)
        if answered is None:
            assert len(wire) < 12 or wire[2] & 0x80
        else:
            assert answered[1][:2] == wire[:2]
            assert answered[1][2] & 0x80
        assert len(server.queries) <= 1

    @given(st.integers(0, 511), st.integers(1, 255))
    def test_a_bent_query_is_survived(self, at: int, flip: int):
        """One changed byte of a good query: compression loops, wrong counts, odd labels."""
        wire = bytearray(dns.message.make_query("mx0.a.test", "A", use_edns=0).to_wire())
        wire[at % len(wire)] ^= flip
        answered = DnsServer(ZONE, WorldClock()).answer(bytes(wire), 512)
        assert answered is None or len(answered[1]) >= 12


class TestBehaviours:
    @pytest.mark.parametrize(
        ("answer", "mx", "a"),
        [
            ("servfail", ("SERVFAIL", []), ("SERVFAIL", [])),
            ("refused", ("REFUSED", []), ("REFUSED", [])),
            ("nxdomain", ("NXDOMAIN", []), ("NXDOMAIN", [])),
            ("nodata", ("NOERROR", []), ("NOERROR", ["127.0.10.1"])),
            ("null-mx", ("NOERROR", ["0 ."]), ("NOERROR", ["127.0.10.1"])),
            ("ok", ("NOERROR", ["10 mx0.a.test.", "20 mx1.a.test."]), ("NOERROR", ["127.0.10.1"])),
        ],
    )
    async def test_a_destination_can_be_told_wrong(self, answer: str, mx: Any, a: Any):
        """What fails, fails for hosts too; null MX and NODATA are about mail exchangers."""
        destinations, servers = lying({"kind": "dns", "answer": answer})
        clock = WorldClock(0.0)
        async with a_server(clock=clock, destinations=destinations, servers=servers) as server:
            for name, kind, (rcode, expected) in (("a.test", "MX", mx), ("mx0.a.test", "A", a)):
                response = await ask(server, name, kind)
                assert (dns.rcode.to_text(response.rcode()), texts(response)) == (rcode, expected)
            assert texts(await ask(server, "many.test", "MX", tcp=True))

    async def test_a_timeout_is_no_answer(self):
        """And it is counted."""
        destinations, servers = lying({"kind": "dns", "answer": "timeout"})
        async with a_server(
            clock=WorldClock(0.0), destinations=destinations, servers=servers
        ) as server:
            query = dns.message.make_query("a.test", "MX")
            with pytest.raises(dns.exception.Timeout):
                await dns.asyncquery.udp(query, "127.0.0.1", port=server.port, timeout=0.05)
            assert server.queries == {"MX timeout": 1}

    async def test_answers_can_be_late_and_hold_as_long_as_said(self):
        """50 ms later, for 7 s; others are not held up."""
        destinations, servers = lying({"kind": "dns", "delay_s": 0.05, "ttl_s": 7})
        async with a_server(destinations=destinations, servers=servers) as server:
            loop = asyncio.get_running_loop()
            began_at = loop.time()
            late = asyncio.ensure_future(ask(server, "a.test", "MX"))
            await ask(server, "nobody.test", "MX")
            assert not late.done()
            response = await late
            assert loop.time() - began_at >= 0.049
            assert response.answer[0].ttl == 7

    async def test_waiting_answers_are_bounded_and_dropped_at_the_end(
        self, monkeypatch: pytest.MonkeyPatch, fds: Callable[[], dict[int, str]]
    ):
        """Of five queries, three wait and two are dropped."""
        monkeypatch.setattr("testbed.world.dns.QUERIES_MAX", 3)
        destinations, servers = lying({"kind": "dns", "delay_s": 60.0})
        async with a_server(destinations=destinations, servers=servers) as server:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                for _ in range(5):
                    sock.sendto(
                        dns.message.make_query("a.test", "MX").to_wire(), ("127.0.0.1", server.port)
                    )
                async with asyncio.timeout(PATIENCE_S):
                    while server.queries["dropped"] < 2:  # noqa: ASYNC110 - a count of ours
                        await asyncio.sleep(0.001)
            assert server.stats() == {"queries": {"MX NOERROR": 5, "dropped": 2}, "waiting": 3}


class TestTransport:
    async def test_several_queries_share_a_connection_however_cut(self):
        """Two queries, byte by byte, on one connection (RFC 7766 6.2.1)."""
        async with a_server() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            wire = dns.message.make_query("mx0.a.test", "A").to_wire()
            (session,) = await sessions(server)
            for byte in struct.pack("!H", len(wire)) + wire + struct.pack("!H", len(wire)) + wire:
                session.data_received(bytes([byte]))
            for _ in range(2):
                async with asyncio.timeout(PATIENCE_S):
                    (size,) = struct.unpack("!H", await reader.readexactly(2))
                    response = dns.message.from_wire(await reader.readexactly(size))
                assert texts(response) == ["127.0.10.1"]
            writer.close()
            await writer.wait_closed()

    @pytest.mark.parametrize("sent", [b"\xff\xff", b""])
    async def test_a_client_that_promises_too_much_or_says_nothing_is_cut_off(
        self, sent: bytes, monkeypatch: pytest.MonkeyPatch
    ):
        """A length of 65,535 at once; silence after the idle time."""
        monkeypatch.setattr("testbed.world.dns.IDLE_S", 0.05)
        async with a_server() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(sent)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def test_connections_are_bounded(self, monkeypatch: pytest.MonkeyPatch):
        """The second of one is cut off, the first lives."""
        monkeypatch.setattr("testbed.world.dns.CONNECTIONS_MAX", 1)
        async with a_server() as server:
            first = await asyncio.open_connection("127.0.0.1", server.port)
            await sessions(server)
            second = await asyncio.open_connection("127.0.0.1", server.port)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(second[0].read(), PATIENCE_S) == b""
            assert len(server.connections) == 1
            for _, writer in (first, second):
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

    async def test_a_taken_port_is_one_line(self, fds: Callable[[], dict[int, str]]):
        """For UDP as for TCP; nothing stays open."""
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with socket.socket(socket.AF_INET, kind) as other:
                other.bind(("127.0.0.1", 0))
                if kind == socket.SOCK_STREAM:
                    other.listen()
                port = other.getsockname()[1]
                with pytest.raises(ConfigError) as caught:
                    async with a_server(port=port):
                        pass
            assert str(caught.value) == f"--dns-port: {port}: 127.0.0.1:{port} is taken"


async def sessions(server: DnsServer) -> set[Any]:
    async with asyncio.timeout(PATIENCE_S):
        while not server.connections:  # noqa: ASYNC110 - a set of ours
            await asyncio.sleep(0.001)
    return set(server.connections)


class TestZone:
    def test_a_scenario_becomes_mail_exchangers_and_addresses(self):
        """Two destinations, one with three domains and two hosts; domains share their records."""
        scenario = Scenario(
            "z",
            load=Load(sender_domain="sender.test"),
            destinations=[
                Destination("a", "a.test"),
                Destination("b", "b.example", domains=3, hosts=2),
            ],
        )
        zone = zone_of(scenario)
        exchangers = {"MX": ["10 mx0.b.example.", "10 mx1.b.example."]}
        assert zone == {
            "a.test": {"MX": ["10 mx0.a.test."]},
            "mx0.a.test": {"A": ["127.0.10.1"]},
            "d1.b.example": exchangers,
            "d2.b.example": exchangers,
            "d3.b.example": exchangers,
            "mx0.b.example": {"A": ["127.0.11.1"]},
            "mx1.b.example": {"A": ["127.0.11.2"]},
            "sender.test": {"MX": ["10 mx0.a.test."]},
        }
        assert zone["d1.b.example"] is zone["d3.b.example"]
        assert destinations_of(scenario)["d2.b.example"] == 1
        assert destinations_of(scenario)["mx0.a.test"] == 0

    async def test_the_library_that_servers_use_can_use_it(self):
        """dnspython's own resolver follows MX to addresses."""
        async with a_server() as server:
            port = server.port

            def resolve() -> list[str]:
                resolver = dns.resolver.Resolver(configure=False)
                resolver.nameservers, resolver.port = ["127.0.0.1"], port
                resolver.lifetime = PATIENCE_S
                hosts = sorted(
                    (each.preference, each.exchange)
                    for each in resolver.resolve("alias.test", "MX")
                )
                return [str(one) for _, host in hosts for one in resolver.resolve(host, "A")]

            assert await asyncio.to_thread(resolve) == ["127.0.10.1", "127.0.10.2"]


def test_name_servers_draw_as_often_as_asked():
    """SERVFAIL for a fifth of 2,000 queries, within four standard deviations."""
    _, (server,) = lying({"kind": "dns", "answer": "servfail", "probability": 0.2})
    rng = random.Random(1)
    answers = [server.decide(rng.random()).answer.value for _ in range(2000)]
    assert answers.count("servfail") == pytest.approx(400, abs=72)
