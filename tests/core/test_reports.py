"""What senders are told beside failures: delays and, if they ask for it, success."""

from mta.core.envelopes.base import WARNED_SHIFT, Flag, Recipient, Transaction
from mta.core.instructions import (
    BounceKind,
    DeferEnvelope,
    DeliverLocally,
    Removal,
    RemoveEnvelope,
    SendBounce,
    SuspendEnvelope,
)
from mta.core.reply import Outcome
from mta.core.stimuli import (
    EnvelopeRestored,
    LocalDeliveryDone,
    ScheduleRequested,
    Selector,
    SuspendRequested,
)
from tests.support.core import BODY, EPOCH, STATUS, Core, ev

A = "192.0.2.1"
HOUR = 3600.0
OK, LATER, NEVER = Outcome.OK, Outcome.TEMPFAIL, Outcome.PERMFAIL


def only(kind, instructions):
    return [instruction for instruction in instructions if isinstance(instruction, kind)]


def started(*domains, notify="", **settings):
    """A message on its way over session 1."""
    core = Core(**settings)
    core.submit(*(domains or ("one.test",)), notify=notify)
    core.resolve("one.test", (10, A))
    core.ready(1)
    return core


def asked(notify, *domains, **settings):
    """The same, whose sender has wishes."""
    return started(*domains, notify=notify, **settings)


# Success


def test_success_is_told_to_who_asks_for_it():
    """The report deletes the envelopes that it names: one instruction for a transaction."""
    core = asked("SUCCESS", "one.test", "one.test")
    (bounce,) = only(SendBounce, out := core.done(1))
    assert bounce == SendBounce(
        1, BounceKind.RELAYED, ((ev(1, 1), STATUS[OK]), (ev(1, 2), STATUS[OK]))
    )
    assert [] == only(RemoveEnvelope, out)
    core.settle()
    assert {} == core.leaks()


def test_nobody_else_is_told_of_success():
    """Without NOTIFY, with other words in it, or for the null sender."""
    for notify in ("", "FAILURE,DELAY", "NEVER"):
        core = asked(notify)
        assert [RemoveEnvelope(ev(1), Removal.DELIVERED, STATUS[OK])] == core.done(1)
    core = Core()
    core.submit("one.test", sender="", notify="SUCCESS")
    core.resolve("one.test", (10, A))
    core.ready(1)
    assert [RemoveEnvelope(ev(1), Removal.DELIVERED, STATUS[OK])] == core.done(1)


def test_a_host_that_knows_dsn_reports_itself():
    """RFC 3461 5.2.1: the wishes were passed on, and two reports would be one too many."""
    core = asked("SUCCESS,FAILURE")
    assert [RemoveEnvelope(ev(1), Removal.DELIVERED, STATUS[OK])] == core.done(1, reports=True)
    core = asked("SUCCESS,FAILURE", "one.test", "one.test")
    out = core.done(1, OK, NEVER, reports=True)
    assert [ev(1, 1)] == [removed.evpid for removed in only(RemoveEnvelope, out)]
    assert [(BounceKind.FAILED, ((ev(1, 2), STATUS[NEVER]),))] == [
        bounce[1:] for bounce in only(SendBounce, out)
    ]


def test_success_and_failure_of_a_transaction_are_two_reports():
    """And what asked for success alone fails in silence."""
    core = asked("SUCCESS,FAILURE", "one.test", "one.test", "one.test")
    out = core.done(1, OK, NEVER, LATER)
    assert {BounceKind.RELAYED: ev(1, 1), BounceKind.FAILED: ev(1, 2)} == {
        bounce.kind: bounce.failures[0][0] for bounce in only(SendBounce, out)
    }
    assert [ev(1, 3)] == [deferred.evpid for deferred in only(DeferEnvelope, out)]
    core = asked("SUCCESS")
    assert [RemoveEnvelope(ev(1), Removal.BOUNCED, STATUS[NEVER])] == core.done(1, NEVER)


def test_a_local_delivery_is_final():
    """``delivered``, not ``relayed`` (RFC 3464 2.3.3)."""
    core = Core()
    core.mail("kim", notify="SUCCESS")
    assert [SendBounce(1, BounceKind.DELIVERED, ((ev(1), STATUS[OK]),))] == core.delivered(ev(1))


def test_the_wish_survives_a_restart():
    """It is a flag of the envelope."""
    core = Core()
    core.tell(
        EnvelopeRestored(
            ev(1),
            Recipient("kim@here.test", "kim@", "SUCCESS", delivery="local", user="kim"),
            Transaction("a@from.test", 9),
            EPOCH,
            EPOCH + HOUR,
            1,
            EPOCH,
            Flag.SUCCESS | Flag.NO_BOUNCE | Flag.NO_WARNING,
            BODY,
        )
    )
    core.wake()
    out = core.tell(LocalDeliveryDone(ev(1), OK, "Delivered"))
    assert [BounceKind.DELIVERED] == [bounce.kind for bounce in only(SendBounce, out)]


# Delay


def failing(hours, *, notify="", warn_after_s, sender="a@from.test"):
    """Fail every few minutes; return after how many hours the sender was told."""
    core = Core(warn_after_s=warn_after_s)
    out = core.mail("kim", notify=notify, sender=sender)
    told = []
    while core.t < hours * HOUR:
        assert [ev(1)] == [delivery.evpid for delivery in only(DeliverLocally, out)]
        for bounce in only(SendBounce, core.delivered(ev(1), LATER)):
            assert bounce == SendBounce(1, BounceKind.DELAYED, ((ev(1), STATUS[LATER]),))
            told.append(int(core.t / HOUR * 2) / 2)
        wakeup = core.next_wakeup()
        assert wakeup is not None
        core.now = wakeup
        out = core.wake()
    return told


def test_a_sender_is_warned_once_for_each_interval():
    """At the first attempt that fails after it."""
    assert failing(9, warn_after_s=(4 * HOUR,)) == [4]
    assert failing(9, warn_after_s=(1.5 * HOUR, 2 * HOUR, 4 * HOUR, 6.5 * HOUR)) == [1.5, 2, 4, 6.5]
    assert failing(9, warn_after_s=()) == []


def test_who_is_not_warned():
    """The null sender, and NOTIFY without DELAY; DELAY alone is enough."""
    for notify in ("NEVER", "FAILURE", "SUCCESS"):
        assert failing(5, warn_after_s=(HOUR,), notify=notify) == []
    assert failing(3, warn_after_s=(HOUR,), sender="") == []
    assert failing(3, warn_after_s=(HOUR,), notify="DELAY") == [1]


def test_warnings_survive_a_restart():
    """How many were given is in the flags, which the queue keeps."""
    for given, expected in ((0, [BounceKind.DELAYED]), (1, [])):
        core = Core(warn_after_s=(HOUR,))
        core.tell(
            EnvelopeRestored(
                ev(1),
                Recipient("b@one.test", "one.test"),
                Transaction("a@from.test", 9),
                EPOCH - 2 * HOUR,
                EPOCH + HOUR,
                3,
                EPOCH,
                given << WARNED_SHIFT,
                BODY,
            )
        )
        core.wake()
        core.resolve("one.test", (10, A))
        core.ready(1)
        assert expected == [bounce.kind for bounce in only(SendBounce, core.done(1, LATER))]


def test_warnings_of_a_message_are_one_report():
    """Recipients that fail together are late together."""
    core = started("one.test", "one.test", warn_after_s=(HOUR,))
    core.now = EPOCH + HOUR
    (bounce,) = only(SendBounce, core.done(1, LATER))
    assert [ev(1, 1), ev(1, 2)] == [envelope for envelope, _ in bounce.failures]


def test_the_operators_flags_leave_the_others_alone():
    """Suspended and resumed, a sender that was warned is not warned again."""
    core = asked("SUCCESS,DELAY", warn_after_s=(HOUR,))
    core.now = EPOCH + HOUR
    core.done(1, LATER)
    (suspended,) = only(SuspendEnvelope, core.tell(SuspendRequested(Selector())))
    kept = Flag.SUCCESS | Flag.NO_BOUNCE | 1 << WARNED_SHIFT
    assert suspended.flags == kept | Flag.SUSPENDED


def test_what_expires_is_not_late():
    """One report, not two."""
    core = started(warn_after_s=(HOUR,), scheduler={"envelope_ttl_s": HOUR})
    core.now = EPOCH + HOUR
    assert [BounceKind.EXPIRED] == [b.kind for b in only(SendBounce, core.done(1, LATER))]


def test_what_was_not_tried_is_no_reason_for_a_warning():
    """A full hold queue sends it back; the next attempt tells."""
    core = started(
        "one.test",
        warn_after_s=(HOUR,),
        mta={"task_high_water": 1, "task_low_water": 0, "task_release": 1},
        scheduler={"max_held": 1},
    )
    core.now = EPOCH + 2 * HOUR
    for _ in range(4):
        assert [] == only(SendBounce, core.submit("one.test"))
    core.tell(ScheduleRequested(Selector()))
