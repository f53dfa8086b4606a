"""TLS of the model: who has a handshake, what it costs, and what comes of one that fails."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from mta.core.settings import ConfigError, build
from sim.costs import Costs
from sim.cpufit import REGRESSED, TlsShares, windows_of
from sim.measured import Measured
from sim.runner import Model, simulate
from sim.scenario import Scenario
from sim.settings import model_config
from sim.tls import Security, securities, security
from sim.workload import draw

FREE = {each.name: 0.0 for each in fields(Costs) if each.type is float}


def scenario(
    *, load: dict[str, Any] | None = None, server: dict[str, Any] | None = None, **destination: str
) -> Scenario:
    """Return ten messages, a second apart, to one host."""
    data = {
        "name": "tls",
        "drain_s": 5.0,
        "load": {
            "messages": 10,
            "rate": 1.0,
            "arrivals": "constant",
            "sizes": {"law": "fixed", "bytes": 1024},
            "recipients": {"law": "fixed", "count": 1},
            **(load or {}),
        },
        "destinations": [{"name": "a", "domain": "a.test", **destination}],
        "server": server or {},
    }
    return build(Scenario, data, source="test")


def finished(of: Scenario, costs: Costs) -> Model:
    """Return a run that is over."""
    config = model_config(of.server, source="test")
    it = Model(of, config=config, costs=costs, schedule=draw(of))
    it.run()
    return it


class TestTheWayIn:
    @pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.5, 5), (1.0, 10)])
    def test_each_connection_of_the_share_has_a_handshake(self, share: float, count: int):
        costs = Costs(**{**FREE, "tls_s": 0.25, "client_tls_s": 0.125})
        it = finished(scenario(load={"tls": share}), costs)
        assert it.driver.loop.busy_s == pytest.approx(count * 0.25)
        late = sorted(it.driver.inbound.latency_s)
        assert late == pytest.approx([0.0] * (10 - count) + [0.375] * count)

    def test_kept_connections_have_it_once(self):
        """Three connections, of which all have it: the fourth message finds one that is open."""
        costs = Costs(**{**FREE, "tls_s": 0.25})
        it = finished(scenario(load={"tls": 1.0, "keep": True, "sessions": 3}), costs)
        assert it.driver.loop.busy_s == pytest.approx(3 * 0.25)

    def test_who_is_turned_away_has_none(self):
        """421 instead of a greeting costs a connection and neither a message nor a handshake."""
        costs = Costs(**{**FREE, "session_s": 0.001, "tls_s": 0.25, "message_s": 0.5})
        of = scenario(
            load={"tls": 1.0, "tries": 1},
            server={"limits": {"smtp": {"max_conn_per_client": 1}}},
        )
        config = model_config(of.server, source="test")
        it = Model(of, config=config, costs=costs, schedule=draw(of))
        it.driver.inbound.pause(True)
        it.run()
        assert it.driver.inbound.turned_away == 10
        assert it.driver.loop.busy_s == pytest.approx(10 * 0.001)


class TestTheWayOut:
    def deliveries(self, costs: Costs, **of: Any) -> Model:
        return finished(scenario(load={"messages": 1}, **of), costs)

    def test_a_handshake_takes_its_time_once(self):
        costs = Costs(**{**FREE, "tls_connect_s": 0.25, "tls_network_s": 0.5})
        it = finished(scenario(tls="offered"), costs)
        assert it.driver.outbound.handshakes == 1
        assert it.driver.delivered == 10
        assert it.driver.latency_s[0] == pytest.approx(0.75)
        assert it.driver.loop.busy_s == pytest.approx(0.25)

    def test_a_broken_handshake_is_followed_by_mail_in_clear(self):
        """On another connection, of which the core knows nothing."""
        costs = Costs(**{**FREE, "connect_s": 0.25, "tls_connect_s": 8.0})
        it = self.deliveries(costs, tls="broken")
        assert (it.driver.delivered, it.driver.outbound.handshakes) == (1, 0)
        assert it.driver.outbound.opened == 1
        assert it.driver.loop.busy_s == pytest.approx(2 * 0.25)

    @pytest.mark.parametrize(
        ("level", "tls"), [("encrypt", "none"), ("encrypt", "broken"), ("verify", "expired")]
    )
    def test_what_is_demanded_is_not_weakened(self, level: str, tls: str):
        it = self.deliveries(Costs(), tls=tls, server={"relay": {"tls": level}})
        assert it.driver.delivered == 0
        assert len(it.driver.messages) == 1
        assert it.driver.outbound.failed > 0

    def test_a_rule_of_a_destination_counts_before_the_general_level(self):
        rule = {"domains": ["a.test"], "tls": "encrypt"}
        it = self.deliveries(Costs(), tls="none", server={"relays": [rule]})
        assert it.driver.delivered == 0

    def test_a_host_that_wants_tls_refuses_mail_in_clear_for_good(self):
        it = self.deliveries(Costs(), tls="required", server={"relay": {"tls": "none"}})
        assert (it.driver.delivered, it.driver.failed) == (0, 1)

    def test_where_nobody_has_tls_nobody_asks(self):
        """A run without TLS is what it was: no look-up for any connection."""
        of = scenario()
        assert securities(of, model_config(of.server, source="test")) is None

    def test_a_level_that_does_not_exist(self):
        with pytest.raises(ConfigError, match=r"server\.relay\.tls"):
            simulate(scenario(server={"relay": {"tls": "always"}}), costs=Costs())

    def test_the_way_back_is_nobodys(self):
        """An address that the scenario does not know is in clear."""
        of = scenario(tls="offered")
        found = securities(of, model_config(of.server, source="test"))
        assert found is not None
        assert found("a.test", "127.0.10.1").handshake
        assert found("a.test", "127.9.9.9") == Security()

    def test_records_that_are_wrong_are_worse_than_none(self):
        assert security("dane", "expired", "valid") == Security(handshake=True)
        assert security("dane", "offered", "wrong").failure
        assert security("dane", "broken", "none").again
        assert security("dane", "broken", "valid").failure


def test_handshakes_are_regressed_where_a_scenario_has_them():
    """A message that brought a handshake is one, and so is a connection to a host that has TLS, at its ratio."""
    measured = Measured()
    for i in range(0, 40, 2):
        measured.submitted.append((i + 0.5, 1, 100))
        measured.connected.append((i + 0.5, 0.1, ("x", "y")[i % 4 == 0]))
    t = np.arange(41.0)
    costs = Costs(tls_s=0.001, tls_connect_s=0.002)
    found = windows_of(
        measured,
        {"t": t, "cpu_s": t * 0.1},
        costs,
        {},
        tls=TlsShares(0.5, frozenset({"y"})),
    )
    assert found is not None
    column = found.done[:, REGRESSED.index("tls_s")]
    assert column[:4].tolist() == [0.5 + 2.0, 0.0, 0.5, 0.0]
