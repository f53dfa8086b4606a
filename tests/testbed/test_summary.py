"""What a run comes to: numbers out of files, and what makes it a failed run."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.pages import NONE
from testbed.plots import bytes_beside_peers
from testbed.run import render
from testbed.rundir import Run, Samples
from testbed.summary import STEADY_ENVELOPES, SUMMED, as_told, drained_at, summarise

from .conftest import MIB, make_run

TOP = {
    *SUMMED,
    "schema",
    "representations",
    "model",
    "expected",
    "failures",
    "warnings",
    "seed",
    "scenario",
}


def summary_of(run: Run) -> dict[str, Any]:
    footprints = json.loads((run.directory / "footprints.json").read_text())
    return summarise(run, footprints=footprints, model=None)


def test_the_slope_is_what_an_envelope_costs(made: Run) -> None:
    """A server that takes 400 B per envelope is said to take 400, whatever an outage costs once."""
    parts = summary_of(made)["representations"]

    assert 400 == pytest.approx(parts["slim"]["bytes_per_envelope"], abs=1)
    assert 60 == pytest.approx(parts["packed"]["bytes_per_envelope"], abs=1)
    assert parts["slim"]["bytes_per_envelope_stderr"] < 5
    assert 4 == pytest.approx(parts["slim"]["fit"]["step_bytes"] / MIB, abs=0.1)
    assert (360.0, 54.0) == tuple(parts[n]["store_bytes_per_envelope"] for n in ("slim", "packed"))


def test_a_queue_too_short_to_tell_shows_no_slope(made: Run) -> None:
    """People see no bytes per envelope of the whole server then; the file has them, and longer queues show them."""
    summary = summary_of(made)
    assert as_told(summary)["representations"] == summary["representations"]
    short = copy.deepcopy(summary)
    short["representations"]["slim"]["peak_queue"] = STEADY_ENVELOPES - 1
    told = as_told(short)["representations"]
    assert (None, None) == tuple(
        told["slim"][key] for key in ("bytes_per_envelope", "bytes_per_envelope_stderr")
    )
    assert told["slim"]["store_bytes_per_envelope"] == 360.0
    assert told["packed"]["bytes_per_envelope"] == pytest.approx(60, abs=1)
    marks = {
        text.get_text() for text in bytes_beside_peers(as_told(short)).axes[0].get_yticklabels()
    }
    assert {"ours, slim: store alone", "ours, packed: whole server"} <= marks
    assert "ours, slim: whole server" not in marks


def test_peaks_and_drain(made: Run) -> None:
    """Memory at rest, at most and at the end; the longest queue; when it was empty for good."""
    part = summary_of(made)["representations"]["slim"]

    assert 50 * MIB == part["base_rss_bytes"]
    assert part["peak_rss_bytes"] == part["end_rss_bytes"]
    assert 7475 == pytest.approx(part["peak_queue"], abs=60)
    assert 24.0 == pytest.approx(part["drain_time_s"], abs=0.2)
    assert 4400 * part["cpu_ms_per_message"] == pytest.approx(part["cpu_s"] * 1000, abs=5)


def test_the_keys_are_there(made: Run) -> None:
    """Scripts read these: sums at the top, each representation below, JSON without infinities."""
    summary = summary_of(made)

    assert TOP == set(summary)
    assert ["slim", "packed"] == list(summary["representations"])
    assert 2 * 17_800 == summary["accepted"]
    for key in SUMMED:
        assert summary[key] == sum(p[key] for p in summary["representations"].values())
    assert summary == json.loads(json.dumps(summary, allow_nan=False))
    assert [] == summary["failures"]
    assert [] == summary["warnings"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"delivered": 17_799, "lost": 1, "examples": {"lost": ["seq 3 a@x.test"]}}, "lost (seq 3"),
        ({"altered": 2}, "2 arrivals were altered"),
        ({"unexpected": 1}, "nobody was promised"),
        ({"duplicates": 1}, "no connection was lost after the dot"),
    ],
)
def test_broken_promises_fail_a_run(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """Each is one line that names the representation."""
    run = make_run(tmp_path / "run", {"slim": 400.0}, **changes)
    (failure,) = summary_of(run)["failures"]

    assert failure.startswith("slim: ")
    assert words in failure


def change_notes(run: Run, name: str, **changes: Any) -> None:
    path = run.directory / name / "run.json"
    notes = json.loads(path.read_text())
    path.write_text(json.dumps(notes | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"server_status": 1}, "the server ended with status 1"),
        ({"load_status": 1}, "replies that nobody expected"),
        ({"load": {"complete": False}}, "did not send everything"),
    ],
)
def test_broken_processes_fail_a_run(made: Run, changes: dict[str, Any], words: str) -> None:
    """A server or a load that did not end well is no result."""
    change_notes(made, "slim", **changes)
    (failure,) = summary_of(made)["failures"]

    assert words in failure


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"leaks": {"mta.session": 2.0}}, "did not come back to 0: mta.session 2"),
        ({"drained": False}, "not empty"),
        ({"stats": {"trace.lost": 4.0}}, "4 lines of the trace"),
        ({"load": {"complete": True, "generator_lag_s": {"p99": 0.2}}}, "late: p99 200 ms"),
    ],
)
def test_doubts_are_told(made: Run, changes: dict[str, Any], words: str) -> None:
    """What does not fail a run but should be known before it is believed."""
    change_notes(made, "packed", **changes)
    summary = summary_of(made)

    assert [] == summary["failures"]
    assert any(words in warning for warning in summary["warnings"])


def test_a_machine_that_others_used_is_told(made: Run) -> None:
    """A run beside something else that takes half of the machine says so."""
    path = made.directory / "slim" / "samples.csv"
    lines = [line.split(",") for line in path.read_text().splitlines()]
    column, t = lines[0].index("machine_cpu_s"), lines[0].index("t")
    cores = os.cpu_count() or 1
    for line in lines[1:]:
        line[column] = f"{float(line[t]) % 1e6 * (0.5 * cores + 0.7):.2f}"
    path.write_text("\n".join(map(",".join, lines)) + "\n")
    summary = summary_of(made)

    assert 0.5 == pytest.approx(summary["representations"]["slim"]["foreign_cpu_share"], abs=0.02)
    assert ["slim: other programs took 50% of the machine's processors"] == summary["warnings"]


def test_duplicates_after_a_lost_connection_are_told_not_blamed(tmp_path: Path) -> None:
    """A connection that breaks between the dot and its reply leaves a relay no choice (RFC 1047)."""
    run = make_run(tmp_path / "run", {"slim": 400.0}, duplicates=1)
    change_notes(run, "slim", stats={"mta.ambiguous": 1.0})
    summary = summary_of(run)

    assert [] == summary["failures"]
    assert "1 duplicates; 1 connections were lost after the dot" in summary["warnings"][0]


@pytest.mark.parametrize(
    ("queued", "expected"),
    [
        ([0, 0, 0], 0.0),
        ([5, 0, 0], 0.5),
        ([5, 0, 3, 0], 2.5),
        ([5, np.nan, 3, 0], 2.5),
        ([5, 3, 1], None),
    ],
)
def test_drained_means_for_good(queued: list[float], expected: float | None) -> None:
    """A queue that was empty for a moment is not drained; a hole in the samples is not emptiness."""
    assert expected == drained_at(np.arange(float(len(queued))), np.array(queued, dtype=float))


def test_rendering_again_says_the_same(made: Run) -> None:
    """`testbed report` on the same files gives the same summary."""
    render(made, page=False)
    first = made.summary
    render(made, page=False)

    assert first == made.summary


def test_the_shipped_run_is_complete(shipped: Run) -> None:
    """Four representations, a model, everything delivered, and the slopes in their order."""
    summary = shipped.summary

    assert ["whole", "full", "slim", "packed"] == list(summary["representations"])
    assert [] == summary["failures"]
    assert 0 == summary["lost"] == summary["altered"] == summary["duplicates"]
    stores = [part["store_bytes_per_envelope"] for part in summary["representations"].values()]
    assert stores == sorted(stores, reverse=True)
    for key in ("peak_queue_error", "drain_time_error", "peak_rss_error"):
        assert 0 <= summary["model"][key] < 1
    assert {"seed", "versions", "host", "command"} <= set(summary)


RESTART = {
    "at_s": 10.0, "how": "kill", "down_s": 2.0, "asked_s": 10.0, "gone_s": 10.01, "started_s": 12.02,
    "opened_s": 12.5, "restored_s": 13.25, "envelopes": 3500, "read_s": 0.7,
}  # fmt: skip


def restarted(directory: Path, **changes: Any) -> Run:
    """Return a run whose server was away from 10 to 12.5 s, and whose counters began at 0 again."""
    run = make_run(directory, {"slim": 400.0}, **changes)
    path = directory / "slim" / "samples.csv"
    heads, *lines = [line.split(",") for line in path.read_text().splitlines()]
    t, cpu = heads.index("t"), heads.index("cpu_s")
    kept = []
    for line in lines:
        since = float(line[t]) - 1_795_000_000.0
        if 10.0 < since < 12.02:
            continue
        if since >= 12.02:
            line[cpu] = f"{(since - 12.02) * 0.4:.3f}"
        kept.append(line)
    path.write_text("\n".join(map(",".join, [heads, *kept])) + "\n")
    change_notes(run, "slim", restarts=[RESTART])
    return run


def test_counters_of_a_server_that_was_restarted_are_summed(tmp_path: Path) -> None:
    """Processor time is that of both processes, without what the first did after its last sample; bytes are of the first."""
    whole = summary_of(make_run(tmp_path / "whole", {"slim": 400.0}))["representations"]["slim"]
    part = summary_of(restarted(tmp_path / "run"))["representations"]["slim"]

    assert part["cpu_s"] == pytest.approx(whole["cpu_s"] - 0.4 * 2.0, abs=0.1)
    assert part["recovery_s"] == 3.24
    assert part["restarts"] == [RESTART]
    assert part["bytes_per_envelope"] == pytest.approx(400, abs=2)
    assert whole["recovery_s"] is None
    assert whole["restarts"] == []


def test_a_kill_excuses_duplicates_and_a_stop_does_not(tmp_path: Path) -> None:
    """Who is killed has not written down what it did last; who was told to stop had the time."""
    killed = summary_of(restarted(tmp_path / "killed", duplicates=2))
    assert [] == killed["failures"]
    assert any("SIGKILL at 10.0 s with 3,500 envelopes" in each for each in killed["warnings"])
    assert any(
        "2 duplicates: delivered again, because SIGKILL" in each for each in killed["warnings"]
    )

    stopped = restarted(tmp_path / "stopped", duplicates=2)
    change_notes(stopped, "slim", restarts=[{**RESTART, "how": "stop"}])
    assert ["slim: 2 duplicates, and no connection was lost after the dot"] == summary_of(stopped)[
        "failures"
    ]


def test_a_page_has_each_end_of_the_process(tmp_path: Path) -> None:
    """With what the run found; the model was not asked."""
    run = restarted(tmp_path / "run", duplicates=2)
    page = render(run).read_text()

    assert "The end of the process, and the next one" in page
    assert "SIGKILL at 10.01" in page
    assert f"3,500 / {NONE}" in page
    assert (
        "The end of the process"
        not in render(make_run(tmp_path / "other", {"slim": 400.0})).read_text()
    )


def test_samples_have_a_hole_where_nobody_answered() -> None:
    """A line through them breaks there, also where there was no sample anyway."""
    columns = {"t": np.array([1.0, 2.0, 3.0, 4.0]), "queue.message": np.array([5.0, 6.0, 7.0, 8.0])}
    found = Samples(columns).without([(1.5, 3.5), (9.0, 11.0)])

    assert found["t"].tolist() == [1.0, 2.5, 4.0, 10.0]
    assert np.array_equal(found.queue, [5.0, np.nan, 8.0, np.nan], equal_nan=True)
    assert Samples(columns).before(3.0)["t"].tolist() == [1.0, 2.0]
