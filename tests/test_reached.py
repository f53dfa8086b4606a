"""Every key of the configuration has a test that reaches it: ``reached.toml`` says which."""

import ast
import tomllib
from functools import cache
from pathlib import Path

import pytest

from mta.reference.keys import keys

TESTS = Path(__file__).parent
REACHED: dict[str, str] = tomllib.loads((TESTS / "reached.toml").read_text())


@cache
def names_in(name: str) -> frozenset[str]:
    """Return the names of the tests in a file, those in classes too."""
    tree = ast.parse((TESTS / name).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


def test_no_key_is_without_a_test():
    """Who adds a key adds a test that would notice if it did nothing, and names it there."""
    assert {key.path for key in keys()} == REACHED.keys()


@pytest.mark.parametrize("key", REACHED)
def test_the_test_is_there(key):
    """By its file and its name."""
    name, _, test = REACHED[key].partition("::")
    assert test in names_in(name)
    assert test.startswith("test_")
