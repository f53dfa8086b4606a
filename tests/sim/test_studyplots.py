"""Figures of the notebooks about limits: what they reckon, and that they are drawn."""

import numpy as np
import pytest

from sim import figures, studyplots
from sim.executors import Here
from sim.runner import simulate
from sim.sweep import design
from sim.sweepresult import result_of
from sim.sweeprun import carry_out_plan, make_plan
from sim.sweepsubject import subject
from tests.support.model import scenario

AWAY = {"kind": "outage", "from_s": 0.0, "to_s": 3.0}


@pytest.fixture(scope="module")
def run():
    return simulate(
        scenario(AWAY, messages=60, rate=100.0, server={"retry": {"base_s": 1.0}}), backend="heapq"
    )


def test_attempts_are_all_counted(run):
    """By the second; the last one need not be whole."""
    t, rate = studyplots.attempts_per_s(run)
    assert rate.sum() == run.counts["delivered"] + run.counts["deferred"]
    assert np.diff(t).tolist() == [1.0] * (len(t) - 1)
    assert studyplots.peak_after(run, 3.0) == rate[3:].max()
    assert studyplots.peak_after(run, 1e9) == 0.0


def test_runs_side_by_side(run):
    """A panel or a row for each, axes shared."""
    runs = {"one": run, "two": run, "three": run}
    pace = studyplots.pace(runs, outage=(0.0, 3.0), until_s=10.0)
    shown = [axes for axes in pace.axes if axes.get_visible()]
    assert [axes.get_title(loc="left").partition(":")[0] for axes in shown] == list(runs)
    assert len({axes.get_ylim() for axes in shown}) == 1
    windows = studyplots.windows(runs, bears=[(0.0, 9), (4.0, 2)], until_s=10.0)
    assert len(windows.axes) == 6
    assert "three: queue; " in windows.axes[5].get_title(loc="left")
    assert b"<svg" in figures.svg(windows)


def test_the_knee_has_theory_beside_it():
    """The line of Little's law goes through the corner that the formula names."""
    of = subject("concurrency-sweep", ["load.messages=40"])
    plan = make_plan(of, design(["limits.mta.max_conn_per_route=2,20", "envelope=full,slim"]))
    figure = studyplots.knee(
        result_of(carry_out_plan(plan, Here())), per_connection=10.0, offered=160.0
    )
    goodput, latency, memory = figure.axes
    theory = next(line for line in goodput.get_lines() if "Little" in str(line.get_label()))
    x, y = theory.get_data()
    assert np.interp(16.0, x, y) == pytest.approx(160.0, rel=0.01)
    assert np.interp(8.0, x, y) == pytest.approx(80.0, rel=0.01)
    assert len(memory.containers) == 2
    assert latency.get_yscale() == "log"
