"""A real server sends to hosts that do TLS well and badly: what arrives, how, and what the log says."""

import json
import os
import select
import smtplib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.postfix import RunningPostfix, missing
from tests.support.server import ROOT, RunningServer, free_port
from tests.support.tlsmx import authority

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


needs_postfix = pytest.mark.skipif(
    bool(missing()) or os.geteuid() != 0, reason=f"needs root and {missing() or 'Postfix'}"
)


def relay_one(tmp_path: Path, relay: dict[str, object]) -> tuple[str, dict[str, float]]:
    """Send one message through a server to a smart host on 127.0.0.1; return its log and stats."""
    config = {"relay": {"smart_host": "[127.0.0.1]", **relay}}
    with RunningServer(tmp_path / "client", {**config, "hostname": "client.test"}) as server:
        with smtplib.SMTP("127.0.0.1", server.port, local_hostname="sender.test") as smtp:
            smtp.sendmail("me@sender.test", ["x@far.test"], "Subject: hello\r\n\r\nhello\r\n")
        stats = server.until(
            lambda s: s["scheduler.delivery.ok"] + s["scheduler.delivery.tempfail"] == 1
        )
        assert server.stop() == 0
    return server.log.read_text(), stats


@needs_postfix
def test_a_postfix_that_demands_tls_gets_the_mail(tmp_path: Path) -> None:
    """Another implementation, which says in its log what it saw."""
    port = free_port()
    good = authority().good
    pem = tmp_path / "postfix.pem"
    pem.write_bytes(good.private_key_and_cert_chain_pem.bytes())
    settings = (
        f"smtpd_tls_chain_files = {pem}\nsmtpd_tls_security_level = encrypt\n"
        "smtpd_tls_loglevel = 1\nsmtpd_tls_received_header = yes\ndefault_transport = discard\n"
    )
    with (
        authority().file() as ca,
        # Not below tmp_path: other runs of pytest close its parent, and Postfix is not root.
        tempfile.TemporaryDirectory(prefix="postfix-") as directory,
        RunningPostfix(Path(directory) / "postfix", port=port, settings=settings) as postfix,
    ):
        log, stats = relay_one(tmp_path, {"port": port, "tls": "verify", "ca_file": str(ca)})
        seen = postfix.log.read_text()
    assert 'result="Ok"' in log, log
    assert 'mta cert-check result="valid"' in log
    assert stats["mta.tls"] == 1
    assert "TLS connection established from" in seen
    assert "TLSv1.3 with cipher" in seen
    assert "lost connection" not in seen


@pytest.mark.parametrize(
    ("password", "good"), [("correct horse", True), ("wrong", False)], ids=["right", "wrong"]
)
def test_we_log_in_at_another_of_us(tmp_path: Path, password: str, good: bool) -> None:
    """Submission with TLS first and AUTH: mail of who may not log in waits, and no password is in a log."""
    hashed = subprocess.run(
        [sys.executable, "-m", "mta.ctl", "encrypt"],
        cwd=ROOT, input="correct horse\n", capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    users = tmp_path / "users"
    users.write_text(f"us {hashed}\n")
    users.chmod(0o600)
    pem = tmp_path / "server.pem"
    pem.write_bytes(authority().good.private_key_and_cert_chain_pem.bytes())
    pem.chmod(0o600)
    credentials = tmp_path / "credentials"
    credentials.write_text(f"submission us {password}\n")
    credentials.chmod(0o600)
    config = {
        "smtp": {"listen": "", "relay_networks": []},
        "tls": {"certificate": str(pem), "key": str(pem)},
        "auth": {"file": str(users)},
        "listeners": [
            {"name": "smtps", "address": "127.0.0.1:0", "tls": "implicit", "auth": "required"}
        ],
        "relay": {"port": 1},
    }
    with (
        authority().file() as ca,
        RunningServer(tmp_path / "server", {**config, "hostname": "submission.test"}) as submission,
    ):
        relay = {
            "port": submission.ports["smtps"],
            "tls": "implicit",
            "ca_file": str(ca),
            "credentials": str(credentials),
            "auth": "submission",
        }
        log, _ = relay_one(tmp_path, relay)
        assert submission.stop() == 0
        theirs = submission.log.read_text()
    assert ("smtp authentication user=us result=ok" in theirs) == good
    if good:
        assert 'result="Ok"' in log, log
    else:
        assert "454 4.7.0 Authentication failed; host said 535" in log
    assert password not in log + theirs
