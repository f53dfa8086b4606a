"""Rules: which mail is ours, whose we carry on, and that nobody can relay through us by accident."""

import tomllib
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.admission import parse_networks
from mta.core.lookup import NOT_FOUND, Account, Answer, Found, TemporaryError
from mta.core.reply import Reply
from mta.core.rules import RuleConfig, RuleSet, rule_problems
from mta.core.settings import ConfigError, build

NETWORKS = parse_networks(["192.0.2.0/24", "2001:db8::/32"])


class Domains:
    """Tables that hold domains."""

    def __init__(self, **tables: set[str] | TemporaryError) -> None:
        self.tables = tables
        self.asked: list[str] = []

    def lookup(self, table: str, key: str) -> Answer:
        self.asked.append(table)
        keys = self.tables[table]
        if isinstance(keys, TemporaryError):
            return keys
        return Found() if key in keys else NOT_FOUND

    def user(self, userbase: str, name: str):
        raise AssertionError("rules ask for no users")

    def forward(self, account: Account) -> Answer:
        raise AssertionError("rules ask for no files")

    def include(self, path: str) -> Answer:
        raise AssertionError("rules ask for no files")


@dataclass(slots=True)
class Outer:
    """What the configuration looks like around the rules."""

    rules: list[RuleConfig] = field(default_factory=list)


def matched(
    rules: RuleSet, domain: str, address: str = "", *, user: str = "", inside: bool = False
):
    client = rules.client(address, user=user)
    found = rules.match(domain, client.internal if inside else client.words, Domains())
    assert not isinstance(found, TemporaryError)
    return None if found is None else found.name


def test_rules_are_built_from_toml():
    """The keys of ``[[rules]]``, in the order of the file."""
    text = """
        [[rules]]
        name = "local"
        match_domains = ["example.test", "*.example.test"]
        action = "local"
        aliases = "aliases"
        commands_from = ["alias", "forward"]

        [[rules]]
        name = "out"
        match_domains = ["*"]
        action = "relay"
        clients = ["authenticated"]
        smart_host = "smart.test"
    """
    built = build(Outer, tomllib.loads(text), source="mta.toml")
    assert [rule.name for rule in built.rules] == ["local", "out"]
    assert built.rules[0].delivery == "maildir"
    assert built.rules[1].clients == ["authenticated"]


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ({"name": "a b"}, 'rules.0.name = "a b": must be 1 to 64 letters, digits, _ . or -'),
        ({"match_domains": []}, 'rules.0.match_domains = []: must name a domain; "*" is any'),
        ({"match_domains": ["a_b"]}, 'rules.0.match_domains = "a_b": must be a domain, *.domain, * or table:NAME'),
        ({"match_domains": ["table:"]}, 'rules.0.match_domains = "table:": must be a domain, *.domain, * or table:NAME'),
        ({"match_domains": ["*.*"]}, 'rules.0.match_domains = "*.*": must be a domain, *.domain, * or table:NAME'),
        ({"match_domains": ["*"], "clients": ["any"]}, 'rules.0.clients = ["any"]: must not let any client relay to any domain'),
        ({"action": "virtual"}, 'rules.0.virtual = "": must name a table'),
        ({"aliases": "x"}, 'rules.0.aliases = "x": is only for action = "local"'),
        ({"virtual": "x"}, 'rules.0.virtual = "x": is only for action = "virtual"'),
        ({"action": "local", "smart_host": "x"}, 'rules.0.smart_host = "x": is only for action = "relay"'),
        ({"reply": "550 5.7.1 no"}, 'rules.0.reply = "550 5.7.1 no": is only for action = "reject"'),
        ({"action": "reject", "reply": "421 4.7.1 no"}, 'rules.0.reply = "421 4.7.1 no": must be a reply such as 550 5.7.1 text, not 421'),
        ({"action": "reject", "reply": "550 4.7.1 no"}, 'rules.0.reply = "550 4.7.1 no": must be a reply such as 550 5.7.1 text, not 421'),
        ({"action": "reject", "reply": "550 no"}, 'rules.0.reply = "550 no": must be a reply such as 550 5.7.1 text, not 421'),
        ({"action": "local", "delivery": "pipe"}, "rules.0.command = []: must name a program"),
        ({"action": "local", "delivery": "pipe", "command": [""]}, 'rules.0.command = [""]: must name a program'),
        ({"action": "local", "delivery": "lmtp"}, 'rules.0.lmtp = "": must be an address:port or a path'),
        ({"action": "local", "command": ["x"]}, 'rules.0.command = ["x"]: is only for delivery = "pipe"'),
        ({"action": "local", "path": "/var/mail"}, 'rules.0.path = "/var/mail": must stay below the home directory'),
        ({"action": "local", "path": "a/../../b"}, 'rules.0.path = "a/../../b": must stay below the home directory'),
        ({"action": "local", "user": "../x"}, 'rules.0.user = "../x": must be the name of a user'),
        ({"action": "local", "delivery": "forward-only", "forward": False}, 'rules.0.forward = false: must be true with delivery = "forward-only"'),
        ({"action": "bounce"}, 'rules.0.action = "bounce": must be one of "relay", "local", "virtual", "reject"'),
        ({"clients": ["all"]}, 'rules.0.clients.0 = "all": must be one of "any", "networks", "authenticated", "local", "internal"'),
    ],
)  # fmt: skip
def test_what_the_operator_can_do_wrong(rule, line):
    """Each is one line that names the file, the key, the value and the problem."""
    data = {"rules": [{"name": "r", "match_domains": ["a.test"], "action": "relay", **rule}]}
    with pytest.raises(ConfigError) as caught:
        build(Outer, data, source="mta.toml")
    assert str(caught.value) == f"mta.toml: {line}"


def test_rules_and_tables_fit_together():
    """A name that is no table, and a rule named like one before, are problems with their keys."""
    rules = [
        RuleConfig("a", ["table:domains"], "local", aliases="aliases", userbase="staff"),
        RuleConfig("a", ["*"], "virtual", virtual="virtual"),
    ]
    assert list(
        rule_problems(rules, tables=["domains", "aliases", "virtual"], userbases=["staff"])
    ) == [("rules.1.name", "a", "is the name of a rule before")]
    assert [key for key, _, _ in rule_problems(rules[:1], tables=[], userbases=[])] == [
        "rules.0.aliases",
        "rules.0.match_domains",
        "rules.0.userbase",
    ]


def test_the_first_rule_that_matches_decides():
    """Also where a later one is more exact."""
    rules = RuleSet(
        [
            RuleConfig("sub", ["*.example.test"], "reject"),
            RuleConfig("one", ["a.example.test", "example.test"], "local"),
            RuleConfig("rest", ["*"], "local"),
        ]
    )
    assert matched(rules, "a.example.test") == "sub"
    assert matched(rules, "b.a.example.test") == "sub"
    assert matched(rules, "example.test") == "one"
    assert matched(rules, "xexample.test") == "rest"
    assert matched(rules, "[192.0.2.1]") == "rest"


def test_domains_are_compared_in_a_labels():
    """The configuration may say bücher, mail for xn--bcher-kva matches."""
    rules = RuleSet([RuleConfig("b", ["B\u00fccher.test", "*.B\u00fccher.test"], "local")])
    assert matched(rules, "xn--bcher-kva.test") == "b"
    assert matched(rules, "x.xn--bcher-kva.test") == "b"


@pytest.mark.parametrize(
    ("clients", "who", "matches"),
    [
        ([], {"address": "192.0.2.7"}, True),
        ([], {"address": "::ffff:192.0.2.7"}, True),
        ([], {"address": "2001:db8::1"}, True),
        ([], {"address": "198.51.100.1"}, False),
        ([], {"address": "127.0.0.1"}, False),
        ([], {}, False),
        ([], {"address": "nonsense"}, False),
        ([], {"address": "198.51.100.1", "user": "alice"}, True),
        ([], {"address": "198.51.100.1", "inside": True}, True),
        (["networks"], {"address": "192.0.2.7", "inside": True}, False),
        (["authenticated"], {"address": "198.51.100.1", "user": "alice", "inside": True}, True),
        (["authenticated"], {"address": "192.0.2.7"}, False),
        (["local"], {"address": "127.0.0.1"}, True),
        (["local"], {"address": "::1"}, True),
        (["local"], {"address": "::ffff:127.0.0.1"}, True),
        (["local"], {}, True),
        (["local"], {"address": "198.51.100.1"}, False),
        (["local"], {"address": "198.51.100.1", "inside": True}, True),
        (["internal"], {}, False),
    ],
)
def test_for_whom_we_relay(clients, who, matches):
    """Closed but for networks, logins and what we named ourselves; ``clients`` says otherwise."""
    rules = RuleSet([RuleConfig("relay", ["*"], "relay", clients)], networks=NETWORKS)
    assert matched(rules, "elsewhere.test", **who) == ("relay" if matches else None)


def test_other_actions_are_for_anybody():
    """Mail from the world for our own domain."""
    rules = RuleSet([RuleConfig("local", ["a.test"], "local")])
    assert matched(rules, "a.test", "198.51.100.1") == "local"
    assert matched(rules, "a.test", "198.51.100.1", inside=True) == "local"


def test_without_rules_there_is_a_closed_relay():
    """As before there were rules: networks may relay, others may not."""
    rules = RuleSet(networks=NETWORKS)
    assert matched(rules, "a.test", "192.0.2.1") == "relay"
    assert matched(rules, "a.test", "198.51.100.1") is None


def test_a_backup_exchanger_may_relay_for_anybody():
    """From any client, but only to the domains that are named."""
    rules = RuleSet([RuleConfig("backup", ["a.test"], "relay", ["any"])])
    assert matched(rules, "a.test", "198.51.100.1") == "backup"
    assert matched(rules, "b.test", "198.51.100.1") is None


def test_domains_in_tables():
    """A table of domains is asked only if nothing else matches; one that can't answer ends the search."""
    rules = RuleSet(
        [
            RuleConfig("hosted", ["a.test", "table:hosted"], "local"),
            RuleConfig("rest", ["*"], "local"),
        ]
    )
    words = rules.client("192.0.2.1").words
    tables = Domains(hosted={"b.test"})
    assert getattr(rules.match("a.test", words, tables), "name", None) == "hosted"
    assert tables.asked == []
    assert getattr(rules.match("b.test", words, tables), "name", None) == "hosted"
    assert getattr(rules.match("c.test", words, tables), "name", None) == "rest"
    down = TemporaryError("down")
    assert rules.match("b.test", words, Domains(hosted=down)) == down


def test_what_rejections_say():
    """Their own text, or ours."""
    rules = RuleSet(
        [
            RuleConfig("a", ["a.test"], "reject", reply="450 4.7.1 Come back on Monday"),
            RuleConfig("b", ["b.test"], "reject"),
        ]
    )
    assert rules.by_name["a"].reply == Reply(450, "4.7.1", "Come back on Monday")
    assert rules.by_name["b"].reply == Reply(550, "5.7.1", "Recipient refused")


def test_a_rule_in_words():
    """For traces: its number and name, for whom, and what of it matched."""
    rules = RuleSet(
        [
            RuleConfig("a", ["a.test", "*.b.test", "table:t"], "local"),
            RuleConfig("r", ["*"], "relay", ["internal", "networks"]),
        ]
    )
    first, second = rules.rules
    assert str(first) == 'rule 1 "a"'
    assert first.for_whom() == "any"
    assert first.what("a.test") == "domain a.test"
    assert first.what("x.y.b.test") == "domain *.b.test"
    assert first.what("c.test") == "a domain of t"
    assert (second.for_whom(), second.what("c.test")) == ("networks, internal", "any domain")
    assert rules.near_miss("c.test", Domains(t=set())) is second


LABELS = st.sampled_from(["a", "b", "c"])
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(lambda labels: ".".join([*labels, "test"]))


@given(st.lists(st.one_of(NAMES, NAMES.map("*.{}".format)), min_size=1, max_size=5), NAMES)
def test_patterns_mean_what_they_say(patterns, domain):
    """A rule matches exactly if one of its patterns does, read literally."""
    expected = any(
        domain.endswith(pattern[1:]) if pattern[0] == "*" else domain == pattern
        for pattern in patterns
    )
    rules = RuleSet([RuleConfig("r", patterns, "local")])
    assert (matched(rules, domain) is not None) == expected
    if expected:
        assert rules.rules[0].what(domain).removeprefix("domain ") in patterns
