"""Conditions held against a finished run: what fails a build, and whether a server was as healthy as its scenario says.

A condition about a run of several servers is about each of them: it holds if it holds for one. A quantity that has no value in a
run, as the drain time of a queue that was never empty, can't be said to be fine: a gate on it fails.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sim.conditions import Condition, ConditionError, parse
from testbed.quantities import QUANTITIES, dimension_of, known, shown, value_of

UNHEALTHY: Final = "unhealthy"
"""Instead of a condition: one of the scenario's ``expects`` does not hold."""


class Verdict(NamedTuple):
    """A condition and one server."""

    condition: str
    server: str
    """Representation or target."""
    holds: bool | None
    """None if the run has no value for it."""
    value: str
    """As people read it."""


def understand(text: str, destinations: Sequence[str] | None = None) -> Condition:
    """Return a condition whose name, destination and unit make sense.

    Args:
        text: as ``p99_accepted > 800 ms``.
        destinations: names of the scenario's destinations and local groups; None if they are not known yet.

    Raises:
        ConditionError: it does not.
    """
    condition = parse(text)
    name = condition.name
    if not known(name):
        raise ConditionError(f"there is no quantity {name}; --fail-if help lists them")
    first, _, rest = name.partition(".")
    dimension = dimension_of(name)
    if condition.dimension != dimension and not (condition.number == 0 and not condition.unit):
        raise ConditionError(_unit_problem(name, dimension, condition))
    if destinations is not None and rest and first in QUANTITIES and rest not in destinations:
        raise ConditionError(f"there is no destination {rest}; there are {', '.join(destinations)}")
    return condition


def _unit_problem(name: str, dimension: str, condition: Condition) -> str:
    wanted = {
        "time": "a time: us, ms, s, min or h",
        "size": "a size: B, kB, MB, GB, KiB, MiB or GiB",
        "share": "a share: %",
        "rate": "a rate: /s or /min",
        "": "a plain number",
    }[dimension]
    return f"{name} is {wanted}; {condition.unit or 'a plain number'} is not"


def judge(condition: Condition, summary: Mapping[str, Any]) -> Iterator[Verdict]:
    """Yield a verdict for each server of a run."""
    dimension = dimension_of(condition.name)
    for server, part in summary["representations"].items():
        value = value_of(part, condition.name)
        holds = None if value is None else condition.holds(value)
        yield Verdict(condition.text, server, holds, shown(value, dimension))


def expectations(
    expects: Sequence[str], summary: Mapping[str, Any], doubtful: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Return for ``summary.json`` which of a scenario's expectations hold, for each server.

    Args:
        expects: conditions.
        summary: with the part of each server.
        doubtful: by server, why its run can't tell that they hold (`testbed.untested`); what does not hold, does not.
    """
    found: list[dict[str, Any]] = []
    for text in expects:
        condition = parse(text)
        for verdict in judge(condition, summary):
            why = (doubtful or {}).get(verdict.server)
            if why and verdict.holds:
                value = f"can't tell: {why} ({verdict.value})"
                verdict = verdict._replace(holds=None, value=value)
            found.append(verdict._asdict())
    return found


def tripped(conditions: Sequence[str], summary: Mapping[str, Any]) -> list[str]:
    """Return a line for each gate that fails the run; empty if none does.

    Raises:
        ConditionError: a condition is not understood.
    """
    lines: list[str] = []
    for text in conditions:
        if text.strip() == UNHEALTHY:
            lines += [
                f"{each['server']}: expected {each['condition']}: {each['value']}"
                for each in summary.get("expected", [])
                if not each["holds"]
            ]
            continue
        for verdict in judge(understand(text), summary):
            if verdict.holds is not False:
                lines.append(f"{verdict.server}: {verdict.condition}: {verdict.value}")
    return lines
