"""TLS without sockets: one connection's records in and out of memory (RFC 8446), as the client.

Why not the event loop's own TLS? So the bytes that came in clear can't get behind the handshake, sessions can be
resumed, the certificate is looked at before anything is said, and one deadline rules handshake and dialogue alike; and
both event loops do the same.
"""

import contextlib
import hashlib
import ssl
from typing import Final

_READ_BYTES: Final = 256 * 1024


class TlsPipe:
    """One TLS connection. What `feed` and `send` produce for the peer waits for `take`."""

    __slots__ = ("_ended", "_established", "_incoming", "_outgoing", "_tls")

    def __init__(
        self,
        context: ssl.SSLContext,
        server_name: str | None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        """Begin the handshake.

        Raises:
            ValueError: ``server_name`` can't be a name.
            ssl.SSLError: ours, of the context.
        """
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=server_name, session=session
        )
        self._established = False
        self._ended = False
        self._shake()

    @property
    def established(self) -> bool:
        """The handshake is done, and the context is content with the peer."""
        return self._established

    @property
    def ended(self) -> bool:
        """The peer said that nothing follows (close_notify)."""
        return self._ended

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the network and return what they say, which may be nothing.

        Raises:
            ssl.SSLError: garbage, an alert, a certificate that the context does not want. An alert for the
                peer may wait for `take`.
        """
        if data:
            self._incoming.write(data)
        if not self._established and not self._shake():
            return b""
        pieces: list[bytes] = []
        try:
            while piece := self._tls.read(_READ_BYTES):
                pieces.append(piece)
            self._ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._ended = True
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def send(self, data: bytes) -> None:
        """Say something to the peer.

        Raises:
            ssl.SSLError: the connection is broken.
        """
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]

    def take(self) -> bytes:
        """Return what is to be written to the network now."""
        return self._outgoing.read()

    def close(self) -> None:
        """Say that nothing follows; `take` has it."""
        with contextlib.suppress(ssl.SSLError, ValueError):
            self._tls.unwrap()

    def _shake(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self._established = True
        return True

    # What was agreed

    def ciphers(self) -> str:
        """Return ``TLSv1.3:TLS_AES_256_GCM_SHA384:256``, as libtls and OpenSMTPD's log have it."""
        cipher = self._tls.cipher()
        name, _, bits = cipher if cipher else ("unknown", "", 0)
        return f"{self._tls.version() or 'unknown'}:{name}:{bits}"

    @property
    def resumed(self) -> bool:
        """An earlier session goes on: no certificate was sent."""
        return bool(self._tls.session_reused)

    @property
    def session(self) -> ssl.SSLSession | None:
        """What can be resumed later. With TLS 1.3 it comes with the first data, after the handshake."""
        return self._tls.session

    def certificate(self) -> bytes:
        """Return the peer's certificate in DER, or nothing."""
        return self._tls.getpeercert(binary_form=True) or b""

    def chain(self) -> tuple[bytes, ...]:
        """Return the certificates that the peer sent, its own first, in DER; nobody has vouched for them."""
        find = getattr(self._tls, "get_unverified_chain", None)
        if find is not None:  # Python 3.13
            return tuple(find())
        # Before 3.13 only the C object can say; it has been there, unchanged, since 3.10.
        chain = self._tls._sslobj.get_unverified_chain() or ()  # type: ignore[attr-defined]
        return tuple([ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in chain])


def fingerprint(certificate: bytes) -> str:
    """Return ``SHA256:`` with hexadecimal digits, as libtls' ``tls_peer_cert_hash``."""
    return f"SHA256:{hashlib.sha256(certificate).hexdigest()}"
