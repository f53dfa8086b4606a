"""`testbed validate` with real servers, small: it runs, predicts, compares, and goes on where it was stopped."""

import json
import signal
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
    # Without the one that is away, which takes its time.
    'destinations=[{name="far",domain="far.test",behaviours=[{kind="latency",law="fixed",delay_s=0.1}]}]',
    "server.limits.mta.session_keepalive_s=0.3",
)


def command(out: Path) -> list[str]:
    """Return the command line."""
    return [
        *(sys.executable, "-m", "testbed", "validate", "held-out", "--train", "3", "--json"),
        *("--repeats", "1", "--training-runs", "1", "--out", str(out)),
        *(word for each in SMALL for word in ("--set", each)),
    ]


def test_real_runs_are_predicted_and_who_is_stopped_goes_on(tmp_path: Path):
    """Two settings once each, ended while the second is run: what was complete is not run again."""
    out = tmp_path / "v"
    with subprocess.Popen(
        command(out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as stopped:
        assert stopped.stderr is not None
        for line in stopped.stderr:
            if line.startswith("run 2 of 2"):
                stopped.send_signal(signal.SIGTERM)
                break
        rest = stopped.stderr.read()
        assert stopped.wait(60) == 130, rest
    assert f"--out {out}" in rest
    kept = (out / "train-3-1" / "summary.json").stat().st_mtime_ns
    done = subprocess.run(
        command(out), capture_output=True, text=True, timeout=240, check=False, cwd=ROOT
    )
    # 1: a prediction misses its gate, which on a busy machine it may.
    assert done.returncode in (0, 1), done.stderr
    assert "1 of 2 runs are there already" in done.stderr
    assert (out / "train-3-1" / "summary.json").stat().st_mtime_ns == kept
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
