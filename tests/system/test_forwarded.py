"""Two aliases of one message that lead to the same recipient elsewhere."""

import smtplib
import time

import pytest

from tests.support.capture import CapturingHost
from tests.support.server import RunningServer, free_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(60)]

HOST = "127.0.0.44"


@pytest.mark.parametrize("name", ["x", "later"])
def test_their_target_gets_the_message_once(tmp_path, name):
    """One RCPT, now or when the host takes it at last; both envelopes are settled by its reply."""
    port = free_port(HOST)
    config = {
        "relay": {"port": port, "smart_host": f"[{HOST}]"},
        # No connection is left at the retry that would take the first envelope before the second is there.
        "limits": {"mta": {"session_keepalive_s": 0.1}},
        "retry": {"policy": "age-clamped", "min_s": 1.0, "max_s": 1.0},
        "tables": {
            "aliases": {
                "kind": "static",
                "entries": {"ann": f"{name}@there.test", "bob": f"{name}@There.test, y@there.test"},
            }
        },
        "rules": [
            {"name": "here", "match_domains": ["a.test"], "action": "local", "aliases": "aliases"},
            {"name": "out", "match_domains": ["*"], "action": "relay"},
        ],
    }
    with CapturingHost(HOST, port) as host, RunningServer(tmp_path / "mta", config) as server:
        with smtplib.SMTP("127.0.0.1", server.port, local_hostname="client.test") as smtp:
            rcpts = ["ann@a.test", "bob@a.test"]
            assert {} == smtp.sendmail("me@b.test", rcpts, "Subject: x\r\n\r\nx\r\n")
        if name == "later":
            server.until(lambda stats: stats["scheduler.delivery.tempfail"] >= 2)
            host.patient = False
        stats = server.until(lambda stats: not stats["queue.envelope"])
        assert stats["scheduler.delivery.ok"] == 3
        deadline = time.monotonic() + 10
        while sum(len(each.rcpts) for each in host.taken) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    taken = [rcpt.lower() for each in host.taken for rcpt in each.rcpts]
    assert sorted(taken) == sorted([f"{name}@there.test", "y@there.test"])
