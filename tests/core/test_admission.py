"""What the door answers when it must say no."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core import admission
from mta.core.admission import (
    LOAD_SHEDDING,
    LOCAL_ERROR,
    MESSAGE_TOO_BIG,
    NO_MEMORY,
    NO_STORAGE,
    PAUSED,
    RELAYING_DENIED,
    SHORT_OF_MEMORY,
    SHUTTING_DOWN,
    TOO_MANY_CONNECTIONS,
    TOO_MANY_ERRORS,
    TOO_MANY_FROM_CLIENT,
    TOO_MANY_HOPS,
    TOO_MANY_MESSAGES,
    TOO_MANY_RECIPIENTS,
    TOO_MUCH_JUNK,
    Pressure,
    is_in,
    on_connect,
    on_error,
    on_junk,
    on_mail,
    on_message,
    on_recipient,
    parse_networks,
    room_for,
)
from mta.core.limits import QueueLimits, SmtpLimits
from mta.core.pressure import MemoryLevel
from mta.core.reply import Outcome, Reply

LIMITS = SmtpLimits(
    max_conn=10,
    max_conn_per_client=3,
    max_mails=5,
    max_rcpt=4,
    max_message_size=1000,
    max_errors=20,
    max_junk=100,
    max_hops=100,
    max_bytes_in_memory=5000,
)
QUEUE = QueueLimits(
    max_envelopes=100, max_bytes=10_000, min_free_bytes=2000, min_free_ratio=0.05, max_waiting=8
)
IDLE = Pressure(free_bytes=50_000, total_bytes=100_000)


@pytest.mark.parametrize(
    ("changes", "from_client", "reply"),
    [
        ({}, 0, None),
        ({"connections": 9}, 2, None),
        ({}, 3, TOO_MANY_FROM_CLIENT),
        ({"connections": 10}, 0, TOO_MANY_CONNECTIONS),
        ({"connections": 10}, 3, TOO_MANY_FROM_CLIENT),
        ({"paused": True}, 3, PAUSED),
        ({"draining": True, "paused": True}, 0, SHUTTING_DOWN),
        ({"healthy": False}, 0, None),
    ],
)
def test_connections(changes, from_client, reply):
    """At the limit the next one is told to come back; the queue's state matters at MAIL only."""
    assert reply == on_connect(IDLE._replace(**changes), from_client=from_client, limits=LIMITS)


@pytest.mark.parametrize(
    ("changes", "declared_size", "messages", "reply"),
    [
        ({}, 0, 0, None),
        ({}, 1000, 4, None),
        ({"paused": True}, 0, 0, None),
        ({"draining": True}, 0, 0, SHUTTING_DOWN),
        ({}, 0, 5, TOO_MANY_MESSAGES),
        ({}, 1001, 0, MESSAGE_TOO_BIG),
        ({"healthy": False}, 1001, 0, MESSAGE_TOO_BIG),
        ({"healthy": False}, 0, 0, NO_STORAGE),
    ],
)
def test_messages(changes, declared_size, messages, reply):
    """What the client can't mend by waiting is said first."""
    assert reply == on_mail(
        IDLE._replace(**changes),
        declared_size=declared_size,
        messages=messages,
        limits=LIMITS,
        queue=QUEUE,
    )


@pytest.mark.parametrize(
    ("changes", "size", "envelopes", "reply"),
    [
        ({}, 1000, 1, None),
        ({"healthy": False}, 0, 1, NO_STORAGE),
        ({"queued_envelopes": 99}, 0, 1, None),
        ({"queued_envelopes": 99}, 0, 2, NO_STORAGE),
        ({"queued_bytes": 9000}, 1000, 1, None),
        ({"queued_bytes": 9000}, 1001, 1, NO_STORAGE),
        ({"bytes_in_memory": 4000}, 1000, 1, None),
        ({"bytes_in_memory": 4000}, 1001, 1, NO_MEMORY),
        ({"waiting": 7}, 0, 1, None),
        ({"waiting": 8}, 0, 1, NO_MEMORY),
        ({"free_bytes": 6000}, 1000, 1, None),
        ({"free_bytes": 5999}, 1000, 1, NO_STORAGE),
        ({"free_bytes": 7000, "bytes_in_memory": 1000}, 1000, 1, None),
        ({"free_bytes": 6999, "bytes_in_memory": 1000}, 1000, 1, NO_STORAGE),
        ({"free_bytes": 3000, "total_bytes": 1000}, 1000, 1, None),
        ({"free_bytes": 2999, "total_bytes": 1000}, 1000, 1, NO_STORAGE),
    ],
)
def test_room(changes, size, envelopes, reply):
    """Each resource is used to the last bit and not beyond: the byte after it gets 452."""
    pressure = IDLE._replace(**changes)
    assert reply == room_for(pressure, size=size, envelopes=envelopes, limits=LIMITS, queue=QUEUE)


@pytest.mark.parametrize(
    ("queued", "recipients", "may_relay", "reply"),
    [
        (0, 0, True, None),
        (0, 3, True, None),
        (0, 4, True, TOO_MANY_RECIPIENTS),
        (0, 0, False, RELAYING_DENIED),
        (0, 4, False, RELAYING_DENIED),
        (97, 2, True, None),
        (97, 3, True, NO_STORAGE),
    ],
)
def test_recipients(queued, recipients, may_relay, reply):
    """A stranger learns nothing of our load; a friend is told which recipients to send later."""
    assert reply == on_recipient(
        IDLE._replace(queued_envelopes=queued),
        recipients=recipients,
        may_relay=may_relay,
        limits=LIMITS,
        queue=QUEUE,
    )


@pytest.mark.parametrize(
    ("changes", "size", "recipients", "received", "reply"),
    [
        ({}, 1000, 4, 99, None),
        ({}, 1001, 4, 99, MESSAGE_TOO_BIG),
        ({}, 1000, 4, 100, TOO_MANY_HOPS),
        ({"healthy": False}, 1000, 4, 100, TOO_MANY_HOPS),
        ({"healthy": False}, 1000, 4, 0, NO_STORAGE),
        ({"queued_envelopes": 97}, 1, 4, 0, NO_STORAGE),
    ],
)
def test_whole_messages(changes, size, recipients, received, reply):
    """A hundred Received fields are a loop (OpenSMTPD, Postfix); room is asked for again."""
    assert reply == on_message(
        IDLE._replace(**changes),
        size=size,
        recipients=recipients,
        received=received,
        limits=LIMITS,
        queue=QUEUE,
    )


def test_the_twentieth_error_is_the_last():
    """Postfix: at the hard limit the connection ends."""
    assert on_error(errors=19, limits=LIMITS) is None
    assert on_error(errors=20, limits=LIMITS) == TOO_MANY_ERRORS


def test_a_hundred_commands_without_mail_are_allowed():
    """Postfix counts from the one beyond the limit."""
    assert on_junk(junk=100, limits=LIMITS) is None
    assert on_junk(junk=101, limits=LIMITS) == TOO_MUCH_JUNK


REPLIES = {name: value for name, value in vars(admission).items() if isinstance(value, Reply)}


@pytest.mark.parametrize("name", sorted(REPLIES))
def test_every_reply_is_fit_to_be_sent(name):
    """Class of code and enhanced code agree; the text is ASCII, short, without a digit of our inside."""
    reply = REPLIES[name]
    assert str(reply.code)[0] == reply.enhanced[0]
    assert reply.text.isascii()
    assert reply.text.isprintable()
    assert len(str(reply)) <= 510
    assert not any(one.isdigit() or one in "/_[]" for one in reply.text)


def test_only_what_the_client_asked_for_is_refused_for_good():
    """A local fault or want of room is never a bounce."""
    permanent = {name for name, reply in REPLIES.items() if reply.outcome is Outcome.PERMFAIL}
    assert permanent == {"MESSAGE_TOO_BIG", "RELAYING_DENIED", "TOO_MANY_HOPS"}
    assert LOCAL_ERROR.outcome is Outcome.TEMPFAIL


pressures = st.builds(
    Pressure,
    connections=st.integers(0, 20),
    queued_envelopes=st.integers(0, 200),
    queued_bytes=st.integers(0, 20_000),
    waiting=st.integers(0, 16),
    bytes_in_memory=st.integers(0, 10_000),
    free_bytes=st.integers(0, 20_000),
    total_bytes=st.integers(1, 100_000),
    draining=st.booleans(),
    paused=st.booleans(),
    healthy=st.booleans(),
)


@given(pressure=pressures, size=st.integers(0, 1000), recipients=st.integers(1, 4))
def test_what_is_accepted_fits(pressure, size, recipients):
    """A message that is taken never takes the queue, the memory or the disk beyond a limit."""
    reply = on_message(
        pressure, size=size, recipients=recipients, received=0, limits=LIMITS, queue=QUEUE
    )
    if reply is None:
        assert pressure.healthy
        assert pressure.queued_envelopes + recipients <= QUEUE.max_envelopes
        assert pressure.queued_bytes + size <= QUEUE.max_bytes
        assert pressure.bytes_in_memory + size <= LIMITS.max_bytes_in_memory
        assert pressure.waiting < QUEUE.max_waiting
        left = pressure.free_bytes - pressure.bytes_in_memory - size
        assert left >= QUEUE.min_free_bytes
        assert left >= QUEUE.min_free_ratio * pressure.total_bytes
    else:
        assert reply.outcome is Outcome.TEMPFAIL


# Who may relay

NETWORKS = parse_networks(["127.0.0.0/8", "::1/128", "192.0.2.7"])


@pytest.mark.parametrize(
    ("peer", "inside"),
    [
        ("127.0.0.1", True),
        ("127.255.255.255", True),
        ("128.0.0.1", False),
        ("::1", True),
        ("::2", False),
        ("::ffff:127.0.0.1", True),
        ("::ffff:128.0.0.1", False),
        ("::1%lo", True),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("", False),
        ("localhost", False),
        ("127.1", False),
        ("0177.0.0.1", False),
        ("2130706433", False),
    ],
)
def test_a_client_is_known_by_its_address(peer, inside):
    """Mapped addresses are what they map; spellings that only inet_aton takes are nobody."""
    assert is_in(peer, NETWORKS) == inside


def test_no_network_means_nobody():
    """An empty list lets nobody relay."""
    assert not is_in("127.0.0.1", parse_networks([]))


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "example.org", "127.1"])
def test_a_network_that_is_none_is_named(text):
    """The text of the error holds what was said."""
    with pytest.raises(ValueError, match=text):
        parse_networks([text])


class TestMemory:
    """KumoMTA's load shedding, in two steps."""

    @pytest.mark.parametrize("level", list(MemoryLevel))
    def test_messages_first_then_connections(self, level):
        """452 4.3.1 at MAIL from soft on, 421 4.3.2 instead of a greeting when it is hard."""
        pressure = IDLE._replace(memory=level)
        connect = on_connect(pressure, from_client=0, limits=LIMITS)
        assert connect == (LOAD_SHEDDING if level is MemoryLevel.HARD else None)
        mail = on_mail(pressure, declared_size=0, messages=0, limits=LIMITS, queue=QUEUE)
        assert mail == (SHORT_OF_MEMORY if level >= MemoryLevel.SOFT else None)

    def test_what_was_received_is_taken(self):
        """It is in memory, and on the disk it costs none."""
        pressure = IDLE._replace(memory=MemoryLevel.HARD)
        assert not on_message(
            pressure, size=1, recipients=1, received=0, limits=LIMITS, queue=QUEUE
        )

    def test_for_good_before_for_now(self):
        """A message that will never be taken is told so, and a door that is closed says why."""
        pressure = IDLE._replace(memory=MemoryLevel.HARD)
        mail = on_mail(pressure, declared_size=1001, messages=0, limits=LIMITS, queue=QUEUE)
        assert mail == MESSAGE_TOO_BIG
        paused = on_connect(pressure._replace(paused=True), from_client=0, limits=LIMITS)
        assert paused == PAUSED
