"""Where the server listens for SMTP, and the sessions that came in there.

``smtp.listen`` is one listener, called ``smtp``; each of ``[[listeners]]`` is one more. All share one door:
its limits count the clients of all together.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from mta.acceptor import Acceptor
from mta.core.admission import parse_networks
from mta.core.settings import ConfigError
from mta.effects import Effects, NotLoopbackError
from mta.inbound import Inbound
from mta.preface import Prefaces
from mta.proxyprotocol import Announced

if TYPE_CHECKING:
    from mta.config import Config
    from mta.core.metrics import Metrics
    from mta.door import ServerDoor

FIRST = "smtp"
"""Name of the listener that ``smtp.listen`` is."""


def parse_address(source: str, key: str, value: str) -> tuple[str, int]:
    """Return address and port.

    Raises:
        ConfigError: the value at this key of the configuration ``source`` is not ``address:port``.
    """
    address, _, port = value.rpartition(":")
    if not address or not port.isdigit() or int(port) > 65535:
        raise ConfigError(source, key, value, "expected address:port")
    return address.strip("[]"), int(port)


def unusable(source: str, key: str, value: object, error: OSError) -> ConfigError:
    """Return what to tell the operator of something that the configuration names and the system refuses."""
    if error.errno == errno.EADDRINUSE:
        problem = "in use by another program"
    elif isinstance(error, NotLoopbackError):
        problem = "not a loopback address"
    elif isinstance(error, socket.gaierror):
        problem = "not an address"
    else:
        problem = os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
    return ConfigError(source, key, str(value), problem.lower())


class Place(NamedTuple):
    """Where to listen."""

    name: str
    key: str
    """Of the configuration, for errors."""
    text: str
    """What the configuration says."""
    address: str
    port: int
    """0: any that is free."""


def listening(config: "Config", source: str) -> Iterator[Place]:
    """Yield where to listen, ``smtp.listen`` first.

    Raises:
        ConfigError: that is not ``address:port``.
    """
    said = [(FIRST, "smtp.listen", config.smtp.listen)] if config.smtp.listen else []
    said += [
        (listener.name, f"listeners.{number}.address", listener.address)
        for number, listener in enumerate(config.listeners)
    ]
    for name, key, text in said:
        yield Place(name, key, text, *parse_address(source, key, text))


class Client(Inbound):
    """A session at the door that the server can find: to show it, and to send it away."""

    def __init__(
        self, door: "ServerDoor", clients: "set[Client]", loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(door, loop=loop)
        self._clients = clients

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be found from now on."""
        self._clients.add(self)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Be forgotten."""
        self._clients.discard(self)
        super().connection_lost(error)

    def cut_off(self) -> None:
        """End the connection at once."""
        if self._wire is not None:
            self._wire.abort()


class Listeners:
    """All listeners of a server: `open`, then `drain` or `close`, and `cut_off`."""

    def __init__(
        self,
        config: "Config",
        source: str,
        door: "ServerDoor",
        *,
        effects: Effects,
        metrics: "Metrics",
        log: Callable[[str], None],
    ) -> None:
        self.clients: set[Client] = set()
        """Sessions at the door."""
        self.addresses: dict[str, tuple[str, int]] = {}
        """Where each listener listens, by its name."""
        self._config = config
        self._source = source
        self._door = door
        self._effects = effects
        self._log = log
        self._metrics = metrics
        self._acceptors: list[Acceptor] = []
        self._prefaces = Prefaces(
            self._start,
            parse_networks(config.smtp.proxy_networks),
            config.limits.smtp,
            metrics=metrics,
            log=log,
        )
        door.on_stress = self._bind

    @property
    def address(self) -> tuple[str, int]:
        """Where the first of them listens."""
        return next(iter(self.addresses.values()), ("", 0))

    def open(self, *, seed: int) -> None:
        """Listen everywhere.

        Args:
            seed: to be told in the log.

        Raises:
            ConfigError: one of the places can't be had.
        """
        accept = self._prefaces.accept if self._prefaces.networks else self._client
        for place in listening(self._config, self._source):
            acceptor = Acceptor(
                accept,
                self._effects,
                limits=self._config.limits.smtp,
                log=self._log,
                on_refused=partial(self._door.rejected, connection=True),
                on_pause=self._count_pause,
            )
            try:
                acceptor.open(place.address, place.port, site="smtp")
            except OSError as error:
                raise unusable(self._source, place.key, place.text, error) from None
            self._acceptors.append(acceptor)
            self.addresses[place.name] = acceptor.name
        for listener, (address, port) in self.addresses.items():
            self._log(
                f"smtp listening address={address} port={port} listener={listener}"
                f" envelope={self._config.envelope} seed={seed}"
            )

    def _client(self) -> Client:
        return Client(self._door, self.clients, asyncio.get_running_loop())

    def _start(self, wire: asyncio.Transport, announced: Announced | None) -> Client:
        """Make the session of a connection whose PROXY header was read, or that needs none."""
        del wire
        client = self._client()
        client.announced = announced
        return client

    @property
    def proxies_waiting(self) -> int:
        """Connections whose PROXY header is not complete."""
        return len(self._prefaces.waiting)

    def _count_pause(self, paused: bool) -> None:
        """Count listeners that let nobody in for want of descriptors."""
        if paused:
            self._metrics.inc("smtp.accept.paused")
            self._metrics.inc("smtp.accept.pauses")
        else:
            self._metrics.dec("smtp.accept.paused")

    def _bind(self) -> None:
        """Bind open sessions by the limits that count now."""
        for client in list(self.clients):
            client.bind(self._door.limits)

    def drain(self) -> None:
        """Take no more connections, and send clients away as soon as no message is half-way."""
        self.close()
        for client in list(self.clients):
            client.drain()

    def close(self) -> None:
        """Take no more connections. Idempotent."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._prefaces.close()

    def cut_off(self) -> None:
        """End all connections at once."""
        for client in list(self.clients):
            client.cut_off()


__all__ = ["Client", "Listeners", "Place", "listening", "parse_address", "unusable"]
