"""A run directory that is made in a moment, and the one that ships with the repository."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sim.scenario import Scenario, load, to_toml
from testbed import ledger
from testbed.ledger import Ledger
from testbed.rundir import Notes, Run
from testbed.sampler import MEASURED

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "notebooks" / "data" / "backlog"
START = 1_795_000_000.0
MIB = 1024 * 1024


@pytest.fixture
def shipped() -> Run:
    """The run that the notebook reads unless it is told of another."""
    return Run(SHIPPED)


def queue_at(t: float) -> int:
    """A queue that grows by 500 envelopes a second from 3 s on, and is emptied from 18 to 24 s."""
    if t < 3:
        return 0
    if t < 18:
        return round((t - 3) * 500)
    return max(0, round(7500 * (24 - t) / 6))


def make_run(directory: Path, bytes_per_envelope: dict[str, float], **changes: Any) -> Run:
    """Write a run of a made-up server whose memory is exactly so many bytes per envelope.

    Args:
        directory: made here.
        bytes_per_envelope: by representation.
        changes: fields of the ledger that are not as in a run in which all went well.
    """
    directory.mkdir()
    scenario = load("backlog", [f"representations={json.dumps(list(bytes_per_envelope))}"])
    (directory / "scenario.toml").write_text(to_toml(scenario))
    (directory / "begun.json").write_text(
        json.dumps({"started": "2026-01-26T09:37:23+00:00", "command": "testbed run backlog"})
    )
    ledgers = {}
    footprints = {}
    for name, slope in bytes_per_envelope.items():
        (directory / name).mkdir()
        _write_samples(directory / name / "samples.csv", slope)
        notes = Notes(
            run_id=f"backlog-{name}",
            representation=name,
            load_start=START,
            load_end=START + 22.0,
            drained=True,
            server_status=0,
            load_status=0,
            load={"complete": True, "outcomes": {"250": 4400}, "generator_lag_s": {"p99": 0.004}},
            stats={"scheduler.delivery.tempfail": 9000.0},
        )
        (directory / name / "run.json").write_text(json.dumps(asdict(notes)))
        ledgers[name] = ledger.to_json(_ledger(scenario, changes))
        footprints[name] = {
            "envelopes": 100_000,
            "body_bytes": 0,
            "bytes_per_envelope": slope * 0.9,
        }
    (directory / "ledger.json").write_text(json.dumps(ledgers))
    (directory / "footprints.json").write_text(json.dumps(footprints))
    return Run(directory)


def _write_samples(path: Path, slope: float) -> None:
    heads = [*MEASURED, "scheduler.envelope"]
    lines = [",".join(heads)]
    for i in range(-20, 160):
        t = i / 5 + 0.05
        queued = queue_at(t)
        peak = max(queue_at(u / 5 + 0.05) for u in range(-20, i + 1))
        # 50 MiB idle, 4 MiB once when the outage begins, and nothing is ever given back.
        rss = 50 * MIB + (4 * MIB if t >= 3 else 0) + slope * peak
        phase = "idle" if t < 0 else "load" if t < 22 else "drain"
        values: dict[str, Any] = {
            "t": f"{START + t:.3f}",
            "phase": phase,
            "rss_bytes": math.floor(rss),
            "pss_bytes": math.floor(rss * 0.9),
            "uss_bytes": math.floor(rss * 0.8),
            "cpu_s": max(0.0, t) * 0.4,
            "fds": 30,
            "threads": 3,
            "load_cpu_s": max(0.0, t) * 0.2,
            "world_cpu_s": max(0.0, t) * 0.1,
            "machine_cpu_s": 1e6 + max(0.0, t) * 0.8,
            "gauges_s": 0.001,
            "children_cpu_s": 0.0,
            "scheduler.envelope": queued,
        }
        lines.append(",".join(str(values[head]) for head in heads))
    path.write_text("\n".join(lines) + "\n")


def _ledger(scenario: Scenario, changes: dict[str, Any]) -> Ledger:
    accepted = 17_800
    latency = ledger.spread([0.01, 0.02, 0.03])
    made = Ledger(
        offered=accepted,
        accepted=accepted,
        delivered=accepted,
        messages_offered=4400,
        messages_accepted=4400,
        messages_delivered=13_000,
        accept_latency_s=latency,
        delivery_latency_s={each.name: latency for each in scenario.destinations},
        last_delivery_s=24.0,
        flow={"t": [0.0, 0.5], "accepted": [400.0, 410.0], "delivered": [390.0, 400.0]},
    )
    for key, value in changes.items():
        setattr(made, key, value)
    return made


@pytest.fixture
def made(tmp_path: Path) -> Run:
    """A run of slim and packed in which all went well."""
    return make_run(tmp_path / "run", {"slim": 400.0, "packed": 60.0})
