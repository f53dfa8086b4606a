"""Connections of trusted proxies, until their PROXY header is read; everybody else goes straight through.

It works on the raw transport, before TLS and before the greeting, and reads no octet behind the header.
Time, size and number of headers that are waited for are limited; a proxy that exceeds them is cut off without a
word, because nobody knows what it would take for an answer.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from mta.core.admission import Network, is_in
from mta.proxyprotocol import Announced, HeaderReader, ProxyError

if TYPE_CHECKING:
    from mta.core.limits import SmtpLimits
    from mta.core.metrics import Metrics

Start: TypeAlias = Callable[[asyncio.Transport, Announced | None], asyncio.Protocol]
"""Begins a session on a transport, for the client announced or the one that connected.

It returns the protocol that input goes to from now on; `asyncio.Protocol.connection_made` is called on it next.
For implicit TLS it can return one that starts the handshake: nothing behind the header was read."""


class Prefaces:
    """Makes the first protocol of each connection of a listener: ``create_server(prefaces.accept, ...)``."""

    def __init__(
        self,
        start: Start,
        networks: Sequence[Network],
        limits: "SmtpLimits",
        *,
        metrics: "Metrics",
        log: Callable[[str], None],
    ) -> None:
        """Trust ``networks`` to announce clients; without any, nobody waits for anything.

        Args:
            start: begins a session.
            networks: addresses of proxies, which must announce their clients.
            limits: ``proxy_timeout_s``, ``max_proxy_header``, and ``max_conn`` for those that wait.
            metrics: counts them.
            log: takes a line.
        """
        self.start = start
        self.networks = networks
        self.limits = limits
        self.metrics = metrics
        self.log = log
        self.waiting: set[Preface] = set()
        """Connections whose header is not complete."""
        self.closed = False

    def accept(self) -> "Preface":
        """Return the protocol of a new connection."""
        return Preface(self)

    def close(self) -> None:
        """Cut off who waits, now and later. Idempotent."""
        self.closed = True
        for preface in list(self.waiting):
            preface.cut_off("shutdown", is_failure=False)


class Preface(asyncio.BufferedProtocol):
    """One connection until its header is read. Buffered, because it says how much may be read."""

    def __init__(self, owner: Prefaces) -> None:
        """Prepare; `connection_made` decides if there is anything to read."""
        self._owner = owner
        self._reader: HeaderReader | None = None
        self._buffer = bytearray()
        self._wire: asyncio.Transport | None = None
        self._peer = "unknown"
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a header if a trusted proxy has connected."""
        owner = self._owner
        # uvloop's transports are Transports by behaviour only.
        self._wire = wire = cast("asyncio.Transport", transport)
        peername = wire.get_extra_info("peername")
        if isinstance(peername, tuple) and peername:
            self._peer = str(peername[0]).removeprefix("::ffff:")
        if not owner.networks or not is_in(self._peer, owner.networks):
            self._hand_over(None)
            return
        owner.waiting.add(self)
        if owner.closed or len(owner.waiting) > owner.limits.max_conn:
            self.cut_off("too many", is_failure=not owner.closed)
            return
        self._reader = HeaderReader(size_max=owner.limits.max_proxy_header)
        self._timer = asyncio.get_running_loop().call_later(
            owner.limits.proxy_timeout_s, self.cut_off, "timeout"
        )

    def get_buffer(self, sizehint: int) -> bytearray:
        """Return room for what surely is the header's."""
        del sizehint
        assert self._reader is not None
        # After cut_off nothing is wanted, but a loop may ask once more, and may not be given nothing.
        self._buffer = bytearray(self._reader.wanted or 1)
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take octets."""
        reader = self._reader
        if reader is None or self not in self._owner.waiting:
            return
        try:
            is_complete = reader.feed(bytes(self._buffer[:nbytes]))
        except ProxyError as error:
            self.cut_off(str(error))
            return
        if is_complete:
            self._leave()
            self._hand_over(reader.announced)

    def eof_received(self) -> bool:
        """There will be no header."""
        self.cut_off("closed")
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """The proxy is gone."""
        if self in self._owner.waiting:
            self.cut_off("closed")
        self._wire = None

    def cut_off(self, reason: str, *, is_failure: bool = True) -> None:
        """End the connection; once."""
        if self not in self._owner.waiting:
            return
        self._leave()
        self._owner.log(f'smtp proxy-failed address={self._peer} reason="{reason}"')
        if is_failure:
            self._owner.metrics.inc("smtp.proxy.failed")
        assert self._wire is not None
        self._wire.abort()

    def _leave(self) -> None:
        self._owner.waiting.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hand_over(self, announced: Announced | None) -> None:
        """Let the session begin on the transport, as if it had just been made."""
        wire = self._wire
        assert wire is not None
        self._wire = None
        if self._reader is None:
            # Nothing is read yet: only the protocol changes.
            protocol: Any = self._owner.start(wire, announced)
            wire.set_protocol(protocol)
            protocol.connection_made(wire)
            return
        # Why paused? uvloop goes on with the calls of the old protocol while it reads.
        wire.pause_reading()
        protocol = self._owner.start(wire, announced)
        wire.set_protocol(protocol)
        wire.resume_reading()
        protocol.connection_made(wire)


__all__ = ["Preface", "Prefaces", "Start"]
