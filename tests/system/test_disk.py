"""A real server whose queue is on a file system that is really full: 452 and nothing lost, and mail goes on when there is room again."""

import json
import shutil
import smtplib
import subprocess
import time
from pathlib import Path

import pytest

from testbed.world.handle import World
from tests.support.server import RunningServer

SIZE: int = 8 * 1024 * 1024
"""Bytes of the file system."""

SCENARIO = """
name = "full"
[load]
messages = 1
[[destinations]]
name = "there"
domain = "there.test"
"""

MOUNT = 'mount -t tmpfs -o "size=$0" tmpfs "$1" && shift && exec "$@"'


def small_disk(mountpoint: Path) -> tuple[str, ...]:
    """Return what a command line begins with to have a small file system of its own, in namespaces of its own."""
    return ("unshare", "-Ur", "-m", "sh", "-c", MOUNT, str(SIZE), str(mountpoint))


def send(server: RunningServer, name: str) -> tuple[int, str]:
    """Try to send a message of 20 kB to an address of this name; return the reply that settled it."""
    with smtplib.SMTP("127.0.0.1", server.port, local_hostname="client.test", timeout=20) as smtp:
        smtp.ehlo()
        for code, reply in (
            smtp.mail("me@there.test"),
            smtp.rcpt(f"{name}@there.test"),
        ):
            if code != 250:
                return code, reply.decode()
        code, reply = smtp.data("Subject: x\r\n\r\n" + ("y" * 70 + "\r\n") * 280)
        return code, reply.decode()


def fill(disk: Path) -> Path:
    """Let somebody else take all room that there is; return their file."""
    path = disk / "somebody-elses"
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while file.write(b"z" * size) == size:
                    pass
            except OSError:
                continue
    return path


@pytest.mark.system
@pytest.mark.timeout(120)
def test_a_file_system_that_is_full(tmp_path: Path) -> None:
    """What was accepted is relayed without a disk and not again, who comes meanwhile hears 452 4.3.1, and room is found when it is there."""
    queue = tmp_path / "queue"
    queue.mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare (util-linux)")
    trial = subprocess.run(
        [*small_disk(queue), "true"], capture_output=True, text=True, timeout=20, check=False
    )
    if trial.returncode:
        pytest.skip(f"no file system of one's own here: {trial.stderr.strip()}")
    (tmp_path / "world.toml").write_text(SCENARIO)
    with World(tmp_path / "world.toml", record_dir=tmp_path / "world") as world:
        server = RunningServer(
            tmp_path / "server",
            {
                "queue": {"directory": str(queue)},
                "relay": {"port": world.smtp_port},
                "dns": {"nameserver": world.dns},
                # No reserve: what is asked is what happens when a commit itself finds no room.
                "limits": {"queue": {"min_free_bytes": 1}},
            },
        )
        server.wrapper = small_disk(queue)
        with server:
            disk = Path(f"/proc/{server.pid}/root{queue}")
            assert (disk / "queue.db").exists()
            assert not (queue / "queue.db").exists()
            server.ask("pause", "mta")
            taken = [f"before{i}" for i in range(8)]
            for name in taken:
                assert send(server, name)[0] == 250
            filler = fill(disk)
            refusals = []
            for i in range(40):
                code, reply = send(server, f"during{i}")
                if code == 250:
                    taken.append(f"during{i}")
                else:
                    refusals.append((code, reply))
            # The log has a page or two that it may write over; then it has none.
            assert len(refusals) >= 30
            assert {(code, reply[:5]) for code, reply in refusals} == {(452, "4.3.1")}
            assert all("queue" not in reply and "disk" not in reply for _, reply in refusals)
            server.ask("resume", "mta")
            server.until(lambda s: s["scheduler.delivery.ok"] == len(taken))
            assert server.ask("show", "queue") == []
            assert server.ask("show", "status")[0]["queue"] == "failing"
            assert send(server, "still")[0] == 452
            filler.unlink()
            deadline = time.monotonic() + 60.0
            while send(server, "after")[0] != 250:
                assert time.monotonic() < deadline, "no room found"
                time.sleep(0.2)
            taken.append("after")
            stats = server.until(
                lambda s: s["scheduler.delivery.ok"] == len(taken) and not s["queue.envelope"]
            )
            assert stats["queue.commit.failed"] >= 1
            assert server.stop() == 0
            assert server.errors == ""
        records = [
            json.loads(line) for path in world.records for line in path.read_text().splitlines()
        ]
    arrived = [rcpt for record in records for rcpt in record["rcpts"]]
    assert sorted(arrived) == sorted(f"{name}@there.test" for name in taken)
