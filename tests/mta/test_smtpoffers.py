"""What a server offers decides what is sent to it: SIZE, 8BITMIME, SMTPUTF8; and how a message is framed."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.esmtp import (
    BAD_RECIPIENT,
    BAD_SENDER,
    NO_8BITMIME,
    NO_SMTPUTF8,
    TOO_LARGE,
    is_sendable,
)
from mta.smtpclient import (
    CHUNK_BYTES,
    TOO_MUCH_DATA,
    Closed,
    State,
    TransactionResult,
    end_of_data,
)
from tests.support.smtpclient import (
    BODY,
    EHLO_ALL,
    EHLO_PIPELINING,
    EHLO_PLAIN,
    PERMFAIL,
    TEMPFAIL,
    envelope,
    envelopes,
    ready,
    reset,
    sent,
)


class TestOffers:
    def test_message_larger_than_the_peer_takes(self):
        """SIZE is checked before MAIL, and the refusal is permanent and local (OpenSMTPD)."""
        session = ready(b"250-mx\r\n250 SIZE 24\r\n")
        assert session.start(envelopes(2), BODY, 0.0) == [
            TransactionResult(((PERMFAIL, TOO_LARGE),) * 2, usable=True)
        ]
        assert sent(session) == b""
        assert session.state is State.READY

    def test_size_zero_is_no_limit(self):
        """SIZE 0 means that there is no fixed maximum (RFC 1870 4)."""
        session = ready(b"250-mx\r\n250 SIZE 0\r\n")
        assert session.start([envelope()], BODY, 0.0) == []
        assert sent(session) == b"MAIL FROM:<from@example.com> SIZE=25\r\n"

    @pytest.mark.parametrize(
        ("item", "body", "refusal"),
        [
            (envelope("jörg@example.org", "SMTPUTF8"), BODY, NO_SMTPUTF8),
            (envelope("jörg@example.org"), BODY, NO_SMTPUTF8),
            (envelope("a@b", "SMTPUTF8", sender="jörg@x"), BODY, NO_SMTPUTF8),
            (envelope("a@b", "SMTPUTF8"), "Subject: ü\r\n\r\n".encode(), NO_SMTPUTF8),
            (envelope("a@b", "SMTPUTF8"), "Subject: u\r\n\r\nü\r\n".encode(), None),
            (envelope("a@b", "BODY=8BITMIME"), b"\r\n\xff\r\n", NO_8BITMIME),
            (envelope("a@b", "BODY=8BITMIME"), BODY, None),
            (envelope("a@b"), b"\r\n\xff\r\n", None),
        ],
    )
    def test_what_the_peer_lacks(self, item, body, refusal):
        """A message that needs an extension fails for good where it is missing, but only if it
        does need it.
        """
        session = ready(EHLO_PLAIN)
        events = session.start([item], body, 0.0)
        if refusal is None:
            assert events == []
            assert sent(session) == f"MAIL FROM:<{item.sender}>\r\n".encode()
        else:
            assert events == [TransactionResult(((PERMFAIL, refusal),), usable=True)]

    def test_all_parameters(self):
        """What was asked for and is offered is passed on."""
        session = ready(EHLO_ALL)
        item = envelope(
            "jörg@example.org",
            "BODY=8BITMIME",
            "SMTPUTF8",
            "RET=HDRS",
            "ENVID=abc+2B",
            "RCPT:NOTIFY=FAILURE,DELAY",
            "RCPT:ORCPT=rfc822;a@b",
        )
        session.start([item], BODY, 0.0)
        assert (
            sent(session).decode()
            == "MAIL FROM:<from@example.com> SIZE=25 SMTPUTF8 BODY=8BITMIME RET=HDRS ENVID=abc+2B\r\n"
            "RCPT TO:<jörg@example.org> NOTIFY=FAILURE,DELAY ORCPT=rfc822;a@b\r\nDATA\r\n"
        )

    def test_parameters_that_are_not_offered_are_left_out(self):
        """No parameter goes to a server that did not offer its extension."""
        session = ready(EHLO_PIPELINING)
        item = envelope("a@b", "BODY=8BITMIME", "RET=HDRS", "ENVID=x", "RCPT:NOTIFY=NEVER")
        session.start([item], BODY, 0.0)
        assert sent(session) == b"MAIL FROM:<from@example.com>\r\nRCPT TO:<a@b>\r\nDATA\r\n"

    @pytest.mark.parametrize(
        "address",
        [
            "a@b\r\nDATA",
            "a@b\n",
            "a\0@b",
            "a@b> SIZE=1 <",
            "a b@c",
            "\ud800@b",
            "\x1b[2J@b",
            '"a"@b> X <c',
            '"a">@b',
        ],
    )
    def test_addresses_cannot_smuggle_commands(self, address):
        """An address that would end its command is refused here, as sender and as recipient."""
        session = ready(EHLO_ALL)
        assert session.start([envelope(sender=address)], BODY, 0.0) == [
            TransactionResult(((PERMFAIL, BAD_SENDER),), usable=True)
        ]
        assert session.start([envelope(address), envelope()], BODY, 0.0) == []
        assert sent(session).count(b"\r\n") == 3
        (result,) = [*session.receive(b"250 a\r\n250 b\r\n554 c\r\n", 0.0), *reset(session)]
        assert result.results == ((PERMFAIL, BAD_RECIPIENT), (PERMFAIL, "554 c"))

    def test_quoted_local_parts_may_hold_anything_printable(self):
        """The quotes keep it together (RFC 5321 4.1.2)."""
        assert is_sendable('"a > b \\" <c>"@example.org')
        assert is_sendable("")
        assert not is_sendable('"a > b"c"@example.org')

    def test_a_bad_option_is_left_out(self):
        """A parameter from the queue cannot carry another command."""
        session = ready(EHLO_ALL)
        session.start([envelope("a@b", "ENVID=x\r\nRSET", "RET=A B", "RCPT:NOTIFY=é")], BODY, 0.0)
        assert sent(session) == (
            b"MAIL FROM:<from@example.com> SIZE=25\r\nRCPT TO:<a@b>\r\nDATA\r\n"
        )

    def test_empty_recipient(self):
        """There is no null recipient."""
        session = ready()
        assert session.start([envelope("")], BODY, 0.0) == [
            TransactionResult(((PERMFAIL, BAD_RECIPIENT),), usable=True)
        ]


class TestBody:
    @pytest.mark.parametrize(
        ("body", "wire"),
        [
            (b"", b".\r\n"),
            (b"\r\n", b"\r\n.\r\n"),
            (b".\r\n", b"..\r\n.\r\n"),
            (b"a\r\n.\r\nb\r\n", b"a\r\n..\r\nb\r\n.\r\n"),
            (b"a\r\n..b\r\n.\r\n", b"a\r\n...b\r\n..\r\n.\r\n"),
            (b"no end", b"no end\r\n.\r\n"),
            (b"a\n.\nb\n", b"a\r\n..\r\nb\r\n.\r\n"),
            (b"a\r.\rb", b"a\r\n..\r\nb\r\n.\r\n"),
            (b"a\r\n.\r", b"a\r\n..\r\n.\r\n"),
            (b"a\r\r\n.\n\r\n", b"a\r\n\r\n..\r\n\r\n.\r\n"),
        ],
    )
    def test_stuffing(self, body, wire):
        """Dots are doubled, lone CR and LF never leave (SMTP smuggling)."""
        assert end_of_data(body) == wire

    @given(st.lists(st.sampled_from([b"\r\n", b".", b"\r", b"\n", b"a", b".."]), max_size=30))
    def test_what_is_sent_ends_once_and_comes_back(self, parts):
        """The end mark is only at the end; unstuffing gives the message, with CRLF line ends."""
        body = b"".join(parts)
        wire = end_of_data(body)
        assert (b"\r\n" + wire).find(b"\r\n.\r\n") == len(wire) - 3
        assert re.search(rb"(?<!\r)\n|\r(?!\n)", wire) is None
        received = (b"\r\n" + wire[:-3]).replace(b"\r\n..", b"\r\n.")[2:]
        normal = re.sub(rb"\r\n|\r|\n", b"\r\n", body)
        assert received == (normal if normal.endswith(b"\r\n") or not normal else normal + b"\r\n")

    def test_large_bodies_go_in_chunks_and_each_buys_time(self):
        """The deadline is for the next chunk; after the last one it is the server's turn."""
        body = b"x" * 1000 + b"\r\n"
        body *= CHUNK_BYTES * 5 // 2 // len(body)
        session = ready()
        session.start([envelope()], body, 0.0)
        sent(session)
        session.receive(b"250 a\r\n250 b\r\n354 c\r\n", 10.0)
        assert session.deadline == 190.0
        chunks = []
        for now, deadline in ((20.0, 200.0), (30.0, 210.0), (40.0, 640.0)):
            chunks.append(session.data_to_send(now))
            assert session.deadline == deadline
        assert session.data_to_send(50.0) == b""
        assert max(map(len, chunks)) == CHUNK_BYTES
        assert b"".join(chunks) == body + b".\r\n"

    @pytest.mark.parametrize("reply", [b"250 got it\r\n", b"354 more\r\n"])
    def test_accepted_before_it_was_sent(self, reply):
        """A server cannot take responsibility for a message that it has not got."""
        session = ready()
        session.start([envelope()], b"x" * CHUNK_BYTES * 2, 0.0)
        sent(session)
        session.receive(b"250 a\r\n250 b\r\n354 c\r\n", 0.0)
        session.data_to_send(0.0)
        assert session.receive(reply, 0.0) == [
            TransactionResult(((TEMPFAIL, TOO_MUCH_DATA),), usable=False),
            Closed(TOO_MUCH_DATA),
        ]

    def test_refused_before_it_was_sent(self):
        """A refusal in mid-message counts, but the connection is of no use any more."""
        session = ready()
        session.start([envelope()], b"x" * CHUNK_BYTES * 2, 0.0)
        sent(session)
        session.receive(b"250 a\r\n250 b\r\n354 c\r\n", 0.0)
        session.data_to_send(0.0)
        assert session.receive(b"552 5.3.4 too big\r\n", 0.0) == [
            TransactionResult(((PERMFAIL, "552 5.3.4 too big"),), usable=False),
            Closed("552 5.3.4 too big"),
        ]
        assert session.data_to_send(0.0) == b""
