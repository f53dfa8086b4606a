"""What a sweep says: means with intervals, differences from the base, the front, and the limits that are recommended.

Everything is in one table of plain values, which is what ``sweep.json`` has and the report shows. Nothing in it depends on when
or on what the runs were made.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from mta.core.settings import ConfigError
from sim.beyond import beyond
from sim.codeversion import model_digest
from sim.pareto import WITHIN, Amounts, front, knee
from sim.sweep import Axis, numeric
from sim.sweeprun import Found, settings_of
from sim.sweeptask import NUMBERS, Record, digest_of
from sim.validation.stats import estimate

MEMORY: Final = "peak_rss_bytes"
LATENCY: Final = "p95"

MUST_BE_ZERO: Final = {
    "lost": "mail was lost",
    "failed": "mail was given up",
    "refused": "messages were refused",
    "turned_away": "clients heard 421",
    "sent_back": "local mail was sent back",
    "queued": "mail was still queued at the end",
}
"""Numbers that a recommended point has none of in any replication, unless that is allowed; and how it is said."""

CONFIDENCE: Final = 0.95

_WITH_INTERVALS: Final = (
    MEMORY, "peak_live_bytes", "p50", LATENCY, "p99", "drain_time_s", "goodput", "peak_queued", "peak_connections",
    "busy_share", "deferred", "failed", "refused", "turned_away", "sent_back", "queued", "lost", "connections_opened",
)  # fmt: skip


def result_of(
    found: Found,
    *,
    within: float = WITHIN,
    allow: Sequence[str] = (),
    command: str = "",
) -> dict[str, Any]:
    """Return what a sweep says.

    Args:
        found: every record.
        within: see `sim.pareto.WITHIN`.
        allow: which of `MUST_BE_ZERO` a recommended point may have some of.
        command: what makes the same again.

    Raises:
        ConfigError: one of these makes no sense.
    """
    check_options(within, allow)
    plan = found.plan
    settings = settings_of(plan)
    points = [
        _point(number, said, records, found, allow)
        for number, (said, records) in enumerate(zip(settings, found.records, strict=True))
    ]
    for point in points:
        point["against_base"] = against(points[0], point)
        point["same_as"] = _same(points, found.records, point["number"])
    scenario = plan.subject.scenario
    result: dict[str, Any] = {
        "version": 1,
        "subject": plan.subject.name,
        "scenario": scenario.name,
        "title": scenario.title,
        "question": scenario.question.strip(),
        "seed": scenario.seed,
        "replications": plan.replications,
        "messages": scenario.messages,
        "sampling": plan.design.sampling,
        "dropped": plan.design.dropped,
        "axes": [_axis(each) for each in plan.design.axes],
        "command": command,
        "model": model_digest(),
        "costs": plan.common_digest,
        "recorded": plan.subject.schedule is not None,
        "measured": bool(plan.subject.costs.provenance.files),
        "same_mail": _same_mail(found.records),
        "within": within,
        "allow": list(allow),
        "points": points,
        "notes": [*plan.subject.notes, *beyond(scenario)],
    }
    # The sweep's own list of keys is not news to who sweeps.
    result["notes"] = [each for each in result["notes"] if not each.startswith("the sweep over")]
    _recommend(result, plan.design.axes)
    result["digest"] = digest_of(result)
    return result


def check_options(within: float, allow: Sequence[str]) -> None:
    """See that `result_of` can do with these.

    Raises:
        ConfigError: it can't.
    """
    for name in allow:
        if name not in MUST_BE_ZERO:
            problem = f"must be one of {', '.join(MUST_BE_ZERO)}"
            raise ConfigError("--allow", value=name, problem=problem)
    if not (math.isfinite(within) and 0 <= within <= 10):
        raise ConfigError("--within", value=within, problem="must be from 0 to 10")


def _axis(each: Axis) -> dict[str, Any]:
    if each.is_range:
        bounds: dict[str, Any] = {"low": each.low, "high": each.high, "log": each.logarithmic}
    else:
        bounds = {"values": list(each.values)}
    return {"key": each.key, "short": each.short, **bounds}


def _point(
    number: int,
    settings: Mapping[str, str],
    records: Sequence[Record | None],
    found: Found,
    allow: Sequence[str],
) -> dict[str, Any]:
    rows = [record.numbers for record in records if record is not None]
    values = {name: [row[name] for row in rows] for name in NUMBERS}
    place = found.plan.places[number]
    why = _why_not(values, allow)
    if place.decided in found.problems:
        why.insert(0, found.problems[place.decided])
    return {
        "number": number,
        "settings": dict(settings),
        "envelope": place.view.envelope,
        "layout": place.view.layout or None,
        "runs": len(rows),
        "values": values,
        "means": {name: _estimated(values[name]) for name in _WITH_INTERVALS},
        "why_not": why,
    }


def _why_not(values: Mapping[str, Sequence[float | None]], allow: Sequence[str]) -> list[str]:
    """Return why a point can't be recommended."""
    why = []
    for name, words in MUST_BE_ZERO.items():
        most = max((value or 0 for value in values[name]), default=0)
        if most and name not in allow:
            why.append(f"{words} ({name} up to {most:,.0f})")
    if any(value is None for value in values[LATENCY]):
        why.append("nothing was delivered")
    return why


def _estimated(values: Sequence[float | None]) -> dict[str, float | None]:
    """Return mean and half of the interval; None where there is none."""
    there = [value for value in values if value is not None]
    if not there or len(there) < len(values):
        return {"mean": None, "half": None}
    of = estimate(there)
    half = of.half_width(CONFIDENCE)
    return {"mean": of.mean, "half": half if math.isfinite(half) else None}


def against(base: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mean differences of two points, replication by replication: common luck drops out of them."""
    found: dict[str, Any] = {}
    for name in (MEMORY, LATENCY, "drain_time_s", "peak_queued"):
        pairs = list(zip(base["values"][name], point["values"][name], strict=False))
        whole = base["runs"] == point["runs"]
        differences = [b - a for a, b in pairs if a is not None and b is not None]
        found[name] = _estimated(differences if whole and len(differences) == len(pairs) else [])
    return found


def _same(
    points: Sequence[Mapping[str, Any]], records: Sequence[Sequence[Record | None]], number: int
) -> int | None:
    """Return the first point that is the same in every run to the last bit."""
    for before in range(number):
        if points[before]["runs"] and records[before] == records[number]:
            return before
    return None


def _same_mail(records: Sequence[Sequence[Record | None]]) -> bool:
    """Return True if all points had the same mail in each replication."""
    for replication in zip(*records, strict=True):
        if len({record.arrivals for record in replication if record is not None}) > 1:
            return False
    return True


# ---- what is recommended


def _recommend(result: dict[str, Any], axes: Sequence[Axis]) -> None:
    points = result["points"]
    fit = [
        each
        for each in points
        if not each["why_not"] and each["runs"] and each["means"][LATENCY]["mean"] is not None
    ]
    amounts = [
        Amounts(each["means"][MEMORY]["mean"], each["means"][LATENCY]["mean"]) for each in fit
    ]
    result["front"] = [fit[n]["number"] for n in front(amounts)]
    chosen = knee(amounts, result["within"])
    result["chosen"] = None if chosen is None else fit[chosen]["number"]
    result["words"] = list(_words(result, axes))


def named(point: Mapping[str, Any]) -> str:
    """Return a point in words: its settings as an operator would write them."""
    if not point["settings"]:
        return "as it is set now"
    said = (f"{key.removeprefix('server.')} = {value}" for key, value in point["settings"].items())
    return ", ".join(said)


def _words(result: Mapping[str, Any], axes: Sequence[Axis]) -> Iterator[str]:
    """Yield why the recommended point is recommended, a sentence or two each."""
    points = result["points"]
    left_out = [each for each in points if each["why_not"]]
    if result["chosen"] is None:
        yield "No point qualifies, so none is recommended."
        for each in left_out[:5]:
            yield f"Left out: {named(each)}: {'; '.join(each['why_not'])}."
        return
    base, chosen = points[0], points[result["chosen"]]
    best = points[result["front"][-1]]
    yield (
        f"Recommended: {named(chosen)}. 95 % are delivered within {seconds(chosen, LATENCY)}, peak memory is"
        f" {mib(chosen)}."
    )
    what = (
        f"at most {result['within']:.0%} above the best, {_seconds(best['means'][LATENCY]['mean'])}"
    )
    yield f"The rule: of the points that qualify, the least memory among those whose p95 is {what}."
    if chosen["number"] == 0:
        yield "That is what is set now."
    elif base["why_not"]:
        yield f"What is set now does not qualify: {'; '.join(base['why_not'])}."
    else:
        yield f"Against what is set now: {_difference(chosen['against_base'])}."
    on_front = result["front"]
    at = on_front.index(chosen["number"])
    if at:
        less = points[on_front[at - 1]]
        yield f"With less memory: {named(less)} {_verb(less)}: {_difference(against(chosen, less))}."
    if chosen["number"] != best["number"]:
        yield f"Quickest: {named(best)}: {_difference(against(chosen, best))}."
    same = [each for each in points if each["same_as"] == chosen["number"] and each["number"] != 0]
    if same:
        these = "; ".join(named(each) for each in same[:3])
        more = f" and {len(same) - 3} more" if len(same) > 3 else ""
        yield f"The same runs to the last bit: {these}{more}. There the limit no longer binds."
    yield from _edges(result, axes, chosen)
    if left_out:
        reasons: dict[str, int] = {}
        for each in left_out:
            for why in each["why_not"]:
                reason = why.partition(" (")[0]
                reasons[reason] = reasons.get(reason, 0) + 1
        listed = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
        yield f"{len(left_out)} of {len(points)} points do not qualify ({listed})."
    if result["replications"] < 2:
        yield "There is one run of each point, so nothing says how far chance decided: --replications 5 does."


def _verb(point: Mapping[str, Any]) -> str:
    return f"needs {mib(point)}"


def _edges(
    result: Mapping[str, Any], axes: Sequence[Axis], chosen: Mapping[str, Any]
) -> Iterator[str]:
    """Yield which limits are at the end of what was tried, if it is the better end."""
    tried = [tuple(each["settings"].values()) for each in result["points"] if each["settings"]]
    if not chosen["settings"]:
        return
    for number, each in enumerate(axes):
        values = numeric(each, tried, number)
        if values is None or len(set(values)) < 2:
            continue
        own = float(chosen["settings"][each.key])
        if own in (min(values), max(values)):
            end = "smallest" if own == min(values) else "largest"
            yield f"{each.short} = {own:g} is the {end} value that was tried: a wider sweep may do better."


def _difference(of: Mapping[str, Any]) -> str:
    memory, latency = of[MEMORY], of[LATENCY]
    parts = [
        _signed("p95", latency["mean"], latency["half"], _seconds),
        _signed("peak memory", memory["mean"], memory["half"], _mib),
    ]
    return ", ".join(parts)


def _signed(what: str, mean: float | None, half: float | None, shown: Any) -> str:
    if mean is None:
        return f"{what} can't be told"
    if not mean and not half:
        return f"{what} the same"
    text = f"{what} {'+' if mean > 0 else MINUS}{shown(abs(mean))}"
    if half is None:
        return text
    text += f" ± {shown(half)}"
    return text if abs(mean) > half else f"{text} (may be chance)"


MINUS: Final = "\N{MINUS SIGN}"


def seconds(point: Mapping[str, Any], name: str) -> str:
    """Return a mean of seconds with its interval."""
    of = point["means"][name]
    half = f" ± {_seconds(of['half'])}" if of["half"] is not None else ""
    return f"{_seconds(of['mean'])}{half}"


def mib(point: Mapping[str, Any]) -> str:
    """Return the mean of the peak memory with its interval."""
    of = point["means"][MEMORY]
    half = f" ± {_mib(of['half'])}" if of["half"] is not None else ""
    return f"{_mib(of['mean'])}{half}"


def _seconds(value: float) -> str:
    if not value:
        return "0 s"
    if abs(value) < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:,.3g} s" if abs(value) < 1000 else f"{value:,.0f} s"


def _mib(value: float) -> str:
    size = value / 2**20
    return f"{size:,.1f} MiB" if abs(size) >= 10 else f"{size:,.2f} MiB"


def settings_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the recommended settings as lines of the server's file; nothing if nothing changes."""
    if result["chosen"] is None:
        return
    for key, value in result["points"][result["chosen"]]["settings"].items():
        if key.startswith("server."):
            plain = value.lstrip("-").replace(".", "", 1).isdecimal() or value in ("true", "false")
            text = value if plain or value[:1] in '[{"' else json.dumps(value)
            yield f"{key.removeprefix('server.')} = {text}"
