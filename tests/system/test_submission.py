"""Submission from end to end: swaks, a real server process, and a Maildir that Python reads."""

import mailbox
import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests.support.server import ROOT, RunningServer
from tests.support.tls import authority, write_pair


def _missing() -> str:
    """Return what keeps swaks from speaking TLS here."""
    if shutil.which("swaks") is None:
        return "needs swaks (Debian: swaks, libnet-ssleay-perl)"
    said = subprocess.run(["swaks", "--support"], capture_output=True, text=True, timeout=30)
    return "" if "TLS supported" in said.stdout else "needs TLS in swaks (libnet-ssleay-perl)"


MISSING = _missing()
pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(120),
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
]

PASSWORD = "correct horse, battery"


def encrypt(password: str) -> str:
    """Return what `mtactl encrypt` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "mta.ctl", "encrypt"],
        cwd=ROOT,
        input=f"{password}\n",
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with a port for relays, one for users, and one for users in a hurry."""
    directory = tmp_path_factory.mktemp("submission")
    home = directory / "alice"
    home.mkdir()
    users = directory / "users"
    users.touch(mode=0o600)
    users.write_text(f"alice {encrypt(PASSWORD)}\n")
    (directory / "ca.pem").write_bytes(authority().cert_pem.bytes())
    config = {
        "smtp": {"listen": "127.0.0.1:0", "relay_networks": []},
        "tls": write_pair(directory).config,
        "auth": {"file": str(users)},
        "listeners": [
            {
                "name": "submission",
                "address": "127.0.0.1:0",
                "tls": "required",
                "auth": "required",
            },
            {"name": "smtps", "address": "127.0.0.1:0", "tls": "implicit", "auth": "required"},
        ],
        "userbases": {"people": {"alice": {"home": str(home)}}},
        "rules": [
            {
                "name": "here",
                "match_domains": ["here.test"],
                "action": "local",
                "userbase": "people",
                "clients": ["authenticated"],
            }
        ],
    }
    with RunningServer(directory, config) as running:
        yield running
        assert running.stop() == 0
        assert running.errors == ""


def swaks(server: RunningServer, listener: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Send a message to alice."""
    return subprocess.run(
        [
            "swaks",
            "--server",
            f"127.0.0.1:{server.ports[listener]}",
            *("--to", "alice@here.test", "--from", "alice@here.test", "--ehlo", "c.test"),
            *("--timeout", "20", "--header", f"Subject: {listener} {' '.join(options[:2])}"),
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )


def login(mechanism: str, password: str = PASSWORD) -> tuple[str, ...]:
    return ("--auth", mechanism, "--auth-user", "alice", "--auth-password", password)


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize(
    ("listener", "tls"), [("submission", "--tls"), ("smtps", "--tls-on-connect")]
)
def test_a_user_sends_mail(server, mechanism, listener, tls):
    """The certificate is verified, the login is in Received, and the mail in the Maildir."""
    authority_file = str(server.directory / "ca.pem")
    done = swaks(
        server, listener, *login(mechanism), tls, "--tls-verify", "--tls-ca-path", authority_file
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TLS started with cipher TLSv1.3" in done.stdout
    server.until(lambda stats: not stats["scheduler.envelope"] and not stats["queue.envelope"])
    (message,) = [
        message
        for message in mailbox.Maildir(server.directory / "alice" / "Maildir", create=False)
        if message["Subject"] == f"{listener} --auth {mechanism}"
    ]
    assert message["Return-Path"] == "<alice@here.test>"
    assert "with ESMTPSA id" in message["Received"]
    assert "(TLSv1.3:TLS_AES_256_GCM_SHA384:256:NO)" in message["Received"]
    assert "smtp authentication user=alice result=ok" in server.log.read_text()


def test_whoever_has_no_password_sends_none(server):
    """535; and without a login 530, in clear 538 or nothing to log in with."""
    wrong = swaks(server, "submission", *login("PLAIN", "wrong"), "--tls")
    assert "535 5.7.8" in wrong.stdout
    none = swaks(server, "submission", "--tls")
    assert "530 5.7.0 Authentication required" in none.stdout
    clear = swaks(server, "submission")
    assert "530 5.7.0 Must issue a STARTTLS command first" in clear.stdout
    relay = swaks(server, "smtp", "--tls")
    assert "550 5.7.1" in relay.stdout
    assert all(done.returncode for done in (wrong, none, clear, relay))


def test_nothing_of_a_password_is_in_the_log(server):
    """Also with tracing on."""
    server.ask("trace", "smtp")
    swaks(server, "submission", *login("LOGIN"), "--tls")
    swaks(server, "submission", *login("PLAIN", "hunter2"), "--tls")
    server.ask("untrace", "smtp")
    server.until_logged("result=permfail", server.log.read_text().count("result=permfail"))
    log = server.log.read_text()
    assert "AUTH PLAIN ****" in log
    assert "smtp authentication user=alice result=permfail" in log
    for secret in (PASSWORD, "hunter2", "aHVudGVyMg==", "AGFsaWNlAGh1bnRlcjI=", "Y29ycmVjdCBob3"):
        assert secret not in log


def test_a_signal_brings_the_new_certificate(server):
    """And what can't be used is one line in the log."""
    write_pair(server.directory)
    os.kill(server.pid, signal.SIGHUP)
    server.until_logged(f"tls: read {server.directory / 'tls.crt'}")
    assert {"line": "1 users"} == server.ask("update", "auth")[0]
    assert swaks(server, "smtps", *login("PLAIN"), "--tls-on-connect").returncode == 0


def test_a_certificate_that_can_not_be_used_is_one_line(tmp_path):
    """Exit status 2, before anything is bound."""
    pair = write_pair(tmp_path)
    pair.key.chmod(0o644)
    server = RunningServer(tmp_path / "s", {"tls": pair.config})
    done = subprocess.run(
        [sys.executable, "-m", "mta", "serve", "-c", str(server.file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f'mta: {server.file}: tls.key = "/')
    assert done.stderr.endswith(": may be read by others, make it rw-r----- at most\n")
    assert done.stderr.count("\n") == 1
