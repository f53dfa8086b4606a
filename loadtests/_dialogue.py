"""What a client says and what replies mean: no sockets, no clocks.

Commands go in groups where the server offers PIPELINING (RFC 2920); what became of a group is worked out here, so that
a transaction says the same with and without it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

REPLY_BYTES_MAX: Final = 64 * 1024
"""Bytes of one reply; over it the server is broken."""

TEXT_MAX: Final = 500
"""Characters of a reply that are kept."""

GROUP_MAX: Final = 100
"""Commands in one group. Their replies must fit into the sockets' buffers while we still write (RFC 2920 3.1)."""

_KNOWN_MAX: Final = 1000
"""Different replies that are remembered; those with a queue id never come again."""


class ProtocolError(Exception):
    """The server said something that is no SMTP reply, or closed the connection."""


class Reply(NamedTuple):
    """One reply, its lines joined by a space."""

    code: int
    text: str
    """Printable ASCII; at most `TEXT_MAX` characters."""


class Attempt(NamedTuple):
    """What became of one try to send one message."""

    verb: str
    """The last one said; ``.`` for the end of the message."""
    code: int
    """Of the reply to it; 0 if there was none."""
    text: str
    """Of the reply; in words what happened to the connection if there was none."""
    accepted: tuple[str, ...]
    """Recipients that the server took responsibility for."""
    refused: tuple[tuple[str, int, str], ...]
    """(recipient, code, text) of those it refused one by one."""
    unsure: bool
    """The message was sent and the reply never came: the server may have taken it."""


class Message(NamedTuple):
    """A message as it goes over the wire."""

    size: int
    """Bytes before stuffing, which SIZE declares."""
    stuffed: Sequence[bytes | memoryview]
    """With dots doubled, and the final one."""
    plain: Callable[[], bytes]
    """Return it as BDAT takes it: neither."""


class Command(NamedTuple):
    """One line, and what the statistics call it."""

    verb: str
    line: bytes


class Step(NamedTuple):
    """One command's reply."""

    verb: str
    reply: Reply
    seconds: float
    """Since its group was sent."""


class Greeted(NamedTuple):
    """What a server offers."""

    pipelining: bool = False
    size: bool = False
    chunking: bool = False
    starttls: bool = False
    auth_plain: bool = False


def offers(text: str) -> Greeted:
    """Read the reply to EHLO; its lines are joined by spaces, and keywords are in any case."""
    words = text.upper().split()
    return Greeted(
        "PIPELINING" in words,
        "SIZE" in words,
        "CHUNKING" in words,
        "STARTTLS" in words,
        "AUTH" in words and "PLAIN" in words,
    )


def stuffed(message: bytes) -> bytes:
    """Return a message as it goes over the wire: dots doubled (RFC 5321 4.5.2), and the final dot.

    The message has CRLF line ends and ends with one.
    """
    if message.startswith(b"."):
        message = b"." + message
    return message.replace(b"\r\n.", b"\r\n..") + b".\r\n"


def whole(message: bytes) -> Message:
    """Return a message made of its bytes, which have CRLF line ends and end with one."""
    return Message(len(message), (stuffed(message),), lambda: message)


def parse_reply(data: bytes) -> Reply | None:
    """Return the reply that some bytes are, or None if it is not complete yet.

    Raises:
        ProtocolError: the bytes can't become a reply, or there is more after it.
    """
    if not data.endswith(b"\n"):
        return None
    lines = data[:-1].split(b"\n")
    texts: list[str] = []
    code = data[:3]
    for line in lines:
        line = line.removesuffix(b"\r")
        if line[:3] != code or not code.isdigit() or line[3:4] not in (b" ", b"-", b""):
            raise ProtocolError("no SMTP reply")
        texts.append(line[4:].decode("latin-1"))
    if line[3:4] == b"-":
        return None
    if any(each[3:4] != b"-" for each in lines[:-1]):
        raise ProtocolError("more than one reply")
    text = " ".join(texts)[:TEXT_MAX]
    if not (text.isascii() and text.isprintable()):
        text = "".join(c if " " <= c <= "~" else "?" for c in text)
    return Reply(int(code), text)


class Replies:
    """Cuts what comes from a server into replies."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Reply]:
        """Yield the replies that are complete now.

        Raises:
            ProtocolError: no SMTP, or a reply of more than `REPLY_BYTES_MAX`.
        """
        rest = self._rest + data if self._rest else data
        at = 0
        try:
            while True:
                start = line = at
                while True:
                    end = rest.find(b"\n", line) + 1
                    if not end or rest[line + 3 : line + 4] != b"-":
                        break
                    line = end
                if not end:
                    if len(rest) - start > REPLY_BYTES_MAX:
                        raise ProtocolError("reply too long")
                    return
                at = end
                one = rest[start:end]
                reply = _known.get(one)
                if reply is None:
                    reply = parse_reply(one)
                    assert reply is not None, "its last line has no hyphen"
                    if len(_known) < _KNOWN_MAX:
                        _known[one] = reply
                yield reply
        finally:
            self._rest = rest[at:]

    @property
    def is_empty(self) -> bool:
        """Whether nothing was left over after the last reply."""
        return not self._rest


_known: dict[bytes, Reply] = {}

_EXACT: Final = {"CONNECT": 220, "DATA": 354}
"""Verbs for which another success is none (RFC 5321 4.3.2)."""


def check(verb: str, reply: Reply) -> None:
    """Let pass what a verb can get: its success, or 4xx, or 5xx.

    Raises:
        ProtocolError: it is anything else.
    """
    code = reply.code
    if code // 100 in (4, 5):
        return
    if code // 100 == 2 if verb not in _EXACT else code == _EXACT[verb]:
        return
    raise ProtocolError(f"{code} makes no sense here")


def envelope(
    sender: str, recipients: Sequence[str], size: int | None, *, data: bool
) -> list[Command]:
    """Return the commands of a transaction up to DATA.

    Args:
        sender: without brackets.
        recipients: without brackets.
        size: to declare; None where SIZE is not offered.
        data: whether DATA is the last of them; not before BDAT.
    """
    declared = "" if size is None else f" SIZE={size}"
    commands = [Command("MAIL", f"MAIL FROM:<{sender}>{declared}\r\n".encode("ascii"))]
    commands += [Command("RCPT", f"RCPT TO:<{each}>\r\n".encode("ascii")) for each in recipients]
    if data:
        commands.append(Command("DATA", b"DATA\r\n"))
    return commands


def describe(error: Exception) -> str:
    """Return in few words what happened to a connection; the same words for the same cause."""
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "connection reset"
    if isinstance(error, OSError):
        return (error.strerror or "network error").lower()
    return str(error)
