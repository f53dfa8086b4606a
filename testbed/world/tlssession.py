"""A scripted host that speaks TLS: STARTTLS (RFC 3207) in front of `SinkSession`, which stays as it is.

Modes: ``offered``; ``required`` (MAIL before TLS gets 530 5.7.0); ``broken`` (the handshake gets nonsense); ``expired``,
``wrong-name`` and ``self-signed`` have such a certificate.
"""

import contextlib
import ssl
from typing import TYPE_CHECKING, Any, cast

from mta.core.reply import Reply
from sim.remote import Verdict
from testbed.world.session import SinkSession

if TYPE_CHECKING:
    import asyncio

    from testbed.world.sink import Listener

_GO = Reply(220, "2.0.0", "Ready to start TLS")
_TWICE = Reply(503, "5.5.1", "TLS is already there")
_SYNTAX = Reply(501, "5.5.4", "STARTTLS has no parameters")
_FIRST = Reply(530, "5.7.0", "Must issue a STARTTLS command first")
_NONSENSE = b"500 5.5.2 What is this?\r\n" * 3
_BEFORE_TLS = frozenset({b"EHLO", b"HELO", b"NOOP", b"QUIT", b"RSET", b"STARTTLS"})


class _TlsTransport:
    """A transport that encrypts what is written, and is otherwise the one below it."""

    def __init__(self, below: "asyncio.Transport", context: ssl.SSLContext) -> None:
        self._below = below
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.established = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)

    def feed(self, data: bytes) -> bytes:
        """Take records; return what they say.

        Raises:
            ssl.SSLError: the handshake failed, or this is no TLS.
        """
        self._incoming.write(data)
        pieces: list[bytes] = []
        try:
            if not self.established:
                self._tls.do_handshake()
                self.established = True
            while piece := self._tls.read(65_536):
                pieces.append(piece)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass  # after close_notify comes the end of the connection, too
        finally:
            self.flush()
        return b"".join(pieces)

    def write(self, data: bytes) -> None:
        """Encrypt and send."""
        with contextlib.suppress(ssl.SSLError):
            self._tls.write(data)
        self.flush()

    def close(self) -> None:
        """Say that nothing follows, and close."""
        with contextlib.suppress(ssl.SSLError, ValueError):
            self._tls.unwrap()
        self.flush()
        self._below.close()

    def flush(self) -> None:
        """Send what is ready."""
        if (records := self._outgoing.read()) and not self._below.is_closing():
            self._below.write(records)


class TlsSinkSession(SinkSession):
    """Speaks SMTP, in clear or under TLS."""

    def __init__(self, listener: "Listener") -> None:
        super().__init__(listener)
        self._mode = listener.tls
        self._wanted = False
        """220 was said: what comes next is a handshake."""
        self._tls: _TlsTransport | None = None
        self._ehlo = listener.ehlo_with_tls

    def data_received(self, data: bytes) -> None:
        """Answer what has come, under TLS if there is one."""
        if self._tls is not None:
            self._decrypt(self._tls, data)
        elif not self._wanted:
            super().data_received(data)
            if self._wanted:
                self._deaf = False
                self._buffer = b""
        elif self._mode == "broken":
            transport = self._transport
            assert transport is not None
            self._sink.tally.tls_failed += 1
            transport.write(_NONSENSE)
            transport.close()
        else:
            below = self._transport
            assert below is not None
            self._tls = _TlsTransport(below, self._listener.tls_context())
            self._transport = cast("asyncio.Transport", self._tls)
            self._ehlo = self._listener.ehlo
            self._decrypt(self._tls, data)

    def _decrypt(self, tls: _TlsTransport, data: bytes) -> None:
        before = tls.established
        try:
            said = tls.feed(data)
        except ssl.SSLError:
            self._sink.tally.tls_failed += 1
            self._deaf = True
            tls.close()
            return
        if tls.established and not before:
            self._sink.tally.tls += 1
        if said:
            super().data_received(said)

    def _command(self, line: bytes, now: float) -> None:
        verb, _, rest = line.partition(b" ")
        verb = verb.strip().upper()
        if verb == b"STARTTLS":
            self._start_tls(rest, now)
        elif self._mode == "required" and self._tls is None and verb not in _BEFORE_TLS:
            self._wrong(verb.decode("ascii", "replace")[:10], _FIRST, now)
        else:
            super()._command(line, now)

    def _start_tls(self, rest: bytes, now: float) -> None:
        if self._tls is not None:
            self._wrong("STARTTLS", _TWICE, now)
        elif rest.strip():
            self._wrong("STARTTLS", _SYNTAX, now)
        else:
            self._say("STARTTLS", Verdict(_GO), now)
            # Whatever came behind it in clear is forgotten: CVE-2011-0411.
            self._wanted = self._deaf = True
