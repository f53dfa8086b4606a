"""What would this run have been with other settings?

A replay takes a recorded run: its scenario, the instants at which its messages were really sent, and
costs measured in it. It runs the model with the settings as they were, beside what was recorded, and
with other settings. The difference between the two models is the answer; the difference between the
first model and the record says how far to trust it.

Retries are never replayed: the model makes its own, because a limit that changes changes them.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from mta.core import records
from mta.core.envelopes import REPRESENTATIONS
from mta.core.records import TraceError
from mta.core.settings import ConfigError, changed
from sim import loadrecord
from sim.calibrate import calibrate, restarts_of
from sim.costs import Costs, MemoryCosts
from sim.loadrecord import LoadRecord
from sim.recorded import Story, recorded
from sim.records import config_of, tree_of
from sim.replaylocal import of_model, rows_of
from sim.runner import SimResult, simulate
from sim.scenario import Scenario
from sim.scenario import load as load_scenario
from sim.settings import IGNORED, ModelConfig, model_config
from sim.tracefile import parse, traces_of
from sim.workload import Schedule, draw

RUNS: Final = Path("runs")
"""Where the bench keeps its runs."""

LATEST: Final = "latest"

LOAD_MAX_S: Final = 30 * 86_400.0
"""Longer lasts no load: a record that says so is damaged, and a model would take every fifth of a second of it."""
TRACE_LAGS_S: Final = 0.25
"""Seconds after which a server's trace is written at the latest; mta/trace.py."""

ROWS: Final = (
    ("accepted", "envelopes"),
    ("delivered", "envelopes"),
    ("deferred", "attempts"),
    ("bounced", "reports"),
    ("queued", "at the end"),
    ("peak_queued", "envelopes"),
    ("drain_time_s", "s"),
    ("p50", "s to delivery"),
    ("p95", "s to delivery"),
    ("p99", "s to delivery"),
    ("peak_rss_bytes", "bytes"),
    ("transactions", "of this mail"),
    ("connections_opened", "since the load began"),
)
"""What a replay compares, with units."""


def find_run(name: str, runs: Path = RUNS) -> Path:
    """Return the directory that a name means: a path, a run below ``runs``, or the latest.

    Raises:
        ConfigError: there is none.
    """
    for candidate in (Path(name), runs / name):
        if candidate.is_dir():
            return candidate
    if Path(name).name == LATEST:
        # A link that nobody made yet, or that points to a run which is gone.
        below = Path(name).parent if len(Path(name).parts) > 1 else runs
        found = [path.parent for path in below.glob("*/scenario.toml")]
        if found:
            return max(found, key=lambda path: (path.stat().st_mtime, path.name))
    raise ConfigError("run", value=name, problem="there is no such file or directory")


def trace_of(name: str, representation: str = "") -> Path:
    """Return the trace that a name means: the file itself, or that of a run's server.

    Raises:
        ConfigError: there is none.
    """
    if Path(name).is_file():
        return Path(name)
    found = find_run(name)
    if (found / "trace.jsonl").is_file() and not representation:
        return found / "trace.jsonl"
    return _server(found, representation)[1] / "trace.jsonl"


def replay(
    run_name: str,
    overrides: Sequence[str] = (),
    *,
    representation: str = "",
    costs: Costs | None = None,
) -> dict[str, Any]:
    """Replay a run as it was and with other settings.

    Args:
        run_name: a run directory, that of one of its servers, or ``latest``.
        overrides: settings of the server, as ``envelope=full``; none asks how good the model is.
        representation: which of the run's servers; by default the first of the scenario that was run.
        costs: of other runs; by default what is measured in this one.

    Returns:
        Tables ``then`` (recorded), ``model`` (as it was) and ``what_if`` (None without overrides), each with
        the keys of `ROWS`; ``changed`` settings; the notes of the calibration.

    Raises:
        ConfigError: no such run, a file of it is missing or damaged, or an override is wrong.
    """
    run, directory = _server(find_run(run_name), representation)
    scenario = load_scenario(run / "scenario.toml")
    header = _header(directory / "trace.jsonl")
    config = config_of(header)
    tree = {key: value for key, value in tree_of(header).items() if key not in IGNORED}
    # Before the calibration: who mistypes a key need not wait for it.
    other = model_config(tree, source=str(directory / "trace.jsonl"), overrides=overrides)
    load = loadrecord.read(directory / "load.jsonl")
    schedule, start = schedule_of(load, directory / "load.jsonl", scenario), load.start
    groups = [group.name for group in scenario.local]
    sent = dict(load.accepted())
    story = Story(sent=sent, load_start=start, groups=groups)
    costs = costs or calibrate(directory, listener=story, load=load)
    if story.heard and story.heard != list(traces_of(directory)):
        # Processes that nobody noted the start of: it is told again, in full.
        story = Story(sent=sent, load_start=start, groups=groups)
    del load, sent  # a million messages of them
    notes = list(costs.provenance.notes)
    if other.envelope != config.envelope and not costs.memory_of(other.envelope).samples:
        costs = _with_memory_of(costs, other.envelope, run, notes)
    notes += [
        f"then: up to {TRACE_LAGS_S:g} s before the SIGKILL at {each['gone_s']:.1f} s are missing, which the trace did not have yet"
        for each in restarts_of(directory)[0]
        if each.get("how") == "kill"
    ]
    then = recorded(directory, story)
    del story
    return {
        "run": str(run),
        "scenario": scenario.name,
        "representation": config.envelope,
        "local_groups": groups,
        "changed": changed(other, config),
        "then": then,
        "model": _numbers(_simulate(scenario, config, costs, schedule, start)),
        "what_if": _numbers(_simulate(scenario, other, costs, schedule, start))
        if overrides
        else None,
        "notes": notes,
    }


def _server(run: Path, representation: str) -> tuple[Path, Path]:
    """Return a run's directory and that of one of its servers.

    Raises:
        ConfigError: there is no such server, or nothing was recorded.
    """
    if (run / "trace.jsonl").is_file():
        parent = run if (run / "scenario.toml").is_file() else run.resolve().parent
        if representation and run.name != representation:
            raise ConfigError(
                "--representation", value=representation, problem=f"{run} is of another one"
            )
        return parent, run
    if not (run / "scenario.toml").is_file():
        raise ConfigError(str(run), problem="is no run: it has no scenario.toml")
    there = [name for name in REPRESENTATIONS if (run / name / "trace.jsonl").is_file()]
    if not there:
        raise ConfigError(
            str(run), problem="has no trace.jsonl: the run is not over, or was trimmed"
        )
    if representation and representation not in there:
        problem = f"the run has {', '.join(there)}"
        raise ConfigError("--representation", value=representation, problem=problem)
    if not representation:
        order = load_scenario(run / "scenario.toml").representations
        representation = next((name for name in order if name in there), there[0])
    return run, run / representation


def _header(path: Path) -> records.Record:
    try:
        with path.open("rb") as file:
            return parse(file, source=str(path)).header
    except OSError as error:
        raise ConfigError(str(path), problem=f"can't be read: {error.strerror}") from None
    except TraceError as error:
        raise ConfigError(str(path), problem=str(error)) from None


def arrivals(path: Path, scenario: Scenario) -> tuple[Schedule, float, dict[int, float]]:
    """Return the schedule as it was really sent, its start, and when each accepted message was sent.

    Args:
        path: load.jsonl.
        scenario: what was to be sent.

    Returns:
        The messages that were sent, in the order in which they were; the instant of the load's start; and
        message id -> instant.

    Raises:
        ConfigError: the file is missing or is no record of this scenario's load.
    """
    load = loadrecord.read(path)
    return schedule_of(load, path, scenario), load.start, dict(load.accepted())


def schedule_of(load: LoadRecord, path: Path, scenario: Scenario) -> Schedule:
    """Return the messages that were sent, in the order in which they were.

    Args:
        load: what was recorded.
        path: where, for errors.
        scenario: what was to be sent.

    Raises:
        ConfigError: it is no record of this scenario's load.
    """
    drawn = draw(scenario)
    numbers = np.array(load.number)
    if not len(numbers) or numbers.min() < 0 or numbers.max() >= len(drawn):
        raise ConfigError(str(path), problem="is no record of this scenario's load")
    sent = np.array(load.sent)
    # So written that NaN is not within.
    if not (np.abs(sent - load.start) <= LOAD_MAX_S).all():
        problem = "has messages that were sent a month and more from the start of the load"
        raise ConfigError(str(path), problem=problem)
    order = np.argsort(sent, kind="stable")
    return _chosen(drawn, numbers[order], np.maximum(sent[order] - load.start, 0.0))


def _chosen(drawn: Schedule, numbers: Any, due_s: Any) -> Schedule:
    """Return some messages of a schedule in another order."""
    counts = np.diff(drawn.first)[numbers]
    first = np.concatenate(([0], np.cumsum(counts)))
    # Recipient j of the new schedule is the (j - first)-th of its message in the old one.
    own = np.repeat(drawn.first[numbers] - first[:-1], counts) + np.arange(int(first[-1]))
    local = ("service_s", "failures", "fatal") if drawn.users else ()
    return replace(
        drawn,
        due_s=due_s,
        size=drawn.size[numbers],
        sender_number=drawn.sender_number[numbers],
        first=first,
        recipient_domain=drawn.recipient_domain[own],
        mailbox=drawn.mailbox[own],
        **{name: getattr(drawn, name)[numbers] for name in local},
    )


def _with_memory_of(costs: Costs, representation: str, run: Path, notes: list[str]) -> Costs:
    """Return costs that know the memory of another representation: from the same run, if it was run too."""
    directory = run / representation
    if (directory / "trace.jsonl").is_file():
        other = calibrate(directory).memory[representation]
        if other.samples:
            return replace(costs, memory={**costs.memory, representation: other})
    measured = next((one for one in costs.memory.values() if one.samples), None)
    default = Costs().memory_of(representation)
    if measured is not None:
        notes.append(f"{representation} was not run: its bytes per envelope are a default")
        default = replace(
            measured,
            envelope_bytes=default.envelope_bytes,
            body_share=default.body_share,
            in_flight_bytes=default.in_flight_bytes,
            local=default.local,
            envelope_stderr=0.0,
            samples=0,
        )
    else:
        notes.append(f"{representation} was not run: its memory is a default")
    memory: dict[str, MemoryCosts] = {**costs.memory, representation: default}
    return replace(costs, memory=memory)


def _simulate(
    scenario: Scenario, config: ModelConfig, costs: Costs, schedule: Schedule, start: float
) -> SimResult:
    return simulate(
        scenario,
        config=config,
        costs=costs,
        schedule=schedule,
        start=start,
        fingerprint=False,
        backend="heapq",  # the same run, sooner
    )


def _numbers(result: SimResult) -> dict[str, Any]:
    flat = {**result.summary(), **result.quantiles()}
    return {key: flat[key] for key, _ in ROWS} | of_model(result.local)


def table(found: dict[str, Any]) -> None:
    """Print a replay side by side."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    title = f"{found['scenario']}, envelope {found['representation']}: {found['run']}"
    sheet = Table(title=title, title_justify="left")
    sheet.add_column("")
    columns = ["then", "model", "what_if"] if found["what_if"] else ["then", "model"]
    heads = {"then": "then", "model": "model of then", "what_if": "what if"}
    for column in columns:
        sheet.add_column(heads[column], justify="right")
    sheet.add_column("")
    for key, unit in (*ROWS, *rows_of(found["local_groups"])):
        sheet.add_row(key, *(shown(found[column][key]) for column in columns), unit)
    console.print(sheet)
    for key, value in found["changed"].items():
        console.print(f"what if {key} = {json.dumps(value)}", highlight=False)
    for note in found["notes"]:
        console.print(f"note: {note}", highlight=False)


def shown(value: float | None) -> str:
    """Return a number for a table: integers whole, small ones with three digits, a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.1f}"
