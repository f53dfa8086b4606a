"""The seam of local delivery: what each effect promises, and what is left when it fails at any point."""

import asyncio
import fcntl
import os
import signal
import stat
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mta.delivery.effects import Child, DeliveryEffects, _Fork, is_plain_file
from mta.delivery.files import remove
from mta.delivery.maildir import MaildirDeliverer
from mta.delivery.mbox import MboxDeliverer
from mta.effects import Effects
from tests.mta.delivery.jobs import children, job
from tests.support.faults import FaultyEffects, Plan
from tests.support.waiting import until


@pytest.fixture
def directory(tmp_path):
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def test_a_file_is_made_or_it_is_not(tmp_path, fds, directory):
    """Private, never over another, never through a link; nothing of it stays after a fault."""
    effects = DeliveryEffects(Effects())
    descriptor = effects.create_at(directory, "a", site="test")
    assert 0o600 == stat.S_IMODE(os.fstat(descriptor).st_mode)
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("a", "link"):
        with pytest.raises(FileExistsError):
            effects.create_at(directory, name, site="test")
    for when in ("before", "after"):
        with pytest.raises(OSError, match="Input/output"):
            DeliveryEffects(FaultyEffects(Plan(1, when=when))).create_at(
                directory, "b", site="test"
            )
    assert {"a", "link"} == {path.name for path in tmp_path.iterdir()}


def test_opening_follows_no_link_and_waits_for_nobody(tmp_path, fds, directory):
    """A link is refused, a FIFO without a reader is opened at once and then found out."""
    effects = DeliveryEffects(Effects())
    (tmp_path / "link").symlink_to(tmp_path)
    for opening in (effects.open_subdirectory, effects.open_append_at):
        with pytest.raises(OSError, match=r"symbolic|directory"):
            opening(directory, "link", site="test")
    os.mkfifo(tmp_path / "fifo")
    descriptor = effects.open_append_at(directory, "fifo", site="test")
    assert not is_plain_file(effects.stat(descriptor, site="test"))
    effects.close(descriptor, site="test")
    for when in ("before", "after"):
        faulty = DeliveryEffects(FaultyEffects(Plan(1, when=when)))
        with pytest.raises(OSError, match="Input/output"):
            faulty.open_directory(tmp_path, site="test")


def test_a_lock_excludes_our_own_threads_as_well(tmp_path, fds, directory):
    """Two descriptors of one process exclude each other, and closing a third lets go of nothing."""
    effects = DeliveryEffects(Effects())
    first = effects.create_at(directory, "a", site="test")
    second, third = (effects.open_append_at(directory, "a", site="test") for _ in range(2))
    effects.lock(first, site="test")
    with pytest.raises(BlockingIOError):
        effects.lock(second, site="test")
    os.close(third)
    with pytest.raises(BlockingIOError):
        effects.lock(second, site="test")
    os.close(first)
    effects.lock(second, site="test")
    os.close(second)


def test_half_a_lock_is_no_lock(tmp_path, fds, directory):
    """Who gets the one lock but not the other lets go of the one: else two programs that take them in
    opposite orders would wait for each other."""
    effects = DeliveryEffects(Effects())
    first = effects.create_at(directory, "a", site="test")
    second, third = (effects.open_append_at(directory, "a", site="test") for _ in range(2))
    fcntl.flock(first, fcntl.LOCK_EX)
    with pytest.raises(BlockingIOError):
        effects.lock(second, site="test")
    fcntl.flock(first, fcntl.LOCK_UN)
    effects.lock(third, site="test")
    for descriptor in (first, second, third):
        os.close(descriptor)


def test_removing_tries_twice(tmp_path, directory):
    """One fault is nothing, two are told; what is not there is removed."""
    (tmp_path / "a").touch()
    faulty = FaultyEffects(Plan(1, for_good=True))
    problem = remove(DeliveryEffects(faulty), directory, "a", site="test")
    assert isinstance(problem, OSError)
    assert 2 == len(faulty.failed)
    assert remove(DeliveryEffects(FaultyEffects(Plan(1))), directory, "a", site="test") is None
    assert remove(DeliveryEffects(Effects()), directory, "a", site="test") is None
    assert [] == list(tmp_path.iterdir())


async def test_a_message_is_durable_before_it_counts(tmp_path):
    """Maildir: content before the name, the name before the answer, and each new directory's name.
    mbox: content before the answer."""
    effects = FaultyEffects()
    await MaildirDeliverer(effects).deliver(job(tmp_path / "a"))
    done = [point.op for point in effects.seen if point.when == "after"]
    assert 4 == done.count("mkdir")
    for at in (number for number, op in enumerate(done) if op == "mkdir"):
        assert ["mkdir", "open", "fsync"] == done[at : at + 3]
    tail = [op for op in done[done.index("create") :] if op != "close"]
    assert ["create", "write", "write", "fsync", "rename", "fsync"] == tail
    effects = FaultyEffects()
    await MboxDeliverer(effects).deliver(job(tmp_path / "b"))
    done = [point.op for point in effects.seen if point.when == "after" and point.op != "stat"]
    expected = ["open", "create", "fsync", "lock", "read", "write", "write", "write", "fsync"]
    assert expected == [op for op in done if op != "close"]


async def start(effects: Effects, tmp_path: Path, *command: str) -> Child:
    null = os.open("/dev/null", os.O_RDWR)
    try:
        return await DeliveryEffects(effects).spawn(
            command,
            environment={},
            directory=tmp_path,
            stdin=null,
            stdout=null,
            identity=None,
            executor=None,
            site="test",
        )
    finally:
        os.close(null)


def is_known(pid: int) -> bool:
    """Whether there is a process of this number, if only a zombie."""
    return Path(f"/proc/{pid}").exists()


async def test_a_child_keeps_its_number_until_it_is_reaped(tmp_path, fds):
    """After its end a signal to its group reaches at most what is left of it, never a stranger."""
    child = await start(Effects(), tmp_path, "/bin/sleep", "60")
    assert child.pid == os.getpgid(child.pid) != os.getpgid(0)
    child.kill(signal.SIGTERM, site="test")
    await child.exited
    assert is_known(child.pid)
    child.kill(signal.SIGKILL, site="test")
    child.reap()
    assert -signal.SIGTERM == child.status
    assert not is_known(child.pid)
    sent: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "killpg", lambda pid, number: sent.append(pid))
        child.kill(signal.SIGKILL, site="test")
        child.abandon()
    assert sent == []


async def test_an_abandoned_child_is_reaped_in_its_own_time(tmp_path, fds):
    """Nobody waits for it; it is killed, and no zombie stays."""
    child = await start(Effects(), tmp_path, "/bin/sleep", "60")
    child.abandon()
    await until(lambda: not is_known(child.pid))
    assert -signal.SIGKILL == child.status


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_start_that_fails_leaves_no_process(tmp_path, fds, when):
    """Before it, nothing is started; after it, the command is killed and reaped."""
    before = children()  # others may be there: a pool of processes has helpers that stay
    with pytest.raises(OSError, match="Input/output"):
        await start(FaultyEffects(Plan(1, when=when)), tmp_path, "/bin/sleep", "60")
    await until(lambda: children() <= before)
    await asyncio.sleep(0)


async def test_a_signal_is_sent_whatever_fails(tmp_path, fds):
    """A fault at the seam does not keep a command that has to die alive."""
    for when in ("before", "after"):
        effects = FaultyEffects()
        child = await start(effects, tmp_path, "/bin/sleep", "60")
        effects.plan = Plan(1, when=when, matches=lambda point: point.op == "kill")
        child.kill(signal.SIGKILL, site="test")
        await child.exited
        child.reap()
        assert 1 == len(effects.failed)


def test_a_command_that_nobody_wants_outlives_no_loop(tmp_path):
    """Cancelled while a thread forks, and the loop is closed before the fork is done: it is killed and reaped.

    Otherwise it would run on with nobody to stop it, and Python would warn of a "subprocess still running".
    """
    forking, go = threading.Event(), threading.Event()
    pids: list[int] = []
    popen = subprocess.Popen

    def slow(*args, **options):
        forking.set()
        assert go.wait(10)
        process = popen(*args, **options)
        pids.append(process.pid)
        return process

    pool = ThreadPoolExecutor(1)

    async def main() -> None:
        with Path(os.devnull).open("r+b") as null:  # noqa: ASYNC230  # as a descriptor
            task = asyncio.ensure_future(
                DeliveryEffects(FaultyEffects()).spawn(
                    ["/bin/sleep", "60"],
                    environment={},
                    directory=tmp_path,
                    stdin=null.fileno(),
                    stdout=null.fileno(),
                    identity=None,
                    executor=pool,
                    site="test",
                )
            )
            while not forking.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mta.delivery.effects.subprocess.Popen", slow)
        asyncio.run(main())
        go.set()
        pool.shutdown()
    (pid,) = pids
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("started", [True, False])
def test_a_fork_that_is_forgotten(started):
    """Before it began nothing is started; afterwards it is ended."""
    fork = _Fork()
    made: list[subprocess.Popen[bytes]] = []

    def popen() -> "subprocess.Popen[bytes]":
        made.append(subprocess.Popen(["/bin/sleep", "60"], process_group=0))
        return made[-1]

    if started:
        assert fork.start(popen) is made[0]
        fork.forget()
        assert made[0].wait(10) == -signal.SIGKILL
    else:
        fork.forget()
        with pytest.raises(OSError, match="cancel"):
            fork.start(popen)
        assert [] == made
