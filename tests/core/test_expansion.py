"""What a recipient becomes: the order of decisions, loops, bounds, all or nothing, and the trace."""

import dataclasses
import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.aliases import Entry, EntryKind
from mta.core.expanded import DeliveryKind, Fate, render_tree, tree
from mta.core.expansion import Expander
from mta.core.expansionlimits import ExpansionLimits, ExpansionSettings
from mta.core.lookup import Found, TemporaryError
from mta.core.rules import RuleConfig, RuleSet
from mta.core.settings import ConfigError, build
from tests.support.expansion import (
    DOWN,
    RULES,
    FakeTables,
    deliveries,
    expand,
    path,
    refusal,
)

LOCAL, VIRTUAL, RELAY = RULES


def local(**changes) -> list[RuleConfig]:
    return [dataclasses.replace(LOCAL, **changes), VIRTUAL, RELAY]


# ---- 6.1, line 1: rules


def test_no_rule_is_550():
    """No rule for the client, none for the domain: 550 5.7.1, and the reason says which address."""
    assert refusal("a@elsewhere.test", FakeTables()) == (
        "550 5.7.1",
        "a@elsewhere.test: no rule matches",
    )


def test_a_rule_can_reject():
    """With its own reply."""
    rules = [RuleConfig("no", ["example.test"], "reject", reply="551 5.1.6 Gone to example.com")]
    assert str(expand("a@example.test", FakeTables(), rules=rules).reply) == (
        "551 5.1.6 Gone to example.com"
    )


def test_a_table_of_domains_that_is_down_is_temporary():
    """Not the 550 of an unknown domain."""
    rules = [RuleConfig("hosted", ["table:domains"], "local")]
    assert refusal("a@example.test", FakeTables(domains=DOWN), rules=rules) == (
        "451 4.3.0",
        "a@example.test: rules: is down",
    )


def test_what_expansion_finds_is_internal():
    """An alias may point elsewhere though the client may not relay; a rule can forbid that."""
    tables = FakeTables(aliases="list: a@elsewhere.test")
    assert deliveries("list@example.test", tables) == ["relay a@elsewhere.test"]
    rules = [LOCAL, dataclasses.replace(RELAY, clients=["networks"])]
    found = expand("list@example.test", tables, rules=rules)
    assert str(found.reply) == "550 5.7.1 Recipient forwards to where we do not relay"


def test_an_address_inside_can_have_another_rule_than_outside():
    """Virtual for the world, local for what the table says: the classic way to keep a copy."""
    rules = [
        RuleConfig("inside", ["virtual.test"], "local", ["internal"]),
        RuleConfig("world", ["virtual.test"], "virtual", virtual="virtual"),
    ]
    tables = FakeTables(users="a b", virtual="a@virtual.test: a@virtual.test, b")
    assert deliveries("a@virtual.test", tables, rules=rules) == ["local a", "local b"]


# ---- 6.1, line 2: relay, virtual, local


def test_relay():
    """One delivery, to the address as it was given."""
    found = expand("Ann@elsewhere.test", FakeTables(), rules=[RuleConfig("r", ["*"], "relay", ["local"])], client="")  # fmt: skip
    (delivery,) = found.deliveries
    assert (delivery.kind, delivery.address, delivery.domain, delivery.rule) == (
        DeliveryKind.RELAY, "Ann@elsewhere.test", "elsewhere.test", "r",
    )  # fmt: skip


VIRTUAL_KEYS = ["u+t@virtual.test", "u@virtual.test", "u+t", "u", "@virtual.test", "@"]


@pytest.mark.parametrize("first", range(len(VIRTUAL_KEYS)))
def test_virtual_keys_in_order(first):
    """Of all keys that the table has, the most exact one decides."""
    keys = VIRTUAL_KEYS[first:]
    table = "".join(f"{key}: user{VIRTUAL_KEYS.index(key)}\n" for key in keys)
    tables = FakeTables(users=" ".join(f"user{n}" for n in range(6)), virtual=table)
    assert deliveries("U+T@virtual.test", tables) == [f"local user{first}"]
    asked = [key for name, key in tables.asked if name == "virtual"]
    assert asked[: first + 1] == VIRTUAL_KEYS[: first + 1]


def test_virtual_keys_without_a_tag():
    """No tag, no keys with one."""
    tables = FakeTables()
    assert refusal("u@virtual.test", tables)[0] == "524 5.2.4"
    assert [key for name, key in tables.asked if name == "virtual"] == [
        "u@virtual.test", "u", "@virtual.test", "@",
    ]  # fmt: skip


def test_a_virtual_table_that_is_down_is_temporary():
    """424, never the 524 of an unknown address."""
    assert refusal("u@virtual.test", FakeTables(virtual=DOWN)) == (
        "424 4.2.4",
        "u@virtual.test: virtual table virtual: is down",
    )


def test_users_of_virtual_rules_are_looked_up_there_without_domain():
    """As OpenSMTPD: a user that a virtual table names may be a key of it, but no catch-all."""
    tables = FakeTables(
        users="bob carl", virtual="info@virtual.test: team\nteam: bob, carl\n@: nobody\n"
    )
    assert deliveries("info@virtual.test", tables) == ["local bob", "local carl"]


def test_local_parts_are_folded():
    """ALICE is alice, for aliases and for users."""
    tables = FakeTables(users="alice bob", aliases="team: bob")
    assert deliveries("ALICE@example.test", tables) == ["local alice"]
    assert deliveries("Team@example.test", tables) == ["local bob"]


# ---- 6.1, line 3: users


def test_aliases_with_and_without_a_tag():
    """user+tag before user; without an alias the tag goes with the mail."""
    tables = FakeTables(users="a b c", aliases="x+t: a\nx: b\n")
    assert deliveries("x+t@example.test", tables) == ["local a"]
    assert deliveries("x+other@example.test", tables) == ["local b"]
    assert deliveries("c+news@example.test", tables) == ["local c tag news"]
    assert deliveries("c+a+b@example.test", tables) == ["local c tag a+b"]


@pytest.mark.parametrize(
    ("delimiter", "address", "found"),
    [
        ("-", "c-news", ["local c tag news"]),
        ("", "c+news", None),
        ("-", "c+news", None),
        ("+", "+c", None),
        ("+", "c+", ["local c"]),
    ],
)
def test_the_delimiter_can_be_configured(delimiter, address, found):
    """Only it separates, and nothing does at the beginning of a name."""
    settings = ExpansionSettings(delimiter=delimiter)
    tables = FakeTables(users="c")
    if found is None:
        assert refusal(f"{address}@example.test", tables, settings=settings)[0] == "550 5.1.1"
    else:
        assert deliveries(f"{address}@example.test", tables, settings=settings) == found


def test_unknown_users_are_550():
    """The reason has the name, the reply has not."""
    assert refusal("nobody@example.test", FakeTables()) == (
        "550 5.1.1",
        "nobody: there is no user nobody",
    )


def test_aliases_and_users_that_are_down_are_temporary():
    """Neither bounces mail."""
    tables = FakeTables(users="a", aliases=DOWN)
    assert refusal("a@example.test", tables) == ("424 4.2.4", "a: table aliases: is down")
    tables = FakeTables(users="a")
    tables.users_down = True
    assert refusal("a@example.test", tables) == ("451 4.3.0", "a: users: is down")


# ---- 6.1, line 4: .forward


def test_no_forward_delivers():
    """Missing or empty, the mail is the user's."""
    assert deliveries("a@example.test", FakeTables(users="a")) == ["local a"]
    assert deliveries("a@example.test", FakeTables(forwards={"a": ""})) == ["local a"]


def test_a_forward_replaces_the_mailbox():
    """Unless it names the user."""
    tables = FakeTables(forwards={"a": "a@elsewhere.test", "b": "b, b@elsewhere.test"})
    assert deliveries("a@example.test", tables) == ["relay a@elsewhere.test"]
    assert deliveries("b@example.test", tables) == ["local b", "relay b@elsewhere.test"]
    assert deliveries("b+t@example.test", tables) == ["local b", "relay b@elsewhere.test"]


def test_a_forward_that_fails_is_temporary():
    """Whatever is wrong with it: the user can still mend it."""
    tables = FakeTables(forwards={"a": TemporaryError("is writable by others")})
    assert refusal("a@example.test", tables) == ("424 4.2.4", "a: .forward: is writable by others")


def test_a_forward_of_too_many_is_temporary():
    """100 entries are followed, 101 are not."""
    many = [f"u{n}@elsewhere.test" for n in range(101)]
    tables = FakeTables(forwards={"a": ", ".join(many[:100])})
    assert len(deliveries("a@example.test", tables)) == 100
    tables = FakeTables(forwards={"a": ", ".join(many)})
    assert refusal("a@example.test", tables) == (
        "424 4.2.4",
        "a: .forward has more than 100 entries",
    )


def test_a_rule_that_delivers_as_another_user_skips_forward():
    """The file would be followed with the other user's rights."""
    tables = FakeTables(users="vmail", forwards={"a": "|evil", "vmail": "b@elsewhere.test"})
    rules = local(user="vmail")
    assert deliveries("a@example.test", tables, rules=rules) == ["local a"]
    assert ("forward", "a") not in tables.asked
    assert deliveries("vmail@example.test", tables, rules=rules) == ["relay b@elsewhere.test"]


def test_forward_can_be_switched_off():
    """Then nobody looks for it."""
    tables = FakeTables(forwards={"a": "b@elsewhere.test"})
    assert deliveries("a@example.test", tables, rules=local(forward=False)) == ["local a"]
    assert ("forward", "a") not in tables.asked


def test_forward_only_and_expand_only():
    """The first wants a .forward (temporary), the second an alias or a .forward (permanent)."""
    forwards = {
        "f": "f@elsewhere.test",
        "e": "",
        "self": "self",
        "cmd": "|x",
        "file": "/x",
        "err": "error:550 x",
    }
    tables = FakeTables(users="a", forwards=forwards)
    only = local(delivery="forward-only")
    assert deliveries("f@example.test", tables, rules=only) == ["relay f@elsewhere.test"]
    for user in ("a", "e", "self", "cmd", "file", "err"):
        assert refusal(f"{user}@example.test", tables, rules=only)[0] == "424 4.2.4", user
    only = local(delivery="expand-only")
    assert deliveries("f@example.test", tables, rules=only) == ["relay f@elsewhere.test"]
    for user in ("a", "e", "self"):
        assert refusal(f"{user}@example.test", tables, rules=only)[0] == "524 5.2.4", user


# ---- 6.1, line 5: files and commands


def test_who_runs_commands_and_writes_files():
    """From an alias the server's own user, from a .forward the user; the address is the one that led here."""
    tables = FakeTables(
        aliases="list: |cmd one, /var/list, alice", forwards={"alice": "|cmd two\n/home/alice/box"}
    )
    found = expand("list+x@example.test", tables)
    assert [(one.kind.value, one.target, one.user, one.address) for one in found.deliveries] == [
        ("pipe", "cmd one", "", "list+x@example.test"),
        ("file", "/var/list", "", "list+x@example.test"),
        ("pipe", "cmd two", "alice", "list+x@example.test"),
        ("file", "/home/alice/box", "alice", "list+x@example.test"),
    ]


def test_where_commands_and_files_may_stand():
    """By default only in aliases; elsewhere they hold the mail back."""
    tables = FakeTables(
        aliases="list: |cmd\nbox: /box\nteam: :include:/team",
        forwards={"a": "|cmd", "b": "/box"},
        includes={"/team": "|cmd"},
    )
    rules = [RuleConfig("local", ["example.test"], "local", aliases="aliases")]
    assert deliveries("list@example.test", tables, rules=rules) == ["pipe |cmd as server"]
    assert deliveries("box@example.test", tables, rules=rules) == ["file /box as server"]
    for user, reason in {
        "a": '|cmd: rule 1 "local": commands_from does not have forward',
        "b": '/box: rule 1 "local": files_from does not have forward',
        "team": '|cmd: rule 1 "local": commands_from does not have include',
    }.items():
        assert refusal(f"{user}@example.test", tables, rules=rules) == ("424 4.2.4", reason)


def test_roots_forward_names_no_commands_and_no_files():
    """They would run as root."""
    for text in ("|cmd", "/box"):
        tables = FakeTables(forwards={"root": f"a@elsewhere.test, {text}"})
        assert refusal("root@example.test", tables)[0] == "424 4.2.4"
    tables = FakeTables(forwards={"root": "a@elsewhere.test"})
    assert deliveries("root@example.test", tables) == ["relay a@elsewhere.test"]


def test_whoever_allows_commands_for_root_allows_those_of_its_forward():
    """``local.allow_root``: a bench that root runs has no other user."""
    ruleset = RuleSet(RULES)
    tables = FakeTables(forwards={"root": "|cmd"})
    for table in ("aliases", "virtual"):
        tables.answers.setdefault(table, {})
    expander = Expander(ruleset, tables, allow_root=True)
    found = expander.expand(path("root@example.test"), client=ruleset.client("198.51.100.1"))
    assert found.reply is None
    assert [delivery.kind.value for delivery in found.deliveries] == ["pipe"]


# ---- 6.1, line 6: all or nothing


@pytest.mark.parametrize(
    ("bad", "reply"),
    [
        ("nobody", "550 5.1.1"),
        ("error:451 4.7.0 later", "451 4.7.0"),
        (":error:554 no", "554 5.2.0"),
        ("u@virtual.test", "524 5.2.4"),
        (":include:/missing", "424 4.2.4"),
        ("broken", "424 4.2.4"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_bad_member_refuses_all(bad, reply, place):
    """Wherever it stands."""
    members = ["a", "b@elsewhere.test"]
    members.insert(place, bad)
    tables = FakeTables(users="a", aliases=f"list: {', '.join(members)}", forwards={"broken": DOWN})
    assert refusal("list@example.test", tables)[0] == reply


# ---- 6.2: includes


def test_includes():
    """Their members join in; includes inside them and in .forward are ignored."""
    tables = FakeTables(
        users="a b",
        aliases="list: :include:/list, b",
        includes={"/list": "a\n:include:/list2\nc@elsewhere.test\n", "/list2": "x"},
        forwards={"f": ":include:/list, d@elsewhere.test", "g": ":include:/list"},
    )
    assert deliveries("list@example.test", tables) == [
        "local a", "local b", "relay c@elsewhere.test",
    ]  # fmt: skip
    assert deliveries("f@example.test", tables) == ["relay d@elsewhere.test"]
    assert deliveries("g@example.test", tables) == ["local g"]
    assert ("include", "/list2") not in tables.asked


def test_an_include_that_cannot_be_opened_is_temporary():
    """OpenSMTPD takes it for an empty one, and the list loses its members."""
    tables = FakeTables(users="b", aliases="list: b, :include:/list\nl2: :include:/down", includes={"/down": DOWN})  # fmt: skip
    assert refusal("list@example.test", tables) == (
        "424 4.2.4",
        "list: :include:/list: is not there",
    )
    assert refusal("l2@example.test", tables) == ("424 4.2.4", "l2: :include:/down: is down")


def test_an_empty_list_is_524():
    """Also where a user of that name exists."""
    tables = FakeTables(users="list", aliases="list: :include:/list", includes={"/list": "# none"})
    assert refusal("list@example.test", tables) == (
        "524 5.2.4",
        "list@example.test: expands to nothing",
    )


# ---- 6.3: loops and bounds


def test_a_circle_of_aliases_expands_to_nothing():
    """a: b, b: a. With anybody else in it, they get the mail."""
    tables = FakeTables(users="c", aliases="a: b\nb: a\nx: y\ny: x, c\nself: self\n")
    assert refusal("a@example.test", tables)[0] == "524 5.2.4"
    assert deliveries("x@example.test", tables) == ["local c"]
    assert refusal("self@example.test", tables)[0] == "550 5.1.1"


def test_an_alias_may_name_its_own_user():
    """a: a, b delivers to the user a, whose .forward still counts."""
    tables = FakeTables(
        users="a b", aliases="a: a, b\nf: f, b", forwards={"f": "f@elsewhere.test, f"}
    )
    assert deliveries("a@example.test", tables) == ["local a", "local b"]
    assert deliveries("f@example.test", tables) == ["local b", "local f", "relay f@elsewhere.test"]


def test_a_circle_of_virtual_addresses_expands_to_nothing():
    """Without the ten turns that OpenSMTPD takes."""
    tables = FakeTables(
        users="c",
        virtual="a@virtual.test: b@v2.test\nb@v2.test: a@virtual.test\nx@v2.test: x@v2.test, c",
    )
    assert refusal("a@virtual.test", tables)[0] == "524 5.2.4"
    assert deliveries("x@v2.test", tables) == ["local c"]
    assert len(tables.asked) < 12


@pytest.mark.parametrize(
    "forwards",
    [
        {"a": "a@example.test"},
        {"a": "A@Example.Test"},
        {"a": "a+copy@example.test"},
        {"a": "b", "b": "a"},
        {"a": "b@example.test", "b": "a@example.test"},
        {"a": "team@example.test"},
        {"a": "me@virtual.test"},
    ],
)
def test_no_forward_loses_its_users_mail(forwards):
    """A .forward that leads back to its user, by whatever way, delivers to the user; the tag may change."""
    tables = FakeTables(forwards=forwards, aliases="team: a", virtual="me@virtual.test: a")
    (found,) = deliveries("a@example.test", tables)
    assert found.removesuffix(" tag copy") == "local a"


def test_a_list_of_users_who_forward_to_one_another():
    """Nobody in the circle loses the mail, though each finds the other on the list already."""
    tables = FakeTables(aliases="team: a, b", forwards={"a": "b", "b": "a"})
    assert deliveries("team@example.test", tables) == ["local a", "local b"]


def test_one_copy_for_each_mailbox():
    """However many ways lead there; another tag is another folder."""
    tables = FakeTables(
        users="a b",
        aliases="list: a, b, team, a@example.test, c@elsewhere.test, a+x\nteam: a, b, c@elsewhere.test",
    )
    assert deliveries("list@example.test", tables) == [
        "local a", "local a tag x", "local b", "relay c@elsewhere.test",
    ]  # fmt: skip


def chain(length: int) -> FakeTables:
    """Aliases a1 -> a2 -> ... -> a user."""
    names = [f"a{number}" for number in range(1, length)] + ["end"]
    return FakeTables(
        users="end",
        aliases="".join(f"{one}: {two}\n" for one, two in itertools.pairwise(names)),
    )


def test_the_depth_limit():
    """The recipient and nine more steps can be followed; the tenth is 524, as in OpenSMTPD."""
    assert deliveries("a1@example.test", chain(9)) == ["local end"]
    assert refusal("a1@example.test", chain(10)) == ("524 5.2.4", "end: deeper than 10 steps")
    settings = ExpansionSettings(limits=ExpansionLimits(depth=11))
    assert deliveries("a1@example.test", chain(10), settings=settings) == ["local end"]


def test_a_chain_of_forwards_is_bounded_too():
    """Each user of twelve forwards to the next."""
    tables = FakeTables(
        users="u12", forwards={f"u{n}": f"u{n + 1}@example.test" for n in range(12)}
    )
    assert refusal("u0@example.test", tables)[0] == "524 5.2.4"


def test_the_node_limit():
    """1,000 members, with the list itself, are taken; one more is not, and it is temporary: raise the limit."""
    members = "\n".join(f"u{n}@elsewhere.test" for n in range(1000))
    tables = FakeTables(aliases="list: :include:/list", includes={"/list": members})
    assert refusal("list@example.test", tables) == (
        "424 4.2.4",
        "list: more than 1000 nodes in all",
    )
    tables.includes["/list"] = members.rpartition("\n")[0]
    assert len(deliveries("list@example.test", tables)) == 999


def test_the_entry_limit():
    """The same name a thousand times is one node, but not for nothing."""
    settings = ExpansionSettings(limits=ExpansionLimits(entries=1000))
    tables = FakeTables(users="a", aliases="list: :include:/list", includes={"/list": "a\n" * 999})
    assert deliveries("list@example.test", tables, settings=settings) == ["local a"]
    tables.includes["/list"] = "a\n" * 1000
    assert refusal("list@example.test", tables, settings=settings) == (
        "424 4.2.4",
        "list: more than 1000 entries in all",
    )
    tables.includes["/list"] = ":include:/x\n" * 1000
    assert refusal("list@example.test", tables, settings=settings)[0] == "424 4.2.4"


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"delimiter": "ab"}, 'delimiter = "ab": must be one punctuation mark, not one of @."\\'),
        ({"delimiter": "@"}, 'delimiter = "@": must be one punctuation mark, not one of @."\\'),
        ({"delimiter": "x"}, 'delimiter = "x": must be one punctuation mark, not one of @."\\'),
        (
            {"limits": {"depth": 0}},
            "limits.depth = 0: must be above 0; a cap of 0 is not unlimited",
        ),
        ({"limits": {"entries": 10}}, "limits.entries = 10: must not be below nodes (1000)"),
    ],
)
def test_settings_that_cannot_work(data, line):
    """Each is one line."""
    with pytest.raises(ConfigError) as caught:
        build(ExpansionSettings, data, source="mta.toml")
    assert str(caught.value) == f"mta.toml: {line}"


# ---- what always holds

NAMES = [f"n{number}" for number in range(8)]
MEMBER = st.sampled_from(
    [
        *NAMES, *(f"{name}@example.test" for name in NAMES), *(f"{name}@virtual.test" for name in NAMES),
        *(f"{name}+t" for name in NAMES), "x@elsewhere.test", "|cmd", "/box", ":include:/i",
    ]
)  # fmt: skip
MEMBERS = st.lists(MEMBER, min_size=1, max_size=5).map(", ".join)
WORLDS = st.fixed_dictionaries(
    {
        "aliases": st.dictionaries(st.sampled_from(NAMES), MEMBERS, max_size=6),
        "virtual": st.dictionaries(
            st.sampled_from([*NAMES, "@", "@virtual.test", *(f"{n}@virtual.test" for n in NAMES)]),
            MEMBERS,
            max_size=8,
        ),
        "forwards": st.dictionaries(st.sampled_from(NAMES), MEMBERS, max_size=6),
        "include": MEMBERS,
        "domain": st.sampled_from(["example.test", "virtual.test"]),
    }
)


def world(parts, order=None) -> FakeTables:
    def text(table):
        keys = sorted(table)
        if order is not None:
            order.shuffle(keys)
        return "".join(f"{key}: {table[key]}\n" for key in keys)

    return FakeTables(
        users=" ".join(NAMES),
        aliases=text(parts["aliases"]),
        virtual=text(parts["virtual"]),
        forwards=parts["forwards"],
        includes={"/i": parts["include"]},
    )


@given(WORLDS, st.randoms(use_true_random=False))
def test_what_always_holds(parts, rng):
    """All or nothing, no delivery twice, the same answer again, with a trace, and in any order of keys."""
    address = f"{NAMES[0]}@{parts['domain']}"
    found = expand(address, world(parts))
    assert (found.reply is None) == bool(found.deliveries)
    assert (found.reply is None) == (found.reason == "")
    places = [
        one.address
        if one.kind is DeliveryKind.RELAY
        else (one.kind, one.user, one.tag, one.target, one.rule)
        for one in found.deliveries
    ]
    assert len(places) == len(set(places))
    assert len(found.nodes) <= 10_000
    trace: list[str] = []
    assert expand(address, world(parts), trace=trace) == found
    assert expand(address, world(parts, rng)) == found
    assert all(line.isprintable() for line in trace)
    assert trace[-1].startswith("refused: " if found.reply else str(len(found.deliveries)))
    lines = list(render_tree(tree(found)))
    assert len(lines) == len(found.nodes) + (found.reply is not None)
    # Nobody is forgotten: without a refusal each node was decided, and all that did not go on is delivered.
    if found.reply is None:
        assert all(node.fate not in (Fate.OPEN, Fate.FAILED) for node in found.nodes)
        delivered = sum(node.fate is Fate.DELIVERED for node in found.nodes)
        assert delivered == len(found.deliveries)


class Graph(FakeTables):
    """Ten thousand aliases, each for some of the others: nothing but circles."""

    def __init__(self, seed: int, size: int, fan: int) -> None:
        super().__init__(aliases="", virtual="")
        self.size, self.fan, self.seed = size, fan, seed

    def lookup(self, table: str, key: str):
        rng = random.Random(f"{self.seed} {key}")
        self.asked.append((table, key))
        return Found(
            tuple(
                Entry(EntryKind.USER, f"g{rng.randrange(self.size)}")
                if rng.random() < 0.5
                else Entry(
                    EntryKind.ADDRESS, f"g{rng.randrange(self.size)}@example.test", "example.test"
                )
                for _ in range(self.fan)
            )
        )


@pytest.mark.parametrize(("size", "fan"), [(10_000, 2), (10_000, 50), (50, 3), (300, 300)])
def test_ten_thousand_aliases_in_circles_end(size, fan):
    """Whatever the shape: within the limits, and with a refusal. An alias of its own name is no user."""
    for seed in range(3):
        tables = Graph(seed, size, fan)
        code, reason = refusal("g0@example.test", tables)
        assert code in ("424 4.2.4", "524 5.2.4") or ": there is no user g" in reason, reason
        assert len(tables.asked) <= 1001


def test_a_million_aliases_of_ten_levels_do_not_matter():
    """A tree of a hundred entries at each level is cut off at the limit, not counted out."""
    tables = Graph(1, 10**6, 100)
    assert refusal("g0@example.test", tables) == refusal("g0@example.test", Graph(1, 10**6, 100))
    assert len(tables.asked) < 30


def test_deliveries_keep_the_order_of_the_entries():
    """As the operator wrote them, level by level."""
    tables = FakeTables(users="b a", aliases="list: b, c@elsewhere.test, a")
    found = expand("list@example.test", tables)
    assert [str(one) for one in found.deliveries] == [
        "local b",
        "relay c@elsewhere.test",
        "local a",
    ]


def test_an_expander_can_be_used_again():
    """It keeps nothing from one recipient to the next."""
    tables = FakeTables(users="a", aliases="", virtual="")
    rules = RuleSet(RULES)
    expander = Expander(rules, tables)
    client = rules.client("198.51.100.1")
    first = expander.expand(path("a@example.test"), client=client)
    assert expander.expand(path("a@example.test"), client=client) == first


# ---- trace and tree

STORY: dict[str, Any] = {
    "users": "carol",
    "aliases": "info+sales: sales\ninfo: alice, bob@virtual.test, |archive --list info\nsales: info",
    "virtual": "bob@virtual.test: bob, u@elsewhere.test\n@virtual.test: carol",
    "forwards": {"alice": "alice, alice@elsewhere.test, info\n", "bob": "bob+work@example.test\n"},
}
"""Aliases, virtual addresses, two .forward files, a command and a circle."""


def test_a_trace_reads_like_an_explanation():
    """Every decision in its order, indented by depth, with what was asked and what was answered."""
    trace: list[str] = []
    found = expand("info+x@example.test", FakeTables(**STORY), trace=trace)
    assert found.reply is None
    assert "\n".join(trace) == GOLDEN_TRACE


def test_the_tree_shows_who_stands_for_whom():
    """What ``mtactl expand`` prints."""
    found = expand("info+x@example.test", FakeTables(**STORY))
    assert "\n".join(render_tree(tree(found))) == GOLDEN_TREE


def test_a_trace_of_a_refusal_says_what_would_have_helped():
    """The rule that is for the domain but not for the client; deliveries that were found and dropped."""
    trace: list[str] = []
    expand("a@elsewhere.test", FakeTables(), trace=trace)
    assert trace == [
        "rcpt to=<a@elsewhere.test> client=198.51.100.1",
        '  a@elsewhere.test: rule 3 "relay" is for networks, authenticated, internal, not for this client',
        "  a@elsewhere.test: no rule matches",
        "refused: 550 5.7.1 Relaying denied",
    ]
    trace.clear()
    tables = FakeTables(users="a", aliases="list: a, b")
    found = expand("list@example.test", tables, trace=trace)
    assert trace[-2:] == [
        "      b: there is no user b",
        "refused: 550 5.1.1 Invalid recipient, 1 found so far dropped",
    ]
    assert list(render_tree(tree(found))) == [
        'list@example.test  (rule 1 "local")',
        "├─ list  (aliases)",
        "│  ├─ a  (delivered to a by maildir)",
        "│  └─ b  (failed)",
        "└─ refused: 550 5.1.1 Invalid recipient  (b: there is no user b)",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"forward": False}, "a: user a, tag t, .forward not looked for: the rule says so"),
        (
            {"user": "vmail"},
            "a: user a, tag t, .forward not looked for: the rule delivers as vmail",
        ),
        ({}, "a: user a, tag t, no .forward"),
    ],
)
def test_a_trace_says_why_no_forward_was_followed(changes, line):
    """Switched off, another user's rights, or there is none."""
    trace: list[str] = []
    expand("a+t@example.test", FakeTables(users="a"), rules=local(**changes), trace=trace)
    assert line.replace("a: ", "    a+t: ", 1) in trace


def test_the_tree_of_an_empty_list():
    """The last row below the recipient says why."""
    tables = FakeTables(aliases="l: :include:/l", includes={"/l": ":include:/x"}, users="a")
    trace: list[str] = []
    found = expand("l@example.test", tables, trace=trace)
    assert "      :include:/x: ignored: a file may not be included here" in trace
    assert list(render_tree(tree(found))) == [
        'l@example.test  (rule 1 "local": failed)',
        "├─ l  (aliases)",
        "│  └─ :include:/x  (ignored: a file may not be included here)",
        "└─ refused: 524 5.2.4 Mailing list expansion problem  (l@example.test: expands to nothing)",
    ]


def test_a_trace_of_a_large_list_is_short():
    """Twenty members are shown, the rest is counted."""
    members = "\n".join(f"u{n}@elsewhere.test" for n in range(500))
    tables = FakeTables(aliases="list: :include:/list", includes={"/list": members})
    trace: list[str] = []
    expand("list@example.test", tables, trace=trace)
    (line,) = [line for line in trace if ":include:/list ->" in line]
    assert line.endswith("u19@elsewhere.test and 480 more")
    assert trace[-1].endswith("relay u19@elsewhere.test and 480 more")


GOLDEN_TRACE = """\
rcpt to=<info+x@example.test> client=198.51.100.1
  info+x@example.test: rule 1 "local" matches domain example.test: local
    info+x: table aliases: no info+x; info -> alice, bob@virtual.test, |archive --list info
      alice: table aliases: no alice
      alice: user alice, .forward -> alice, alice@elsewhere.test, info
      bob@virtual.test: rule 2 "virtual" matches domain virtual.test: virtual
      bob@virtual.test: table virtual: bob@virtual.test -> bob, u@elsewhere.test
      |archive --list info: delivery: pipe |archive --list info as server
        alice: back from the own .forward, keeps a copy
        alice: delivery: local alice
        alice@elsewhere.test: rule 3 "relay" matches any domain: relay
        info: table aliases: info -> alice, bob@virtual.test, |archive --list info
          alice: already seen, dropped (loop)
          bob@virtual.test: already seen, dropped
          |archive --list info: already seen, dropped
        bob: table virtual: no bob
        bob: user bob, .forward -> bob+work@example.test
        u@elsewhere.test: rule 3 "relay" matches any domain: relay
          bob+work@example.test: rule 1 "local" matches domain example.test: local
            bob+work: table aliases: no bob+work, bob
            bob+work: user bob, tag work, back from the own .forward, keeps a copy
            bob+work: delivery: local bob tag work
5 deliveries: pipe |archive --list info as server, local alice, relay alice@elsewhere.test, relay u@elsewhere.test, local bob tag work"""

GOLDEN_TREE = """\
info+x@example.test  (rule 1 "local")
└─ info+x  (aliases)
   ├─ alice  (.forward)
   │  ├─ alice  (delivered to alice by maildir)
   │  ├─ alice@elsewhere.test  (rule 3 "relay": relay)
   │  └─ info  (aliases)
   │     ├─ alice  (already seen, dropped (loop))
   │     ├─ bob@virtual.test  (already seen, dropped)
   │     └─ |archive --list info  (already seen, dropped)
   ├─ bob@virtual.test  (rule 2 "virtual": virtual)
   │  ├─ bob  (.forward)
   │  │  └─ bob+work@example.test  (rule 1 "local")
   │  │     └─ bob+work  (delivered to bob, tag work by maildir)
   │  └─ u@elsewhere.test  (rule 3 "relay": relay)
   └─ |archive --list info  (delivered as server)"""
