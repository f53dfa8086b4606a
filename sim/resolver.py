"""MX look-ups of the model: a cache that obeys TTLs in front of scripted name servers.

What is asked and for how long it is kept is that of mta/resolver.py: MX first, then the addresses of all
hosts at once; one look-up at a time for each domain, and `LOOKUPS_MAX` in all. The core asks again only when an answer has
expired, so that nothing is looked up twice at once.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, TypeAlias

from mta.core.routing import MxHost, Resolution, ResolutionStatus
from sim.behaviours.dns import DnsAnswer, DnsVerdict
from sim.kernel import Kernel
from sim.remote import NameServer
from sim.scenario import MxAnswer

NEGATIVE_TTL_S = 60.0
"""What the scripted name servers let others keep a name that is not there."""

LOOKUPS_MAX: Final = 100
"""Domains looked up at once; others wait, as long as a look-up may take. mta/resolver.py."""

_TEMPORARY = "Temporary failure in MX lookup"


_Told: TypeAlias = Callable[[tuple[str, Resolution]], None]


@dataclass(slots=True)
class DnsSettings:
    """The resolver's part of the server's configuration: the keys and defaults of ``dns``."""

    nameserver: str = ""
    timeout_s: float = 5.0
    lifetime_s: float = 15.0
    cache_max: int = 10_000
    ttl_min_s: float = 5.0
    ttl_max_s: float = 86_400.0
    negative_ttl_s: float = 60.0
    cname_max: int = 8
    trust_ad: bool = False


class Resolver:
    """Answers look-ups after as long as the name servers take."""

    def __init__(
        self,
        kernel: Kernel,
        settings: DnsSettings,
        *,
        records: Mapping[str, Sequence[MxAnswer]],
        destinations: Mapping[str, int],
        servers: Sequence[NameServer],
        network_s: float,
        max_mx: int = 20,
    ) -> None:
        """Get ready, with an empty cache.

        Args:
            kernel: the clock.
            settings: what the server is configured with.
            records: mail exchangers of every domain.
            destinations: domain -> index into ``servers``.
            servers: what decides about answers.
            network_s: time of a look-up beside the scripted delays.
            max_mx: ``limits.mta.max_mx``.
        """
        self._kernel = kernel
        self._settings = settings
        self._records = records
        self._destinations = destinations
        self._servers = servers
        self._network_s = network_s
        self._max_mx = max_mx
        self._cache: OrderedDict[str, tuple[float, Resolution]] = OrderedDict()
        self._running = 0
        self._waiting: deque[tuple[str, _Told]] = deque()
        self.hits = 0
        self.misses = 0
        self.gave_up = 0
        """Look-ups that were never made: others took too long."""

    def lose(self) -> None:
        """The process is gone, and its cache with it."""
        self._cache.clear()
        self._running = 0
        self._waiting.clear()

    def cached(self, domain: str) -> Resolution | None:
        """Return the answer if it is known, with the rest of its TTL."""
        kept = self._cache.get(domain)
        if kept is None:
            return None
        left = kept[0] - self._kernel.now
        if left <= 0:
            del self._cache[domain]
            return None
        self._cache.move_to_end(domain)
        self.hits += 1
        return kept[1]._replace(ttl_s=left)

    def look_up(self, domain: str, after: float, told: _Told) -> None:
        """Ask the name servers ``after`` seconds from now, and tell what they said."""
        self.misses += 1
        self._kernel.schedule(after, self._ask, (domain, told))

    def _ask(self, question: tuple[str, _Told]) -> None:
        """Ask, or wait for one of those who do to be done."""
        if self._running >= LOOKUPS_MAX:
            self._waiting.append(question)
            self._kernel.schedule(self._settings.lifetime_s, self._give_up, question)
            return
        self._running += 1
        domain, told = question
        seconds, resolution = self._answer(domain)
        self._kernel.schedule(seconds + self._network_s, self._answered, (domain, resolution, told))

    def _give_up(self, question: tuple[str, _Told]) -> None:
        """To queue behind servers that are silent would only make the answer late."""
        # All are as patient: who gives up has waited longest.
        if not self._waiting or self._waiting[0] is not question:
            return
        self._waiting.popleft()
        self.gave_up += 1
        domain, told = question
        # That says nothing about the domain: it is not kept as long as a failure of its own.
        busy = self._temporary()._replace(ttl_s=self._settings.ttl_min_s)
        self._keep(domain, busy)
        told((domain, busy))

    def _answered(self, answer: tuple[str, Resolution, _Told]) -> None:
        domain, resolution, told = answer
        self._running -= 1
        if self._waiting:
            self._ask(self._waiting.popleft())
        self._keep(domain, resolution)
        told((domain, resolution))

    def _keep(self, domain: str, resolution: Resolution) -> None:
        self._cache[domain] = (self._kernel.now + resolution.ttl_s, resolution)
        self._cache.move_to_end(domain)
        while len(self._cache) > self._settings.cache_max:
            self._cache.popitem(last=False)

    def _answer(self, domain: str) -> tuple[float, Resolution]:
        """Return how long a look-up takes and what comes of it."""
        settings = self._settings
        if domain.startswith("["):
            return 0.0, self._smart_host(domain[1:-1])
        answers = self._records.get(domain)
        number = self._destinations.get(domain)
        if answers is None or number is None:
            return 0.0, self._negative(ResolutionStatus.NO_DOMAIN)
        server = self._servers[number]
        now = self._kernel.now
        exchangers = _asked(server, now, domain)
        if exchangers.answer is DnsAnswer.TIMEOUT or exchangers.delay_s > settings.lifetime_s:
            return settings.lifetime_s, self._temporary()
        taken = exchangers.delay_s
        status = _STATUS.get(exchangers.answer)
        if status is ResolutionStatus.RETRY:
            return taken, self._temporary()
        if status is ResolutionStatus.NULL_MX:
            ttl_s = self._clamped(exchangers.ttl_s)
            return taken, Resolution(status, (), ttl_s, "Domain does not accept mail")
        if status is ResolutionStatus.NO_DOMAIN:
            return taken, self._negative(status)
        if status is ResolutionStatus.NO_MX:
            # The scripted domains have no address of their own: the implicit MX leads nowhere.
            taken += _asked(server, now + taken, domain).delay_s
            return taken, self._negative(status)
        # Addresses of all hosts at once, IPv4 and IPv6 (mta/resolver.py).
        slowest = 0.0
        ttl_s = float(exchangers.ttl_s)
        hosts: dict[str, MxHost] = {}
        failed = False
        named = [(answer.preference, answer.host, answer.address) for answer in answers]
        # Beside the true ones, as many as can matter: they have no addresses.
        extra = min(exchangers.exchangers, self._max_mx)
        named += [(exchangers.preference, f"x{n}.{domain}", "") for n in range(extra)]
        named.sort()
        for preference, host, where in named[: self._max_mx]:
            address = _asked(server, now + taken, host)
            other = _asked(server, now + taken, host)
            for verdict in (address, other):
                late = verdict.answer is DnsAnswer.TIMEOUT
                slowest = max(slowest, settings.lifetime_s if late else verdict.delay_s)
                failed |= late or _STATUS.get(verdict.answer) is ResolutionStatus.RETRY
            if where and address.answer not in _NO_ADDRESS:
                ttl_s = min(ttl_s, float(address.ttl_s))
                hosts[host] = MxHost(preference, host, (where,))
        taken = min(taken + slowest, settings.lifetime_s)
        if not hosts:
            return taken, self._temporary()
        ttl_s = self._clamped(ttl_s)
        if failed:
            ttl_s = min(ttl_s, settings.negative_ttl_s)
        ordered = sorted(hosts.values(), key=lambda host: (host.preference, host.name))
        return taken, Resolution(ResolutionStatus.OK, tuple(ordered), ttl_s)

    def _smart_host(self, name: str) -> Resolution:
        """Return the addresses of a host without asking for MX: those of the scenario answer at once."""
        known = {answer.host: answer.address for mx in self._records.values() for answer in mx}
        address = known.get(name, name)
        try:
            ip_address(address)
        except ValueError:
            return self._negative(ResolutionStatus.NO_DOMAIN)
        host = MxHost(0, name, (address,))
        return Resolution(ResolutionStatus.OK, (host,), self._settings.ttl_max_s)

    def _clamped(self, ttl_s: float) -> float:
        return min(max(ttl_s, self._settings.ttl_min_s), self._settings.ttl_max_s)

    def _temporary(self) -> Resolution:
        ttl_s = self._settings.negative_ttl_s
        return Resolution(ResolutionStatus.RETRY, (), ttl_s, _TEMPORARY)

    def _negative(self, status: ResolutionStatus) -> Resolution:
        ttl_s = min(self._settings.negative_ttl_s, NEGATIVE_TTL_S)
        return Resolution(status, (), ttl_s, status.value)


_NO_ADDRESS = (
    DnsAnswer.SERVFAIL, DnsAnswer.REFUSED, DnsAnswer.TIMEOUT, DnsAnswer.NXDOMAIN, DnsAnswer.LAME,
)  # fmt: skip
"""A missing or null MX is about mail exchangers only."""


def _asked(server: NameServer, now: float, name: str) -> DnsVerdict:
    """Return what a question comes to: what is truncated is asked again over TCP."""
    verdict = server.decide(now, name)
    if verdict.answer is not DnsAnswer.TRUNCATED:
        return verdict
    again = server.decide(now + verdict.delay_s, name)
    return again._replace(delay_s=verdict.delay_s + again.delay_s)


_STATUS = {
    DnsAnswer.SERVFAIL: ResolutionStatus.RETRY,
    DnsAnswer.REFUSED: ResolutionStatus.RETRY,
    DnsAnswer.LAME: ResolutionStatus.RETRY,
    DnsAnswer.NXDOMAIN: ResolutionStatus.NO_DOMAIN,
    DnsAnswer.NODATA: ResolutionStatus.NO_MX,
    DnsAnswer.NULL_MX: ResolutionStatus.NULL_MX,
}
