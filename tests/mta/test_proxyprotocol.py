"""PROXY headers, versions 1 and 2, and connections until theirs is read."""

import asyncio
import contextlib
import ipaddress
import socket
import struct

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from mta.core.admission import parse_networks
from mta.core.limits import SmtpLimits
from mta.core.metrics import Metrics
from mta.preface import Prefaces
from mta.proxyprotocol import LINE_MAX, SIGNATURE, Announced, HeaderReader, ProxyError
from tests.support.faults import FaultyEffects
from tests.support.inprocess import send, serving
from tests.support.waiting import until


def binary(
    family: int = 0x11,
    addresses: bytes = b"",
    *,
    command: int = 0x21,
    tlvs: bytes = b"",
    length: int | None = None,
) -> bytes:
    body = addresses + tlvs
    size = len(body) if length is None else length
    return SIGNATURE + bytes((command, family)) + struct.pack("!H", size) + body


def inet(source: str, port: int) -> bytes:
    address = ipaddress.ip_address(source)
    return address.packed + b"\1" * len(address.packed) + struct.pack("!HH", port, 25)


def read(raw: bytes, *, size_max: int = 4096, step: int = 0) -> tuple[Announced | None, bytes]:
    """Read as a transport does: never more than wanted. Return what was announced, and the rest."""
    reader = HeaderReader(size_max=size_max)
    at = 0
    while True:
        many = min(reader.wanted, step or reader.wanted)
        piece = raw[at : at + many]
        if not piece:
            raise EOFError
        at += len(piece)
        if reader.feed(piece):
            return reader.announced, raw[at:]


GOOD = {
    "tcp4": (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 25\r\n", Announced("192.0.2.1", 56324)),
    "tcp6": (b"PROXY TCP6 2001:db8::1 ::1 1 25\r\n", Announced("2001:db8::1", 1)),
    "mapped": (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 25\r\n", Announced("192.0.2.1", 1)),
    "unknown": (b"PROXY UNKNOWN\r\n", None),
    "unknown with more": (b"PROXY UNKNOWN ffff:f...f:ffff 65535 65535\r\n", None),
    "v2 inet": (binary(0x11, inet("192.0.2.1", 65535)), Announced("192.0.2.1", 65535)),
    "v2 inet6": (binary(0x21, inet("2001:db8::1", 1)), Announced("2001:db8::1", 1)),
    "v2 mapped": (binary(0x21, inet("::ffff:192.0.2.1", 1)), Announced("192.0.2.1", 1)),
    "v2 with tlvs": (
        binary(0x11, inet("192.0.2.1", 7), tlvs=b"\x20\x00\x05\x01\0\0\0\0" + b"\4\0\1x"),
        Announced("192.0.2.1", 7),
    ),
    "v2 local": (binary(0x00, command=0x20), None),
    "v2 local with addresses": (binary(0x11, inet("192.0.2.1", 7), command=0x20), None),
    "v2 unspec": (binary(0x00, b"whatever"), None),
    "v2 unix": (binary(0x31, b"/x" + b"\0" * 214), None),
}
BAD = {
    "ehlo": b"EHLO client.test\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaaa",
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "lower case": b"proxy TCP4 192.0.2.1 192.0.2.2 1 25\r\n",
    "bare lf": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25\n\n",
    "cr inside": b"PROXY TCP4 192.0.2.1\r192.0.2.2 1 25\r\n",
    "two spaces": b"PROXY TCP4  192.0.2.1 192.0.2.2 1 25\r\n",
    "udp": b"PROXY UDP4 192.0.2.1 192.0.2.2 1 25\r\n",
    "wrong family": b"PROXY TCP4 2001:db8::1 ::1 1 25\r\n",
    "no address": b"PROXY TCP4 192.0.2.256 192.0.2.2 1 25\r\n",
    "a name": b"PROXY TCP4 mx.test 192.0.2.2 1 25\r\n",
    "latin": b"PROXY TCP4 192.0.2.\xb2 192.0.2.2 1 25\r\n",
    "zone": b"PROXY TCP6 fe80::1%eth0\x00 ::1 1 25\r\n",
    "port": b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 25\r\n",
    "leading zero": b"PROXY TCP4 192.0.2.1 192.0.2.2 01 25\r\n",
    "minus": b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 25\r\n",
    "short line": b"PROXY TCP4 192.0.2.1\r\n",
    "long line": b"PROXY UNKNOWN " + b"x" * 100 + b"\r\n",
    "v2 signature": SIGNATURE[:-1] + b"\r\x21\x11\0\0",
    "v2 version": binary(0x11, inet("192.0.2.1", 1), command=0x11),
    "v2 command": binary(0x11, inet("192.0.2.1", 1), command=0x22),
    "v2 family": binary(0x41, inet("192.0.2.1", 1)),
    "v2 transport": binary(0x13, inet("192.0.2.1", 1)),
    "v2 datagram": binary(0x12, inet("192.0.2.1", 1)),
    "v2 short": binary(0x11, inet("192.0.2.1", 1)[:-1]),
    "v2 short inet6": binary(0x21, inet("192.0.2.1", 1)),
    "v2 too long": binary(0x11, inet("192.0.2.1", 1), length=65_535),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("step", [0, 1, 7])
def test_a_header_is_read_and_nothing_behind_it(name, step):
    """In whatever pieces; the next octet may be TLS and stays where it is."""
    raw, announced = GOOD[name]
    assert (announced, b"\x16\x03\x01") == read(raw + b"\x16\x03\x01", step=step)


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("step", [0, 1])
def test_what_is_no_header_is_refused(name, step):
    """As early as it shows."""
    with pytest.raises(ProxyError):
        read(BAD[name], step=step)


def test_the_longest_headers():
    """107 octets of text, ``size_max`` of binary; one more is too much."""
    head = b"PROXY UNKNOWN "
    longest = head + b"x" * (LINE_MAX - len(head) - 2) + b"\r\n"
    assert (None, b"") == read(longest)
    with pytest.raises(ProxyError, match="line too long"):
        read(head + b"x" * (LINE_MAX - len(head) - 1) + b"\r\n")
    raw = binary(0x11, inet("192.0.2.1", 1), tlvs=b"\4\0\xc9" + b"x" * 201)
    assert 232 == len(raw)
    assert (Announced("192.0.2.1", 1), b"") == read(raw, size_max=232)
    with pytest.raises(ProxyError, match="header too long"):
        read(raw, size_max=231)


@given(
    st.binary(max_size=400), st.sampled_from([b"", SIGNATURE, SIGNATURE + b"\x21", b"PROXY TCP4 "])
)
def test_any_octets_are_a_header_or_none(raw, start):
    """Nothing but ProxyError, and never more is wanted than may be the header's."""
    with contextlib.suppress(ProxyError, EOFError):
        announced, _ = read(start + raw)
        if announced is not None:
            ipaddress.ip_address(announced.address)
            assert 0 <= announced.port < 65536


class Echo(asyncio.Protocol):
    """A session: says whom it was told, then what it reads."""

    def __init__(self, announced: Announced | None) -> None:
        self.announced = announced

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport
        said = f"{self.announced.address} {self.announced.port}" if self.announced else "-"
        transport.write(f"<{said}>".encode())  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[attr-defined]


@contextlib.asynccontextmanager
async def listening(*networks: str, **limits):
    """A listener on loopback that trusts some networks."""
    lines: list[str] = []
    prefaces = Prefaces(
        lambda wire, announced: Echo(announced),
        parse_networks(networks),
        SmtpLimits(**limits),
        metrics=Metrics(),
        log=lines.append,
    )
    loop = asyncio.get_running_loop()
    server = await loop.create_server(prefaces.accept, "127.0.0.1", 0)
    prefaces.lines = lines  # type: ignore[attr-defined]
    prefaces.port = server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    try:
        yield prefaces
    finally:
        server.close()
        prefaces.close()
        await asyncio.sleep(0)


async def talk(prefaces, *pieces: bytes) -> bytes:
    """Connect, send the pieces and the end, return what comes until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", prefaces.port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        with contextlib.suppress(OSError):
            if pieces:
                writer.write_eof()
            return await asyncio.wait_for(reader.read(), 10)
        return b"reset"
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.fixture(scope="module")
def warm_uvloop():
    """The first uvloop of a process opens a pipe for good: before anybody counts descriptors."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.get_loop()


@pytest.mark.usefixtures("warm_uvloop", "fds")
@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_on_sockets(factory):
    """Trusted peers are asked for a header and no others; it is the same on both loops."""

    async def main() -> None:
        header, _ = GOOD["v2 inet6"]
        async with listening("127.0.0.0/8") as trusting:
            assert await talk(trusting, header + b"hello") == b"<2001:db8::1 1>hello"
            letters = [bytes((octet,)) for octet in header]
            assert await talk(trusting, *letters, b"hel", b"lo") == b"<2001:db8::1 1>hello"
            assert await talk(trusting, GOOD["tcp4"][0], b"hello") == b"<192.0.2.1 56324>hello"
            assert await talk(trusting, GOOD["unknown"][0] + b"hello") == b"<->hello"
            assert await talk(trusting, b"EHLO client.test\r\n") in (b"", b"reset")
            assert await talk(trusting, header[:20]) in (b"", b"reset")
            assert 2 == trusting.metrics["smtp.proxy.failed"]
            assert [
                'smtp proxy-failed address=127.0.0.1 reason="no PROXY header"',
                'smtp proxy-failed address=127.0.0.1 reason="closed"',
            ] == trusting.lines
            assert not trusting.waiting
        async with listening("10.0.0.0/8") as other:
            assert await talk(other, header + b"x") == b"<->" + header + b"x"
            assert not other.lines
        async with listening() as nobody:
            assert await talk(nobody, header + b"x") == b"<->" + header + b"x"

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


async def test_a_proxy_that_says_nothing_is_cut_off(fds):
    """After proxy_timeout_s, counted; letters one by one don't prolong it."""
    async with listening("127.0.0.1", proxy_timeout_s=0.05) as prefaces:
        assert await talk(prefaces) in (b"", b"reset")
        assert ['smtp proxy-failed address=127.0.0.1 reason="timeout"'] == prefaces.lines
        assert 1 == prefaces.metrics["smtp.proxy.failed"]


async def test_those_that_wait_are_limited(fds):
    """To as many as may be connected; and a shutdown ends them."""
    async with listening("127.0.0.1", max_conn=2) as prefaces:
        two = [asyncio.ensure_future(talk(prefaces)) for _ in range(2)]
        await until(lambda: len(prefaces.waiting) == 2)
        assert await talk(prefaces, GOOD["tcp4"][0]) in (b"", b"reset")
        assert 1 == prefaces.metrics["smtp.proxy.failed"]
        prefaces.close()
        assert await asyncio.gather(*two) == [await two[0]] * 2
        assert not prefaces.waiting
        assert 1 == prefaces.metrics["smtp.proxy.failed"]
        assert await talk(prefaces, GOOD["tcp4"][0]) in (b"", b"reset")


async def test_a_server_behind_a_proxy(tmp_path, monkeypatch):
    """The client announced is counted, logged and in Received; rights are the client's, not the proxy's."""
    monkeypatch.setattr("mta.server.gc.freeze", lambda: None)
    smtp = {
        "listen": "127.0.0.1:0",
        "proxy_networks": ["127.0.0.1"],
        "relay_networks": ["192.0.2.0/24"],
    }
    limits = {"smtp": {"proxy_timeout_s": 0.05}}
    async with serving(tmp_path, FaultyEffects(), smtp=smtp, limits=limits) as server:
        port = server.smtp_address[1]

        async def session(header: bytes) -> str:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(header)
            assert (await reader.readline()).startswith(b"220 ")
            heard = ""
            for line in ("HELO c.test", "MAIL FROM:<a@b.test>", "RCPT TO:<c@d.test>", "QUIT"):
                writer.write(line.encode() + b"\r\n")
                heard += (await reader.readline()).decode()[:4]
            writer.close()
            await writer.wait_closed()
            return heard

        assert await session(GOOD["tcp4"][0]) == "250 250 250 221 "
        assert await session(GOOD["tcp6"][0]) == "250 250 550 221 "
        assert await session(GOOD["v2 local"][0]) == "250 250 550 221 "
        assert not (await send(port, "a@one.test", ["b@two.test"], "x")).replies
        assert 1 == server.stats()["smtp.proxy.failed"]
        assert 0 == server.stats()["smtp.proxy.waiting"]
        assert 2 == server.stats()["smtp.session.inet4"]
        assert 1 == server.stats()["smtp.session.inet6"]
    log = (tmp_path / "log").read_text()
    assert "smtp connected address=192.0.2.1 host=unknown" in log
    assert "smtp connected address=[2001:db8::1] host=unknown" in log
    assert "smtp proxied port=56324 proxy=127.0.0.1" in log
    assert 'smtp proxy-failed address=127.0.0.1 reason="timeout"' in log
