"""Shapes of a load: when messages come changes, how many and which do not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.scenario import load
from sim.shapes import Shape, relative_rate, shaped
from sim.workload import draw

KINDS = ("steady", "ramp", "step", "spike", "soak", "burst", "day")


def spread(shape: Shape, parts: int = 10) -> list[int]:
    """How many of 100,000 evenly drawn messages fall into each part of a run of 100 s."""
    due = shaped(shape, np.arange(1, 100_001) / 1000.0 - 0.0005, 100.0)
    counts, _ = np.histogram(due, bins=parts, range=(0.0, 100.0))
    return counts.tolist()


@given(
    st.sampled_from(KINDS),
    st.floats(1, 100),
    st.lists(st.floats(0, 12), min_size=1, max_size=50),
)
def test_a_shape_keeps_order_number_and_length(kind, factor, even):
    """No message overtakes another, none leaves the run, none after its end moves."""
    due = shaped(Shape(kind=kind, factor=factor), np.sort(np.array(even)), 10.0)
    assert len(due) == len(even)
    assert all(np.diff(due) >= 0)
    assert due.min() >= 0
    for before, after in zip(sorted(even), due, strict=True):
        assert after == before if before > 10 else after <= 10


@given(st.sampled_from(KINDS), st.floats(1, 1000), st.floats(0, 1))
def test_a_rate_is_between_the_lowest_and_the_highest(kind, factor, part):
    """``factor`` is what it says."""
    assert 1 <= relative_rate(Shape(kind=kind, factor=factor), part) <= factor * (1 + 1e-12)


def test_a_ramp_rises_evenly():
    """From 1 to 3: the first tenth has 1.1 of every 20, the last 2.9."""
    assert spread(Shape(kind="ramp", factor=3)) == pytest.approx(
        [5500, 6500, 7500, 8500, 9500, 10500, 11500, 12500, 13500, 14500], abs=5
    )


def test_steps_are_levels():
    """Two levels, the second three times the first."""
    assert spread(Shape(kind="step", factor=3, steps=2), 2) == pytest.approx(
        [25_000, 75_000], abs=5
    )


def test_a_spike_is_where_it_is_said():
    """Twice the rate from 50 s to 75 s."""
    shape = Shape(kind="spike", factor=2, at=0.5, width=0.25)
    assert spread(shape, 4) == pytest.approx([20_000, 20_000, 40_000, 20_000], abs=5)


def test_a_soak_rises_stays_and_falls():
    """Flat in between, and the same at both ends."""
    counts = spread(Shape(kind="soak", factor=9))
    assert counts[1:9] == pytest.approx([counts[1]] * 8, abs=5)
    assert counts[0] == pytest.approx(counts[9], abs=5)
    assert counts[0] / counts[1] == pytest.approx(5 / 9, rel=0.01)


def test_bursts_come_again():
    """Each period the same, most of it in its first part."""
    counts = spread(Shape(kind="burst", factor=9, times=5, width=0.5))
    assert counts == pytest.approx([18_000, 2_000] * 5, abs=30)


def test_a_day_has_its_hours():
    """Least around 4 o'clock, most around 16."""
    hours = spread(Shape(kind="day"), 24)
    assert min(hours) in hours[3:5]
    assert max(hours) in hours[15:17]


def test_only_the_instants_change():
    """The same messages to the same recipients, in the same order, within the same length."""
    some = ["load.messages=500"]
    even = draw(load("backlog", some))
    spiked = draw(load("backlog", [*some, "load.shape.kind=spike", "load.shape.factor=50"]))
    assert not np.array_equal(even.due_s, spiked.due_s)
    assert np.array_equal(even.mailbox, spiked.mailbox)
    assert np.array_equal(even.size, spiked.size)
    high = (spiked.due_s >= 1.0) & (spiked.due_s < 1.5)  # of 2.5 s
    assert high.sum() > 400


def test_a_shape_of_nothing_is_nothing():
    """A scenario may have only local mail."""
    assert len(shaped(Shape(kind="day"), np.empty(0), 0.0)) == 0
