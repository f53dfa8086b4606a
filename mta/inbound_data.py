"""Reading one message: between 354 and the dot, or in chunks.

After DATA a message ends at CRLF "." CRLF and nowhere else (RFC 5321 4.1.1.4), whatever the pieces it arrives
in; with BDAT (RFC 3030) where the last chunk does, and a dot means nothing. In both it is lines that end with CRLF.
Memory is bounded by the limits, not by what the client sends: a message is one buffer, never a list
of lines, and from the moment it is refused nothing of it is kept. No I/O here.
"""

from typing import Final

from mta.core.reply import Reply

END: Final = b"\r\n.\r\n"
DRAIN_MAX: Final = 1024 * 1024
"""Bytes of a refused message that are read beyond the largest allowed one, so that the client sees the
reply; after that the connection is closed."""

BARE: Final = Reply(550, "5.6.11", "Bare CR or LF, lines end with CR LF")
"""A lone LF or CR may be a line end to the next host: that is SMTP smuggling (CVE-2023-51764 to 51766).
Postfix: ``smtpd_forbid_bare_newline = reject``. The code is Exchange Online's for this fault."""
TOO_BIG: Final = Reply(552, "5.3.4", "Message too big")
LINE_TOO_LONG: Final = Reply(552, "5.6.0", "Line too long")
NO_MEMORY: Final = Reply(452, "4.3.1", "Insufficient system storage")
TOO_MANY_CHUNKS: Final = Reply(552, "5.3.4", "Message has too many chunks")


class MessageReader:
    """Collects one message, or the reason why it can't be taken.

    `feed` input until it returns what followed the end mark; then `refusal` is the reply, or `body`
    gives the message. All work is linear in the input, however it is cut.
    """

    __slots__ = (
        "_buffer",
        "_discarded",
        "_head",
        "_line_at",
        "_line_max",
        "_scanned",
        "_size_max",
        "_stuffed",
        "_stuffed_to",
        "_tail",
        "refusal",
    )

    def __init__(self, head: bytes, *, size_max: int, line_max: int) -> None:
        """Start a message.

        Args:
            head: header fields to put before the message; ends with CRLF, so that a dot in the first
                column is one from the first byte on.
            size_max: bytes of the message without ``head`` and without dot-stuffing (RFC 1870 5).
            line_max: bytes of a line without its CRLF.
        """
        assert head.endswith(b"\r\n"), head
        self._buffer = bytearray(head)
        self._head = len(head)
        self._size_max = size_max
        self._line_max = line_max
        self._scanned = len(head)
        self._line_at = len(head)
        self._stuffed = 0
        self._stuffed_to = len(head) - 2
        self._tail = b""
        self._discarded = 0
        self.refusal: Reply | None = None
        """Why the message is not taken; the first reason stays."""

    @property
    def is_endless(self) -> bool:
        """So much of a refused message was read that it isn't worth waiting for its end."""
        return self._discarded > self._size_max + DRAIN_MAX

    def feed(self, data: bytes) -> bytes | None:
        """Take input; return None while the message goes on, else what came after its end."""
        if self.refusal is not None:
            return self._drain(data)
        buffer = self._buffer
        start = len(buffer)
        buffer += data
        end = buffer.find(END, start - 4)
        if end < 0:
            self._check(len(buffer))
            return None
        rest = bytes(memoryview(data)[end + 5 - start :])
        self._check(end + 2)
        if self.refusal is None:
            del buffer[end + 2 :]
        return rest

    def refuse(self, reply: Reply) -> None:
        """Forget the message and read on only to find its end; the first reason stays."""
        if self.refusal is None:
            self.refusal = reply
            self._tail = bytes(self._buffer[-4:])
            self._buffer = bytearray()

    def body(self) -> bytes:
        """Return head and message with the dot-stuffing undone (RFC 5321 4.5.2); once, after the end."""
        assert self.refusal is None
        body = bytes(self._buffer)
        self._buffer = bytearray()
        # Every line that begins with a dot loses it. A line of one dot can't be here: it is the end.
        return body.replace(b"\r\n.", b"\r\n")

    def _drain(self, data: bytes) -> bytes | None:
        window = self._tail + data
        end = window.find(END)
        if end >= 0:
            return window[end + 5 :]
        self._tail = window[-4:]
        self._discarded += len(data)
        return None

    def _check(self, stop: int) -> None:
        """Check what is new before ``stop``, and refuse the message if it breaks a rule."""
        buffer = self._buffer
        start = self._scanned
        if start < stop:
            if buffer[stop - 1] == 13:
                stop -= 1  # its LF may be the next byte to come
            # Both counts equal that of the pairs only if every CR and every LF is in one.
            pairs = buffer.count(b"\r\n", start, stop)
            lf = buffer.count(b"\n", start, stop)
            if lf != pairs or buffer.count(b"\r", start, stop) != pairs:
                return self.refuse(BARE)
            self._scanned = stop
        # Jump by whole windows: a line is too long only if some window has no line end in it.
        reach = self._line_max + 2
        while stop - self._line_at >= reach:
            line_end = buffer.rfind(b"\n", self._line_at, self._line_at + reach)
            if line_end < 0:
                return self.refuse(LINE_TOO_LONG)
            self._line_at = line_end + 1
        if stop - self._head - self._stuffed > self._size_max and self._is_too_big(stop):
            return self.refuse(TOO_BIG)
        return None

    def _is_too_big(self, stop: int) -> bool:
        """Say it of what is before ``stop``. Stuffed dots don't count; look for them only when it matters."""
        self._stuffed += self._buffer.count(b"\r\n.", self._stuffed_to, stop)
        self._stuffed_to = max(self._stuffed_to, stop - 2)
        return stop - self._head - self._stuffed > self._size_max


class ChunkReader(MessageReader):
    """Collects one message from chunks of known size (BDAT, RFC 3030).

    Call `begin` for each chunk, `feed` with its octets, and `end` after the last one. BINARYMIME is not
    offered, hence lines are lines and a lone CR or LF is refused as after DATA: the next host may not know
    chunks, and what is binary would have to be encoded anew for it, which breaks signatures.
    """

    __slots__ = ("_chunks", "_chunks_max")

    def __init__(self, head: bytes, *, size_max: int, line_max: int, chunks_max: int) -> None:
        """Start a message.

        Args:
            head: header fields to put before the message; ends with CRLF.
            size_max: bytes of the message without ``head``.
            line_max: bytes of a line without its CRLF.
            chunks_max: chunks it may come in.
        """
        super().__init__(head, size_max=size_max, line_max=line_max)
        self._chunks = 0
        self._chunks_max = chunks_max

    def begin(self, size: int) -> None:
        """Announce a chunk: a message that won't fit is refused before its octets come."""
        self._chunks += 1
        if self._chunks > self._chunks_max:
            self.refuse(TOO_MANY_CHUNKS)
        elif len(self._buffer) - self._head + size > self._size_max:
            self.refuse(TOO_BIG)

    def feed(self, data: bytes) -> None:
        """Take octets of the chunk; of a message that was refused nothing is kept."""
        if self.refusal is not None:
            self._discarded += len(data)
            return
        self._buffer += data
        self._check(len(self._buffer))

    def end(self) -> None:
        """Check what only the end can tell; a last line without its CRLF gets one, as in Postfix."""
        if self.refusal is not None:
            return
        buffer = self._buffer
        if buffer[-1] == 13:
            self.refuse(BARE)
        elif not buffer.endswith(b"\r\n"):
            buffer += b"\r\n"
            self._check(len(buffer))

    def body(self) -> bytes:
        """Return head and message; once, after `end`."""
        assert self.refusal is None
        body = bytes(self._buffer)
        self._buffer = bytearray()
        return body

    def _is_too_big(self, stop: int) -> bool:
        return False  # `begin` let no such chunk in; the CRLF that is ours does no harm


def count_hops(body: bytes, *, hops_max: int) -> int:
    """Return how many Received fields the header has, the first line not counted (it is our own).

    May return 0 when there is no room for ``hops_max`` of them: nobody asks for fewer.
    """
    end = body.find(b"\r\n\r\n")
    if 0 <= end < hops_max * len(b"\r\nReceived:"):
        return 0
    header = body if end < 0 else body[: end + 2]
    return header.lower().count(b"\r\nreceived:")
