"""Why a point of a sweep is recommended, said as one would to a colleague, and what to write into the server's file."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from sim.pareto import SAME
from sim.sweep import Axis, numeric
from sim.sweepstats import LATENCY, MEMORY, against

MINUS: Final = "\N{MINUS SIGN}"

Point = Mapping[str, Any]


def why(result: Mapping[str, Any], axes: Sequence[Axis]) -> Iterator[str]:
    """Yield why the recommended point is recommended, a sentence or two each."""
    points = result["points"]
    rows = listed(result)
    left_out = [each for each in rows if each["why_not"]]
    if result["chosen"] is None:
        yield "No point qualifies: none is recommended."
        for each in left_out[:5]:
            yield f"Left out: {named(each)}: {'; '.join(each['why_not'])}."
        if len(left_out) > 5:
            yield f"And {len(left_out) - 5} more."
        if any(each["runs"] for each in rows):
            yield "--allow WHAT recommends points with some of it all the same."
        return
    base, chosen = points[0], points[result["chosen"]]
    best = points[result["front"][-1]]
    yield (
        f"Recommended: {named(chosen)}. 95 % are delivered within {seconds(chosen, LATENCY)}, peak memory is"
        f" {mib(chosen)}."
    )
    at_most = f"at most {result['within']:.0%} above the best, {in_seconds(best['means'][LATENCY]['mean'])}"
    yield (
        f"The rule: of the points that qualify, the least memory among those whose p95 is {at_most}. Memory within {SAME:.0%}"
        " is the same: then what is set now is kept, or else the lowest limits are taken."
    )
    if chosen["number"] == 0:
        yield "So what is set now can stay."
    elif base["why_not"]:
        yield f"What is set now does not qualify: {'; '.join(base['why_not'])}."
    else:
        yield f"Against what is set now: {difference(chosen['against_base'])}."
    enough = chosen["means"][MEMORY]["mean"] * (1 - SAME)
    less = [points[n] for n in result["front"] if points[n]["means"][MEMORY]["mean"] < enough]
    if less:
        yield f"With less memory: {named(less[-1])}: {difference(against(chosen, less[-1]))}."
    if chosen["means"][LATENCY]["mean"] > best["means"][LATENCY]["mean"]:
        yield f"Quickest: {named(best)}: {difference(against(chosen, best))}."
    same = [each for each in points if each["same_as"] == chosen["number"]]
    if same:
        these = "; ".join(named(each) for each in same[:3])
        more = f" and {len(same) - 3} more" if len(same) > 3 else ""
        yield f"The same runs to the last bit: {these}{more}. What differs there decides nothing."
    yield from _edges(result, axes, chosen)
    if left_out:
        counted = Counter(
            each.partition(" (")[0] for point in left_out for each in point["why_not"]
        )
        told = ", ".join(f"{reason}: {count}" for reason, count in counted.items())
        yield f"{len(left_out)} of {len(rows)} points do not qualify ({told})."
    if result["replications"] < 2:
        yield "There is one run of each point, so nothing says how far chance decided: --replications 5 does."


def _edges(result: Mapping[str, Any], axes: Sequence[Axis], chosen: Point) -> Iterator[str]:
    """Yield which limits are at the end of what was tried: the answer may lie beyond."""
    tried = [tuple(each["settings"].values()) for each in result["points"] if each["settings"]]
    if not chosen["settings"]:
        return
    alike = [each for each in result["points"] if each["same_as"] == chosen["number"]]
    for number, each in enumerate(axes):
        values = numeric(each, tried, number)
        if values is None or len(set(values)) < 2:
            continue
        own = float(chosen["settings"][each.key])
        # A value beyond which nothing changes is no end.
        reached = {own, *(float(other["settings"].get(each.key, own)) for other in alike)}
        if len(reached) == 1 and own in (min(values), max(values)):
            end = "smallest" if own == min(values) else "largest"
            yield f"{each.short} = {own:g} is the {end} value that was tried: a wider sweep may do better."


def named(point: Point) -> str:
    """Return a point in words: its settings as an operator would write them."""
    if not point["settings"]:
        return "as it is set now"
    said = (f"{key.removeprefix('server.')} = {value}" for key, value in point["settings"].items())
    return ", ".join(said)


def setting_of(result: Mapping[str, Any], point: Point, key: str) -> str:
    """Return what a point has a key set to, the base included; empty if it can't be told."""
    found = point["settings"].get(key) if point["settings"] else result["now"].get(key)
    return str(found or "")


def listed(result: Mapping[str, Any]) -> list[Point]:
    """Return the points as a table lists them: what is set now is one row, also where the grid has it, too."""
    now = {axis["key"]: str(result["now"].get(axis["key"], "")) for axis in result["axes"]}
    needed = {*result["front"], result["chosen"]}
    return [
        each
        for each in result["points"]
        if each["number"] in needed or each["same_as"] != 0 or each["settings"] != now
    ]


def difference(of: Mapping[str, Any]) -> str:
    """Return what `sim.sweepstats.against` found, in words."""
    memory, latency = of[MEMORY], of[LATENCY]
    parts = []
    for what, each, shown in (("p95", latency, in_seconds), ("peak memory", memory, in_mib)):
        text = f"{what} {signed(each['mean'], each['half'], shown)}"
        chance = each["mean"] and each["half"] is not None and abs(each["mean"]) <= each["half"]
        parts.append(f"{text} (may be chance)" if chance else text)
    return ", ".join(parts)


def signed(mean: float | None, half: float | None, shown: Callable[[float], str]) -> str:
    """Return a difference with its sign and its interval."""
    if mean is None:
        return "can't be told"
    if not mean and not half:
        return "the same"
    text = f"{'+' if mean > 0 else MINUS}{shown(abs(mean))}"
    return text if half is None else f"{text} ± {shown(half)}"


def seconds(point: Point, name: str) -> str:
    """Return a mean of seconds with its interval."""
    return _spread(point["means"][name], in_seconds)


def mib(point: Point) -> str:
    """Return the mean of the peak memory with its interval."""
    return _spread(point["means"][MEMORY], in_mib)


def _spread(of: Mapping[str, Any], shown: Callable[[float], str]) -> str:
    half = f" ± {shown(of['half'])}" if of["half"] is not None else ""
    return f"{shown(of['mean'])}{half}"


def in_seconds(value: float) -> str:
    """Return a time with three digits at most, and its unit."""
    if not value:
        return "0 s"
    if abs(value) < 1:
        return f"{value * 1000:.3g} ms" if abs(value) >= 0.001 else f"{value * 1000:.1g} ms"
    return f"{value:,.3g} s" if abs(value) < 1000 else f"{value:,.0f} s"


def in_mib(value: float) -> str:
    """Return a size with its unit: B, KiB or MiB."""
    if abs(value) < 1024:
        return f"{value:,.0f} B"
    if abs(value) < 2**20:
        return f"{value / 1024:,.0f} KiB"
    size = value / 2**20
    return f"{size:,.2f} MiB" if abs(size) < 100 else f"{size:,.1f} MiB"


def settings_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the recommended settings as lines of the server's file; nothing if nothing changes."""
    if result["chosen"] is None:
        return
    for key, value in result["points"][result["chosen"]]["settings"].items():
        if key.startswith("server."):
            plain = value.lstrip("-").replace(".", "", 1).isdecimal() or value in ("true", "false")
            text = value if plain or value[:1] in '[{"' else json.dumps(value)
            yield f"{key.removeprefix('server.')} = {text}"
