"""What one queued envelope costs a real server: RSS while mail for a dead destination piles up.

    pytest -m benchmark -s tests/benchmarks/test_memory_per_envelope.py

The mail is real (SMTP, durable queue, one attempt that fails). The slope is fitted over the second half
of the filling, when caches and arenas have their size. ENVELOPES, RECIPIENTS and REPRESENTATIONS in the
environment change the size: 200,000 envelopes, 10 recipients per message, all four.
"""

import os
import socket
import statistics
import threading
import time

import pytest

from mta.core.envelopes import REPRESENTATIONS
from tests.support.server import RunningServer, free_port

ENVELOPES = int(os.environ.get("ENVELOPES", "200000"))
RECIPIENTS = int(os.environ.get("RECIPIENTS", "10"))
BODY_BYTES = int(os.environ.get("BODY_BYTES", "1024"))
CHOSEN = os.environ.get("REPRESENTATIONS", ",".join(REPRESENTATIONS)).split(",")

BUDGET = {"packed": 64, "slim": 400}
"""Bytes per envelope, from the design."""

results: dict[str, float] = {}


def fill(port: int, messages: int, first: int) -> None:
    """Send messages over one kept connection, pipelined."""
    body = (b"Subject: fill\r\n\r\n" + b"x" * 70 + b"\r\n") + (b"y" * 70 + b"\r\n") * (
        BODY_BYTES // 72
    )
    with socket.create_connection(("127.0.0.1", port)) as conn:
        file = conn.makefile("rb")
        assert file.readline().startswith(b"220")
        conn.sendall(b"EHLO filler.test\r\n")
        while not file.readline().startswith(b"250 "):
            pass
        for number in range(first, first + messages):
            rcpts = b"".join(
                b"RCPT TO:<user%d.%d@[127.0.0.9]>\r\n" % (number, i) for i in range(RECIPIENTS)
            )
            conn.sendall(b"MAIL FROM:<sender%d@origin.test>\r\n%bDATA\r\n" % (number, rcpts))
            for _ in range(RECIPIENTS + 1):
                line = file.readline()
                assert line.startswith(b"250"), line
            assert file.readline().startswith(b"354")
            conn.sendall(body + b".\r\n")
            line = file.readline()
            assert line.startswith(b"250"), line
        conn.sendall(b"QUIT\r\n")
        file.readline()
        file.close()


@pytest.mark.benchmark
@pytest.mark.parametrize("representation", CHOSEN)
def test_rss_per_queued_envelope(tmp_path, representation):
    """RSS grows by at most the budget per envelope that waits for a dead destination."""
    config = {
        "envelope": representation,
        "relay": {"port": free_port("127.0.0.9")},
        "limits": {"smtp": {"max_mails": 1_000_000}, "scheduler": {"max_inflight": 1000}},
        "drain_s": 1.0,
    }
    with RunningServer(tmp_path, config) as server:
        fill(server.port, 200, 1)
        clients = 8
        share = ENVELOPES // RECIPIENTS // clients
        threads = [
            threading.Thread(target=fill, args=(server.port, share, 1000 + n * share))
            for n in range(clients)
        ]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        points = []
        while any(thread.is_alive() for thread in threads):
            points.append((server.stats()["scheduler.envelope"], server.rss_bytes()))
            time.sleep(0.5)
        seconds = time.monotonic() - started
        stats = server.until(
            lambda s: s["scheduler.envelope.inflight"] == 0 and s["smtp.session"] == 0, 60
        )
        points.append((stats["scheduler.envelope"], server.rss_bytes()))

        queued = share * clients * RECIPIENTS + 200 * RECIPIENTS
        assert queued == stats["scheduler.envelope"] == stats["queue.envelope"]

    half = [(n, rss) for n, rss in points if n >= queued / 2]
    slope = statistics.linear_regression(*zip(*half, strict=True)).slope
    overall = (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])
    results[representation] = slope
    print(
        f"\n{representation:7s} {queued:8,d} envelopes in {seconds:5.1f} s:"
        f" {slope:7.0f} B per envelope (second half), {overall:7.0f} B (from the first),"
        f" RSS {points[-1][1] / 2**20:6.1f} MiB"
    )
    assert slope <= BUDGET.get(representation, 10**9), (representation, slope)
