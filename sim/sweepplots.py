"""Figures of a sweep, from ``sweep.json`` alone: the front, and each amount along each axis."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from sim.figures import LIGHT, MARKERS, Theme, from_zero, make_panels, plain_numbers, rc
from sim.sweepstats import LATENCY, MEMORY
from sim.sweepwords import setting_of

MIB: Final = 1024 * 1024

_COLOURS: Final = ("slim", "whole", "packed", "fixed", "full", "hold", "tempfail")
_MARKERS: Final = ("o", "s", "^", "v", "D", "P", "X")
_STYLES: Final = ("-", "--", ":", "-.")

KINDS_MAX: Final = 7
"""Values of an axis that are told apart by colour and marker."""

LABELS_MAX: Final = 8
"""Points, or if they are more, points of the front, that are named in the figure."""

AXES_MAX: Final = 4
"""Axes that have a row of panels."""

_AMOUNTS: Final = (
    (LATENCY, "95 % delivered within, s", 1.0),
    (MEMORY, "peak memory, MiB", 1 / MIB),
    ("goodput", "delivered, envelopes/s", 1.0),
)


def pareto(result: Mapping[str, Any], theme: Theme = LIGHT) -> Figure:
    """Peak memory against p95: every point, the front, what is set now and what is recommended."""
    kinds = _kinds(result)
    with rc(theme):
        figure, (axes,) = make_panels(1, height=4.6)
        points = [each for each in result["points"] if _xy(each) is not None]
        bars = len(points) <= 100
        for i, kind in enumerate(kinds or [None]):
            own = [each for each in points if kind is None or _kind(each, result) == kind]
            for fit in (True, False):
                some = [each for each in own if bool(each["why_not"]) != fit]
                if not some:
                    continue
                _scatter(
                    axes, some, theme, i, kind=kind, label=_label(kind, fit), fit=fit, bars=bars
                )
        named = _mark(axes, result, theme)
        _scale_latency(axes, [_at(each)[1] for each in points])
        axes.xaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        axes.set(
            title="Memory against latency: down and left is better",
            xlabel="peak memory of the server, MiB",
            ylabel="95 % delivered within, seconds",
        )
        axes.margins(x=0.12, y=0.12)
        _name(axes, named, theme)
        if points:
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        else:
            axes.text(0.5, 0.5, "nothing was delivered", ha="center", transform=axes.transAxes)
    return figure


def _look(theme: Theme, kind: str | None, number: int) -> tuple[str, str]:
    """Return colour and marker: what has its own everywhere has it here, too."""
    if kind is not None and kind in theme.colours:
        return theme.colour(kind), MARKERS.get(kind, _MARKERS[number % len(_MARKERS)])
    return theme.colour(_COLOURS[number % len(_COLOURS)]), _MARKERS[number % len(_MARKERS)]


def _label(kind: str | None, fit: bool) -> str:
    if kind is None:
        return "qualifies" if fit else "does not qualify"
    return kind if fit else f"{kind}, does not qualify"


def _scatter(
    axes: Axes,
    points: Sequence[Mapping[str, Any]],
    theme: Theme,
    number: int,
    *,
    kind: str | None,
    label: str,
    fit: bool,
    bars: bool,
) -> None:
    colour, marker = _look(theme, kind, number)
    x, y = zip(*(_at(each) for each in points), strict=True)
    if bars:
        half_x = [(each["means"][MEMORY]["half"] or 0) / MIB for each in points]
        half_y = [each["means"][LATENCY]["half"] or 0 for each in points]
        # A logarithmic axis has no place for what goes below 0.
        down = [min(half, value * 0.95) for half, value in zip(half_y, y, strict=True)]
        axes.errorbar(
            x, y, xerr=half_x, yerr=[down, half_y], fmt="none", ecolor=theme.faint, elinewidth=1.0, zorder=1
        )  # fmt: skip
    if fit:
        axes.plot(x, y, marker, color=colour, ms=5.5, label=label, zorder=3)
    else:
        axes.plot(x, y, marker, color=colour, mfc="none", ms=5.5, label=label, zorder=2)


def _mark(axes: Axes, result: Mapping[str, Any], theme: Theme) -> list[Any]:
    """Draw what is special; return the points that should be named."""
    points = result["points"]
    on_front = [points[number] for number in result["front"]]
    if len(on_front) > 1:
        x, y = zip(*(_at(each) for each in on_front), strict=True)
        axes.plot(
            x, y, color=theme.ink, lw=1.0, drawstyle="steps-post", label="the front", zorder=2
        )
    if _xy(points[0]) is not None:
        axes.plot(
            *([value] for value in _at(points[0])), "o", ms=12, mfc="none", mec=theme.ink, mew=1.2,
            label="as it is set now", zorder=4,
        )  # fmt: skip
    if result["chosen"] is not None:
        axes.plot(
            *([value] for value in _at(points[result["chosen"]])), "*", ms=15, mfc="none",
            mec=theme.colour("raised"), mew=1.6, label="recommended", zorder=5,
        )  # fmt: skip
    qualified = [each for each in points if each["number"] and _xy(each) is not None]
    named = qualified if len(qualified) <= LABELS_MAX else on_front
    if len(named) > LABELS_MAX:
        named = []
    if result["chosen"] is not None:
        # Last, which is named first.
        chosen = points[result["chosen"]]
        named = [*(each for each in named if each is not chosen), chosen]
    return named


def _name(axes: Axes, points: Sequence[Mapping[str, Any]], theme: Theme) -> None:
    """Name points, the last first, unless the name would lie on another."""
    # What the layout will leave of the figure, about; names in the way of each other say less than none.
    inches = (6.5, 3.6)
    axes.autoscale_view()
    taken: list[tuple[float, float]] = []
    for each in reversed(points):
        x, y = axes.transAxes.inverted().transform(axes.transData.transform(_at(each)))
        at = x * inches[0], y * inches[1]
        if any(abs(at[0] - a) < 1.6 and abs(at[1] - b) < 0.18 for a, b in taken):
            continue
        taken.append(at)
        axes.annotate(
            ", ".join(each["settings"].values()) or "now", _at(each), xytext=(10, 8),
            textcoords="offset points", fontsize=8, color=theme.ink,
        )  # fmt: skip


def _scale_latency(axes: Axes, values: Sequence[float]) -> None:
    if values and min(values) > 0 and max(values) / min(values) > 20:
        axes.set_yscale("log")
        plain_numbers(axes, "y")
    else:
        from_zero(axes)


def along(result: Mapping[str, Any], theme: Theme = LIGHT) -> Figure | None:
    """Latency, memory and goodput along each axis of numbers; None if there is no such axis."""
    rows = [
        number
        for number, axis in enumerate(result["axes"])
        if len({value for value in _values(result, axis["key"]) if value is not None}) > 1
        and None not in _values(result, axis["key"])
    ][:AXES_MAX]
    if not rows:
        return None
    kinds = _kinds(result)
    with rc(theme):
        figure, panels = make_panels(len(_AMOUNTS), len(rows), height=3.0)
        for row, number in enumerate(rows):
            for i, (name, words, factor) in enumerate(_AMOUNTS):
                axes = panels[row * len(_AMOUNTS) + i]
                _curves(axes, result, number, name, factor, kinds, theme)
                axes.set(title=words, xlabel=result["axes"][number]["short"].rpartition(".")[2])
        if len(kinds) > 1:
            panels[0].legend(loc="best")
    return figure


def _curves(
    axes: Axes,
    result: Mapping[str, Any],
    number: int,
    name: str,
    factor: float,
    kinds: Sequence[str],
    theme: Theme,
) -> None:
    key = result["axes"][number]["key"]
    highest, xs = 0.0, []
    for i, kind in enumerate(kinds or [None]):
        by_value: dict[float, list[tuple[float, float]]] = {}
        for point in result["points"]:
            value = _number(setting_of(result, point, key))
            of = point["means"][name]
            if value is None or of["mean"] is None:
                continue
            if kind is None or _kind(point, result) == kind:
                half = (of["half"] or 0.0) * factor
                found = by_value.setdefault(value, [])
                # What is set now may be a point of the grid, too.
                if (of["mean"] * factor, half) not in found:
                    found.append((of["mean"] * factor, half))
        if not by_value:
            continue
        colour, marker = _look(theme, kind, i)
        x = sorted(by_value)
        xs += x
        means = [sum(mean for mean, _ in by_value[each]) / len(by_value[each]) for each in x]
        alone = all(len(each) == 1 for each in by_value.values())
        highest = max(highest, *(mean + half for each in by_value.values() for mean, half in each))
        if alone:
            halves = [by_value[each][0][1] for each in x]
            axes.errorbar(
                x, means, yerr=halves, color=colour, marker=marker, ms=4.5,
                ls=_STYLES[i % len(_STYLES)], label=kind, capsize=2.5,
            )  # fmt: skip
        else:
            axes.plot(
                [each for each in x for _ in by_value[each]],
                [mean for each in x for mean, _ in by_value[each]],
                marker, color=colour, ms=3, alpha=0.6, mew=0,
            )  # fmt: skip
            if len(x) <= 20:
                axes.plot(x, means, color=colour, ls=_STYLES[i % len(_STYLES)], label=kind)
    if xs and min(xs) > 0 and max(xs) / min(xs) >= 8:
        axes.set_xscale("log")
        plain_numbers(axes, "x")
    if name != MEMORY and highest > 0:
        axes.set_ylim(0, highest * 1.08)
    elif name == MEMORY:
        axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))


# ---- what is in a result


def _at(point: Mapping[str, Any]) -> tuple[float, float]:
    found = _xy(point)
    assert found is not None, point
    return found


def _xy(point: Mapping[str, Any]) -> tuple[float, float] | None:
    memory, latency = point["means"][MEMORY]["mean"], point["means"][LATENCY]["mean"]
    return None if memory is None or latency is None else (memory / MIB, latency)


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _values(result: Mapping[str, Any], key: str) -> list[float | None]:
    said = (each["settings"].get(key) for each in result["points"])
    return [_number(text) for text in said if text is not None]


def _telling(result: Mapping[str, Any]) -> str:
    """Return the key whose values colours tell apart: the first one of words; empty if there is none."""
    for axis in result["axes"]:
        values = axis.get("values", [])
        if 2 <= len(values) <= KINDS_MAX and any(_number(value) is None for value in values):
            return str(axis["key"])
    return ""


def _kinds(result: Mapping[str, Any]) -> list[str]:
    key = _telling(result)
    if not key:
        return []
    listed = next(list(axis["values"]) for axis in result["axes"] if axis["key"] == key)
    base = _kind(result["points"][0], result)
    return listed if base in listed else [*listed, base]


def _kind(point: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    return setting_of(result, point, _telling(result)) or "as now"
