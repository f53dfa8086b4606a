"""How long the model takes for a burst of 100,000 local messages, under each policy.

Counts first, as in `test_model`; SimPy's own speed beside it, since that moves with the machine.
"""

import time

import pytest

from sim.runner import simulate
from sim.scenario import load
from tests.benchmarks.test_model import REFERENCE, timeouts_per_second

pytestmark = pytest.mark.benchmark

LIMIT_S = 15.0
"""CPU seconds for one run."""


@pytest.mark.parametrize("policy", ["tempfail", "raised", "hold"])
def test_a_burst_takes_seconds(policy: str):
    """15 s at most, on a machine that does what that of the figures does; all of it is delivered."""
    of = load("local-burst", [f"server.limits.mda.policy={policy}"])
    reference = timeouts_per_second()
    started = time.process_time()
    result = simulate(of)
    seconds = time.process_time() - started
    reference = max(reference, timeouts_per_second())
    assert result.counts["delivered"] == 100_500
    assert result.local is not None
    retries = result.local.summary()["retries"]
    print(
        f"\nmodel, local-burst, {policy}: {seconds:.1f} s for 100,500 messages, {retries:,} retries"
    )
    assert seconds * min(1.0, reference / REFERENCE) < LIMIT_S
