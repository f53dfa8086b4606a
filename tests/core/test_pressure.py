"""From a sample of memory to a level, and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.limits import MemoryLimits
from mta.core.pressure import UNKNOWN_MAX, UNMEASURED, Measure, MemoryLevel, MemoryPressure

OK, LOW, SOFT, HARD = MemoryLevel


def of(percent: float, source: str = "ram") -> Measure:
    return Measure(source, int(percent * 1000), 100_000)


def after(*percents: float) -> list[MemoryLevel]:
    """Return the levels after samples, one after the other."""
    pressure = MemoryPressure(MemoryLimits())
    levels = []
    for percent in percents:
        pressure.observe([of(percent)])
        levels.append(pressure.level)
    return levels


def test_levels_begin_where_the_limits_say():
    """60, 75 and 90 per cent; also from one to the next but one."""
    assert [OK, LOW, LOW, SOFT, SOFT, HARD, HARD] == after(59.9, 60, 74.9, 75, 89.9, 90, 500)
    assert [OK, HARD, OK, SOFT] == after(0, 95, 0, 80)


def test_levels_end_a_little_lower():
    """By five per cent of the limit; an amount that wavers at a mark does not flap."""
    assert [HARD, HARD, SOFT, SOFT, LOW, LOW, OK] == after(90, 85.1, 84.9, 70.1, 69.9, 55.1, 54.9)
    assert [LOW, LOW, LOW] == after(60, 59, 60)


def test_a_fall_into_the_gap_of_two_levels():
    """From hard at once to where the level below has not ended."""
    assert [HARD, SOFT] == after(95, 72)
    assert [LOW, LOW] == after(62, 72)


def test_the_nearest_limit_counts():
    """Not the first, and not the smallest."""
    pressure = MemoryPressure(MemoryLimits())
    assert pressure.observe([of(10, "cgroup2"), of(80, "rlimit-as"), of(20)])
    assert "rlimit-as" == pressure.measure.source
    assert SOFT is pressure.level
    assert [60_000, 75_000, 90_000] == [pressure.bytes_of(level) for level in (LOW, SOFT, HARD)]


def test_what_can_not_be_measured_stays_for_a_while():
    """A sample that failed changes nothing; who has been blind for long refuses nobody."""
    pressure = MemoryPressure(MemoryLimits())
    pressure.observe([of(80)])
    assert not any(pressure.observe([]) for _ in range(UNKNOWN_MAX - 1))
    assert SOFT is pressure.level
    pressure.observe([of(80)])
    assert [False] * (UNKNOWN_MAX - 1) + [True, False] == [
        pressure.observe([]) for _ in range(UNKNOWN_MAX + 1)
    ]
    assert (OK, UNMEASURED, 0) == (pressure.level, pressure.measure, pressure.bytes_of(HARD))


@given(
    marks=st.lists(st.floats(0.1, 1.0), min_size=3, max_size=3).map(sorted),
    hysteresis=st.floats(0, 0.09),
    ratios=st.lists(st.floats(0, 1.2), min_size=1, max_size=60),
)
def test_the_level_is_never_below_what_the_usage_asks_for(marks, hysteresis, ratios):
    """And never above what it asked for within the hysteresis."""
    limits = MemoryLimits(
        low_ratio=marks[0], soft_ratio=marks[1], hard_ratio=marks[2], hysteresis=hysteresis
    )
    pressure = MemoryPressure(limits)
    for ratio in ratios:
        pressure.observe([Measure("ram", int(ratio * 1e9), 10**9)])
        ratio = pressure.measure.ratio
        least = sum(ratio >= mark for mark in marks)
        most = sum(ratio >= mark - hysteresis for mark in marks)
        assert least <= pressure.level <= most


@pytest.mark.parametrize("level", list(MemoryLevel))
def test_a_level_has_its_ratio(level):
    """Which is the limits'."""
    limits = MemoryLimits(low_ratio=0.1, soft_ratio=0.2, hard_ratio=0.3)
    assert [0.0, 0.1, 0.2, 0.3][level] == MemoryPressure(limits).ratio_of(level)
