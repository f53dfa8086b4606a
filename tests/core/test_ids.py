"""Identifiers of messages, envelopes and connections."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.ids import (
    MSGID_MAX,
    NUMBER_MAX,
    MsgId,
    SessionId,
    evpid,
    msgid_of,
    show_evpid,
    show_msgid,
    show_session,
)

msgids = st.integers(1, MSGID_MAX).map(MsgId)
numbers = st.integers(1, NUMBER_MAX)


@given(message=msgids, number=numbers)
def test_an_envelope_knows_its_message(message, number):
    """The message's id is the upper half, in numbers and in the logs."""
    envelope = evpid(message, number)
    assert message == msgid_of(envelope)
    assert show_evpid(envelope) == show_msgid(message) + f"{number:08x}"


@given(one=st.tuples(msgids, numbers), other=st.tuples(msgids, numbers))
def test_envelopes_of_a_message_sort_together(one, other):
    """Ids sort by message, then by number, and no two are the same."""
    assert (one < other) == (evpid(*one) < evpid(*other))
    assert (one == other) == (evpid(*one) == evpid(*other))


def test_ids_are_printed_as_in_opensmtpd():
    """16 or 8 hexadecimal digits, with the leading zeros."""
    assert show_evpid(evpid(MsgId(0xABC), 1)) == "00000abc00000001"
    assert show_msgid(MsgId(0xABC)) == "00000abc"
    assert show_session(SessionId(0x1F)) == "000000000000001f"


@pytest.mark.parametrize(
    ("message", "number"), [(0, 1), (MSGID_MAX + 1, 1), (1, 0), (1, NUMBER_MAX + 1), (-1, 1)]
)
def test_an_id_that_does_not_fit_is_our_fault(message, number):
    """Halves never spill into each other."""
    with pytest.raises(AssertionError):
        evpid(MsgId(message), number)
