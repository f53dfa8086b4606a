"""BDAT: messages in chunks, and that no octet of a chunk is ever a command."""

import asyncio
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.reply import Reply
from mta.inbound_door import Listener
from tests.support.door import FakeDoor
from tests.support.wire import Client

TEXT = b"Subject: x\r\n\r\nhello\r\n.\r\n..two\r\n"


def begun(door: FakeDoor, *recipients: str) -> Client:
    """Get as far as RCPT."""
    client = Client(door)
    client.say("EHLO client.test", "MAIL FROM:<a@src.test>")
    for recipient in recipients or ("b@dst.test",):
        client.say(f"RCPT TO:<{recipient}>")
    return client


def bdat(text: bytes, *, last: bool = False) -> bytes:
    return b"BDAT %d%s\r\n%s" % (len(text), b" LAST" if last else b"", text)


def codes(answer: str) -> list[str]:
    return [line[:3] for line in answer.splitlines()]


async def test_one_chunk_is_a_message():
    """Nothing is unstuffed, and a lone dot is no end."""
    door = FakeDoor()
    client = begun(door)
    assert client.send(bdat(TEXT, last=True)) == (
        "250 2.0.0 00000001 Message accepted for delivery\r\n"
    )
    [message] = door.accepted
    assert message.text == TEXT
    assert message.body.startswith(b"Received: from client.test (localhost [127.0.0.1])\r\n")
    assert message.transaction.size == len(message.body)
    assert door.reserved == 0
    assert client.session.errors == 0


async def test_chunks_are_pipelined():
    """A whole transaction in one segment, the next one behind it; one reply each."""
    door = FakeDoor()
    client = Client(door)
    client.say("EHLO client.test")
    answer = client.send(
        b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"
        + bdat(b"one\r")
        + bdat(b"\ntwo")
        + bdat(b"", last=True)
        + b"MAIL FROM:<e@f>\r\nRCPT TO:<g@h>\r\n"
        + bdat(b"three\r\n", last=True)
        + b"QUIT\r\n"
    )
    assert answer.splitlines()[2:5] == [
        "250 2.0.0 4 octets received",
        "250 2.0.0 4 octets received",
        "250 2.0.0 00000001 Message accepted for delivery",
    ]
    assert codes(answer) == ["250"] * 8 + ["221"]
    assert [b"one\r\ntwo\r\n", b"three\r\n"] == [message.text for message in door.accepted]


async def test_an_empty_message():
    """BDAT 0 LAST alone."""
    door = FakeDoor()
    client = begun(door)
    assert client.say("BDAT 0 LAST").startswith("250 2.0.0 00000001 ")
    assert door.accepted[0].text == b""


async def test_the_case_of_bdat_does_not_matter():
    """RFC 5321 2.4; and spaces are forgiven."""
    door = FakeDoor()
    client = begun(door)
    assert client.send(b"bdat  2  last \r\nx\n").startswith("550 5.6.11 ")
    client.say("MAIL FROM:<a@b>", "RCPT TO:<c@d>")
    assert client.send(b"bDaT 3 lAsT\r\nx\r\n").startswith("250 ")


SEQUENCES = {
    "no greeting": ([], "503"),
    "no mail": (["EHLO c.test"], "503"),
    "no recipient": (["EHLO c.test", "MAIL FROM:<a@b>"], "554"),
    "all recipients refused": (["EHLO c.test", "MAIL FROM:<a@b>", "RCPT TO:<c@>"], "554"),
    "after the last chunk": (
        ["EHLO c.test", "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "BDAT 0 LAST"],
        "503",
    ),
    "after the dot": (
        ["EHLO c.test", "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA", "."],
        "503",
    ),
    "after RSET": (
        ["EHLO c.test", "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "BDAT 0", "RSET"],
        "503",
    ),
    "after EHLO": (
        ["EHLO c.test", "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "BDAT 0", "EHLO c.test"],
        "503",
    ),
}
EVIL = b"\r\n.\r\nMAIL FROM:<evil@x>\r\nRCPT TO:<evil@y>\r\nBDAT 0 LAST\r\n"


@pytest.mark.parametrize("state", SEQUENCES)
@pytest.mark.parametrize("cut", [True, False])
async def test_octets_of_a_refused_chunk_are_no_commands(state, cut):
    """One refusal for a chunk out of sequence, and the command behind it is the next."""
    before, code = SEQUENCES[state]
    door = FakeDoor()
    client = Client(door)
    client.say(*before)
    accepted = len(door.accepted)
    group = bdat(EVIL)
    if not before:
        # Nobody was offered PIPELINING: what comes with the command would be out of step.
        assert client.send(group[:9]) == ""
        group = group[9:]
    pieces = [group[n : n + 1] for n in range(len(group))] if cut else [group]
    answers = "".join(client.send(piece) for piece in pieces)
    assert codes(answers) == [code], answers
    assert client.say("NOOP") == "250 2.0.0 Ok\r\n"
    assert client.say("RSET") == "250 2.0.0 Ok\r\n"
    assert len(door.accepted) == accepted


@pytest.mark.parametrize(
    "listener", [Listener("x", "required"), Listener("x", "none", "required", False)]
)
async def test_octets_are_no_commands_before_tls_or_a_login(listener):
    """530 comes when they are read."""
    door = FakeDoor()
    client = Client(door, listener=listener)
    client.say("EHLO c.test")
    answer = client.send(bdat(b"STARTTLS\r\nEHLO evil.test\r\n", last=True) + b"NOOP\r\n")
    assert [line[:9] for line in answer.splitlines()] == ["530 5.7.0", "250 2.0.0"]
    assert client.session.helo == "c.test"


@pytest.mark.parametrize("command", ["DATA", "MAIL FROM:<e@f>", "RCPT TO:<g@h>", "STARTTLS"])
async def test_between_chunks_only_chunks(command):
    """DATA, MAIL and RCPT are out of sequence; the chunks before are not lost."""
    door = FakeDoor()
    client = begun(door)
    client.send(bdat(b"one\r\n"))
    assert client.say(command)[:3] in ("503", "502")
    assert client.say("NOOP") == "250 2.0.0 Ok\r\n"
    assert client.send(bdat(b"two\r\n", last=True)).startswith("250 ")
    assert door.accepted[0].text == b"one\r\ntwo\r\n"
    assert ["b@dst.test"] == [rcpt.address for rcpt in door.accepted[0].recipients]


@pytest.mark.parametrize("end", ["RSET", "EHLO c.test", "HELO c.test"])
async def test_a_reset_forgets_the_chunks(end):
    """And gives their memory back."""
    door = FakeDoor()
    client = begun(door)
    client.send(bdat(b"one\r\n"))
    assert door.reserved == 5
    client.say(end)
    assert door.reserved == 0
    client.say("EHLO c.test", "MAIL FROM:<e@f>", "RCPT TO:<g@h>")
    client.send(bdat(b"two\r\n", last=True))
    [message] = door.accepted
    assert message.text == b"two\r\n"
    assert message.transaction.sender == "e@f"


@pytest.mark.parametrize(
    "command",
    [
        "BDAT",
        "BDAT ",
        "BDAT LAST",
        "BDAT -1",
        "BDAT +1",
        "BDAT 1x",
        "BDAT 0x10",
        "BDAT 1 2",
        "BDAT 5 FIRST",
        "BDAT 5 LAST LAST",
        "BDAT\t5",
        "BDAT 5\t LAST",
        "BDAT 999999999999999999999",
        "BDAT \u0665",
        "BDAT 5 LAST\x00",
        "BDATS 5",
    ],
)
async def test_a_size_that_cannot_be_read_ends_the_session(command):
    """Nobody knows how much of what follows is the chunk's."""
    door = FakeDoor()
    client = begun(door)
    assert (
        client.send(command.encode() + b"\r\n" + EVIL) == "501 5.5.4 Syntax: BDAT size [LAST]\r\n"
    )
    assert not client.is_open
    assert not door.accepted


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        (b"a\nb\r\n", "550 5.6.11"),
        (b"a\rb\r\n", "550 5.6.11"),
        (b"a\r\r\nb\r\n", "550 5.6.11"),
        (b"a\r", "550 5.6.11"),
        (b"\n", "550 5.6.11"),
        (b"x" * 1001 + b"\r\n", "552 5.6.0"),
        (b"x" * 1001, "552 5.6.0"),
        (b"Received: a\r\n" * 3, "554 5.4.6"),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 10_000])
async def test_the_same_messages_are_refused_as_after_data(text, reply, size):
    """Smuggling, lines, hops; whatever the chunks. The octets are read, the session goes on."""
    door = FakeDoor(max_text_line=1000, max_hops=3, max_errors=3000)
    client = begun(door)
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    group = b"".join(bdat(chunk) for chunk in chunks[:-1]) + bdat(chunks[-1], last=True)
    lines = client.send(group).splitlines()
    assert len(lines) == len(chunks)
    refused = next(line for line in lines if not line.startswith("250 "))
    assert refused.startswith(reply)
    # What was in the pipeline behind it belongs to no message.
    assert {"503"} >= {line[:3] for line in lines[lines.index(refused) + 1 :]}
    assert door.reserved == 0
    assert not door.accepted
    client.say("MAIL FROM:<a@b>", "RCPT TO:<c@d>")
    assert client.send(bdat(TEXT, last=True)).startswith("250 ")


async def test_a_chunk_that_is_too_large_is_swallowed():
    """552 when all of it was read; nothing of it was kept, and the session goes on."""
    door = FakeDoor(max_message_size=100_000)
    client = begun(door)
    client.send(b"BDAT 100001 LAST\r\n")
    for _ in range(10):
        assert client.send(b"x" * 10_000) == ""
    assert client.send(b"xNOOP\r\n") == "552 5.3.4 Message too big\r\n250 2.0.0 Ok\r\n"
    assert door.reserved_peak == 0


async def test_chunks_that_are_too_large_together():
    """The limit is the message's."""
    door = FakeDoor(max_message_size=100)
    client = begun(door)
    assert client.send(bdat(b"x" * 60)).startswith("250 ")
    assert client.send(bdat(b"x" * 41, last=True)) == "552 5.3.4 Message too big\r\n"
    assert door.reserved == 0
    client.say("MAIL FROM:<a@b>", "RCPT TO:<c@d>")
    assert client.send(bdat(b"x" * 60)).startswith("250 ")
    assert client.send(bdat(b"x" * 38 + b"\r\n", last=True)).startswith("250 ")
    assert door.accepted[0].text == b"x" * 98 + b"\r\n"


@pytest.mark.parametrize("before", [["RSET"], []])
async def test_a_chunk_without_end_ends_the_session(before):
    """After a message's worth and 1 MiB of what was refused, whether there was a transaction or not."""
    door = FakeDoor(max_message_size=1_000_000)
    client = begun(door)
    client.say(*before, "BDAT 99999999999")
    total = 0
    answer = ""
    while not answer:
        answer = client.send(b"x" * 65_536)
        total += 65_536
        assert total < 2_200_000
    assert codes(answer) == ["503" if before else "552"]
    assert not client.is_open
    assert door.reserved_peak == 0


async def test_chunks_are_counted():
    """More of them than limits.smtp.max_chunks are no message."""
    door = FakeDoor(max_chunks=3)
    client = begun(door)
    assert codes(client.send(bdat(b"x") * 3)) == ["250"] * 3
    assert client.send(bdat(b"x", last=True)) == "552 5.3.4 Message has too many chunks\r\n"
    client.say("MAIL FROM:<a@b>", "RCPT TO:<c@d>")
    assert codes(client.send(bdat(b"x") * 2 + bdat(b"\r\n", last=True))) == ["250"] * 3


async def test_empty_chunks_do_not_last():
    """They cost nothing but time, and are counted all the same."""
    door = FakeDoor(max_chunks=50, max_errors=5)
    client = begun(door)
    answer = codes(client.send(bdat(b"") * 100))
    assert answer == ["250"] * 50 + ["552"] + ["503"] * 4 + ["421"]
    assert not client.is_open


async def test_memory_is_reserved():
    """Over the budget a chunk is refused for now, and what it took is given back."""
    door = FakeDoor(max_message_size=100, max_bytes_in_memory=100)
    other = begun(door)
    other.send(bdat(b"x" * 50))
    client = begun(door)
    assert client.send(bdat(b"x" * 50)).startswith("250 ")
    assert client.send(bdat(b"x" * 50)).startswith("452 4.3.1 ")
    assert door.reserved == 50
    assert other.send(bdat(b"x" * 48 + b"\r\n", last=True)).startswith("250 ")
    assert door.reserved == 0


@pytest.mark.parametrize("point", ["next_msgid", "reserve", "message", "submit"])
async def test_a_fault_of_ours_is_a_4xx_and_keeps_the_step(point):
    """The octets are no commands then either."""
    door = FakeDoor()

    def fault(name: str) -> None:
        if name == point:
            raise OSError(28, "No space left on device", "/var/spool")

    client = begun(door)
    door.fault = fault
    answer = client.send(bdat(EVIL, last=True) + b"NOOP\r\n")
    assert answer.splitlines()[0].startswith("4")
    assert answer.splitlines()[1:] == ["250 2.0.0 Ok"]
    assert "spool" not in answer
    assert door.reserved == 0
    door.fault = None
    client.say("MAIL FROM:<a@b>", "RCPT TO:<c@d>")
    assert client.send(bdat(TEXT, last=True)).startswith("250 ")


async def test_a_client_that_leaves_in_a_chunk_leaves_nothing():
    """Short chunk, then close: no message, no memory."""
    door = FakeDoor()
    client = begun(door)
    client.send(b"BDAT 1000 LAST\r\nhello\r\n")
    assert door.reserved == 7
    client.shut()
    client.take()
    assert door.reserved == 0
    assert not door.accepted
    assert door.connections == {"127.0.0.1": 0}
    assert client.clock.pending() == 0


async def test_pieces_of_a_chunk_are_activity():
    """And silence in the middle of one is not."""
    client = begun(FakeDoor(timeout_s=300))
    client.say("BDAT 1000 LAST")
    for _ in range(3):
        client.clock.advance(299)
        assert client.send(b"x") == ""
    client.clock.advance(301)
    assert client.take().startswith("421 4.4.2 ")


async def test_a_chunk_that_trickles_in_is_idle():
    """With a least rate, octets buy the time that they may take."""
    client = begun(FakeDoor(min_data_rate=500, timeout_s=10))
    client.say("BDAT 1000 LAST")
    seconds = 0
    while client.is_open:
        assert client.send(b"x") == ""
        client.clock.advance(1)
        seconds += 1
    assert seconds == 11
    assert client.take().startswith("421 4.4.2 ")


async def test_the_commit_is_waited_for():
    """What is pipelined behind the last chunk is obeyed after the answer."""
    door = FakeDoor()
    door.hold = True
    client = begun(door)
    assert client.send(bdat(b"x\r\n", last=True) + b"NOOP\r\n") == ""
    door.commit()
    await asyncio.sleep(0)
    assert codes(client.take()) == ["250", "250"]
    client.say("MAIL FROM:<a@b>", "RCPT TO:<c@d>")
    assert client.send(bdat(b"x\r\n", last=True)) == ""
    door.commit(Reply(452, "4.3.1", "Full"))
    await asyncio.sleep(0)
    assert client.take() == "452 4.3.1 Full\r\n"


async def test_a_drain_lets_a_chunk_end():
    """Then the session is over, unless it was the last: that is answered first."""
    door = FakeDoor()
    client = begun(door)
    client.send(b"BDAT 5\r\nab")
    client.session.drain()
    assert client.is_open
    assert codes(client.send(b"cde")) == ["250", "421"]
    assert not client.is_open
    client = begun(door)
    client.send(b"BDAT 5 LAST\r\nab")
    client.session.drain()
    assert codes(client.send(b"cde")) == ["250", "421"]
    assert len(door.accepted) == 1


async def test_a_client_that_does_not_read_is_not_read_from():
    """Replies to chunks do not pile up."""
    door = FakeDoor()
    client = begun(door)
    client.wire.stuck = True
    assert client.send(bdat(b"x")).startswith("250 ")
    client.session.data_received(bdat(b"y")[:-1])
    assert not client.wire.reading
    assert door.reserved == 1
    client.wire.stuck = False
    client.session.resume_writing()
    assert client.wire.reading
    assert client.send(b"y").startswith("250 ")
    assert door.reserved == 2


async def test_after_helo_there_are_no_chunks():
    """What comes with the command is out of step; what comes later is thrown away as octets."""
    client = Client(FakeDoor())
    client.say("HELO c.test", "MAIL FROM:<a@b>", "RCPT TO:<c@d>")
    assert client.send(bdat(b"x")).startswith("554 5.5.0 ")
    assert not client.is_open


@given(st.data())
async def test_segments_change_nothing(data):
    """Any text in any chunks, cut anywhere: one message, byte for byte, or one refusal."""
    door = FakeDoor(max_errors=1000)
    client = begun(door)
    lines = data.draw(
        st.lists(st.sampled_from([b"", b".", b"..", b"x", b"MAIL FROM:<e@f>", b"BDAT 5", b"QUIT"]))
    )
    text = b"\r\n".join(lines) + b"\r\n"
    cuts = data.draw(st.sets(st.integers(0, len(text))))
    edges = [0, *sorted(cuts), len(text)]
    chunks = [text[start:stop] for start, stop in itertools.pairwise(edges)]
    raw = b"".join(bdat(chunk) for chunk in chunks[:-1]) + bdat(chunks[-1], last=True) + b"NOOP\r\n"
    cuts = data.draw(st.sets(st.integers(1, len(raw) - 1)) | st.just(set(range(1, len(raw)))))
    edges = [0, *sorted(cuts), len(raw)]
    answer = "".join(client.send(raw[start:stop]) for start, stop in itertools.pairwise(edges))
    assert re.fullmatch(
        r"(250 2\.0\.0 \d+ octets received\r\n)*250 .+\r\n250 2\.0\.0 Ok\r\n", answer
    )
    assert len(answer.splitlines()) == len(chunks) + 1
    [message] = door.accepted
    assert message.text == text
