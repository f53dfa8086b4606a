"""What is swept: a scenario, or a recorded run with its own arrivals and costs; and what it is at each point."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol, get_args, get_type_hints

from mta.core.envelopes import REPRESENTATIONS
from mta.core.settings import ConfigError
from sim import layout as layouts
from sim import scenario as scenarios
from sim.costs import Costs
from sim.remote import build_hosts
from sim.scenario import Scenario
from sim.settings import IGNORED, ModelConfig, delivery_timeout, model_config, server_config
from sim.sweeptask import View
from sim.workload import Schedule

ENVELOPE: Final = "server.envelope"
LAYOUT: Final = "layout"

_RECORDED: Final = ("load", "local", "name", "seed")
"""Keys that say which mail comes, which a run has recorded."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the model is asked at one point."""

    scenario: Scenario
    config: ModelConfig
    view: View


class Subject(Protocol):
    """What is swept."""

    name: str
    """As the operator named it."""
    source: str
    """Its file, for errors."""
    scenario: Scenario
    costs: Costs
    schedule: Schedule | None
    """The arrivals of a run; None if each replication draws its own."""
    start: float
    """What the core's clock says at the start of the load."""
    notes: list[str]

    def at(self, settings: Mapping[str, str]) -> Prepared:
        """Return what the model is asked at a point.

        Raises:
            ConfigError: a key or a value is wrong.
        """
        ...


@dataclass(slots=True)
class ScenarioSubject:
    """A scenario: each replication draws other mail and other hosts."""

    name: str
    source: str
    scenario: Scenario
    costs: Costs
    overrides: list[str]
    schedule: Schedule | None = None
    start: float = 0.0
    notes: list[str] = field(default_factory=list)

    def at(self, settings: Mapping[str, str]) -> Prepared:
        """See `Subject.at`."""
        view, rest = _viewed(settings)
        said = [*self.overrides, *(f"{key}={value}" for key, value in rest.items())]
        found = scenarios.load(self.name, said)
        config = server_config(found.server, self.source, said)
        return Prepared(found, config, view or View(config.envelope))


@dataclass(slots=True)
class RunSubject:
    """A recorded run: its arrivals, costs measured in it; replications differ in how hosts answer and in jitter."""

    name: str
    source: str
    scenario: Scenario
    costs: Costs
    directory: Path
    tree: dict[str, Any]
    overrides: list[str]
    schedule: Schedule | None
    start: float
    notes: list[str]
    known: set[str]
    """Representations whose memory is in the costs."""

    def at(self, settings: Mapping[str, str]) -> Prepared:
        """See `Subject.at`."""
        view, rest = _viewed(settings)
        server, other = list(self.overrides), []
        for key, value in rest.items():
            if key.startswith("server."):
                server.append(f"{key.removeprefix('server.')}={value}")
            elif key.split(".")[0] in _RECORDED:
                problem = "says which mail comes: that is recorded in the run; sweep its scenario"
                raise ConfigError("--over", key, problem=problem)
            else:
                other.append(f"{key}={value}")
        found = scenarios.load(self.directory / "scenario.toml", other) if other else self.scenario
        config = model_config(self.tree, source=self.source, overrides=server)
        if view is None:
            view = View(config.envelope)
        self._know(view)
        return Prepared(found, config, view)

    def _know(self, view: View) -> None:
        """See that costs have the representation's memory: measured in the same run if it was run, too."""
        from sim.replay import _with_memory_of

        if not view.layout and view.envelope not in self.known:
            self.known.add(view.envelope)
            self.costs = _with_memory_of(self.costs, view.envelope, self.directory, self.notes)


def subject(
    name: str,
    overrides: Sequence[str] = (),
    *,
    costs: Costs | None = None,
    seed: int | None = None,
    representation: str = "",
) -> Subject:
    """Return what a name means: a scenario that ships or a file of one; else a run.

    Args:
        name: a scenario's name, its file, a run's directory, or ``latest``.
        overrides: as ``--set`` of `sim run`; of a run, settings of the server only.
        costs: in place of the defaults, or of those measured in the run.
        seed: in place of the scenario's.
        representation: which of the run's servers.

    Raises:
        ConfigError: there is no such thing, or something in it is wrong.
    """
    if name in scenarios.available() or name.endswith(".toml"):
        if representation:
            problem = "is for runs; say --set server.envelope="
            raise ConfigError("--representation", value=representation, problem=problem)
        said = [*overrides, *([] if seed is None else [f"seed={seed}"])]
        found = scenarios.load(name, said)
        source = name if name.endswith(".toml") else f"{name}.toml"
        made: Subject = ScenarioSubject(name, source, found, costs or Costs(), said)
    else:
        made = _recorded(name, overrides, costs, seed, representation)
    _try(made.at({}), made.source)
    return made


def _recorded(
    name: str, overrides: Sequence[str], costs: Costs | None, seed: int | None, representation: str
) -> RunSubject:
    # Calibration needs more than a scenario does, and half of the commands none of it.
    from sim import replay
    from sim.calibrate import calibrate
    from sim.records import tree_of

    try:
        run, directory = replay._server(replay.find_run(name), representation)
    except ConfigError as error:
        if error.source != "run":
            raise
        known = ", ".join(scenarios.available())
        problem = f"is neither a run nor a scenario; there are {known}"
        raise ConfigError("sweep", value=name, problem=problem) from None
    scenario = scenarios.load(run / "scenario.toml")
    source = str(directory / "trace.jsonl")
    header = replay._header(directory / "trace.jsonl")
    tree = {k: v for k, v in tree_of(header).items() if k not in IGNORED}
    if seed is not None:
        tree["seed"] = seed
        scenario.seed = seed
    schedule, start, _ = replay.arrivals(directory / "load.jsonl", scenario)
    found = costs or calibrate(directory)
    # Whoever brings costs brings all of them.
    measured = set(REPRESENTATIONS) if costs is not None else {str(tree["envelope"])}
    return RunSubject(
        name=name,
        source=source,
        scenario=scenario,
        costs=found,
        directory=run,
        tree=tree,
        overrides=[each.removeprefix("server.") for each in overrides],
        schedule=schedule,
        start=start,
        notes=list(found.provenance.notes),
        known=measured,
    )


def _viewed(settings: Mapping[str, str]) -> tuple[View | None, dict[str, str]]:
    """Return how memory is counted, if the point says so, and what decides."""
    rest = {key: value for key, value in settings.items() if key not in (ENVELOPE, LAYOUT)}
    envelope, layout = settings.get(ENVELOPE), settings.get(LAYOUT)
    if layout is not None:
        layouts.load(layout)
        if envelope is not None:
            problem = "has bytes of its own for each envelope: vary one of both"
            raise ConfigError("--over", LAYOUT, problem=problem)
        return View("slim", layout), rest
    if envelope is None:
        return None, rest
    known = get_args(get_type_hints(ModelConfig)["envelope"])
    if envelope not in known:
        raise ConfigError("--over", ENVELOPE, envelope, f"must be one of {', '.join(known)}")
    return View(envelope), rest


def prepare(of: Subject, points: Sequence[Mapping[str, str]]) -> list[Prepared]:
    """Return what the model is asked at each point; all of them are tried before the first run.

    Raises:
        ConfigError: a key or a value is wrong.
    """
    found = []
    tried = [of.scenario.destinations]
    for settings in points:
        one = of.at(settings)
        delivery_timeout(one.scenario.server, source=of.source)
        if one.scenario.destinations not in tried:
            _try(one, of.source)
            tried = [of.scenario.destinations, one.scenario.destinations]
        found.append(one)
    return found


def _try(one: Prepared, source: str) -> None:
    """See that every host can be made."""
    build_hosts(one.scenario, replication=0, source=source)


def without_view(config: ModelConfig) -> ModelConfig:
    """Return settings that do not say how memory is counted, since that decides nothing."""
    return replace(config, envelope="slim")
