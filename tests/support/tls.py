"""TLS for tests: an authority of our own, and a client without sockets."""

import contextlib
import ssl
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import trustme

from tests.support.wire import Client

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.door import FakeDoor

NAME = "mx.test"


@cache
def authority() -> trustme.CA:
    return trustme.CA()


@cache
def server_context() -> ssl.SSLContext:
    """A server's, with a certificate for `NAME`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(NAME).configure_cert(context)
    return context


@cache
def client_context(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """A client's that trusts the authority and speaks one version."""
    context = ssl.create_default_context()
    context.minimum_version = context.maximum_version = version
    authority().configure_trust(context)
    return context


class Pair(NamedTuple):
    certificate: "Path"
    key: "Path"

    @property
    def config(self) -> dict[str, str]:
        return {"certificate": str(self.certificate), "key": str(self.key)}


def write_pair(directory: "Path", name: str = NAME, stem: str = "tls") -> Pair:
    """Write a certificate and its key, as an operator would have them."""
    issued = authority().issue_cert(name, "127.0.0.1")
    pair = Pair(directory / f"{stem}.crt", directory / f"{stem}.key")
    pair.certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    pair.key.touch(mode=0o600)
    pair.key.write_bytes(issued.private_key_pem.bytes())
    return pair


class SecureClient(Client):
    """A client whose `say` and `send` are encrypted once `secure` was called."""

    def __init__(self, door: "FakeDoor", **options) -> None:
        self.tls: ssl.SSLObject | None = None
        self.ended = False
        """The server said close_notify."""
        super().__init__(door, **options)

    def secure(self, context: ssl.SSLContext | None = None) -> str:
        """Do the handshake; return what the server says right after it."""
        self.begin(context)
        while True:
            try:
                assert self.tls is not None
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.exchange()
            else:
                self.exchange()
                return self.heard()

    def begin(self, context: ssl.SSLContext | None = None) -> None:
        """Get ready, without saying anything."""
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = (context or client_context()).wrap_bio(self._in, self._out, server_hostname=NAME)

    def hello(self) -> bytes:
        """Return the first bytes of a handshake."""
        self.begin()
        assert self.tls is not None
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return self._out.read()
        raise AssertionError

    def exchange(self) -> None:
        """Send what is to be sent, and take what comes."""
        data = self._out.read()
        if data and not self.wire.closing:
            assert self.wire.reading, "the server doesn't read now"
            self.feed(data)
        self._in.write(self.take_bytes())

    def encrypted(self, text: str) -> bytes:
        """Return what is to be sent for a text."""
        assert self.tls is not None
        self.tls.write(text.encode())
        return self._out.read()

    def heard(self) -> str:
        """Return what the server said."""
        assert self.tls is not None
        parts = []
        while True:
            try:
                part = self.tls.read(65536)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                part = b""
            if not part:
                self.ended = True
                break
            parts.append(part)
        return b"".join(parts).decode()

    def send(self, data: bytes | str) -> str:
        if self.tls is None:
            return super().send(data)
        self.tls.write(data.encode() if isinstance(data, str) else data)
        self.exchange()
        return self.heard()

    def starttls(self, context: ssl.SSLContext | None = None) -> "SecureClient":
        """Say EHLO and STARTTLS, shake hands, say EHLO again."""
        self.say("EHLO client.test")
        assert self.say("STARTTLS") == "220 2.0.0 Ready to start TLS\r\n"
        assert self.secure(context) == ""
        assert self.say("EHLO client.test").startswith("250-")
        return self

    def bye(self) -> None:
        """Say close_notify."""
        assert self.tls is not None
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self.exchange()
