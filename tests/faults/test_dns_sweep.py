"""Every effect of a look-up fails once: mail waits, is never bounced for it, and is delivered.

A name server that can't be asked says nothing about a domain: bouncing then is how outages lose mail.
"""

import asyncio
import errno
import gc
import itertools
from pathlib import Path

import pytest

from mta.core.stimuli import ScheduleRequested, Selector
from testbed.world.clock import WorldClock
from testbed.world.dns import DnsServer
from tests.conftest import open_descriptors
from tests.faults.test_sweep import ALL, ERRNOS, settled
from tests.support.capture import CapturingHost
from tests.support.faults import FaultyEffects, Point
from tests.support.inprocess import breaking, drained, send, serving
from tests.support.server import free_port
from tests.support.waiting import until

HOST = "127.0.0.6"


def of_dns(point: Point) -> bool:
    return point.op in ("dns", "datagram") or "dns" in point.site


@pytest.mark.timeout(600 if ALL else 60)
async def test_one_fault_bounces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails once, the message is delivered in the end, and no report is written."""
    monkeypatch.setattr("mta.acceptor.PAUSE_S", 0.01)
    monkeypatch.setattr("mta.inbound_connection.LINGER_S", 0.05)
    monkeypatch.setattr("mta.server.gc.freeze", lambda: None)
    monkeypatch.setattr("mta.server.gc.collect", lambda: 0)
    port = free_port(HOST)
    zone = {"far.test": {"MX": ["10 mx.far.test."]}, "mx.far.test": {"A": [HOST]}}

    async def one_fault(run: Path, number: int, code: int, when: str) -> list[Point]:
        run.mkdir()  # noqa: ASYNC240  # of the test
        effects = FaultyEffects()
        taken = len(host.taken)
        async with serving(
            run,
            effects,
            relay={"port": port},
            dns={
                "nameserver": f"127.0.0.1:{names.port}",
                "negative_ttl_s": 0.01,
                "ttl_min_s": 0.01,
                "timeout_s": 0.5,
                "lifetime_s": 1.0,
            },
            limits={"mta": {"route_delay_base_s": 0.02, "route_delay_max_s": 0.05}},
        ) as server:
            effects.plan = breaking(number, code, effects, when=when, matches=of_dns)
            said = await send(server.smtp_address[1], "a@far.test", ["b@far.test"], "x")
            assert said.accepted
            counts = server.engine.scheduler.counts
            await until(lambda: counts.ok + counts.tempfail + counts.permfail)
            effects.heal()
            async with asyncio.timeout(20):
                while not counts.ok:
                    server.driver.tell(ScheduleRequested(Selector()))
                    await asyncio.sleep(0.01)
            await drained(server)
            assert (1, 0) == (counts.ok, counts.permfail)
            assert 0 == server.stats()["dns.pending"]
        (message,) = host.taken[taken:]
        assert "a@far.test" == message.sender
        assert "internal error" not in (run / "log").read_text()
        return effects.failed

    with CapturingHost(HOST, port) as host:
        async with DnsServer(zone, WorldClock()) as names:
            host.patient = True
            assert [] == await one_fault(tmp_path / "0", 10**6, errno.EIO, "before")
            gc.collect()
            before, tasks = open_descriptors(), asyncio.all_tasks()
            reached = 0
            for number in itertools.count(1):
                turns = [(ERRNOS[number % len(ERRNOS)], ("before", "after")[number % 2])]
                if ALL:
                    turns = [(code, when) for code in ERRNOS for when in ("before", "after")]
                failed: list[Point] = []
                for code, when in turns:
                    run = tmp_path / f"{number}-{code}-{when}"
                    failed = await one_fault(run, number, code, when)
                    await settled(before, tasks)
                if not failed:
                    break
                reached = number
    assert reached >= 2
