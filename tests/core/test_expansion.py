"""What a recipient becomes: the order of decisions, and all or nothing."""

import dataclasses

import pytest

from mta.core.expanded import DeliveryKind
from mta.core.expansion import Expander
from mta.core.expansionlimits import ExpansionSettings
from mta.core.lookup import TemporaryError
from mta.core.rules import RuleConfig, RuleSet
from tests.support.expansion import (
    DOWN,
    LOCAL,
    RELAY,
    RULES,
    FakeTables,
    deliveries,
    expand,
    local,
    path,
    refusal,
)

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
