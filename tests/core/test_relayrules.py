"""What the operator wants for which destination."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.config import Config
from mta.core.limits import MtaLimits
from mta.core.relayrules import RelayRule, RelayRules
from mta.core.settings import ConfigError, build, flatten


def config(*relays: dict[str, object], **more: object) -> Config:
    return build(Config, {"relays": list(relays), **more}, source="mta.toml")


def rules(
    *relays: dict[str, object], smart_host: str = "", hops: tuple[str, ...] = ()
) -> RelayRules:
    built = config(*relays)
    return RelayRules(built.relays, built.limits.mta, smart_host=smart_host, hops=hops)


class TestConfiguration:
    """One line names file, key, value and problem."""

    @pytest.mark.parametrize(
        ("relay", "line"),
        [
            ({}, "relays.0.domains: missing"),
            ({"domains": []}, 'relays.0.domains = []: must name a domain; "*" is any'),
            (
                {"domains": ["a b"]},
                'relays.0.domains = "a b": must be a domain, .domain, *.domain or *',
            ),
            (
                {"domains": ["."]},
                'relays.0.domains = ".": must be a domain, .domain, *.domain or *',
            ),
            (
                {"domains": ["*"], "smart_host": ["a b"]},
                'relays.0.smart_host = "a b": must be a host name or an address, or one in brackets',
            ),
            (
                {"domains": ["*"], "smart_host": [""]},
                'relays.0.smart_host = "": must be a host name or an address, or one in brackets',
            ),
            (
                {"domains": ["*"], "balance": True},
                "relays.0.balance = true: is only for several hosts in smart_host",
            ),
            (
                {"domains": ["*"], "port": 65536},
                "relays.0.port = 65536: must be a port, or 0 for relay.port",
            ),
            (
                {"domains": ["*"], "tls": "some"},
                'relays.0.tls = "some": must be one of "", "none", "may", "encrypt", "verify", "dane", "implicit"',
            ),
            (
                {"domains": ["*"], "inet4": False, "inet6": False},
                "relays.0.inet6 = false: must be true when inet4 is false",
            ),
            (
                {"domains": ["*"], "sources": ["me"]},
                'relays.0.sources = "me": must be an IP address of this host',
            ),
            (
                {"domains": ["*"], "sources": ["127.0.0.2"], "inet4": False},
                'relays.0.sources = "127.0.0.2": must not be an IPv4 address when inet4 is false',
            ),
            (
                {"domains": ["*"], "sources": ["127.0.0.2", "127.0.0.2"]},
                'relays.0.sources = "127.0.0.2": must not be named twice',
            ),
            (
                {"domains": ["*"], "limits": {"max_conn_per_hosts": 1}},
                "relays.0.limits.max_conn_per_hosts = 1: unknown key (did you mean max_conn_per_host?)",
            ),
            ({"domains": ["*"], "limits": {"zzz": 1}}, "relays.0.limits.zzz = 1: unknown key"),
            (
                {"domains": ["*"], "limits": {"max_conn": 1}},
                "relays.0.limits.max_conn = 1: is for all destinations together; set it in limits.mta",
            ),
            (
                {"domains": ["*"], "limits": {"max_conn_per_host": 1.5}},
                "relays.0.limits.max_conn_per_host = 1.5: must be a whole number",
            ),
            (
                {"domains": ["*"], "limits": {"max_conn_per_host": 0}},
                "relays.0.limits.max_conn_per_host = 0: must be above 0; a cap of 0 is not unlimited",
            ),
            (
                {"domains": ["*"], "limits": {"task_low_water": 50}},
                "relays.0.limits.task_low_water = 50: must be below task_high_water (50)",
            ),
            (
                {"domains": ["*"], "auth": "me"},
                'relays.0.auth = "me": needs smart_host: any host would be sent the password',
            ),
            (
                {"domains": ["*"], "smarthost": "x"},
                'relays.0.smarthost = "x": unknown key (did you mean smart_host?)',
            ),
        ],
    )
    def test_mistakes(self, relay, line):
        """What can't be used is refused when the configuration is read."""
        with pytest.raises(ConfigError) as caught:
            config(relay)
        assert f"mta.toml: {line}" == str(caught.value)

    def test_a_rule_that_is_never_asked(self):
        """The same pattern twice is a mistake, however it is written."""
        with pytest.raises(
            ConfigError, match=r"relays\.1\.domains = .*is never asked: relays\.0 has it"
        ):
            config({"domains": ["*.Example.test"]}, {"domains": [".example.test"]})

    def test_they_are_listed_as_they_were_given(self):
        """`mta config` shows rules like every other key."""
        shown = flatten(config({"domains": ["a.test"], "limits": {"max_conn_per_host": 2}}))
        assert ["a.test"] == shown["relays.0.domains"]
        assert 2 == shown["relays.0.limits.max_conn_per_host"]


class TestMatching:
    """The first rule whose domains match."""

    def test_exact_below_and_any(self):
        """A suffix is for what is below it, not for itself; order decides between all kinds."""
        of = rules(
            {"domains": ["vip.big.test"], "port": 1},
            {"domains": [".big.test"], "port": 2},
            {"domains": ["*.other.test", "big.test"], "port": 3},
            {"domains": ["*"], "port": 4},
            {"domains": ["late.test"], "port": 5},
        )
        ports = {
            domain: of.plan_of(of.key_of(domain)).port
            for domain in (
                "vip.big.test", "x.big.test", "y.x.big.test", "big.test", "a.other.test", "other.test",
                "notbig.test", "late.test", "[127.0.0.1]",
            )
        }  # fmt: skip
        assert [1, 2, 2, 3, 3, 4, 4, 4, 4] == list(ports.values())

    def test_without_rules_every_domain_is_its_own_key(self):
        """And all have one plan, with the limits themselves."""
        limits = MtaLimits()
        of = RelayRules((), limits)
        assert of.trivial
        assert "a.test" == of.key_of("a.test")
        assert of.plan_of("a.test") is of.plan_of("b.test")
        assert of.plan_of("a.test").limits is limits

    def test_names_are_compared_as_a_labels(self):
        """A rule for a U-label is for its A-label."""
        of = rules({"domains": ["Bücher.test"], "port": 1})
        assert 1 == of.plan_of("xn--bcher-kva.test").port


class TestKeys:
    """Equal plans share a relay, different ones never do."""

    def test_domains_with_one_smart_host_share_a_relay(self):
        """Also when two rules name it, if nothing else is different."""
        of = rules(
            {"domains": ["a.test", "b.test"], "smart_host": ["Hub.test"]},
            {"domains": ["c.test"], "smart_host": ["hub.test"]},
        )
        assert {"hub.test"} == {of.key_of(d) for d in ("a.test", "b.test", "c.test", "hub.test")}
        assert "d.test" == of.key_of("d.test")

    @pytest.mark.parametrize(
        "different",
        [
            {"port": 26},
            {"tls": "none"},
            {"auth": "me"},
            {"sources": ["127.0.0.2"]},
            {"limits": {"max_conn_per_host": 1}},
        ],
    )
    def test_other_parameters_make_another_relay(self, different):
        """Two rules with one smart host and a difference; and the host's own domain is a third."""
        of = rules(
            {"domains": ["a.test"], "smart_host": ["hub.test"]},
            {"domains": ["b.test"], "smart_host": ["hub.test"], **different},
        )
        assert ["hub.test", "hub.test#2"] == [of.key_of("a.test"), of.key_of("b.test")]
        assert 1 == of.plan_of("hub.test").rule
        assert 2 == of.plan_of("hub.test#2").rule

    def test_mail_for_the_smart_hosts_own_domain(self):
        """It follows its MX records without the password of the others."""
        of = rules({"domains": ["a.test"], "smart_host": ["hub.test"], "auth": "me"})
        assert "hub.test#1" == of.key_of("a.test")
        assert "hub.test" == of.key_of("hub.test")
        assert "" == of.plan_of("hub.test").auth

    def test_the_general_smart_host(self):
        """It takes what no rule sends elsewhere; an empty list is for MX records; what rules said stays."""
        of = rules(
            {"domains": ["direct.test"], "smart_host": []},
            {"domains": ["slow.test"], "limits": {"max_conn_per_host": 1}},
            smart_host="[Gate.test]",
            hops=("other.test",),
        )
        keys = [of.key_of(d) for d in ("x.test", "direct.test", "slow.test", "other.test")]
        assert ["[gate.test]", "direct.test", "[gate.test]#2", "other.test"] == keys
        assert ("[gate.test]",) == of.plan_of("[gate.test]").hosts
        assert () == of.plan_of("other.test").hosts

    @given(
        st.lists(
            st.builds(
                RelayRule,
                domains=st.lists(
                    st.sampled_from(["a.test", "h.test", ".test", "*", "[127.0.0.1]"]),
                    min_size=1,
                    max_size=2,
                ),
                smart_host=st.sampled_from(
                    [None, [], ["h.test"], ["[127.0.0.1]"], ["h.test", "a.test"]]
                ),
                port=st.sampled_from([0, 25]),
                limits=st.sampled_from([{}, {"max_conn_per_host": 1}]),
            ),
            max_size=4,
        ),
        st.sampled_from(["", "h.test", "g.test"]),
    )
    def test_one_key_is_one_plan(self, made, smart_host):
        """Whatever the rules: the plan found by a key is that of every domain with this key, but for the hosts
        of a domain that is the smart host's own."""
        of = RelayRules(made, MtaLimits(), smart_host=smart_host)
        for domain in ("a.test", "h.test", "g.test", "b.test", "x.b.test", "[127.0.0.1]"):
            key = of.key_of(domain)
            plan, by_key = of._find(domain), of.plan_of(key)
            if not plan.hosts:
                assert key == domain
                assert by_key.hosts in ((), (domain,))
                by_key = dataclasses.replace(by_key, hosts=())
            assert plan == by_key


class TestLimits:
    """Overrides of limits.mta for some destinations."""

    def test_overrides_follow_the_general_ones_elsewhere(self):
        """What is changed at run time is taken over, unless a rule says otherwise."""
        built = config({"domains": ["a.test"], "limits": {"max_conn_per_host": 1}})
        limits = built.limits.mta
        of = RelayRules(built.relays, limits)
        limits.max_conn_per_host = 7
        limits.session_mail_max = 3
        of.refresh()
        slow = of.plan_of("a.test").limits
        assert (1, 3) == (slow.max_conn_per_host, slow.session_mail_max)
        assert 7 == of.plan_of("b.test").limits.max_conn_per_host


class TestAddresses:
    """Families and sources."""

    @pytest.mark.parametrize(
        ("rule", "takes"),
        [
            ({}, (True, True)),
            ({"inet6": False}, (True, False)),
            ({"inet4": False}, (False, True)),
            ({"sources": ["127.0.0.2"]}, (True, False)),
            ({"sources": ["::1"]}, (False, True)),
            ({"sources": ["::1", "127.0.0.2"]}, (True, True)),
        ],
    )
    def test_what_can_be_reached(self, rule, takes):
        """A source reaches addresses of its own family; none of ours is of both."""
        plan = rules({"domains": ["*"], **rule}).plan_of("a.test")
        assert takes == (plan.takes("127.0.0.1"), plan.takes("::1"))
