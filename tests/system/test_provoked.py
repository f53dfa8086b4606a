"""Hosts that react provoke what they should, in our server and in Postfix: the same world, counted on the world's side.

A greylisted triplet arrives at its first retry after the window; a host that fails three times is tried exactly four
times.
"""

import os
import smtplib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from testbed.world.handle import World
from tests.support.postfix import RunningPostfix, missing
from tests.support.server import RunningServer, free_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

WAIT_S = 0.7
"""Less than what either server waits for its first retry, which is a second."""

WORLD = f"""
name = "provoked"
[load]
messages = 1
[[destinations]]
name = "grey"
domain = "grey.test"
behaviours = [{{ kind = "greylist", wait_s = {WAIT_S}, reply = "postfix/greylisted" }}]
[[destinations]]
name = "thrice"
domain = "thrice.test"
behaviours = [{{ kind = "fail-then-accept", failures = 3, code = 451 }}]
"""
BLOCK_OF = {"grey": 10, "thrice": 11}

OURS = {
    "retry": {"policy": "age-clamped", "min_s": 1.0, "max_s": 1.0},
    "limits": {
        "mta": {"session_keepalive_s": 0.5, "route_delay_base_s": 0.5, "route_delay_max_s": 1.0}
    },
}
POSTFIX = """\
transport_maps = inline:{{ {transports} }}
minimal_backoff_time = 1s
maximal_backoff_time = 1s
queue_run_delay = 1s
"""


@contextmanager
def ours(world: World, directory: Path) -> Iterator[int]:
    config = {**OURS, "relay": {"port": world.smtp_port}, "dns": {"nameserver": world.dns}}
    with RunningServer(directory, config) as server:
        yield server.port


@contextmanager
def postfix(world: World, directory: Path) -> Iterator[int]:
    if missing() or os.geteuid() != 0:
        pytest.skip(f"needs Debian's postfix, started by root: {missing()}")
    transports = ", ".join(
        f"{{ {name}.test = smtp:[127.0.{block}.1]:{world.smtp_port} }}"
        for name, block in BLOCK_OF.items()
    )
    port = free_port()
    # Not below pytest's directory: other runs close its parent, and Postfix's processes are not root.
    with tempfile.TemporaryDirectory(prefix="postfix-") as name:
        Path(name).chmod(0o755)
        settings = POSTFIX.format(transports=transports)
        with RunningPostfix(Path(name) / "postfix", port=port, settings=settings):
            yield port


@pytest.fixture(params=[ours, postfix], ids=["ours", "postfix"])
def relay(request: Any, tmp_path: Path) -> Iterator[tuple[World, int]]:
    """A world, and the port of a server that relays into it."""
    path = tmp_path / "world.toml"
    path.write_text(WORLD)
    start: Callable[..., Any] = request.param
    with (
        World(path, record_dir=tmp_path / "world") as world,
        start(world, tmp_path / "server") as port,
    ):
        world.set_start()
        yield world, port


def send(port: int, *rcpts: str) -> float:
    """Send each recipient a message of its own; return when the first was sent."""
    began = time.time()
    with smtplib.SMTP("127.0.0.1", port, local_hostname="client.test", timeout=30) as smtp:
        for rcpt in rcpts:
            smtp.sendmail("me@sender.test", [rcpt], "Subject: hello\r\n\r\nhello\r\n")
    return began


def until_taken(world: World, messages: int, timeout_s: float = 60.0) -> dict[str, Any]:
    """Wait until the world has taken so many; return its counts."""
    deadline = time.monotonic() + timeout_s
    while (stats := world.stats())["messages"] < messages:
        assert time.monotonic() < deadline, stats
        time.sleep(0.05)
    return stats


def taken(world: World) -> list[dict[str, Any]]:
    return [
        msgspec.json.decode(line)
        for path in world.records
        for line in path.read_bytes().splitlines()
    ]


def test_a_greylisted_triplet_arrives_at_the_first_retry_after_the_window(
    relay: tuple[World, int],
) -> None:
    """One refusal for each triplet, then the message; a triplet that is known passes at once."""
    world, port = relay
    began = send(port, "a@grey.test", "b@grey.test")
    stats = until_taken(world, 2)
    assert stats["refused"]["RCPT 450"] == 2
    records = taken(world)
    assert min(each["t"] for each in records) - began >= WAIT_S
    send(port, "a@grey.test")
    stats = until_taken(world, 3)
    assert stats["refused"]["RCPT 450"] == 2
    assert sorted(rcpt for each in taken(world) for rcpt in each["rcpts"]) == [
        "a@grey.test", "a@grey.test", "b@grey.test",
    ]  # fmt: skip


def test_a_host_that_fails_three_times_is_tried_four_times(relay: tuple[World, int]) -> None:
    """Exactly so often for each recipient, and each message arrives once."""
    world, port = relay
    send(port, "a@thrice.test", "b@thrice.test", "c@thrice.test")
    stats = until_taken(world, 3)
    assert stats["refused"]["RCPT 451"] == 9
    assert stats["messages"] == 3
