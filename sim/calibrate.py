"""Measures what things cost, in recorded runs of the server.

Service is separated from waiting, because a model that is fed with waiting times would predict the
limits of the run that it learnt from. `sim.waitfit` takes off what remote hosts were scripted to take; `sim.cpufit` regresses
the process's CPU seconds on what it did; `sim.memory` explains RSS by what is queued. CPU and memory are fitted over all runs at once, the
rest is the median over the runs' servers.

Nothing here extrapolates: what the runs did not do keeps its default, and the calibration says so.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mta.core.records import TraceError
from mta.core.settings import ConfigError
from sim import cpufit, loadrecord, localcosts, waitfit
from sim.costs import Costs, Provenance, sha256_of
from sim.cpufit import NO_TLS, TlsShares
from sim.leastsquares import near_prior
from sim.loadrecord import LoadRecord
from sim.measure import Listener, measure
from sim.measured import Measured
from sim.memory import WARMED, fit_together
from sim.remote import build_hosts
from sim.result import later_trace
from sim.rows import Rows
from sim.scenario import Scenario, addresses
from sim.scenario import load as load_scenario
from sim.settings import model_config
from sim.tls import securities

Floats = npt.NDArray[np.float64]

RESTORED_MIN: Final = 1000
"""A server that is started with fewer envelopes reads them in less time than its log shows."""
READING_MIN: Final = 0.2
"""Share of the time in which a queue was read that reading it took at least, whatever else is said to have taken it."""
WARM_UP: Final = "warm-up"
"""Phase of samples in which the bench warms a server up; testbed/observe.py."""
SAMPLES_MIN: Final = 10
"""Fewer measurements of a kind say nothing."""


TROUBLE_S: Final = 0.5
"""Before and after the instants between which a disk was slow or full: the bench is late by up to a tenth of a second, and what
began then ends later."""


@dataclass(slots=True)
class _Part:
    """The files of one server of a run, read: of one process of it, if it was restarted."""

    directory: Path
    run: Path
    trace: Path
    representation: str
    measured: Measured
    samples: dict[str, Floats]
    scenario: Scenario | None
    notes: list[str]
    load: LoadRecord | None = None
    restart: dict[str, Any] | None = None
    """What the bench noted of its start; None of the first process."""
    load_start: float = 0.0
    """What those notes count from."""


def calibrate(
    *runs: Path,
    defaults: Costs | None = None,
    listener: Listener | None = None,
    load: LoadRecord | None = None,
) -> Costs:
    """Return what things cost in some runs.

    Args:
        runs: run directories, or directories of one of their servers; one that is named twice counts once.
        defaults: what to assume of what the runs did not do.
        listener: who hears the traces in the same pass, which is what takes long.
        load: the load's record, if it is read; of one server only.

    Raises:
        ConfigError: there is no trace, or one can't be read.
    """
    assert runs
    runs = tuple({run.resolve(): run for run in reversed(runs)}.values())[::-1]
    basis = defaults or Costs()
    parts = [part for run in runs for part in _parts(run, listener, load)]
    notes: list[str] = []
    windows = [
        found
        for part in parts
        if (
            found := cpufit.windows_of(
                part.measured,
                part.samples,
                basis,
                localcosts.methods(part.scenario),
                tls=_tls(part.scenario),
            )
        )
    ]
    costs, errors, explained = cpufit.fit(basis, windows, notes)
    costs = _starts(replace(costs, stderr=errors), parts, notes)
    every = [_one(part, costs) for part in _servers(parts)]
    numbers: dict[str, Any] = {
        name: _median(value, [getattr(each, name) for each in every])
        for name, value in asdict(costs).items()
        if isinstance(value, float)
    }
    memory = _memory(costs, parts, notes)
    notes += _of_servers(parts)
    hosts = [_told(run, "host") for run in runs]
    if any(host != hosts[0] for host in hosts):
        notes.append("the runs were made on different machines, or on one that changed")
    names = [run.name for run in runs]
    # Runs are told apart by their names, or if two have the same, by their paths.
    unique = len(set(names)) == len(names)
    prefix = {run: f"{run.name if unique else run}/" if len(runs) > 1 else "" for run in runs}
    provenance = Provenance(
        run=str(runs[0]),
        runs=[str(run) for run in runs],
        files={name: digest for part in parts for name, digest in _digests(part, prefix[part.run])},
        host=hosts[0],
        versions=_told(runs[0], "versions"),
        samples=sum(len(part.samples.get("t", ())) for part in parts),
        transactions=sum(len(part.measured.finished) for part in parts),
        commits=sum(len(part.measured.commits) for part in parts),
        cpu_explained=round(explained, 4),
        notes=sorted(set(notes)),
    )
    return replace(costs, **numbers, memory=memory, provenance=provenance)


def _servers(parts: Sequence[_Part]) -> list[_Part]:
    """Return one part for each server, with what all its processes measured: one that lived shortly has little to say."""
    found: dict[Path, _Part] = {}
    for part in parts:
        first = found.get(part.directory)
        found[part.directory] = (
            part if first is None else replace(first, measured=first.measured + part.measured)
        )
    return list(found.values())


def _one(part: _Part, costs: Costs) -> Costs:
    """Return the costs with what one server waited for."""
    measured, scenario, notes = part.measured, part.scenario, part.notes
    costs = _commits(costs, measured, notes)
    hosts, tls = build_hosts(scenario) if scenario else {}, _tls(scenario)
    costs = waitfit.waits(costs, measured, hosts, notes, secured=tls.hosts)
    if scenario is not None and scenario.local:
        costs = localcosts.waits(costs, measured, scenario, notes)
    sessions = scenario.load.sessions if scenario else 0
    return waitfit.clients(costs, part.load, sessions, notes, tls=tls.inbound)


def _median(default: float, found: Sequence[float]) -> float:
    """Return the median of what servers measured; who measured nothing has the default, which must not weigh."""
    measured = [value for value in found if value != default]
    return float(np.median(measured)) if measured else default


def _of_servers(parts: Sequence[_Part]) -> list[str]:
    """Return what could not be measured, and of how many servers, if of others it could."""
    said: dict[Path, set[str]] = {}
    for part in parts:
        said.setdefault(part.directory, set()).update(part.notes)
    missed = Counter(note for notes in said.values() for note in notes)
    return [
        note if count == len(said) else f"{count} of {len(said)} servers: {note}"
        for note, count in missed.items()
    ]


def _tls(scenario: Scenario | None) -> TlsShares:
    """Return which connections had a handshake."""
    if scenario is None:
        return NO_TLS
    of = securities(scenario, model_config(scenario.server, source="the run's scenario"))
    hosts: frozenset[str] = frozenset()
    if of is not None:
        hosts = frozenset(
            each.address
            for each in addresses(scenario)
            if of(scenario.destinations[each.destination].domain, each.address).handshake
        )
    return TlsShares(0.0 if scenario.load.keep else scenario.load.tls, hosts)


def _memory(costs: Costs, parts: Sequence[_Part], notes: list[str]) -> dict[str, Any]:
    """Return the memory of each representation, fitted over all servers that had it."""
    by_name: dict[str, list[dict[str, Floats]]] = {}
    for part in parts:
        by_name.setdefault(part.representation, []).append(part.samples)
    shares = {name: costs.memory_of(name).due_share for name in by_name}
    fitted = fit_together(by_name, shares)
    if len(fitted) < len(by_name):
        notes.append("the queue did not grow, or nobody watched: memory costs are defaults")
    # Local envelopes have states, which one number per envelope can't tell apart.
    return costs.memory | {
        name: replace(memory, local=costs.memory_of(name).local) for name, memory in fitted.items()
    }


# ---- files


def _parts(run: Path, listener: Listener | None, load: LoadRecord | None) -> list[_Part]:
    """Read the servers of a run."""
    if (run / "trace.jsonl").is_file():
        return list(_lives(run, run, listener, load))
    assert listener is None and load is None, "they are of one server"  # one thought
    found = sorted(path.parent for path in run.glob("*/trace.jsonl"))
    if not found:
        raise ConfigError(str(run), problem="has no trace.jsonl: nothing to calibrate with")
    return [part for each in found for part in _lives(each, run)]


def _lives(
    directory: Path,
    run: Path,
    listener: Listener | None = None,
    load: LoadRecord | None = None,
) -> Iterator[_Part]:
    """Yield what each process of a server did: one, unless it was restarted."""
    restarts, start = restarts_of(directory)
    if load is None and (directory / "load.jsonl").is_file():
        load = loadrecord.read(directory / "load.jsonl")
    for number, began in enumerate((None, *restarts), 1):
        trace = later_trace(directory / "trace.jsonl", number)
        if not trace.is_file():
            continue
        part = _read(directory, run, trace, listener, more=bool(restarts))
        part.load = load
        part.restart, part.load_start = began, start
        _forget_trouble(part)
        if part.samples and restarts:
            # While it reads its queue it does what no regression knows of.
            begin = start + began["restored_s"] if began else -math.inf
            end = start + restarts[number - 1]["gone_s"] if number <= len(restarts) else math.inf
            t = part.samples["t"]
            chosen = (t >= begin) & (t < end)
            part.samples = {name: column[chosen] for name, column in part.samples.items()}
            if began:
                # It was given its queue at once: how memory grows with a queue is seen in the first.
                del part.samples["rss_bytes"]
        yield part


def _forget_trouble(part: _Part) -> None:
    """Leave out commits of a disk that the timeline made slow or full: the model makes its own of those of a disk that is well."""
    found, well = part.measured, True
    events = sorted(part.scenario.timeline if part.scenario else (), key=lambda each: each.at_s)
    chosen = np.ones(len(found.commits), dtype=bool)
    at = np.array(found.committed) - part.load_start
    begin = 0.0
    for event in [each for each in events if each.disk]:
        if well and event.disk != "well":
            well, begin = False, event.at_s
        elif not well and event.disk == "well":
            well = True
            chosen &= ~((at >= begin - TROUBLE_S) & (at < event.at_s + TROUBLE_S))
    if not well:
        chosen &= at < begin - TROUBLE_S
    if not chosen.all():
        every, found.commits = found.commits, Rows("qqd")
        for each, is_chosen in zip(every, chosen, strict=True):
            if is_chosen:
                found.commits.append(each)


_NOTED: Final = ("gone_s", "started_s", "opened_s", "restored_s", "read_s", "envelopes")
"""What is used of the notes of a restart; `testbed.operator.Operator.restarts`."""


def restarts_of(directory: Path) -> tuple[list[dict[str, Any]], float]:
    """Return what the bench noted of restarts, and the instant that it counts from; nothing if it did not.

    Raises:
        ConfigError: the notes are there and make no sense.
    """
    path = directory / "run.json"
    try:
        notes = json.loads(path.read_bytes())
        restarts = [
            {**each, **{name: float(each[name]) for name in _NOTED}}
            for each in notes.get("restarts", ())
        ]
        start = notes["load_start"] if restarts else notes.get("load_start", 0.0)
        return restarts, float(start)
    except FileNotFoundError:
        return [], 0.0
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(str(path), problem=f"can't be used: {error}") from None


def _read(
    directory: Path, run: Path, trace: Path, listener: Listener | None, *, more: bool
) -> _Part:
    try:
        header, measured = measure(trace, listener, more=more)
    except OSError as error:
        raise ConfigError(str(trace), problem=f"can't be read: {error.strerror}") from None
    except TraceError as error:
        raise ConfigError(str(trace), problem=str(error)) from None
    notes: list[str] = []
    samples = _samples(directory / "samples.csv", notes)
    scenario = _scenario(directory, notes)
    name = str(header["representation"])
    return _Part(directory, run, trace, name, measured, samples, scenario, notes)


def _digests(part: _Part, prefix: str) -> list[tuple[str, str]]:
    """Return name and digest of each file of a server that was learnt from."""
    paths = [part.trace, part.directory / "samples.csv", part.directory / "load.jsonl"]
    return [
        (prefix + path.relative_to(part.run).as_posix(), sha256_of(path))
        for path in paths
        if path.is_file()
    ]


def _told(run: Path, key: str) -> dict[str, Any]:
    """Return what the bench wrote about where a run was made; nothing if it did not."""
    for path in (run / "begun.json", run.parent / "begun.json"):
        try:
            found = json.loads(path.read_bytes())[key]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def _samples(path: Path, notes: list[str]) -> dict[str, Floats]:
    """Return the columns of samples.csv that we use; empty if there is no such file.

    Raises:
        ConfigError: it is there and is no such table.
    """
    wanted = (
        "t",
        "rss_bytes",
        "cpu_s",
        "scheduler.envelope",
        "scheduler.envelope.inflight",
        "scheduler.envelope.scheduled",
        "scheduler.ramqueue.hold",
        "queue.bytes",
        "smtp.message",
        "smtp.session",
        "mta.session",
        "smtp.session.local",
    )
    if not path.is_file():
        notes.append("no samples.csv: CPU and memory costs are defaults")
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            names = next(reader, [])
            # A bench that was killed leaves half a line.
            rows = [row for row in reader if len(row) == len(names)]
    except OSError as error:
        raise ConfigError(str(path), problem=f"can't be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        raise ConfigError(str(path), problem="is no table") from None
    missing = [name for name in wanted[:4] if name not in names]
    if missing:
        raise ConfigError(str(path), problem=f"has no column {missing[0]}")
    found: dict[str, Floats] = {}
    for name in wanted:
        if name not in names:
            continue
        number = names.index(name)
        try:
            found[name] = np.array(
                [float(row[number]) if row[number] else math.nan for row in rows]
            )
        except ValueError as error:
            raise ConfigError(str(path), name, problem=str(error)) from None
    if "phase" in names:
        at = names.index("phase")
        warming = [number for number, row in enumerate(rows) if row[at] == WARM_UP]
        if warming:
            found[WARMED] = (np.arange(len(rows)) > warming[-1]).astype(float)
    return found


def _scenario(directory: Path, notes: list[str]) -> Scenario | None:
    """Return what was run; None if the run does not say."""
    for path in (directory / "scenario.toml", directory.parent / "scenario.toml"):
        if path.is_file():
            return load_scenario(path)
    notes.append("no scenario.toml: remote hosts count as if they answered at once")
    return None


# ---- starts


def _starts(costs: Costs, parts: Sequence[_Part], notes: list[str]) -> Costs:
    """Return the costs with what a restart took: until the door was open, and for each envelope of the queue.

    Mail is taken and sent while the queue is read, in the same loop: what that took is known by then, and taken off.
    """
    opening, reading = [], []
    for part in parts:
        restart = part.restart
        if restart is None:
            continue
        opening.append(restart["opened_s"] - restart["started_s"])
        if restart["envelopes"] >= RESTORED_MIN and restart["read_s"]:
            end = part.load_start + restart["restored_s"]
            busy_s = _busy(costs, part.measured, end - restart["read_s"], end)
            left_s = max(restart["read_s"] - busy_s, READING_MIN * restart["read_s"])
            reading.append(left_s / restart["envelopes"])
    if opening:
        costs = replace(costs, start_s=float(np.median(opening)))
        if not reading:
            notes.append("no restart had much to read: restore_s is a default")
    return replace(costs, restore_s=float(np.median(reading))) if reading else costs


def _busy(costs: Costs, measured: Measured, begin: float, end: float) -> float:
    """Return how long a loop was busy with mail between two instants, by what it costs."""
    total = 0.0
    for at, envelopes, size in measured.submitted:
        if begin <= at < end:
            total += costs.message_s + envelopes * costs.recipient_s + size * costs.byte_s
    for at, envelopes in measured.finished:
        if begin <= at < end:
            total += costs.transaction_s + envelopes * costs.delivery_s
    total += costs.connect_s * sum(begin <= at < end for at in measured.connects)
    return total + costs.deferral_s * sum(begin <= at < end for at in measured.deferrals)


# ---- the disk


def _commits(costs: Costs, measured: Measured, notes: list[str]) -> Costs:
    """Fit the time of a commit to what is in it: least squares on medians of equal batches."""
    commits = measured.commits
    if len(commits) < SAMPLES_MIN:
        notes.append("too few commits: the disk's costs are defaults")
        return costs
    # Why medians of groups? A thread that waits for the interpreter is no slow disk, and its
    # waits are far longer than the mean.
    groups: dict[tuple[int, int], list[float]] = {}
    for batch, lagging, seconds in commits:
        groups.setdefault((batch, lagging.bit_length()), []).append(seconds)
    points = [
        (key[0], (1 << key[1]) * 0.75 if key[1] else 0.0, float(np.median(each)), len(each))
        for key, each in groups.items()
    ]
    table = np.array(points)
    weight = np.sqrt(table[:, 3])
    prior = np.array([costs.commit_s, costs.commit_message_s, costs.commit_lagging_s])
    done = np.column_stack((np.ones(len(table)), table[:, 0], table[:, 1])) * weight[:, None]
    found = near_prior(done, table[:, 2] * weight, prior, cpufit.PRIOR_SPREAD).values
    return replace(
        costs,
        commit_s=float(found[0]),
        commit_message_s=float(found[1]),
        commit_lagging_s=float(found[2]),
    )


# ---- for people


def report(costs: Costs) -> None:
    """Print what was measured."""
    from rich.console import Console
    from rich.table import Table

    runs = costs.provenance.runs
    where_from = runs[0] if len(runs) == 1 else f"{len(runs)} runs"
    table = Table(title=f"costs measured in {where_from}", title_justify="left")
    for name in ("cost", "value", "± s.e.", ""):
        table.add_column(name, justify="left" if name in ("cost", "") else "right")
    for name, value in asdict(costs).items():
        if not isinstance(value, float):
            continue
        factor, unit = (1e6, "us")
        if name == "idle_share":
            factor, unit = (100.0, "%")
        elif name in ("byte_s", "sent_byte_s"):
            factor, unit = (1e9, "ns")
        error = costs.stderr.get(name)
        digits = 0 if unit == "us" else 1
        table.add_row(
            name,
            f"{value * factor:,.{digits}f}",
            "" if error is None else f"{error * factor:,.{digits}f}",
            unit,
        )
    for name, memory in costs.memory.items():
        if memory.samples:
            table.add_row(
                f"memory.{name}.envelope_bytes",
                f"{memory.envelope_bytes:,.0f}",
                f"{memory.envelope_stderr:,.0f}",
                "B",
            )
            if memory.in_flight_bytes:
                table.add_row(
                    f"memory.{name}.in_flight_bytes",
                    f"{memory.in_flight_bytes:,.0f}",
                    f"{memory.in_flight_stderr:,.0f}",
                    "B",
                )
            table.add_row(
                f"memory.{name}.base_bytes",
                f"{memory.base_bytes / 2**20:,.1f}",
                f"{memory.base_stderr / 2**20:,.1f}",
                "MiB",
            )
    console = Console()
    console.print(table)
    where = costs.provenance
    console.print(
        f"{where.transactions:,} transactions, {where.commits:,} commits, {where.samples:,} samples;"
        f" CPU per second explained: {where.cpu_explained:.0%}"
    )
    for note in where.notes:
        console.print(f"note: {note}", highlight=False)
