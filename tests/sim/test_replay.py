"""A replay of a run that the model itself made says what was; what-ifs say what would have been."""

import json
from pathlib import Path
from typing import Any

import pytest

from mta.core.settings import ConfigError
from sim import __main__ as command
from sim.calibrate import calibrate
from sim.commands.runtable import half_width
from sim.perfetto import export
from sim.recorded import Story, recorded, tell
from sim.replay import arrivals, find_run, replay, table
from sim.replaylocal import LocalStory, of_model, rows_of
from sim.scenario import load
from tests.sim.test_calibrate import LATENCY, OUTAGE, SERVER, TRUTH
from tests.support.model import scenario, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "small-1"
    slow = {"kind": "latency", "delay_s": 0.02}
    of = scenario(slow, OUTAGE, messages=800, recipients=3, server=SERVER, sessions=20)
    write_run(directory, of, costs=TRUTH)
    return directory


@pytest.fixture(scope="module")
def local_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "local-1"
    said = ["load.scale=0.005", "local.1.users=5", "local.0.tempfail=0.1"]
    write_run(directory, load("local-burst", said), costs=TRUTH)
    return directory


class TestReplay:
    def test_the_model_of_then_is_what_was(self, run: Path):
        """Same arrivals, calibrated costs: every number within a few per cent."""
        found = replay(str(run))
        then, model = found["then"], found["model"]
        assert found["what_if"] is None
        for name in ("accepted", "delivered", "queued", "bounced"):
            assert then[name] == model[name]
        for name, tolerance in {
            "peak_queued": 0.05,
            "drain_time_s": 0.05,
            "peak_rss_bytes": 0.02,
            "p95": 0.1,
        }.items():
            assert model[name] == pytest.approx(then[name], rel=tolerance), name

    def test_a_limit_has_its_effect(self, run: Path):
        """Fewer connections to a slow host drain later, with fewer connections."""
        found = replay(str(run), ["limits.mta.max_conn_per_host=1"])
        assert found["what_if"]["drain_time_s"] > found["model"]["drain_time_s"] * 1.3
        assert found["changed"] == {"limits.mta.max_conn_per_host": 1}
        assert found["what_if"]["delivered"] == found["then"]["delivered"]

    def test_another_representation_costs_other_memory_and_changes_nothing_else(self, run: Path):
        """It was not run, which is said."""
        found = replay(str(run / "slim"), ["envelope=whole"])
        assert found["what_if"]["peak_rss_bytes"] > found["model"]["peak_rss_bytes"]
        assert found["what_if"]["peak_queued"] == found["model"]["peak_queued"]
        assert any("whole was not run" in note for note in found["notes"])

    def test_a_representation_that_was_run_too_is_measured(self, tmp_path: Path):
        """Its memory comes from its own server."""
        of = scenario(LATENCY, OUTAGE, messages=400, server=SERVER)
        write_run(tmp_path / "two-1", of, costs=TRUTH, representation="slim")
        write_run(tmp_path / "two-1", of, costs=TRUTH, representation="packed")
        found = replay(str(tmp_path / "two-1"), ["envelope=packed"], representation="slim")
        assert not any("was not run" in note for note in found["notes"])

    def test_arrivals_are_the_recorded_ones(self, run: Path):
        """In the order in which they were sent, each with its own recipients."""
        schedule, start, sent = arrivals(run / "slim" / "load.jsonl", load(run / "scenario.toml"))
        assert start == 1e9
        assert len(schedule) == 800 == len(sent)
        assert (schedule.due_s[1:] >= schedule.due_s[:-1]).all()
        text = (run / "slim" / "load.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()][1:]
        lines.sort(key=lambda line: (line["sent"], line["seq"]))
        for i in (0, 13, 799):
            rcpts = [mailbox.address for mailbox in schedule.recipients(i)]
            assert rcpts == lines[i]["rcpts"]
            assert schedule.due_s[i] == pytest.approx(lines[i]["sent"] - start)

    def test_the_record_of_a_trace(self, run: Path):
        """Without the load's record the time to delivery counts from the commit."""
        then = recorded(run / "slim", Story(load_start=1e9))
        assert then["delivered"] == then["accepted"] == 2400
        assert then["p50"] > 0

    def test_what_came_of_the_warm_up_is_not_counted(self, tmp_path: Path):
        """The model has no warm-up: transactions, deferrals and connections are those of the load, as its mail is."""
        of = scenario(LATENCY, OUTAGE, messages=400, server=SERVER)
        write_run(tmp_path / "one-1", of, costs=TRUTH)
        whole, half = (
            recorded(tmp_path / "one-1" / "slim", Story(load_start=start))
            for start in (1e9, 1e9 + of.messages / of.load.rate / 2)
        )
        assert 0 < half["accepted"] < whole["accepted"]
        for told in (whole, half):
            assert told["transactions"] == told["accepted"] == told["delivered"]
        assert 0 < half["connections_opened"] < whole["connections_opened"]

    def test_what_is_left_of_the_warm_up_is_not_queued(self, tmp_path: Path):
        """Mail for a host that never comes back: what is queued is what the load sent for it, and no more."""
        dead = {"kind": "dead", "mode": "refuse"}
        of = scenario(LATENCY, dead, messages=100, server=SERVER)
        write_run(tmp_path / "one-1", of, costs=TRUTH)
        whole, half = (
            recorded(tmp_path / "one-1" / "slim", Story(load_start=start))
            for start in (1e9, 1e9 + of.messages / of.load.rate / 2)
        )
        assert 0 < half["accepted"] < whole["accepted"]
        for told in (whole, half):
            assert told["queued"] == told["peak_queued"] == told["accepted"] - told["delivered"]
            assert told["drain_time_s"] is None

    def test_a_load_that_never_said_when_it_began(self, run: Path):
        """It is told at once, not from the year 1970 in steps of a sample."""
        assert recorded(run / "slim", Story(load_start=0.0))["peak_queued"] > 0


class TestLocal:
    """A run with users of its own: rows for their mail, by what the trace says and by the model."""

    def test_rows_of_local_mail(self, local_run: Path):
        """The same counts, and nearly the same waits, by group."""
        found = replay(str(local_run), ["limits.mda.max_session_per_user=2"])
        then, model, what_if = found["then"], found["model"], found["what_if"]
        for name in ("local_accepted", "local_delivered", "local_attempts", "local_tempfails"):
            assert then[name] == model[name], name
        assert then["local_delivered"] == then["delivered"]
        assert then["local_attempts"] == then["local_delivered"] + then["local_tempfails"]
        assert then["local_tempfails"] > 10
        groups = found["local_groups"]
        for name in groups:
            assert model[f"{name} p50"] == pytest.approx(then[f"{name} p50"], rel=0.2), name
        # Two turns for a user instead of seven: the flooded one waits longer, the others do not.
        assert what_if[f"{groups[0]} p50"] > 2 * model[f"{groups[0]} p50"]

    def test_the_table_has_them(self, local_run: Path, capsys: pytest.CaptureFixture[str]):
        """With a row for each group."""
        table(replay(str(local_run)))
        out = capsys.readouterr().out
        for words in ("local_attempts", "deliveries started", "flood p99", "others p50"):
            assert words in out

    def test_without_local_users_there_are_none(self):
        """Nor keys for them."""
        assert () == rows_of(())
        assert {} == of_model(None) == LocalStory(()).rows()


class TestBadInput:
    @pytest.mark.parametrize(
        ("overrides", "line"),
        [
            (["envelop=full"], '--set: envelop = "full": unknown key'),
            (["envelope=fat"], "--set: envelope"),
            (["limits.mta.max_conn_per_host=x"], "--set: limits.mta.max_conn_per_host"),
            (["smtp.listen=1"], "--set: smtp.listen"),
            (["nonsense"], "--set"),
        ],
    )
    def test_a_wrong_override_is_one_line(self, run: Path, overrides: list[str], line: str):
        """It names the key, before anything is calibrated."""
        with pytest.raises(ConfigError, match=line) as caught:
            replay(str(run), overrides)
        assert "\n" not in str(caught.value)

    def test_a_missing_run_is_one_line(self, tmp_path: Path):
        """And so is a directory that is no run, or a representation that was not run."""
        with pytest.raises(ConfigError, match="there is no such file or directory"):
            replay(str(tmp_path / "nowhere"))
        with pytest.raises(ConfigError, match="is no run"):
            replay(str(tmp_path))

    def test_a_representation_that_is_not_there(self, run: Path):
        """The line says which are."""
        with pytest.raises(ConfigError, match="the run has slim"):
            replay(str(run), representation="whole")
        with pytest.raises(ConfigError, match="is of another one"):
            replay(str(run / "slim"), representation="whole")

    @pytest.mark.parametrize("name", ["load.jsonl", "trace.jsonl"])
    def test_a_trimmed_run_is_one_line(self, run: Path, tmp_path: Path, name: str):
        """What is needed and not there is named."""
        copy = tmp_path / "copy"
        (copy / "slim").mkdir(parents=True)
        for path in ("scenario.toml", "slim/trace.jsonl", "slim/load.jsonl", "slim/samples.csv"):
            if not path.endswith(name):
                (copy / path).write_bytes((run / path).read_bytes())
        with pytest.raises(ConfigError, match=name):
            replay(str(copy))

    @pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"rss_bytes\n" + b"x" * 200_000 + b"\n"])
    def test_samples_that_are_no_table_are_one_line(self, tmp_path: Path, content: bytes):
        """Also where costs are given, so that nobody else has looked into them."""
        (tmp_path / "samples.csv").write_bytes(content)
        story = Story()
        story.heard.append(tmp_path)
        with pytest.raises(ConfigError, match=r"samples\.csv: is no table"):
            recorded(tmp_path, story)

    @pytest.mark.parametrize(
        ("damage", "line"),
        [
            ("twice", "TransactionDone at .*: not what this core would have been told"),
            ("domain", "DomainResolved at .*: not what this core would have been told"),
        ],
    )
    def test_a_trace_of_nobody_is_one_line(self, run: Path, tmp_path: Path, damage: str, line: str):
        """An answer that comes twice, a value that no server writes: for a story and for a timeline."""
        kind = "TransactionDone" if damage == "twice" else "DomainResolved"
        lines = (run / "slim" / "trace.jsonl").read_text().splitlines(keepends=True)
        number = next(i for i, each in enumerate(lines) if f'"k":"{kind}"' in each)
        if damage == "twice":
            lines.insert(number, lines[number])
        else:
            lines[number] = json.dumps({**json.loads(lines[number]), "domain": []}) + "\n"
        path = tmp_path / "trace.jsonl"
        path.write_text("".join(lines))
        for read in (
            lambda: tell(tmp_path, Story()),
            lambda: calibrate(tmp_path),
            lambda: export(path, tmp_path / "out.json"),
        ):
            with pytest.raises(ConfigError, match=line):
                read()
        assert not (tmp_path / "out.json").exists()

    @pytest.mark.parametrize("commit", [{"batch": "x"}, {"seconds": ""}, {"lagging": None}])
    def test_a_commit_without_its_numbers_is_one_line(
        self, run: Path, tmp_path: Path, commit: dict[str, Any]
    ):
        """A calibration needs all of them; a timeline names the one that it draws."""
        lines = (run / "slim" / "trace.jsonl").read_text().splitlines(keepends=True)
        number = next(i for i, each in enumerate(lines) if '"k":"commit"' in each)
        lines[number] = json.dumps({**json.loads(lines[number]), **commit}) + "\n"
        (tmp_path / "trace.jsonl").write_text("".join(lines))
        with pytest.raises(ConfigError, match=f"line {number + 1}: "):
            calibrate(tmp_path)
        if "seconds" in commit:
            with pytest.raises(ConfigError, match=r"commit at .*: lacks a number"):
                export(tmp_path / "trace.jsonl", tmp_path / "out.json")

    @pytest.mark.parametrize(
        "damage",
        ['{"kind": "start", "load_start": 1e300}', '{"kind": "start", "load_start": NaN}', ""],
    )
    def test_a_load_that_began_in_another_age_is_one_line(
        self, run: Path, tmp_path: Path, damage: str
    ):
        """Or does not say when: no model waits for mail of decades."""
        lines = (run / "slim" / "load.jsonl").read_text().splitlines(keepends=True)
        assert '"start"' in lines[0]
        path = tmp_path / "load.jsonl"
        path.write_text("".join([damage and damage + "\n", *lines[1:]]))
        with pytest.raises(ConfigError, match="a month and more from the start of the load"):
            arrivals(path, load(run / "scenario.toml"))

    def test_an_instant_beyond_all_clocks_ends(self, run: Path, tmp_path: Path):
        """Steps of a fifth of a second are lost in it: nobody counts up to it."""
        lines = (run / "slim" / "trace.jsonl").read_text().splitlines(keepends=True)[:1]
        lines.append(json.dumps({"t": 1e300, "k": "gauges"}) + "\n")
        (tmp_path / "trace.jsonl").write_text("".join(lines))
        tell(tmp_path, Story())

    def test_a_load_of_another_scenario_is_one_line(self, run: Path, tmp_path: Path):
        """Messages that the scenario does not have."""
        path = tmp_path / "load.jsonl"
        path.write_text(
            json.dumps({"kind": "message", "seq": 9999, "sent": 1.0, "code": 250, "reply": ""})
            + "\n"
        )
        with pytest.raises(ConfigError, match="no record of this scenario"):
            arrivals(path, load(run / "scenario.toml"))
        path.write_text("{}\n")
        with pytest.raises(ConfigError, match="is no record of a load"):
            arrivals(path, load(run / "scenario.toml"))


class TestFind:
    def test_latest_is_the_link_or_the_newest(self, tmp_path: Path):
        """With and without the link that the bench leaves."""
        for name in ("a-1", "a-2"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "scenario.toml").write_text("")
        assert find_run("latest", tmp_path) == tmp_path / "a-2"
        assert find_run(str(tmp_path / "latest")) == tmp_path / "a-2"
        (tmp_path / "latest").symlink_to("a-1")
        assert find_run("latest", tmp_path).resolve() == tmp_path / "a-1"
        assert find_run(str(tmp_path / "a-2"), tmp_path) == tmp_path / "a-2"
        assert find_run("a-1", tmp_path) == tmp_path / "a-1"


class TestCommand:
    def sim(self, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
        from typer.testing import CliRunner

        done = CliRunner().invoke(command.app, list(words))
        return done.exit_code, done.stdout, done.stderr

    def test_run_prints_a_table_and_a_fingerprint(self, capsys: pytest.CaptureFixture[str]):
        """Same seed, same fingerprint; another seed, another."""
        words = ("run", "backlog", "--set", "load.messages=200")
        status, out, err = self.sim(capsys, *words)
        assert (status, err) == (0, "")
        for name in ("accepted", "drain_time_s", "p99", "peak_rss_bytes", "fingerprint"):
            assert name in out
        prints = [self.sim(capsys, *words, *more)[1][-40:] for more in ((), ("--seed", "5"))]
        assert prints[0] == out[-40:] != prints[1]

    def test_run_as_json(self, capsys: pytest.CaptureFixture[str], tmp_path: Path):
        """One object, or a list of replications; the directory gets trace, summary and scenario."""
        out_dir = tmp_path / "deep" / "er"
        words = ("run", "backlog", "--set", "load.messages=100", "--json")
        status, out, _ = self.sim(capsys, *words, "--out", str(out_dir))
        found = json.loads(out)
        assert status == 0
        assert found["accepted_messages"] == 100
        assert json.loads((out_dir / "summary.json").read_text()) == found
        assert load(out_dir / "scenario.toml").load.messages == 100
        lines = (out_dir / "trace.jsonl").read_text().splitlines()
        assert len(lines) > found["stimuli"]
        then = recorded(out_dir)
        assert then["delivered"] == found["delivered"]
        many = json.loads(self.sim(capsys, *words, "--replications", "3", "--backend", "heapq")[1])
        assert [0, 1, 2] == [each["replication"] for each in many]
        assert many[0]["fingerprint"] == found["fingerprint"]

    def test_replications_have_an_interval(self, capsys: pytest.CaptureFixture[str]):
        """Mean and half of the 95 % interval."""
        out = self.sim(
            capsys, "run", "backlog", "--set", "load.messages=50", "--replications", "7"
        )[1]
        assert "mean of 7" in out
        assert "and 2 more" in out

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (("run", "nosuch"), 'sim: scenario: "nosuch"'),
            (("run", "backlog", "--set", "load.rat=1"), "sim: --set: load.rat = 1: unknown key"),
            (
                ("run", "backlog", "--set", "server.limits.mta.max_con=1"),
                "sim: --set: server.limits.mta.max_con = 1: unknown key",
            ),
            (
                ("run", "backlog", "--costs", "/nowhere/x.json"),
                "sim: /nowhere/x.json: can't be read",
            ),
            (("run", "backlog", "--backend", "pypy"), "sim: --backend"),
            (("run", "backlog", "--out", "/proc/nowhere"), "sim: --out"),
            (("run", "backlog", "--seed", "-1"), "sim: --set: seed = -1: must not be negative"),
            (("replay", "/nowhere"), 'sim: run: "/nowhere"'),
            (("calibrate", "/nowhere"), 'sim: run: "/nowhere"'),
        ],
    )
    def test_bad_input_is_one_line_and_status_2(
        self, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], line: str
    ):
        """On standard error, naming what was said."""
        status, out, err = self.sim(capsys, *words)
        assert status == 2
        assert out == ""
        assert err.startswith(line), err
        assert err.count("\n") == 1

    def test_replay_and_calibrate(
        self, capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path
    ):
        """As tables and as JSON."""
        status, out, _ = self.sim(capsys, "replay", str(run), "--set", "envelope=packed")
        assert status == 0
        assert "model of then" in out
        assert "what if" in out
        found = json.loads(self.sim(capsys, "replay", str(run), "--json")[1])
        assert {"then", "model", "what_if"} <= set(found)
        path = tmp_path / "c.json"
        assert self.sim(capsys, "calibrate", str(run), "--out", str(path))[0] == 0
        again: dict[str, Any] = json.loads(
            self.sim(capsys, "run", "backlog", "--costs", str(path), "--json")[1]
        )
        assert again["delivered"] > 0

    def test_scenarios_are_listed(self, capsys: pytest.CaptureFixture[str]):
        """By name, with what they are about."""
        assert "backlog" in self.sim(capsys, "scenarios")[1]


@pytest.mark.parametrize(("n", "t"), [(2, 12.706), (5, 2.776), (10, 2.262), (100, 1.984)])
def test_intervals_are_students(n: int, t: float):
    """Against the table of Student's t."""
    values = [0.0, 1.0] * (n // 2) + [0.5] * (n % 2)
    import statistics

    expected = t * statistics.stdev(values) / n**0.5
    assert half_width(values) == pytest.approx(expected, rel=0.01)
    assert half_width([1.0]) == 0.0
