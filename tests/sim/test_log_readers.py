"""Mail logs read back: what was written, by three servers, whole or in pieces, and what nobody wrote."""

import bz2
import gzip
import lzma
import os
import random
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.core.reply import Outcome
from mta.core.settings import ConfigError
from sim.logs.lines import LINE_MAX, Clock
from sim.logs.postfix import made_of
from sim.logs.reader import READERS, feed, read
from sim.logs.record import Record
from sim.logs.writers import OTHERS, SEVERAL

DATA = Path(__file__).parents[1] / "data" / "maillog"
START = datetime(2026, 11, 22, 21, 55, 50, tzinfo=UTC).timestamp()


def record_of(kind: str, *lines: str | bytes, **limits: int) -> Record:
    record = Record(**limits)
    raws = [line if isinstance(line, bytes) else line.encode() for line in lines]
    feed(raws, READERS[kind](record), record, Clock(2026))
    return record


def postfix(*texts: str, tag: str = "postfix", **limits: int) -> Record:
    """Read lines given as ``second daemon: text``."""
    lines = []
    for text in texts:
        second, daemon, rest = text.split(" ", 2)
        stamp = datetime.fromtimestamp(START + int(second), UTC).strftime("%b %e %H:%M:%S")
        lines.append(f"{stamp} mx1 {tag}/{daemon.rstrip(':')}[7]: {rest}")
    return record_of("postfix", *lines, **limits)


A = "4C3A51F2B0"
SENT = (
    "delay=0.5, delays=0.1/0.1/0.2/0.1, dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as 4C3A51F2B1)"
)
LIFE = (
    f"0 smtpd: {A}: client=a.test[192.0.2.1]",
    f"0 cleanup: {A}: message-id=<1@a.test>",
    f"0 qmgr: {A}: from=<a@a.test>, size=512, nrcpt=2 (queue active)",
    f"1 smtp: {A}: to=<b@b.test>, relay=mx.b.test[192.0.2.2]:25, {SENT}",
    f"1 smtp: {A}: to=<c@c.test>, orig_to=<d@d.test>, relay=none, delay=1, delays=0.1/0.1/0.8/0, dsn=4.4.1,"
    " status=deferred (connect to mx.c.test[192.0.2.3]:25: Connection refused)",
    f"300 qmgr: {A}: from=<a@a.test>, size=512, nrcpt=2 (queue active)",
    f"301 error: {A}: to=<c@c.test>, relay=none, delay=301, delays=300/1/0/0, dsn=4.4.1,"
    " status=deferred (delivery temporarily suspended: connect to mx.c.test[192.0.2.3]:25: Connection refused)",
    f"900 smtp: {A}: to=<c@c.test>, relay=mx.c.test[192.0.2.3]:25, conn_use=3, delay=900, delays=899/0/0/1,"
    " tls=TLSv1.3, dsn=5.1.1, status=bounced (host mx.c.test[192.0.2.3] said: 550 5.1.1 <c@c.test>: no such user"
    " (in reply to RCPT TO command))",
    "900 cleanup: 51D2E0B1A2: message-id=<2@mx1>",
    f"900 bounce: {A}: sender non-delivery notification: 51D2E0B1A2",
    f"900 qmgr: {A}: removed",
    "900 qmgr: 51D2E0B1A2: from=<>, size=2048, nrcpt=1 (queue active)",
    f"901 smtp: 51D2E0B1A2: to=<a@a.test>, relay=mx.a.test[192.0.2.1]:25, {SENT}",
    "901 qmgr: 51D2E0B1A2: removed",
)  # fmt: skip


class TestPostfix:
    def test_the_life_of_a_message(self):
        """Delivered, deferred by the network, put off unasked, refused for good, reported."""
        record = postfix(*LIFE)
        assert {} == record.kinds
        assert (2, 3, 5, 0) == (record.messages, record.recipients, len(record), record.open)
        assert [512, 2048] == list(record.size)
        assert [0, 1] == list(record.is_report)
        assert ["b.test", "c.test", "a.test"] == record.domains.names
        found = list(record.attempts())
        assert [
            (0, Outcome.OK, True, True),
            (1, Outcome.TEMPFAIL, True, False),
            (1, Outcome.TEMPFAIL, False, False),
            (1, Outcome.PERMFAIL, True, True),
            (2, Outcome.OK, True, True),
        ] == [(each.recipient, each.outcome, each.tried, each.connected) for each in found]
        assert [0.3, 0.8, 0.0, 1.0, 0.3] == pytest.approx([each.service_s for each in found])
        assert [0.1, 0.1] == list(record.queued_s)
        # The id says .312240; the delays do the rest, as far as they are exact.
        assert START + 0.31224 == pytest.approx(record.arrived_at[0], abs=1e-4)
        assert START + 0.81224 == pytest.approx(found[0].at, abs=1e-4)
        assert START + 900 == found[3].at == record.gone_at[1]
        assert "550 5.1.1 <c@c.test>: no such user" in record.replies.names

    @pytest.mark.parametrize("tag", ["postfix", "postfix-out", "postfix/relay", "mail"])
    def test_the_name_of_a_daemon_is_its_last_part(self, tag: str):
        """Whatever instance or service it is."""
        record = postfix(*LIFE, tag=tag)
        assert (5, {}) == (len(record), record.kinds)

    def test_long_ids_hold_the_instant(self):
        """To the microsecond, and in another zone than the log's."""
        assert made_of("4jXjYz27XczK5Wy") == pytest.approx(1795384551.301632)
        line = "Nov 22 23:55:51 mx1 postfix/smtpd[7]: 4jXjYz27XczK5Wy: client=a.test[192.0.2.1]"
        record = record_of("postfix", line)
        assert [1795384551.301632 + 7200] == pytest.approx(list(record.arrived_at))

    @pytest.mark.parametrize(
        "key", ["", "z", "4jXjYz27Xcz", "aaaaaaaaaaaaaaz1", "0123456789z1", "GHIJKL", "FFFFF1"]
    )
    def test_what_is_no_id_has_no_instant(self, key: str):
        """Vowels, too many microseconds, another century."""
        assert made_of(key) is None

    def test_a_log_that_begins_late_knows_when_mail_came(self):
        """From the delay of the first attempt that it has; the size nobody knows."""
        record = postfix(LIFE[7], f"902 qmgr: {A}: removed")
        assert {"message seen for the first time at an attempt": 1} == record.kinds
        assert ([1], [-1]) == (list(record.is_late), list(record.size))
        assert [START] == list(record.arrived_at)

    def test_an_old_message_that_is_tried_again_first(self):
        """Its short id has only the fraction of a second; the delay says that it is old."""
        record = postfix(
            "600 smtpd: 5AAAA11111: client=a.test[192.0.2.1]",
            LIFE[5].replace("300 ", "800 "),
            LIFE[7],
        )
        number = record.message_of[0]
        assert (1, START) == (record.is_late[number], record.arrived_at[number])

    def test_an_id_that_is_used_again_is_another_message(self):
        """Short ids are; even if the log lost the line that says that the first one is gone."""
        later = [f"{int(line.split()[0]) + 1000} {line.split(' ', 1)[1]}" for line in LIFE]
        record = postfix(*LIFE[:-4], *later)
        assert (3, 9, {}) == (record.messages, len(record), record.kinds)

    def test_too_old(self):
        """Whoever is left when a message expires is gone."""
        record = postfix(*LIFE[:7], f"500 qmgr: {A}: from=<a@a.test>, status=expired, returned to sender",
                         f"500 qmgr: {A}: removed")  # fmt: skip
        assert [START + 500] == list(record.gone_at)[1:]
        assert {"message given up: too old": 1} == record.kinds

    def test_refusals_at_the_door_are_counted(self):
        """By class."""
        record = postfix(
            "0 smtpd: NOQUEUE: reject: RCPT from x[192.0.2.9]: 450 4.7.1 <a@b>: greylisted; from=<> to=<a@b>",
            "0 smtpd: NOQUEUE: reject: RCPT from x[192.0.2.9]: 554 5.7.1 <a@b>: Relay access denied; from=<> to=<a@b>",
            f"0 cleanup: {A}: milter-reject: END-OF-MESSAGE from x[192.0.2.9]: 550 5.7.1 virus; from=<> to=<a@b>",
        )
        assert {"refused at the door: 4xx": 1, "refused at the door: 5xx": 2} == record.kinds

    def test_local_mail_and_probes(self):
        """Who is delivered to here has a relay too; what verify asks is no mail."""
        record = postfix(
            *LIFE[:3],
            f"1 local: {A}: to=<root@mx1.test>, relay=local, delay=0.1, delays=0.1/0/0/0, dsn=2.0.0, status=sent (delivered to mailbox)",
            f"1 smtp: {A}: to=<x@b.test>, relay=mx.b.test[192.0.2.2]:25, delay=1, delays=0/0/0/1, dsn=2.1.5, status=deliverable (250 Ok)",
        )
        assert (1, {}) == (len(record), record.kinds)

    def test_the_recorded_log(self):
        """Of 3,246 messages and 122 warm-ups: nothing is left, everything is understood, 8 were refused for good."""
        mail = read([str(DATA / "postfix.log.bz2")])
        record = mail.record
        assert ("postfix", 18_446, {}) == (mail.kind, mail.lines, record.kinds)
        outcomes = Counter(each.outcome for each in record.attempts())
        assert {Outcome.OK: 3925, Outcome.TEMPFAIL: 404, Outcome.PERMFAIL: 8} == outcomes
        assert (0, 8) == (record.open, sum(record.is_report))
        assert all(at == at for at in record.gone_at)


class TestExim:
    LINES = (
        "2026-11-22 21:55:50 1xVFZs-00000N-1G <= a@a.test H=(c.test) [192.0.2.1] P=esmtp S=2118 id=1@a.test for b@b.test c@c.test",
        "2026-11-22 21:55:51.500 1xVFZs-00000N-1G => b@b.test R=dns T=smtp H=mx.b.test [192.0.2.2] C=\"250 ok\" QT=1.5s DT=0.250s",
        "2026-11-22 21:55:52 1xVFZs-00000N-1G == c@c.test R=dns T=smtp defer (-44): SMTP error from remote mail server after RCPT TO:<c@c.test>: 451 4.7.1 later",
        "2026-11-22 21:55:53 1xVFZs-00000N-1G == c@c.test R=dns T=smtp defer (-54): retry time not reached for any host",
        "2026-11-22 21:55:54 1xVFZs-00000N-1G == c@c.test R=dns T=smtp H=mx.c.test [192.0.2.3] defer (111): Connection refused",
        "2026-11-22 21:55:55 1xVFZs-00000N-1G ** c@c.test: retry timeout exceeded",
        "2026-11-22 21:55:55 1xVFZt-00000N-2G <= <> R=1xVFZs-00000N-1G U=exim P=local S=999",
        "2026-11-22 21:55:55 1xVFZs-00000N-1G Completed",
        "2026-11-22 21:55:56 1xVFZt-00000N-2G => anna <a@a.test> R=local T=mail",
        "2026-11-22 21:55:56 1xVFZt-00000N-2G Completed",
        "2026-11-22 21:55:57 H=(x) [192.0.2.9] F=<> temporarily rejected RCPT <a@b>: busy",
    )  # fmt: skip

    def test_the_life_of_a_message(self):
        """Arrival, delivery, three kinds of deferral, failure, report."""
        record = record_of("exim", *self.LINES)
        assert (2, 3, 6, 0) == (record.messages, record.recipients, len(record), record.open)
        assert ([0, 1], [2118, 999]) == (list(record.is_report), list(record.size))
        assert [2, 0] == list(record.promised)
        found = list(record.attempts())
        assert [
            (Outcome.OK, True, True), (Outcome.TEMPFAIL, True, True), (Outcome.TEMPFAIL, False, True),
            (Outcome.TEMPFAIL, True, False), (Outcome.PERMFAIL, True, True), (Outcome.OK, True, True),
        ] == [(each.outcome, each.tried, each.connected) for each in found]  # fmt: skip
        assert found[0].service_s == 0.25
        assert record.replies[found[1].reply] == "451 4.7.1 later"
        assert record.domains.names == ["b.test", "c.test", "a.test"]
        assert record.kinds["refused at the door: 4xx"] == 1

    def test_what_is_strange(self):
        """An arrival without a size, a delivery to nobody, one that was only tried out, a removal by the operator."""
        record = record_of(
            "exim",
            "2026-11-22 21:55:50 1xVFZs-00000N-1G <= a@a.test H=c",
            "2026-11-22 21:55:51 1xVFZs-00000N-1G => ",
            "2026-11-22 21:55:51 1xVFZs-00000N-1G *> b@b.test R=dns T=smtp",
            "2026-11-22 21:55:52 1xVFZs-00000N-1G == b@b.test R=dns T=smtp defer (-44): 451 later",
            "2026-11-22 21:55:53 1xVFZs-00000N-1G removed by root",
            "2026-11-22 21:55:53 1xVFZs-00000N-1G Completed",
            "2026-11-22 21:55:54 1xVFZx-00000N-1G -> c@c.test R=dns T=smtp H=mx [192.0.2.1] DT=1m3.5s",
        )
        assert 2 == record.kinds["line not understood"]
        assert 1 == record.kinds["message seen for the first time at an attempt"]
        assert [False, False] == [at != at for at in record.gone_at]
        assert [0.0, 63.5] == list(record.service_s)

    def test_the_same_in_syslog(self):
        """The prefix is syslog's, the rest is the same."""
        plain = record_of("exim", *self.LINES)
        syslog = record_of(
            "exim",
            *(f"Nov 22 {line[11:19]} mx1 exim[7]: {line.split(' ', 2)[2]}" for line in self.LINES),
        )
        assert len(plain) == len(syslog)
        assert list(plain.outcome) == list(syslog.outcome)

    def test_syslog_with_exims_own_instant(self):
        """The default of syslog_timestamp: the instant is there twice."""
        plain = record_of("exim", *self.LINES)
        syslog = record_of(
            "exim", *(f"Nov 22 {line[11:19]} mx1 exim[7]: {line}" for line in self.LINES)
        )
        assert bytes(plain.outcome) == bytes(syslog.outcome)
        assert list(plain.arrived_at) == list(syslog.arrived_at)
        assert plain.kinds == syslog.kinds

    def test_a_subject_is_no_list_of_recipients(self):
        """With +subject, what a stranger wrote stands before what Exim says."""
        line = (
            "2026-11-22 21:55:50 1xVFZs-00000N-1G <= a@a.test H=x [192.0.2.1] P=esmtp S=512"
            ' T="Offer for you@all.test and S=9 more" from <a@a.test> for b@b.test c@c.test'
        )
        record = record_of("exim", line)
        assert (2, 512) == (record._open["1xVFZs-00000N-1G"].due, record.size[0])

    def test_the_recorded_log(self):
        """Half of it was for a host that refuses connections, and is there to the end."""
        mail = read([str(DATA / "exim-mainlog.xz")])
        record = mail.record
        assert ("exim", 6120, 6120) == (mail.kind, record.messages, record.recipients)
        assert 3045 == record.open == sum(1 for at in record.gone_at if at != at)
        assert {"delivery without DT: taken to begin with the message": 3075} == record.kinds


SID, EV = "99326ba3e6689a44", "9b46baf48c8ec8f5"


def opensmtpd(*texts: str) -> Record:
    return record_of(
        "opensmtpd",
        *(f"Nov 22 21:55:{50 + int(text[0])} mx1 smtpd[7]: {text[2:]}" for text in texts),
    )


class TestOpenSmtpd:
    def test_the_life_of_a_message(self):
        """Put off without a connection, then delivered over one."""
        record = opensmtpd(
            f"0 {SID} smtp connected address=192.0.2.1 host=a.test",
            f"0 {SID} smtp message msgid=9b46baf4 size=4200 nrcpt=1 proto=ESMTP",
            f"0 {SID} smtp envelope evpid={EV} from=<a@a.test> to=<b@b.test>",
            f'1 0000000000000000 mta delivery evpid={EV} from=<a@a.test> to=<b@b.test> rcpt=<-> source="-"'
            ' relay="b.test" delay=1s result="TempFail" stat="Network error on destination MXs"',
            "2 99326ba3e6689a45 mta connecting address=smtp://192.0.2.2:25 host=mx.b.test",
            f"5 99326ba3e6689a45 mta delivery evpid={EV} from=<a@a.test> to=<b@b.test> rcpt=<-> source=192.0.2.1"
            " relay=192.0.2.2 (mx.b.test) delay=5s result=Ok stat=250 2.0.0 Ok: queued",
            "5 99326ba3e6689a45 mta disconnected reason=quit messages=1",
        )
        assert ({}, 1, 0) == (record.kinds, record.messages, record.open)
        first, second = record.attempts()
        assert (Outcome.TEMPFAIL, False, False) == (first.outcome, first.tried, first.connected)
        assert (Outcome.OK, True, True, 3.0) == (
            second.outcome,
            second.tried,
            second.connected,
            second.service_s,
        )
        assert record.hosts[second.host] == "192.0.2.2 (mx.b.test)"

    def test_the_sentences_of_2013_and_local_mail(self):
        """The first dialect, with and without the comma that was forgotten."""
        record = opensmtpd(
            f"0 smtp-in: Accepted message 9b46baf4 on session {SID}: from=<a@a.test>, to=<b@b.test>, size=17, ndest=2, proto=ESMTP",
            f"1 relay: Ok for {EV}: from=<a@a.test>, to=<b@b.test>, relay=mx.b.test delay=1s, stat=250 Ok",
            "1 delivery: TempFail for 9b46baf48c8ec8f6: from=<a@a.test>, to=<c@a.test>, user=c, method=mbox, delay=1s, stat=Error",
            f"3 {SID} mda delivery evpid=9b46baf48c8ec8f6 from=<a@a.test> to=<c@a.test> rcpt=<c@a.test> user=c delay=3s result=Ok stat=Delivered",
        )
        assert ({}, 1, 2, 0) == (record.kinds, record.messages, record.recipients, record.open)
        assert [0, 1, 0] == list(record.outcome)

    def test_reports_and_what_was_given_up(self):
        """A message over a session of its own from nobody is a report; an envelope that became too old is gone."""
        record = opensmtpd(
            f"0 {SID} smtp connected address=local host=mx1",
            f"0 {SID} smtp message msgid=9b46baf4 size=4200 nrcpt=1 proto=ESMTP",
            f"0 {SID} smtp envelope evpid={EV} from=<> to=<b@b.test>",
            f"3 relay: Expire for {EV}: from=<>, to=<b@b.test>, rcpt=<->, delay=4d, stat=Envelope expired",
        )
        assert ([1], 0) == (list(record.is_report), record.open)
        assert {"envelope given up: too old": 1} == record.kinds

    def test_the_recorded_log(self):
        """Of 6.8, with stamps of journald: 31 reports came in over sessions of its own."""
        mail = read([str(DATA / "opensmtpd.log.xz")])
        record = mail.record
        assert ("opensmtpd", 1771, {}) == (mail.kind, record.messages, record.kinds)
        assert (31, 2334) == (sum(record.is_report), record.recipients)
        outcomes = Counter(each.outcome for each in record.attempts())
        assert {Outcome.OK: 2256 + 31, Outcome.TEMPFAIL: 66, Outcome.PERMFAIL: 31} == outcomes
        # With fractions of seconds a transaction's time can be told.
        taken = sorted(each.service_s for each in record.attempts() if each.outcome is Outcome.OK)
        assert 0.005 < taken[len(taken) // 2] < 0.5

    def test_this_servers_log_is_known_by_its_name(self):
        """A delivery that is logged before the message that it is of is nothing special."""
        record = Record()
        reader = READERS["opensmtpd"](record)
        text = (
            f'{SID} mta delivery evpid={EV} from=<a@a> to=<b@b> rcpt=<-> source="-" relay="127.0.0.2 (mx)" delay=0s result="Ok" stat="250 Ok"',
            f"{SID} smtp message msgid=9b46baf4 size=4200 nrcpt=1 proto=ESMTP",
        )
        feed(
            [f"Nov 22 21:55:50 mx1 mta[7]: {line}".encode() for line in text],
            reader,
            record,
            Clock(2026),
        )
        assert ("ours", 1, [4200], 0) == (
            reader.name,
            record.messages,
            list(record.size),
            record.open,
        )

    def test_this_servers_reports(self):
        """Named by the envelope that the report is, before or after its delivery; the message that it is of is none."""
        record = opensmtpd(
            f"0 {SID} smtp message msgid=9b46baf4 size=4200 nrcpt=1 proto=ESMTP",
            f'1 {SID} mta delivery evpid={EV} from=<a@a.test> to=<b@b.test> rcpt=<-> source="-" relay="127.0.0.2 (mx)"'
            ' delay=1s result="PermFail" stat="550 5.1.1 No"',
            "1 0000000700000001 bounce message=9b46baf4 to=<a@a.test> envelopes=1 kind=failed",
            f'2 {SID} mta delivery evpid=0000000700000001 from=<> to=<a@a.test> rcpt=<-> source="-" relay="127.0.0.2 (mx)"'
            ' delay=1s result="Ok" stat="250 2.0.0 Ok"',
        )
        assert ([0, 1], {}, 0) == (list(record.is_report), record.kinds, record.open)
        assert [0, 1] == [record.message_of[each.recipient] for each in record.attempts()]

    def test_refusals_at_the_door_and_sessions_without_an_end(self):
        """By class; and what is remembered of sessions has a limit."""
        record = opensmtpd(
            f'0 {SID} smtp failed-command command="RCPT TO:<x@y>" result="550 Invalid recipient"',
            f'0 {SID} smtp failed-command command="RCPT TO:<x@y>" result="451 Try again"',
            *(f"1 {i:016x} mta connecting address=smtp://192.0.2.2:25 host=mx" for i in range(30)),
        )
        assert {"refused at the door: 5xx": 1, "refused at the door: 4xx": 1} == record.kinds

    def test_what_it_says_wrongly_is_counted(self):
        """A delay that is none, a line cut off."""
        record = opensmtpd(
            f"1 {SID} mta delivery evpid={EV} from=<a@a.test> to=<b@b.test> rcpt=<-> source=- relay=b delay=soon result=Ok stat=x",
            f"1 {SID} mta delivery evpid={EV} from=<a@a.te",
        )
        assert {"line not understood": 2} == record.kinds


class TestFiles:
    def test_a_rotated_set_in_any_order(self, tmp_path: Path):
        """Plain, gzip, bzip2, xz: what the bytes say, not the names; read by their first instants."""
        lines = bz2.decompress((DATA / "postfix.log.bz2").read_bytes()).splitlines(keepends=True)
        parts = [b"".join(lines[i::1][:6000]) for i in (0, 6000, 12000)] + [b"".join(lines[18000:])]
        packers = (gzip.compress, bz2.compress, lzma.compress, bytes)
        names = ["mail.log.3.gz", "mail.log.2.dat", "mail.log.1", "mail.log"]
        for name, part, pack in zip(names, parts, packers, strict=True):
            (tmp_path / name).write_bytes(pack(part))
            os.utime(tmp_path / name, (START + 86_400 * 2, START + 86_400 * 2))
        whole = read([str(DATA / "postfix.log.bz2")]).record
        for order in (names, names[::-1]):
            mail = read([str(tmp_path / name) for name in order])
            assert [path.name for path in mail.files] == names
            assert bytes(mail.record.outcome) == bytes(whole.outcome)
            assert {} == mail.record.kinds
        assert bytes(read([str(tmp_path)]).record.outcome) == bytes(whole.outcome)

    @pytest.mark.parametrize("name", ["mx1", "MX1", "mx1.example.net"])
    def test_one_host_of_a_central_log(self, tmp_path: Path, name: str):
        """Of three servers in one file, one an Exim, only the named one is read: as if the file were its own."""
        lines = bz2.decompress((DATA / "postfix.log.bz2").read_bytes()).splitlines(keepends=True)
        own = [line.replace(b" relay ", b" mx1.example.net ", 1) for line in lines[:3000]]
        assert all(b" mx1.example.net " in line for line in own)
        exim = b"2026-11-22T21:55:10Z mx2 exim[9]: 2026-11-22 21:55:10 1tEWm2-000000001aB-0000 <= mx1@a.test U=x P=local S=512\n"
        mixed = tmp_path / "central.log"
        # The others speak first, and of the one that is meant.
        mixed.write_bytes(
            exim * 6000
            + b"".join(
                part for line in own for part in (line, line.replace(b"mx1.", b"mx3."), exim)
            )
        )
        (tmp_path / "own.log").write_bytes(b"".join(own))
        for path in tmp_path.iterdir():
            os.utime(path, (START + 86_400 * 2, START + 86_400 * 2))
        whole = read([str(tmp_path / "own.log")])
        found = read([str(mixed)], host=name)
        assert ("postfix", 3000) == (found.kind, found.lines)
        assert bytes(found.record.outcome) == bytes(whole.record.outcome)
        assert found.record.messages == whole.record.messages > 100
        assert whole.record.kinds | {OTHERS: 12_000} == found.record.kinds
        with pytest.raises(ConfigError) as caught:
            read([str(mixed)], host="mx")
        assert (
            '--host: "mx": wrote nothing of this; lines are of mx1.example.net, mx2, mx3.example.net'
            == str(caught.value)
        )

    @pytest.mark.parametrize("together", [True, False])
    def test_two_servers_are_told(self, tmp_path: Path, together: bool):
        """One is read, and that there is another is said: in the same file, or in one of its own."""
        ours = [f"2026-11-22T21:55:10Z mx1 postfix/{line[2:]}" for line in LIFE[:4]]
        ours = [line.replace(": ", "[7]: ", 1) for line in ours]
        other = ["2026-11-22 21:55:50 1xVFZs-00000N-1G Completed"] * 3
        (tmp_path / "a.log").write_text("\n".join(ours + other * together) + "\n")
        if not together:
            (tmp_path / "b.log").write_text("\n".join(other) + "\n")
        mail = read([str(tmp_path)])
        assert ("postfix", 1) == (mail.kind, mail.record.messages)
        note = "line of exim at the beginning of a file, left out with the rest"
        assert {note: 3} == mail.record.kinds

    def test_the_year_is_that_of_the_file(self, tmp_path: Path):
        """The last that is not after it was written; or what is said."""
        path = tmp_path / "mail.log"
        path.write_text("Dec 31 23:59:50 mx1 postfix/smtpd[7]: 4C3A51F2B0: client=a\n"
                        "Jan  1 00:00:10 mx1 postfix/smtpd[7]: 4C3A51F2B1: client=a\n")  # fmt: skip
        written_at = datetime(2026, 1, 1, 8, tzinfo=UTC).timestamp()
        os.utime(path, (written_at, written_at))
        first, last = read([str(path)]).record.arrived_at
        assert datetime.fromtimestamp(first, UTC).year == 2025
        assert 19 <= last - first <= 21
        assert (
            datetime.fromtimestamp(read([str(path)], year=2013).record.arrived_at[0], UTC).year
            == 2013
        )

    def test_a_damaged_file_is_read_as_far_as_it_goes(self, tmp_path: Path):
        """And that is counted."""
        path = tmp_path / "mail.log.gz"
        text = bz2.decompress((DATA / "postfix.log.bz2").read_bytes())
        path.write_bytes(gzip.compress(text)[:-20_000])
        mail = read([str(path)])
        assert mail.record.kinds["file damaged: it ends early"] == 1
        assert 1000 < mail.record.messages < 3368

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b"", "not one message in 0 lines"),
            (b"Nov 22 21:55:50 mx1 sshd[7]: hello\n" * 3, "no log of Postfix, OpenSMTPD or Exim"),
            (bytes(range(256)) * 99, "no log of Postfix"),
        ],
    )
    def test_what_is_no_log_is_one_line(self, tmp_path: Path, content: bytes, problem: str):
        """With the file's name."""
        path = tmp_path / "x.log"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=problem) as caught:
            read([str(path)])
        assert str(path) in str(caught.value)

    def test_what_is_not_there_is_one_line(self, tmp_path: Path):
        """A missing file, an empty directory, a kind nobody knows, and the wrong kind."""
        for names, kind in (
            ([str(tmp_path / "no.log")], ""),
            ([str(tmp_path)], ""),
            (["x"], "sendmail"),
        ):
            with pytest.raises(ConfigError) as caught:
                read(names, kind=kind)
            assert "\n" not in str(caught.value)
        with pytest.raises(ConfigError, match="no exim log"):
            read([str(DATA / "postfix.log.bz2")], kind="exim")


class TestLimits:
    def test_open_messages_have_a_limit(self):
        """The oldest is forgotten, which is counted; its next line is an unknown message's."""
        came = [f"0 smtpd: {i:05X}ABCDE: client=a" for i in range(10)]
        record = postfix(
            *came, "1 qmgr: 00000ABCDE: removed", "1 qmgr: 00009ABCDE: removed", open_max=3
        )
        assert {
            "message forgotten: too many at once": 7,
            "end of an unknown message": 1,
        } == record.kinds
        assert (10, 2) == (record.messages, record.open)

    def test_messages_have_a_limit(self):
        """What comes then is counted and left out."""
        record = postfix(*LIFE, messages_max=1)
        assert record.messages == 1
        # cleanup, bounce, qmgr and smtp each speak of the second one
        assert record.kinds["message beyond the limit"] == 4

    def test_names_have_a_limit(self):
        """More are all the same one."""
        record = Record()
        record.domains._limit = 2
        assert [0, 1, 2, 2, 0] == [
            record.domains.number(name) for name in ("a", "b", "c", "d", "a")
        ]
        assert record.domains.names == ["a", "b", "other"]

    def test_a_line_of_100_kb(self):
        """Only its beginning is looked at."""
        long = LIFE[3][2:].replace("queued as", "queued as" + "x" * 100_000)
        record = postfix(*LIFE[:3], "1 " + long)
        assert (1, {"line cut: too long": 1}) == (len(record), record.kinds)
        assert len(long) > LINE_MAX

    def test_a_few_lines_of_a_wrong_clock_are_left_out(self):
        """A machine that starts has no clock; what it says meanwhile is not 56 years of a log, nor 8000."""
        lines = [f"2026-11-22T21:55:{10 + i}Z mx1 postfix/qmgr[7]: x" for i in range(40)]
        for year in (1970, 9998):
            strays = [f"{year}-01-01T00:00:0{i}Z mx1 postfix/qmgr[7]: x" for i in range(5)]
            record = record_of("postfix", *lines[:20], *strays, *lines[20:])
            assert {"line of a wrong clock": 5} == record.kinds
            assert record.last_at - record.first_at == 39

    def test_a_log_with_a_gap_goes_on_after_it(self):
        """However few lines follow, and however many."""
        first = [f"2026-01-22T21:55:{10 + i}Z mx1 postfix/qmgr[7]: x" for i in range(40)]
        for count in (1, 1000, 1001, 3000):
            later = ["2026-11-22T21:55:50Z mx1 postfix/qmgr[7]: x"] * count
            record = record_of("postfix", *first, *later)
            assert {} == record.kinds
            assert record.last_at - record.first_at > 300 * 86_400

    def test_several_hosts_are_told(self):
        """They are read as one server, which is a mistake if mail goes from one to the other."""
        lines = [f"2026-11-22T21:55:10Z mx{i % 3} postfix/qmgr[7]: x" for i in range(40)]
        assert {SEVERAL: 3} == record_of("postfix", *lines).kinds

    def test_what_a_crash_left_does_not_hide_a_line(self):
        """A block of NULs, and what is written after it on the same line."""
        lines = [f"2026-11-22T21:55:{10 + i}Z mx1 postfix/smtpd[7]: {A}: client=a" for i in (0, 1)]
        record = record_of("postfix", b"\0" * 4096 + lines[0].encode(), b"\0" * 99, lines[1])
        assert (1, {"line without an instant": 1}) == (record.messages, record.kinds)
        assert record.last_at - record.first_at == 1

    def test_a_file_that_is_one_line(self, tmp_path: Path):
        """Megabytes without an end are not kept in memory."""
        path = tmp_path / "mail.log"
        text = "\n".join(
            f"Nov 22 21:55:50 mx1 {line[2:].replace(': ', '[7]: ', 1)}".replace(
                "mx1 ", "mx1 postfix/"
            )
            for line in LIFE[:4]
        )
        path.write_bytes(b"x" * 5_000_000 + b"\n" + text.encode() + b"\n")
        record = read([str(path)], kind="postfix").record
        assert (1, 1) == (record.messages, record.kinds["line without an instant"])


class Sent(NamedTuple):
    """What is written into a log, and should be read back."""

    size: int
    recipients: list[list[str]]
    """Each with the statuses of its attempts."""


STATUSES = {"sent": Outcome.OK, "deferred": Outcome.TEMPFAIL, "bounced": Outcome.PERMFAIL}
messages = st.lists(
    st.builds(
        Sent,
        size=st.integers(1, 10**7),
        recipients=st.lists(
            st.builds(
                lambda deferred, last: ["deferred"] * deferred + [last],
                st.integers(0, 3),
                st.sampled_from(sorted(STATUSES)),
            ),
            min_size=1,
            max_size=4,
        ),
    ),
    min_size=1,
    max_size=6,
)
stamps = st.sampled_from(["%b %e %H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f+00:00", "%Y-%m-%d %H:%M:%S"])


def lines_of(mail: list[Sent], stamp: str, prefix: str) -> list[list[bytes]]:
    """Return the lines of each message."""
    found: list[list[bytes]] = []
    for i, each in enumerate(mail):
        at = START + i
        key = f"{i:05X}{i:05X}"
        said = [
            (at, f"smtpd{prefix}: {key}: client=a.test[192.0.2.1]"),
            (at, f"qmgr{prefix}: {key}: from=<a@a.test>, size={each.size}, nrcpt={len(each.recipients)} (queue active)"),
        ]  # fmt: skip
        for number, statuses in enumerate(each.recipients):
            for attempt, status in enumerate(statuses):
                said.append((at + attempt, f"smtp{prefix}: {key}: to=<u{number}@d{number}.test>, relay=mx[192.0.2.2]:25,"
                             f" delay={attempt}, delays={attempt}/0/0.25/0.25, dsn=2.0.0, status={status} (250 Ok)"))  # fmt: skip
        if all(statuses[-1] != "deferred" for statuses in each.recipients):
            said.append((at + 9, f"qmgr{prefix}: {key}: removed"))
        found.append(
            [
                f"{datetime.fromtimestamp(t, UTC).strftime(stamp)} mx1 postfix/{text}".encode()
                for t, text in said
            ]
        )
    return found


class TestAnything:
    @pytest.mark.parametrize(
        ("kind", "begin", "again"),
        [
            ("postfix", "postfix/smtp[1]: ABCDEF1234: to=<", ">, orig_to=<>, relay=, delay=1, status=A"),
            ("opensmtpd", "smtpd[1]: 0123456789abcdef mda delivery evpid=0123456700000001 from=<", "> to=<> rcpt=<> source=a relay=b delay=1 result=Ok stat="),
            ("opensmtpd", "smtpd[1]: relay: Ok for 0123456700000001: from=<", ">, to=<>, rcpt=<"),
            ("opensmtpd", "smtpd[1]: delivery: Remove for 0123456700000001: from=<", ">, to=<>, rcpt=<"),
        ],
    )  # fmt: skip
    def test_a_line_full_of_ends_of_addresses_takes_no_time(
        self, kind: str, begin: str, again: str
    ):
        """Seconds, where each of three addresses could end anywhere in it; twenty of them take less than one."""
        line = f"Nov 22 21:55:50 h {begin}{again * (LINE_MAX // len(again))}"
        began = time.process_time()
        record = record_of(kind, *[line] * 20)
        assert time.process_time() - began < 10.0
        assert record.kinds["line not understood"] == 20
        assert record.messages == 0

    @given(
        mail=messages,
        stamp=stamps,
        prefix=st.sampled_from(["", "[7]"]),
        rng=st.randoms(use_true_random=False),
    )
    @settings(max_examples=60, deadline=None)
    def test_what_was_written_is_read(
        self, mail: list[Sent], stamp: str, prefix: str, rng: random.Random
    ):
        """Whatever the stamp, and however messages are interleaved."""
        queues = lines_of(mail, stamp, prefix)
        lines: list[bytes] = []
        while any(queues):
            lines.append(rng.choice([queue for queue in queues if queue]).pop(0))
        record = record_of("postfix", *lines)
        record.kinds.pop("line out of order", None)
        assert {} == record.kinds
        numbers = {size: i for i, size in enumerate(record.size)}
        assert len(mail) == record.messages
        assert sorted(each.size for each in mail) == sorted(record.size)
        attempts: dict[int, list[Outcome]] = {}
        for each in record.attempts():
            attempts.setdefault(each.recipient, []).append(each.outcome)
        by_message: dict[int, list[list[Outcome]]] = {}
        for recipient, outcomes in attempts.items():
            by_message.setdefault(record.message_of[recipient], []).append(outcomes)
        if len(numbers) == len(mail):
            for sent in mail:
                expected = [
                    [STATUSES[status] for status in statuses] for statuses in sent.recipients
                ]
                assert sorted(expected) == sorted(by_message[numbers[sent.size]])

    @given(
        kind=st.sampled_from(sorted(READERS)),
        seed=st.randoms(use_true_random=False),
        noise=st.lists(st.binary(max_size=200), max_size=20),
    )
    @settings(max_examples=60, deadline=None)
    def test_no_cut_and_no_bytes_raise(self, kind: str, seed: random.Random, noise: list[bytes]):
        """Lines of all servers, cut, doubled, out of order, with bytes changed, and between them anything."""
        stock = [
            *(f"Nov 22 21:55:50 mx1 postfix/{line.split(' ', 1)[1].replace(':', '[7]:', 1)}" for line in LIFE),
            *TestExim.LINES,
            f"Nov 22 21:55:50 mx1 smtpd[7]: {SID} smtp message msgid=9b46baf4 size=4200 nrcpt=1 proto=ESMTP",
            f"Nov 22 21:55:50 mx1 smtpd[7]: {SID} mta delivery evpid={EV} from=<a@a> to=<b@b> rcpt=<-> source=- relay=b delay=1s result=Ok stat=x",
        ]  # fmt: skip
        lines = list(noise)
        for _ in range(60):
            raw = bytearray(seed.choice(stock).encode())
            if seed.random() < 0.5:
                del raw[seed.randrange(len(raw)) :]
            for _ in range(seed.randrange(3)):
                if raw:
                    raw[seed.randrange(len(raw))] = seed.randrange(256)
            lines.append(bytes(raw))
        seed.shuffle(lines)
        record = Record()
        count = feed(lines, READERS[kind](record), record, Clock(2026))
        assert count == len(lines)
        assert len(record.gone_at) == record.recipients
