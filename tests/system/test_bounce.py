"""Who is told of a failure, how often, and in which form."""

import email
import email.policy
import smtplib
from email.message import EmailMessage

import pytest

from tests.support.capture import CapturingHost
from tests.support.server import RunningServer, free_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

HOST = "127.0.0.5"
TEXT = "From: me\r\nSubject: =?utf-8?q?h=C3=A9?=\r\nMessage-ID: <1@me.test>\r\n\r\nhello\r\n"


@pytest.fixture
def running(tmp_path):
    port = free_port(HOST)
    retry = {"policy": "exponential", "base_s": 1.0, "min_s": 0.5, "max_s": 1.0}
    config = {"relay": {"port": port}, "retry": retry, "limits": {"scheduler": {}}}
    with CapturingHost(HOST, port) as host, RunningServer(tmp_path, config) as server:
        yield server, host


def send(server: RunningServer, sender: str, *rcpts: str, options: tuple[str, ...] = ()) -> None:
    with smtplib.SMTP("127.0.0.1", server.port, local_hostname="client.test") as smtp:
        assert {} == smtp.sendmail(sender, [f"{r}@[{HOST}]" for r in rcpts], TEXT, options)


def drained(server: RunningServer) -> dict[str, float]:
    return server.until(lambda s: not s["scheduler.envelope"] and not s["queue.envelope"])


def parsed(body: bytes) -> EmailMessage:
    message = email.message_from_bytes(body, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert [] == [defect for part in message.walk() for defect in part.defects]
    return message


def test_failures_of_one_message_are_one_report(running):
    """RFC 3464 in RFC 6522, from <> to the sender; the recipients that took it are not in it."""
    server, host = running
    send(server, f"me@[{HOST}]", "no1", "yes", "no2", options=("ENVID=QQ314", "RET=HDRS"))
    stats = drained(server)

    assert 1 == stats["queue.bounce"] == stats["smtp.session.local"]
    assert 2 == stats["scheduler.delivery.permfail"]
    by_sender = {captured.sender: captured for captured in host.taken}
    assert 2 == len(host.taken) == len(by_sender)
    assert (f"yes@[{HOST}]",) == by_sender[f"me@[{HOST}]"].rcpts
    report = by_sender[""]
    assert (f"me@[{HOST}]",) == report.rcpts
    message = parsed(report.body)
    assert "multipart/report" == message.get_content_type()
    assert "delivery-status" == message.get_param("report-type")
    assert "auto-replied" == message["Auto-Submitted"]
    text, status, original = message.iter_parts()
    assert "text/plain" == text.get_content_type()
    for name in ("no1", "no2"):
        assert f"<{name}@[{HOST}]>" in text.get_content()
    assert "yes@" not in report.body.decode()
    per_message, *per_recipient = status.get_payload()
    assert "dns; mx.system.test" == per_message["Reporting-MTA"]
    assert "QQ314" == per_message["Original-Envelope-Id"]
    assert [f"rfc822; no1@[{HOST}]", f"rfc822; no2@[{HOST}]"] == [
        fields["Final-Recipient"] for fields in per_recipient
    ]
    for fields in per_recipient:
        assert ("failed", "5.1.1") == (fields["Action"], fields["Status"])
        assert "smtp; 550 5.1.1 no such user" == fields["Diagnostic-Code"]
    assert "text/rfc822-headers" == original.get_content_type()
    assert "Message-ID: <1@me.test>" in original.as_string()
    assert "hello" not in original.as_string()


def test_nobody_is_told_of_the_failure_of_a_report(running):
    """Neither for <>, nor when the sender of failed mail does not exist: one report, then silence."""
    server, host = running
    send(server, "", "no1")
    send(server, f"no-me@[{HOST}]", "no2")
    stats = drained(server)

    assert [] == host.taken
    assert 1 == stats["queue.bounce"]
    assert 3 == stats["scheduler.delivery.permfail"]
    server.until_logged("not bounced: no return path", 2)


def test_a_report_survives_a_kill(running):
    """The server is killed right after the failure: exactly one of report and envelope is there."""
    server, host = running
    for n in range(10):
        send(server, f"me{n}@[{HOST}]", f"no{n}")
    server.kill()
    server.start()
    drained(server)

    told = sorted(rcpt for captured in host.taken for rcpt in captured.rcpts)
    assert sorted(f"me{n}@[{HOST}]" for n in range(10)) == sorted(set(told))
    assert all(captured.sender == "" for captured in host.taken)


def test_expiry_is_reported_with_the_last_failure(tmp_path):
    """A recipient that was never taken: its sender hears of it, with the code of the last reply."""
    port = free_port(HOST)
    config = {
        "relay": {"port": port},
        "retry": {"policy": "exponential", "base_s": 1.0, "min_s": 0.5, "max_s": 1.0},
        "limits": {"scheduler": {"envelope_ttl_s": 2.0, "bounce_ttl_s": 60.0}},
    }
    with CapturingHost(HOST, port) as host, RunningServer(tmp_path, config) as server:
        send(server, f"me@[{HOST}]", "later")
        drained(server)
        (report,) = host.taken
        assert (f"me@[{HOST}]",) == report.rcpts
        _, status, _ = parsed(report.body).iter_parts()
        assert "4.2.1" == status.get_payload()[1]["Status"]
        assert "relay: Expire for " in server.log.read_text()
        assert "stat=Envelope expired" in server.log.read_text()


def test_success_is_reported_when_asked_for(running):
    """NOTIFY=SUCCESS to a host without DSN: one ``relayed`` for both recipients; none without it."""
    server, host = running
    with smtplib.SMTP("127.0.0.1", server.port, local_hostname="client.test") as smtp:
        smtp.ehlo()
        assert smtp.has_extn("dsn")
        rcpts = [f"{name}@[{HOST}]" for name in ("one", "two")]
        wishes = ["NOTIFY=SUCCESS,FAILURE", f"ORCPT=rfc822;me+2Balias@[{HOST}]"]
        assert {} == smtp.sendmail(f"me@[{HOST}]", rcpts, TEXT, ["ENVID=QQ1"], wishes)
        assert {} == smtp.sendmail(f"me@[{HOST}]", rcpts, TEXT)
    drained(server)
    (report,) = [captured for captured in host.taken if not captured.sender]
    _, status, original = parsed(report.body).iter_parts()
    per_message, *per_recipient = status.get_payload()
    assert "QQ1" == per_message["Original-Envelope-Id"]
    assert rcpts == [str(fields["Final-Recipient"]).partition("; ")[2] for fields in per_recipient]
    for fields in per_recipient:
        assert ("relayed", "2.0.0") == (fields["Action"], fields["Status"])
        assert f"rfc822; me+alias@[{HOST}]" == fields["Original-Recipient"]
    assert "text/rfc822-headers" == original.get_content_type()


def test_a_late_message_is_reported_as_late(tmp_path):
    """Once for each interval, then the failure."""
    port = free_port(HOST)
    config = {
        "relay": {"port": port},
        "retry": {"policy": "exponential", "base_s": 0.5, "min_s": 0.2, "max_s": 0.5},
        "bounce": {"warn_interval_s": [0.5, 1.0]},
        "limits": {"scheduler": {"envelope_ttl_s": 2.5, "bounce_ttl_s": 60.0}},
    }
    with CapturingHost(HOST, port) as host, RunningServer(tmp_path, config) as server:
        send(server, f"me@[{HOST}]", "later", options=("RET=FULL",))
        drained(server)
        assert ["delayed", "delayed", "failed"] == [
            list(parsed(captured.body).iter_parts())[1].get_payload()[1]["Action"]
            for captured in host.taken
        ]
        types = [
            list(parsed(captured.body).iter_parts())[2].get_content_type()
            for captured in host.taken
        ]
        assert ["text/rfc822-headers", "text/rfc822-headers", "message/rfc822"] == types
