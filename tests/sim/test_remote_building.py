"""Behaviours as a scenario writes them: what is refused, and the hosts and name servers that come of it."""

from typing import Any

import pytest

from mta.core.settings import ConfigError
from sim.behaviours import KINDS, read
from sim.behaviours.dns import DnsAnswer
from sim.remote import build_hosts, build_name_servers
from sim.scenario import Destination, Scenario
from tests.support.remote import PEER, RCPT, SENDER, host_of


class TestConfig:
    @pytest.mark.parametrize(
        ("behaviour", "line"),
        [
            ({"kind": "tarpitt"}, "s.toml: destinations.1.behaviours.0.kind"),
            ({}, "s.toml: destinations.1.behaviours.0.kind"),
            ({"kind": 7}, "s.toml: destinations.1.behaviours.0.kind = 7"),
            (
                {"kind": "latency", "median": 1},
                "s.toml: destinations.1.behaviours.0.median = 1: unknown key",
            ),
            (
                {"kind": "latency", "delay_s": "1"},
                's.toml: destinations.1.behaviours.0.delay_s = "1": must be a number',
            ),
            ({"kind": "latency", "delay_s": -1}, "delay_s = -1"),
            ({"kind": "latency", "law": "lognormal"}, "median_s = 0.0: must be above 0"),
            ({"kind": "latency", "median_s": 1.0}, 'law = "fixed"'),
            ({"kind": "latency", "law": "lognormal", "median_s": 1, "delay_s": 1}, "delay_s = 1"),
            ({"kind": "latency", "verbs": ["FROB"]}, 'verbs = "FROB": must be one of CONNECT'),
            ({"kind": "tarpit", "delay_s": 1e9}, "must be from 0 to 3600"),
            ({"kind": "reject", "code": 250}, "code = 250: must be from 400 to 599"),
            ({"kind": "reject", "probability": 1.5}, "probability = 1.5"),
            ({"kind": "reject", "enhanced": "5.1.1"}, 'enhanced = "5.1.1": must be 4.subject'),
            ({"kind": "reject", "text": "a\r\nb"}, "text = "),
            ({"kind": "reject", "verb": "QUIT"}, 'verb = "QUIT"'),
            ({"kind": "reject", "verb": "MAIL", "per_recipient": True}, "per_recipient = true"),
            ({"kind": "reject", "verb": "DATA", "match": ["x"]}, 'match = ["x"]'),
            ({"kind": "drop", "verb": "nope"}, 'verb = "nope"'),
            ({"kind": "greylist", "retry_window_s": 5}, "retry_window_s = 5"),
            ({"kind": "greylist", "code": 550, "enhanced": ""}, "code = 550: must be 4xx"),
            ({"kind": "greylist", "max_entries": 0}, "max_entries = 0"),
            ({"kind": "fail-then-accept", "failures": -1}, "failures = -1"),
            ({"kind": "limit-connections", "max": -1}, "max = -1"),
            ({"kind": "limit-rate", "burst": 0}, "burst = 0"),
            ({"kind": "limit-rate", "code": 200}, "code = 200"),
            ({"kind": "limit-rate", "enhanced": "5.7.1"}, 'enhanced = "5.7.1"'),
            ({"kind": "outage", "from_s": 5, "to_s": 5}, "to_s = 5"),
            ({"kind": "outage", "to_s": 5, "every_s": 5}, "every_s = 5"),
            ({"kind": "outage", "mode": "refused"}, 'mode = "refused": must be one of'),
            ({"kind": "dns", "answer": "lies"}, 'answer = "lies"'),
            ({"kind": "dns", "from_s": 5, "to_s": 5}, "to_s = 5"),
        ],
    )
    def test_a_wrong_behaviour_is_one_line_that_names_it(
        self, behaviour: dict[str, Any], line: str
    ):
        """File, key, value, and what is wrong."""
        with pytest.raises(ConfigError) as caught:
            read([behaviour], source="s.toml", key="destinations.1.behaviours")
        assert line in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_too_many_behaviours_are_refused(self):
        """Each costs a call per command."""
        with pytest.raises(ConfigError, match="at most 32"):
            read([{"kind": "accept"}] * 33)

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_has_defaults_that_work(self, kind: str):
        """A kind alone is a behaviour, and a host of it answers or refuses a transaction."""
        host = host_of({"kind": kind})
        conn, verdict = host.connect(PEER, 0.0)
        if not verdict.close and verdict.reply is not None:
            host.command(conn, "EHLO", "x", 0.0)
            assert len(host.transaction(conn, SENDER, [RCPT], 9, 0.0).results) == 1

    def test_hosts_of_a_scenario_have_their_addresses_and_their_own_chance(self):
        """Two hosts of a destination draw differently; a second reading draws the same."""
        scenario = Scenario(
            "two",
            destinations=[
                Destination("a", "a.test"),
                Destination(
                    "b",
                    "b.test",
                    hosts=2,
                    behaviours=[{"kind": "latency", "law": "lognormal", "median_s": 1, "sigma": 1}],
                ),
            ],
        )
        hosts, again = build_hosts(scenario), build_hosts(scenario)
        assert list(hosts) == ["127.0.10.1", "127.0.11.1", "127.0.11.2"]
        first, second = (hosts[f"127.0.11.{j}"].connect(PEER, 0.0)[1].delay_s for j in (1, 2))
        assert first != second
        assert again["127.0.11.1"].connect(PEER, 0.0)[1].delay_s == first
        other = build_hosts(scenario, replication=1)
        assert other["127.0.11.1"].connect(PEER, 0.0)[1].delay_s != first


class TestNameServer:
    def test_tells_the_truth_by_default_and_lies_in_its_window(self):
        """One destination, SERVFAIL from 5 s to 10 s, everything 20 ms late."""
        scenario = Scenario(
            "dns",
            destinations=[
                Destination("a", "a.test"),
                Destination(
                    "b",
                    "b.test",
                    behaviours=[
                        {"kind": "dns", "delay_s": 0.02, "ttl_s": 60},
                        {"kind": "dns", "answer": "servfail", "from_s": 5, "to_s": 10},
                    ],
                ),
            ],
        )
        plain, lying = build_name_servers(scenario)
        assert plain.decide(7.0)[:3] == (0.0, DnsAnswer.OK, 3600)
        answers = [lying.decide(now) for now in (-1e9, 4.9, 5.0, 9.9, 10.0)]
        assert [each.answer for each in answers] == [
            DnsAnswer.OK,
            DnsAnswer.OK,
            DnsAnswer.SERVFAIL,
            DnsAnswer.SERVFAIL,
            DnsAnswer.OK,
        ]
        assert {(each.delay_s, each.ttl_s) for each in answers} == {(0.02, 60)}
