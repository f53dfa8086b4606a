"""The driver: every instruction carried out, every answer told, nothing lost on the way."""

import asyncio
import email
import sqlite3
import threading
from pathlib import Path

import pytest

from mta.core.envelopes import REPRESENTATIONS
from mta.core.envelopes.base import EnvelopeState, Recipient, Transaction
from mta.core.ids import MsgId, evpid
from mta.core.instructions import BounceKind, SendBounce
from mta.core.reply import Outcome
from mta.core.routing import Resolution, ResolutionStatus
from mta.core.stimuli import (
    AgentPaused,
    AgentResumed,
    RemoveRequested,
    ScheduleRequested,
    Selector,
    SuspendRequested,
    UnsuspendRequested,
)
from mta.queue.base import QueueUnavailableError
from tests.support.driver import BODY, EPOCH, LATER, NEVER, OK, rig
from tests.support.faults import FaultyEffects, Plan, disk_full

DAY_S = 86_400.0


@pytest.fixture(autouse=True)
def _impatient(monkeypatch) -> None:
    """What could not be read, or not be reported, is tried again after milliseconds."""
    monkeypatch.setattr("mta.restorer.AGAIN_S", 0.01)
    monkeypatch.setattr("mta.queue.writer.PROBE_FIRST_S", 0.002)
    monkeypatch.setattr("mta.queue.writer.PROBE_MAX_S", 0.01)


def failing_reads(error=lambda: sqlite3.OperationalError("disk I/O error")) -> Plan:
    return Plan(1, error=error, for_good=True, matches=lambda p: p.site == "read")


def failing_commits() -> Plan:
    return Plan(
        1,
        error=lambda: sqlite3.OperationalError("database or disk is full"),
        for_good=True,
        matches=lambda p: p.site in ("commit", "probe.commit", "probe"),
    )


class TestRelaying:
    """From acceptance to the end, with every representation."""

    @pytest.mark.parametrize("envelope", sorted(REPRESENTATIONS))
    async def test_what_is_accepted_is_delivered_and_forgotten(self, tmp_path: Path, envelope):
        """Sender, recipients and bytes arrive as they came; then core, queue and cache are empty."""
        async with rig(tmp_path, envelope=envelope) as it:
            await it.submit("b@two.test", "c@two.test", "d@three.test")
            await it.emptied()

            assert ["two.test", "three.test"] == it.resolver.asked
            sent = {tuple(s.rcpts): s for s in it.out.sent}
            assert {("b@two.test", "c@two.test"), ("d@three.test",)} == set(sent)
            assert all(s.body == BODY and s.sender == "a@one.test" for s in sent.values())
            assert 0 == it.driver.recent.envelopes == it.driver.recent.bytes

    @pytest.mark.parametrize("envelope", sorted(REPRESENTATIONS))
    async def test_a_deferred_envelope_is_read_from_wherever_it_is(self, tmp_path, envelope):
        """After the first try the cache is empty: memory or queue have the details and the body."""
        async with rig(tmp_path, envelope=envelope) as it:
            it.out.answer = lambda rcpt: LATER
            await it.submit("b@two.test", envid="QQ1", ret="HDRS")
            await it.until(lambda: it.queue._writer is not None and not it.queue._writer.lagging)
            await it.until(lambda: it.engine.scheduler.counts.updated)
            assert not len(it.driver.recent)
            hits, misses = it.driver.loads_hit, it.driver.loads_missed
            assert (1, 0) == (hits, misses)

            it.out.answer = lambda rcpt: OK
            it.driver.tell(ScheduleRequested(Selector()))
            await it.emptied()

            first, second = it.out.sent
            assert first.envelopes == second.envelopes
            assert ("RET=HDRS", "ENVID=QQ1") == second.envelopes[0][1].options
            assert BODY == second.body
            kept = it.engine.store.keeps_envelopes
            assert (2, 0) == (it.driver.loads_hit, it.driver.loads_missed) or not kept
            assert 2 == it.driver.loads_hit + it.driver.loads_missed

    async def test_the_smart_host_takes_everything(self, tmp_path):
        """It is the only destination, after a restart as well; addresses stay as they were."""
        config = {"relay": {"smart_host": "[Hub.Test]"}}
        async with rig(tmp_path, **config) as it:
            it.out.answer = lambda rcpt: LATER
            await it.submit("b@two.test", "c@three.test")
            await it.until(lambda: it.engine.scheduler.counts.updated == 2)
            assert ["b@two.test", "c@three.test"] == it.out.sent[0].rcpts
        async with rig(tmp_path, **config) as it:
            assert 2 == await it.driver.restore()
            it.driver.tell(ScheduleRequested(Selector()))
            await it.emptied()
            assert ["[hub.test]"] == it.resolver.asked

    async def test_what_an_instruction_causes_at_once_waits_in_line(self, tmp_path):
        """Answers that come from inside `open` and `start` are told after the rest of the instructions."""
        async with rig(tmp_path) as it:
            it.out.inside = True
            it.out.answer = lambda rcpt: LATER if rcpt.startswith("l") else OK
            await it.submit(*[f"b{n}@two.test" for n in range(20)], "later@two.test")
            await it.until(lambda: len(it.engine.store) == 1)
            assert EnvelopeState.PENDING is it.engine.store.state_of(next(iter(it.engine.store)))

    async def test_a_connection_that_is_gone_at_the_start_of_a_transaction(self, tmp_path):
        """`Outbound.start` says False, `on_closed` comes: the envelope is tried later."""
        async with rig(tmp_path) as it:
            it.out.start_fails = True
            await it.submit()
            await it.until(lambda: it.engine.scheduler.counts.tempfail)
            assert it.driver.is_quiet()
            it.out.start_fails = False
            it.driver.tell(ScheduleRequested(Selector()))
            await it.advance(3600.0)
            await it.emptied()

    async def test_a_connection_lost_in_a_transaction_fails_its_envelopes_for_now(self, tmp_path):
        """Under the session's name, with the network's reason."""
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: None
            await it.submit("b@two.test", "c@two.test")
            await it.until(lambda: it.out.waiting)
            (session,) = it.out.waiting
            it.out.hang_up(session)
            lines = it.log.about("mta delivery", f"{session:016x}", 'result="TempFail"')
            assert 2 == len(lines)
            assert 'relay="127.0.0.9 (mx.two.test)"' in lines[0]
            assert 'stat="Connection reset by peer"' in lines[0]
            assert it.driver.is_quiet()

    async def test_a_resolver_with_a_mistake_of_ours_is_a_temporary_failure(self, tmp_path):
        """The fault is told, the mail waits: a domain is never being looked up for ever."""
        async with rig(tmp_path) as it:
            it.resolver.answers["two.test"] = RuntimeError("bug")
            await it.submit()
            await it.until(lambda: it.engine.scheduler.counts.tempfail)
            assert ["resolve two.test failed"] == [f["message"] for f in it.faults]
            it.faults.clear()
            del it.resolver.answers["two.test"]
            await it.advance(3600.0)
            await it.emptied()

    async def test_a_pause_is_obeyed_and_a_resume_too(self, tmp_path):
        """While relaying is paused mail is accepted and nothing is tried."""
        async with rig(tmp_path) as it:
            it.driver.tell(AgentPaused())
            await it.submit()
            await it.settle()
            assert [] == it.resolver.asked
            it.driver.tell(AgentResumed())
            await it.emptied()


class TestTime:
    """One timer, set to the next thing that is due."""

    async def test_the_timer_moves_to_what_comes_first(self, tmp_path):
        """It is re-armed for an earlier instant, and rings early rather than late for a later one."""
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: LATER
            await it.submit()
            await it.until(lambda: it.engine.scheduler.counts.updated)
            wakeup = it.engine.next_wakeup()
            assert wakeup is not None
            assert [pytest.approx(wakeup - EPOCH)] == it.loop.timers
            await it.advance(it.loop.timers[0] - 1.0)
            tried = len(it.out.sent)
            assert tried == 1
            while len(it.out.sent) == tried:
                assert 1 == len(it.loop.timers), "there is always one timer, and only one"
                await it.advance(max(it.loop.timers[0], 0.0))
                assert it.clock.wall < EPOCH + 3600.0

    async def test_an_early_ring_is_harmless(self, tmp_path):
        """A timer of the loop may go off a moment before the wall clock says so."""
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: LATER
            await it.submit()
            await it.until(lambda: it.engine.scheduler.counts.updated)
            it.driver._timer.cancel()
            it.driver._ring()
            assert 1 == len(it.out.sent)
            assert 1 == len(it.loop.timers)

    async def test_nothing_to_do_is_no_timer(self, tmp_path):
        """An idle server does not wake up."""
        async with rig(tmp_path) as it:
            await it.submit()
            await it.emptied()
            await it.advance(60.0)  # the kept connection is closed
            assert not it.out.sessions
            await it.advance(7200.0)
            assert [] == it.loop.timers


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


class TestLocalFaults:
    """What we can't do now is tried again; a reply or a log line never says why to the world."""

    async def test_a_message_that_can_not_be_read_is_tried_later(self, tmp_path):
        """TempFail for each envelope, under no session; the connection goes on."""
        effects = FaultyEffects()
        async with rig(tmp_path, effects=effects) as it:
            it.out.answer = lambda rcpt: LATER
            await it.submit("b@two.test", "c@two.test")
            await it.until(lambda: it.engine.scheduler.counts.updated == 2)
            it.out.answer = lambda rcpt: OK
            effects.plan = failing_reads()
            it.driver.tell(ScheduleRequested(Selector()))
            await it.until(lambda: it.engine.scheduler.counts.updated == 4)
            assert 1 == len(it.out.sent)
            lines = it.log.about("mta delivery", "0000000000000000", "451 4.3.0 Local error")
            assert 2 == len(lines)
            assert it.driver.is_quiet() or it.out.sessions
            effects.heal()
            await it.advance(7200.0)
            await it.emptied()

    async def test_too_little_memory_for_a_body_is_a_local_fault(self, tmp_path, monkeypatch):
        """A 35 MiB message does not hang its session because it could not be read at once."""
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: LATER
            await it.submit()
            await it.until(lambda: it.engine.scheduler.counts.updated)
            it.out.answer = lambda rcpt: OK
            with monkeypatch.context() as patch:

                def no_memory(msgid: MsgId) -> bytes:
                    raise MemoryError

                patch.setattr(it.queue, "body", no_memory)
                it.driver.tell(ScheduleRequested(Selector()))
                await it.until(lambda: it.engine.scheduler.counts.updated == 2)
            await it.advance(7200.0)
            await it.emptied()

    async def test_a_full_disk_refuses_and_forgets_nothing(self, tmp_path):
        """The submitter hears of it, the core does not; the next message goes through."""
        effects = FaultyEffects()
        async with rig(tmp_path, effects=effects) as it:
            effects.plan = Plan(1, error=disk_full, matches=lambda p: p.site == "commit")
            with pytest.raises(QueueUnavailableError):
                await it.submit()
            assert not len(it.engine.store)
            assert not len(it.driver.recent)
            await it.until(lambda: it.queue.healthy)
            await it.submit()
            await it.emptied()
            assert 1 == len(it.out.sent)

    async def test_a_submitter_that_gave_up_does_not_stop_the_commit(self, tmp_path):
        """The message is durable and is relayed; nobody is there to hear it."""
        async with rig(tmp_path) as it:
            future = it.submit()
            future.cancel()
            await it.until(lambda: it.out.sent)
            await it.emptied()


class TestRestoring:
    """After a start the core knows what the queue has, once."""

    @pytest.mark.parametrize("envelope", sorted(REPRESENTATIONS))
    async def test_what_was_accepted_meanwhile_is_skipped(self, tmp_path, envelope):
        """Nobody gets a message twice because it came while the queue was being read."""
        async with rig(tmp_path, envelope=envelope) as it:
            it.driver.tell(AgentPaused())
            for n in range(3):
                await it.submit(f"old{n}@two.test")
        async with rig(tmp_path, envelope=envelope) as it:
            it.driver.tell(AgentPaused())
            await it.submit("new@two.test")
            assert 3 == await it.driver.restore()
            assert 0 == await it.driver.restore()
            it.engine.validate()
            it.driver.tell(AgentResumed())
            await it.advance(1.0)
            await it.emptied()
            rcpts = sorted(rcpt for sent in it.out.sent for rcpt in sent.rcpts)
            assert ["new@two.test", "old0@two.test", "old1@two.test", "old2@two.test"] == rcpts

    async def test_attempts_due_time_and_suspension_survive(self, tmp_path):
        """A restart is no reason to hurry, nor to forget what the operator said."""
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: LATER
            await it.submit("b@two.test")
            await it.submit("c@three.test")
            await it.until(lambda: it.engine.scheduler.counts.updated == 2)
            it.driver.tell(SuspendRequested(Selector(evpid=evpid(MsgId(2), 1))))
        async with rig(tmp_path) as it:
            assert 2 == await it.driver.restore()
            store = it.engine.store
            one, two = (store.find(evpid(MsgId(n), 1)) for n in (1, 2))
            assert (EnvelopeState.PENDING, 1) == (store.state_of(one), store.attempts_of(one))
            assert store.due_at_of(one) > EPOCH + 60.0
            assert EnvelopeState.SUSPENDED is store.state_of(two)
            it.driver.tell(UnsuspendRequested(Selector()))
            await it.advance(7200.0)
            await it.emptied()

    @pytest.mark.parametrize("envelope", ["slim", "whole"])
    async def test_a_fault_while_reading_is_got_over(self, tmp_path, envelope):
        """It begins again; nothing is restored twice, nothing is left out."""
        async with rig(tmp_path, envelope=envelope) as it:
            it.driver.tell(AgentPaused())
            for _ in range(5):
                await it.submit()
        for number in range(1, 8):
            effects = FaultyEffects()
            async with rig(tmp_path, envelope=envelope, effects=effects) as it:
                it.driver.tell(AgentPaused())
                effects.plan = Plan(
                    number,
                    error=lambda: sqlite3.OperationalError("disk I/O error"),
                    matches=lambda p: p.site in ("read", "restore"),
                )
                await it.driver.restore()
                await it.until(lambda it=it: len(it.engine.store) == 5)
                assert 5 == it.engine.scheduler.counts.enqueued

    async def test_a_message_without_its_body_does_not_stop_the_others(self, tmp_path):
        """Where bodies are kept in memory it waits, on disk, until it can be read."""
        limits = {"queue": {"body_file_bytes": 10}}
        async with rig(tmp_path, envelope="whole", limits=limits) as it:
            it.driver.tell(AgentPaused())
            for _ in range(3):
                await it.submit()
        lost = tmp_path / "bodies" / "00000002"
        content = lost.read_bytes()
        lost.unlink()
        async with rig(tmp_path, envelope="whole", limits=limits) as it:
            it.driver.tell(AgentPaused())
            assert 2 == await it.driver.restore()
            assert 3 == it.queue.envelopes
            lost.write_bytes(content)
            await it.until(lambda: len(it.engine.store) == 3)
            it.driver.tell(AgentResumed())
            await it.advance(1.0)
            await it.emptied()
            assert {BODY} == {sent.body for sent in it.out.sent}

    async def test_what_is_being_reported_is_not_restored(self, tmp_path):
        """Its report is on its way to the disk: it is in the queue, and the core must not try it."""
        effects = FaultyEffects()
        async with rig(tmp_path, effects=effects) as it:
            it.out.answer = lambda rcpt: None if rcpt == "b@two.test" else OK
            await it.submit()
            await it.until(lambda: it.out.waiting)
            it.out.answer = lambda rcpt: NEVER if rcpt == "b@two.test" else OK
            gate = effects.gates["sqlite", "commit"] = threading.Event()
            it.out.finish(next(iter(it.out.waiting)))
            await it.settle()
            assert it.driver.bouncer.messages
            assert 0 == await it.driver.restore()
            gate.set()
            await it.emptied()
            assert 1 == len(it.bounces)


class TestTheEnd:
    """`drain` lets what runs end; `stop` leaves nothing."""

    async def test_a_drain_starts_nothing_and_closes_what_is_idle(self, tmp_path):
        """A running transaction ends, its connection goes; what waits stays in the queue."""
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: None
            await it.submit("b@two.test")
            await it.until(lambda: it.out.waiting)
            it.driver.drain()
            await it.submit("c@three.test")
            await it.settle()
            assert not it.driver.is_quiet()
            assert ["two.test"] == it.resolver.asked
            it.out.answer = lambda rcpt: OK
            it.out.finish(next(iter(it.out.waiting)))
            await it.settle()
            assert it.driver.is_quiet(), "an idle connection is not kept for its keep-alive time"
            assert 1 == len(it.engine.store)

    async def test_a_drain_does_not_wait_for_connects_and_look_ups(self, tmp_path):
        """They carry no mail yet."""
        async with rig(tmp_path) as it:
            it.out.connect = "silent"
            await it.submit("b@two.test")
            await it.until(lambda: it.out.sessions)
            it.resolver.gate.clear()
            await it.submit("c@three.test")
            await it.until(lambda: "three.test" in it.resolver.asked)
            it.driver.drain()
            await it.settle()
            assert it.driver.is_quiet()
            assert 2 == it.queue.envelopes

    async def test_stop_with_everything_in_flight(self, tmp_path, fds):
        """A look-up, a connect, a transaction, an idle connection, a report whose disk hangs."""
        effects = FaultyEffects()
        before = asyncio.all_tasks()
        async with rig(tmp_path, effects=effects, stop=False) as it:
            it.out.answer = lambda rcpt: {"b": None, "n": None, "d": OK}[rcpt[0]]
            await it.submit("done@four.test")
            await it.submit("b@two.test")
            await it.submit("n@five.test")
            await it.until(lambda: len(it.out.waiting) == 2)
            it.out.connect = "silent"
            await it.submit("c@three.test")
            await it.until(lambda: len(it.out.sessions) == 4)
            it.resolver.gate.clear()
            await it.submit("r@six.test")
            await it.until(lambda: "six.test" in it.resolver.asked)
            gate = effects.gates["sqlite", "commit"] = threading.Event()
            it.out.answer = lambda rcpt: NEVER
            it.out.finish(
                next(s for s, sent in it.out.waiting.items() if "n@five.test" in sent.rcpts)
            )
            await it.until(lambda: it.driver.bouncer.messages)

            async with asyncio.timeout(5):
                await it.driver.stop()
                await it.driver.stop()

            assert [] == it.loop.timers
            assert not it.out.sessions
            gate.set()
        assert before == asyncio.all_tasks()
        async with rig(tmp_path) as it:
            it.out.answer = lambda rcpt: NEVER if rcpt.startswith("n@") else OK
            await it.driver.restore()
            await it.advance(7200.0)
            await it.emptied()
            rcpts = {rcpt for sent in it.out.sent for rcpt in sent.rcpts}
            assert {"b@two.test", "c@three.test", "r@six.test", "a@one.test"} <= rcpts

    async def test_what_was_made_durable_after_the_stop_is_not_lost(self, tmp_path):
        """A commit that ends after `stop` is answered, and the next start finds the message."""
        async with rig(tmp_path) as it:
            answer = it.submit()
            await it.driver.stop()
            await answer
            assert [] == it.resolver.asked
        async with rig(tmp_path) as it:
            assert 1 == await it.driver.restore()
            await it.advance(1.0)
            await it.emptied()


async def test_bodies_let_go_of_are_read_again(tmp_path):
    """Memory was short while a message waited: its body comes from the queue, byte for byte."""
    async with rig(tmp_path, envelope="whole") as it:
        it.out.answer = lambda rcpt: LATER
        await it.submit("b@two.test", body=b"Subject: x\r\n\r\nwaits\r\n")
        await it.until(lambda: it.engine.scheduler.counts.updated)
        it.driver.recent.clear()
        it.engine.store.shrink()
        it.out.answer = lambda rcpt: OK
        await it.advance(301.0)
        await it.advance(3600.0)
        await it.emptied()
        assert b"Subject: x\r\n\r\nwaits\r\n" == it.out.sent[-1].body


async def test_a_trace_has_no_bodies(tmp_path):
    """A stimulus is traced without the megabytes that it may carry."""
    async with rig(tmp_path, envelope="whole") as it:
        it.driver.tracer.set("all", True)
        await it.submit(body=b"Subject: x\r\n\r\n" + b"SECRET" * 100)
        await it.emptied()
        assert it.log.about("trace scheduler", "MessageSubmitted")
        assert it.log.about("trace mta", "TransactionDone")
        assert it.log.about("trace dns", "two.test")
        assert [] == it.log.about("SECRET")


async def test_the_answer_to_a_submission_comes_before_anything_can_go_wrong(tmp_path, monkeypatch):
    """The core has a bug: the message is durable, its submitter is told so, and a restart finds it."""
    async with rig(tmp_path) as it:
        with monkeypatch.context() as patch:

            def bug(stimulus: object, *, now: float) -> None:
                raise AssertionError("bug")

            patch.setattr(it.engine, "handle", bug)
            await it.submit()
        await it.until(lambda: it.faults)
        it.faults.clear()
    async with rig(tmp_path) as it:
        assert 1 == await it.driver.restore()
        await it.advance(1.0)
        await it.emptied()
