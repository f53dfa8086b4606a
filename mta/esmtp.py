"""What a peer offered in its answer to EHLO, and whether a message fits into it.

An extension is used only if it was offered. What a message needs and this peer lacks is a permanent
failure, said in the words of a reply, before anything is sent.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from mta.core.envelopes.base import MtaEnvelope

TOO_LARGE = "552 5.3.4 message too large for peer"
"""OpenSMTPD mta_session.c; RFC 1870 6.1 has the code."""
NO_SMTPUTF8 = "553 5.6.7 SMTPUTF8 is required, but was not offered by the peer"
"""RFC 6531 3.2 and 3.5."""
NO_8BITMIME = "554 5.6.3 8BITMIME is required, but was not offered by the peer"
"""RFC 6152 3: convert or give up. We do not convert: signatures would break."""
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"@[^<> "]+')
BAD_SENDER = "553 5.1.7 Bad sender address syntax"
BAD_RECIPIENT = "553 5.1.3 Bad recipient address syntax"


class Extensions(NamedTuple):
    """What the peer offered in its answer to EHLO."""

    pipelining: bool = False
    """RFC 2920."""
    size: int | None = None
    """Largest message in bytes, 0 for no fixed limit, None if SIZE was not offered (RFC 1870)."""
    eight_bit: bool = False
    """RFC 6152."""
    smtputf8: bool = False
    """RFC 6531."""
    dsn: bool = False
    """RFC 3461."""
    starttls: bool = False
    """RFC 3207."""
    auth: tuple[str, ...] = ()
    """Mechanisms of AUTH, in capitals (RFC 4954)."""

    def refusal(self, sender: str, options: Sequence[str], body: bytes) -> str | None:
        """Return the reply with which a message is refused for all recipients, or None."""
        if self.size and len(body) > self.size:
            return TOO_LARGE
        if not is_sendable(sender):
            return BAD_SENDER
        if not self.smtputf8 and not sender.isascii():
            return NO_SMTPUTF8
        if not options:
            return None
        if not self.smtputf8 and "SMTPUTF8" in options and not _header(body).isascii():
            return NO_SMTPUTF8
        if "BODY=8BITMIME" in options and not self.eight_bit and not body.isascii():
            return NO_8BITMIME
        return None

    def recipient_refusal(self, rcpt: str) -> str | None:
        """Return the reply with which one recipient is refused, or None."""
        if not rcpt or not is_sendable(rcpt):
            return BAD_RECIPIENT
        return None if self.smtputf8 or rcpt.isascii() else NO_SMTPUTF8

    def mail_command(self, envelopes: Sequence[MtaEnvelope], size: int) -> str:
        """Return MAIL for a message of ``size`` bytes, with the parameters that were offered."""
        sender, options = envelopes[0].sender, envelopes[0].options
        parameters = "" if self.size is None else f" SIZE={size}"
        if self.smtputf8 and (
            "SMTPUTF8" in options
            or not sender.isascii()
            or not all(envelope.rcpt.isascii() for envelope in envelopes)
        ):
            parameters += " SMTPUTF8"
        for option in options:
            key = option.partition("=")[0]
            offered = (key == "BODY" and self.eight_bit) or (key in ("RET", "ENVID") and self.dsn)
            if offered and _is_parameter(option):
                parameters += f" {option}"
        return f"MAIL FROM:<{sender}>{parameters}\r\n"

    def rcpt_command(self, envelope: MtaEnvelope) -> str:
        """Return RCPT with the parameters of RFC 3461, if they were offered."""
        if not envelope.options or not self.dsn:
            return f"RCPT TO:<{envelope.rcpt}>\r\n"
        parameters = "".join(
            f" {option[5:]}"
            for option in envelope.options
            if option.startswith("RCPT:") and _is_parameter(option)
        )
        return f"RCPT TO:<{envelope.rcpt}>{parameters}\r\n"


def read_extensions(lines: Sequence[bytes]) -> Extensions:
    """Return what the lines after the first of an EHLO answer offer, without their codes.

    What we do not use is skipped, and so is what makes no sense.
    """
    pipelining = eight_bit = smtputf8 = dsn = starttls = False
    auth: tuple[str, ...] = ()
    size: int | None = None
    for line in lines:
        match line.upper().split():
            case [b"PIPELINING", *_]:
                pipelining = True
            case [b"8BITMIME", *_]:
                eight_bit = True
            case [b"SMTPUTF8", *_]:
                smtputf8 = True
            case [b"DSN", *_]:
                dsn = True
            case [b"STARTTLS", *_]:
                starttls = True
            case [b"AUTH", *mechanisms]:
                auth += tuple([name.decode("ascii", "replace") for name in mechanisms])
            case [b"SIZE", digits, *_] if digits.isdigit() and len(digits) <= 20:
                size = int(digits)  # RFC 1870 3: at most 20 digits
            case [b"SIZE"]:
                size = 0
            case _:
                pass
    return Extensions(pipelining, size, eight_bit, smtputf8, dsn, starttls, auth)


def is_sendable(address: str) -> bool:
    """Return whether an address can stand between < and > without ending the command."""
    if not address.isprintable():  # nor are surrogates, which have no UTF-8
        return False
    if "<" in address or ">" in address or " " in address:
        return _QUOTED.fullmatch(address) is not None
    return True


def _header(body: bytes) -> bytes:
    return body.partition(b"\r\n\r\n")[0]


def _is_parameter(option: str) -> bool:
    """Whether a parameter has only the characters of RFC 5321's esmtp-value."""
    return option.isascii() and option.isprintable() and " " not in option
