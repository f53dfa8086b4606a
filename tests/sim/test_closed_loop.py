"""Clients of the model: users who think, and clients that are turned away."""

import random
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from mta.core.settings import ConfigError, build
from sim.behaviours.delays import Latency
from sim.costs import Costs
from sim.runner import simulate
from sim.scenario import Scenario
from sim.workload import draw

FREE = {each.name: 0.0 for each in fields(Costs) if each.type is float}


def scenario(load: dict[str, Any], server: dict[str, Any] | None = None) -> Scenario:
    """Return a scenario with one host that takes everything."""
    load = {
        "sizes": {"law": "fixed", "bytes": 1024},
        "recipients": {"law": "fixed", "count": 1},
        **load,
    }
    data = {
        "name": "closed",
        "load": load,
        "destinations": [{"name": "a", "domain": "a.test"}],
        "server": server or {},
    }
    return build(Scenario, data, source="test")


class TestUsers:
    def test_one_user_sends_when_it_has_thought(self):
        """Its cycle is think, answer, close: the answer's time is counted from when it began to send."""
        costs = Costs(**{**FREE, "message_s": 0.25, "client_close_s": 0.5})
        load = {"messages": 4, "loop": "closed", "users": 1, "think_s": 2.0, "arrivals": "constant"}
        result = simulate(scenario(load), costs=costs)
        assert result.accept_latency_s.tolist() == [0.25] * 4
        # 2 + 0.25, then three times 0.5 + 2 + 0.25.
        assert result.load_s == 2.25 + 3 * 2.75

    def test_users_wait_for_the_server(self):
        """With more users than the writer can serve it is always busy, and nobody is refused."""
        costs = Costs(**{**FREE, "commit_message_s": 0.25})
        load = {
            "messages": 80,
            "loop": "closed",
            "users": 8,
            "think_s": 1.0,
            "arrivals": "constant",
        }
        result = simulate(
            scenario(load, {"limits": {"queue": {"commit_batch_max": 1}}}), costs=costs
        )
        assert result.counts["accepted_messages"] == 80
        assert result.load_s == 1.0 + 80 * 0.25
        # Each waits for the seven others, who need 1 s less than that because it thought meanwhile.
        assert set(result.accept_latency_s[8:].tolist()) == {8 * 0.25 - 1.0}

    @pytest.mark.parametrize("users", [1, 3, 7])
    def test_thoughts_belong_to_messages(self, users: int):
        """Another number of users changes neither how long they think before a message nor the message."""
        load = {"messages": 50, "loop": "closed", "users": users}
        found = draw(scenario(load))
        first = draw(scenario({**load, "users": 2}))
        assert np.array_equal(found.think_s, first.think_s)
        assert np.array_equal(found.mailbox, first.mailbox)
        assert not len(draw(scenario({"messages": 50})).think_s)

    def test_more_users_than_messages(self):
        """Those who find nothing to send do nothing."""
        load = {"messages": 2, "loop": "closed", "users": 10, "keep": True}
        result = simulate(scenario(load), costs=Costs())
        assert result.counts["delivered"] == 2

    def test_keys_are_checked(self):
        """No user, or a loop that does not exist."""
        for key, value in (("users", 0), ("think_s", -1.0), ("loop", "half-open"), ("tries", 0)):
            with pytest.raises(ConfigError, match=f"load.{key}"):
                scenario({key: value})


class TestTurnedAway:
    def test_who_was_turned_away_takes_no_room(self):
        """A client that heard 421 closes, and the server has not counted its connection: the next one is let in."""
        costs = Costs(**{**FREE, "client_close_s": 1.0})
        # Due at 0.4, 0.8, ...: the first closes at 1.4; 0.8 and 1.2 find it there, 1.6 does not.
        load = {"messages": 4, "rate": 2.5, "arrivals": "constant", "tries": 1, "sessions": 10}
        result = simulate(scenario(load, {"limits": {"smtp": {"max_conn": 1}}}), costs=costs)
        assert result.counts["refused_messages"] == 2
        assert result.counts["accepted_messages"] == 2

    def test_tries(self):
        """It comes again as often as it is told, a second later."""
        costs = Costs(**{**FREE, "client_close_s": 1.5})
        load = {"messages": 2, "rate": 2.5, "arrivals": "constant", "sessions": 10}
        server = {"limits": {"smtp": {"max_conn": 1}}}
        counts = [
            simulate(scenario({**load, "tries": tries}, server), costs=costs).counts
            for tries in (1, 2, 3)
        ]
        # Due at 0.8, 1.8, 2.8; the connection before is closed at 1.9.
        assert [each["refused_messages"] for each in counts] == [1, 1, 0]


class TestExponentialLatency:
    def test_mean_and_variance(self):
        """The draws of the law are exponential: the standard deviation is the mean."""
        behaviour = Latency(law="exponential", mean_s=0.25, max_s=3600.0).make(random.Random(1))
        values = np.array([behaviour.sample() for _ in range(20_000)])
        assert values.mean() == pytest.approx(0.25, rel=0.03)
        assert values.std() == pytest.approx(0.25, rel=0.04)
        assert np.mean(values > 0.25) == pytest.approx(np.exp(-1), rel=0.03)

    @pytest.mark.parametrize(
        ("parameters", "key"),
        [
            ({"law": "exponential"}, "mean_s"),
            ({"law": "exponential", "mean_s": 1.0, "median_s": 1.0}, "law"),
            ({"law": "exponential", "mean_s": 1.0, "delay_s": 1.0}, "delay_s"),
            ({"law": "fixed", "mean_s": 1.0}, "mean_s"),
            ({"law": "exponential", "mean_s": -1.0}, "mean_s"),
        ],
    )
    def test_parameters_belong_to_their_law(self, parameters: dict[str, Any], key: str):
        """What another law needs is refused by its name."""
        assert key in [problem[0] for problem in Latency(**parameters).problems()]
