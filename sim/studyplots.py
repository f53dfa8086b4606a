"""Figures of the notebooks about limits: the knee, who comes back when, and windows that follow a host.

Each takes results of the model and nothing else. Small multiples share their axes: what is compared is above or beside.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from sim.figures import LIGHT, MARKERS, Theme, make_panels, plain_numbers, rc, thousands
from sim.result import SAMPLE_S, Floats, SimResult

_STYLES: Final = ("-", "--", ":")


def attempts_per_s(result: SimResult) -> tuple[Floats, Floats]:
    """Return (seconds, rate): float64[second] each, attempts at envelopes that were settled, per second."""
    settled = np.diff(result.delivered + result.deferred, prepend=0)
    step = round(1 / SAMPLE_S)
    padded = np.concatenate((settled, np.zeros(-len(settled) % step, dtype=settled.dtype)))
    rate: Floats = padded.reshape(-1, step).sum(axis=1).astype(np.float64)
    return np.arange(len(rate), dtype=np.float64), rate


def peak_after(result: SimResult, at_s: float) -> float:
    """Return the most attempts in one second that begins at an instant or later."""
    t, rate = attempts_per_s(result)
    return float(rate[t >= at_s].max(initial=0.0))


def knee(
    result: Mapping[str, Any],
    *,
    per_connection: float,
    offered: float,
    theme: Theme = LIGHT,
) -> Figure:
    """Goodput, p95 and the queue's memory against a limit on connections, with what Little's law says of the first.

    Args:
        result: of a sweep over that limit and the envelope.
        per_connection: envelopes a second that one connection carries.
        offered: envelopes a second that come.
        theme: colours.
    """
    limit, envelope = (axis["key"] for axis in result["axes"])
    points = [each for each in result["points"] if each["settings"]]
    values = sorted({float(each["settings"][limit]) for each in points})
    kinds = list(dict.fromkeys(each["settings"][envelope] for each in points))
    amounts = (
        ("goodput", "delivered, envelopes/s", 1.0),
        ("p95", "95 % delivered within, s", 1.0),
        ("peak_live_bytes", "peak of the queue, KiB", 1 / 1024),
    )
    with rc(theme):
        figure, panels = make_panels(3, height=3.4)
        for axes, (name, words, factor) in zip(panels, amounts, strict=True):
            # Envelopes change bytes alone: one line is all of them elsewhere.
            for i, kind in enumerate(kinds if name == "peak_live_bytes" else kinds[:1]):
                own = {
                    float(p["settings"][limit]): p["means"][name]
                    for p in points
                    if p["settings"][envelope] == kind
                }
                several = name == "peak_live_bytes"
                axes.errorbar(
                    values,
                    [own[value]["mean"] * factor for value in values],
                    yerr=[(own[value]["half"] or 0.0) * factor for value in values],
                    fmt=MARKERS.get(kind, "o"), ls=_STYLES[i % 3], ms=4.5, capsize=2.5,
                    color=theme.colour(kind) if several else theme.ink,
                    label=f"{kind}" if several else "model, 95 %",
                )  # fmt: skip
            axes.set(title=words, xlabel="connections allowed")
            if name == "p95":
                axes.set_yscale("log")
                plain_numbers(axes, "y")
            else:
                axes.set_ylim(bottom=0)
            axes.axvline(offered / per_connection, color=theme.colour("raised"), lw=1.0, ls=":")
        grid = np.linspace(0, max(values), 200)
        panels[0].plot(
            grid, np.minimum(per_connection * grid, offered), color=theme.colour("hold"), lw=1.2, zorder=1,
            label="Little: min(N / S, offered)",
        )  # fmt: skip
        panels[0].annotate(
            f"N = {offered / per_connection:g}", (offered / per_connection, 0.45 * offered), xytext=(4, 0),
            textcoords="offset points", fontsize=8.5, color=theme.colour("raised"),
        )  # fmt: skip
        panels[0].legend(loc="lower right")
        panels[2].legend(loc="upper right")
    return figure


def pace(
    runs: Mapping[str, SimResult],
    *,
    outage: tuple[float, float],
    until_s: float,
    theme: Theme = LIGHT,
) -> Figure:
    """Attempts per second over time, a panel for each run, with the time at which the hosts are away."""
    rows = -(-len(runs) // 2)
    top = max(float(attempts_per_s(each)[1].max()) for each in runs.values())
    with rc(theme):
        figure, panels = make_panels(2, rows, height=2.0)
        for axes, (name, result) in zip(panels, runs.items(), strict=False):
            t, rate = attempts_per_s(result)
            axes.axvspan(*outage, color=theme.shade, lw=0, zorder=0, label="hosts are away")
            axes.fill_between(t, rate, step="post", color=theme.colour("slim"), alpha=0.3, lw=0)
            axes.step(t, rate, where="post", color=theme.colour("slim"), lw=1.2)
            peak = peak_after(result, outage[1])
            axes.set_title(f"{name}: up to {peak:,.0f}/s after the return", fontsize=9)
            axes.set(xlim=(0, until_s), ylim=(0, top * 1.05))
            thousands(axes, "y")
        for axes in panels[: len(runs)][-2:]:
            axes.set_xlabel("seconds")
        for axes in panels[::2]:
            axes.set_ylabel("attempts/s")
        panels[0].legend(loc="upper right")
        for axes in panels[len(runs) :]:
            axes.set_visible(False)
    return figure


def windows(
    runs: Mapping[str, SimResult],
    *,
    bears: Sequence[tuple[float, float]],
    until_s: float,
    theme: Theme = LIGHT,
) -> Figure:
    """Connections and queue over time, a row for each run.

    Args:
        runs: by name.
        bears: (from second, connections that the host takes).
        until_s: end of the axes.
        theme: colours.
    """
    longest = max(float(each.queued.max()) for each in runs.values())
    widest = max(float(each.connections.max()) for each in runs.values())
    t_host = [*(t for t, _ in bears), until_s]
    host = [*(cap for _, cap in bears), bears[-1][1]]
    with rc(theme):
        figure, panels = make_panels(2, len(runs), height=1.75)
        for row, (name, result) in enumerate(runs.items()):
            left, right = panels[2 * row], panels[2 * row + 1]
            left.step(
                t_host, host, where="post", color=theme.colour("raised"), ls="--", lw=1.4, label="what the host takes"
            )  # fmt: skip
            left.plot(
                result.t,
                result.connections,
                color=theme.colour("slim"),
                lw=1.2,
                label="open or being opened",
            )
            left.set(
                title=f"{name}: connections", ylim=(0, max(widest, *host) * 1.45), xlim=(0, until_s)
            )
            right.fill_between(result.t, result.queued, color=theme.colour("slim"), alpha=0.3, lw=0)
            right.plot(result.t, result.queued, color=theme.colour("slim"), lw=1.2)
            right.set_title(
                f"{name}: queue; {result.counts['connections_failed']:,} connections refused",
                fontsize=9,
            )
            right.set(
                ylim=(0, longest * 1.05), xlim=(0, until_s),
            )  # fmt: skip
            thousands(right, "y")
        panels[0].legend(loc="upper right", ncols=2, fontsize=7.5)
        panels[-2].set_xlabel("seconds")
        panels[-1].set_xlabel("seconds")
    return figure
