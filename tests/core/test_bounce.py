"""Who is told of a failure, in how many reports, with which status code."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.bounce import (
    BounceSettings,
    Failure,
    Gathering,
    after_warning,
    flags_for,
    may_bounce,
    settle,
    status_of,
)
from mta.core.envelopes.base import FLAGS_MAX, WARNED_SHIFT, Flag
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
    assert flags_for(sender, notify) & Flag.NO_BOUNCE == (Flag.NONE if may else Flag.NO_BOUNCE)


@pytest.mark.parametrize(
    ("sender", "notify", "flags"),
    [
        ("a@b.test", "", Flag.NONE),
        ("a@b.test", "NEVER", Flag.NO_BOUNCE | Flag.NO_WARNING),
        ("a@b.test", "FAILURE", Flag.NO_WARNING),
        ("a@b.test", "FAILURE,DELAY", Flag.NONE),
        ("a@b.test", "DELAY", Flag.NO_BOUNCE),
        ("a@b.test", "SUCCESS", Flag.NO_BOUNCE | Flag.SUCCESS | Flag.NO_WARNING),
        ("a@b.test", "DELAY,success,Failure", Flag.SUCCESS),
        ("a@b.test", "NEVER,SUCCESS,DELAY", Flag.NO_BOUNCE | Flag.NO_WARNING),
        ("", "", Flag.NO_BOUNCE | Flag.NO_WARNING),
        ("", "SUCCESS,DELAY", Flag.NO_BOUNCE | Flag.NO_WARNING),
    ],
)
def test_what_an_envelope_is_born_with(sender, notify, flags):
    """Without NOTIFY: failures and delays. With it: what it says."""
    assert flags_for(sender, notify) == flags


def warned(count: int) -> int:
    return count << WARNED_SHIFT


@pytest.mark.parametrize(
    ("before", "waited_s", "after"),
    [
        (0, 9.9, None),
        (0, 10.0, warned(1)),
        (Flag.SUCCESS, 10.0, Flag.SUCCESS | warned(1)),
        (warned(1), 19.0, None),
        (warned(1), 20.0, warned(2)),
        (0, 1000.0, warned(4)),
        (warned(3), 1000.0, warned(4)),
        (warned(4), 1e9, None),
        (Flag.NO_WARNING, 1e9, None),
    ],
)
def test_each_warning_is_given_once(before, waited_s, after):
    """What passed together, as after an outage of ours, is one."""
    assert after_warning(before, waited_s, (10.0, 20.0, 30.0, 40.0)) == after
    assert after is None or after <= FLAGS_MAX


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"warn_interval_s": [1.0, 2.0, 3.0, 4.0, 5.0]}, "warn_interval_s"),
        ({"warn_interval_s": [2.0, 1.0]}, "warn_interval_s.1"),
        ({"warn_interval_s": [2.0, 2.0]}, "warn_interval_s.1"),
        ({"warn_interval_s": [0.0]}, "warn_interval_s.0"),
        ({"warn_interval_s": [float("nan")]}, "warn_interval_s.0"),
        ({"gather_s": -1.0}, "gather_s"),
        ({"gather_s": 61.0}, "gather_s"),
        ({"max_recipients": 0}, "max_recipients"),
        ({"max_size": 0}, "max_size"),
        ({"max_header": -1}, "max_header"),
        ({"warn_interval_s": [], "gather_s": 0.0}, None),
        ({}, None),
    ],
)
def test_settings_that_can_not_work(settings, problem):
    """Each is named."""
    found = [key for key, _, _ in BounceSettings(**settings).problems()]
    assert found == ([] if problem is None else [problem])


def one(number: int, msgid: int = 7, kind: BounceKind = BounceKind.FAILED) -> SendBounce:
    return SendBounce(MsgId(msgid), kind, ((evpid(MsgId(msgid), number), f"550 {number}"),))


def test_reports_of_a_message_are_gathered():
    """For a second from the first; of another message or kind they are others."""
    gathering = Gathering(wait_s=1.0, recipients_max=10)
    assert gathering.next_due() is None
    assert gathering.add(one(1), 100.0, is_last=False) == []
    assert gathering.add(one(2), 100.5, is_last=False) == []
    assert gathering.add(one(1, 8), 100.75, is_last=False) == []
    assert gathering.add(one(3, kind=BounceKind.DELAYED), 100.75, is_last=False) == []
    assert len(gathering) == 3
    assert gathering.next_due() == 101.0
    assert gathering.due(100.99) == []
    assert gathering.due(101.0) == [
        SendBounce(MsgId(7), BounceKind.FAILED, (*one(1)[2], *one(2)[2]))
    ]
    assert gathering.next_due() == 101.75
    assert gathering.due(math.inf) == [one(1, 8), one(3, kind=BounceKind.DELAYED)]
    assert len(gathering) == 0


def test_nothing_waits_for_nothing():
    """The last recipient of a message takes those before it along; without a wait each goes alone."""
    gathering = Gathering(wait_s=1.0, recipients_max=10)
    assert gathering.add(one(1), 100.0, is_last=True) == [one(1)]
    assert gathering.add(one(1), 100.0, is_last=False) == []
    (report,) = gathering.add(one(2), 100.1, is_last=True)
    assert report.failures == (*one(1).failures, *one(2).failures)
    assert Gathering(wait_s=0.0, recipients_max=10).add(one(1), 1.0, is_last=False) == [one(1)]


@given(st.lists(st.integers(1, 25), max_size=20), st.integers(1, 10))
def test_a_report_has_so_many_recipients_and_no_more(sizes, recipients_max):
    """Nobody is lost or named twice, in whatever groups they come."""
    gathering = Gathering(wait_s=1.0, recipients_max=recipients_max)
    number = 0
    reports = []
    for size in sizes:
        failures = []
        for _ in range(size):
            number += 1
            failures.append((evpid(MsgId(1), number), "550"))
        report = SendBounce(MsgId(1), BounceKind.FAILED, tuple(failures))
        reports += gathering.add(report, 1.0, is_last=False)
    reports += gathering.due(2.0)
    assert len(gathering) == 0
    assert all(0 < len(report.failures) <= recipients_max for report in reports)
    assert [evpid(MsgId(1), n) for n in range(1, number + 1)] == [
        envelope for report in reports for envelope, _ in report.failures
    ]


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
    silent = Flag.NO_BOUNCE if kind.is_failure else Flag.NONE
    assert removed == [(one.evpid, one.status) for one in failed if one.flags & silent]
    reported = [one for report in reports for one in report.failures]
    assert sorted(reported) == sorted(
        (one.evpid, one.status) for one in failed if not one.flags & silent
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


@pytest.mark.parametrize(
    ("line", "kind", "status"),
    [
        ("250 2.1.5 taken", BounceKind.RELAYED, "2.1.5"),
        ("250 Ok", BounceKind.RELAYED, "2.0.0"),
        ("Delivered", BounceKind.DELIVERED, "2.0.0"),
        ("250 5.1.1 what now", BounceKind.RELAYED, "2.0.0"),
        ("451 4.7.1 greylisted", BounceKind.DELAYED, "4.7.1"),
        ("Connection refused", BounceKind.DELAYED, "4.0.0"),
        ("450 5.1.1 what now", BounceKind.DELAYED, "4.0.0"),
    ],
)
def test_the_status_of_what_did_not_fail(line, kind, status):
    """The host's, if its class is that of what happened (RFC 3464 2.3.4)."""
    assert status_of(line, kind) == status


@given(line=st.text(), kind=st.sampled_from(BounceKind))
def test_a_status_is_always_well_formed(line, kind):
    """Whatever a host says, the report's Status field is three numbers and no header can be smuggled."""
    digit, subject, detail = status_of(line, kind).split(".")
    assert digit in ("2" if kind.is_success else "4" if kind is BounceKind.DELAYED else "45")
    assert subject.isascii()
    assert detail.isascii()
    assert 0 <= int(subject) <= 999
    assert 0 <= int(detail) <= 999
