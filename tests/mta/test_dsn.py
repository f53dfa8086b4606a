"""The report: parsed back by somebody else's parser, it says what was meant and nothing more."""

import email
import email.policy
import re
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.envelopes.base import Recipient, Transaction
from mta.core.ids import MsgId
from mta.core.instructions import BounceKind
from mta.dsn import FULL_MAX, HEADERS_MAX, LISTED_MAX, compose

MESSAGE = b"From: joe@example.com\r\nTo: bob@example.org\r\nSubject: hi\r\n\r\nHello.\r\n"
BOB = Recipient("bob@example.org", "example.org")


def report(
    *failures: tuple[Recipient, str],
    kind: BounceKind = BounceKind.FAILED,
    message: bytes = MESSAGE,
    hostname: str = "mx.example.net",
    **transaction: Any,
) -> bytes:
    return compose(
        kind,
        Transaction("joe@example.com", len(message))._replace(**transaction),
        failures or ((BOB, "550 5.1.1 no such user"),),
        hostname=hostname,
        message=message,
        now=1764000000.75,
        msgid=MsgId(0x1234),
    )


def parts(data: bytes) -> tuple[EmailMessage, list[EmailMessage]]:
    """Parse a report strictly, and return it and its three parts."""
    parsed = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(parsed, EmailMessage)
    for part in parsed.walk():
        assert part.defects == [], part
    found = list(parsed.iter_parts())
    assert len(found) == 3
    return parsed, found


def fields(data: bytes) -> list[dict[str, str]]:
    """Return the blocks of the delivery report."""
    blocks = parts(data)[1][1].get_payload()
    # No unfolding by a header parser: what a reply says is text and no address.
    return [
        {name: " ".join(str(value).split()) for name, value in block.raw_items()}
        for block in blocks
    ]


def test_a_report_says_what_it_is() -> None:
    """The header: to the sender, from nobody who answers, and never to be answered by a program."""
    parsed, _ = parts(report())
    assert {
        "From": "Mail Delivery System <MAILER-DAEMON@mx.example.net>",
        "To": "joe@example.com",
        "Subject": "Delivery status notification: failed",
        "Date": "Mon, 24 Nov 2025 16:00:00 +0000",
        "Message-ID": "<00001234.1764000000@mx.example.net>",
        "Auto-Submitted": "auto-replied",
        "MIME-Version": "1.0",
    } == {name: value for name, value in parsed.items() if name != "Content-Type"}
    assert parsed.get_content_type() == "multipart/report"
    assert parsed["Content-Type"].params["report-type"] == "delivery-status"


def test_the_three_parts_are_in_order() -> None:
    """For people, for machines, and what the message was."""
    _, (text, table, returned) = parts(report())
    assert "<bob@example.org>: 550 5.1.1 no such user" in text.get_content()
    assert table.get_content_type() == "message/delivery-status"
    assert returned.get_content_type() == "text/rfc822-headers"
    assert returned.get_content().encode() == MESSAGE.partition(b"\r\n\r\n")[0] + b"\r\n"


def test_every_recipient_has_its_block() -> None:
    """RFC 3464 2.3: the address, what became of it, its code, and what the other host said."""
    data = report(
        (BOB._replace(orcpt="rfc822;Bob+2BX@example.org"), "550 5.1.1 no such user"),
        (Recipient("eve@example.org", "example.org"), "554 refused"),
        (Recipient("pøst+x@example.org", "example.org"), "553 5.6.7 no SMTPUTF8"),
        (Recipient("ann@example.org", "example.org"), "Connection refused"),
        envid="QQ+2B314159",
    )
    assert [
        {"Original-Envelope-Id": "QQ+314159", "Reporting-MTA": "dns; mx.example.net"},
        {
            "Original-Recipient": "rfc822; Bob+X@example.org",
            "Final-Recipient": "rfc822; bob@example.org",
            "Action": "failed",
            "Status": "5.1.1",
            "Diagnostic-Code": "smtp; 550 5.1.1 no such user",
        },
        {
            "Final-Recipient": "rfc822; eve@example.org",
            "Action": "failed",
            "Status": "5.0.0",
            "Diagnostic-Code": "smtp; 554 refused",
        },
        {
            "Final-Recipient": r"utf-8; p\x{F8}st\x{2B}x@example.org",
            "Action": "failed",
            "Status": "5.6.7",
            "Diagnostic-Code": "smtp; 553 5.6.7 no SMTPUTF8",
        },
        {
            "Final-Recipient": "rfc822; ann@example.org",
            "Action": "failed",
            "Status": "5.0.0",
            "Diagnostic-Code": "X-mta-testbed; Connection refused",
        },
    ] == fields(data)


def test_an_expired_message_is_reported_as_such() -> None:
    """The last temporary failure is why; the text says for how long we tried."""
    data = report((BOB, "451 4.4.1 host down"), kind=BounceKind.EXPIRED)
    parsed, (text, _, _) = parts(data)
    assert parsed["Subject"] == "Delivery status notification: expired"
    assert "for too long" in text.get_content()
    assert fields(data)[1]["Status"] == "4.4.1"


@pytest.mark.parametrize("orcpt", ["", "rfc822", ";x@y", "bad type;x@y", "rfc822;", "é;x"])
def test_an_original_recipient_that_makes_no_sense_is_left_out(orcpt: str) -> None:
    """Better nothing than a field that misleads."""
    assert "Original-Recipient" not in fields(report((BOB._replace(orcpt=orcpt), "550")))[1]


def test_ret_full_returns_the_message() -> None:
    """Whole and to the byte, where the sender asked."""
    data = report(ret="FULL")
    _, (_, _, returned) = parts(data)
    assert returned.get_content_type() == "message/rfc822"
    assert MESSAGE in data


@pytest.mark.parametrize(
    "message",
    [
        MESSAGE + b"x" * FULL_MAX,
        MESSAGE + b"8-bit: \xc3\xa9\r\n",
        b"Subject: \xc3\xa9\r\n\r\nbody\r\n",
        b"",
    ],
    ids=["large", "8-bit body", "8-bit header", "unreadable"],
)
def test_what_can_not_be_returned_whole_is_returned_as_its_header(message: bytes) -> None:
    """Too large, or not 7-bit, which message/rfc822 could not be encoded for."""
    data = report(ret="FULL", message=message)
    _, (_, _, returned) = parts(data)
    assert returned.get_content_type() == "text/rfc822-headers"
    header = message.partition(b"\r\n\r\n")[0].decode()
    assert returned.get_content().strip() == header
    assert data.isascii()


@pytest.mark.parametrize(
    "message",
    [
        b"".join(b"X-%d: %s\r\n" % (n, b"y" * 60) for n in range(1000)) + b"\r\nbody\r\n",
        b"X: " + b"y" * 100_000,
    ],
    ids=["many fields", "one line"],
)
def test_a_long_header_is_cut(message: bytes) -> None:
    """At the last line end that fits, if there is one."""
    data = report(message=message)
    assert HEADERS_MAX - 100 < len(data) - len(report(message=b"")) <= HEADERS_MAX
    assert message.startswith(parts(data)[1][2].get_payload().encode()[:-2])


def test_a_thousand_failures_are_bounded() -> None:
    """All in the table, some in the text; no reply is longer than a line may be."""
    failures = [
        (Recipient(f"user{n}@example.org", "example.org"), "550 5.1.1 " + "no " * 2000)
        for n in range(1000)
    ]
    data = report(*failures)
    assert len(fields(data)) == 1001
    assert len(data) < 1_000_000
    text = parts(data)[1][0].get_content()
    assert text.count("@example.org") == LISTED_MAX
    assert "and 950 more" in text


def test_a_sender_that_is_not_ascii_is_named_in_a_group() -> None:
    """7 bits can't hold the address: the envelope has it, and the header is for people."""
    sender = "jöhannes-mit-einem-langen-namen@bücher.example"
    parsed, _ = parts(report(sender=sender))
    assert parsed["To"].addresses == ()
    assert parsed["To"].groups[0].display_name.replace(" ", "") == sender


def test_a_boundary_in_the_message_is_not_one_in_the_report() -> None:
    """Whoever guesses the boundary can't end a part with it."""
    boundary = re.search(rb'boundary="([^"]+)"', report())
    assert boundary is not None
    guess = boundary[1]
    message = b"X: --" + guess + b"--\r\nY: " + guess + b"\r\n\r\n"
    data = report(message=message)
    _, found = parts(data)
    assert len(found) == 3
    again = re.search(rb'boundary="([^"]+)"', data)
    assert again is not None
    assert again[1] not in message


def test_the_same_arguments_give_the_same_bytes() -> None:
    """No clock and no dice."""
    assert report() == report()


def test_nobody_is_told_of_a_bounce() -> None:
    """A report for the null sender is our own mistake (RFC 5321 4.5.5)."""
    with pytest.raises(AssertionError):
        report(sender="")


HOSTILE = [
    "550 x\r\nBcc: victim@example.com",
    "550 x\n\nbody",
    "550 \x1b[31m \x00 \x7f \x85 \u2028 x",
    "550 " + "x" * 10_000,
    "550 =?utf-8?q?=0d=0aBcc=3a_x?=",
    "550 \ud800",
    " \t ",
    "",
    "550 --=_00001234.1764000000.0--",
    "Final-Recipient: rfc822; evil@example.com",
]
TEXT = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=300),
    st.text(alphabet="\r\n :;=<>@+\\\t-a0", max_size=200),
)


@given(
    status=TEXT,
    address=TEXT,
    orcpt=TEXT.map(lambda text: f"rfc822;{text}"),
    envid=TEXT,
    sender=TEXT.filter(bool),
    hostname=TEXT,
    ret=st.sampled_from(["", "FULL", "HDRS"]),
    kind=st.sampled_from(BounceKind),
)
def test_nothing_that_a_host_says_adds_anything(
    status: str,
    address: str,
    orcpt: str,
    envid: str,
    sender: str,
    hostname: str,
    ret: str,
    kind: BounceKind,
) -> None:
    """Whatever the strings are: 7-bit, CRLF, short lines, the same fields, one recipient, three parts."""
    data = report(
        (BOB._replace(address=address, orcpt=orcpt), status),
        kind=kind,
        sender=sender,
        envid=envid,
        hostname=hostname,
        ret=ret,
    )
    assert data.isascii()
    assert b"\r" not in data.replace(b"\r\n", b"")
    assert b"\n" not in data.replace(b"\r\n", b"")
    assert all(byte in b"\r\n\t" or 32 <= byte < 127 for byte in data)
    assert max(map(len, data.split(b"\r\n"))) <= 998
    # The plainest parser: a header parser of the library repairs what it reads.
    header = data.partition(b"\r\n\r\n")[0]
    names = [
        line.partition(b":")[0].decode() for line in header.split(b"\r\n") if line[:1] not in b" \t"
    ]
    assert names == [
        "From",
        "To",
        "Subject",
        "Date",
        "Message-ID",
        "Auto-Submitted",
        "MIME-Version",
        "Content-Type",
    ]
    assert data.count(b"\r\n--=_") == 4
    table = data.split(b"Content-Description: Delivery report\r\n\r\n")[1].partition(b"\r\n--=_")[0]
    blocks = [
        [
            line.partition(b":")[0]
            for line in block.split(b"\r\n")
            if line and line[:1] not in b" \t"
        ]
        for block in table.split(b"\r\n\r\n")
        if block.strip()
    ]
    assert len(blocks) == 2
    assert set(blocks[0]) <= {b"Original-Envelope-Id", b"Reporting-MTA"}
    assert blocks[1][-2:] == [b"Status", b"Diagnostic-Code"] or blocks[1][-1] == b"Status"
    assert set(blocks[1]) <= {
        b"Original-Recipient",
        b"Final-Recipient",
        b"Action",
        b"Status",
        b"Diagnostic-Code",
    }


@pytest.mark.parametrize(
    ("kind", "line", "fields_wanted"),
    [
        (BounceKind.DELIVERED, "Delivered", ("delivered", "2.0.0")),
        (BounceKind.RELAYED, "250 2.1.5 Ok", ("relayed", "2.1.5")),
        (BounceKind.DELAYED, "451 4.7.1 greylisted", ("delayed", "4.7.1")),
        (BounceKind.EXPIRED, "451 4.7.1 greylisted", ("failed", "4.7.1")),
    ],
)
def test_what_is_no_failure_has_its_own_words(kind, line, fields_wanted) -> None:
    """RFC 3464 2.3.3 and 2.3.9; only failures return a message (RFC 3461 4.3)."""
    data = compose(
        kind,
        Transaction("joe@example.com", len(MESSAGE), ret="FULL"),
        ((BOB, line),),
        hostname="mx.example.net",
        message=MESSAGE,
        now=1764000000.0,
        msgid=MsgId(1),
        arrived_at=1763990000.0,
        until=1764100000.0,
    )
    per_message, found = fields(data)
    assert "Mon, 24 Nov 2025 13:13:20 +0000" == per_message["Arrival-Date"]
    assert fields_wanted == (found["Action"], found["Status"])
    late = "Tue, 25 Nov 2025 19:46:40 +0000" if kind is BounceKind.DELAYED else None
    assert late == found.get("Will-Retry-Until")
    assert (b"Hello." in data) == kind.is_failure
