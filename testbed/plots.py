"""The figures of a report and of the notebooks: a run in, a matplotlib figure out.

Real measurements are solid lines, the model is dashed. Each representation has one colour everywhere (Okabe and Ito's
palette, which colour-blind readers can tell apart) and one marker. Axes of amounts begin at 0 unless the title says growth.
A figure never touches files or global state: no pyplot, no rc of the process is changed.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sim.scenario import Scenario
from testbed.fit import Floats, line, rising
from testbed.ledger import QUANTILES
from testbed.peers import PEERS
from testbed.rundir import Run, Samples

MIB: Final = 1024 * 1024

MARKERS: Final = {"fixed": "v", "whole": "s", "full": "D", "slim": "o", "packed": "^"}


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of a figure; its background is transparent, that of the page shows through."""

    name: str
    ink: str
    faint: str
    shade: str
    colours: Mapping[str, str]

    def colour(self, representation: str) -> str:
        """Return the colour of a representation, of a policy, or of anything else that has one."""
        return self.colours.get(representation, self.ink)


LIGHT: Final = Theme(
    "light",
    ink="#1c1e21",
    faint="#c9ccd1",
    shade="#f2d9d9",
    colours={
        "fixed": "#882255",
        "tempfail": "#7b3294",
        "raised": "#c51b1b",
        "hold": "#1b7837",
        "whole": "#d55e00",
        "full": "#b8860b",
        "slim": "#0072b2",
        "packed": "#009e73",
        "peer": "#6b7075",
    },
)
DARK: Final = Theme(
    "dark",
    ink="#e6e6e6",
    faint="#4a4d52",
    shade="#4a2f2f",
    colours={
        "fixed": "#ee88bb",
        "tempfail": "#c79be0",
        "raised": "#ff7070",
        "hold": "#6fd08a",
        "whole": "#ff8c42",
        "full": "#e6b800",
        "slim": "#56b4e9",
        "packed": "#2fd6a4",
        "peer": "#a0a5ab",
    },
)
THEMES: Final = (LIGHT, DARK)


def rc(theme: Theme) -> AbstractContextManager[None]:
    """Return the context in which figures of a theme are made."""
    return mpl.rc_context(
        {
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "none",
            "text.color": theme.ink,
            "axes.labelcolor": theme.ink,
            "axes.edgecolor": theme.ink,
            "axes.titlecolor": theme.ink,
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 9.5,
            "xtick.color": theme.ink,
            "ytick.color": theme.ink,
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "grid.color": theme.faint,
            "grid.linewidth": 0.6,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "legend.fontsize": 8.5,
            "font.size": 9.5,
            "lines.linewidth": 1.6,
        }
    )


def svg(figure: Figure) -> bytes:
    """Return a figure as SVG, the same bytes for the same figure."""
    out = io.BytesIO()
    # Ids inside are made of a random salt otherwise.
    with mpl.rc_context({"svg.hashsalt": "testbed"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def in_theme(drawn: bytes, before: Theme, after: Theme) -> bytes:
    """Return an SVG of one theme in the colours of another: a fraction of the time that drawing again takes.

    What is text in a figure is drawn as outlines, so a colour's code is nothing else by accident.
    """
    colours = _codes(before), _codes(after)
    for old, new in zip(*colours, strict=True):
        drawn = drawn.replace(old, new)
    return drawn


def _codes(theme: Theme) -> list[bytes]:
    names = sorted(theme.colours)
    codes = [theme.ink, theme.faint, theme.shade, *(theme.colours[name] for name in names)]
    assert len(set(codes)) == len(codes), theme.name
    return [code.encode("ascii") for code in codes]


def png(figure: Figure, *, dpi: int = 144, background: str = "white") -> bytes:
    """Return a figure as PNG on a background of its own, for places that take no SVG."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, facecolor=background)
    return out.getvalue()


def make_panels(columns: int, rows: int = 1, *, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """Return a figure as wide as the page and its panels, row by row."""
    figure = Figure(figsize=(9.2, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    return figure, [cast("Axes", axes) for axes in grid.flat]


def thousands(axes: Axes, which: str) -> None:
    """Label an axis of counts."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_major_locator(MaxNLocator(6, integer=True))


def outages(scenario: Scenario) -> list[tuple[str, float, float]]:
    """Return (destination, from, to) of every outage window of a scenario, in seconds."""
    return [
        (destination.name, begin, end)
        for destination in scenario.destinations
        for each in destination.behaviours
        if each.get("kind") == "outage"
        for begin, end in _windows(each, scenario)
    ]


def _windows(outage: Mapping[str, Any], scenario: Scenario) -> Iterator[tuple[float, float]]:
    """Yield when a host is away, while the load goes on if it flaps or never comes back."""
    begin, every = float(outage.get("from_s", 0.0)), float(outage.get("every_s", 0.0))
    load_s = scenario.load.count / scenario.load.rate
    long = min(float(outage.get("to_s", np.inf)), load_s + scenario.drain_s) - begin
    while True:
        yield begin, begin + long
        begin += every
        if not every or begin > load_s:
            return


def _shade_outages(axes: Axes, scenario: Scenario, theme: Theme, *, label: bool = True) -> None:
    for i, (name, begin, end) in enumerate(outages(scenario)):
        text = f"{name} is down" if label and i == 0 else None
        axes.axvspan(begin, end, color=theme.shade, lw=0, zorder=0, label=text)


def _during(samples: Samples, scenario: Scenario) -> Samples:
    """Return what is worth drawing: a little before the load, and all that follows."""
    return samples.at_or_after(-1.5)


def memory_over_time(run: Run, theme: Theme = LIGHT) -> Figure:
    """RSS of the server over time: as it is, and how it grew since the load began."""
    scenario, summary = run.scenario, run.summary
    with rc(theme):
        figure, (whole, growth) = make_panels(2)
        for axes in (whole, growth):
            _shade_outages(axes, scenario, theme)
        for name in run.representations:
            samples = _during(run.samples(name), scenario)
            base = summary["representations"][name]["base_rss_bytes"]
            colour = theme.colour(name)
            whole.plot(samples["t"], samples["rss_bytes"] / MIB, color=colour, label=name)
            growth.plot(samples["t"], (samples["rss_bytes"] - base) / MIB, color=colour, label=name)
        whole.set(title="Memory of the server", ylabel="RSS, MiB", xlabel="seconds of load")
        whole.set_ylim(bottom=0)
        growth.set(
            title="Growth over the idle server", ylabel="RSS growth, MiB", xlabel="seconds of load"
        )
        _floor(growth)
        growth.legend(loc="best")
    return figure


def _floor(axes: Axes) -> None:
    """Let an axis of growth begin at 0 unless something shrank."""
    if axes.get_ylim()[0] > -1.0:
        axes.set_ylim(bottom=0)


def memory_against_queue(run: Run, theme: Theme = LIGHT) -> Figure:
    """RSS growth against queued envelopes while the queue grew, with the fitted slope."""
    representations = run.representations
    slopes: dict[str, float] = {}
    lowest = 0.0
    with rc(theme):
        figure, (every, lean) = make_panels(2, height=3.7)
        for name in representations:
            load = run.samples(name).at_or_after(0.0)
            queued, rss = load.queue, load["rss_bytes"]
            grows = rising(queued)
            x, y = queued[grows], rss[grows]
            fitted = line(x, y)
            if fitted is None:
                continue
            slopes[name] = fitted.slope
            # All at one origin: what differs is the slope.
            zero = fitted.intercept
            lowest = min(lowest, float((y - zero).min()) / MIB)
            label = f"{name}: {fitted.slope:,.0f} ± {fitted.stderr:,.0f} B"
            ends = np.array([0.0, float(x.max())])
            for axes in (every, lean):
                axes.plot(
                    x,
                    (y - zero) / MIB,
                    MARKERS.get(name, "o"),
                    ms=3.2,
                    alpha=0.55,
                    mew=0,
                    color=theme.colour(name),
                )
                axes.plot(
                    ends, fitted.slope * ends / MIB, "-", color=theme.colour(name), label=label
                )
        for axes in (every, lean):
            axes.set(xlabel="queued envelopes", ylabel="RSS growth, MiB")
            thousands(axes, "x")
            axes.set_xlim(left=0)
        every.set_title("Memory against queued envelopes")
        if slopes:
            every.legend(loc="upper left", title="slope ± standard error")
        else:
            every.text(
                0.5,
                0.5,
                "the queue was too short to tell",
                ha="center",
                transform=every.transAxes,
            )
        lean.set_title("The same, enlarged")
        _zoom(every, lean, slopes, lowest)
    return figure


def _zoom(every: Axes, lean: Axes, slopes: Mapping[str, float], lowest: float) -> None:
    """Limit the second panel to what the two leanest need; both begin at 0 unless something is below."""
    if not slopes:
        return
    right = every.get_xlim()[1]
    leanest = sorted(slopes.values())[: max(1, min(2, len(slopes) - 1))]
    top = max(max(leanest) * right / MIB * 1.15, 0.2)
    every.set_ylim(bottom=lowest)
    lean.set_ylim(lowest, top)


def queue_over_time(run: Run, theme: Theme = LIGHT) -> Figure:
    """Queue length, measured and predicted, one panel for each representation."""
    scenario = run.scenario
    names = run.representations
    errors = (run.summary.get("model") or {}).get("representations", {})
    columns = 2 if len(names) > 1 else 1
    rows = -(-len(names) // columns)
    top = 0.0
    with rc(theme):
        figure, panels = make_panels(columns, rows, height=2.7)
        for axes, name in zip(panels, names, strict=False):
            _shade_outages(axes, scenario, theme, label=axes is panels[0])
            samples = _during(run.samples(name), scenario)
            axes.plot(
                samples["t"],
                samples.queue,
                color=theme.colour(name),
                label="measured",
            )
            top = max(top, float(np.nanmax(samples.queue)))
            title = name
            model = run.prediction(name)
            if model is not None:
                axes.plot(model["t"], model["queued"], "--", color=theme.ink, label="model", lw=1.2)
                top = max(top, float(np.nanmax(model["queued"])))
                found = errors.get(name)
                if found:
                    title += (
                        f"   (model: peak {found['peak_queue_error']:.1%},"
                        f" drain {found['drain_time_error']:.1%} off)"
                        if found["drain_time_error"] is not None
                        else f"   (model: peak {found['peak_queue_error']:.1%} off)"
                    )
            axes.set(title=title, xlabel="seconds of load", ylabel="queued envelopes")
            thousands(axes, "y")
        for axes in panels[: len(names)]:
            axes.set_ylim(0, top * 1.08 or 1)
            axes.legend(loc="upper right")
        for axes in panels[len(names) :]:
            axes.set_visible(False)
    return figure


def delivery_latency(run: Run, theme: Theme = LIGHT) -> Figure:
    """How long recipients waited: until accepted, and until delivered, by destination."""
    ledgers = run.ledgers
    names = run.representations
    scenario = run.scenario
    known = [each.name for each in scenario.destinations]
    known += [each.name for each in scenario.local]
    destinations = [
        each for each in known if any(each in ledgers[name]["delivery_latency_s"] for name in names)
    ]
    panels_of: list[tuple[str, str]] = [
        ("", "Accepted"),
        *((d, f"Delivered to {d}") for d in destinations[:5]),
    ]
    columns = min(3, len(panels_of))
    rows = -(-len(panels_of) // columns)
    with rc(theme):
        figure, panels = make_panels(columns, rows, height=3.0)
        for axes, (destination, title) in zip(panels, panels_of, strict=False):
            for name in names:
                found = (
                    ledgers[name]["delivery_latency_s"].get(destination)
                    if destination
                    else ledgers[name]["accept_latency_s"]
                )
                if found and found["quantiles"]:
                    axes.plot(
                        np.maximum(found["quantiles"], 1e-4),
                        np.array(QUANTILES) * 100,
                        color=theme.colour(name),
                        label=name,
                    )
            axes.set(title=title, xlabel="seconds since due", ylim=(0, 100), xscale="log")
        panels[0].set_ylabel("per cent of messages" if destinations else "per cent")
        if len(panels_of) > 1:
            panels[1].set_ylabel("per cent of recipients")
        panels[0].legend(loc="lower right")
        for axes in panels[len(panels_of) :]:
            axes.set_visible(False)
    return figure


def flow(run: Run, theme: Theme = LIGHT) -> Figure:
    """Recipients accepted and delivered per second, one panel for each representation."""
    scenario, names = run.scenario, run.representations
    columns = 2 if len(names) > 1 else 1
    rows = -(-len(names) // columns)
    with rc(theme):
        figure, panels = make_panels(columns, rows, height=2.5)
        top = 0.0
        for axes, name in zip(panels, names, strict=False):
            found = run.ledgers[name]["flow"]
            t = np.array(found["t"])
            width = float(t[1] - t[0]) if len(t) > 1 else 1.0
            _shade_outages(axes, scenario, theme, label=False)
            for what, style in (("accepted", ":"), ("delivered", "-")):
                rate: Floats = np.array(found[what]) / width
                top = max(top, float(rate.max(initial=0.0)))
                axes.step(
                    t,
                    rate,
                    style,
                    where="post",
                    label=what,
                    color=theme.ink if what == "accepted" else theme.colour(name),
                )
            axes.set(title=name, xlabel="seconds of load", ylabel="recipients/s")
        for axes in panels[: len(names)]:
            axes.set_ylim(0, top * 1.08 or 1)
            axes.legend(loc="upper left")
        for axes in panels[len(names) :]:
            axes.set_visible(False)
    return figure


def bytes_beside_peers(summary: Mapping[str, Any], theme: Theme = LIGHT) -> Figure:
    """Bytes per envelope of ours beside what is known of others; a logarithmic axis, so dots and no bars."""
    ours: list[tuple[str, float, float, str]] = []
    for name, part in summary["representations"].items():
        store, slope = part["store_bytes_per_envelope"], part["bytes_per_envelope"]
        if store:
            ours.append((f"ours, {name}: store alone", store, 0.0, name))
        if slope and slope > 0:
            ours.append(
                (f"ours, {name}: whole server", slope, part["bytes_per_envelope_stderr"] or 0, name)
            )
    with rc(theme):
        rows = len(ours) + len(PEERS)
        figure, (axes,) = make_panels(1, height=max(2.5, 0.27 * rows + 1.0))
        labels: list[str] = []
        for y, (label, value, error, name) in enumerate(ours):
            alone = label.endswith("alone")
            axes.errorbar(
                [value],
                [y],
                xerr=[[min(error, value * 0.9)], [error]] if error else None,
                fmt=MARKERS.get(name, "o"),
                color=theme.colour(name),
                mfc=theme.colour(name) if not alone else "none",
                capsize=2.5,
            )
            labels.append(label)
        for y, peer in enumerate(PEERS, len(ours)):
            axes.plot([peer.bytes_low], [y], "x", color=theme.colour("peer"))
            labels.append(f"{peer.system} ({peer.kind})")
        marks = [(value, value + error) for _, value, error, _ in ours]
        marks += [(peer.bytes_low, peer.bytes_low) for peer in PEERS]
        for y, (value, right) in enumerate(marks):
            axes.annotate(
                f"{value:,.0f}", (right, y), xytext=(8, -3), textcoords="offset points", fontsize=8
            )
        axes.set_yticks(range(rows), labels)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlim(10, 20_000)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set(title="Bytes per queued envelope", xlabel="bytes (logarithmic)")
        axes.grid(False, axis="y")
    return figure


FIGURES: Final[Sequence[tuple[str, str]]] = (
    ("memory_over_time", "Memory over time"),
    ("memory_against_queue", "Memory against queued envelopes"),
    ("queue_over_time", "Queue length, measured and predicted"),
    ("flow", "Accepted and delivered"),
    ("delivery_latency", "Latency"),
)
"""(function, title) of what a report draws from a run, in this order."""


def draw(name: str, run: Run, theme: Theme = LIGHT) -> Figure:
    """Draw one of `FIGURES`."""
    functions = {
        "memory_over_time": memory_over_time,
        "memory_against_queue": memory_against_queue,
        "queue_over_time": queue_over_time,
        "flow": flow,
        "delivery_latency": delivery_latency,
    }
    return functions[name](run, theme)
