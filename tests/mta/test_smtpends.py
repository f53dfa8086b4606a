"""How connections end: by the server, by time, by too many errors."""

import pytest

from mta.smtpclient import (
    CLOSED_BY_PEER,
    TIMED_OUT,
    Closed,
    Failed,
    Timeouts,
    TransactionResult,
)
from tests.support.smtpclient import (
    BODY,
    EHLO_PLAIN,
    OK,
    TEMPFAIL,
    at_stage,
    envelope,
    envelopes,
    ready,
    sent,
)


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
