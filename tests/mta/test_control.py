import asyncio
import base64
import contextlib
import json
import os
import re
import socket
import stat
from pathlib import Path

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from mta.control import ControlLimits, ControlServer, ControlSocketBusyError, peer_of
from mta.controlverbs import STREAMS, VERBS, RequestError, encode, parse_id, read_request
from mta.core.ids import EvpId, MsgId
from mta.core.stimuli import Selector
from mta.effects import Effects
from mta.log import Log
from mta.queue.base import QueueUnavailableError
from mta.trace import Tracer
from tests.support.control import FakeTarget
from tests.support.waiting import until

uvloop.new_event_loop().close()  # the first one opens a pipe for the whole process


class Client:
    """A raw client of the socket: it can say anything."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def line(self) -> dict:
        return json.loads(await self.reader.readuntil(b"\n"))

    async def ask(self, verb: str, **fields) -> tuple[list[dict], dict]:
        """Return the rows and the last line of an answer."""
        self.say(json.dumps({"verb": verb, **fields}).encode() + b"\n")
        rows = []
        while True:
            line = await self.line()
            if "row" in line:
                rows.append(line["row"])
            elif "begin" not in line:
                return rows, line


class Desk:
    """A control server with its target, log lines and clients."""

    def __init__(self, path, target, limits=None):
        self.path, self.target = path, target
        self.lines: list[str] = []
        self.faults: list[dict] = []
        self.server = ControlServer(path, target, Effects(), log=self.lines.append, limits=limits)
        self.clients: list[Client] = []

    async def connect(self) -> Client:
        # A test reads what it wants to read, so nothing is read ahead without limit.
        reader, writer = await asyncio.open_unix_connection(self.path, limit=1 << 20)
        client = Client(reader, writer)
        self.clients.append(client)
        return client

    async def close(self):
        await self.server.close()
        for client in self.clients:
            client.writer.close()
            with contextlib.suppress(ConnectionError):
                await client.writer.wait_closed()


@contextlib.asynccontextmanager
async def desk_at(tmp_path, limits=None):
    maillog = Log(Effects(), tmp_path / "log", host="mx", pid=1)
    desk = Desk(tmp_path / "control.sock", FakeTarget(Tracer(maillog)), limits)
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: desk.faults.append(context)
    )
    await desk.server.start()
    try:
        async with asyncio.timeout(20):
            yield desk
    finally:
        await desk.close()
        maillog.close()


@pytest.fixture
async def desk(tmp_path):
    async with desk_at(tmp_path) as made:
        yield made
        assert made.faults == []


# ---- ids and requests


@pytest.mark.parametrize(
    ("text", "which"),
    [
        ("all", Selector()),
        ("0000002a", Selector(msgid=MsgId(0x2A))),
        ("0000002A00000001", Selector(evpid=EvpId(0x2A00000001))),
    ],
)
def test_ids(text, which):
    """An id says by its length what it is of."""
    assert which == parse_id(text)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "ALL",
        "al",
        "2a",
        "0x00002a",
        "00_0002a",
        " 000002a",
        "0000002a ",
        "0000002a\n",
        "٠٠٠٠٠٠٢١",
        "00000000",
        "0000000000000001",
        "0000002a00000000",
        "0000002a000000011",
        "g" * 16,
    ],
)
def test_what_is_no_id(text):
    """Nothing is guessed: `remove` of a mistyped id removes nothing."""
    with pytest.raises(RequestError, match="expected an envelope") as caught:
        parse_id(text)
    assert caught.value.usage


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_line_is_a_request_or_an_error(line):
    """No bytes make the reader of requests fail in another way."""
    with contextlib.suppress(RequestError):
        assert read_request(line).verb in VERBS.keys() | STREAMS.keys()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"verb": 1}',
        b'{"verb": "show"}',
        b'{"verb": "show queue", "limit": 1}',
        b'{"verb": "show stats", "id": "all"}',
        b'{"verb": "monitor", "follow": true}',
        b'{"verb": "show queue", "id": 42}',
        b'{"verb": "show stats"} {"verb": "show stats"}',
        b'{"verb": "show \xff"}',
        b"[" * 60_000,
    ],
)
def test_what_is_no_request(line):
    """A request with a field that the verb does not take is refused, not half understood."""
    with pytest.raises(RequestError) as caught:
        read_request(line)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_half_a_surrogate_pair_is_shown_as_a_question_mark():
    """What the network said may be no text; the operator still gets the row."""
    assert b'{"row":{"last_status":"5?0","flags":["a?"]}}\n' == encode(
        {"row": {"last_status": "5\udc800", "flags": ["a\ud800"]}}
    )


# ---- verbs


async def test_the_socket_is_private(desk):
    """Mode 0600, and the kernel says who we are."""
    assert stat.S_IMODE(desk.path.stat().st_mode) == 0o600
    client = await desk.connect()
    peer = peer_of(client.writer.transport)
    assert (os.getpid(), os.geteuid()) == (peer.pid, peer.uid)


async def test_other_users_are_refused(desk, monkeypatch):
    """Whoever is neither us nor root gets one line, whatever the mode of the socket."""
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    monkeypatch.setattr("mta.control.peer_of", lambda t: type(peer_of(t))(1, 12345, 1))
    client = await desk.connect()
    assert {"error": "permission denied", "usage": True} == await client.line()
    assert await client.reader.read() == b""
    assert desk.lines == ["control refused uid=12345 pid=1"]
    assert len(desk.server) == 0


async def test_show(desk):
    """Each table comes as rows and one last line."""
    desk.target.put(0x2A, 2)
    client = await desk.connect()
    rows, end = await client.ask("show queue")
    assert ["0000002a00000001", "0000002a00000002"] == [row["evpid"] for row in rows]
    assert {"end": {}} == end
    assert (await client.ask("show envelope", id="0000002a00000002"))[0] == rows[1:]
    for verb, row in (
        ("show status", desk.target.status()),
        ("show stats", dict(desk.target.stats())),
        ("show relays", desk.target.relays()[0]),
        ("show routes", desk.target.routes()[0]),
        ("show hosts", desk.target.hosts()[0]),
    ):
        assert row == (await client.ask(verb))[0][0]
    assert ([], {"end": {}}) == await client.ask("show sessions")
    assert desk.lines == []  # looking is not worth a line in the log


async def test_a_long_queue_comes_in_pages(desk):
    """Between pages others are answered: a million envelopes do not stop the server."""
    desk.target.put(0x2A, 2000)
    desk.target.put(0x2B, 3)
    client, other = await desk.connect(), await desk.connect()
    await other.ask("show status")
    long = asyncio.ensure_future(client.ask("show queue"))
    pages = []
    while not long.done():
        await other.ask("show status")
        pages.append(desk.target.pages)
    rows, _ = await long
    assert sorted(desk.target.queue) == [int(row["evpid"], 16) for row in rows]
    assert len(set(pages)) > 2, "the other client was answered only before or after"
    assert 3 == len((await client.ask("show queue", id="0000002b"))[0])
    _, end = await client.ask("show queue", id="0000002b00000001")
    assert end["usage"]


async def test_a_message_comes_byte_by_byte(desk):
    """Whatever is in it, and however long it is."""
    body = bytes(range(256)) * 1000
    desk.target.messages[0x2A] = body
    client = await desk.connect()
    for name in ("0000002a", "0000002a00000001"):
        rows, end = await client.ask("show message", id=name)
        assert body == b"".join(base64.b64decode(row["base64"]) for row in rows)
        assert {"msgid": "0000002a", "size": len(body)} == end["end"]
    assert (await client.ask("show message", id="all"))[1]["usage"]


async def test_what_is_not_there_is_said(desk):
    """No such envelope, message or route: one line, and the connection goes on."""
    client = await desk.connect()
    for verb, fields, error in (
        ("show envelope", {"id": "0000002a00000001"}, "no envelope 0000002a00000001"),
        ("show message", {"id": "0000002a"}, "no message 0000002a"),
        ("resume route", {"address": "127.0.0.1"}, "no route to '127.0.0.1'"),
    ):
        assert ([], {"error": error, "usage": False}) == await client.ask(verb, **fields)
    _, end = await client.ask("show envelope")
    assert end["usage"]


async def test_changes_are_done_counted_and_logged(desk):
    """Who removed mail must be found in the log."""
    desk.target.put(0x2A, 3)
    desk.target.put(0x2B, 2)
    client = await desk.connect()
    for verb, which, count in (
        ("pause envelope", "0000002a", 3),
        ("resume envelope", "0000002a00000002", 1),
        ("schedule", "all", 5),
        ("remove", "0000002b", 2),
        ("remove", "0000002b", 0),
    ):
        assert ([], {"end": {"envelopes": count}}) == await client.ask(verb, id=which)
    assert 3 == len(desk.target.queue)
    who = f"uid={os.geteuid()} pid={os.getpid()}"
    assert f"control remove id=0000002b envelopes=2 {who}" in desk.lines
    _, end = await client.ask("remove")
    assert end["usage"]
    assert 3 == len(desk.target.queue)
    assert desk.lines[-1].startswith('control remove error="expected an envelope')


async def test_switches(desk):
    """Agents, routes, tracing and the log's loudness."""
    client, target = await desk.connect(), desk.target
    await client.ask("pause mta")
    await client.ask("pause smtp")
    assert {"mta": False, "smtp": False} == target.running
    await client.ask("resume mta")
    await client.ask("resume smtp")
    assert {"mta": True, "smtp": True} == target.running
    assert ([], {"end": {}}) == await client.ask("resume route", address="127.0.0.9")
    assert set() == target.resting
    await client.ask("trace", subsystem="smtp")
    assert target.tracer.smtp
    await client.ask("untrace", subsystem="all")
    assert not target.tracer.smtp
    assert "not a subsystem" in (await client.ask("trace", subsystem="smpt"))[1]["error"]
    await client.ask("log verbose")
    assert target.is_verbose
    await client.ask("log brief")
    assert not target.is_verbose


async def test_monitor(desk):
    """Counters as they are, as often as asked."""
    client = await desk.connect()
    desk.target.values["scheduler.delivery.ok"] = 5
    rows, end = await client.ask("monitor", count=3, interval_s=0.1)
    assert [5, 5, 5] == [row["scheduler.delivery.ok"] for row in rows]
    assert {"end": {}} == end
    assert rows[0]["t"] < rows[1]["t"] < rows[2]["t"]
    client.say(b'{"verb": "monitor", "interval_s": 0.1}\n')
    assert {"begin": {}} == await client.line()
    assert "t" in (await client.line())["row"]
    client.writer.write_eof()
    while "end" not in (line := await client.line()):
        assert "row" in line
    assert await client.reader.read() == b""
    other = await desk.connect()
    for fields in ({"interval_s": 0.0}, {"interval_s": 1e9}, {"count": -1}):
        assert (await other.ask("monitor", **fields))[1]["usage"]


async def test_follow(desk):
    """A follower sees lines as they come, and leaves nothing behind when it goes."""
    client, tracer = await desk.connect(), desk.target.tracer
    client.say(b'{"verb": "trace", "subsystem": "dns", "follow": true}\n')
    assert {"begin": {"subsystem": "dns"}} == await client.line()
    tracer.line("dns", "query example.test")
    tracer.line("smtp", "unasked")
    assert {"row": {"line": "dns: query example.test"}} == await client.line()
    assert tracer.logged() == []
    client.writer.write_eof()
    assert {"end": {}} == await client.line()
    assert await client.reader.read() == b""
    assert not tracer.dns
    cut = await desk.connect()
    cut.say(b'{"verb": "trace", "subsystem": "all", "follow": true}\n')
    await cut.line()
    cut.writer.transport.abort()
    while tracer.io:
        await (await desk.connect()).ask("show status")
    tracer.line("io", "nobody hears this")


# ---- hostile clients


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\xff\xfe\x80" * 50 + b"\n",
        b'{"verb": "no such"}\n',
        b"{" * 30_000 + b"\n",
        b"x" * (64 * 1024 + 2),
        b"x" * (64 * 1024) + b"y\n",
    ],
)
async def test_a_malformed_request_costs_its_sender_the_connection(desk, data):
    """One line why, then the end; everybody else goes on (CVE-2025-62875)."""
    client, other = await desk.connect(), await desk.connect()
    client.say(data)
    assert (await client.line())["usage"]
    with contextlib.suppress(ConnectionError):
        assert await client.reader.read() == b""
    assert (await other.ask("show status"))[0][0]["mta"] == "running"


async def test_half_a_request(desk):
    """Half a line and the end of file: an error. Half a line and nothing: no answer, no harm."""
    client, silent = await desk.connect(), await desk.connect()
    silent.say(b'{"verb": "show st')
    silent.say(b"x" * 10_000)
    client.say(b'{"verb": "show st')
    client.writer.write_eof()
    assert "request without its end" == (await client.line())["error"]
    assert await client.reader.read() == b""
    assert (await (await desk.connect()).ask("show status"))[1] == {"end": {}}


async def test_requests_in_one_packet_are_answered_in_order(desk):
    """Also when the client says no more after them, as `socat` does."""
    client = await desk.connect()
    client.say(b'{"verb": "show status"}\n{"verb": "show hosts"}\n{"verb": "show sessions"}\n')
    client.writer.write_eof()
    answer = [json.loads(line) for line in (await client.reader.read()).splitlines()]
    assert ["row", "end", "row", "end", "end"] == [next(iter(line)) for line in answer]
    assert answer[0]["row"]["mta"] == "running"


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_descriptors_that_are_passed_are_not_kept(tmp_path, fds, loop):
    """253, the most that one message can have: the answer comes, and nothing of them stays open."""

    async def main():
        async with desk_at(tmp_path) as desk:
            before = len(fds())

            def ask() -> bytes:
                with socket.socket(socket.AF_UNIX) as raw, Path(os.devnull).open() as null:
                    raw.settimeout(20)
                    raw.connect(str(desk.path))
                    socket.send_fds(raw, [b'{"verb": "show status"}\n'], [null.fileno()] * 253)
                    return raw.recv(4096)

            assert b'"row"' in await asyncio.to_thread(ask)
            await until(lambda: not len(desk.server))
            assert len(fds()) <= before

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(main(), 20))


async def test_forty_connections(desk):
    """Thirty-two are served; eight are told why not; a place that becomes free is taken."""
    clients = [await desk.connect() for _ in range(40)]
    for client in clients[:32]:
        assert (await client.ask("show status"))[1] == {"end": {}}
    for client in clients[32:]:
        assert {"error": "too many connections", "usage": True} == await client.line()
        assert await client.reader.read() == b""
    assert len(desk.server) == 32
    for client in clients[:32]:
        client.writer.transport.abort()
    while True:
        client = await desk.connect()
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            if (await client.ask("show status"))[1] == {"end": {}}:
                break


async def test_a_slow_reader_is_dropped(tmp_path):
    """Who asks for a lot and reads nothing costs a bounded amount of memory, for a bounded time."""
    limits = ControlLimits(slow_s=0.2, max_unread=32 * 1024)
    async with desk_at(tmp_path, limits) as desk:
        desk.target.put(0x2A, 20_000)
        lazy = socket.socket(socket.AF_UNIX)
        lazy.setblocking(False)
        lazy.connect(str(desk.path))
        lazy.send(b'{"verb": "show queue"}\n')
        other = await desk.connect()
        while not desk.target.pages:
            await other.ask("show status")
        while len(desk.server) == 2:
            await other.ask("show status")
        assert desk.target.pages * 256 < 20_000, "the whole answer was made for nobody"
        lazy.close()
        assert desk.faults == []


async def test_a_slow_follower_loses_lines(tmp_path):
    """Tracing never waits for who reads it; what was left out is counted."""
    limits = ControlLimits(max_unread=8 * 1024)
    async with desk_at(tmp_path, limits) as desk:
        client = await desk.connect()
        client.say(b'{"verb": "trace", "subsystem": "io", "follow": true}\n')
        await client.line()
        client.writer.transport.pause_reading()
        for _ in range(3000):
            desk.target.tracer.line("io", "x" * 1000)
        client.writer.transport.resume_reading()
        seen = 0
        while "left out" not in (text := (await client.line())["row"]["line"]):
            seen += 1
        assert 3000 == seen + int(re.match(r"(\d+) lines left out", text)[1])


async def test_a_silent_client_is_dropped(tmp_path):
    """Connections are not held by saying nothing, or one byte at a time."""
    async with desk_at(tmp_path, ControlLimits(idle_s=0.1)) as desk:
        client, dribbler = await desk.connect(), await desk.connect()
        dribbler.say(b"{")
        with contextlib.suppress(ConnectionError):
            assert await client.reader.read() == b""
        with contextlib.suppress(ConnectionError):
            assert await dribbler.reader.read() == b""
        patient = await desk.connect()
        _, end = await patient.ask("show status")
        assert {"end": {}} == end


async def test_many_requests_while_one_is_answered(desk):
    """What a client says ahead is bounded, and answered all the same."""
    desk.target.put(0x2A, 600)
    client = await desk.connect()
    line = b'{"verb": "show queue", "id": "0000002a"}\n'
    client.say(b'{"verb": "show queue"}\n' + line * 2 + b'{"verb":"show status"}\n' * 5000)
    ends = 0
    while ends < 5003:
        ends += "end" in await client.line()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (QueueUnavailableError("disk full"), "the queue can't be read now: disk full"),
        (
            OSError(5, "Input/output error"),
            "the queue can't be read now: [Errno 5] Input/output error",
        ),
    ],
)
async def test_a_queue_that_can_not_be_read(desk, fault, told):
    """A local fault is an answer; the connection goes on."""
    client = await desk.connect()
    desk.target.fault = fault
    assert ([], {"error": told, "usage": False}) == await client.ask("show queue")
    desk.target.fault = None
    assert (await client.ask("show queue"))[1] == {"end": {}}


@pytest.mark.parametrize("verb", ["show queue", "show stats", "monitor", "remove"])
async def test_a_fault_of_ours_is_told_to_who_minds_it(tmp_path, verb):
    """The client gets one line, the loop's exception handler the exception, and the server goes on."""
    async with desk_at(tmp_path) as desk:
        client = await desk.connect()
        desk.target.fault = AssertionError("inflight < 0")
        client.say(
            json.dumps({"verb": verb, **({"id": "all"} if verb == "remove" else {})}).encode()
        )
        client.say(b"\n")
        line = await client.line()
        if verb == "monitor":
            line = await client.line()
        assert {"error": "internal error", "usage": False} == line
        assert [desk.target.fault] == [fault["exception"] for fault in desk.faults]
        desk.target.fault = None
        assert (await client.ask("show status"))[1] == {"end": {}}


async def test_a_row_that_can_not_be_sent_is_a_fault_of_ours(tmp_path):
    """A value that JSON does not know ends the answer, not the connection."""
    async with desk_at(tmp_path) as desk:
        desk.target.put(0x2A, 1, last_status=object())
        client = await desk.connect()
        assert ([], {"error": "internal error", "usage": False}) == await client.ask("show queue")
        assert 1 == len(desk.faults)


# ---- start and end


async def test_a_dead_servers_socket_is_removed(tmp_path):
    """After a crash the next server starts; nobody has to clean up."""
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.is_socket()
    server = ControlServer(path, FakeTarget(), Effects())
    await server.start()
    await server.close()
    assert not path.exists()


async def test_a_living_servers_socket_is_left_alone(desk):
    """A second server is told so in one line, and the first one goes on."""
    second = ControlServer(desk.path, FakeTarget(), Effects())
    with pytest.raises(ControlSocketBusyError, match="another server answers on this socket"):
        await second.start()
    await second.close()
    assert (await (await desk.connect()).ask("show status"))[1] == {"end": {}}


async def test_a_file_of_that_name_is_left_alone(tmp_path):
    """What is no socket is never removed."""
    path = tmp_path / "control.sock"
    path.write_text("precious")
    with pytest.raises(ControlSocketBusyError, match="not a socket"):
        await ControlServer(path, FakeTarget(), Effects()).start()
    assert path.read_text() == "precious"


async def test_close_leaves_nothing_behind(tmp_path, fds):
    """Clients in the middle of an answer are cut off; socket and descriptors are gone; twice is once."""
    async with desk_at(tmp_path) as desk:
        desk.target.put(0x2A, 5000)
        idle, busy = await desk.connect(), await desk.connect()
        await idle.ask("show status")
        busy.say(b'{"verb": "show queue"}\n{"verb": "trace", "subsystem": "io", "follow": true}\n')
        await busy.line()
        await desk.server.close()
        await desk.server.close()
        assert not desk.path.exists()
        with contextlib.suppress(ConnectionError):
            assert await idle.reader.read() == b""
        assert desk.faults == []


async def test_a_client_that_is_just_coming_in_is_cut_off_too(tmp_path, fds):
    """Between accept and the first byte is a moment in which only the event loop knows a client."""
    for turns in range(5):
        async with desk_at(tmp_path) as desk:
            with socket.socket(socket.AF_UNIX) as client:
                client.setblocking(False)
                client.connect(str(desk.path))
                for _ in range(turns):
                    await asyncio.sleep(0)
                await desk.server.close()
                assert len(desk.server) == 0


async def test_close_does_not_remove_another_servers_socket(tmp_path):
    """Whoever took the name meanwhile keeps it."""
    path = tmp_path / "control.sock"
    first, second = (ControlServer(path, FakeTarget(), Effects()) for _ in range(2))
    await first.start()
    path.unlink()
    await second.start()
    await first.close()
    assert path.is_socket()
    await second.close()
    assert not path.exists()
