"""What the driver says of mail: in the log, and in reports to senders."""

import email

import pytest

from mta.core.envelopes.base import Recipient, Transaction
from mta.core.ids import MsgId, evpid
from mta.core.instructions import BounceKind, SendBounce
from mta.core.reply import Outcome
from mta.core.routing import Resolution, ResolutionStatus
from mta.core.stimuli import AgentPaused, AgentResumed, RemoveRequested, Selector
from tests.support.driver import BODY, LATER, NEVER, OK, failing_commits, failing_reads, rig
from tests.support.faults import FaultyEffects

pytestmark = pytest.mark.usefixtures("impatient")


class TestLog:
    """The lines are OpenSMTPD's, to the letter."""

    async def test_deliveries(self, tmp_path):
        """Ok, TempFail and PermFail of one transaction, under its session."""
        answers = {"ok": OK, "later": LATER, "never": NEVER}
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: answers.get(rcpt.partition("@")[0], OK)
            it.driver.tell(AgentPaused())
            await it.submit("ok@two.test", "later@two.test", "never@two.test")
            it.clock.wall += 3661.0
            it.driver.tell(AgentResumed())
            await it.until(lambda: it.log.about("mta delivery", "later@", "TempFail"))
            session = f"{it.out.sent[0].session:016x}"
            for n, (name, word, stat) in enumerate(
                [
                    ("ok", "Ok", "250 2.0.0 Ok"),
                    ("later", "TempFail", "451 4.3.0 later"),
                    ("never", "PermFail", "550 5.1.1 no such user"),
                ],
                1,
            ):
                assert [
                    f"{session} mta delivery evpid={evpid(it.out.sent[0].msgid, n):016x}"
                    f' from=<a@one.test> to=<{name}@two.test> rcpt=<-> source="-"'
                    f' relay="127.0.0.9 (mx.two.test)" delay=1h1m1s result="{word}" stat="{stat}"'
                ] == it.log.about("mta delivery", f"to=<{name}@", session)[:1]
            await it.until(lambda: len(it.engine.store) == 1)

    async def test_a_flush_without_a_session(self, tmp_path):
        """A destination that does not exist: session 0, and its name for the relay."""
        async with rig(tmp_path) as it:
            it.resolver.answers["Two.test"] = it.resolver.answers["two.test"] = Resolution(
                ResolutionStatus.NO_DOMAIN
            )
            await it.submit("b@Two.test", sender="")
            await it.emptied()
            (line,) = it.log.about("mta delivery")
            assert line == (
                f"0000000000000000 mta delivery evpid={evpid(MsgId(1), 1):016x} from=<>"
                ' to=<b@Two.test> rcpt=<-> source="-" relay="two.test" delay=0s result="PermFail"'
                ' stat="550 5.1.2 Domain does not exist"'
            )
            assert it.log.about("not bounced", f"{evpid(MsgId(1), 1):016x}")

    async def test_the_operator_removes(self, tmp_path):
        """The queue's old dialect, unquoted."""
        async with rig(tmp_path) as it:
            it.driver.tell(AgentPaused())
            await it.submit()
            it.clock.wall += 5.0
            it.driver.tell(RemoveRequested(Selector()))
            await it.emptied()
            assert [
                f"relay: Remove for {evpid(MsgId(1), 1):016x}: from=<a@one.test>, to=<b@two.test>,"
                " rcpt=<->, delay=5s, stat=Removed by administrator"
            ] == it.log.about("relay: ")

    @pytest.mark.parametrize("sender", ["a@one.test", ""])
    async def test_expiry(self, tmp_path, sender):
        """With a report or without, OpenSMTPD's words; the report has the last failure's code."""
        limits = {"scheduler": {"envelope_ttl_s": 3600.0, "bounce_ttl_s": 3600.0}}
        async with rig(tmp_path, limits=limits) as it:
            it.out.answer = lambda rcpt: LATER if rcpt == "b@two.test" else OK
            await it.submit("b@two.test", sender=sender)
            await it.until(lambda: it.engine.scheduler.counts.updated)
            for _ in range(200):
                if it.log.about("relay: Expire"):
                    break
                await it.advance(max(it.loop.timers[0], 0.1))
            await it.emptied()
            assert [
                f"relay: Expire for {evpid(MsgId(1), 1):016x}: from=<{sender}>, to=<b@two.test>,"
                " rcpt=<->, delay=1h, stat=Envelope expired"
            ] == it.log.about("relay: ")
            assert (["a@one.test"] if sender else []) == [
                rcpt for sent in it.bounces for rcpt in sent.rcpts if rcpt != "b@two.test"
            ]
            if sender:
                assert b"Status: 4.3.0" in it.bounces[0].body

    async def test_an_envelope_that_can_not_be_read_has_a_line_all_the_same(self, tmp_path):
        """With gaps, and no exception: the log must not stop what it tells of."""
        effects = FaultyEffects()
        async with rig(tmp_path, effects=effects) as it:
            it.out.answer = lambda rcpt: LATER
            await it.submit()
            await it.until(lambda: it.engine.scheduler.counts.updated)
            effects.plan = failing_reads()
            it.driver.tell(RemoveRequested(Selector()))
            assert it.log.about("relay: Remove for", "from=<->, to=<->")
            effects.heal()
            await it.emptied()


class TestReports:
    """A DSN is in the queue before what it reports is out of it."""

    async def test_all_failures_of_a_transaction_are_one_report(self, tmp_path):
        """From <>, to the sender, with RFC 3464's parts; its envelopes go in its own commit."""
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: NEVER if rcpt.startswith("no") else OK
            await it.submit("no1@two.test", "yes@two.test", "no2@two.test", "no3@two.test")
            await it.emptied()
            (bounce,) = it.bounces
            assert ["a@one.test"] == bounce.rcpts
            message = email.message_from_bytes(bounce.body)
            assert "multipart/report" == message.get_content_type()
            _, status, header = message.get_payload()
            assert "message/delivery-status" == status.get_content_type()
            fields = [part["Final-Recipient"] for part in status.get_payload()[1:]]
            assert [f"rfc822; no{n}@two.test" for n in (1, 2, 3)] == fields
            assert {"5.1.1"} == {part["Status"] for part in status.get_payload()[1:]}
            assert "hello" in header.get_payload()
            assert 1 == it.driver.bouncer.submitted

    async def test_nobody_is_told_of_a_failed_report(self, tmp_path):
        """The sender does not exist either: logged, removed, and that is the end of it."""
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: NEVER
            await it.submit()
            await it.emptied()
            assert 1 == len(it.bounces)
            assert 1 == len(it.log.about("not bounced: no return path"))

    async def test_notify_never_is_obeyed(self, tmp_path):
        """RFC 3461 4.1: no report, though there is a sender."""
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: NEVER
            transaction = Transaction("a@one.test", len(BODY))
            recipients = (Recipient("b@two.test", "two.test", "NEVER"),)
            await it.driver.enqueue(it.queue.next_msgid(), transaction, recipients, BODY)
            await it.emptied()
            assert [] == it.bounces

    async def test_the_way_back_of_an_international_address(self, tmp_path):
        """The domain is the key of its relay in A-labels, and the report asks for SMTPUTF8."""
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: NEVER if rcpt.startswith("b@") else OK
            await it.submit("b@two.test", sender="jörg@Bücher.test", smtputf8=True)
            await it.emptied()
            (bounce,) = it.bounces
            assert ["jörg@Bücher.test"] == bounce.rcpts
            assert "SMTPUTF8" in bounce.envelopes[0][1].options
            assert "xn--bcher-kva.test" in it.resolver.asked

    async def test_mail_that_goes_round_is_counted(self, tmp_path):
        """5.4.6 is a loop (RFC 3463 3.5), whoever found it."""
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: (Outcome.PERMFAIL, "554 5.4.6 Too many hops")
            await it.submit(sender="")
            await it.emptied()
            assert 1 == it.driver.loops

    async def test_a_report_that_can_not_be_written_comes_later(self, tmp_path):
        """The queue is full or sick: the envelope stays, in queue and core, and fails again."""
        effects = FaultyEffects()
        async with rig(tmp_path, effects=effects) as it:
            it.out.answer = lambda rcpt: None if rcpt == "b@two.test" else OK
            await it.submit()
            await it.until(lambda: it.out.waiting)
            effects.plan = failing_commits()
            it.out.answer = lambda rcpt: NEVER if rcpt == "b@two.test" else OK
            it.out.finish(next(iter(it.out.waiting)))
            await it.until(lambda: it.log.about("injecting failure report"))
            await it.until(lambda: len(it.engine.store) == 1)
            assert 1 == it.queue.envelopes
            assert (0, 0) == (it.driver.bouncer.messages, it.driver.bouncer.envelopes)
            assert [] == it.bounces
            (line,) = it.log.about("injecting failure report")
            assert line.startswith(
                "warn: TempFail injecting failure report on message 00000001 to a@one.test"
                " for 1 envelope: "
            )
            effects.heal()
            await it.until(lambda: it.queue.healthy)
            await it.advance(120.0)
            await it.emptied()
            assert [["a@one.test"]] == [sent.rcpts for sent in it.bounces]

    async def test_a_report_of_what_can_not_be_read_comes_later(self, tmp_path):
        """Neither the report nor the way back can read the queue: it is asked again until it can."""
        effects = FaultyEffects()
        async with rig(tmp_path, effects=effects) as it:
            it.out.answer = lambda rcpt: NEVER if rcpt == "b@two.test" else OK
            effects.plan = failing_reads()
            await it.submit()
            await it.until(lambda: it.log.about("injecting failure report"))
            await it.until(lambda: len(it.driver.restorer) == 1)
            assert not len(it.engine.store)
            effects.heal()
            await it.until(lambda: len(it.engine.store) == 1)
            await it.advance(120.0)
            await it.emptied()
            assert [["a@one.test"]] == [sent.rcpts for sent in it.bounces]

    async def test_a_report_goes_without_a_header_that_can_not_be_read(self, tmp_path):
        """The body's file is gone: the sender hears of the failure all the same."""
        async with rig(tmp_path, limits={"queue": {"body_file_bytes": 10}}) as it:
            it.out.answer = lambda rcpt: LATER
            await it.submit("b@two.test")
            await it.until(lambda: it.engine.scheduler.counts.updated)
            (file,) = (tmp_path / "bodies").iterdir()
            file.unlink()
            it.out.answer = lambda rcpt: OK
            it.resolver.answers["two.test"] = Resolution(ResolutionStatus.NULL_MX)
            await it.advance(301.0)
            await it.advance(3600.0)
            await it.emptied()
            (bounce,) = it.bounces
            assert b"5.1.10" in bounce.body

    async def test_a_mistake_in_a_report_loses_nothing(self, tmp_path, monkeypatch):
        """It is told as a fault, and the envelope comes back."""
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: NEVER if rcpt == "b@two.test" else OK
            with monkeypatch.context() as patch:
                patch.setattr("mta.bouncer.compose", lambda *a, **k: 1 // 0)
                await it.submit()
                await it.until(lambda: it.faults)
            await it.until(lambda: len(it.engine.store) == 1)
            assert isinstance(it.faults.pop()["exception"], ZeroDivisionError)
            await it.advance(120.0)
            await it.emptied()
            assert 1 == len(it.bounces)

    async def test_a_report_of_nothing_is_none(self, tmp_path):
        """The envelopes are gone already: no DSN, no envelope that comes back."""
        async with rig(tmp_path) as it:
            gone = SendBounce(MsgId(9), BounceKind.FAILED, ((evpid(MsgId(9), 1), "550 x"),))
            it.driver._bounce(gone)
            await it.until(lambda: it.log.about("nothing left of message 00000009"))
            await it.settle()
            assert not len(it.engine.store)
            assert 0 == it.driver.bouncer.messages == it.queue.envelopes
