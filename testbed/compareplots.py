"""Figures of a comparison: made from compare.json alone."""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from testbed.plots import LIGHT, MIB, Theme, from_zero, make_panels, rc, thousands
from testbed.quantities import QUANTITIES

PANELS: Final = (
    "messages_per_s",
    "cpu_per_message",
    "peak_pss",
    "pss_per_envelope",
    "drain_time",
    "p99_accepted",
    "p99_delivered",
    "fsyncs_per_message",
)
"""What is drawn, if any contender has a value for it."""

_STYLES: Final = ("-", "--", ":", "-.")
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")
_COLOURS: Final = ("packed", "whole", "slim", "fixed", "full", "tempfail", "raised", "hold")
"""Of the theme's palette, in the order of contenders; marker and line tell them apart without colour, too."""

_UNITS: Final[Mapping[str, tuple[str, float]]] = {
    "size": ("MiB", 1 / MIB),
    "time": ("s", 1.0),
    "rate": ("per s", 1.0),
    "share": ("", 1.0),
    "": ("", 1.0),
}
_OWN_UNITS: Final[Mapping[str, tuple[str, float]]] = {
    "pss_per_envelope": ("B", 1.0),
    "cpu_per_message": ("ms", 1e3),
    "p50_accepted": ("ms", 1e3),
    "p99_accepted": ("ms", 1e3),
}


def unit_of(name: str) -> tuple[str, float]:
    """Return the unit in which a quantity is drawn and tabled, and what its value is multiplied with."""
    return _OWN_UNITS.get(name) or _UNITS[QUANTITIES[name].dimension]


def colour_of(theme: Theme, number: int) -> str:
    """Return the colour of the n-th contender."""
    return theme.colour(_COLOURS[number % len(_COLOURS)])


def beside(section: Mapping[str, Any], theme: Theme = LIGHT) -> Figure:
    """Each quantity in a panel of its own: the median, and the range over repeats."""
    cells = section["cells"]
    names = [
        name
        for name in PANELS
        if any(cell["quantities"][name]["median"] is not None for cell in cells)
    ]
    columns = 3 if len(names) > 2 else max(1, len(names))
    rows = max(1, math.ceil(len(names) / columns))
    with rc(theme):
        figure, panels = make_panels(columns, rows, height=1.0 + 0.3 * len(cells))
        for axes, name in zip(panels, names, strict=False):
            unit, factor = unit_of(name)
            for i, cell in enumerate(cells):
                found = cell["quantities"][name]
                if found["median"] is None:
                    continue
                low, middle, high = (found[key] * factor for key in ("low", "median", "high"))
                colour = colour_of(theme, i)
                axes.plot([0, middle], [i, i], color=theme.faint, lw=1.0, zorder=1)
                axes.plot([low, high], [i, i], color=colour, lw=3.5, alpha=0.45, zorder=2)
                axes.plot(middle, i, _MARKERS[i % len(_MARKERS)], color=colour, ms=6, zorder=3)
            title = name.replace("_", " ")
            unit = "" if unit == "per s" else unit
            axes.set(title=f"{title}, {unit}" if unit else title, ylim=(len(cells) - 0.5, -0.5))
            axes.set_yticks(range(len(cells)), [cell["label"] for cell in cells])
            axes.set_xlim(left=0)
            axes.grid(axis="y", visible=False)
            axes.margins(x=0.08)
        for axes in panels[len(names) :]:
            axes.set_visible(False)
    return figure


def over_time(section: Mapping[str, Any], theme: Theme = LIGHT) -> Figure:
    """Queue and memory over time, of the first run of each contender."""
    with rc(theme):
        figure, (queue, memory) = make_panels(2, height=3.1)
        for i, cell in enumerate(section["cells"]):
            curves = cell["curves"]
            style: dict[str, Any] = {"color": colour_of(theme, i), "ls": _STYLES[i % len(_STYLES)]}
            queue.plot(curves["t"], _array(curves["queued"]), label=cell["label"], **style)
            memory.plot(
                curves["t"], _array(curves["pss_bytes"]) / MIB, label=cell["label"], **style
            )
        queue.set(title="Queue", ylabel="envelopes (or messages)", xlabel="seconds of load")
        memory.set(title="Memory of all its processes", ylabel="PSS, MiB", xlabel="seconds of load")
        for axes in (queue, memory):
            from_zero(axes)
        thousands(queue, "y")
        queue.legend(loc="best")
    return figure


def swept(section: Mapping[str, Any], key: str, theme: Theme = LIGHT) -> Figure | None:
    """Quantities against the value of what was varied; None if the values are no numbers."""
    cells = section["cells"]
    try:
        values = np.array([float(cell["label"]) for cell in cells])
    except ValueError:
        return None
    with rc(theme):
        figure, panels = make_panels(4, height=2.9)
        names = ("messages_per_s", "p99_delivered", "peak_queue", "peak_pss")
        for axes, name in zip(panels, names, strict=True):
            _against(axes, values, cells, name, theme)
        panels[0].set_xlabel(key.rpartition(".")[2])
    return figure


def _against(
    axes: Axes, values: Any, cells: list[Mapping[str, Any]], name: str, theme: Theme
) -> None:
    unit, factor = unit_of(name)
    found = [cell["quantities"][name] for cell in cells]
    low, middle, high = (
        _array([each[key] for each in found]) * factor for key in ("low", "median", "high")
    )
    colour = theme.colour("packed")
    axes.fill_between(values, low, high, color=colour, alpha=0.25, lw=0)
    axes.plot(values, middle, "o-", color=colour)
    title = name.replace("_", " ")
    axes.set(title=f"{title}, {unit}" if unit and unit != "per s" else title)
    from_zero(axes)
    axes.set_xlim(left=0)


def _array(values: list[float | None]) -> Any:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
