"""A backlog drains at what is left of the capacity, and not before its retries are due."""

import pytest

from sim import theory
from sim.drainplots import AWAY, RATE, WAVE_S, against_limit, drain, fluid_queue, over_time
from sim.figures import svg

QUICK, SLOW = 0.2, 2.0


@pytest.fixture(scope="module")
def runs():
    """Two limits, two timetables."""
    return {base: drain((8, 20), retry_base_s=base, load_s=30.0) for base in (QUICK, SLOW)}


def test_the_drain_is_near_the_line_and_never_before_it(runs):
    """With quick retries; chance in the arrivals is worth a second."""
    for run in runs[QUICK]:
        assert run.fluid_gone_at_s - 1.0 < run.gone_at_s
        assert run.gone_at_s - AWAY[1] < 1.4 * (run.fluid_gone_at_s - AWAY[1]) + 1.0


def test_a_timetable_of_retries_keeps_connections_idle(runs):
    """Twenty connections are no better than eight if what waits is not due."""
    slow = {run.connections: run.gone_at_s for run in runs[SLOW]}
    quick = {run.connections: run.gone_at_s for run in runs[QUICK]}
    assert slow[20] > quick[20] + 3
    assert slow[8] - slow[20] < 5 < quick[8] - quick[20]


def test_the_peak_is_what_came_while_it_was_away(runs):
    """A tenth more or less, by chance and by what is on its way."""
    for run in (*runs[QUICK], *runs[SLOW]):
        assert run.queued.max() == pytest.approx(RATE * (AWAY[1] - AWAY[0]), rel=0.15)


def test_the_line_ends_where_the_formula_says():
    """The two straight lines and `theory.drain_s` are the same theory."""
    lasts = theory.drain_s(RATE * (AWAY[1] - AWAY[0]), RATE, 8, 2 * WAVE_S)
    t = [AWAY[0], AWAY[1], AWAY[1] + lasts / 2, AWAY[1] + lasts]
    assert list(fluid_queue(t, 8)) == pytest.approx([0.0, 400.0, 200.0, 0.0])


def test_figures_are_drawn(runs):
    """One panel a run; one series a timetable; a backlog that stays is not drawn as gone."""
    stuck = [run._replace(gone_at_s=None) for run in runs[SLOW]]
    assert svg(over_time(runs[QUICK])).startswith(b"<?xml")
    assert svg(against_limit([runs[QUICK], stuck])).startswith(b"<?xml")
