"""Four figures that say how mail servers differ, in one: speed, time per message, memory over queue, recovery."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from testbed.compareplots import colour_of
from testbed.plots import LIGHT, MIB, Theme, make_panels, rc, thousands
from testbed.verdicts import MEMORY, SPEED, labels

COST: Final = "baseline"
"""Where processor time per message is taken from: all get the same work at the same rate."""

RECOVERY: Final = "backlog"

_STYLES: Final = ("-", "--", "-.", ":")
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")


def overview(result: Mapping[str, Any], theme: Theme = LIGHT) -> Figure:
    """Draw the four panels; one whose scenario was not run says so."""
    order = labels(result)
    sections = {section["name"]: section for section in result["scenarios"]}
    with rc(theme):
        figure, (speed, cost, memory, recovery) = make_panels(2, 2, height=2.75)
        _bars(speed, sections.get(SPEED), order, "messages_per_s", 1.0, theme)
        speed.set(title="Speed, end to end", xlabel="messages per second")
        _bars(cost, sections.get(COST), order, "cpu_per_message", 1e3, theme)
        cost.set(title="Processor time at the same rate", xlabel="ms per message")
        _memory(memory, sections.get(MEMORY), order, theme)
        memory.set(title="Memory while a queue grows", xlabel="in the queue", ylabel="PSS, MiB")
        _recovery(recovery, sections.get(RECOVERY), order, theme)
        recovery.set(
            title="An outage, and after it", xlabel="seconds of load", ylabel="in the queue"
        )
    return figure


def _absent(axes: Axes, theme: Theme) -> None:
    axes.text(0.5, 0.5, "not run", ha="center", va="center", color=theme.ink, alpha=0.6,
              transform=axes.transAxes)  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])


def _bars(
    axes: Axes,
    section: Mapping[str, Any] | None,
    order: list[str],
    name: str,
    factor: float,
    theme: Theme,
) -> None:
    """A bar for each server, with the range over repeats, and its number."""
    if section is None:
        _absent(axes, theme)
        return
    shown: list[str] = []
    for cell in section["cells"]:
        found = cell["quantities"][name]
        if found["median"] is None:
            continue
        low, middle, high = (found[key] * factor for key in ("low", "median", "high"))
        i = len(shown)
        shown.append(cell["label"])
        colour = colour_of(theme, order.index(cell["label"]))
        axes.barh(i, middle, color=colour, height=0.6, zorder=2)
        if len(found["values"]) > 1:
            axes.plot([low, high], [i, i], color=theme.ink, lw=1.4, zorder=3)
            for end in (low, high):
                axes.plot([end, end], [i - 0.12, i + 0.12], color=theme.ink, lw=1.4, zorder=3)
        text = f"{middle:,.0f}" if middle >= 20 else f"{middle:.2f}"
        axes.annotate(
            text, (high, i), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_yticks(range(len(shown)), shown)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.14)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6))


def _memory(axes: Axes, section: Mapping[str, Any] | None, order: list[str], theme: Theme) -> None:
    if section is None:
        _absent(axes, theme)
        return
    for cell in section["cells"]:
        queued, pss = (_array(cell["curves"][key]) for key in ("queued", "pss_bytes"))
        if not np.isfinite(queued).any():
            continue
        top = int(np.nanargmax(queued)) + 1
        _line(axes, queued[:top], pss[:top] / MIB, cell["label"], order, theme)
        agents = [key for key in cell["curves"] if key == "process.scheduler.uss_bytes"]
        for key in agents:
            growth = _array(cell["curves"][key])[:top] / MIB
            axes.plot(queued[:top], growth, color=colour_of(theme, order.index(cell["label"])),
                      lw=1.0, ls=":", label=f"{cell['label']}: its scheduler alone")  # fmt: skip
    # Room for the legend: lines may be anywhere below.
    axes.set_ylim(0, axes.get_ylim()[1] * 1.45)
    axes.set_xlim(left=0)
    thousands(axes, "x")
    if axes.lines:
        axes.legend(loc="upper left", ncol=2, fontsize=7.5)


def _recovery(
    axes: Axes, section: Mapping[str, Any] | None, order: list[str], theme: Theme
) -> None:
    if section is None:
        _absent(axes, theme)
        return
    outage = section["load"]["outage"]
    if outage:
        axes.axvspan(outage[0], outage[1], color=theme.shade, lw=0, zorder=0, label="the outage")
    for cell in section["cells"]:
        t, queued = (_array(cell["curves"][key]) for key in ("t", "queued"))
        unit = cell["queue_unit"]
        label = cell["label"] if unit == "envelopes" else f"{cell['label']} ({unit})"
        axes.plot(
            t, queued, label=label,
            color=colour_of(theme, order.index(cell["label"])),
            ls=_STYLES[order.index(cell["label"]) % len(_STYLES)],
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    thousands(axes, "y")
    axes.legend(loc="best", fontsize=7.5)


def _line(axes: Axes, x: Any, y: Any, label: str, order: list[str], theme: Theme) -> None:
    i = order.index(label)
    axes.plot(x, y, label=label, color=colour_of(theme, i), ls=_STYLES[i % len(_STYLES)])


def _array(values: list[float | None]) -> Any:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
