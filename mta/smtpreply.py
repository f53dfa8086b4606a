"""Replies of SMTP servers: bytes into lines, lines into one reply, a reply into one safe line.

Replies come from strangers and end in the queue, in bounces and in logs. So every part is bounded,
and what leaves here is printable ASCII without line breaks (CVE-2020-8794 was a reply that became a
record of the queue).
"""

from typing import Final

LINE_BYTES_MAX: Final = 4096
"""Longest line of a reply. RFC 5321 4.5.3.1.5: 512; OpenSMTPD: 2,048."""
REPLY_LINES_MAX: Final = 128
"""Most lines of one reply. Ours; EHLO answers have about ten."""
STATUS_BYTES_MAX: Final = 2048
"""Longest status line; OpenSMTPD folds into a buffer of this size (mta_session.c)."""


class ReplyReader:
    """Splits a byte stream into lines and lines into replies; holds at most one line and 2 KiB."""

    __slots__ = (
        "_at",
        "_buffer",
        "_fold",
        "_line_count",
        "_prefix",
        "code",
        "error",
        "text",
    )

    def __init__(self) -> None:
        self._buffer = b""
        self._at = 0
        self._fold = b""
        self._prefix = b""
        self._line_count = 0
        self.code = 0
        """Code of the reply that the last line completed; 0 if it did not complete one."""
        self.text = b""
        """Text of that reply, its lines folded into one; may hold any byte but CR at the end."""
        self.error = ""
        """What makes the stream unusable, or empty. Once set, it stays."""

    @property
    def pending(self) -> bool:
        """Bytes have arrived that `next_line` has not used."""
        return self._at < len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add bytes from the peer."""
        self._buffer = self._buffer[self._at :] + data if self.pending else data
        self._at = 0

    def next_line(self) -> bytes | None:
        """Return the next line without its end, or None; look at `error`, then `code`, after each."""
        buffer = self._buffer
        end = buffer.find(b"\n", self._at)
        if end < 0:
            if len(buffer) - self._at > LINE_BYTES_MAX:
                self.error = "line too long"
                self._buffer = b""
                self._at = 0
            return None
        line = buffer[self._at : end]
        self._at = end + 1
        if self._at == len(buffer):
            self._buffer = b""
            self._at = 0
        if line.endswith(b"\r"):
            line = line[:-1]
        self._take(line)
        return line

    def _take(self, line: bytes) -> None:
        """Add one line to the reply."""
        self.code = 0
        digits = line[:3]
        separator = line[3:4]
        if len(line) > LINE_BYTES_MAX:
            self.error = "line too long"
        elif len(digits) < 3 or not digits.isdigit() or not b"2" <= digits[:1] <= b"5":
            self.error = f"no reply code in {printable(line[:64])!r}"
        elif separator not in (b" ", b"-", b""):
            self.error = f"no space after the reply code in {printable(line[:64])!r}"
        elif b"\0" in line:
            self.error = "NUL in reply"
        elif self._line_count and digits != self._prefix:
            self.error = "different codes in one reply"
        elif self._line_count >= REPLY_LINES_MAX:
            self.error = "too many lines in one reply"
        elif separator == b"-":
            self._add(line[4:])
            self._prefix = digits
            self._line_count += 1
        elif self._line_count:
            self._add(line[4:])
            self.code = int(digits)
            self.text = self._fold
            self._fold = b""
            self._line_count = 0
        else:
            self.code = int(digits)
            self.text = line[4:]

    def _add(self, text: bytes) -> None:
        """Fold as OpenSMTPD does: the enhanced code is kept once."""
        if not self._line_count:
            self._fold = text[:STATUS_BYTES_MAX]
            return
        if len(self._fold) >= STATUS_BYTES_MAX:
            return
        code = enhanced_code(self._fold)
        if code and text.startswith(code) and text[len(code) : len(code) + 1] in (b" ", b""):
            text = text[len(code) + 1 :]
        if text:
            self._fold = (self._fold + b" " + text if self._fold else text)[:STATUS_BYTES_MAX]


def enhanced_code(text: bytes) -> bytes:
    """Return the ``class.subject.detail`` that a reply's text begins with (RFC 2034), or nothing."""
    first = text.split(b" ", 1)[0]
    parts = first.split(b".")
    if len(parts) == 3 and parts[0] in (b"2", b"4", b"5") and len(first) <= 9:
        return first if parts[1].isdigit() and parts[2].isdigit() else b""
    return b""


def status_line(code: int, text: bytes) -> str:
    """Return a reply as one printable line of at most `STATUS_BYTES_MAX` characters."""
    text = text[:STATUS_BYTES_MAX]
    words = text.decode("ascii") if text.isascii() else ""
    if not words.isprintable() or len(words) != len(text):
        words = printable(text)
    return f"{code} {words}"[:STATUS_BYTES_MAX] if words else str(code)


def printable(text: bytes) -> str:
    r"""Return bytes as printable ASCII: tabs become spaces, what is not ASCII becomes ``\xNN``."""
    return "".join(
        chr(byte) if 0x20 <= byte < 0x7F else " " if byte == 0x09 else f"\\x{byte:02x}"
        for byte in text
    )
