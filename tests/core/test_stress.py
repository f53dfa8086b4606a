"""When stress begins and ends, and which limits count then."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.limits import SmtpLimits
from mta.core.stress import Stress, tightened


def test_it_begins_at_the_upper_mark_and_ends_at_the_lower():
    """Between the two it stays as it is: a door that is nearly full does not flap."""
    stress = Stress(SmtpLimits(max_conn=100))
    changes = [(n, stress.active) for n in (*range(101), *range(100, -1, -1)) if stress.update(n)]
    assert [(90, True), (70, False)] == changes
    assert 1 == stress.entered


def test_the_limits_are_those_of_postfix():
    """smtpd_timeout 10, hard_error_limit 1, junk_command_limit 1, min_data_rate 500."""
    calm, tight = SmtpLimits(), tightened(SmtpLimits())
    assert {
        "timeout_s": (300.0, 10.0),
        "max_errors": (20, 1),
        "max_junk": (100, 1),
        "min_data_rate": (0, 500),
    } == {
        field.name: (getattr(calm, field.name), getattr(tight, field.name))
        for field in fields(SmtpLimits)
        if getattr(calm, field.name) != getattr(tight, field.name)
    }


def test_stress_widens_nothing():
    """Who has set a limit below that of stress keeps it."""
    own = SmtpLimits(timeout_s=5.0, max_errors=1, max_junk=1, min_data_rate=1000)
    assert own == tightened(own)


@pytest.mark.parametrize(("said", "active"), [("yes", True), ("no", False)])
def test_the_operator_may_decide(said, active):
    """As ``-o stress=yes`` and ``-o stress=`` do in master.cf."""
    stress = Stress(SmtpLimits(max_conn=10, stress=said))
    assert active == stress.active == stress.entered
    assert not any(stress.update(n) for n in (0, 10, 0))
    assert (10.0 if active else 300.0) == stress.limits.timeout_s


def test_a_limit_that_changes_counts_at_once():
    """Under stress, too."""
    limits = SmtpLimits(max_conn=10)
    stress = Stress(limits)
    stress.update(10)
    limits.stress_timeout_s = 3.0
    stress.refresh()
    assert 3.0 == stress.limits.timeout_s
    stress.update(0)
    assert stress.limits is limits


@given(
    max_conn=st.integers(1, 50),
    marks=st.tuples(st.floats(0, 1), st.floats(0.01, 1)).filter(lambda m: m[0] < m[1]),
    steps=st.lists(st.booleans(), max_size=200),
)
def test_no_connections_no_stress_and_all_of_them_is_stress(max_conn, marks, steps):
    """Whatever the marks are, and however one gets there."""
    stress = Stress(SmtpLimits(max_conn=max_conn, stress_off_at=marks[0], stress_at=marks[1]))
    count = 0
    for up in steps:
        count = min(max_conn, count + 1) if up else max(0, count - 1)
        stress.update(count)
        assert stress.active or count < max_conn
        assert not stress.active or count
