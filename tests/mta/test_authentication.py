"""Passwords are checked on threads, so many at a time, and not for ever."""

import asyncio
import threading

import pytest

from mta.authentication import Authenticator
from mta.core.limits import SmtpLimits
from mta.core.metrics import Metrics
from mta.inbound_door import Verdict
from mta.passwords import PasswordCheckError
from tests.support.faults import FaultyEffects, Plan
from tests.support.waiting import until


class Slow:
    """Knows one password; checks wait for `gate`."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.running = 0
        self.peak = 0
        self.error: Exception | None = None
        self._mutex = threading.Lock()

    def verify(self, user: str, password: str) -> bool:
        with self._mutex:
            self.running += 1
            self.peak = max(self.peak, self.running)
        try:
            assert self.gate.wait(20)
        finally:
            with self._mutex:
                self.running -= 1
        if self.error is not None:
            raise self.error
        return password == "right"


class World:
    def __init__(self, **limits: float) -> None:
        self.checker = Slow()
        self.effects = FaultyEffects()
        self.metrics = Metrics()
        self.lines: list[str] = []
        self.authenticator = Authenticator(
            self.checker,
            effects=self.effects,
            limits=SmtpLimits(**limits),  # type: ignore[arg-type] # ints among them
            metrics=self.metrics,
            log=self.lines.append,
        )

    def ask(self, password: str = "right") -> "asyncio.Future[Verdict]":
        return self.authenticator.authenticate("alice", password)

    def counts(self) -> tuple[int, int, int, int]:
        names = ("ok", "permfail", "tempfail", "pending")
        return tuple(self.metrics[f"smtp.auth.{name}"] for name in names)  # type: ignore[return-value]

    def close(self) -> None:
        self.checker.gate.set()
        self.authenticator.close()


@pytest.fixture
def world():
    made = World(max_auth_pending=4, auth_threads=2, auth_timeout_s=10.0, auth_failure_delay_s=0.0)
    yield made
    made.close()


async def test_right_and_wrong(world):
    """The event loop goes on meanwhile."""
    right, wrong = world.ask(), world.ask("wrong")
    await asyncio.sleep(0)
    assert not right.done()
    assert (0, 0, 0, 2) == world.counts()
    world.checker.gate.set()
    assert [Verdict.OK, Verdict.PERMFAIL] == [await right, await wrong]
    assert (1, 1, 0, 0) == world.counts()
    assert [] == world.lines


async def test_who_guesses_waits():
    """A refusal comes `auth_failure_delay_s` later; meanwhile its place is another's, who is told at once."""
    world = World(max_auth_pending=1, auth_failure_delay_s=0.2)
    world.checker.gate.set()
    try:
        began = asyncio.get_running_loop().time()
        wrong = world.ask("wrong")
        await until(lambda: not world.authenticator.pending)
        assert Verdict.OK is await world.ask()
        assert not wrong.done()
        assert Verdict.PERMFAIL is await wrong
        assert asyncio.get_running_loop().time() - began >= 0.2
        given_up = world.ask("wrong")
        await until(lambda: not world.authenticator.pending)
        given_up.cancel()
        await asyncio.sleep(0.25)  # the time is up, and nobody is there to be told
    finally:
        world.close()


async def test_more_than_may_wait(world):
    """The fifth is told so at once; two are checked at a time."""
    asked = [world.ask() for _ in range(5)]
    assert asked[4].done()
    assert Verdict.TEMPFAIL is asked[4].result()
    assert 'auth: a login could not be checked: "too many logins at once"' == world.lines[-1]
    await until(lambda: world.checker.running == 2)
    world.checker.gate.set()
    assert [Verdict.OK] * 4 == await asyncio.gather(*asked[:4])
    assert 2 == world.checker.peak
    assert (4, 0, 1, 0) == world.counts()
    assert Verdict.OK is await world.ask()


async def test_one_that_hangs():
    """The client is told after `auth_timeout_s`; the place is taken until the check ends."""
    world = World(max_auth_pending=1, auth_timeout_s=0.05)
    try:
        assert Verdict.TEMPFAIL is await world.ask()
        assert (0, 0, 1, 1) == world.counts()
        assert Verdict.TEMPFAIL is await world.ask()
        world.checker.gate.set()
        await until(lambda: not world.authenticator.pending)
        assert (0, 0, 2, 0) == world.counts()
    finally:
        world.close()


@pytest.mark.parametrize(
    "error", [PasswordCheckError("no memory"), RuntimeError("bug"), OSError(24, "x")]
)
async def test_one_that_fails(world, error):
    """Temporary, logged and counted."""
    world.checker.error = error
    world.checker.gate.set()
    assert Verdict.TEMPFAIL is await world.ask()
    assert str(error) in world.lines[-1]
    assert (0, 0, 1, 0) == world.counts()


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), OSError(11, "x")])
async def test_no_thread(world, error):
    """Temporary as well; the next one is checked."""
    world.effects.plan = Plan(1, lambda: error, matches=lambda point: point.op == "thread")
    assert Verdict.TEMPFAIL is await world.ask()
    assert (0, 0, 1, 0) == world.counts()
    world.checker.gate.set()
    assert Verdict.OK is await world.ask()


async def test_nobody_waits_for_the_answer(world):
    """The client left and its future was cancelled: the check is still accounted for."""
    world.ask().cancel()
    world.checker.gate.set()
    await until(lambda: not world.authenticator.pending)
    assert (0, 0, 0, 0) == world.counts()


async def test_closing(world):
    """What waits is given up, and asking afterwards is a temporary failure."""
    asked = [world.ask() for _ in range(4)]
    await until(lambda: world.checker.running == 2)
    world.close()
    found = await asyncio.gather(*asked)
    assert 2 <= found.count(Verdict.OK)
    assert {Verdict.OK, Verdict.TEMPFAIL} >= set(found)
    assert Verdict.TEMPFAIL is await world.ask()
    assert (found.count(Verdict.OK), 0, 5 - found.count(Verdict.OK), 0) == world.counts()
