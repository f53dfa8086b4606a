"""The header that a proxy puts before a connection: who the client really is.

Versions 1 (a line) and 2 (binary) of HAProxy's PROXY protocol, as a receiver:
https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, sections 2.1 and 2.2. No I/O.

The rule: never an octet is asked for that may not be the header's, so that what follows (TLS, perhaps) is still
unread when it is complete; and never more than ``size_max`` of them.
"""

from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
"""How version 2 begins: nothing that a mail client, a browser or TLS could say."""
LINE_MAX: Final = 107
"""Octets of a header of version 1, CRLF included (2.1)."""
_FIRST: Final = len(b"PROXY UNKNOWN\r\n")
"""Every header has so many octets."""
_FIXED: Final = 16
"""Octets of a header of version 2 before the addresses."""


class ProxyError(ValueError):
    """What came is no header that we can use."""


class Announced(NamedTuple):
    """The client that a proxy speaks for."""

    address: str
    port: int


class HeaderReader:
    """Reads one header: `feed` it at most `wanted` octets at a time until it says that it is complete."""

    __slots__ = ("_header", "_size_max", "announced", "wanted")

    def __init__(self, *, size_max: int) -> None:
        """Expect a header of at most ``size_max`` octets."""
        assert size_max >= LINE_MAX, size_max
        self._header = b""
        self._size_max = size_max
        self.wanted = _FIRST
        """Octets that can be read without reading past the header; 0 when it is complete."""
        self.announced: Announced | None = None
        """The client; None if the header names none: then it is whoever connected (LOCAL, UNKNOWN)."""

    def feed(self, data: bytes) -> bool:
        """Take octets; return whether the header is complete.

        Raises:
            ProxyError: it is none.
        """
        assert 0 < len(data) <= self.wanted, (len(data), self.wanted)
        self._header += data
        header = self._header
        if header.startswith(SIGNATURE[: len(header)]):
            self.wanted = self._wanted_binary(header)
        elif header.startswith(b"PROXY "[: len(header)]):
            self.wanted = self._wanted_line(header)
        else:
            raise ProxyError("no PROXY header")
        return not self.wanted

    def _wanted_line(self, header: bytes) -> int:
        if header.endswith(b"\r\n"):
            self.announced = _read_line(header[:-2])
            return 0
        if len(header) >= LINE_MAX:
            raise ProxyError("line too long")
        if b"\n" in header:
            raise ProxyError("bad line end")
        if len(header) < _FIRST:
            return _FIRST - len(header)
        # Its end may be the next octet, or after a CR the LF.
        return 1

    def _wanted_binary(self, header: bytes) -> int:
        if len(header) < _FIXED:
            return _FIXED - len(header)
        size = _FIXED + int.from_bytes(header[14:16], "big")
        if size > self._size_max:
            raise ProxyError("header too long")
        if len(header) < size:
            return size - len(header)
        self.announced = _read_binary(header)
        return 0


def _read_line(line: bytes) -> Announced | None:
    """Return what ``PROXY TCP4 192.0.2.1 192.0.2.2 56324 25`` announces.

    Raises:
        ProxyError: a field is wrong.
    """
    words = line.split(b" ")
    if words[1:2] == [b"UNKNOWN"]:
        return None  # 2.1: whatever follows is ignored
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise ProxyError("bad line")
    make = IPv4Address if words[1] == b"TCP4" else IPv6Address
    if b"%" in line:
        raise ProxyError("bad address")  # a zone would be one of the proxy's links
    try:
        source, _ = (make(word.decode("ascii")) for word in words[2:4])
    except ValueError:
        raise ProxyError("bad address") from None
    port, _ = (_port(word) for word in words[4:6])
    return Announced(_show(source), port)


def _port(word: bytes) -> int:
    """2.1: decimal, without leading zeros."""
    if not word.isdigit() or len(word) > 5 or (word[:1] == b"0" and word != b"0"):
        raise ProxyError("bad port")
    port = int(word)
    if port > 65535:
        raise ProxyError("bad port")
    return port


def _read_binary(header: bytes) -> Announced | None:
    """Return what a whole header of version 2 announces; TLVs behind the addresses are skipped.

    Raises:
        ProxyError: version, command, family or length is wrong.
    """
    version, command = header[12] >> 4, header[12] & 15
    family, transport = header[13] >> 4, header[13] & 15
    addresses = header[_FIXED:]
    if version != 2:
        raise ProxyError(f"version {version}")
    if command == 0:
        return None  # LOCAL: the proxy itself, to see whether we live; addresses are ignored
    if command != 1:
        raise ProxyError(f"command {command}")
    if family > 3 or transport > 2:
        raise ProxyError(f"family {family}, transport {transport}")
    if family in (0, 3):
        return None  # UNSPEC, or a Unix socket on the proxy's machine: whoever connected
    if transport != 1:
        raise ProxyError("not a stream")
    width = 4 if family == 1 else 16
    if len(addresses) < 2 * width + 4:
        raise ProxyError("header too short")
    source = IPv4Address(addresses[:4]) if family == 1 else IPv6Address(addresses[:16])
    port = int.from_bytes(addresses[2 * width : 2 * width + 2], "big")
    return Announced(_show(source), port)


def _show(address: IPv4Address | IPv6Address) -> str:
    mapped = getattr(address, "ipv4_mapped", None)
    return str(address if mapped is None else mapped)
