"""The queue's writer has died by a mistake of ours: nobody waits for it, whenever they came."""

import asyncio
import threading
from pathlib import Path

import pytest

from mta.queue.base import QueueUnavailableError
from tests.support.faults import FaultyEffects, Plan
from tests.support.queues import opened, submission


def bug_in_commit() -> Plan:
    return Plan(1, error=lambda: RuntimeError("bug"), matches=lambda point: point.site == "commit")


async def test_who_comes_before_the_news_fails_at_once(tmp_path: Path) -> None:
    """The thread is dead and the event loop has not heard of it: the submission fails all the same."""
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects) as queue:
        effects.plan = bug_in_commit()
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


async def test_a_body_that_is_still_being_written_fails_at_once(tmp_path: Path) -> None:
    """Its file is written when the writer is dead already: the submitter hears of it, the file goes."""
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects, body_file_bytes=100) as queue:
        gate = effects.gates["create", "queue.body"] = threading.Event()
        large = queue.enqueue(submission(2, body=b"x" * 200))
        effects.plan = bug_in_commit()
        with pytest.raises(QueueUnavailableError):
            await queue.submit(submission(1))
        assert queue._writer is not None
        assert queue._writer.join(10)

        gate.set()

        with pytest.raises(QueueUnavailableError):
            async with asyncio.timeout(5):
                await large
    assert [] == list((tmp_path / "bodies").iterdir())
