"""A mail exchanger with TLS on loopback, whose certificate and handshake go wrong as told."""

import asyncio
import base64
import contextlib
import datetime
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trustme

NAME = "mx.test"


class Authority:
    """A test CA with its certificates; made once, because keys take time."""

    def __init__(self) -> None:
        now = datetime.datetime.now(datetime.UTC)
        self.ca = trustme.CA()
        self.good = self.ca.issue_cert(NAME, "127.0.0.1", "*.wild.test")
        self.wrong_name = self.ca.issue_cert("other.test")
        self.expired = self.ca.issue_cert(NAME, not_after=now - datetime.timedelta(days=1))
        self.stranger = trustme.CA().issue_cert(NAME)

    def context(self, kind: str = "good") -> ssl.SSLContext:
        """Return a server's context with one of the certificates."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        getattr(self, kind).configure_cert(context)
        return context

    @contextlib.contextmanager
    def file(self) -> Any:
        """Give the CA's certificate as a PEM file."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "ca.pem"
            path.write_bytes(self.ca.cert_pem.bytes())
            yield path


_authority: list[Authority] = []


def authority() -> Authority:
    """Return this process's test CA."""
    if not _authority:
        _authority.append(Authority())
    return _authority[0]


class TlsMx:
    """A server that takes mail, over TLS if the client asks.

    Behaviour ``starttls``: ``offered``; ``none``; ``hidden`` (works, but is not offered); bytes that answer STARTTLS
    instead; ``injects`` (220 and more in the same segment); ``garbage``, ``close``, ``hang``, ``drips``, ``reset`` after its 220.
    """

    def __init__(
        self,
        *,
        starttls: str | bytes = "offered",
        certificate: str = "good",
        implicit: bool = False,
        auth: str = "",
        logins: dict[str, str] | None = None,
        auth_answer: bytes = b"",
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.starttls = starttls
        self.implicit = implicit
        self.auth = auth
        self.logins = logins or {}
        self.auth_answer = auth_answer
        self.context = context or authority().context(certificate)
        self.context.sni_callback = self._sni
        self.breaks = False
        """The answer to the final dot is in clear."""
        self.names: list[str | None] = []
        """Of SNI, one for each handshake."""
        self.messages: list[tuple[bool, bytes]] = []
        """(under TLS, message)."""
        self.lines: list[tuple[bool, bytes]] = []
        """(under TLS, command)."""
        self.resumed: list[bool] = []
        self.connections = 0
        self.clean_ends = 0
        """Connections that ended with EOF, not with a reset."""
        self.asked = asyncio.Event()
        """Somebody said STARTTLS."""
        self.port = 0
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def _sni(self, connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        self.names.append(name)

    @contextlib.asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator["TlsMx"]:
        """Serve; at the end wait for all connections to be gone."""
        options = {"ssl": self.context} if self.implicit else {}
        server = await asyncio.start_server(self._serve, "127.0.0.1", port, **options)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self._stop.set()
            server.close()
            await asyncio.gather(*self._tasks)
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._talk(reader, writer)
            self.clean_ends += 1
        except (OSError, EOFError):
            pass
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _offers(self, secure: bool) -> bytes:
        offers = [NAME, "SIZE 1000000"]
        if not secure and self.starttls not in ("none", "hidden"):
            offers.append("STARTTLS")
        if self.auth:
            offers.append(f"AUTH {self.auth}")
        ends = ["-"] * (len(offers) - 1) + [" "]
        return "".join(f"250{e}{o}\r\n" for e, o in zip(ends, offers, strict=True)).encode()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        secure = self.implicit
        if secure:
            self.resumed.append(writer.get_extra_info("ssl_object").session_reused)
        writer.write(b"220 hello\r\n")
        while line := await reader.readline():
            self.lines.append((secure, line))
            verb = line[:4].upper().strip()
            if verb == b"EHLO":
                writer.write(self._offers(secure))
            elif verb == b"STAR":
                if not await self._start(reader, writer):
                    continue
                secure = True
            elif verb == b"AUTH":
                await self._log_in(line, reader, writer)
            elif verb == b"DATA":
                writer.write(b"354 go\r\n")
                message = await reader.readuntil(b"\r\n.\r\n")
                self.messages.append((secure, message))
                if self.breaks:
                    writer.transport._ssl_protocol._transport.write(b"250 taken\r\n")  # type: ignore[attr-defined]
                    await self._stop.wait()
                    raise EOFError
                writer.write(b"250 2.0.0 taken\r\n")
            elif verb == b"QUIT":
                writer.write(b"221 2.0.0 bye\r\n")
                await writer.drain()
                await reader.read()
                return
            else:
                writer.write(b"250 2.0.0 ok\r\n")
            await writer.drain()

    async def _start(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        how = self.starttls
        self.asked.set()
        if isinstance(how, bytes):
            writer.write(how)
            return False
        writer.write(b"220 go\r\n250 2.0.0 evil\r\n" if how == "injects" else b"220 go\r\n")
        await writer.drain()
        if how == "garbage":
            await reader.read(1)  # earlier, it would count as injected
            writer.write(b"500 what is this?\r\n" * 3)
            await writer.drain()
        if how == "close":
            raise EOFError
        if how == "reset":
            writer.transport.abort()
            raise EOFError
        if how == "drips":
            await reader.read(1)
            # The head of a record that never comes, one byte at a time.
            for byte in b"\x16\x03\x03\x3f\xff" + b"\x02" * 100:
                writer.write(bytes([byte]))
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), 0.02)
        if how in ("hang", "garbage", "injects", "drips"):
            await self._stop.wait()
            raise EOFError
        await writer.start_tls(self.context, ssl_handshake_timeout=10)
        self.resumed.append(writer.get_extra_info("ssl_object").session_reused)
        return True

    async def _log_in(
        self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self.auth_answer:
            writer.write(self.auth_answer)
            return
        words = line.split()
        if words[1].upper() == b"PLAIN":
            _, user, password = base64.b64decode(words[2]).decode().split("\0")
        else:
            writer.write(b"334 VXNlcm5hbWU6\r\n")
            user = base64.b64decode(await reader.readline()).decode()
            writer.write(b"334 UGFzc3dvcmQ6\r\n")
            password = base64.b64decode(await reader.readline()).decode()
        good = self.logins.get(user) == password
        writer.write(b"235 2.7.0 welcome\r\n" if good else b"535 5.7.8 no\r\n")
