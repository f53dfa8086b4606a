"""What the configuration names beside limits: name servers, certificates, passwords, tables, addresses to listen on.

`mta serve` and `mta check` read the same things in the same way, so that what `check` calls good does start, on a
machine whose ports and queue directory are free.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mta.addressing import Addressing
from mta.certificates import Certificates
from mta.core.admission import parse_networks
from mta.core.settings import ConfigError
from mta.effects import Effects
from mta.listeners import listening, parse_address
from mta.log import Log
from mta.outtls import OutboundTls
from mta.passwords import Passwords
from mta.resolver import Resolver
from mta.trace import Tracer

if TYPE_CHECKING:
    from mta.config import Config
    from mta.core.relayrules import RelayRules


class Readings(NamedTuple):
    """Parts of a server that are made of files and names; who gets them closes them."""

    resolver: Resolver
    outbound_tls: OutboundTls
    addressing: Addressing | None
    """None without ``[[rules]]``."""
    certificates: Certificates | None
    """None without ``[tls]``."""
    passwords: Passwords | None
    """None without ``[auth]``."""


def read(
    config: "Config",
    source: str,
    *,
    rules: "RelayRules",
    effects: Effects,
    log: Log,
    tracer: Tracer,
) -> Readings:
    """Read everything.

    Args:
        config: what names it.
        source: the configuration's file, for errors.
        rules: what is different for which destination.
        effects: how it is read.
        log: for later, when something is read again.
        tracer: for whoever wants to see look-ups.

    Raises:
        ConfigError: one of them can't be used.
    """
    _check_networks(config, source)
    mta = config.limits.mta
    try:
        resolver = Resolver(config.dns, effects, max_mx=mta.max_mx, max_addresses=mta.max_addresses)
    except ValueError as error:
        raise ConfigError(source, "dns.nameserver", config.dns.nameserver, str(error)) from None
    outbound = OutboundTls(
        config, effects, rules=rules, source=source, resolver=resolver, log=log.info
    )
    # Why last? Only tables have something to close.
    certificates = passwords = addressing = None
    if config.tls.certificate is not None:
        certificates = Certificates(
            config.tls, effects=effects, source=source, log=log.info, warn=log.warn
        )
    if config.auth.file is not None or config.auth.users:
        passwords = Passwords(
            config.auth, effects=effects, source=source, log=log.info, warn=log.warn
        )
    if config.rules:
        addressing = Addressing(config, effects=effects, source=source, log=log, tracer=tracer)
    return Readings(resolver, outbound, addressing, certificates, passwords)


def trace(config: "Config", source: str, tracer: Tracer) -> None:
    """Trace what the configuration wants to be traced from the start.

    Raises:
        ConfigError: there is no such subsystem.
    """
    for number, subsystem in enumerate(config.log.trace):
        try:
            tracer.set(subsystem, True)
        except ValueError as error:
            raise ConfigError(source, f"log.trace.{number}", subsystem, str(error)) from None


async def check(config: "Config", source: str, effects: Effects) -> None:
    """Read everything, as a server would, and let go of it. Opens no port, no queue and no log.

    Raises:
        ConfigError: something can't be used.
    """
    tuple(listening(config, source))
    if config.control.metrics:
        parse_address(source, "control.metrics", config.control.metrics)
    log = Log(effects, Path(os.devnull), host=config.hostname, pid=os.getpid())
    try:
        tracer = Tracer(log)
        trace(config, source, tracer)
        rules = config.relay_rules()
        found = read(config, source, rules=rules, effects=effects, log=log, tracer=tracer)
        if found.addressing is not None:
            found.addressing.close()
        await found.resolver.close()
    finally:
        log.close()


def _check_networks(config: "Config", source: str) -> None:
    """Raise ConfigError if one of ``smtp``'s lists of networks has what is none."""
    smtp = config.smtp
    for key, networks in (
        ("relay_networks", smtp.relay_networks),
        ("xclient_networks", smtp.xclient_networks),
        ("proxy_networks", smtp.proxy_networks),
    ):
        try:
            parse_networks(networks)
        except ValueError as error:
            raise ConfigError(source, f"smtp.{key}", list(networks), str(error)) from None
