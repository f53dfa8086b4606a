"""`testbed policies`: numbers out of records, what is said of them, and the page; once for real."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sim.scenario import Scenario, parse, to_toml
from sim.workload import draw
from testbed import plots, policyplots
from testbed.__main__ import app
from testbed.children import UsageError
from testbed.plots import DARK, LIGHT
from testbed.policies import LocalMail, Matrix, cell_of, modelled_sizes, read
from testbed.policyreport import html, tables, verdicts
from testbed.rundir import Notes, Run
from tests.testbed.test_run import bench, outside

START = 1_795_000_000.0

TINY = """
name = "tiny-burst"
drain_s = 30.0
[load]
lag_max_s = 60
messages = 0
sessions = 5
sizes = { law = "fixed", bytes = 1024 }
[[local]]
name = "flood"
messages = 60
from_s = 0.0
to_s = 0.6
arrivals = "constant"
seconds = 0.01
[[local]]
name = "others"
users = 3
messages = 2
from_s = 0.0
to_s = 0.6
seconds = 0.01
[[destinations]]
name = "outside"
domain = "outside.test"
"""


def tiny(*overrides: str) -> Scenario:
    return parse(TINY.encode(), source="tiny", overrides=['representations=["slim"]', *overrides])


def records(directory: Path, flood_s: float, others_s: float, *, undelivered: int = 0) -> Run:
    """Write a run in which everything is accepted when it is due, and delivered so much later."""
    scenario = tiny()
    schedule = draw(scenario)
    (directory / "slim").mkdir(parents=True)
    (directory / "scenario.toml").write_text(to_toml(scenario))
    notes = Notes("tiny-1", "slim", START, START + 1.0, True, 0, 0)
    (directory / "slim" / "run.json").write_text(json.dumps(asdict(notes)))
    sent, arrived = [], []
    for i in range(len(schedule)):
        at = START + float(schedule.due_s[i])
        sent.append({"kind": "message", "seq": i, "code": 250, "done": at})
        if i >= undelivered:
            wait = flood_s if schedule.group[i] == 0 else others_s
            arrived += [
                {"run": "tiny-1", "seq": i, "t": at + wait},
                {"run": "tiny-1", "seq": i, "t": at + wait + 5},  # a copy changes nothing
                {"run": "warm-up", "seq": i, "t": at - 9},
            ]
    for name, lines in (("load", sent), ("local", arrived)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (directory / "slim" / f"{name}.jsonl").write_text(text)
    return Run(directory)


def test_numbers_are_those_of_the_records(tmp_path: Path) -> None:
    """Drain, age and the others' latency, of first deliveries and of this run only."""
    numbers = LocalMail(records(tmp_path / "run", 3.0, 0.25), "slim").numbers()

    assert (60, 6) == (numbers["burst_messages"], numbers["others_messages"])
    assert numbers["burst_drain_s"] == pytest.approx(0.59 + 3.0, abs=0.002)
    assert numbers["oldest_age_s"] == pytest.approx(3.0, abs=0.002)
    assert numbers["others_latency_s"] == pytest.approx(
        dict.fromkeys(("p50", "p95", "p99", "max"), 0.25), abs=0.002
    )


def test_fairness_is_that_of_shares_in_the_burst(tmp_path: Path) -> None:
    """All served at once is 1; when only the flood is, one of four has everything."""
    assert 1.0 == LocalMail(records(tmp_path / "a", 0.0, 0.0), "slim").numbers()["jain"]
    assert 0.25 == LocalMail(records(tmp_path / "b", 0.0, 9.0), "slim").numbers()["jain"]
    # Nobody but the three others: who floods has nothing.
    alone = LocalMail(records(tmp_path / "c", 9.0, 0.0), "slim").numbers()["jain"]
    assert 0.75 == pytest.approx(alone, abs=1e-4)
    assert LocalMail(records(tmp_path / "d", 9.0, 9.0), "slim").numbers()["jain"] is None


def test_a_burst_that_is_not_over_has_no_end(tmp_path: Path) -> None:
    """What has not been delivered is not guessed."""
    mail = LocalMail(records(tmp_path / "run", 1.0, 1.0, undelivered=3), "slim")
    assert mail.numbers()["burst_drain_s"] is None
    curves = mail.progress()
    assert curves["burst_due"][-1] == curves["burst_accepted"][-1] == 60
    assert curves["burst_delivered"][-1] + curves["others_delivered"][-1] == 63


def test_a_trimmed_run_can_not_be_asked(tmp_path: Path) -> None:
    """One line says what is missing."""
    run = records(tmp_path / "run", 1.0, 1.0)
    (run.directory / "slim" / "local.jsonl").unlink()
    with pytest.raises(UsageError, match="trimmed"):
        LocalMail(run, "slim")


# ---- what is said of them


def cell(policy: str, envelope: str, **changes: Any) -> dict[str, Any]:
    t = [i / 10 for i in range(100)]
    return {
        "policy": policy,
        "envelope": envelope,
        "accepted": 5500, "delivered": 5500, "bounced": 0, "queued": 0, "lost": 0, "duplicates": 0,
        "refused_at_the_door": 0,
        "base_rss_bytes": 50 << 20,
        "peak_rss_bytes": 90 << 20,
        "bytes_per_pending": 9000.0 if (policy, envelope) == ("raised", "fixed") else 600.0,
        "bytes_per_pending_stderr": 20.0,
        "peak_queue": 5000,
        "peak_agent": 5000 if policy == "raised" else 60,
        "tempfails": 900 if policy == "tempfail" else 0,
        "sent_back": 900 if policy == "tempfail" else 0,
        "overflows": 0,
        "burst_messages": 5000,
        "others_messages": 500,
        "burst_end_s": 10.0,
        "burst_drain_s": 40.0,
        "oldest_age_s": 30.0,
        "jain": 0.98,
        "others_latency_s": {"p50": 0.1, "p95": 0.2, "p99": 0.3, "max": 0.4},
        "others_quantiles_s": [i / 250 for i in range(101)],
        "curves": dict.fromkeys(("t", "rss_growth_bytes", "queued", "agent", "held"), t),
        "progress": {"t": t} | {f"{who}_{what}": t for who in ("burst", "others")
                                 for what in ("due", "accepted", "delivered")},
        "model": None,
        **changes,
    }  # fmt: skip


def result(*cells: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "scenario": "local-burst",
        "title": "A <burst>",
        "question": "What?",
        "scale": 0.05,
        "started": "2026-01-26T09:37:23+00:00",
        "command": "testbed policies local-burst",
        "versions": {"python": "3.13"},
        "host": {"cores": 2, "cpu": "some"},
        "stores": {"fixed": {"agent": 9000.0, "pending": 300.0}, "slim": {"agent": 600.0, "pending": 300.0}},
        "failures": [],
        "warnings": [],
        "cells": list(cells) or [cell(p, e) for p in ("tempfail", "raised", "hold") for e in ("fixed", "slim")],
        **changes,
    }  # fmt: skip


def test_the_story_holds_in_a_run_that_tells_it() -> None:
    """Every part of it is true."""
    found = verdicts(result())
    assert [True] * 6 == [holds for holds, _ in found]
    assert any("15.0 to 1" in words for _, words in found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"policy": "raised", "envelope": "slim", "bytes_per_pending": 2000.0}, "ten times"),
        ({"policy": "hold", "envelope": "slim", "peak_agent": 3000}, "next to nothing"),
        ({"policy": "hold", "envelope": "slim", "sent_back": 1}, "nothing is tempfailed"),
        ({"policy": "hold", "envelope": "slim", "refused_at_the_door": 2}, "nothing is tempfailed"),
        (
            {
                "policy": "hold",
                "envelope": "slim",
                "others_latency_s": {"p50": 1.0, "p95": 5.0, "p99": 40.0, "max": 50.0},
            },
            "hold: the others",
        ),
        (
            {
                "policy": "tempfail",
                "envelope": "slim",
                "others_latency_s": {"p50": 1.0, "p95": 5.0, "p99": 40.0, "max": 50.0},
            },
            "other policies",
        ),
        ({"policy": "raised", "envelope": "fixed", "lost": 1}, "nothing is lost"),
    ],
)
def test_a_part_that_does_not_hold_is_said(change: dict[str, Any], words: str) -> None:
    """No run is explained away."""
    cells = [
        each | change
        if (each["policy"], each["envelope"]) == (change["policy"], change["envelope"])
        else each
        for each in result()["cells"]
    ]
    wrong = [said for holds, said in verdicts(result(*cells)) if holds is False]
    assert len(wrong) == 1
    assert words in wrong[0]


def test_a_queue_that_was_short_tells_nothing_of_the_server() -> None:
    """Then the store alone decides; without it nothing does."""
    cells = [cell("raised", "fixed", peak_queue=700), cell("raised", "slim", peak_queue=700)]
    assert (True, True) == (
        verdicts(result(*cells))[0][0],
        "too few" in verdicts(result(*cells))[0][1],
    )
    assert verdicts(result(*cells, stores={}))[0][0] is None


def test_the_tables_fit_a_terminal() -> None:
    """80 columns, the model below each row."""
    model = {
        "peak_rss_bytes": 80 << 20, "peak_queue": 4900, "peak_agent": 60, "burst_drain_s": 41.0,
        "tempfails": 0, "sent_back": 123_456, "overflows": 0, "oldest_age_s": 31.0, "jain": None,
        "others_p50_s": 0.1, "others_p99_s": None,
    }  # fmt: skip
    with Path("/dev/null").open("w") as nowhere:
        console = Console(width=80, record=True, file=nowhere)
        fat = cell("tempfail", "packed", model=model, peak_rss_bytes=2 << 30, peak_agent=200_000)
        for each in tables(result(fat, failures=["hold, slim: x"])):
            console.print(each)
    text = console.export_text()
    assert "(model)" in text
    assert "failed: hold, slim: x" in text
    assert "123,456" in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_page_needs_nothing_else() -> None:
    """Everything is inside, and what comes from the run is escaped."""
    page = html(result(cell("hold", "slim", lost=1), failures=["a < b"]))
    assert "<strong>No.</strong> nothing is lost" in page
    assert "A &lt;burst&gt;" in page
    assert "a &lt; b" in page
    assert page.count("<figure>") == len(policyplots.FIGURES)
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize("name", [name for name, _ in policyplots.FIGURES])
def test_figures_are_drawn_in_both_themes(name: str) -> None:
    """Each has axes with names; a policy that was not run is left out."""
    some = result(cell("hold", "fixed"), cell("raised", "slim", bytes_per_pending=None))
    for of in (result(), some):
        figure = policyplots.draw(name, of, DARK)
        assert all(axes.get_title(loc="left") for axes in figure.axes)
        assert all(axes.get_xlabel() for axes in figure.axes)
        drawn = plots.svg(policyplots.draw(name, of, LIGHT))
        assert plots.in_theme(drawn, LIGHT, DARK) != drawn


def test_only_results_are_read(tmp_path: Path) -> None:
    """A file that is something else, or of another version, is told from one that is none."""
    path = tmp_path / "policies.json"
    with pytest.raises(UsageError, match="can't be read"):
        read(path)
    for text, words in (("{", "not JSON"), ('{"schema": 99}', "this version"), ("[]", "version")):
        path.write_text(text)
        with pytest.raises(UsageError, match=words):
            read(path)
    path.write_text(json.dumps(result()))
    assert cell_of(read(path), "hold", "slim") == cell("hold", "slim")
    assert cell_of(read(path), "hold", "packed") is None


def test_what_is_asked_wrongly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, status 2."""
    for arguments, words in (
        (["backlog"], "no local users"),
        (["--policies", "hold,hold"], "none twice"),
        (["--policies", "lifo"], "lifo"),
        (["--representations", "fat"], "fat"),
    ):
        with pytest.raises(SystemExit) as ended:
            app(["policies", *arguments, "--out", str(tmp_path / "out")])
        assert 2 == ended.value.code
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_that_does_it_again() -> None:
    """With what was changed, and no more."""
    matrix = Matrix(policies=("hold",), overrides=("load.scale=0.2",))
    assert matrix.command() == (
        "testbed policies local-burst --policies hold --representations fixed,full,slim"
        " --set load.scale=0.2"
    )
    assert matrix.overrides_of("hold")[-1] == "load.scale=0.2"


@pytest.mark.system
@pytest.mark.skipif(shutil.which("perl") is None, reason="no perl")
def test_policies_for_real(tmp_path: Path) -> None:
    """Two servers, their numbers beside the model's, a page; `show` and `report` know the directory."""
    (tmp_path / "tiny.toml").write_text(TINY)
    arguments = [
        "policies",
        "./tiny.toml",
        "--policies",
        "raised,hold",
        "--representations",
        "slim",
    ]
    arguments += ["--set", "load.scale=1", "--set", "server.limits.mda.task_high_water=5"]
    arguments += ["--set", "server.limits.mda.task_low_water=2"]
    with bench(*arguments, "--json", cwd=tmp_path) as process:
        stdout, stderr = process.communicate(timeout=150)

    assert 0 == process.returncode, stderr
    found = json.loads(stdout)
    raised, hold = (cell_of(found, policy, "slim") for policy in ("raised", "hold"))
    assert raised is not None
    assert hold is not None
    for each in (raised, hold):
        assert (66, 66, 0) == (each["accepted"], each["delivered"], each["lost"])
        assert each["burst_drain_s"] > 0
        assert each["model"]["burst_drain_s"] > 0
        assert np.isfinite(each["others_latency_s"]["p99"])
    assert hold["tempfails"] == hold["sent_back"] == 0
    assert 0 < found["stores"]["slim"]["pending"] <= found["stores"]["slim"]["agent"]
    directory = tmp_path / "runs" / "latest"
    before = (directory / "report.html").read_text()
    for command in (["report"], ["show"]):
        with bench(*command, cwd=tmp_path) as process:
            stdout, stderr = process.communicate(timeout=60)
        assert 0 == process.returncode, stderr
    assert "raised" in stdout
    assert before == (directory / "report.html").read_text()
    assert [] == outside(tmp_path)


def test_the_model_answers_for_other_sizes() -> None:
    """With `raised` fixed envelopes grow with the burst and slim ones a tenth of that; with `hold` both are small."""
    rows = modelled_sizes(
        "local-burst",
        scales=(0.002, 0.01),
        policies=("raised", "hold"),
        representations=("fixed", "slim"),
    )
    live = {(row["burst"], row["policy"], row["envelope"]): row["live_bytes"] for row in rows}
    assert live[1000, "raised", "fixed"] > 4 * live[200, "raised", "fixed"]
    assert live[1000, "raised", "fixed"] > 10 * live[1000, "raised", "slim"]
    assert live[1000, "hold", "fixed"] < 2 * live[1000, "hold", "slim"]
    assert {0} == {row["sent_back"] for row in rows}
    figure = policyplots.memory_by_burst(rows)
    assert ["raised (January 2013)", "hold (since November 2013)"] == [
        axes.get_title(loc="left") for axes in figure.axes
    ]
