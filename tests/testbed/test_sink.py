# ruff: noqa: SIM117 - nesting shows who is inside whom
import asyncio
import json
import random
import smtplib
import socket
from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mta.core.settings import ConfigError
from sim.remote import SIZE_MAX, build_host
from sim.scenario import Destination, Load, Scenario, Sizes
from sim.workload import draw, identify, message_bytes
from testbed.world.clock import WorldClock
from testbed.world.records import PENDING_MAX, Records, Tally, merge
from testbed.world.session import ERRORS_MAX, LINE_MAX
from testbed.world.sink import Sink, reserve
from tests.support.waiting import until

HOST = "127.0.10.1"
PATIENCE_S = 10.0

EHLO = b"EHLO client.test\r\n"
ENVELOPE = b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n"


class Hands:
    """Clocks that stand still until the test moves them."""

    def __init__(self) -> None:
        self.monotonic_s = 1000.0
        self.wall_s = 1_700_000_000.0

    def move(self, seconds: float) -> None:
        self.monotonic_s += seconds
        self.wall_s += seconds

    def clock(self, start_at: float | None = None) -> WorldClock:
        return WorldClock(start_at, monotonic=lambda: self.monotonic_s, wall=lambda: self.wall_s)


@asynccontextmanager
async def a_sink(*behaviours: Mapping[str, Any], clock: WorldClock | None = None, **options: Any):
    host = build_host(behaviours, rng=random.Random(1))
    async with Sink({HOST: host}, clock or WorldClock(), **options) as sink:
        yield sink


class Client:
    """A client that sends what it is told and reads replies, each with a time limit."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def reply(self) -> str:
        """Return the next reply, its lines joined with a slash; "" at the end, "RST" if reset."""
        lines: list[str] = []
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    line = (await self.reader.readline()).decode()
                except ConnectionError:
                    return "RST"
                if not line:
                    return ""
                assert line.endswith("\r\n")
                lines.append(line[4:].strip() if lines else line.strip())
                if line[3] == " ":
                    return "/".join(lines)

    async def say(self, data: bytes, replies: int = 1) -> list[str]:
        """Send in one piece and return so many replies."""
        self.writer.write(data)
        return [await self.reply() for _ in range(replies)]

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


@asynccontextmanager
async def a_client(sink: Sink, *, hello: bool = True):
    reader, writer = await asyncio.open_connection(HOST, sink.port)
    client = Client(reader, writer)
    try:
        if hello:
            assert (await client.reply()).startswith("220 ")
            await client.say(EHLO)
        yield client
    finally:
        await client.close()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestProtocol:
    async def test_smtplib_delivers_and_the_record_says_what_arrived(
        self, tmp_path: Path, fds: Callable[[], dict[int, str]]
    ):
        """Envelope, size, run, number and digest of a message of our load; the descriptor is closed."""
        scenario = Scenario(
            "one",
            load=Load(messages=1, sizes=Sizes("fixed", bytes=5000)),
            destinations=[Destination("a", "a.test")],
        )
        message = message_bytes(draw(scenario), 0, "run-1")
        path = tmp_path / "sink.jsonl"
        async with a_sink(record=path, names={HOST: "mx0.a.test"}) as sink:

            def deliver() -> tuple[bytes, dict[str, str]]:
                with smtplib.SMTP(HOST, sink.port, local_hostname="client.test") as smtp:
                    greeting = smtp.ehlo()[1]
                    smtp.sendmail("s@b.test", ["u@a.test", "v@a.test"], message)
                    return greeting, smtp.esmtp_features

            greeting, features = await asyncio.to_thread(deliver)
        assert greeting.splitlines()[0] == b"mx0.a.test"
        assert features == {
            "pipelining": "",
            "size": str(SIZE_MAX),
            "8bitmime": "",
            "enhancedstatuscodes": "",
            "smtputf8": "",
        }
        (line,) = lines_of(path)
        assert 1.6e9 < line.pop("t")
        assert line == {
            "address": HOST,
            "session": "0-1",
            "mail_from": "s@b.test",
            "rcpts": ["u@a.test", "v@a.test"],
            "size": 5000,
            "run": "run-1",
            "seq": 0,
            "digest": identify(message).digest,
            "code": 250,
            "connections": 1,
        }

    async def test_a_pipelined_transaction_is_answered_in_order(self):
        """MAIL, RCPT and DATA in one segment, then message, next MAIL and QUIT in one segment."""
        async with a_sink() as sink, a_client(sink) as client:
            assert await client.say(ENVELOPE, 3) == [
                "250 2.1.0 Ok",
                "250 2.1.5 Ok",
                "354 End data with <CR><LF>.<CR><LF>",
            ]
            replies = await client.say(b"x\r\n.\r\nMAIL FROM:<>\r\nQUIT\r\n", 4)
            assert replies == ["250 2.0.0 Ok: queued", "250 2.1.0 Ok", "221 2.0.0 Bye", ""]
            assert sink.tally.messages == 1

    @pytest.mark.parametrize(
        ("sent", "kept"),
        [
            (b".\r\n", b""),
            (b"\r\n.\r\n", b"\r\n"),
            (b"a\r\n.\r\n", b"a\r\n"),
            (b"..\r\n.\r\n", b".\r\n"),
            (b"..a\r\n..b\r\nc.\r\n.\r\n", b".a\r\n.b\r\nc.\r\n"),
            (b"a\r\n..\r\n..\r\n.\r\n", b"a\r\n.\r\n.\r\n"),
            (b"." * 999 + b"\r\n.\r\n", b"." * 998 + b"\r\n"),
            (b"a\r\n.b\r\n.\r\n", b"a\r\nb\r\n"),
        ],
    )
    @pytest.mark.parametrize("cuts", ["whole", "bytes"])
    async def test_dots_are_unstuffed_however_the_bytes_come(
        self, tmp_path: Path, sent: bytes, kept: bytes, cuts: str
    ):
        """RFC 5321 4.5.2; in one segment, and byte by byte."""
        path = tmp_path / "sink.jsonl"
        async with a_sink(record=path) as sink, a_client(sink) as client:
            await client.say(ENVELOPE, 3)
            # Byte by byte past the sockets: what the kernel joins would not be cut.
            (session,) = sink.listeners[0].sessions
            for piece in [sent] if cuts == "whole" else [sent[i : i + 1] for i in range(len(sent))]:
                session.data_received(piece)
            assert (await client.reply()).startswith("250")
            assert await client.say(b"NOOP\r\n") == ["250 2.0.0 Ok"]
            assert sink.bytes_held == 0
        (line,) = lines_of(path)
        assert (line["size"], line["digest"]) == (len(kept), identify(kept).digest)

    @pytest.mark.parametrize(
        "body",
        [
            b"a\nb\r\n.\r\n",
            b"a\rb\r\n.\r\n",
            b"a\n.\nb\r\n.\r\n",
            b"a\r\n.\nb\r\n.\r\n",
            b"a\r.\r\r\n.\r\n",
        ],
    )
    async def test_only_the_real_end_ends_and_odd_line_ends_are_counted(self, body: bytes):
        """What servers were smuggled past with (CVE-2023-51764 and kin) is content here, and noted."""
        async with a_sink() as sink, a_client(sink) as client:
            await client.say(ENVELOPE, 3)
            assert await client.say(body + b"NOOP\r\n", 2) == [
                "250 2.0.0 Ok: queued",
                "250 2.0.0 Ok",
            ]
            assert (sink.tally.messages, sink.tally.altered) == (1, 1)

    async def test_undeclared_eight_bit_is_counted(self):
        """With BODY=8BITMIME it is fine (RFC 6152), without it somebody forgot."""
        async with a_sink() as sink, a_client(sink) as client:
            for parameters, expected in ((b" BODY=8BITMIME", 0), (b"", 1)):
                await client.say(ENVELOPE.replace(b"b.test>", b"b.test>" + parameters), 3)
                await client.say("grüße\r\n.\r\n".encode())
                assert sink.tally.eight_bit == expected
            assert sink.tally.altered == 0

    @pytest.mark.parametrize(
        ("line", "reply"),
        [
            (b"MAIL FROM:<>", "250 2.1.0"),
            (b"mail from:<a@b.test>", "250 2.1.0"),
            (b"MAIL FROM: <a@b.test>", "250 2.1.0"),
            (b'MAIL FROM:<"a b>"@b.test>', "250 2.1.0"),
            (b"MAIL FROM:<@x.test,@y.test:a@b.test>", "250 2.1.0"),
            (b"MAIL FROM:<a@b.test> SIZE=1000 BODY=8BITMIME SMTPUTF8", "250 2.1.0"),
            ("MAIL FROM:<grüße@b.test> SMTPUTF8".encode(), "250 2.1.0"),
            ("MAIL FROM:<grüße@b.test>".encode(), "553 5.6.7"),
            (b"MAIL FROM:<a@b.test> SIZE=99999999999", "552 5.3.4"),
            (b"MAIL FROM:<a@b.test> SIZE=-1", "501 5.5.4"),
            (b"MAIL FROM:<a@b.test> SIZE=" + b"9" * 30, "501 5.5.4"),
            (b"MAIL FROM:<a@b.test> BODY=BINARYMIME", "501 5.5.4"),
            (b"MAIL FROM:<a@b.test> RET=FULL", "555 5.5.4"),
            (b"MAIL FROM:<a@b.test>garbage", "501 5.5.4"),
            (b"MAIL FROM:a@b.test", "501 5.5.4"),
            (b"MAIL", "501 5.5.4"),
            (b"MAIL FROM:<\xff@b.test>", "501 5.5.4"),
            (b"RCPT TO:<c@d.test>", "503 5.5.1"),
            (b"EHLO", "501 5.5.4"),
            (b"STARTTLS", "500 5.5.2"),
            (b"GET / HTTP/1.1", "500 5.5.2"),
            (b"", "500 5.5.2"),
            (b"\xff\xfe", "501 5.5.4"),
        ],
    )
    async def test_syntax(self, line: bytes, reply: str):
        """What is taken and what is not, with enhanced codes; the session goes on."""
        async with a_sink() as sink, a_client(sink) as client:
            (answer,) = await client.say(line + b"\r\n")
            assert answer.startswith(reply)
            assert await client.say(b"NOOP\r\n") == ["250 2.0.0 Ok"]

    @pytest.mark.parametrize(
        ("line", "reply"),
        [
            (b"RCPT TO:<c@d.test>", "250"),
            (b"RCPT TO:<>", "501"),
            (b"RCPT TO:<c@d.test> NOTIFY=NEVER", "555"),
            ("RCPT TO:<grüße@d.test>".encode(), "553"),
        ],
    )
    async def test_syntax_of_recipients(self, line: bytes, reply: str):
        """The null path and parameters that were not offered are refused."""
        async with a_sink() as sink, a_client(sink) as client:
            (_, answer) = await client.say(b"MAIL FROM:<a@b.test>\r\n" + line + b"\r\n", 2)
            assert answer.startswith(reply)

    async def test_refusals_are_counted_by_verb_and_code(self):
        """A sink's stats tell who said no to what."""
        async with (
            a_sink({"kind": "reject", "match": ["bad@*"], "code": 550}) as sink,
            a_client(sink) as client,
        ):
            await client.say(
                b"MAIL FROM:<>\r\nRCPT TO:<bad@x.test>\r\nRCPT TO:<ok@x.test>\r\nDATA\r\n", 4
            )
            assert await client.say(b".\r\n") == ["250 2.0.0 Ok: queued"]
            assert sink.stats()["refused"] == {"RCPT 550": 1}
            assert sink.stats()["recipients"] == 1


class TestLimits:
    async def test_a_line_that_never_ends_is_ended(self):
        """500 and close after `LINE_MAX` bytes."""
        async with a_sink() as sink, a_client(sink) as client:
            assert await client.say(b"NOOP " + b"x" * LINE_MAX, 2) == [
                "500 5.5.6 Line too long",
                "",
            ]

    async def test_nonsense_is_answered_a_hundred_times(self):
        """Then 421 and close."""
        async with a_sink() as sink, a_client(sink) as client:
            replies = await client.say(b"FROB\r\n" * (ERRORS_MAX + 5), ERRORS_MAX + 2)
            assert replies[ERRORS_MAX - 1 :] == [
                "500 5.5.2 Command not recognized",
                "421 4.7.0 Too many errors",
                "",
            ]

    async def test_a_thousand_messages_in_one_segment_are_a_thousand_messages(self):
        """A client that waits for nothing costs no stack."""
        burst = (ENVELOPE + b"x\r\n.\r\n") * 1000
        async with a_sink() as sink, a_client(sink) as client:
            (session,) = sink.listeners[0].sessions
            session.data_received(burst)
            replies = [await client.reply() for _ in range(4000)]
            assert replies[3::4] == ["250 2.0.0 Ok: queued"] * 1000

    async def test_more_bytes_than_memory_are_452_and_forgotten(self):
        """The sink's own shortage is temporary, the connection lives, nothing is held."""
        async with a_sink(bytes_max=100_000) as sink, a_client(sink) as client:
            await client.say(ENVELOPE, 3)
            assert await client.say(
                b"x" * 998 + b"\r\n" + (b"y" * 998 + b"\r\n") * 300 + b".\r\n"
            ) == ["452 4.3.1 Insufficient system storage"]
            assert (sink.bytes_held, sink.tally.messages) == (0, 0)
            await client.say(ENVELOPE, 3)
            assert await client.say(b"x\r\n.\r\n") == ["250 2.0.0 Ok: queued"]

    async def test_a_client_that_goes_in_the_middle_of_a_message_leaves_nothing(self):
        """Neither bytes nor a place among the connections."""
        async with a_sink({"kind": "limit-connections", "max": 1}) as sink:
            for _ in range(3):
                async with a_client(sink) as client:
                    await client.say(ENVELOPE, 3)
                    client.writer.write(b"half a message")
                    await until(lambda: sink.bytes_held > 2)
                await until(lambda: sink.tally.open == 0)
                assert sink.bytes_held == 0

    async def test_more_connections_than_the_sink_takes_get_421(self):
        """The sink's own limit, whatever the host says."""
        async with a_sink(connections_max=1) as sink, a_client(sink):
            async with a_client(sink, hello=False) as second:
                assert (await second.reply()).startswith("421 4.3.2")
                assert await second.reply() == ""

    async def test_who_says_nothing_is_told_to_go(self):
        """421 4.4.2 after the idle time; a host that is silent resets instead."""
        async with a_sink(idle_s=0.05) as sink, a_client(sink) as client:
            assert await client.reply() == "421 4.4.2 Idle for too long"
            assert await client.reply() == ""
        async with a_sink({"kind": "dead", "mode": "silent"}, idle_s=0.05) as sink:
            async with a_client(sink, hello=False) as client:
                assert await client.reply() == "RST"

    async def test_a_client_that_does_not_read_is_not_read(self):
        """Replies that wait are bounded: after some thousands the sink stops reading."""
        async with a_sink({"kind": "tarpit", "delay_s": 60.0, "verbs": ["NOOP"]}) as sink:
            async with a_client(sink) as client:
                (session,) = sink.listeners[0].sessions
                client.writer.write(b"NOOP\r\n" * 200_000)
                await until(lambda: session._read_paused)
                held = len(session._waiting)
                for _ in range(20):
                    await asyncio.sleep(0)
                assert held == len(session._waiting) < 100_000


class TestTime:
    async def test_replies_wait_for_their_time_and_keep_their_order(self):
        """A tarpit at RCPT of two recipients: the replies come in order, not before 40 ms each."""
        loop = asyncio.get_running_loop()
        async with (
            a_sink({"kind": "tarpit", "delay_s": 0.04, "verbs": ["RCPT"]}) as sink,
            a_client(sink) as client,
        ):
            began_at = loop.time()
            replies = await client.say(
                b"MAIL FROM:<>\r\nRCPT TO:<c@d.test>\r\nRCPT TO:<e@d.test>\r\nRSET\r\nQUIT\r\n", 6
            )
            assert [each[:3] for each in replies] == ["250", "250", "250", "250", "221", ""]
            assert loop.time() - began_at >= 0.079

    async def test_a_half_closed_client_gets_its_replies(self):
        """FIN after a command: the replies still come, late as they are; then the sink closes."""
        async with a_sink({"kind": "tarpit", "delay_s": 0.02, "verbs": ["NOOP"]}) as sink:
            async with a_client(sink) as client:
                client.writer.write(b"NOOP\r\nRSET\r\n")
                client.writer.write_eof()
                replies = [await client.reply() for _ in range(3)]
                assert replies == ["250 2.0.0 Ok", "250 2.0.0 Ok", ""]

    async def test_a_client_that_says_quit_with_its_message_and_closes_its_half_is_told(
        self, tmp_path: Path
    ):
        """As Exim ends a connection: dot, QUIT and FIN at once; it reads on, so the message is taken."""
        path = tmp_path / "sink.jsonl"
        async with a_sink(
            {"kind": "latency", "delay_s": 0.02, "verbs": ["."]}, record=path
        ) as sink:
            async with a_client(sink) as client:
                await client.say(ENVELOPE, 3)
                client.writer.write(b"x\r\n.\r\nQUIT\r\n")
                client.writer.write_eof()
                replies = [await client.reply() for _ in range(3)]
                assert [each[:3] for each in replies] == ["250", "221", ""]
            assert (sink.tally.messages, sink.tally.abandoned) == (1, 0)
        assert len(lines_of(path)) == 1

    async def test_a_message_is_taken_when_its_reply_leaves_and_not_before(self, tmp_path: Path):
        """The client goes while the host thinks: nothing was acknowledged, so nothing is recorded."""
        path = tmp_path / "sink.jsonl"
        async with a_sink(
            {"kind": "latency", "delay_s": 30.0, "verbs": ["."]}, record=path
        ) as sink:
            async with a_client(sink) as client:
                await client.say(ENVELOPE, 3)
                client.writer.write(b"x\r\n.\r\n")
                (session,) = sink.listeners[0].sessions
                await until(lambda: len(session._waiting) == 1)
            await until(lambda: sink.tally.open == 0)
            assert (sink.tally.messages, sink.tally.abandoned) == (0, 1)
        assert lines_of(path) == []


class TestHosts:
    async def test_a_connection_above_the_limit_gets_421(self):
        """And a place that becomes free is given away again."""
        async with a_sink({"kind": "limit-connections", "max": 2}) as sink:
            async with a_client(sink), a_client(sink) as second:
                async with a_client(sink, hello=False) as third:
                    assert await third.reply() == "421 4.7.0 Too many connections"
                    assert await third.reply() == ""
                await second.say(b"QUIT\r\n")
                async with a_client(sink):
                    pass
            assert sink.tally.refused == {"CONNECT 421": 1}

    async def test_refuse_closes_the_socket_and_resets_and_comes_back(self):
        """Before, in and after an outage; the port stays the same."""
        hands = Hands()
        clock = hands.clock()
        outage = {"kind": "outage", "from_s": 3.0, "to_s": 18.0}
        async with a_sink(outage, clock=clock) as sink, a_client(sink) as client:
            port = sink.port
            sink.set_start(hands.wall_s)
            assert await client.say(b"NOOP\r\n") == ["250 2.0.0 Ok"]
            hands.move(5.0)
            sink.listeners[0].clock_changed()
            assert await client.reply() == "RST"
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(HOST, port)
            assert (sink.tally.resets, sink.tally.open) == (1, 0)
            hands.move(13.0)
            sink.listeners[0].clock_changed()
            await until(lambda: sink.listeners[0]._server is not None)
            async with a_client(sink) as again:
                assert await again.say(b"NOOP\r\n") == ["250 2.0.0 Ok"]
            assert sink.port == port

    async def test_outages_follow_the_clock_by_themselves(self):
        """A host that is away from the start until 80 ms later: refused at first, greeted then."""
        async with a_sink({"kind": "outage", "from_s": 0.0, "to_s": 0.08}) as sink:
            clock = sink.clock
            sink.set_start(clock.wall())
            await until(lambda: sink.listeners[0]._server is None)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(HOST, sink.port)
            await until(lambda: sink.listeners[0]._server is not None)
            assert clock.now() >= 0.08
            async with a_client(sink):
                pass

    async def test_what_was_not_acknowledged_when_the_outage_began_is_not_taken(
        self, tmp_path: Path
    ):
        """Otherwise the sender, who must try again, would make a duplicate that is nobody's fault."""
        hands = Hands()
        path = tmp_path / "sink.jsonl"
        behaviours = (
            {"kind": "latency", "delay_s": 5.0, "verbs": ["."]},
            {"kind": "outage", "from_s": 3.0},
        )
        async with a_sink(*behaviours, clock=hands.clock(hands.wall_s), record=path) as sink:
            async with a_client(sink) as client:
                await client.say(ENVELOPE, 3)
                client.writer.write(b"x\r\n.\r\n")
                (session,) = sink.listeners[0].sessions
                await until(lambda: len(session._waiting) == 1)
                hands.move(4.0)
                sink.listeners[0].clock_changed()
                assert await client.reply() == "RST"
            assert (sink.tally.messages, sink.tally.abandoned) == (0, 1)
        assert lines_of(path) == []

    async def test_a_dead_host_never_listens_and_a_silent_one_never_speaks(self):
        """Connection refused; and no greeting, whatever the client says."""
        async with a_sink({"kind": "dead"}) as sink:
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(HOST, sink.port)
        async with a_sink({"kind": "dead", "mode": "silent"}) as sink:
            async with a_client(sink, hello=False) as client:
                client.writer.write(EHLO)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(client.reader.read(1), 0.05)

    @pytest.mark.parametrize(("mode", "reply"), [("reset", "RST"), ("silent", None)])
    async def test_drop_at_the_dot(self, mode: str, reply: str | None):
        """No reply to a whole message: reset, or nothing at all; not taken either way."""
        async with a_sink({"kind": "drop", "mode": mode}) as sink, a_client(sink) as client:
            await client.say(ENVELOPE, 3)
            client.writer.write(b"x\r\n.\r\n")
            if reply is None:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(client.reader.read(1), 0.05)
            else:
                assert await client.reply() == reply
            assert sink.tally.messages == 0


class TestSink:
    async def test_all_addresses_have_one_port(self):
        """Port 0 chooses one that is free on all of them."""
        hosts = {f"127.0.10.{j}": build_host([], rng=random.Random(j)) for j in range(1, 6)}
        async with Sink(hosts, WorldClock()) as sink:
            for address in hosts:
                reader, writer = await asyncio.open_connection(address, sink.port)
                assert (await reader.readline()).startswith(b"220 ")
                writer.close()
                await writer.wait_closed()

    async def test_a_taken_port_is_one_line(self, fds: Callable[[], dict[int, str]]):
        """It names option, value and address, and leaves nothing open."""
        with socket.socket() as other:
            other.bind((HOST, 0))
            other.listen()
            port = other.getsockname()[1]
            with pytest.raises(ConfigError) as caught:
                async with a_sink(port=port):
                    pass
        assert str(caught.value) == f"--smtp-port: {port}: {HOST}:{port} is taken"

    async def test_a_record_file_that_cannot_be_opened_is_one_line(
        self, tmp_path: Path, fds: Callable[[], dict[int, str]]
    ):
        """And the ports are given back."""
        with pytest.raises(ConfigError, match="--record-dir"):
            async with a_sink(record=tmp_path / "missing" / "sink.jsonl"):
                pass

    def test_only_loopback_is_served(self):
        """An address of another machine's network is refused before it is bound."""
        with pytest.raises(ConfigError, match="must be on loopback"):
            reserve(["192.0.2.1"], 0)

    async def test_nothing_stays_open(self, fds: Callable[[], dict[int, str]]):
        """Clients of all kinds are there when the sink stops, in an outage and out of one."""
        for behaviours in (
            (),
            ({"kind": "dead", "mode": "silent"},),
            ({"kind": "latency", "delay_s": 30.0, "verbs": ["NOOP"]},),
        ):
            clients = []
            async with a_sink(*behaviours) as sink:
                for _ in range(5):
                    reader, writer = await asyncio.open_connection(HOST, sink.port)
                    writer.write(EHLO + b"NOOP\r\n")
                    clients.append((reader, writer))
                await until(lambda: sink.tally.open == 5)
            assert sink.tally.open == 0
            for reader, writer in clients:
                with suppress(ConnectionError):
                    while await asyncio.wait_for(reader.read(1000), PATIENCE_S):
                        pass
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()

    async def test_a_port_that_was_stolen_in_an_outage_ends_the_sink(
        self, monkeypatch: pytest.MonkeyPatch, fds: Callable[[], dict[int, str]]
    ):
        """A host that can't come back would look like the scenario; whoever uses the sink is told."""
        monkeypatch.setattr("testbed.world.sink._REOPEN_TRIES", 3)
        hands = Hands()
        outage = {"kind": "outage", "from_s": 3.0, "to_s": 18.0}
        with socket.socket() as thief:
            with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - the end is what is tested
                async with a_sink(outage, clock=hands.clock(hands.wall_s)) as sink:
                    hands.move(5.0)
                    sink.listeners[0].clock_changed()
                    await until(lambda: sink.listeners[0]._server is None)
                    await asyncio.sleep(0)
                    thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    thief.bind((HOST, sink.port))
                    thief.listen()
                    hands.move(13.0)
                    sink.listeners[0].clock_changed()
                    await asyncio.Event().wait()
        (error,) = caught.value.exceptions
        assert isinstance(error, ConfigError)
        assert str(error).endswith(" is taken")

    async def test_an_error_of_the_user_comes_out_as_it_is(self, fds: Callable[[], dict[int, str]]):
        """Not wrapped in a group."""
        with pytest.raises(ZeroDivisionError):
            async with a_sink():
                raise ZeroDivisionError

    async def test_cancelled_in_the_middle_it_shuts_down(self, fds: Callable[[], dict[int, str]]):
        """Cancellation of who uses the sink closes it."""
        opened = asyncio.Event()
        ports: list[int] = []

        async def use() -> None:
            async with a_sink() as sink:
                ports.append(sink.port)
                async with a_client(sink):
                    opened.set()
                    await asyncio.Event().wait()

        async with asyncio.TaskGroup() as group:
            task = group.create_task(use())
            await opened.wait()
            task.cancel()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(HOST, ports[0])


class TestClock:
    def test_it_is_long_before_until_the_start_is_known(self):
        """Then seconds since the start; a start in the future is negative time."""
        hands = Hands()
        clock = hands.clock()
        assert clock.now() == -1e9
        hands.move(10.0)
        assert clock.now() == -1e9 + 10.0
        clock.set_start(hands.wall_s + 2.0)
        assert clock.now() == pytest.approx(-2.0)
        hands.move(5.0)
        assert clock.now() == pytest.approx(3.0)
        assert clock.start_at == 1_700_000_012.0

    def test_time_never_runs_backwards(self):
        """A second start that is later than the first is refused."""
        hands = Hands()
        clock = hands.clock(hands.wall_s)
        hands.move(5.0)
        with pytest.raises(ValueError, match="never decreases"):
            clock.set_start(hands.wall_s)
        assert clock.now() == pytest.approx(5.0)


LINE = {
    "t": 1.0,
    "address": HOST,
    "session": "0-1",
    "mail_from": "",
    "rcpts": ["a@b.test"],
    "size": 1,
    "run": "",
    "seq": -1,
    "digest": "",
    "code": 250,
    "connections": 1,
}


class TestRecords:
    async def test_lines_are_there_soon_and_all_at_the_end(self, tmp_path: Path):
        """Without a flush after a tenth of a second; many are written at once."""
        path = tmp_path / "records"
        records = Records(path)
        records.add(**LINE)  # type: ignore[arg-type]
        assert path.read_bytes() == b""
        await until(lambda: records.written_count == 1)
        assert lines_of(path) == [LINE]
        for _ in range(PENDING_MAX + 1):
            records.add(**LINE)  # type: ignore[arg-type]
        assert records.written_count == PENDING_MAX + 1
        records.close()
        records.close()
        assert len(lines_of(path)) == PENDING_MAX + 2

    async def test_lines_that_cannot_be_written_are_counted(self):
        """The disk is full: the sink goes on, and says that its file can't be trusted."""
        records = Records(Path("/dev/full"))
        records.add(**LINE)  # type: ignore[arg-type]
        records.flush()
        assert (records.written_count, records.lost_count) == (0, 1)
        records.close()

    def test_counts_of_processes_add_up(self):
        """Numbers are summed, refusals by their names."""
        first, second = Tally(), Tally()
        first.messages, second.messages = 2, 3
        first.refused["RCPT 451"] = 1
        second.refused.update({"RCPT 451": 1, ". 452": 1})
        total = merge([first.snapshot() | {"records": 2}, second.snapshot() | {"records": 3}])
        assert (total["messages"], total["records"]) == (5, 5)
        assert total["refused"] == {"RCPT 451": 2, ". 452": 1}
