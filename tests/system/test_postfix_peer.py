"""Postfix (Debian) as a peer: it relays to our server and takes mail from it, each with Maildirs of its own.

Both are real processes with TLS, and each says in its own log what it saw of the other.
"""

import email
import email.policy
import os
import smtplib
import tempfile
from collections.abc import Iterator, Sequence
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.support.postfix import RunningPostfix, missing
from tests.support.server import RunningServer, free_port
from tests.support.tls import write_pair

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(120),
    pytest.mark.skipif(bool(missing()), reason=f"needs Debian's postfix: {missing()}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="Postfix must be started by root"),
]

SIZE_MAX = 2_000_000
"""Bytes of a message that either of the two takes."""

SETTINGS = """\
smtp_tls_security_level = may
smtp_tls_loglevel = 1
smtpd_tls_chain_files = {pem}
smtpd_tls_security_level = may
smtpd_tls_loglevel = 1
message_size_limit = {size}
virtual_mailbox_limit = 0
transport_maps = inline:{{ {{ here.test = smtp:[127.0.0.1]:{ours} }} }}
virtual_mailbox_domains = there.test
virtual_mailbox_base = {boxes}
virtual_mailbox_maps = inline:{{ carol@there.test=carol/, dave@there.test=dave/, later@there.test=later/ }}
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
smtpd_recipient_restrictions = check_recipient_access texthash:{access}, permit
smtpd_error_sleep_time = 0
# What it has deferred is tried again within the test.
minimal_backoff_time = 1s
maximal_backoff_time = 1s
queue_run_delay = 1s
"""

BODIES = {
    "plain": b"hello\r\n",
    "empty": b"",
    "dots": b".\r\n..\r\n.leading\r\n...\r\nin . the middle.\r\n. \r\n",
    "utf-8": "Grüße, 世界 ✓\r\n".encode(),
    "latin-1": b"caf\xe9 \x80\xff\r\n",
    "long-lines": b"x" * 998 + b"\r\n" + b"y" * 998 + b"\r\n",
    "trailing": b"tabs\t\r\nblanks   \r\n\r\n\r\n",
    "from-lines": b"From me to you\r\n>From quoted\r\n",
    "large": (b"0123456789abcde." * 4 + b"\r\n") * (2**20 // 66 + 1),
}


class Pair:
    """Ours, which keeps mail for here.test, and Postfix, which keeps it for there.test."""

    def __init__(self, directory: Path, ours: RunningServer, postfix: RunningPostfix) -> None:
        self.directory = directory
        self.ours = ours
        self.postfix = postfix
        self._seen: set[str] = set()

    def send(
        self,
        port: int,
        sender: str,
        rcpts: Sequence[str],
        body: bytes = b"hello\r\n",
        *,
        mark: str,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
    ) -> None:
        """Give a message to one of them as a client; ``mark`` is how it is found again."""
        with smtplib.SMTP("127.0.0.1", port, local_hostname="client.test", timeout=30) as smtp:
            refused = smtp.sendmail(
                sender, list(rcpts), text(sender, mark, body), mail_options, rcpt_options
            )
        assert refused == {}

    def to_postfix(self, *args: object, **options: object) -> None:
        self.send(self.postfix.port, *args, **options)  # type: ignore[arg-type]

    def to_ours(self, *args: object, **options: object) -> None:
        self.send(self.ours.port, *args, **options)  # type: ignore[arg-type]

    def box(self, name: str) -> Path:
        side = {"alice": "here/alice/Maildir", "bob": "here/bob/Maildir"}
        return self.directory / side.get(name, f"there/{name}")

    def arrived(self, name: str, mark: str) -> list[bytes]:
        """Return the messages in a mailbox that contain a mark, with CRLF."""
        # Not by way of mailbox.Maildir: its folders may be in the making while we look.
        files = [path for part in ("new", "cur") for path in (self.box(name) / part).glob("*")]
        messages = [path.read_bytes() for path in files]
        return [each.replace(b"\n", b"\r\n") for each in messages if mark.encode() in each]

    def the_one(self, name: str, mark: str) -> bytes:
        """Wait for a message in a mailbox, and return it."""
        self.postfix.until(lambda: self.arrived(name, mark))
        (message,) = self.arrived(name, mark)
        return message

    def report(self, name: str, mark: str) -> tuple[EmailMessage, list[EmailMessage]]:
        """Wait for a report of delivery; return it and its groups of fields, the message's first."""
        raw = self.the_one(name, mark)
        message = email.message_from_bytes(raw, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        assert [] == [defect for part in message.walk() for defect in part.defects]
        assert message.get_content_type() == "multipart/report", raw
        assert message["Return-Path"] == "<>"
        status = list(message.iter_parts())[1]
        assert status.get_content_type() == "message/delivery-status"
        return message, list(status.get_payload())  # type: ignore[arg-type]


def text(sender: str, mark: str, body: bytes) -> bytes:
    """Return a message that nobody has a reason to add header fields to but those of a trace."""
    head = (
        f"Message-ID: <{mark}@client.test>\r\nFrom: <{sender or 'mailer@client.test'}>\r\n"
        f"To: <list@client.test>\r\nDate: Mon, 06 Jul 2026 10:00:00 +0000\r\nSubject: {mark}\r\n"
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
        "Content-Transfer-Encoding: 8bit\r\n\r\n"
    )
    return head.encode() + body


def after_trace(message: bytes) -> bytes:
    """Return a message without the fields that servers put before it."""
    return message[message.index(b"Message-ID: ") :]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    # Not below pytest's directory: other runs close its parent, and Postfix's processes are not root.
    with tempfile.TemporaryDirectory(prefix="postfix-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        there = directory / "there"
        there.mkdir()
        os.chown(there, 65534, 65534)
        homes = {}
        for user in ("alice", "bob"):
            (directory / "here" / user).mkdir(parents=True)
            homes[user] = {"home": str(directory / "here" / user)}
        access = directory / "access"
        access.write_text("later@there.test 450 4.2.0 Not now\n")
        aliases = directory / "aliases"
        aliases.write_text('busy: "error:451 4.3.0 Come back"\n')
        tls = write_pair(directory)
        pem = directory / "postfix.pem"
        pem.write_bytes(tls.key.read_bytes() + tls.certificate.read_bytes())
        port = free_port()
        config = {
            "hostname": "mx.here.test",
            "tls": tls.config,
            "relay": {"smart_host": "[127.0.0.1]", "port": port},
            "retry": {"policy": "exponential", "base_s": 1.0, "min_s": 0.5, "max_s": 1.0},
            "limits": {
                "smtp": {"max_message_size": SIZE_MAX},
                # A process of Postfix reads its files when it has ended its session.
                "mta": {"session_keepalive_s": 0.25},
            },
            "local": {"allow_root": True},
            "tables": {"aliases": {"kind": "file", "path": str(aliases)}},
            "userbases": {"people": homes},
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
        }
        with RunningServer(directory / "ours", config) as ours:
            settings = SETTINGS.format(
                pem=pem, size=SIZE_MAX, ours=ours.port, boxes=there, access=access
            )
            with RunningPostfix(directory / "postfix", port=port, settings=settings) as postfix:
                yield Pair(directory, ours, postfix)
            assert ours.stop() == 0
            assert ours.errors == ""


@pytest.mark.parametrize("body", BODIES)
def test_what_postfix_relays_is_in_our_maildirs_intact(pair: Pair, body: str) -> None:
    """Two recipients, one transaction, not an octet more or less."""
    mark = f"in-{body}"
    pair.to_postfix(
        "carol@there.test",
        ["alice@here.test", "bob@here.test"],
        BODIES[body],
        mark=mark,
        mail_options=["BODY=8BITMIME"],
    )
    for name in ("alice", "bob"):
        message = pair.the_one(name, mark)
        assert after_trace(message) == text("carol@there.test", mark, BODIES[body])
        assert message.startswith(b"Return-Path: <carol@there.test>\r\n")
        assert b"by mx.here.test" in message
        assert b"by mx.postfix.test" in message


@pytest.mark.parametrize("body", BODIES)
def test_what_we_relay_is_in_the_maildirs_of_postfix_intact(pair: Pair, body: str) -> None:
    """As the other way round."""
    mark = f"out-{body}"
    pair.to_ours(
        "alice@here.test",
        ["carol@there.test", "dave@there.test"],
        BODIES[body],
        mark=mark,
        mail_options=["BODY=8BITMIME"],
    )
    for name in ("carol", "dave"):
        message = pair.the_one(name, mark)
        assert after_trace(message) == text("alice@here.test", mark, BODIES[body])
        assert b"Return-Path: <alice@here.test>\r\n" in message
        assert b"by mx.here.test" in message


def test_each_encrypts_to_the_other(pair: Pair) -> None:
    """STARTTLS is offered by both, so both use it; each says so of itself and of the other."""
    pair.to_postfix("carol@there.test", ["alice@here.test"], mark="tls-in")
    received = pair.the_one("alice", "tls-in")
    pair.to_ours("alice@here.test", ["carol@there.test"], mark="tls-out")
    pair.the_one("carol", "tls-out")
    seen = pair.postfix.log.read_text()
    assert "TLS connection established to 127.0.0.1" in seen
    assert "TLS connection established from" in seen
    assert b"with ESMTPS" in received.partition(b"by mx.here.test")[2][:200]
    pair.ours.until_logged_some("mta tls ciphers=TLSv1.3:")
    pair.ours.until_logged_some("smtp tls ciphers=TLSv1.3:")


def test_many_recipients_are_one_transaction(pair: Pair) -> None:
    """Forty recipients are pipelined, and the two mailboxes get what is theirs."""
    rcpts = [f"{'alice' if i % 2 else 'bob'}+{i}@here.test" for i in range(40)]
    pair.to_postfix("carol@there.test", rcpts, mark="crowd")
    for name in ("alice", "bob"):
        pair.postfix.until(lambda name=name: len(pair.arrived(name, "crowd")) == 20)
    sent = [
        line
        for line in pair.postfix.log.read_text().splitlines()
        if "+1@here.test" in line or "+39@here.test" in line
    ]
    assert len(sent) == 2
    queue_ids = {line.rpartition("(250 2.0.0 ")[2].split()[0] for line in sent}
    assert len(queue_ids) == 1, "one message of ours"


def test_postfix_bounces_what_we_refuse(pair: Pair) -> None:
    """Our 550 at RCPT is a report for Postfix's user; the recipient beside it gets the mail."""
    pair.to_postfix("carol@there.test", ["ghost@here.test", "alice@here.test"], mark="refused-in")
    pair.the_one("alice", "refused-in")
    _, (_, failed) = pair.report("carol", "refused-in")
    assert failed["Final-Recipient"] == "rfc822; ghost@here.test"
    assert failed["Action"] == "failed"
    assert failed["Status"].startswith("5.1.1")
    assert failed["Remote-MTA"] == "dns; 127.0.0.1"
    assert failed["Diagnostic-Code"].startswith("smtp; 550 5.1.1")


def test_we_bounce_what_postfix_refuses(pair: Pair) -> None:
    """The other way round: its words are in our report."""
    pair.to_ours("alice@here.test", ["ghost@there.test", "carol@there.test"], mark="refused-out")
    pair.the_one("carol", "refused-out")
    message, (of_message, failed) = pair.report("alice", "refused-out")
    assert of_message["Reporting-MTA"] == "dns; mx.here.test"
    assert failed["Final-Recipient"] == "rfc822; ghost@there.test"
    assert (failed["Action"], failed["Status"]) == ("failed", "5.1.1")
    assert failed["Diagnostic-Code"].startswith("smtp; 550 5.1.1 <ghost@there.test>:")
    assert "User unknown in virtual mailbox table" in message.as_string()


def test_what_we_defer_postfix_keeps_and_delivers_later(pair: Pair) -> None:
    """A 451 of ours: deferred in its queue with our words; once we take it, it is there, once."""
    pair.to_postfix("carol@there.test", ["busy@here.test"], mark="deferred-in")
    pair.postfix.until(lambda: "Come back" in str(pair.postfix.queue()))
    (waiting,) = pair.postfix.queue()
    (recipient,) = waiting["recipients"]
    assert recipient["address"] == "busy@here.test"
    assert "said: 451 4.3.0" in recipient["delay_reason"]
    (pair.directory / "aliases").write_text("busy: bob\n")
    pair.ours.ask("update", "table", "aliases")
    pair.postfix.flush()
    pair.the_one("bob", "deferred-in")
    pair.postfix.until(lambda: pair.postfix.queue() == [])


def test_what_postfix_defers_we_keep_and_deliver_later(pair: Pair) -> None:
    """A 450 of its: a temporary failure, an envelope in our queue, and in the end the mail, once."""
    before = pair.ours.stats()["scheduler.delivery.tempfail"]
    pair.to_ours("alice@here.test", ["later@there.test"], mark="deferred-out")
    pair.ours.until(lambda s: s["scheduler.delivery.tempfail"] >= before + 2)
    (row,) = pair.ours.ask("show", "queue")
    assert row["rcpt"] == "later@there.test"
    assert "450 4.2.0 <later@there.test>: Recipient address rejected: Not now" in str(row)
    (pair.directory / "access").write_text("")
    pair.postfix.reload()
    pair.the_one("later", "deferred-out")
    pair.ours.until(lambda s: not s["scheduler.envelope"] and not s["queue.envelope"])


@pytest.mark.parametrize(
    ("first", "sender", "rcpt"),
    [("postfix", "carol", "alice"), ("ours", "alice", "carol")],
    ids=["through-postfix", "through-ours"],
)
def test_success_is_reported_by_whoever_delivers(
    pair: Pair, first: str, sender: str, rcpt: str
) -> None:
    """NOTIFY, ORCPT and ENVID survive the hop: the last server reports, and the first does not as well."""
    side = {"alice": "here.test", "bob": "here.test", "carol": "there.test", "dave": "there.test"}
    mark = f"dsn-{first}"
    send = pair.to_postfix if first == "postfix" else pair.to_ours
    send(
        f"{sender}@{side[sender]}",
        [f"{rcpt}@{side[rcpt]}"],
        mark=mark,
        mail_options=["RET=HDRS", f"ENVID={mark}"],
        rcpt_options=["NOTIFY=SUCCESS", f"ORCPT=rfc822;first@{first}.test"],
    )
    assert after_trace(pair.the_one(rcpt, mark)).endswith(b"hello\r\n")
    message, (of_message, delivered) = pair.report(sender, mark)
    assert of_message["Original-Envelope-Id"] == mark
    assert delivered["Original-Recipient"].replace(" ", "") == f"rfc822;first@{first}.test"
    assert delivered["Action"] == "delivered"
    assert delivered["Status"].startswith("2.")
    reporter = "mx.here.test" if first == "postfix" else "mx.postfix.test"
    assert of_message["Reporting-MTA"].replace(" ", "") == f"dns;{reporter}"
    assert "hello" not in list(message.iter_parts())[2].as_string()


def test_a_message_that_the_next_host_finds_too_large_bounces(pair: Pair) -> None:
    """Postfix takes more than we do for a moment, and SIZE tells it before a byte of it is sent."""
    config = pair.postfix.etc / "main.cf"
    whole = config.read_text()
    config.write_text(whole + f"message_size_limit = {SIZE_MAX * 2}\n")
    pair.postfix.reload()
    try:
        body = b"z" * 76 + b"\r\n"
        pair.to_postfix(
            "carol@there.test", ["bob@here.test"], body * (SIZE_MAX // 78 + 100), mark="large-in"
        )
        _, (_, failed) = pair.report("carol", "large-in")
    finally:
        config.write_text(whole)
        pair.postfix.reload()
    assert failed["Status"] == "5.3.4"
    said = " ".join(failed["Diagnostic-Code"].split())
    assert f"exceeds size limit {SIZE_MAX} of server" in said


def test_nothing_is_left_and_nobody_complained(pair: Pair) -> None:
    """After all of this: empty queues, no protocol errors in either log."""
    pair.ours.until(lambda s: not s["scheduler.envelope"] and not s["queue.envelope"])
    pair.postfix.until(lambda: pair.postfix.queue() == [])
    seen = pair.postfix.log.read_text()
    for word in ("improper command pipelining", "non-SMTP command", "fatal:", "panic:", "bare"):
        assert word not in seen, [line for line in seen.splitlines() if word in line]
    assert pair.ours.stats()["error.internal"] == 0
