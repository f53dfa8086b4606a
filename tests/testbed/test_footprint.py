"""The store alone: filled as the door would fill it, measured in a process of its own."""

import json
import subprocess
import sys

import pytest

from mta.core.envelopes import REPRESENTATIONS, make_store
from sim.scenario import load
from sim.workload import draw
from testbed.footprint import EPOCH, fill


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_a_store_is_filled_with_waiting_envelopes(representation: str) -> None:
    """Exactly so many; all have failed once and wait; the store is sound."""
    scenario = load("backlog", ["load.messages=50"])
    store = make_store(representation, epoch=EPOCH)
    body_bytes = fill(store, scenario, draw(scenario), 777)

    assert 777 == len(store)
    assert (body_bytes > 0) == store.keeps_bodies
    assert {(0, 1)} == {(int(store.state_of(h)), store.attempts_of(h)) for h in store}
    store.validate()


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_a_store_is_filled_with_local_mail_that_an_agent_has(representation: str) -> None:
    """As of a user's flood: all in flight, each knows whose it is."""
    scenario = load("local-burst", ["load.scale=0.001"])
    store = make_store(representation, epoch=EPOCH)
    fill(store, scenario, draw(scenario), 650, in_flight=True)

    assert {(2, 0)} == {(int(store.state_of(h)), store.attempts_of(h)) for h in store}
    assert {"flood0@"} < {store.domain_of(h) for h in store}
    found = {store.mda_envelope_of(h) is None for h in store}
    assert {representation == "packed"} == found


def footprint(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "testbed.footprint", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_fatter_representation_is_measured_as_fatter() -> None:
    """10,000 envelopes are enough to tell whole, full and packed apart."""
    found = {
        name: json.loads(footprint(name, "--count", "10000").stdout)["bytes_per_envelope"]
        for name in ("whole", "full", "packed")
    }

    # No lower bound for packed: at this size its columns fit into memory that the imports left behind.
    assert found["whole"] > 2 * found["full"] > 4 * found["packed"] > 0


@pytest.mark.parametrize(
    "arguments", [["fat"], ["slim", "--count", "0"], ["slim", "--scenario", "nope"]]
)
def test_nonsense_is_status_2(arguments: list[str]) -> None:
    """And the last line says what was wrong."""
    found = footprint(*arguments)

    assert 2 == found.returncode
    assert arguments[-1] in found.stderr.splitlines()[-1]
