"""The scenarios that ship, as `sim scenarios` and `testbed scenarios` list them."""

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from sim import scenario as scenarios
from sim.beyond import beyond
from sim.workload import draw


def described() -> Iterator[dict[str, Any]]:
    """Yield what there is to say about each scenario, for JSON."""
    for name in scenarios.available():
        found = scenarios.load(name)
        schedule = draw(found)
        yield {
            "name": name,
            "title": found.title,
            "about": found.about,
            "question": " ".join(found.question.split()),
            "healthy": " ".join(found.healthy.split()),
            "expects": found.expects,
            "messages": len(schedule),
            "recipients": schedule.envelopes,
            "load_s": round(float(schedule.due_s[-1]), 1),
            "drain_s": found.drain_s,
            "representations": list(found.representations),
            "vary": found.vary,
            "not_in_model": list(beyond(found)),
        }


def scenario_lines(*, as_json: bool, long: bool) -> Iterator[str]:
    """Yield what a command prints: a line for each scenario, all that there is to say, or one of JSON."""
    if as_json:
        yield json.dumps(list(described()), allow_nan=False)
        return
    for each in described():
        yield f"{each['name']:<18} {each['title']}"
        if long:
            yield from _details(each)


def _details(each: dict[str, Any]) -> Iterator[str]:
    load = f"{each['messages']:,} messages, {each['recipients']:,} recipients"
    yield from _filled(f"{load} in {each['load_s']:g} s")
    yield from _filled(each["question"])
    yield from _filled(f"healthy: {each['healthy']}")
    if each["expects"]:
        yield from _filled("expects: " + ", ".join(each["expects"]))
    for line in each["not_in_model"]:
        yield from _filled(f"not in the model: {line}")
    yield ""


def _filled(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent="    ", subsequent_indent="    ")
