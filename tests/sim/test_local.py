"""Local delivery in the model: what a delivery takes, how policies differ, and who pays for a burst."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.instructions import DeliverLocally, Instruction
from mta.core.settings import ConfigError
from mta.core.stimuli import LocalDeliveryDone, Stimulus
from mta.delivery.base import DeliveryLimits
from sim.costs import Costs
from sim.groups import LocalGroup
from sim.local import LocalResult, jain_index
from sim.runner import Model, SimResult
from sim.scenario import Scenario, load
from sim.settings import DELIVERY_TIMEOUT_S, delivery_timeout
from sim.workload import draw
from tests.support.model import model, scenario

FREE = Costs(
    local_s=0.0, fork_s=0.0, local_done_s=0.0, local_rcpt_s=0.0, command_wait_s=0.0, client_s=0.0
)
"""Deliveries take what they take of themselves, and nothing else does."""


def local(*groups: LocalGroup, messages: int = 0, **server: Any) -> Scenario:
    of = scenario(messages=1, server=server, sessions=100)
    of.load.messages, of.load.keep = messages, True
    of.local = list(groups)
    of.drain_s = 1e6
    return of


def run(of: Scenario, **options: Any) -> tuple[Model, SimResult, LocalResult]:
    it = model(of, backend="heapq", **options)
    it.run()
    it.engine.validate()
    result = it.result()
    assert result.local is not None
    return it, result, result.local


def test_a_delivery_takes_what_it_takes():
    """On an idle server: the loop's part of it, what it waits for, and the time that its command takes."""
    costs = Costs()
    for delivery, fork, waits in (
        ("command", costs.fork_s, costs.command_wait_s),
        ("maildir", 0.0, costs.mailbox_wait_s),
        ("lmtp", 0.0, costs.network_s),
    ):
        group = LocalGroup("a", messages=3, to_s=60.0, delivery=delivery, seconds=0.5)
        _, result, found = run(local(group))
        expected = costs.local_s + fork + waits + 0.5
        assert found.groups[0].latency_s.tolist() == pytest.approx([expected] * 3)
        assert result.counts["delivered"] == found.attempts == 3
        assert found.oldest_age_s == pytest.approx(expected)


def test_a_delivery_that_fails_for_now_comes_again():
    """On OpenSMTPD's timetable for local deliveries, 10 s times the square of the attempts."""
    of = local(LocalGroup("a", messages=1, from_s=1.0, to_s=1.0))
    schedule = draw(of)
    schedule.failures[0] = 2
    _, result, found = run(of, costs=FREE, schedule=schedule)
    assert found.groups[0].tempfails == result.counts["deferred"] == 2
    assert found.groups[0].refused == found.groups[0].overflows == 0
    assert found.attempts == 3
    assert found.groups[0].latency_s[0] == pytest.approx(40.0, abs=0.1)


def test_a_delivery_that_fails_for_good_is_reported():
    """The bounce goes to the sender, over the relay; the message is settled and counted once."""
    _, result, found = run(local(LocalGroup("a", messages=5, permfail=1.0)))
    assert (found.groups[0].failed, found.groups[0].delivered) == (5, 0)
    assert (result.counts["bounced"], result.counts["failed"]) == (5, 5)
    assert result.counts["transactions"] == 5
    assert result.counts["queued"] == 0
    assert found.summary()["groups"]["a"]["latency_s"]["p50"] is None


def test_a_command_that_hangs_is_ended():
    """At the server's deadline, as a temporary failure; it hangs again at the next attempt."""
    of = local(
        LocalGroup("a", messages=1, to_s=0.0, seconds=1000.0),
        local={"limits": {"timeout_s": 5}},
        retry={"mda_base_s": 10.0},
    )
    of.drain_s = 60.0
    _, result, found = run(of, costs=FREE)
    # Attempts begin at 0, 10 and 40 s.
    assert found.groups[0].tempfails == found.attempts == 3
    assert result.counts["queued"] == 1


def test_the_deadline_is_that_of_the_server():
    """The same default, and one line for what is no time."""
    assert DeliveryLimits().timeout_s == DELIVERY_TIMEOUT_S == delivery_timeout({}, source="x")
    assert delivery_timeout({"local": {"limits": {"timeout_s": 7}}}, source="x") == 7.0
    assert delivery_timeout({"local": {"limits": {}}}, source="x") == DELIVERY_TIMEOUT_S
    for wrong in (0, True, "long", -1.0):
        with pytest.raises(ConfigError, match=r"^x: server\.local\.limits\.timeout_s = .*above 0$"):
            delivery_timeout({"local": {"limits": {"timeout_s": wrong}}}, source="x")


def test_mail_to_the_outside_goes_on():
    """Relayed and local mail share a queue and a loop, and both are accounted for."""
    of = local(LocalGroup("a", users=4, messages=50, to_s=2.0, seconds=0.01), messages=300)
    it, result, found = run(of)
    assert result.counts["delivered"] == 500
    assert found.groups[0].delivered == 200
    assert result.counts["transactions"] > 0
    assert it.driver.fill.local == 0
    assert it.driver.local.running == 0


def test_a_user_is_served_as_fast_as_the_limit_lets():
    """n deliveries of s seconds, c at a time: n / c * s, to the last round."""
    for sessions in (1, 7):
        of = local(
            LocalGroup("a", messages=700, to_s=0.0, seconds=0.1),
            limits={"mda": {"max_session_per_user": sessions}},
        )
        _, _, found = run(of, costs=FREE)
        assert found.burst_drain_s == pytest.approx(70.0 / sessions, rel=0.02)


BURST = (
    LocalGroup("flood", messages=2000, to_s=2.0, seconds=0.02),
    LocalGroup("others", users=20, messages=5, to_s=8.0, seconds=0.02),
)


@pytest.mark.parametrize("policy", ["tempfail", "raised", "hold"])
def test_policies_keep_their_word(policy: str):
    """Caps are kept, `hold` sends nothing back for being too much, and the others notice nothing."""
    caps = {"tempfail_max_pending_per_user": 50, "raised_max_pending_per_user": 1500}
    of = local(
        *BURST,
        limits={
            "mda": {"policy": policy, **caps, "raised_max_pending": 2000},
            "scheduler": {"max_inflight": 5000, "max_held": 5000},
        },
        retry={"mda_base_s": 1.0},
    )
    _, result, found = run(of)
    flood, others = found.groups
    assert (flood.delivered, others.delivered) == (2000, 100)
    assert result.counts["bounced"] == result.counts["queued"] == 0
    assert found.summary()["groups"]["others"]["latency_s"]["max"] < 1.0
    if policy == "hold":
        assert found.summary()["tempfails"] == found.summary()["overflows"] == 0
        assert found.peak_agent <= 50 + 7 + 20 * 5
    else:
        assert flood.refused == flood.tempfails > 0
        assert found.peak_agent <= caps[f"{policy}_max_pending_per_user"] + 20 * 5
    assert found.attempts == 2100


def test_policies_hear_the_same_messages():
    """Common random numbers: a message is due at the same instant, and its command takes as long."""
    schedules = [
        draw(load("local-burst", [f"server.limits.mda.policy={p}"])) for p in ("hold", "raised")
    ]
    assert schedules[0].due_s.tolist() == schedules[1].due_s.tolist()
    assert schedules[0].service_s.tolist() == schedules[1].service_s.tolist()


def test_a_full_hold_queue_is_no_failure():
    """What finds no place comes back soon; it counts as an overflow, and the envelope has no attempt more."""
    of = local(
        LocalGroup("flood", messages=300, to_s=0.0, seconds=0.05),
        limits={"scheduler": {"max_held": 10}},
        retry={"overflow_base_s": 0.5},
    )
    _, result, found = run(of)
    assert found.groups[0].overflows > 0
    assert found.groups[0].tempfails == result.counts["deferred"] == 0
    assert found.summary()["retries"] == found.groups[0].overflows
    assert found.groups[0].delivered == 300


def test_a_small_hold_queue_leaves_the_agent_idle():
    """What finds it full comes again on a timetable: deliveries could start meanwhile, and there is nothing to start."""
    drains = [
        run(
            local(
                LocalGroup("flood", messages=1500, to_s=0.0, seconds=0.05),
                limits={"scheduler": {"max_held": held}},
            )
        )[2].burst_drain_s
        for held in (50, 5000)
    ]
    assert drains[0] is not None
    assert drains[1] is not None
    assert drains[0] > 1.3 * drains[1]
    assert drains[1] == pytest.approx(1500 * 0.0535 / 7, rel=0.1)


def test_equals_are_treated_alike():
    """Users of the same demand get the same share of what there is, though all of them want more."""
    of = local(
        LocalGroup("a", users=10, messages=100, to_s=5.0, seconds=0.1),
        limits={"mda": {"max_session": 5}, "scheduler": {"max_held": 5000}},
    )
    _, _, found = run(of)
    assert found.jain is not None
    assert found.jain > 0.98


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=60), st.floats(0.1, 10.0))
def test_jain_is_between_one_for_all_and_one_for_one(shares: list[float], scale: float):
    """1/n at least, 1 at most; the unit of the shares does not matter."""
    values = np.array(shares)
    index = jain_index(values)
    assert index is not None
    assert 1 / len(shares) - 1e-9 <= index <= 1 + 1e-9
    assert jain_index(values * scale) == pytest.approx(index)


def test_jain_of_known_shares():
    """All alike, one of four with everything, nobody with anything, and the flooded among fifty."""
    assert jain_index(np.array([0.3] * 7)) == pytest.approx(1.0)
    assert jain_index(np.array([1.0, 0, 0, 0])) == pytest.approx(0.25)
    assert jain_index(np.zeros(3)) is None
    assert jain_index(np.array([0.0] + [1.0] * 50)) == pytest.approx(50 / 51)


def test_a_run_that_is_cut_off_says_what_is_open():
    """No drain time is made up, and the oldest message is as old as the run is long."""
    of = local(LocalGroup("a", messages=100, to_s=0.0, seconds=10.0))
    of.drain_s = 5.0
    _, result, found = run(of)
    assert found.burst_drain_s is None
    assert result.counts["queued"] > 80
    assert found.oldest_age_s == pytest.approx(result.end_s, abs=0.5)
    assert found.jain is None


SERVERS = st.fixed_dictionaries(
    {
        "envelope": st.sampled_from(["whole", "full", "slim", "packed"]),
        "retry": st.just({"mda_base_s": 0.5, "overflow_base_s": 0.25, "base_s": 0.5}),
        "limits": st.fixed_dictionaries(
            {
                "mda": st.fixed_dictionaries(
                    {
                        "policy": st.sampled_from(["tempfail", "raised", "hold"]),
                        "max_session": st.integers(1, 5),
                        "max_session_per_user": st.integers(1, 3),
                        "task_high_water": st.integers(2, 4),
                        "task_low_water": st.integers(0, 1),
                        "tempfail_max_pending": st.integers(1, 8),
                        "tempfail_max_pending_per_user": st.integers(1, 4),
                        "raised_max_pending": st.integers(8, 20),
                        "raised_max_pending_per_user": st.integers(4, 10),
                    }
                ),
                "scheduler": st.fixed_dictionaries(
                    {
                        "max_held": st.sampled_from([2, 1000]),
                        "max_inflight": st.just(50),
                        "envelope_ttl_s": st.sampled_from([2.0, 86400.0]),
                    }
                ),
            }
        ),
    }
)


@given(
    SERVERS, st.integers(1, 4), st.sampled_from([0.0, 0.3]), st.integers(0, 20), st.integers(0, 99)
)
def test_every_message_has_one_fate_whatever_the_limits(
    server: dict[str, Any], users: int, failing: float, outside: int, seed: int
):
    """Each order is answered once, no cap is passed, and every message is delivered, reported or still there."""
    of = local(
        LocalGroup(
            "a", users=users, messages=8, to_s=0.5, seconds=0.05, law="exponential",
            tempfail=failing, permfail=failing,
        ),
        messages=outside,
        **server,
    )  # fmt: skip
    of.seed, of.drain_s = seed, 8.0
    it = model(of, backend="heapq")
    mda = it.config.limits.mda
    running: dict[int, str] = {}

    def observe(stimulus: Stimulus, now: float, instructions: list[Instruction]) -> None:
        if isinstance(stimulus, LocalDeliveryDone):
            del running[stimulus.evpid]
        for each in instructions:
            if isinstance(each, DeliverLocally):
                assert each.evpid not in running
                running[each.evpid] = each.user
        assert len(running) <= mda.max_session
        users_ = list(running.values())
        assert all(users_.count(user) <= mda.max_session_per_user for user in users_)
        caps = mda.max_pending()
        assert caps is None or it.engine.local.envelopes <= caps[0]

    it.driver.observer = observe
    it.run()
    it.engine.validate()
    result = it.result()
    assert result.local is not None
    (group,) = result.local.groups
    left = it.driver.fill.local
    assert group.accepted == group.offered == 8 * users
    assert group.delivered + group.failed + left == group.accepted
    assert len(group.latency_s) == group.delivered
    assert len(running) == it.driver.local.running
    if not left:
        assert not running
