"""What a reply means for mail."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.reply import OUTCOME_WORDS, Outcome, Reply


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (250, Outcome.OK),
        (251, Outcome.OK),
        (354, Outcome.TEMPFAIL),
        (421, Outcome.TEMPFAIL),
        (452, Outcome.TEMPFAIL),
        (550, Outcome.PERMFAIL),
        (599, Outcome.PERMFAIL),
        (100, Outcome.TEMPFAIL),
        (650, Outcome.TEMPFAIL),
        (0, Outcome.TEMPFAIL),
    ],
)
def test_the_first_digit_decides(code, outcome):
    """RFC 5321 4.2.1."""
    assert Reply(code, "", "text").outcome is outcome


@given(code=st.integers(-1, 10_000))
def test_only_a_clear_no_is_for_good(code):
    """A code that no host may send can never lose mail."""
    outcome = Reply(code, "", "").outcome
    assert (outcome is Outcome.PERMFAIL) == (500 <= code <= 599)
    assert (outcome is Outcome.OK) == (200 <= code <= 299)


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        (Reply(250, "2.0.0", "Ok"), "250 2.0.0 Ok"),
        (Reply(250, "", "Ok"), "250 Ok"),
        (Reply(250, "2.0.0", ""), "250 2.0.0"),
        (Reply(220, "", ""), "220"),
        (Reply(7, "", "odd"), "007 odd"),
    ],
)
def test_a_reply_is_printed_as_it_is_sent(reply, line):
    """Empty parts leave no double space; a code has three digits."""
    assert str(reply) == line


def test_every_outcome_has_its_word():
    """The words of OpenSMTPD's result=."""
    assert [OUTCOME_WORDS[outcome] for outcome in Outcome] == ["Ok", "TempFail", "PermFail", "Loop"]
