"""What goes wrong at the door: our faults, and clients that leave at the worst moment."""

import asyncio
import contextlib
import socket
import struct

import pytest

from mta.core.ids import MsgId
from mta.core.reply import Reply
from mta.inbound import Inbound
from mta.inbound_connection import LINGER_BYTES
from mta.inbound_session import Session
from mta.queue.base import QueueUnavailableError
from tests.support.door import FakeDoor
from tests.support.wire import Client

FAULTS = [
    OSError(28, "No space left on device", "/var/queue/secret"),
    OSError(24, "Too many open files"),
    QueueUnavailableError("disk I/O error /var/queue/secret"),
    MemoryError("secret"),
    ValueError("/var/queue/secret"),
    AssertionError("secret"),
    KeyError("secret"),
]
LEAKS = ("secret", "/var", "Error", "errno", "space left", "open files", "28", "24")


def failing_once(door: FakeDoor, where: str, fault: BaseException) -> None:
    def fail(name: str) -> None:
        if name == where:
            door.fault = None
            raise fault

    door.fault = fail


def check_temporary(answer: str) -> None:
    """Each line is a 4xx, and says nothing of our inside."""
    for line in answer.splitlines():
        assert line[0] == "4", line
        assert not any(leak in line for leak in LEAKS), line


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize(
    "where", ["begin", "recipient", "next_msgid", "reserve", "message", "submit", "commit"]
)
async def test_a_local_fault_is_temporary_and_leaks_nothing(where, fault):
    """Wherever it strikes: a 4xx, and the next message goes to its own recipients only."""
    door = FakeDoor()
    client = Client(door)
    client.say("EHLO c.test")
    door.hold = where == "commit"
    failing_once(door, where, fault)
    answers = [client.say("MAIL FROM:<alice@a.test>"), client.say("RCPT TO:<victim@v.test>")]
    answers.append(client.say("DATA"))
    if answers[-1].startswith("354"):
        answers.append(client.send("SECRET\r\n.\r\n"))
        if where == "commit":
            door.commit(fault)
            await asyncio.sleep(0)
            answers.append(client.take())
    failed = [answer for answer in answers if answer[:1] == "4"]
    assert len(failed) == 1
    check_temporary(failed[0])
    assert failed[0].startswith(
        "452 4.3.1 "
        if isinstance(fault, (OSError, MemoryError, QueueUnavailableError))
        else "451 4.3.0 "
    )
    assert door.accepted == []
    assert door.reserved == 0
    assert any("local-error" in line for line in door.lines)
    assert all("\n" not in line for line in door.lines)

    door.hold = False
    assert client.is_open
    assert client.say("RCPT TO:<carol@c.test>").startswith("503 ")
    client.say("MAIL FROM:<bob@b.test>", "RCPT TO:<carol@c.test>", "DATA")
    assert client.send("hello\r\n.\r\n").startswith("250 2.0.0 ")
    [message] = door.accepted
    assert message.transaction.sender == "bob@b.test"
    assert ["carol@c.test"] == [recipient.address for recipient in message.recipients]
    assert message.text == b"hello\r\n"
    assert door.reserved == 0


@pytest.mark.parametrize("where", ["next_session", "connect"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_a_fault_at_connect_is_a_421(where, fault):
    """The client is told to come back, and is not counted."""
    door = FakeDoor()
    failing_once(door, where, fault)
    client = Client(door)
    check_temporary(client.greeting)
    assert client.greeting.startswith("421 4.3.0 ")
    assert not client.is_open
    client.wire.lose(None)
    assert door.connections == {}


@pytest.mark.parametrize("group", [True, False])
async def test_a_refused_message_takes_its_recipients_with_it(group):
    """Pipelined or not: what follows a failed DATA starts from nothing."""
    door = FakeDoor()
    client = Client(door).ready("victim@v.test", sender="alice@a.test")
    failing_once(door, "submit", OSError(28, "No space left on device"))
    lines = ["SECRET", ".", "RCPT TO:<carol@c.test>", "MAIL FROM:<bob@b.test>"]
    lines += ["RCPT TO:<carol@c.test>", "DATA"]
    if group:
        answer = client.send("\r\n".join(lines) + "\r\n")
    else:
        answer = client.send("SECRET\r\n.\r\n") + "".join(client.say(line) for line in lines[2:])
    assert ["452", "503", "250", "250", "354"] == [line[:3] for line in answer.splitlines()]
    client.send("hello\r\n.\r\n")
    [message] = door.accepted
    assert ["carol@c.test"] == [recipient.address for recipient in message.recipients]
    assert b"SECRET" not in message.body


@pytest.mark.parametrize(
    ("reply", "errors"),
    [
        (Reply(452, "4.3.1", "Insufficient system storage"), 0),
        (Reply(550, "5.7.1", "Not wanted"), 1),
    ],
)
async def test_the_door_may_refuse_a_whole_message(reply, errors):
    """The reply is sent as it is; only what is the client's fault counts against it."""
    door = FakeDoor()
    door.hold = True
    client = Client(door).ready()
    assert client.send("x\r\n.\r\n") == ""
    door.commit(reply)
    await asyncio.sleep(0)
    assert client.take() == f"{reply}\r\n"
    assert errors == client.session.errors
    assert door.rejections == [reply]
    assert door.reserved == 0


async def test_a_cancelled_commit_is_temporary():
    """The server stopped: nothing was promised."""
    door = FakeDoor()
    door.hold = True
    client = Client(door).ready()
    client.send("x\r\n.\r\n")
    door.commits[0][1].cancel()
    await asyncio.sleep(0)
    assert client.take() == "451 4.3.0 Local error, try again later\r\n"
    assert door.reserved == 0


async def test_a_half_close_after_the_dot_waits_for_the_answer():
    """The commit goes on, the client gets its 250, then the connection is closed."""
    door = FakeDoor()
    door.hold = True
    client = Client(door).ready()
    client.send("x\r\n.\r\n")
    client.shut()
    assert client.is_open
    door.commit()
    await asyncio.sleep(0)
    assert client.take().startswith("250 2.0.0 ")
    assert not client.is_open
    assert len(door.accepted) == 1
    assert door.lines[-1].endswith("smtp disconnected reason=disconnect")


async def test_a_half_close_behind_pipelined_commands_answers_them():
    """What was sent before the end of input is obeyed before the end of the session."""
    door = FakeDoor()
    door.hold = True
    client = Client(door).ready()
    client.send("x\r\n.\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n")
    client.shut()
    door.commit()
    await asyncio.sleep(0)
    assert ["250", "250", "250"] == [line[:3] for line in client.take().splitlines()]
    assert not client.is_open


@pytest.mark.parametrize("accepted", [True, False])
async def test_a_lost_connection_does_not_stop_the_commit(accepted):
    """No answer is possible, but what was committed is logged, and its memory given back once."""
    door = FakeDoor()
    door.hold = True
    client = Client(door).ready()
    client.send("x\r\n.\r\n")
    assert door.reserved > 0
    client.wire.lose(ConnectionResetError(104, "Connection reset by peer"))
    assert not door.commits[0][1].cancelled()
    assert door.reserved > 0  # the body is still in memory
    assert (
        'smtp disconnected reason="io-error: [Errno 104] Connection reset by peer"'
        in door.lines[-1]
    )
    door.commit(None if accepted else OSError(5, "Input/output error"))
    await asyncio.sleep(0)
    assert door.reserved == 0
    assert accepted == any("smtp message msgid=00000001" in line for line in door.lines)
    assert client.clock.pending() == 0


@pytest.mark.parametrize("cut", range(len(b"hello\r\n.\r\n")))
@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_a_message_without_its_end_is_never_submitted(cut, how):
    """EOF or RST after any byte before the last: nothing is taken, nothing is kept."""
    door = FakeDoor()
    client = Client(door).ready()
    if cut:
        client.send(b"hello\r\n.\r\n"[:cut])
    if how == "eof":
        client.shut()
        client.take()
    else:
        client.wire.lose(ConnectionResetError())
    assert client.wire.lost
    assert door.accepted == []
    assert door.commits == []
    assert door.reserved == 0
    assert door.connections == {"127.0.0.1": 0}


async def test_a_commit_that_hangs_does_not_hold_the_client_for_ever():
    """After the timeout a 421; if the commit succeeds later the message is ours all the same."""
    door = FakeDoor(timeout_s=300.0)
    door.hold = True
    client = Client(door).ready()
    client.send("x\r\n.\r\n")
    client.clock.advance(299.0)
    assert client.take() == ""
    client.clock.advance(2.0)
    assert client.take() == "421 4.3.0 Local error, try again later\r\n"
    client.clock.advance(2.0)
    assert client.wire.lost
    assert door.reserved > 0
    door.commit()
    await asyncio.sleep(0)
    assert door.reserved == 0
    assert any("smtp message" in line for line in door.lines)


async def test_the_end_of_a_session_waits_for_the_answer_to_a_message():
    """A session whose time is over while its message is committed gets its 250, and then its 421."""
    door = FakeDoor(timeout_s=300.0, max_session_s=400.0)
    door.hold = True
    client = Client(door)
    client.clock.advance(200.0)
    client.ready()
    client.clock.advance(190.0)
    client.send("x\r\n.\r\n")
    client.clock.advance(100.0)
    assert client.take() == ""
    door.commit()
    await asyncio.sleep(0)
    assert client.take().startswith("250 ")
    client.clock.advance(201.0)
    assert client.take().startswith("421 4.4.2 ")


async def test_input_during_a_commit_waits_and_is_bounded():
    """One read's worth is kept; then reading stops until the commit is decided."""
    door = FakeDoor()
    door.hold = True
    client = Client(door).ready()
    client.send("x\r\n.\r\n")
    assert client.send("NOOP\r\n") == ""
    assert not client.wire.reading
    door.commit()
    await asyncio.sleep(0)
    assert client.wire.reading
    assert ["250", "250"] == [line[:3] for line in client.take().splitlines()]


async def test_a_command_that_waits_is_our_mistake():
    """Commands don't suspend; one that does is closed and is an assertion, not a session that hangs."""

    class Waiting(Inbound):
        async def smtp_WAIT(self, arg: str) -> None:
            await asyncio.sleep(0)

    door = FakeDoor()
    client = Client(door)
    session = Waiting(door, loop=client.session.loop)
    session.connection_made(client.wire)
    with pytest.raises(AssertionError, match="b'WAIT' waited"):
        session.data_received(b"WAIT\r\n")
    session.connection_lost(None)


async def test_a_subclass_may_add_commands_as_with_aiosmtpd():
    """``smtp_VERB`` and `push` are what aiosmtpd's users know; the verb is found without a register."""

    class More(Inbound):
        async def smtp_XMORE(self, arg: str) -> None:
            await self.push(f"250 2.0.0 {arg}")

    door = FakeDoor()
    client = Client(door)
    session = More(door, loop=client.session.loop)
    session.connection_made(client.wire)
    client.take()
    session.data_received(b"xmore soup\r\n")
    assert client.take() == "250 2.0.0 soup\r\n"
    assert client.say("XMORE soup").startswith("500 ")
    session.connection_lost(None)


async def test_a_client_without_address_is_nobody():
    """A client that is gone before it is looked at has no address: it is logged, and is not loopback."""
    door = FakeDoor()
    client = Client(door)
    session = Inbound(door, loop=client.session.loop)
    client.wire._extra["peername"] = None
    session.connection_made(client.wire)
    assert "connected address=unknown host=unknown" in door.lines[-1]
    session.connection_lost(None)


async def test_a_transport_that_cannot_half_close_is_closed():
    """So it will be under TLS."""
    client = Client(FakeDoor())
    client.wire.can_write_eof = lambda: False  # type: ignore[method-assign]
    assert client.say("GET /").startswith("421 ")
    assert client.wire.closing


async def test_a_session_alone_knows_no_messages():
    """`Session` is half a door."""
    session = Session(FakeDoor())
    with pytest.raises(NotImplementedError):
        session._receive(b"")
    with pytest.raises(NotImplementedError):
        session._reset()


@pytest.mark.parametrize("size", [10, LINGER_BYTES + 1])
async def test_a_client_that_was_sent_away_may_talk_on_for_a_moment(size):
    """Its input is thrown away so that it can read why; too much, or too long, and it is cut off."""
    door = FakeDoor()
    client = Client(door)
    client.send("GET / HTTP/1.1\r\n")
    assert not client.wire.lost
    assert client.send(b"MAIL FROM:<a@b>\r\n" + b"x" * size) == ""
    assert client.wire.lost == (size > LINGER_BYTES)
    client.clock.advance(1.5)
    assert client.wire.lost
    assert door.accepted == []
    assert "bad-input" in door.lines[-1]


# -- over real sockets -----------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def connection(door: FakeDoor):
    """Yield reader and writer of a client that is connected through loopback."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Inbound(door), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        server.close()
        await asyncio.wait_for(door.all_gone.wait(), 5)
        await server.wait_closed()


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: str) -> bytes:
    writer.write(line.encode() + b"\r\n")
    while True:
        answer = await asyncio.wait_for(reader.readline(), 5)
        if answer[3:4] != b"-":
            return answer


async def ready(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    for line in ["EHLO c.test", "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA"]:
        await talk(reader, writer, line)


async def test_a_real_half_close_gets_its_answer():
    """FIN right behind the dot: 250, then FIN from us."""
    door = FakeDoor()
    door.hold = True
    async with connection(door) as (reader, writer):
        await ready(reader, writer)
        writer.write(b"x\r\n.\r\n")
        writer.write_eof()
        await asyncio.wait_for(door.submitted.wait(), 5)
        door.commit()
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer == b"250 2.0.0 00000001 Message accepted for delivery\r\n"
    assert [MsgId(1)] == [message.msgid for message in door.accepted]
    assert door.reserved == 0


async def test_a_real_reset_behind_the_dot_loses_nothing():
    """RST right behind the dot: the commit is decided without the client, once."""
    door = FakeDoor()
    door.hold = True
    async with connection(door) as (reader, writer):
        await ready(reader, writer)
        writer.write(b"x\r\n.\r\n")
        await asyncio.wait_for(door.submitted.wait(), 5)
        client_socket = writer.get_extra_info("socket")
        client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        await asyncio.wait_for(door.all_gone.wait(), 5)
        door.commit()
        await asyncio.sleep(0)
        assert len(door.accepted) == 1
        assert door.reserved == 0


async def test_the_last_word_is_read_although_input_is_pending():
    """A client that keeps sending still sees why it was sent away: the connection isn't reset at once."""
    door = FakeDoor()
    async with connection(door) as (reader, writer):
        await reader.readline()
        writer.write(b"EHLO c.test\r\nMAIL FROM:<a@b>\r\n" + b"x" * 200_000)
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer == b"554 5.5.0 SMTP protocol synchronization\r\n"


async def test_a_client_that_never_reads_is_cut_off():
    """Its replies fill the socket, we stop obeying it, and the idle timer ends it."""
    door = FakeDoor(max_junk=10**9, timeout_s=0.3)
    async with connection(door) as (reader, writer):
        await reader.readline()
        await talk(reader, writer, "EHLO c.test")
        writer.transport.pause_reading()
        flood = b"NOOP\r\n" * 100_000
        with contextlib.suppress(ConnectionError, TimeoutError):
            for _ in range(200):
                writer.write(flood)
                await asyncio.wait_for(writer.drain(), 5)
        await asyncio.wait_for(door.all_gone.wait(), 10)
    assert door.lines[-1].endswith("smtp disconnected reason=timeout")
