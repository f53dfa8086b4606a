"""Mail that waits at its relay: transactions, high and low water, what is tried when it works again."""

from mta.core.instructions import DeferEnvelope, Note, StartTransaction
from mta.core.routing import ResolutionStatus
from mta.core.stimuli import RemoveRequested, Selector, SuspendRequested
from tests.support.agent import A, core_with, started, submit
from tests.support.core import EPOCH, Core, ev, only

# Transactions


def test_recipients_of_one_message_in_one_domain_share_a_transaction():
    """Two domains are two transactions, however many recipients they have."""
    core = core_with()
    core.submit("one.test", "two.test", "one.test")
    core.resolve("one.test", (10, A))

    assert [(ev(1, 1), ev(1, 3))] == [s.evpids for s in only(StartTransaction, core.ready(1))]


def test_a_transaction_has_no_more_recipients_than_any_server_takes():
    """250 recipients are transactions of 100, 100 and 50, in order (RFC 5321 4.5.3.1.8)."""
    core = core_with(max_conn=1)
    core.validating = False
    core.submit(*["one.test"] * 250)
    core.resolve("one.test", (10, A))
    (first,) = only(StartTransaction, core.ready(1))
    (second,) = only(StartTransaction, core.done(1))
    (third,) = only(StartTransaction, core.done(1))

    assert tuple(ev(1, n) for n in range(1, 251)) == first.evpids + second.evpids + third.evpids
    assert [100, 100, 50] == [len(s.evpids) for s in (first, second, third)]


def test_a_message_that_needs_two_transactions_keeps_its_turn():
    """A full transaction is not sent behind messages that came later."""
    core = core_with(max_conn=1, max_rcpt_per_task=2)
    core.submit(*["one.test"] * 3)
    core.submit("one.test")
    core.resolve("one.test", (10, A))

    order = [only(StartTransaction, core.ready(1))[0].evpids]
    order += [only(StartTransaction, core.done(1))[0].evpids for _ in range(2)]

    assert [(ev(1, 1), ev(1, 2)), (ev(1, 3),), (ev(2, 1),)] == order


def test_a_lost_connection_fails_all_recipients_for_now():
    """Nobody knows what the host made of them: all are tried again."""
    core = core_with()
    core.submit("one.test", "one.test")
    core.resolve("one.test", (10, A))
    core.ready(1)

    out = core.closed(1, "Connection reset by peer")

    assert [(ev(1, 1), 1), (ev(1, 2), 1)] == [
        (d.evpid, d.attempts) for d in only(DeferEnvelope, out)
    ]


# High and low water


def test_high_water_low_water_and_releases():
    """50 wait, the rest is held; at 30 ten are asked back, oldest first; both are logged once."""
    core = core_with(max_conn=1, session_mail_max=1000)
    core.validating = False
    notes = only(Note, submit(core, 65))
    assert ["smtp-out: hiwat reached on [relay:one.test]: holding envelopes"] == [
        n.text for n in notes
    ]
    assert 15 == core.engine.scheduler.held
    core.resolve("one.test", (10, A))
    core.ready(1)  # starts the first: 49 wait
    order = [1]
    held = []
    for _ in range(64):
        ((_, message),) = started(core.done(1))
        order.append(message)
        held.append(core.engine.scheduler.held)

    assert list(range(1, 66)) == order
    assert [15] * 18 + [5] * 10 + [0] * 36 == held
    assert "smtp-out: back to lowat on [relay:one.test]: releasing" not in [n.text for n in notes]


def test_a_great_many_releases_do_not_dig_too_deep():
    """1,500 held messages are released one at a time in one go: a loop, not a recursion.

    Found here: RecursionError.
    """
    core = Core(
        mta={"task_release": 1, "task_high_water": 2, "task_low_water": 1, "max_conn": 1},
        scheduler={"max_held": 1500, "envelope_ttl_s": 100.0},
        representations=["slim", "packed"],
        validating=False,
    )
    submit(core, 1502)
    core.resolve("one.test", (10, A))
    core.now = EPOCH + 100

    core.ready(1)

    assert {"expired"} == set(core.ledger.fates.values())
    assert 1502 == len(core.ledger.fates)


def test_mail_for_a_failed_relay_is_deferred_also_where_it_was_held():
    """Waiting and held envelopes are pending again when the destination fails."""
    core = core_with(task_high_water=2, task_low_water=1, task_release=1)
    submit(core, 5)
    core.resolve("one.test", (10, A))

    out = core.failed(1)

    assert [ev(n) for n in range(1, 6)] == [d.evpid for d in only(DeferEnvelope, out)]
    core.until(15.0)
    assert {0} == {core.engine.gauges()[name] for name in ("scheduler.ramqueue.hold", "mta.relay")}


# Recovery


def test_the_latest_failures_are_tried_at_once_when_it_works_again():
    """Of three deferred messages the last two (`max_deferred`) follow the first delivery."""
    core = core_with(max_deferred=2)
    submit(core, 3)
    core.resolve("one.test", (10, A))
    core.failed(1)
    core.until(15.0)
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.ready(2)

    out = core.done(2)

    assert [(2, 2)] == started(out)
    assert [(2, 3)] == started(core.done(2))
    assert [] == started(core.done(2)), "the first one waits for its time"
    core.settle()
    assert {"delivered"} == set(core.ledger.fates.values())


def test_those_that_are_gone_or_suspended_are_not_tried_after_a_recovery():
    """Memory of failures is by id, and an id may have become nobody, or somebody to be left alone."""
    core = core_with()
    submit(core, 3)
    core.resolve("one.test", (10, A))
    core.failed(1)
    core.tell(RemoveRequested(Selector(msgid=1)))
    core.tell(SuspendRequested(Selector(msgid=2)))
    core.until(15.0)
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.ready(2)

    assert [(2, 3)] == started(core.done(2))


def test_memory_of_failures_is_bounded():
    """Failures are remembered for `max_relays` domains; mail of others just waits for its time."""
    core = core_with(max_relays=1)
    core.submit("one.test")
    core.unresolved("one.test", ResolutionStatus.RETRY)
    core.until(15.0)
    core.submit("two.test")
    core.unresolved("two.test", ResolutionStatus.RETRY)

    assert ["one.test"] == list(core.engine.agent.outcomes.deferred)
