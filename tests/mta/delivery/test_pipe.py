"""Commands: what they are given, what their end means, and that nothing of them stays."""

import asyncio
import errno
import os
import shlex
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mta.core.reply import Outcome
from mta.delivery.base import DeliveryLimits
from mta.delivery.headers import heading
from mta.delivery.pipe import SYSEXITS, PipeDeliverer, _Output
from mta.effects import Effects
from tests.mta.delivery.jobs import BODY, FAULTS, children, is_discreet, job
from tests.support.faults import FaultyEffects, Plan
from tests.support.waiting import until

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for somebody else")
LARGE = b"Subject: x\r\n\r\n" + (b"x" * 98 + b"\r\n") * 20_000


@pytest.fixture(autouse=True)
def no_child_stays():
    """Whatever happened, this process has no child more than before, dead or alive."""
    before = children()  # a pool of processes has helpers that stay
    yield
    assert children() <= before


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as executor:
        yield executor


def shell(effects: Effects | None = None, limits: DeliveryLimits | None = None, **options):
    return PipeDeliverer(effects or Effects(), limits, allow_root=True, **options)


def sh(script: str) -> str:
    """A command line that runs a shell script."""
    return f"/bin/sh -c {shlex.quote(script)}"


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_command_gets_the_message(tmp_path, fds, pool):
    """Our fields and the message with LF on its input, the home directory to work in."""
    mail = job(tmp_path, target=sh("pwd > where; cat > mail"))
    assert (Outcome.OK, "Delivered") == await shell(executor=pool).deliver(mail)
    assert heading(mail) + BODY.replace(b"\r\n", b"\n") == (tmp_path / "mail").read_bytes()
    assert str(tmp_path.resolve()) == (tmp_path / "where").read_text().strip()
    assert 0o600 == (tmp_path / "mail").stat().st_mode & 0o777


async def test_a_large_message_arrives_whole(tmp_path, fds, pool):
    """What no pipe holds is fed as the command reads."""
    mail = job(tmp_path, body=LARGE, target=sh("sleep 0.05; cat > mail"))
    assert (await shell(executor=pool).deliver(mail)).outcome is Outcome.OK
    assert heading(mail) + LARGE.replace(b"\r\n", b"\n") == (tmp_path / "mail").read_bytes()


async def test_many_at_once(tmp_path, fds, pool):
    """Thirty commands side by side do not get in each other's way."""
    pipes = shell(executor=pool)
    mails = [job(tmp_path, body=LARGE + b"%d" % n, target=sh(f"cat > {n}")) for n in range(30)]
    results = await asyncio.gather(*(pipes.deliver(mail) for mail in mails))
    assert {Outcome.OK} == {result.outcome for result in results}
    for number in range(30):
        assert (tmp_path / f"{number}").read_bytes().endswith(b"\n%d" % number)


async def test_the_environment_is_ours(tmp_path, fds, pool, monkeypatch):
    """Nothing of the server's environment, no descriptor, a group of its own; addresses are escaped as
    OpenSMTPD does."""
    monkeypatch.setenv("SECRET", "x")
    script = "env > env; ls -l /proc/self/fd > fds; cut -d' ' -f5 /proc/$$/stat > group; echo $$ >> group"
    rcpt = "ann+`id`;$(id)\\'|<&@example.test"
    mail = job(tmp_path, rcpt=rcpt, sender='"a b"@c.test', tag="`id`", target=sh(script))
    leak, other = os.pipe()
    os.set_inheritable(leak, True)
    try:
        assert (await shell(executor=pool).deliver(mail)).outcome is Outcome.OK
    finally:
        os.close(leak)
        os.close(other)
    lines = (tmp_path / "env").read_text().splitlines()
    found = dict(line.split("=", 1) for line in lines)
    for extra in ("PWD", "_", "SHLVL", "OLDPWD"):
        found.pop(extra, None)
    assert found == {
        "PATH": "/usr/bin:/bin",
        "SHELL": "/bin/sh",
        "HOME": str(tmp_path),
        "USER": "ann",
        "LOGNAME": "ann",
        "SENDER": ":a:b:@c.test",
        "RECIPIENT": "ann@example.test",
        "ORIGINAL_RECIPIENT": "ann+:id::::id::::::@example.test",
        "LOCAL": "ann+:id::::id::::::",
        "DOMAIN": "example.test",
        "EXTENSION": ":id:",
    }
    # 0, 1, 2 and the one that ls lists by; 1 is the file here.
    assert 4 == (tmp_path / "fds").read_text().count("->")
    group, pid = (tmp_path / "group").read_text().split()
    assert group == pid


async def test_no_shell_sees_an_address(tmp_path, pool):
    """What an address has goes into one argument, to the byte (H6)."""
    nasty = "a;b|c`id`$(id)*?'\"x y\\"
    script = "import sys; open('args', 'w').write(repr(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "{local}", "-f{sender}", "{dest}/{user}", "{other}"]
    mail = job(tmp_path, rcpt=f"{nasty}@example.test", sender="")
    assert (await shell(command=command, executor=pool).deliver(mail)).outcome is Outcome.OK
    expected = [nasty, "-f", "ann@example.test/ann", "{other}"]
    assert repr(expected) == (tmp_path / "args").read_text()


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("rcpt", "-rf@example.test", "5.1.3"),
        ("dest", "-oQ/tmp@example.test", "5.1.3"),
        ("sender", "-be@example.test", "5.1.7"),
        ("tag", "-x", "5.1.3"),
        ("user", "-x", "5.1.3"),
        ("rcpt", "a\nb@example.test", "5.1.3"),
        ("tag", "a\0b", "5.1.3"),
        ("sender", "a\r\nb@example.test", "5.1.7"),
    ],
)
async def test_what_looks_like_an_option_is_no_address(tmp_path, pool, field, value, status):
    """A hyphen first or a line break anywhere: no command sees it."""
    mail = job(tmp_path, target="/usr/bin/touch ran")._replace(**{field: value})
    result = await shell(executor=pool).deliver(mail)
    assert (Outcome.PERMFAIL, status) == (result.outcome, result.status[:5])
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("status", [*range(64, 79), 1, 2, 99, 126, 127, 255])
async def test_exit_status(tmp_path, pool, status):
    """71 and 75 are temporary, all others are not; the words are OpenSMTPD's."""
    mail = job(tmp_path, target=sh(f"echo first; echo 'no such mailbox' >&2; echo; exit {status}"))
    result = await shell(executor=pool).deliver(mail)
    temporary = status in (71, 75)
    assert (Outcome.TEMPFAIL if temporary else Outcome.PERMFAIL) is result.outcome
    code, name = SYSEXITS.get(status, ("5.3.0", ""))
    said = f'{name}: "no such mailbox"' if name else '"no such mailbox"'
    assert f"{code} Error ({said})" == result.status
    assert temporary == code.startswith("4")


async def test_a_command_that_says_nothing(tmp_path, pool):
    """Without output the words are those of the status, or that it was one."""
    result = await shell(executor=pool).deliver(job(tmp_path, target=sh("exit 67")))
    assert "5.1.1 Error (user unknown: exited abnormally)" == result.status
    result = await shell(executor=pool).deliver(job(tmp_path, target=sh("exit 3")))
    assert (Outcome.PERMFAIL, "5.3.0 Error (exited abnormally)") == result


async def test_a_command_that_is_killed(tmp_path, pool):
    """A signal says nothing about the mail."""
    result = await shell(executor=pool).deliver(job(tmp_path, target=sh("kill -9 $$")))
    assert (Outcome.TEMPFAIL, "4.3.0 Error (terminated; signal 9)") == result
    result = await shell(executor=pool).deliver(
        job(tmp_path, target=sh("echo out of memory; kill $$"))
    )
    assert (Outcome.TEMPFAIL, '4.3.0 Error ("out of memory")') == result


async def test_output_is_one_safe_line(tmp_path, pool):
    """Escape sequences, other bytes and long lines do not get far."""
    script = r"printf 'x\033[31m\303\251\tred\r\n'; exit 1"
    result = await shell(executor=pool).deliver(job(tmp_path, target=sh(script)))
    assert '5.3.0 Error ("x\\x1b[31m\\xc3\\xa9 red")' == result.status
    long = "head -c 5000 /dev/zero | tr '\\0' x; exit 1"
    result = await shell(executor=pool).deliver(job(tmp_path, target=sh(long)))
    assert 300 > len(result.status) > 250


async def test_the_last_words_are_heard(tmp_path, fds, pool, monkeypatch):
    """What is still in the pipe when the command has ended is read, though nobody was told of it."""
    monkeypatch.setattr(_Output, "start", _Output._close_theirs)
    result = await shell(executor=pool).deliver(job(tmp_path, target=sh("echo farewell; exit 1")))
    assert '5.3.0 Error ("farewell")' == result.status


async def test_a_flood_of_output_is_not_read(tmp_path, fds, pool):
    """A gigabyte of output costs neither memory nor time: at some point nobody reads it."""
    mail = job(tmp_path, target=sh("cat > mail; exec head -c 1073741824 /dev/zero"))
    result = await shell(executor=pool).deliver(mail)
    assert (Outcome.TEMPFAIL, "4.3.0") == (result.outcome, result.status[:5])


async def test_a_command_that_does_not_read(tmp_path, fds, pool):
    """Success without having read: right if the pipe holds the message, premature if not; never EPIPE."""
    result = await shell(executor=pool).deliver(job(tmp_path, target="/bin/true"))
    assert (Outcome.OK, "Delivered") == result
    for script in ("exit 0", "exec <&-; sleep 0.05; exit 0", "head -c 1000 > part"):
        result = await shell(executor=pool).deliver(job(tmp_path, body=LARGE, target=sh(script)))
        assert (Outcome.TEMPFAIL, "4.3.0 Error (mda exited prematurely)") == result
    result = await shell(executor=pool).deliver(job(tmp_path, body=LARGE, target=sh("exit 67")))
    assert Outcome.PERMFAIL is result.outcome


async def test_a_daemon_that_holds_the_pipes(tmp_path, fds, pool):
    """What a command leaves behind is not waited for, and the command's word counts."""
    script = "cat > mail; echo started; setsid sleep 30 & echo $! > pid; exit 75"
    async with asyncio.timeout(5):
        result = await shell(executor=pool).deliver(job(tmp_path, target=sh(script)))
    assert (Outcome.TEMPFAIL, '4.3.0 Error (temporary failure: "started")') == result
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


async def test_a_command_that_takes_too_long(tmp_path, fds, pool):
    """It gets SIGTERM, with its children; having cleaned up, it is tried again later."""
    script = "sleep 60 & echo $! > child; trap 'echo bye > bye; exit 0' TERM; wait"
    limits = DeliveryLimits(timeout_s=0.3)
    result = await shell(limits=limits, executor=pool).deliver(job(tmp_path, target=sh(script)))
    assert (Outcome.TEMPFAIL, "4.3.0 Error (terminated; timeout)") == result
    assert "bye\n" == (tmp_path / "bye").read_text()
    child = int((tmp_path / "child").read_text())
    await until(lambda: not lives(child))


async def test_a_command_that_does_not_want_to_end(tmp_path, fds, pool):
    """Whoever ignores SIGTERM gets SIGKILL, also as the child of one that did not."""
    ignore = "trap '' TERM; sleep 60 & echo $! > child; while :; do sleep 60; done"
    limits = DeliveryLimits(timeout_s=0.3, kill_grace_s=0.2)
    for script in (ignore, f'sh -c "{ignore.replace("$", chr(92) + "$")}" & sleep 60'):
        mail = job(tmp_path, target=sh(script))
        result = await shell(limits=limits, executor=pool).deliver(mail)
        assert (Outcome.TEMPFAIL, "4.3.0 Error (terminated; timeout)") == result
        child = int((tmp_path / "child").read_text())
        await until(lambda child=child: not lives(child))
        (tmp_path / "child").unlink()


@pytest.mark.parametrize("end", ["deadline", "cancel"])
async def test_no_command_sees_an_early_end(tmp_path, fds, pool, end):
    """A command that is still being fed when it is given up never finds the end of its input."""
    script = "trap '' TERM; head -c 100000 > part; touch begun; sleep 0.6; cat >> part; touch whole"
    limits = DeliveryLimits(timeout_s=0.3, kill_grace_s=0.1) if end == "deadline" else None
    pipes = shell(limits=limits, executor=pool)
    mail = job(tmp_path, body=LARGE * 3, target=sh(script))
    task = asyncio.get_running_loop().create_task(pipes.deliver(mail))
    if end == "cancel":
        await until((tmp_path / "begun").exists)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        assert (await task).outcome is Outcome.TEMPFAIL
    assert not (tmp_path / "whole").exists()


async def test_being_cancelled_twice_leaves_nothing(tmp_path, pool):
    """Cancelled again while the command is being buried: it is reaped all the same."""
    mail = job(tmp_path, target=sh("echo $$ > pid; exec sleep 60"))
    task = asyncio.get_running_loop().create_task(shell(executor=pool).deliver(mail))
    await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    pid = int((tmp_path / "pid").read_text())
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not Path(f"/proc/{pid}").exists())


async def test_cancelled_while_it_starts(tmp_path, fds, pool):
    """A command whose thread starts it when nobody wants it any more is killed, and fed nothing."""
    before = children()
    busy = threading.Event()
    single = ThreadPoolExecutor(1)
    blocker = single.submit(busy.wait, 30)
    mail = job(tmp_path, target=sh("cat > mail; echo $$ > pid; sleep 60"))
    task = asyncio.get_running_loop().create_task(shell(executor=single).deliver(mail))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    busy.set()
    assert blocker.result()
    await asyncio.to_thread(single.shutdown)

    await until(lambda: children() <= before)


async def test_a_thread_pool_that_is_closed(tmp_path, fds):
    """At the end of the server there may be no thread left: the mail waits."""
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    result = await shell(executor=closed).deliver(job(tmp_path, target="/bin/true"))
    assert (Outcome.TEMPFAIL, "4.3.0") == (result.outcome, result.status[:5])


@pytest.mark.parametrize(
    "target", ["/no/such/program", "no-such-program", "/etc/passwd", "'x", " ", "x\0y"]
)
async def test_a_command_that_cannot_run(tmp_path, pool, target):
    """The operator's or the user's mistake; the mail waits, and the reply names no path."""
    result = await shell(executor=pool).deliver(job(tmp_path, target=target))
    assert (Outcome.TEMPFAIL, "4.3.5") == (result.outcome, result.status[:5])
    assert "passwd" not in result.status


async def test_other_reasons_not_to_run(tmp_path, pool):
    """A command line that is too long, no command at all, a home that is gone."""
    mail = job(tmp_path, target="/bin/true " + "x" * 3000)
    assert "4.3.5 Command is not usable" == (await shell(executor=pool).deliver(mail)).status
    mail = job(tmp_path)
    assert "4.3.5 Command is not usable" == (await shell(executor=pool).deliver(mail)).status
    mail = job(tmp_path, target="/bin/true")._replace(home=tmp_path / "gone")
    result = await shell(executor=pool).deliver(mail)
    assert (Outcome.TEMPFAIL, "4.3.5") == (result.outcome, result.status[:5])


async def test_commands_are_not_run_for_root(tmp_path, pool):
    """Unless the operator says so. Words and verdict of OpenSMTPD's forkmda."""
    mail = job(tmp_path, target="/usr/bin/touch ran", uid=0, gid=0)
    result = await PipeDeliverer(Effects(), executor=pool).deliver(mail)
    words = "5.7.0 Error (permission denied: not allowed to deliver to: ann)"
    assert (Outcome.PERMFAIL, words) == result
    assert [] == list(tmp_path.iterdir())


@root_only
async def test_a_command_runs_as_the_user(tmp_path, fds, pool):
    """With the user's id and group, and no other group."""
    os.chown(tmp_path, 65534, 65534)
    mail = job(tmp_path, uid=65534, gid=65534, target=sh("id -u; id -G; exit 1"))
    result = await PipeDeliverer(Effects(), executor=pool).deliver(mail)
    assert '5.3.0 Error ("65534")' == result.status
    mail = mail._replace(target=sh("id -u; exit 1"))
    assert '5.3.0 Error ("65534")' == (await shell(executor=pool).deliver(mail)).status


async def test_who_may_not_act_for_a_user_says_so(tmp_path, pool, monkeypatch):
    """Without root's rights only our own user's commands run."""
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    result = await shell(executor=pool).deliver(job(tmp_path, uid=4712, target="/bin/true"))
    assert (Outcome.TEMPFAIL, "4.3.5 Server may not act for this user") == result


@pytest.mark.parametrize(("when", "error"), FAULTS)
@pytest.mark.parametrize("body", [BODY, LARGE], ids=["small", "large"])
async def test_any_effect_may_fail(tmp_path, fds, pool, when, error, body):
    """Wherever a delivery fails: OK only if the command got the whole message, otherwise no command
    has seen an end, no process and no descriptor stays."""
    reached = set()
    whole = len(body.replace(b"\r\n", b"\n"))
    for number in range(1, 400):
        home = tmp_path / str(number)
        effects = FaultyEffects()
        mail = job(home, body=body, target=sh("cat > part && mv part mail"))
        before = set(fds())
        effects.plan = Plan(number, error=error, when=when)
        result = await shell(effects, executor=pool).deliver(mail)
        at = (number, effects.failed, result)
        assert result.outcome in (Outcome.OK, Outcome.TEMPFAIL), at
        if result.outcome is Outcome.OK:
            assert len(heading(mail)) + whole == (home / "mail").stat().st_size, at
        elif (home / "mail").exists():
            # It was whole when the fault came: the next try makes a copy too many.
            assert len(heading(mail)) + whole == (home / "mail").stat().st_size, at
        assert is_discreet(result, tmp_path), at
        # A command that was started in vain is reaped when it has ended.
        await until(lambda before=before: before >= set(fds()))
        if not effects.failed:
            assert result.outcome is Outcome.OK, at
            assert {"pipe", "write", "spawn"} <= reached
            return
        reached.add(effects.failed[0].op)
    raise AssertionError


async def test_starting_may_hang(tmp_path, fds, pool):
    """A start that hangs is given up at the deadline."""
    effects = FaultyEffects()
    effects.hangs.add(("spawn", "pipe"))
    pipes = shell(effects, DeliveryLimits(timeout_s=0.05), executor=pool)
    result = await pipes.deliver(job(tmp_path, target="/bin/true"))
    assert (Outcome.TEMPFAIL, "4.3.0 Delivery took too long") == result


async def test_without_pidfd_a_thread_waits(tmp_path, fds, pool, monkeypatch):
    """Where the system has no descriptors for processes, or none left, the end is seen all the same."""

    def none_left(pid: int) -> int:
        raise OSError(errno.EMFILE, "")

    monkeypatch.setattr(os, "pidfd_open", none_left)
    pipes = shell(limits=DeliveryLimits(timeout_s=0.3), executor=pool)
    result = await pipes.deliver(job(tmp_path, target=sh("cat > mail; exit 75")))
    assert "4.3.0 Error (temporary failure: exited abnormally)" == result.status
    result = await pipes.deliver(job(tmp_path, target="/bin/sleep 60"))
    assert "4.3.0 Error (terminated; timeout)" == result.status


async def test_a_loop_is_told_before_anything_runs(tmp_path, pool):
    """A message that was here before is not given to the command again."""
    body = b"Delivered-To: ann@example.test\r\n\r\nx\r\n"
    result = await shell(executor=pool).deliver(
        job(tmp_path, body=body, target="/usr/bin/touch ran")
    )
    assert (Outcome.LOOP, "5.4.6 Loop detected") == result
    assert [] == list(tmp_path.iterdir())


UVLOOP = """
import asyncio, sys, uvloop
from pathlib import Path
from mta.delivery.base import DeliveryLimits
from mta.delivery.pipe import PipeDeliverer
from mta.effects import Effects
from tests.mta.delivery.jobs import job

async def main():
    home = Path(sys.argv[1])
    shell = PipeDeliverer(Effects(), DeliveryLimits(timeout_s=0.5), allow_root=True)
    large = b"X: y\\r\\n\\r\\n" + b"x\\r\\n" * 500_000
    jobs = [
        job(home, body=large, target="/bin/sh -c 'cat > mail'"),
        job(home, body=large, target="/bin/sh -c 'exit 0'"),
        job(home, target="/bin/sleep 60"),
        job(home, target="/bin/sh -c 'echo no; exit 67'"),
    ]
    for result in await asyncio.gather(*map(shell.deliver, jobs)):
        print(result.status)

uvloop.run(main())
"""


@pytest.mark.system
def test_on_the_servers_own_loop(tmp_path):
    """uvloop, which the server runs on, feeds, reads and sees ends as asyncio does."""
    command = [sys.executable, "-W", "error", "-c", UVLOOP, str(tmp_path)]
    said = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=30
    )
    assert "" == said.stderr
    assert [
        "Delivered",
        "4.3.0 Error (mda exited prematurely)",
        "4.3.0 Error (terminated; timeout)",
        '5.1.1 Error (user unknown: "no")',
    ] == said.stdout.splitlines()
    assert 1_000_000 < (tmp_path / "mail").stat().st_size
