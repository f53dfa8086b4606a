"""Conditions are read as they are written; what is none says why."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.conditions import OPERATORS, UNITS, ConditionError, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p99_accepted>800ms", ("p99_accepted", ">", 0.8, "time")),
        (" lost == 0 ", ("lost", "==", 0.0, "")),
        ("drain_time >= 1.5 min", ("drain_time", ">=", 90.0, "time")),
        ("peak_rss<64MiB", ("peak_rss", "<", 64 * 1024 * 1024, "size")),
        ("peak_rss<64MB", ("peak_rss", "<", 64e6, "size")),
        ("foreign_cpu != 15 %", ("foreign_cpu", "!=", 0.15, "share")),
        ("messages_per_s <= 1_000 /s", ("messages_per_s", "<=", 1000.0, "rate")),
        ("p99_delivered.live > 2e1 s", ("p99_delivered.live", ">", 20.0, "time")),
    ],
)
def test_what_is_written(text: str, expected: tuple[str, str, float, str]) -> None:
    """Name, operator, number in the dimension's own unit."""
    found = parse(text)

    assert expected == (found.name, found.operator, found.number, found.dimension)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be as"),
        ("lost", "must be as"),
        ("lost > ", "must be as"),
        ("lost = 0", "must be as"),
        ("> 5", "must be as"),
        ("lost > many", "must be as"),
        ("a > 5 parsec", "parsec is no unit"),
        ("a > 1e999 s", "too large"),
    ],
)
def test_what_is_none(text: str, words: str) -> None:
    """An error that says what is wrong, not where in a regular expression."""
    with pytest.raises(ConditionError, match=words):
        parse(text)


@given(st.text(max_size=40))
def test_any_text_is_a_condition_or_an_error(text: str) -> None:
    """Nothing else comes out of it."""
    with contextlib.suppress(ConditionError):
        assert parse(text).name


@given(
    st.sampled_from(sorted(OPERATORS)),
    st.integers(-1000, 1000),
    st.sampled_from(["", *UNITS]),
    st.integers(-1000, 1000),
)
def test_it_holds_as_arithmetic_says(sign: str, number: int, unit: str, value: int) -> None:
    """A value in the same unit is compared with the number."""
    found = parse(f"x {sign} {number}{unit}")
    factor = UNITS[unit].factor if unit else 1.0

    assert OPERATORS[sign](value, number) == found.holds(value * factor)
