"""mbox: appended whole or not at all, under every lock, to the recipient's own plain file."""

import asyncio
import fcntl
import mailbox
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from mta.core.reply import Outcome
from mta.delivery.base import DeliveryLimits
from mta.delivery.mbox import MboxDeliverer, from_line
from mta.effects import Effects
from tests.mta.delivery.jobs import FAULTS, is_discreet, job, sweep
from tests.support.faults import FaultyEffects, Plan
from tests.support.waiting import until

ROOT = Path(__file__).parents[3]
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for somebody else")
NOBODY = 65534
OLD = b"From x Thu Jan  1 00:00:00 1970\nSubject: old\n\nold\n\n"


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as executor:
        yield executor


def subjects(path: Path) -> list[str | None]:
    box = mailbox.mbox(str(path), create=False)
    try:
        return [message["Subject"] for message in box]
    finally:
        box.close()


def copies(home: Path) -> int:
    """Messages after the old one, which must be as it was."""
    path = home / "mbox"
    if not path.exists():
        return 0
    assert path.read_bytes().startswith(OLD) or not path.read_bytes().startswith(b"From x")
    assert not (home / "mbox.lock").exists()
    return subjects(path).count("one")


def quick(**changes: float) -> DeliveryLimits:
    return DeliveryLimits(lock_timeout_s=0.2, **changes)


async def test_a_reader_finds_the_messages(tmp_path, fds, pool):
    """Python's own mbox reads what was delivered, one after the other; a line From is quoted."""
    shell = MboxDeliverer(Effects(), executor=pool)
    for subject in ("a", "b", "c"):
        body = f"Subject: {subject}\r\n\r\nFrom the start\r\n>From there\r\nend".encode()
        assert (Outcome.OK, "Delivered") == await shell.deliver(job(tmp_path, body=body))
    assert ["a", "b", "c"] == subjects(tmp_path / "mbox")
    box = mailbox.mbox(str(tmp_path / "mbox"), create=False)
    assert ">From the start\n>>From there\nend\n" == box[1].get_payload()
    assert "<bob@remote.test>" == box[1]["Return-Path"]
    assert box[1].get_from().startswith("bob@remote.test ")
    box.close()
    assert 0o600 == (tmp_path / "mbox").stat().st_mode & 0o777


def test_the_first_line():
    """Sender and date in UTC, as C's asctime writes it; a sender is one word."""
    assert b"From a@b.test Tue Nov 14 22:13:20 2023\n" == from_line("a@b.test", 1_700_000_000.5)
    assert b"From MAILER-DAEMON Thu Jan  1 00:00:00 1970\n" == from_line("", 0.0)
    assert from_line('"a b"@c.test', 0.0).startswith(b'From "a_b"@c.test Thu')


@pytest.mark.parametrize(
    "rest", [b"", b"From x y\n\nhalf a li", b"From x y\n\nline\n", b"\n", b"x\n\n"]
)
async def test_a_message_begins_on_a_line_of_its_own(tmp_path, pool, rest):
    """Whatever another program has left at the end, the next message is seen."""
    (tmp_path / "mbox").write_bytes(rest)
    assert (
        await MboxDeliverer(Effects(), executor=pool).deliver(job(tmp_path))
    ).outcome is Outcome.OK
    assert (tmp_path / "mbox").read_bytes().startswith(rest)
    assert "one" == subjects(tmp_path / "mbox")[-1]


async def test_what_is_no_plain_file_of_ours_is_refused(tmp_path, fds, pool):
    """A link, a file with two names, a FIFO, a device or a directory is never written to."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    kinds = {
        "link": lambda path: path.symlink_to(victim),
        "broken": lambda path: path.symlink_to(tmp_path / "nowhere"),
        "hardlink": lambda path: path.hardlink_to(victim),
        "fifo": os.mkfifo,
        "directory": Path.mkdir,
    }
    if os.geteuid() == 0:
        kinds["device"] = lambda path: os.mknod(path, 0o020600, os.makedev(1, 3))
    shell = MboxDeliverer(Effects(), quick(), executor=pool)
    for kind, make in kinds.items():
        home = tmp_path / kind
        home.mkdir()
        make(home / "mbox")
        result = await shell.deliver(job(home))
        assert (Outcome.TEMPFAIL, "4.3.5") == (result.outcome, result.status[:5]), kind
        assert is_discreet(result, tmp_path)
    assert b"precious" == victim.read_bytes()
    assert not (tmp_path / "nowhere").exists()


async def test_a_mailbox_open_to_all_is_refused(tmp_path, pool):
    """Where everybody may write, nobody's mail is safe."""
    (tmp_path / "mbox").write_bytes(OLD)
    (tmp_path / "mbox").chmod(0o666)
    result = await MboxDeliverer(Effects(), executor=pool).deliver(job(tmp_path))
    assert (Outcome.TEMPFAIL, "4.3.5 Mailbox can be written by anyone") == result


@root_only
async def test_the_mailbox_belongs_to_the_recipient(tmp_path, pool):
    """Root makes it for the user, and writes to nobody else's."""
    mail = job(tmp_path / "home", uid=NOBODY, gid=NOBODY)
    os.chown(mail.home, NOBODY, NOBODY)
    shell = MboxDeliverer(Effects(), executor=pool)
    assert (await shell.deliver(mail)).outcome is Outcome.OK
    path = mail.home / "mbox"
    assert (NOBODY, NOBODY) == (path.stat().st_uid, path.stat().st_gid)
    os.chown(path, 1, 1)
    assert "4.3.5 Mailbox does not belong to the recipient" == (await shell.deliver(mail)).status


async def test_mailboxes_in_a_spool_directory(tmp_path, pool):
    """Named like their users, and a user's name never leads out of it."""
    spool = tmp_path / "spool"
    spool.mkdir()
    shell = MboxDeliverer(Effects(), spool=spool, executor=pool)
    assert (await shell.deliver(job(tmp_path / "home"))).outcome is Outcome.OK
    for user in ("..", ".", "", "../x", "a/b", "a\0b", "x" * 300, ".hidden"):
        result = await shell.deliver(job(tmp_path / "home", user=user))
        assert (Outcome.TEMPFAIL, "4.3.5 Mailbox name is not usable") == result
    assert ["ann"] == [path.name for path in spool.iterdir()]
    assert [] == list((tmp_path / "home").iterdir())


async def test_a_job_may_name_its_file(tmp_path, pool):
    """The entry ``/file`` of an alias; its directory has to be the recipient's. /dev/null takes all."""
    shell = MboxDeliverer(Effects(), executor=pool)
    target = tmp_path / "lists" / "one"
    target.parent.mkdir()
    mail = job(tmp_path / "home")
    assert (await shell.deliver(mail._replace(target=str(target)))).outcome is Outcome.OK
    assert ["one"] == subjects(target)
    assert (await shell.deliver(mail._replace(target="/dev/null"))).outcome is Outcome.OK
    bad = ["relative", f"{tmp_path}/../x", "/", f"{tmp_path}/lists/a\0", f"{tmp_path}/gone/x"]
    for path in bad:
        result = await shell.deliver(mail._replace(target=path))
        assert (Outcome.TEMPFAIL, "4.3.5") == (result.outcome, result.status[:5]), path
    assert {"lists", "home"} == {path.name for path in tmp_path.iterdir()}


@root_only
async def test_a_user_cannot_write_where_root_may(tmp_path, pool):
    """A ``/file`` entry of a user works with the user's rights, not with ours."""
    (tmp_path / "etc").mkdir()
    mail = job(tmp_path / "home", uid=NOBODY, gid=NOBODY, target=f"{tmp_path}/etc/cron")
    result = await MboxDeliverer(Effects(), executor=pool).deliver(mail)
    assert (Outcome.TEMPFAIL, "4.3.5 Mailbox does not belong to the recipient") == result
    assert [] == list((tmp_path / "etc").iterdir())


@pytest.mark.parametrize(("when", "error"), FAULTS)
@pytest.mark.parametrize("dotlock", [False, True])
async def test_any_effect_may_fail(tmp_path, fds, pool, when, error, dotlock):
    """Wherever a delivery fails, the mailbox has one copy after OK and is what it was otherwise."""

    def shell_of(effects):
        return MboxDeliverer(effects, quick(), dotlock=dotlock, executor=pool)

    reached = await sweep(tmp_path, when, error, shell_of, copies, fds)
    assert {"open", "stat", "lock", "read", "write", "fsync", "create"} <= set(reached)
    assert ("unlink" in reached) == dotlock


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_failed_append_is_cut_back(tmp_path, fds, pool, when):
    """A mailbox that was there is the same to the byte after every failure."""
    for number in range(1, 50):
        home = tmp_path / str(number)
        mail = job(home, body=b"Subject: one\r\n\r\n" + b"x\r\n" * 100_000)
        (home / "mbox").write_bytes(OLD)
        effects = FaultyEffects()
        shell = MboxDeliverer(effects, quick(), executor=pool)
        effects.plan = Plan(number, when=when)
        result = await shell.deliver(mail)
        if result.outcome is not Outcome.OK:
            assert OLD == (home / "mbox").read_bytes(), effects.failed
        else:
            assert ["old", "one"] == subjects(home / "mbox")
        if not effects.failed:
            return
    raise AssertionError


async def test_what_cannot_be_cut_back_is_told(tmp_path, pool):
    """The operator hears of a part that stays; the next message is seen all the same."""
    effects, notes = FaultyEffects(), []
    shell = MboxDeliverer(effects, executor=pool, log=notes.append)
    assert (await shell.deliver(job(tmp_path))).outcome is Outcome.OK

    def is_late(point) -> bool:
        return point.op == "truncate" or (point.op, point.when) == ("fsync", "before")

    effects.plan = Plan(1, for_good=True, matches=is_late)
    result = await shell.deliver(job(tmp_path))
    assert (Outcome.TEMPFAIL, "4.3.0 Local storage error") == result
    assert ["part of a message stays" in note for note in notes] == [True, False]
    effects.heal()
    assert (await shell.deliver(job(tmp_path))).outcome is Outcome.OK
    assert 3 == copies(tmp_path)


async def test_a_real_full_disk(tmp_path, fds, pool):
    """A write cut short by the system is 4.2.2, and nothing of it stays."""
    resource = pytest.importorskip("resource")
    mail = job(tmp_path, body=b"x" * 200_000)
    (tmp_path / "mbox").write_bytes(OLD)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        result = await MboxDeliverer(Effects(), executor=pool).deliver(mail)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (Outcome.TEMPFAIL, "4.2.2 Mailbox full") == result
    assert OLD == (tmp_path / "mbox").read_bytes()


# ---- locks

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(path: Path, kind: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process holds a lock of a kind until its input ends."""
    command = [sys.executable, "-c", HOLD, str(path), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert b"locked\n" == process.stdout.readline()
        try:
            yield process
        finally:
            process.stdin.close()


@pytest.mark.parametrize("kind", ["flock", "lockf"])
async def test_another_programs_lock_is_respected(tmp_path, fds, pool, kind):
    """Locked by flock or by fcntl, it is waited for, and at last the mail waits."""
    (tmp_path / "mbox").write_bytes(OLD)
    with held(tmp_path / "mbox", kind):
        result = await MboxDeliverer(Effects(), quick(), executor=pool).deliver(job(tmp_path))
        assert (Outcome.TEMPFAIL, "4.2.0 Mailbox is locked by another program") == result
        assert OLD == (tmp_path / "mbox").read_bytes()
        patient = MboxDeliverer(Effects(), executor=pool)
        task = asyncio.get_running_loop().create_task(patient.deliver(job(tmp_path)))
        await asyncio.sleep(0.1)
        assert not task.done()
    assert (await task).outcome is Outcome.OK
    assert ["old", "one"] == subjects(tmp_path / "mbox")


async def test_other_programs_find_our_locks(tmp_path, pool):
    """While we write, neither flock nor fcntl nor the dotlock is to be had."""
    effects = FaultyEffects()
    gate = effects.gates["write", "mbox"] = threading.Event()
    (tmp_path / "mbox").write_bytes(OLD)
    shell = MboxDeliverer(effects, dotlock=True, executor=pool)
    task = asyncio.get_running_loop().create_task(shell.deliver(job(tmp_path)))
    await until(lambda: any((p.op, p.when) == ("read", "after") for p in effects.seen))
    assert (tmp_path / "mbox.lock").exists()
    script = """if 1:
        import fcntl, sys
        for kind in (fcntl.flock, fcntl.lockf):
            try:
                kind(open(sys.argv[1], "r+b"), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("held")
    """
    command = [sys.executable, "-c", script, str(tmp_path / "mbox")]
    said = await asyncio.to_thread(subprocess.check_output, command)
    gate.set()
    assert b"held\nheld\n" == said
    assert (await task).outcome is Outcome.OK
    with (tmp_path / "mbox").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_a_dotlock_is_respected_until_it_is_stale(tmp_path, fds, pool):
    """Somebody's dotlock is waited for; one of yesterday is taken away."""
    lock = tmp_path / "mbox.lock"
    lock.write_text("1")
    shell = MboxDeliverer(Effects(), quick(), dotlock=True, executor=pool)
    assert (await shell.deliver(job(tmp_path))).outcome is Outcome.TEMPFAIL
    assert lock.exists()
    os.utime(lock, (1, 1))
    assert (await shell.deliver(job(tmp_path))).outcome is Outcome.OK
    assert not lock.exists()
    assert 1 == copies(tmp_path)


async def test_a_mailbox_that_was_replaced_meanwhile(tmp_path, fds, pool):
    """A reader that puts a new file in its place while it holds the lock does not lose us the mail."""
    path = tmp_path / "mbox"
    path.write_bytes(OLD)
    with held(path, "flock"):
        shell = MboxDeliverer(Effects(), executor=pool)
        task = asyncio.get_running_loop().create_task(shell.deliver(job(tmp_path)))
        await asyncio.sleep(0.15)
        (tmp_path / "fresh").write_bytes(b"")
        (tmp_path / "fresh").rename(path)
    assert (await task).outcome is Outcome.OK
    assert ["one"] == subjects(path)


async def test_a_deadline_in_the_last_instant(tmp_path, fds, pool):
    """A delivery that is only waiting for the disk may end; one that is still writing is cut back."""
    limits = DeliveryLimits(timeout_s=0.05, kill_grace_s=20.0)
    for op, outcome in (("fsync", Outcome.OK), ("write", Outcome.TEMPFAIL)):
        home = tmp_path / op
        mail = job(home)
        (home / "mbox").write_bytes(OLD)
        effects = FaultyEffects()
        gate = effects.gates[op, "mbox"] = threading.Event()
        shell = MboxDeliverer(effects, limits, executor=pool)
        asyncio.get_running_loop().call_later(0.3, gate.set)
        assert outcome is (await shell.deliver(mail)).outcome
        # The next one gets the lock when the late thread is through.
        other = MboxDeliverer(Effects(), executor=pool)
        assert (await other.deliver(mail)).outcome is Outcome.OK
        assert (2 if outcome is Outcome.OK else 1) == copies(home)


async def test_many_at_once_hold_few_threads(tmp_path, pool):
    """Deliveries to one mailbox take turns before they take a thread, and one of them waits only so
    long."""
    effects = FaultyEffects()
    gate = effects.gates["fsync", "mbox"] = threading.Event()
    shell = MboxDeliverer(effects, quick(), executor=pool)
    tasks = [asyncio.get_running_loop().create_task(shell.deliver(job(tmp_path))) for _ in range(9)]
    other = MboxDeliverer(Effects(), executor=pool)
    assert (await other.deliver(job(tmp_path / "other", user="eve"))).outcome is Outcome.OK
    await asyncio.wait(tasks, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    gate.set()
    results = await asyncio.gather(*tasks)
    outcomes = [result.outcome for result in results]
    assert [Outcome.OK] + [Outcome.TEMPFAIL] * 8 == outcomes
    assert 1 == copies(tmp_path)
    assert (await shell.deliver(job(tmp_path))).outcome is Outcome.OK


DELIVER = """
import asyncio, sys
from pathlib import Path
from mta.delivery.mbox import MboxDeliverer
from mta.effects import Effects
from tests.mta.delivery.jobs import job

async def main(home, name):
    shell = MboxDeliverer(Effects())
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(15):
        text = f"Subject: {name}{number}\\r\\n\\r\\n" + f"{name}\\r\\n" * 20_000
        result = await shell.deliver(job(Path(home), body=text.encode()))
        assert result.status == "Delivered", result

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.system
def test_two_processes_do_not_interleave(tmp_path):
    """Thirty messages of two processes at once: each is whole, and none is missing."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DELIVER, str(tmp_path), name],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in "ab"
    ]
    for process in processes:
        assert process.stdout is not None
        assert b"ready\n" == process.stdout.readline()
    for process in processes:
        process.communicate(b"go\n", timeout=60)
        assert 0 == process.returncode
    box = mailbox.mbox(str(tmp_path / "mbox"), create=False)
    found = {message["Subject"]: message.get_payload() for message in box}
    box.close()
    assert {f"{name}{number}" for name in "ab" for number in range(15)} == set(found)
    for subject, text in found.items():
        assert f"{subject[0]}\n" * 20_000 == text
