"""`testbed run`: a scenario, once for each representation, and what it comes to in a directory.

Every representation gets a world and a server of its own, in fresh processes and a fresh directory, so that nothing of one is
left in the memory of the next. Then the store alone is measured, the model predicts the same runs, and a report is written.
"""

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sim.scenario import Scenario, load, to_toml
from sim.settings import server_config
from sim.workload import draw
from testbed import ledger as accounts
from testbed import operator, report, rundir
from testbed.children import Child, RunError, UsageError, python, source_environment
from testbed.footprint import COUNT
from testbed.observe import observe
from testbed.progress import Display
from testbed.rundir import Run, write_json
from testbed.summary import host, summarise, versions
from testbed.targets.choice import OURS, make_target, placed_world, why_not
from testbed.world.handle import World, WorldError

RUNS: Final = Path("runs")
"""Where runs are kept unless somebody says otherwise."""

FOOTPRINT_S: Final = 120.0
"""Longest wait for the store alone to be measured."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    scenario: str
    """Name or path."""
    overrides: tuple[str, ...] = ()
    out: Path | None = None
    """The run directory; None for one of its own below `RUNS`."""
    model: bool = True
    keep_queue: bool = False
    syncs: bool = False
    """Count syncs per message as well, in a short run under strace."""
    target: str = OURS
    """Which server: one of `testbed.targets.choice.TARGETS`."""
    is_part: bool = False
    """The run belongs to a larger one, which is what ``latest`` should lead to."""
    footprint: int = COUNT
    """Envelopes with which the store alone is measured; 0 to leave that out."""
    settle: bool = True
    """Wait until our gauges are back at 0, for as long as idle connections are kept, and say which are not."""
    page: bool = True
    """Write a report of its own; `testbed report` makes it later, too."""


def execute(options: Options, display: Display) -> Run:
    """Do it all and return the run.

    Raises:
        ConfigError: the scenario can't be used.
        UsageError: the directory can't be used, or a child can't use what the scenario says.
        RunError: a child failed. What was measured until then is in the directory.
    """
    scenario = load(options.scenario, options.overrides)
    is_ours = options.target == OURS
    if not is_ours:
        _check_peer(options.target, scenario)
    else:
        server_config(scenario.server, options.scenario, options.overrides)
        operator.checked(scenario)
    name = scenario.name if is_ours else f"{scenario.name}-{options.target}"
    directory = new_directory(options.out, name)
    display.say(f"{scenario.name}: {scenario.title or 'a run'}; in {directory}")
    (directory / "scenario.toml").write_text(to_toml(scenario), encoding="utf-8")
    begun = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_of(options),
        "versions": versions(),
        "host": host(),
    }
    write_json(directory / "begun.json", begun)
    try:
        _observe_all(scenario, options, directory, display)
    except UsageError:
        if options.out is None and not Run(directory).representations:
            # Nothing was measured, and the one line says why: a directory would only look like a run.
            shutil.rmtree(directory, ignore_errors=True)
        raise
    found = Run(directory)
    if options.footprint and is_ours:
        _measure_stores(found, scenario, options.footprint, display)
    if options.syncs:
        names = scenario.representations if is_ours else [options.target]
        synced = count_syncs(names, scenario, found.directory / "syncs", display)
        if synced:
            write_json(found.directory / "syncs.json", synced)
    if options.model and is_ours:
        with display.part("model", len(scenario.representations)) as part:
            from testbed.model import costs_of, predict  # loads what a run without it does not need

            predictions: dict[str, Any] = {}
            part.show("calibrate")
            costs = costs_of(found)
            for i, name in enumerate(scenario.representations):
                part.show(name, i)
                predictions[name] = predict(found, name, costs)
        write_json(directory / "predictions.json", predictions)
    with display.part("report") as part:
        part.show("drawing")
        render(found, page=options.page)
    if not options.is_part:
        rundir.link_latest(directory)
    return found


def _observe_all(scenario: Scenario, options: Options, directory: Path, display: Display) -> None:
    """Run every server, one after the other."""
    envelopes = draw(scenario).envelopes
    ledgers: dict[str, Any] = {}
    for name in scenario.representations if options.target == OURS else [options.target]:
        with display.part(name, envelopes) as part:
            ledger = observe(
                scenario,
                directory / "scenario.toml",
                name,
                directory / name,
                part=part,
                keep_queue=options.keep_queue,
                settle=options.settle,
            )
            ledgers[name] = accounts.to_json(ledger)
            write_json(directory / "ledger.json", ledgers)


def _check_peer(name: str, scenario: Scenario) -> None:
    """Raise UsageError if another server can't do what the scenario is about, or can't run here."""
    reason = why_not(name)
    if reason:
        raise UsageError(reason)
    if scenario.local:
        raise UsageError(f"--target: {name}: local users are in our server only ({scenario.name})")
    if scenario.timeline:
        raise UsageError(f"--target: {name}: a timeline is for our server only ({scenario.name})")


def render(found: Run, *, page: bool = True) -> Path:
    """Make summary and report of a run from its files, and return the report's path.

    Args:
        found: the run.
        page: write the report as well as the summary.

    Raises:
        UsageError: a file that every run has is missing or damaged.
    """
    begun = _read(found, "begun.json")
    footprints = _read(found, "footprints.json")
    synced = _read(found, "syncs.json")
    predictions = _read(found, "predictions.json")
    summary = summarise(found, footprints=footprints, model=None, syncs=synced)
    if predictions:
        from testbed.model import compare

        summary["model"] = compare(predictions, summary["representations"], found)
    summary = {**summary, **begun}
    write_json(found.directory / "summary.json", summary)
    path = found.directory / "report.html"
    if page:
        path.write_text(report.html(found), encoding="utf-8")
    return path


def _read(found: Run, name: str) -> dict[str, Any]:
    path = found.directory / name
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UsageError(f"{path}: not JSON") from None
    return content


def new_directory(out: Path | None, name: str) -> Path:
    """Make a run's directory: the one that was asked for, or one below `RUNS` with a name of its own.

    Raises:
        UsageError: it is there already and not empty, or can't be made.
    """
    directory = out
    if directory is None:
        stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        directory = RUNS / f"{name}-{stamp}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise UsageError(f"--out: {directory}: is there already, and not empty")
    except OSError as error:
        raise UsageError(f"--out: {directory}: {(error.strerror or 'unusable').lower()}") from None
    return directory


def _measure_stores(found: Run, scenario: Scenario, count: int, display: Display) -> None:
    """Fill each store in a process of its own; write footprints.json."""
    footprints: dict[str, Any] = {}
    with display.part("store", len(scenario.representations)) as part:
        for i, name in enumerate(scenario.representations):
            part.show(name, i)
            log = found.directory / name / "footprint.json"
            child = Child(
                "footprint",
                [
                    *python("testbed.footprint", name, "--count", str(count)),
                    *("--scenario", str((found.directory / "scenario.toml").resolve())),
                ],
                log=log,
                environment=source_environment(),
            )
            try:
                if child.wait(FOOTPRINT_S) != 0:
                    raise RunError(child.describe_end())
            finally:
                child.end()
            try:
                footprints[name] = json.loads(log.read_text(encoding="utf-8"))
            except ValueError:
                raise RunError(f"footprint: no answer: {log}") from None
    write_json(found.directory / "footprints.json", footprints)


SYNC_WORLD: Final = """\
name = "syncs"
[load]
messages = 1
[[destinations]]
name = "steady"
domain = "steady.test"
"""
"""One host that takes everything."""


def count_syncs(
    names: Sequence[str], scenario: Scenario, place: Path, display: Display
) -> dict[str, Any]:
    """Run servers for a moment under strace; return what `testbed.syncs.count` says of each, or nothing without strace.

    Args:
        names: how our server keeps envelopes, or other servers.
        scenario: whose settings our server gets; its load and world are not used.
        place: made here, and removed.
        display: is told.

    Raises:
        RunError: a server did not do what it was started for.
    """
    from testbed import syncs

    reason = syncs.why_not()
    if reason:
        display.say(f"syncs are not counted: {reason}")
        return {}
    result: dict[str, Any] = {}
    try:
        place.mkdir()
        world_file = place / "world.toml"
        world_file.write_text(SYNC_WORLD, encoding="utf-8")
        with display.part("syncs", len(names)) as part:
            for i, name in enumerate(names):
                part.show(name, i)
                with placed_world(name, world_file, place / name) as world:

                    def make(directory: Path, name: str = name, world: World = world) -> Any:
                        server = make_target(name, directory, scenario, world, scenario.server)
                        return server, server.trace_syncs()

                    result[name] = syncs.count(make, place / name, lambda i: f"u{i}@steady.test")
    except OSError as error:
        raise RunError(f"counting syncs: {error.strerror or error}") from error
    except WorldError as error:
        raise RunError(f"counting syncs: world: {error}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return result


def command_of(options: Options) -> str:
    """Return the command line that makes the same run again."""
    words = ["testbed", "run", options.scenario]
    for override in options.overrides:
        words += ["--set", override]
    if options.syncs:
        words.append("--syncs")
    if options.target != OURS:
        words += ["--target", options.target]
    if not options.model:
        words.append("--no-model")
    return shlex.join(words)
