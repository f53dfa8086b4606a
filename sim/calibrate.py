"""Measures what things cost, in a recorded run of the server.

Service is separated from waiting, because a model that is fed with waiting times would predict the
limits of the run that it learnt from. Of durations of transactions and connections (`sim.measure`) what
the remote host was scripted to take is taken off, and lower quartiles stand for the time without a
queue: three of four may have waited. CPU seconds of the process are regressed on what it did; where the run can't tell two costs apart, their
ratio stays that of the defaults (a ridge towards them). Memory is a line through RSS against what is queued.

Nothing here extrapolates: what a run did not do keeps its default, and the calibration says so.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mta.core.records import TraceError
from mta.core.settings import ConfigError
from sim import localcosts
from sim.costs import Costs, Provenance, sha256_of
from sim.measure import Measured, measure
from sim.memory import fit
from sim.outbound import PEER
from sim.remote import RemoteHost, build_hosts
from sim.scenario import Scenario
from sim.scenario import load as load_scenario

Floats = npt.NDArray[np.float64]

WINDOW_S: Final = 1.0
"""Grain of the regression of CPU time: /proc counts in hundredths of a second."""
PRIOR_SPREAD: Final = 0.5
"""How far a cost may lie from its default, relative to it, before the run has to insist: one standard deviation."""
IDLE_PRIOR: Final = 0.01
"""Share of its time that a server needs while it is watched and has nothing to do."""
REMOTE_DRAWS: Final = 1000
"""Transactions drawn from a scripted host to learn how long it takes."""
QUICK: Final = 0.25
"""Quantile that stands for the time without a queue."""
WAITED_S: Final = 0.005
"""A message that is sent so much later than planned has waited for a client."""
WAITED_MIN: Final = 50
"""Fewer of them say nothing."""
SAMPLES_MIN: Final = 10
"""Fewer measurements of a kind say nothing."""

_REGRESSED: Final = (
    "idle_share",
    "message_s",
    "recipient_s",
    "transaction_s",
    "delivery_s",
    "deferral_s",
    "local_s",
)
_GO_WITH: Final = {
    "session_s": "message_s",
    "byte_s": "message_s",
    "connect_s": "transaction_s",
    "local_rcpt_s": "local_s",
    "fork_s": "local_s",
    "local_done_s": "local_s",
}
"""Costs that keep their ratio to one that is regressed, because runs do both in step."""


def calibrate(run: Path, *, defaults: Costs | None = None) -> Costs:
    """Return what things cost in a run.

    Args:
        run: a run directory, or the directory of one of its servers.
        defaults: what to assume of what the run did not do.

    Raises:
        ConfigError: there is no trace, or one can't be read.
    """
    if (run / "trace.jsonl").is_file():
        return _one(run, run, defaults or Costs())
    parts = sorted(path.parent for path in run.glob("*/trace.jsonl"))
    if not parts:
        raise ConfigError(str(run), problem="has no trace.jsonl: nothing to calibrate with")
    return _merged([_one(part, run, defaults or Costs()) for part in parts], run)


def _merged(found: Sequence[Costs], run: Path) -> Costs:
    """Return the median of each cost over servers, and the memory of each."""
    first = found[0]
    numbers = {
        name: float(np.median([getattr(each, name) for each in found]))
        for name, value in asdict(first).items()
        if isinstance(value, float)
    }
    memory = dict(first.memory)
    for each in found:
        memory.update({name: one for name, one in each.memory.items() if one.samples})
    sources = [each.provenance for each in found]
    provenance = Provenance(
        run=str(run),
        files={name: digest for each in sources for name, digest in each.files.items()},
        samples=sum(each.samples for each in sources),
        transactions=sum(each.transactions for each in sources),
        commits=sum(each.commits for each in sources),
        cpu_explained=min(each.cpu_explained for each in sources),
        notes=sorted({note for each in sources for note in each.notes}),
    )
    return replace(first, **numbers, memory=memory, provenance=provenance)


def _one(directory: Path, run: Path, defaults: Costs) -> Costs:
    """Calibrate with the files of one server."""
    trace = directory / "trace.jsonl"
    try:
        header, measured = measure(trace)
    except OSError as error:
        raise ConfigError(str(trace), problem=f"can't be read: {error.strerror}") from None
    except TraceError as error:
        raise ConfigError(str(trace), problem=str(error)) from None
    notes: list[str] = []
    samples = _samples(directory / "samples.csv", notes)
    scenario = _scenario(directory, notes)
    methods = localcosts.methods(scenario)
    costs, explained = _cpu(defaults, measured, samples, methods, notes)
    costs = _commits(costs, measured, notes)
    costs = _waits(costs, measured, build_hosts(scenario) if scenario else {}, notes)
    if scenario is not None and scenario.local:
        costs = localcosts.waits(costs, measured, scenario, notes)
    sessions = scenario.load.sessions if scenario else 0
    costs = _clients(costs, directory / "load.jsonl", sessions, notes)
    memory = fit(samples)
    if memory is None:
        notes.append("the queue did not grow, or nobody watched: memory costs are defaults")
    if memory is not None:
        representation = str(header["representation"])
        # Local envelopes have states, which one number per envelope can't tell apart.
        memory = replace(memory, local=defaults.memory_of(representation).local)
        costs = replace(costs, memory={**costs.memory, representation: memory})
    paths = [directory / name for name in ("trace.jsonl", "samples.csv", "load.jsonl")]
    provenance = Provenance(
        run=str(run),
        files={
            path.relative_to(run).as_posix(): sha256_of(path) for path in paths if path.is_file()
        },
        samples=len(samples.get("t", ())),
        transactions=len(measured.finished),
        commits=len(measured.commits),
        cpu_explained=round(explained, 4),
        notes=notes,
    )
    return replace(costs, provenance=provenance)


# ---- files


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
        "queue.bytes",
        "smtp.message",
        "smtp.session.local",
    )
    if not path.is_file():
        notes.append("no samples.csv: CPU and memory costs are defaults")
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        names = next(reader, [])
        # A bench that was killed leaves half a line.
        rows = [row for row in reader if len(row) == len(names)]
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
    return found


def _scenario(directory: Path, notes: list[str]) -> Scenario | None:
    """Return what was run; None if the run does not say."""
    for path in (directory / "scenario.toml", directory.parent / "scenario.toml"):
        if path.is_file():
            return load_scenario(path)
    notes.append("no scenario.toml: remote hosts count as if they answered at once")
    return None


# ---- CPU


def _cpu(
    defaults: Costs,
    measured: Measured,
    samples: Mapping[str, Floats],
    methods: Mapping[str, str],
    notes: list[str],
) -> tuple[Costs, float]:
    """Regress CPU time per window on what was done in it; return costs and R squared.

    The process has two threads, the event loop and the queue's writer. They share one interpreter, and so
    one server of the model; what SQLite does without the interpreter is counted as if it did not.
    """
    if len(samples.get("t", ())) < SAMPLES_MIN:
        notes.append("too few samples: CPU costs are defaults")
        return defaults, 0.0
    done, spent = _windows(measured, samples, defaults, methods)
    prior = np.array(
        [IDLE_PRIOR, *(getattr(defaults, name) for name in _REGRESSED[1:])], dtype=float
    )
    if len(spent) < SAMPLES_MIN or not spent.sum() > 0:
        notes.append("the run is too short: CPU costs are defaults")
        return defaults, 0.0
    # The machine first: one factor for all.
    guess = done @ prior
    prior = prior * max(float(guess @ spent) / float(guess @ guess), 0.01)
    noise = float(np.std(spent - done @ prior)) or 1e-3
    weights = noise / (PRIOR_SPREAD * prior)
    found = _ridge(done, spent, prior, weights)
    fitted = done @ found
    # What was used in all is known best of all.
    found = found * (float(spent.sum()) / float(fitted.sum()))
    residual = spent - done @ found
    spread = float(((spent - spent.mean()) ** 2).sum())
    explained = 1 - float((residual**2).sum()) / spread if spread > 0 else 0.0
    values = dict(zip(_REGRESSED, map(float, found), strict=True))
    values["idle_share"] = min(values["idle_share"], 0.5)
    for name, leader in _GO_WITH.items():
        values[name] = getattr(defaults, name) * values[leader] / getattr(defaults, leader)
    changes: dict[str, Any] = dict(values)
    return replace(defaults, **changes), max(explained, 0.0)


def _windows(
    measured: Measured,
    samples: Mapping[str, Floats],
    defaults: Costs,
    methods: Mapping[str, str],
) -> tuple[Floats, Floats]:
    """Return float64[window, cost] of what was done, and float64[window] of CPU seconds."""
    t, cpu_s = samples["t"], samples["cpu_s"]
    known = np.isfinite(t) & np.isfinite(cpu_s)
    t, cpu_s = t[known], cpu_s[known]
    # Every fifth sample or so: the edges of the windows are instants of samples.
    step = max(1, round(WINDOW_S / max(float(np.median(np.diff(t))), 1e-3)))
    edges, cpu_s = t[::step], cpu_s[::step]

    def per_window(instants: Sequence[float], amounts: Sequence[float] | None = None) -> Floats:
        order = np.asarray(instants, dtype=float)
        weights = np.ones(len(order)) if amounts is None else np.asarray(amounts, dtype=float)
        total = np.concatenate(([0.0], np.cumsum(weights)))
        counted: Floats = np.diff(total[np.searchsorted(order, edges)])
        return counted

    submitted = [at for at, _, _ in measured.submitted]
    # A message brings its bytes and, in most runs, its connection; see `_GO_WITH`.
    weight = [
        1 + (defaults.session_s + defaults.byte_s * size) / defaults.message_s
        for _, _, size in measured.submitted
    ]
    finished = [at for at, _ in measured.finished]
    connect = defaults.connect_s / defaults.transaction_s
    columns = (
        np.diff(edges),
        per_window(submitted, weight),
        per_window(submitted, [count for _, count, _ in measured.submitted]),
        per_window(finished) + connect * per_window(measured.connects),
        per_window(finished, [count for _, count in measured.finished]),
        per_window(measured.deferrals),
        per_window(
            [at for at, _, _ in measured.delivered],
            [localcosts.units(defaults, methods, user) for _, _, user in measured.delivered],
        ),
    )
    return np.column_stack(columns), np.diff(cpu_s)


def _ridge(done: Floats, spent: Floats, prior: Floats, weights: Floats) -> Floats:
    """Return the costs that explain what was spent, near the prior; none below a tenth of it."""
    free = np.ones(len(prior), dtype=bool)
    found = prior.copy()
    for _ in range(len(prior)):
        rows = np.vstack((done[:, free], np.diag(weights[free])))
        target = np.concatenate((spent - done[:, ~free] @ found[~free], (weights * prior)[free]))
        found[free] = np.linalg.lstsq(rows, target, rcond=None)[0]
        low = free & (found < 0.1 * prior)
        if not low.any():
            break
        found[low] = 0.1 * prior[low]
        free &= ~low
        if not free.any():
            break
    return found


# ---- the disk


def _commits(costs: Costs, measured: Measured, notes: list[str]) -> Costs:
    """Fit the time of a commit to what is in it: least squares on medians of equal batches."""
    commits = np.array(measured.commits, dtype=float)
    if len(commits) < SAMPLES_MIN:
        notes.append("too few commits: the disk's costs are defaults")
        return costs
    batch, lagging, seconds = commits.T
    # Why medians of groups? A thread that waits for the interpreter is no slow disk, and its
    # waits are far longer than the mean.
    groups: dict[tuple[int, int], list[float]] = {}
    for b, n, s in zip(batch, lagging, seconds, strict=True):
        groups.setdefault((int(b), int(n).bit_length()), []).append(float(s))
    points = [
        (key[0], (1 << key[1]) * 0.75 if key[1] else 0.0, float(np.median(each)), len(each))
        for key, each in groups.items()
    ]
    table = np.array(points)
    weight = np.sqrt(table[:, 3])
    prior = np.array([costs.commit_s, costs.commit_message_s, costs.commit_lagging_s])
    done = np.column_stack((np.ones(len(table)), table[:, 0], table[:, 1])) * weight[:, None]
    target = table[:, 2] * weight
    guess = done @ prior
    prior = prior * max(float(guess @ target) / float(guess @ guess), 0.01)
    noise = float(np.std(target - done @ prior)) or 1e-6
    found = _ridge(done, target, prior, noise / (PRIOR_SPREAD * prior))
    return replace(
        costs,
        commit_s=float(found[0]),
        commit_message_s=float(found[1]),
        commit_lagging_s=float(found[2]),
    )


# ---- others


def _waits(
    costs: Costs, measured: Measured, hosts: Mapping[str, RemoteHost], notes: list[str]
) -> Costs:
    """Return the time of the network and of other processes: what is left of the quicker ones.

    Quantiles do not add up, but the lower quartile of a sum lies near the sum of one part's quartile and the other's
    constant, which is what the network is next to a scripted delay.
    """
    if len(measured.transactions) < SAMPLES_MIN:
        notes.append("too few transactions: network_s is a default")
    else:
        left = _beside(
            [
                (seconds - costs.transaction_s - costs.delivery_s * count, address)
                for seconds, count, address in measured.transactions
            ],
            lambda address: _scripted_transaction(hosts.get(address)),
        )
        costs = replace(costs, network_s=left)
    if len(measured.connected) < SAMPLES_MIN:
        notes.append("too few connections: connect_network_s is a default")
    else:
        left = _beside(
            [(seconds - costs.connect_s, address) for seconds, address in measured.connected],
            lambda address: _scripted_connect(hosts.get(address)),
        )
        costs = replace(costs, connect_network_s=left)
    misses = [seconds for seconds in measured.lookups if seconds > 1e-3]
    if misses:
        costs = replace(costs, lookup_network_s=max(0.0, min(misses) - costs.lookup_s))
    return costs


def _beside(
    measured: Sequence[tuple[float, str]], scripted: Callable[[str], Sequence[float]]
) -> float:
    """Return what the quicker ones took beside what their hosts were scripted to take; not below 0.

    Args:
        measured: (seconds, address) of each.
        scripted: returns draws of what the host at an address takes.
    """
    by_address: dict[str, list[float]] = {}
    for seconds, address in measured:
        by_address.setdefault(address, []).append(seconds)
    left = 0.0
    for address, each in by_address.items():
        drawn = scripted(address)
        quick = float(np.quantile(each, QUICK)) - (
            float(np.quantile(drawn, QUICK)) if drawn else 0.0
        )
        left += quick * len(each) / len(measured)
    return max(left, 0.0)


BEFORE_START: Final = -1e6
"""Scenario time at which no outage of a scenario has begun, with room for every draw."""


def _scripted_transaction(host: RemoteHost | None) -> list[float]:
    """Return draws of a scripted host's part of a transaction; none if it never takes one."""
    if host is None:
        return []
    drawn = []
    now = BEFORE_START
    for _ in range(REMOTE_DRAWS):
        conn, verdict = host.connect(PEER, now)
        if verdict.reply is not None and not verdict.close:
            hello = host.command(conn, "EHLO", "relay", now + 10)
            if hello.reply is not None and hello.reply.code < 400:
                verdict_ = host.transaction(
                    conn, "sender@calibrate.test", ("rcpt@calibrate.test",), 4096, now + 20
                )
                if math.isfinite(verdict_.duration_s):
                    drawn.append(verdict_.duration_s)
        host.disconnect(conn, now + 400)
        now += 1000
    return drawn


def _scripted_connect(host: RemoteHost | None) -> list[float]:
    """Return draws of a scripted host's time until EHLO is answered."""
    if host is None:
        return []
    drawn = []
    now = BEFORE_START
    for _ in range(REMOTE_DRAWS):
        conn, greeting = host.connect(PEER, now)
        if greeting.reply is not None and not greeting.close:
            hello = host.command(conn, "EHLO", "relay", now + 10)
            if hello.reply is not None:
                seconds = greeting.due_at(0, 0) + hello.due_at(0, 0)
                drawn.append(seconds)
        host.disconnect(conn, now + 400)
        now += 1000
    return drawn


class _Dialogue(NamedTuple):
    """One message as its client saw it."""

    scheduled: float
    sent: float
    done: float
    recipients: int


def _clients(costs: Costs, path: Path, sessions: int, notes: list[str]) -> Costs:
    """Return the clients' own time: what a dialogue took beside our CPU and the commit."""
    if not path.is_file():
        notes.append("no load.jsonl: the clients' times are defaults")
        return costs
    try:
        dialogues = list(_dialogues(path))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(str(path), problem=f"is no record of a load: {error}") from None
    if len(dialogues) < SAMPLES_MIN:
        notes.append("too few messages: the clients' times are defaults")
        return costs
    by_count: dict[int, list[float]] = {}
    for each in dialogues:
        by_count.setdefault(each.recipients, []).append(each.done - each.sent)
    counts = np.array(sorted(by_count), dtype=float)
    quick = np.array([float(np.quantile(by_count[int(count)], QUICK)) for count in counts])
    weight = np.sqrt([len(by_count[int(count)]) for count in counts])
    if len(counts) > 1:
        table = np.column_stack((np.ones(len(counts)), counts)) * weight[:, None]
        fixed, each_s = map(float, np.linalg.lstsq(table, quick * weight, rcond=None)[0])
    else:
        each_s = costs.client_recipient_s + costs.recipient_s
        fixed = float(quick[0]) - each_s * float(counts[0])
    # A message may meet a commit, of which it waits for the end; these are the quicker ones.
    ours = costs.session_s + costs.message_s + 1.25 * costs.commit_s
    closing = _closing(dialogues, sessions)
    if closing is None:
        notes.append("clients never had to wait for each other: client_close_s is a default")
        closing = costs.client_close_s
    return replace(
        costs,
        client_s=max(0.0, fixed - ours),
        client_recipient_s=max(0.0, each_s - costs.recipient_s),
        client_close_s=closing,
    )


def _dialogues(path: Path) -> Iterator[_Dialogue]:
    """Yield the messages that were accepted at the first try."""
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return  # A load that was killed leaves half a line.
            record = json.loads(line)
            if record["kind"] == "message" and record["code"] == 250 and record["attempts"] == 1:
                yield _Dialogue(
                    record["scheduled"], record["sent"], record["done"], len(record["rcpts"])
                )


def _closing(dialogues: Sequence[_Dialogue], sessions: int) -> float | None:
    """Return how long a client is busy after its 250, by Little's law; None if that can't be seen.

    While messages wait for a client, every session is in a dialogue or closing its connection. So
    the number that is closing is known, and so is the rate at which they begin to.
    """
    sent = np.sort([each.sent for each in dialogues])
    done = np.sort([each.done for each in dialogues])
    waited = np.sort([each.sent for each in dialogues if each.sent - each.scheduled > WAITED_S])
    if len(waited) < WAITED_MIN or not sessions:
        return None
    running = np.searchsorted(sent, waited, side="right") - np.searchsorted(
        done, waited, side="right"
    )
    gaps = np.diff(waited)
    gaps = gaps[gaps < 10 * float(np.median(gaps)) + 1e-6]
    return max(0.0, sessions - float(running.mean())) * float(gaps.mean())


# ---- for people


def report(costs: Costs) -> None:
    """Print what was measured."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"costs measured in {costs.provenance.run}", title_justify="left")
    for name in ("cost", "value", ""):
        table.add_column(name, justify="right" if name == "value" else "left")
    for name, value in asdict(costs).items():
        if not isinstance(value, float):
            continue
        if name == "idle_share":
            table.add_row(name, f"{value:.1%}", "")
        elif name in ("byte_s", "sent_byte_s"):
            table.add_row(name, f"{value * 1e9:,.1f}", "ns")
        else:
            table.add_row(name, f"{value * 1e6:,.0f}", "us")
    for name, memory in costs.memory.items():
        if memory.samples:
            value = f"{memory.envelope_bytes:,.0f} ± {memory.envelope_stderr:,.0f}"
            table.add_row(f"memory.{name}.envelope_bytes", value, "B")
            table.add_row(f"memory.{name}.base_bytes", f"{memory.base_bytes / 2**20:,.1f}", "MiB")
    console = Console()
    console.print(table)
    where = costs.provenance
    console.print(
        f"{where.transactions:,} transactions, {where.commits:,} commits, {where.samples:,} samples;"
        f" CPU per second explained: {where.cpu_explained:.0%}"
    )
    for note in where.notes:
        console.print(f"note: {note}", highlight=False)
