"""A real server sends to hosts that do TLS well and badly: what arrives, how, and what the log says."""

import json
import select
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import ROOT, RunningServer

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

HOSTS = {
    # domain: (tls, dane)
    "good": ("offered", "valid"),
    "required": ("required", "none"),
    "clear": ("none", "none"),
    "broken": ("broken", "none"),
    "expired": ("expired", "none"),
    "forged": ("self-signed", "valid"),
    "wrong": ("offered", "wrong"),
    "dead-tls": ("broken", "valid"),
}
SCENARIO = 'name = "tls"\n[load]\nmessages = 1\n' + "".join(
    f'[[destinations]]\nname = "{name}"\ndomain = "{name}.test"\ntls = "{tls}"\ndane = "{dane}"\n'
    for name, (tls, dane) in HOSTS.items()
)


@contextmanager
def world(directory: Path) -> Iterator[dict[str, Any]]:
    """Run the scripted Internet; give its ready event."""
    scenario = directory / "tls.toml"
    scenario.write_text(SCENARIO)
    ca, records = directory / "ca.pem", directory / "records"
    command = [sys.executable, "-m", "testbed.world", str(scenario), "--ca-file", str(ca)]
    command += ["--record-dir", str(records), "--start-at", "now", "--processes", "2"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert select.select([process.stdout], [], [], 30)[0]
            yield {**json.loads(process.stdout.readline()), "ca": ca, "records": records}
        finally:
            process.stdin.close()
            process.stdout.read()
            process.wait(20)


def send_to_all(server: RunningServer) -> None:
    with smtplib.SMTP("127.0.0.1", server.port, local_hostname="client.test") as smtp:
        for name in HOSTS:
            smtp.sendmail("me@sender.test", [f"x@{name}.test"], "Subject: hello\r\n\r\nhello\r\n")


def run(tmp_path: Path, level: str) -> tuple[dict[str, str], dict[str, float], str]:
    """Send one message to each host at one level; return the log's verdicts, the stats and the log."""
    with world(tmp_path) as ready:
        config = {
            "relay": {"port": ready["smtp_port"], "tls": level, "ca_file": str(ready["ca"])},
            "dns": {"nameserver": ready["dns"]},
            "retry": {"policy": "exponential", "base_s": 600.0, "min_s": 600.0, "max_s": 600.0},
        }
        with RunningServer(tmp_path / "server", config) as server:
            send_to_all(server)
            stats = server.until(
                lambda s: (
                    s["scheduler.delivery.ok"] + s["scheduler.delivery.tempfail"] == len(HOSTS)
                )
            )
            assert server.stop() == 0
        log = server.log.read_text()
    verdicts: dict[str, str] = {}
    for line in log.splitlines():
        if " mta delivery " in line:
            name = line.partition("to=<x@")[2].partition(".test>")[0]
            result = line.partition('result="')[2].partition('"')[0]
            status = line.partition('stat="')[2].partition('"')[0]
            verdicts[name] = f"{result}: {status}"
    return verdicts, stats, log


def test_dane_is_as_strict_as_the_records_say(tmp_path: Path) -> None:
    """Records that match are enough, others stop the mail, and without any TLS is opportunistic."""
    verdicts, stats, log = run(tmp_path, "dane")
    assert {n for n, v in verdicts.items() if v.startswith("Ok")} == {
        "good", "required", "clear", "broken", "expired", "forged",
    }  # fmt: skip
    assert "does not match TLSA records" in verdicts["wrong"]
    assert "454 4.7.5 Cannot start TLS" in verdicts["dead-tls"]
    assert stats["mta.tls.downgraded"] == 1, "broken, and only that"
    assert log.count('cert-check result="valid"') == 2
    assert log.count("opportunistic TLS failed, downgrading to plain") == 1
    assert "mta tls ciphers=TLSv1.3:" in log


def test_verify_takes_nothing_less_than_a_good_certificate(tmp_path: Path) -> None:
    verdicts, stats, log = run(tmp_path, "verify")
    assert {n for n, v in verdicts.items() if v.startswith("Ok")} == {"good", "required", "wrong"}
    assert "certificate has expired" in verdicts["expired"]
    assert "self-signed certificate" in verdicts["forged"]
    assert "TLS is required, but was not offered by host" in verdicts["clear"]
    assert "Cannot start TLS" in verdicts["broken"]
    assert stats["mta.tls.downgraded"] == 0
    assert 'cert-check result="unverified"' not in log
