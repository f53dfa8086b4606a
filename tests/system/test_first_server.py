"""What docs/first-server.md says works as it says."""

import mailbox
import os
import re
import shutil
import smtplib
import ssl
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mta.passwords import encrypt
from tests.support.capture import CapturingHost
from tests.support.server import ROOT, RunningServer, free_port
from tests.support.tls import authority, write_pair
from tests.support.waiting import eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(60)]

SINK = "127.0.0.9"


def blocks() -> dict[str, str]:
    """Return the page's files by the names of their blocks."""
    text = (ROOT / "docs" / "first-server.md").read_text()
    return dict(re.findall(r"```([a-z]+)\n(.*?)```", text, re.DOTALL))


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    authority().configure_trust(context)
    return context


def test_the_page_works(tmp_path, monkeypatch):
    """Its files make a server that takes mail of who logs in, expands it, keeps and forwards it."""
    monkeypatch.chdir(tmp_path)
    page = blocks()
    for user in ("alice", "bob"):
        (tmp_path / "home" / user).mkdir(parents=True)
    (tmp_path / "home" / "bob" / ".forward").write_text(page["forward"])
    (tmp_path / "aliases").write_text(page["aliases"])
    (tmp_path / "virtual").write_text(page["virtual"])
    (tmp_path / "users").touch(mode=0o600)
    (tmp_path / "users").write_text(f"alice {encrypt('secret')}\n")
    port = free_port(SINK)
    config = tomllib.loads(page["toml"].replace("/srv/mail", str(tmp_path)))
    # Only what tests at the same time would quarrel about, and where the files are, is different.
    config["listeners"][0]["address"] = "127.0.0.1:0"
    config["relay"]["port"] = port
    config["tls"] = write_pair(tmp_path).config
    config["auth"]["file"] = str(tmp_path / "users")
    for name, table in config["tables"].items():
        table["path"] = str(tmp_path / name)
    with (
        CapturingHost(SINK, port) as host,
        RunningServer(tmp_path / "server", config) as server,
    ):
        server.ask("trace", "expand")
        with smtplib.SMTP("127.0.0.1", server.ports["submission"], local_hostname="c.test") as smtp:
            smtp.starttls(context=trusting())
            smtp.login("alice", "secret")
            rcpts = ["info@home.test", "sales@shop.test", "any@shop.test"]
            assert {} == smtp.sendmail("me@home.test", rcpts, "Subject: x\r\n\r\nx\r\n")
        server.until(lambda s: not s["queue.envelope"])
        with (
            smtplib.SMTP("127.0.0.1", server.ports["smtp"], local_hostname="c.test") as smtp,
            pytest.raises(smtplib.SMTPRecipientsRefused),
        ):
            smtp.sendmail("me@else.test", ["friend@remote.test"], "Subject: x\r\n\r\nx\r\n")
        tree = str(server.ask("expand", "info@home.test"))
        server.until_logged_some("user bob, .forward -> bob, friend@remote.test")
        # Two of the recipients lead there: one RCPT if they go together, which depends on when.
        forwarded = [rcpt for captured in host.taken for rcpt in captured.rcpts]
        assert {"friend@remote.test"} == set(forwarded)
        assert len(forwarded) <= 2
    boxes = {
        user: len(list(mailbox.Maildir(tmp_path / "home" / user / "Maildir", create=False)))
        for user in ("alice", "bob")
    }
    assert {"alice": 2, "bob": 2} == boxes
    assert "delivered to alice by maildir" in tree
    assert "friend@remote.test" in tree


def missing() -> str:
    """Return what the commands of the page need and is not here."""
    if shutil.which("openssl") is None:
        return "needs openssl"
    if shutil.which("swaks") is None:
        return "needs swaks (Debian: swaks, libnet-ssleay-perl)"
    said = subprocess.run(["swaks", "--support"], capture_output=True, text=True, timeout=30)
    return "" if "TLS supported" in said.stdout else "needs TLS in swaks (libnet-ssleay-perl)"


@pytest.mark.skipif(bool(missing()), reason=missing() or "-")
def test_the_commands_of_the_page_work(tmp_path):
    """Typed one after the other, with the page's own certificate and password, each succeeds; the mail arrives."""
    page = blocks()
    port, submission = free_port(SINK), free_port()
    environment = programs(tmp_path / "bin")

    def adapted(text: str) -> str:
        for here, there in (
            ("2587", str(submission)),
            ("2526", str(port)),
            ("/srv/mail", str(tmp_path)),
            ("mtactl top", "mtactl top --once"),
        ):
            text = text.replace(here, there)
        return text

    def typed(script: str) -> str:
        done = subprocess.run(
            ["sh", "-e", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=40,
            check=False,
        )
        assert done.returncode == 0, (script, done.stdout, done.stderr)
        return done.stdout

    typed(page["sh"])
    for name in ("aliases", "virtual"):
        (tmp_path / name).write_text(page[name])
    (tmp_path / "home" / "bob" / ".forward").write_text(page["forward"])
    # The page leaves it at its default, which another test may have.
    other_port = '\n[smtp]\nlisten = "127.0.0.1:0"\n'
    (tmp_path / "mta.toml").write_text(adapted(page["toml"]) + other_port)

    lines = adapted(page["bash"]).splitlines()
    (serve,) = (line for line in lines if line.startswith("mta serve"))
    before, after = lines[: lines.index(serve)], lines[lines.index(serve) + 1 :]
    assert before
    for line in before:
        typed(line)
    with CapturingHost(SINK, port) as host:
        server = subprocess.Popen(
            ["sh", "-c", f"exec {serve}"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            eventually(lambda: (tmp_path / "var" / "control.sock").exists())
            said = [typed(line) for line in after]
            eventually(lambda: bool(host.taken))
            for user in ("alice", "bob"):
                new = tmp_path / "home" / user / "Maildir" / "new"
                eventually(lambda new=new: new.is_dir() and len(list(new.iterdir())) == 1)
        finally:
            server.terminate()
            _, errors = server.communicate(timeout=40)
    assert server.returncode == 0, errors
    assert [each.rcpts for each in host.taken] == [("friend@remote.test",)]
    assert "delivered to alice by maildir" in said[0]
    assert any("235 2.7.0" in each for each in said), "swaks did not log in"


def programs(directory: Path) -> dict[str, str]:
    """Write the programs that the page calls; return an environment that finds them."""
    directory.mkdir()
    for name, module in (("mta", "mta"), ("mtactl", "mta.ctl")):
        program = directory / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        program.chmod(0o755)
    path = f"{directory}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
