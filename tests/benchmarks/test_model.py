"""How fast the model is: simulated messages per second of one core, with 20 % deferrals.

Counts first: a model that loses messages would be faster. The rate is printed beside what SimPy does on the
same machine at the same moment, since that moves with the machine and whatever else runs on it.
"""

import time
from typing import TYPE_CHECKING, Any

import pytest
import simpy

from sim.runner import simulate
from sim.scenario import Scenario
from sim.workload import draw
from tests.support.model import LATENCY, scenario

if TYPE_CHECKING:
    from sim.kernel import Backend

pytestmark = pytest.mark.benchmark

MESSAGES = 20_000
REFERENCE = 1.9e6
"""SimPy's own timeouts per second on the machine of the figures below, when it is idle."""
SERVER: dict[str, Any] = {
    "retry": {"base_s": 200.0},
    # No limit but the loop itself: what is measured is the model, not a cap.
    "limits": {
        "mta": {
            "session_mail_max": 10**6,
            "max_failures_per_session": 10**6,
            "route_delay_base_s": 5.0,
            "route_delay_max_s": 20.0,
        },
        "scheduler": {"max_schedule": 100, "max_held": 10**6},
    },
}


def timeouts_per_second(count: int = 200_000) -> float:
    """What SimPy does without a model."""
    environment = simpy.Environment()

    def ticking() -> Any:
        for _ in range(count):
            yield environment.timeout(1.0)

    environment.process(ticking())
    started = time.process_time()
    environment.run()
    return count / (time.process_time() - started)


def refusing() -> Scenario:
    """A fifth of all recipients is refused for now, at RCPT, on open connections."""
    of = scenario(
        LATENCY,
        {"kind": "reject", "probability": 0.2, "code": 450},
        messages=MESSAGES,
        rate=400.0,
        sessions=200,
        server=SERVER,
    )
    of.destinations[0].hosts = 4
    of.drain_s = 10_000.0
    return of


def away(messages: int = MESSAGES, until_s: float = 55.0) -> Scenario:
    """A fifth of the mail is for a destination that refuses connections, by default until the load is over."""
    of = scenario(LATENCY, messages=messages, rate=400.0, sessions=200, server=SERVER)
    steady = of.destinations[0]
    steady.hosts, steady.share = 4, 0.8
    out = {"kind": "outage", "from_s": 0.0, "to_s": until_s, "mode": "refuse"}
    of.destinations.append(
        type(steady)("b", "b.test", share=0.2, hosts=4, behaviours=[LATENCY, out])
    )
    of.drain_s = 10_000.0
    return of


@pytest.mark.parametrize(
    ("name", "make", "target"), [("away", away, 36_000), ("refused", refusing, 26_000)]
)
def test_messages_per_second(name: str, make: Any, target: int):
    """36,000 if the deferred wait for a host, 26,000 if each deferral is a dialogue; three quarters are a failure.

    That is the interpreter; what the compiled model does is in test_compiled.py.
    """
    of = make()
    schedule = draw(of)
    rates: dict[Backend, float] = {}
    reference = timeouts_per_second()
    backends: tuple[Backend, ...] = ("simpy", "heapq")
    for backend in backends:
        for _ in range(4):
            started = time.process_time()
            result = simulate(of, schedule=schedule, backend=backend, fingerprint=False)
            rate = MESSAGES / (time.process_time() - started)
            rates[backend] = max(rates.get(backend, 0.0), rate)
        reference = max(reference, timeouts_per_second())
        counts = result.counts
        assert counts["delivered"] == counts["accepted"] == MESSAGES
        assert counts["queued"] == counts["refused_messages"] == 0
        assert 0.19 * MESSAGES < counts["deferred"] < 0.3 * MESSAGES
    print(
        f"\nmodel, {name}: {rates['heapq']:,.0f} messages/s on a heap, {rates['simpy']:,.0f} on SimPy,"
        f" target {target:,}; {counts['deferred'] / MESSAGES:.0%} deferrals;"
        f" SimPy alone {reference / 1e6:.2f} M timeouts/s"
    )
    assert rates["heapq"] > 0.75 * target * min(1.0, reference / REFERENCE)
