"""Where the server listens for SMTP, and the sessions that came in there.

``smtp.listen`` is one listener, called ``smtp``; each of ``[[listeners]]`` is one more. All share one door:
its limits count the clients of all together.
"""

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from mta.acceptor import Acceptor
from mta.core.admission import parse_networks
from mta.core.settings import ConfigError
from mta.effects import Effects, NotLoopbackError
from mta.inbound import Inbound
from mta.inbound_door import Listener, TlsMode
from mta.preface import Prefaces
from mta.proxyprotocol import Announced

if TYPE_CHECKING:
    from mta.config import Config
    from mta.core.metrics import Metrics
    from mta.door import ServerDoor

FIRST = "smtp"
"""Name of the listener that ``smtp.listen`` is."""


FIB_TRIE: Final = Path("/proc/net/fib_trie")
IF_INET6: Final = Path("/proc/net/if_inet6")


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
    listener: Listener
    """What its sessions know of it."""


def listening(config: "Config", source: str) -> Iterator[Place]:
    """Yield where to listen, ``smtp.listen`` first.

    Raises:
        ConfigError: that is not ``address:port``.
    """
    auto: TlsMode = "none" if config.tls.certificate is None else "starttls"
    if config.smtp.listen:
        # No AUTH here: a relay's port is not where users send (RFC 6409).
        address, port = parse_address(source, "smtp.listen", config.smtp.listen)
        first = Listener(FIRST, auto)
        yield Place(FIRST, "smtp.listen", config.smtp.listen, address, port, first)
    for number, one in enumerate(config.listeners):
        key = f"listeners.{number}.address"
        address, port = parse_address(source, key, one.address)
        tls = auto if one.tls == "auto" else one.tls
        known = Listener(one.name, tls, one.auth, one.auth_requires_tls)
        yield Place(one.name, key, one.address, address, port, known)


def interface_addresses(effects: Effects) -> tuple[str, ...]:
    """Return the addresses of this host as Linux tells them, the loopback's aside; what it does not tell is missing.

    The like: Postfix inet_addr_local. ``/proc/net/fib_trie`` names each address, then says ``host LOCAL`` of ours.
    """
    found: dict[str, None] = {}
    with contextlib.suppress(OSError):
        before = ""
        for line in effects.read_file(FIB_TRIE, site="listeners").decode("latin-1").splitlines():
            if line.endswith("host LOCAL"):
                found[before.rpartition(" ")[2]] = None
            before = line
    with contextlib.suppress(OSError):
        for line in effects.read_file(IF_INET6, site="listeners").decode("latin-1").splitlines():
            digits = line.partition(" ")[0]
            found[":".join(digits[at : at + 4] for at in range(0, 32, 4))] = None
    result = []
    for text in found:
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(text)
            if not address.is_loopback:
                result.append(str(address))
    return tuple(result)


class Client(Inbound):
    """A session at the door that the server can find: to show it, and to send it away."""

    def __init__(
        self,
        door: "ServerDoor",
        listener: Listener,
        clients: "set[Client]",
        accepted: "Counter[str]",
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(door, listener, loop=loop)
        self._clients = clients
        self._accepted = accepted

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be found from now on."""
        self._clients.add(self)
        self._accepted[self.listener.name] += 1
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
        self._accepted: Counter[str] = Counter()
        self._config = config
        self._source = source
        self._door = door
        self._effects = effects
        self._log = log
        self._acceptors: list[Acceptor] = []
        self._places: list[Place] = []
        self._prefaces: dict[str, Prefaces] = {}
        """Of each listener, if there are proxies that announce their clients."""
        self._networks = parse_networks(config.smtp.proxy_networks)
        self._metrics = metrics
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
        for place in listening(self._config, self._source):
            acceptor = Acceptor(
                self._accept(place.listener),
                self._effects,
                limits=self._config.limits.smtp,
                log=self._log,
                on_refused=partial(self._door.rejected, connection=True),
                on_pause=self._count_pause,
                in_clear=place.listener.tls != "implicit",
            )
            try:
                acceptor.open(place.address, place.port, site="smtp")
            except OSError as error:
                raise unusable(self._source, place.key, place.text, error) from None
            self._acceptors.append(acceptor)
            self.addresses[place.name] = acceptor.name
            self._places.append(place)
        for place in self._places:
            address, port = self.addresses[place.name]
            self._log(
                f"smtp listening address={address} port={port} listener={place.name}"
                f" tls={place.listener.tls} auth={place.listener.auth} envelope={self._config.envelope} seed={seed}"
            )

    def stats(self) -> dict[str, int]:
        """Return connections by listener: ``smtp.listener.NAME.session`` open, ``....accepted`` so far.

        Empty if there is but one listener: the metrics of the door say it all.
        """
        if len(self._places) < 2:
            return {}
        sessions = Counter(client.listener.name for client in self.clients)
        found = {}
        for place in self._places:
            found[f"smtp.listener.{place.name}.session"] = sessions[place.name]
            found[f"smtp.listener.{place.name}.accepted"] = self._accepted[place.name]
        return found

    def _accept(self, listener: Listener) -> Callable[[], asyncio.BaseProtocol]:
        """Return what makes the first protocol of a connection."""
        if not self._networks:
            return partial(self._client, listener)
        prefaces = self._prefaces[listener.name] = Prefaces(
            partial(self._start, listener),
            self._networks,
            self._config.limits.smtp,
            metrics=self._metrics,
            log=self._log,
        )
        return prefaces.accept

    def _client(self, listener: Listener) -> Client:
        return Client(
            self._door, listener, self.clients, self._accepted, asyncio.get_running_loop()
        )

    def _start(
        self, listener: Listener, wire: asyncio.Transport, announced: Announced | None
    ) -> Client:
        """Make the session of a connection whose PROXY header was read, or that needs none."""
        del wire
        client = self._client(listener)
        client.announced = announced
        return client

    @property
    def proxies_waiting(self) -> int:
        """Connections whose PROXY header is not complete."""
        return sum(len(prefaces.waiting) for prefaces in self._prefaces.values())

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
        for prefaces in self._prefaces.values():
            prefaces.close()

    def cut_off(self) -> None:
        """End all connections at once."""
        for client in list(self.clients):
            client.cut_off()


__all__ = ["Client", "Listeners", "Place", "listening", "parse_address", "unusable"]
