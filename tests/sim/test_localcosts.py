"""What local deliveries cost is found in a run whose costs are known."""

from dataclasses import replace
from pathlib import Path

import pytest

from sim.calibrate import calibrate
from sim.costs import Costs
from sim.groups import LocalGroup
from sim.localcosts import group_of, methods, units
from sim.measure import measure
from sim.replay import replay
from sim.scenario import Scenario
from tests.support.model import scenario, write_run

TRUTH = Costs(
    local_s=500e-6,
    fork_s=3e-3,
    local_done_s=240e-6,
    local_rcpt_s=200e-6,
    command_wait_s=12e-3,
    mailbox_wait_s=7e-3,
)


def burst() -> Scenario:
    of = scenario(messages=1, sessions=20)
    of.load.messages, of.drain_s = 0, 600.0
    of.local = [
        LocalGroup("flood", messages=900, to_s=4.0, seconds=0.03, law="lognormal"),
        LocalGroup("boxes", users=20, messages=10, to_s=14.0, delivery="maildir"),
    ]
    return of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of a model whose costs are `TRUTH`."""
    directory = tmp_path_factory.mktemp("run") / "small-1"
    write_run(directory, burst(), costs=TRUTH)
    return directory


def test_costs_are_found(run: Path):
    """Waits nearly, with what waited for the loop in them; CPU in its sum, the ratios being those of the defaults."""
    found = calibrate(run)
    assert TRUTH.command_wait_s <= found.command_wait_s < TRUTH.command_wait_s + 6e-3
    assert TRUTH.mailbox_wait_s <= found.mailbox_wait_s < TRUTH.mailbox_wait_s + 6e-3
    whole = [
        each.delivery_cpu_s("command") + each.local_done_s + each.local_rcpt_s
        for each in (found, TRUTH)
    ]
    assert whole[0] == pytest.approx(whole[1], rel=0.2)
    assert found.fork_s / found.local_s == pytest.approx(Costs().fork_s / Costs().local_s)
    assert found.memory["slim"].local == Costs().memory["slim"].local


def test_every_delivery_is_measured(run: Path):
    """From the order to the answer, whoever it is for."""
    _, found = measure(run / "slim" / "trace.jsonl")
    assert len(found.delivered) == 1100
    assert {group_of(user) for _, _, user in found.delivered} == {"flood", "boxes"}
    assert all(seconds > 0.007 for _, seconds, _ in found.delivered)


def test_a_run_is_replayed_with_its_own_costs(run: Path):
    """Drain and longest queue of the run within a tenth; another policy is another story."""
    found = replay(
        str(run), ["limits.mda.policy=tempfail", "limits.mda.tempfail_max_pending_per_user=20"]
    )
    then, again, other = found["then"], found["model"], found["what_if"]
    assert then["delivered"] == again["delivered"] == other["delivered"] == 1100
    assert again["drain_time_s"] == pytest.approx(then["drain_time_s"], rel=0.1)
    assert again["peak_queued"] == pytest.approx(then["peak_queued"], rel=0.1)
    assert then["deferred"] == again["deferred"] == 0
    assert other["deferred"] > 100


def test_what_a_run_did_not_do_keeps_its_default(tmp_path: Path):
    """A handful of deliveries say nothing of waits."""
    of = burst()
    of.local = [replace(of.local[0], messages=300), LocalGroup("few", messages=3)]
    write_run(tmp_path / "run", of, costs=TRUTH)
    found = calibrate(tmp_path / "run")
    assert found.mailbox_wait_s == Costs().mailbox_wait_s
    assert "too few deliveries to few: what they wait for is a default" in found.provenance.notes


def test_units_are_of_a_delivery():
    """A command's fork counts; who is in no group counts as a mailbox; without a scenario nobody is in one."""
    costs = Costs(local_s=1e-3, fork_s=2e-3, local_done_s=0.5e-3, local_rcpt_s=0.5e-3)
    of = methods(burst())
    assert of == {"flood": "command", "boxes": "maildir"}
    assert units(costs, of, "flood0") == pytest.approx(4.0)
    assert units(costs, of, "boxes12") == units(costs, of, "alice") == pytest.approx(2.0)
    assert methods(None) == {}
