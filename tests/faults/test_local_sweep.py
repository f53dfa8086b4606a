"""Every effect of a local delivery fails once, in every way of delivering, and no mail is lost.

As `tests.faults.test_sweep`, with mailboxes instead of a host: after each fault the message is delivered (twice, if
only its result was lost), the next one too, the gauges are 0 and no descriptor, task or process is left.
"""

import asyncio
import errno
import gc
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mta.core.stimuli import ScheduleRequested, Selector
from mta.server import MtaServer
from tests.conftest import open_descriptors
from tests.faults.test_sweep import ALL, ERRNOS, settled
from tests.mta.delivery.test_lmtp import Server
from tests.support.faults import FaultyEffects, Point
from tests.support.inprocess import breaking, drained, is_counted, send, serving
from tests.support.waiting import until


def of_maildir(home: Path) -> str:
    return "".join(file.read_text() for file in (home / "Maildir").glob("new/*"))


def of_mbox(home: Path) -> str:
    file = home / "mbox"
    return file.read_text() if file.exists() else ""


def of_command(home: Path) -> str:
    return "".join(file.read_text() for file in home.glob("got.*"))


class Lmtp(Server):
    """A server whose mail is that of one run."""

    async def __aenter__(self) -> "Lmtp":
        self.listener = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        port = self.listener.sockets[0].getsockname()[1]
        WAYS["lmtp"] = ({"delivery": "lmtp", "lmtp": f"127.0.0.1:{port}"}, self.text, 3)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.listener.close()
        await self.listener.wait_closed()

    def text(self, home: Path) -> str:
        return b"".join(self.bodies).decode()


WAYS: dict[str, tuple[dict[str, Any], Callable[[Path], str], int]] = {
    "maildir": ({"delivery": "maildir"}, of_maildir, 8),
    "mbox": ({"delivery": "mbox"}, of_mbox, 8),
    "pipe": (
        {"delivery": "pipe", "command": ["/bin/sh", "-c", "cat > got.$$"]},
        of_command,
        4,
    ),
    "lmtp": ({}, of_command, 3),
}
"""How it is delivered, what has arrived, and how many effects that has at least."""


def counted(point: Point) -> bool:
    return is_counted(point) and not point.site.startswith(("queue", "control"))


def config(home: Path, rule: dict[str, Any]) -> dict[str, Any]:
    return {
        "local": {"allow_root": True},
        "userbases": {"people": {"alice": {"home": str(home)}}},
        "rules": [
            {
                "name": "here",
                "match_domains": ["here.test"],
                "action": "local",
                "userbase": "people",
                **rule,
            }
        ],
    }


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta.queue.writer.PROBE_FIRST_S", 0.002)
    monkeypatch.setattr("mta.queue.writer.PROBE_MAX_S", 0.01)
    monkeypatch.setattr("mta.queue.sqlite.SPACE_AGE_S", 0.0)
    monkeypatch.setattr("mta.acceptor.PAUSE_S", 0.01)
    monkeypatch.setattr("mta.inbound_connection.LINGER_S", 0.05)
    monkeypatch.setattr("mta.server.gc.freeze", lambda: None)
    monkeypatch.setattr("mta.server.gc.collect", lambda: 0)


async def arrived(server: MtaServer, home: Path, way: str, subject: str) -> None:
    """Wait until a message is in the mailbox; nothing waits for its time."""
    found = WAYS[way][1]
    async with asyncio.timeout(20):
        while f"Subject: {subject}\n" not in found(home).replace("\r\n", "\n"):
            server.driver.tell(ScheduleRequested(Selector()))
            await asyncio.sleep(0.005)


async def accepted(server: MtaServer, subject: str) -> bool:
    await until(lambda: server.queue.healthy)
    said = await send(server.smtp_address[1], "", ["alice@here.test"], subject)
    said.check()
    return said.accepted


async def one_fault(directory: Path, way: str, number: int, code: int, when: str) -> list[Point]:
    """Deliver while one effect fails; return the points that did."""
    home = directory / "home"
    home.mkdir(parents=True)
    effects = FaultyEffects()
    rule, _, _ = WAYS[way]
    async with serving(directory, effects, **config(home, rule)) as server:
        # Reading the queue at the start is not what this is about, and would be tried again in a minute.
        await until(lambda: not server.restoring)
        effects.plan = breaking(number, code, effects, when=when, matches=counted)
        kept = await accepted(server, "first")
        counts = server.engine.scheduler.counts
        await until(lambda: not kept or counts.ok + counts.tempfail + counts.permfail)
        effects.heal()
        if kept:
            await arrived(server, home, way, "first")
        while not await accepted(server, "second"):
            pass
        await arrived(server, home, way, "second")
        await drained(server)
        await until(lambda: not server.door.connections)
        assert 0 == counts.permfail, "a fault of ours is never for good"
        left = server.metrics.leaks() if server.stats() else {}
        assert {} == {name: value for name, value in left.items() if name.startswith("mda.")}
        assert 0 == server.door.bytes_in_memory
    assert "internal error" not in (directory / "log").read_text()
    return effects.failed


@pytest.mark.timeout(600 if ALL else 60)
@pytest.mark.parametrize("way", WAYS)
async def test_one_fault_loses_no_local_mail(tmp_path: Path, way: str) -> None:
    """Whatever fails once, the message arrives in the end, and so does the next."""
    if way != "lmtp":
        await sweep(tmp_path, way)
        return
    async with Lmtp() as server:
        await sweep(tmp_path, way, server.bodies.clear)


async def sweep(tmp_path: Path, way: str, forget: Callable[[], None] = lambda: None) -> None:
    numbers = itertools.count(1)
    assert [] == await one_fault(tmp_path / "0", way, 10**6, errno.EIO, "before")
    gc.collect()
    before, tasks = open_descriptors(), asyncio.all_tasks()
    reached = 0
    for number in numbers:
        if ALL:
            turns = [(code, when) for code in ERRNOS for when in ("before", "after")]
        else:
            turns = [(ERRNOS[number % len(ERRNOS)], ("before", "after")[number // 2 % 2])]
        failed: list[Point] = []
        for code, when in turns:
            forget()
            run = tmp_path / f"{number}-{code}-{when}"
            failed = await one_fault(run, way, number, code, when)
            await settled(before, tasks)
        if not failed:
            break
        reached = number
    assert reached >= WAYS[way][2]
