"""A driver with the real core and a real queue, and an outside that does as the test says."""

import asyncio
import heapq
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from mta.config import Config
from mta.core.engine import Engine
from mta.core.envelopes.base import MtaEnvelope, Recipient, Transaction
from mta.core.ids import EvpId, MsgId, SessionId
from mta.core.instructions import OpenConnection
from mta.core.reply import Outcome
from mta.core.routing import MxHost, Resolution, ResolutionStatus
from mta.core.settings import build
from mta.core.stimuli import (
    ConnectionClosed,
    ConnectionFailed,
    ConnectionReady,
    Result,
    Stimulus,
    TransactionDone,
)
from mta.driver import Driver
from mta.effects import Effects
from mta.outconnection import SessionRow
from mta.queue.sqlite import SqliteQueue
from mta.trace import Tracer
from tests.support.faults import Plan

EPOCH = 1_700_000_000.0
OK = (Outcome.OK, "250 2.0.0 Ok")
LATER = (Outcome.TEMPFAIL, "451 4.3.0 later")
NEVER = (Outcome.PERMFAIL, "550 5.1.1 no such user")
BODY = b"Subject: hello\r\n\r\nbody\r\n"


class ManualClock:
    """A wall clock that stands still until the test moves it."""

    def __init__(self) -> None:
        self.wall = EPOCH


class FakeLog:
    """Keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.verbose = False
        self.lost = 0

    def info(self, line: str) -> None:
        self.lines.append(line)

    def warn(self, line: str) -> None:
        self.lines.append("warn: " + line)

    def debug(self, line: str) -> None:
        self.lines.append("debug: " + line)

    def about(self, *words: str) -> list[str]:
        """Return the lines that have all of the words."""
        return [line for line in self.lines if all(word in line for word in words)]


class Sent(NamedTuple):
    """One transaction, as the remote host saw it."""

    session: SessionId
    msgid: MsgId
    envelopes: list[tuple[EvpId, MtaEnvelope]]
    body: bytes

    @property
    def sender(self) -> str:
        return self.envelopes[0][1].sender

    @property
    def rcpts(self) -> list[str]:
        return [envelope.rcpt for _, envelope in self.envelopes]


class FakeOutbound:
    """All remote hosts: keeps the promises of `mta.outbound.Outbound`, and remembers what it was sent."""

    def __init__(self, tell: Callable[[Stimulus], None]) -> None:
        self.tell = tell
        self.sent: list[Sent] = []
        self.opened: list[OpenConnection] = []
        self.sessions: dict[SessionId, OpenConnection] = {}
        self.connect = "ready"
        """``ready``, ``failed`` or ``silent``: what becomes of a connection."""
        self.answer: Callable[[str], tuple[Outcome, str] | None] = lambda rcpt: OK
        """The outcome for a recipient; None: no answer until `finish`."""
        self.usable = True
        self.start_fails = False
        """Connections are gone when a transaction wants to start."""
        self.inside = False
        """Answer from inside `open` and `start`, before they return."""
        self.waiting: dict[SessionId, Sent] = {}
        self._ready: set[SessionId] = set()
        self._loop = asyncio.get_running_loop()

    def _later(self, stimulus: Stimulus) -> None:
        if self.inside:
            self.tell(stimulus)
        else:
            self._loop.call_soon(self._deliver, stimulus)

    def _deliver(self, stimulus: Stimulus) -> None:
        session = stimulus.session  # type: ignore[union-attr]
        if session not in self.sessions:
            return
        if isinstance(stimulus, ConnectionReady):
            self._ready.add(session)
        elif isinstance(stimulus, ConnectionFailed | ConnectionClosed):
            del self.sessions[session]
            self._ready.discard(session)
        self.tell(stimulus)

    def open(self, instruction: OpenConnection) -> None:
        self.opened.append(instruction)
        self.sessions[instruction.session] = instruction
        if self.connect == "ready":
            self._ready.add(instruction.session)
            self._later(ConnectionReady(instruction.session))
        elif self.connect == "failed":
            self._later(ConnectionFailed(instruction.session, "Connection refused"))

    def start(
        self,
        session: SessionId,
        msgid: MsgId,
        envelopes: Sequence[tuple[EvpId, MtaEnvelope]],
        body: bytes,
    ) -> bool:
        if self.start_fails:
            self._later(ConnectionClosed(session, "Connection reset by peer"))
            return False
        sent = Sent(session, msgid, list(envelopes), body)
        self.sent.append(sent)
        self.waiting[session] = sent
        if all(self.answer(rcpt) is not None for rcpt in sent.rcpts):
            self.finish(session)
        return True

    def finish(self, session: SessionId) -> None:
        """Answer a transaction."""
        sent = self.waiting.pop(session)
        results = []
        for evpid, envelope in sent.envelopes:
            answer = self.answer(envelope.rcpt)
            assert answer is not None, envelope
            results.append(Result(evpid, *answer))
        self._later(TransactionDone(session, tuple(results), self.usable))

    def close(self, session: SessionId) -> None:
        if session not in self._ready:
            self._loop.call_soon(self._deliver, ConnectionFailed(session, "Server is stopping"))
        else:
            self._loop.call_soon(self._deliver, ConnectionClosed(session, "quit"))

    def hang_up(self, session: SessionId, reason: str = "Connection reset by peer") -> None:
        """The host is gone."""
        self.waiting.pop(session, None)
        self._deliver(ConnectionClosed(session, reason))

    def abort_all(self) -> None:
        for session in list(self.sessions):
            kind = ConnectionClosed if session in self._ready else ConnectionFailed
            self.waiting.pop(session, None)
            self._deliver(kind(session, "Server is stopping"))

    async def wait_idle(self) -> None:
        assert not self.sessions, "somebody opened a connection while all were ended"

    def rows(self) -> list[SessionRow]:
        return [
            SessionRow(
                session,
                opened.domain,
                "",
                opened.address,
                opened.host,
                "ready" if session in self._ready else "connecting",
                0,
                None,
                EPOCH,
            )
            for session, opened in self.sessions.items()
        ]


class FakeResolver:
    """Every domain has one host, but for those in `answers`."""

    def __init__(self) -> None:
        self.answers: dict[str, Resolution | Exception] = {}
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def resolve(self, domain: str) -> Resolution:
        self.asked.append(domain)
        await self.gate.wait()
        answer = self.answers.get(domain)
        if isinstance(answer, Exception):
            raise answer
        host = MxHost(10, f"mx.{domain}", ("127.0.0.9",))
        return answer or Resolution(ResolutionStatus.OK, (host,), 300.0)


class ManualLoop:
    """The driver's loop: timers go by the manual clock, everything else is the real one's."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[float, int, asyncio.Handle]] = []
        self._count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_later(self, delay: float, callback: Callable[..., None], *args: Any) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self._loop)
        self._count += 1
        heapq.heappush(self._heap, (self._clock.wall + delay, self._count, handle))
        return handle

    @property
    def timers(self) -> list[float]:
        """When the timers that are not cancelled go off, seconds from now."""
        return sorted(at - self._clock.wall for at, _, h in self._heap if not h.cancelled())

    def run_due(self) -> None:
        while self._heap and self._heap[0][0] <= self._clock.wall:
            handle = heapq.heappop(self._heap)[2]
            if not handle.cancelled():
                handle._run()


class Rig:
    """A driver and everything around it."""

    def __init__(self, driver: Driver, clock: ManualClock, loop: ManualLoop) -> None:
        self.driver = driver
        self.clock = clock
        self.loop = loop
        self.out: FakeOutbound = driver.outbound  # type: ignore[assignment]
        self.resolver: FakeResolver = driver.resolver  # type: ignore[assignment]
        self.log: FakeLog = driver.log  # type: ignore[assignment]
        self.queue: SqliteQueue = driver.queue  # type: ignore[assignment]
        self.engine = driver.engine
        self.faults: list[dict[str, Any]] = []

    def submit(
        self,
        *rcpts: str,
        sender: str = "a@one.test",
        body: bytes = BODY,
        notify: str = "",
        orcpt: str = "",
        **options: Any,
    ) -> "asyncio.Future[None]":
        transaction = Transaction(sender, len(body), SessionId(7), **options)
        recipients = tuple(
            Recipient(rcpt, rcpt.rpartition("@")[2].lower(), notify, orcpt)
            for rcpt in rcpts or ("b@two.test",)
        )
        return self.driver.enqueue(self.queue.next_msgid(), transaction, recipients, body)

    async def advance(self, seconds: float) -> None:
        self.clock.wall += seconds
        self.loop.run_due()
        await self.settle()

    async def settle(self) -> None:
        """Let what can happen without time passing happen."""
        for _ in range(5):
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110  # the writer is a thread: nobody tells
                await asyncio.sleep(0.001)
        self.engine.validate()

    async def emptied(self) -> None:
        """Wait until core and queue hold nothing."""
        await self.until(lambda: not len(self.engine.store) and not self.queue.envelopes)

    @property
    def bounces(self) -> list[Sent]:
        return [sent for sent in self.out.sent if not sent.sender]


@asynccontextmanager
async def rig(
    directory: Path, *, effects: Effects | None = None, stop: bool = True, **config: Any
) -> AsyncIterator[Rig]:
    """Yield a driver; stop it and close its queue in the end, and see that nothing is left."""
    clock = ManualClock()
    settings = build(Config, {"hostname": "mx.test", "seed": 1, **config}, source="test")
    effects = effects or Effects()
    effects.now = lambda: clock.wall
    log = FakeLog()
    queue = SqliteQueue(directory, effects=effects, limits=settings.limits.queue, note=log.warn)
    await queue.open()
    loop = asyncio.get_running_loop()
    try:
        engine = Engine(
            representation=settings.envelope,
            limits=settings.limits,
            retry=settings.retry,
            concurrency=settings.concurrency,
            stream=lambda name: Random(f"1/{name}"),
            now=clock.wall,
            first_session=SessionId(0x100),
            warn_after_s=settings.bounce.warn_interval_s,
            rules=settings.relay_rules(),
        )
        driver = Driver(
            engine,
            settings,
            effects=effects,
            queue=queue,
            resolver=FakeResolver(),  # type: ignore[arg-type]
            log=log,  # type: ignore[arg-type]
            tracer=Tracer(log),  # type: ignore[arg-type]
        )
        driver.outbound = FakeOutbound(driver.tell)  # type: ignore[assignment]
        manual = ManualLoop(clock)
        driver._loop = manual  # type: ignore[assignment]
        it = Rig(driver, clock, manual)
        loop.set_exception_handler(lambda loop, context: it.faults.append(context))
        try:
            yield it
        finally:
            if stop:
                await driver.stop()
        engine.validate()
        assert [] == it.faults
        assert [] == manual.timers
        assert not driver._tasks
    finally:
        loop.set_exception_handler(None)
        await queue.close()


def failing_reads(
    error: Callable[[], BaseException] = lambda: sqlite3.OperationalError("disk I/O error"),
) -> Plan:
    """Return a plan by which the queue can't be read any more."""
    return Plan(1, error=error, for_good=True, matches=lambda p: p.site == "read")


def failing_commits() -> Plan:
    """Return a plan by which nothing can be written to the queue any more."""
    return Plan(
        1,
        error=lambda: sqlite3.OperationalError("database or disk is full"),
        for_good=True,
        matches=lambda p: p.site in ("commit", "probe.commit", "probe"),
    )
