"""One run of a sweep: what it is asked, the key under which its numbers are kept, and the run itself.

Envelopes and layouts change bytes and nothing that is decided (tests/conformance): points that differ in those alone share a
run, whose census is counted for each.
"""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from mta.core.settings import ConfigError, flatten
from sim import layout as layouts
from sim.codeversion import model_digest
from sim.compare import recount
from sim.costs import Costs
from sim.result import SimResult
from sim.runner import simulate
from sim.scenario import Scenario
from sim.settings import ModelConfig, delivery_timeout
from sim.workload import Schedule, draw

NUMBERS: Final = {
    "peak_rss_bytes": "peak memory of the server, bytes",
    "peak_live_bytes": "peak of what the queue takes of it, bytes",
    "p50": "median time to delivery, s",
    "p95": "time to delivery that 95 % keep, s",
    "p99": "time to delivery that 99 % keep, s",
    "drain_time_s": "until the queue was empty for good, s",
    "end_s": "until everything was quiet, s",
    "goodput": "envelopes delivered a second, until the last of them was settled",
    "peak_queued": "envelopes",
    "peak_connections": "outbound connections at a time",
    "busy_share": "part of the time in which the event loop was busy",
    "accepted": "envelopes accepted",
    "delivered": "envelopes delivered",
    "deferred": "temporary failures of others, which may be several of one envelope",
    "transactions": "outbound transactions",
    "connections_opened": "outbound connections tried",
    "connections_failed": "outbound connections that did not become ready",
    "lost": "envelopes accepted and then neither delivered, given up nor queued",
    "failed": "envelopes given up: bounced or expired",
    "refused": "messages that clients gave up, hearing 4xx or 5xx",
    "turned_away": "times that a client heard 421, whether it came again or not",
    "sent_back": "local messages that the delivery agent sent back: too many waited",
    "queued": "envelopes still there at the end",
}
"""Numbers of a record and what they mean."""


class View(NamedTuple):
    """How memory is counted."""

    envelope: str
    layout: str = ""
    """Another server's bytes instead; empty for those of the representation."""


class Record(NamedTuple):
    """What one run came to, under one view. Numbers that there are none of are None."""

    numbers: dict[str, float | None]
    arrivals: str
    """Digest of the mail that came: the same means the same mail."""
    fingerprint: str
    """Of the run; see `sim.records.Fingerprint`. The same means that every decision was the same."""


@dataclass(frozen=True, slots=True)
class Common:
    """What all runs of a sweep share; sent to each worker once."""

    costs: Costs
    schedule: Schedule | None
    """The arrivals of a recorded run; None if each replication draws its own."""
    start: float
    source: str
    run_s_max: float
    """Longest time that one run may take, seconds."""


@dataclass(frozen=True, slots=True)
class Task:
    """One run."""

    scenario: Scenario
    config: ModelConfig
    replication: int
    views: tuple[View, ...]


class Outcome(NamedTuple):
    """What became of a task."""

    records: dict[View, Record]
    code: str
    """`model_digest` where it ran."""
    seconds: float
    """How long it took."""
    problem: str = ""
    """Why there are no records."""
    wrong: str = ""
    """The same, if the operator's settings are why: one line."""


class _TimeOverError(Exception):
    """The run took longer than it may."""


def carry_out(common: Common, task: Task) -> Outcome:
    """Run a task. What goes wrong with it is in the outcome; an assert is not."""
    began = time.perf_counter()

    def watch(*_: object) -> None:
        if time.perf_counter() - began > common.run_s_max:
            raise _TimeOverError

    schedule = common.schedule
    if schedule is None:
        schedule = draw(task.scenario, task.replication)
    try:
        result = simulate(
            task.scenario,
            config=task.config,
            costs=common.costs,
            start=common.start,
            schedule=schedule,
            replication=task.replication,
            backend="heapq",
            census=True,
            progress=watch,
            source=common.source,
        )
    except _TimeOverError:
        problem = f"a run took longer than {common.run_s_max:g} s (--run-max)"
        return Outcome({}, model_digest(), time.perf_counter() - began, problem)
    except ConfigError as error:
        # As text: an exception would lose on its way through a pickle what it knows of absent values.
        return Outcome({}, model_digest(), time.perf_counter() - began, wrong=str(error))
    came = arrivals_digest(schedule)
    records = {}
    for view in task.views:
        layout = _layout(view.layout) if view.layout else None
        memory = common.costs.memory_of(view.envelope)
        seen = recount(result, memory, envelope=view.envelope, layout=layout)
        records[view] = Record(numbers_of(seen), came, seen.fingerprint)
    return Outcome(records, model_digest(), time.perf_counter() - began)


def numbers_of(result: SimResult) -> dict[str, float | None]:
    """Return `NUMBERS` of a run."""
    counts = result.counts
    settled_s = result.drain_time_s if result.drain_time_s is not None else result.end_s
    local = result.local.summary() if result.local is not None else None
    gone = counts["accepted"] - counts["delivered"] - counts["failed"] - counts["queued"]
    found: dict[str, float | None] = {
        "peak_rss_bytes": result.peak_rss_bytes,
        "peak_live_bytes": result.peak_live_bytes,
        **result.quantiles(),
        "drain_time_s": result.drain_time_s,
        "end_s": result.end_s,
        "goodput": counts["delivered"] / settled_s if settled_s else None,
        "peak_queued": result.peak_queued,
        "peak_connections": int(result.connections.max()),
        "busy_share": result.busy_share,
        # Reports that wait are queued and were never accepted.
        "lost": max(0, gone),
        "refused": counts["refused_messages"],
        "sent_back": local["refused"] if local is not None else 0,
    }
    for name in NUMBERS:
        if name not in found:
            found[name] = counts[name]
    assert found.keys() == NUMBERS.keys()
    return {name: found[name] for name in NUMBERS}


def arrivals_digest(schedule: Schedule) -> str:
    """Return 16 hexadecimal digits of which mail comes when, from whom, for whom."""
    digest = hashlib.sha256(repr((schedule.domains, schedule.users)).encode())
    for each in dataclasses.fields(schedule):
        value = getattr(schedule, each.name)
        if isinstance(value, np.ndarray):
            digest.update(each.name.encode())
            digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:16]


@functools.cache
def _layout(name: str) -> layouts.Layout:
    return layouts.load(name)


# ---- keys


def digest_of(value: object) -> str:
    """Return the digest of what is JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def canonical(value: object) -> bytes:
    """Return the one JSON text of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()


def common_digest(common: Common) -> str:
    """Return the digest of what all runs share: costs, arrivals, start and the model's code."""
    costs = asdict(common.costs)
    # Where costs come from is no cost.
    del costs["provenance"]
    recorded = arrivals_digest(common.schedule) if common.schedule is not None else None
    return digest_of([costs, recorded, common.start, model_digest()])


def decisions(scenario: Scenario, config: ModelConfig) -> str:
    """Return the digest of all that decides in a run, but its replication."""
    # Why not title and expectations? Who words them better does not change the run.
    asked = asdict(scenario)
    for words in ("title", "question", "healthy", "expects", "vary", "representations", "server"):
        del asked[words]
    # Of the server's table a model reads this beside the configuration that was made of it; a default said is a default.
    timeout_s = delivery_timeout(scenario.server, source="scenario")
    return digest_of([asked, flatten(config), timeout_s])


def key_of(common: str, decided: str, replication: int, view: View) -> str:
    """Return the key of a record."""
    layout: Any = asdict(_layout(view.layout)) if view.layout else None
    return digest_of([common, decided, replication, view.envelope, layout])


def keys_of(common: str, decided: str, replication: int, views: Sequence[View]) -> dict[View, str]:
    """Return the key of each view's record."""
    return {view: key_of(common, decided, replication, view) for view in views}
