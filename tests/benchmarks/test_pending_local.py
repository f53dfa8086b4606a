"""What 100,000 local envelopes that wait cost a real server: the story of January 2013 in resident memory.

    pytest -m benchmark -s tests/benchmarks/test_pending_local.py

One user's command hangs, so that nothing but seven envelopes leaves the queue while mail comes in, one recipient to
a message. The slope of RSS is fitted over the second half of the filling. ENVELOPES in the environment changes the
size, CASES which are run: raised-fixed,raised-slim and so on.
"""

import os
import socket
import statistics
import threading
import time
from pathlib import Path

import pytest

from tests.support.server import RunningServer, free_port

ENVELOPES = int(os.environ.get("ENVELOPES", "100000"))
CASES = os.environ.get(
    "CASES", "raised-fixed,raised-full,raised-slim,hold-fixed,hold-slim,tempfail-fixed"
).split(",")
CLIENTS = 8
BODY = b"Subject: burst\r\n\r\n" + b"y" * 70 + b"\r\n"

found: dict[str, float] = {}
"""Bytes per envelope by case."""


def fill(port: int, messages: int, name: int) -> None:
    """Send messages to one user over one kept connection, each transaction in two packets."""
    with socket.create_connection(("127.0.0.1", port)) as conn, conn.makefile("rb") as file:
        assert file.readline().startswith(b"220")
        conn.sendall(b"EHLO filler.test\r\n")
        while not file.readline().startswith(b"250 "):
            pass
        for number in range(messages):
            conn.sendall(
                b"MAIL FROM:<sender%d.%d@origin.test>\r\nRCPT TO:<flood@here.test>\r\nDATA\r\n"
                % (name, number)
            )
            for code in (b"250", b"250", b"354"):
                line = file.readline()
                assert line.startswith(code), line
            conn.sendall(BODY + b".\r\n")
            line = file.readline()
            assert line.startswith(b"250"), line
        conn.sendall(b"QUIT\r\n")
        file.readline()


def config_of(directory: Path, policy: str, representation: str) -> dict[str, object]:
    home = directory / "flood"
    home.mkdir()
    rule = {
        "name": "here",
        "match_domains": ["here.test"],
        "action": "local",
        "userbase": "bench",
        "delivery": "pipe",
        "command": ["sleep", "1000"],
        "forward": False,
    }
    return {
        "envelope": representation,
        "relay": {"port": free_port("127.0.0.9")},
        "rules": [rule],
        "userbases": {"bench": {"flood": {"home": str(home)}}},
        "local": {"allow_root": True},
        "limits": {
            "smtp": {"max_mails": 1_000_000},
            "scheduler": {"max_inflight": 200_000},
            # In 2013 one user's part was 15,000; here one user has all of it.
            "mda": {"policy": policy, "raised_max_pending_per_user": 200_000},
        },
        "drain_s": 0.1,
    }


@pytest.mark.benchmark
@pytest.mark.parametrize("case", CASES)
def test_rss_per_pending_local_envelope(tmp_path, case):
    """With `raised` the agent has them all; with `hold` and `tempfail` next to none, whatever is queued."""
    policy, representation = case.split("-")
    with RunningServer(tmp_path, config_of(tmp_path, policy, representation)) as server:
        fill(server.port, 200, 0)
        threads = [
            threading.Thread(target=fill, args=(server.port, ENVELOPES // CLIENTS, n))
            for n in range(1, CLIENTS + 1)
        ]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        points = []
        while any(thread.is_alive() for thread in threads):
            stats = server.stats()
            points.append((stats["scheduler.envelope"], server.rss_bytes(), stats["mda.envelope"]))
            time.sleep(0.5)
        seconds = time.monotonic() - started
        stats = server.stats()
        points.append((stats["scheduler.envelope"], server.rss_bytes(), stats["mda.envelope"]))
        queued = ENVELOPES // CLIENTS * CLIENTS + 200
        assert queued == stats["scheduler.envelope"] == stats["queue.envelope"]

    half = [(count, rss) for count, rss, _ in points if count >= queued / 2]
    slope = statistics.linear_regression(*zip(*half, strict=True)).slope
    overall = (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])
    agent = max(each[2] for each in points)
    found[case] = slope
    print(
        f"\n{case:14s} {queued:8,d} envelopes in {seconds:5.1f} s: {slope:7.0f} B per envelope (second half),"
        f" {overall:7.0f} B (from the first), RSS {points[-1][1] / 2**20:6.1f} MiB,"
        f" agent had {agent:7,.0f}, refused {stats['mda.refused']:7,.0f}"
    )
    if policy == "raised":
        assert agent == queued
    else:
        assert agent <= 5000
        assert slope < 1000
    if "raised-fixed" in found and case == "raised-slim":
        assert found["raised-fixed"] >= 10 * slope
