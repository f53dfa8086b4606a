"""Clients of the model that send no mail: who is hung up on, when, and with which words."""

from dataclasses import fields
from typing import Any, ClassVar, Literal

import pytest

from mta.core.limitchange import put_limit
from mta.core.settings import build
from sim.costs import Costs
from sim.runner import Model, simulate
from sim.scenario import Scenario
from sim.settings import model_config
from sim.timeline import Event
from sim.workload import draw

ROUND_TRIP = 1 / 64
FREE = {each.name: 0.0 for each in fields(Costs) if each.type is float}
COSTS = Costs(**{**FREE, "client_recipient_s": ROUND_TRIP})


def scenario(*beside: dict[str, Any], seconds: int = 20, **smtp: Any) -> Scenario:
    """Return a load of a message a second with others beside it."""
    data = {
        "name": "beside",
        "load": {
            "messages": seconds,
            "rate": 1.0,
            "arrivals": "constant",
            "sizes": {"law": "fixed", "bytes": 1024},
            "recipients": {"law": "fixed", "count": 1},
            "beside": list(beside),
        },
        "destinations": [{"name": "a", "domain": "a.test"}],
        "server": {"limits": {"smtp": smtp}},
    }
    return build(Scenario, data, source="test")


def said(*beside: dict[str, Any], **smtp: Any) -> dict[str, tuple[int, float]]:
    result = simulate(scenario(*beside, **smtp), costs=COSTS)
    assert result.counts["delivered"] == result.counts["messages"]
    return {name: (each.times, each.mean_s) for name, each in result.beside.items()}


class TestKinds:
    """What each is told, and after how long; without stress."""

    def test_idle_ones_are_hung_up_on_when_time_is_up(self):
        """And come again after their pause: 5 s and 1 s are three times in twenty."""
        found = said({"kind": "idle", "users": 4, "pause_s": 1.0}, timeout_s=5.0)
        assert found == {"idle 421 4.4.2": (12, pytest.approx(5.0 + ROUND_TRIP))}

    def test_a_command_letter_by_letter_is_none(self):
        found = said({"kind": "slow-commands", "users": 2, "bytes_per_s": 1.0}, timeout_s=5.0)
        assert found == {"slow-commands 421 4.4.2": (6, pytest.approx(5.0 + ROUND_TRIP))}

    def test_a_command_in_time_is_activity_until_it_is_junk(self):
        """Lines of 26, 30 and 6 bytes: RSET and every further EHLO are junk; the fourth is the 9th line, at 62 * 3 bytes."""
        found = said(
            {"kind": "slow-commands", "users": 1, "bytes_per_s": 31.0, "pause_s": 100.0},
            timeout_s=5.0,
            max_junk=4,
        )
        seconds = (62 * 3 - 1) / 31.0 + 2 * ROUND_TRIP
        assert found == {"slow-commands 421 4.7.0": (1, pytest.approx(seconds))}

    def test_a_slow_body_buys_time_by_the_byte(self):
        """At a byte a second and ten for a second each is worth 0.1 s: 4.5 s are over after 5 s."""
        group = {"kind": "slow-body", "users": 1, "bytes_per_s": 1.0, "pause_s": 100.0}
        found = said(group, timeout_s=4.5, min_data_rate=10)
        assert found == {"slow-body 421 4.4.2": (1, pytest.approx(5.0 + 6 * ROUND_TRIP))}

    @pytest.mark.parametrize("rate", [0, 1])
    def test_a_body_that_is_fast_enough_ends_with_the_session(self, rate: int):
        group = {"kind": "slow-body", "users": 1, "bytes_per_s": 1.0, "pause_s": 100.0}
        found = said(group, timeout_s=5.0, max_session_s=12.0, min_data_rate=rate)
        assert found == {"slow-body 421 4.4.2": (1, pytest.approx(12.0 + ROUND_TRIP))}

    def test_a_body_slower_than_the_timeout_is_silence(self):
        group = {"kind": "slow-body", "users": 1, "bytes_per_s": 0.1, "pause_s": 100.0}
        found = said(group, timeout_s=5.0)
        assert found == {"slow-body 421 4.4.2": (1, pytest.approx(5.0 + 6 * ROUND_TRIP))}

    def test_noop_without_an_end(self):
        """The fourth is one too many."""
        group = {"kind": "noop", "users": 1, "pause_s": 4.0}
        found = said(group, max_junk=3)
        assert found == {"noop 421 4.7.0": (1, pytest.approx(4 * (4.0 + ROUND_TRIP) + ROUND_TRIP))}

    def test_those_who_break_the_rules_at_once(self):
        found = said(
            {"kind": "garbage", "users": 1, "pause_s": 100.0},
            {"kind": "early-talker", "users": 1, "pause_s": 100.0},
        )
        assert {name: count for name, (count, _) in found.items()} == {
            "early-talker 554 5.5.0": 1,
            "garbage 421 4.7.0": 1,
        }

    def test_one_in_six_hangs_up_before_it_has_heard_a_word(self):
        found = said({"kind": "hang-up", "users": 6, "pause_s": 3.0})
        assert (found["hang-up"][0], found["hang-up lost"][0]) == (30, 12)

    def test_who_is_one_too_many_is_told_so(self):
        """Three places for five: two come again every second as long as the others stay."""
        of = scenario({"kind": "idle", "users": 5, "pause_s": 1.0}, max_conn=3, stress="no")
        result = simulate(of, costs=COSTS)
        # Nobody else finds room either, in three attempts.
        assert result.counts["refused_messages"] == 20
        assert result.load_s == pytest.approx(20 + 2 + 3 * ROUND_TRIP)
        assert result.beside == {"idle 421 4.3.2": (2 * 23, 0.0)}


class TestStress:
    """Nine of ten connections: patience shrinks, for those who are here already, too."""

    LIMITS: ClassVar[dict[str, Any]] = {"max_conn": 10, "timeout_s": 8.0, "stress_timeout_s": 2.0}

    def test_one_fewer_is_no_stress(self):
        result = simulate(
            scenario({"kind": "idle", "users": 7, "pause_s": 100.0}, **self.LIMITS), costs=COSTS
        )
        assert result.stress_entered == 0
        assert result.beside["idle 421 4.4.2"] == (7, pytest.approx(8.0 + ROUND_TRIP))

    def test_all_of_them_go_sooner(self):
        result = simulate(
            scenario({"kind": "idle", "users": 9, "pause_s": 100.0}, **self.LIMITS), costs=COSTS
        )
        assert result.stress_entered == 1
        assert result.beside["idle 421 4.4.2"] == (9, pytest.approx(2.0 + ROUND_TRIP))

    def test_who_was_idle_for_too_long_goes_the_moment_it_begins(self):
        """The operator lets fewer in after five seconds: seven of seven is stress, and they have been idle for five."""
        of = scenario({"kind": "idle", "users": 7, "pause_s": 100.0}, **self.LIMITS)
        config = model_config(of.server, source="test")
        it = Model(of, config=config, costs=COSTS, schedule=draw(of))

        def fewer(_: None) -> None:
            put_limit(it.config.limits, "limits.smtp.max_conn", 7)
            it.driver.limits_changed()

        it.kernel.schedule(5.25, fewer, None)
        it.run()
        found = it.result().beside
        assert found == {"idle 421 4.4.2": (7, pytest.approx(5.25 + ROUND_TRIP))}

    def test_a_body_must_be_faster_under_stress(self):
        """Without a rate a byte a second is activity for ever; under stress it counts for a thousandth of a second."""
        limits = {**self.LIMITS, "stress_min_data_rate": 1000}
        of = scenario({"kind": "slow-body", "users": 9, "pause_s": 100.0}, **limits)
        found = simulate(of, costs=COSTS).beside
        assert found == {"slow-body 421 4.4.2": (9, pytest.approx(2.0, abs=0.2))}

    def test_it_ends_when_they_are_gone_and_begins_when_they_are_back(self):
        of = scenario({"kind": "idle", "users": 9, "pause_s": 2.0}, **self.LIMITS)
        result = simulate(of, costs=COSTS)
        assert result.stress_entered == 5
        assert result.beside["idle 421 4.4.2"].times == 9 * 5


class TestTheRest:
    def test_they_leave_with_the_load(self):
        of = scenario({"kind": "idle", "users": 5})
        it = Model(
            of,
            config=model_config(of.server, source="test"),
            costs=COSTS,
            schedule=draw(of),
        )
        seen: list[int] = []
        it.kernel.schedule(10.25, lambda _: seen.append(it.driver.inbound.connections), None)
        it.run()
        assert seen == [5]
        assert it.driver.inbound.connections == 0

    @pytest.mark.parametrize("how", ["kill", "stop"])
    def test_they_come_back_to_the_next_process(self, how: Literal["kill", "stop"]):
        """Five connections are reset, and while nobody listens they hear nothing, every second."""
        of = scenario({"kind": "idle", "users": 5, "pause_s": 1.0})
        of.timeline.append(Event(at_s=4.5, restart=how, down_s=2.0))
        found = simulate(of, costs=COSTS).beside
        assert found["idle"].times == 5
        assert found["idle lost"].times >= 5
        assert found["idle"].mean_s >= 4.5

    def test_addresses_have_limits_of_their_own(self):
        """Six connections from three addresses are two for each."""
        of = scenario({"kind": "idle", "users": 6, "pause_s": 1.0}, max_conn_per_client=3)
        assert "idle 421 4.7.0" in said_of(of)
        of.load.sources = 3
        assert "idle 421 4.7.0" not in said_of(of)

    def test_the_same_in_both_kernels(self):
        of = scenario({"kind": "noop", "users": 3}, {"kind": "slow-body", "users": 3}, max_conn=7)
        one, two = (simulate(of, costs=Costs(), backend=each) for each in ("simpy", "heapq"))
        assert (one.beside, one.fingerprint) == (two.beside, two.fingerprint)


def said_of(of: Scenario) -> dict[str, Any]:
    return dict(simulate(of, costs=COSTS).beside)
