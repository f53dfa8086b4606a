"""The client's half of SMTP, transaction by transaction, with well-behaved, careless and hostile servers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.address import mailbox_key
from mta.esmtp import (
    Extensions,
    read_extensions,
)
from mta.smtpclient import (
    TIMED_OUT,
    TOO_MANY_ERRORS,
    TOO_MUCH_DATA,
    ClientSession,
    Closed,
    Failed,
    Ready,
    State,
    TransactionResult,
)
from mta.smtpgreeting import LOOPS_BACK
from tests.support.smtpclient import (
    BODY,
    EHLO_ALL,
    EHLO_PIPELINING,
    EHLO_PLAIN,
    OK,
    PERMFAIL,
    TEMPFAIL,
    at_stage,
    envelope,
    envelopes,
    ready,
    sent,
)


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


class TestTwins:
    """Envelopes that came to the same address, as two aliases of one target do."""

    SAME = ("x@example.org", "y@example.org", "x@Example.ORG", "X@example.org")

    @pytest.mark.parametrize("ehlo", [EHLO_ALL, EHLO_PLAIN], ids=["pipelined", "one by one"])
    def test_are_one_recipient_whose_verdict_is_that_of_all(self, ehlo):
        """Only local parts have case. Each envelope is settled, whatever was said of which recipient."""
        session = ready(ehlo)
        session.start([envelope(rcpt) for rcpt in self.SAME], BODY, 0.0)
        said, events = sent(session), []
        replies = [
            b"250 a\r\n",
            b"250 x\r\n",
            b"550 y\r\n",
            b"451 X\r\n",
            b"354 go\r\n",
            b"250 ok\r\n",
        ]
        for reply in replies:
            events += session.receive(reply, 0.0)
            said += sent(session)
        assert [line for line in said.split(b"\r\n") if line.startswith(b"RCPT")] == [
            b"RCPT TO:<x@example.org>", b"RCPT TO:<y@example.org>", b"RCPT TO:<X@example.org>",
        ]  # fmt: skip
        taken = (OK, "250 ok")
        assert events == [
            TransactionResult((taken, (PERMFAIL, "550 y"), taken, (TEMPFAIL, "451 X")), usable=True)
        ]

    @given(
        rcpts=st.lists(st.sampled_from(SAME), min_size=1, max_size=12),
        codes=st.lists(st.sampled_from([250, 451, 550]), min_size=3, max_size=3),
        pipelining=st.booleans(),
    )
    def test_whoever_they_are_each_envelope_has_the_verdict_of_its_recipient(
        self, rcpts, codes, pipelining
    ):
        """No recipient is named twice, and none has two verdicts."""
        session = ready(EHLO_PIPELINING if pipelining else EHLO_PLAIN)
        session.start([envelope(rcpt) for rcpt in rcpts], BODY, 0.0)
        said, events = sent(session), session.receive(b"250 a\r\n", 0.0)
        said += sent(session)
        keys = list(dict.fromkeys(mailbox_key(rcpt) for rcpt in rcpts))
        verdicts = dict(zip(keys, codes, strict=False))
        for key in keys:
            events += session.receive(b"%d x\r\n" % verdicts[key], 0.0)
            said += sent(session)
        taken = 250 in verdicts.values()
        for reply in (b"354 go\r\n", b"250 x\r\n") if taken else (b"554 none\r\n", b"250 x\r\n"):
            if not events:
                events += session.receive(reply, 0.0)
                sent(session)
        assert said.count(b"RCPT TO:") == len(keys)
        (event,) = events
        assert [verdicts[mailbox_key(rcpt)] for rcpt in rcpts] == [
            int(status[:3]) for _, status in event.results
        ]

    def test_stay_apart_if_each_wants_a_report_of_its_own(self):
        """RFC 3461 4.2: whom a report is about is told in ORCPT. A host without DSN is told nothing of it."""
        mail = [envelope("x@example.org", f"RCPT:ORCPT=rfc822;{name}@a.test") for name in "ab"]
        for ehlo, count in ((EHLO_ALL, 2), (EHLO_PIPELINING, 1)):
            session = ready(ehlo)
            session.start(mail, BODY, 0.0)
            assert sent(session).count(b"RCPT TO:<x@example.org>") == count

    @pytest.mark.parametrize("stage", range(1, 5))
    def test_a_lost_connection_settles_all_alike(self, stage):
        """After whichever reply it is lost."""
        session = ready(EHLO_PLAIN)
        session.start([envelope() for _ in range(3)], BODY, 0.0)
        for reply in (b"250 a\r\n", b"250 b\r\n", b"354 c\r\n")[: stage - 1]:
            sent(session)
            session.receive(reply, 0.0)
        sent(session)
        event, _ = session.lost("gone", 0.0)
        assert {outcome for outcome, _ in event.results} == {TEMPFAIL}
        assert len(set(event.results)) == 1
        assert len(event.results) == 3
