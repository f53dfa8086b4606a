"""What attackers and broken peers do has tests: ``hostile.toml`` says which."""

import tomllib
from typing import TypedDict

import pytest

from tests.test_reached import TESTS, names_in


class Case(TypedDict):
    """One thing that is done to a mail server."""

    case: str
    tests: list[str]


CASES: dict[str, Case] = tomllib.loads((TESTS / "hostile.toml").read_text())


@pytest.mark.parametrize("number", CASES)
def test_a_hostile_case_has_tests(number):
    """By their files and names; and each case is another."""
    case = CASES[number]
    assert case["tests"]
    assert [name for name, each in CASES.items() if each["case"] == case["case"]] == [number]
    for test in case["tests"]:
        file, _, name = test.partition("::")
        assert name in names_in(file), test
        assert name.startswith("test_")


def test_every_part_is_attacked():
    """The door, TLS, commands, logins, addresses, hosts, the DNS, files, floods."""
    assert set("ABCDEFGHI") == {number[0] for number in CASES}
