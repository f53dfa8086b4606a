"""What XCLIENT says: who the client behind a trusted one is (Postfix XCLIENT_README).

Pure. Values are xtext (RFC 3461 4) and end up in Received fields and log lines: what is no address, name or number
is refused, nothing unprintable passes.
"""

import re
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

from mta.core.address import is_helo_name
from mta.core.reply import Reply

ATTRIBUTES: Final = "NAME ADDR PORT PROTO HELO LOGIN"
"""As EHLO offers them. Not Postfix's DESTADDR and DESTPORT: nothing here depends on where the client went."""

LOGIN_MAX: Final = 255
"""Characters of LOGIN; RFC 4616 2 allows so many octets."""

_ATTRIBUTE = re.compile(r"([A-Za-z]{1,32})=([\x21-\x2a\x2c-\x3c\x3e-\x7e]*(?:\+[0-9A-F]{2}"
                        r"[\x21-\x2a\x2c-\x3c\x3e-\x7e]*)*)", re.ASCII)  # fmt: skip
_HEX = re.compile(r"\+([0-9A-F]{2})")
_UNKNOWN: Final = frozenset({"[UNAVAILABLE]", "[TEMPUNAVAIL]"})
"""There is no such thing, or it can't be said now: either way we don't know."""


class ClientAttributes(NamedTuple):
    """What was said. None where nothing was, empty for what is not known."""

    name: str | None = None
    """Host name of the client."""
    address: str | None = None
    """Its address, without ``IPV6:``."""
    port: int | None = None
    """0 if it is not known."""
    protocol: str | None = None
    """``SMTP`` or ``ESMTP``."""
    helo: str | None = None
    login: str | None = None
    """As whom the client has logged in."""


def parse_xclient(arguments: str) -> ClientAttributes | Reply:
    """Read what follows the word XCLIENT; on an error return the reply."""
    said = ClientAttributes()
    words = arguments.split()
    if not words:
        return Reply(501, "5.5.4", "Syntax: XCLIENT attribute=value...")
    for word in words:
        match = _ATTRIBUTE.fullmatch(word)
        if match is None:
            return Reply(501, "5.5.4", "Bad attribute syntax")
        key, value = match[1].upper(), _HEX.sub(lambda found: chr(int(found[1], 16)), match[2])
        if not value.isascii() or not value.isprintable():
            return Reply(501, "5.5.4", f"Bad {key} value")
        update = _read(key, "" if value.upper() in _UNKNOWN else value)
        if update is None:
            return Reply(501, "5.5.4", f"Bad {key} value")
        said = said._replace(**update)
    return said


def _read(key: str, value: str) -> dict[str, Any] | None:
    """Return what an attribute changes, or None if it makes no sense."""
    match key:
        case "NAME" if not value or is_helo_name(value):
            return {"name": value}
        case "ADDR":
            address = _address(value)
            return None if address is None else {"address": address}
        case "PORT" if not value or (value.isdigit() and len(value) <= 5 and int(value) < 65536):
            return {"port": int(value or "0")}
        case "PROTO" if value.upper() in ("SMTP", "ESMTP"):
            return {"protocol": value.upper()}
        case "HELO" if not value or is_helo_name(value):
            return {"helo": value}
        case "LOGIN" if len(value) <= LOGIN_MAX and " " not in value:
            return {"login": value}
        case _:
            return None


def _address(value: str) -> str | None:
    """Return an address; empty if it is not known, None if it is none."""
    text = value[5:] if value[:5].upper() == "IPV6:" else value
    if not text:
        return ""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if getattr(address, "scope_id", None):
        return None  # a zone would be one of the proxy's links
    mapped = getattr(address, "ipv4_mapped", None)
    return str(address if mapped is None else mapped)
