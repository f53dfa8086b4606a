"""What routes and relays remember."""

from mta.core.concurrency import ConcurrencySettings, make_concurrency
from mta.core.envelopes import make_store
from mta.core.envelopes.base import EnvelopeState
from mta.core.holdqueue import HoldQueue
from mta.core.ids import MsgId, SessionId
from mta.core.relay import Relay, Route, Session, Task
from mta.core.relayrules import RelayRules
from tests.support.core import EPOCH

PLAN = RelayRules().plan_of("one.test")


def fail(route, now):
    return route.fail(now, base_s=15.0, max_s=3600.0)


def test_rests_grow_with_the_square_of_the_penalty():
    """15, 60, 135, 240 seconds: OpenSMTPD's formula, of which it only ever reaches the first."""
    route = Route("", "192.0.2.1")

    assert [15.0, 60.0, 135.0, 240.0] == [fail(route, now) for now in (0, 15, 75, 210)]
    assert 210 + 240 == route.enabled_at


def test_no_rest_is_longer_than_an_hour():
    """The sixteenth failure would rest for 3,840 seconds."""
    route = Route("", "192.0.2.1")
    delays = [fail(route, 0) for _ in range(20)]

    assert 15.0 * 15 * 15 == delays[14]
    assert [3600.0] * 5 == delays[15:]


def test_one_success_is_enough():
    """After a success the next failure rests as short as the first."""
    route = Route("", "192.0.2.1")
    for _ in range(5):
        fail(route, 0)
    assert not route.validated

    route.succeed()

    assert route.validated
    assert route.enabled_at < 0
    assert 15.0 == fail(route, 0)


def test_a_relay_is_empty_when_nothing_needs_it():
    """Tasks, sessions, held envelopes and a look-up under way each keep a relay."""
    store = make_store("slim", epoch=EPOCH)
    held = HoldQueue(
        store.new_list(EnvelopeState.HELD), high_water=3, low_water=1, release=1, held_max=5
    )
    relay = Relay("one.test", held, make_concurrency(ConcurrencySettings()), PLAN)
    assert relay.is_empty()

    relay.asked.add("one.test")
    assert relay.resolving
    assert not relay.is_empty()
    relay.asked.clear()
    relay.tasks[MsgId(1)] = Task(MsgId(1))
    assert not relay.is_empty()
    relay.tasks.clear()
    relay.sessions.add(
        Session(SessionId(1), relay, Route("", "192.0.2.1"), relay.connectors[0], "mx")
    )
    assert not relay.is_empty()


def test_dead_means_until_an_instant():
    """At the instant itself the destination is alive again."""
    store = make_store("slim", epoch=EPOCH)
    held = HoldQueue(
        store.new_list(EnvelopeState.HELD), high_water=3, low_water=1, release=1, held_max=5
    )
    relay = Relay("one.test", held, make_concurrency(ConcurrencySettings()), PLAN)
    assert not relay.is_dead(0)

    relay.dead_until = 10.0

    assert relay.is_dead(9.999)
    assert not relay.is_dead(10.0)
