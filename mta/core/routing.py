"""Which hosts to try for a domain, and in which order (RFC 5321 5.1)."""

import enum
import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple

from mta.core.reply import Outcome

if TYPE_CHECKING:
    from random import Random


class ResolutionStatus(enum.Enum):
    """What a look-up of mail exchangers ended in."""

    OK = "ok"
    RETRY = "retry"
    """The name servers did not answer, or with SERVFAIL or REFUSED: temporary."""
    NO_DOMAIN = "no-domain"
    """NXDOMAIN: permanent."""
    NO_MX = "no-mx"
    """Neither MX nor address records: permanent by RFC 5321 5.1."""
    NULL_MX = "null-mx"
    """The domain says that it takes no mail (RFC 7505): permanent, 556 5.1.10."""


class MxHost(NamedTuple):
    """One mail exchanger with its addresses."""

    preference: int
    """Lower is tried first."""
    name: str
    addresses: tuple[str, ...]


class Resolution(NamedTuple):
    """The answer of the resolver for one domain."""

    status: ResolutionStatus
    hosts: tuple[MxHost, ...] = ()
    ttl_s: float = 300.0
    """How long the answer holds."""
    text: str = ""
    """For the log and the bounce."""


class Target(NamedTuple):
    """One address to try."""

    preference: int
    host: str
    """Name of the MX that the address belongs to."""
    address: str


LOOPS_BACK = (Outcome.PERMFAIL, "554 5.4.6 Mail loops back to myself")
"""What `order_targets` means with an empty answer. RFC 5321 5.1: we are the best mail exchanger, but we do
not deliver to this domain. Postfix: status=bounced, dsn=5.4.6 (mail for ... loops back to myself)."""

_LEVEL = 65_536
"""Between the preferences of two smart hosts: MX preferences have 16 bits."""

_FAILURES: dict[ResolutionStatus, tuple[Outcome, str]] = {
    ResolutionStatus.RETRY: (Outcome.TEMPFAIL, "451 4.4.3 Temporary failure in MX lookup"),
    ResolutionStatus.NO_DOMAIN: (Outcome.PERMFAIL, "550 5.1.2 Domain does not exist"),
    ResolutionStatus.NO_MX: (Outcome.PERMFAIL, "550 5.4.4 No MX found for domain"),
    ResolutionStatus.NULL_MX: (Outcome.PERMFAIL, "556 5.1.10 Domain does not accept mail"),
}
"""Texts of OpenSMTPD (mta.c, ``mta_on_mx``); codes of RFC 3463, RFC 7504 and RFC 7505."""

_NO_ADDRESS = (Outcome.TEMPFAIL, "451 4.4.4 No address found for any mail exchanger")
"""The MX records are there, what they point to is not. RFC 5321 5.1 wants an error, but not which: zones
that are being edited are common enough to wait for."""


def failure_of(resolution: Resolution) -> tuple[Outcome, str] | None:
    """Return why a domain can't be delivered to, or None if it has addresses.

    The status has the form of a reply, as it stands in the log and in the bounce. After None,
    `order_targets` can come out empty for one reason only: `LOOPS_BACK`.
    """
    if resolution.status is not ResolutionStatus.OK:
        return _FAILURES[resolution.status]
    if not any(host.addresses for host in resolution.hosts):
        return _NO_ADDRESS
    return None


def order_targets(
    resolution: Resolution,
    *,
    own_names: Collection[str],
    own_addresses: Collection[str],
    max_mx: int,
    max_addresses: int,
    rng: "Random",
) -> tuple[Target, ...]:
    """Return the addresses to try, best first (RFC 5321 5.1).

    Hosts of one preference are shuffled; the addresses of a host keep the order of the name server. If
    we are among the hosts, by name or by address, only hosts of strictly better preference remain,
    so that mail can't go round between backup exchangers. An address counts once, where it is best.

    Args:
        resolution: what the resolver answered.
        own_names: names of ours, as in the greeting.
        own_addresses: addresses that we take mail on; ``127.0.0.0/8`` is a whole network.
        max_mx: exchangers considered, ours not counted; at least 1.
        max_addresses: addresses considered; at least 1.
        rng: shuffles. Same seed, same order, in whatever order the name server lists the records.
    """
    assert min(max_mx, max_addresses) >= 1, (max_mx, max_addresses)
    names = {_name(name) for name in own_names}
    addresses = {_address(address) for address in own_addresses}
    networks = [ip_network(each) for each in own_addresses if "/" in each]
    hosts = sorted((host for host in resolution.hosts if host.addresses), key=_by_preference)
    own = [host.preference for host in hosts if _is_own(host, names, addresses, networks)]
    if own:
        hosts = [host for host in hosts if host.preference < min(own)]
    targets: list[Target] = []
    seen: set[str] = set()
    considered = 0
    for _, group in itertools.groupby(hosts, key=lambda host: host.preference):
        level = list(group)
        rng.shuffle(level)
        for host in level:
            considered += 1
            if considered > max_mx:
                return tuple(targets)
            for address in host.addresses:
                canonical = _address(address)
                if canonical in seen:
                    continue
                if len(targets) == max_addresses:
                    return tuple(targets)
                seen.add(canonical)
                targets.append(Target(host.preference, host.name, address))
    return tuple(targets)


def order_hosts(
    resolutions: Sequence[Resolution],
    *,
    smart: bool,
    balance: bool,
    own_names: Collection[str],
    own_addresses: Collection[str],
    max_mx: int,
    max_addresses: int,
    rng: "Random",
) -> tuple[tuple[Target, ...], tuple[Outcome, str] | None]:
    """Return the addresses to try, best first, and why there are none if there are none.

    A smart host that can't be found is a mistake of the configuration, or of the name server: temporary, whatever
    the answer says (Postfix smtp_connect.c pretends the same). Another one may still be found.

    Args:
        resolutions: of the domain; or of each smart host, in their order.
        smart: these are smart hosts.
        balance: all smart hosts are as good as the first.
        own_names: as for `order_targets`, and so on.
        own_addresses: our addresses.
        max_mx: exchangers considered, of each.
        max_addresses: addresses considered, in all.
        rng: shuffles.
    """
    targets: dict[str, Target] = {}
    failures: list[tuple[Outcome, str]] = []
    for number, resolution in enumerate(resolutions):
        failure = failure_of(resolution)
        found: tuple[Target, ...] = ()
        if failure is None:
            found = order_targets(
                resolution,
                own_names=own_names,
                own_addresses=own_addresses,
                max_mx=max_mx,
                max_addresses=max_addresses,
                rng=rng,
            )
            failure = None if found else LOOPS_BACK
        if failure is not None:
            failures.append(failure)
        level = 0 if balance else number * _LEVEL
        for target in found:
            place = Target(target.preference + level, target.host, target.address)
            targets.setdefault(_address(target.address), place)
    if targets:
        ordered = sorted(targets.values(), key=lambda target: target.preference)
        return tuple(ordered[:max_addresses]), None
    outcome, status = failures[0]
    if smart and outcome is Outcome.PERMFAIL:
        return (), (Outcome.TEMPFAIL, f"451 4.3.5 {status.split(' ', 2)[2]}")
    return (), (outcome, status)


def _by_preference(host: MxHost) -> tuple[int, str, tuple[str, ...]]:
    return host.preference, _name(host.name), host.addresses


def own_by_port(
    listening: Iterable[tuple[str, int]], interfaces: Callable[[], Collection[str]]
) -> dict[int, tuple[str, ...]]:
    """Return which addresses and networks are us, by port.

    Args:
        listening: address and port of each listener. All addresses (``0.0.0.0``, ``::`` or empty) are those of the
            interfaces and the loopback network; one of all IPv6 addresses takes IPv4 too, where the system lets it.
        interfaces: returns the addresses of this host; asked only if that matters.
    """
    found: dict[int, dict[str, None]] = {}
    for address, port in listening:
        mine = found.setdefault(port, {})
        if _address(address or "::") in ("0.0.0.0", "::"):  # noqa: S104  # read, not bound
            mine.update(dict.fromkeys(("127.0.0.0/8", "::1", *interfaces())))
        else:
            mine[address] = None
    return {port: tuple(mine) for port, mine in found.items()}


def _is_own(
    host: MxHost,
    names: Collection[str],
    addresses: Collection[str],
    networks: Sequence[IPv4Network | IPv6Network],
) -> bool:
    own = [_address(address) for address in host.addresses]
    if _name(host.name) in names or any(address in addresses for address in own):
        return True
    return any(ip_address(address) in network for address in own for network in networks)


def _name(name: str) -> str:
    """Return a host name in the form in which names are compared."""
    return name.lower().removesuffix(".")


def _address(address: str) -> str:
    """Return an address in the form in which addresses are compared: ``::1``, not ``0:0:0::1``."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address.lower()
    mapped = getattr(parsed, "ipv4_mapped", None)
    return str(parsed if mapped is None else mapped)
