"""Calibration finds the costs of a run whose costs are known, and says what it could not see."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mta.core.settings import ConfigError
from sim.calibrate import calibrate, report
from sim.costs import Costs, MemoryCosts, from_mapping, load, save, sha256_of
from sim.measure import measure
from sim.memory import warmth
from tests.support.model import LATENCY, scenario, write_run

OUTAGE = {"kind": "outage", "from_s": 1.0, "to_s": 4.0}
SERVER = {
    "retry": {"base_s": 0.5},
    "limits": {
        "mta": {"route_delay_base_s": 0.1, "route_delay_max_s": 0.2},
        "scheduler": {"max_held": 10_000, "max_schedule": 100},
    },
}
TRUTH = Costs(
    session_s=500e-6,
    message_s=700e-6,
    recipient_s=90e-6,
    transaction_s=400e-6,
    delivery_s=120e-6,
    deferral_s=80e-6,
    network_s=3e-3,
    connect_network_s=5e-3,
    client_s=4e-3,
    client_recipient_s=1e-3,
    commit_s=2e-3,
    commit_message_s=100e-6,
    memory={
        "slim": MemoryCosts(
            base_bytes=50e6,
            envelope_bytes=700.0,
            warm_bytes=2e6,
            kept_share=0.9,
            session_bytes=0.0,
            connection_bytes=0.0,
        )
    },
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of a model whose costs are `TRUTH`."""
    directory = tmp_path_factory.mktemp("run") / "small-1"
    of = scenario(
        LATENCY,
        OUTAGE,
        messages=1600,
        rate=200.0,
        sizes={"law": "lognormal", "median": 3300.0, "sigma": 0.66, "max": 65536},
        server=SERVER,
        sessions=20,
    )
    of.load.recipients.law = "zipf"
    of.load.recipients.s = 1.3
    of.load.recipients.max = 20
    write_run(directory, of, costs=TRUTH)
    return directory


class TestKnownCosts:
    def test_costs_are_found(self, run: Path):
        """Each where it can be told from the others; the rest in the sum."""
        found = calibrate(run)
        for name, tolerance in {
            "commit_s": 0.05,
            "client_s": 0.2,
            "client_recipient_s": 0.2,
            "message_s": 0.3,
            "recipient_s": 0.3,
            "transaction_s": 0.35,
            "delivery_s": 0.35,
        }.items():
            assert getattr(found, name) == pytest.approx(getattr(TRUTH, name), rel=tolerance), name
        # What waits for the loop looks like the network: a bias that a busier loop makes larger.
        assert TRUTH.network_s <= found.network_s < TRUTH.network_s + 2e-3
        assert TRUTH.connect_network_s <= found.connect_network_s < TRUTH.connect_network_s + 3e-3
        assert found.idle_share < 0.03
        assert found.provenance.cpu_explained > 0.9

    def test_the_sum_of_cpu_is_known_best(self, run: Path):
        """A message with its recipients and deliveries costs what it cost."""

        def per_message(costs: Costs) -> float:
            door = costs.session_s + costs.message_s + 4.1 * costs.recipient_s
            return door + 2 * costs.transaction_s + 4.1 * costs.delivery_s + 4 * costs.deferral_s

        assert per_message(calibrate(run)) == pytest.approx(per_message(TRUTH), rel=0.05)

    def test_memory_is_found_with_its_error(self, run: Path):
        """Slope, base and what is kept."""
        found, truth = calibrate(run).memory["slim"], TRUTH.memory["slim"]
        assert found.envelope_bytes == pytest.approx(truth.envelope_bytes, rel=0.1)
        assert found.base_bytes == pytest.approx(truth.base_bytes, rel=0.01)
        assert found.kept_share == pytest.approx(truth.kept_share, abs=0.1)
        assert 0 < found.envelope_stderr < 100
        assert found.samples > 20

    def test_it_says_what_it_came_from(self, run: Path):
        """Digest of every file, and how much there was."""
        where = calibrate(run).provenance
        assert {
            f"slim/{name}": sha256_of(run / "slim" / name)
            for name in ("trace.jsonl", "samples.csv", "load.jsonl")
        } == where.files
        assert where.commits > 100
        assert where.transactions > 500

    def test_a_run_and_the_only_server_of_it_are_the_same(self, run: Path):
        """The bench calibrates server by server, a replay the run."""
        one, all_ = calibrate(run / "slim"), calibrate(run)
        assert replace(one, provenance=all_.provenance) == all_

    def test_a_calibration_survives_its_file(self, run: Path, tmp_path: Path):
        """What is written down is read back, to the last digit."""
        found = calibrate(run)
        save(found, tmp_path / "calibration.json")
        assert load(tmp_path / "calibration.json") == found

    def test_the_report_shows_every_cost(self, run: Path, capsys: pytest.CaptureFixture[str]):
        """And what was not seen."""
        report(calibrate(run))
        shown = capsys.readouterr().out
        for name, value in asdict(Costs()).items():
            assert name in shown or not isinstance(value, float)

    def test_two_runs_are_fitted_as_one(self, run: Path, tmp_path: Path):
        """CPU and memory are known better, and every file is named with its run."""
        of = scenario(
            LATENCY,
            OUTAGE,
            messages=800,
            recipients=6,
            seed=8,
            server=SERVER,
        )
        other = tmp_path / "small-2"
        write_run(other, of, costs=TRUTH)
        (other / "begun.json").write_text('{"host": {"cores": 2}, "versions": {"numpy": "2"}}')
        one, both = calibrate(run), calibrate(other, run)
        assert both.memory["slim"].samples > one.memory["slim"].samples
        assert abs(both.delivery_s - TRUTH.delivery_s) < 3 * both.stderr["delivery_s"]
        assert abs(both.recipient_s - TRUTH.recipient_s) < 3 * both.stderr["recipient_s"]
        assert both.provenance.runs == [str(other), str(run)]
        assert both.provenance.host == {"cores": 2}
        assert both.provenance.versions == {"numpy": "2"}
        names = ("trace.jsonl", "samples.csv", "load.jsonl")
        assert set(both.provenance.files) == {
            f"{each.name}/slim/{name}" for each in (run, other) for name in names
        }
        assert any("different machines" in note for note in both.provenance.notes)
        assert calibrate(other, run, other, run) == both
        save(both, tmp_path / "calibration.json")
        assert load(tmp_path / "calibration.json") == both

    def test_runs_of_one_name_are_told_apart(self, tmp_path: Path):
        """Every file of both has its digest."""
        of = scenario(LATENCY, messages=60, server=SERVER)
        for place in ("a", "b"):
            write_run(tmp_path / place / "same-1", of, costs=TRUTH)
        found = calibrate(tmp_path / "a" / "same-1", tmp_path / "b" / "same-1")
        assert len(found.provenance.files) == 6

    def test_two_servers_give_their_median_and_a_memory_each(self, tmp_path: Path):
        """Costs are the machine's, memory is the representation's."""
        of = scenario(LATENCY, OUTAGE, messages=400, server=SERVER)
        memory = TRUTH.memory["slim"]
        costs = replace(
            TRUTH, memory={"slim": memory, "packed": replace(memory, envelope_bytes=70.0)}
        )
        directory = tmp_path / "two-1"
        write_run(directory, of, costs=costs, representation="slim")
        write_run(directory, of, costs=costs, representation="packed")
        found = calibrate(directory)
        assert found.memory["slim"].samples
        assert found.memory["packed"].samples
        assert found.memory["slim"].envelope_bytes > 3 * found.memory["packed"].envelope_bytes
        assert len(found.provenance.files) == 6


class TestWhatIsMissing:
    def test_without_samples_cpu_and_memory_are_defaults(self, run: Path, tmp_path: Path):
        """And the calibration says so."""
        part = tmp_path / "slim"
        part.mkdir()
        (part / "trace.jsonl").write_bytes((run / "slim" / "trace.jsonl").read_bytes())
        found = calibrate(part)
        assert found.message_s == Costs().message_s
        assert found.memory == Costs().memory
        assert found.commit_s == pytest.approx(TRUTH.commit_s, rel=0.05)
        notes = " ".join(found.provenance.notes)
        for word in ("samples.csv", "load.jsonl", "scenario.toml"):
            assert word in notes

    def test_a_run_of_nothing_keeps_the_defaults(self, tmp_path: Path):
        """One message says nothing about costs."""
        write_run(tmp_path / "one-1", scenario(messages=1), costs=TRUTH)
        found = calibrate(tmp_path / "one-1")
        assert found.network_s == Costs().network_s
        assert found.memory == Costs().memory
        assert len(found.provenance.notes) >= 4

    def test_a_server_that_measured_nothing_does_not_weigh(self, run: Path, tmp_path: Path):
        """Its defaults are no measurements: the median is that of the others, and the notes say of how many."""
        write_run(tmp_path / "one-1", scenario(messages=1), costs=TRUTH)
        alone, both = calibrate(run), calibrate(run, tmp_path / "one-1")
        for name in ("commit_s", "commit_message_s", "network_s", "connect_network_s", "client_s"):
            assert getattr(alone, name) != getattr(Costs(), name), name
            assert getattr(both, name) == pytest.approx(getattr(alone, name), rel=0.01), name
        assert (
            "1 of 2 servers: too few commits: the disk's costs are defaults"
            in both.provenance.notes
        )

    @pytest.mark.parametrize(
        ("damage", "line"),
        [
            ("none", "has no trace.jsonl"),
            ("empty", "no header of a trace"),
            ("text", "no header of a trace"),
            ("schema", "schema 99"),
            ("config", "header"),
            ("order", "not what this core would have been told"),
            ("hole", "7 lines are lost"),
        ],
    )
    def test_a_damaged_trace_is_one_line(self, run: Path, tmp_path: Path, damage: str, line: str):
        """It names the file and what is wrong."""
        part = tmp_path / "slim"
        part.mkdir()
        lines = (run / "slim" / "trace.jsonl").read_text().splitlines(keepends=True)
        header = json.loads(lines[0])
        if damage == "empty":
            lines = []
        elif damage == "text":
            lines = ["hello\n"]
        elif damage == "schema":
            lines[0] = json.dumps({**header, "schema": 99}) + "\n"
        elif damage == "config":
            lines[0] = json.dumps({k: v for k, v in header.items() if k != "limits"}) + "\n"
        elif damage == "order":
            done = next(i for i, each in enumerate(lines) if "TransactionDone" in each)
            lines.insert(done, lines[done])
        elif damage == "hole":
            lines.insert(5, json.dumps({"t": 1e9 + 1, "k": "lost", "lines": 7}) + "\n")
        if damage != "none":
            (part / "trace.jsonl").write_text("".join(lines))
        with pytest.raises(ConfigError, match=line) as caught:
            calibrate(part)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "content", [b"\xff\xfe\x00", b"t," + b"x" * 200_000 + b"\n", b"t\n", b""]
    )
    def test_samples_that_are_no_table_are_one_line(
        self, run: Path, tmp_path: Path, content: bytes
    ):
        """Bytes of something else, a field without an end, nothing: no traceback."""
        part = tmp_path / "slim"
        part.mkdir()
        (part / "trace.jsonl").write_bytes((run / "slim" / "trace.jsonl").read_bytes())
        (part / "samples.csv").write_bytes(content)
        with pytest.raises(ConfigError, match=r"samples\.csv") as caught:
            calibrate(part)
        assert "\n" not in str(caught.value)

    def test_damaged_samples_are_one_line(self, run: Path, tmp_path: Path):
        """They name the file and the column."""
        part = tmp_path / "slim"
        part.mkdir()
        (part / "trace.jsonl").write_bytes((run / "slim" / "trace.jsonl").read_bytes())
        (part / "samples.csv").write_text("t,rss_bytes\n1,2\n")
        with pytest.raises(ConfigError, match="has no column cpu_s"):
            calibrate(part)
        (part / "samples.csv").write_text("t,rss_bytes,cpu_s,scheduler.envelope\n1,x,2,3\n")
        with pytest.raises(ConfigError, match="rss_bytes"):
            calibrate(part)

    @pytest.mark.parametrize("restored", [{"restored_s": None}, {}])
    def test_notes_of_a_restart_that_are_damaged_are_one_line(
        self, run: Path, tmp_path: Path, restored: dict[str, None]
    ):
        """Each number that is used has to be there and to be one."""
        names = ("gone_s", "started_s", "opened_s", "read_s", "envelopes")
        (tmp_path / "trace.jsonl").write_bytes((run / "slim" / "trace.jsonl").read_bytes())
        notes = {"load_start": 1e9, "restarts": [{**dict.fromkeys(names, 1.0), **restored}]}
        (tmp_path / "run.json").write_text(json.dumps(notes))
        with pytest.raises(ConfigError, match=r"run\.json: can't be used"):
            calibrate(tmp_path)

    def test_a_load_that_is_none_is_one_line(self, run: Path, tmp_path: Path):
        """It names the file."""
        part = tmp_path / "slim"
        part.mkdir()
        (part / "trace.jsonl").write_bytes((run / "slim" / "trace.jsonl").read_bytes())
        (part / "load.jsonl").write_text('{"kind": "message"}\n')
        with pytest.raises(ConfigError, match=r"load\.jsonl: is no record of a load"):
            calibrate(part)


class TestCostsFile:
    @pytest.mark.parametrize(
        ("content", "line"),
        [
            (None, "can't be read"),
            ("{", "is not JSON"),
            ('{"message": 1}', "message = 1: unknown key"),
            ('{"message_s": "x"}', "message_s"),
            ('{"message_s": -1}', "must not be negative"),
            ('{"idle_share": 1.0}', "must be below 1"),
            ('{"memory": {"slim": {"kept_share": 2}}}', "kept_share"),
        ],
    )
    def test_bad_input_is_one_line(self, tmp_path: Path, content: str | None, line: str):
        """Unknown keys, wrong types, impossible values."""
        path = tmp_path / "costs.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(ConfigError, match=line):
            load(path)

    def test_partial_costs_have_the_defaults(self):
        """A what-if changes one number."""
        assert from_mapping({"commit_s": 0.5}, source="x").message_s == Costs().message_s


def test_a_server_warms_up_once():
    """Cold at first, as large as it gets later, never beyond."""
    values = [warmth(n) for n in (0, 100, 500, 5000, 10**9)]
    assert values[0] == 0.0
    assert values == sorted(values)
    assert values[-1] == 1.0
    assert values[2] == pytest.approx(0.632, abs=0.001)


def test_durations_are_those_of_the_model(run: Path):
    """What is measured in a trace is what was put into it: no transaction is faster than its parts."""
    header, measured = measure(run / "slim" / "trace.jsonl")
    assert header["clock"] == "simulated"
    floor = TRUTH.network_s + TRUTH.transaction_s
    assert min(seconds for seconds, _, _ in measured.transactions) > floor
    assert min(seconds for _, seconds, _ in measured.connected) > TRUTH.connect_network_s
    assert sum(batch for batch, _, _ in measured.commits) == 1600 == len(measured.submitted)
