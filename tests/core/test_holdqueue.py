"""Back-pressure of one relay: 50, 30, 10, and first come, first served."""

from random import Random

import pytest

from mta.core.envelopes import REPRESENTATIONS, make_store
from mta.core.envelopes.base import EnvelopeState, Recipient, Transaction
from mta.core.holdqueue import HoldQueue
from mta.core.limits import MtaLimits
from tests.support.core import EPOCH, ev


@pytest.fixture(params=REPRESENTATIONS)
def store(request):
    return make_store(request.param, epoch=EPOCH)


def add(store, number):
    return store.add(
        ev(number),
        Recipient("b@two.test", "two.test"),
        Transaction("a@one.test", 1),
        created_at=EPOCH,
        expires_at=EPOCH + 60,
        body=b"",
    )


def hold_queue(store, *, held_max=1000):
    limits = MtaLimits()
    return HoldQueue(
        store.new_list(EnvelopeState.HELD),
        high_water=limits.task_high_water,
        low_water=limits.task_low_water,
        release=limits.task_release,
        held_max=held_max,
    )


def ids(store, handles):
    return [store.evpid_of(handle) >> 32 for handle in handles]


def test_the_fiftieth_transaction_is_the_last_to_be_taken(store):
    """With 49 waiting the next one is taken, with 50 it is held."""
    queue = hold_queue(store)
    assert not queue.must_hold(49)
    assert queue.must_hold(50)


def test_nobody_overtakes_those_who_are_held(store):
    """While one is held, later ones are held too, until low water has been reached."""
    queue = hold_queue(store)
    queue.hold(add(store, 1))

    assert queue.must_hold(31)
    assert not queue.must_hold(30)


def test_low_water_releases_ten_oldest_first(store):
    """At 31 waiting nothing is released, at 30 the ten that have been held longest."""
    queue = hold_queue(store)
    for number in range(1, 26):
        queue.hold(add(store, number))

    assert [] == queue.release(31)
    assert list(range(1, 11)) == ids(store, queue.release(30))
    assert list(range(11, 21)) == ids(store, queue.release(30))
    assert list(range(21, 26)) == ids(store, queue.release(30))
    assert [] == queue.release(0)


def test_a_failed_relay_gives_back_everything(store):
    """All held envelopes come back, in the order in which they were held."""
    queue = hold_queue(store)
    for number in (3, 1, 2):
        queue.hold(add(store, number))

    assert [3, 1, 2] == ids(store, queue.release_all())
    assert 0 == len(queue)


def test_the_last_place_is_the_last(store):
    """The thousandth envelope is held; then the queue is full."""
    queue = hold_queue(store)
    for number in range(1, 1000):
        queue.hold(add(store, number))
    assert not queue.is_full()

    queue.hold(add(store, 1000))

    assert queue.is_full()
    assert 1000 == len(queue)


def test_one_can_be_taken_out_of_the_middle(store):
    """The operator takes one out; the others keep their order."""
    queue = hold_queue(store)
    handles = [add(store, number) for number in range(1, 8)]
    for handle in handles:
        queue.hold(handle)
    taken = Random(1).choice(handles[1:-1])

    queue.withdraw(taken)

    assert store.state_of(taken) is EnvelopeState.IN_FLIGHT
    assert [h for h in handles if h != taken] == queue.release(0)
