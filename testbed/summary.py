"""What a run comes to: numbers out of a run directory, put into ``summary.json``.

Everything is computed from files, so that `testbed report` on an old run says the same. Keys are stable:
scripts read them. Bytes per envelope come in two ways that must not be mixed up:

- ``bytes_per_envelope``: the slope of the server's RSS on queued envelopes while the queue grew in this run (from 40 %
  of its peak on, see `testbed.fit.rising`), with its standard error. The whole server: what the queue costs in caches, allocator and database besides the store.
For other servers it is the slope of PSS, summed over their processes, on what they have in their queue
(``queue_unit``); so is every ``rss`` of theirs.
- ``store_bytes_per_envelope``: RSS of a fresh process that only fills the store with 100,000 envelopes of
  this scenario (`testbed.footprint`).
"""

import itertools
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np

from sim.scenario import Scenario, to_dict
from sim.timeline import SIGNALS
from testbed.fit import Floats, line, rising
from testbed.gates import expectations
from testbed.rundir import Notes, Run, Samples
from testbed.untested import untested

SCHEMA: Final = 1
"""Of summary.json. It grows when a key changes its meaning or goes away."""

SUMMED: Final = ("accepted", "delivered", "bounced", "queued", "lost", "duplicates", "altered")
"""What the ledger counts and the summary has at its top, summed over representations."""

STEADY_ENVELOPES: Final = 4000
"""Below this peak the slope of a whole server's memory says little about envelopes: what fills up first is a few MiB."""

FOREIGN_SHARE: Final = 0.15
"""Above this share of the machine, what other programs did is part of what was measured."""

COUNTED: Final = (
    "offered",
    "refused",
    "reordered",
    "unexpected",
    "unacknowledged",
    "unaccounted",
    "duplicates_client",
    "messages_accepted",
    "messages_delivered",
)
"""What each server's part has of the ledger besides; a ledger of before there was such a count has none."""

LATE_STATUS: Final = 3
"""Exit status of a load generator that was later than ``load.lag_max_s``."""
LATE_S: Final = 0.05
"""A generator that is later than this at its 99th percentile did not offer the load that the run is about
(facts of open-loop load generation: Schroeder, Wierman, Harchol-Balter, NSDI 2006)."""

AGENT: Final = "process."
"""Begins the names of gauges about one process of a server: ``process.scheduler.uss_bytes``."""

PACKAGES: Final = (
    "mta-testbed",
    "aiosmtpd",
    "dnspython",
    "locust",
    "msgspec",
    "numpy",
    "simpy",
    "uvloop",
)


def summarise(
    run: Run,
    *,
    footprints: Mapping[str, Any],
    model: Mapping[str, Any] | None,
    syncs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of summary.json.

    Args:
        run: the directory, with ledgers and samples.
        footprints: what `testbed.footprint` measured, by representation.
        model: what `testbed.model` found; None if it was not asked.
        syncs: what `testbed.syncs` counted, by representation.
    """
    scenario = run.scenario
    ledgers = run.ledgers
    parts: dict[str, Any] = {}
    failures: list[str] = []
    warnings: list[str] = []
    doubtful: dict[str, str] = {}
    for name in run.representations:
        notes, samples = run.notes(name), run.samples(name)
        doubtful[name] = (
            untested(scenario.timeline, notes, samples) if notes.target == "ours" else ""
        )
        parts[name] = {
            **{key: ledgers[name][key] for key in SUMMED},
            **counted(ledgers[name], notes),
            **measured(samples, notes, ledgers[name]),
            **_footprint(footprints.get(name)),
            "fsyncs_per_message": ((syncs or {}).get(name) or {}).get("sum"),
        }
        found = notes, ledgers[name], parts[name]
        failures += [f"{name}: {problem}" for problem in problems(*found)]
        warnings += [f"{name}: {doubt}" for doubt in doubts(*found)]
    summary: dict[str, Any] = {
        "schema": SCHEMA,
        **{key: sum(part[key] for part in parts.values()) for key in SUMMED},
        "representations": parts,
        "model": dict(model) if model is not None else None,
        "failures": failures,
        "warnings": warnings,
        "seed": scenario.seed,
        "scenario": to_dict(scenario),
    }
    summary["expected"] = expectations(scenario.expects, summary, doubtful)
    warnings += [
        f"{each['server']}: not as expected: {each['condition']}: {each['value']}"
        for each in summary["expected"]
        if not each["holds"]
    ]
    return summary


def as_told(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return a summary as people see it: no bytes per envelope of a whole server whose queue was too short to tell.

    The file has them all the same, for `--fail-if` and `testbed compare`, whose users know what they ask for.
    """
    unknown = {"bytes_per_envelope": None, "bytes_per_envelope_stderr": None}
    return {
        **summary,
        "representations": {
            name: {**part, **unknown} if part["peak_queue"] < STEADY_ENVELOPES else part
            for name, part in summary["representations"].items()
        },
    }


def counted(ledger: Mapping[str, Any], notes: Notes) -> dict[str, Any]:
    """Return counts of the ledger, and what they come to for each message, recipient and second."""
    messages = int(ledger["messages_accepted"])
    arrivals = (
        int(ledger["delivered"]) + int(ledger["duplicates"]) + int(ledger["duplicates_client"])
    )
    span = ledger["last_delivery_s"]
    # When the load's last message was settled; its process takes a moment more to end.
    load_s = float(notes.load.get("ended") or notes.load_end) - notes.load_start
    return {
        **{key: ledger.get(key, 0) for key in COUNTED},
        "recipients_per_transaction": _ratio(arrivals, int(ledger["messages_delivered"])),
        "messages_per_s": _ratio(messages, max(span or 0.0, load_s)),
        "accepted_per_s": _ratio(messages, load_s),
        "destinations": {
            name: {key: value for key, value in account.items() if not key.endswith("_latency_s")}
            for name, account in ledger.get("destinations", {}).items()
        },
    }


def _ratio(value: float | None, count: float) -> float | None:
    return round(value / count, 4) if value is not None and count > 0 else None


def measured(samples: Samples, notes: Notes, ledger: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the samples and the ledger of one server say."""
    load = samples.at_or_after(0.0)
    # Of a hundred processes that share their program, only the sum of their parts means something.
    memory = "rss_bytes" if notes.target == "ours" else "pss_bytes"
    queued, rss, t = load.queue, load[memory], load["t"]
    before = samples[memory][samples["t"] < 0]
    # The last samples before the load: warmed up, nothing to do.
    base = float(np.median(before[-3:])) if len(before) else float(rss[0])
    base_uss = _median_before(samples, "uss_bytes")
    # Servers that do not tell envelopes do not keep them either: theirs is the memory of processes.
    tells = "scheduler.envelope" in load
    # What a process kept went with it: only the first one's memory is a matter of its queue alone.
    whole = load["t"] < notes.restarts[0]["gone_s"] if notes.restarts else load["t"] < np.inf
    grows = rising(queued[whole]) if tells else slice(0, 0)
    fitted = line(queued[grows], rss[grows])
    private = line(queued[grows], load["uss_bytes"][grows])
    shared = line(queued[grows], load["pss_bytes"][grows])
    peak_at = int(np.nanargmax(queued)) if len(queued) else 0
    cpu = _grown(samples, "cpu_s", _starts(notes)) or 0.0
    messages = max(int(ledger["messages_accepted"]), 1)
    drain_time = drained_at(t, queued) if notes.drained else None
    attempts_deferred = _counted(samples, notes, "scheduler.delivery.tempfail")
    commits = _counted(samples, notes, "queue.commit")
    return {
        "target": notes.target,
        "queue_unit": "envelopes" if tells else "messages",
        "bytes_per_envelope": _round(fitted.slope if fitted else None, 1),
        "bytes_per_envelope_stderr": _round(fitted.stderr if fitted else None, 1),
        "bytes_per_envelope_uss": _round(private.slope if private else None, 1),
        "bytes_per_envelope_uss_stderr": _round(private.stderr if private else None, 1),
        "bytes_per_envelope_pss": _round(shared.slope if shared else None, 1),
        "bytes_per_envelope_pss_stderr": _round(shared.stderr if shared else None, 1),
        "agents": _agents(load, queued, grows),
        "fit": {
            "samples": fitted.samples,
            "intercept_bytes": round(fitted.intercept),
            "step_bytes": round(fitted.intercept - base),
            "r2": round(fitted.r2, 4),
            "from_s": round(float(t[grows][0]), 2),
            "to_s": round(float(t[grows][-1]), 2),
        }
        if fitted
        else None,
        "base_rss_bytes": int(base),
        "base_pss_bytes": int(_median_before(samples, "pss_bytes")),
        "base_uss_bytes": int(base_uss),
        "growth_rss_bytes": int(np.nanmax(rss) - base),
        "peak_rss_bytes": int(np.nanmax(rss)),
        "peak_uss_bytes": int(np.nanmax(load["uss_bytes"])),
        "peak_pss_bytes": int(np.nanmax(load["pss_bytes"])),
        "end_rss_bytes": int(rss[-1]),
        "peak_queue": int(queued[peak_at]),
        "peak_queue_at_s": round(float(t[peak_at]), 2),
        "drained": notes.drained,
        "drain_time_s": drain_time,
        "watched_s": round(float(t[-1]), 2),
        "cpu_s": round(cpu, 2),
        "cpu_ms_per_message": round(cpu / messages * 1000, 3),
        "children_cpu_s": _grown(samples, "children_cpu_s", _starts(notes)) or 0.0,
        "load_cpu_s": _grown(samples, "load_cpu_s") or 0.0,
        "world_cpu_s": _grown(samples, "world_cpu_s") or 0.0,
        "foreign_cpu_share": foreign_share(load, _starts(notes)),
        "peak_fds": int(np.nanmax(load["fds"])),
        "peak_threads": int(np.nanmax(load["threads"])),
        "loop_lag_p99_s": _round(_p99(load["gauges_s"]), 4),
        "accept_latency_s": _short(ledger["accept_latency_s"]),
        "delivery_latency_s": {
            name: _short(spread) for name, spread in ledger["delivery_latency_s"].items()
        },
        "attempts_deferred": attempts_deferred,
        "deferred_per_recipient": _ratio(attempts_deferred, int(ledger["accepted"])),
        "commits_per_message": _ratio(commits, messages),
        "ambiguous": _counted(samples, notes, "mta.ambiguous")
        if notes.restarts
        else _told(notes, "mta.ambiguous"),
        "restarts": notes.restarts,
        "recovery_s": _recovery(notes),
        "generator_lag_p99_s": (notes.load.get("generator_lag_s") or {}).get("p99"),
        "leaks": notes.leaks,
    }


def _starts(notes: Notes) -> list[float]:
    return [each["started_s"] for each in notes.restarts]


def _kills(notes: Notes) -> int:
    return sum(each["how"] == "kill" for each in notes.restarts)


def _recovery(notes: Notes) -> float | None:
    """Return the longest time from an end of the process until the next one had read its queue; None if it never ended."""
    return max(
        (round(each["restored_s"] - each["gone_s"], 3) for each in notes.restarts), default=None
    )


def _agents(load: Samples, queued: Floats, grows: slice) -> dict[str, Any]:
    """Return the slope of memory on queued envelopes of each process that was watched apart; see `Target.stats`."""
    found: dict[str, Any] = {}
    for column in load.names:
        if not column.startswith(AGENT) or not column.endswith("_bytes"):
            continue
        name, _, kind = column.removeprefix(AGENT).removesuffix("_bytes").partition(".")
        fitted = line(queued[grows], load[column][grows])
        agent = found.setdefault(name, {})
        agent[f"bytes_per_envelope_{kind}"] = _round(fitted.slope if fitted else None, 1)
        agent[f"bytes_per_envelope_{kind}_stderr"] = _round(fitted.stderr if fitted else None, 1)
    return found


def drained_at(t: Floats, queued: Floats) -> float | None:
    """Return when the queue was empty for good, seconds after the load began; None if it never was.

    It became so between two samples; the middle is meant.
    """
    busy = np.flatnonzero(np.nan_to_num(queued, nan=0.0) > 0)
    if not len(busy):
        return 0.0
    last = int(busy[-1])
    if last + 1 >= len(t):
        return None
    return round(float(t[last] + t[last + 1]) / 2, 3)


def foreign_share(load: Samples, starts: Sequence[float] = ()) -> float | None:
    """Return how much of the machine's processors programs took that have nothing to do with the run; None if unknown.

    ``starts``: when the server's process was started again.

    What the kernel does for loopback traffic is in it too, so some per cent are nobody else's.
    """
    if "machine_cpu_s" not in load or len(load) < 2:
        return None
    wall = float(load["t"][-1] - load["t"][0]) * (os.cpu_count() or 1)
    # Runs of before there were commands have no column for them.
    ours = sum(_grown(load, name, starts) or 0.0 for name in ("cpu_s", "children_cpu_s"))
    ours += sum(_grown(load, name) or 0.0 for name in ("load_cpu_s", "world_cpu_s"))
    busy = float(load["machine_cpu_s"][-1] - load["machine_cpu_s"][0])
    return round(max(0.0, busy - ours) / wall, 3) if wall > 0 else None


def problems(notes: Notes, ledger: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    """Return what makes a run a failed one, each in one line."""
    found = []
    examples = ledger.get("examples", {})
    for key, what in (
        ("lost", "recipients were accepted and lost"),
        ("altered", "arrivals were altered on the way"),
        ("unexpected", "arrivals that nobody was promised"),
    ):
        if ledger[key]:
            first = ", ".join(examples.get(key, [])[:3])
            found.append(f"{ledger[key]} {what}" + (f" ({first})" if first else ""))
    # A connection that breaks between the dot and its reply leaves a relay no choice (RFC 1047, RFC 5321 4.5.4.2).
    # And who is killed has not written down what was delivered last.
    if ledger["duplicates"] and not part["ambiguous"] and not _kills(notes):
        found.append(f"{ledger['duplicates']} duplicates, and no connection was lost after the dot")
    if notes.server_status != 0:
        found.append(f"the server ended with status {notes.server_status}")
    if notes.load_status == LATE_STATUS:
        lags = (notes.load.get(name) or {} for name in ("generator_lag_s", "pulse_s"))
        lag_s = max(each.get("p99", 0.0) for each in lags)
        found.append(
            f"not the load that it says: the generator was late by itself, p99 {lag_s * 1000:.0f} ms (load.lag_max_s)"
        )
    elif notes.load_status != 0:
        found.append(f"the load saw replies that nobody expected: {notes.load.get('outcomes')}")
    if not notes.load.get("complete"):
        found.append("the load did not send everything")
    return found


def doubts(notes: Notes, ledger: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    """Return what a reader should know before believing a run, each in one line."""
    found = []
    for each in notes.restarts:
        signal = SIGNALS[each["how"]]
        found.append(
            f"{signal} at {each['gone_s']:.1f} s with {each['envelopes']:,} envelopes in the queue; its door was open again"
            f" at {each['opened_s']:.1f} s, the queue read at {each['restored_s']:.1f} s"
        )
    if ledger["duplicates"] and part["ambiguous"]:
        found.append(
            f"{ledger['duplicates']} duplicates; {part['ambiguous']} connections were lost after the dot"
        )
    elif ledger["duplicates"] and _kills(notes):
        found.append(
            f"{ledger['duplicates']} duplicates: delivered again, because SIGKILL came before it was written down"
        )
    if ledger["duplicates_client"]:
        found.append(f"the load itself sent {ledger['duplicates_client']} recipients again")
    if notes.leaks:
        gauges = ", ".join(f"{name} {value:g}" for name, value in notes.leaks.items())
        found.append(f"gauges that did not come back to 0: {gauges}")
    if not notes.drained:
        found.append("the queue was not empty when the bench stopped waiting")
    if part["fit"] is not None and part["peak_queue"] < STEADY_ENVELOPES:
        found.append(
            f"the queue had {part['peak_queue']:,} envelopes at most: too few to tell what one costs the whole server,"
            " whose caches and buffers grow, too"
        )
    lag = part["generator_lag_p99_s"]
    if lag is not None and lag > LATE_S and notes.load_status != LATE_STATUS:
        found.append(f"the load generator was late: p99 {lag * 1000:.0f} ms")
    foreign = part["foreign_cpu_share"]
    if foreign is not None and foreign > FOREIGN_SHARE:
        found.append(f"other programs took {foreign:.0%} of the machine's processors")
    for gauge, what in (("trace.lost", "trace"), ("log.lost", "log")):
        if notes.stats.get(gauge):
            found.append(f"{notes.stats[gauge]:g} lines of the {what} were lost")
    return found


def _footprint(found: Mapping[str, Any] | None) -> dict[str, Any]:
    if found is None:
        return {"store_bytes_per_envelope": None, "store_envelopes": None}
    return {
        "store_bytes_per_envelope": found["bytes_per_envelope"],
        "store_body_bytes_per_envelope": round(found["body_bytes"] / found["envelopes"], 1),
        "store_envelopes": found["envelopes"],
    }


def _median_before(samples: Samples, name: str) -> float:
    before = samples[name][samples["t"] < 0]
    return float(np.median(before[-3:])) if len(before) else float(samples[name][0])


def _grown(samples: Samples, name: str, starts: Sequence[float] = ()) -> float | None:
    """Return by how much a counter grew since the load began; what the warm-up did is no part of the run.

    It starts from the last sample before the load: the first one after it has counted some of the load already. None
    if nothing is known of it; where a process was gone before the last sample, its last word counts.

    Args:
        samples: of the whole run.
        name: the counter's.
        starts: when the process was started again, and counted from 0: what the one before did after its last sample is in
            no sum.
    """
    if name not in samples:
        return None
    known = np.isfinite(samples[name])
    values, t = samples[name][known], samples["t"][known]
    if not len(values):
        return None
    base = float(values[max(int(np.count_nonzero(t < 0)) - 1, 0)])
    total = 0.0
    for begin, end in itertools.pairwise((-math.inf, *starts, math.inf)):
        life = values[(t >= begin) & (t < end)]
        if len(life):
            total += float(np.max(life)) - base
        base = 0.0
    return round(total, 2)


def _p99(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.percentile(known, 99)) if len(known) else None


def _told(notes: Notes, name: str) -> int | None:
    """Return a counter; of other servers None if they have none."""
    value = notes.stats.get(name, 0 if notes.target == "ours" else None)
    return None if value is None else int(value)


def _counted(samples: Samples, notes: Notes, name: str) -> int | None:
    """Return what the samples count since the load began, or else what the server told at its end."""
    grown = _grown(samples, name, _starts(notes))
    return _told(notes, name) if grown is None else int(grown)


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)


def _short(spread: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spread.items() if key != "quantiles"}


# ---- where it ran


def host() -> dict[str, Any]:
    """Return what the machine is, without its name."""
    return {
        "cores": os.cpu_count() or 1,
        "cpu": _cpu_model(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()).strip(),
        "machine": platform.machine(),
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    for each in text.splitlines():
        if each.startswith("model name"):
            return " ".join(each.partition(":")[2].split())
    return "unknown"


def versions() -> dict[str, str]:
    """Return the versions of everything that may matter, and the commit if there is one."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    commit = _commit()
    if commit:
        found["commit"] = commit
    return found


def _commit() -> str:
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607 - whichever git there is
            cwd=Path(__file__).resolve().parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def scenario_line(scenario: Scenario) -> str:
    """Return the load in one line, for people."""
    load = scenario.load
    how = "kept connections" if load.keep else "a connection per message"
    parts = [f"{load.count:,} messages at {load.rate:g}/s ({load.arrivals})"] if load.count else []
    parts += [
        f"{group.count(load.scale):,} to {group.users} local users ({group.name})"
        for group in scenario.local
    ]
    return f"{', '.join(parts)}, {load.sessions} sessions, {how}, seed {scenario.seed}"
