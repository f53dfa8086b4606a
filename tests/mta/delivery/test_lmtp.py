"""LMTP: one transaction, a verdict for each recipient, and no way in which a server can lose mail."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from mta.core.envelopes.base import MtaEnvelope
from mta.core.reply import Outcome
from mta.delivery.base import DeliveryLimits, DeliveryResult
from mta.delivery.lmtp import LmtpDeliverer
from mta.effects import Effects
from mta.smtpclient import ClientSession, Closed, Ready, State, TransactionResult
from tests.mta.delivery.jobs import BODY, is_discreet, job
from tests.support.faults import FaultyEffects, Plan

_MESSAGE_MAX = 64 * 1024 * 1024


class Server:
    """An LMTP server that answers as its script says, and keeps what it took."""

    def __init__(self, **script: str) -> None:
        self.script = script
        """What it says to a verb, in the place of what would be right; ``after`` for each recipient in
        turn, separated by ``|``. ``close`` closes the connection, ``silence`` says nothing."""
        self.lines: list[str] = []
        self.bodies: list[bytes] = []
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._talk(reader, writer)
        self.open -= 1
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def say(verb: str, usual: str) -> bool:
            text = self.script.get(verb, usual)
            if text == "silence":
                await reader.read()
            if text in ("silence", "close"):
                raise ConnectionError
            writer.write(text.replace("\n", "\r\n").encode() + b"\r\n")
            return text.startswith(("2", "3"))

        await say("banner", "220 here LMTP")
        recipients = -1
        while line := (await reader.readline()).decode().rstrip("\r\n"):
            self.lines.append(line)
            match line.split()[0]:
                case "LHLO":
                    await say("LHLO", "250-localhost\n250-PIPELINING\n250-8BITMIME\n250 SMTPUTF8")
                case "MAIL":
                    recipients = 0 if await say("MAIL", "250 2.1.0 Ok") else -1
                case "RCPT" if recipients < 0:
                    writer.write(b"503 5.5.1 MAIL first\r\n")
                case "RCPT":
                    name = line[8:].split("@")[0].strip("<>")
                    recipients += await say(name, "250 2.1.5 Ok")
                case "DATA" if recipients < 1:
                    writer.write(b"503 5.5.1 No recipients\r\n")
                case "DATA":
                    if await say("DATA", "354 go on"):
                        text = await reader.readuntil(b"\r\n.\r\n")
                        self.bodies.append(text[:-3])
                        usual = "|".join(["250 2.0.0 Saved"] * recipients)
                        for reply in self.script.get("after", usual).split("|"):
                            self.script["dot"] = reply
                            await say("dot", reply)
                case "QUIT":
                    await say("QUIT", "221 bye")
                    return
                case _:
                    await say("other", "250 Ok" if line == "RSET" else "500 5.5.2 What?")


@asynccontextmanager
async def running(
    server: Server, where: Path | None = None
) -> AsyncIterator[Path | tuple[str, int]]:
    """Run a server on a Unix socket, or on a free TCP port."""
    if where is not None:
        listener = await asyncio.start_unix_server(server.serve, where, limit=_MESSAGE_MAX)
        place: Path | tuple[str, int] = where
    else:
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, limit=_MESSAGE_MAX)
        place = listener.sockets[0].getsockname()[:2]
    try:
        yield place
    finally:
        listener.close()
        async with asyncio.timeout(5):
            while server.open:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await asyncio.sleep(0)


async def delivered(tmp_path: Path, server: Server, **changes: str) -> DeliveryResult:
    async with running(server) as place:
        return await LmtpDeliverer(Effects(), server=place).deliver(job(tmp_path, **changes))


@pytest.mark.parametrize("tcp", [False, True])
async def test_a_message_is_taken(tmp_path, fds, tcp):
    """Over a Unix socket or TCP: LHLO, one transaction, the message with our mark, dots stuffed."""
    server = Server()
    async with running(server, None if tcp else tmp_path / "socket") as place:
        shell = LmtpDeliverer(Effects(), server=place, hostname="mx.example.test")
        result = await shell.deliver(job(tmp_path / "home"))
    assert (Outcome.OK, "250 2.0.0 Saved") == result
    assert server.lines[:4] == [
        "LHLO mx.example.test",
        "MAIL FROM:<bob@remote.test>",
        "RCPT TO:<ann@example.test>",
        "DATA",
    ]
    mark = b"Delivered-To: ann@example.test\r\n"
    assert [mark + BODY.replace(b"\r\n.", b"\r\n..")] == server.bodies


@pytest.mark.parametrize(
    ("recipient", "named"),
    [("dest", "ann@example.test"), ("rcpt", "ann+list@example.test"), ("user", "ann")],
)
async def test_what_rcpt_names(tmp_path, recipient, named):
    """The final address, the original one, or the user's name."""
    server = Server()
    async with running(server) as place:
        shell = LmtpDeliverer(Effects(), server=place, recipient=recipient)
        assert (await shell.deliver(job(tmp_path))).outcome is Outcome.OK
    assert f"RCPT TO:<{named}>" in server.lines


async def test_each_recipient_has_a_verdict(tmp_path, fds):
    """Refused at RCPT, taken, over quota, unknown after all, and a loop that is not even tried."""
    server = Server(
        no="550 5.1.1 Nobody",
        after="250 2.0.0 Saved|452 4.2.2 Over quota|550-5.1.1 Gone\n550 5.1.1 Really",
    )
    names = ("a", "no", "loop", "b", "c")
    body = b"Delivered-To: loop@example.test\r\n" + BODY
    jobs = [job(tmp_path, dest=f"{name}@example.test", body=body) for name in names]
    async with running(server) as place:
        results = await LmtpDeliverer(Effects(), server=place).deliver_all(jobs)
    assert results == [
        (Outcome.OK, "250 2.0.0 Saved"),
        (Outcome.PERMFAIL, "550 5.1.1 Nobody"),
        (Outcome.LOOP, "5.4.6 Loop detected"),
        (Outcome.TEMPFAIL, "452 4.2.2 Over quota"),
        (Outcome.PERMFAIL, "550 5.1.1 Gone Really"),
    ]
    assert 1 == len(server.bodies)


@pytest.mark.parametrize(
    ("script", "outcome", "status"),
    [
        ({"banner": "421 4.3.2 Busy"}, Outcome.TEMPFAIL, "421 4.3.2 Busy"),
        ({"banner": "554 No"}, Outcome.TEMPFAIL, "554 No"),
        ({"banner": "close"}, Outcome.TEMPFAIL, "Connection closed unexpectedly"),
        ({"banner": "hello"}, Outcome.TEMPFAIL, "Bad response: "),
        ({"LHLO": "500 5.5.1 SMTP only"}, Outcome.TEMPFAIL, "500 5.5.1 SMTP only"),
        ({"LHLO": "close"}, Outcome.TEMPFAIL, "Connection closed unexpectedly"),
        ({"MAIL": "550 5.7.1 Not you"}, Outcome.PERMFAIL, "550 5.7.1 Not you"),
        ({"ann": "450 4.2.1 Later"}, Outcome.TEMPFAIL, "450 4.2.1 Later"),
        ({"ann": "550 5.1.1 Nobody"}, Outcome.PERMFAIL, "550 5.1.1 Nobody"),
        ({"DATA": "451 4.3.0 No disk"}, Outcome.TEMPFAIL, "451 4.3.0 No disk"),
        ({"DATA": "close"}, Outcome.TEMPFAIL, "Connection closed unexpectedly"),
        ({"after": "554 5.6.0 Spam"}, Outcome.PERMFAIL, "554 5.6.0 Spam"),
        ({"after": "421 4.3.2 Bye"}, Outcome.TEMPFAIL, "421 4.3.2 Bye"),
        ({"after": "354 more"}, Outcome.TEMPFAIL, ""),
        ({"after": "nonsense"}, Outcome.TEMPFAIL, "Bad response: "),
        (
            {"after": "close"},
            Outcome.TEMPFAIL,
            "Connection closed unexpectedly after the final dot",
        ),
        ({"QUIT": "close"}, Outcome.OK, "250 2.0.0 Saved"),
        ({"QUIT": "500 no"}, Outcome.OK, "250 2.0.0 Saved"),
    ],
)
async def test_what_a_server_can_say(tmp_path, script, outcome, status):
    """Only what was read whole counts; only a verdict about this mail is permanent."""
    result = await delivered(tmp_path, Server(**script))
    assert outcome is result.outcome, result
    assert result.status.startswith(status)


async def test_verdicts_that_were_read_are_kept(tmp_path, fds):
    """When the connection breaks among the replies after the dot, the first ones hold."""
    for end, words in (("close", "Connection closed"), ("421 Bye", "421 Bye")):
        server = Server(after=f"250 Saved|550 5.1.1 Gone|{end}")
        jobs = [job(tmp_path, dest=f"{name}@example.test") for name in "abcd"]
        async with running(server) as place:
            results = await LmtpDeliverer(Effects(), server=place).deliver_all(jobs)
        outcomes = [result.outcome for result in results]
        assert [Outcome.OK, Outcome.PERMFAIL, Outcome.TEMPFAIL, Outcome.TEMPFAIL] == outcomes
        assert results[2].status.startswith(words)
        assert results[3].status.startswith(words)


@pytest.mark.parametrize("verb", ["banner", "LHLO", "MAIL", "ann", "DATA", "after"])
async def test_a_silent_server_is_left(tmp_path, fds, verb):
    """Silence at any step ends at a deadline."""
    server = Server(**{verb: "silence"})
    async with running(server) as place:
        shell = LmtpDeliverer(Effects(), DeliveryLimits(timeout_s=0.1), server=place)
        result = await shell.deliver(job(tmp_path))
    assert Outcome.TEMPFAIL is result.outcome
    assert result.status.startswith("Connection timeout")


async def test_no_server(tmp_path, fds):
    """Nobody listens, or it is no socket: temporary, and the path is nobody's business."""
    (tmp_path / "file").write_text("x")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    notes: list[str] = []
    for place in (tmp_path / "gone", tmp_path / "dead", tmp_path / "file", ("127.0.0.1", port)):
        shell = LmtpDeliverer(Effects(), server=place, log=notes.append)
        result = await shell.deliver(job(tmp_path / "home"))
        assert (Outcome.TEMPFAIL, "4.4.1 Connection refused") == result
        assert is_discreet(result, tmp_path)
    assert 4 == len(notes)


async def test_only_this_machine(tmp_path):
    """An LMTP server elsewhere is not connected to while relay.allow is loopback."""
    result = await LmtpDeliverer(Effects(), server=("192.0.2.1", 24)).deliver(job(tmp_path))
    assert Outcome.TEMPFAIL is result.outcome
    assert "Not a loopback address" in result.status


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("unix", [False, True])
async def test_a_connect_that_fails_leaves_nothing(tmp_path, fds, when, unix):
    """No descriptor, no transaction, and a temporary failure."""
    server = Server()
    async with running(server, tmp_path / "socket" if unix else None) as place:
        effects = FaultyEffects(Plan(1, when=when))
        result = await LmtpDeliverer(effects, server=place).deliver(job(tmp_path / "home"))
    assert (Outcome.TEMPFAIL, "4.3.0 Local resource shortage") == result
    assert [] == server.bodies


async def test_a_connect_that_hangs(tmp_path, fds):
    """Is given up in time."""
    effects = FaultyEffects()
    effects.hangs.add(("connect", "lmtp"))
    limits = DeliveryLimits(connect_timeout_s=0.05)
    shell = LmtpDeliverer(effects, limits, server=("127.0.0.1", 24))
    assert (Outcome.TEMPFAIL, "4.4.1 Connection timed out") == await shell.deliver(job(tmp_path))


@pytest.mark.parametrize("verb", ["banner", "LHLO", "MAIL", "DATA", "after"])
async def test_being_cancelled_gives_the_connection_back(tmp_path, fds, verb):
    """At whatever step: the server sees the end at once, and no descriptor stays."""
    server = Server(**{verb: "silence"})
    async with running(server) as place:
        deliverer = LmtpDeliverer(Effects(), server=place)
        task = asyncio.get_running_loop().create_task(deliverer.deliver(job(tmp_path)))
        async with asyncio.timeout(5):
            while not server.open:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("unix", [False, True])
async def test_cancelled_at_every_step_of_the_loop(tmp_path, fds, unix):
    """After any number of turns of the loop, between connecting and being connected too."""
    server = Server()
    loop = asyncio.get_running_loop()
    async with running(server, tmp_path / "socket" if unix else None) as place:
        for turns in range(25):
            deliverer = LmtpDeliverer(Effects(), server=place)
            task = loop.create_task(deliverer.deliver(job(tmp_path / "home")))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                assert (await task).outcome is Outcome.OK


async def test_a_large_message_and_a_slow_reader(tmp_path, fds):
    """Eight megabytes go through a transport that is full most of the time."""
    server = Server()
    body = b"Subject: x\r\n\r\n" + (b"." * 98 + b"\r\n") * 80_000
    async with running(server) as place:
        result = await LmtpDeliverer(Effects(), server=place).deliver(job(tmp_path, body=body))
    assert result.outcome is Outcome.OK
    assert server.bodies[0].endswith(body.replace(b"\r\n.", b"\r\n.."))


async def test_addresses_that_need_smtputf8(tmp_path):
    """Sent as such where it is offered, refused for good where it is not."""
    server = Server()
    result = await delivered(tmp_path, server, dest="ännchen@example.test")
    assert result.outcome is Outcome.OK
    assert "MAIL FROM:<bob@remote.test> SMTPUTF8" in server.lines
    result = await delivered(tmp_path, Server(LHLO="250 here"), dest="ännchen@example.test")
    assert (Outcome.PERMFAIL, "553 5.6.7") == (result.outcome, result.status[:9])


async def test_a_mistake_of_ours_is_temporary(tmp_path, fds, monkeypatch):
    """A session that breaks an assertion costs no mail, and the loop hears of it."""
    heard: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: heard.append(context.get("exception")))

    def broken(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(ClientSession, "start", broken)
    result = await delivered(tmp_path, Server())
    assert (Outcome.TEMPFAIL, "4.3.0 Internal error") == result
    assert [AssertionError] == [type(error) for error in heard]


# ---- the client's half, without sockets


def lmtp_session(*extensions: bytes) -> ClientSession:
    session = ClientSession("localhost", now=0.0, lmtp=True)
    session.receive(b"220 here\r\n", 0.0)
    assert b"LHLO localhost\r\n" == session.data_to_send(0.0)
    offered = b"".join(b"250-%s\r\n" % extension for extension in extensions)
    events = session.receive(b"250-localhost\r\n" + offered + b"250 8BITMIME\r\n", 0.0)
    assert [Ready] == [type(event) for event in events]  # our own name is no loop here
    return session


def to(*names: str) -> list[MtaEnvelope]:
    return [MtaEnvelope("", f"{name}@b.test", 0.0, 10) for name in names]


@pytest.mark.parametrize("pipelining", [False, True])
def test_replies_come_one_by_one(pipelining):
    """However the replies are cut, each goes to its recipient, and the session goes on after the last."""
    session = lmtp_session(*([b"PIPELINING"] if pipelining else []))
    for _ in range(2):
        events = session.start(to("a", "b", "c"), b"x\r\n", 0.0)
        replies = [b"250 ok\r\n", b"250 a\r\n", b"550 b\r\n", b"250 c\r\n", b"354 go\r\n"]
        for reply in replies:
            session.data_to_send(0.0)
            events += session.receive(reply, 0.0)
        assert b"x\r\n.\r\n" == session.data_to_send(0.0)
        for byte in b"250 2.0.0 a\r\n451 4.2.2 c\r\n":
            assert events == []
            events = session.receive(bytes([byte]), 5.0)
        expected = (
            (Outcome.OK, "250 2.0.0 a"),
            (Outcome.PERMFAIL, "550 b"),
            (Outcome.TEMPFAIL, "451 4.2.2 c"),
        )
        assert events == [TransactionResult(expected, usable=True)]
        assert session.state is State.READY


def test_each_reply_has_its_time():
    """The wait after the dot begins anew with each reply, within that for the transaction."""
    session = lmtp_session(b"PIPELINING")
    session.start(to("a", "b"), b"x\r\n", 0.0)
    session.data_to_send(0.0)
    session.receive(b"250 ok\r\n250 a\r\n250 b\r\n354 go\r\n", 0.0)
    session.data_to_send(0.0)
    assert 600.0 == session.deadline
    session.receive(b"250 a\r\n", 500.0)
    assert 1100.0 == session.deadline
    events = session.timer(1100.0)
    assert isinstance(events[0], TransactionResult)
    assert events[0].results == (
        (Outcome.OK, "250 a"),
        (Outcome.TEMPFAIL, "Connection timeout after the final dot"),
    )
    assert events[0].ambiguous
    assert [Closed("Connection timeout")] == events[1:]


def test_one_reply_too_many_is_no_verdict():
    """A server that answers once more than it has recipients breaks the session, not the verdicts."""
    session = lmtp_session(b"PIPELINING")
    session.start(to("a"), b"x\r\n", 0.0)
    session.data_to_send(0.0)
    session.receive(b"250 ok\r\n250 a\r\n354 go\r\n", 0.0)
    session.data_to_send(0.0)
    events = session.receive(b"250 a\r\n250 b\r\n", 0.0)
    assert events[0] == TransactionResult(((Outcome.OK, "250 a"),), usable=True)
    assert isinstance(events[1], Closed)


def test_smtp_still_answers_once():
    """Without LMTP one reply is for all."""
    session = ClientSession("localhost", now=0.0)
    session.receive(b"220 x\r\n", 0.0)
    assert b"EHLO localhost\r\n" == session.data_to_send(0.0)
    session.receive(b"250-x\r\n250 PIPELINING\r\n", 0.0)
    session.start(to("a", "b"), b"x\r\n", 0.0)
    session.data_to_send(0.0)
    session.receive(b"250 ok\r\n250 a\r\n250 b\r\n354 go\r\n", 0.0)
    session.data_to_send(0.0)
    (event,) = session.receive(b"250 all\r\n", 0.0)
    assert event == TransactionResult(((Outcome.OK, "250 all"),) * 2, usable=True)
