"""Resident memory follows growth at once, comes back late, and is used again before more is taken."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.costs import MemoryCosts
from sim.memory import WARMED, Memory, fit, fit_together

BASE, EACH = 50e6, 400.0


def costs(**change: Any) -> MemoryCosts:
    parts: dict[str, Any] = {
        "base_bytes": BASE,
        "envelope_bytes": EACH,
        "warm_bytes": 0.0,
        "kept_share": 0.8,
        **change,
    }
    return MemoryCosts(**parts)


def series(of: MemoryCosts, queued: list[int]) -> list[float]:
    """What a queue makes of the server, above its base, in envelopes."""
    memory = Memory(of)
    return [
        (memory.rss_bytes(envelopes=each, body_bytes=0, messages=10**6) - of.base_bytes) / EACH
        for each in queued
    ]


def test_growth_counts_at_once_and_comes_back_with_the_last_envelopes():
    found = series(costs(), [0, 1000, 10_000, 8000, 5000, 1000, 0])
    assert found[:3] == [0, 1000, 10_000]
    assert found[3] == pytest.approx(10_000, rel=1e-5)
    assert found[4] == pytest.approx(10_000, rel=0.001)
    assert found[5] == pytest.approx(9139, abs=1)
    assert found[6] == pytest.approx(8000, abs=1)


def test_what_was_kept_is_used_again():
    """A second fill takes nothing until it is beyond what the first one left."""
    found = series(costs(), [10_000, 0, 4000, 8000, 9000, 10_000, 0])
    assert found[1:4] == pytest.approx([8000, 8000, 8000], abs=1)
    assert found[4:6] == pytest.approx([9000, 10_000], abs=1)
    assert found[6] == pytest.approx(8000, abs=1)


def test_slack_is_used_before_more_is_taken():
    found = series(costs(slack_bytes=EACH * 5000), [0, 3000, 5000, 6000])
    assert found == pytest.approx([5000, 5000, 5000, 6000])


@given(
    st.lists(st.integers(0, 50_000), min_size=1, max_size=30),
    st.floats(0, 1),
    st.floats(0, 1e7),
)
def test_it_is_between_what_lives_and_what_there_ever_was(
    queued: list[int], kept: float, slack: float
):
    found = np.array(series(costs(kept_share=kept, slack_bytes=slack), queued))
    high = np.maximum(np.maximum.accumulate(queued), slack / EACH)
    assert (found >= np.array(queued) - 0.01).all()
    assert (found <= high + 0.01).all()


def filled(of: MemoryCosts, peak: int, *, noise: float = 0.0, seed: int = 1) -> dict[str, Any]:
    """What a bench would have sampled of a queue that is filled and drained by a server that was warmed up."""
    rng = np.random.default_rng(seed)
    queued = np.concatenate((np.zeros(5), np.linspace(0, peak, 60), np.linspace(peak, 0, 80)))
    memory = Memory(of)
    rss = [memory.rss_bytes(envelopes=int(n), body_bytes=0, messages=1000) for n in queued]
    return {
        "rss_bytes": np.array(rss, dtype=float) + rng.normal(0, noise, len(rss)),
        "scheduler.envelope": np.floor(queued),
        "smtp.message": 100.0 + np.arange(len(rss)),
        WARMED: np.ones(len(rss)),
    }


@pytest.mark.parametrize("slack", [0.0, 2e6, 4e6])
def test_slack_and_costs_are_found_again(slack: float):
    """Of two representations at once; one base and one slack for both."""
    full = costs(envelope_bytes=500.0, slack_bytes=slack, kept_share=0.9)
    slim = costs(envelope_bytes=300.0, slack_bytes=slack, kept_share=0.9)
    found = fit_together(
        {
            "full": [filled(full, 40_000, noise=3e4)],
            "slim": [filled(slim, 40_000, noise=3e4, seed=2)],
        }
    )
    assert found["full"].envelope_bytes == pytest.approx(500, rel=0.03)
    assert found["slim"].envelope_bytes == pytest.approx(300, rel=0.03)
    assert found["full"].slack_bytes == found["slim"].slack_bytes == pytest.approx(slack, abs=3e5)
    assert found["slim"].base_bytes == pytest.approx(BASE, rel=0.01)
    assert found["slim"].kept_share == pytest.approx(0.9, abs=0.03)
    assert found["slim"].warm_bytes == 0.0


@pytest.mark.parametrize(
    ("true", "stored", "found"),
    [(9000.0, 0.0, 9000.0), (28e3, 0.0, 0.0), (28e3, 10_000 * 20e3, 28e3)],
)
def test_what_an_envelope_in_flight_takes_is_believed_up_to_what_can_be(
    true: float, stored: float, found: float
):
    """No representation's takes more than `IN_FLIGHT_MAX`, and its body: more is something else that came at the same time."""
    in_flight = np.concatenate((np.zeros(35), np.linspace(0, 110, 30), np.linspace(110, 0, 80)))
    samples = filled(costs(), 10_000, noise=3e4)
    # None comes back, as in an allocator.
    samples["rss_bytes"] += true * np.maximum.accumulate(in_flight)
    samples["rss_bytes"] = np.maximum.accumulate(samples["rss_bytes"])
    samples["scheduler.envelope.inflight"] = in_flight
    samples["queue.bytes"] = np.linspace(0.0, stored, 145)
    assert fit_together({"slim": [samples]})["slim"].in_flight_bytes == pytest.approx(found, 0.1)


def test_what_is_due_weighs_as_its_representation_says():
    """Whether an envelope is due or waits for its next try is another number of bytes, and found again in a run."""
    memory = Memory(costs(due_share=1.5))
    assert memory.live_bytes(envelopes=1000, body_bytes=0, due=400) == EACH * 1200
    samples = filled(costs(due_share=1.5), 40_000)
    # Of each envelope that weighs so much, half are due: 1.25 each.
    samples["scheduler.envelope"] = samples["scheduler.envelope"] / 1.25
    samples["scheduler.ramqueue.hold"] = samples["scheduler.envelope"] / 4
    samples["scheduler.envelope.scheduled"] = samples["scheduler.envelope"] / 4
    found = fit_together({"slim": [samples]}, {"slim": 1.5})["slim"]
    assert found.envelope_bytes == pytest.approx(EACH, rel=0.03)
    assert found.due_share == 1.5


def test_open_connections_take_memory_beyond_those_of_the_warm_up():
    """In TLS they take more; what they took stays when they close."""
    of = costs(warm_sessions=100.0, kept_share=1.0)
    memory = Memory(of, tls=0.5)

    def rss(sessions: int, connections: int) -> float:
        found = memory.rss_bytes(
            envelopes=0, body_bytes=0, messages=0, sessions=sessions, connections=connections
        )
        return found - of.base_bytes

    assert rss(100, 0) == 0.0
    most = 900 * (of.session_bytes + of.session_tls_bytes / 2) + 50 * of.connection_bytes
    assert rss(1000, 50) == pytest.approx(most)
    assert rss(0, 0) == pytest.approx(most)


def test_what_the_warm_up_did_is_not_the_loads():
    """Rows of the warm-up are left out; a run that says nothing of one begins cold, and has no slack."""
    samples = filled(costs(slack_bytes=3e6), 40_000)
    before = {
        "rss_bytes": np.linspace(20e6, 50e6, 30),
        "scheduler.envelope": np.linspace(0, 9000, 30),
        "smtp.message": np.linspace(0, 100, 30),
        WARMED: np.zeros(30),
    }
    whole = {name: np.concatenate((before[name], samples[name])) for name in samples}
    assert fit(whole) == fit(samples)
    del samples[WARMED]
    cold = fit(samples)
    assert cold is not None
    assert cold.slack_bytes == 0.0
