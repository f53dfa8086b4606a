"""Runs side by side: what is put beside what, who leads, what the page says; and the real thing, small."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sim.scenario import load
from testbed.__main__ import app
from testbed.comparereport import figures, html
from testbed.comparing import RESULT, Cell, as_summary, cells_of, compared, failures_of, leader
from testbed.run import render
from testbed.rundir import Run
from testbed.sidebyside import Contender, Plan, peers_plan, sweep_plan, targets_of

from .conftest import make_run


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def two(tmp_path: Path) -> list[Run]:
    """Two runs of the same: slim and packed, 400 and 60 bytes an envelope."""
    made = []
    for name in ("a", "b"):
        made.append(make_run(tmp_path / name, {"slim": 400.0, "packed": 60.0}))
        render(made[-1], page=False)
    return made


def test_the_same_twice_is_a_repeat(two: list[Run]) -> None:
    """A cell for each server, with both runs in it."""
    cells = cells_of(two)

    assert [("slim", 2), ("packed", 2)] == [(cell.label, len(cell.runs)) for cell in cells]


def test_other_settings_are_another_contender(tmp_path: Path, two: list[Run]) -> None:
    """The same server under another load is no repeat, and has another name."""
    other = make_run(tmp_path / "other", {"packed": 60.0})
    render(other, page=False)

    assert ["slim", "packed", "packed, other"] == [cell.label for cell in cells_of([*two, other])]


def test_median_range_and_leader(two: list[Run]) -> None:
    """The median is a value that occurred; who leads is said only where ranges do not overlap."""
    result = compared(cells_of(two))
    (section,) = result["scenarios"]
    (alone,) = compared(cells_of(two[:1]))["scenarios"]
    assert "" == leader(alone, "pss_per_envelope")  # who was run once may be lucky
    slim, packed = (cell["quantities"]["pss_per_envelope"] for cell in section["cells"])

    assert slim["low"] == slim["median"] == slim["high"] == pytest.approx(360, abs=1)
    assert packed["median"] == pytest.approx(54, abs=1)
    assert "packed" == leader(section, "pss_per_envelope")
    assert "" == leader(section, "p99_accepted")  # the same for both
    assert "" == leader(section, "fsyncs_per_message")  # nobody can tell
    section["cells"][1]["quantities"]["pss_per_envelope"]["high"] = 365.0
    assert "" == leader(section, "pss_per_envelope")


def test_a_short_queue_tells_nothing_of_envelopes(two: list[Run]) -> None:
    """What is mostly buffers is no price of an envelope."""
    summary = two[0].summary
    summary["representations"]["slim"]["peak_queue"] = 50
    (two[0].directory / "summary.json").write_text(json.dumps(summary))
    (section,) = compared([Cell("backlog", "slim", [(two[0], "slim")])])["scenarios"]

    assert section["cells"][0]["quantities"]["pss_per_envelope"]["median"] is None


def test_failures_of_a_run_are_those_of_the_comparison(tmp_path: Path) -> None:
    """A server that lost mail can't be made to look well by its speed; the page says so first."""
    made = make_run(tmp_path / "run", {"slim": 400.0}, lost=3, delivered=17_797)
    render(made, page=False)
    result = compared(cells_of([made]), title="<b>", skipped=["exim: not here"], failed=[])

    assert ["backlog, slim: slim: 3 recipients were accepted and lost"] == failures_of(result)
    page = html(result)
    assert "Not every promise was kept." in page
    assert "left out: exim: not here" in page
    assert "<h1>&lt;b&gt;</h1>" in page
    for word in ("http://", "https://", "<script"):
        assert word not in page.replace("http://www.w3.org", "")


def test_the_command(tmp_path: Path, two: list[Run]) -> None:
    """Tables, a page, JSON, gates; a comparison can be compared, shown and rendered again."""
    names = [str(each.directory) for each in two]
    out = tmp_path / "out"
    status, stdout, stderr = run("compare", *names, "--out", str(out))
    assert (0, "") == (status, stderr)
    assert "packed" in stdout
    assert (out / "report.html").is_file()

    status, stdout, _ = run("show", str(out), "--json")
    result = json.loads(stdout)
    assert (0, 2) == (status, result["scenarios"][0]["cells"][0]["repeats"])
    assert 4 == len(as_summary(result)["representations"])
    (out / "report.html").unlink()
    assert 0 == run("report", str(out))[0]
    assert (out / "report.html").is_file()

    gate = ("--fail-if", "p99_accepted > 1 ms")
    status, _, stderr = run("compare", *names, "--out", str(tmp_path / "gated"), *gate)
    assert 1 == status
    assert 4 == len(stderr.splitlines())
    assert 2 == run("compare", *names, "--out", str(tmp_path / "x"), "--fail-if", "p > 1")[0]
    assert not (tmp_path / "x").exists()


def test_a_run_without_results_is_said_to_have_none(tmp_path: Path, two: list[Run]) -> None:
    """Named: one line, status 2. Part of a comparison: left out, and said to be."""
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "scenario.toml").write_text((two[0].directory / "scenario.toml").read_text())
    names = [str(each.directory) for each in two]
    status, stdout, stderr = run("compare", *names, str(empty), "--out", str(tmp_path / "x"))
    assert (2, "") == (status, stdout)
    assert f"testbed: {empty}: has no results: none of its servers came to its end\n" == stderr
    assert not (tmp_path / "x").exists()

    several = tmp_path / "several"
    several.mkdir()
    result = compared(cells_of(two))
    result["scenarios"][0]["cells"][0]["runs"].append(str(empty))
    (several / RESULT).write_text(json.dumps(result))
    for each in [*two, Run(empty)]:
        each.directory.rename(several / each.directory.name)
    status, stdout, _ = run("compare", str(several), "--out", str(tmp_path / "some"))
    assert 0 == status
    assert "left out" in stdout
    status, stdout, stderr = run("compare", str(several), "--out", str(tmp_path / "s2"), "--json")
    assert (0, 1) == (status, len(stderr.splitlines()))
    assert "has no results" in stderr
    assert 1 == len(json.loads(stdout)["skipped"])


def test_what_is_no_run(tmp_path: Path) -> None:
    """One line, status 2."""
    status, _, stderr = run("compare", "nope", "--runs", str(tmp_path))
    assert (2, 1) == (status, len(stderr.splitlines()))
    (tmp_path / RESULT).write_text("{}")
    assert 2 == run("show", str(tmp_path))[0]


def test_plans() -> None:
    """A sweep has a contender for each value; peers are those that can run here, and others are said to be left out."""
    plan = sweep_plan("concurrency-sweep", ["load.scale=0.5"])
    values = load("concurrency-sweep").vary["server.limits.mta.max_conn_per_route"]
    assert [str(value) for value in values] == [each.label for each in plan.contenders]
    assert "server.limits.mta.max_conn_per_route=2" in plan.contenders[0].overrides

    plan = peers_plan(["baseline"], targets_of(None), [], repeats=3, out=None)
    assert {"ours", "postfix", "opensmtpd", "exim"} == (
        {each.label for each in plan.contenders} | {line.partition(":")[0] for line in plan.skipped}
    )
    assert Contender("ours", "ours", ('representations=["packed"]',)) == plan.contenders[0]
    assert isinstance(plan, Plan)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["peers", "--target", "sendmail"], "no sendmail"),
        (["peers", "--scenario", "local-burst"], "local users"),
        (["peers", "--scenario", "nope"], "no such scenario"),
        (["peers", "--set", "load.nope=1"], "load.nope"),
    ],
)
def test_peers_that_can_not_be(arguments: list[str], words: str) -> None:
    """One line, status 2, nothing started."""
    status, _, stderr = run(*arguments)

    assert (2, 1) == (status, len(stderr.splitlines()))
    assert words in stderr


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0"), (0.0123, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1,234"), (7, "7")],
)
def test_three_digits(value: float, words: str) -> None:
    """About three digits say what two cores can."""
    assert words == figures(value)


@pytest.mark.system
def test_a_sweep_for_real(tmp_path: Path) -> None:
    """With more connections a far destination gets its mail sooner: a run for each value, and one page."""
    sets = ("load.scale=0.3", "load.lag_max_s=60", "server.limits.mta.session_keepalive_s=0.3")
    values = "vary={ 'server.limits.mta.max_conn_per_route' = [2, 20] }"
    found = _testbed(tmp_path, "run", "concurrency-sweep", *_sets(*sets, values))

    (section,) = found["scenarios"]
    two, twenty = section["cells"]
    assert ["2", "20"] == [two["label"], twenty["label"]]
    for name, more in (("messages_per_s", 1), ("p99_delivered", -1), ("peak_queue", -1)):
        low, high = (cell["quantities"][name]["median"] for cell in (two, twenty))
        assert (high - low) * more > 0, name
    for cell in (two, twenty):
        assert [0] == cell["quantities"]["lost"]["values"]
        assert cell["quantities"]["delivered"]["values"] == [96]
    assert (tmp_path / "out" / "report.html").is_file()


def _sets(*settings: str) -> list[str]:
    return [word for each in settings for word in ("--set", each)]


def _testbed(directory: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "testbed", *arguments, "--out", "out", "--json"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    return json.loads(done.stdout)
