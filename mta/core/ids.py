"""Identifiers, as OpenSMTPD has them.

An envelope id carries its message id in the upper half, so that the envelopes of one message sort
together and a message id can be had from any of its envelopes (usr.sbin/smtpd/smtpd-api.h,
``evpid_to_msgid``). The lower half numbers the recipients of the message from 1.
"""

from typing import NewType

MsgId = NewType("MsgId", int)
"""32-bit id of a message. Not the Message-ID header."""

EvpId = NewType("EvpId", int)
"""64-bit id of an envelope: one recipient of one message."""

SessionId = NewType("SessionId", int)
"""64-bit id of a connection, inbound or outbound; unique within a run of the server."""

MSGID_MAX = 0xFFFFFFFF
"""Greatest id of a message; 0 is none."""

NUMBER_MAX = 0xFFFFFFFF
"""Greatest number of a recipient."""


def evpid(msgid: MsgId, number: int) -> EvpId:
    """Return the id of recipient ``number`` (from 1) of a message."""
    assert 0 < msgid <= MSGID_MAX, msgid
    assert 0 < number <= NUMBER_MAX, number
    return EvpId(msgid << 32 | number)


def msgid_of(envelope: EvpId) -> MsgId:
    """Return the id of the message that an envelope belongs to."""
    return MsgId(envelope >> 32)


def number_of(envelope: EvpId) -> int:
    """Return which recipient of its message an envelope is, from 1."""
    return envelope & NUMBER_MAX


def show_evpid(envelope: EvpId) -> str:
    """Return 16 hexadecimal digits, as the logs print an envelope id."""
    return f"{envelope:016x}"


def show_msgid(message: MsgId) -> str:
    """Return 8 hexadecimal digits, as the logs print a message id."""
    return f"{message:08x}"


def show_session(session: SessionId) -> str:
    """Return 16 hexadecimal digits, as the logs print a session id."""
    return f"{session:016x}"
