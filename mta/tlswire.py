"""TLS as a server speaks it, between a socket's transport and the protocol that thinks it has one.

`TlsWire` is a protocol to the socket below and a transport to the session above; in between is OpenSSL on
two memory buffers. Why not the event loop's own start_tls? It needs a task to wait for it, and what it does
when a handshake fails, hangs or is cancelled differs between asyncio, its versions and uvloop. Here
everything happens within the call that brought the bytes, there is no wait, and time is the session's.

Rules: nothing that came before the handshake is ever read after it; decrypted input stops as soon as the
session wants no more; after our close_notify input is counted and not decrypted.
"""

import asyncio
import contextlib
import ssl
from typing import Any, Final, Protocol

PIECE: Final = 64 * 1024
"""Bytes that are decrypted at once."""


class TlsUser(Protocol):
    """What is above: an `asyncio.Protocol` that is told how the handshake ended, exactly once."""

    def tls_ready(self) -> None:
        """Take input from now on; it is decrypted."""
        ...

    def tls_failed(self, problem: str) -> None:
        """End the connection: there will be no input. ``problem`` is one short line, for the log."""
        ...

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        ...

    def eof_received(self) -> bool:
        """See `asyncio.Protocol`."""
        ...

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        ...

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        ...

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        ...


def describe(error: ssl.SSLError) -> str:
    """Return what went wrong in a few words: ``wrong version number``."""
    return (error.reason or type(error).__name__).lower().replace("_", " ")


class TlsWire(asyncio.Protocol, asyncio.Transport):
    """One connection, from the first byte of the handshake on."""

    def __init__(self, wire: asyncio.Transport, user: TlsUser, context: ssl.SSLContext) -> None:
        """Take over a connection; the handshake begins when the client does.

        Args:
            wire: the socket's transport; its protocol is this from now on.
            user: the session above.
            context: certificate and versions.

        Raises:
            ssl.SSLError, MemoryError: OpenSSL can't; the connection is as it was.
        """
        super().__init__()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._wire = wire
        self._user = user
        self._ready = False
        self._ended = False
        """The client sends no more: close_notify, or its socket is closed for writing."""
        self._keep = False
        """What the session answered to that."""
        self._closing = False
        """We sent close_notify, or the handshake failed."""
        self._end_waits = False
        """The end was seen while the session wanted no input."""
        self._paused = False
        self._pumping = False
        self._error: Exception | None = None
        wire.set_protocol(self)

    @property
    def cipher(self) -> str:
        """Protocol, cipher and bits, as OpenSMTPD logs them: ``TLSv1.3:TLS_AES_256_GCM_SHA384:256``."""
        found = self._tls.cipher()
        assert found is not None, "asked before the handshake was over"
        return f"{self._tls.version()}:{found[0]}:{found[2]}"

    # -- the socket's transport calls these ---------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Decrypt."""
        if self._closing or self._ended:
            self._user.data_received(data)  # which throws it away, but not without end
            return
        self._incoming.write(data)
        if not self._ready and not self._handshake():
            return
        self._pump()

    def eof_received(self) -> bool:
        """Pass the end on. There need not be a close_notify: what a message is, its dot says."""
        if not self._ready:
            if not self._closing:
                self._fail("connection closed")
            return False
        if self._paused and not self._closing:
            self._end_waits = True  # behind what is not decrypted yet
            return True
        return self._end()

    def pause_writing(self) -> None:
        """Pass on."""
        self._user.pause_writing()

    def resume_writing(self) -> None:
        """Pass on."""
        self._user.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """Pass on, with the reason why we ended it if we did."""
        self._closing = True
        self._user.connection_lost(self._error or error)

    def _handshake(self) -> bool:
        """Go on with the handshake; return whether it is over and went well."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
            return False
        except ssl.SSLError as error:
            self._send()  # the alert that says why
            self._fail(describe(error))
            return False
        self._ready = True
        self._send()
        self._user.tls_ready()
        return not self._closing

    def _fail(self, problem: str) -> None:
        self._closing = True
        self._user.tls_failed(problem)

    def _pump(self) -> None:
        """Give the session what can be decrypted, as long as it wants more."""
        if self._pumping:
            return  # it said so from within; whoever pumps goes on
        self._pumping = True
        try:
            while not (self._paused or self._closing or self._ended):
                try:
                    data = self._tls.read(PIECE)
                except ssl.SSLWantReadError:
                    if not self._end_waits:
                        break
                    data = b""
                except ssl.SSLZeroReturnError:
                    data = b""
                except ssl.SSLError as error:
                    self._error = error
                    self._closing = True
                    self._send()  # the alert that says why
                    self._wire.abort()
                    return
                if data:
                    self._user.data_received(data)
                elif not self._end():
                    self.close()
        finally:
            self._pumping = False
        if not self._closing:
            self._send()  # OpenSSL answers some things itself, such as a request for new keys

    def _end(self) -> bool:
        if not self._ended:
            self._ended = True
            self._keep = bool(self._user.eof_received())
        return self._keep

    def _send(self) -> None:
        if self._outgoing.pending:
            self._wire.write(self._outgoing.read())

    def _notify(self) -> None:
        """Say close_notify; what the session wrote last is before it."""
        if self._closing:
            return
        self._closing = True
        if self._ready:
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()  # it would wait for the client's; we do not (RFC 8446 6.1)
            self._send()

    # -- the session calls these ---------------------------------------------------------------------

    def write(self, data: Any) -> None:
        """Encrypt and send."""
        if self._closing:
            return
        assert self._ready, "written before the handshake was over"
        self._tls.write(data)
        self._send()

    def can_write_eof(self) -> bool:
        """Return whether the socket can be half closed."""
        return self._wire.can_write_eof()

    def write_eof(self) -> None:
        """Say that nothing more will come."""
        self._notify()
        self._wire.write_eof()

    def close(self) -> None:
        """Send what is left, and close."""
        self._notify()
        self._wire.close()

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        self._wire.abort()

    def is_closing(self) -> bool:
        """Return whether the connection is being closed."""
        return self._closing or self._wire.is_closing()

    def pause_reading(self) -> None:
        """Decrypt no more until `resume_reading`."""
        self._paused = True
        self._wire.pause_reading()

    def resume_reading(self) -> None:
        """Decrypt again, first what is here already."""
        self._paused = False
        self._wire.resume_reading()
        self._pump()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the socket's transport says."""
        return self._wire.get_extra_info(name, default)


__all__ = ["TlsUser", "TlsWire", "describe"]
