"""Expansion ends: includes, loops, bounds, and what always holds."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.aliases import Entry, EntryKind
from mta.core.expanded import DeliveryKind, Fate, render_tree, tree
from mta.core.expansion import Expander
from mta.core.expansionlimits import ExpansionLimits, ExpansionSettings
from mta.core.lookup import Found
from mta.core.rules import RuleSet
from mta.core.settings import ConfigError, build
from tests.support.expansion import DOWN, RULES, FakeTables, deliveries, expand, path, refusal

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
