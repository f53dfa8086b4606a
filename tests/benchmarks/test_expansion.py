"""What expansion costs, and that tracing costs nothing while it is off."""

import ast
import inspect
import timeit
import types

import pytest

from mta.core import expansion
from mta.core.expansion import Expander
from mta.core.rules import RuleSet
from tests.support.expansion import RULES, FakeTables, path

pytestmark = pytest.mark.benchmark


class _Untraced(ast.NodeTransformer):
    """Takes every ``if self.trace is not None:`` out of a module."""

    def __init__(self) -> None:
        self.removed = 0

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        if "self.trace is not None" not in ast.unparse(node.test):
            return node
        self.removed += 1
        return node.orelse or ast.Pass()


def without_tracing() -> type[Expander]:
    """Return the expander as it would be if nobody had ever thought of tracing."""
    tree = ast.parse(inspect.getsource(expansion))
    untraced = _Untraced()
    tree = ast.fix_missing_locations(untraced.visit(tree))
    assert untraced.removed > 15
    assert ast.unparse(tree).count("self.trace(") == 1  # in `say`, which nobody calls now
    assert ".say(" not in ast.unparse(tree)
    module = types.ModuleType("mta.core.expansion_untraced")
    exec(compile(tree, "<untraced>", "exec"), module.__dict__)
    found = module.Expander
    assert isinstance(found, type)
    return found


WORLD = FakeTables(
    users="carol dave",
    aliases="info+sales: sales\ninfo: alice, bob@virtual.test, carol\nteam: :include:/team",
    virtual="bob@virtual.test: bob, u@elsewhere.test\n@virtual.test: carol",
    forwards={"alice": "alice, alice@elsewhere.test, info\n", "bob": "bob+work@example.test\n"},
    includes={"/team": "\n".join(f"u{number}@elsewhere.test" for number in range(500))},
)
CASES = {
    "relay": ("x@elsewhere.test", 500, 1),
    "user": ("dave@example.test", 250, 1),
    "aliases, virtual, .forward": ("info+x@example.test", 20, 5),
    "list of 500": ("team@example.test", 1, 500),
}


@pytest.mark.parametrize("case", CASES)
def test_tracing_that_is_off_costs_nothing(case):
    """Against the same code without any tracing in it, the ratio of the best of many runs is 1 within noise."""
    address, rounds, count = CASES[case]
    rules = RuleSet(RULES)
    rules_client = rules.client("", user="alice")
    recipient = path(address)
    traced, untraced = Expander(rules, WORLD), without_tracing()(rules, WORLD)
    lines: list[str] = []

    def off() -> None:
        WORLD.asked.clear()
        for _ in range(rounds):
            traced.expand(recipient, client=rules_client)

    def without() -> None:
        WORLD.asked.clear()
        for _ in range(rounds):
            untraced.expand(recipient, client=rules_client)

    def on() -> None:
        WORLD.asked.clear()
        for _ in range(rounds):
            lines.clear()
            traced.expand(recipient, client=rules_client, trace=lines.append)

    expected = untraced.expand(recipient, client=rules_client)
    assert len(expected.deliveries) == count
    assert list(map(str, traced.expand(recipient, client=rules_client).deliveries)) == list(
        map(str, expected.deliveries)
    )
    best = {"off": float("inf"), "without": float("inf"), "on": float("inf")}
    # Interleaved, so that what else the machine does hits all alike.
    for _ in range(40):
        for name, run in (("off", off), ("without", without), ("on", on)):
            best[name] = min(best[name], timeit.timeit(run, number=1) / rounds)
    assert lines
    ratio = best["off"] / best["without"]
    print(
        f"\nexpand {case}: {best['off'] * 1e6:.1f} us, {ratio:.3f} of the same without tracing; "
        f"traced {best['on'] * 1e6:.1f} us"
    )
    assert ratio < 1.1
