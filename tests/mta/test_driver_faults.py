"""The driver when something of ours fails, when it starts with a queue, and when it stops."""

import asyncio
import sqlite3
import threading

import pytest

from mta.core.envelopes import REPRESENTATIONS
from mta.core.envelopes.base import EnvelopeState
from mta.core.ids import MsgId, evpid
from mta.core.stimuli import (
    AgentPaused,
    AgentResumed,
    ScheduleRequested,
    Selector,
    SuspendRequested,
    UnsuspendRequested,
)
from mta.queue.base import QueueUnavailableError
from tests.support.driver import BODY, EPOCH, LATER, NEVER, OK, failing_reads, rig
from tests.support.faults import FaultyEffects, Plan, disk_full

pytestmark = pytest.mark.usefixtures("impatient")


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
