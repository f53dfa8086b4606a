"""Phases of a disk: where they begin and end, and which answers are theirs."""

import math

import pytest

from sim.runner import simulate
from sim.scenario import load
from testbed.diskphases import Phase, measured, phases_of, predicted

TIMELINE = (
    'timeline=[{ at_s = 4.0, disk = "well" }, { at_s = 1.0, disk = "slow", slower = 20.0, schedule = true }, '
    '{ at_s = 2.0, disk = "full" }, { at_s = 3.0, pause = ["mta"] }]'
)
PHASES = [
    Phase(0.0, 1.0, "well"),
    Phase(1.0, 2.0, "slow 20x"),
    Phase(2.0, 4.0, "full"),
    Phase(4.0, math.inf, "well"),
]


def test_phases_are_between_entries_about_the_disk() -> None:
    """In the order of their instants; a scenario that says nothing of it has none."""
    assert phases_of(load("baseline", [TIMELINE])) == PHASES
    assert phases_of(load("baseline", ["timeline=[{ at_s = 3.0, schedule = true }]"])) == []


def test_a_message_belongs_to_the_phase_of_its_answer() -> None:
    """Not to that of the instant at which it was due; one that was not taken waits for nothing."""
    lines = [
        {"kind": "start"},
        {"kind": "message", "sent": 100.5, "done": 100.625, "code": 250},
        {"kind": "message", "sent": 100.75, "done": 101.75, "code": 250},
        {"kind": "message", "sent": 101.9, "done": 102.0, "code": 452},
        {"kind": "message", "sent": 104.5, "done": 105.0, "code": 250},
        {"kind": "message", "sent": 104.5, "done": 104.75, "code": 250},
        {"kind": "end"},
    ]
    assert measured(lines, 100.0, PHASES) == [
        {"accepted": 1, "refused": 0, "p50": 0.125, "p95": 0.125},
        {"accepted": 1, "refused": 0, "p50": 1.0, "p95": 1.0},
        {"accepted": 0, "refused": 1},
        {"accepted": 2, "refused": 0, "p50": 0.25, "p95": 0.5},
    ]


def test_a_disk_that_is_well_throughout_has_no_phases() -> None:
    """Nor has its record answers in one: most runs are so."""
    assert measured([{"kind": "message", "sent": 1.0, "done": 2.0, "code": 250}], 0.0, []) == []


def test_the_model_has_them_too() -> None:
    """Every accepted message is in one phase; none in that of the full disk but the last that were under way."""
    scenario = load(
        "disk-trouble", ["load.messages=900", TIMELINE.replace(", schedule = true", "")]
    )
    phases = phases_of(scenario)
    result = simulate(scenario)
    found = predicted(result, phases)
    assert sum(each["accepted"] for each in found) == result.counts["accepted_messages"]
    assert [each["accepted"] for each in found[:2]] == pytest.approx([100, 100], abs=35)
    assert found[2]["accepted"] <= 5
    assert found[1]["p50"] > 4 * found[0]["p50"]
