"""Two servers whose aliases send each other the same message."""

import smtplib
import time

import pytest

from tests.support.capture import CapturingHost
from tests.support.server import RunningServer, free_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(60)]

HOSTS = {"a": "127.0.0.41", "b": "127.0.0.42"}
SENDER = "127.0.0.43"


def test_a_message_that_goes_round_ends_with_one_report(tmp_path):
    """It stops at ``max_hops``, wherever that is; the sender hears of it once, and no queue keeps anything."""
    port = free_port(SENDER)
    ports = {name: free_port(address) for name, address in HOSTS.items()}
    servers = []
    for here, there in (("a", "b"), ("b", "a")):
        config = {
            "hostname": f"mx.{here}.test",
            "smtp": {"listen": f"{HOSTS[here]}:{ports[here]}"},
            "limits": {"smtp": {"max_hops": 10}},
            "relay": {"port": port},
            "relays": [
                {
                    "domains": [f"{there}.test"],
                    "smart_host": [f"[{HOSTS[there]}]"],
                    "port": ports[there],
                }
            ],
            "tables": {"aliases": {"kind": "static", "entries": {"ping": f"ping@{there}.test"}}},
            "rules": [
                {
                    "name": "here",
                    "match_domains": [f"{here}.test"],
                    "action": "local",
                    "aliases": "aliases",
                },
                {"name": "out", "match_domains": ["*"], "action": "relay"},
            ],
        }
        servers.append(RunningServer(tmp_path / here, config))
    with CapturingHost(SENDER, port) as host, servers[0] as a, servers[1] as b:
        with smtplib.SMTP(HOSTS["a"], a.port, local_hostname="client.test") as smtp:
            assert {} == smtp.sendmail(f"me@[{SENDER}]", ["ping@a.test"], "Subject: x\r\n\r\nx\r\n")
        deadline = time.monotonic() + 30
        while not host.taken:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for server in (a, b):
            stats = server.until(lambda s: not s["queue.envelope"])
            assert stats["scheduler.delivery.ok"] >= 4
        (report,) = host.taken
    assert report.sender == ""
    assert b"5.4.6" in report.body


def test_mail_for_an_address_of_our_own_does_not_go_out(tmp_path):
    """Neither by ``relay.port`` nor by a rule's, whatever ``relay.allow`` says: permanent, and no connection to ourselves."""
    ports = {"smtp": free_port(HOSTS["a"]), "two": free_port(HOSTS["b"])}
    config = {
        "smtp": {"listen": f"{HOSTS['a']}:{ports['smtp']}"},
        "listeners": [{"name": "two", "address": f"{HOSTS['b']}:{ports['two']}"}],
        "relay": {"port": ports["smtp"], "allow": "any"},
        "relays": [{"domains": [f"[{HOSTS['b']}]"], "port": ports["two"]}],
    }
    with RunningServer(tmp_path, config) as server:
        with smtplib.SMTP(HOSTS["a"], server.port, local_hostname="client.test") as smtp:
            rcpts = [f"x@[{address}]" for address in HOSTS.values()]
            assert {} == smtp.sendmail("", rcpts, "Subject: x\r\n\r\nx\r\n")
        stats = server.until(lambda s: not s["queue.envelope"])
    assert stats["scheduler.delivery.permfail"] == 2
    log = server.log.read_text()
    assert log.count("554 5.4.6 Mail loops back to myself") >= 2
    assert log.count("smtp connected") == 1
