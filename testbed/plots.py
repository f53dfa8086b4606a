"""The figures of a report and of the notebooks: a run in, a matplotlib figure out.

Real measurements are solid lines, the model is dashed. Each representation has one marker. Axes of amounts begin at 0 unless
the title says growth. How all figures look is `sim.figures`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from sim.figures import DARK as DARK
from sim.figures import LIGHT as LIGHT
from sim.figures import MARKERS as MARKERS
from sim.figures import THEMES as THEMES
from sim.figures import Theme as Theme
from sim.figures import from_zero as from_zero
from sim.figures import in_theme as in_theme
from sim.figures import make_panels as make_panels
from sim.figures import png as png
from sim.figures import rc as rc
from sim.figures import svg as svg
from sim.figures import thousands as thousands
from sim.scenario import Scenario
from testbed.fit import Floats, line, rising
from testbed.ledger import QUANTILES
from testbed.peers import PEERS
from testbed.rundir import Run, Samples
from testbed.summary import STEADY_ENVELOPES

MIB: Final = 1024 * 1024


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


def mark_timeline(axes: Axes, scenario: Scenario, theme: Theme, *, words: bool = True) -> None:
    """Draw a line at each instant at which the operator did something, with what it was, top to bottom in turn."""
    top = 0.98
    for event in sorted(scenario.timeline, key=lambda each: each.at_s):
        if event.restart:
            end = event.at_s + event.down_s
            axes.axvspan(event.at_s, end, color=theme.ink, alpha=0.12, lw=0, zorder=0)
        axes.axvline(event.at_s, color=theme.ink, alpha=0.6, lw=0.9, ls=(0, (1, 2)), zorder=1)
        if words:
            said = [word.removeprefix("set limits.") for word in event.words()]
            if top - 0.08 * len(said) < 0.4:
                top = 0.98
            axes.annotate(
                "\n".join(said),
                (event.at_s, top),
                xycoords=("data", "axes fraction"),
                xytext=(3, 0),
                textcoords="offset points",
                va="top",
                fontsize=7,
                color=theme.ink,
            )
            top -= 0.08 * len(said)


def _during(run: Run, name: str) -> Samples:
    """Return what is worth drawing: a little before the load, and all that follows; nothing while the server was down."""
    gaps = [(each["gone_s"], each["opened_s"]) for each in run.notes(name).restarts]
    return run.samples(name).at_or_after(-1.5).without(gaps)


def memory_over_time(run: Run, theme: Theme = LIGHT) -> Figure:
    """RSS of the server over time: as it is, and how it grew since the load began."""
    scenario, summary = run.scenario, run.summary
    with rc(theme):
        figure, (whole, growth) = make_panels(2)
        for axes in (whole, growth):
            _shade_outages(axes, scenario, theme)
            mark_timeline(axes, scenario, theme, words=False)
        for name in run.representations:
            samples = _during(run, name)
            base = summary["representations"][name]["base_rss_bytes"]
            colour = theme.colour(name)
            whole.plot(samples["t"], samples["rss_bytes"] / MIB, color=colour, label=name)
            growth.plot(samples["t"], (samples["rss_bytes"] - base) / MIB, color=colour, label=name)
        whole.set(title="Memory of the server", ylabel="RSS, MiB", xlabel="seconds of load")
        from_zero(whole)
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
        # One line fills its panel: nothing is left to enlarge.
        figure, panels = make_panels(2 if len(representations) > 1 else 1, height=3.7)
        every, lean = panels[0], panels[-1]
        for name in representations:
            load = run.first_process(name).at_or_after(0.0)
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
            if x.max() < STEADY_ENVELOPES:
                label = f"{name}: too few to tell"
            ends = np.array([0.0, float(x.max())])
            for axes in panels:
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
        for axes in panels:
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
        if lean is not every:
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
            mark_timeline(axes, scenario, theme)
            samples = _during(run, name)
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
            mark_timeline(axes, scenario, theme, words=False)
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
