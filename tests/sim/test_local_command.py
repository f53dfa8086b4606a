"""`sim` on local mail and layouts, as it is typed."""

import json

import pytest
from typer.testing import CliRunner

from sim import __main__ as command
from sim.layout import available
from sim.recorded import recorded
from sim.scenario import load

SMALL = ("--set", "load.scale=0.01", "--set", "local.1.users=5")


def sim(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(command.app, list(words))
    return done.exit_code, done.stdout, done.stderr


def test_run_prints_what_became_of_local_mail():
    """Memory, drain, who waited how long, and what was sent back."""
    words = ("run", "local-burst", *SMALL, "--set", "server.limits.mda.policy=raised")
    status, out, err = sim(*words, "--set", "server.envelope=full")
    assert (status, err) == (0, "")
    for name in (
        "burst_drain_s", "oldest_age_s", "jain", "tempfails", "peak_rss_bytes", "peak_live_bytes",
        "flood p99", "others p99", "envelope full",
    ):  # fmt: skip
        assert name in out
    found = json.loads(sim(*words, "--json")[1])
    assert found["local"]["groups"]["flood"]["delivered"] == 1000
    assert found["local"]["groups"]["others"]["delivered"] == 50
    assert found["delivered"] == found["local"]["attempts"] == 1050
    assert (
        json.loads(sim("run", "backlog", "--set", "load.messages=9", "--json")[1])["local"] is None
    )


def test_a_trace_of_local_mail_is_told_again(tmp_path):
    """What the model wrote, the core hears again: as many are delivered."""
    words = ("run", "local-burst", *SMALL, "--json", "--out", str(tmp_path))
    found = json.loads(sim(*words)[1])
    assert recorded(tmp_path)["delivered"] == found["delivered"] == 1050
    assert load(tmp_path / "scenario.toml").local[1].users == 5


def test_a_layout_counts_its_own_bytes():
    """The same run, other memory; the table says whose it is."""
    words = ("run", "local-burst", *SMALL, "--set", "server.limits.mda.policy=raised", "--json")
    ours = json.loads(sim(*words)[1])
    theirs = json.loads(sim(*words, "--layout", "opensmtpd-2013-full")[1])
    assert (ours["layout"], theirs["layout"]) == (None, "opensmtpd-2013-full")
    assert ours["fingerprint"] == theirs["fingerprint"]
    assert theirs["peak_live_bytes"] > 5 * ours["peak_live_bytes"]
    assert "layout postfix" in sim("run", "local-burst", *SMALL, "--layout", "postfix")[1]
    status, _, err = sim("run", "backlog", "--layout", "exim")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith('sim: layout: "exim": there is no such layout; there are kumomta')


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_layouts_are_listed_with_their_sources(form: tuple[str, ...]):
    """Name, bytes by state, where the numbers come from, what was left out."""
    status, out, err = sim("layouts", *form)
    assert (status, err) == (0, "")
    for name in available():
        assert name in out
    for word in ("8,720" if not form else "8720", "e032b844", "crates/message", "qmgr.h"):
        assert word in out
    if form:
        assert {each["name"] for each in json.loads(out)} == set(available())
