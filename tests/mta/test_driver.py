"""The driver: every instruction carried out, every answer told, nothing lost on the way."""

from pathlib import Path

import pytest

from mta.core.envelopes import REPRESENTATIONS
from mta.core.envelopes.base import EnvelopeState
from mta.core.stimuli import AgentPaused, AgentResumed, ScheduleRequested, Selector
from tests.support.driver import BODY, EPOCH, LATER, OK, rig

pytestmark = pytest.mark.usefixtures("impatient")


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
