"""A mail log, read back: our lines, OpenSMTPD's, and what is neither."""

from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.ids import EvpId, SessionId
from mta.core.reply import OUTCOME_WORDS, Outcome
from mta.outbound import delivery_line
from testbed.maillog import MailLog, read_log

SID = "65f2c3a100000001"
EV = "0123abcd00000001"


def log_of(*lines: str, stamp: str = "Nov 22 19:00:00") -> MailLog:
    return read_log([f"{stamp} mx1 mta[42]: {line}\n" for line in lines], year=2026, zone=UTC)


def connecting(sid: str = SID) -> str:
    return f"{sid} mta connecting address=smtp://127.0.0.2:25 host=mx.a.test"


class TestSessions:
    """Connections, from their lines."""

    def test_a_connection_with_tls_and_two_messages(self):
        """All that a session says is found, with the instants."""
        log = log_of(
            f"{SID} mta connecting address=smtp+tls://[::1]:2525 host=mx.a.test tls-policy=dane",
            f"{SID} mta connected",
            f"{SID} mta tls ciphers=TLSv1.3:TLS_AES_256_GCM_SHA384:256",
            f'{SID} mta cert-check result="valid" fingerprint="SHA256:00"',
            f"{SID} mta disconnected reason=quit messages=2",
        )
        (session,) = log.sessions.values()
        assert ("::1", 2525, "smtp+tls", "mx.a.test") == (
            session.address, session.port, session.scheme, session.host,
        )  # fmt: skip
        assert ("TLSv1.3:TLS_AES_256_GCM_SHA384:256", "valid") == (
            session.ciphers,
            session.certificate,
        )
        assert 2 == session.messages
        assert session.connected_at == session.ended_at == 1795374000.0
        assert [] == session.errors == log.unread

    def test_both_dialects_of_errors(self):
        """Before the first message and after it."""
        other = SID[:-1] + "2"
        log = log_of(
            connecting(),
            f"{SID} mta error reason=Connection refused",
            connecting(other),
            f"smtp-out: Error on session {other} after 3 messages sent: 421 4.3.2 closing",
        )
        one, two = log.sessions.values()
        assert (["Connection refused"], 0) == (one.errors, one.messages)
        assert (["421 4.3.2 closing"], 3) == (two.errors, two.messages)
        assert [] == log.unread

    def test_tried_again_in_clear(self):
        """The same session, with what went wrong the first time."""
        log = log_of(
            f"{SID} mta connecting address=smtp+tls://127.0.0.2:25 host=mx",
            f"{SID} mta closing reason=tls-failure: handshake failure",
            f"smtp-out: Error on session {SID}: opportunistic TLS failed, downgrading to plain",
            f"{SID} mta connecting address=smtp+notls://127.0.0.2:25 host=mx",
            f"{SID} mta connected",
        )
        (session,) = log.sessions.values()
        assert "smtp+notls" == session.scheme
        assert 2 == len(session.errors)
        assert session.ended_at is None

    def test_hosts_that_reject_all(self):
        """It is remembered with the connection."""
        log = log_of(connecting(), f"{SID} mta host-rejects-all-mails")
        assert log.sessions[SID].rejects_all


class TestAttempts:
    """Deliveries, by envelope."""

    def test_they_are_counted(self):
        """The first failed without a connection, the second over one."""
        start = f"mta delivery evpid={EV} from=<a@b> to=<c@d.test> rcpt=<->"
        log = log_of(
            f'{"0" * 16} {start} source="-" relay="d.test" delay=1s result="TempFail" stat="Connection refused"',
            f'{SID} {start} source="127.0.0.5" relay="127.0.0.2 (mx.d.test)" delay=1d2h3m4s result="Ok"'
            ' stat="250 2.0.0 Ok "quoted""',
        )
        one, two = log.attempts[EV]
        assert (1, "", "", "", "d.test", 1) == (
            one.number, one.session, one.address, one.host, one.relay, one.delay_s,
        )  # fmt: skip
        assert (2, SID, "127.0.0.2", "mx.d.test", "127.0.0.5") == (
            two.number, two.session, two.address, two.host, two.source,
        )  # fmt: skip
        assert 93_784 == two.delay_s
        assert ("Ok", '250 2.0.0 Ok "quoted"') == (two.result, two.status)

    def test_opensmtpd_without_quotes(self):
        """As logs of 2016 to 2018 have it."""
        log = log_of(
            f"{SID} mta delivery evpid={EV} from=<> to=<c@d> rcpt=<e@f> source=192.0.2.1 relay=192.0.2.2 (mx)"
            " delay=0s result=PermFail stat=550 No",
        )
        (attempt,) = log.attempts[EV]
        assert ("192.0.2.1", "192.0.2.2", "mx", "e@f", "550 No") == (
            attempt.source, attempt.address, attempt.host, attempt.rcpt, attempt.status,
        )  # fmt: skip

    @given(
        status=st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=80),
        outcome=st.sampled_from([Outcome.OK, Outcome.TEMPFAIL, Outcome.PERMFAIL]),
        delay=st.integers(0, 10**7),
        local=st.from_regex(r"[!-;=?-~]{1,20}", fullmatch=True),
        source=st.sampled_from(["", "127.0.0.2", "::1"]),
    )
    def test_what_our_server_writes_is_read_back(self, status, outcome, delay, local, source):
        """Whatever a host replies, with quotes, with what looks like a line of ours."""
        line = delivery_line(
            SessionId(7),
            EvpId(9),
            sender=f"{local}@a.test",
            rcpt=f"{local}@b.test",
            source=source,
            relay="127.0.0.2 (mx.b.test)",
            delay_s=float(delay),
            outcome=outcome,
            status=status,
        )
        log = log_of(line)
        (attempt,) = log.attempts[f"{9:016x}"]
        assert (f"{local}@a.test", f"{local}@b.test") == (attempt.sender, attempt.to)
        assert (source, delay, status) == (attempt.source, attempt.delay_s, attempt.status)
        assert OUTCOME_WORDS[outcome] == attempt.result


class TestTheRest:
    """Routes, holds, look-ups, ends; and what is not understood."""

    def test_routes(self):
        """Disabled for so long, enabled by time or by the operator."""
        log = log_of(
            "smtp-out: Disabling route [] <-> 127.0.0.2 for 15s",
            "smtp-out: Disabling route 127.0.0.9 <-> 127.0.0.2 (mx.a.test) for 0.5s",
            "smtp-out: Enabling route [] <-> 127.0.0.2",
            "smtp-out: Enabling route [] <-> 127.0.0.2 per admin request",
        )
        assert [
            ("", 15.0, False),
            ("127.0.0.9", 0.5, False),
            ("", None, False),
            ("", None, True),
        ] == [(change.source, change.rest_s, change.by_operator) for change in log.routes]
        assert {"127.0.0.2"} == {change.address for change in log.routes}

    def test_holds_and_troubles(self):
        """By relay."""
        log = log_of(
            "smtp-out: hiwat reached on [relay:a.test]: holding envelopes",
            "smtp-out: back to lowat on [relay:[127.0.0.1]]: releasing",
            "smtp-out: Failed to resolve MX for [relay:b.test,smtp]: 451 4.4.3 Temporary failure",
            "smtp-out: Address family mismatch on [relay:c.test]",
            "smtp-out: Error on 127.0.0.9 <-> 127.0.0.2: Cannot assign requested address",
        )
        assert [("a.test", True), ("[127.0.0.1]", False)] == [(h.relay, h.on) for h in log.holds]
        assert ["b.test,smtp", "c.test", "127.0.0.9 <-> 127.0.0.2"] == [
            t.name for t in log.troubles
        ]
        assert [] == log.unread

    def test_ends_without_an_attempt(self):
        """Expired, and removed by the operator."""
        log = log_of(
            f"relay: Expire for {EV}: from=<a@b>, to=<c@d>, rcpt=<->, delay=4d, stat=Envelope expired",
            f"delivery: Remove for {EV}: from=<>, to=<c@d>, rcpt=<->, delay=2s, stat=Removed by administrator",
        )
        assert [("Expire", 345_600), ("Remove", 2)] == [(end.word, end.delay_s) for end in log.ends]

    @pytest.mark.parametrize(
        "line",
        [
            f"{SID} mta connected",
            f"{SID} mta something new",
            f"{SID} mta delivery evpid=1 from=<>",
            f'{SID} mta delivery evpid={EV} from=<> to=<a> rcpt=<-> source="-" relay="x" delay=s result="Ok" stat=""',
            "smtp-out: something new",
            f"smtp-out: Error on session {SID}: who?",
            f"relay: Expire for {EV}: from=<>, to=<a>, rcpt=<->, delay=soon, stat=x",
        ],
    )
    def test_nothing_is_guessed(self, line):
        """What is not understood is kept."""
        assert 1 == len(log_of(line).unread)

    def test_a_disconnect_without_a_count_is_kept_only_if_it_is_one(self):
        """OpenSMTPD before 2016 had no count."""
        log = log_of(
            connecting(),
            f"{SID} mta disconnected reason=quit",
            connecting(),
            f"{SID} mta disconnected reason=x messages=y",
        )
        assert 1 == len(log.unread)

    def test_other_lines_are_left_out(self):
        """Those of the way in, of other programs, and what has no date."""
        log = log_of(
            f"{SID} smtp connected address=127.0.0.1 host=x", "smtp listening on 127.0.0.1:25"
        )
        log.read(["postfix/smtp: nothing of ours", "", "Nov 22 19:00:00 mx1 cron[1]: job"])
        assert [] == log.unread

    def test_over_new_year(self):
        """The year is that of the first line, and goes on."""
        lines = [
            f"{stamp} mx1 mta[1]: {connecting(SID[:-1] + sid)}"
            for stamp, sid in (("Dec 31 23:59:59", "3"), ("Jan  1 00:00:00", "4"))
        ]
        log = read_log(lines, year=2025, zone=UTC)
        first, second = (session.connecting_at for session in log.sessions.values())
        assert 1.0 == second - first
