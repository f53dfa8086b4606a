"""What a sweep says: means with intervals, differences from the base, the front, and the limits that are recommended.

Everything is in one table of plain values, which is what ``sweep.json`` has and the report shows. Nothing in it depends on when
or on what the runs were made.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mta.core.settings import ConfigError
from sim.beyond import beyond
from sim.codeversion import model_digest
from sim.pareto import WITHIN, Amounts, front, knee
from sim.sweep import Axis, numeric
from sim.sweeprun import Found, settings_of
from sim.sweepstats import LATENCY, MEMORY, against, estimated
from sim.sweeptask import NUMBERS, Record, digest_of
from sim.sweepwords import why

MUST_BE_ZERO: Final = {
    "lost": "mail was lost",
    "failed": "mail was given up",
    "refused": "messages were refused",
    "turned_away": "clients heard 421",
    "sent_back": "local mail was sent back",
    "queued": "mail was still queued at the end",
}
"""Numbers that a recommended point has none of in any replication, unless that is allowed; and how it is said."""

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
    for point, same_as in zip(points, _firsts(found.records), strict=True):
        point["against_base"] = against(points[0], point)
        point["same_as"] = same_as
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
        "now": plan.now,
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
    reasons = _why_not(values, allow)
    if place.decided in found.problems:
        reasons.insert(0, found.problems[place.decided])
    return {
        "number": number,
        "settings": dict(settings),
        "envelope": place.view.envelope,
        "layout": place.view.layout or None,
        "runs": len(rows),
        "values": values,
        "means": {name: estimated(values[name]) for name in _WITH_INTERVALS},
        "why_not": reasons,
    }


def _why_not(values: Mapping[str, Sequence[float | None]], allow: Sequence[str]) -> list[str]:
    """Return why a point can't be recommended."""
    found = []
    for name, words in MUST_BE_ZERO.items():
        most = max((value or 0 for value in values[name]), default=0)
        if most and name not in allow:
            found.append(f"{words} ({name} up to {most:,.0f})")
    if any(value is None for value in values[LATENCY]):
        found.append("nothing was delivered")
    return found


def _firsts(records: Sequence[Sequence[Record | None]]) -> list[int | None]:
    """Return for each point the first one before it that is the same in every run to the last bit."""
    known: dict[Any, int] = {}
    found: list[int | None] = []
    for number, own in enumerate(records):
        if None in own:
            found.append(None)
            continue
        runs = [(r.arrivals, r.fingerprint, *r.numbers.values()) for r in own if r is not None]
        first = known.setdefault(tuple(runs), number)
        found.append(None if first == number else first)
    return found


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
    now = next((n for n, each in enumerate(fit) if each["number"] == 0), None)
    heights = _heights(fit, points, axes)
    chosen = knee(amounts, result["within"], now=now, heights=heights)
    result["chosen"] = None if chosen is None else fit[chosen]["number"]
    result["words"] = list(why(result, axes))


def _heights(
    fit: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]], axes: Sequence[Axis]
) -> list[float]:
    """Return how high the numbers of each point are: its places on the axes of numbers, each from 0 to 1, added up."""
    tried = [tuple(each["settings"].values()) for each in points if each["settings"]]
    heights = [0.0] * len(fit)
    for number, axis in enumerate(axes):
        values = numeric(axis, tried, number)
        if values is None or len(set(values)) < 2:
            continue
        place = {value: i / (len(set(values)) - 1) for i, value in enumerate(sorted(set(values)))}
        for i, each in enumerate(fit):
            # What is set now is preferred anyway, if that is as good.
            heights[i] += place[float(each["settings"][axis.key])] if each["settings"] else 0.0
    return heights
