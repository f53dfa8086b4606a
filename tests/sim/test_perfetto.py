"""A timeline says what the trace says: every span that begins ends, nested, and none is invented."""

import gzip
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mta.core import records
from sim import __main__ as command
from sim.perfetto import export
from sim.scenario import load
from tests.sim.test_calibrate import LATENCY, OUTAGE, SERVER, TRUTH
from tests.support.model import scenario, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "small-1"
    of = scenario(LATENCY, OUTAGE, messages=200, recipients=2, server=SERVER)
    write_run(directory, of, costs=TRUTH)
    return directory


def timeline(run: Path, tmp_path: Path, **options: int) -> list[dict[str, Any]]:
    out = tmp_path / "timeline.json"
    count = export(run / "slim" / "trace.jsonl", out, **options)
    events = json.loads(out.read_text())["traceEvents"]
    assert len(events) == count
    return events


def stimuli(run: Path) -> Counter[str]:
    with (run / "slim" / "trace.jsonl").open("rb") as lines:
        return Counter(record["k"] for record in records.parse(lines).records)


class TestSpans:
    def test_every_span_ends_in_its_row_innermost_first_and_not_before_it_began(
        self, run: Path, tmp_path: Path
    ):
        """That is what makes nested asynchronous events legible to a viewer."""
        rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for event in timeline(run, tmp_path):
            row = rows.setdefault((event.get("cat", ""), event.get("id", "")), [])
            if event["ph"] == "b":
                row.append(event)
            elif event["ph"] == "e":
                begun = row.pop()
                assert begun["name"] == event["name"]
                assert begun["ts"] <= event["ts"]
        assert not any(rows.values())

    def test_time_never_runs_backwards(self, run: Path, tmp_path: Path):
        """Events but commits, which begin before they are known, are in order."""
        instants = [e["ts"] for e in timeline(run, tmp_path) if e["ph"] in "benCi"]
        assert instants == sorted(instants)

    def test_there_are_as_many_spans_as_things_that_happened(self, run: Path, tmp_path: Path):
        """Transactions, connections, look-ups and envelopes of the trace, one span each."""
        names = Counter(e["name"] for e in timeline(run, tmp_path) if e["ph"] == "b")
        cats = Counter(e["cat"] for e in timeline(run, tmp_path) if e["ph"] == "b")
        happened = stimuli(run)
        assert happened["TransactionDone"] > 100
        assert names["transaction"] == happened["TransactionDone"]
        assert names["connect"] == happened["ConnectionReady"] + happened["ConnectionFailed"]
        assert cats["look-ups"] == happened["DomainResolved"]
        drawn = [name for name in names if name.startswith("to ")]
        assert sum(names[name] for name in drawn) == 400

    def test_commits_of_the_one_writer_do_not_overlap(self, run: Path, tmp_path: Path):
        """Each begins at or after the end of the one before."""
        commits = [e for e in timeline(run, tmp_path) if e["ph"] == "X"]
        assert len(commits) == stimuli(run)["commit"] > 0
        for before, after in itertools.pairwise(commits):
            assert before["ts"] + before["dur"] <= after["ts"] + 0.001

    def test_gauges_are_curves(self, run: Path, tmp_path: Path):
        """Each point of the trace is one of the curve."""
        curve = [e["args"] for e in timeline(run, tmp_path) if e["name"] == "envelopes by state"]
        with (run / "slim" / "trace.jsonl").open("rb") as lines:
            trace = records.parse(lines).records
            gauges = [record for record in trace if record["k"] == "gauges"]
        assert [point["in flight"] for point in curve] == [
            gauge["scheduler.envelope.inflight"] for gauge in gauges
        ]
        assert max(point["in flight"] for point in curve) > 0


class TestLimits:
    def test_so_many_envelopes_are_drawn_and_no_more(self, run: Path, tmp_path: Path):
        """Connections are drawn all the same."""
        events = timeline(run, tmp_path, envelopes_max=7)
        assert len({e["id"] for e in events if e.get("cat") == "envelopes"}) == 7
        assert sum(e["name"] == "transaction" and e["ph"] == "b" for e in events) > 100


class TestCommand:
    def test_it_writes_beside_the_trace_and_says_where(
        self, run: Path, capsys: pytest.CaptureFixture[str]
    ):
        """Compressed: both viewers read that."""
        command.app(["perfetto", str(run)], standalone_mode=False)
        path = run / "slim" / "timeline.json.gz"
        assert str(path) in capsys.readouterr().out.replace("\n", "")
        assert json.loads(gzip.decompress(path.read_bytes()))["otherData"]["seed"] == str(
            load(run / "scenario.toml").seed
        )

    @pytest.mark.parametrize(
        ("content", "said"),
        [("{}\n", "line 1: no header of a trace"), ("", "line 1: no header of a trace")],
    )
    def test_what_is_no_trace_is_one_line(
        self, content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        """Exit status 2, with the file's name."""
        trace = tmp_path / "trace.jsonl"
        trace.write_text(content)
        with pytest.raises(SystemExit) as exit_:
            command.app(["perfetto", str(trace)])
        assert exit_.value.code == 2
        assert said in capsys.readouterr().err

    def test_a_place_that_cannot_be_written_is_one_line(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        """Exit status 2."""
        with pytest.raises(SystemExit) as exit_:
            command.app(["perfetto", str(run), "--out", str(tmp_path / "none" / "x.json")])
        assert exit_.value.code == 2
        assert "no such file or directory" in capsys.readouterr().err
