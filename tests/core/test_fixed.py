"""`fixed` keeps what a C struct of January 2013 would, where it would, and only while it would."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.envelopes.base import (
    EnvelopeState,
    Recipient,
    Transaction,
    mda_envelope,
    mta_envelope,
)
from mta.core.envelopes.fixed import SIZE, FixedStore
from mta.core.ids import MsgId, SessionId, evpid

EPOCH = 1_700_000_000.0
IDENTITY = evpid(MsgId(7), 1)
PLAIN = Transaction("a@one.test", 4096, SessionId(9), "client.test", "192.0.2.1", "mx.test")
RELAYED = Recipient("b@two.test", "two.test")
LOCAL = Recipient(
    "info@here.test",
    "alice@",
    delivery="pipe:/bin/cat -",
    user="alice",
    tag="lists",
    dest="alice@here.test",
    rule="here",
)

texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "x" * 64, "x" * 65, "é" * 40, "a\0b", "\ud800", "y" * 2000]),
)
addresses = st.one_of(texts, st.builds("{}@{}".format, texts, texts))


def add(store, recipient=RELAYED, transaction=PLAIN):
    return store.add(
        IDENTITY, recipient, transaction, created_at=EPOCH, expires_at=EPOCH + 60, attempts=3
    )


def test_an_envelope_in_flight_is_one_buffer_of_the_size_of_the_struct():
    """Fields stand where the struct of January 2013 has them, counted in bytes from its start."""
    store = FixedStore()
    buffer = add(store, LOCAL, PLAIN._replace(auth_user="me")).buffer

    assert SIZE == 8584 == len(buffer)
    assert bytes(buffer[16:48]).rstrip(b"\0") == b"lists"
    assert int.from_bytes(buffer[56:64], "little") == IDENTITY
    assert buffer[64] == 1  # authenticated
    assert buffer[68:79] == b"client.test"
    assert buffer[132:139] == b"mx.test"
    assert buffer[2248:2257] == b"192.0.2.1"
    assert (buffer[2376:2378], buffer[2440:2449]) == (b"a\0", b"one.test\0")
    assert (buffer[2695:2700], buffer[2759:2769]) == (b"info\0", b"here.test\0")
    assert (buffer[3014:3020], buffer[3078:3088]) == (b"alice\0", b"here.test\0")
    assert buffer[3344] == 3
    assert buffer[3348:3353] == b"here\0"
    assert buffer[3604:3610] == b"alice\0"
    assert buffer[3860:3871] == b"/bin/cat -\0"
    assert buffer[8536] == 3


@given(sender=addresses, rcpt=addresses, orcpt=texts, envid=texts, size=st.integers(0, 2**40))
def test_what_goes_in_for_relaying_comes_out(sender, rcpt, orcpt, envid, size):
    """Whatever the strings are: what does not fit is kept aside, nothing is cut."""
    transaction = Transaction(sender, size, envid=envid, smtputf8=bool(size % 2))
    recipient = Recipient(rcpt, "two.test", orcpt=orcpt)
    store = FixedStore()

    assert store.mta_envelope_of(add(store, recipient, transaction)) == mta_envelope(
        transaction, recipient, created_at=EPOCH
    )


@given(
    sender=addresses,
    rcpt=addresses,
    dest=addresses,
    user=texts,
    tag=texts,
    rule=texts,
    word=st.sampled_from(["local", "file", "pipe", "other", ":"]),
    target=st.one_of(st.none(), texts),
)
def test_what_goes_in_for_local_delivery_comes_out(
    sender, rcpt, dest, user, tag, rule, word, target
):
    """The same for users, tags, rules, paths and commands of any length."""
    delivery = word if target is None else f"{word}:{target}"
    recipient = Recipient(rcpt, "x@", delivery=delivery, user=user, tag=tag, dest=dest, rule=rule)
    transaction = Transaction(sender, 1)
    store = FixedStore()

    handle = add(store, recipient, transaction)

    assert store.mda_envelope_of(handle) == mda_envelope(transaction, recipient, created_at=EPOCH)
    assert store.mta_envelope_of(handle) is None


@pytest.mark.parametrize("state", [EnvelopeState.SCHEDULED, EnvelopeState.HELD])
def test_an_envelope_that_no_agent_has_costs_no_buffer(state):
    """It is dropped with a list, and there again when an agent has the envelope: the queue knows the rest."""
    store = FixedStore()
    parked = store.new_list(state)
    handle = add(store, LOCAL, PLAIN._replace(sender="x" * 3000))

    parked.append(handle)
    store.validate()
    assert (handle.buffer, handle.aside) == (None, None)
    store.note(handle, "451 4.7.1 later")

    assert parked.popleft() is handle
    store.validate()
    assert len(handle.buffer) == SIZE
    assert int.from_bytes(handle.buffer[56:64], "little") == IDENTITY
    assert handle.buffer[8536] == 3
    assert store.mda_envelope_of(handle) is store.mta_envelope_of(handle) is None


def test_a_deferred_envelope_costs_no_buffer_until_it_is_due():
    """As with lists: also when it is taken out before its time."""
    store = FixedStore()
    handle = add(store)
    store.defer(handle, due_at=EPOCH + 10, attempts=4)
    assert handle.buffer is None

    assert store.pop_due(EPOCH + 9) is None
    assert store.pop_due(EPOCH + 10) is handle
    assert handle.buffer[8536] == 4
    store.defer(handle, due_at=EPOCH + 20, attempts=5)
    store.unschedule(handle)
    store.validate()
    assert handle.buffer[8536] == 5


def test_the_last_reply_is_in_errorline():
    """The only field that is cut: the log has all of it."""
    store = FixedStore()
    handle = add(store)
    store.note(handle, "451 4.7.1 later")
    assert handle.buffer[196:212] == b"451 4.7.1 later\0"
    store.note(handle, "é" * 2000)
    assert len(handle.buffer) == SIZE
    assert handle.buffer[196 + 2048] == 0
    assert store.mta_envelope_of(handle).sender == PLAIN.sender
