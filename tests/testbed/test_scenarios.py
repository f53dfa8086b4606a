"""Every scenario that ships, for real and in seconds: a healthy server shows what its paragraph says.

What it expects (``expects``) holds in full and at a small scale; what can't be said as one condition is asserted here. Time is
as in the file: windows of failures move with the shorter load.
"""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from sim.runner import simulate
from sim.scenario import available, load
from testbed.gates import understand
from testbed.progress import Display
from testbed.run import Options, execute

OUTAGE: Final = '[{ kind = "latency", delay_s = 0.004 }, { kind = "outage", from_s = 0.5, to_s = 2.0, mode = "refuse" }'

SMALL: Final[dict[str, tuple[str, ...]]] = {
    "baseline": ("load.messages=300",),
    "dead-destination": ("load.messages=300", "drain_s=1.0"),
    "slow-destination": ("load.messages=60", "destinations.1.share=0.5"),
    "greylisting": ("load.messages=100",),
    "rate-limited": ("load.messages=200",),
    "retry-storm": ("load.messages=300", f"destinations.0.behaviours={OUTAGE}, {{ kind = \"limit-connections\", max = 8 }}]"),
    "dns-outage": (
        "load.messages=200",
        'destinations.1.behaviours=[{ kind = "dns", answer = "servfail", to_s = 1.5, ttl_s = 1 }]',
        'destinations.2.behaviours=[{ kind = "dns", answer = "timeout", to_s = 1.5, ttl_s = 1 }]',
    ),
    "connection-flood": ("load.messages=600", "load.users=120", "server.limits.smtp.max_conn=20"),
    "slowloris": (
        "load.messages=600", "server.limits.smtp.timeout_s=1.5", "server.limits.smtp.max_session_s=3.0",
        # Enough of them to be stress, which has less patience.
        "server.limits.smtp.stress_at=0.5", "server.limits.smtp.stress_off_at=0.3", "server.limits.smtp.stress_timeout_s=1.0",
    ),
    "tls": ("load.messages=200", "server.limits.mta.session_mail_max=20"),
    "limit-change": (
        "load.messages=200",
        'timeline=[{ at_s = 0.5, pause = ["mta"] }, { at_s = 1.0, set = { "limits.mta.max_conn_per_host" = 20 } }, '
        '{ at_s = 3.5, resume = ["mta"] }]',
    ),
    "crash": (
        "load.messages=150",
        "server.retry.base_s=0.5",
        'destinations.1.behaviours=[{ kind = "outage", from_s = 0.0, to_s = 1.5, mode = "refuse" }]',
        'timeline=[{ at_s = 0.7, restart = "kill", down_s = 0.3 }]',
    ),
    "disk-trouble": (
        "load.messages=350",
        'timeline=[{ at_s = 0.5, disk = "slow", slower = 5.0 }, { at_s = 1.5, disk = "full" }, { at_s = 2.0, disk = "well" }]',
    ),
    "big-messages": ("load.messages=6",),
    "many-recipients": ("load.messages=4",),
    "full-speed": ("load.messages=400",),
    "long-queue": ("load.messages=300",),
    "day": ("load.messages=400", "destinations.3.behaviours=" + OUTAGE + "]"),
}  # fmt: skip
"""What makes each a matter of seconds."""

ELSEWHERE: Final = frozenset({"backlog", "local-burst", "concurrency-sweep", "held-out"})
"""Those that other tests run: `test_run`, `test_policies`, `test_comparing`, `test_heldout`."""


def run_small(name: str, directory: Path) -> dict[str, Any]:
    """Run a scenario at a small scale; return its summary."""
    # Nothing waits for connections that are kept in vain, which is what the bench would do at the end.
    # And the machine may be busy: this is about mail, not about the load's punctuality.
    common = ("server.limits.mta.session_keepalive_s=0.3", "load.lag_max_s=60")
    overrides = (*common, *SMALL[name])
    options = Options(
        scenario=name, overrides=overrides, out=directory, model=False, footprint=0, is_part=True
    )
    with Display(quiet=True) as display:
        return execute(options, display).summary


def test_every_scenario_is_run() -> None:
    """A scenario that ships is in a test that runs it."""
    assert set(available()) == set(SMALL) | ELSEWHERE


@pytest.mark.parametrize("name", available())
def test_scenarios_say_what_they_ask(name: str) -> None:
    """Each has a paragraph, and expects only quantities and destinations that there are."""
    found = load(name)
    places = [each.name for each in found.destinations] + [each.name for each in found.local]

    assert found.title
    assert 200 < len(found.about) < 1500
    for text in found.expects:
        understand(text, places)
    assert found.expects or name in ("backlog", "local-burst")


@pytest.mark.system
@pytest.mark.parametrize("name", SMALL)
def test_a_healthy_server(name: str, tmp_path: Path) -> None:
    """All that the scenario expects holds, at every promise: nothing lost, and what it is about has happened."""
    summary = run_small(name, tmp_path / "run")

    part = summary["representations"]["packed"]
    assert [] == summary["failures"]
    assert [] == [each for each in summary["expected"] if not each["holds"]]
    assert len(load(name).expects) == len(summary["expected"])
    assert part["accepted"] > 0
    _ABOUT.get(name, _nothing_more)(part, tmp_path / "run")


def _nothing_more(part: dict[str, Any], run: Path) -> None:
    pass


def _dead(part: dict[str, Any], run: Path) -> None:
    """The dead one's mail is all there, the other's all gone, and few connections were wasted."""
    dead, live = part["destinations"]["dead"], part["destinations"]["live"]
    assert dead["accepted"] == dead["queued"] > 0
    assert live["accepted"] == live["delivered"] > 0


def _grey(part: dict[str, Any], run: Path) -> None:
    """Each greylisted recipient was refused once at least, and by the sink's own count."""
    grey = part["destinations"]["grey"]["accepted"]
    assert part["attempts_deferred"] >= grey
    assert _refused(run, "RCPT 451") >= grey


def _flood(part: dict[str, Any], run: Path) -> None:
    """Clients are more than the limit from their first moment: some were turned away at the door, and came again."""
    log = [json.loads(line) for line in (run / "packed" / "load.jsonl").read_text().splitlines()]
    assert any(line["attempts"] > 1 for line in log if line["kind"] == "message")


def _slow(part: dict[str, Any], run: Path) -> None:
    """Slow clients were hung up on, one after the other; who sends mail and meets the same limit is served the next time."""
    stats = json.loads((run / "packed" / "run.json").read_text())["stats"]
    assert stats["smtp.timeout"] > 40
    log = [json.loads(line) for line in (run / "packed" / "load.jsonl").read_text().splitlines()]
    assert all(line["attempts"] <= 2 for line in log if line["kind"] == "message")
    # They are enough to be stress, and the model hangs up on the same ones after the same time: stress' second.
    assert stats["smtp.stress.entered"] > 0
    scenario = load(run / "scenario.toml")
    result = simulate(scenario)
    assert result.stress_entered > 0
    rude = {name: each for name, each in log[-1]["verbs"].items() if name.startswith("slow-")}
    assert set(rude) == set(result.beside) == {"slow-body 421 4.4.2", "slow-commands 421 4.4.2"}
    for group in scenario.load.beside:
        name = f"{group.kind} 421 4.4.2"
        # Locust's users come a little earlier than the load; the last ones leave with it.
        assert abs(rude[name]["count"] - result.beside[name].times) <= 3 * group.users
        assert 4 * group.users <= result.beside[name].times
        assert result.beside[name].mean_s == pytest.approx(1.0, abs=0.05)
        assert 0.95 <= rude[name]["p50"] < 1.45


def _secured(part: dict[str, Any], run: Path) -> None:
    """The server shook hands for each message at its door, and with hosts for each connection that it opened."""
    notes = json.loads((run / "packed" / "run.json").read_text())
    log = (run / "packed" / "server.log").read_text()
    assert log.count(" smtp tls ciphers=") == 200
    assert notes["stats"]["mta.tls"] == notes["world"]["tls"] >= 10


def _limited(part: dict[str, Any], run: Path) -> None:
    """The host did refuse what was above its rate."""
    assert _refused(run, "MAIL 421") > 0


def _operated(part: dict[str, Any], run: Path) -> None:
    """The operator did it when it was time, and nothing arrived while relaying was paused."""
    notes = json.loads((run / "packed" / "run.json").read_text())
    assert [each["said"] for each in notes["operated"]] == [
        "pause mta", "set limits.mta.max_conn_per_host=20", "resume mta"
    ]  # fmt: skip
    assert all(each["t"] >= each["at_s"] for each in notes["operated"])
    records = [
        json.loads(line) for line in (run / "packed" / "sink-0.jsonl").read_text().splitlines()
    ]
    start, mine = notes["load_start"], [each for each in records if each["run"] == notes["run_id"]]
    paused, resumed = notes["operated"][0]["t"], notes["operated"][2]["t"]
    arrived = [each["t"] - start for each in mine]
    # What was under way when it stopped may arrive a moment later.
    assert sum(paused < t < resumed for t in arrived) <= 2
    assert sum(t >= resumed for t in arrived) > 100


def _many(part: dict[str, Any], run: Path) -> None:
    """Five hundred recipients each, every one of them delivered."""
    assert part["delivered"] == part["accepted"] == 500 * part["messages_accepted"]


def _refused(run: Path, what: str) -> int:
    notes = json.loads((run / "packed" / "run.json").read_text())
    found: int = notes["world"]["refused"].get(what, 0)
    return found


_ABOUT: Final = {
    "dead-destination": _dead,
    "greylisting": _grey,
    "rate-limited": _limited,
    "connection-flood": _flood,
    "slowloris": _slow,
    "limit-change": _operated,
    "tls": _secured,
    "many-recipients": _many,
}
