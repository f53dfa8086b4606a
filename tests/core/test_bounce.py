"""Who is told of a failure, in how many reports, with which status code."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.bounce import Failure, flags_for, may_bounce, settle, status_of
from mta.core.envelopes.base import Flag
from mta.core.ids import MsgId, evpid, msgid_of
from mta.core.instructions import BounceKind, Removal, RemoveEnvelope, SendBounce


@pytest.mark.parametrize(
    ("sender", "notify", "may"),
    [
        ("a@b.test", "", True),
        ("", "", False),
        ("", "FAILURE", False),
        ("a@b.test", "NEVER", False),
        ("a@b.test", "never", False),
        ("a@b.test", "FAILURE", True),
        ("a@b.test", "SUCCESS,FAILURE,DELAY", True),
        ("a@b.test", "success, failure", True),
        ("a@b.test", "SUCCESS,DELAY", False),
        ("a@b.test", "NEVER,FAILURE", False),
        ("a@b.test", ",", True),
    ],
)
def test_who_may_be_told(sender, notify, may):
    """Never the null sender (RFC 5321 4.5.5); else what NOTIFY asks for (RFC 3461 4.1)."""
    assert may_bounce(sender, notify) == may
    assert flags_for(sender, notify) == (Flag.NONE if may else Flag.NO_BOUNCE)


def test_failures_of_a_message_make_one_report():
    """A thousand unknown recipients are one DSN."""
    failures = [
        Failure(evpid(MsgId(7), number), 0, f"550 5.1.1 no user {number}")
        for number in range(1, 1001)
    ]
    (report,) = settle(failures, BounceKind.FAILED)
    assert report == SendBounce(
        MsgId(7), BounceKind.FAILED, tuple((evpid, status) for evpid, _, status in failures)
    )


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(BounceKind.FAILED, Removal.BOUNCED), (BounceKind.EXPIRED, Removal.EXPIRED)],
)
def test_a_bounce_is_never_bounced(kind, reason):
    """An envelope of which nobody may be told is removed, and the log says why."""
    envelope = evpid(MsgId(1), 1)
    flags = Flag.NO_BOUNCE | Flag.SUSPENDED
    assert settle([Failure(envelope, flags, "550 no")], kind) == [
        RemoveEnvelope(envelope, reason, "550 no")
    ]


def test_nothing_failed():
    """No failure, no report."""
    assert settle([], BounceKind.FAILED) == []


failures = st.builds(
    Failure,
    st.builds(evpid, st.integers(1, 4).map(MsgId), st.integers(1, 9)),
    st.integers(0, 3),
    st.sampled_from(["550 5.1.1 a", "554 b"]),
)


@given(
    failed=st.lists(failures, unique_by=lambda failure: failure.evpid),
    kind=st.sampled_from(BounceKind),
)
def test_every_failure_is_settled_once(failed, kind):
    """Each envelope is in one instruction; only those who may hear are reported, in one per message."""
    removed, reports = [], []
    for instruction in settle(failed, kind):
        if isinstance(instruction, RemoveEnvelope):
            removed.append((instruction.evpid, instruction.status))
        else:
            reports.append(instruction)
    assert removed == [(one.evpid, one.status) for one in failed if one.flags & Flag.NO_BOUNCE]
    reported = [one for report in reports for one in report.failures]
    assert sorted(reported) == sorted(
        (one.evpid, one.status) for one in failed if not one.flags & Flag.NO_BOUNCE
    )
    assert len({report.msgid for report in reports}) == len(reports)
    for report in reports:
        assert report.kind is kind
        assert {msgid_of(evpid) for evpid, _ in report.failures} == {report.msgid}


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("550 5.1.1 no such user", "5.1.1"),
        ("550-5.7.1 no", "5.7.1"),
        ("556 5.1.10 Domain does not accept mail", "5.1.10"),
        ("5.4.4 no route", "5.4.4"),
        ("550 5.1.1", "5.1.1"),
        ("550", "5.0.0"),
        ("550 no such user", "5.0.0"),
        ("550 no 5.1.1 here", "5.0.0"),
        ("Connection refused", "5.0.0"),
        ("", "5.0.0"),
        ("550 5.1.1111 x", "5.0.0"),
        ("550 5.1.1.1 x", "5.0.0"),
        ("550 5.1 x", "5.0.0"),
        ("550 3.1.1 x", "5.0.0"),
        ("5505.1.1 x", "5.0.0"),
        ("550 4.7.1 contradiction", "5.7.1"),
        ("550 2.1.5 contradiction", "5.1.5"),
        ("451 4.4.1 gave up", "5.4.1"),
        ("550 5.001.01 leading zeros", "5.1.1"),
        ("550 5.1.\u0661 Arabic digit", "5.0.0"),
    ],
)
def test_the_status_of_a_failure(line, status):
    """The host's enhanced code where it says one; class 5; else 5.0.0."""
    assert status_of(line) == status


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("451 4.4.1 Network error on destination MXs", "4.4.1"),
        ("550 5.4.7 Envelope expired", "5.4.7"),
        ("450 4.2.0 greylisted", "4.2.0"),
        ("451 4.0.0 who knows", "4.4.7"),
        ("451 try later", "4.4.7"),
        ("Connection timed out", "4.4.7"),
        ("", "4.4.7"),
        ("250 2.0.0 a success is no reason", "4.4.7"),
        ("354 4.1.1 go ahead", "4.4.7"),
        ("4.4.2 lost", "4.4.2"),
    ],
)
def test_the_status_of_what_expired(line, status):
    """The actual problem if there was one, else: delivery time expired (RFC 3463 3.5)."""
    assert status_of(line, BounceKind.EXPIRED) == status


@given(line=st.text(), kind=st.sampled_from(BounceKind))
def test_a_status_is_always_well_formed(line, kind):
    """Whatever a host says, the report's Status field is three numbers and no header can be smuggled."""
    digit, subject, detail = status_of(line, kind).split(".")
    assert digit in ("4", "5")
    assert subject.isascii()
    assert detail.isascii()
    assert 0 <= int(subject) <= 999
    assert 0 <= int(detail) <= 999
