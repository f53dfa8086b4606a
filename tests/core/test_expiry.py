"""What the operator has paused expires all the same."""

from mta.core.envelopes.base import EnvelopeState, Recipient, Transaction
from mta.core.expiry import EXPIRED_PER_CALL, PASS_S
from mta.core.instructions import BounceKind, SendBounce
from mta.core.reply import Outcome
from mta.core.stimuli import (
    Agent,
    AgentPaused,
    AgentResumed,
    EnvelopeRestored,
    MessageSubmitted,
    RemoveRequested,
    Selector,
    SuspendRequested,
)
from tests.support.core import BODY, EPOCH, Core, ev

A = "192.0.2.1"
TTL = {"envelope_ttl_s": 1000.0}
MTA, MDA = Agent.MTA, Agent.MDA


def expired(instructions):
    """Return the messages that expired."""
    bounces = [one for one in instructions if isinstance(one, SendBounce)]
    assert all(bounce.kind is BounceKind.EXPIRED for bounce in bounces)
    return [bounce.msgid for bounce in bounces]


def restored(message, expires_at):
    return EnvelopeRestored(
        ev(message),
        Recipient("b@one.test", "one.test"),
        Transaction("a@from.test", 9),
        EPOCH - 100,
        EPOCH + expires_at,
        0,
        EPOCH,
        0,
        BODY,
    )


def test_what_is_scheduled_expires_in_a_pause():
    """At its instant, not when the pause ends; what came later is later."""
    core = Core(scheduler=TTL)
    core.tell(AgentPaused())
    core.submit("one.test")
    core.until(500.0)
    core.submit("one.test")
    assert [] == expired(core.until(999.0))
    assert [1] == expired(core.until(1000.0))
    assert [2] == expired(core.until(1500.0))
    assert core.next_wakeup() == EPOCH + 2500.0
    core.tell(AgentResumed())
    assert {} == core.leaks()


def test_what_is_pending_or_waits_for_a_connection_expires_in_a_pause():
    """Also in the transactions of a relay, and behind them in its hold queue."""
    core = Core(
        scheduler=TTL, mta={"task_high_water": 1, "task_low_water": 0, "session_keepalive_s": 0.0}
    )
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.ready(1)
    core.done(1, Outcome.TEMPFAIL)
    for _ in range(3):
        core.submit("two.test")
    states = {core.engine.store.state_of(handle) for handle in core.engine.store}
    assert {EnvelopeState.PENDING, EnvelopeState.IN_FLIGHT, EnvelopeState.HELD} == states
    core.tell(AgentPaused())
    assert [1, 2, 3, 4] == expired(core.until(1000.0))
    assert 0 == len(core.engine.store)


def test_a_paused_destination_and_a_paused_user():
    """Theirs expires; what can go on goes on."""
    core = Core(scheduler=TTL)
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.tell(AgentPaused(MTA, "one.test"))
    core.closed(1)
    core.tell(AgentPaused(MDA, "kim"))
    core.mail("kim")
    core.mail("sam")
    core.delivered(ev(3))
    assert [1, 2] == expired(core.until(1000.0))
    assert {} == core.leaks()


def test_what_runs_or_is_suspended_does_not_expire():
    """The first has its own end, the second is the operator's."""
    core = Core(scheduler=TTL)
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.ready(1)
    core.submit("two.test")
    core.tell(SuspendRequested(Selector(ev(2))))
    core.tell(AgentPaused())
    assert [] == expired(core.until(5000.0))
    core.done(1)
    assert [ev(2)] == [core.engine.store.evpid_of(handle) for handle in core.engine.store]


def test_what_was_restored_may_be_the_first():
    """A pass is as early as it has to be, and once a minute at most."""
    core = Core(scheduler=TTL)
    core.tell(AgentPaused())
    core.wake()
    core.tell(restored(1, 10.0))
    core.tell(restored(2, 900.0))
    assert core.next_wakeup() == EPOCH + PASS_S
    assert [1] == expired(core.until(PASS_S))
    assert core.next_wakeup() == EPOCH + 900.0


def test_without_a_pause_there_are_no_passes():
    """Neither before it nor after."""
    core = Core(scheduler=TTL)
    assert core.next_wakeup() is None
    core.tell(AgentPaused())
    core.tell(AgentPaused(MDA))
    core.tell(AgentResumed(MDA))
    assert core.next_wakeup() is not None
    core.tell(AgentResumed())
    assert core.next_wakeup() is None
    # And a pause that is set and lifted in a hurry does not look each time.
    core.tell(AgentPaused())
    assert core.next_wakeup() >= EPOCH + PASS_S


def test_much_that_expires_together_expires_in_steps():
    """Nobody waits for a thousand times a thousand reports; the end of the pause ends it."""
    core = Core(scheduler=TTL, validating=False, representations=["packed"])
    core.tell(AgentPaused())
    count = EXPIRED_PER_CALL + 10
    for message in range(1, count + 1):
        core.tell(
            MessageSubmitted(
                message, Transaction("", 9), (Recipient("b@one.test", "one.test"),), BODY
            )
        )
    core.now = EPOCH + 700_000.0
    core.wake()
    assert 10 == len(core.engine.store)
    assert core.next_wakeup() == core.now
    core.wake()
    assert 0 == len(core.engine.store)


def test_what_is_gone_between_two_steps_is_gone():
    """The operator removes what was found to be too old."""
    core = Core(scheduler=TTL, validating=False, representations=["full"])
    core.tell(AgentPaused())
    for _ in range(EXPIRED_PER_CALL + 10):
        core.submit("one.test", sender="")
    core.now = EPOCH + 700_000.0
    core.wake()
    core.tell(RemoveRequested(Selector()))
    assert 0 == len(core.engine.store)
    assert core.engine.scheduler.recipients_max == 1
    core.wake()
    assert core.next_wakeup() > core.now


def test_an_end_of_the_pause_ends_the_steps():
    """What is left is taken or expires as ever."""
    core = Core(scheduler=TTL, validating=False, representations=["slim"])
    core.tell(AgentPaused())
    for _ in range(EXPIRED_PER_CALL + 10):
        core.submit("one.test", sender="")
    core.now = EPOCH + 700_000.0
    core.wake()
    core.tell(AgentResumed())
    assert not core.engine.expiry.active
    assert 0 == len(core.engine.store)


def test_what_comes_due_for_a_paused_agent_is_parked_in_steps():
    """The other agent's mail does not wait until all of it is looked at."""
    core = Core(validating=False, representations=["packed"])
    core.tell(AgentPaused(MDA))
    for message in range(1, EXPIRED_PER_CALL + 11):
        core.tell(
            restored(message, 1e6)._replace(
                recipient=Recipient("kim@here.test", "kim@", delivery="local", user="kim"),
                due_at=EPOCH + 5.0,
            )
        )
    core.now = EPOCH + 5.0
    core.wake()
    assert 10 == core.engine.scheduler.count_of(EnvelopeState.PENDING)
    core.wake()
    assert 0 == core.engine.scheduler.count_of(EnvelopeState.PENDING)
    assert EXPIRED_PER_CALL + 10 == core.engine.scheduler.count_of(EnvelopeState.SCHEDULED)
