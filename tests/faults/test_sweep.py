"""Every effect of the server fails once, in every scenario, and nothing that was promised is broken.

The whole server runs in this process, against a host that keeps what it takes. The n-th effect of a
scenario fails, for n = 1, 2, ... until there is no n-th. After each fault: what was accepted with 250 is
delivered or reported once the disk works again; replies were 4xx and said nothing of the cause; the server takes and
delivers the next message; no descriptor, task or thread is left.

Ordinary runs take a sample that moves with the scenario; ``MTA_FAULTS=all`` takes every point, each
errno, before and after the effect.
"""

import asyncio
import errno
import gc
import itertools
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mta.bouncer import Bouncer
from mta.core.reply import Reply
from mta.core.settings import ConfigError
from mta.door import ServerDoor
from mta.driver import Driver
from mta.server import MtaServer
from tests.conftest import open_descriptors
from tests.support.capture import CapturingHost
from tests.support.faults import FaultyEffects
from tests.support.inprocess import breaking, drained, is_counted, send, serving
from tests.support.server import free_port
from tests.support.waiting import until

HOST = "127.0.0.6"
ALL = os.environ.get("MTA_FAULTS") == "all"
ERRNOS = (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.ECONNRESET, errno.ETIMEDOUT)


class Scenario(NamedTuple):
    """What is sent while the fault happens."""

    name: str
    rcpts: tuple[str, ...]
    points_min: int
    """Effects that it has at least; a sweep that has fallen asleep reaches fewer."""
    size: int = 100
    restart: bool = False
    """The fault is in the start of a server whose queue has the message."""


SCENARIOS = (
    Scenario("accept one", ("later-one",), 3),
    Scenario("accept three", ("later-1", "later-2", "later-3"), 3),
    Scenario("relay", ("good",), 4),
    Scenario("relay 4xx", ("later-a", "good"), 4),
    Scenario("relay 5xx and report", ("no-a", "no-b", "good"), 6),
    Scenario("large body", ("good",), 8, 20_000),
    Scenario("restart", ("later", "good"), 20, restart=True),
    Scenario("restart with a large body", ("later", "good"), 20, 20_000, restart=True),
)


class World:
    """The host, and what must not change from run to run."""

    def __init__(self, host: CapturingHost, port: int, directory: Path) -> None:
        self.host = host
        self.directory = directory
        self.numbers = itertools.count(1)
        self.config: dict[str, Any] = {
            "relay": {"port": port},
            "limits": {
                "mta": {"route_delay_base_s": 0.02, "route_delay_max_s": 0.05},
                "queue": {"body_file_bytes": 10_000},
            },
        }

    def got(self, run: str) -> set[str]:
        """Return who of a run was delivered to, and whose failure was reported."""
        found: set[str] = set()
        for taken in self.host.taken:
            if taken.sender:
                told = [rcpt.partition("@")[0] for rcpt in taken.rcpts]
            else:
                report = taken.body.decode()
                told = re.findall(r"^Final-Recipient: rfc822; ([^@]*)@", report, re.MULTILINE)
            found.update(
                name for word in told for name, _, of in [word.partition(".")] if of == run
            )
        return found


def at(names: tuple[str, ...], run: str) -> list[str]:
    """Return addresses that tell runs apart."""
    return [f"{name}.{run}@[{HOST}]" for name in names]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A host, and a server that is impatient and leaves the collector alone."""
    monkeypatch.setattr("mta.queue.writer.PROBE_FIRST_S", 0.002)
    monkeypatch.setattr("mta.queue.writer.PROBE_MAX_S", 0.01)
    monkeypatch.setattr("mta.restorer.AGAIN_S", 0.02)
    monkeypatch.setattr("mta.queue.sqlite.SPACE_AGE_S", 0.0)
    monkeypatch.setattr("mta.inbound_connection.LINGER_S", 0.05)
    monkeypatch.setattr("mta.server.gc.freeze", lambda: None)
    monkeypatch.setattr("mta.server.gc.collect", lambda: 0)
    port = free_port(HOST)
    with CapturingHost(HOST, port) as host:
        yield World(host, port, tmp_path)


async def one_fault(
    world: World, scenario: Scenario, number: int, code: int, when: str
) -> list[Any]:
    """Run a scenario in which one effect fails; return the points that failed: none if there is no such one."""
    effects = FaultyEffects()
    run = str(next(world.numbers))
    directory = world.directory / run
    directory.mkdir()
    sender = f"me@[{HOST}]"
    plan = breaking(number, code, effects, when=when, matches=is_counted)
    world.host.patient = True
    rcpts = at(scenario.rcpts, run)

    if scenario.restart:
        async with serving(directory, effects, **world.config) as server:
            said = await send(server.smtp_address[1], sender, rcpts, run, size=scenario.size)
            await until(lambda: server.engine.scheduler.counts.tempfail)
        effects.plan = plan
        problem = ""
        try:
            async with serving(directory, effects, **world.config) as server:
                await until(lambda: not server.restoring)
                effects.heal()
                await next_message(world, server, effects, run)
        except ConfigError as error:
            effects.heal()  # one line, and the next start works
            problem = str(error)
        assert "\n" not in problem
    else:
        async with serving(directory, effects, **world.config) as server:
            effects.plan = plan
            said = await send(server.smtp_address[1], sender, rcpts, run, size=scenario.size)
            await attempted(server)
            effects.heal()
            await next_message(world, server, effects, run)
    said.check()
    world.host.patient = False
    async with serving(directory, effects, **world.config) as server:
        await drained(server)
    if said.accepted:
        assert set(scenario.rcpts) <= world.got(run), (effects.failed, world.got(run))
    log = (directory / "log").read_text()
    assert "internal error" not in log, log
    assert list((directory / "queue" / "bodies").iterdir()) == []
    return effects.failed


async def attempted(server: MtaServer) -> None:
    """Wait until nothing happens any more that does not happen again by itself."""
    counts = server.engine.scheduler.counts
    await until(
        lambda: (
            not server.queue.waiting
            and not server.driver.bouncer.messages
            and (counts.ok + counts.tempfail + counts.permfail or not counts.enqueued)
        )
    )


async def next_message(world: World, server: MtaServer, effects: FaultyEffects, run: str) -> None:
    """Faults are off: the server takes a message again, soon, and delivers it."""
    for _ in range(5):
        await until(lambda: server.queue.healthy)
        said = await send(server.smtp_address[1], f"me@[{HOST}]", at(("next",), run), f"{run} next")
        said.check()
        if said.accepted:
            break
        # The disk was found to be sick only now, by what goes on after the answer to a client.
    assert said.accepted, (effects.failed, said.replies)
    await until(lambda: "next" in world.got(run) and not server.door.connections)
    assert 0 == server.door.bytes_in_memory


def threads() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("queue")}


async def settled(before: dict[int, str], tasks: set[Any]) -> None:
    """See that nothing is left; the host's side of a connection may take a moment to go."""

    def left() -> dict[int, str]:
        gc.collect()
        return {fd: to for fd, to in open_descriptors().items() if before.get(fd) != to}

    async with asyncio.timeout(5):
        while left() or threads() or asyncio.all_tasks() != tasks:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def sample(scenario: Scenario) -> Iterator[tuple[int, int, str]]:
    """Yield number, errno and side of the faults to make; the caller stops at a number that is not reached."""
    start = SCENARIOS.index(scenario)
    stride = 5 if scenario.restart and not ALL else 1
    for number in itertools.count(1 + start % stride, stride):
        if ALL:
            yield from ((number, code, when) for code in ERRNOS for when in ("before", "after"))
        else:
            turn = start + number
            yield number, ERRNOS[turn % len(ERRNOS)], ("before", "after")[turn // 2 % 2]


@pytest.mark.timeout(3600 if ALL else 120)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=[s.name for s in SCENARIOS])
async def test_one_fault_breaks_no_promise(world: World, scenario: Scenario) -> None:
    """Nothing accepted is lost, nobody hears of our inside, nothing leaks, the next message goes through."""
    assert await sweep(world, scenario) >= scenario.points_min


async def sweep(world: World, scenario: Scenario) -> int:
    """Break a scenario at one point after the other; return the last that there was."""
    # The first run loads what is loaded once, and opens what stays open.
    assert [] == await one_fault(world, scenario, 10**6, errno.EIO, "before")
    gc.collect()
    before, tasks = open_descriptors(), asyncio.all_tasks()
    reached = 0
    for number, code, when in sample(scenario):
        failed = await one_fault(world, scenario, number, code, when)
        await settled(before, tasks)
        if not failed:
            break
        reached = number
    return reached


# Is the sweep awake? Mistakes that mail servers have made, put back in: each must be found.


def reply_before_commit(patch: pytest.MonkeyPatch) -> None:
    enqueue = Driver.enqueue

    def hasty(self: Driver, *message: Any) -> "asyncio.Future[None]":
        enqueue(self, *message).add_done_callback(lambda done: done.exception())
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        answer.set_result(None)
        return answer

    patch.setattr(Driver, "enqueue", hasty)


def forget_before_report(patch: pytest.MonkeyPatch) -> None:
    submit = Bouncer._submit

    async def hasty(self: Bouncer, instruction: Any, found: Any) -> None:
        for envelope, _ in instruction.failures:
            self._driver.queue.remove(envelope)
        # A commit of its own: in that of the report it would be no mistake.
        await self._driver.queue.flush()
        await submit(self, instruction, found)

    patch.setattr(Bouncer, "_submit", hasty)


def budget_not_given_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ServerDoor, "release", lambda self, size: None)


def cause_in_the_reply(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        "mta.door.admission.NO_STORAGE", Reply(452, "4.3.1", "OSError: No space left on device")
    )


@pytest.mark.parametrize(
    ("mistake", "name"),
    [
        (reply_before_commit, "accept one"),
        (forget_before_report, "relay 5xx and report"),
        (budget_not_given_back, "accept one"),
        (cause_in_the_reply, "accept one"),
    ],
)
async def test_the_sweep_finds(
    world: World, monkeypatch: pytest.MonkeyPatch, mistake: Any, name: str
) -> None:
    """A sweep that can't fail proves nothing."""
    mistake(monkeypatch)
    (scenario,) = [s for s in SCENARIOS if s.name == name]
    with pytest.raises(AssertionError):
        await sweep(world, scenario)
