"""Figures of a validation, made from its result alone: real runs are points with their range, the model is a line."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from testbed.heldoutgates import GATES, Row, rows_of
from testbed.plots import LIGHT, MARKERS, Theme, make_panels, rc, thousands

MIB: Final = 1024 * 1024
DRAWN: Final = ("peak_queue", "drain_time", "messages_per_s", "peak_rss")


def against_setting(result: Mapping[str, Any], theme: Theme = LIGHT) -> Figure:
    """Each quantity against the setting: model lines, real points, and where it was calibrated."""
    rows = rows_of(result)
    saving = any(row.quantity == "saving" for row in rows)
    with rc(theme):
        figure, panels = make_panels(3, 2, height=3.0)
        for axes, quantity in zip(panels, (*DRAWN, "saving"), strict=False):
            if quantity == "saving" and not saving:
                axes.set_visible(False)
                continue
            _quantity(axes, quantity, rows, result, theme)
        _errors(panels[5], rows, result, theme)
        panels[0].legend(loc="best")
    return figure


def _quantity(
    axes: Axes, quantity: str, rows: Sequence[Row], result: Mapping[str, Any], theme: Theme
) -> None:
    gate = GATES[quantity]
    names = ["saving"] if quantity == "saving" else result["representations"]
    axes.axvline(_place(result, result["train"]), color=theme.faint, lw=6, zorder=0)
    for name in names:
        colour = theme.ink if name == "saving" else theme.colour(name)
        key = "saving.peak_rss" if quantity == "saving" else f"{name}.{quantity}"
        label = "" if name == "saving" else name
        line = _array(result["curve"].get(key, [])) * gate.factor
        at = [_place(result, value) for value in result["curve"]["values"]]
        if len(line):
            axes.plot(at, line, "--", color=colour, label=f"{label} model".strip())
        own = [row for row in rows if row.quantity == quantity and row.representation == name]
        own = [row for row in own if row.real is not None]
        x = np.array([_place(result, row.value) for row in own], dtype=float)
        low, middle, high = (
            _array([getattr(row, part) for row in own]) * gate.factor
            for part in ("low", "real", "high")
        )
        axes.errorbar(
            x,
            middle,
            yerr=np.vstack((middle - low, high - middle)) if len(own) else None,
            fmt=MARKERS.get(name, "o"),
            ms=5,
            capsize=3,
            color=colour,
            label=f"{label} real".strip(),
        )
    unit = f", {gate.unit}" if gate.unit else ""
    axes.set(title=f"{gate.title}{unit}")
    low, high = axes.get_ylim()
    # Room for the uppermost mark.
    axes.set_ylim(min(0.0, low) if quantity == "saving" else 0.0, high * 1.05)
    thousands(axes, "y")
    _setting_axis(axes, result)


def _errors(axes: Axes, rows: Sequence[Row], result: Mapping[str, Any], theme: Theme) -> None:
    """The size of the error of each quantity beside that of the naive prediction and its gate."""
    lines = [line for line in result["verdict"]["quantities"] if line["median_error"] is not None]
    for i, line in enumerate(lines):
        colour = theme.colour("packed") if line["ok"] else theme.colour("raised")
        axes.barh(i, 100 * line["median_error"], height=0.5, color=colour)
        axes.plot(100 * line["gate"], i, "|", ms=16, mew=2, color=theme.ink)
        if line["naive_error"] is not None:
            axes.plot(100 * min(line["naive_error"], 0.95), i, "x", color=theme.ink)
        if line["real_spread"] is not None:
            axes.plot([0, 100 * line["real_spread"]], [i, i], color=theme.ink, lw=1)
    axes.set_yticks(range(len(lines)), [line["title"] for line in lines], fontsize=7.5)
    axes.invert_yaxis()
    axes.set(title="Error, median, %", xlabel="bar: model; | gate; x naive; line: real spread")
    axes.xaxis.label.set_fontsize(7.5)
    axes.set_xlim(0, 100)
    axes.grid(axis="y", visible=False)


def over_time(result: Mapping[str, Any], theme: Theme = LIGHT) -> Figure:
    """Queue and memory over time at each setting, the first run of each; the representation with the larger memory."""
    name = result["representations"][0]
    settings = result["settings"]
    with rc(theme):
        figure, panels = make_panels(len(settings), 2, height=2.3)
        for i, setting in enumerate(settings):
            found = setting["curves"].get(name)
            if found is None:
                continue
            for axes, key, factor in (
                (panels[i], "queued", 1.0),
                (panels[len(settings) + i], "rss_bytes", 1 / MIB),
            ):
                for kind, style in (("real", "-"), ("model", "--")):
                    colour = theme.colour(name) if kind == "real" else theme.ink
                    curve = found[kind]
                    axes.plot(
                        curve["t"], _array(curve[key]) * factor, style, color=colour, label=kind
                    )
            title = f"{setting['value']}" + " (training)" * setting["trains"]
            panels[i].set_title(title, fontsize=9)
            panels[i].set_ylim(bottom=0)
            thousands(panels[i], "y")
            panels[len(settings) + i].set_xlabel("seconds of load")
        _same_scale(panels[: len(settings)])
        _same_scale(panels[len(settings) :])
        panels[0].set_ylabel("envelopes queued")
        panels[len(settings)].set_ylabel("RSS, MiB (not from 0)")
        figure.suptitle(_short(result), x=0.01, ha="left", fontsize=10, fontweight="bold")
        panels[0].legend(loc="best")
    return figure


def _same_scale(panels: Sequence[Axes]) -> None:
    low = min(axes.get_ylim()[0] for axes in panels)
    high = max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(low, high)


def _setting_axis(axes: Axes, result: Mapping[str, Any]) -> None:
    values = [each["value"] for each in result["settings"]]
    places = [_place(result, value) for value in values]
    if _numeric(result):
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.set_xticks(places, [str(value) for value in values])
    axes.set_xlabel(_short(result))


def _short(result: Mapping[str, Any]) -> str:
    return str(result["key"]).rpartition(".")[2]


def _numeric(result: Mapping[str, Any]) -> bool:
    return all(
        isinstance(each["value"], int | float) and each["value"] > 0 for each in result["settings"]
    )


def _place(result: Mapping[str, Any], value: Any) -> float:
    """Return where a setting is on the axis: itself, or its number if it is no number."""
    if _numeric(result):
        return float(value)
    return float(result["curve"]["values"].index(value))


def _array(values: Sequence[float | None]) -> Any:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
