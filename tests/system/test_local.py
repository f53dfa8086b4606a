"""Local mail from end to end: RCPT through rules and tables into mailboxes, commands, and bounces."""

import contextlib
import mailbox
import smtplib
import stat
import time

import pytest

from testbed.maillog import read_log
from tests.support.capture import CapturingHost
from tests.support.server import RunningServer, free_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

HOST = "127.0.0.6"
TEXT = "From: me\r\nSubject: hello\r\n\r\nhello\r\n"


@pytest.fixture(params=["slim", "full", "packed", "whole", "fixed"])
def representation(request):
    return request.param


def config_of(tmp_path, port, **more):
    """Return a server for here.test with alice, bob and some aliases; everything else is relayed."""
    homes = {}
    for user in ("alice", "bob"):
        home = tmp_path / user
        home.mkdir(exist_ok=True)
        homes[user] = {"home": str(home)}
    return {
        "relay": {"port": port},
        "local": {"allow_root": True},
        "userbases": {"people": homes},
        "tables": {
            "aliases": {
                "kind": "static",
                "entries": {
                    "info": "alice, bob",
                    "program": f'"|/usr/bin/tee {tmp_path}/piped"',
                    "refuse": "\"|/bin/sh -c 'echo not today; exit 69'\"",
                    "archive": f"{tmp_path}/archive.mbox",
                    "away": f"someone@[{HOST}]",
                    "both": f"alice, someone@[{HOST}]",
                    "broken": "alice, nobody-of-this-name",
                    "full": "error:552 Mailbox is full",
                },
            }
        },
        "rules": [
            {
                "name": "here",
                "match_domains": ["here.test"],
                "action": "local",
                "aliases": "aliases",
                "userbase": "people",
            },
            {"name": "out", "match_domains": ["*"], "action": "relay"},
        ],
        **more,
    }


@pytest.fixture
def running(tmp_path, representation):
    port = free_port(HOST)
    config = {"envelope": representation, **config_of(tmp_path, port)}
    with CapturingHost(HOST, port) as host, RunningServer(tmp_path, config) as server:
        yield server, host


def send(server, *rcpts, sender="me@from.test"):
    with smtplib.SMTP("127.0.0.1", server.port, local_hostname="client.test") as smtp:
        assert {} == smtp.sendmail(sender, list(rcpts), TEXT)


def drained(server):
    return server.until(lambda s: not s["scheduler.envelope"] and not s["queue.envelope"])


def box(tmp_path, user):
    """Return what is in a user's Maildir."""
    return list(mailbox.Maildir(tmp_path / user / "Maildir", create=False))


def test_mail_to_an_alias_is_in_each_mailbox(running, tmp_path):
    """One RCPT becomes two envelopes; each message says where it was delivered to."""
    server, _ = running
    send(server, "info@here.test", "bob+lists@here.test")
    stats = drained(server)
    assert stats["scheduler.delivery.ok"] == 3
    (message,) = box(tmp_path, "alice")
    assert message["Delivered-To"] == "info@here.test"
    assert message["Return-Path"] == "<me@from.test>"
    assert message["Subject"] == "hello"
    assert len(box(tmp_path, "bob")) == 2
    assert stats["mda.envelope"] == stats["mda.user"] == 0
    server.until_logged("mda delivery evpid=", 3)
    log = server.log.read_text()
    assert "from=<me@from.test> to=<info@here.test> rcpt=<info@here.test> user=alice" in log
    assert "result=Ok stat=Delivered" in log
    told = read_log(log.splitlines(), year=time.localtime().tm_year)
    assert [] == told.unread
    attempts = [attempt for tries in told.attempts.values() for attempt in tries]
    assert sorted((a.to, a.user, a.result, a.status) for a in attempts) == [
        ("bob+lists@here.test", "bob", "Ok", "Delivered"),
        ("info@here.test", "alice", "Ok", "Delivered"),
        ("info@here.test", "bob", "Ok", "Delivered"),
    ]


def test_files_and_commands_of_aliases(running, tmp_path):
    """Each gets the message."""
    server, _ = running
    send(server, "program@here.test", "archive@here.test")
    drained(server)
    assert "Subject: hello" in (tmp_path / "piped").read_text()
    with contextlib.closing(mailbox.mbox(tmp_path / "archive.mbox", create=False)) as archive:
        (message,) = archive
    assert message["Subject"] == "hello"
    assert stat.S_IMODE((tmp_path / "archive.mbox").stat().st_mode) == 0o600


def test_an_alias_can_lead_elsewhere(running, tmp_path):
    """One envelope stays, the other is relayed to the address that the alias names."""
    server, host = running
    send(server, "both@here.test")
    drained(server)
    assert len(box(tmp_path, "alice")) == 1
    assert [(f"someone@[{HOST}]",)] == [captured.rcpts for captured in host.taken]


@pytest.mark.parametrize(
    ("rcpt", "code"),
    [
        ("nobody@here.test", 550),
        ("broken@here.test", 550),
        ("full@here.test", 552),
    ],
)
def test_a_recipient_that_cannot_be_is_refused_whole(running, tmp_path, rcpt, code):
    """All or nothing: of a list with one bad member nobody gets mail."""
    server, _ = running
    with (
        smtplib.SMTP("127.0.0.1", server.port, local_hostname="client.test") as smtp,
        pytest.raises(smtplib.SMTPRecipientsRefused) as caught,
    ):
        smtp.sendmail("me@from.test", [rcpt], TEXT)
    assert code == caught.value.recipients[rcpt][0]
    assert not (tmp_path / "alice" / "Maildir").exists()


def test_a_command_that_refuses_bounces_to_the_sender(running, tmp_path):
    """To one elsewhere over SMTP, to one of ours into the mailbox."""
    server, host = running
    send(server, "refuse@here.test", sender=f"me@[{HOST}]")
    send(server, "refuse@here.test", sender="bob@here.test")
    drained(server)
    (captured,) = host.taken
    assert ("", (f"me@[{HOST}]",)) == (captured.sender, captured.rcpts)
    assert b"not today" in captured.body
    (report,) = box(tmp_path, "bob")
    assert report["Return-Path"] == "<>"
    assert "not today" in report.as_string()


def test_a_report_to_nobody_ends(running):
    """A sender of ours that does not exist: nobody is left to be told."""
    server, host = running
    send(server, "refuse@here.test", sender="ghost@here.test")
    stats = drained(server)
    assert host.taken == []
    assert stats["error.internal"] == 0


def test_mail_that_waits_is_delivered_after_a_restart(tmp_path):
    """The queue keeps what a delivery needs: user, tag, address and rule."""
    port = free_port(HOST)
    config = config_of(tmp_path, port)
    with CapturingHost(HOST, port):
        with RunningServer(tmp_path, config) as server:
            server.ask("pause", "mda")
            send(server, "info@here.test", f"someone@[{HOST}]")
            server.until(lambda s: s["scheduler.delivery.ok"] == 1)
            assert server.ask("show", "status")[0]["mda"] == "paused"
        with RunningServer(tmp_path, config) as server:
            drained(server)
    assert [1, 1] == [len(box(tmp_path, user)) for user in ("alice", "bob")]


def test_the_operator_sees_how_an_address_expands(running):
    """`mtactl expand` shows a tree; no mail is sent."""
    server, _ = running
    lines = [row["line"] for row in server.ask("expand", "info@here.test")[:-1]]
    assert lines[0].startswith("info@here.test")
    assert any("alice" in line and "delivered" in line for line in lines)
    assert server.stats()["queue.envelope"] == 0


def test_a_server_without_rules_relays_everything(tmp_path):
    """As before there were any."""
    port = free_port(HOST)
    with CapturingHost(HOST, port) as host:
        with RunningServer(tmp_path, {"relay": {"port": port}}) as server:
            send(server, f"info@[{HOST}]")
            drained(server)
        assert [(f"info@[{HOST}]",)] == [captured.rcpts for captured in host.taken]


def test_success_of_an_alias_is_reported_once(running, tmp_path):
    """Two mailboxes, one address that the sender knows: ``delivered``, into the sender's own mailbox."""
    server, _ = running
    with smtplib.SMTP("127.0.0.1", server.port, local_hostname="client.test") as smtp:
        wishes = ["NOTIFY=SUCCESS", "ORCPT=rfc822;info@here.test"]
        assert {} == smtp.sendmail("bob@here.test", "info@here.test", TEXT, ["RET=FULL"], wishes)
    drained(server)
    (report,) = [message for message in box(tmp_path, "bob") if message.is_multipart()]
    assert report["Return-Path"] == "<>"
    _, status, _ = report.get_payload()
    _, fields = status.get_payload()
    assert ("delivered", "2.0.0") == (fields["Action"], fields["Status"])
    assert "rfc822; info@here.test" == fields["Final-Recipient"] == fields["Original-Recipient"]
