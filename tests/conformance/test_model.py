"""What always holds in the model, whatever is simulated.

The rules of instructions come from `tests.support.core.Ledger`, which holds the core itself to them: every
envelope has one fate, no cap is passed, no gap is cut short, every connection is answered once.
"""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.envelopes import REPRESENTATIONS
from mta.core.instructions import Instruction, StartTransaction
from mta.core.stimuli import MessageSubmitted, Stimulus, TransactionDone
from sim.costs import Costs, MemoryCosts
from sim.runner import Model, simulate
from sim.scenario import Scenario, load
from sim.workload import draw
from tests.support.core import Ledger
from tests.support.model import LATENCY, model, scenario

HOSTILE = st.sampled_from(
    [
        {"kind": "reject", "probability": 0.3, "verb": "RCPT", "code": 450},
        {"kind": "reject", "probability": 0.2, "verb": ".", "code": 451},
        {"kind": "reject", "probability": 0.2, "verb": "RCPT", "code": 550},
        {"kind": "reject", "probability": 0.1, "verb": "MAIL", "code": 421},
        {"kind": "reject", "probability": 0.2, "verb": "CONNECT", "code": 554},
        {"kind": "reject", "probability": 0.3, "verb": "EHLO", "code": 502},
        {"kind": "greylist", "wait_s": 1.0},
        {"kind": "limit-connections", "max": 2},
        {"kind": "limit-rate", "rate": 30.0, "burst": 5.0},
        {"kind": "outage", "from_s": 0.2, "to_s": 0.6},
        {"kind": "outage", "from_s": 0.2, "to_s": 0.6, "every_s": 0.9},
        {"kind": "outage", "from_s": 0.2, "to_s": 0.6, "mode": "silent"},
        {"kind": "outage", "from_s": 0.2, "to_s": 0.6, "mode": "421"},
        {"kind": "tarpit", "delay_s": 0.05},
        {"kind": "dead"},
        {"kind": "dead", "mode": "silent"},
        {"kind": "dns", "answer": "servfail", "probability": 0.5},
        {"kind": "dns", "answer": "timeout"},
        {"kind": "dns", "answer": "nxdomain"},
        {"kind": "dns", "answer": "null-mx"},
    ]
)
SERVERS = st.fixed_dictionaries(
    {
        "envelope": st.sampled_from(REPRESENTATIONS),
        "retry": st.sampled_from([{"base_s": 0.5}, {"policy": "exponential", "base_s": 0.5}]),
        "bounce": st.sampled_from([{}, {"warn_interval_s": [0.3, 1.0]}]),
        "limits": st.fixed_dictionaries(
            {
                "mta": st.fixed_dictionaries(
                    {
                        "max_conn_per_host": st.sampled_from([1, 10]),
                        "session_timeout_s": st.just(1.0),
                        "session_mail_max": st.sampled_from([3, 1000]),
                        "session_keepalive_s": st.sampled_from([0.1, 10.0]),
                        "route_delay_base_s": st.sampled_from([0.1, 15.0]),
                        "task_high_water": st.sampled_from([2, 50]),
                        "task_low_water": st.just(1),
                    }
                ),
                "scheduler": st.fixed_dictionaries(
                    {
                        "max_inflight": st.sampled_from([3, 5000]),
                        "max_held": st.sampled_from([2, 1000]),
                        "envelope_ttl_s": st.sampled_from([3.0, 86400.0]),
                        "bounce_ttl_s": st.just(4.0),
                    }
                ),
                "queue": st.fixed_dictionaries({"commit_batch_max": st.sampled_from([1, 256])}),
            }
        ),
    }
)


class Watch:
    """Looks at every stimulus of a run."""

    def __init__(self, it: Model) -> None:
        self.it = it
        self.ledger = Ledger(
            it.config.limits,
            it.engine.agent.rules,
            warn_after_s=tuple(it.config.bounce.warn_interval_s),
        )
        self.offered = 0
        self.ended: dict[int, int] = {}
        self.running = 0
        self.before = -math.inf
        it.driver.observer = self.observe

    def observe(self, stimulus: Stimulus, now: float, instructions: list[Instruction]) -> None:
        assert now >= self.before
        self.before = now
        self.ledger.check(stimulus, instructions, now)
        engine = self.it.engine
        counts = engine.scheduler.counts
        # Conservation: what came in has left or is there, in one state.
        assert counts.enqueued - counts.dequeued == len(engine.store) == len(self.ledger.rows)
        if isinstance(stimulus, MessageSubmitted):
            self.offered += len(stimulus.recipients)
        assert counts.enqueued == self.offered
        if isinstance(stimulus, TransactionDone):
            self.running -= 1
        self.running += sum(isinstance(each, StartTransaction) for each in instructions)
        gauges = engine.gauges()
        assert gauges["mta.task.running"] == self.running or not isinstance(
            stimulus, TransactionDone
        )


@given(st.lists(HOSTILE, max_size=3), SERVERS, st.integers(1, 3), st.integers(0, 99))
def test_every_envelope_has_one_fate_and_no_limit_is_passed(
    behaviours: list[dict[str, Any]], server: dict[str, Any], recipients: int, seed: int
):
    """At every stimulus of a run among hostile hosts."""
    of = scenario(
        LATENCY,
        *behaviours,
        messages=30,
        recipients=recipients,
        server=server,
        seed=seed,
        sessions=4,
    )
    of.drain_s = 6.0
    it = model(of)
    watch = Watch(it)
    it.run()
    result = it.result()
    counts = result.counts
    it.engine.validate()
    assert counts["accepted_messages"] + counts["refused_messages"] == 30
    assert counts["accepted"] == 30 * recipients
    fates = list(watch.ledger.fates.values())
    assert len(fates) + len(it.engine.store) == watch.offered
    assert counts["delivered"] + counts["failed"] <= counts["accepted"]
    if not it.driver.messages:
        assert counts["delivered"] + counts["failed"] == counts["accepted"]
        assert result.drain_time_s is not None
    if it.driver.is_quiet():
        assert it.driver.fill.size_bytes == 0
        assert all(host.remote.open_count == 0 for host in it.driver.outbound.hosts.values())


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_all_representations_decide_alike(representation: str):
    """How envelopes are kept changes what memory costs, and nothing else, at no instant."""
    of = load("backlog", ["load.messages=300", "load.rate=60"])
    slim = simulate(of, representation="slim")
    other = simulate(of, representation=representation)
    assert slim.fingerprint == other.fingerprint
    assert slim.counts == other.counts


def test_latency_without_a_queue_is_the_sum_of_its_parts():
    """One message alone: client, door, commit, look-up, connection, transaction; nothing else."""
    costs = Costs(
        session_s=0.001,
        message_s=0.002,
        recipient_s=0.003,
        byte_s=1e-6,
        connect_s=0.004,
        transaction_s=0.005,
        delivery_s=0.006,
        sent_byte_s=2e-6,
        lookup_s=0.007,
        client_s=0.1,
        client_recipient_s=0.02,
        network_s=0.3,
        connect_network_s=0.4,
        lookup_network_s=0.5,
        commit_s=0.05,
        commit_message_s=0.06,
        commit_lagging_s=1.0,
    )
    of = scenario({"kind": "latency", "delay_s": 0.25}, messages=1, rate=1.0, arrivals="constant")
    result = simulate(of, costs=costs)
    door = 0.1 + 0.02 + 0.001 + 0.002 + 0.003 + 4096e-6
    commit = 0.05 + 0.06
    # The client is answered when the loop has started the look-up.
    assert result.accept_latency_s.tolist() == pytest.approx([door + commit + 0.007], abs=1e-9)
    look_up = 0.007 + 0.5
    connect = 0.004 + 0.25 + 0.25 + 0.4
    transaction = 0.005 + 2e-6 * 4096 + 0.25 + 0.25 + 0.3
    # The reply counts when it has come: settling it is CPU that nobody waits for.
    assert result.delivery_latency_s.tolist() == pytest.approx(
        [door + commit + look_up + connect + transaction], abs=1e-9
    )


def test_time_in_the_queue_is_queue_over_time():
    """Little's law as an identity: the integral of the queue is the sum of all stays."""
    of = scenario(
        LATENCY, {"kind": "outage", "from_s": 0.2, "to_s": 1.0}, server={"retry": {"base_s": 0.3}}
    )
    it = model(of)
    born: dict[int, float] = {}
    stays = area = 0.0
    queued, at = 0, 0.0

    def observe(stimulus: Stimulus, now: float, instructions: list[Instruction]) -> None:
        nonlocal stays, area, queued, at
        area += queued * (now - at)
        at = now
        if isinstance(stimulus, MessageSubmitted):
            for number in range(1, len(stimulus.recipients) + 1):
                born[stimulus.msgid << 32 | number] = now
        for each in instructions:
            if type(each).__name__ == "RemoveEnvelope":
                stays += now - born[each.evpid]  # type: ignore[union-attr]
        queued = len(it.engine.store)

    it.driver.observer = observe
    it.run()
    assert queued == 0
    assert len(born) == 200
    assert area == pytest.approx(stays, rel=1e-9)


def test_a_limit_changes_nothing_about_what_is_sent():
    """Common random numbers: message 17 is the same message under every limit."""

    def messages(of: Scenario) -> list[Any]:
        it = model(of)
        seen: dict[str, Any] = {}

        def observe(stimulus: Stimulus, now: float, instructions: list[Instruction]) -> None:
            if isinstance(stimulus, MessageSubmitted):
                key = f"{stimulus.transaction.sender} {stimulus.recipients}"
                seen[key] = stimulus.transaction.size

        it.driver.observer = observe
        it.run()
        return sorted(seen.items())

    narrow = {"limits": {"mta": {"max_conn_per_host": 1}}, "concurrency": {"limit": 1}}
    sizes: dict[str, Any] = {"sizes": {"law": "histogram"}, "recipients": 3}
    assert messages(scenario(LATENCY, **sizes)) == messages(
        scenario(LATENCY, server=narrow, **sizes)
    )


def test_fewer_connections_never_drain_sooner():
    """With a host that takes the same time for each message, one connection is slower than five."""
    slow = {"kind": "latency", "delay_s": 0.05}

    def drained(limit: int) -> float:
        server = {"limits": {"mta": {"max_conn_per_host": limit}}}
        found = simulate(scenario(slow, server=server)).drain_time_s
        assert found is not None
        return found

    times = [drained(limit) for limit in (1, 2, 5)]
    assert times == sorted(times, reverse=True)
    assert times[0] > 2 * times[-1]


def test_ten_times_slower_is_the_same_run_ten_times_as_long():
    """Time has no unit: when everything takes ten times as long, so does everything else.

    But for what has a grain: instants of the queue are multiples of 1/64 s, and removals wait 50 ms.
    """

    def run(factor: float) -> Any:
        costs = Costs(
            **{  # type: ignore[arg-type]
                name: getattr(Costs(), name) * factor
                for name in Costs.__dataclass_fields__
                if name.endswith("_s")
            }
        )
        of = scenario(
            {"kind": "latency", "delay_s": 0.01 * factor},
            rate=200 / factor,
            server={"dns": {"ttl_max_s": 1e9}},
        )
        return simulate(of, costs=costs)

    once, ten = run(1.0), run(10.0)
    assert ten.counts["delivered"] == once.counts["delivered"]
    assert np.median(ten.delivery_latency_s) == pytest.approx(
        10 * np.median(once.delivery_latency_s), rel=0.05
    )


def test_memory_is_what_its_parts_add_up_to():
    """RSS is base and envelopes as the queue grows; what comes back is the share that is not kept, and late."""
    memory = MemoryCosts(
        base_bytes=1e6,
        envelope_bytes=1000.0,
        warm_bytes=0.0,
        kept_share=0.5,
        session_bytes=0.0,
        connection_bytes=0.0,
    )
    of = scenario(
        LATENCY, {"kind": "outage", "from_s": 0.1, "to_s": 2.0}, server={"retry": {"base_s": 1.0}}
    )
    result = simulate(of, costs=Costs(memory={"slim": memory}))
    top = int(result.queued.argmax())
    high = np.maximum.accumulate(result.queued)
    assert (result.rss_bytes[: top + 1] == 1e6 + 1000.0 * high[: top + 1]).all()
    kept = result.queued.max() * (1 - 0.5 * (1 - result.queued / result.queued.max()) ** 8)
    drain = slice(top, None)
    expected = np.minimum.accumulate(np.maximum(kept[drain], result.queued[drain]))
    assert result.rss_bytes[drain] == pytest.approx(1e6 + 1000.0 * expected, abs=1)
    assert result.rss_bytes[-1] == 1e6 + 500.0 * result.queued.max()
    assert result.queued.max() > 100
    assert draw(of).envelopes == result.counts["delivered"]
