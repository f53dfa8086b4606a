"""Fetching one file over HTTPS: what MTA-STS wants, and nothing that HTTP can do besides (RFC 8461 3.3).

The certificate has to be good, the answer has to be 200 and ``text/plain``, redirects are not followed, and the
file is bounded before it is kept. The caller bounds the time.
"""

import asyncio
import ssl
from typing import Final

import h11

from mta.effects import Effects
from mta.mtasts import POLICY_BYTES_MAX
from mta.tlspipe import TlsPipe

HEADER_BYTES_MAX: Final = 16 * 1024
"""Longest header of an answer. h11's own default."""
PATH: Final = "/.well-known/mta-sts.txt"


class FetchError(Exception):
    """There is no file to be had; the text says why, in our words."""


async def fetch(
    effects: Effects,
    context: ssl.SSLContext,
    name: str,
    address: str,
    port: int,
    *,
    timeout_s: float,
) -> bytes:
    """Return the policy file of the host ``name``, which has this address.

    Raises:
        FetchError: it can't be had.
        TimeoutError: ``timeout_s`` passed.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()
    try:
        async with asyncio.timeout(timeout_s):
            transport, _ = await effects.create_connection(
                lambda: _Fetch(done, context, name, port),
                address,
                port,
                timeout_s=timeout_s,
                site="mta-sts",
            )
            try:
                return await done
            finally:
                transport.abort()
    except TimeoutError:
        raise
    except OSError:
        raise FetchError("host can't be reached") from None
    finally:
        # A connection that failed while it was made has told its end to nobody.
        if not done.cancel() and not done.cancelled():
            done.exception()


class _Fetch(asyncio.Protocol):
    """One request and its answer."""

    def __init__(
        self, done: "asyncio.Future[bytes]", context: ssl.SSLContext, name: str, port: int
    ) -> None:
        self._done = done
        self._context = context
        self._name = name
        self._port = port
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEADER_BYTES_MAX)
        self._body = bytearray()
        self._tls: TlsPipe
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        try:
            self._tls = TlsPipe(self._context, self._name)
        except (ValueError, ssl.SSLError):
            self._fail("name can't be verified")
            return
        self._transport.write(self._tls.take())

    def data_received(self, data: bytes) -> None:
        if self._done.done():
            return
        before = self._tls.established
        try:
            said = self._tls.feed(data)
            if self._tls.established and not before:
                self._ask()
            if records := self._tls.take():
                self._transport.write(records)
            if said:
                self._http.receive_data(said)
            if self._tls.ended:
                self._http.receive_data(b"")
            if said or self._tls.ended:
                self._read()
        except ssl.SSLCertVerificationError as error:
            self._fail(f"certificate is not trusted: {error.verify_message.rstrip('.')}")
        except ssl.SSLError:
            self._fail("TLS failed")
        except h11.RemoteProtocolError:
            self._fail("answer is not HTTP")

    def connection_lost(self, exc: Exception | None) -> None:
        # Without close_notify the end may be an attacker's: a file of unknown length was cut, maybe.
        self._fail("connection was closed")

    def _ask(self) -> None:
        host = self._name if self._port == 443 else f"{self._name}:{self._port}"
        request = h11.Request(
            method="GET",
            target=PATH,
            headers=[("Host", host), ("Accept", "text/plain"), ("Connection", "close")],
        )
        for event in (request, h11.EndOfMessage()):
            self._tls.send(self._http.send(event) or b"")

    def _read(self) -> None:
        while not self._done.done():
            event = self._http.next_event()
            match event:
                case h11.Response():
                    self._judge(event)
                case h11.Data():
                    self._body += event.data
                    if len(self._body) > POLICY_BYTES_MAX:
                        self._fail(f"policy is longer than {POLICY_BYTES_MAX} bytes")
                case h11.EndOfMessage():
                    self._done.set_result(bytes(self._body))
                case h11.InformationalResponse():
                    pass
                case _:
                    if event is h11.ConnectionClosed():
                        self._fail("connection was closed")
                    return

    def _judge(self, response: h11.Response) -> None:
        if response.status_code != 200:
            self._fail(f"status is {response.status_code}")
            return
        types = [value for key, value in response.headers if key == b"content-type"]
        if [each.partition(b";")[0].strip().lower() for each in types] != [b"text/plain"]:
            self._fail("content type is not text/plain")

    def _fail(self, why: str) -> None:
        if not self._done.done():
            self._done.set_exception(FetchError(why))
