"""The cache of fresh messages: bounded, oldest out first, empty when all were tried."""

from hypothesis import given
from hypothesis import strategies as st

from mta.core.envelopes.base import Recipient, Transaction
from mta.core.ids import EvpId, MsgId, evpid
from mta.recent import RecentMessage, RecentMessages


def message(recipients: int = 1, size: int = 10) -> RecentMessage:
    return RecentMessage(
        Transaction("a@one.test", size),
        tuple(Recipient(f"b{n}@two.test", "two.test") for n in range(recipients)),
        b"x" * size,
        1000.0,
    )


def test_a_message_leaves_with_the_first_try_of_its_last_envelope():
    """What was tried is read back from the queue if it is ever needed again."""
    recent = RecentMessages(envelopes_max=10, bytes_max=100)
    recent.add(MsgId(1), message(recipients=2))

    recent.tried(evpid(MsgId(1), 1))

    assert (1, 2, 10) == (len(recent), recent.envelopes, recent.bytes)
    found = recent.mta_envelope(evpid(MsgId(1), 2))
    assert found is not None
    assert ("a@one.test", "b1@two.test", 1000.0) == (found.sender, found.rcpt, found.created_at)

    recent.tried(evpid(MsgId(1), 2))

    assert (0, 0, 0) == (len(recent), recent.envelopes, recent.bytes)
    assert recent.get(MsgId(1)) is None
    assert recent.mta_envelope(evpid(MsgId(1), 2)) is None


def test_the_oldest_makes_room():
    """By envelopes and by bytes."""
    recent = RecentMessages(envelopes_max=3, bytes_max=100)
    for number in (1, 2, 3):
        recent.add(MsgId(number), message())
    recent.add(MsgId(4), message(recipients=2))
    assert [False, False, True, True] == [recent.get(MsgId(n)) is not None for n in (1, 2, 3, 4)]
    recent.add(MsgId(5), message(size=95))
    assert [None, None] == [recent.get(MsgId(n)) for n in (3, 4)]
    assert (1, 95) == (recent.envelopes, recent.bytes)


def test_what_is_larger_than_the_cache_is_not_kept():
    """It does not push everything else out on its way."""
    recent = RecentMessages(envelopes_max=3, bytes_max=100)
    recent.add(MsgId(1), message())
    recent.add(MsgId(2), message(size=101))
    recent.add(MsgId(3), message(recipients=4))
    assert recent.get(MsgId(1)) is not None
    assert 1 == len(recent)


def test_a_cache_of_nothing():
    """It keeps nothing, and takes whatever is said of it."""
    recent = RecentMessages(envelopes_max=0, bytes_max=0)
    recent.add(MsgId(1), message())
    recent.tried(evpid(MsgId(1), 1))
    assert (0, 0, 0) == (len(recent), recent.envelopes, recent.bytes)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 5), st.integers(0, 60)),
            st.tuples(st.just("tried"), st.integers(1, 20), st.integers(1, 5)),
        ),
        max_size=60,
    )
)
def test_it_never_holds_more_than_it_may_and_counts_what_it_has(steps):
    """Whatever is added and tried, in any order, also what was never there."""
    recent = RecentMessages(envelopes_max=8, bytes_max=100)
    next_id = 0
    for what, first, second in steps:
        if what == "add":
            next_id += 1
            recent.add(MsgId(next_id), message(recipients=first, size=second))
        else:
            recent.tried(EvpId(evpid(MsgId(first), second)))
        assert 0 <= recent.envelopes <= 8
        assert 0 <= recent.bytes <= 100
        kept = [found for n in range(1, next_id + 1) if (found := recent.get(MsgId(n)))]
        assert len(kept) == len(recent)
        assert sum(len(m.recipients) for m in kept) == recent.envelopes
        assert sum(len(m.body) for m in kept) == recent.bytes


def test_short_of_memory_nothing_is_kept():
    """What was kept is let go at once, what comes is not kept, and late tries of what was are no news."""
    recent = RecentMessages(envelopes_max=10, bytes_max=100)
    recent.add(MsgId(1), message(recipients=2))
    recent.clear()
    recent.closed = True
    recent.add(MsgId(2), message())
    recent.tried(evpid(MsgId(1), 1))
    assert (0, 0, 0) == (len(recent), recent.envelopes, recent.bytes)
    recent.closed = False
    recent.add(MsgId(3), message())
    assert 1 == len(recent)
