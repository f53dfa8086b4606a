"""The client's half of SMTP: dialogues with well-behaved, careless and hostile servers."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.envelopes.base import MtaEnvelope
from mta.core.reply import Outcome
from mta.esmtp import (
    BAD_RECIPIENT,
    BAD_SENDER,
    NO_8BITMIME,
    NO_SMTPUTF8,
    TOO_LARGE,
    Extensions,
    is_sendable,
    read_extensions,
)
from mta.smtpclient import (
    CHUNK_BYTES,
    CLOSED_BY_PEER,
    TIMED_OUT,
    TOO_MANY_ERRORS,
    TOO_MUCH_DATA,
    ClientSession,
    Closed,
    Failed,
    Ready,
    State,
    Timeouts,
    TransactionResult,
    end_of_data,
)
from mta.smtpgreeting import LOOPS_BACK
from mta.smtpreply import LINE_BYTES_MAX, REPLY_LINES_MAX, STATUS_BYTES_MAX, ReplyReader

OK, TEMPFAIL, PERMFAIL = Outcome.OK, Outcome.TEMPFAIL, Outcome.PERMFAIL
EHLO_ALL = (
    b"250-mx.example greets you\r\n250-PIPELINING\r\n250-SIZE 10000000\r\n250-8BITMIME\r\n"
    b"250-SMTPUTF8\r\n250-DSN\r\n250 ENHANCEDSTATUSCODES\r\n"
)
EHLO_PIPELINING = b"250-mx.example\r\n250 PIPELINING\r\n"
EHLO_PLAIN = b"250 mx.example\r\n"
BODY = b"Subject: hello\r\n\r\nworld\r\n"


def envelope(rcpt: str = "to@example.org", *options: str, sender: str = "from@example.com"):
    return MtaEnvelope(sender, rcpt, 0.0, len(BODY), options)


def envelopes(count: int) -> list[MtaEnvelope]:
    return [envelope(f"r{number}@example.org") for number in range(count)]


def ready(ehlo: bytes = EHLO_PIPELINING, **options: object) -> ClientSession:
    """Return a session that was greeted and is ready at time 0."""
    session = ClientSession("client.example", now=0.0, **options)  # type: ignore[arg-type]
    assert session.receive(b"220 mx.example ESMTP\r\n", 0.0) == []
    assert session.data_to_send(0.0) == b"EHLO client.example\r\n"
    (event,) = session.receive(ehlo, 0.0)
    assert isinstance(event, Ready)
    return session


def sent(session: ClientSession, now: float = 0.0) -> bytes:
    """Take all that the session wants to send."""
    out = b""
    while chunk := session.data_to_send(now):
        out += chunk
    return out


def at_stage(stage: str) -> ClientSession:
    """Return a session that waits for the answer to ``stage``, everything before it being fine."""
    session = ClientSession("client.example", now=0.0)
    if stage == "banner":
        return session
    session.receive(b"220 mx\r\n", 0.0)
    sent(session)
    if stage == "ehlo":
        return session
    session.receive(EHLO_PLAIN, 0.0)
    if stage == "ready":
        return session
    session.start([envelope()], BODY, 0.0)
    for name, reply in (("mail", b"250 a\r\n"), ("rcpt", b"250 b\r\n"), ("data", b"354 c\r\n")):
        sent(session)
        if stage == name:
            return session
        session.receive(reply, 0.0)
    sent(session)
    assert stage == "dot", stage
    return session


class TestHello:
    def test_greeting_then_ehlo_then_ready(self):
        """The offers of the peer are told with `Ready`, and then nothing is expected."""
        session = ClientSession("client.example", now=10.0)
        assert session.deadline == 310.0
        assert session.receive(b"220-wel", 20.0) == []
        assert session.deadline == 310.0, "a part of a reply buys no time"
        assert session.receive(b"come\r\n220 mx\r\n", 20.0) == []
        assert session.data_to_send(20.0) == b"EHLO client.example\r\n"
        assert session.deadline == 320.0
        assert session.receive(EHLO_ALL, 21.0) == [
            Ready(Extensions(True, 10_000_000, True, True, True))
        ]
        assert session.deadline is None
        assert session.state is State.READY

    @pytest.mark.parametrize("refusal", [b"502 what?\r\n", b"500-no\r\n500 EHLO\r\n"])
    def test_refused_ehlo_is_followed_by_helo(self, refusal):
        """A server that does not know EHLO is greeted with HELO and offers nothing."""
        session = at_stage("ehlo")
        assert session.receive(refusal, 1.0) == []
        assert session.data_to_send(1.0) == b"HELO client.example\r\n"
        assert session.receive(b"250 mx PIPELINING\r\n", 2.0) == [Ready(Extensions())]

    @pytest.mark.parametrize(
        ("banner", "reason"),
        [
            (b"554 5.7.1 go away\r\n", "554 5.7.1 go away"),
            (b"421 busy\r\n", "421 busy"),
            (b"354 go\r\n", "354 go"),
            (b"hello\r\n", "Bad response: no reply code in 'hello'"),
            (b"\r\n", "Bad response: no reply code in ''"),
            (b"199 x\r\n", "Bad response: no reply code in '199 x'"),
            (b"220 hi\r\n250 EHLO to you too\r\n", TOO_MUCH_DATA),
            (b"220 hi\r\n25", TOO_MUCH_DATA),
        ],
    )
    def test_bad_greeting_fails_the_session(self, banner, reason):
        """What is no invitation ends the session before it is ready."""
        session = ClientSession("client.example", now=0.0)
        assert session.receive(banner, 0.0) == [Failed(reason)]
        assert session.closed
        assert session.deadline is None
        assert sent(session) == b""
        assert session.receive(b"250 x\r\n", 0.0) == []
        assert session.eof(0.0) == []

    def test_peer_with_our_name_is_a_loop(self):
        """A peer that introduces itself with our name would send the mail back to us."""
        session = at_stage("ehlo")
        assert session.receive(b"250-Client.Example hi\r\n250 SIZE\r\n", 0.0) == [
            Failed(LOOPS_BACK)
        ]

    def test_helo_refused(self):
        """Refusing HELO as well ends the session."""
        session = at_stage("ehlo")
        session.receive(b"500 no\r\n", 0.0)
        sent(session)
        assert session.receive(b"500 no\r\n", 0.0) == [Failed("500 no")]

    @pytest.mark.parametrize(
        ("lines", "expected"),
        [
            ([], Extensions()),
            ([b"size 42", b"pipelining"], Extensions(pipelining=True, size=42)),
            ([b"SIZE"], Extensions(size=0)),
            ([b"SIZE x", b"SIZE -1", b"SIZE " + b"9" * 5000, b"", b"\x80"], Extensions()),
            ([b"8BITMIME now", b"DSN", b"SMTPUTF8"], Extensions(False, None, True, True, True)),
            ([b"XPIPELINING", b"8BITMIMEX"], Extensions()),
        ],
    )
    def test_offers(self, lines, expected):
        """Only what is spelt right counts."""
        assert read_extensions(lines) == expected


class TestTransaction:
    def test_pipelined(self):
        """The whole envelope goes in one write, message and dot in another."""
        session = ready(EHLO_ALL)
        assert session.start(envelopes(2), BODY, 5.0) == []
        assert session.data_to_send(5.0) == (
            b"MAIL FROM:<from@example.com> SIZE=25\r\nRCPT TO:<r0@example.org>\r\n"
            b"RCPT TO:<r1@example.org>\r\nDATA\r\n"
        )
        assert session.data_to_send(5.0) == b""
        assert session.receive(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n", 6.0) == []
        assert session.data_to_send(6.0) == BODY + b".\r\n"
        assert session.data_to_send(6.0) == b""
        assert session.receive(b"250 2.0.0 queued as 1\r\n", 7.0) == [
            TransactionResult(((OK, "250 2.0.0 queued as 1"),) * 2, usable=True)
        ]
        assert session.messages == 1
        assert session.deadline is None

    @pytest.mark.parametrize("option", [{"ehlo": EHLO_PLAIN}, {"pipelining": False}])
    def test_one_by_one(self, option):
        """Without PIPELINING, each command waits for the answer to the one before."""
        session = ready(**option)
        session.start(envelopes(2), BODY, 0.0)
        dialogue = [
            (b"MAIL FROM:<from@example.com>\r\n", b"250 ok\r\n"),
            (b"RCPT TO:<r0@example.org>\r\n", b"250 ok\r\n"),
            (b"RCPT TO:<r1@example.org>\r\n", b"251 forwarded\r\n"),
            (b"DATA\r\n", b"354 go\r\n"),
        ]
        for command, reply in dialogue:
            assert sent(session) == command
            assert session.receive(reply, 0.0) == []
        assert sent(session) == BODY + b".\r\n"
        assert session.receive(b"250 done\r\n", 0.0) == [
            TransactionResult(((OK, "250 done"),) * 2, usable=True)
        ]

    def test_next_transaction_needs_no_rset(self):
        """A kept connection sends MAIL again after success, and after a refused message."""
        session = ready()
        for reply, outcome in (
            (b"250 ok\r\n", OK),
            (b"554 spam\r\n", PERMFAIL),
            (b"250 ok\r\n", OK),
        ):
            session.start([envelope()], BODY, 0.0)
            assert sent(session).startswith(b"MAIL")
            session.receive(b"250 a\r\n250 b\r\n354 c\r\n", 0.0)
            sent(session)
            (event,) = session.receive(reply, 0.0)
            assert event.usable
            assert event.results[0][0] is outcome
        assert session.messages == 2

    def test_null_sender(self):
        """A bounce goes out with the null reverse-path."""
        session = ready(EHLO_PLAIN)
        session.start([envelope(sender="")], BODY, 0.0)
        assert sent(session) == b"MAIL FROM:<>\r\n"

    @pytest.mark.parametrize("ehlo", [EHLO_PIPELINING, EHLO_PLAIN])
    def test_some_recipients_refused(self, ehlo):
        """Each recipient gets its own verdict; the message goes to those that are left."""
        session = ready(ehlo)
        session.start(envelopes(4), BODY, 0.0)
        for reply in (
            b"250 ok\r\n",
            b"550 5.1.1 no such user\r\n",
            b"250 ok\r\n",
            b"452 4.2.2 full\r\n",
            b"250 ok\r\n",
            b"354 go\r\n",
        ):
            sent(session)
            assert session.receive(reply, 0.0) == []
        assert sent(session) == BODY + b".\r\n"
        assert session.receive(b"250 fine\r\n", 0.0) == [
            TransactionResult(
                (
                    (PERMFAIL, "550 5.1.1 no such user"),
                    (OK, "250 fine"),
                    (TEMPFAIL, "452 4.2.2 full"),
                    (OK, "250 fine"),
                ),
                usable=True,
            )
        ]

    def test_all_refused_but_data_accepted(self):
        """A pipelined DATA that is answered 354 with no recipient left gets a lone dot (RFC 2920)."""
        session = ready()
        session.start(envelopes(2), BODY, 0.0)
        sent(session)
        assert session.receive(b"250 ok\r\n550 a\r\n450 b\r\n354 go\r\n", 0.0) == []
        assert sent(session) == b".\r\n"
        assert session.receive(b"554 no valid recipients\r\n", 0.0) == [
            TransactionResult(((PERMFAIL, "550 a"), (TEMPFAIL, "450 b")), usable=True)
        ]
        assert session.messages == 0

    @pytest.mark.parametrize(
        ("ehlo", "replies"),
        [
            (EHLO_PIPELINING, [b"250 ok\r\n550 a\r\n503 no recipients\r\n"]),
            (EHLO_PLAIN, [b"250 ok\r\n", b"550 a\r\n"]),
        ],
    )
    def test_all_refused(self, ehlo, replies):
        """The open transaction is reset before the next, and the result waits for that."""
        session = ready(ehlo)
        session.start([envelope()], BODY, 0.0)
        for reply in replies:
            sent(session)
            assert session.receive(reply, 0.0) == []
        assert sent(session) == b"RSET\r\n"
        assert session.receive(b"250 ok\r\n", 0.0) == [
            TransactionResult(((PERMFAIL, "550 a"),), usable=True)
        ]

    def test_refused_rset_makes_the_session_unusable(self):
        """Verdicts stay, and the session says good-bye."""
        session = ready()
        session.start([envelope()], BODY, 0.0)
        sent(session)
        session.receive(b"250 ok\r\n250 ok\r\n451 4.3.0 try later\r\n", 0.0)
        assert sent(session) == b"RSET\r\n"
        assert session.receive(b"500 what?\r\n", 0.0) == [
            TransactionResult(((TEMPFAIL, "451 4.3.0 try later"),), usable=False)
        ]
        assert sent(session) == b"QUIT\r\n"
        assert session.receive(b"221 bye\r\n", 0.0) == [Closed("quit")]

    def test_mail_refused_pipelined(self):
        """The answer to MAIL is everybody's, whatever the server says to the rest of the group."""
        session = ready()
        session.start(envelopes(2), BODY, 0.0)
        sent(session)
        session.receive(b"550 5.7.1 not you\r\n503 a\r\n421", 0.0)
        assert session.receive(b"-x\r\n", 0.0) == []
        assert session.receive(b"421 closing\r\n", 0.0) == [
            TransactionResult(((PERMFAIL, "550 5.7.1 not you"),) * 2, usable=False),
            Closed("421 x closing"),
        ]

    def test_mail_refused_one_by_one(self):
        """Nothing has to be reset, because nothing was begun."""
        session = ready(EHLO_PLAIN)
        session.start(envelopes(2), BODY, 0.0)
        sent(session)
        assert session.receive(b"451 4.7.1 greylisted\r\n", 0.0) == [
            TransactionResult(((TEMPFAIL, "451 4.7.1 greylisted"),) * 2, usable=True)
        ]
        assert session.state is State.READY

    def test_data_answered_250(self):
        """Nobody can know whether the server waits for the message: it is tried again elsewhere."""
        session = ready()
        session.start([envelope()], BODY, 0.0)
        sent(session)
        assert session.receive(b"250 a\r\n250 b\r\n250 c\r\n", 0.0) == [
            TransactionResult(((TEMPFAIL, "250 c"),), usable=False),
            Closed("250 c"),
        ]

    @pytest.mark.parametrize("stage", ["mail", "rcpt", "dot"])
    def test_354_in_the_wrong_place(self, stage):
        """A 3xx where none belongs ends the session, and the mail waits."""
        session = at_stage(stage)
        assert session.receive(b"354 go\r\n", 0.0) == [
            TransactionResult(((TEMPFAIL, "354 go"),), usable=False),
            Closed("354 go"),
        ]

    @pytest.mark.parametrize("stage", ["mail", "rcpt", "data", "dot"])
    def test_421_closes_the_session_and_the_mail_waits(self, stage):
        """421 is temporary and final at once (RFC 5321 3.8)."""
        session = at_stage(stage)
        assert session.receive(b"421 4.3.2 shutting down\r\n", 0.0) == [
            TransactionResult(((TEMPFAIL, "421 4.3.2 shutting down"),), usable=False),
            Closed("421 4.3.2 shutting down"),
        ]

    def test_421_keeps_verdicts_that_were_given(self):
        """A recipient that was refused for good stays refused when the server goes away."""
        session = ready()
        session.start(envelopes(3), BODY, 0.0)
        sent(session)
        (result, closed) = session.receive(
            b"250 m\r\n550 no\r\n250 yes\r\n421 bye\r\n250 x\r\n", 0.0
        )
        assert result == TransactionResult(
            ((PERMFAIL, "550 no"), (TEMPFAIL, "421 bye"), (TEMPFAIL, "421 bye")), usable=False
        )
        assert closed == Closed("421 bye")

    def test_idle_421_and_chatter(self):
        """Whatever arrives while nothing was asked ends the session."""
        assert at_stage("ready").receive(b"421 idle\r\n", 0.0) == [Closed("421 idle")]
        assert at_stage("ready").receive(b"250 hello?\r\n", 0.0) == [Closed(TOO_MUCH_DATA)]
        assert at_stage("ready").receive(b"junk\r\n", 0.0) == [
            Closed("Bad response: no reply code in 'junk'")
        ]

    def test_answer_before_the_question(self):
        """An answer to a command that was not sent yet cannot be trusted to be one."""
        session = ready(EHLO_PLAIN)
        session.start([envelope()], BODY, 0.0)
        sent(session)
        (result, closed) = session.receive(b"250 mail\r\n250 rcpt\r\n354 data\r\n", 0.0)
        assert result.results == ((TEMPFAIL, TOO_MUCH_DATA),)
        assert closed == Closed(TOO_MUCH_DATA)

    def test_too_many_refusals_one_by_one(self):
        """After so many refusals in a row the rest is not tried."""
        session = ready(EHLO_PLAIN, max_failures=2)
        session.start(envelopes(4), BODY, 0.0)
        sent(session)
        session.receive(b"250 ok\r\n", 0.0)
        for _ in range(2):
            assert sent(session).startswith(b"RCPT")
            session.receive(b"550 no\r\n", 0.0)
        assert sent(session) == b"RSET\r\n"
        (result,) = session.receive(b"250 ok\r\n", 0.0)
        assert result.results == (
            (PERMFAIL, "550 no"),
            (PERMFAIL, "550 no"),
            (TEMPFAIL, TOO_MANY_ERRORS),
            (TEMPFAIL, TOO_MANY_ERRORS),
        )
        assert not result.usable
        assert sent(session) == b"QUIT\r\n"

    def test_refusals_count_across_transactions_until_one_is_accepted(self):
        """The count is of consecutive refusals on a connection, as OpenSMTPD's."""
        session = ready(max_failures=3)
        for reply, usable in ((b"550", True), (b"550", True), (b"250", True), (b"550", True)):
            session.start([envelope()], BODY, 0.0)
            sent(session)
            session.receive(b"250 ok\r\n" + reply + b" x\r\n354 go\r\n", 0.0)
            sent(session)
            (result,) = session.receive(b"250 ok\r\n", 0.0)
            assert result.usable is usable
        for usable in (True, False):
            session.start([envelope()], BODY, 0.0)
            sent(session)
            session.receive(b"250 ok\r\n550 x\r\n554 go\r\n", 0.0)
            sent(session)
            (result,) = session.receive(b"250 ok\r\n", 0.0)
            assert result.usable is usable

    def test_quit_while_idle_and_while_busy(self):
        """QUIT comes after the running transaction, once."""
        session = ready()
        session.quit(7.0)
        session.quit(7.0)
        assert sent(session) == b"QUIT\r\n"
        assert session.deadline == 12.0
        assert session.receive(b"221 2.0.0 bye\r\n", 8.0) == [Closed("quit")]

        session = ready()
        session.start([envelope()], BODY, 0.0)
        session.quit(0.0)
        assert b"QUIT" not in sent(session)
        session.receive(b"250 a\r\n250 b\r\n354 c\r\n", 0.0)
        sent(session)
        assert session.receive(b"250 ok\r\n", 0.0) == [
            TransactionResult(((OK, "250 ok"),), usable=False)
        ]
        assert sent(session) == b"QUIT\r\n"
        assert session.timer(4.9) == []
        assert session.timer(5.0) == [Closed(TIMED_OUT)]


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


def reset(session: ClientSession) -> list[object]:
    """Answer the RSET that the session wants."""
    assert sent(session) == b"RSET\r\n"
    return list(session.receive(b"250 ok\r\n", 0.0))


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


class TestEnds:
    @pytest.mark.parametrize("stage", ["banner", "ehlo"])
    def test_eof_and_silence_before_ready(self, stage):
        """The session fails; no mail was in it."""
        assert at_stage(stage).eof(0.0) == [Failed(CLOSED_BY_PEER)]
        assert at_stage(stage).timer(299.9) == []
        assert at_stage(stage).timer(300.0) == [Failed(TIMED_OUT)]

    @pytest.mark.parametrize(
        ("stage", "deadline"), [("mail", 300.0), ("rcpt", 300.0), ("data", 120.0)]
    )
    def test_eof_and_silence_in_a_transaction(self, stage, deadline):
        """Before the dot nothing can have been delivered."""
        assert at_stage(stage).eof(0.0) == [
            TransactionResult(((TEMPFAIL, CLOSED_BY_PEER),), usable=False),
            Closed(CLOSED_BY_PEER),
        ]
        session = at_stage(stage)
        assert session.deadline == deadline
        assert session.timer(deadline) == [
            TransactionResult(((TEMPFAIL, TIMED_OUT),), usable=False),
            Closed(TIMED_OUT),
        ]

    def test_eof_and_silence_after_the_dot_are_ambiguous(self):
        """The server may have taken the message: tried again, and counted (RFC 1047)."""
        for session, events in (
            (s := at_stage("dot"), s.eof(0.0)),
            (s := at_stage("dot"), s.timer(600.0)),
            (s := at_stage("dot"), s.receive(b"what?\r\n", 0.0)),
            (s := at_stage("dot"), s.receive(b"250 o", 0.0) + s.eof(0.0)),
        ):
            result, closed = events
            assert session.closed
            assert (result.ambiguous, result.usable) == (True, False)
            assert result.results[0][0] is TEMPFAIL
            assert result.results[0][1] == f"{closed.reason} after the final dot"

    def test_idle_eof(self):
        """An idle connection may end at any time."""
        assert at_stage("ready").eof(0.0) == [Closed(CLOSED_BY_PEER)]
        assert at_stage("ready").lost("Connection reset by peer", 0.0) == [
            Closed("Connection reset by peer")
        ]

    def test_slow_recipients_cannot_hold_a_connection_for_ever(self):
        """Each reply in time, and still the whole has an end."""
        session = ready(EHLO_PLAIN, timeouts=Timeouts(transaction=1000.0))
        session.start(envelopes(100), BODY, 0.0)
        now = 0.0
        while not session.closed:
            sent(session, now)
            now += 299.0
            events = session.timer(now) or session.receive(b"250 ok\r\n", now)
        assert now == 1196.0
        assert events[-1] == Closed(TIMED_OUT)

    def test_timeouts_scale(self):
        """One number scales the RFC's; QUIT stays short."""
        assert Timeouts.scaled(300.0) == Timeouts()
        half = Timeouts.scaled(150.0)
        assert (half.banner, half.data, half.block, half.dot) == (150.0, 60.0, 90.0, 300.0)
        assert half.quit == 5.0
        assert Timeouts.scaled(1.0).quit == 1.0

    def test_delivered_only_with_the_whole_last_line(self):
        """Cut off after any byte, the server's side of a transaction delivers nothing."""
        script = b"250 a\r\n250 b\r\n354 c\r\n250 2.0.0 ok\r\n"
        for cut in range(len(script) + 1):
            session = ready()
            session.start([envelope()], BODY, 0.0)
            sent(session)
            events = []
            for at in range(cut):
                events += session.receive(script[at : at + 1], 0.0)
                sent(session)
            events += session.eof(0.0)
            result, closed = events
            assert isinstance(closed, Closed)
            assert (result.results[0][0] is OK) == (cut == len(script)), cut


class TestReplies:
    @pytest.mark.parametrize(
        ("reply", "status"),
        [
            (b"550\r\n", "550"),
            (b"550 \r\n", "550"),
            (b"550 no\n", "550 no"),
            (b"550-5.1.1 no such\r\n550 5.1.1 user\r\n", "550 5.1.1 no such user"),
            (b"550-a\r\n550-\r\n550 b\r\n", "550 a b"),
            (b"550-5.1.1 a\r\n550-5.1.1\r\n550 5.7.1 b\r\n", "550 5.1.1 a 5.7.1 b"),
            (b"550-5.1.10 a\r\n550 5.1.1 b\r\n", "550 5.1.10 a 5.1.1 b"),
            (b"550 \x1b[31mred\x07\r\n", "550 \\x1b[31mred\\x07"),
            (b"550 a\rtype: mda\r\n", "550 a\\x0dtype: mda"),
            (b"550 a\tb\r\n", "550 a b"),
            ("550 é\r\n".encode(), "550 \\xc3\\xa9"),
            (b"550 \x85\xff\r\n", "550 \\x85\\xff"),
            (b"550 " + b"x" * 3000 + b"\r\n", "550 " + "x" * (STATUS_BYTES_MAX - 4)),
            (b"550-" + b"x" * 3000 + b"\r\n550 y\r\n", "550 " + "x" * (STATUS_BYTES_MAX - 4)),
            (b"550 " + b"\xff" * 2000 + b"\r\n", ("550 " + "\\xff" * 2000)[:STATUS_BYTES_MAX]),
        ],
    )
    def test_status_lines(self, reply, status):
        """Folded, escaped, cut."""
        session = at_stage("mail")
        (event,) = session.receive(reply, 0.0)
        assert event.results == ((PERMFAIL, status),)

    @pytest.mark.parametrize(
        ("reply", "why"),
        [
            (b"250-a\r\n550 b\r\n", "different codes"),
            (b"550-a\r\n551-b\r\n", "different codes"),
            (b"25\r\n", "no reply code"),
            (b"2500 a\r\n", "no space"),
            (b"250_a\r\n", "no space"),
            (b"\xb2\xb5\xb0 a\r\n", "no reply code"),
            (b"650 a\r\n", "no reply code"),
            (b"250 a\0b\r\n", "NUL"),
            (b"550-x\r\n" * (REPLY_LINES_MAX + 1), "too many lines"),
            (b"550 " + b"x" * LINE_BYTES_MAX, "line too long"),
            (b"550 " + b"x" * LINE_BYTES_MAX + b"\r\n", "line too long"),
            (b"x" * 1024 * 1024, "line too long"),
            (b"HTTP/1.1 400 Bad Request\r\n", "no reply code"),
            (b"\x16\x03\x01\r\n", "no reply code"),
        ],
    )
    @pytest.mark.parametrize("stage", ["banner", "ehlo", "mail", "rcpt", "data", "dot"])
    def test_what_is_no_reply_is_temporary_and_ends_the_session(self, stage, reply, why):
        """The mail waits, and nobody talks to that connection again."""
        session = at_stage(stage)
        events = session.receive(reply, 0.0)
        assert session.closed
        last = events[-1]
        assert last.reason.startswith(f"Bad response: {why}")
        if stage in ("banner", "ehlo"):
            assert isinstance(last, Failed)
        else:
            assert [outcome for outcome, _ in events[0].results] == [TEMPFAIL]
            assert events[0].ambiguous == (stage == "dot")

    def test_endless_replies_are_bounded(self):
        """Neither endless lines nor endless continuation are kept."""
        session = at_stage("mail")
        fed = 0
        while not session.closed:
            session.receive(b"250-" + b"x" * 4000 + b"\r\n", 0.0)
            fed += 1
        assert fed == REPLY_LINES_MAX + 1
        reader = ReplyReader()
        for _ in range(LINE_BYTES_MAX // 1000 + 2):
            reader.feed(b"x" * 1000)
            assert reader.next_line() is None
        assert reader.error == "line too long"

    @given(
        st.lists(
            st.sampled_from(
                [
                    b"250",
                    b" ",
                    b"-",
                    b"ok",
                    b"\r\n",
                    b"\n",
                    b"550",
                    b"\0",
                    b"354 x\r\n",
                    b"421 y\r\n",
                    b"250 a\r\n",
                    b"250-b\r\n",
                    b"\xff",
                    b"5.1.1 ",
                ]
            ),
            max_size=30,
        ),
        st.booleans(),
        st.integers(1, 3),
    )
    def test_any_server(self, parts, pipelining, count):
        """Whatever a server says, the events keep their order, and what they carry is printable."""
        session = ready(EHLO_PIPELINING if pipelining else EHLO_PLAIN)
        session.start(envelopes(count), BODY, 0.0)
        sent(session)
        events = []
        for part in parts:
            events += session.receive(part, 0.0)
            sent(session)
        events += session.eof(0.0)
        results = [event for event in events if isinstance(event, TransactionResult)]
        assert len(results) == 1
        assert isinstance(events[-1], Closed)
        assert [type(event) for event in events].count(Closed) == 1
        assert len(results[0].results) == count
        for outcome, status in results[0].results:
            assert status.isascii()
            assert status.isprintable()
            assert len(status) <= STATUS_BYTES_MAX
            if outcome is OK:
                assert status.startswith("2")
            if outcome is PERMFAIL:
                assert status.startswith("5")

    @given(st.binary(max_size=200), st.lists(st.integers(1, 20), max_size=20))
    def test_splits_do_not_matter(self, data, sizes):
        """Replies are the same however the network cuts them."""
        whole = ReplyReader()
        whole.feed(data)
        expected = drain(whole)
        pieces = ReplyReader()
        got = []
        at = 0
        for size in sizes:
            pieces.feed(data[at : at + size])
            got += drain(pieces)
            at += size
        pieces.feed(data[at:])
        got += drain(pieces)
        assert got == expected


def drain(reader: ReplyReader) -> list[tuple[bytes, int, bytes, str]]:
    """Take all lines, each with what it completed."""
    lines = []
    while (line := reader.next_line()) is not None:
        lines.append((line, reader.code, reader.text if reader.code else b"", reader.error))
    return lines
