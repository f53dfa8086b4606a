"""When an envelope is tried, and how it leaves the queue."""

import pytest

from mta.core.envelopes.base import ATTEMPTS_MAX, EnvelopeState, Flag, Recipient, Transaction
from mta.core.instructions import (
    BounceKind,
    DeferEnvelope,
    OpenConnection,
    Removal,
    RemoveEnvelope,
    ResolveDomain,
    SendBounce,
    StartTransaction,
    SuspendEnvelope,
)
from mta.core.reply import Outcome
from mta.core.routing import ResolutionStatus
from mta.core.scheduler import EXPIRED_STATUS
from mta.core.stimuli import (
    AgentPaused,
    AgentResumed,
    EnvelopeRestored,
    RemoveRequested,
    ScheduleRequested,
    Selector,
    SuspendRequested,
    UnsuspendRequested,
)
from tests.support.core import BODY, EPOCH, Core, ev, only

DAY = 86_400.0
A = "192.0.2.1"


def restored(
    message, *, number=1, domain="one.test", created=0.0, due=0.0, attempts=0, flags=0, ttl=4 * DAY
):
    return EnvelopeRestored(
        ev(message, number),
        Recipient(f"r@{domain}", domain),
        Transaction("a@from.test", 99),
        EPOCH + created,
        EPOCH + created + ttl,
        attempts,
        EPOCH + due,
        flags,
        BODY,
    )


def connected(core, domain="one.test", address=A):
    """Let a domain's first look-up and connection work; return what follows."""
    core.resolve(domain, (10, address))
    return core.ready(max(core.ledger.connections))


# Attempts


def test_attempts_follow_the_timetable_of_opensmtpd():
    """A destination that never takes a message is tried at 0, 400, 1600, 3600 ... seconds."""
    core = Core(mta={"session_keepalive_s": 0.0})
    core.submit("one.test")
    tried = []
    for _ in range(6):
        connected(core)
        (session,) = core.ledger.connections
        tried.append(core.t)
        (deferred,) = only(DeferEnvelope, core.done(session, Outcome.TEMPFAIL))
        core.until(core.t)
        core.closed(session)
        core.until(deferred.due_at - EPOCH)

    assert [0, 400, 1600, 3600, 6400, 10_000] == tried


def test_a_deferral_says_how_often_and_why():
    """Attempts, instant and reply go to the durable queue."""
    core = Core()
    core.submit("one.test")
    connected(core)

    out = core.done(1, Outcome.TEMPFAIL, status="451 4.7.1 greylisted")

    assert [DeferEnvelope(ev(1), 1, EPOCH + 400, "451 4.7.1 greylisted")] == only(
        DeferEnvelope, out
    )


def test_attempts_have_a_greatest_number():
    """The counter stops at 65,535 instead of breaking the representation that has 16 bits for it."""
    core = Core()
    core.tell(restored(1, attempts=ATTEMPTS_MAX - 1))
    core.tell(restored(2, attempts=ATTEMPTS_MAX, flags=Flag.SUSPENDED))
    core.validating = False
    core.until(1.0)
    core.resolve("one.test", (10, A))
    core.ready(1)
    core.done(1, Outcome.TEMPFAIL)

    for engine in core.engines:
        engine.validate()
        assert [ATTEMPTS_MAX] * 2 == [
            engine.store.attempts_of(engine.store.find(ev(n))) for n in (1, 2)
        ]


def test_an_overflow_is_not_an_attempt_and_soon_over():
    """Who finds no room is back at 3, 12, 27 seconds of age, with as many attempts as before."""
    core = Core(
        mta={"task_high_water": 1, "task_low_water": 0, "task_release": 1},
        scheduler={"max_held": 1},
    )
    core.submit("one.test")
    core.submit("one.test")
    assert 1 == core.engine.scheduler.held

    (deferred,) = only(DeferEnvelope, core.submit("one.test"))

    assert DeferEnvelope(ev(3), 0, EPOCH + 3, "") == deferred
    again = only(DeferEnvelope, core.until(30.0))
    assert [3 + 9, 27, 48] == [d.due_at - EPOCH for d in again]
    assert {0} == {d.attempts for d in again}
    assert 4 == core.engine.counters()["scheduler.ramqueue.hold-overflow"]
    assert 0 == core.engine.counters()["scheduler.delivery.tempfail"]


def test_an_overflow_counts_from_no_attempt_at_all():
    """The overflow timetable begins at its first slot also for an envelope that was tried often."""
    core = Core(mta={"max_relays": 1})
    core.submit("one.test")
    core.tell(restored(2, domain="two.test", due=10.0, attempts=9))

    (deferred,) = only(DeferEnvelope, core.until(10.0))

    assert DeferEnvelope(ev(2), 9, EPOCH + 12, "") == deferred


# Slots


def test_no_more_envelopes_are_in_flight_than_allowed():
    """The fifth of five waits as scheduled until a slot is free, and is then tried at once."""
    core = Core(scheduler={"max_inflight": 4})
    core.submit(*["one.test"] * 5)
    gauges = core.engine.gauges()
    assert (4, 1) == (
        gauges["scheduler.envelope.inflight"],
        gauges["scheduler.envelope.scheduled"],
    )
    assert core.next_wakeup() is None
    connected(core)

    out = core.done(1)

    assert [(ev(1, 5),)] == [s.evpids for s in only(StartTransaction, out)]


def test_a_backlog_is_handed_out_in_batches():
    """25 envelopes due at once take three calls of at most ten; between them the core asks for more."""
    core = Core()
    for number in range(1, 26):
        core.tell(restored(number, domain=f"d{number}.test", due=5.0))
    core.now = EPOCH + 5
    batches = []
    while (wakeup := core.next_wakeup()) is not None and wakeup <= core.now:
        batches.append(len(only(ResolveDomain, core.wake())))

    assert [10, 10, 5] == batches


def test_after_a_pause_too_mail_is_handed_out_in_batches():
    """25 messages accepted during a pause: ten with the resumption, the rest at once, but in turns."""
    core = Core()
    core.tell(AgentPaused())
    for number in range(25):
        core.submit(f"d{number}.test")
    batches = [len(only(ResolveDomain, core.tell(AgentResumed())))]
    while core.next_wakeup() == core.now:
        batches.append(len(only(ResolveDomain, core.wake())))

    assert [10, 10, 5] == batches


def test_due_envelopes_go_by_due_time_then_id():
    """The order of arrival does not matter, only when they are due; ties go by id."""
    core = Core()
    for number, due in ((4, 2.0), (3, 2.0), (1, 3.0), (2, 1.0)):
        core.tell(restored(number, domain=f"d{number}.test", due=due))
    core.now = EPOCH + 5

    assert ["d2.test", "d3.test", "d4.test", "d1.test"] == [
        r.domain for r in only(ResolveDomain, core.wake())
    ]


def test_a_wakeup_is_for_the_first_that_is_due():
    """Whoever comes later and is due earlier moves it, by seconds or by a tick."""
    core = Core(representations=["slim"])
    packed = Core(representations=["packed"])
    for due, wakeup in ((3000.0, 3000.0), (2999.0, 2999.0), (3001.0, 2999.0), (2998.984375,) * 2):
        for one in (core, packed):
            number = len(one.ledger.rows) + 1
            one.tell(restored(number, domain=f"d{number}.test", due=due))
            assert EPOCH + wakeup == one.next_wakeup()


def test_a_restart_does_not_try_early():
    """An envelope that was due in an hour is due in an hour."""
    core = Core()
    core.tell(restored(1, created=-100.0, due=3600.0, attempts=1))

    assert [] == core.until(3599.9)
    assert [ResolveDomain("one.test")] == core.until(3600.0)


# Expiry


def test_a_pending_envelope_expires_on_time():
    """Nothing is tried any more at the end of its life; the sender learns of it then."""
    core = Core(scheduler={"envelope_ttl_s": 1000.0})
    core.submit("one.test")
    connected(core)
    core.done(1, Outcome.TEMPFAIL)
    core.until(20.0)
    core.closed(1)
    core.until(400.0)
    core.resolve("one.test", (10, A))
    core.ready(2)
    (deferred,) = only(DeferEnvelope, core.done(2, Outcome.TEMPFAIL))
    assert EPOCH + 1000 == deferred.due_at, "not at 1600, when nobody would look"

    core.until(999.9)
    out = core.until(1000.0)

    assert [SendBounce(1, BounceKind.EXPIRED, ((ev(1), EXPIRED_STATUS),))] == only(SendBounce, out)


def test_bounces_live_longer_and_die_in_silence():
    """A bounce may stay for 7 days instead of 4; nobody is told when it expires."""
    core = Core()
    core.submit("one.test", sender="")
    core.submit("one.test")
    core.unresolved("one.test", ResolutionStatus.RETRY)
    assert [7 * DAY, 4 * DAY] == [core.ledger.rows[ev(n)].expires_at - EPOCH for n in (1, 2)]
    core.now = EPOCH + 8 * DAY

    out = core.wake()

    assert [RemoveEnvelope(ev(1), Removal.EXPIRED, EXPIRED_STATUS)] == only(RemoveEnvelope, out)
    assert [((ev(2), EXPIRED_STATUS),)] == [b.failures for b in only(SendBounce, out)]


def test_a_waiting_envelope_expires_before_its_transaction():
    """What became too old while it waited for a connection is not sent; the rest of its message is."""
    core = Core(scheduler={"envelope_ttl_s": 100.0})
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.now = EPOCH + 100

    out = core.ready(1)

    assert [] == only(StartTransaction, out)
    assert [BounceKind.EXPIRED] == [b.kind for b in only(SendBounce, out)]
    core.settle()
    assert {} == core.leaks()


def test_only_the_expired_recipients_of_a_transaction_are_left_out():
    """Recipients of one message that were restored with different ages share a transaction."""
    core = Core()
    core.tell(restored(1, number=1, created=-4 * DAY + 50))
    core.tell(restored(1, number=2, created=-1.0))
    core.until(1.0)
    core.resolve("one.test", (10, A))
    core.now = EPOCH + 60

    out = core.ready(1)

    assert [(ev(1, 2),)] == [s.evpids for s in only(StartTransaction, out)]
    assert [((ev(1, 1), EXPIRED_STATUS),)] == [b.failures for b in only(SendBounce, out)]


def test_a_held_envelope_expires_when_it_is_released():
    """The hold queue does not make mail immortal (OpenSMTPD: held envelopes never expire)."""
    core = Core(
        mta={"task_high_water": 1, "task_low_water": 0, "task_release": 1},
        scheduler={"envelope_ttl_s": 100.0},
    )
    core.submit("one.test")
    core.now = EPOCH + 50
    core.submit("one.test")
    core.submit("one.test")
    assert 2 == core.engine.scheduler.held
    core.resolve("one.test", (10, A))
    core.ready(1)
    core.now = EPOCH + 150

    out = core.done(1)

    assert [2, 3] == [b.msgid for b in only(SendBounce, out)]
    assert [] == only(StartTransaction, out)


def test_an_attempt_that_ends_after_expiry_is_the_last():
    """A temporary failure of an envelope that is too old by then is for good."""
    core = Core(scheduler={"envelope_ttl_s": 100.0})
    core.submit("one.test")
    connected(core)
    core.now = EPOCH + 100

    out = core.done(1, Outcome.TEMPFAIL)

    assert [] == only(DeferEnvelope, out)
    assert [BounceKind.EXPIRED] == [b.kind for b in only(SendBounce, out)]


def test_recipients_that_expire_together_are_reported_together():
    """One report for a message whose three recipients waited for the same dead name server."""
    core = Core(scheduler={"envelope_ttl_s": 100.0})
    core.submit("one.test", "two.test", "three.test")
    for domain in ("one.test", "two.test", "three.test"):
        core.unresolved(domain, ResolutionStatus.RETRY)

    out = core.until(100.0)

    assert [tuple((ev(1, n), EXPIRED_STATUS) for n in (1, 2, 3))] == [
        b.failures for b in only(SendBounce, out)
    ]


def test_a_long_pause_does_not_end_in_a_long_stall():
    """2,500 envelopes that expired meanwhile leave in three calls, not in one."""
    core = Core(representations=["slim", "packed"], validating=False)
    for number in range(1, 2501):
        core.tell(restored(number, due=10.0, ttl=20.0))
    core.tell(AgentPaused())
    core.until(30.0)
    left = [len(core.ledger.rows)]
    core.tell(AgentResumed())
    while core.next_wakeup() is not None:
        left.append(len(core.ledger.rows))
        core.wake()

    assert [2500, 1500, 500] == left
    core.validate()


# Failures for good


def test_rejected_recipients_of_a_message_share_one_report():
    """Three of five recipients rejected: one DSN with three, the others on their way."""
    core = Core()
    core.submit(*["one.test"] * 5)
    connected(core)
    o = Outcome

    out = core.done(1, o.OK, o.PERMFAIL, o.TEMPFAIL, o.PERMFAIL, o.LOOP)

    assert [RemoveEnvelope(ev(1, 1), Removal.DELIVERED, "250 2.0.0 Ok")] == only(
        RemoveEnvelope, out
    )
    assert [ev(1, 3)] == [d.evpid for d in only(DeferEnvelope, out)]
    (bounce,) = only(SendBounce, out)
    assert (1, BounceKind.FAILED) == (bounce.msgid, bounce.kind)
    assert [ev(1, 2), ev(1, 4), ev(1, 5)] == [identity for identity, _ in bounce.failures]


@pytest.mark.parametrize(("sender", "notify"), [("", ""), ("a@from.test", "NEVER")])
def test_nobody_is_told_who_must_not_be(sender, notify):
    """The null sender and NOTIFY=NEVER: the envelope is removed, and that is all."""
    core = Core()
    core.submit("one.test", sender=sender, notify=notify)
    connected(core)

    out = core.done(1, Outcome.PERMFAIL)

    assert [RemoveEnvelope(ev(1), Removal.BOUNCED, "550 5.1.1 no such user")] == out


# The operator


def waiting_everywhere():
    """Four messages: in a transaction (1), waiting (2), held (3), pending (4)."""
    core = Core(
        mta={"task_high_water": 1, "task_low_water": 0, "task_release": 1, "max_conn_per_relay": 1}
    )
    core.submit("one.test")
    connected(core)
    core.submit("one.test")
    core.submit("one.test")
    core.tell(restored(4, due=1000.0))
    states = [core.engine.store.state_of(core.engine.store.find(ev(n))) for n in range(1, 5)]
    s = EnvelopeState
    assert [s.IN_FLIGHT, s.IN_FLIGHT, s.HELD, s.PENDING] == states
    return core


def test_what_the_operator_removes_is_gone_wherever_it_was():
    """All at once: three leave now, the one in a transaction when that fails."""
    core = waiting_everywhere()

    out = core.tell(RemoveRequested(Selector()))

    assert [ev(2), ev(3), ev(4)] == [r.evpid for r in only(RemoveEnvelope, out)]
    assert {Removal.REMOVED} == {r.reason for r in only(RemoveEnvelope, out)}
    out = core.done(1, Outcome.TEMPFAIL)
    assert [(ev(1), Removal.REMOVED)] == [(r.evpid, r.reason) for r in only(RemoveEnvelope, out)]
    assert [] == only(DeferEnvelope, out)
    core.settle()
    assert {} == core.leaks()


def test_a_removal_that_comes_too_late_changes_nothing():
    """A transaction that delivers has delivered, whatever the operator wanted meanwhile."""
    core = waiting_everywhere()
    core.tell(RemoveRequested(Selector(evpid=ev(1))))

    out = core.done(1)

    assert [Removal.DELIVERED] == [r.reason for r in only(RemoveEnvelope, out)]


def test_what_the_operator_suspends_stays_where_it_is():
    """All at once: nothing of it is tried again until it is resumed, and then everything is."""
    core = waiting_everywhere()

    out = core.tell(SuspendRequested(Selector()))

    assert [SuspendEnvelope(ev(n), Flag.SUSPENDED) for n in (2, 3, 4)] == out
    out = core.done(1, Outcome.TEMPFAIL)
    assert [SuspendEnvelope(ev(1), Flag.SUSPENDED)] == out
    core.settle()
    assert 4 == core.engine.gauges()["scheduler.envelope.suspended"]
    assert [] == core.tell(SuspendRequested(Selector())), "there is nothing more to suspend"
    assert [] == core.tell(ScheduleRequested(Selector())), "suspended is stronger than scheduled"

    out = core.tell(UnsuspendRequested(Selector()))

    assert [SuspendEnvelope(ev(n), 0) for n in (1, 2, 3, 4)] == only(SuspendEnvelope, out)
    core.settle()
    assert {ev(n): "delivered" for n in (1, 2, 3, 4)} == core.ledger.fates


def test_who_changes_his_mind_during_a_transaction_is_heard():
    """Suspended and resumed while its transaction ran: it is deferred as if nothing had been."""
    core = waiting_everywhere()
    core.tell(SuspendRequested(Selector(evpid=ev(1))))
    core.tell(UnsuspendRequested(Selector(evpid=ev(1))))

    assert [ev(1)] == [d.evpid for d in only(DeferEnvelope, core.done(1, Outcome.TEMPFAIL))]


def test_suspended_during_a_transaction_that_delivers():
    """Delivered is delivered; the wish is forgotten with the envelope."""
    core = Core()
    core.submit("one.test", "one.test")
    connected(core)
    core.tell(SuspendRequested(Selector()))

    core.done(1, Outcome.OK, Outcome.PERMFAIL)

    assert {ev(1, 1): "delivered", ev(1, 2): "failed"} == core.ledger.fates


def test_removed_and_suspended_is_removed():
    """Of two wishes for an envelope in a transaction the stronger one counts."""
    core = waiting_everywhere()
    core.tell(RemoveRequested(Selector(evpid=ev(1))))
    core.tell(SuspendRequested(Selector(evpid=ev(1))))

    core.closed(1)

    assert "removed" == core.ledger.fates[ev(1)]


def test_what_the_operator_schedules_is_tried_now():
    """A pending envelope that was due in 1,000 seconds is handed out at once; a held one stays."""
    core = Core()
    core.tell(restored(1, due=1000.0))
    core.tell(restored(2, due=1000.0, domain="two.test"))

    assert [ResolveDomain("one.test")] == core.tell(ScheduleRequested(Selector(evpid=ev(1))))
    assert [ResolveDomain("two.test")] == core.tell(ScheduleRequested(Selector()))
    assert [] == core.tell(ScheduleRequested(Selector(evpid=ev(77)))), "nobody is not an error"


def test_scheduling_a_held_envelope_asks_again():
    """It is held again if there still is no room."""
    core = waiting_everywhere()

    core.tell(ScheduleRequested(Selector(evpid=ev(3))))

    assert EnvelopeState.HELD is core.engine.store.state_of(core.engine.store.find(ev(3)))


def test_scheduling_what_is_scheduled_changes_nothing():
    """An envelope that waits for a slot goes on waiting; it can be removed and suspended there too."""
    core = Core(scheduler={"max_inflight": 1})
    core.submit(*["one.test"] * 4)

    assert [] == core.tell(ScheduleRequested(Selector()))
    core.tell(RemoveRequested(Selector(evpid=ev(1, 3))))
    core.tell(SuspendRequested(Selector(evpid=ev(1, 2))))
    core.settle()

    assert {ev(1, 3): "removed", ev(1, 1): "delivered", ev(1, 4): "delivered"} == core.ledger.fates


def test_unsuspending_what_is_not_suspended_changes_nothing():
    """Pending, waiting and held envelopes have nothing to be resumed from."""
    core = waiting_everywhere()
    assert [] == core.tell(UnsuspendRequested(Selector()))


def test_a_message_of_many_recipients_is_found_whole():
    """`remove MSGID` finds recipients beyond the thousandth, those of a former start too."""
    core = Core(representations=["slim", "packed"], validating=False)
    core.submit(*["one.test"] * 1500)
    core.tell(restored(2, number=3000, due=100.0))

    core.tell(RemoveRequested(Selector(msgid=1)))
    core.tell(RemoveRequested(Selector(msgid=2)))

    assert 1501 == len(core.ledger.fates)
    core.validate()


def test_the_operator_outranks_a_restart():
    """What was suspended before a restart is suspended after it."""
    core = Core()
    core.tell(restored(1, flags=Flag.SUSPENDED))
    core.until(5000.0)
    assert core.next_wakeup() is None

    assert [SuspendEnvelope(ev(1), 0), ResolveDomain("one.test")] == core.tell(
        UnsuspendRequested(Selector(msgid=1))
    )


def test_counts_add_up():
    """What came in is what went out and what is there."""
    core = Core()
    core.submit("one.test", "two.test", "three.test")
    connected(core)
    core.done(1)
    core.unresolved("two.test", ResolutionStatus.NO_DOMAIN)
    core.tell(RemoveRequested(Selector(evpid=ev(1, 3))))

    counters = core.engine.counters()

    assert (3, 3) == (
        counters["scheduler.envelope.incoming"],
        counters["scheduler.envelope.outgoing"],
    )
    assert (1, 1, 1, 1) == (
        counters["scheduler.delivery.ok"],
        counters["scheduler.delivery.permfail"],
        counters["scheduler.envelope.removed"],
        counters["queue.bounce"],
    )
    assert [] == only(OpenConnection, core.tell(ScheduleRequested(Selector())))
