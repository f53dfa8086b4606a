"""`testbed policies`: what becomes of a local burst under each policy, in each representation, for real.

A matrix of runs: OpenSMTPD's three answers to more local mail than can be delivered (`mta.core.limits.MdaLimits.policy`)
times ways to keep an envelope. Each policy is a run directory of its own inside this one, so `testbed show` and `testbed
report` work on them; ``policies.json`` has all that the report, the notebook and a script need, numbers and curves.

The caps are those of history but for one: ``raised`` gave one user 15,000 places of 200,000, and here the burst is one user's.
It gets all places, or the run would show a burst sent back instead of a burst kept.
"""

import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from sim.costs import Costs
from sim.local import jain_index
from sim.replay import arrivals
from sim.runner import simulate
from sim.scenario import Scenario, load, to_toml
from sim.settings import model_config
from sim.workload import draw
from testbed.children import Child, RunError, UsageError, python, source_environment
from testbed.ledger import read_lines
from testbed.observe import LOCAL_RECORD
from testbed.progress import Display
from testbed.run import Options, execute, new_directory
from testbed.rundir import Floats, Run, link_latest, write_json
from testbed.summary import host, versions

POLICIES: Final = ("tempfail", "raised", "hold")
REPRESENTATIONS: Final = ("fixed", "full", "slim")

SCALE: Final = 0.02
"""Of the burst, unless somebody says otherwise: nine runs in about six minutes on two cores."""

RESULT: Final = "policies.json"
SCHEMA: Final = 1

POINTS_MAX: Final = 240
"""Of each curve that is kept."""

STORE_COUNT: Final = 20_000
"""Envelopes with which the store alone is measured."""

STORE_S: Final = 60.0
"""Longest wait for that."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """What the command line says."""

    scenario: str = "local-burst"
    policies: Sequence[str] = POLICIES
    representations: Sequence[str] = REPRESENTATIONS
    overrides: Sequence[str] = ()
    """They win over the scale and over what `caps_of` says."""
    out: Path | None = None
    model: bool = True
    stores: int = STORE_COUNT
    """0 to leave the store alone out."""

    def overrides_of(self, policy: str) -> list[str]:
        """Return the overrides of one policy's run."""
        return [
            f"load.scale={SCALE}",
            f"representations={json.dumps(list(self.representations))}",
            f"server.limits.mda.policy={policy}",
            "server.limits.mda.raised_max_pending_per_user=200000",
            "server.limits.scheduler.max_inflight=200000",
            *self.overrides,
        ]

    def command(self) -> str:
        """Return the command line that does it again."""
        words = ["testbed", "policies", self.scenario]
        words += ["--policies", ",".join(self.policies)]
        words += ["--representations", ",".join(self.representations)]
        for override in self.overrides:
            words += ["--set", override]
        return shlex.join(words)


def run_matrix(matrix: Matrix, display: Display) -> Path:
    """Run it all; return the directory.

    Raises:
        ConfigError: the scenario can't be used.
        UsageError: it has no local users, or the directory can't be used.
        RunError: a run could not be made. What was measured until then is in the directory.
    """
    scenarios = {
        policy: load(matrix.scenario, matrix.overrides_of(policy)) for policy in matrix.policies
    }
    first = next(iter(scenarios.values()))
    if not first.local:
        raise UsageError(f"{matrix.scenario}: has no local users, so no policy to compare")
    for scenario in scenarios.values():
        # A policy that there is not should not be told after minutes, by the server.
        model_config(scenario.server, source=matrix.scenario)
    directory = new_directory(matrix.out, f"{first.name}-policies")
    display.say(f"{first.name}: {', '.join(matrix.policies)}; in {directory}")
    (directory / "scenario.toml").write_text(to_toml(first), encoding="utf-8")
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "scenario": first.name,
        "title": first.title,
        "question": first.question,
        "scale": first.load.scale,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": matrix.command(),
        "versions": versions(),
        "host": host(),
        "stores": {},
        "failures": [],
        "warnings": [],
        "cells": [],
    }
    if matrix.stores:
        result["stores"] = _measure_stores(matrix, directory, display)
    for policy in matrix.policies:
        display.say(f"{policy}:")
        options = Options(
            scenario=str((directory / "scenario.toml").resolve()),
            overrides=(f"server.limits.mda.policy={policy}",),
            out=directory / policy,
            model=False,
            footprint=0,
            is_part=True,
        )
        run = execute(options, display)
        summary = run.summary
        for key in ("failures", "warnings"):
            result[key] += [f"{policy}, {line}" for line in summary[key]]
        with display.part("model", len(matrix.representations)) as part:
            for i, name in enumerate(run.representations):
                part.show(name, i)
                cell = measured(run, name, policy)
                if matrix.model:
                    cell["model"] = modelled(run, name, cell)
                result["cells"].append(cell)
        write_json(directory / RESULT, result)
    link_latest(directory)
    return directory


# ---- one run


def measured(run: Run, representation: str, policy: str) -> dict[str, Any]:
    """Return what one server's run says: numbers, and curves of `POINTS_MAX` points."""
    part = run.summary["representations"][representation]
    notes, samples = run.notes(representation), run.samples(representation).at_or_after(0.0)
    ledger = run.ledgers[representation]
    mail = LocalMail(run, representation)
    agent = np.nan_to_num(samples["mda.envelope"], nan=0.0)
    stats = notes.stats
    cell: dict[str, Any] = {
        "policy": policy,
        "envelope": representation,
        **{key: ledger[key] for key in ("accepted", "delivered", "bounced", "queued", "lost")},
        "duplicates": ledger["duplicates"],
        "refused_at_the_door": ledger["refused"],
        "base_rss_bytes": part["base_rss_bytes"],
        "peak_rss_bytes": part["peak_rss_bytes"],
        "bytes_per_pending": part["bytes_per_envelope"],
        "bytes_per_pending_stderr": part["bytes_per_envelope_stderr"],
        "peak_queue": part["peak_queue"],
        "peak_agent": int(agent.max(initial=0)),
        "tempfails": int(stats.get("scheduler.delivery.tempfail", 0)),
        "sent_back": int(stats.get("mda.refused", 0)),
        "overflows": int(stats.get("scheduler.ramqueue.hold-overflow", 0)),
        **mail.numbers(),
        "curves": {
            "t": _thinned(samples["t"], 2),
            "rss_growth_bytes": _thinned(samples["rss_bytes"] - part["base_rss_bytes"], 0),
            "queued": _thinned(samples["scheduler.envelope"], 0),
            "agent": _thinned(samples["mda.envelope"], 0),
            "held": _thinned(samples["scheduler.ramqueue.hold"], 0),
        },
        "progress": mail.progress(),
        "model": None,
    }
    return cell


class LocalMail:
    """When each local message of a run was accepted and delivered."""

    def __init__(self, run: Run, representation: str) -> None:
        """Read the records of one server's run.

        Raises:
            UsageError: they are not there: the run was trimmed.
        """
        directory = run.directory / representation
        notes = run.notes(representation)
        self._start = notes.load_start
        self._schedule = schedule = draw(run.scenario)
        count = len(schedule)
        self.accepted_at = np.full(count, np.nan)
        """float64[message]: seconds after the start of the load; NaN if it was not."""
        self.delivered_at = np.full(count, np.nan)
        """The same; the first time."""
        if not (directory / LOCAL_RECORD).is_file():
            raise UsageError(f"{directory}: has no {LOCAL_RECORD}; was the run trimmed?")
        for line in read_lines(directory / "load.jsonl"):
            if line.get("kind") == "message" and line["code"] // 100 == 2:
                self.accepted_at[line["seq"]] = line["done"] - self._start
        for line in read_lines(directory / LOCAL_RECORD):
            if line["run"] == notes.run_id:
                t, seq = line["t"] - self._start, line["seq"]
                if not self.delivered_at[seq] <= t:
                    self.delivered_at[seq] = t
        self.group = schedule.group
        self.burst = _burst_of(run.scenario)

    def numbers(self) -> dict[str, Any]:
        """Return drain time, oldest age, fairness and the others' latency, as `sim.local.LocalResult` has them."""
        accepted, delivered, group = self.accepted_at, self.delivered_at, self.group
        known = np.isfinite(accepted)
        local = (group >= 0) & known
        mine = (group == self.burst) & known
        waits = np.maximum(delivered - accepted, 0.0)
        others = waits[local & (group != self.burst) & np.isfinite(delivered)]
        begin, end = float(accepted[mine].min()), float(accepted[mine].max())
        done = np.isfinite(delivered[mine]).all()
        return {
            "burst_messages": int(mine.sum()),
            "others_messages": int((local & (group != self.burst)).sum()),
            "burst_end_s": round(end - begin, 3),
            "burst_drain_s": round(float(delivered[mine].max()) - begin, 3) if done else None,
            "oldest_age_s": round(float(np.nanmax(waits[local])), 3),
            "jain": self._jain(begin, end),
            "others_latency_s": {
                key: round(float(np.percentile(others, q, method="inverted_cdf")), 4)
                for key, q in (("p50", 50), ("p95", 95), ("p99", 99), ("max", 100))
            }
            if len(others)
            else dict.fromkeys(("p50", "p95", "p99", "max")),
            "others_quantiles_s": [
                round(float(q), 4) for q in np.percentile(others, np.arange(0, 101))
            ]
            if len(others)
            else [],
        }

    def _jain(self, begin: float, end: float) -> float | None:
        accepted, delivered = self.accepted_at, self.delivered_at
        inside = (self.group >= 0) & (accepted >= begin) & (accepted <= end)
        mailbox = self._schedule.mailbox[self._schedule.first[:-1]]
        users = np.stack((self.group[inside], mailbox[inside]))
        _, user = np.unique(users, axis=1, return_inverse=True)
        user = np.ravel(user)
        served = (delivered[inside] <= end).astype(float)
        found = jain_index(np.bincount(user, weights=served) / np.bincount(user))
        return None if found is None else round(found, 4)

    def progress(self) -> dict[str, list[float]]:
        """Return how many messages were due, accepted and delivered by then, of the burst and of the others."""
        last = float(np.nanmax(self.delivered_at))
        t = np.linspace(0.0, last, POINTS_MAX)
        curves: dict[str, list[float]] = {"t": [round(float(each), 3) for each in t]}
        for name, chosen in (
            ("burst", self.group == self.burst),
            ("others", (self.group >= 0) & (self.group != self.burst)),
        ):
            columns = (
                ("due", self._schedule.due_s),
                ("accepted", self.accepted_at),
                ("delivered", self.delivered_at),
            )
            for what, column in columns:
                values = np.sort(column[chosen & np.isfinite(column)])
                curves[f"{name}_{what}"] = [
                    int(n) for n in np.searchsorted(values, t, side="right")
                ]
        return curves


def _burst_of(scenario: Scenario) -> int:
    """Return the index of the group whose users get most messages each."""
    return int(np.argmax([each.per_user(scenario.load.scale) for each in scenario.local]))


def _thinned(values: Floats, digits: int) -> list[float | None]:
    """Return at most `POINTS_MAX` of the values, first and last among them; None where there was none."""
    chosen = np.unique(np.linspace(0, len(values) - 1, POINTS_MAX).astype(int))
    return [round(float(v), digits) if np.isfinite(v) else None for v in values[chosen]]


# ---- the model


def modelled(run: Run, representation: str, cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the model says of the same run.

    It gets the instants at which the load really sent, and the RSS of the idle server. All else is `sim.costs`' defaults:
    nothing is fitted to the run that it is put beside.
    """
    costs = Costs()
    memory = costs.memory_of(representation)
    costs.memory[representation] = replace(memory, base_bytes=float(cell["base_rss_bytes"]))
    schedule, _, _ = arrivals(run.directory / representation / "load.jsonl", run.scenario)
    result = simulate(
        run.scenario,
        representation=representation,
        costs=costs,
        schedule=schedule,
        fingerprint=False,
    )
    assert result.local is not None
    local = result.local.summary()
    others = [each for each in result.local.groups if each.name != result.local.burst]
    waits = np.concatenate([each.latency_s for each in others]) if others else np.empty(0)
    p50, p99 = (
        (round(float(np.percentile(waits, q, method="inverted_cdf")), 4) for q in (50, 99))
        if len(waits)
        else (None, None)
    )
    return {
        "peak_rss_bytes": int(np.max(result.rss_bytes)),
        "peak_queue": int(np.max(result.queued)),
        "peak_agent": local["peak_agent"],
        "burst_drain_s": local["burst_drain_s"],
        "tempfails": local["tempfails"],
        "sent_back": local["refused"],
        "overflows": local["overflows"],
        "oldest_age_s": local["oldest_age_s"],
        "jain": local["jain"],
        "others_p50_s": p50,
        "others_p99_s": p99,
    }


def modelled_sizes(
    scenario: str,
    *,
    scales: Sequence[float],
    policies: Sequence[str] = POLICIES,
    representations: Sequence[str] = REPRESENTATIONS,
) -> list[dict[str, Any]]:
    """Return what the model says of bursts of several sizes: one row for each size, policy and representation.

    Returns:
        burst (messages), policy, envelope, live_bytes (most that the queue's envelopes took), sent_back, others_p99_s.
    """
    rows = []
    for scale, policy, representation in itertools.product(scales, policies, representations):
        matrix = Matrix(overrides=(f"load.scale={scale}",), representations=(representation,))
        of = load(scenario, matrix.overrides_of(policy))
        result = simulate(of, representation=representation, fingerprint=False)
        assert result.local is not None
        local = result.local
        burst = next(each for each in local.groups if each.name == local.burst)
        waits = [each.latency_s for each in local.groups if each.name != local.burst]
        rows.append(
            {
                "burst": burst.offered,
                "policy": policy,
                "envelope": representation,
                "live_bytes": int(result.live_bytes.max()),
                "sent_back": local.summary()["refused"],
                "others_p99_s": float(
                    np.percentile(np.concatenate(waits), 99, method="inverted_cdf")
                ),
            }
        )
    return rows


# ---- the store alone


def _measure_stores(matrix: Matrix, directory: Path, display: Display) -> dict[str, Any]:
    """Return bytes per envelope of each store alone, while an agent has it and while it waits for its next try."""
    found: dict[str, Any] = {}
    with display.part("store", len(matrix.representations)) as part:
        for i, name in enumerate(matrix.representations):
            part.show(name, i)
            found[name] = {
                "agent": _store(directory, name, matrix.stores, "--in-flight"),
                "pending": _store(directory, name, matrix.stores),
            }
    return found


def _store(directory: Path, representation: str, count: int, *more: str) -> float:
    log = directory / f"store-{representation}{'-agent' if more else ''}.json"
    scenario = str((directory / "scenario.toml").resolve())
    child = Child(
        "footprint",
        [
            *python("testbed.footprint", representation, "--count", str(count)),
            *("--scenario", scenario, *more),
        ],
        log=log,
        environment=source_environment(),
    )
    try:
        if child.wait(STORE_S) != 0:
            raise RunError(child.describe_end())
    finally:
        child.end()
    try:
        bytes_: float = json.loads(log.read_text(encoding="utf-8"))["bytes_per_envelope"]
    except (ValueError, KeyError):
        raise RunError(f"footprint: no answer: {log}") from None
    log.unlink()
    return bytes_


def read(path: Path) -> dict[str, Any]:
    """Return the content of a policies.json.

    Raises:
        UsageError: it is not there, or is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: can't be read: {error.strerror}") from error
    except ValueError:
        raise UsageError(f"{path}: not JSON") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UsageError(f"{path}: not a result of this version of testbed policies")
    return content


def cell_of(result: Mapping[str, Any], policy: str, representation: str) -> dict[str, Any] | None:
    """Return one cell of a result, or None if it was not run."""
    for cell in result["cells"]:
        if (cell["policy"], cell["envelope"]) == (policy, representation):
            found: dict[str, Any] = cell
            return found
    return None
