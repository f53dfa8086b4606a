"""Hosts that react provoke what they should, in our server and in Postfix: the same world, counted on the world's side.

A greylisted triplet arrives at its first retry after the window; a host that fails three times is tried exactly four
times; one that lets few connections in is given few, and more again when it relents.
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
[[destinations]]
name = "narrow"
domain = "narrow.test"
behaviours = [
    {{ kind = "limit-connections", max = 1, code = 450 }},
    {{ kind = "latency", delay_s = 1.0, verbs = ["."] }},
]
[[destinations]]
name = "rated"
domain = "rated.test"
behaviours = [
    {{ kind = "limit-rate", what = "connections", rate = 2.0 }},
    {{ kind = "latency", delay_s = 1.0, verbs = ["."] }},
]
"""
BLOCK_OF = {"grey": 10, "thrice": 11, "narrow": 12, "rated": 13}
WIDTH = 10
"""Most connections that either server may have to one destination."""

OURS: dict[str, Any] = {
    "retry": {"policy": "age-clamped", "min_s": 1.0, "max_s": 1.0},
    "limits": {
        "mta": {
            "session_keepalive_s": 0.5, "session_mail_max": 1, "max_conn_per_route": WIDTH,
            "route_delay_base_s": 0.1, "route_delay_max_s": 0.2,
        }
    },
}  # fmt: skip
# One connection for each message, in both servers: so the world sees how many each wants at once. And no number of
# failures makes a destination dead, or it would begin anew with five connections. With pipelining Postfix's QUIT comes with
# the final dot, and the host counts that client out.
POSTFIX = """\
transport_maps = inline:{{ {transports} }}
minimal_backoff_time = 1s
maximal_backoff_time = 1s
queue_run_delay = 1s
smtp_connection_cache_on_demand = no
smtp_discard_ehlo_keywords = pipelining
default_destination_concurrency_limit = {width}
default_destination_concurrency_failed_cohort_limit = 0
"""


@contextmanager
def ours(world: World, directory: Path, *, policy: str = "feedback") -> Iterator[int]:
    config = {
        **OURS,
        "relay": {"port": world.smtp_port},
        "dns": {"nameserver": world.dns},
        "concurrency": {"policy": policy, "limit": WIDTH, "cohort_limit": 0},
    }
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
        settings = POSTFIX.format(transports=transports, width=WIDTH)
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


def until_taken(world: World, messages: int, timeout_s: float = 30.0) -> dict[str, Any]:
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


EACH = 40
"""Messages for each of the hosts that limit connections."""


def while_limited_and_later(world: World, port: int) -> tuple[int, int, dict[str, tuple[int, int]]]:
    """Let two hosts limit connections while mail waits for both, then take them all.

    Returns:
        Connections refused and messages taken by the one that lets one in at a time, while it did; for each host the
        most connections that were used at once then, and later. The world's words, not the server's.
    """
    numbers = range(EACH)
    send(port, *[f"{n}@{name}.test" for n in numbers for name in ("narrow", "rated")])
    until_taken(world, 10)
    world.set(
        "narrow.limit-connections.max=1000", "narrow.latency.delay_s=0.3",
        "rated.limit-rate.rate=1e6", "rated.limit-rate.burst=1e6", "rated.latency.delay_s=0.3",
    )  # fmt: skip
    until = time.time()
    refused = world.stats()["refused"].get("CONNECT 450", 0)
    until_taken(world, 2 * EACH)
    used: dict[str, tuple[int, int]] = {}
    messages = 0
    for name in ("narrow", "rated"):
        mine = [one for one in taken(world) if one["address"] == f"127.0.{BLOCK_OF[name]}.1"]
        # What was on its way at the change had a second to wait.
        then = [one["connections"] for one in mine if one["t"] <= until]
        later = [one["connections"] for one in mine if one["t"] > until]
        used[name] = max(then), max(later)
        if name == "narrow":
            messages = len(then)
    return refused, messages, used


def test_hosts_that_refuse_connections_are_given_fewer_and_then_more_again(
    relay: tuple[World, int],
) -> None:
    """One that takes one connection at a time, and one that takes two a second.

    A refusal takes a connection from the window and a success adds one, and one at a time is not refused: so no more are
    refused than succeed, but for those at first, however fast the machine is. When the hosts relent, more are used at
    once than before.
    """
    world, port = relay
    refused, messages, used = while_limited_and_later(world, port)
    assert refused <= messages + WIDTH, used
    assert used["narrow"][0] == 1
    assert all(later > then for then, later in used.values()), used
    assert max(later for _, later in used.values()) > 2, used


def test_a_window_that_never_moves_is_refused_far_more_often(tmp_path: Path) -> None:
    """What the test before would say of a server that learns nothing: ours, told not to."""
    path = tmp_path / "world.toml"
    path.write_text(WORLD)
    with (
        World(path, record_dir=tmp_path / "world") as world,
        ours(world, tmp_path / "server", policy="fixed") as port,
    ):
        world.set_start()
        refused, messages, _ = while_limited_and_later(world, port)
        assert refused > 2 * (messages + WIDTH)
