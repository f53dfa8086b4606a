"""Groups of a running world are changed and shown: through the handle, the socket and the command."""

import json
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.world.handle import World, WorldError

pytestmark = pytest.mark.system

TEXT = """
name = "groups"
[load]
lag_max_s = 60
messages = 1
[[destinations]]
name = "a"
domain = "a.test"
hosts = 2
behaviours = [{ kind = "greylist", wait_s = 3600.0 }]
[[destinations]]
name = "b"
domain = "b.test"
profile = "slow"
pace = 1000
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "x.toml").write_text(TEXT)
    with World(tmp_path / "x.toml", record_dir=tmp_path / "w", processes=2) as world:
        yield world


def code(world: World, address: str, rcpt: str = "u@a.test") -> int:
    """Return what becomes of a recipient at a host; 0 if nobody listens."""
    try:
        with smtplib.SMTP(address, world.smtp_port, local_hostname="c.test", timeout=10) as smtp:
            smtp.ehlo()
            smtp.mail("s@b.test")
            return smtp.rcpt(rcpt)[0]
    except smtplib.SMTPConnectError as error:
        return error.smtp_code
    except ConnectionRefusedError:
        return 0


def until_code(world: World, address: str, wanted: int) -> None:
    """Wait until a host answers so; the loop that opens sockets has its turn after the answer."""
    for _ in range(1000):
        if code(world, address) == wanted:
            return
    raise AssertionError(code(world, address))


def test_hosts_change_in_every_process(world: World) -> None:
    assert code(world, "127.0.10.1") == code(world, "127.0.10.2") == 451
    world.set("a.profile=fast", "a.behaviours=[]")
    assert code(world, "127.0.10.1") == code(world, "127.0.10.2") == 250
    world.set("a.outage=refuse")
    for address in ("127.0.10.1", "127.0.10.2"):
        until_code(world, address, 0)
    assert [row["listening"] for row in world.show()] == [0, 1]
    world.set("a.outage=none", 'a.reject.reply="gmail/unknown"')
    for address in ("127.0.10.1", "127.0.10.2"):
        until_code(world, address, 550)
    final = world.stop()
    assert [each["changes"][0] for each in final["set"]] == [
        "a.profile=fast", "a.outage=refuse", "a.outage=none",
    ]  # fmt: skip


def test_what_is_not_named_keeps_its_memory(world: World) -> None:
    """A triplet that was seen is known after other behaviours came and went; a changed wait begins anew."""
    assert code(world, "127.0.10.1") == 451
    world.set("a.latency.delay_s=0.01")
    assert code(world, "127.0.10.1") == 451
    world.set("a.greylist.wait_s=0")
    assert [code(world, "127.0.10.1") for _ in range(2)] == [451, 250]
    world.set("a.latency.delay_s=0.0", "b.tls=offered", "b.latency.median_s=0.001")
    assert code(world, "127.0.10.1") == 250
    first, second = world.show()
    assert [each["kind"] for each in first["behaviours"]] == ["greylist", "latency"]
    assert (first["hosts"], second["tls"], second["profile"]) == (2, "offered", "")
    assert second["behaviours"][0]["median_s"] == 0.001
    with smtplib.SMTP("127.0.11.1", world.smtp_port, timeout=10) as smtp:
        smtp.ehlo()
        assert smtp.has_extn("starttls")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("a", "must be GROUP.key=value"),
        ("c.profile=fast", "must be one of a, b"),
        ("a.profile=fats", "must be one of fast"),
        ("a.share=2", "must be one of profile"),
        ("a.outage=maybe", "must be one of refuse"),
        ("a.greylist.wait=2", "unknown key"),
        ("a.behaviours=1", "must be"),
    ],
)
def test_nonsense_changes_nothing(world: World, change: str, problem: str) -> None:
    """Not even what came before it in the same request; the world goes on."""
    before = world.show()
    with pytest.raises(WorldError, match=problem):
        world.set("b.profile=dead", change)
    assert world.show() == before


def test_the_command_asks_the_world_that_runs(tmp_path: Path) -> None:
    """By its socket; without a world, or with a wrong word, one line and status 2."""
    (tmp_path / "x.toml").write_text(TEXT)
    socket = tmp_path / "s"
    command = [sys.executable, "-m", "testbed.world"]

    def run(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [*command, *words, "--control", str(socket)], capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout, done.stderr

    status, _, errors = run("show")
    assert (status, errors.count("\n")) == (2, 1)
    assert "no world runs there" in errors
    with subprocess.Popen(
        [*command, str(tmp_path / "x.toml"), "--control", str(socket)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["control"] == str(socket)
        assert socket.stat().st_mode & 0o777 == 0o600
        assert run("set", "a.outage=silent", "b.profile=gmail") == (0, "changed: a, b\n", "")
        said = run("show")[1].splitlines()
        assert said == [
            "a: outage, greylist; 2 of 2 hosts listen, 0 connections",
            "b: gmail; 1 of 1 hosts listen, 0 connections",
        ]
        assert json.loads(run("show", "--json")[1])[1]["profile"] == "gmail"
        status, _, errors = run("set", "a.outage=x")
        assert (status, errors.count("\n")) == (2, 1)
        process.stdin.close()
        assert process.wait(20) == 0
        process.stdout.read()
    assert not socket.exists()
