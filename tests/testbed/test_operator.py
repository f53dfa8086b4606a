"""The bench's operator says what the timeline says, in its words and at its instants."""

import time
from typing import Any

import pytest

from mta.core.settings import ConfigError
from sim.scenario import Scenario, load
from testbed.children import RunError
from testbed.operator import Operator, checked


def scenario(timeline: str) -> Scenario:
    return load("baseline", [f"timeline={timeline}"])


ALL = (
    '[{ at_s = 2.0, schedule = true }, { at_s = 1.0, set = { "limits.mta.max_conn_per_host" = 5, '
    '"limits.smtp.max_conn" = 7 }, pause = ["mta"], resume = ["smtp"] }]'
)


def test_entries_are_said_in_the_order_of_their_instants():
    """Each verb with its fields, once, as mtactl sends them."""
    said: list[tuple[str, dict[str, Any]]] = []
    operator = Operator(checked(scenario(ALL)), lambda verb, **fields: said.append((verb, fields)))
    operator.act()
    assert said == []
    operator.begin(time.time() - 1.5)
    operator.act()
    operator.act()
    assert said == [
        ("set", {"assignment": "limits.mta.max_conn_per_host=5"}),
        ("set", {"assignment": "limits.smtp.max_conn=7"}),
        ("pause mta", {}),
        ("resume smtp", {}),
    ]
    assert [each["at_s"] for each in operator.done] == [1.0] * 4
    assert all(each["t"] >= 1.5 for each in operator.done)
    operator.begin(time.time() - 100)
    operator.act()
    assert said[4:] == [("schedule", {"id": "all"})]


def test_what_the_server_refuses_ends_the_run():
    """A timeline that was not followed is another experiment."""

    def refuse(verb: str, **fields: str) -> None:
        raise ConnectionError("no such verb")

    operator = Operator(checked(scenario(ALL)), refuse)
    operator.begin(time.time() - 1.5)
    with pytest.raises(
        RunError, match=r"^timeline: 1 s: set limits.* pause mta resume smtp: no such verb$"
    ):
        operator.act()


def test_the_server_is_restarted_at_its_instant():
    """Once, with what the timeline says; what became of it is kept in seconds of load. Nothing is said to the server for it."""
    asked: list[tuple[str, float]] = []
    start = 1_795_000_000.0

    def restart(how: str, down_s: float) -> dict[str, Any]:
        asked.append((how, down_s))
        instants = {"asked": 1.0, "gone": 1.25, "started": 3.5, "opened": 4.0, "restored": 4.5}
        found = {name: start + seconds for name, seconds in instants.items()}
        return {**found, "envelopes": 17, "read_s": 0.5}

    timeline = '[{ at_s = 1.0, restart = "kill", down_s = 2.25 }]'
    operator = Operator(checked(scenario(timeline)), lambda verb, **_: pytest.fail(verb), restart)
    operator.begin(start)
    operator.act()
    operator.act()
    assert asked == [("kill", 2.25)]
    assert [each["said"] for each in operator.done] == ["SIGKILL, 2.25 s down"]
    assert operator.restarts == [
        {
            "at_s": 1.0, "how": "kill", "down_s": 2.25, "asked_s": 1.0, "gone_s": 1.25, "started_s": 3.5,
            "opened_s": 4.0, "restored_s": 4.5, "envelopes": 17, "read_s": 0.5,
        }
    ]  # fmt: skip


def test_the_disk_is_told():
    """Beside what is said to the server, at the same instant and in the same words as in the scenario."""
    said: list[object] = []
    timeline = '[{ at_s = 1.0, disk = "slow", slower = 7.0, schedule = true }, { at_s = 2.0, disk = "full" }]'
    operator = Operator(
        checked(scenario(timeline)),
        lambda verb, **_: said.append(verb),
        set_disk=lambda what, slower: said.append((what, slower)),
    )
    operator.begin(time.time() - 1.5)
    operator.act()
    assert said == ["schedule", ("slow", 7.0)]
    assert [each["said"] for each in operator.done] == ["schedule all", "disk slow 7x"]
    operator.begin(time.time() - 2.5)
    operator.act()
    assert said[2:] == [("full", 10.0)]


def test_what_can_not_be_done_is_said_before():
    """A process that would have to start on a full disk, and limits that there are not: one line each."""
    with pytest.raises(
        ConfigError,
        match=r'timeline.1.restart = "kill": the disk is full then: nothing could start$',
    ):
        checked(scenario('[{ at_s = 1.0, disk = "full" }, { at_s = 2.0, restart = "kill" }]'))
    well = '[{ at_s = 1.0, disk = "full" }, { at_s = 2.0, disk = "slow" }, { at_s = 3.0, restart = "kill" }]'
    assert len(checked(scenario(well))) == 3
    with pytest.raises(ConfigError, match=r"timeline.0.set.limits.nope = 3: unknown key"):
        checked(scenario('[{ at_s = 1.0, set = { "limits.nope" = 3 } }]'))
