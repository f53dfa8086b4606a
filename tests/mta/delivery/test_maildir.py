"""Maildir: a message appears whole or not at all, and only in the recipient's own directory."""

import asyncio
import mailbox
import os
import re
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mta.core.reply import Outcome
from mta.delivery.base import DeliveryLimits
from mta.delivery.maildir import MaildirDeliverer
from mta.effects import Effects
from tests.mta.delivery.jobs import BODY, FAULTS, is_discreet, job, sweep
from tests.support.faults import FaultyEffects, Plan

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for somebody else")
NOBODY = 65534


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as executor:
        yield executor


def copies(home: Path) -> int:
    """Messages in the Maildir; there must be nothing in tmp."""
    assert list((home / "Maildir").glob("tmp/*")) == []
    return len(list((home / "Maildir").glob("new/*")))


async def test_a_reader_finds_the_message(tmp_path, fds, pool):
    """Python's own Maildir reads what was delivered: our fields, then the message with LF."""
    mail = job(tmp_path)
    result = await MaildirDeliverer(Effects(), executor=pool).deliver(mail)
    assert (Outcome.OK, "Delivered") == result
    box = mailbox.Maildir(str(tmp_path / "Maildir"), create=False)
    (message,) = box
    assert ("one", "<bob@remote.test>") == (message["Subject"], message["Return-Path"])
    assert ["new"] == [message.get_subdir()]
    (path,) = (tmp_path / "Maildir" / "new").iterdir()
    head = b"Return-Path: <bob@remote.test>\nDelivered-To: ann@example.test\n"
    assert head + BODY.replace(b"\r\n", b"\n") == path.read_bytes()
    assert (0o600, 1) == (stat.S_IMODE(path.stat().st_mode), path.stat().st_nlink)
    for name in (".", "tmp", "new", "cur"):
        assert 0o700 == stat.S_IMODE((tmp_path / "Maildir" / name).stat().st_mode)


async def test_names_are_unique_and_as_specified(tmp_path, pool):
    """A hundred deliveries at once have a hundred names of the form time.delivery.host."""
    shell = MaildirDeliverer(Effects(), hostname="a/b:c", executor=pool)
    results = await asyncio.gather(*(shell.deliver(job(tmp_path)) for _ in range(100)))
    assert {Outcome.OK} == {result.outcome for result in results}
    names = [path.name for path in (tmp_path / "Maildir" / "new").iterdir()]
    assert 100 == len(names) == copies(tmp_path)
    pattern = r"\d{10}\.M\d{6}P\d+Q\d+R[0-9a-f]{16}\.a\\057b\\072c"
    assert all(re.fullmatch(pattern, name) for name in names)


async def test_a_deeper_directory_is_made(tmp_path, pool):
    """The operator's path may have several steps."""
    shell = MaildirDeliverer(Effects(), directory="mail/in", executor=pool)
    assert (await shell.deliver(job(tmp_path))).outcome is Outcome.OK
    assert 1 == len(list((tmp_path / "mail" / "in" / "new").iterdir()))


@pytest.mark.parametrize("path", ["", ".", "/var/mail", "../x", "a/../../x", "a\0b"])
def test_the_operators_path_stays_below_home(path):
    """A path that leads elsewhere is told at the start."""
    with pytest.raises(ValueError, match="not a path below"):
        MaildirDeliverer(Effects(), directory=path)


@pytest.mark.parametrize(
    "local", ["../../etc/cron.d/x", "a/b", "..", ".", "-rf", "x" * 300, "con:", "a\\b", "~root"]
)
async def test_no_address_leads_out(tmp_path, pool, local):
    """Local part and tag, whatever they are, put the message in the recipient's Maildir and nowhere
    else (CVE-2015-7611)."""
    home = tmp_path / "in" / "side"
    shell = MaildirDeliverer(Effects(), tags=True, executor=pool)
    dest = f"{local}@example.test"
    result = await shell.deliver(job(home, dest=dest, rcpt=dest, tag=local, user=local))
    assert result.outcome is Outcome.OK
    assert 1 == copies(home)
    assert ["in"] == [path.name for path in tmp_path.iterdir()]
    assert ["Maildir"] == [path.name for path in home.iterdir()]
    assert {"tmp", "new", "cur"} == {path.name for path in (home / "Maildir").iterdir()}


async def test_a_tag_chooses_a_folder_that_is_there(tmp_path, pool):
    """``user+tag`` goes to the folder of that name; without one, or if it is a trap, to the inbox."""
    shell = MaildirDeliverer(Effects(), tags=True, executor=pool)
    folder = tmp_path / "Maildir" / ".list"
    folder.mkdir(parents=True, mode=0o700)
    (tmp_path / "Maildir" / ".trap").symlink_to(tmp_path)
    for tag in ("list", "none", "trap", "", ".list", "../x"):
        assert (await shell.deliver(job(tmp_path, tag=tag))).outcome is Outcome.OK
    assert 1 == len(list((folder / "new").iterdir()))
    assert 5 == copies(tmp_path)
    assert {"Maildir"} == {path.name for path in tmp_path.iterdir()}
    plain = MaildirDeliverer(Effects(), executor=pool)
    assert (await plain.deliver(job(tmp_path, tag="list"))).outcome is Outcome.OK
    assert 6 == copies(tmp_path)


@pytest.mark.parametrize("name", ["Maildir", "Maildir/tmp", "Maildir/new", "Maildir/cur"])
@pytest.mark.parametrize("kind", ["link", "fifo", "file"])
async def test_what_is_no_directory_is_refused(tmp_path, pool, name, kind):
    """A link (even to an own directory), a FIFO or a file in the place of a directory: the mail waits,
    and nothing is written."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    place = home / name
    place.parent.mkdir(parents=True)
    elsewhere.mkdir()
    if kind == "link":
        place.symlink_to(elsewhere)
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.write_text("x")
    notes: list[str] = []
    shell = MaildirDeliverer(Effects(), executor=pool, log=notes.append)
    result = await shell.deliver(job(home))
    assert (Outcome.TEMPFAIL, "4.3.5 Mailbox is not a plain file or directory") == result
    assert list(elsewhere.iterdir()) == []
    assert is_discreet(result, tmp_path)
    assert 1 == len(notes)
    assert "evpid=0000000100000001 user=ann" in notes[0]


async def test_a_directory_open_to_all_is_refused(tmp_path, pool):
    """Where everybody may write, nobody's mail is safe."""
    (tmp_path / "Maildir").mkdir()
    (tmp_path / "Maildir").chmod(0o777)
    result = await MaildirDeliverer(Effects(), executor=pool).deliver(job(tmp_path))
    assert (Outcome.TEMPFAIL, "4.3.5 Mailbox can be written by anyone") == result


async def test_a_home_that_is_missing_or_relative_waits(tmp_path, pool):
    """No home, no mail, no harm; and a home is never made."""
    shell = MaildirDeliverer(Effects(), executor=pool)
    mail = job(tmp_path)
    for home in (tmp_path / "gone", Path("relative")):
        result = await shell.deliver(mail._replace(home=home))
        assert (Outcome.TEMPFAIL, "4.3.5") == (result.outcome, result.status[:5])
        assert is_discreet(result, tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_who_may_not_act_for_a_user_says_so(tmp_path, pool, monkeypatch):
    """Without root's rights only our own user gets mail."""
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    result = await MaildirDeliverer(Effects(), executor=pool).deliver(job(tmp_path, uid=4712))
    assert (Outcome.TEMPFAIL, "4.3.5 Server may not act for this user") == result


@root_only
async def test_root_gives_away_what_it_makes(tmp_path, fds, pool):
    """All that root makes for a user belongs to the user, the message first of all."""
    mail = job(tmp_path / "home", uid=NOBODY, gid=NOBODY)
    shell = MaildirDeliverer(Effects(), executor=pool)
    assert "4.3.5 Mailbox does not belong to the recipient" == (await shell.deliver(mail)).status
    os.chown(mail.home, NOBODY, NOBODY)
    assert (await shell.deliver(mail)).outcome is Outcome.OK
    found = [mail.home / "Maildir", *(mail.home / "Maildir").rglob("*")]
    assert 5 == len(found)
    assert {(NOBODY, NOBODY)} == {(p.stat().st_uid, p.stat().st_gid) for p in found}


@root_only
async def test_root_never_gives_away_what_is_not_empty(tmp_path, pool):
    """A directory of root's that a user has moved there stays root's; an empty one is a left-over."""
    mail = job(tmp_path / "home", uid=NOBODY, gid=NOBODY)
    os.chown(mail.home, NOBODY, NOBODY)
    maildir = mail.home / "Maildir"
    maildir.mkdir(mode=0o700)
    (maildir / "secret").write_text("x")
    shell = MaildirDeliverer(Effects(), executor=pool)
    assert "4.3.5 Mailbox does not belong to the recipient" == (await shell.deliver(mail)).status
    assert 0 == maildir.stat().st_uid
    (maildir / "secret").unlink()
    assert (await shell.deliver(mail)).outcome is Outcome.OK
    assert NOBODY == maildir.stat().st_uid


@root_only
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_fault_while_giving_away_heals(tmp_path, fds, pool, when):
    """Wherever root fails on the way, the next delivery works: nothing of root's is in the way."""

    def home_of(effects):
        return MaildirDeliverer(effects, executor=pool)

    for number in range(1, 100):
        mail = job(tmp_path / str(number), uid=NOBODY, gid=NOBODY)
        os.chown(mail.home, NOBODY, NOBODY)
        effects = FaultyEffects()
        shell = home_of(effects)
        effects.plan = Plan(number, when=when)
        result = await shell.deliver(mail)
        failed = list(effects.failed)
        effects.heal()
        if result.outcome is not Outcome.OK:
            assert (await shell.deliver(mail)).outcome is Outcome.OK, failed
        assert 1 == copies(mail.home), failed
        if not failed:
            return
    raise AssertionError


async def test_a_race_for_the_directory_leads_nowhere(tmp_path, pool):
    """Somebody swaps ``new`` for a link and back as fast as possible: no message ever gets out."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shell = MaildirDeliverer(Effects(), executor=pool)
    assert (await shell.deliver(job(home))).outcome is Outcome.OK
    new, aside = home / "Maildir" / "new", home / "Maildir" / "aside"
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            new.rename(aside)
            new.symlink_to(elsewhere)
            new.unlink()
            aside.rename(new)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        delivered = 1
        for _ in range(300):
            # In between `new` may be missing, and one that is made is in the swapper's way: no matter.
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(shell._effects.__class__, "mkdir_at", _no_mkdir)
                delivered += (await shell.deliver(job(home))).outcome is Outcome.OK
    finally:
        over.set()
        thread.join()
    assert list(elsewhere.iterdir()) == []
    assert delivered == copies(home)


def _no_mkdir(self, directory, name, *, site):
    raise PermissionError


@pytest.mark.parametrize(("when", "error"), FAULTS)
async def test_any_effect_may_fail(tmp_path, fds, pool, when, error):
    """Wherever a delivery fails, what is said is what is there: one copy after OK, none otherwise,
    nothing in tmp, no descriptor left; and the next try works."""
    reached = await sweep(
        tmp_path, when, error, lambda e: MaildirDeliverer(e, executor=pool), copies, fds
    )
    assert {"mkdir", "create", "write", "fsync", "close", "rename", "open", "stat"} <= set(reached)
    assert len(reached) >= 30


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_disk_that_stays_sick_never_says_ok(tmp_path, fds, pool, when):
    """When everything fails from some point on, nothing is said to be delivered that is not there."""
    for number in range(1, 100):
        mail = job(tmp_path / str(number))
        effects = FaultyEffects()
        shell = MaildirDeliverer(effects, executor=pool)
        effects.plan = Plan(number, when=when, for_good=True)
        result = await shell.deliver(mail)
        if result.outcome is Outcome.OK:
            assert 1 == copies(mail.home)
        if not effects.failed:
            return
    raise AssertionError


async def test_a_real_full_disk(tmp_path, fds, pool):
    """A write cut short by the system is 4.2.2, and nothing of it stays."""
    resource = pytest.importorskip("resource")
    shell = MaildirDeliverer(Effects(), executor=pool)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        result = await shell.deliver(job(tmp_path, body=b"x" * 200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (Outcome.TEMPFAIL, "4.2.2 Mailbox full") == result
    assert 0 == copies(tmp_path)


async def test_a_reader_that_was_faster_is_no_problem(tmp_path, pool):
    """A message that a reader has moved to cur before its delivery was undone is a copy too many, and
    no error of ours."""
    effects = FaultyEffects()
    shell = MaildirDeliverer(effects, executor=pool)
    assert (await shell.deliver(job(tmp_path / "x"))).outcome is Outcome.OK
    count = sum((p.op, p.when) == ("fsync", "before") for p in effects.seen)
    home = tmp_path / "y"

    def moved() -> BaseException:
        for path in (home / "Maildir" / "new").iterdir():
            path.rename(home / "Maildir" / "cur" / path.name)
        return OSError(5, "EIO")

    effects.plan = Plan(count, error=moved, matches=lambda p: p.op == "fsync")
    result = await shell.deliver(job(home))
    assert (Outcome.TEMPFAIL, "4.3.0 Local storage error") == result
    assert 0 == copies(home)


async def test_a_delivery_that_is_cancelled_leaves_nothing(tmp_path, fds, pool):
    """The thread that hangs finds that nobody waits any more, and makes nothing of it."""
    effects = FaultyEffects()
    shell = MaildirDeliverer(effects, executor=pool)
    gate = effects.gates["fsync", "maildir"] = threading.Event()
    task = asyncio.get_running_loop().create_task(shell.deliver(job(tmp_path)))
    while not any(p.op == "stat" for p in effects.seen):  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    pool.shutdown(wait=True)
    assert 0 == copies(tmp_path)


async def test_a_disk_that_hangs_is_waited_for_so_long(tmp_path, fds, pool):
    """After the deadline the mail waits for another try, and the late thread delivers nothing."""
    effects = FaultyEffects()
    shell = MaildirDeliverer(effects, DeliveryLimits(timeout_s=0.05), executor=pool)
    gate = effects.gates["write", "maildir"] = threading.Event()
    result = await shell.deliver(job(tmp_path))
    assert (Outcome.TEMPFAIL, "4.3.0 Delivery took too long") == result
    gate.set()
    pool.shutdown(wait=True)
    assert 0 == copies(tmp_path)


async def test_a_delivery_that_was_committing_may_end(tmp_path, fds, pool):
    """When the deadline passes while the message is being moved, a little patience saves a duplicate."""
    effects = FaultyEffects()
    limits = DeliveryLimits(timeout_s=0.05, kill_grace_s=20.0)
    shell = MaildirDeliverer(effects, limits, executor=pool)
    gate = effects.gates["rename", "maildir"] = threading.Event()
    asyncio.get_running_loop().call_later(0.3, gate.set)
    assert (await shell.deliver(job(tmp_path))).outcome is Outcome.OK
    assert 1 == copies(tmp_path)


async def test_a_commit_that_hangs_is_tried_again(tmp_path, pool):
    """Nobody waits for ever; the second copy is the price."""
    effects = FaultyEffects()
    limits = DeliveryLimits(timeout_s=0.05, kill_grace_s=0.05)
    shell = MaildirDeliverer(effects, limits, executor=pool)
    gate = effects.gates["rename", "maildir"] = threading.Event()
    result = await shell.deliver(job(tmp_path))
    assert (Outcome.TEMPFAIL, "4.3.0 Delivery took too long") == result
    gate.set()


async def test_deliveries_that_wait_for_a_thread_are_not_made_late(tmp_path):
    """With every thread hanging, those in line time out, and never start."""
    with ThreadPoolExecutor(1) as executor:
        effects = FaultyEffects()
        limits = DeliveryLimits(timeout_s=0.05)
        shell = MaildirDeliverer(effects, limits, executor=executor)
        gate = effects.gates["write", "maildir"] = threading.Event()
        results = await asyncio.gather(*(shell.deliver(job(tmp_path)) for _ in range(5)))
        assert {"4.3.0 Delivery took too long"} == {result.status for result in results}
        gate.set()
    assert 0 == copies(tmp_path)
    assert 1 == sum(p.op == "create" and p.when == "before" for p in effects.seen)


async def test_a_mistake_of_ours_is_temporary(tmp_path, pool):
    """An assertion that fails on the way costs no mail."""
    effects = FaultyEffects()
    shell = MaildirDeliverer(effects, executor=pool)
    effects.plan = Plan(5, error=AssertionError)
    assert (Outcome.TEMPFAIL, "4.3.0 Internal error") == await shell.deliver(job(tmp_path))


async def test_a_loop_is_told_before_anything_is_touched(tmp_path, pool):
    """A message that was here before is not delivered again."""
    body = b"Delivered-To: ann@example.test\r\n\r\nx\r\n"
    result = await MaildirDeliverer(Effects(), executor=pool).deliver(job(tmp_path, body=body))
    assert (Outcome.LOOP, "5.4.6 Loop detected") == result
    assert list(tmp_path.iterdir()) == []


@pytest.mark.benchmark
async def test_a_large_message_does_not_stop_the_loop(tmp_path, pool):
    """While 35 MiB are delivered, the loop is never away for longer than a scheduler's slice or two."""
    shell = MaildirDeliverer(Effects(), executor=pool)
    mail = job(tmp_path, body=b"X: y\r\n\r\n" + b"x" * 70 + b"\r\n" * 18_000_000)
    loop = asyncio.get_running_loop()
    task = loop.create_task(shell.deliver(mail))
    gaps = []
    last = loop.time()
    while not task.done():
        await asyncio.sleep(0)
        now = loop.time()
        gaps.append(now - last)
        last = now
    assert (await task).outcome is Outcome.OK
    gaps.sort()
    p99_s, worst_s = gaps[int(len(gaps) * 0.99)], gaps[-1]
    assert p99_s < 0.005, (p99_s, worst_s)
    assert worst_s < 0.05, (p99_s, worst_s)
