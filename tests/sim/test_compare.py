"""`sim compare`: every combination, over the same messages; what only counts bytes shares a run."""

import json

import pytest
from typer.testing import CliRunner

from mta.core.settings import ConfigError
from sim import __main__ as command
from sim.compare import POLICIES, Variation, compare, messages, recount, variation, variations
from sim.costs import Costs
from sim.layout import load as load_layout
from sim.runner import simulate
from sim.scenario import load

SMALL = ["load.scale=0.005", "local.1.users=4", "local.1.messages=2"]
POLICY = Variation("server.limits.mda.policy", ("raised", "hold"))


def sim(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(command.app, list(words))
    return done.exit_code, done.stdout, done.stderr


def test_a_row_for_each_combination_in_order():
    """The last key varies fastest; each row is what a run of its own would have said."""
    vary = [
        POLICY,
        Variation("server.envelope", ("fixed", "slim")),
        Variation("server.limits.mda.max_session_per_user", ("3", "7")),
    ]
    rows = list(compare("local-burst", SMALL, vary))
    assert [tuple(row.settings.values()) for row in rows] == [
        (policy, envelope, sessions)
        for policy in ("raised", "hold")
        for envelope in ("fixed", "slim")
        for sessions in ("3", "7")
    ]
    for row in rows:
        alone = simulate(
            load("local-burst", SMALL + [f"{key}={value}" for key, value in row.settings.items()]),
            backend="heapq",
        ).summary()
        assert {**row.result.summary(), "stimuli": 0, "fingerprint": ""} == {
            **alone,
            "stimuli": 0,
            "fingerprint": "",
        }
    assert messages("local-burst", SMALL, vary) == 4 * 508


def test_envelopes_of_relayed_mail_are_counted_too():
    """Bodies in memory, and what is there only in flight: counted again, they are what a run has."""
    of = load("backlog", ["load.messages=300"])
    result = simulate(of, backend="heapq", census=True)
    for envelope in ("fixed", "whole", "packed"):
        again = recount(result, Costs().memory_of(envelope), envelope=envelope)
        alone = simulate(of, representation=envelope, backend="heapq")
        assert again.rss_bytes.tolist() == alone.rss_bytes.tolist()
        assert again.live_bytes.tolist() == alone.live_bytes.tolist()
        assert again.representation == alone.representation == envelope
    layout = load_layout("opensmtpd")
    again = recount(result, Costs().memory_of("slim"), envelope="slim", layout=layout)
    assert again.summary() == simulate(of, layout=layout, backend="heapq").summary()


def test_layouts_are_varied():
    """Beside a policy; the one run is the same run."""
    vary = [POLICY, Variation("layout", ("opensmtpd-2013-full", "opensmtpd-2013-slim"))]
    full, slim, *_ = list(compare("local-burst", SMALL, vary))
    assert full.result.peak_live_bytes > 10 * slim.result.peak_live_bytes
    assert full.result.counts == slim.result.counts
    assert full.as_dict()["settings"] == {
        "server.limits.mda.policy": "raised",
        "layout": "opensmtpd-2013-full",
    }


def test_progress_counts_the_messages_of_all_runs():
    """Never falling, and all of them in the end."""
    seen: list[int] = []
    list(compare("local-burst", SMALL, [POLICY], progress=seen.append))
    assert seen == sorted(seen)
    assert seen[-1] == messages("local-burst", SMALL, [POLICY]) == 2 * 508


def test_keys_of_the_server_need_no_prefix():
    """But the seed is the scenario's, and the load's keys are what they are."""
    assert variation("limits.mda.policy=a,b").key == "server.limits.mda.policy"
    assert variation(" envelope = full , slim ") == Variation("server.envelope", ("full", "slim"))
    assert variation("server.retry.base_s=1").key == "server.retry.base_s"
    assert variation("seed=1,2").key == "seed"
    assert variation("load.rate=1").key == "load.rate"
    assert variations([], load("local-burst")) == [variation(each) for each in POLICIES]


@pytest.mark.parametrize(
    ("vary", "line"),
    [
        ("policy", 'sim: --vary: "policy": must be key=value,value'),
        ("load.rate=1,,2", 'sim: --vary: "load.rate=1,,2": must be key=value,value'),
        ("load.rate=1,1", 'sim: --vary: "load.rate=1,1": names a value twice'),
        ("envelope=full,fat", 'sim: --vary: server.envelope = "fat": must be one of fixed,'),
        ("layout=exim", 'sim: layout: "exim": there is no such layout'),
        ("limits.mda.policy=hold,drop", '--set: server.limits.mda.policy = "drop": must be one of'),
        (
            "load.sizes.alpha=" + ",".join(map(str, range(1001))),
            "sim: --vary: 1001: must make 1000",
        ),
        ("", "sim: --vary: is missing: say key=value,value"),
    ],
)
def test_what_is_wrong_is_one_line(vary: str, line: str):
    """Before anything runs."""
    status, out, err = sim("compare", "backlog", *(["--vary", vary] if vary else []))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert line in err
    with pytest.raises(ConfigError, match="is varied twice"):
        variations(["seed=1", "seed=2"], load("backlog"))


def test_the_command_prints_a_table_or_json():
    """A line for each row, and every number of each run."""
    words = ["compare", "local-burst", "--vary", "limits.mda.policy=tempfail,hold", "--seed", "4"]
    for each in SMALL:
        words += ["--set", each]
    status, out, err = sim(*words)
    assert (status, err) == (0, "")
    for word in ("tempfail", "hold", "policy", "Jain", "others", "overflows", "seed 4"):
        assert word in out
    found = json.loads(sim(*words, "--json")[1])
    assert [row["settings"]["server.limits.mda.policy"] for row in found] == ["tempfail", "hold"]
    assert all(row["local"]["groups"]["others"]["delivered"] == 8 for row in found)
    assert found[0]["seed"] == 4


def test_relayed_mail_has_a_table_of_its_own():
    """Without local users: drain, deferrals, time to delivery."""
    status, out, _ = sim(
        "compare", "backlog", "--vary", "limits.mta.max_conn_per_host=1,9", "--set", "load.messages=60"
    )  # fmt: skip
    assert status == 0
    for word in ("max_conn_per_host", "deferred", "p99", "peak RSS"):
        assert word in out
    assert "Jain" not in out
