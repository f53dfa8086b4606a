"""What expansion says of itself: a trace that explains, and a tree."""

from typing import Any

import pytest

from mta.core.expanded import render_tree, tree
from tests.support.expansion import FakeTables, expand, local

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
