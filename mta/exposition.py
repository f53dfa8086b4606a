"""``GET /metrics`` for Prometheus: one page over HTTP/1.1, a connection per request, loopback only.

Names are those of `mta.core.metrics` as Prometheus writes them: ``scheduler.envelope.inflight`` is
``mta_scheduler_envelope_inflight``, ``mta.session`` is ``mta_session``, and counters end in ``_total``. Besides, what every Prometheus
client tells of its process: memory, CPU time, descriptors, start.

A scraper can't hurt mail: requests, connections and their time are bounded.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, cast

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from mta.core.metrics import METRICS, Kind
from mta.effects import Effects, NotLoopbackError, is_loopback

PREFIX: Final = "mta_"
LISTENER: Final = "smtp.listener."
"""What `mta.listeners.Listeners.stats` counts begins so; the listener's name follows."""


def prometheus_name(name: str) -> str:
    """Return what Prometheus calls a metric, without the ``_total`` of counters."""
    return PREFIX + name.removeprefix("mta.").replace(".", "_").replace("-", "_")


def _by_listener(values: Mapping[str, int | float]) -> Iterator[Metric]:
    """Yield what is counted by listener; its name is a label."""
    sessions = GaugeMetricFamily(
        f"{PREFIX}smtp_listener_session", "Open connections by listener", labels=["listener"]
    )
    accepted = CounterMetricFamily(
        f"{PREFIX}smtp_listener_accepted", "Connections by listener", labels=["listener"]
    )
    for name, value in values.items():
        if name.startswith(LISTENER):
            listener, _, what = name.removeprefix(LISTENER).partition(".")
            family = sessions if what == "session" else accepted
            family.add_metric([listener], float(value))
    if sessions.samples:
        yield sessions
        yield accepted


@dataclass(frozen=True, slots=True)
class ExpositionLimits:
    """What scrapers may do. All ours."""

    max_conn: int = 16
    """Open connections; one more gets 503."""
    max_request: int = 8 * 1024
    """Bytes of a request with its header."""
    timeout_s: float = 5.0
    """Seconds from connect until the answer is read."""


class _Ours(Collector):
    """The server's own metrics, read when somebody asks."""

    def __init__(self, snapshot: Callable[[], Mapping[str, int | float]]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        values = self._snapshot()
        for name, metric in METRICS.items():
            if name not in values:
                continue
            title = prometheus_name(name)
            value = float(values[name])
            if metric.kind is Kind.COUNTER:
                yield CounterMetricFamily(title, metric.help, value=value)
            else:
                yield GaugeMetricFamily(title, metric.help, value=value)

        yield from _by_listener(values)

    def describe(self) -> list[Metric]:
        """Promise nothing, so that registering does not ask for a snapshot."""
        return []


class Exposition:
    """The endpoint. `start`, then `close`; both on the event loop's thread."""

    def __init__(
        self,
        snapshot: Callable[[], Mapping[str, int | float]],
        effects: Effects,
        *,
        limits: ExpositionLimits | None = None,
    ) -> None:
        """Make an endpoint that does not listen yet.

        Args:
            snapshot: returns all values by the names of `mta.core.metrics`; others are left out.
            effects: how it listens.
            limits: what scrapers may do.
        """
        self.limits = limits or ExpositionLimits()
        self._effects = effects
        self._server: asyncio.Server | None = None
        self._gone: asyncio.Future[None] | None = None
        """Done when the last connection is gone."""
        self._scrapers: set[_Scraper] = set()
        # Why a registry of our own? The default one has whatever other libraries put there.
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Ours(snapshot))
        ProcessCollector(registry=self._registry)

    async def start(self, address: str, port: int) -> int:
        """Listen; return the port.

        Raises:
            NotLoopbackError: the address is reachable from elsewhere.
            OSError: the port is taken, or not ours to take.
        """
        if not is_loopback(address):
            raise NotLoopbackError(address)
        self._server = await self._effects.create_server(
            lambda: _Scraper(self), address, port, backlog=16, site="metrics"
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and cut scrapers off. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        for _ in range(4):
            # Why? So many turns asyncio takes from accept to connection_made; a connection that is
            # between the two when its server closes is lost with its descriptor.
            await asyncio.sleep(0)
        server.close()
        for scraper in list(self._scrapers):
            scraper.abort()
        if self._scrapers:
            # Why not leave it to wait_closed? Before Python 3.12 it does not wait for connections.
            self._gone = asyncio.get_running_loop().create_future()
            await self._gone
        await server.wait_closed()

    def page(self) -> bytes:
        """Return the page as it is now."""
        return generate_latest(self._registry)

    def join(self, scraper: "_Scraper") -> bool:
        """Count a connection; return False if there are too many."""
        self._scrapers.add(scraper)
        return len(self._scrapers) <= self.limits.max_conn

    def leave(self, scraper: "_Scraper") -> None:
        """Forget a connection."""
        self._scrapers.discard(scraper)
        if not self._scrapers and self._gone is not None and not self._gone.done():
            self._gone.set_result(None)


class _Scraper(asyncio.Protocol):
    """One connection: one request, one answer."""

    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition
        self._input = bytearray()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Why no isinstance? uvloop's transports are none of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._exposition.limits.timeout_s, self.abort)
        if not self._exposition.join(self):
            self._answer("503 Service Unavailable", b"too many connections\n")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._deadline is not None:
            self._deadline.cancel()
        self._exposition.leave(self)

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return
        self._input += data
        if b"\r\n\r\n" in self._input or b"\n\n" in self._input:
            self._respond(bytes(self._input.split(b"\n", 1)[0].strip()))
        elif len(self._input) > self._exposition.limits.max_request:
            self._answer("431 Request Header Fields Too Large", b"request too large\n")

    def eof_received(self) -> bool:
        if not self._answered:
            self._answer("400 Bad Request", b"bad request\n")
        return True

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _respond(self, line: bytes) -> None:
        words = line.split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            self._answer("400 Bad Request", b"bad request\n")
        elif words[0] not in (b"GET", b"HEAD"):
            self._answer(
                "405 Method Not Allowed", b"method not allowed\n", extra="Allow: GET, HEAD\r\n"
            )
        elif words[1].split(b"?", 1)[0] != b"/metrics":
            self._answer("404 Not Found", b"there is only /metrics\n")
        else:
            self._answer(
                "200 OK", self._exposition.page(), CONTENT_TYPE_LATEST, head=words[0] == b"HEAD"
            )

    def _answer(
        self,
        status: str,
        body: bytes,
        content_type: str = "text/plain; charset=utf-8",
        *,
        extra: str = "",
        head: bool = False,
    ) -> None:
        self._answered = True
        if self._transport is None:
            return
        header = (
            f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
            f"{extra}Connection: close\r\n\r\n"
        )
        self._transport.write(header.encode("ascii") + (b"" if head else body))
        self._transport.close()
