"""What docs/first-server.md says works as it says."""

import mailbox
import re
import shutil
import smtplib
import ssl
import subprocess
import tomllib

import pytest

from mta.passwords import encrypt
from tests.support.capture import CapturingHost
from tests.support.server import ROOT, RunningServer, free_port
from tests.support.tls import authority, write_pair

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
        # Two of the recipients lead there; whether as one transaction depends on when.
        forwarded = [rcpt for captured in host.taken for rcpt in captured.rcpts]
        assert ["friend@remote.test"] * 2 == forwarded
    boxes = {
        user: len(list(mailbox.Maildir(tmp_path / "home" / user / "Maildir", create=False)))
        for user in ("alice", "bob")
    }
    assert {"alice": 2, "bob": 2} == boxes
    assert "delivered to alice by maildir" in tree
    assert "friend@remote.test" in tree


def test_the_shell_of_the_page_is_one(tmp_path):
    """Whatever the page tells to type can be parsed."""
    shell = shutil.which("sh")
    assert shell is not None
    subprocess.run([shell, "-n", "-c", blocks()["sh"]], check=True, cwd=tmp_path)
