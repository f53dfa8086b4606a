"""What a run leaves whose server was restarted is read process by process."""

import shutil
from pathlib import Path

import pytest

from mta.core.settings import ConfigError
from sim.calibrate import calibrate
from sim.costs import Costs, MemoryCosts
from sim.replay import replay
from sim.timeline import Event
from tests.support.model import LATENCY, scenario, write_run

TRUTH = Costs(
    message_s=700e-6,
    recipient_s=90e-6,
    transaction_s=400e-6,
    delivery_s=120e-6,
    deferral_s=80e-6,
    restore_s=200e-6,
    start_s=0.75,
    commit_s=2e-3,
    memory={
        "slim": MemoryCosts(base_bytes=50e6, envelope_bytes=700.0, warm_bytes=2e6, kept_share=0.9)
    },
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of a model whose costs are `TRUTH`, killed with some thousand envelopes in the queue."""
    directory = tmp_path_factory.mktemp("run") / "small-1"
    of = scenario(
        LATENCY,
        {"kind": "outage", "from_s": 1.0, "to_s": 12.0},
        messages=1600,
        rate=100.0,
        recipients=3,
        sessions=20,
        tries=60,
        server={
            "retry": {"base_s": 2.0},
            "limits": {"mta": {"route_delay_base_s": 0.1, "route_delay_max_s": 0.2}},
        },
    )
    of.timeline = [Event(8.0, restart="kill", down_s=1.0)]
    write_run(directory, of, costs=TRUTH)
    return directory


def test_a_calibration_learns_from_both_processes(run: Path):
    """What a start took, without what the loop did beside it; CPU over both; memory of the first, which grew with its queue."""
    costs = calibrate(run)
    assert costs.start_s == pytest.approx(TRUTH.start_s, abs=1e-6)
    assert costs.restore_s == pytest.approx(TRUTH.restore_s, rel=0.25)
    assert costs.deferral_s == pytest.approx(TRUTH.deferral_s, rel=0.3)
    assert costs.transaction_s == pytest.approx(TRUTH.transaction_s, rel=0.3)
    assert costs.provenance.cpu_explained > 0.9
    assert costs.memory["slim"].envelope_bytes == pytest.approx(700.0, rel=0.1)
    assert {"slim/trace.jsonl", "slim/trace-2.jsonl"} <= set(costs.provenance.files)
    assert costs.provenance.notes.count("no restart had much to read: restore_s is a default") == 0


def test_a_process_that_lived_shortly_does_not_dilute_the_other(run: Path, tmp_path: Path):
    """What it did too little of is no vote for the defaults."""
    shutil.copytree(run, tmp_path / "short")
    later = tmp_path / "short" / "slim" / "trace-2.jsonl"
    later.write_bytes(b"".join(later.read_bytes().splitlines(keepends=True)[:3]))
    costs = calibrate(tmp_path / "short")
    assert costs.commit_s == pytest.approx(TRUTH.commit_s, rel=0.1)


def test_a_replay_counts_over_both_processes(run: Path):
    """What was accepted before the end and delivered after it is one delivery."""
    found = replay(str(run), representation="slim")
    assert found["then"]["accepted"] == found["then"]["delivered"] == 4800
    assert found["then"]["queued"] == 0
    for key in ("peak_queued", "drain_time_s"):
        assert found["model"][key] == pytest.approx(found["then"][key], rel=0.1), key
    (note,) = (note for note in found["notes"] if "SIGKILL" in note)
    assert "0.25 s before the SIGKILL at 8.0 s" in note


@pytest.mark.parametrize(
    "restarts", ["[{}]", '[{"how": "kill"}]', '[{"gone_s": "x"}]', "[7]", "7", '"kill"', "{}"]
)
def test_notes_that_make_no_sense(run: Path, tmp_path: Path, restarts: str):
    """One line that names the file."""
    shutil.copytree(run, tmp_path / "bad")
    notes = tmp_path / "bad" / "slim" / "run.json"
    notes.write_text(f'{{"load_start": 1.0, "restarts": {restarts}}}')
    if restarts == "{}":
        notes.write_text('{"restarts": [{"gone_s": 8.0}]}')
    with pytest.raises(ConfigError) as told:
        calibrate(tmp_path / "bad")
    assert "run.json" in str(told.value)
    assert "\n" not in str(told.value)
