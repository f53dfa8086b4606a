"""Makes the runs of a comparison: contenders take turns, so that what the machine does meanwhile meets all of them.

A contender is a target, or our server with one setting changed. Repeats are interleaved, and each round begins with another
contender. What can't run here is left out, and says why.
"""

import json
import re
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from sim.scenario import Scenario, load
from testbed import packages
from testbed.children import RunError, UsageError
from testbed.comparing import RESULT, Cell, compared
from testbed.footprint import COUNT
from testbed.progress import Display
from testbed.run import Options, count_syncs, execute, new_directory
from testbed.rundir import Run, link_latest, write_json
from testbed.summary import LATE_STATUS, host, versions
from testbed.targets.choice import OURS, PEERS, TARGETS, why_not
from testbed.verdicts import MEMORY, SPEED, verdicts

REPEATS_MAX: Final = 50

SCENARIOS: Final = (SPEED, MEMORY, "baseline", "backlog", "dead-destination")
"""Of `testbed peers`, unless somebody says otherwise: two that answer its questions, and three that engineers ask for."""

ONCE: Final = frozenset({MEMORY})
"""Scenarios that are run once: a slope has an error of its own, and a long queue takes long to be made."""

LEFT_OUT: Final[Mapping[str, Mapping[str, str]]] = {
    MEMORY: {"exim": "it keeps no queue in memory, and would take minutes to write this one"},
}
"""What `testbed peers` does not run unless it is asked to, and why."""

PRIOR_S: Final = 60.0
"""Of runs whose guess is taken to have been right, before there are any."""

ABOUT_S: Final = 12.0
"""What a run takes besides its load, about: start, warm-up, end and account."""


GUESS: Final = 400.0
"""Messages per second of a server that sets the pace itself, for an estimate."""


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
    is_peers: bool = False
    """Servers are compared, and the questions of `testbed.verdicts` asked."""
    left_out: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By scenario: contenders that are not run in it, and why."""
    scale: float = 1.0
    """Of scenarios whose rate is fixed."""
    pages: bool = True
    """Each run gets a report of its own, too."""


class Step(NamedTuple):
    """One run of a plan."""

    scenario: str
    contender: Contender
    number: int
    """Which repeat, from 0."""
    of: int
    load_s: float
    """How long its load takes at the scenario's rate."""


def steps_of(plan: Plan) -> list[Step]:
    """Return the runs of a plan in their order.

    Raises:
        ConfigError: a scenario can't be used.
    """
    steps = []
    for name in plan.scenarios:
        left_out = plan.left_out.get(name, {})
        contenders = [each for each in plan.contenders if each.label not in left_out]
        load_s = load_time(load(name, plan.overrides), plan.scale)
        repeats = 1 if plan.is_peers and name in ONCE else plan.repeats
        for number in range(repeats):
            # Another one is first in each round.
            turn = number % max(1, len(contenders))
            steps += [
                Step(name, each, number, repeats, load_s)
                for each in (*contenders[turn:], *contenders[:turn])
            ]
    return steps


def shortened(scenario: Scenario, scale: float) -> list[str]:
    """Return overrides that make a scenario with a fixed rate shorter: fewer messages at the same rates, and shorter outages.

    Where the server sets the pace there is nothing to shorten.
    """
    if scale == 1.0 or scenario.load.loop == "closed":
        return []
    found = [f"load.scale={scenario.load.scale * scale!r}"]
    for i, destination in enumerate(scenario.destinations):
        behaviours = [
            {
                key: value * scale if key in ("from_s", "to_s", "every_s") else value
                for key, value in each.items()
            }
            for each in destination.behaviours
        ]
        if behaviours != destination.behaviours:
            tables = (
                "{ " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in each.items()) + " }"
                for each in behaviours
            )
            found.append(f"destinations.{i}.behaviours=[{', '.join(tables)}]")
    return found


def load_time(scenario: Scenario, scale: float) -> float:
    """Return how many seconds the load takes at its own rate, times a scale; a closed loop's is guessed."""
    if scenario.load.loop == "closed":
        return scenario.load.count / GUESS
    return scenario.load.count / scenario.load.rate * scale


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
    scenarios: Sequence[str] | None,
    targets: Sequence[str],
    overrides: Sequence[str],
    *,
    repeats: int,
    out: Path | None,
    scale: float = 1.0,
) -> Plan:
    """Return the plan of targets beside each other; those that can't run here are left out.

    Args:
        scenarios: None for `SCENARIOS`.
        targets: names; see `targets_of`.
        overrides: ``KEY=VALUE`` of every scenario.
        repeats: runs of each.
        out: the directory; None for one below runs/.
        scale: of scenarios whose rate is fixed.

    Raises:
        ConfigError: a scenario can't be used.
        UsageError: there is no such target, or a scenario is ours alone.
    """
    names = tuple(scenarios or SCENARIOS)
    for name in names:
        if load(name, overrides).local:
            raise UsageError(f"peers: {name}: local users are in our server only")
    skipped = [f"{name}: {reason}" for name in targets if (reason := why_not(name))]
    left = [name for name in targets if not why_not(name)]
    words = ["testbed", "peers", "--repeats", str(repeats), "--scale", f"{scale:g}"]
    words += [w for name in scenarios or () for w in ("--scenario", name)]
    words += [w for name in targets if tuple(targets) != TARGETS for w in ("--target", name)]
    words += [w for each in overrides for w in ("--set", each)]
    return Plan(
        scenarios=names,
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
        is_peers=True,
        # Whoever names a scenario gets it of all.
        left_out=LEFT_OUT if not scenarios else {},
        pages=False,
        scale=scale,
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
    steps = steps_of(plan)
    if not steps:
        raise UsageError("nothing to compare: no server is in any of the scenarios")
    directory = new_directory(plan.out, plan.name)
    for line in plan.skipped:
        display.say(f"left out: {line}")
    cells: dict[tuple[str, str], Cell] = {}
    failed: list[str] = []
    started = datetime.now(UTC).isoformat(timespec="seconds")
    left = Remaining(steps)
    with display.whole(len(steps)) as whole:
        for i, step in enumerate(steps):
            what = f"{step.scenario}, {step.contender.label}, {step.number + 1} of {step.of}"
            whole.show(i, what, left.seconds)
            began = time.monotonic()
            try:
                run = _execute(plan, step, directory, display)
                if _is_late(run):
                    display.say("the load was late by itself, so this says little: once more")
                    shutil.rmtree(run.directory)
                    run = _execute(plan, step, directory, display)
            except UsageError:
                raise
            except RunError as error:
                failed.append(
                    f"{step.scenario}, {step.contender.label}, {step.number + 1}: {error}"
                )
                display.say(f"failed: {error}")
            else:
                for server in run.representations:
                    key = (step.scenario, step.contender.label)
                    cell = cells.setdefault(key, Cell(run.scenario.name, step.contender.label))
                    cell.runs.append((run, server))
            left.done(step, time.monotonic() - began)
        whole.show(len(steps), "done", 0.0)
    if not cells:
        raise RunError(failed[0])
    order = [(name, each.label) for name in plan.scenarios for each in plan.contenders]
    result: dict[str, Any] = compared(
        [cells[key] for key in order if key in cells],
        syncs=_syncs(plan, cells, directory, display, failed) if plan.syncs else None,
        title=plan.title,
        started=started,
        command=plan.command,
        host=host(),
        versions=versions(),
        skipped=list(plan.skipped),
        failed=failed,
        vary=next(iter(_vary(plan)), ""),
    )
    if plan.is_peers:
        _annotate(result, plan)
    write_json(directory / RESULT, result)
    link_latest(directory)
    return directory


class Remaining:
    """How long the rest takes: what was run before takes as long again; the rest, as much longer than its load as those did."""

    def __init__(self, steps: Sequence[Step]) -> None:
        """Take the runs that are to be made."""
        self._left = list(steps)
        self._took: dict[tuple[str, str], float] = {}
        # The first is a fast one: what it took says little of the others until there are some.
        self._about = self._real = PRIOR_S

    def done(self, step: Step, took_s: float) -> None:
        """Take note of one that is over."""
        self._left.remove(step)
        self._took[step.scenario, step.contender.label] = took_s
        self._about += step.load_s + ABOUT_S
        self._real += took_s

    @property
    def seconds(self) -> float:
        """About how long the rest takes."""
        pace = self._real / self._about
        return sum(
            self._took.get((each.scenario, each.contender.label), pace * (each.load_s + ABOUT_S))
            for each in self._left
        )


def _syncs(
    plan: Plan,
    cells: Mapping[tuple[str, str], Cell],
    directory: Path,
    display: Display,
    failed: list[str],
) -> dict[str, Any]:
    """Count what each server syncs, once, apart from the runs; a server that fails at it is named."""
    found: dict[str, Any] = {}
    for contender in plan.contenders:
        runs = [cell.runs[0] for (_, label), cell in cells.items() if label == contender.label]
        if not runs:
            continue
        run, server = runs[0]
        place = directory / f"syncs-{_slug(contender.label)}"
        try:
            counted = count_syncs([server], run.scenario, place, display)
        except RunError as error:
            failed.append(f"syncs, {contender.label}: {error}")
            continue
        if server in counted:
            found[contender.label] = counted[server]
    return found


def _annotate(result: dict[str, Any], plan: Plan) -> None:
    """Add what only the targets know, and the verdicts."""
    result["kind"] = "peers"
    result["servers"] = {
        each.label: {"version": packages.find(each.target).version or "of this machine"}
        for each in plan.contenders
        if each.target != OURS
    }
    for section in result["scenarios"]:
        section["left_out"] = dict(plan.left_out.get(section["name"], {}))
        for cell in section["cells"]:
            peer = PEERS.get(cell["target"])
            cell["second_attempt_s"] = peer.second_attempt_s if peer is not None else None
    result["verdicts"] = [each._asdict() for each in verdicts(result)]


def _is_late(run: Run) -> bool:
    """Return whether the generator could not offer the load that it says: another program was in its way."""
    return any(run.notes(each).load_status == LATE_STATUS for each in run.representations)


def _execute(plan: Plan, step: Step, directory: Path, display: Display) -> Run:
    contender = step.contender
    wanted = load(step.scenario, plan.overrides)
    overrides = (*plan.overrides, *contender.overrides)
    overrides = (*overrides, *shortened(wanted, plan.scale))
    # What the store takes alone is the same in each round and scenario.
    alone = plan.is_peers and wanted.name == MEMORY and not step.number
    return execute(
        Options(
            scenario=step.scenario,
            overrides=overrides,
            out=directory
            / _slug(f"{Path(step.scenario).stem}-{contender.label}-{step.number + 1}"),
            model=False,
            target=contender.target,
            is_part=True,
            footprint=COUNT if alone else 0,
            page=plan.pages,
            settle=not plan.is_peers,
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
