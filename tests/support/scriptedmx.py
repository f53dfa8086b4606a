"""A mail exchanger that answers as a test says, and a driver that writes down what it is told, on real sockets."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, ClassVar

import pytest
import uvloop

from mta.core.envelopes.base import MtaEnvelope
from mta.core.ids import MsgId, SessionId, evpid
from mta.core.instructions import OpenConnection
from mta.core.limits import MtaLimits
from mta.core.reply import Outcome
from mta.core.stimuli import ConnectionClosed, ConnectionFailed, ConnectionReady, TransactionDone
from mta.effects import Effects
from mta.outbound import Outbound
from mta.outtls import OutboundTls
from mta.smtpclient import Timeouts

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


STAGES = ["banner", "ehlo", "mail", "rcpt", "data", "dot", "rset", "quit"]
