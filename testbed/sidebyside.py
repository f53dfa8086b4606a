"""Makes the runs of a comparison: contenders take turns, so that what the machine does meanwhile meets all of them.

A contender is a target, or our server with one setting changed. Repeats are interleaved, and each round begins with another
contender. What can't run here is left out, and says why.
"""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sim.scenario import Scenario, load
from testbed.children import RunError, UsageError
from testbed.comparing import RESULT, Cell, compared
from testbed.progress import Display
from testbed.run import Options, execute, new_directory
from testbed.rundir import Run, link_latest, write_json
from testbed.summary import host, versions
from testbed.targets.choice import OURS, TARGETS, why_not

REPEATS_MAX: Final = 50

SCENARIOS: Final = ("baseline", "backlog", "dead-destination")
"""Of `testbed peers`, unless somebody says otherwise."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of a comparison."""

    label: str
    target: str = OURS
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be compared."""

    scenarios: tuple[str, ...]
    contenders: tuple[Contender, ...]
    command: str
    title: str
    overrides: tuple[str, ...] = ()
    repeats: int = 1
    out: Path | None = None
    syncs: bool = False
    """Count syncs per message as well, in the first round."""
    name: str = "peers"
    """Of the directory below runs/."""
    skipped: tuple[str, ...] = ()
    """What was left out, and why."""


def sweep_plan(
    name: str, overrides: Sequence[str], *, repeats: int = 1, out: Path | None = None
) -> Plan:
    """Return the plan of a scenario that varies a key.

    Raises:
        ConfigError: the scenario can't be used.
        UsageError: it varies more than one.
    """
    scenario = load(name, overrides)
    if len(scenario.vary) != 1:
        raise UsageError(f"{scenario.name}: vary: one key at a time; `sim compare` does several")
    ((key, values),) = scenario.vary.items()
    contenders = tuple(
        Contender(
            f"{value}",
            overrides=(f"{key}={json.dumps(value)}", "vary={}", 'representations=["packed"]'),
        )
        for value in values
    )
    for each in contenders:
        load(name, [*overrides, *each.overrides])
    words = ["testbed", "run", name, *(w for each in overrides for w in ("--set", each))]
    return Plan(
        scenarios=(name,),
        contenders=contenders,
        command=shlex.join(words),
        title=f"A sweep of {key.rpartition('.')[2]}",
        overrides=tuple(overrides),
        repeats=repeats,
        out=out,
        name=scenario.name,
    )


def peers_plan(
    scenarios: Sequence[str],
    targets: Sequence[str],
    overrides: Sequence[str],
    *,
    repeats: int,
    out: Path | None,
) -> Plan:
    """Return the plan of targets beside each other; those that can't run here are left out.

    Raises:
        ConfigError: a scenario can't be used.
        UsageError: there is no such target, or a scenario is ours alone.
    """
    for name in scenarios:
        if load(name, overrides).local:
            raise UsageError(f"peers: {name}: local users are in our server only")
    skipped = [f"{name}: {reason}" for name in targets if (reason := why_not(name))]
    left = [name for name in targets if not why_not(name)]
    words = ["testbed", "peers", "--repeats", str(repeats)]
    words += [w for name in scenarios for w in ("--scenario", name)]
    words += [w for name in targets for w in ("--target", name)]
    words += [w for each in overrides for w in ("--set", each)]
    return Plan(
        scenarios=tuple(scenarios),
        contenders=tuple(
            # One way of ours: how envelopes are kept is another question.
            Contender(name, name, ('representations=["packed"]',) if name == OURS else ())
            for name in left
        ),
        command=shlex.join(words),
        title="Mail servers side by side",
        syncs=True,
        overrides=tuple(overrides),
        repeats=repeats,
        out=out,
        skipped=tuple(skipped),
    )


def run_plan(plan: Plan, display: Display) -> Path:
    """Run it all; return the directory, which has compare.json.

    A run that fails is left out and named; the others go on.

    Raises:
        ConfigError: a scenario can't be used.
        UsageError: nothing is left to run, or the directory can't be used.
        RunError: not one run came to its end.
    """
    if not plan.contenders:
        raise UsageError("nothing to compare: " + "; ".join(plan.skipped))
    directory = new_directory(plan.out, plan.name)
    for line in plan.skipped:
        display.say(f"left out: {line}")
    cells: dict[tuple[str, str], Cell] = {}
    failed: list[str] = []
    started = datetime.now(UTC).isoformat(timespec="seconds")
    for scenario in plan.scenarios:
        for number in range(plan.repeats):
            # Another one is first in each round.
            turn = number % len(plan.contenders)
            for contender in (*plan.contenders[turn:], *plan.contenders[:turn]):
                where = directory / _slug(f"{Path(scenario).stem}-{contender.label}-{number + 1}")
                display.say(f"{scenario}, {contender.label}, {number + 1} of {plan.repeats}:")
                try:
                    run = _execute(
                        plan, scenario, contender, where, display, syncs=plan.syncs and not number
                    )
                except UsageError:
                    raise
                except RunError as error:
                    failed.append(f"{scenario}, {contender.label}, {number + 1}: {error}")
                    display.say(f"failed: {error}")
                    continue
                for server in run.representations:
                    key = (scenario, contender.label)
                    cell = cells.setdefault(key, Cell(run.scenario.name, contender.label))
                    cell.runs.append((run, server))
    if not cells:
        raise RunError(failed[0])
    order = [(name, each.label) for name in plan.scenarios for each in plan.contenders]
    result: dict[str, Any] = compared(
        [cells[key] for key in order if key in cells],
        title=plan.title,
        started=started,
        command=plan.command,
        host=host(),
        versions=versions(),
        skipped=list(plan.skipped),
        failed=failed,
        vary=next(iter(_vary(plan)), ""),
    )
    write_json(directory / RESULT, result)
    link_latest(directory)
    return directory


def _execute(
    plan: Plan,
    scenario: str,
    contender: Contender,
    where: Path,
    display: Display,
    *,
    syncs: bool,
) -> Run:
    return execute(
        Options(
            scenario=scenario,
            overrides=(*plan.overrides, *contender.overrides),
            out=where,
            model=False,
            target=contender.target,
            is_part=True,
            footprint=0,
            syncs=syncs,
        ),
        display,
    )


def _vary(plan: Plan) -> list[str]:
    found: Scenario = load(plan.scenarios[0], plan.overrides)
    return list(found.vary)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def targets_of(names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the targets to compare: all unless some are named.

    Raises:
        UsageError: there is no such target.
    """
    for name in names or ():
        if name not in TARGETS:
            raise UsageError(f"--target: there is no {name}; there are {', '.join(TARGETS)}")
    return tuple(dict.fromkeys(names)) if names else TARGETS
