"""The server's door: who is counted, which limit says what, and what becomes of a commit."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mta.core import admission
from mta.core.envelopes.base import Recipient, Transaction
from mta.core.ids import MsgId, SessionId
from mta.core.metrics import Metrics
from mta.core.pressure import MemoryLevel
from mta.core.reply import Reply
from mta.door import ServerDoor
from mta.effects import Space
from tests.support.driver import BODY, Rig, rig
from tests.support.faults import FaultyEffects, Plan, disk_full

PEER, OTHER = "127.0.0.1", "127.0.0.2"
RCPT = Recipient("b@two.test", "two.test")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch) -> None:
    monkeypatch.setattr("mta.queue.writer.PROBE_FIRST_S", 0.002)


class At(ServerDoor):
    """A door with the rig behind it."""

    rig: Rig
    metrics: Metrics


@asynccontextmanager
async def door(directory: Path, **config: Any) -> AsyncIterator[At]:
    async with rig(directory, **config) as it:
        metrics = Metrics()
        made = At(
            it.driver.config,
            it.driver,
            it.queue,
            log=it.log,  # type: ignore[arg-type]
            tracer=it.driver.tracer,
            metrics=metrics,
            first_session=SessionId(0x500000000),
        )
        made.rig, made.metrics = it, metrics
        yield made


def smtp(**limits: float) -> dict[str, Any]:
    return {"limits": {"smtp": limits}}


def queue(**limits: float) -> dict[str, Any]:
    return {"limits": {"queue": limits}}


def submit(at: ServerDoor, msgid: int = 1) -> "asyncio.Future[Reply | None]":
    return at.submit(MsgId(msgid), Transaction("a@one.test", len(BODY)), (RCPT,), BODY)


class TestConnections:
    async def test_each_is_counted_in_and_out(self, tmp_path):
        """In all and per client; a client that is gone leaves nothing behind."""
        async with door(tmp_path) as at:
            assert at.connect(PEER) is at.connect(PEER) is at.connect("::1") is None
            assert 3 == at.connections == at.metrics["smtp.session"]
            assert (2, 1) == (
                at.metrics["smtp.session.inet4"],
                at.metrics["smtp.session.inet6"],
            )
            at.recipient(PEER, RCPT, 0)
            for peer in (PEER, "::1", PEER):
                at.disconnect(peer)
            assert 0 == at.connections == at.metrics["smtp.session"]
            assert 3 == at.metrics["smtp.disconnect"]
            assert {} == dict(at._clients) == at._may_relay

    async def test_one_client_can_not_take_all(self, tmp_path):
        """421 4.7.0 for it, while others get in."""
        async with door(tmp_path, **smtp(max_conn=3, max_conn_per_client=1)) as at:
            assert at.connect(PEER) is None
            assert at.connect(PEER) == admission.TOO_MANY_FROM_CLIENT
            assert at.connect(OTHER) is None
            at.disconnect(PEER)
            assert at.connect(PEER) is None

    async def test_all_together_have_a_limit(self, tmp_path):
        """421 4.3.2, and who was refused is not counted, nor remembered."""
        async with door(tmp_path, **smtp(max_conn=1)) as at:
            assert at.connect(PEER) is None
            for n in range(50):
                assert at.connect(f"127.0.1.{n}") == admission.TOO_MANY_CONNECTIONS
            assert 1 == at.connections == len(at._clients)

    async def test_memory_refuses_and_counts(self, tmp_path):
        """Soft: messages; hard: connections, and what is being received. Each refusal is counted."""
        async with door(tmp_path) as at:
            assert at.reads_ahead
            at.memory = MemoryLevel.SOFT
            refused = at.begin(0, 0)
            assert refused == admission.SHORT_OF_MEMORY
            assert at.connect(PEER) is None
            assert at.reserve(10)
            assert not at.reads_ahead
            at.memory = MemoryLevel.HARD
            assert not at.reserve(10)
            shed = at.connect(PEER)
            assert shed == admission.LOAD_SHEDDING
            at.rejected(refused)
            at.rejected(shed, connection=True)
            assert 3 == at.metrics["memory.refused"]
            assert (1, 1) == (
                at.metrics["smtp.refused.temporary"],
                at.metrics["smtp.refused.connection"],
            )
            at.release(10)
            at.disconnect(PEER)

    async def test_stress_begins_and_ends_with_connections(self, tmp_path):
        """At nine of ten connections the limits shrink, at seven they are as before; gauge and log say so."""
        async with door(tmp_path, **smtp(max_conn=10)) as at:
            told: list[float] = []
            at.on_stress = lambda: told.append(at.limits.timeout_s)
            for _ in range(10):
                assert at.connect(PEER) is None
            assert [10.0] == told
            assert (1, 1) == (at.limits.max_errors, at.metrics["smtp.stress"])
            assert 300.0 == at.commit_timeout_s
            for _ in range(2):
                at.disconnect(PEER)
            assert [10.0] == told, "it ends lower than it begins"
            at.disconnect(PEER)
            assert [10.0, 300.0] == told
            assert (20, 0) == (at.limits.max_errors, at.metrics["smtp.stress"])
            assert 1 == at.metrics["smtp.stress.entered"]
            began, ended = (line for line in at.rig.log.lines if "smtp stress" in line)
            assert "smtp stress began connections=9 max=10 timeout=10s" in began
            assert "smtp stress ended connections=7 max=10 timeout=300s" in ended

    @pytest.mark.parametrize(
        ("state", "reply"),
        [("draining", admission.SHUTTING_DOWN), ("paused", admission.PAUSED)],
    )
    async def test_a_door_that_is_closed_says_so(self, tmp_path, state, reply):
        """To connections; messages on those that are open end with a drain, not with a pause."""
        async with door(tmp_path) as at:
            setattr(at, state, True)
            assert at.connect(PEER) == reply
            assert at.begin(0, 0) == (reply if state == "draining" else None)

    async def test_session_ids_say_when_the_server_started(self, tmp_path):
        """The high half is the start; no two are the same."""
        async with door(tmp_path) as at:
            assert [0x500000001, 0x500000002] == [at.next_session(), at.next_session()]


class TestLimits:
    async def test_messages_and_sizes(self, tmp_path):
        """MAIL: too many on this connection, declared too large."""
        limits = smtp(max_mails=2, max_message_size=1000)
        async with door(tmp_path, **limits) as at:
            assert at.begin(1000, 1) is None
            assert at.begin(0, 2) == admission.TOO_MANY_MESSAGES
            assert at.begin(1001, 0) == admission.MESSAGE_TOO_BIG

    async def test_recipients(self, tmp_path):
        """RCPT: the limit is reached exactly, with a 4xx."""
        async with door(tmp_path, **smtp(max_rcpt=2)) as at:
            assert at.recipient(PEER, RCPT, 1) is None
            assert at.recipient(PEER, RCPT, 2) == admission.TOO_MANY_RECIPIENTS

    async def test_strangers_may_not_relay(self, tmp_path):
        """550 5.7.1, before anything of our load is told; each client is judged for itself."""
        async with door(tmp_path, smtp={"relay_networks": ["127.0.0.1/32"]}) as at:
            assert at.recipient(PEER, RCPT, 0) is None
            assert at.recipient(OTHER, RCPT, 10_000) == admission.RELAYING_DENIED
            assert at.recipient("unknown", RCPT, 0) == admission.RELAYING_DENIED

    async def test_bytes_in_memory(self, tmp_path):
        """`reserve` takes all or nothing; MAIL is refused while others fill the memory."""
        limits = smtp(max_bytes_in_memory=1000, max_message_size=1000)
        async with door(tmp_path, **limits) as at:
            assert at.reserve(600)
            assert not at.reserve(401)
            assert at.reserve(400)
            assert 1000 == at.bytes_in_memory
            assert at.begin(1, 0) == admission.NO_MEMORY
            # A message does not stand in its own way.
            assert at.message(size=1000, recipients=1, received=0) is None
            at.release(1000)
            assert at.begin(1000, 0) is None
            with pytest.raises(AssertionError):
                at.release(1)

    async def test_hops(self, tmp_path):
        """Mail that goes round ends with 554 5.4.6."""
        async with door(tmp_path, **smtp(max_hops=3)) as at:
            assert at.message(size=10, recipients=1, received=2) is None
            assert at.message(size=10, recipients=1, received=3) == admission.TOO_MANY_HOPS

    async def test_envelopes_in_the_queue(self, tmp_path):
        """The queue is full: MAIL, RCPT and the message are refused for now, the submission too."""
        async with door(tmp_path, **queue(max_envelopes=2)) as at:
            at.rig.out.answer = lambda rcpt: None
            assert at.recipient(PEER, RCPT, 1) is None
            assert at.recipient(PEER, RCPT, 2) == admission.NO_STORAGE
            assert await submit(at, 1) is None
            assert at.message(size=10, recipients=2, received=0) == admission.NO_STORAGE
            assert await submit(at, 2) is None
            assert at.begin(0, 0) == admission.NO_STORAGE
            assert await submit(at, 3) == admission.NO_STORAGE

    async def test_bytes_in_the_queue(self, tmp_path):
        """Counted by what the messages are, not by what the disk makes of them."""
        limits = {"queue": {"max_bytes": 100}, "smtp": {"max_message_size": 100}}
        async with door(tmp_path, limits=limits) as at:
            at.rig.out.answer = lambda rcpt: None
            assert await submit(at) is None
            left = 100 - len(BODY)
            assert at.begin(left, 0) is None
            assert at.begin(left + 1, 0) == admission.NO_STORAGE

    @pytest.mark.parametrize(
        "limits", [{"min_free_bytes": 2**62}, {"min_free_bytes": 0, "min_free_ratio": 0.999999}]
    )
    async def test_a_short_disk(self, tmp_path, limits):
        """452 4.3.1 before the disk is full, for whatever else needs it."""
        async with door(tmp_path, **queue(**limits)) as at:
            assert at.begin(0, 0) == admission.NO_STORAGE
            assert at.message(size=10, recipients=1, received=0) == admission.NO_STORAGE

    async def test_a_disk_that_can_not_be_asked_is_short(self, tmp_path):
        """Not knowing is not having."""
        effects = FaultyEffects(Plan(1, matches=lambda p: p.op == "statvfs", for_good=True))
        async with door(tmp_path, effects=effects) as at:
            assert at.begin(0, 0) == admission.NO_STORAGE

    async def test_what_is_being_received_needs_the_disk_as_well(self, tmp_path):
        """A hundred messages that each fit do not all fit."""
        async with door(tmp_path, **queue(min_free_bytes=1000, min_free_ratio=0.0)) as at:
            at.rig.queue._space = Space(2000, 4000)
            at.rig.queue._space_at = float("inf")
            assert at.begin(1000, 0) is None
            assert at.reserve(1)
            assert at.begin(1000, 0) == admission.NO_STORAGE
            at.release(1)

    async def test_commits_that_wait(self, tmp_path):
        """A disk that hangs: a bounded number waits for it, the rest is told to come back."""
        effects = FaultyEffects()
        async with door(tmp_path, effects=effects, **queue(max_waiting=2)) as at:
            gate = effects.gates["sqlite", "commit"] = threading.Event()
            waiting = [submit(at, 1), submit(at, 2)]
            try:
                assert at.begin(0, 0) == admission.NO_MEMORY
                assert await submit(at, 3) == admission.NO_STORAGE
            finally:
                gate.set()
            assert [None, None] == await asyncio.gather(*waiting)
            assert at.begin(0, 0) is None


class TestCommits:
    async def test_a_durable_message_is_counted(self, tmp_path):
        """With its bytes; the answer comes after the commit."""
        async with door(tmp_path) as at:
            assert await submit(at) is None
            assert (1, len(BODY)) == (
                at.metrics["smtp.message"],
                at.metrics["smtp.message.bytes"],
            )
            await at.rig.emptied()

    async def test_a_failed_commit_is_a_452(self, tmp_path):
        """And nothing is counted."""
        effects = FaultyEffects()
        async with door(tmp_path, effects=effects) as at:
            effects.plan = Plan(1, error=disk_full, matches=lambda p: p.site == "commit")
            assert await submit(at) == admission.NO_STORAGE
            assert at.begin(0, 0) == admission.NO_STORAGE
            assert 0 == at.metrics["smtp.message"]
            await at.rig.until(lambda: at.rig.queue.healthy)
            assert at.begin(0, 0) is None

    async def test_a_client_that_left_does_not_stop_its_commit(self, tmp_path):
        """The message is counted, and relayed."""
        async with door(tmp_path) as at:
            submit(at).cancel()
            await at.rig.until(lambda: at.rig.out.sent)
            assert 1 == at.metrics["smtp.message"]
            await at.rig.emptied()

    async def test_a_commit_that_is_cancelled_promises_nothing(self, tmp_path):
        """The queue gave it up: a 4xx, for the client knows better than we what to do."""
        async with door(tmp_path) as at:
            given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            at.rig.driver.enqueue = lambda *message: given_up  # type: ignore[method-assign]
            answer = submit(at)
            given_up.cancel()
            assert await answer == admission.NO_STORAGE

    async def test_a_mistake_of_ours_is_raised(self, tmp_path):
        """`mta.inbound` makes a 451 of it, and logs it."""
        async with door(tmp_path) as at:
            wrong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            at.rig.driver.enqueue = lambda *message: wrong  # type: ignore[method-assign]
            answer = submit(at)
            wrong.set_exception(ZeroDivisionError())
            with pytest.raises(ZeroDivisionError):
                await answer


@pytest.mark.parametrize(
    ("reply", "names"),
    [
        (admission.RELAYING_DENIED, {"smtp.refused.permanent"}),
        (admission.NO_STORAGE, {"smtp.refused.temporary"}),
        (admission.LOCAL_ERROR, {"smtp.refused.temporary", "error.internal"}),
        (Reply(421, *admission.LOCAL_ERROR[1:]), {"smtp.refused.temporary", "error.internal"}),
        (admission.IDLE, {"smtp.timeout"}),
        (admission.SESSION_TOO_LONG, {"smtp.timeout"}),
    ],
)
async def test_refusals_are_counted_by_kind(tmp_path, reply, names):
    """What the client did wrong, what we lack, what we did wrong, and who took too long."""
    async with door(tmp_path) as at:
        at.rejected(reply)
        assert names == {name for name, value in at.metrics.snapshot().items() if value}


async def test_lines_for_the_trace_go_to_the_tracer(tmp_path):
    """Only while somebody wants them."""
    async with door(tmp_path) as at:
        assert not at.tracing
        at.rig.driver.tracer.set("smtp", True)
        assert at.tracing
        at.trace("smtp", "hello")
        assert ["trace smtp: hello"] == at.rig.log.lines
