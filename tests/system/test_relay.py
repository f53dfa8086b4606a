"""Mail through the real server to a scripted Internet: what is delivered, reported, and still queued."""

import json
import smtplib
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mta.core.metrics import DRAINING
from testbed.world.handle import World
from tests.support.server import RunningServer, free_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

DESTINATIONS: dict[str, list[dict[str, Any]]] = {
    "accept": [],
    "sender": [],
    "grey": [{"kind": "greylist", "wait_s": 1.0}],
    "busy": [{"kind": "reject", "code": 451, "enhanced": "4.3.0", "text": "Later"}],
    "never": [{"kind": "reject", "code": 550, "enhanced": "5.1.1", "text": "No such user"}],
    "dead": [{"kind": "dead"}],
    "nullmx": [{"kind": "dns", "answer": "null-mx"}],
    "nodomain": [{"kind": "dns", "answer": "nxdomain"}],
    "outage": [{"kind": "outage", "from_s": 0.0, "to_s": 4.0}],
}


def scenario(directory: Path) -> Path:
    def inline(value: Any) -> str:
        return json.dumps(value)

    lines = ['name = "system"', "[load]", "messages = 1"]
    for name, behaviours in DESTINATIONS.items():
        tables = [
            "{ " + ", ".join(f"{key} = {inline(value)}" for key, value in each.items()) + " }"
            for each in behaviours
        ]
        lines += [
            "[[destinations]]",
            f'name = "{name}"',
            f'domain = "{name}.test"',
            f"behaviours = [{', '.join(tables)}]",
        ]
    path = directory / "world.toml"
    path.write_text("\n".join(lines))
    return path


class Net:
    """A world and a server that relays into it."""

    def __init__(self, world: World, server: RunningServer) -> None:
        self.world = world
        self.server = server

    def send(self, sender: str, *rcpts: str, subject: str = "x", body: str = "hello") -> str:
        """Send one message; return its id."""
        text = f"Subject: {subject}\r\n\r\n{body}\r\n"
        with smtplib.SMTP("127.0.0.1", self.server.port, local_hostname="client.test") as smtp:
            smtp.ehlo()
            smtp.mail(sender)
            for rcpt in rcpts:
                assert smtp.rcpt(rcpt)[0] == 250
            code, reply = smtp.data(text)
        assert code == 250, reply
        return reply.split()[1].decode()

    def queue(self) -> dict[str, dict[str, Any]]:
        return {row["rcpt"]: row for row in self.server.ask("show", "queue")}

    def records(self) -> list[dict[str, Any]]:
        """What the world's hosts took; complete when it has stopped."""
        return [
            json.loads(line)
            for path in self.world.records
            for line in path.read_text().splitlines()
        ]

    def drained(self, timeout_s: float = 30.0) -> dict[str, float]:
        """Wait until every gauge that must be is 0; connections are kept for a while."""
        return self.server.until(lambda s: not any(s[name] for name in DRAINING), timeout_s)


@contextmanager
def net(tmp_path: Path, **config: Any) -> Iterator[Net]:
    with World(scenario(tmp_path), record_dir=tmp_path / "world") as world:
        settings: dict[str, Any] = {
            "relay": {"port": world.smtp_port},
            "dns": {"nameserver": world.dns, "negative_ttl_s": 0.5, "ttl_min_s": 0.1},
            "retry": {"policy": "exponential", "base_s": 1.0, "min_s": 0.5, "max_s": 1.5},
            "limits": {
                "mta": {
                    "session_keepalive_s": 0.5,
                    "route_delay_base_s": 0.5,
                    "route_delay_max_s": 1.0,
                }
            },
            **config,
        }
        with RunningServer(tmp_path / "server", settings) as server:
            yield Net(world, server)


def test_every_fate_of_a_recipient(tmp_path):
    """Accepted and greylisted arrive; 5xx, null MX and NXDOMAIN are reported; 4xx and dead wait."""
    with net(tmp_path) as at:
        at.world.set_start()
        names = [name for name in DESTINATIONS if name not in ("sender", "outage")]
        for name in names:
            at.send("me@sender.test", f"you@{name}.test", subject=name)
        at.server.until(
            lambda s: (
                s["queue.envelope"] == 2
                and s["scheduler.delivery.ok"] >= 5
                and s["smtp.session.local"] == 3
            )
        )
        rows = at.queue()
        assert {"you@busy.test", "you@dead.test"} == set(rows)
        # Deliveries, deferrals and reports are told by the log as well.
        log = at.server.log.read_text()
        assert 'to=<you@never.test> rcpt=<-> source="-" relay="' in log
        assert 'result="PermFail" stat="550 5.1.1 No such user"' in log
        assert 'result="PermFail" stat="556 5.1.10' in log
        assert 'result="PermFail" stat="550 5.1.2 Domain does not exist"' in log
        at.server.until(lambda s: s["scheduler.delivery.tempfail"] >= 4)
        rows = at.queue()
        assert all(row["attempts"] >= 1 for row in rows.values())
        assert "451 4.3.0 Later" == rows["you@busy.test"]["last_status"]
        assert "refused" in rows["you@dead.test"]["last_status"]

        at.server.ask("remove", "all")
        at.drained()
        assert 0 == at.server.stop()
        assert "" == at.server.errors
        at.world.stop()

        taken = at.records()
        assert {"you@accept.test": 1, "you@grey.test": 1, "me@sender.test": 3} == {
            rcpt: sum(rcpt in record["rcpts"] for record in taken)
            for rcpt in {rcpt for record in taken for rcpt in record["rcpts"]}
        }


def test_an_outage_ends_and_the_queue_drains(tmp_path):
    """Mail for a destination that was away arrives when it is back, each message once."""
    with net(tmp_path) as at:
        at.world.set_start()
        for number in range(20):
            at.send(f"s{number}@sender.test", f"r{number}@outage.test")
        before = at.server.until(lambda s: s["scheduler.delivery.tempfail"] >= 20)
        assert 20 == before["queue.envelope"]

        stats = at.drained(60.0)

        assert 20 == stats["scheduler.delivery.ok"]
        assert 0 == stats["scheduler.delivery.permfail"] == stats["error.internal"]
        at.server.stop()
        at.world.stop()
        assert sorted(f"r{n}@outage.test" for n in range(20)) == sorted(
            rcpt for record in at.records() for rcpt in record["rcpts"]
        )


def test_metrics_are_scraped(tmp_path):
    """What Prometheus sees is what `mtactl show stats` shows."""
    port = free_port()
    socket = str(tmp_path / "server" / "control.sock")
    with net(tmp_path, control={"socket": socket, "metrics": f"127.0.0.1:{port}"}) as at:
        at.send("me@sender.test", "you@accept.test")
        at.drained()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            page = answer.read().decode()
        lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
        value = {name: float(v) for name, v in lines.items() if "delivery_ok" in name}
        assert [1.0] == list(value.values()), page


def test_a_hot_restart_with_a_long_queue(tmp_path):
    """5,000 envelopes are known again, and mail is taken while they are being restored."""
    config = {"relay": {"port": free_port("127.0.0.2")}, "limits": {"smtp": {"max_rcpt": 1000}}}
    with RunningServer(tmp_path, config) as server:
        for message in range(5):
            with smtplib.SMTP("127.0.0.1", server.port, local_hostname="client.test") as smtp:
                rcpts = [f"r{message}-{n}@[127.0.0.2]" for n in range(1000)]
                assert {} == smtp.sendmail("a@one.test", rcpts, "Subject: x\r\n\r\nhello\r\n")
        server.until(lambda s: s["queue.envelope"] == 5000)
        server.kill()
        began = time.monotonic()
        server.start()
        with smtplib.SMTP("127.0.0.1", server.port, local_hostname="client.test") as smtp:
            smtp.sendmail("a@one.test", ["new@[127.0.0.2]"], "Subject: x\r\n\r\nhello\r\n")
        server.until(lambda s: s["scheduler.envelope"] == 5001)
        assert time.monotonic() - began < 30
        assert "restored 5000 envelopes" in server.log.read_text()
        assert 5001 == len(server.ask("show", "queue"))
        assert 0 == server.stop()
        assert "" == server.errors
