"""Figures of a replayed log: what is drawn is what was counted."""

from pathlib import Path

import pytest

from sim.figures import svg
from sim.logs import plots
from sim.logs.replay import Replay

LOG = Path(__file__).parents[1] / "data" / "maillog" / "postfix.log.bz2"


@pytest.fixture(scope="module")
def replayed() -> Replay:
    return Replay([str(LOG)])


def test_the_queue_is_drawn_with_the_outage(replayed: Replay):
    """One line for the log, one for each run, and a legend that names all."""
    figure = plots.queue(
        replayed, {"then": replayed.run(), "soon": replayed.run(["retry.min_s=5"])}
    )
    (axes,) = figure.axes
    assert 3 == len(axes.get_lines())
    highest = max(axes.get_lines()[0].get_ydata())  # type: ignore[arg-type]
    assert highest == pytest.approx(replayed.world.told.rows["peak_queued"], rel=0.05)
    legend = axes.get_legend()
    assert legend is not None
    words = {text.get_text() for text in legend.get_texts()}
    assert {"the log", "then", "soon", "flaky.test is out of order"} == words
    assert svg(figure).startswith(b"<")


def test_latency_falls(replayed: Replay):
    """From all of the mail to one of it."""
    figure = plots.latency(replayed, {"then": replayed.run()})
    for line in figure.axes[0].get_lines():
        parts = line.get_ydata()
        assert max(parts) == 1.0  # type: ignore[arg-type]
        assert min(parts) < 0.001  # type: ignore[arg-type]


def test_a_sweep_of_a_limit(replayed: Replay):
    """A point for each run, in two panels."""
    runs = [replayed.run([f"limits.mta.max_conn={value}"]) for value in (2, 100)]
    figure = plots.limits("limits.mta.max_conn", (2, 100), runs, 100)
    peaks = figure.axes[0].get_lines()[0].get_ydata()
    assert [result.peak_queued for result in runs] == list(peaks)  # type: ignore[arg-type]
    assert peaks[0] > 2 * peaks[1]  # type: ignore[index,operator]
    assert 2 == len(figure.axes)
