"""Backlog and drain in the model, beside the straight lines of theory: a destination is away, comes back, and what has waited goes.

While it is away the queue grows at the rate of the load; afterwards it shrinks at what is left of the capacity, ``connections /
seconds per message - rate`` (`sim.theory.drain_s`). Nothing drains faster than that. What drains slower waits for something else: a
timetable of retries.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from mta.core.settings import build
from sim import theory
from sim.costs import Costs
from sim.figures import LIGHT, Theme, make_panels, rc, thousands
from sim.runner import simulate
from sim.scenario import Scenario

Floats = npt.NDArray[np.float64]

WAVE_S: Final = 0.05
"""The destination's answer to each of the two waves of a message."""
AWAY: Final = (5.0, 15.0)
"""When it is away, seconds of load."""
RATE: Final = 40.0
"""Messages per second, of one recipient."""


USUAL: Final = 2.0
"""The backlog is gone when the queue is down to so many times what is on its way anyway: rate times seconds per message."""


class Drained(NamedTuple):
    """One run of the model, and its theory."""

    connections: int
    retry_base_s: float
    t: Floats
    queued: Floats
    fluid: Floats
    """The theory's queue at the same instants."""
    gone_at_s: float | None
    """When the backlog was gone; None if it was still there when the load ended."""
    fluid_gone_at_s: float


def scenario(connections: int, *, retry_base_s: float, load_s: float, seed: int = 1) -> Scenario:
    """Return a load on one destination that is away for a while.

    Args:
        connections: limit to it.
        retry_base_s: of the quadratic timetable: tries after so many seconds times the square of their number.
        load_s: how long messages come.
        seed: of all that is drawn.
    """
    return build(
        Scenario,
        {
            "name": "drain",
            "seed": seed,
            "drain_s": 300.0,
            "load": {
                "messages": round(RATE * load_s),
                "rate": RATE,
                "arrivals": "poisson",
                "sessions": 50,
                "sizes": {"law": "fixed", "bytes": 4096},
                "recipients": {"law": "fixed", "count": 1},
            },
            "destinations": [
                {
                    "name": "far",
                    "domain": "far.test",
                    "behaviours": [
                        {"kind": "latency", "law": "fixed", "delay_s": WAVE_S},
                        {"kind": "outage", "from_s": AWAY[0], "to_s": AWAY[1], "mode": "refuse"},
                    ],
                }
            ],
            "server": {
                "retry": {"policy": "quadratic", "base_s": retry_base_s, "overflow_base_s": 0.2},
                "concurrency": {"policy": "fixed", "limit": 1000},
                "limits": {
                    "mta": {
                        "max_conn_per_route": connections,
                        "max_conn_per_host": 1000,
                        "max_conn_per_relay": 1000,
                        "max_conn_per_domain": 1000,
                        "route_delay_base_s": 0.1,
                        "route_delay_max_s": 0.2,
                        "max_deferred": 0,
                    },
                    "scheduler": {
                        "max_inflight": 100_000,
                        "max_schedule": 10_000,
                        "max_held": 100_000,
                    },
                },
            },
        },
        source="drain.toml",
    )


def drain(
    limits: Iterable[int], *, retry_base_s: float, load_s: float, costs: Costs | None = None
) -> list[Drained]:
    """Run the model at each limit on connections, and reckon the theory of each.

    Every limit must be above what the load needs; the others never drain.
    """
    found = []
    for connections in limits:
        of = scenario(connections, retry_base_s=retry_base_s, load_s=load_s)
        result = simulate(of, representation="slim", costs=costs, backend="heapq")
        fluid = fluid_queue(result.t, connections)
        backlog = RATE * (AWAY[1] - AWAY[0])
        found.append(
            Drained(
                connections,
                retry_base_s,
                result.t,
                result.queued.astype(float),
                fluid,
                gone_at(result.t, result.queued.astype(float)),
                AWAY[1] + theory.drain_s(backlog, RATE, connections, 2 * WAVE_S),
            )
        )
    return found


def gone_at(t: Floats, queued: Floats) -> float | None:
    """Return when the backlog was gone; None if it never was."""
    found = np.flatnonzero((t > AWAY[1]) & (queued <= USUAL * RATE * 2 * WAVE_S))
    return float(t[found[0]]) if len(found) else None


def fluid_queue(t: Floats, connections: int) -> Floats:
    """Return the theory's queue: two straight lines."""
    backlog = RATE * (AWAY[1] - AWAY[0])
    lasts = theory.drain_s(backlog, RATE, connections, 2 * WAVE_S)
    corners = (AWAY[0], AWAY[1], AWAY[1] + lasts)
    line: Floats = np.interp(t, corners, (0.0, backlog, 0.0))
    return line


def over_time(runs: Iterable[Drained], theme: Theme = LIGHT) -> Figure:
    """Queue of some runs over time: the model, and its two straight lines."""
    every = list(runs)
    with rc(theme):
        figure, panels = make_panels(len(every), height=3.0)
        for axes, run in zip(panels, every, strict=True):
            axes.axvspan(*AWAY, color=theme.shade, lw=0, zorder=0, label="destination is away")
            axes.plot(run.t, run.queued, color=theme.colour("slim"), label="model")
            axes.plot(run.t, run.fluid, "--", color=theme.ink, lw=1.2, label="theory")
            axes.set(
                title=f"{run.connections} connections, retry base {run.retry_base_s:g} s",
                xlabel="seconds of load",
            )
            axes.title.set_fontsize(9)
            thousands(axes, "y")
        top = max(axes.get_ylim()[1] for axes in panels)
        end = max(float(run.t[-1]) for run in every)
        for axes in panels:
            axes.set_ylim(0, top)
            axes.set_xlim(0, end)
        panels[0].set_ylabel("envelopes queued")
        panels[0].legend(loc="upper right")
    return figure


def against_limit(series: Iterable[Iterable[Drained]], theme: Theme = LIGHT) -> Figure:
    """How long after the outage the queue is empty, against the limit: points of the model for each timetable, and the theory."""
    markers, colours = ("o", "s", "^"), ("slim", "whole", "packed")
    with rc(theme):
        figure, (axes,) = make_panels(1, height=3.4)
        most, least = 0, 10**9
        for i, each in enumerate(series):
            runs = list(each)
            x = [run.connections for run in runs]
            most, least = max(most, *x), min(least, *x)
            y = [np.nan if run.gone_at_s is None else run.gone_at_s - AWAY[1] for run in runs]
            axes.plot(
                x,
                y,
                markers[i % 3],
                color=theme.colour(colours[i % 3]),
                label=f"model, retries from {runs[0].retry_base_s:g} s on",
            )
        grid = np.linspace(least, most, 200)
        backlog = RATE * (AWAY[1] - AWAY[0])
        axes.plot(
            grid,
            [backlog / (c / (2 * WAVE_S) - RATE) for c in grid],
            "--",
            color=theme.ink,
            label="theory: backlog / (capacity - rate)",
        )
        needed = RATE * 2 * WAVE_S
        axes.axvline(needed, color=theme.faint, lw=4, label="what the load alone needs")
        axes.set(
            title="From the end of the outage until the backlog is gone",
            xlabel="connections to the destination",
            ylabel="seconds",
        )
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper right")
    return figure
