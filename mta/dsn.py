"""Compose a delivery status notification: what became of a message, or did not yet.

RFC 3464 in the envelope of RFC 6522: a text for people, a table for machines, and what the message was.
The rule it keeps: everything in it that came from outside (the other host's reply, addresses, ORCPT,
ENVID) is one line of printable ASCII before it gets near a header, so that nothing a host says can add
a field, a recipient or a part (CVE-2020-8794 was that), and the report is 7-bit whatever the message was.

Pure: the same arguments give the same bytes.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Final

from mta.core.bounce import status_of
from mta.core.envelopes.base import Recipient, Transaction
from mta.core.ids import MsgId, show_msgid
from mta.core.instructions import BounceKind

HEADERS_MAX: Final = 16 * 1024
"""Bytes of the message's header that go into a report by default: `BounceSettings.max_header`."""
FULL_MAX: Final = 50_000
"""Longest message that RET=FULL returns whole by default: `BounceSettings.max_size`."""
DIAGNOSTIC_MAX: Final = 512
"""Characters of a reply: one line of RFC 5321 4.5.3.1.5."""
ADDRESS_MAX: Final = 512
"""Characters of an address, each non-ASCII one counted as its escape; RFC 5321 4.5.3.1.3 has 256."""
LISTED_MAX: Final = 50
"""Recipients named in the text for people; the table names all."""

_LINE = 78
_SUBJECTS: Final = {
    BounceKind.FAILED: "failed",
    BounceKind.EXPIRED: "expired",
    BounceKind.DELAYED: "delayed",
    BounceKind.DELIVERED: "success",
    BounceKind.RELAYED: "relayed",
}
_ACTIONS: Final = {
    BounceKind.FAILED: "failed",
    BounceKind.EXPIRED: "failed",
    BounceKind.DELAYED: "delayed",
    BounceKind.DELIVERED: "delivered",
    BounceKind.RELAYED: "relayed",
}
"""RFC 3464 2.3.3."""
_REASONS: Final = {
    BounceKind.FAILED: "Your message could not be delivered to these recipients, and will not be tried again:",
    BounceKind.EXPIRED: (
        "Your message could not be delivered to these recipients for too long, and will not be tried\r\n"
        "again:"
    ),
    BounceKind.DELAYED: (
        "Your message could not be delivered to these recipients yet. It is still being tried, and you\r\n"
        "need not do anything:"
    ),
    BounceKind.DELIVERED: "Your message was delivered to these recipients:",
    BounceKind.RELAYED: (
        "Your message was handed to the mail system of these recipients, which does not tell whether it\r\n"
        "delivers it:"
    ),
}
_UNSAFE_IN_ADDRESS = re.compile(r"[^\x21-\x7e]|[\\+=]")
_HEX_PAIR = re.compile(r"\+([0-9A-F]{2})")
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,31}", re.ASCII)


def compose(
    kind: BounceKind,
    original: Transaction,
    failures: Sequence[tuple[Recipient, str]],
    *,
    hostname: str,
    message: bytes,
    now: float,
    msgid: MsgId,
    arrived_at: float | None = None,
    until: float | None = None,
    size_max: int = FULL_MAX,
    header_max: int = HEADERS_MAX,
) -> bytes:
    """Return the report, header and body with CRLF line ends, in 7-bit ASCII.

    Args:
        kind: what happened to all of the recipients.
        original: the transaction that the message came in; its sender gets the report.
        failures: recipients and the last reply of each.
        hostname: ours.
        message: header and body of the message, or empty if they can't be had.
        now: seconds since the epoch.
        msgid: the report's own.
        arrived_at: when the message came.
        until: how long delivery is tried.
        size_max: bytes of the longest message that is returned whole.
        header_max: bytes of its header that are returned.

    The message's header is returned, or all of it where RET=FULL asks so for a failure (RFC 3461 4.3), it
    is 7-bit and at most ``size_max`` bytes long: message/rfc822 may not be encoded (RFC 2046 5.2.1).
    """
    assert original.sender, "a report for the null sender"
    assert failures, "a report of nothing"
    host = _printable(hostname, 255)
    text = _text(kind, failures, host)
    table = _table(kind, original, failures, host, arrived_at, until)
    whole = kind.is_failure and original.ret.upper() == "FULL" and len(message) <= size_max
    returned_type, returned = _returned(message, whole=whole, header_max=header_max)
    boundary = _boundary(f"{show_msgid(msgid)}.{int(now)}", (text, table, returned))
    date = _date(now)
    header = "\r\n".join(
        (
            f"From: Mail Delivery System <MAILER-DAEMON@{host}>",
            f"To: {_to(original.sender)}",
            f"Subject: Delivery status notification: {_SUBJECTS[kind]}",
            f"Date: {date}",
            f"Message-ID: <{show_msgid(msgid)}.{int(now)}@{host}>",
            # RFC 3834 5: what keeps vacation programs from answering.
            "Auto-Submitted: auto-replied",
            "MIME-Version: 1.0",
            "Content-Type: multipart/report; report-type=delivery-status;",
            f'\tboundary="{boundary}"',
            "",
            "This is a report in MIME format (RFC 3464).",
            "",
            "",
        )
    )
    mark = f"--{boundary}".encode()
    return b"".join(
        (
            header.encode("ascii"),
            mark,
            b"\r\nContent-Type: text/plain; charset=us-ascii\r\nContent-Description: Notification\r\n\r\n",
            text,
            b"\r\n",
            mark,
            b"\r\nContent-Type: message/delivery-status\r\nContent-Description: Delivery report\r\n\r\n",
            table,
            b"\r\n",
            mark,
            b"\r\n",
            returned_type,
            b"\r\n",
            returned,
            b"\r\n",
            mark,
            b"--\r\n",
        )
    )


def _date(instant: float) -> str:
    return format_datetime(datetime.fromtimestamp(int(instant), UTC))


def _text(kind: BounceKind, failures: Sequence[tuple[Recipient, str]], host: str) -> bytes:
    lines = [f"This is the mail system at {host}.", "", _REASONS[kind], ""]
    for recipient, status in failures[:LISTED_MAX]:
        lines.extend(_wrapped(f"<{_address(recipient.address)}>: {_printable(status)}", "    "))
    more = len(failures) - LISTED_MAX
    if more > 0:
        lines.append(f"and {more} more, which the delivery report names.")
    lines.append("")
    return "\r\n".join(lines).encode("ascii")


def _table(
    kind: BounceKind,
    original: Transaction,
    failures: Sequence[tuple[Recipient, str]],
    host: str,
    arrived_at: float | None,
    until: float | None,
) -> bytes:
    """Return the fields of RFC 3464 2.2, and of 2.3 for each recipient."""
    lines = [f"Reporting-MTA: dns; {host}"]
    envid = _from_xtext(original.envid)
    if envid:
        lines[:0] = _wrapped(f"Original-Envelope-Id: {envid}", " ")
    if arrived_at is not None:
        lines.append(f"Arrival-Date: {_date(arrived_at)}")
    for recipient, status in failures:
        lines.append("")
        orcpt = _original_recipient(recipient.orcpt)
        if orcpt:
            lines.extend(_wrapped(f"Original-Recipient: {orcpt}", " "))
        # RFC 6533 3: an address with other than ASCII has a type of its own, and a 7-bit form.
        address_type = "rfc822" if recipient.address.isascii() else "utf-8"
        address = _address(recipient.address)
        lines.extend(_wrapped(f"Final-Recipient: {address_type}; {address}", " "))
        lines.append(f"Action: {_ACTIONS[kind]}")
        lines.append(f"Status: {status_of(status, kind)}")
        diagnostic = _printable(status)
        if diagnostic:
            diagnostic_type = "smtp" if diagnostic[:3].isdigit() else "X-mta-testbed"
            lines.extend(_wrapped(f"Diagnostic-Code: {diagnostic_type}; {diagnostic}", " "))
        if kind is BounceKind.DELAYED and until is not None:
            lines.append(f"Will-Retry-Until: {_date(until)}")
    lines.append("")
    return "\r\n".join(lines).encode("ascii")


def _returned(message: bytes, *, whole: bool, header_max: int) -> tuple[bytes, bytes]:
    """Return the header and the content of the third part."""
    if whole and message and message.isascii():
        return (
            b"Content-Type: message/rfc822\r\nContent-Description: Undelivered message\r\n",
            message,
        )
    end = message.find(b"\r\n\r\n")
    header = message if end < 0 else message[: end + 2]
    if len(header) > header_max:
        # Cut between lines, so that no field is cut in two.
        end = header.rfind(b"\r\n", 0, header_max)
        header = header[:header_max] if end < 0 else header[: end + 2]
    head = b"Content-Type: text/rfc822-headers\r\nContent-Description: Header of the message\r\n"
    if header.isascii():
        return head, header
    # RFC 6522 4: text/rfc822-headers may be encoded, unlike a message.
    encoded = base64.encodebytes(header).replace(b"\n", b"\r\n")
    return (
        b"Content-Type: text/rfc822-headers; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n"
        b"Content-Description: Header of the message\r\n",
        encoded,
    )


def _boundary(seed: str, contents: Sequence[bytes]) -> str:
    """Return a boundary that no part has; who guesses the seed gains nothing."""
    number = 0
    while True:
        boundary = f"=_{seed}.{number}"
        if not any(boundary.encode() in content for content in contents):
            return boundary
        number += 1


def _to(sender: str) -> str:
    """Return the sender for the header To.

    One that 7 bits can't hold is named in an empty group, as RFC 6857 3.1.8 does it: the envelope has
    the address, and this header is for people.
    """
    if sender.isascii():
        return f"<{_address(sender)}>"
    cut = sender.encode(errors="backslashreplace")[:ADDRESS_MAX].decode(errors="ignore")
    words = (cut[start : start + 9] for start in range(0, len(cut), 9))
    return "\r\n ".join(f"=?utf-8?b?{_base64(word)}?=" for word in words) + "\r\n :;"


def _base64(text: str) -> str:
    return binascii.b2a_base64(text.encode(), newline=False).decode()


def _address(address: str) -> str:
    r"""Return an address in printable ASCII.

    Non-ASCII characters become ``\x{HEX}``, utf-8-addr-xtext of RFC 6533 3; in an address that needs no
    such thing the characters that only guard the escapes stay as they are.
    """
    if address.isascii():
        return "".join(c if "\x20" <= c <= "\x7e" else "?" for c in address[:ADDRESS_MAX])
    escaped = _UNSAFE_IN_ADDRESS.sub(lambda found: f"\\x{{{ord(found[0]):X}}}", address)
    return escaped[:ADDRESS_MAX]


def _original_recipient(orcpt: str) -> str:
    """Return ORCPT of RFC 3461 4.2 as RFC 3464 2.3.1 has it, or empty if it makes no sense."""
    address_type, separator, address = orcpt.partition(";")
    if not separator or _ADDRESS_TYPE.fullmatch(address_type) is None:
        return ""
    decoded = _from_xtext(address)
    return f"{address_type}; {decoded}" if decoded else ""


def _from_xtext(text: str) -> str:
    """Return what xtext (RFC 3461 4) stands for, made printable."""
    return _printable(_HEX_PAIR.sub(lambda found: chr(int(found[1], 16)), text), ADDRESS_MAX)


def _printable(text: str, length_max: int = DIAGNOSTIC_MAX) -> str:
    """Return one line of printable ASCII: controls become spaces, the rest that is not ASCII ``?``."""
    cut = text[:length_max]
    return " ".join(
        "".join(
            c if "\x20" <= c <= "\x7e" else (" " if c < "\x20" or c == "\x7f" else "?") for c in cut
        ).split()
    )


def _wrapped(line: str, indent: str) -> Iterator[str]:
    """Fold a line at spaces to `_LINE` characters; a longer word stays whole, far below RFC 5322's 998."""
    while len(line) > _LINE:
        at = line.rfind(" ", len(indent) + 1, _LINE + 1)
        if at < 0 or not line[:at].strip():
            at = line.find(" ", _LINE)
        if at < 0:
            break
        yield line[:at]
        line = indent + line[at + 1 :]
    yield line
