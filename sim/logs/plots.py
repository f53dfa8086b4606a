"""Figures of a replayed mail log: what the log says beside what the model says."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sim.figures import LIGHT, Theme, make_panels, rc, thousands
from sim.logs.replay import Replay, queued_of
from sim.result import SimResult

STYLES: Final = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
"""Of the model's lines; the log's is drawn through. Figures are printed, too."""

LATENCY_MIN_S: Final = 0.01
"""What is quicker is drawn here: no log says it better."""


def _shade(axes: Axes, replayed: Replay, theme: Theme) -> None:
    for site in replayed.world.sites:
        for outage in site.outages:
            end = outage.end if math.isfinite(outage.end) else replayed.world.told.queued_at[-1]
            axes.axvspan(
                max(outage.begin, 0.0), end, color=theme.shade, lw=0, zorder=0,
                label=f"{site.name} is out of order",
            )  # fmt: skip


def queue(replayed: Replay, runs: Mapping[str, SimResult], theme: Theme = LIGHT) -> Figure:
    """Queue length over time: the log's, and one line for each run of the model."""
    told = replayed.world.told
    with rc(theme):
        figure, (axes,) = make_panels(1, height=3.2)
        _shade(axes, replayed, theme)
        longest = max(result.t[-1] for result in runs.values())
        t = np.linspace(0, max(longest, told.queued_at[-1]), 2000)
        axes.plot(t, queued_of(told, t), color=theme.ink, lw=1.4, label="the log")
        for i, (name, result) in enumerate(runs.items()):
            axes.plot(
                result.t, result.queued, linestyle=STYLES[i % len(STYLES)], lw=1.4, label=name
            )
        axes.set(xlabel="seconds of load", ylabel="queued envelopes")
        axes.set_ylim(
            0, 1.08 * max(told.queued.max(), *(run.queued.max() for run in runs.values()))
        )
        thousands(axes, "y")
        # Above: lines go everywhere.
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return figure


def latency(replayed: Replay, runs: Mapping[str, SimResult], theme: Theme = LIGHT) -> Figure:
    """Share of the mail that took longer than so many seconds from arrival to delivery; both axes logarithmic."""
    with rc(theme):
        figure, (axes,) = make_panels(1, height=3.2)
        series = {"the log": replayed.world.told.latency_s}
        series |= {name: np.sort(result.delivery_latency_s) for name, result in runs.items()}
        for i, (name, values) in enumerate(series.items()):
            n = len(values)
            # As many points as can be seen.
            chosen = np.unique(np.geomspace(1, n, 400).astype(int))
            seconds = np.maximum(values[n - chosen], LATENCY_MIN_S)
            style = "-" if not i else STYLES[(i - 1) % len(STYLES)]
            axes.loglog(
                seconds,
                chosen / n,
                linestyle=style,
                color=None if i else theme.ink,
                lw=1.4,
                label=name,
            )
        axes.set(xlabel="seconds from arrival to delivery", ylabel="part that took longer")
        axes.legend(loc="lower left")
    return figure


def limits(
    key: str, values: Sequence[float], runs: Sequence[SimResult], then: float, theme: Theme = LIGHT
) -> Figure:
    """Peak of the queue and median time to delivery against the values of a limit; ``then`` is the value of then."""
    with rc(theme):
        figure, panels = make_panels(2, height=2.9)
        rows: tuple[tuple[str, list[float]], ...] = (
            ("peak, queued envelopes", [result.peak_queued for result in runs]),
            ("median time to delivery, s", [result.quantiles()["p50"] or 0.0 for result in runs]),
        )
        for axes, (words, found) in zip(panels, rows, strict=True):
            axes.plot(values, found, marker="o", color=theme.colour("slim"))
            axes.axvline(then, color=theme.shade, lw=3, zorder=0, label="then")
            axes.set(xscale="log", xlabel=key, ylabel=words)
            axes.set_xticks(list(values), [f"{value:g}" for value in values])
            axes.minorticks_off()
            axes.set_ylim(0, 1.08 * max(found) or 1)
            axes.legend()
    return figure
