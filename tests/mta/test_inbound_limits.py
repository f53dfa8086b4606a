"""Every limit of the door is reached, and what it says then."""

import asyncio
from typing import cast

import pytest

from mta.core.limits import SmtpLimits
from mta.inbound import Inbound
from mta.inbound_data import DRAIN_MAX
from tests.support.door import FakeDoor
from tests.support.wire import Client, ManualLoop, MemoryWire


async def test_recipients_have_a_limit():
    """RFC 5321 4.5.3.1.10: 452 for the rest; the earlier ones stay, and it is no error of the client."""
    door = FakeDoor(max_rcpt=3, max_errors=5)
    client = Client(door)
    client.say("EHLO c.test", "MAIL FROM:<a@b>")
    answers = [client.say(f"RCPT TO:<r{number}@d>")[:9] for number in range(20)]
    assert answers == ["250 2.1.5"] * 3 + ["452 4.5.3"] * 17
    assert client.say("RCPT TO:<r1@d>").startswith("250 ")  # an old acquaintance needs no room
    client.say("DATA")
    client.send(".\r\n")
    assert ["r0@d", "r1@d", "r2@d"] == [rcpt.address for rcpt in door.accepted[0].recipients]


async def test_too_many_recipients_too_many_are_errors():
    """Postfix smtpd_recipient_overshoot_limit: new or given before, a thousand over the limit is enough."""
    for address in ("RCPT TO:<same@d>", "RCPT TO:<r{}@d>"):
        client = Client(FakeDoor(max_rcpt=3))
        client.say("EHLO c.test", "MAIL FROM:<a@b>")
        count = 0
        while client.is_open:
            client.say(address.format(count))
            count += 1
        assert count == 1023


async def test_messages_per_connection_have_a_limit():
    """Then 421, and the client may come back on another connection."""
    door = FakeDoor(max_mails=2)
    client = Client(door)
    for _ in range(2):
        client.ready()
        client.send(".\r\n")
    assert client.say("MAIL FROM:<a@b>").startswith("421 4.7.0 ")
    assert not client.is_open
    assert len(door.accepted) == 2


async def test_errors_have_a_limit():
    """The twentieth is answered, and the session ends; a message sets the count back."""
    door = FakeDoor(max_errors=20)
    client = Client(door)
    for _ in range(19):
        assert client.say("XYZZY") == "500 5.5.1 Command unrecognized\r\n"
    client.ready()
    client.send(".\r\n")
    for _ in range(19):
        client.say("XYZZY")
    answer = client.say("XYZZY")
    assert ["500", "421"] == [line[:3] for line in answer.splitlines()]
    assert not client.is_open
    client.wire.lose(None)
    assert door.lines[-1].endswith("reason=errors")


async def test_refused_messages_are_errors():
    """A client that sends nothing but bad messages is sent away as well."""
    client = Client(FakeDoor(max_errors=2))
    for code in ("550", "550"):
        answer = client.ready().send("a\nb\r\n.\r\n")
        assert answer.startswith(code)
    assert answer.splitlines()[1].startswith("421 4.7.0 ")
    assert not client.is_open


async def test_errors_in_one_group_stop_at_the_limit():
    """A flood of bad commands in one segment is not obeyed to its end."""
    door = FakeDoor(max_errors=20)
    client = Client(door)
    client.say("EHLO c.test")
    answer = client.send("XYZZY\r\n" * 10_000)
    assert len(answer.splitlines()) == 21


@pytest.mark.parametrize("junk", ["NOOP", "RSET", "VRFY x", "HELP", "EHLO c.test", "HELO c.test"])
async def test_commands_without_mail_have_a_limit(junk):
    """Postfix smtpd_junk_command_limit; a message sets the count back."""
    door = FakeDoor(max_junk=10)
    client = Client(door)
    client.say("EHLO c.test")
    for _ in range(10):
        assert client.say(junk)[0] == "2"
    assert client.say("MAIL FROM:<a@b>")[:3] == "250"
    client.say("RCPT TO:<c@d>", "DATA")
    client.send(".\r\n")
    for _ in range(10):
        assert client.say(junk)[0] == "2"
    assert client.say(junk).startswith("421 4.7.0 ")
    assert not client.is_open


@pytest.mark.parametrize("piece", [1 << 20, 100, 1])
@pytest.mark.parametrize(
    ("size", "taken"), [(512, True), (2047, True), (2048, False), (5000, False)]
)
async def test_command_lines_have_a_limit(size, taken, piece):
    """With or without an end, in whatever pieces: 500, and the session is over."""
    client = Client(FakeDoor(max_line=2048))
    data = b"NOOP " + b"x" * (size - 5) + b"\r\n"
    answer = ""
    for at in range(0, len(data), piece):
        answer += client.send(data[at : at + piece])
    assert answer.startswith("250 " if taken else "500 5.5.2 Line too long\r\n")
    assert taken == client.is_open


async def test_a_command_line_without_end_is_not_kept():
    """10 MiB without a line end: what is kept is not more than the limit."""
    client = Client(FakeDoor(max_line=2048))
    for _ in range(2048):
        client.send(b"x")
    assert client.is_open
    assert client.send(b"x").startswith("500 5.5.2 ")
    assert client.session._input == b""


@pytest.mark.parametrize(
    ("mail", "code"),
    [
        ("SIZE=1000", "250 2.1.0"),
        ("SIZE=1001", "552 5.3.4"),
        ("SIZE=9223372036854775808", "552 5.3.4"),
        ("SIZE=99999999999999999999", "552 5.3.4"),
        ("SIZE=0", "250 2.1.0"),
        ("SIZE=-1", "501 5.5.4"),
        ("SIZE", "501 5.5.4"),
    ],
)
async def test_a_declared_size_is_believed_when_it_is_too_big(mail, code):
    """RFC 1870 6.1."""
    client = Client(FakeDoor(max_message_size=1000))
    client.say("EHLO c.test")
    assert code == client.say(f"MAIL FROM:<a@b> {mail}")[:9]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"x" * 998 + b"\r\n", "250 2.0.0"),
        (b"x" * 999 + b"\r\n", "552 5.3.4"),
        (b"x" * 50_000 + b"\r\n", "552 5.3.4"),
        (b"." + b"x" * 997 + b"\r\n" + b"y" * 10 + b"\r\n", "552 5.3.4"),
        (b"y" * 901 + b"\r\n", "552 5.6.0"),
        (b"a\nb\r\n", "550 5.6.11"),
        (b"a\rb\r\n", "550 5.6.11"),
    ],
)
async def test_a_message_that_breaks_a_limit_is_read_to_its_end(body, code):
    """The client gets one answer after its dot, nothing is kept, and it may go on."""
    door = FakeDoor(max_message_size=1000, max_text_line=900 if b"y" * 901 in body else 60_000)
    client = Client(door).ready()
    assert client.send(body) == ""
    assert (door.reserved == 0) == (code[0] == "5")
    assert client.send(".\r\nNOOP\r\n").startswith(code)
    assert (len(door.accepted) == 1) == (code[0] == "2")
    assert door.reserved == 0
    assert client.say("MAIL FROM:<a@b>").startswith("250 ")


async def test_a_refused_message_without_end_is_not_read_for_ever():
    """Beyond the allowance the client hears why and is sent away."""
    door = FakeDoor(max_message_size=1000)
    client = Client(door).ready()
    answer, sent = "", 0
    while not answer:
        answer = client.send(b"x" * 65_536)
        sent += 65_536
    assert answer == "552 5.3.4 Message too big\r\n"
    assert not client.is_open
    assert DRAIN_MAX < sent < DRAIN_MAX + 4 * 65_536
    assert door.reserved == 0


async def test_all_messages_together_have_a_budget():
    """Who comes when it is spent gets a 452; who was first is not disturbed; then there is room again."""
    door = FakeDoor(max_bytes_in_memory=10_000)
    first, second = Client(door).ready(), Client(door).ready()
    first.send(b"x" * 7_000 + b"\r\n")
    second.send(b"x" * 4_000 + b"\r\n")
    assert door.reserved == 7_002
    assert second.send(b"y\r\n.\r\n").startswith("452 4.3.1 ")
    assert second.session.errors == 0
    assert first.send(b".\r\n").startswith("250 ")
    assert door.reserved == 0
    second.ready()
    assert second.send(b"x" * 9_000 + b"\r\n.\r\n").startswith("250 ")
    assert door.reserved_peak <= 10_000


async def test_loops_are_cut():
    """RFC 5321 6.3: a message with 100 Received fields goes no further."""
    for hops, code in ((99, "250 2.0.0"), (100, "554 5.4.6")):
        client = Client(FakeDoor()).ready()
        assert code == client.send("Received: x\r\n" * hops + "\r\n.\r\n")[:9]


async def test_connections_have_limits():
    """One client's, then everybody's; each 421 is closed and not counted, and room is found again."""
    door = FakeDoor(max_conn=3, max_conn_per_client=2)
    clients = [Client(door, peer=peer) for peer in ("127.0.0.1", "127.0.0.1", "127.0.0.2")]
    assert all(client.greeting.startswith("220 ") for client in clients)
    refused = [Client(door, peer=peer) for peer in ("127.0.0.1", "127.0.0.3")]
    assert ["421 4.7.0", "421 4.3.2"] == [client.greeting[:9] for client in refused]
    for client in refused:
        assert not client.is_open
        client.wire.lose(None)
    assert door.connections == {"127.0.0.1": 2, "127.0.0.2": 1}
    assert sum("smtp refused address=" in line for line in door.lines) == 2
    clients[0].say("QUIT")
    assert Client(door, peer="127.0.0.3").greeting.startswith("220 ")


async def test_an_idle_client_is_sent_away():
    """300 s after its last command, not after its last byte."""
    door = FakeDoor(timeout_s=300.0)
    client = Client(door)
    client.clock.advance(200.0)
    client.say("EHLO c.test")
    client.clock.advance(299.0)
    assert client.is_open
    client.clock.advance(2.0)
    assert client.take() == "421 4.4.2 Timeout, closing connection\r\n"
    assert not client.is_open
    client.clock.advance(1.0)
    assert client.wire.lost
    assert door.lines[-1].endswith("smtp disconnected reason=timeout")
    assert client.clock.pending() == 0


async def test_a_command_letter_by_letter_is_idle():
    """A byte every 20 s doesn't keep a connection open."""
    client = Client(FakeDoor(timeout_s=300.0))
    for _ in range(15):
        client.send(b"x")
        client.clock.advance(20.0)
    assert not client.is_open


async def test_a_message_piece_by_piece_is_not_idle_but_ends_with_the_session():
    """Slow is allowed for as long as a session may last."""
    door = FakeDoor(timeout_s=300.0, max_session_s=3600.0)
    client = Client(door).ready()
    for _ in range(14):
        client.clock.advance(250.0)
        assert client.is_open
        client.send(b"x")
    client.clock.advance(250.0)
    assert client.take() == "421 4.4.2 Connection was open too long, open another\r\n"
    client.clock.advance(2.0)
    assert client.wire.lost
    assert door.reserved == 0
    assert door.accepted == []


async def test_noop_for_ever_ends():
    """NOOP every 299 s: the junk limit or the lifetime ends it, whichever is first."""
    client = Client(FakeDoor(max_session_s=3600.0))
    count = 0
    while client.is_open:
        client.say("NOOP")
        client.clock.advance(299.0)
        count += 1
    assert count == 13


async def test_one_timer_per_session():
    """However many commands: the timer is set again when it fires, not for every line."""
    client = Client(FakeDoor())
    for _ in range(50):
        client.say("NOOP")
    assert client.clock.pending() == 1
    assert len(client.clock.timers) == 1


async def test_a_client_that_does_not_read_is_not_obeyed():
    """While its replies can't be sent, one read's worth of input waits, and no more is read."""
    door = FakeDoor()
    client = Client(door)
    client.say("EHLO c.test")
    client.wire.stuck = True
    assert client.send("NOOP\r\n") == "250 2.0.0 Ok\r\n"
    assert client.send("RSET\r\n" * 3) == ""
    assert not client.wire.reading
    client.wire.stuck = False
    client.session.resume_writing()
    assert client.take() == "250 2.0.0 Ok\r\n" * 3
    assert client.wire.reading


async def test_a_stuck_client_may_fill_more_than_one_read():
    """Data that was under way when reading stopped is kept too; a client that is gone isn't obeyed."""
    client = Client(FakeDoor())
    client.say("EHLO c.test")
    client.wire.stuck = True
    client.say("NOOP")
    client.session.data_received(b"NOOP\r\n")
    client.session.data_received(b"QUIT\r\n")
    client.wire.stuck = False
    client.session.resume_writing()
    assert client.take() == "250 2.0.0 Ok\r\n221 2.0.0 Bye\r\n"
    client.session.resume_writing()
    assert client.take() == ""


async def test_a_stuck_client_is_cut_off():
    """The idle timer says why, and the linger timer closes what can't be written."""
    client = Client(FakeDoor(timeout_s=300.0))
    client.wire.stuck = True
    client.say("EHLO c.test")
    client.clock.advance(301.0)
    assert client.session.phase.value == "closing"
    client.clock.advance(1.0)
    assert client.wire.lost


async def test_draining_waits_for_messages_and_for_nothing_else():
    """Idle sessions end at once with 421; one in a message ends after its answer."""
    door = FakeDoor()
    door.hold = True
    idle, in_command, in_message, in_commit = (Client(door) for _ in range(4))
    in_command.say("EHLO c.test", "MAIL FROM:<a@b>")
    in_message.ready().send("x")
    in_commit.ready().send("x\r\n.\r\n")
    for client in (idle, in_command, in_message, in_commit):
        client.session.drain()
        client.session.drain()
    assert ["421 4.3.2", "421 4.3.2", "", ""] == [
        client.take()[:9] for client in (idle, in_command, in_message, in_commit)
    ]
    door.commit()
    await asyncio.sleep(0)
    assert ["250", "421"] == [line[:3] for line in in_commit.take().splitlines()]
    door.hold = False
    answer = in_message.send("\r\n.\r\nMAIL FROM:<a@b>\r\n")
    assert ["250", "421"] == [line[:3] for line in answer.splitlines()]
    for client in (idle, in_command, in_message, in_commit):
        assert not client.is_open
        client.wire.lose(None)
    assert len(door.accepted) == 2
    assert door.connections == {"127.0.0.1": 0}


async def test_nothing_is_read_ahead_when_memory_is_short():
    """While a message is made durable its client's next one stays in the kernel; afterwards all is as before."""
    door = FakeDoor()
    door.hold = True
    client = Client(door).ready()
    client.send("x\r\n.\r\n")
    assert client.wire.reading
    door.commit()
    await asyncio.sleep(0)
    assert client.take().startswith("250 ")

    door.reads_ahead = False
    client.say("MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA")
    client.send("x\r\n.\r\n")
    assert not client.wire.reading
    door.commit()
    await asyncio.sleep(0)
    assert client.take().startswith("250 ")
    assert client.wire.reading


class TestOtherLimits:
    """Limits that shrink while a session is open: stress."""

    async def test_an_idle_client_goes_at_once(self):
        """Who has been silent for longer than the new limit has used it up."""
        door = FakeDoor()
        client = Client(door)
        client.clock.advance(20)
        client.session.bind(SmtpLimits(timeout_s=10.0))
        client.clock.advance(0)
        assert client.take().startswith("421 4.4.2 Timeout")

    async def test_a_client_that_works_has_the_new_time(self):
        """From its last command on; and the old one again when stress ends."""
        client = Client(FakeDoor())
        client.clock.advance(20)
        client.say("EHLO c.test")
        client.session.bind(SmtpLimits(timeout_s=10.0))
        client.clock.advance(9.9)
        assert client.is_open
        client.session.bind(SmtpLimits())
        client.clock.advance(200)
        assert client.is_open
        client.session.bind(SmtpLimits(timeout_s=10.0))
        client.clock.advance(0)
        assert not client.is_open

    async def test_one_error_is_enough(self):
        """smtpd_hard_error_limit 1: what a session has done before is forgiven, the next is not."""
        client = Client(FakeDoor())
        client.say("EHLO c.test")
        client.session.bind(SmtpLimits(max_errors=1))
        answer = client.say("XYZZY")
        assert ["500", "421"] == [line[:3] for line in answer.splitlines()]

    async def test_the_answer_to_a_message_is_waited_for(self):
        """A slow disk is not the client's fault: its timeout stays, or it would send again what we have."""
        door = FakeDoor()
        door.hold = True
        client = Client(door).ready()
        client.send("x\r\n.\r\n")
        client.session.bind(SmtpLimits(timeout_s=10.0))
        client.clock.advance(250)
        door.commit()
        await asyncio.sleep(0)
        assert client.take().startswith("250 2.0.0 ")
        client.clock.advance(299)
        assert not client.is_open, "it has the client's time again"

    async def test_who_is_gone_is_not_armed_again(self):
        """No timer of a session that has ended or is about to."""
        door = FakeDoor()
        client = Client(door)
        client.say("QUIT")
        client.session.bind(SmtpLimits(timeout_s=0.1))
        assert client.clock.pending() == 0

    async def test_a_session_made_before_stress_obeys_it(self):
        """Between its making and its first byte limits may change."""
        door = FakeDoor()
        session = Inbound(door, loop=cast("asyncio.AbstractEventLoop", ManualLoop()))
        door.limits = SmtpLimits(timeout_s=10.0)
        session.connection_made(MemoryWire(session, "127.0.0.1"))
        assert 10.0 == session.limits.timeout_s

    async def test_a_message_that_trickles_in_is_idle(self):
        """Postfix smtpd_min_data_rate: a byte a second buys 2 ms a second, and 10 s are soon gone."""
        client = Client(FakeDoor(min_data_rate=500, timeout_s=10.0)).ready()
        seconds = 0
        while client.is_open:
            client.send("x")
            client.clock.advance(1)
            seconds += 1
        assert seconds == 11
        assert client.take().startswith("421 4.4.2 Timeout")

    async def test_a_message_that_comes_fast_enough_is_taken(self):
        """500 bytes a second are enough, for as long as it takes; time that was saved is not kept."""
        door = FakeDoor(min_data_rate=500, timeout_s=10.0)
        client = Client(door).ready()
        for _ in range(100):
            client.send("x" * 498 + "\r\n")
            client.clock.advance(1)
        assert client.is_open
        client.clock.advance(9.5)
        assert not client.is_open
