"""The durable queue when the disk does not work: nobody is told of mail that is not there."""

import asyncio
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mta.core.ids import MsgId
from mta.core.limits import QueueLimits
from mta.effects import Effects
from mta.queue.base import QueueUnavailableError
from mta.queue.database import Database, QueueCorruptError
from mta.queue.sqlite import SqliteQueue
from tests.support.faults import FaultyEffects, Plan, Point, disk_full, io_error
from tests.support.queues import held, ids, opened, submission
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def _impatient(monkeypatch) -> None:
    """Probe a sick disk every few milliseconds."""
    monkeypatch.setattr("mta.queue.writer.PROBE_FIRST_S", 0.002)
    monkeypatch.setattr("mta.queue.writer.PROBE_MAX_S", 0.01)


def is_commit(point: Point) -> bool:
    return (point.op, point.site) == ("sqlite", "commit")


def sqlite_full() -> BaseException:
    return sqlite3.OperationalError("database or disk is full")


def sqlite_io() -> BaseException:
    return sqlite3.OperationalError("disk I/O error")


async def until_healthy(queue: SqliteQueue) -> None:
    await until(lambda: queue.healthy)


@pytest.mark.parametrize("error", [sqlite_full, sqlite_io, disk_full, MemoryError])
async def test_a_failed_commit_keeps_nothing_and_is_told(tmp_path: Path, fds, error) -> None:
    """All of the batch fail; then, the disk well again, the queue takes the same messages."""
    effects = FaultyEffects()
    notes: list[str] = []
    async with opened(tmp_path, effects=effects, notes=notes) as queue:
        effects.plan = Plan(1, error=error, matches=is_commit)
        results = await asyncio.gather(
            *(queue.submit(submission(number)) for number in range(1, 11)), return_exceptions=True
        )
        failed = [r for r in results if isinstance(r, QueueUnavailableError)]
        assert len(failed) == 10
        await until_healthy(queue)
        assert [] == held(queue)
        assert queue.envelopes == 0
        await asyncio.gather(*(queue.submit(submission(number)) for number in range(1, 11)))
        assert 10 == queue.envelopes == len(held(queue))
    assert any("takes nothing now" in note for note in notes)
    assert any("healthy again" in note for note in notes)


async def test_a_sick_queue_refuses_at_once(tmp_path: Path, monkeypatch) -> None:
    """Until a probe succeeds nobody waits for a disk that failed: not the next, not those in line."""
    monkeypatch.setattr("mta.queue.writer.PROBE_FIRST_S", 60.0)
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects, commit_batch_max=2) as queue:
        effects.plan = Plan(1, matches=is_commit, for_good=True)
        results = await asyncio.gather(
            *(queue.submit(submission(number)) for number in range(1, 11)), return_exceptions=True
        )
        assert all(isinstance(result, QueueUnavailableError) for result in results)
        assert not queue.healthy
        assert queue.full()
        assert queue.waiting == 0
        with pytest.raises(QueueUnavailableError):
            queue.enqueue(submission(11))
        with pytest.raises(QueueUnavailableError):
            await queue.flush()
        effects.heal()


async def test_what_lags_survives_a_sick_disk(tmp_path: Path) -> None:
    """Removals, deferrals and flags that were asked for are committed when the disk works again."""
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects) as queue:
        await queue.submit(submission(1, recipients=3))
        one, two, three = ids(1, 3)
        effects.plan = Plan(1, error=sqlite_io, matches=is_commit, for_good=True)
        queue.remove(one)
        queue.defer(two, attempts=3, due_at=77.0, status="451 x")
        queue.set_flags(three, 1)
        with pytest.raises(QueueUnavailableError):
            await queue.flush()
        assert queue.envelope(one) is None
        found = queue.envelope(two)
        assert found is not None
        assert (3, 77.0) == (found.attempts, found.due_at)
        queue.defer(two, attempts=4, due_at=88.0, status="451 y")
        effects.heal()
        await until_healthy(queue)
        await queue.flush()
        assert queue.envelopes == 2
    async with opened(tmp_path) as queue:
        assert [two, three] == held(queue)
        found = queue.envelope(two)
        assert found is not None
        assert (4, 88.0) == (found.attempts, found.due_at)
        found = queue.envelope(three)
        assert found is not None
        assert 1 == found.flags


async def test_probes_go_on_until_one_succeeds(tmp_path: Path) -> None:
    """Opening fails, then the probe's own commit fails, then all is well."""
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects) as queue:
        for site in ("queue", "probe.commit", "probe"):
            effects.plan = Plan(
                1,
                error=sqlite_io,
                for_good=True,
                matches=lambda point, site=site: point.site in (site, "commit"),
            )
            effects.failed.clear()
            with pytest.raises(QueueUnavailableError):
                await queue.submit(submission(1))
            await until(lambda site=site: sum(p.site == site for p in effects.failed) >= 3)
            assert not queue.healthy
            effects.heal()
            await until_healthy(queue)
        await queue.submit(submission(1))


async def test_a_failed_checkpoint_sickens_and_heals(tmp_path: Path, monkeypatch) -> None:
    """An error while the log is copied loses nothing, and the queue goes on after a probe."""
    monkeypatch.setattr("mta.queue.database.CHECKPOINT_BYTES", 1)
    monkeypatch.setattr("mta.queue.writer.IDLE_CHECKPOINT_S", 60.0)
    effects, notes = FaultyEffects(), []
    async with opened(tmp_path, effects=effects, notes=notes) as queue:
        effects.plan = Plan(1, error=sqlite_io, matches=lambda p: p.site == "checkpoint")
        await queue.submit(submission(1))
        await until(lambda: "queue: healthy again" in notes)
        assert any("checkpoint: disk I/O error" in note for note in notes)
        assert ids(1) == held(queue)
        await queue.submit(submission(2))


async def test_a_log_that_grows_is_copied_while_work_goes_on(tmp_path: Path, monkeypatch) -> None:
    """Checkpoints do not wait for a quiet moment, which may never come; and the log starts again."""
    monkeypatch.setattr("mta.queue.database.CHECKPOINT_BYTES", 200_000)
    monkeypatch.setattr("mta.queue.writer.IDLE_CHECKPOINT_S", 60.0)
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects) as queue:
        for number in range(1, 201):
            await queue.submit(submission(number, body=b"x" * 10_000))
            queue.remove(ids(number)[0])
        assert sum(point == Point("sqlite", "checkpoint", "after") for point in effects.seen) > 5
        assert (tmp_path / "queue.db-wal").stat().st_size < 1_000_000


async def test_a_quiet_moment_is_used_for_the_log(tmp_path: Path, monkeypatch) -> None:
    """After a while without work the log is copied, however short it is, and once."""
    monkeypatch.setattr("mta.queue.writer.IDLE_CHECKPOINT_S", 0.01)
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects) as queue:
        await queue.submit(submission(1))
        await until(lambda: Point("sqlite", "checkpoint", "after") in effects.seen)
        await asyncio.sleep(0.05)
        assert 1 == sum(point == Point("sqlite", "checkpoint", "after") for point in effects.seen)


async def test_deferrals_are_forgotten_from_the_oldest(tmp_path: Path, monkeypatch) -> None:
    """While the disk takes nothing, so many are remembered; one that is renewed is not old."""
    monkeypatch.setattr("mta.queue.writer.DEFERS_MAX", 2)
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects) as queue:
        await queue.submit(submission(1, recipients=3))
        one, two, three = ids(1, 3)
        effects.plan = Plan(1, error=sqlite_io, matches=is_commit, for_good=True)
        for envelope in (one, two, one, three):
            queue.defer(envelope, attempts=1, due_at=9.0, status="")
        effects.heal()
    async with opened(tmp_path) as queue:
        assert [1, 0, 1] == [stored.attempts for stored in queue.page()]


async def test_counts_are_right_after_any_failure(tmp_path: Path) -> None:
    """Where the count of what was removed is lost, everything is counted again."""
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects) as queue:
        await queue.submit(submission(1, recipients=4))
        effects.plan = Plan(1, error=sqlite_io, matches=lambda point: point.site == "removed")
        queue.remove(ids(1, 4)[0])
        await queue.flush()
        await until(lambda: queue.envelopes == 3)
        assert effects.failed


@pytest.mark.parametrize("error", [disk_full, io_error])
async def test_a_body_file_that_fails_is_refused(tmp_path: Path, fds, error) -> None:
    """Wherever writing it fails: a refusal, no file, no row; then the queue takes it."""
    reached = 0
    for number in range(1, 10):
        effects = FaultyEffects()
        async with opened(tmp_path / f"{number}", effects=effects) as queue:
            effects.plan = Plan(number, error=error, matches=lambda p: "bod" in p.site)
            try:
                await queue.submit(submission(1, body=b"x" * 70_000))
            except QueueUnavailableError:
                reached += 1
                await until_healthy(queue)
                assert [] == held(queue)
                assert list((tmp_path / f"{number}" / "bodies").iterdir()) == []
                effects.heal()
                await queue.submit(submission(1, body=b"x" * 70_000))
                assert ids(1) == held(queue)
            else:
                break
    assert reached == 4  # create, write, fsync, fsync of the directory


async def test_a_full_disk_refuses_the_file_and_not_the_next_message(tmp_path: Path) -> None:
    """ENOSPC of a large body says nothing of small ones: the queue stays healthy."""
    effects = FaultyEffects(Plan(1, error=disk_full, matches=lambda p: p.site == "queue.body"))
    async with opened(tmp_path, effects=effects) as queue:
        with pytest.raises(QueueUnavailableError):
            await queue.submit(submission(1, body=b"x" * 70_000))
        assert queue.healthy
        await queue.submit(submission(2))


async def test_the_file_of_a_failed_commit_is_removed(tmp_path: Path, fds) -> None:
    """The body was written, its row was not."""
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects) as queue:
        effects.plan = Plan(1, error=sqlite_io, matches=is_commit)
        with pytest.raises(QueueUnavailableError):
            await queue.submit(submission(1, body=b"x" * 70_000))
    assert list((tmp_path / "bodies").iterdir()) == []


@pytest.mark.parametrize(
    "refused", [submission(1, body=b"x" * 70_000), submission(2, recipients=3)]
)
async def test_a_commit_whose_result_was_lost_is_taken_back(tmp_path: Path, fds, refused) -> None:
    """Refused is refused: what turns out to be there after all goes with the probe, file and all."""
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects) as queue:
        effects.plan = Plan(1, error=sqlite_io, matches=is_commit, when="after")
        with pytest.raises(QueueUnavailableError):
            await queue.submit(refused)
        await until_healthy(queue)
        assert [] == held(queue)
        assert (0, 0, 0) == (queue.envelopes, queue.messages, queue.size_bytes)
        assert list((tmp_path / "bodies").iterdir()) == []


async def test_a_bounce_whose_commit_was_lost_is_not_taken_back(tmp_path: Path, fds) -> None:
    """What it reports is gone with it; taking it back would lose both. The next start finds it."""
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects) as queue:
        await queue.submit(submission(1, recipients=2))
        effects.plan = Plan(1, error=sqlite_io, matches=is_commit, when="after")
        with pytest.raises(QueueUnavailableError):
            await queue.submit(submission(2, body=b"x" * 70_000), replaces=tuple(ids(1, 2)))
        await until_healthy(queue)
        assert ids(2) == held(queue)
        assert queue.body(MsgId(2))


async def test_a_body_file_that_can_not_be_removed_goes_at_the_next_start(tmp_path: Path) -> None:
    """The removal of the message stands; the operator hears of the file."""
    effects, notes = FaultyEffects(), []
    async with opened(tmp_path, effects=effects, notes=notes) as queue:
        await queue.submit(submission(1, body=b"x" * 70_000))
        effects.plan = Plan(1, matches=lambda point: point.op == "unlink")
        queue.remove(ids(1)[0])
        await queue.flush()
        assert queue.messages == 0
    assert (tmp_path / "bodies" / "00000001").exists()
    assert any("00000001 stays" in note for note in notes)
    async with opened(tmp_path):
        pass
    assert list((tmp_path / "bodies").iterdir()) == []


async def test_one_that_can_not_be_stored_does_not_take_its_neighbours_along(
    tmp_path: Path,
) -> None:
    """A message id that is taken (a bug of ours) fails alone, and what lags is committed."""
    notes: list[str] = []
    async with opened(tmp_path, notes=notes) as queue:
        await queue.submit(submission(1, recipients=2))
        queue.remove(ids(1, 2)[1])
        results = await asyncio.gather(
            *(queue.submit(submission(number)) for number in (2, 1, 3)), return_exceptions=True
        )
        assert [None, None] == [results[0], results[2]]
        assert isinstance(results[1], QueueUnavailableError)
        assert queue.healthy
        await queue.flush()
        assert [ids(1)[0], *ids(2), *ids(3)] == held(queue)
        assert queue.envelopes == 3
    assert any("not storable" in note for note in notes)


async def test_a_string_that_can_not_be_written_fails_at_once(tmp_path: Path) -> None:
    """A lone surrogate is refused before it is in any batch."""
    async with opened(tmp_path) as queue:
        good = submission(1)
        for bad in (
            good._replace(recipients=(good.recipients[0]._replace(address="\udc80@x"),)),
            good._replace(transaction=good.transaction._replace(helo="\udc80")),
        ):
            with pytest.raises(ValueError, match="surrogate"):
                queue.enqueue(bad)
        assert queue.waiting == 0
        await queue.submit(good)


async def test_a_bug_in_the_writer_hangs_nobody(tmp_path: Path, fds) -> None:
    """An error that nobody foresaw fails those who wait, stops the intake, and is told."""
    notes: list[str] = []
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects, notes=notes) as queue:
        effects.plan = Plan(1, error=lambda: RuntimeError("bug"), matches=is_commit)
        with pytest.raises(QueueUnavailableError):
            await queue.submit(submission(1))
        await until(lambda: not queue.healthy)
        with pytest.raises(QueueUnavailableError):
            await queue.submit(submission(2))
    assert any("internal error: RuntimeError('bug')" in note for note in notes)


async def test_a_disk_that_hangs_does_not_hold_up_the_end(tmp_path: Path, monkeypatch) -> None:
    """Closing gives it up after a while, and fails those who wait."""
    monkeypatch.setattr("mta.queue.sqlite.CLOSE_S", 0.05)
    effects, notes = FaultyEffects(), []
    queue = SqliteQueue(tmp_path, effects=effects, limits=QueueLimits(), note=notes.append)
    await queue.open()
    gate = effects.gates["sqlite", "commit"] = threading.Event()
    waiting = queue.enqueue(submission(1))
    await asyncio.sleep(0)
    await queue.close()
    with pytest.raises(QueueUnavailableError):
        await waiting
    assert any("hangs" in note for note in notes)
    gate.set()
    await asyncio.to_thread(queue._writer.join, 10)  # type: ignore[union-attr]
    queue._release()


async def test_reading_fails_as_temporarily_unavailable(tmp_path: Path) -> None:
    """Every read, with its own words, and never SQLite's."""
    effects = FaultyEffects()
    async with opened(tmp_path, effects=effects) as queue:
        await queue.submit(submission(1))
        effects.plan = Plan(
            1, error=sqlite_io, for_good=True, matches=lambda p: p.site in ("read", "restore")
        )
        envelope = ids(1)[0]
        for read in (
            lambda: queue.envelope(envelope),
            lambda: queue.mta_envelope(envelope),
            lambda: queue.body(MsgId(1)),
            lambda: queue.page(),
            lambda: queue.of_message(MsgId(1)),
            lambda: list(queue.restore()),
        ):
            with pytest.raises(QueueUnavailableError) as caught:
                read()
            assert "I/O" not in str(caught.value)


async def test_a_start_that_fails_anywhere_leaves_nothing_open(tmp_path: Path, fds) -> None:
    """Each point of opening fails once, before and after; then the next start works."""
    for when in ("before", "after"):
        for number in range(1, 200):
            effects = FaultyEffects(Plan(number, when=when))  # type: ignore[arg-type]
            try:
                async with opened(tmp_path / f"{when}{number}", effects=effects):
                    reached_end = not effects.failed
                    effects.heal()
            except OSError:
                async with opened(tmp_path / f"{when}{number}") as queue:
                    await queue.submit(submission(1))
            else:
                assert reached_end
                break
        assert number > 20


# ---- the sweep


async def life(queue: SqliteQueue, acknowledged: set[int]) -> None:
    """A little of everything. Adds each message to ``acknowledged`` when it was."""

    async def submit(number: int, **changes: object) -> None:
        try:
            await queue.submit(submission(number, **changes))  # type: ignore[arg-type]
        except QueueUnavailableError:
            return
        acknowledged.add(number)

    await asyncio.gather(submit(1, recipients=2), submit(2), submit(3, body=b"x" * 70_000))
    queue.remove(ids(1, 2)[0])
    queue.defer(ids(1, 2)[1], attempts=1, due_at=9.0, status="451")
    await submit(4, recipients=1100)
    for envelope in ids(4, 1099):
        queue.remove(envelope)
    with suppress(QueueUnavailableError):
        await queue.flush()
    await submit(5)


def points() -> Iterator[tuple[str, str]]:
    for when in ("before", "after"):
        for length in ("once", "for good"):
            yield when, length


@pytest.mark.parametrize(("when", "length"), list(points()))
async def test_no_fault_loses_what_was_acknowledged(
    tmp_path: Path, fds, when: str, length: str
) -> None:
    """Every point of a queue's life fails, once or from then on; what was acknowledged is there after a
    restart, what was refused is not (unless the result of its commit was lost), and nothing leaks.
    """
    reached = 0
    for number in range(1, 400):
        directory = tmp_path / f"{number}"
        acknowledged: set[int] = set()
        effects = FaultyEffects()
        queue = SqliteQueue(directory, effects=effects, limits=QueueLimits())
        await queue.open()
        effects.plan = Plan(
            number,
            error=io_error if number % 2 else sqlite_full,
            for_good=length == "for good",
            when=when,  # type: ignore[arg-type]
        )
        try:
            await life(queue, acknowledged)
            failed = list(effects.failed)
        finally:
            await queue.close()
        reached += bool(failed)
        async with opened(directory) as again:
            found = {envelope >> 32 for envelope in held(again)}
            assert acknowledged <= found, (failed, acknowledged, found)
            if when == "before":
                assert acknowledged == found, (failed, acknowledged, found)
            for msgid in found:
                assert submission(msgid).body == again.body(MsgId(msgid)) or msgid == 3
            assert again.envelopes == len(held(again))
            files = {int(path.name, 16) for path in (directory / "bodies").iterdir()}
            assert files == found & {3}
        if not failed:
            break
    assert reached >= 15, reached


# ---- real disks


async def test_a_real_file_size_limit(tmp_path: Path, fds) -> None:
    """At RLIMIT_FSIZE the log can't grow: refusals, then, the limit gone, all is well."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = []
    async with opened(tmp_path) as queue:
        await queue.submit(submission(1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        try:
            with suppress(QueueUnavailableError):
                for number in range(2, 100):
                    await queue.submit(submission(number, body=b"x" * 30_000))
                    kept.append(number)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await until_healthy(queue)
        assert [1, *kept] == [envelope >> 32 for envelope in held(queue)]
        await queue.submit(submission(100, body=b"x" * 30_000))
        assert 2 < len(kept) < 20


@pytest.mark.system
async def test_a_real_full_disk(tmp_path: Path) -> None:
    """On a file system of 2 MiB that somebody else fills: refusals, nothing lost, then room again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = await asyncio.to_thread(
        subprocess.run,
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip(f"can't mount a small file system: {mount.stderr.strip()}")
    try:
        filler = disk / "somebody-elses"
        filler.write_bytes(b"x" * 1_000_000)
        kept = []
        async with opened(disk, min_free_bytes=1) as queue:
            with suppress(QueueUnavailableError):
                for number in range(1, 1000):
                    body = b"x" * (100_000 if number % 7 == 0 else 10_000)
                    await queue.submit(submission(number, body=body))
                    kept.append(number)
            assert 5 < len(kept) < 150
            assert kept == [envelope >> 32 for envelope in held(queue)]
            for number in kept[:-3]:
                queue.remove(ids(number)[0])
        # Closed while the disk was full: what could not be removed is delivered again.
        filler.unlink()
        async with opened(disk, min_free_bytes=1) as queue:
            assert set(kept[-3:]) <= {envelope >> 32 for envelope in held(queue)} <= set(kept)
            for number in kept[:-3]:
                queue.remove(ids(number)[0])
            await queue.flush()
            assert kept[-3:] == [envelope >> 32 for envelope in held(queue)]
            await queue.submit(submission(1000))
    finally:
        await asyncio.to_thread(
            subprocess.run,
            ["umount", str(disk)],
            check=True,
        )


CHILD = """
import asyncio, pathlib, random, sys
from mta.core.limits import QueueLimits
from mta.effects import Effects
from mta.queue.sqlite import SqliteQueue
from tests.support.queues import ids, submission

async def main():
    queue = SqliteQueue(pathlib.Path(sys.argv[1]), effects=Effects(), limits=QueueLimits())
    await queue.open()
    rng = random.Random(int(sys.argv[2]))
    async def submitter():
        while True:
            msgid = queue.next_msgid()
            large = rng.random() < 0.1
            count = rng.choice((1, 1, 1, 3))
            print("begun", msgid, count, flush=True)
            await queue.submit(
                submission(msgid, recipients=count, body=b"%d" % msgid * (20_000 if large else 100))
            )
            print("kept", msgid, count, flush=True)
            if rng.random() < 0.5:
                print("removing", msgid, flush=True)
                queue.remove(ids(msgid, count)[-1])
    await asyncio.gather(*(submitter() for _ in range(10)))

asyncio.run(main())
"""


@pytest.mark.system
async def test_sigkill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Twenty lives end at a random instant; each time all that was acknowledged is there, whole."""
    rng = random.Random(20130129)
    kept: dict[int, int] = {}
    begun: dict[int, int] = {}
    removing: set[int] = set()
    for life_number in range(20):
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            CHILD,
            str(tmp_path / "q"),
            str(life_number),
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[3],
        )
        assert child.stdout is not None
        first = await asyncio.wait_for(child.stdout.readline(), 30)
        await asyncio.sleep(rng.uniform(0.0, 0.15))
        child.kill()
        rest = await child.stdout.read()
        await child.wait()
        lines = (first + rest).decode().split("\n")[:-1]  # the last may be torn
        for line in lines:
            word, msgid, *count = line.split()
            if word == "begun":
                assert int(msgid) not in begun, "an id was given out twice"
                begun[int(msgid)] = int(count[0])
            elif word == "kept":
                kept[int(msgid)] = int(count[0])
            else:
                removing.add(int(msgid))
        async with opened(tmp_path / "q") as queue:
            found = set(held(queue))
            for msgid, recipients in kept.items():
                envelopes = ids(msgid, recipients)
                missing = [envelope for envelope in envelopes if envelope not in found]
                assert missing in ([], [envelopes[-1]] if msgid in removing else []), msgid
                if missing != envelopes:
                    body = queue.body(MsgId(msgid))
                    assert body == b"%d" % msgid * (len(body) // len(b"%d" % msgid))
            unknown = {envelope >> 32 for envelope in found} - begun.keys()
            assert unknown == set()
            assert len(found) == queue.envelopes
    assert len(kept) > 200


async def test_a_database_closes_itself_when_its_opening_fails(tmp_path: Path, fds) -> None:
    """Whatever fails while it is prepared, no descriptor is left; what SQLite says of damage is corruption."""
    for number in range(1, 60):
        effects = FaultyEffects(Plan(number, error=lambda: sqlite3.DatabaseError("malformed")))
        try:
            Database(tmp_path / "x.db", effects, writer=True).close()
        except (QueueCorruptError, sqlite3.DatabaseError):
            continue
        break
    assert number > 10
    Database(tmp_path / "x.db", Effects(), writer=True).close()
