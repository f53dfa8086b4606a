"""Tables of reports: how a number stands in them."""

import pytest

from sim.pages import NONE, number


@pytest.mark.parametrize(
    ("value", "digits", "words"),
    [
        (None, 1, NONE),
        (-0.04, 1, "0.0"),
        (-0.0, 0, "0"),
        (-0.05001, 1, "-0.1"),
        (1234.56, 1, "1,234.6"),
        (-1234, 0, "-1,234"),
        (10**12, 0, "1,000,000,000,000"),
    ],
)
def test_what_rounds_to_nothing_has_no_sign(value: float | None, digits: int, words: str) -> None:
    """A step of 0 MiB below is a step of 0 MiB."""
    assert words == number(value, digits)
