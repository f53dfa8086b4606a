"""`sim sweep` as it is used: the table, the report, what it recommends and why, and what is wrong in one line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sim import __main__ as command
from sim import sweepplots
from sim.executors import Here
from sim.figures import DARK
from sim.sweep import design
from sim.sweepcommand import describe
from sim.sweepreport import html
from sim.sweepresult import result_of
from sim.sweeprun import Progress, carry_out_plan, make_plan
from sim.sweepsubject import subject
from sim.sweepwords import in_mib, in_seconds, listed, settings_lines, signed, why

QUICK = (
    "--set",
    "load.messages=40",
    "--set",
    "load.rate=200",
    "--replications",
    "3",
    "--jobs",
    "1",
)

QUOTED = "--set load.messages=40 --set load.rate=200"


@pytest.fixture
def places(tmp_path: Path) -> tuple[str, ...]:
    return ("--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out"))


def sim(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(command.app, ["sweep", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def swept(
    *over: str, overrides: tuple[str, ...] = (), sample: int | None = None, **options: Any
) -> dict[str, Any]:
    """Return what a sweep says, without the command around it: figures take a second each."""
    of = subject("concurrency-sweep", ["load.messages=40", "load.rate=400", *overrides])
    asked = design(over, vary=of.scenario.vary, sample=sample)
    found = carry_out_plan(
        make_plan(of, asked, replications=options.pop("replications", 3)), Here()
    )
    return result_of(found, **options)


def test_a_sweep_recommends_and_says_why(tmp_path: Path, places):
    """The scenario's own question: the limit that carries the load, not one beyond."""
    status, out, err = sim("concurrency-sweep", *QUICK, *places)
    assert (status, err) == (0, "")
    assert "Recommended: limits.mta.max_conn_per_route = 20." in out
    assert "    limits.mta.max_conn_per_route = 20\n" in out
    # Five connections are what is set now: five settings, not six.
    assert "15 runs made, 0 kept from before" in out
    files = [tmp_path / "out" / name for name in ("sweep.json", "report.html")]
    before = [path.read_text() for path in files]
    assert "<strong>Recommended:</strong> limits.mta.max_conn_per_route = " in before[1]
    found = json.loads(before[0])
    assert (
        found["command"] == f"sim sweep concurrency-sweep {QUOTED} --replications 3 --seed 20130111"
    )
    # The same again: from the cache, the same files.
    _, printed, _ = sim("concurrency-sweep", *QUICK, *places, "--json")
    assert json.loads(printed) == found
    assert [path.read_text() for path in files] == before
    assert found["digest"] in json.dumps(found)


def test_intervals_are_student_s():
    """By hand, of three runs: t is 4.3027 at two degrees of freedom. Differences are of pairs."""
    found = swept()
    base, point = found["points"][0], found["points"][1]
    values = point["values"]["p95"]
    mean = sum(values) / 3
    error = (sum((value - mean) ** 2 for value in values) / 2 / 3) ** 0.5
    assert point["means"]["p95"]["mean"] == pytest.approx(mean)
    assert point["means"]["p95"]["half"] == pytest.approx(4.302653 * error, rel=1e-6)
    pairs = [b - a for a, b in zip(base["values"]["p95"], values, strict=True)]
    assert point["against_base"]["p95"]["mean"] == pytest.approx(sum(pairs) / 3)
    assert point["same_as"] is None
    assert found["points"][2]["same_as"] == 0  # five connections are what is set now
    # In a table that is one row, and the report's is narrow: an interval goes below its value.
    assert [0, 1, 3, 4, 5] == [each["number"] for each in listed(found)]
    page = html(found)
    assert page.count('<td class="t">now') == 1
    assert "same as now" not in page
    assert "<br>± " in page


def test_mail_that_is_not_delivered_does_not_qualify():
    """A point that leaves mail behind has no good latency; --allow says otherwise."""
    gone = {"overrides": ("drain_s=0.5",)}
    found = swept("limits.mta.max_conn_per_route=1,50", **gone)
    assert found["points"][1]["why_not"][0].startswith(
        "mail was still queued at the end (queued up to "
    )
    assert found["chosen"] == 2
    assert found["words"][2].startswith("What is set now does not qualify: mail was still queued")
    assert (
        found["words"][-1] == "2 of 3 points do not qualify (mail was still queued at the end: 2)."
    )
    only = "limits.mta.max_conn_per_route=1,2"
    assert swept(only, **gone)["words"][0] == "No point qualifies: none is recommended."
    assert swept(only, **gone, allow=["queued"])["chosen"] == 0


def test_nothing_qualifies(tmp_path: Path, places):
    """Exit status 1; the page says so and has its figures all the same."""
    only = ("--set", "drain_s=0.2", "--over", "limits.mta.max_conn_per_route=1,2")
    status, out, err = sim("concurrency-sweep", *QUICK, *places, *only)
    assert (status, err) == (1, "")
    assert "No point qualifies: none is recommended." in out
    page = (tmp_path / "out" / "report.html").read_text()
    assert '<p class="bad"><strong>No point qualifies:</strong>' in page
    assert "does not qualify" in page
    found = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert list(settings_lines(found)) == []


def test_the_edge_of_what_was_tried_is_named():
    """A limit that is best at its end may be better beyond; of one that no longer binds it is not."""
    words = swept("limits.mta.max_conn_per_route=2,9")["words"]
    assert any(
        "max_conn_per_route = 9 is the largest value that was tried" in each for each in words
    )
    words = swept("limits.mta.max_conn_per_route=2,100,200")["words"]
    assert not any("value that was tried" in each for each in words)
    assert any("The same runs to the last bit" in each for each in words)
    assert "one run of each point" in swept(replications=1)["words"][-1]


def test_samples_and_layouts():
    """A sample of a range, and other servers' bytes."""
    found = swept("limits.mta.max_conn_per_route=1..40:log", "layout=postfix,opensmtpd", sample=4)
    assert found["sampling"] == "latin"
    assert 2 <= len(found["points"]) <= 5
    assert {point["layout"] for point in found["points"][1:]} == {"postfix", "opensmtpd"}


def test_a_report_needs_nothing_else():
    """No address but of figures that are inside; what is swept is escaped."""
    found = swept("limits.mta.max_conn_per_route=2,20", "envelope=full,slim")
    found["title"] = "<script>alert(1)</script>"
    page = html(found)
    assert "<script" not in page
    assert not re.findall(r'(?:src|href|srcset)="(?!data:)', page)
    assert page.count("<figure>") == 2
    assert page.count("<tr>") == 1 + 5
    assert "same as 20, full" not in page
    assert sweepplots.pareto(found, DARK).axes
    figure = sweepplots.along(found)
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "95 % delivered within, s",
        "peak memory, MiB",
        "delivered, envelopes/s",
    ]
    assert sweepplots.along(swept("envelope=full,slim")) is None


def test_less_memory_and_quicker_are_priced():
    """What the recommended point costs against both ends of the front."""

    def point(number: int, memory: float, latency: float, **settings: str) -> dict[str, Any]:
        values = {
            "peak_rss_bytes": [memory],
            "p95": [latency],
            "drain_time_s": [1.0],
            "peak_queued": [1],
        }
        means = {name: {"mean": of[0], "half": None} for name, of in values.items()}
        return {
            "number": number, "settings": settings, "runs": 1, "values": values, "means": means, "why_not": [],
            "same_as": None, "against_base": means,
        }  # fmt: skip

    mib = 2**20
    points = [
        point(0, 90 * mib, 9.0),
        point(1, 50 * mib, 2.0, k="1"),
        point(2, 60 * mib, 1.05, k="2"),
    ]
    points.append(point(3, 80 * mib, 1.0, k="3"))
    result = {
        "points": points, "front": [1, 2, 3], "chosen": 2, "within": 0.1, "replications": 1, "axes": [], "now": {},
    }  # fmt: skip
    words = "\n".join(why(result, ()))
    assert "With less memory: k = 1: p95 +950 ms, peak memory \N{MINUS SIGN}10.00 MiB." in words
    assert "Quickest: k = 3: p95 \N{MINUS SIGN}50 ms, peak memory +20.00 MiB." in words


def test_numbers_are_short_and_have_units():
    """Three digits are what a model is good for."""
    assert [in_seconds(v) for v in (0, 0.0001234, 0.2693, 4.484, 1234.5)] == [
        "0 s", "0.1 ms", "269 ms", "4.48 s", "1,234 s",
    ]  # fmt: skip
    assert [in_mib(v) for v in (512, 87_000, 2**20 * 48.953, 2**20 * 2048)] == [
        "512 B",
        "85 KiB",
        "48.95 MiB",
        "2,048.0 MiB",
    ]
    assert signed(None, None, in_mib) == "can't be told"
    assert signed(0.0, 0.0, in_seconds) == "the same"
    assert signed(-2.0, 0.5, in_seconds) == "\N{MINUS SIGN}2 s ± 500 ms"


def test_progress_in_words():
    """With what is left of it."""
    assert describe(Progress(0, 9, 0, 0.0, 1)) == "0 of 9 runs"
    assert (
        describe(Progress(8, 1200, 6, 4.0, 2))
        == "8 of 1,200 runs, 6 kept from before, about 19 min 52 s left"
    )
    assert describe(Progress(8, 9, 6, 4.0, 2)) == "8 of 9 runs, 6 kept from before, about 1 s left"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("backlog",), "sim: --over: is missing: say key=value,value"),
        (("nowhere",), 'sim: sweep: "nowhere": is neither a run nor a scenario; there are backlog,'),
        (("backlog", "--over", "limits.mta.nonsense=1,2"), "server.limits.mta.nonsense = 1: unknown key"),
        (("backlog", "--over", "limits.mta.max_conn_per_host=1,x"), "max_conn_per_host = \"x\": must be a whole number"),
        (("backlog", "--over", "envelope=slim,fat"), 'sim: --over: server.envelope = "fat": must be one of fixed'),
        (("backlog", "--over", "layout=exim,postfix"), 'sim: layout: "exim": there is no such layout'),
        (("backlog", "--over", "layout=postfix,opensmtpd", "--over", "envelope=full,slim"), "vary one of both"),
        (("backlog", "--over", "destinations.0.behaviours.0.kind=latency,nonsense"), "nonsense"),
        (("backlog", "--over", "load.rate=1,2", "--replications", "0"), "--replications: 0: must be from 1 to 100"),
        (("backlog", "--over", "load.rate=1,2", "--replications", "101"), "--replications: 101: must be from 1 to 100"),
        (("backlog", "--over", "load.rate=1,2", "--sampling", "sobol"), '--sampling: "sobol": must be latin or random'),
        (("backlog", "--over", "load.rate=1,2", "--within", "-1"), "--within: -1.0: must be from 0 to 10"),
        (("backlog", "--over", "load.rate=1,2", "--allow", "spam"), '--allow: "spam": must be one of lost'),
        (("backlog", "--over", "load.rate=1,2", "--jobs", "2", "--scheduler", "tcp://127.0.0.1:1"), "--jobs: 2: is not for a cluster"),
        (("backlog", "--over", "load.rate=1,2", "--representation", "full"), "--representation: \"full\": is for runs"),
        (("backlog", "--over", "load.rate=1,2", "--costs", "/nowhere"), "sim: /nowhere: can't be read"),
        (("backlog", "--over", "load.rate=1,2", "--out", "/dev/null/x"), "sim: --out: \"/dev/null/x\": can't be made"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(tmp_path: Path, words: tuple[str, ...], line: str):
    """Before anything runs; exit status 2."""
    out = () if "--out" in words else ("--out", str(tmp_path / "out"))
    jobs = () if "--jobs" in words else ("--jobs", "1")
    status, printed, err = sim(*words, *out, *jobs, "--cache", str(tmp_path / "cache"))
    assert (status, printed, err.count("\n")) == (2, "", 1), err
    assert line in err
    assert list(tmp_path.glob("cache/*")) == []
