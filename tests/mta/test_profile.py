"""Where the time goes: exact counts, percentiles to 1/16, and nothing left behind when it is off."""

import asyncio
import errno
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.log import Log
from mta.profile import EffectProbe, Profile, Timing
from mta.trace import Tracer
from tests.support.faults import FaultyEffects, Plan, disk_full


@given(st.lists(st.floats(1e-8, 1e4), min_size=1), st.sampled_from([1, 50, 99, 100]))
def test_percentiles_are_right_to_a_sixteenth(durations, percent):
    """And never above the longest."""
    timing = Timing()
    for seconds in durations:
        timing.add(seconds)
    exact = sorted(durations)[max(0, -(-len(durations) * percent // 100) - 1)]
    assert exact * 0.9999 <= timing.percentile(percent) <= min(exact * 17 / 16, timing.max_s)
    assert len(durations) == timing.count
    assert sum(durations) == pytest.approx(timing.total_s)


def test_nothing_was_measured():
    """A percentile of nothing is 0; no time at all counts as the least there is."""
    timing = Timing()
    assert 0.0 == timing.percentile(99)
    timing.add(0.0)
    assert 0.0 == timing.percentile(99) == timing.max_s


def test_a_profile_begins_anew_and_keeps_what_it_had():
    """Starting one that runs changes nothing; one that ended can be looked at until the next."""
    profile = Profile()
    heard = []
    profile.watch(lambda: heard.append(profile.on))
    profile.start()
    profile.add("stimulus", "TimeReached", 0.5)
    profile.start()
    profile.stop()
    (row,) = profile.rows()
    assert ("stimulus", "TimeReached", 1, 0.5) == tuple(row.values())[:4]
    profile.start()
    assert [] == list(profile.rows())
    assert [True, False, True] == heard


def test_the_costliest_comes_first():
    """Within its group."""
    profile = Profile()
    for group, name, seconds in (("b", "x", 9.0), ("a", "small", 1.0), ("a", "large", 2.0)):
        profile.add(group, name, seconds)
    assert ["large", "small", "x"] == [row["name"] for row in profile.rows()]


@pytest.fixture
async def probed(tmp_path):
    effects = FaultyEffects()
    log = Log(effects, tmp_path / "log", host="mx", pid=1)
    tracer, profile = Tracer(log), Profile()
    probe = EffectProbe(effects, profile, tracer, asyncio.get_running_loop())
    yield effects, tracer, profile, probe, tmp_path
    log.close()


async def test_effects_are_timed_on_any_thread(probed):
    """By operation and site; a thread's lines of the trace arrive on the loop's."""
    effects, tracer, profile, probe, directory = probed
    lines = []
    tracer.follow("io", lines.append)
    profile.start()
    probe.install(True)
    probe.install(True)
    effects.mkdir(directory / "one", site="here")
    thread = threading.Thread(target=lambda: effects.mkdir(directory / "two", site="there"))
    thread.start()
    thread.join()
    assert ["io: mkdir site=here"] == [line.partition(" seconds=")[0] for line in lines]
    await asyncio.sleep(0)
    assert "io: mkdir site=there" == lines[1].partition(" seconds=")[0]
    assert {"mkdir here", "mkdir there"} == {row["name"] for row in profile.rows()}


async def test_off_nothing_is_left(probed):
    """The seam is as it was, so that it costs as before."""
    effects, _, profile, probe, directory = probed
    probe.install(True)
    probe.install(False)
    probe.install(False)
    assert "point" not in vars(effects)
    assert "done" not in vars(effects)
    effects.mkdir(directory / "one", site="here")
    assert [] == list(profile.rows())


async def test_an_effect_that_fails_is_not_counted_and_does_not_pile_up(probed):
    """Its beginning is forgotten with the next one; a fault stays the fault that it was."""
    effects, _, profile, probe, directory = probed
    profile.start()
    probe.install(True)
    effects.plan = Plan(1, disk_full, for_good=True)
    for _ in range(3):
        with pytest.raises(OSError, match="space") as caught:
            effects.mkdir(directory / "one", site="here")
        assert errno.ENOSPC == caught.value.errno
    assert 1 == len(probe._open)
    effects.heal()
    effects.mkdir(directory / "one", site="here")
    (row,) = profile.rows()
    assert 1 == row["count"]


async def test_what_is_open_is_bounded(probed):
    """Awaited effects that never end make room for others."""
    effects, _, _, probe, _ = probed
    probe.install(True)
    for number in range(5000):
        effects.point("connect", str(number))
    assert 4096 == len(probe._open)
