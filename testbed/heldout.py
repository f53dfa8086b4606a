"""Real against model at settings that the model has not seen: makes the runs, calibrates with some and predicts the others.

A scenario that varies one key is run at each of its values, several times, taking turns, so that what the machine does meanwhile
meets all of them. Costs come from the training runs alone, at one value and with seeds of their own. The model is given the
scenario of each held-out run, never its record: not even the instants at which its load was sent.

The directory has a run in a directory of its own for each value and repeat. What is complete stays: who is killed goes on with
the same command. ``validation.json`` has everything that a report or a notebook needs.
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from sim.calibrate import calibrate
from sim.costs import Costs, save
from sim.result import SimResult
from sim.runner import simulate
from sim.scenario import Scenario, load
from testbed.children import RunError, UsageError
from testbed.heldoutgates import judged
from testbed.model import area_between
from testbed.progress import Display
from testbed.run import RUNS, Options, execute
from testbed.rundir import Run, Samples, link_latest, write_json
from testbed.summary import host, versions

RESULT: Final = "validation.json"
PLAN: Final = "validation-plan.json"
SCHEMA: Final = 1

TRIES: Final = 2
"""Of a run that fails, as one whose load was late because the machine was busy."""
TRAINING_SEEDS: Final = 1000
"""Training runs have the scenario's seed and so many more: nothing of them comes again in a held-out run."""
CURVE_MAX: Final = 16
"""Settings at which the line of the model is reckoned."""
POINTS_MAX: Final = 150
"""Of each curve over time that is kept."""
MESSAGES_PER_S: Final = "messages_per_s"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run."""

    scenario: str
    """Name or path."""
    key: str
    """What is varied."""
    values: tuple[Any, ...]
    """In the scenario's order, the training value with them."""
    train: Any
    repeats: int
    training_runs: int
    overrides: tuple[str, ...] = ()

    @property
    def held_out(self) -> tuple[Any, ...]:
        """The values that the model does not see."""
        return tuple(value for value in self.values if value != self.train)

    def turns(self) -> list["Turn"]:
        """Return every run in the order in which they are made: rounds, each of which begins with another value."""
        found = []
        for number in range(max(self.repeats, self.training_runs)):
            at = number % len(self.values)
            for value in (*self.values[at:], *self.values[:at]):
                trains = value == self.train
                if number < (self.training_runs if trains else self.repeats):
                    found.append(Turn(value, number, trains))
        return found

    def load(self, turn: "Turn") -> tuple[str, ...]:
        """Return the overrides of a run.

        Raises:
            ConfigError: the scenario can't be used.
        """
        seed = load(self.scenario, self.overrides).seed or 1
        seed += turn.number + (TRAINING_SEEDS if turn.trains else 0)
        return (*self.overrides, *self.fixed(turn.value), f"seed={seed}")

    def fixed(self, value: Any) -> tuple[str, ...]:
        """Return the overrides that set the varied key."""
        return ("vary={}", f"{self.key}={json.dumps(value)}")


@dataclass(frozen=True, slots=True)
class Turn:
    """One run."""

    value: Any
    number: int
    """Of the repeat, from 0."""
    trains: bool

    @property
    def name(self) -> str:
        """Of its directory."""
        kind = "train" if self.trains else "held-out"
        return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{kind}-{self.value}-{self.number + 1}")


def plan_of(
    scenario: str,
    overrides: Sequence[str],
    *,
    train: str | None,
    repeats: int,
    training_runs: int,
) -> Plan:
    """Return the plan for a scenario that varies a key.

    Args:
        scenario: name or path.
        overrides: of ``--set``.
        train: the value to calibrate at, as text; by default the second one.
        repeats: of each held-out value.
        training_runs: at the training value.

    Raises:
        ConfigError: the scenario can't be used.
        UsageError: it does not vary one key, or the training value is none of its values.
    """
    found = load(scenario, overrides)
    if len(found.vary) != 1:
        raise UsageError(f"{scenario}: vary: must have one key, whose values are predicted")
    ((key, values),) = found.vary.items()
    if found.local:
        raise UsageError(f"{scenario}: local users are not compared here; see `testbed policies`")
    if not all(isinstance(value, int | float | str) for value in values):
        raise UsageError(f"{scenario}: vary.{key}: values must be numbers, texts or booleans")
    chosen = values[1]
    if train is not None:
        matching = [value for value in values if str(value) == train]
        if not matching:
            raise UsageError(f"--train: {train}: must be one of {', '.join(map(str, values))}")
        chosen = matching[0]
    plan = Plan(scenario, key, tuple(values), chosen, repeats, training_runs, tuple(overrides))
    for turn in plan.turns():
        load(scenario, plan.load(turn))
    return plan


def directory_of(plan: Plan, out: Path | None) -> Path:
    """Return the directory of a plan: a new one, or the one in which the same plan was begun.

    Raises:
        UsageError: it is there and has something else in it, or can't be made.
    """
    if out is None:
        stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        out = RUNS / f"validate-{load(plan.scenario, plan.overrides).name}-{stamp}"
    wanted = json.loads(json.dumps(asdict(plan)))
    try:
        out.mkdir(parents=True, exist_ok=True)
        begun = out / PLAN
        if begun.is_file():
            try:
                found = json.loads(begun.read_bytes())
            except ValueError:
                raise UsageError(f"{begun}: not JSON") from None
            if found != wanted:
                changed = [key for key in wanted if found.get(key) != wanted[key]]
                raise UsageError(f"--out: {out}: was begun with another {', '.join(changed)}")
        elif any(out.iterdir()):
            raise UsageError(f"--out: {out}: is there already, and not empty")
        else:
            write_json(begun, wanted)
    except OSError as error:
        raise UsageError(f"--out: {out}: {(error.strerror or 'unusable').lower()}") from None
    return out


def make_runs(
    plan: Plan, directory: Path, display: Display, *, clock: Callable[[], float] = time.monotonic
) -> list[str]:
    """Make the runs that are not there yet; return what failed, a line for each.

    Raises:
        ConfigError: the scenario can't be used.
        UsageError: a child can't use what the scenario says.
        RunError: the training runs failed, all of them.
    """
    failed: list[str] = []
    turns = plan.turns()
    todo = [turn for turn in turns if usable(directory / turn.name) is None]
    if len(todo) < len(turns):
        display.say(f"{len(turns) - len(todo)} of {len(turns)} runs are there already")
    begun = clock()
    for done, turn in enumerate(todo):
        left = ""
        if done:
            left = f", about {(clock() - begun) / done * (len(todo) - done) / 60:.1f} min left"
        where = f"{plan.key.rpartition('.')[2]} {turn.value}, {'training' if turn.trains else 'held out'}"
        display.say(f"run {len(turns) - len(todo) + done + 1} of {len(turns)}: {where}{left}")
        problem = _make(plan, turn, directory / turn.name, display)
        if problem:
            failed.append(f"{turn.name}: {problem}")
            display.say(f"failed: {problem}")
    if not any(usable(directory / turn.name) for turn in turns if turn.trains):
        raise RunError(f"no training run came to its end: {failed[0] if failed else ''}")
    return failed


def _make(plan: Plan, turn: Turn, where: Path, display: Display) -> str:
    """Make one run, and again if it failed; return what was wrong with the last, or nothing."""
    problem = ""
    for _ in range(TRIES):
        # Of a run that was killed, nothing can be used.
        shutil.rmtree(where, ignore_errors=True)
        options = Options(
            scenario=plan.scenario,
            overrides=plan.load(turn),
            out=where,
            model=False,
            is_part=True,
            footprint=0,
        )
        try:
            failures = execute(options, display).summary["failures"]
        except UsageError:
            raise
        except RunError as error:
            failures = [str(error)]
        if not failures:
            return ""
        problem = failures[0]
    return problem


def usable(directory: Path) -> Run | None:
    """Return a run that came to its end and kept its promises; None if there is none.

    Raises:
        UsageError: it is damaged.
    """
    if not (directory / "summary.json").is_file():
        return None
    run = Run(directory)
    return None if run.summary["failures"] else run


# ---- prediction and comparison


def validate(plan: Plan, directory: Path, display: Display, *, command: str = "") -> dict[str, Any]:
    """Make what is missing, calibrate, predict and compare; write and return the content of validation.json.

    Raises:
        ConfigError: the scenario can't be used.
        UsageError: a run is damaged.
        RunError: no training run came to its end.
    """
    failed = make_runs(plan, directory, display)
    runs = {turn: run for turn in plan.turns() if (run := usable(directory / turn.name))}
    with display.part("model", len(plan.values) + 1) as part:
        part.show("calibrate")
        costs = calibrate(*(run.directory for turn, run in runs.items() if turn.trains))
        save(costs, directory / "calibration.json")
        settings = []
        for number, value in enumerate(plan.values):
            part.show(f"{value}", number + 1)
            found = [run for turn, run in runs.items() if turn.value == value]
            if found:
                settings.append(_setting(value, found, costs, trains=value == plan.train))
        part.show("curve", len(plan.values) + 0.5)
        curve = _curve(plan, costs)
    scenario = load(plan.scenario, plan.overrides)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "scenario": scenario.name,
        "title": scenario.title,
        "question": scenario.question.strip(),
        "key": plan.key,
        "train": plan.train,
        "repeats": plan.repeats,
        "training_runs": plan.training_runs,
        "representations": list(scenario.representations),
        "envelopes": _envelopes(next(iter(runs.values()))),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "host": host(),
        "versions": versions(),
        "calibration": asdict(costs),
        "settings": settings,
        "curve": curve,
        "failed": failed,
    }
    result["verdict"] = judged(result)
    write_json(directory / RESULT, result)
    link_latest(directory)
    return result


def _envelopes(run: Run) -> int:
    part = run.summary["representations"][run.representations[0]]
    return int(part["accepted"])


def _setting(value: Any, runs: Sequence[Run], costs: Costs, *, trains: bool) -> dict[str, Any]:
    """Return what was measured and predicted at one value: a list over repeats for each quantity."""
    real: dict[str, list[float | None]] = {}
    model: dict[str, list[float | None]] = {}
    distances: dict[str, list[float | None]] = {}
    curves: dict[str, Any] = {}
    busy: list[float] = []
    measured: dict[str, list[Samples]] = {}
    for run in runs:
        summary, scenario = run.summary, run.scenario
        for name in run.representations:
            part = summary["representations"][name]
            samples = run.samples(name).at_or_after(0.0)
            result = _simulate(scenario, name, costs)
            predicted = _samples_of(result)
            measured.setdefault(name, []).append(samples)
            for quantity, number in _real(part).items():
                real.setdefault(f"{name}.{quantity}", []).append(number)
            for quantity, number in _predicted(result, scenario).items():
                model.setdefault(f"{name}.{quantity}", []).append(number)
            for quantity, distance in DISTANCES.items():
                distances.setdefault(f"{name}.{quantity}", []).append(distance(samples, predicted))
            busy.append(part["foreign_cpu_share"] or 0.0)
            if name not in curves:
                curves[name] = {"real": _thinned(samples), "model": _thinned(predicted)}
    apart = {
        f"{name}.{quantity}": _between(each, distance)
        for name, each in measured.items()
        for quantity, distance in DISTANCES.items()
    }
    if {"full", "slim"} <= set(measured):
        for table in (real, model):
            table["saving.peak_rss"] = [
                None if a is None or b is None else a - b
                for a, b in zip(table["full.peak_rss"], table["slim.peak_rss"], strict=True)
            ]
    return {
        "value": value,
        "trains": trains,
        "repeats": len(runs),
        "real": real,
        "model": model,
        "distances": distances,
        "real_distances": apart,
        "foreign_cpu_share": round(max(busy, default=0.0), 3),
        "curves": curves,
    }


def _real(part: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        "peak_queue": part["peak_queue"],
        "drain_time": part["drain_time_s"],
        MESSAGES_PER_S: part["messages_per_s"],
        "peak_rss": part["peak_rss_bytes"],
        "end_rss": part["end_rss_bytes"] if part["drained"] else None,
    }


def _predicted(result: SimResult, scenario: Scenario) -> dict[str, float | None]:
    # As the bench reckons it: until the last delivery, or until the load is over.
    span = max(result.drain_time_s or 0.0, result.load_s)
    drained = result.drain_time_s is not None
    return {
        "peak_queue": result.peak_queued,
        "drain_time": result.drain_time_s,
        MESSAGES_PER_S: result.counts["accepted_messages"] / span if drained and span else None,
        "peak_rss": result.peak_rss_bytes,
        "end_rss": int(result.rss_bytes[-1]) if drained else None,
    }


def _simulate(scenario: Scenario, representation: str, costs: Costs) -> SimResult:
    """Run the model over the schedule that was planned, not over the one that was recorded."""
    return simulate(scenario, representation=representation, costs=costs, backend="heapq")


def _samples_of(result: SimResult) -> Samples:
    """Return a prediction with the columns of a measurement."""
    return Samples(
        {
            "t": result.t,
            "scheduler.envelope": result.queued.astype(float),
            "rss_bytes": result.rss_bytes.astype(float),
        }
    )


def _queue_apart(real: Samples, other: Samples) -> float | None:
    """Return the area between two queue curves as a share of the first one's."""
    return area_between(real, Samples({"t": other["t"], "queued": other.queue}))


def _rss_apart(real: Samples, other: Samples) -> float | None:
    """Return the mean relative error of the second's RSS over the time of the first."""
    if not len(real) or not len(other):
        return None
    at = np.interp(real["t"], other["t"], other["rss_bytes"])
    return round(float(np.nanmean(np.abs(at - real["rss_bytes"]) / real["rss_bytes"])), 4)


DISTANCES: Final[Mapping[str, Callable[[Samples, Samples], float | None]]] = {
    "queue_curve": _queue_apart,
    "rss_curve": _rss_apart,
}
"""How far two curves over time are apart, 0 for not at all."""


def _between(
    samples: Sequence[Samples], distance: Callable[[Samples, Samples], float | None]
) -> list[float | None]:
    """Return how far real runs are from each other: each from the next."""
    if len(samples) < 2:
        return []
    return [distance(a, b) for a, b in zip(samples, (*samples[1:], samples[0]), strict=True)]


def _thinned(samples: Samples) -> dict[str, list[float | None]]:
    step = max(1, -(-len(samples) // POINTS_MAX))
    return {
        "t": [round(float(each), 2) for each in samples["t"][::step]],
        "queued": [
            round(float(each)) if np.isfinite(each) else None for each in samples.queue[::step]
        ],
        "rss_bytes": [
            round(float(each)) if np.isfinite(each) else None
            for each in samples["rss_bytes"][::step]
        ],
    }


def _curve(plan: Plan, costs: Costs) -> dict[str, Any]:
    """Return what the model says between the values that were run, as far as there is a between."""
    found: dict[str, list[float | None]] = {}
    values = list(_between_values(plan.values))
    for value in values:
        scenario = load(plan.scenario, (*plan.overrides, *plan.fixed(value)))
        for name in scenario.representations:
            result = _simulate(scenario, name, costs)
            for quantity, number in _predicted(result, scenario).items():
                found.setdefault(f"{name}.{quantity}", []).append(number)
    if {"full.peak_rss", "slim.peak_rss"} <= set(found):
        found["saving.peak_rss"] = [
            None if a is None or b is None else a - b
            for a, b in zip(found["full.peak_rss"], found["slim.peak_rss"], strict=True)
        ]
    return {"values": values, **found}


def _between_values(values: Sequence[Any]) -> Iterator[Any]:
    """Yield values to draw a line through: whole numbers between whole numbers, in equal ratios if they are many."""
    if not all(type(value) is int and value > 0 for value in values):
        yield from values
        return
    low, high = min(values), max(values)
    if high - low < CURVE_MAX:
        yield from range(low, high + 1)
        return
    grid = {round(each) for each in np.geomspace(low, high, CURVE_MAX)}
    yield from sorted(grid | set(values))


def read(path: Path) -> dict[str, Any]:
    """Return what was written, judged by today's gates; the file may be compressed with gzip.

    Raises:
        UsageError: it is damaged.
    """
    import gzip

    try:
        raw = path.read_bytes()
        content: dict[str, Any] = json.loads(
            gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        )
        if content["schema"] != SCHEMA:
            raise UsageError(f"{path}: schema {content['schema']}, not {SCHEMA}")
        content["verdict"] = judged(content)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: no validation") from error
    return content
