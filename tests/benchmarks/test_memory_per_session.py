"""What an open session costs a real server: RSS while clients do nothing after EHLO, in clear and in TLS.

    pytest -m benchmark -s tests/benchmarks/test_memory_per_session.py

The defaults of `sim.costs.MemoryCosts` are from here. SESSIONS in the environment changes the size.
"""

import os
import socket
import ssl
import statistics
from pathlib import Path
from typing import Any

import pytest

from sim.costs import MemoryCosts
from tests.support.server import RunningServer
from tests.support.tls import write_pair

SESSIONS = int(os.environ.get("SESSIONS", "1000"))
STEP = 100


def greeted(conn: socket.socket) -> None:
    """Say EHLO and read the answer."""
    conn.sendall(b"EHLO idle.test\r\n")
    answer = b""
    while not answer.rpartition(b"\r\n")[0].rpartition(b"\r\n")[2].startswith(b"250 "):
        answer += conn.recv(4096)
        assert answer


def opened(port: int, context: ssl.SSLContext | None) -> socket.socket:
    """Open a session that waits for its next command."""
    conn = socket.create_connection(("127.0.0.1", port))
    assert conn.recv(512).startswith(b"220")
    greeted(conn)
    if context is not None:
        conn.sendall(b"STARTTLS\r\n")
        assert conn.recv(512).startswith(b"220")
        conn = context.wrap_socket(conn)
        greeted(conn)
    return conn


@pytest.mark.benchmark
@pytest.mark.parametrize("is_tls", [False, True])
def test_rss_per_idle_session(tmp_path: Path, is_tls: bool) -> None:
    """RSS grows by what the model says for each session, give or take a half."""
    config: dict[str, Any] = {
        "limits": {"smtp": {"max_conn": 2 * SESSIONS, "max_conn_per_client": 2 * SESSIONS}}
    }
    context = None
    if is_tls:
        config["tls"] = write_pair(tmp_path).config
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    conns: list[socket.socket] = []
    points = []
    with RunningServer(tmp_path / "server", config) as server:
        try:
            while len(conns) < SESSIONS:
                conns += [opened(server.port, context) for _ in range(STEP)]
                count = len(conns)
                server.until(lambda s, n=count: s["smtp.session"] >= n, 20)
                points.append((count, server.rss_bytes()))
        finally:
            for conn in conns:
                conn.close()
    # The first sessions take what was free.
    slope = statistics.linear_regression(*zip(*points[len(points) // 3 :], strict=True)).slope
    costs = MemoryCosts()
    expected = costs.session_bytes + (costs.session_tls_bytes if is_tls else 0.0)
    print(f"\n{'TLS' if is_tls else 'clear'}: {slope:,.0f} B per session, model {expected:,.0f}")
    assert slope == pytest.approx(expected, rel=0.5)
