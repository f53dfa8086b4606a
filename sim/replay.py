"""What would this run have been with other settings?

A replay takes a recorded run: its scenario, the instants at which its messages were really sent, and
costs measured in it. It runs the model with the settings as they were, beside what was recorded, and
with other settings. The difference between the two models is the answer; the difference between the
first model and the record says how far to trust it.

Retries are never replayed: the model makes its own, because a limit that changes changes them.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mta.core import records
from mta.core.envelopes import REPRESENTATIONS
from mta.core.ids import EvpId, MsgId, msgid_of
from mta.core.instructions import (
    DeferEnvelope,
    OpenConnection,
    Removal,
    RemoveEnvelope,
    SendBounce,
    StartTransaction,
)
from mta.core.records import TraceError
from mta.core.settings import ConfigError, changed
from mta.core.stimuli import EnvelopeRestored, MessageSubmitted
from sim.calibrate import calibrate
from sim.costs import Costs, MemoryCosts
from sim.records import Retrace, config_of, tree_of
from sim.replaylocal import LocalStory, of_model, rows_of
from sim.result import later_trace
from sim.runner import SAMPLE_S, SimResult, simulate
from sim.scenario import Scenario
from sim.scenario import load as load_scenario
from sim.settings import IGNORED, ModelConfig, model_config
from sim.workload import Schedule, draw

if TYPE_CHECKING:
    from mta.core.envelopes.base import EnvelopeStore

RUNS: Final = Path("runs")
"""Where the bench keeps its runs."""

LATEST: Final = "latest"

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
    ("transactions", ""),
    ("connections_opened", ""),
)
"""What a replay compares, with units."""

_ACCEPTED: Final = re.compile(r"\b([0-9a-f]{8}) Message accepted")
"""What our server answers to the final dot."""


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
    schedule, start, sent = arrivals(directory / "load.jsonl", scenario)
    costs = costs or calibrate(directory)
    notes = list(costs.provenance.notes)
    if other.envelope != config.envelope and not costs.memory_of(other.envelope).samples:
        costs = _with_memory_of(costs, other.envelope, run, notes)
    groups = [group.name for group in scenario.local]
    then = recorded(directory, sent=sent, load_start=start, groups=groups)
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


def traces_of(directory: Path) -> Iterator[Path]:
    """Yield the traces of a server: one for each of its processes, the first whether it is there or not."""
    number = 1
    path = later_trace(directory / "trace.jsonl", number)
    while number == 1 or path.is_file():
        yield path
        number += 1
        path = later_trace(directory / "trace.jsonl", number)


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
            return records.parse(file, source=str(path)).header
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
    start = 0.0
    numbers: list[int] = []
    instants: list[float] = []
    sent: dict[int, float] = {}
    try:
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break  # A load that was killed leaves half a line.
                record = json.loads(line)
                if record["kind"] == "start":
                    start = float(record["load_start"])
                elif record["kind"] == "message":
                    numbers.append(int(record["seq"]))
                    instants.append(float(record["sent"]))
                    found = _ACCEPTED.search(record["reply"])
                    if found and record["code"] == 250:
                        sent[int(found[1], 16)] = float(record["sent"])
    except OSError as error:
        raise ConfigError(str(path), problem=f"can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(str(path), problem=f"is no record of a load: {error!r}") from None
    drawn = draw(scenario)
    if not numbers or min(numbers) < 0 or max(numbers) >= len(drawn):
        raise ConfigError(str(path), problem="is no record of this scenario's load")
    order = np.argsort(np.array(instants), kind="stable")
    chosen = np.array(numbers)[order]
    due_s = np.maximum(np.array(instants)[order] - start, 0.0)
    return _chosen(drawn, chosen, due_s), start, sent


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


def recorded(
    directory: Path,
    *,
    sent: dict[int, float] | None = None,
    load_start: float = 0.0,
    groups: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what a trace says that a run came to, with the keys of `ROWS`, and of `sim.replaylocal` for local mail.

    Args:
        directory: of one server.
        sent: when each message was sent, by message id; without it the time to delivery counts from the
            commit.
        load_start: what came before belongs to the warm-up.
        groups: names of the scenario's local groups.

    Raises:
        ConfigError: the trace is missing or damaged.
    """
    counts = dict.fromkeys(("accepted", "delivered", "deferred", "bounced"), 0)
    latency: list[float] = []
    began: dict[int, float] = {}
    series: list[int] = []
    emptied_at: float | None = None
    transactions = opened = 0
    local = LocalStory(groups)
    delivered: set[EvpId] = set()
    lost: set[MsgId] = set()
    """Messages that no trace has the beginning of."""
    paths = list(traces_of(directory))
    path, ends = paths[0], len(paths) > 1
    due = load_start
    store: EnvelopeStore
    try:
        for path in paths:
            with path.open("rb") as file:
                trace = records.parse(file, source=str(path))
                core = Retrace(trace.header)
                store = core.engine.store
                for record in trace.records:
                    at = record["t"]
                    while due <= at and (series or at >= load_start):
                        series.append(len(store))
                        due += SAMPLE_S
                    step = core.step(record)
                    if step is None:
                        continue
                    t, stimulus, instructions = step
                    if type(stimulus) is MessageSubmitted and t >= load_start:
                        local.submitted(stimulus, t)
                        began[stimulus.msgid] = (sent or {}).get(stimulus.msgid, t)
                        if stimulus.transaction.sender:
                            counts["accepted"] += len(stimulus.recipients)
                    elif type(stimulus) is EnvelopeRestored and stimulus.created_at >= load_start:
                        # A process that was killed took the end of its trace along.
                        msgid = msgid_of(stimulus.evpid)
                        if msgid not in began or msgid in lost:
                            lost.add(msgid)
                            began[msgid] = (sent or {}).get(msgid, stimulus.created_at)
                            counts["accepted"] += bool(stimulus.transaction.sender)
                    for instruction in instructions:
                        if groups:
                            local.told(instruction, t)
                        match instruction:
                            case RemoveEnvelope(evpid, Removal.DELIVERED, _) if (
                                msgid_of(evpid) in began
                            ):
                                if ends:
                                    if evpid in delivered:
                                        continue  # once more, after a restart
                                    delivered.add(evpid)
                                counts["delivered"] += 1
                                latency.append(t - began[msgid_of(evpid)])
                            case DeferEnvelope():
                                # Without a status it was sent back untried: a full hold queue.
                                counts["deferred"] += bool(instruction.status)
                            case SendBounce(msgid, kind, reported):
                                counts["bounced"] += 1
                                if kind.is_success and msgid in began:
                                    counts["delivered"] += len(reported)
                                    latency.extend([t - began[msgid]] * len(reported))
                            case StartTransaction():
                                transactions += 1
                            case OpenConnection():
                                opened += 1
                    emptied_at = None if len(store) else emptied_at or t
    except OSError as error:
        raise ConfigError(str(path), problem=f"can't be read: {error.strerror}") from None
    except (TraceError, AssertionError) as error:
        problem = str(error) or "not what this core would have been told"
        raise ConfigError(str(path), problem=problem) from None
    quantiles: dict[str, float | None] = dict.fromkeys(("p50", "p95", "p99"))
    if latency:
        values = np.percentile(latency, (50, 95, 99), method="inverted_cdf")
        quantiles = dict(zip(quantiles, map(float, values), strict=True))
    return {
        **counts,
        "queued": len(store),
        "peak_queued": max(series, default=0),
        "drain_time_s": None if emptied_at is None else emptied_at - load_start,
        **quantiles,
        "peak_rss_bytes": _peak_rss(directory / "samples.csv"),
        "transactions": transactions,
        "connections_opened": opened,
        **local.rows(),
    }


def _peak_rss(path: Path) -> int | None:
    import csv

    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        values = [row.get("rss_bytes") for row in csv.DictReader(file)]
    try:
        return max((int(value) for value in values if value), default=None)
    except ValueError as error:
        raise ConfigError(str(path), "rss_bytes", problem=str(error)) from None


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
        scenario, config=config, costs=costs, schedule=schedule, start=start, fingerprint=False
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
