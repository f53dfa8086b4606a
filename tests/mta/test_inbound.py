"""The dialogue: what each command is answered, and what a message becomes."""

import asyncio
import contextlib
import itertools
import re
import smtplib

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from mta.core.envelopes.base import Recipient, Transaction
from mta.core.ids import SessionId
from mta.core.reply import Reply
from mta.inbound import Inbound
from tests.support.door import FakeDoor
from tests.support.wire import Client

BODY = "Subject: x\r\n\r\nhello\r\n"


async def test_a_message_is_taken():
    """What the client said is what the queue gets, with one Received field before it."""
    door = FakeDoor()
    client = Client(door)
    assert client.greeting == "220 mx.test ESMTP\r\n"
    assert client.say("EHLO client.test") == (
        "250-mx.test\r\n250-PIPELINING\r\n250-SIZE 36700160\r\n250-8BITMIME\r\n"
        "250-ENHANCEDSTATUSCODES\r\n250-CHUNKING\r\n250-DSN\r\n250 SMTPUTF8\r\n"
    )
    assert client.say("MAIL FROM:<a@src.test> SIZE=100 BODY=8BITMIME") == "250 2.1.0 Ok\r\n"
    assert client.say("RCPT TO:<b@Dst.test> NOTIFY=NEVER") == "250 2.1.5 Ok\r\n"
    assert client.say("RCPT TO:<c@other.test>") == "250 2.1.5 Ok\r\n"
    assert client.say("DATA") == "354 End data with <CR><LF>.<CR><LF>\r\n"
    answer = client.send(f"{BODY}.\r\n")
    assert answer == "250 2.0.0 00000001 Message accepted for delivery\r\n"
    assert client.say("QUIT") == "221 2.0.0 Bye\r\n"
    assert not client.is_open
    [message] = door.accepted
    assert message.body.decode() == (
        "Received: from client.test (localhost [127.0.0.1])\r\n"
        "\tby mx.test with ESMTP id 00000001;\r\n"
        "\tTue, 14 Nov 2023 22:13:20 +0000\r\n" + BODY
    )
    assert message.transaction == Transaction(
        sender="a@src.test",
        size=len(message.body),
        session=SessionId(1),
        helo="client.test",
        peer_address="127.0.0.1",
        peer_name="localhost",
        body_type="8BITMIME",
        declared_size=100,
        esmtp=True,
    )
    assert message.recipients == (
        Recipient("b@dst.test", "dst.test", notify="NEVER"),
        Recipient("c@other.test", "other.test"),
    )
    assert door.lines == [
        "0000000000000001 smtp connected address=127.0.0.1 host=localhost listener=smtp",
        f"0000000000000001 smtp message msgid=00000001 size={len(message.body)} nrcpt=2 proto=ESMTP",
        "0000000000000001 smtp envelope evpid=0000000100000001 from=<a@src.test> to=<b@dst.test>",
        "0000000000000001 smtp envelope evpid=0000000100000002 from=<a@src.test> to=<c@other.test>",
        "0000000000000001 smtp disconnected reason=quit",
    ]
    assert door.reserved == 0
    assert door.connections == {"127.0.0.1": 0}
    assert client.clock.pending() == 0


async def test_helo_gets_less():
    """A HELO client has no extensions, and Received says SMTP."""
    door = FakeDoor()
    client = Client(door, peer="::1")
    assert client.say("HELO old.test") == "250 mx.test\r\n"
    assert client.say("MAIL FROM:<a@src.test> SIZE=1").startswith("555 5.5.4 ")
    client.say("MAIL FROM:<>", "RCPT TO:<postmaster>", "DATA")
    assert client.send(".\r\n").startswith("250 2.0.0 ")
    [message] = door.accepted
    assert message.body.startswith(
        b"Received: from old.test (localhost [IPv6:::1])\r\n\tby mx.test with SMTP id 00000001;\r\n"
    )
    assert message.text == b""
    assert message.transaction.sender == ""
    assert not message.transaction.esmtp
    assert message.recipients == (Recipient("postmaster@mx.test", "mx.test"),)
    assert "from=<> to=<postmaster@mx.test>" in door.lines[-1]
    assert "address=[::1] host=localhost listener=smtp" in door.lines[0]


async def test_smtputf8_is_remembered():
    """UTF-8 addresses need SMTPUTF8, are kept as they are, and routed by their A-labels."""
    door = FakeDoor()
    client = Client(door)
    client.say("EHLO c.test")
    assert client.say("MAIL FROM:<\u00fc@src.test>").startswith("553 5.6.7 ")
    client.say("MAIL FROM:<\u00fc@src.test> SMTPUTF8", "RCPT TO:<\u00e4@b\u00fccher.test>", "DATA")
    client.send(".\r\n")
    [message] = door.accepted
    assert message.transaction.smtputf8
    assert message.recipients == (Recipient("\u00e4@b\u00fccher.test", "xn--bcher-kva.test"),)
    assert b" with UTF8SMTP id " in message.body


async def test_an_address_given_twice_is_one_envelope():
    """In whatever spelling; the client gets its 250 each time."""
    door = FakeDoor()
    client = Client(door).ready("b@dst.test", "b@DST.test", '"b"@dst.test', "B@dst.test")
    client.send(".\r\n")
    assert ["b@dst.test", "B@dst.test"] == [rcpt.address for rcpt in door.accepted[0].recipients]


@pytest.mark.parametrize("end", ["RSET", "EHLO c.test", "HELO c.test"])
async def test_nothing_outlives_a_reset(end):
    """Also behind rejected commands: sender, recipients and parameters are gone."""
    door = FakeDoor()
    client = Client(door)
    client.say("EHLO c.test", "MAIL FROM:<a@b> BODY=8BITMIME", "RCPT TO:<c@d>", "XYZZY", end)
    assert client.say("RCPT TO:<e@f>").startswith("503 ")
    client.say("MAIL FROM:<g@h>", "RCPT TO:<i@j>", "DATA")
    client.send(".\r\n")
    [message] = door.accepted
    assert message.recipients == (Recipient("i@j", "j"),)
    assert message.transaction.sender == "g@h"
    assert message.transaction.body_type == ""


STATES: dict[str, list[str]] = {
    "fresh": [],
    "greeted": ["EHLO c.test"],
    "mail": ["EHLO c.test", "MAIL FROM:<a@b>"],
    "rcpt": ["EHLO c.test", "MAIL FROM:<a@b>", "RCPT TO:<c@d>"],
    "refused": ["EHLO c.test", "MAIL FROM:<a@b>", "RCPT TO:<c@>"],
    "done": ["EHLO c.test", "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA", "."],
    "reset": ["EHLO c.test", "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "RSET"],
    "greeted again": ["EHLO c.test", "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "EHLO c.test"],
}
ANSWERS = {
    #                    fresh greeted mail rcpt refused done reset again
    "HELO c.test":      (250,  250,   250, 250, 250,   250, 250,  250),
    "EHLO c.test":      (250,  250,   250, 250, 250,   250, 250,  250),
    "MAIL FROM:<e@f>":  (503,  250,   503, 503, 503,   250, 250,  250),
    "RCPT TO:<g@h>":    (503,  503,   250, 250, 250,   503, 503,  503),
    "DATA":             (503,  503,   554, 354, 554,   503, 503,  503),
    "BDAT 0 LAST":      (503,  503,   554, 250, 554,   503, 503,  503),
    "BDAT x":           (501,  501,   501, 501, 501,   501, 501,  501),
    "RSET":             (250,  250,   250, 250, 250,   250, 250,  250),
    "NOOP x":           (250,  250,   250, 250, 250,   250, 250,  250),
    "VRFY a":           (252,  252,   252, 252, 252,   252, 252,  252),
    "HELP":             (214,  214,   214, 214, 214,   214, 214,  214),
    "EXPN a":           (502,  502,   502, 502, 502,   502, 502,  502),
    "STARTTLS":         (502,  502,   502, 502, 502,   502, 502,  502),
    "AUTH PLAIN AGEAYg==": (502, 502, 502, 502, 502,   502, 502,  502),
    "XYZZY":            (500,  500,   500, 500, 500,   500, 500,  500),
    "":                 (500,  500,   500, 500, 500,   500, 500,  500),
    "HELO":             (501,  501,   501, 501, 501,   501, 501,  501),
    "DATA x":           (501,  501,   501, 501, 501,   501, 501,  501),
    "RSET x":           (501,  501,   501, 501, 501,   501, 501,  501),
    "QUIT x":           (501,  501,   501, 501, 501,   501, 501,  501),
    "VRFY":             (501,  501,   501, 501, 501,   501, 501,  501),
    "QUIT":             (221,  221,   221, 221, 221,   221, 221,  221),
}  # fmt: skip


@pytest.mark.parametrize("command", ANSWERS)
@pytest.mark.parametrize("number", range(len(STATES)), ids=list(STATES))
async def test_every_command_in_every_state(command, number):
    """The table of RFC 5321 4.1.4, with what is not offered."""
    client = Client(FakeDoor())
    client.say(*list(STATES.values())[number])
    answer = client.say(command)
    assert str(ANSWERS[command][number]) == answer[:3], answer


@pytest.mark.parametrize(
    "command",
    [b"AUTH PLAIN c2VjcmV0", b"auth login c2VjcmV0\xff", b"AUTH\tc2VjcmV0", b"AUTHc2VjcmV0"],
)
async def test_a_password_is_not_logged(command):
    """AUTH is not offered; who tries anyhow does not find the password in the log or the trace."""
    door = FakeDoor()
    door.tracing = True
    client = Client(door)
    client.say("EHLO c.test")
    assert client.send(command + b"\r\n").startswith("50")
    assert 'failed-command command="AUTH' in door.lines[-1]
    assert "c2VjcmV0" not in "".join(door.lines + door.traced)


_COMMANDS = st.sampled_from(
    [
        *ANSWERS,
        "DATA\r\nx\r\n.",
        "MAIL FROM:<a@b>",
        "RCPT TO:<c@d>",
        "RCPT TO:<c@d>",
        "\u00fc",
        "MAIL",
    ]
)


@given(st.lists(_COMMANDS, max_size=25))
async def test_every_reply_is_well_formed(commands):
    """Three digits, an enhanced code of the same class except where RFC 2034 has none, one line."""
    door = FakeDoor()
    client = Client(door)
    for command in ["EHLO c.test", *commands]:
        if not client.is_open:
            break
        for part in command.split("\r\n", 1):  # DATA, then its message
            answer = client.send(part + "\r\n")
        for line in answer.splitlines():
            assert re.fullmatch(
                r"(?:250[ -][^ ].*|354 .+|([245])\d\d \1\.\d{1,3}\.\d{1,3} [ -~]+)", line
            ), line
    for message in door.accepted:
        assert message.recipients


GROUPS = [
    "EHLO c.test\r\n",
    "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<bad>\r\nDATA\r\n",
    "one\r\n..\r\n.\r\nMAIL FROM:<e@f>\r\nRCPT TO:<g@h>\r\nDATA\r\n",
    "two\r\n.\r\nNOOP\r\nQUIT\r\n",
]


async def test_a_group_is_answered_in_one_write():
    """RFC 2920: commands that come together are answered together; also behind the dot."""
    door = FakeDoor()
    client = Client(door)
    counts = []
    answers = []
    for group in GROUPS:
        client.session.data_received(group.encode())
        counts.append(len(client.wire.writes))
        answers.append([line[:3] for line in client.take().splitlines()])
    # The reply to a dot is not held back behind what comes next, except with it.
    assert counts == [1, 1, 1, 1]
    assert answers[1:] == [
        ["250", "250", "501", "354"],
        ["250", "250", "250", "354"],
        ["250", "250", "221"],
    ]
    assert [b"one\r\n.\r\n", b"two\r\n"] == [message.text for message in door.accepted]


@given(st.data())
async def test_segments_change_nothing(data):
    """The same groups cut anywhere, or byte by byte: the same answers and the same messages."""
    door = FakeDoor()
    client = Client(door)
    answers = []
    for group in GROUPS:
        raw = group.encode()
        cuts = data.draw(st.sets(st.integers(1, len(raw) - 1)) | st.just(set(range(1, len(raw)))))
        edges = [0, *sorted(cuts), len(raw)]
        answer = "".join(client.send(raw[start:stop]) for start, stop in itertools.pairwise(edges))
        answers += [line[:3] for line in answer.splitlines()]
    assert answers == ["250"] * 8 + ["250", "250", "501", "354"] + ["250"] * 3 + ["354"] + [
        "250",
        "250",
        "221",
    ]
    assert [b"one\r\n.\r\n", b"two\r\n"] == [message.text for message in door.accepted]
    assert [("c@d",), ("g@h",)] == [
        tuple(rcpt.address for rcpt in message.recipients) for message in door.accepted
    ]


@pytest.mark.parametrize(
    ("before", "group"),
    [
        ([], "EHLO c.test\r\nMAIL FROM:<a@b>\r\n"),
        ([], "EHLO c.test\r\nM"),
        ([], "NOOP\r\nEHLO c.test\r\n"),  # before EHLO nothing was offered
        (["HELO c.test"], "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"),
        (["EHLO c.test", "MAIL FROM:<a@b>", "RCPT TO:<c@d>"], "DATA\r\nhello\r\n.\r\n"),
        (["EHLO c.test"], "QUIT\r\nNOOP\r\n"),
        (["EHLO c.test"], "VRFY x\r\nNOOP\r\n"),
    ],
)
async def test_who_does_not_wait_is_sent_away(before, group):
    """Postfix 3.9, smtpd_forbid_unauth_pipelining: 554, and no part of the group is obeyed."""
    door = FakeDoor()
    client = Client(door)
    client.say(*before)
    assert client.send(group) == "554 5.5.0 SMTP protocol synchronization\r\n"
    assert not client.is_open
    assert door.accepted == []
    assert door.rejections[-1].code == 554


async def test_after_helo_nothing_may_follow_the_dot():
    """The message is taken, for it had its end; what came behind unasked is not obeyed."""
    for hold in (False, True):
        door = FakeDoor()
        door.hold = hold
        client = Client(door)
        client.say("HELO c.test", "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA")
        answer = client.send("x\r\n.\r\nMAIL FROM:<e@f>\r\n")
        if hold:
            door.commit()
            await asyncio.sleep(0)
            answer += client.take()
        assert [line[:3] for line in answer.splitlines()] == ["250", "554"]
        assert len(door.accepted) == 1
        assert not client.is_open


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\n",
        b"CONNECT x:25 HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\r\n",
        b"\x80\xff\r\n",
    ],
)
async def test_other_protocols_are_sent_away(data):
    """A browser that was made to talk to us gets no second try."""
    door = FakeDoor()
    client = Client(door)
    assert client.send(data).startswith("421 4.7.0 ")
    assert not client.is_open


@pytest.mark.parametrize("bad", [*range(9), 11, 12, *range(14, 32), 127])
@pytest.mark.parametrize(
    "verb", ["HELO {}x", "EHLO x{}", "MAIL FROM:<a{}@b>", "RCPT TO:<a@b{}>", "NOOP {}"]
)
async def test_control_characters_are_refused(bad, verb):
    """None gets into an envelope, a header or the log; the session goes on."""
    door = FakeDoor()
    client = Client(door)
    client.say("EHLO c.test", "MAIL FROM:<a@b>")
    answer = client.say(verb.format(chr(bad)))
    assert answer == "501 5.5.2 Invalid character in command\r\n"
    assert chr(bad) not in "".join(door.lines)
    assert client.say("NOOP").startswith("250 ")


async def test_a_carriage_return_in_helo_does_not_write_a_header():
    """aiosmtpd takes it; here it is a 501."""
    client = Client(FakeDoor())
    assert client.send(b"HELO foo\rX-Injected: 1\r\n").startswith("501 5.5.2 ")


@pytest.mark.parametrize("bad", ["\u0080", "\u009f", "\u2028", "\u2029"])
async def test_invisible_line_ends_are_control_characters(bad):
    """C1 and the line separators of Unicode end a line for some reader of a log."""
    assert Client(FakeDoor()).say(f"NOOP {bad}").startswith("501 ")


@pytest.mark.parametrize("data", [b"NOOP \xff\r\n", b"MAIL FROM:<\xc3\x28@b>\r\n", b"N\xff\r\n"])
async def test_invalid_utf8_is_refused(data):
    """Nobody guesses an encoding."""
    client = Client(FakeDoor())
    client.say("EHLO c.test")
    assert client.send(data).startswith("500 5.5.")


@pytest.mark.parametrize("data", [b"NOOP\n", b"\n", b"NOOP\r\n\n", b"NOOP x\nNOOP\r\n", b"QUIT\n"])
async def test_a_bare_line_feed_ends_the_session(data):
    """Who ends commands so may be half of a smuggled message."""
    client = Client(FakeDoor())
    client.say("EHLO c.test")
    assert client.send(data).splitlines()[-1] == "550 5.6.11 Bare CR or LF, lines end with CR LF"
    assert not client.is_open


async def test_relaying_is_the_doors_decision():
    """A client that may not relay reaches our own domain and nothing else, by whatever trick."""
    door = FakeDoor()
    door.may_relay = False
    client = Client(door)
    client.say("EHLO c.test", "MAIL FROM:<>")
    for trick in [
        "<relay@victim.test>",
        "<relay%victim.test@[127.0.0.1]>",
        '<"relay@victim.test"@[127.0.0.1]>',
        '<"relay%victim.test"@[127.0.0.1]>',
        "<victim.test!relay@[127.0.0.1]>",
        "<@mx.test:relay@victim.test>",
    ]:
        assert client.say(f"RCPT TO:{trick}") == "550 5.7.1 Relaying denied\r\n", trick
    for trick in ["<relay@victim.test@mx.test>", "<victim.test!relay>", '<"relay@victim.test">']:
        assert client.say(f"RCPT TO:{trick}").startswith("501 5.1.3 "), trick
    assert client.say("RCPT TO:<x@mx.test>").startswith("250 ")
    assert all(code in (501, 550) for code, *_ in door.rejections)


async def test_failed_commands_are_logged():
    """As OpenSMTPD does, with quotes and control characters made harmless."""
    door = FakeDoor()
    Client(door).say('NOPE "x" \u00fc')
    assert door.lines[-1] == (
        "0000000000000001 smtp failed-command"
        ' command="NOPE \\x22x\\x22 \u00fc" result="500 5.5.1 Command unrecognized"'
    )
    assert door.rejections == [Reply(500, "5.5.1", "Command unrecognized")]


async def test_a_trace_shows_both_sides():
    """Every line in and out, while the operator wants it; never the message."""
    door = FakeDoor()
    door.tracing = True
    client = Client(door).ready()
    client.send("secret\r\n.\r\n")
    assert door.traced[:3] == [
        "0000000000000001 >>> 220 mx.test ESMTP",
        "0000000000000001 <<< EHLO client.test",
        "0000000000000001 >>> 250-mx.test",
    ]
    assert "secret" not in "".join(door.traced)


@contextlib.asynccontextmanager
async def listening(door: FakeDoor):
    """Serve on a port of loopback; yield the port."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Inbound(door), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


def _send_with_smtplib(port: int) -> None:
    with smtplib.SMTP("127.0.0.1", port, local_hostname="c.test", timeout=10) as client:
        for number in range(3):
            client.sendmail(
                "a@b.test", ["c@d.test", "e@f.test"], f"Subject: {number}\n\n.\n..\nx\n"
            )
        assert client.verify("x")[0] == 252
        client.sendmail("\u00fc@b.test", ["c@d.test"], b"\xff\r\n", ["SMTPUTF8", "BODY=8BITMIME"])


@pytest.fixture(scope="module")
def warm_uvloop():
    """The first uvloop of a process opens a pipe for good: before anybody counts descriptors."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.to_thread(int))


@pytest.mark.usefixtures("warm_uvloop", "fds")
@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_smtplib_gets_on_with_us(factory):
    """Over real sockets, on both event loops: what smtplib sends is what arrives."""
    door = FakeDoor()

    async def main() -> None:
        async with listening(door) as port:
            await asyncio.to_thread(_send_with_smtplib, port)
            await asyncio.wait_for(door.all_gone.wait(), 5)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    texts = [message.text for message in door.accepted]
    assert texts == [
        *(f"Subject: {number}\r\n\r\n.\r\n..\r\nx\r\n".encode() for number in range(3)),
        b"\xff\r\n",
    ]
    assert door.accepted[3].transaction.sender == "\u00fc@b.test"
    assert door.lines[-1].endswith("disconnected reason=quit")
    assert door.reserved == 0
