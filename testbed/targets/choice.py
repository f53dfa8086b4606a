"""Which targets there are, which of them can run here, and how one is made."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from sim.scenario import Scenario
from testbed import packages
from testbed.children import UsageError
from testbed.targets import apart
from testbed.targets.exim import Exim
from testbed.targets.opensmtpd import OpenSmtpd
from testbed.targets.ours import OurServer
from testbed.targets.peer import HOSTNAME, PeerServer
from testbed.targets.postfix import Postfix
from testbed.world.handle import World

OURS: Final = "ours"

PEERS: Final[Mapping[str, type[PeerServer]]] = {
    "postfix": Postfix,
    "opensmtpd": OpenSmtpd,
    "exim": Exim,
}

TARGETS: Final = (OURS, *PEERS)
"""By the names that ``--target`` takes."""


def why_not(name: str) -> str:
    """Return why a target can't run here, with what to do about it; empty if it can.

    Raises:
        UsageError: there is no such target.
    """
    if name == OURS:
        return ""
    if name not in PEERS:
        raise UsageError(f"--target: there is no {name}; there are {', '.join(TARGETS)}")
    peer = packages.find(name)
    if not peer.is_here:
        return f"{name} is not here: {peer.how}"
    reason = apart.why_not()
    return f"{name} can't be set apart here: {reason}" if reason else ""


@contextlib.contextmanager
def placed_world(name: str, scenario: Path, directory: Path) -> Iterator[World]:
    """Give a world for a target: for other servers one with ports 25 and 53, in a network of its own.

    Raises:
        UsageError: that is not allowed here.
        WorldError: the world does not start.
    """
    with contextlib.ExitStack() as stack:
        smtp_port, dns_port = 0, 0
        if name in PEERS:
            stack.enter_context(apart.private_network())
            smtp_port, dns_port = 25, 53
        yield stack.enter_context(
            World(scenario, record_dir=directory, smtp_port=smtp_port, dns_port=dns_port)
        )


def make_target(
    name: str, directory: Path, scenario: Scenario, world: World, overrides: Mapping[str, Any]
) -> OurServer | PeerServer:
    """Return a server that is not started yet.

    Args:
        name: how our server keeps envelopes, or another server.
        directory: takes all its files.
        scenario: for the seed, and whether there is TLS in its world.
        world: where it delivers to; see `placed_world`.
        overrides: the ``server`` table of the configuration.
    """
    if name in PEERS:
        nameserver = world.dns.rpartition(":")[0]
        return make_peer(name, directory, overrides=overrides, nameserver=nameserver)
    has_tls = any(each.tls != "none" for each in scenario.destinations)
    return OurServer(
        directory,
        representation=name,
        overrides=overrides,
        seed=scenario.seed,
        relay_port=world.smtp_port,
        nameserver=world.dns,
        ca_file=world.ca_file if has_tls else None,
        pair=_pair(scenario),
        comes_back=any(event.restart for event in scenario.timeline),
        has_disk=any(event.disk for event in scenario.timeline),
    )


def _pair(scenario: Scenario) -> tuple[bytes, bytes] | None:
    """Return a certificate and its key for our server if the load says STARTTLS."""
    if not scenario.load.tls:
        return None
    from testbed.world.tls import Authority  # the library behind it is large, and rarely wanted

    return Authority(scenario.seed, time.time()).pair(HOSTNAME, "127.0.0.1")


def make_peer(
    name: str, directory: Path, *, overrides: Mapping[str, Any], nameserver: str
) -> PeerServer:
    """Return another server, ready to be started in a directory.

    Raises:
        UsageError: it can't run here.
    """
    reason = why_not(name)
    if reason:
        raise UsageError(reason)
    return PEERS[name](directory, packages.find(name), overrides=overrides, nameserver=nameserver)
