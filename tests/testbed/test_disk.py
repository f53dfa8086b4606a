"""The queue of a real server on a disk that is slow or full on demand: what SQLite and files then say, and nothing else is touched."""

import asyncio
import errno
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mta.core.ids import MsgId, evpid
from mta.core.limits import QueueLimits
from mta.queue.base import QueueUnavailableError
from mta.queue.sqlite import SqliteQueue
from testbed.targets.disk import BODY, COMMIT, WRITES, DiskEffects, main
from testbed.targets.ours import OurServer
from tests.support.faults import FaultyEffects
from tests.support.queues import submission
from tests.support.waiting import until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OurServer]:
    """Never started: it writes the state that `DiskEffects` reads."""
    made = OurServer(
        tmp_path,
        representation="slim",
        overrides={},
        seed=1,
        relay_port=1,
        nameserver="127.0.0.1:1",
        has_disk=True,
    )
    yield made
    made.stop()


@pytest.fixture
def effects(server: OurServer) -> DiskEffects:
    return DiskEffects(server.directory / "disk")


def test_a_disk_of_which_nothing_is_said_is_well(effects: DiskEffects, tmp_path: Path) -> None:
    """Everything happens as in `Effects`."""
    effects.write_new(tmp_path / "x", b"abc", site="queue.body")
    assert (tmp_path / "x").read_bytes() == b"abc"
    assert effects.space(tmp_path, site="queue").free_bytes > 0


def test_a_full_disk_says_what_sqlite_and_the_kernel_say(
    server: OurServer, effects: DiskEffects, tmp_path: Path
) -> None:
    """SQLITE_FULL for statements that write, ENOSPC for files; reads and the log go on, and no space is left."""
    server.set_disk("full", 1.0)
    with pytest.raises(sqlite3.OperationalError, match=r"^database or disk is full$") as told:
        effects.point("sqlite", "commit")
    assert told.value.sqlite_errorcode == sqlite3.SQLITE_FULL
    with pytest.raises(OSError, match="No space left") as refused:
        effects.write_new(tmp_path / "x", b"abc", site="queue.body")
    assert refused.value.errno == errno.ENOSPC
    assert not (tmp_path / "x").exists()
    effects.write_new(tmp_path / "log", b"abc", site="log")
    effects.point("sqlite", "read")
    space = effects.space(tmp_path, site="queue")
    assert space.free_bytes == 0 < space.total_bytes
    server.set_disk("well", 1.0)
    effects.write_new(tmp_path / "x", b"abc", site="queue.body")


def test_a_slow_disk_takes_so_many_times_as_long(server: OurServer) -> None:
    """The effect's own time, times the factor; what began before the disk was slow is not slowed."""
    slept: list[float] = []
    effects = DiskEffects(server.directory / "disk", sleep=slept.append)
    now = 0.0
    effects.monotonic = lambda: now
    effects.point("sqlite", "commit")
    server.set_disk("slow", 6.0)
    now += 0.25
    effects.done("sqlite", "commit")
    assert slept == []
    for op, site in sorted(WRITES):
        effects.point(op, site)
        now += 0.25
        effects.done(op, site)
    assert slept == [1.25] * len(WRITES)
    effects.point("sqlite", "read")
    effects.done("sqlite", "read")
    assert len(slept) == len(WRITES)
    server.set_disk("well", 1.0)
    effects.point("sqlite", "commit")
    effects.done("sqlite", "commit")
    assert len(slept) == len(WRITES)


def test_a_wait_for_the_processor_is_no_slow_disk(server: OurServer) -> None:
    """One commit that took far longer than those before it is slowed like them; if the next ones do, too, it is the disk."""
    slept: list[float] = []
    effects = DiskEffects(server.directory / "disk", sleep=slept.append)
    now = 0.0
    effects.monotonic = lambda: now

    def commit(seconds: float) -> None:
        nonlocal now
        effects.point("sqlite", "commit")
        now += seconds
        effects.done("sqlite", "commit")

    for _ in range(5):
        commit(0.5)
    server.set_disk("slow", 3.0)
    commit(8.0)
    commit(0.25)
    assert slept == [1.0, 0.5]
    for _ in range(63):
        commit(8.0)
    assert slept[-1] == 16.0


def test_a_slow_disk_is_slow_for_the_thread_that_writes(server: OurServer) -> None:
    """Each waits for its own effect: a large body's file, and at the same time a commit."""
    slept: list[tuple[str, float]] = []
    effects = DiskEffects(
        server.directory / "disk",
        sleep=lambda seconds: slept.append((threading.current_thread().name, seconds)),
    )
    server.set_disk("slow", 3.0)
    now = 1.0
    effects.monotonic = lambda: now
    effects.point("sqlite", "commit")
    now = 1.5

    def write() -> None:
        effects.point("fsync", "queue.body")
        effects.done("fsync", "queue.body")

    body = threading.Thread(target=write, name="body")
    body.start()
    body.join()
    effects.done("sqlite", "commit")
    assert slept == [("body", 0.0), (threading.current_thread().name, 1.0)]


async def test_all_that_a_queue_writes_is_known(tmp_path: Path) -> None:
    """A statement or file that is new in the queue and not in the lists would be fast on a slow disk."""
    seen = FaultyEffects()
    queue = SqliteQueue(tmp_path / "queue", effects=seen, limits=QueueLimits(commit_batch_max=50))
    await queue.open()
    begin = len(seen.seen)
    jobs = [queue.submit(submission(number, body=b"x" * 10)) for number in range(1, 40)]
    jobs.append(queue.submit(submission(40, body=b"x" * QueueLimits().body_file_bytes)))
    await asyncio.gather(*jobs)
    queue.remove(evpid(MsgId(1), 1))
    await queue.flush()
    queue._open_writer().sicken("test")
    await until(lambda: not queue.healthy)
    await until(lambda: queue.healthy)
    await queue.close()
    found = {(each.op, each.site) for each in seen.seen[begin:]}
    reading = {("sqlite", "removed"), ("sqlite", "commit.begin"), ("sqlite", "probe.begin")}
    opening = {("sqlite", "open"), ("sqlite.connect", "queue")}
    known = COMMIT | BODY | reading | opening
    assert found <= known | {("statvfs", "queue")}, found - known
    # A batch too long for one statement is the only other one; tests/mta/queue has it.
    assert COMMIT - found <= {("sqlite", "commit.part"), ("sqlite", "commit.commit")}
    assert BODY - found <= {(op, "queue.bodies") for op in ("create", "write", "fsync")} | {
        ("fsync_dir", "queue.body")
    }


async def test_a_queue_survives_its_full_disk(server: OurServer, effects: DiskEffects) -> None:
    """What is submitted then is refused; what was removed meanwhile is not there any more when the disk is well."""
    queue = SqliteQueue(server.directory / "queue", effects=effects, limits=QueueLimits())
    await queue.open()
    try:
        await asyncio.gather(queue.submit(submission(1)), queue.submit(submission(2)))
        assert not queue.full()
        server.set_disk("full", 1.0)
        with pytest.raises(QueueUnavailableError, match="database or disk is full"):
            await queue.submit(submission(3))
        assert queue.full()
        assert not queue.healthy
        queue.remove(evpid(MsgId(1), 1))
        server.set_disk("well", 1.0)
        await until(lambda: queue.healthy)
        await queue.flush()
        await queue.submit(submission(4))
        assert [each.evpid >> 32 for each in queue.page()] == [2, 4]
    finally:
        await queue.close()


def test_a_bad_configuration_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ``mta serve`` says it, with its status."""
    config = tmp_path / "mta.toml"
    config.write_text("nope = 3\n")
    assert main([str(tmp_path / "disk"), str(config)]) == 2
    assert (
        capsys.readouterr().err
        == f"mta: {config}: nope = 3: unknown key (did you mean envelope?)\n"
    )


def test_others_have_the_usual_seam(tmp_path: Path) -> None:
    """A server that is made for a disk that is always well has no state to change."""
    made = OurServer(
        tmp_path,
        representation="slim",
        overrides={},
        seed=1,
        relay_port=1,
        nameserver="127.0.0.1:1",
    )
    with pytest.raises(AssertionError, match="always well"):
        made.set_disk("full", 1.0)
    made.stop()
