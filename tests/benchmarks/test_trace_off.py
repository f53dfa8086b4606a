"""Tracing that is off costs nothing measurable in the server: expansion as a whole, and the driver's steps."""

import timeit
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from mta.addressing import Addressing
from mta.config import Config
from mta.core.address import parse_path
from mta.core.rules import RuleSet
from mta.core.settings import build
from mta.core.stimuli import TimeReached
from mta.effects import Effects
from mta.log import Log
from mta.trace import Tracer
from tests.benchmarks.test_expansion import without_tracing
from tests.support.driver import rig
from tests.support.tracedoc import CONFIG, home

pytestmark = pytest.mark.benchmark


def best_of(rounds: int, *runs: Callable[[], object], times: int = 60) -> list[float]:
    """Return the best time of each, seconds; interleaved, so that what else the machine does hits all alike."""
    best = [float("inf")] * len(runs)
    for _ in range(times):
        for number, run in enumerate(runs):
            best[number] = min(best[number], timeit.timeit(run, number=rounds) / rounds)
    return best


def test_expansion_in_the_server(tmp_path: Path) -> None:
    """Rules, tables and expander that may be traced, against the same that can not be."""
    config = build(Config, tomllib.loads(CONFIG.replace("HOME", str(home(tmp_path)))), source="x")
    log = Log(Effects(), tmp_path / "log", host="mx", pid=1)
    tracer = Tracer(log)
    traced = Addressing(config, effects=Effects(), source="x", log=log, tracer=tracer)
    bare = without_tracing()(RuleSet(config.rules), traced.tables, config.expansion)
    recipient, client = parse_path("<board@club.test>"), traced.client("127.0.0.1")
    assert recipient is not None
    assert list(map(str, traced.expand(recipient, client).deliveries)) == list(
        map(str, bare.expand(recipient, client=client).deliveries)
    )
    off, without = best_of(
        20, lambda: traced.expand(recipient, client), lambda: bare.expand(recipient, client=client)
    )
    lines: list[str] = []
    stop = tracer.follow("all", lines.append)
    (on,) = best_of(20, lambda: traced.expand(recipient, client), times=10)
    stop()
    traced.close()
    log.close()
    assert lines
    ratio = off / without
    print(
        f"\nexpansion: {off * 1e6:.1f} us, {ratio:.3f} of the same without; traced {on * 1e6:.1f} us"
    )
    assert ratio < 1.1


async def test_a_step_of_the_driver(tmp_path: Path) -> None:
    """A stimulus costs the same before anybody traced or profiled and after they stopped."""
    async with rig(tmp_path) as it:
        step = TimeReached()
        tracer = it.driver.tracer
        (before,) = best_of(500, lambda: it.driver.tell(step))
        tracer.set("all", True)
        (on,) = best_of(50, lambda: it.driver.tell(step), times=10)
        tracer.set("all", False)
        (after,) = best_of(500, lambda: it.driver.tell(step))
    print(
        f"\nstep: {before * 1e6:.2f} us before, {after * 1e6:.2f} after; traced {on * 1e6:.1f} us"
    )
    assert after < before * 1.15
