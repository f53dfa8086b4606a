"""An SMTP client that times every verb: no retries, no threads, no opinion about what is expected.

smtplib would do, but looks up the host's name when it is made, scans every body for line ends, and
tells nobody how long a verb took. Replies are bounded in lines, bytes and time, since the server is
the one that is being tested.
"""

import socket
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

REPLY_BYTES_MAX: Final = 64 * 1024
"""Bytes of one reply; over it the server is broken."""

TEXT_MAX: Final = 500
"""Characters of a reply that are kept."""


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


Observe: TypeAlias = Callable[[str, float, Reply | None, Exception | None], None]
"""Told (verb, seconds, reply, error) of each verb; exactly one of the last two is None."""


def stuffed(message: bytes) -> bytes:
    """Return a message as it goes over the wire: dots doubled (RFC 5321 4.5.2), and the final dot.

    The message has CRLF line ends and ends with one.
    """
    if message.startswith(b"."):
        message = b"." + message
    return message.replace(b"\r\n.", b"\r\n..") + b".\r\n"


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


class Session:
    """One connection at a time to one server, opened when a message needs it.

    Used by one greenlet or thread. After any error, and when the server says 421, the connection is
    closed and the next message opens another.
    """

    def __init__(
        self, address: tuple[str, int], *, helo: str, timeout_s: float, observe: Observe
    ) -> None:
        """Remember where to connect to; nothing is opened yet.

        Args:
            address: Address in figures, and port.
            helo: What to say with EHLO.
            timeout_s: Longest wait for the connection, and for each reply.
            observe: Told of each verb; it must not raise.
        """
        self._address = address
        self._family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._helo = helo
        self._timeout_s = timeout_s
        self._observe = observe
        self._socket: socket.socket | None = None
        self._size_offered = False
        self._verb = ""

    @property
    def is_open(self) -> bool:
        """The connection is there, as far as anybody knows."""
        return self._socket is not None

    @property
    def verb(self) -> str:
        """The verb that was said last; what was going on when a caller was stopped."""
        return self._verb

    def close(self) -> None:
        """Close without a word. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def quit(self) -> None:
        """Say QUIT and close. A server that does not answer has been told; that is enough."""
        if self._socket is None:
            return
        try:
            self._say("QUIT", b"QUIT\r\n")
        except (OSError, ProtocolError):
            pass
        finally:
            self.close()

    def send(self, sender: str, recipients: Sequence[str], message: bytes) -> Attempt:
        """Try once to send a message, over a new connection if there is none.

        Args:
            sender: Reverse-path without brackets.
            recipients: Forward-paths without brackets; at least one.
            message: With CRLF line ends, not dot-stuffed.
        """
        accepted: list[str] = []
        refused: list[tuple[str, int, str]] = []

        def result(reply: Reply, *, taken: bool = False) -> Attempt:
            if reply.code == 421:
                self.close()
            given = tuple(accepted) if taken else ()
            return Attempt(self._verb, reply.code, reply.text, given, tuple(refused), unsure=False)

        try:
            reply = self._open()
            if reply.code // 100 != 2:
                self.close()
                return result(reply)
            size = b" SIZE=%d" % len(message) if self._size_offered else b""
            reply = self._say("MAIL", b"MAIL FROM:<%b>%b\r\n" % (sender.encode("ascii"), size))
            if reply.code // 100 != 2:
                return self._abandoned(result(reply))
            for recipient in recipients:
                reply = self._say("RCPT", b"RCPT TO:<%b>\r\n" % recipient.encode("ascii"))
                if reply.code // 100 == 2:
                    accepted.append(recipient)
                else:
                    refused.append((recipient, *reply))
                    if reply.code == 421:
                        return result(reply)
            if not accepted:
                return self._abandoned(result(reply))
            reply = self._say("DATA", b"DATA\r\n")
            if reply.code != 354:
                return self._abandoned(result(reply))
            reply = self._say(".", stuffed(message))
            return result(reply, taken=reply.code // 100 == 2)
        except (OSError, ProtocolError) as error:
            self.close()
            return Attempt(self._verb, 0, describe(error), (), tuple(refused), self._verb == ".")
        except BaseException:
            # Stopped in the middle: what is on this connection is nobody's business any more.
            self.close()
            raise

    def _abandoned(self, attempt: Attempt) -> Attempt:
        """Make the connection fit for the next message after a refusal."""
        if self._socket is not None:
            try:
                self._say("RSET", b"RSET\r\n")
            except (OSError, ProtocolError):
                # The refusal stands; only the connection is gone.
                self.close()
        return attempt

    def _open(self) -> Reply:
        """Return the reply to EHLO, or the greeting if that is no 220; open already counts as 250."""
        if self._socket is not None:
            return Reply(250, "")
        self._verb = "CONNECT"
        started = time.perf_counter()
        try:
            # Not create_connection: gevent hands its look-up to a thread, for an address even.
            opened = socket.socket(self._family)
            self._socket = opened
            opened.settimeout(self._timeout_s)
            opened.connect(self._address)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            reply = self._reply(opened, "CONNECT")
        except (OSError, ProtocolError) as error:
            self._observe("CONNECT", time.perf_counter() - started, None, error)
            raise
        self._observe("CONNECT", time.perf_counter() - started, reply, None)
        if reply.code != 220:
            return reply
        reply = self._say("EHLO", b"EHLO %b\r\n" % self._helo.encode("ascii"))
        # Keywords are the first words of the lines, which are joined here: SIZE stands alone.
        self._size_offered = " SIZE" in f" {reply.text.upper()}"
        return reply

    def _say(self, verb: str, line: bytes) -> Reply:
        assert self._socket is not None, verb
        self._verb = verb
        started = time.perf_counter()
        try:
            # sendall takes the timeout for all of it, not for each part.
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(line)
            reply = self._reply(self._socket, verb)
        except (OSError, ProtocolError) as error:
            self._observe(verb, time.perf_counter() - started, None, error)
            raise
        self._observe(verb, time.perf_counter() - started, reply, None)
        return reply

    def _reply(self, connection: socket.socket, verb: str) -> Reply:
        """Return the reply to a verb: what it should be, or 4xx, or 5xx."""
        data = connection.recv(4096)
        reply = parse_reply(data) if data else None
        if reply is None:
            reply = self._rest_of_reply(connection, data)
        if reply.code // 100 in (4, 5):
            return reply
        if reply.code // 100 == 2 if verb not in _EXACT else reply.code == _EXACT[verb]:
            return reply
        raise ProtocolError(f"{reply.code} makes no sense here")

    def _rest_of_reply(self, connection: socket.socket, data: bytes) -> Reply:
        deadline = time.perf_counter() + self._timeout_s
        while data and len(data) <= REPLY_BYTES_MAX:
            left = deadline - time.perf_counter()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            more = connection.recv(4096)
            if not more:
                break
            data += more
            reply = parse_reply(data)
            if reply is not None:
                return reply
        raise ProtocolError(
            "reply too long" if len(data) > REPLY_BYTES_MAX else "connection closed"
        )


_EXACT: Final = {"CONNECT": 220, "DATA": 354}
"""Verbs for which another success is none (RFC 5321 4.3.2)."""


def describe(error: Exception) -> str:
    """Return in few words what happened to a connection; the same words for the same cause."""
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "connection reset"
    if isinstance(error, OSError):
        return (error.strerror or "network error").lower()
    return str(error)
