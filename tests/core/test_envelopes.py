"""All representations behave alike; only what they remember differs."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mta.core.envelopes import REPRESENTATIONS, make_store
from mta.core.envelopes.base import (
    EnvelopeState,
    Flag,
    Recipient,
    Transaction,
    mta_envelope,
    to_tick,
)
from mta.core.ids import EvpId, MsgId, evpid

EPOCH = 1_700_000_000.0
BODY = b"Subject: x\r\n\r\nhello\r\n"
PLAIN = Transaction("a@one.test", 4096)
TO_TWO = Recipient("b@two.test", "two.test")


class Alike(RuleBasedStateMachine):
    """Whatever is done to the stores, they answer the same and stay consistent."""

    @initialize()
    def begin(self):
        self.stores = [make_store(name, epoch=EPOCH) for name in REPRESENTATIONS]
        self.held = [store.new_list(EnvelopeState.HELD) for store in self.stores]
        self.now = EPOCH
        self.number = 0
        self.states: dict[EvpId, EnvelopeState] = {}

    def each(self, evpid):
        return [(store, store.find(evpid)) for store in self.stores]

    def pick(self, data, state):
        return data.draw(st.sampled_from(sorted(e for e, s in self.states.items() if s is state)))

    def has(self, state):
        return state in self.states.values()

    @rule(
        domain=st.sampled_from(["one.test", "two.test", "three.test"]),
        recipient=st.integers(1, 3),
        ttl=st.sampled_from([60.0, 345_600.0]),
        flags=st.sampled_from([0, Flag.NO_BOUNCE]),
    )
    def add(self, domain, recipient, ttl, flags):
        self.number += 1
        identity = evpid(MsgId(self.number), recipient)
        self.states[identity] = EnvelopeState.IN_FLIGHT
        for store in self.stores:
            store.add(
                identity,
                Recipient(f"x@{domain}", domain),
                PLAIN,
                created_at=to_tick(self.now),
                expires_at=to_tick(self.now + ttl),
                flags=flags,
                body=BODY,
            )

    @precondition(lambda self: self.has(EnvelopeState.IN_FLIGHT))
    @rule(data=st.data(), delay=st.sampled_from([0.0, 1 / 64, 1.0, 3.9, 4.1, 400.0, 20_000.0]))
    def defer(self, data, delay):
        identity = self.pick(data, EnvelopeState.IN_FLIGHT)
        for store, handle in self.each(identity):
            store.defer(
                handle, due_at=to_tick(self.now + delay), attempts=store.attempts_of(handle) + 1
            )
        self.states[identity] = EnvelopeState.PENDING

    @precondition(lambda self: self.has(EnvelopeState.IN_FLIGHT))
    @rule(data=st.data())
    def discard(self, data):
        identity = self.pick(data, EnvelopeState.IN_FLIGHT)
        for store, handle in self.each(identity):
            store.discard(handle)
        del self.states[identity]

    @precondition(lambda self: self.has(EnvelopeState.IN_FLIGHT))
    @rule(data=st.data())
    def hold(self, data):
        identity = self.pick(data, EnvelopeState.IN_FLIGHT)
        for (_, handle), held in zip(self.each(identity), self.held, strict=True):
            held.append(handle)
        self.states[identity] = EnvelopeState.HELD

    @precondition(lambda self: self.has(EnvelopeState.HELD))
    @rule()
    def release_first(self):
        ids = {
            store.evpid_of(held.popleft())
            for store, held in zip(self.stores, self.held, strict=True)
        }
        assert len(ids) == 1
        self.states[ids.pop()] = EnvelopeState.IN_FLIGHT

    @precondition(lambda self: self.has(EnvelopeState.HELD))
    @rule(data=st.data())
    def withdraw(self, data):
        identity = self.pick(data, EnvelopeState.HELD)
        for (_, handle), held in zip(self.each(identity), self.held, strict=True):
            held.remove(handle)
        self.states[identity] = EnvelopeState.IN_FLIGHT

    @precondition(lambda self: self.has(EnvelopeState.PENDING))
    @rule(data=st.data())
    def unschedule(self, data):
        identity = self.pick(data, EnvelopeState.PENDING)
        for store, handle in self.each(identity):
            store.unschedule(handle)
        self.states[identity] = EnvelopeState.IN_FLIGHT

    @rule(step=st.sampled_from([0.0, 0.3, 1.0, 5.0, 500.0, 30_000.0]), most=st.integers(0, 5))
    def pop_due(self, step, most):
        self.now += step
        for _ in range(most):
            popped = [store.pop_due(self.now) for store in self.stores]
            ids = {
                None if handle is None else store.evpid_of(handle)
                for store, handle in zip(self.stores, popped, strict=True)
            }
            assert len(ids) == 1, ids
            identity = ids.pop()
            if identity is None:
                break
            self.states[identity] = EnvelopeState.IN_FLIGHT

    @precondition(lambda self: self.states)
    @rule(data=st.data(), flags=st.sampled_from([0, Flag.SUSPENDED, Flag.NO_BOUNCE]))
    def flag(self, data, flags):
        identity = data.draw(st.sampled_from(sorted(self.states)))
        for store, handle in self.each(identity):
            store.set_flags(handle, flags)
            assert store.flags_of(handle) == flags

    @invariant()
    def answers_are_the_same(self):
        if not hasattr(self, "stores"):
            return
        for identity, state in self.states.items():
            answers = {
                (
                    store.evpid_of(handle),
                    store.state_of(handle),
                    store.domain_of(handle),
                    store.created_at_of(handle),
                    store.expires_at_of(handle),
                    store.attempts_of(handle),
                    int(store.flags_of(handle)),
                    store.due_at_of(handle) if state is EnvelopeState.PENDING else None,
                )
                for store, handle in self.each(identity)
            }
            assert len(answers) == 1, answers
            assert answers.pop()[1] is state
        pending = [
            store.due_at_of(store.find(identity))
            for store in self.stores[:1]
            for identity, state in self.states.items()
            if state is EnvelopeState.PENDING
        ]
        for store, held in zip(self.stores, self.held, strict=True):
            store.validate()
            assert len(store) == len(self.states)
            assert {store.evpid_of(handle) for handle in store} == set(self.states)
            assert len(held) == sum(s is EnvelopeState.HELD for s in self.states.values())
            assert len(list(held)) == len(held)
            due = store.next_due()
            assert (due is None) == (not pending)
            assert due is None or due <= min(pending)


Alike.TestCase.settings = settings(stateful_step_count=60)
TestAlike = Alike.TestCase


@pytest.fixture(params=REPRESENTATIONS)
def store(request):
    return make_store(request.param, epoch=EPOCH)


def put(store, number=1, recipient=1, *, at=EPOCH, transaction=PLAIN, to=TO_TWO):
    return store.add(
        evpid(MsgId(number), recipient),
        to,
        transaction,
        created_at=at,
        expires_at=at + 60,
        body=BODY,
    )


def test_envelopes_due_together_come_by_id(store):
    """Ties are broken by evpid, whatever the order of arrival."""
    for number in (3, 1, 2):
        store.defer(put(store, number), due_at=EPOCH + 10, attempts=1)

    popped = [store.pop_due(EPOCH + 10) for _ in range(3)]

    assert [1, 2, 3] == [store.evpid_of(handle) >> 32 for handle in popped]


def test_an_envelope_deferred_to_the_tick_being_popped_is_in_order(store):
    """While a tick's envelopes are handed out, another one for the same tick takes its place."""
    for number in (2, 4):
        store.defer(put(store, number), due_at=EPOCH + 10, attempts=1)
    assert 2 == store.evpid_of(store.pop_due(EPOCH + 10)) >> 32

    store.defer(put(store, 3), due_at=EPOCH + 10, attempts=1)

    assert [3, 4] == [store.evpid_of(store.pop_due(EPOCH + 10)) >> 32 for _ in range(2)]


def test_nothing_is_due_before_its_time(store):
    """An envelope is due at its instant, not a tick before."""
    store.defer(put(store), due_at=EPOCH + 1, attempts=1)

    assert store.pop_due(EPOCH + 1 - 1 / 64) is None
    assert store.pop_due(EPOCH + 1) is not None


def test_a_message_names_its_envelopes_in_order(store):
    """of_message finds what is left of a message, and nothing of others."""
    for recipient in (3, 1):
        put(store, 7, recipient)
    put(store, 8)

    assert [1, 3] == [store.evpid_of(h) & 0xFFFFFFFF for h in store.of_message(MsgId(7))]
    assert [] == store.of_message(MsgId(9))


def test_what_each_representation_remembers():
    """Slim and fixed drop the agent's part on deferral; full keeps it; whole the body too; packed nothing."""
    transaction = PLAIN._replace(
        smtputf8=True, body_type="8BITMIME", ret="HDRS", envid="e1", helo="h", tls="TLSv1.3"
    )
    recipient = Recipient("b@two.test", "two.test", "NEVER", "rfc822;b@two.test")
    expected = mta_envelope(transaction, recipient, created_at=EPOCH)
    before, after, bodies = {}, {}, {}
    for name in REPRESENTATIONS:
        store = make_store(name, epoch=EPOCH)
        handle = put(store, transaction=transaction, to=recipient)
        before[name] = store.mta_envelope_of(handle)
        store.defer(handle, due_at=EPOCH + 10, attempts=1)
        store.note(handle, "451 4.7.1 later")
        after[name] = store.mta_envelope_of(handle)
        bodies[name] = store.body_of(MsgId(1))

    nothing = dict.fromkeys(REPRESENTATIONS)
    kept = dict.fromkeys(REPRESENTATIONS, expected)
    assert {**kept, "packed": None} == before
    assert {**nothing, "whole": expected, "full": expected} == after
    assert {**nothing, "whole": BODY} == bodies
    assert expected.options == (
        "BODY=8BITMIME",
        "SMTPUTF8",
        "RET=HDRS",
        "ENVID=e1",
        "RCPT:NOTIFY=NEVER",
        "RCPT:ORCPT=rfc822;b@two.test",
    )


def test_whole_keeps_the_body_until_the_last_recipient_is_gone():
    """The body is found through any envelope that is left."""
    store = make_store("whole", epoch=EPOCH)
    first, second = put(store, 1, 1), put(store, 1, 2)

    store.discard(first)
    assert BODY == store.body_of(MsgId(1))
    store.discard(second)
    assert store.body_of(MsgId(1)) is None


def test_bodies_go_when_memory_is_short(store):
    """What can be read again is let go of, as often as asked; the envelopes stay, and later messages keep theirs."""
    put(store, 1, 1), put(store, 1, 2)
    keeps = store.keeps_bodies
    assert (BODY if keeps else None) == store.body_of(MsgId(1))

    for _ in range(2):
        store.shrink()
        assert store.body_of(MsgId(1)) is None
    put(store, 2)
    assert (BODY if keeps else None) == store.body_of(MsgId(2))
    store.shrink()
    assert store.body_of(MsgId(2)) is None
    assert 3 == len(store)
    store.validate()


def test_an_agenda_full_of_leftovers_is_cleaned(store):
    """Taking many envelopes out of the agenda early leaves nothing behind, and the rest in order."""
    handles = [put(store, number) for number in range(1, 301)]
    for handle in handles:
        store.defer(handle, due_at=EPOCH + 10, attempts=1)
    for handle in handles[:200]:
        store.unschedule(handle)
    store.validate()

    assert 201 == store.evpid_of(store.pop_due(EPOCH + 10)) >> 32


def test_packed_survives_ids_that_collide():
    """Removing a row from the index keeps every other row findable, wherever it had moved."""
    store = make_store("packed", epoch=EPOCH)
    handles = {number: put(store, number) for number in range(1, 2001)}
    for number in range(1, 2001, 3):
        store.discard(handles.pop(number))
    for number in range(3000, 3300):
        handles[number] = put(store, number)
    store.validate()

    assert all(store.find(evpid(MsgId(n), 1)) == handle for n, handle in handles.items())
    assert store.find(evpid(MsgId(1), 1)) is None
