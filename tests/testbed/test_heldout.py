"""A validation says what is true of its runs: good predictions hold, bad ones do not, and noise is called noise."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mta.core.settings import ConfigError
from testbed.children import UsageError
from testbed.heldout import PLAN, RESULT, SCHEMA, directory_of, plan_of, read
from testbed.heldoutdocs import BEGIN, DATA, END, PAGE, publish, with_block
from testbed.heldoutgates import (
    GATES,
    HOLDS,
    MISSES,
    MISSING,
    NOISE,
    NOTHING,
    TOO_NOISY,
    judged,
    rows_of,
    word_of,
)
from testbed.heldoutreport import html, tables
from testbed.results import print_result, render_result
from tests.support.server import ROOT

MIB = 1024 * 1024
VALUES = (2, 4, 8)
TRUE = {
    "peak_queue": 8000.0,
    "drain_time": 16.0,
    "messages_per_s": 10.0,
    "peak_rss": 70.0 * MIB,
    "end_rss": 68.0 * MIB,
}
RSS = ("peak_rss", "end_rss")


def setting(
    value: int, *, off: float = 1.0, runs: int = 5, wobble: float = 0.02, **change: Any
) -> dict[str, Any]:
    """A setting at which everything is in proportion to the limit, and the model is off by a factor."""
    scale = {
        "peak_queue": 4 / value,
        "drain_time": 4 / value,
        "messages_per_s": value / 4,
        "peak_rss": 1.0,
        "end_rss": 1.0,
    }
    jitter = [1 + wobble * (i - runs // 2) / max(runs // 2, 1) for i in range(runs)]
    real: dict[str, list[float | None]] = {}
    model: dict[str, list[float | None]] = {}
    for name, less in (("full", 0.0), ("slim", 8.0 * MIB / value)):
        for quantity, amount in TRUE.items():
            true = amount * scale[quantity] - (less if quantity in RSS else 0)
            around = [1.0] * runs if quantity in RSS else jitter
            real[f"{name}.{quantity}"] = [true * each for each in around]
            model[f"{name}.{quantity}"] = [true * (1.0 if quantity in RSS else off)] * runs
    real["saving.peak_rss"] = [8.0 * MIB / value * each for each in jitter]
    model["saving.peak_rss"] = [8.0 * MIB / value * off] * runs
    t = [0.0, 0.2, 0.4]
    curve = {"t": t, "queued": [0, 5, 0], "rss_bytes": [6e7, 7e7, None]}
    found = {
        "value": value,
        "trains": value == 4,
        "repeats": runs,
        "real": real,
        "model": model,
        "distances": {
            f"{n}.{q}": [0.1] * runs for n in ("full", "slim") for q in ("queue_curve", "rss_curve")
        },
        "real_distances": {
            f"{n}.{q}": [0.05] * runs
            for n in ("full", "slim")
            for q in ("queue_curve", "rss_curve")
        },
        "foreign_cpu_share": 0.02,
        "curves": {"full": {"real": curve, "model": curve}},
    }
    return {**found, **change}


def result(*settings: dict[str, Any]) -> dict[str, Any]:
    """What `validate` would have written of such settings."""
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "scenario": "held-out",
        "title": "A <limit> is changed",
        "question": "Does it hold?",
        "key": "server.limits.mta.max_conn_per_route",
        "train": 4,
        "repeats": 5,
        "training_runs": 2,
        "representations": ["full", "slim"],
        "envelopes": 20_000,
        "started": "2026-01-01T00:00:00+00:00",
        "command": "testbed validate held-out",
        "host": {"cores": 2, "cpu": "x"},
        "versions": {"python": "3.11"},
        "calibration": {
            "provenance": {
                "files": {"train-4-1/full/trace.jsonl": "ab" * 32},
                "cpu_explained": 0.9,
                "notes": [],
            }
        },
        "settings": list(settings),
        "curve": {"values": list(VALUES), "full.peak_queue": [16000, 8000, None]},
        "failed": [],
    }
    found["verdict"] = judged(found)
    return found


def line_of(found: dict[str, Any], quantity: str) -> dict[str, Any]:
    """The line of one quantity."""
    return next(each for each in found["verdict"]["quantities"] if each["quantity"] == quantity)


def verdicts(found: dict[str, Any], quantity: str) -> set[str]:
    """What was said of a quantity at held-out settings."""
    return {row.verdict for row in rows_of(found) if row.quantity == quantity and not row.trains}


class TestVerdicts:
    def test_a_model_that_is_right_holds(self):
        """Everywhere, and the training setting is not judged."""
        found = result(*(setting(value, off=1.01) for value in VALUES))
        assert found["verdict"]["ok"]
        assert {line["quantity"] for line in found["verdict"]["quantities"]} == set(GATES)
        assert {row.verdict for row in rows_of(found) if row.trains} == {""}
        assert all(row.naive is None for row in rows_of(found) if row.trains)

    @pytest.mark.parametrize("quantity", ["peak_queue", "drain_time", "messages_per_s", "saving"])
    def test_a_model_that_is_wrong_misses_and_says_why(self, quantity: str):
        """Wrong at the training setting already: a cost. Right there: what the setting does."""
        everywhere = result(*(setting(value, off=1.5) for value in VALUES))
        assert not everywhere["verdict"]["ok"]
        assert verdicts(everywhere, quantity) == {MISSES}
        assert "a cost is wrong" in line_of(everywhere, quantity)["why"][-1]
        elsewhere = result(setting(2, off=1.5), setting(4), setting(8, off=1.5))
        assert "what the setting changes" in line_of(elsewhere, quantity)["why"][-1]

    def test_a_busy_machine_is_named(self):
        """Before anything is concluded from it."""
        found = result(setting(2, off=1.5, foreign_cpu_share=0.4), setting(4), setting(8))
        assert "40% of the machine" in " ".join(line_of(found, "drain_time")["why"])

    def test_what_real_runs_differ_by_themselves_is_noise(self):
        """Nothing can predict better than the next real run."""
        found = result(*(setting(value, off=1.3, wobble=0.4) for value in VALUES))
        assert verdicts(found, "drain_time") == {NOISE}
        assert line_of(found, "drain_time")["held"] == 4
        assert word_of(found, line_of(found, "drain_time")) == TOO_NOISY

    def test_words_are_for_all_settings(self):
        """One setting within the gate is an answer, none is none, and a miss is a miss."""
        found = result(setting(2), setting(4), setting(8, off=1.3, wobble=0.4))
        assert word_of(found, line_of(found, "drain_time")) == HOLDS
        found = result(*(setting(value, off=1.5) for value in VALUES))
        assert word_of(found, line_of(found, "drain_time")) == "does not"

    def test_next_to_nothing_is_not_compared(self):
        """A queue of a hundred instead of fifty is the same: none."""
        past = setting(8)
        for name in ("full", "slim"):
            past["real"][f"{name}.peak_queue"] = [50.0] * 5
            past["model"][f"{name}.peak_queue"] = [100.0] * 5
        found = result(setting(2), setting(4), past)
        assert verdicts(found, "peak_queue") == {HOLDS, NOTHING}
        assert line_of(found, "peak_queue")["settings"] == 2
        past["model"]["full.peak_queue"] = [5000.0] * 5
        assert MISSES in verdicts(result(setting(2), setting(4), past), "peak_queue")

    def test_a_saving_with_the_wrong_sign_is_called_so(self):
        """Whatever its size."""
        wrong = setting(2)
        wrong["model"]["saving.peak_rss"] = [-4.0 * MIB] * 5
        why = line_of(result(wrong, setting(4), setting(8)), "saving")["why"]
        assert any("sign" in each for each in why)

    def test_a_model_no_better_than_the_naive_does_not_hold(self):
        """Within its gate, and yet worth nothing: proportion to the limit says it exactly."""
        found = result(*(setting(value, off=1.08, wobble=0.0) for value in VALUES))
        line = line_of(found, "messages_per_s")
        assert line["held"] == line["settings"]
        assert line["naive_error"] == pytest.approx(0.0)
        assert not line["ok"]
        assert "naive" in line["why"][0]

    def test_a_queue_that_did_not_drain_is_missing_not_right(self):
        """A number that was not measured is no agreement."""
        endless = setting(2)
        endless["real"]["full.drain_time"] = [None] * 5
        found = result(endless, setting(4), setting(8))
        assert MISSING in verdicts(found, "drain_time")
        assert not line_of(found, "drain_time")["ok"]

    def test_nothing_at_all_is_not_all_right(self):
        """No held-out run, no verdict."""
        assert not result(setting(4))["verdict"]["ok"]


class TestPlan:
    def test_runs_take_turns_and_training_seeds_are_their_own(self):
        """Each round begins with another value; no schedule of the training comes again."""
        plan = plan_of("held-out", (), train=None, repeats=5, training_runs=2)
        turns = plan.turns()
        assert plan.train == 8
        assert len(turns) == 4 * 5 + 2
        assert [turn.value for turn in turns[:5]] == [6, 8, 12, 18, 40]
        assert turns[5].value == 8
        assert len({turn.name for turn in turns}) == len(turns)
        seeds = {
            trains: {plan.load(turn)[-1] for turn in turns if turn.trains is trains}
            for trains in (True, False)
        }
        assert len(seeds[False]) == 5
        assert not seeds[True] & seeds[False]

    @pytest.mark.parametrize(
        ("scenario", "overrides", "train", "words"),
        [
            ("backlog", (), None, "must have one key"),
            (
                "held-out",
                ('vary={"server.limits.mta.max_conn_per_route"=[3]}',),
                None,
                "2 to 50",
            ),
            ("held-out", ("vary={seed=[[1], [2]]}",), None, "values must be"),
            ("held-out", (), "7", "must be one of 6, 8"),
            ("held-out", ("load.rate=x",), None, "load.rate"),
            ("nowhere", (), None, "nowhere"),
        ],
    )
    def test_what_makes_no_sense_is_one_line(
        self, scenario: str, overrides: tuple[str, ...], train: str | None, words: str
    ):
        """Before anything runs."""
        with pytest.raises((UsageError, ConfigError), match=re.escape(words)) as caught:
            plan_of(scenario, overrides, train=train, repeats=1, training_runs=1)
        assert "\n" not in str(caught.value)

    def test_a_directory_is_gone_on_with_by_the_same_plan_only(self, tmp_path: Path):
        """Another number of repeats would be another experiment."""
        plan = plan_of("held-out", (), train=None, repeats=2, training_runs=1)
        out = directory_of(plan, tmp_path / "v")
        assert directory_of(plan, out) == out
        other = plan_of("held-out", (), train="12", repeats=2, training_runs=1)
        with pytest.raises(UsageError, match="another train"):
            directory_of(other, out)
        (out / PLAN).write_text("{")
        with pytest.raises(UsageError, match="not JSON"):
            directory_of(plan, out)
        (tmp_path / "w").mkdir()
        (tmp_path / "w" / "x").touch()
        with pytest.raises(UsageError, match="not empty"):
            directory_of(plan, tmp_path / "w")
        with pytest.raises(UsageError, match="--out"):
            directory_of(plan, tmp_path / "w" / "x")


class TestReport:
    def test_the_page_needs_nothing_else_and_escapes(self):
        """All quantities are in it, and no text of the run is markup."""
        page = html(result(*(setting(value, off=1.5) for value in VALUES)))
        assert "A &lt;limit&gt; is changed" in page
        assert "<limit>" not in page
        assert not re.search(r'(src|href)="(?!data:)', page)
        for gate in GATES.values():
            assert gate.title in page
        assert "ab" * 8 in page

    def test_settings_that_are_no_numbers_are_drawn_too(self):
        """A policy by name."""
        named = [{**setting(value), "value": f"p{value}"} for value in VALUES]
        found = result(*named)
        found |= {"train": "p4", "curve": {"values": ["p2", "p4", "p8"]}}
        found["verdict"] = judged(found)
        assert "p8" in html(found)

    def test_it_is_read_back_printed_and_made_again(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        """Also from a compressed file; `report` judges again."""
        found = result(*(setting(value) for value in VALUES))
        (tmp_path / RESULT).write_text(json.dumps(found))
        assert read(tmp_path / RESULT) == found
        packed = tmp_path / "validation.json.gz"
        packed.write_bytes(gzip.compress(json.dumps(found).encode()))
        assert read(packed) == found
        assert render_result(tmp_path) == tmp_path / "report.html"
        assert print_result(tmp_path, as_json=True)
        assert json.loads(capsys.readouterr().out) == found
        assert print_result(tmp_path, as_json=False)
        shown = capsys.readouterr().out
        assert "Empty after" in shown
        assert "in-sample" in shown
        assert len(list(tables(found))) >= 2

    def test_without_one_there_is_none(self, tmp_path: Path):
        """Other directories are other commands' business."""
        assert render_result(tmp_path) is None
        assert print_result(tmp_path, as_json=False) is None

    @pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"schema": 99}', b"\x1f\x8b\x00"])
    def test_a_damaged_file_is_one_line(self, tmp_path: Path, content: bytes):
        """Not a traceback."""
        (tmp_path / RESULT).write_bytes(content)
        with pytest.raises(UsageError, match=r"validation|schema"):
            read(tmp_path / RESULT)


class TestPublished:
    def test_the_page_has_the_table_of_what_ships(self):
        """Notebook and docs/validation.md are of one run."""
        text = (ROOT / PAGE).read_text(encoding="utf-8")
        assert with_block(text, read(ROOT / DATA)) == text

    def test_what_ships_does_not_say_where_it_was_measured(self, tmp_path: Path):
        """Training runs have names; directories are nobody's business."""
        found = result(*(setting(value) for value in VALUES))
        origin = found["calibration"]["provenance"]
        origin |= {
            "run": "/home/me/train-4-1",
            "runs": ["/home/me/train-4-1", "/home/me/train-4-2"],
        }
        page, data = tmp_path / "page.md", tmp_path / "data.gz"
        page.write_text(f"{BEGIN}{END}")
        (tmp_path / RESULT).write_text(json.dumps(found))
        publish(tmp_path / RESULT, data=data, page=page)
        shipped = json.loads(gzip.decompress(data.read_bytes()))["calibration"]["provenance"]
        assert (shipped["run"], shipped["runs"]) == ("train-4-1", ["train-4-1", "train-4-2"])

    def test_publishing_twice_changes_nothing(self, tmp_path: Path):
        """The same result is the same bytes; a page without marks is refused."""
        found = result(*(setting(value, off=1.5) for value in VALUES))
        (tmp_path / RESULT).write_text(json.dumps(found))
        page, data = tmp_path / "page.md", tmp_path / "data" / "v.json.gz"
        page.write_text(f"before\n{BEGIN}yesterday\n{END}after\n")
        publish(tmp_path / RESULT, data=data, page=page)
        first = page.read_bytes(), data.read_bytes()
        assert b"yesterday" not in first[0]
        assert b"does not" in first[0]
        assert first[0].startswith(b"before")
        assert first[0].endswith(b"after\n")
        publish(tmp_path / RESULT, data=data, page=page)
        assert (page.read_bytes(), data.read_bytes()) == first
        assert read(data) == found
        page.write_text("nothing")
        with pytest.raises(UsageError, match="has no line"):
            publish(tmp_path / RESULT, data=data, page=page)
