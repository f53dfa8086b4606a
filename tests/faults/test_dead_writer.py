"""A mistake of ours on the writer's thread: nobody waits for ever, work goes on, and not without end."""

import asyncio
import errno
import threading
from pathlib import Path

import pytest

from mta.queue import writer
from mta.queue.base import QueueUnavailableError
from mta.queue.writer import Writer
from mta.server import ServerFailedError
from tests.support.faults import FaultyEffects, Plan
from tests.support.inprocess import send, serving
from tests.support.queues import held, ids, opened, submission
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta.queue.writer.PROBE_FIRST_S", 0.002)
    monkeypatch.setattr("mta.queue.writer.PROBE_MAX_S", 0.01)


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first mistake is the last."""
    monkeypatch.setattr("mta.queue.writer.RESTARTS_MAX", 0)


def bug_in(site: str, *, when: str = "before", for_good: bool = False) -> Plan:
    return Plan(
        1,
        lambda: RuntimeError("bug"),
        for_good,
        when=when,  # type: ignore[arg-type]
        matches=lambda point: point.site == site,
    )


@pytest.mark.parametrize("when", ["before", "after"])
async def test_the_writer_goes_on_after_a_commit(tmp_path: Path, when: str) -> None:
    """Who waited is refused and not kept, whether it got to the disk or not; the next one is durable."""
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects) as queue:
        await queue.submit(submission(1))
        effects.plan = bug_in("commit", when=when)
        with pytest.raises(QueueUnavailableError):
            await queue.submit(submission(2))
        await until(lambda: queue.healthy)
        await queue.submit(submission(3))
        assert [*ids(1), *ids(3)] == held(queue)
        assert (2, 0) == (queue.envelopes, queue.waiting)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_the_writer_goes_on_after_counting(tmp_path: Path, when: str) -> None:
    """What was removed is removed, and the counts are right again."""
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects) as queue:
        await queue.submit(submission(1, recipients=2))
        effects.plan = bug_in("removed", when=when)
        queue.remove(ids(1)[0])
        with pytest.raises(QueueUnavailableError):
            await queue.flush()
        await until(lambda: queue.healthy)
        await queue.flush()
        assert (ids(1, 2)[1:], 1) == (held(queue), queue.envelopes)


@pytest.mark.parametrize("site", ["probe.begin", "probe", "probe.commit"])
async def test_the_writer_goes_on_after_a_probe(tmp_path: Path, site: str) -> None:
    """A mistake on the way back to health is one more; what lagged is not forgotten."""
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects) as queue:
        await queue.submit(submission(1, recipients=2))
        errors = [OSError(errno.EIO, "I/O error"), RuntimeError("bug")]

        def error() -> BaseException:
            found = errors.pop(0)
            if not errors:
                effects.heal()
            return found

        effects.plan = Plan(1, error, True, matches=lambda at: at.site in ("commit", site))
        queue.remove(ids(1)[0])
        with pytest.raises(QueueUnavailableError):
            await queue.submit(submission(2))
        await until(lambda: queue.healthy and not errors)
        await queue.flush()
        assert (ids(1, 2)[1:], 1) == (held(queue), queue.envelopes)


async def test_a_mistake_after_the_commit_answers_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is durable, and nobody could be told: refused, and taken out again before anything else is written."""
    told = Writer._tell_removed
    calls = iter([RuntimeError("bug")])

    def once(self: Writer) -> None:
        for error in calls:
            raise error
        told(self)

    async with opened(tmp_path) as queue:
        monkeypatch.setattr(Writer, "_tell_removed", once)
        future = queue.enqueue(submission(2))
        for wanted in (queue.flush(), future):
            with pytest.raises(QueueUnavailableError):
                async with asyncio.timeout(5):
                    await wanted
        await until(lambda: queue.healthy)
        assert (0, []) == (queue.envelopes, queue.page())


async def test_too_many_mistakes_are_the_end(tmp_path: Path) -> None:
    """One that every probe meets again, too, is not cured by a fresh connection: that is said once."""
    effects = FaultyEffects()
    deaths: list[str] = []
    async with opened(tmp_path, effects=effects, deaths=deaths) as queue:
        effects.plan = Plan(
            1, lambda: RuntimeError("bug"), True, matches=lambda at: at.op == "sqlite"
        )
        with pytest.raises(QueueUnavailableError):
            await queue.submit(submission(1))
        await until(lambda: deaths)
        effects.heal()
        with pytest.raises(QueueUnavailableError):
            await queue.submit(submission(9))
        assert not queue.healthy
        assert ["writer: internal error: RuntimeError('bug')"] == deaths
        assert len(effects.failed) == writer.RESTARTS_MAX + 1


async def test_old_mistakes_are_forgiven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One now and then is no reason to stop."""
    monkeypatch.setattr("mta.queue.writer.RESTARTS_S", 0.0)
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects) as queue:
        for number in range(1, 2 * writer.RESTARTS_MAX):
            effects.plan = bug_in("commit")
            effects._count = 0
            with pytest.raises(QueueUnavailableError):
                await queue.submit(submission(number))
            await until(lambda: queue.healthy)
        await queue.submit(submission(99))


@pytest.mark.usefixtures("mortal")
async def test_who_comes_before_the_news_fails_at_once(tmp_path: Path) -> None:
    """The thread is dead and the event loop has not heard of it: the submission fails all the same."""
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects) as queue:
        effects.plan = bug_in("commit")
        first = queue.enqueue(submission(1))
        await asyncio.sleep(0)  # the writer is woken at the end of the turn
        assert queue._writer is not None
        assert queue._writer.join(10)
        assert queue.healthy, "the loop has had no turn since"

        second = queue.enqueue(submission(2))

        async with asyncio.timeout(5):
            for future in (first, second):
                with pytest.raises(QueueUnavailableError):
                    await future
        assert queue.waiting == 0
        assert not queue.healthy


@pytest.mark.usefixtures("mortal")
async def test_a_body_that_is_still_being_written_fails_at_once(tmp_path: Path) -> None:
    """Its file is written when the writer is dead already: the submitter hears of it, the file goes."""
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects, body_file_bytes=100) as queue:
        gate = effects.gates["create", "queue.body"] = threading.Event()
        large = queue.enqueue(submission(2, body=b"x" * 200))
        effects.plan = bug_in("commit")
        with pytest.raises(QueueUnavailableError):
            await queue.submit(submission(1))
        assert queue._writer is not None
        assert queue._writer.join(10)

        gate.set()

        with pytest.raises(QueueUnavailableError):
            async with asyncio.timeout(5):
                await large
    assert [] == list((tmp_path / "bodies").iterdir())


@pytest.mark.usefixtures("mortal")
async def test_the_server_stops_for_its_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gets a 4xx, the server ends by itself with one line, and the next one has what was promised."""
    monkeypatch.setattr("mta.server.gc.freeze", lambda: None)
    effects = FaultyEffects()
    rcpt = "b@[127.0.0.7]"
    said = []

    async def run() -> None:
        async with serving(tmp_path, effects) as server:
            port = server.smtp_address[1]
            said.append(await send(port, "a@one.test", [rcpt], "kept"))
            await until(lambda: server.engine.scheduler.counts.tempfail)
            await server.queue.flush()  # the deferral's commit is not the one that is meant
            effects.plan = bug_in("commit")
            said.append(await send(port, "a@one.test", [rcpt], "refused"))
            async with asyncio.timeout(10):
                await server._stop.wait()

    with pytest.raises(ServerFailedError, match="started again: writer: internal error"):
        await run()
    for one in said:
        one.check()
    assert [True, False] == [one.accepted for one in said]
    log = (tmp_path / "log").read_text()
    assert "mta stopped, to be started again: writer: internal error" in log
    async with serving(tmp_path, FaultyEffects()) as server:
        await until(lambda: not server.restoring)
        assert 1 == len(server.engine.store)
