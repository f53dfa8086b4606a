"""Carries a sweep out: what the cache has is taken, the rest is run, and every result is kept as it comes.

The order of results is that of the plan and never that in which they came: whatever carried the runs out, however many at a
time, gives the same to the last bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mta.core.settings import ConfigError, flatten, typed
from sim.codeversion import model_digest
from sim.executors import Executor
from sim.sweep import REPLICATIONS_MAX, Design
from sim.sweepcache import Cache
from sim.sweepsubject import Prepared, Subject, prepare, without_view
from sim.sweeptask import Common, Record, Task, View, common_digest, decisions, keys_of

RUN_S_MAX: Final = 600.0
"""Longest time that one run may take, seconds; default of ``--run-max``."""


class Place(NamedTuple):
    """Where a point finds its record in each replication."""

    decided: str
    view: View


@dataclass(slots=True)
class Plan:
    """What there is to run."""

    subject: Subject
    design: Design
    replications: int
    common: Common
    common_digest: str
    places: list[Place]
    """Of the base, and then of each point."""
    asked: dict[str, Task]
    """By what decides: a task with replication 0 and every view that is wanted of it."""
    now: dict[str, str]
    """What the axes are set to at the base; a key that is not set there has no entry."""

    @property
    def runs(self) -> int:
        """Different runs, in all replications."""
        return len(self.asked) * self.replications

    @property
    def messages(self) -> int:
        """Messages of all runs."""
        return sum(task.scenario.messages for task in self.asked.values()) * self.replications


class Progress(NamedTuple):
    """How far a sweep is."""

    done: int
    """Runs."""
    total: int
    cached: int
    """Of those done: found in the cache."""
    busy_s: float
    """What the others took, added up."""
    workers: int

    @property
    def left_s(self) -> float | None:
        """Estimated seconds until all is done, from the mean of those that were run; None as long as there is none."""
        ran = self.done - self.cached
        if not ran:
            return None
        return self.busy_s / ran * (self.total - self.done) / self.workers


@dataclass(slots=True)
class Found:
    """What a sweep came to: a record for each point and replication."""

    plan: Plan
    records: list[list[Record | None]]
    """Of the base and each point, by replication; None if the run took too long."""
    problems: dict[str, str] = field(default_factory=dict)
    """By what decides: why there is no record."""
    cached: int = 0
    """Runs that the cache had."""
    ran: int = 0
    """Runs that were made now."""


def make_plan(
    of: Subject,
    design: Design,
    *,
    replications: int = 1,
    run_s_max: float = RUN_S_MAX,
) -> Plan:
    """Return what there is to run for a design.

    Raises:
        ConfigError: a key, a value or the number of replications is wrong.
    """
    if not 1 <= replications <= REPLICATIONS_MAX:
        problem = f"must be from 1 to {REPLICATIONS_MAX}"
        raise ConfigError("--replications", value=replications, problem=problem)
    places: list[Place] = []
    asked: dict[str, Task] = {}
    points = prepare(of, [{}, *(design.settings(point) for point in design.points)])
    for one in points:
        config = without_view(one.config)
        decided = decisions(one.scenario, config)
        before = asked.get(decided)
        views = before.views if before is not None else ()
        if one.view not in views:
            views = (*views, one.view)
        asked[decided] = Task(one.scenario, config, 0, views)
        places.append(Place(decided, one.view))
    # Not before: a run's costs may have learnt of representations on the way.
    common = Common(of.costs, of.schedule, of.start, of.source, run_s_max)
    now = _now(points[0], [axis.key for axis in design.axes])
    return Plan(of, design, replications, common, common_digest(common), places, asked, now)


def _now(base: Prepared, keys: Sequence[str]) -> dict[str, str]:
    values = {f"server.{key}": value for key, value in flatten(base.config).items()}
    values = {**flatten(base.scenario), **values}
    found = {key: values[key] for key in keys if key in values}
    return {key: typed(value) for key, value in found.items()}


def carry_out_plan(
    plan: Plan,
    executor: Executor,
    cache: Cache | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> Found:
    """Run what the cache does not have.

    Raises:
        ConfigError: a value that only a run finds wrong, or a worker that has another version of the model.
        WorkerLostError: a worker died; what was done is in the cache.
    """
    known: dict[tuple[str, int], dict[View, Record]] = {}
    keys: dict[tuple[str, int], dict[View, str]] = {}
    todo: list[tuple[str, Task]] = []
    for replication in range(plan.replications):
        for decided, task in plan.asked.items():
            of = keys_of(plan.common_digest, decided, replication, task.views)
            keys[decided, replication] = of
            found = known[decided, replication] = {}
            for view, key in of.items() if cache is not None else ():
                assert cache is not None
                record = cache.get(key)
                if record is not None:
                    found[view] = record
            missing = tuple(view for view in task.views if view not in found)
            if missing:
                todo.append((decided, Task(task.scenario, task.config, replication, missing)))
    cached = plan.runs - len(todo)
    problems: dict[str, str] = {}
    busy_s = 0.0

    def tell(ran: int) -> None:
        if progress is not None:
            at = Progress(cached + ran, plan.runs, cached, busy_s, executor.workers)
            progress(at)

    tell(0)
    ran = 0
    if todo:
        for number, outcome in executor.run(plan.common, [task for _, task in todo]):
            decided, task = todo[number]
            if outcome.code != model_digest():
                problem = (
                    "a worker has another version of the model: install the same one everywhere"
                )
                raise ConfigError("--scheduler", problem=problem)
            if outcome.wrong:
                raise ConfigError(outcome.wrong, problem="")
            if outcome.problem:
                problems[decided] = outcome.problem
            for view, record in outcome.records.items():
                known[decided, task.replication][view] = record
                if cache is not None:
                    cache.put(keys[decided, task.replication][view], record)
            ran += 1
            busy_s += outcome.seconds
            tell(ran)
    records = [
        [known[place.decided, n].get(place.view) for n in range(plan.replications)]
        for place in plan.places
    ]
    return Found(plan, records, problems, cached, ran)


def settings_of(plan: Plan) -> Sequence[dict[str, str]]:
    """Return the settings of the base, which are none, and of each point."""
    return [{}, *(plan.design.settings(point) for point in plan.design.points)]
