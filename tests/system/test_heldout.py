"""`testbed validate` with real servers, small: it runs, predicts, compares, and goes on where it was stopped."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import ROOT

pytestmark = pytest.mark.system

SMALL = (
    'vary={"server.limits.mta.max_conn_per_route"=[3, 6]}',
    "load.messages=30",
    "load.recipients.count=10",
    "load.lag_max_s=60",
    "server.limits.mta.session_keepalive_s=0.3",
)


def validate(out: Path) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "testbed", "validate", "held-out", "--train", "3", "--json"),
            *("--repeats", "1", "--training-runs", "1", "--out", str(out)),
            *(word for each in SMALL for word in ("--set", each)),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=ROOT,
    )


def test_real_runs_are_predicted_and_kept(tmp_path: Path):
    """Two settings once each. What was complete is not run again; what was not, is."""
    out = tmp_path / "v"
    done = validate(out)
    # 1: a prediction misses its gate, which on a busy machine it may.
    assert done.returncode in (0, 1), done.stderr
    result = json.loads(done.stdout)
    assert [each["value"] for each in result["settings"]] == [3, 6]
    held_out = result["settings"][1]
    assert not held_out["trains"]
    for name in ("full", "slim"):
        for table in (held_out["real"], held_out["model"]):
            assert table[f"{name}.drain_time"][0] > 0.5
            assert table[f"{name}.messages_per_s"][0] > 0
            assert table[f"{name}.peak_rss"][0] > 1e7
    assert len(held_out["real"]["saving.peak_rss"]) == 1
    names = ("trace.jsonl", "samples.csv", "load.jsonl")
    assert set(result["calibration"]["provenance"]["files"]) == {
        f"{each}/{name}" for each in ("full", "slim") for name in names
    }
    assert (out / "report.html").is_file()
    # As if it had been killed in the middle of the last run.
    kept = (out / "train-3-1" / "summary.json").stat().st_mtime_ns
    (out / "held-out-6-1" / "summary.json").unlink()
    again = validate(out)
    assert again.returncode in (0, 1), again.stderr
    assert "1 of 2 runs are there already" in again.stderr
    assert (out / "train-3-1" / "summary.json").stat().st_mtime_ns == kept
    assert (out / "held-out-6-1" / "summary.json").is_file()
