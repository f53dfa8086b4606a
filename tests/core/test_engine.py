"""The door of the core: one clock, every stimulus, instructions in order."""

import pytest

from mta.core.concurrency import ConcurrencySettings
from mta.core.envelopes.base import Recipient, Transaction
from mta.core.instructions import (
    DeferEnvelope,
    OpenConnection,
    RemoveEnvelope,
    ResolveDomain,
    StartTransaction,
)
from mta.core.metrics import DRAINING, METRICS, Kind
from mta.core.reply import Outcome
from mta.core.stimuli import AgentPaused, AgentResumed, EnvelopeRestored, TimeReached
from tests.support.core import BODY, EPOCH, Core, ev, only

A = "192.0.2.1"


def restored(message, due):
    return EnvelopeRestored(
        ev(message),
        Recipient("r@one.test", "one.test"),
        Transaction("a@from.test", 99),
        EPOCH,
        EPOCH + 345_600,
        0,
        EPOCH + due,
        0,
        BODY,
    )


def test_one_message_from_door_to_door():
    """Resolve, connect, send, forget: four stimuli, four answers, nothing left."""
    core = Core()

    assert [ResolveDomain("one.test")] == core.submit("one.test")
    assert [OpenConnection(1, "one.test", "", A, f"mx-{A}")] == core.resolve("one.test", (10, A))
    assert [StartTransaction(1, 1, (ev(1),))] == core.ready(1)
    (removed,) = core.done(1)
    assert (ev(1), "250 2.0.0 Ok") == (removed.evpid, removed.status)
    core.settle()
    assert {} == core.leaks()


def test_the_clock_never_goes_back():
    """A driver that lets it is told so at once."""
    core = Core()
    core.now += 10
    core.wake()
    core.now -= 1

    with pytest.raises(AssertionError):
        core.engine.handle(TimeReached(), now=core.now)


def test_an_idle_core_wants_nothing():
    """No polling: without mail there is no next time."""
    assert Core().next_wakeup() is None


def test_a_core_with_pending_mail_wants_one_wakeup():
    """The next one due, whatever else is there."""
    core = Core(representations=["slim"])
    core.tell(restored(1, 500.0))
    core.tell(restored(2, 300.0))

    assert EPOCH + 300 == core.next_wakeup()


def test_the_earlier_of_two_wakeups_counts():
    """An idle connection closes before the next envelope is due, and after it."""
    core = Core(representations=["slim"])
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.ready(1)
    core.done(1)
    assert EPOCH + 10 == core.next_wakeup()
    core.tell(restored(2, 300.0))
    assert EPOCH + 10 == core.next_wakeup()
    core.tell(restored(3, 5.0))
    assert EPOCH + 5 == core.next_wakeup()


def test_due_mail_does_not_wake_a_paused_core():
    """Else its driver would be woken for nothing, for ever."""
    core = Core()
    core.tell(restored(1, 5.0))
    core.tell(AgentPaused())
    core.now = EPOCH + 10

    assert [] == core.wake()
    assert core.next_wakeup() > core.now
    assert [] == core.wake()
    assert [ResolveDomain("one.test")] == core.tell(AgentResumed())


def test_due_mail_does_not_wake_a_core_without_slots():
    """The end of a transaction does."""
    core = Core(scheduler={"max_inflight": 1})
    core.submit("one.test")
    core.tell(restored(2, 5.0))
    core.resolve("one.test", (10, A))
    core.ready(1)
    core.now = EPOCH + 5
    assert core.next_wakeup() is None

    assert [(ev(2),)] == [s.evpids for s in only(StartTransaction, core.done(1))]


def test_gauges_and_counters_have_names_that_everybody_knows():
    """Each is in `mta.core.metrics`, and of the kind that it says."""
    engine = Core().engine
    assert {Kind.GAUGE} == {METRICS[name].kind for name in engine.gauges()}
    assert {Kind.COUNTER} == {METRICS[name].kind for name in engine.counters()}
    assert {0} == {*engine.gauges().values(), *engine.counters().values()}


def test_gauges_say_what_is_there():
    """Two destinations: one with a transaction and two that wait, one whose host is at rest."""
    core = Core(
        concurrency=ConcurrencySettings(policy="fixed", limit=1),
        mta={"task_high_water": 1, "task_low_water": 0, "task_release": 1},
    )
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.ready(1)
    for _ in range(3):
        core.submit("one.test")
    core.submit("two.test")
    core.resolve("two.test", (10, "192.0.2.2"))
    core.failed(2)

    gauges = {name: value for name, value in core.engine.gauges().items() if value}

    assert {
        "scheduler.envelope": 5,
        "scheduler.envelope.pending": 1,
        "scheduler.envelope.inflight": 2,
        "scheduler.ramqueue.hold": 2,
        "scheduler.ramqueue.holdq": 1,
        "mta.connector": 1,
        "mta.domain": 2,
        "mta.envelope": 2,
        "mta.host": 1,
        "mta.relay": 2,
        "mta.route": 2,
        "mta.route.disabled": 1,
        "mta.session": 1,
        "mta.source": 1,
        "mta.task": 1,
        "mta.task.running": 1,
    } == gauges
    assert {"mta.route", "mta.route.disabled"} == gauges.keys() - set(DRAINING)


def test_instructions_come_in_the_order_of_their_causes():
    """What became of the last transaction comes before the next one begins."""
    core = Core(concurrency=ConcurrencySettings(policy="fixed", limit=1))
    core.submit("one.test", "one.test")
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.ready(1)

    out = core.done(1, Outcome.OK, Outcome.TEMPFAIL)

    # The deferred one follows at once, because its destination works.
    assert [RemoveEnvelope, DeferEnvelope, StartTransaction] == [type(i) for i in out]
