"""Figures of `testbed policies`: made from policies.json alone, so that a report, a notebook and a README have the same."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from testbed.plots import LIGHT, MARKERS, MIB, Theme, make_panels, rc, thousands
from testbed.policies import cell_of
from testbed.rundir import Floats

DATES: Final = {"tempfail": "October 2012", "raised": "January 2013", "hold": "since November 2013"}

LATENCY_MIN_S: Final = 0.01
"""What is quicker is drawn here: a client hears its 250 some milliseconds late."""

STYLES: Final = {"tempfail": ":", "raised": "--", "hold": "-"}
"""Besides colours: figures are printed, too."""
REPRESENTATION_STYLES: Final = {
    "fixed": "-",
    "whole": "--",
    "full": "--",
    "slim": ":",
    "packed": "-.",
}


def policies_of(result: Mapping[str, Any]) -> list[str]:
    """Return the policies that were run, in their order."""
    return list(dict.fromkeys(cell["policy"] for cell in result["cells"]))


def representations_of(result: Mapping[str, Any]) -> list[str]:
    """Return the representations that were run, in their order."""
    return list(dict.fromkeys(cell["envelope"] for cell in result["cells"]))


def standing_for(result: Mapping[str, Any], policy: str) -> dict[str, Any]:
    """Return the cell that stands for a policy where memory is not the question: slim, or the last one."""
    found = cell_of(result, policy, "slim")
    if found is None:
        found = [cell for cell in result["cells"] if cell["policy"] == policy][-1]
    return found


def _array(values: list[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values])


def memory(result: Mapping[str, Any], theme: Theme = LIGHT) -> Figure:
    """Growth of RSS over time: a panel for each policy, a line for each representation."""
    policies = policies_of(result)
    top = 0.0
    with rc(theme):
        figure, axes_of = make_panels(len(policies), height=3.4)
        for axes, policy in zip(axes_of, policies, strict=True):
            for name in representations_of(result):
                cell = cell_of(result, policy, name)
                if cell is None:
                    continue
                growth = _array(cell["curves"]["rss_growth_bytes"]) / MIB
                top = max(top, float(np.nanmax(growth)))
                axes.plot(
                    cell["curves"]["t"],
                    growth,
                    REPRESENTATION_STYLES.get(name, "-"),
                    color=theme.colour(name),
                    label=name,
                )
            axes.set(title=_title(policy), xlabel="seconds of load")
        for axes in axes_of:
            axes.set_ylim(0, top * 1.08 or 1)
        axes_of[0].set_ylabel("RSS growth, MiB")
        axes_of[0].legend(title="envelopes", loc="upper left")
    return figure


def waiting(result: Mapping[str, Any], theme: Theme = LIGHT) -> Figure:
    """Where undelivered mail is over time: with the agent, held, or with the scheduler."""
    policies = policies_of(result)
    parts = (("the agent has it", 0.75), ("held", 0.45), ("waits for its next try", 0.18))
    top = 0.0
    with rc(theme):
        figure, axes_of = make_panels(len(policies), height=3.2)
        for axes, policy in zip(axes_of, policies, strict=True):
            curves = standing_for(result, policy)["curves"]
            queued, agent, held = (
                np.nan_to_num(_array(curves[key])) for key in ("queued", "agent", "held")
            )
            rest = np.maximum(queued - agent - held, 0.0)
            stack = axes.stackplot(
                curves["t"], agent, held, rest, colors=[theme.colour(policy)] * 3, lw=0
            )
            for area, (label, alpha) in zip(stack, parts, strict=True):
                area.set_alpha(alpha)
                area.set_label(label)
            axes.plot(curves["t"], queued, color=theme.colour(policy), lw=1.0)
            top = max(top, float(queued.max(initial=0.0)))
            axes.set(title=_title(policy), xlabel="seconds of load")
            axes.legend(loc="upper right")
            thousands(axes, "y")
        for axes in axes_of:
            axes.set_ylim(0, top * 1.5 or 1)
        axes_of[0].set_ylabel("envelopes")
    return figure


def progress(result: Mapping[str, Any], theme: Theme = LIGHT) -> Figure:
    """Messages due and delivered by then, of the burst and of the others."""
    with rc(theme):
        figure, axes_of = make_panels(2, height=3.4)
        for axes, key, title in zip(
            axes_of,
            ("burst", "others"),
            ("Burst: delivered by then", "Others: delivered by then"),
            strict=True,
        ):
            cells = [standing_for(result, policy) for policy in policies_of(result)]
            due = cells[0]["progress"]  # of the schedule, and so the same for all
            axes.plot(due["t"], due[f"{key}_due"], color=theme.ink, lw=1.0, label="due")
            for cell in cells:
                policy = cell["policy"]
                axes.plot(
                    cell["progress"]["t"],
                    cell["progress"][f"{key}_delivered"],
                    STYLES.get(policy, "-"),
                    color=theme.colour(policy),
                    label=policy,
                )
            axes.set(title=title, xlabel="seconds of load")
            axes.set_ylim(bottom=0)
            axes.set_xlim(left=0)
            thousands(axes, "y")
            axes.legend(loc="lower right")
        axes_of[0].set_ylabel("messages")
    return figure


def latency(result: Mapping[str, Any], theme: Theme = LIGHT) -> Figure:
    """How long the others' mail took: a line for each policy, a panel for each representation."""
    names = representations_of(result)
    with rc(theme):
        figure, axes_of = make_panels(len(names), height=3.2)
        for axes, name in zip(axes_of, names, strict=True):
            for policy in policies_of(result):
                cell = cell_of(result, policy, name)
                if cell is None or not cell["others_quantiles_s"]:
                    continue
                p99 = cell["others_latency_s"]["p99"]
                axes.plot(
                    np.maximum(cell["others_quantiles_s"], LATENCY_MIN_S),
                    np.arange(0, 101),
                    STYLES.get(policy, "-"),
                    color=theme.colour(policy),
                    label=f"{policy}: p99 {p99:.2g} s",
                )
            axes.set(
                title=f"Latency of the others, {name}",
                xlabel="seconds from 250 to delivery",
                xscale="log",
                ylim=(0, 100),
            )
            axes.set_xlim(left=LATENCY_MIN_S)
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.legend(loc="upper left")
        axes_of[0].set_ylabel("per cent of messages")
    return figure


def per_envelope(result: Mapping[str, Any], theme: Theme = LIGHT) -> Figure:
    """Bytes per waiting envelope, by policy and representation; a logarithmic axis, so dots and no bars."""
    policies, names = policies_of(result), representations_of(result)
    with rc(theme):
        figure, (axes,) = make_panels(1, height=0.42 * len(policies) * len(names) + 1.1)
        labels: list[str] = []
        for policy in policies:
            for name in names:
                cell = cell_of(result, policy, name)
                if cell is None:
                    continue
                value, error = cell["bytes_per_pending"], cell["bytes_per_pending_stderr"] or 0.0
                y = len(labels)
                labels.append(f"{policy}, {name}")
                if value is None or value <= 0:
                    axes.annotate("not to be told from noise", (40, y), va="center", fontsize=8)
                    continue
                axes.errorbar(
                    [value],
                    [y],
                    xerr=[[min(error, value * 0.9)], [error]],
                    fmt="o",
                    color=theme.colour(name),
                    capsize=2.5,
                )
                _beside(axes, value + error, y, f"{value:,.0f}")
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_xscale("log")
        axes.set_xlim(30, 30_000)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set(title="RSS per waiting envelope", xlabel="bytes (logarithmic), ± standard error")
        axes.grid(False, axis="y")
    return figure


def memory_by_burst(rows: Sequence[Mapping[str, Any]], theme: Theme = LIGHT) -> Figure:
    """What the queue's envelopes take at most against the size of the burst, by the model; both axes logarithmic."""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    with rc(theme):
        figure, axes_of = make_panels(len(policies), height=3.4)
        limits = [row["live_bytes"] / MIB for row in rows]
        for axes, policy in zip(axes_of, policies, strict=True):
            for name in dict.fromkeys(row["envelope"] for row in rows):
                own = [row for row in rows if (row["policy"], row["envelope"]) == (policy, name)]
                axes.plot(
                    [row["burst"] for row in own],
                    [row["live_bytes"] / MIB for row in own],
                    REPRESENTATION_STYLES.get(name, "-"),
                    marker=MARKERS.get(name, "o"),
                    ms=4,
                    color=theme.colour(name),
                    label=name,
                )
            axes.set(
                title=_title(policy), xlabel="messages of the burst", xscale="log", yscale="log"
            )
            axes.set_ylim(min(limits) * 0.6, max(limits) * 1.8)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes_of[0].set_ylabel("envelopes at most, MiB")
        axes_of[0].legend(title="envelopes", loc="upper left")
    return figure


def _beside(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), xytext=(8, -3), textcoords="offset points", fontsize=8)


def _title(policy: str) -> str:
    date = DATES.get(policy)
    return f"{policy} ({date})" if date else policy


FIGURES: Final = (
    ("memory", "RSS of the server above that of the idle one, over time."),
    (
        "per_envelope",
        "Slope of RSS on queued envelopes while the queue grew, by policy and representation.",
    ),
    ("waiting", "Where undelivered mail was, five times a second."),
    (
        "progress",
        "Messages that were due and that had been delivered by then, burst and others apart.",
    ),
    (
        "latency",
        "Share of the others' mail that was delivered within so many seconds of its acceptance.",
    ),
)
"""(function, caption) of what a report draws."""


def draw(name: str, result: Mapping[str, Any], theme: Theme = LIGHT) -> Figure:
    """Draw one of `FIGURES`."""
    functions = {
        "memory": memory,
        "per_envelope": per_envelope,
        "waiting": waiting,
        "progress": progress,
        "latency": latency,
    }
    return functions[name](result, theme)
