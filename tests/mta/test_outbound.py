"""Outbound connections against real sockets: every answer at every stage, and every way to end."""

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, ClassVar

import pytest
import uvloop

from mta.core.envelopes.base import MtaEnvelope
from mta.core.ids import EvpId, MsgId, SessionId, evpid
from mta.core.instructions import OpenConnection
from mta.core.limits import MtaLimits
from mta.core.reply import Outcome
from mta.core.stimuli import (
    ConnectionClosed,
    ConnectionFailed,
    ConnectionReady,
    TransactionDone,
)
from mta.effects import Effects
from mta.esmtp import TOO_LARGE
from mta.outbound import Outbound, delivery_line, show_duration
from mta.outerrors import CONNECT_TIMED_OUT, LOCAL_FAULT, NOT_LOOPBACK, STOPPED, network_error
from mta.outtls import OutboundTls
from mta.smtpclient import CHUNK_BYTES, TIMED_OUT, Timeouts

OK, TEMPFAIL, PERMFAIL = Outcome.OK, Outcome.TEMPFAIL, Outcome.PERMFAIL
BODY = b"Subject: hello\r\n\r\n.world\r\n"
S1 = SessionId(1)
M1 = MsgId(1)
PATIENCE_S = 30.0
"""Only a broken test waits so long."""
LOOPS = [
    pytest.param(asyncio.new_event_loop, id="asyncio"),
    pytest.param(uvloop.new_event_loop, id="uvloop"),
]
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def run(main: Coroutine[Any, Any, None], loop_factory: LoopFactory = uvloop.new_event_loop) -> None:
    """Run a coroutine on a fresh loop of one kind."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(asyncio.wait_for(main, PATIENCE_S))


@pytest.fixture(autouse=True, scope="module")
def _warm_up() -> None:
    """Let libuv open what it keeps for the life of the process, before descriptors are counted."""
    run(asyncio.sleep(0))


class ScriptedMx:
    """A server that answers well, but for one stage."""

    GOOD: ClassVar[dict[str, bytes | str]] = {
        "banner": b"220 mx.test\r\n",
        "ehlo": b"250 mx.test\r\n",
        "helo": b"250 mx.test\r\n",
        "mail": b"250 2.1.0 ok\r\n",
        "rcpt": b"250 2.1.5 ok\r\n",
        "data": b"354 go\r\n",
        "dot": b"250 2.0.0 queued\r\n",
        "rset": b"250 2.0.0 ok\r\n",
        "quit": b"221 2.0.0 bye\r\n",
    }

    def __init__(
        self, *, pipelining: bool = False, deaf: bool = False, **answers: bytes | str
    ) -> None:
        """Answer as told: bytes are sent; ``eof``, ``rst`` and ``hang`` are done.

        ``deaf``: do not read the message.
        """
        self.answers = {**self.GOOD, **answers}
        if pipelining and "ehlo" not in answers:
            self.answers["ehlo"] = b"250-mx.test\r\n250 PIPELINING\r\n"
        self.lines: list[bytes] = []
        self.messages: list[bytes] = []
        self.stages: list[str] = []
        """Stages that were reached."""
        self.connections = 0
        self.port = 0
        self._deaf = deaf
        self._stop = asyncio.Event()
        self._reached = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["ScriptedMx"]:
        """Serve on a free port; at the end wait for all connections to be gone."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self._stop.set()
            server.close()
            await asyncio.gather(*self._tasks)
            await server.wait_closed()

    async def reached(self, stage: str) -> None:
        """Wait until the client waits for the answer to ``stage``."""
        while stage not in self.stages:
            self._reached.clear()
            await self._reached.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._talk(reader, writer)
        except (ConnectionError, EOFError):
            pass
        finally:
            writer.transport.abort() if self._deaf else writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._answer("banner", writer)
        while line := await reader.readline():
            self.lines.append(line)
            verb = line[:4].strip().decode("latin-1").lower()
            await self._answer(verb, writer)
            if verb == "quit":
                return
            reply = self.answers[verb]
            if verb == "data" and isinstance(reply, bytes) and reply.startswith(b"3"):
                if self._deaf:
                    await self._stop.wait()
                    return
                message = b""
                while not (b"\r\n" + message).endswith(b"\r\n.\r\n"):
                    message += await reader.readuntil(b"\n")
                if message != b".\r\n":
                    self.messages.append(message)
                await self._answer("dot", writer)

    async def _answer(self, stage: str, writer: asyncio.StreamWriter) -> None:
        self.stages.append(stage)
        self._reached.set()
        answer = self.answers[stage]
        if isinstance(answer, bytes):
            writer.write(answer)
            await writer.drain()
        elif answer == "hang":
            await self._stop.wait()
            raise EOFError
        elif answer == "rst":
            writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            writer.transport.abort()
            raise EOFError
        else:
            assert answer == "eof", answer
            raise EOFError


class Recorder:
    """A driver that writes down what it is told and can wait for it."""

    def __init__(
        self,
        port: int,
        *,
        effects: Any = None,
        timeouts: Timeouts | None = None,
        limits: MtaLimits | None = None,
        tls: OutboundTls | None = None,
    ) -> None:
        self.told: list[object] = []
        self.lines: list[str] = []
        self._changed = asyncio.Event()
        self.react: Callable[[object], None] = lambda stimulus: None
        self.outbound = Outbound(
            effects or Effects(),
            "client.test",
            port,
            limits or MtaLimits(),
            on_ready=self._tell,
            on_failed=self._tell,
            on_done=self._tell,
            on_closed=self._tell,
            log=self.lines.append,
            timeouts=timeouts,
            tls=tls,
        )

    def _tell(self, stimulus: object) -> None:
        self.told.append(stimulus)
        self._changed.set()
        self.react(stimulus)

    async def told_count(self, count: int) -> list[object]:
        """Wait until so many things were told."""
        while len(self.told) < count:
            self._changed.clear()
            await self._changed.wait()
        return self.told

    def open(
        self, session: SessionId = S1, address: str = "127.0.0.1", host: str = "mx.test"
    ) -> None:
        self.outbound.open(OpenConnection(session, "example.org", "", address, host))

    def send(self, session: SessionId = S1, *, body: bytes = BODY, count: int = 1) -> bool:
        envelopes = [
            (evpid(M1, number + 1), MtaEnvelope("a@b.test", f"r{number}@c.test", 0.0, len(body)))
            for number in range(count)
        ]
        return self.outbound.start(session, M1, envelopes, body)

    def count(self, kind: type) -> int:
        return sum(isinstance(stimulus, kind) for stimulus in self.told)


async def one_message(recorder: Recorder) -> None:
    """Open, send one message, close if it is usable; return when all is over."""
    finished = asyncio.Event()

    def react(stimulus: object) -> None:
        match stimulus:
            case ConnectionReady(session):
                assert recorder.send(session)
            case TransactionDone(session, _, usable):
                if usable:
                    recorder.outbound.close(session)
            case ConnectionFailed() | ConnectionClosed():
                finished.set()

    recorder.react = react
    recorder.open()
    await finished.wait()
    await recorder.outbound.wait_idle()
    assert recorder.outbound.sessions == {}


ANSWERS: dict[str, bytes | str] = {
    "2xx": b"250 ok\r\n",
    "3xx": b"354 hm\r\n",
    "4xx": b"450 4.2.1 later\r\n",
    "5xx": b"550 5.1.1 never\r\n",
    "garbage": b"\x00\xff\x1b[2J garbage\r\n",
    "empty": b"\r\n",
    "eof": "eof",
    "rst": "rst",
    "hang": "hang",
}
STAGES = ["banner", "ehlo", "mail", "rcpt", "data", "dot", "rset", "quit"]


def expected_outcome(stage: str, kind: str) -> Outcome | None:
    """Return the verdict for the only recipient; None if the connection never was ready."""
    if stage == "banner":
        return OK if kind == "2xx" else None
    if stage == "ehlo":
        return OK if kind in ("2xx", "5xx") else None
    if stage == "rset":
        return PERMFAIL  # the recipient had been refused before
    if stage == "quit":
        return OK
    if kind == "5xx":
        return PERMFAIL
    return OK if kind == ("3xx" if stage == "data" else "2xx") else TEMPFAIL


async def one_case(stage: str, kind: str, *, pipelining: bool) -> None:
    """Play one of the 72 cases of a hostile server and check all that was told."""
    answers: dict[str, Any] = {stage: ANSWERS[kind]}
    if stage == "rset":
        answers["rcpt"] = b"550 5.1.1 never\r\n"
        answers["data"] = b"503 5.5.1 no recipients\r\n"
    wait_s = 0.25 if kind == "hang" else PATIENCE_S
    async with ScriptedMx(pipelining=pipelining, **answers).running() as mx:
        recorder = Recorder(mx.port, timeouts=Timeouts(*[wait_s] * len(Timeouts())))
        await one_message(recorder)
    case = f"{stage} {kind} {pipelining}: {recorder.told}"
    outcome = expected_outcome(stage, kind)
    stats = recorder.outbound.stats
    if outcome is None:
        assert [ConnectionFailed] == [type(stimulus) for stimulus in recorder.told], case
        assert (stats.opened, stats.failed, stats.ready, stats.closed) == (1, 1, 0, 0), case
        return
    kinds = [ConnectionReady, TransactionDone, ConnectionClosed]
    assert kinds == [type(stimulus) for stimulus in recorder.told], case
    _, done, closed = recorder.told
    assert isinstance(done, TransactionDone)
    assert isinstance(closed, ConnectionClosed)
    assert [outcome] == [result.outcome for result in done.results], case
    assert evpid(M1, 1) == done.results[0].evpid
    assert done.results[0].status.isprintable(), case
    lost = kind in ("garbage", "empty", "eof", "rst", "hang")
    assert stats.ambiguous == (stage == "dot" and lost), case
    assert len(mx.messages) == (1 if outcome is OK or stage == "dot" else 0), case
    if stage == "quit":
        assert done.usable, case
        assert (closed.reason == "quit") == (not lost), case
    elif stage == "rset":
        assert done.usable == (kind == "2xx"), case
    else:
        # Anything but a well-formed refusal, or a success, has to cost the connection.
        assert done.usable == (outcome is not TEMPFAIL or kind == "4xx"), case
    assert any("mta disconnected reason=quit" in line for line in recorder.lines) == (
        closed.reason == "quit"
    ), case


@pytest.mark.parametrize("loop_factory", LOOPS)
@pytest.mark.parametrize("pipelining", [False, True])
def test_every_answer_at_every_stage(loop_factory, pipelining, fds):
    """Nine answers at eight stages: classified, told once, and no descriptor stays."""

    async def main() -> None:
        cases = [
            one_case(stage, kind, pipelining=pipelining and stage != "ehlo")
            for stage in STAGES
            for kind in ANSWERS
        ]
        assert len(cases) == 72
        await asyncio.gather(*cases)

    run(main(), loop_factory)


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_messages_on_a_kept_connection(loop_factory, fds):
    """Messages arrive byte for byte, one connection for all, logged as OpenSMTPD does."""

    async def main() -> None:
        async with ScriptedMx(pipelining=True).running() as mx:
            recorder = Recorder(mx.port)
            left = 3

            def react(stimulus: object) -> None:
                nonlocal left
                if isinstance(stimulus, ConnectionReady | TransactionDone):
                    if left:
                        left -= 1
                        assert recorder.send(count=2)
                    else:
                        recorder.outbound.close(S1)

            recorder.react = react
            recorder.open()
            told = await recorder.told_count(5)
            await recorder.outbound.wait_idle()
            assert told[-1] == ConnectionClosed(S1, "quit")
            assert mx.connections == 1
            assert mx.messages == [b"Subject: hello\r\n\r\n..world\r\n.\r\n"] * 3
            assert recorder.lines == [
                f"0000000000000001 mta connecting address=smtp://127.0.0.1:{mx.port} host=mx.test",
                "0000000000000001 mta connected",
                "0000000000000001 mta disconnected reason=quit messages=3",
            ]
            assert recorder.outbound.stats.transactions == 3

    run(main(), loop_factory)


def test_errors_are_logged_in_both_dialects():
    """Before and after the first message the lines differ, as in OpenSMTPD's mta_error."""

    async def main() -> None:
        async with ScriptedMx(quit=b"junk\r\n").running() as mx:
            recorder = Recorder(mx.port)
            await one_message(recorder)
            assert recorder.lines[-1] == (
                "smtp-out: Error on session 0000000000000001 after 1 message sent:"
                " Bad response: no reply code in 'junk'"
            )
        async with ScriptedMx(banner=b"554 no\r\n").running() as mx:
            recorder = Recorder(mx.port)
            await one_message(recorder)
            assert recorder.lines[-1] == "0000000000000001 mta error reason=554 no"

    run(main())


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_large_messages_go_out_under_back_pressure(loop_factory):
    """A body of many chunks arrives whole, and the transport never holds much of it."""

    async def main() -> None:
        body = b"".join(b"%070d\r\n" % number for number in range(3 * CHUNK_BYTES // 72))
        received = bytearray()
        held: list[int] = []
        done = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 x\r\n")
            for reply in (b"250 x\r\n", b"250 x\r\n", b"250 x\r\n", b"354 x\r\n"):
                await reader.readline()
                writer.write(reply)
            while not received.endswith(b"\r\n.\r\n"):
                received.extend(await reader.read(10_000))
                transport = recorder.outbound.sessions[S1]._transport
                held.append(transport.get_write_buffer_size())
            writer.write(b"250 x\r\n")
            await reader.read()
            writer.close()
            await writer.wait_closed()
            done.set()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        recorder = Recorder(server.sockets[0].getsockname()[1])
        recorder.react = lambda stimulus: (
            isinstance(stimulus, ConnectionReady) and recorder.send(body=body)
        )
        recorder.open()
        await recorder.told_count(2)
        assert recorder.told[1].results[0].outcome is OK  # type: ignore[attr-defined]
        assert bytes(received) == body + b".\r\n"
        assert max(held) <= 2 * CHUNK_BYTES
        recorder.outbound.abort_all()
        await recorder.outbound.wait_idle()
        await done.wait()
        server.close()
        await server.wait_closed()

    run(main(), loop_factory)


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_a_peer_that_does_not_read_cannot_hold_a_connection(loop_factory, fds):
    """The deadline ends a body that nobody takes, and its memory is released at once."""

    async def main() -> None:
        async with ScriptedMx(deaf=True).running() as mx:
            recorder = Recorder(mx.port, timeouts=Timeouts(block=0.3, dot=PATIENCE_S))
            recorder.react = lambda stimulus: (
                isinstance(stimulus, ConnectionReady)
                and recorder.send(body=b"x" * 30_000_000 + b"\r\n")
            )
            recorder.open()
            _, done, closed = await recorder.told_count(3)
            assert isinstance(done, TransactionDone)
            assert [(TEMPFAIL, TIMED_OUT)] == [(r.outcome, r.status) for r in done.results]
            assert closed == ConnectionClosed(S1, TIMED_OUT)
            assert recorder.outbound.stats.ambiguous == 0
            await recorder.outbound.wait_idle()

    run(main(), loop_factory)


class TestConnecting:
    @pytest.mark.parametrize("loop_factory", LOOPS)
    def test_refused(self, loop_factory, fds):
        """A refusal is told in the words of the network."""

        async def main() -> None:
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
                recorder = Recorder(taken.getsockname()[1])
                recorder.open()
                assert await recorder.told_count(1) == [ConnectionFailed(S1, "Connection refused")]
                await recorder.outbound.wait_idle()
            assert recorder.lines[-1] == "0000000000000001 mta error reason=Connection refused"

        run(main(), loop_factory)

    @pytest.mark.parametrize("loop_factory", LOOPS)
    def test_hanging_connect_is_ended(self, loop_factory, fds):
        """A host that drops packets costs ``connect_timeout_s``, not more."""

        async def main() -> None:
            # A full backlog makes Linux drop the SYN, which is what a firewall does.
            with socket.socket() as deaf, contextlib.ExitStack() as fillers:
                deaf.bind(("127.0.0.1", 0))
                deaf.listen(0)
                for _ in range(3):
                    filler = fillers.enter_context(socket.socket())
                    filler.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        filler.connect(deaf.getsockname())
                recorder = Recorder(deaf.getsockname()[1], limits=MtaLimits(connect_timeout_s=0.2))
                recorder.open()
                assert await recorder.told_count(1) == [ConnectionFailed(S1, CONNECT_TIMED_OUT)]
                await recorder.outbound.wait_idle()

        run(main(), loop_factory)

    def test_an_address_outside_is_not_connected_to(self):
        """The loopback guard is a failure like any other, in words for the operator."""

        async def main() -> None:
            recorder = Recorder(25)
            recorder.open(address="192.0.2.1")
            assert await recorder.told_count(1) == [ConnectionFailed(S1, NOT_LOOPBACK)]

        run(main())

    @pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES])
    def test_faults_of_this_machine_are_nobodys_business(self, number):
        """Running out of descriptors is no news for the sender of the mail."""

        class Full(Effects):
            async def apoint(self, op: str, site: str) -> None:
                raise OSError(number, "secret")

        async def main() -> None:
            recorder = Recorder(25, effects=Full())
            recorder.open()
            assert await recorder.told_count(1) == [ConnectionFailed(S1, LOCAL_FAULT)]

        run(main())

    @pytest.mark.parametrize("loop_factory", LOOPS)
    def test_a_connect_that_fails_after_it_worked(self, loop_factory, fds):
        """When the effect raises although the socket is there, it is closed and told once."""

        class Late(Effects):
            def done(self, op: str, site: str) -> None:
                raise OSError(errno.EIO, "late")

        async def main() -> None:
            async with ScriptedMx().running() as mx:
                recorder = Recorder(mx.port, effects=Late())
                recorder.open()
                assert len(await recorder.told_count(1)) == 1
                await recorder.outbound.wait_idle()
                assert recorder.count(ConnectionFailed) == 1

        run(main(), loop_factory)

    def test_a_connection_that_comes_too_late(self):
        """A transport that is made after the connection was given up is aborted at once."""

        class Transport(asyncio.Transport):
            aborted = False

            def write(self, data: object) -> None:
                raise AssertionError("nothing is said on it")

            def abort(self) -> None:
                self.aborted = True

        class Slow(Effects):
            factory: Any = None

            async def create_connection(self, protocol_factory: Any, *_: Any, **__: Any) -> Any:
                self.factory = protocol_factory
                await asyncio.Event().wait()

        async def main() -> None:
            effects = Slow()
            recorder = Recorder(25, effects=effects)
            recorder.open()
            await asyncio.sleep(0)
            recorder.outbound.abort_all()
            transport = Transport()
            protocol = effects.factory()
            protocol.connection_made(transport)
            assert transport.aborted
            protocol.data_received(b"220 hello\r\n")
            protocol.eof_received()
            protocol.connection_lost(None)
            assert recorder.told == [ConnectionFailed(S1, STOPPED)]
            await recorder.outbound.wait_idle()

        run(main())

    def test_our_own_mistake_is_told_and_reported(self):
        """A bug in connecting is no silence: the connection fails, and the loop hears of the bug."""

        class Buggy(Effects):
            async def apoint(self, op: str, site: str) -> None:
                raise ZeroDivisionError

        async def main() -> None:
            mistakes: list[object] = []
            asyncio.get_running_loop().set_exception_handler(
                lambda loop, context: mistakes.append(context.get("exception"))
            )
            recorder = Recorder(25, effects=Buggy())
            recorder.open()
            assert await recorder.told_count(1) == [ConnectionFailed(S1, LOCAL_FAULT)]
            await recorder.outbound.wait_idle()
            assert [type(mistake) for mistake in mistakes] == [ZeroDivisionError]

        run(main())

    def test_errors_in_words(self):
        """What the network says is passed on, without numbers."""
        assert (
            network_error(ConnectionRefusedError(errno.ECONNREFUSED, "x")) == "Connection refused"
        )
        assert network_error(TimeoutError()) == CONNECT_TIMED_OUT
        assert network_error(OSError("Multiple exceptions")) == LOCAL_FAULT
        assert network_error(OSError(errno.EIO, "/var/secret")) == LOCAL_FAULT


class TestEnding:
    @pytest.mark.parametrize("loop_factory", LOOPS)
    @pytest.mark.parametrize("stage", ["connect", *STAGES])
    def test_abort_at_every_stage(self, loop_factory, stage, fds):
        """Stopping at once tells each due answer once, before `abort_all` returns."""

        class Stuck(Effects):
            async def apoint(self, op: str, site: str) -> None:
                if stage == "connect":
                    await asyncio.Event().wait()

        async def main() -> None:
            answers: dict[str, Any] = {stage: "hang"} if stage != "connect" else {}
            if stage == "rset":
                answers["rcpt"] = b"550 no\r\n"
            async with ScriptedMx(**answers).running() as mx:
                recorder = Recorder(mx.port, effects=Stuck())

                def react(stimulus: object) -> None:
                    if isinstance(stimulus, ConnectionReady):
                        recorder.send()
                    elif isinstance(stimulus, TransactionDone) and stimulus.usable:
                        recorder.outbound.close(S1)

                recorder.react = react
                recorder.open()
                if stage != "connect":
                    await mx.reached(stage)
                recorder.outbound.abort_all()
                told = list(recorder.told)
                recorder.outbound.abort_all()
                assert recorder.outbound.sessions == {}
                await recorder.outbound.wait_idle()
                assert told == recorder.told, "nothing is told afterwards"
                if stage in ("connect", "banner", "ehlo"):
                    assert told == [ConnectionFailed(S1, STOPPED)]
                else:
                    kinds = [ConnectionReady, TransactionDone, ConnectionClosed]
                    assert kinds == [type(stimulus) for stimulus in told]
                    assert told[2] == ConnectionClosed(S1, STOPPED)
                    assert recorder.outbound.stats.ambiguous == (stage == "dot")

        run(main(), loop_factory)

    def test_quit_is_bounded(self):
        """A server that does not answer QUIT is left after a short while."""

        async def main() -> None:
            async with ScriptedMx(quit="hang").running() as mx:
                recorder = Recorder(mx.port, timeouts=Timeouts(quit=0.1))
                recorder.react = lambda stimulus: (
                    isinstance(stimulus, ConnectionReady) and recorder.outbound.close(S1)
                )
                recorder.open()
                assert await recorder.told_count(2) == [
                    ConnectionReady(S1),
                    ConnectionClosed(S1, TIMED_OUT),
                ]

        run(main())

    def test_close_while_connecting(self):
        """A connection that is not wanted any more fails, and is not told to be closed."""

        async def main() -> None:
            async with ScriptedMx(banner="hang").running() as mx:
                recorder = Recorder(mx.port)
                recorder.open()
                recorder.outbound.close(S1)
                assert recorder.told == [], "not from inside close"
                assert await recorder.told_count(1) == [ConnectionFailed(S1, STOPPED)]
                await recorder.outbound.wait_idle()

        run(main())

    def test_close_during_a_transaction_lets_it_end(self):
        """The transaction's result comes first, then the end."""

        async def main() -> None:
            async with ScriptedMx(pipelining=True).running() as mx:
                recorder = Recorder(mx.port)
                recorder.open()
                await recorder.told_count(1)
                assert recorder.send()
                recorder.outbound.close(S1)
                _, done, closed = await recorder.told_count(3)
                assert isinstance(done, TransactionDone)
                assert (done.results[0].outcome, done.usable) == (OK, False)
                assert closed == ConnectionClosed(S1, "quit")

        run(main())

    def test_commands_to_a_connection_that_is_gone(self):
        """`start` says so and `close` does nothing: `on_closed` has been called."""

        async def main() -> None:
            async with ScriptedMx(ehlo=b"250 x\r\n421 bye\r\n").running() as mx:
                recorder = Recorder(mx.port)
                recorder.open()
                told = await recorder.told_count(2)
                assert told == [ConnectionReady(S1), ConnectionClosed(S1, "421 bye")]
                assert not recorder.send()
                recorder.outbound.close(S1)
                await recorder.outbound.wait_idle()
                assert len(recorder.told) == 2

        run(main())

    def test_commands_from_within_the_last_callbacks(self):
        """A driver that reacts to an unusable connection with `close` or `start` is told once."""

        async def main() -> None:
            async with ScriptedMx(mail=b"421 no\r\n").running() as mx:
                recorder = Recorder(mx.port)
                restarted: list[bool] = []

                def react(stimulus: object) -> None:
                    if isinstance(stimulus, ConnectionReady):
                        recorder.send()
                    else:
                        restarted.append(recorder.send())
                        recorder.outbound.close(S1)
                        recorder.outbound.abort_all()

                recorder.react = react
                recorder.open()
                await recorder.told_count(3)
                await recorder.outbound.wait_idle()
                kinds = [ConnectionReady, TransactionDone, ConnectionClosed]
                assert kinds == [type(stimulus) for stimulus in recorder.told]
                assert restarted == [False, False]

        run(main())


def test_a_driver_that_raises_is_still_told_of_the_end():
    """A mistake of the driver's cannot leave a connection in its books for ever."""

    async def main() -> None:
        async with ScriptedMx(mail=b"421 no\r\n").running() as mx:
            recorder = Recorder(mx.port)
            mistakes: list[object] = []
            asyncio.get_running_loop().set_exception_handler(
                lambda loop, context: mistakes.append(context.get("exception"))
            )

            def react(stimulus: object) -> None:
                if isinstance(stimulus, ConnectionReady):
                    recorder.send()
                elif isinstance(stimulus, TransactionDone):
                    raise ZeroDivisionError

            recorder.react = react
            recorder.open()
            await recorder.told_count(3)
            await recorder.outbound.wait_idle()
            assert recorder.outbound.sessions == {}
            assert [type(mistake) for mistake in mistakes] == [ZeroDivisionError]

    for loop_factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        run(main(), loop_factory)


class TestLocalRefusal:
    def test_is_told_later_and_the_connection_stays(self):
        """A message that the peer cannot take is refused without a byte, but not from `start`."""

        async def main() -> None:
            async with ScriptedMx(ehlo=b"250-x\r\n250 SIZE 10\r\n").running() as mx:
                recorder = Recorder(mx.port)
                recorder.open()
                await recorder.told_count(1)
                assert recorder.send()
                assert len(recorder.told) == 1
                assert not recorder.send(), "one at a time"
                recorder.outbound.close(S1)
                _, done, closed = await recorder.told_count(3)
                assert isinstance(done, TransactionDone)
                assert [(PERMFAIL, TOO_LARGE)] == [(r.outcome, r.status) for r in done.results]
                assert closed == ConnectionClosed(S1, "quit")
                assert not any(line.startswith(b"MAIL") for line in mx.lines)

        run(main())

    def test_that_was_not_told_when_the_connection_ends(self):
        """The transaction is still answered once."""

        async def main() -> None:
            async with ScriptedMx(ehlo=b"250-x\r\n250 SIZE 10\r\n").running() as mx:
                recorder = Recorder(mx.port)
                recorder.open()
                await recorder.told_count(1)
                assert recorder.send(count=2)
                recorder.outbound.abort_all()
                await recorder.outbound.wait_idle()
                _, done, closed = recorder.told
                assert isinstance(done, TransactionDone)
                assert len(done.results) == 2
                assert closed == ConnectionClosed(S1, STOPPED)

        run(main())


def test_rows_show_what_each_connection_does():
    """The table has address, state and message of each connection, connecting ones too."""

    async def main() -> None:
        async with ScriptedMx(dot="hang").running() as mx:
            recorder = Recorder(mx.port)
            recorder.open()
            (row,) = recorder.outbound.rows()
            assert (row.session, row.state, row.host) == (S1, "connecting", "mx.test")
            await recorder.told_count(1)
            assert recorder.outbound.rows()[0].state == "ready"
            recorder.send()
            await mx.reached("dot")
            (row,) = recorder.outbound.rows()
            assert (row.state, row.msgid, row.messages) == ("dot", M1, 0)
            assert (row.domain, row.address, row.source) == ("example.org", "127.0.0.1", "")
            recorder.outbound.abort_all()
            assert recorder.outbound.rows() == []
            await recorder.outbound.wait_idle()

    run(main())


def test_no_delay():
    """Small writes leave at once: Nagle's algorithm would cost 40 ms per command."""

    async def main() -> None:
        async with ScriptedMx().running() as mx:
            recorder = Recorder(mx.port)
            recorder.open()
            await recorder.told_count(1)
            transport = recorder.outbound.sessions[S1]._transport
            assert transport is not None
            sock = transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            recorder.outbound.abort_all()
            await recorder.outbound.wait_idle()

    for loop_factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        run(main(), loop_factory)


def test_one_timer_per_connection():
    """A hundred messages arm the deadline a few times, not for each command."""

    async def main() -> None:
        async with ScriptedMx(pipelining=True).running() as mx:
            recorder = Recorder(mx.port)
            armed = 0
            loop = asyncio.get_running_loop()
            call_at = loop.call_at

            def counted(*args: Any, **options: Any) -> asyncio.TimerHandle:
                nonlocal armed
                armed += 1
                return call_at(*args, **options)

            loop.call_at = counted  # type: ignore[method-assign]
            left = 100

            def react(stimulus: object) -> None:
                nonlocal left
                left -= 1
                if left:
                    recorder.send()
                else:
                    recorder.outbound.close(S1)

            recorder.react = react
            recorder.open()
            await recorder.told_count(101)
            await recorder.outbound.wait_idle()
            assert armed <= 10

    run(main(), asyncio.new_event_loop)


class TestLines:
    def test_delivery(self):
        """The line of OpenSMTPD's mta_delivery_log, with and without a connection."""
        line = delivery_line(
            SessionId(0xAB),
            EvpId(0x0000000100000002),
            sender="a@b",
            rcpt="c@d",
            source="",
            relay="127.0.0.1 (mx.d)",
            delay_s=93784.9,
            outcome=OK,
            status="250 2.0.0 ok",
        )
        assert line == (
            "00000000000000ab mta delivery evpid=0000000100000002 from=<a@b> to=<c@d> rcpt=<->"
            ' source="-" relay="127.0.0.1 (mx.d)" delay=1d2h3m4s result="Ok" stat="250 2.0.0 ok"'
        )

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0, "0s"),
            (0.9, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3601, "1h1s"),
            (86400, "1d"),
            (-61, "-1m1s"),
        ],
    )
    def test_durations(self, seconds, text):
        """Parts that are 0 are left out."""
        assert show_duration(seconds) == text
