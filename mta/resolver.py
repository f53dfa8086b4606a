"""Which hosts take mail for a domain: MX look-up with a cache (RFC 5321 5.1, RFC 7505).

The rule: only NXDOMAIN, the absence of all records, and a null MX are permanent. Whatever else goes
wrong is temporary and is forgotten soon. No look-up takes longer than ``lifetime_s`` plus its wait for
a slot, which is bounded by the same time, however many domains a dead name server has to answer for.
"""

import asyncio
import ipaddress
from collections import OrderedDict
from typing import Any, Final, NamedTuple

from mta.config import DnsConfig
from mta.core.routing import MxHost, Resolution, ResolutionStatus
from mta.effects import Effects
from mta.nameserver import Answer, AnswerStatus, NameServers

LOOKUPS_MAX: Final = 100
"""Domains looked up at once."""
QUERIES_PER_LOOKUP_MAX: Final = 8
"""Questions that one domain may have open at once."""

TEMPORARY = "Temporary failure in MX lookup"
NO_DOMAIN = "Domain does not exist"
NO_MX = "No MX found for domain"
NULL_MX = "Domain does not accept mail"
BAD_DOMAIN = "Invalid domain name"
"""The words of OpenSMTPD mta.c, mta_on_mx."""
NO_ADDRESS = "No MX of the domain has an address"


class ResolverStats:
    """Counters since the start."""

    __slots__ = ("failures", "hits", "joined", "misses")

    def __init__(self) -> None:
        self.hits = 0
        """Answers from the cache."""
        self.misses = 0
        """Look-ups made."""
        self.joined = 0
        """Callers that waited for a look-up that was under way."""
        self.failures = 0
        """Look-ups that ended in RETRY."""


class _Kept(NamedTuple):
    resolution: Resolution
    expires_at: float
    secure: frozenset[str]
    """Hosts that DNSSEC leads to: the domain's MX records and the host's addresses are validated."""


class Resolver:
    """Looks domains up, each at most once at a time."""

    def __init__(
        self, config: DnsConfig, effects: Effects, *, max_mx: int, max_addresses: int
    ) -> None:
        """Ask nobody yet.

        Raises:
            ValueError: ``config.nameserver`` is no address with a port; the message says what is
                expected.
        """
        self.stats = ResolverStats()
        self._config = config
        self._effects = effects
        self.set_limits(max_mx=max_mx, max_addresses=max_addresses)
        self._servers = NameServers(config, effects)
        self._cache: OrderedDict[str, _Kept] = OrderedDict()
        self._running: dict[str, asyncio.Task[Resolution]] = {}
        self._tasks: set[asyncio.Task[Resolution]] = set()
        self._slots = asyncio.Semaphore(LOOKUPS_MAX)
        self._generation = 0

    def set_limits(self, *, max_mx: int, max_addresses: int) -> None:
        """Consider so many mail exchangers and addresses from the next look-up on."""
        self._max_mx = max_mx
        self._max_addresses = max_addresses

    def __len__(self) -> int:
        """Return how many domains are kept."""
        return len(self._cache)

    @property
    def servers(self) -> NameServers:
        """The name servers, for other questions."""
        return self._servers

    async def is_secure(self, domain: str, host: str) -> bool:
        """Say whether DNSSEC has validated the way from a domain to one of its hosts (RFC 7672 2.2).

        Asks as `resolve` does if the answer is not kept any more.
        """
        await self.resolve(domain)
        kept = self._cache.get(domain.lower().rstrip("."))
        return kept is not None and host.lower() in kept.secure

    @property
    def pending(self) -> int:
        """Look-ups under way."""
        return len(self._running)

    async def resolve(self, domain: str) -> Resolution:
        """Return the hosts for a domain, sorted by preference and name.

        ``domain`` is a domain in A-labels; an address literal (``[192.0.2.1]``, ``[IPv6:2001:db8::1]``,
        or bare), which is its own host; or ``[host.example]``, whose addresses are taken without
        asking for MX, as Postfix's ``relayhost`` has it.

        A caller that is cancelled does not stop the look-up: others may wait for it, and what it
        finds is kept.
        """
        key = domain.lower().rstrip(".")
        literal = address_literal(key)
        if literal is not None:
            host = MxHost(0, domain, (literal,))
            return Resolution(ResolutionStatus.OK, (host,), self._config.ttl_max_s)
        kept = self._cache.get(key)
        if kept is not None:
            left = kept.expires_at - self._effects.monotonic()
            if left > 0:
                self._cache.move_to_end(key)
                self.stats.hits += 1
                return kept.resolution._replace(ttl_s=left)
            del self._cache[key]
        task = self._running.get(key)
        if task is None:
            self.stats.misses += 1
            task = asyncio.get_running_loop().create_task(
                self._look_up_and_keep(key, self._generation), name=f"resolve {key[:80]}"
            )
            self._running[key] = task
            self._tasks.add(task)
            task.add_done_callback(lambda ended: self._ended(key, ended))
        else:
            self.stats.joined += 1
        # Not wait_for, not await task: cancelling one who waits must not cancel for all.
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            asked = asyncio.current_task()
            if task.cancelled() and asked is not None and not asked.cancelling():
                return self._temporary("Server is stopping")  # see `close`
            raise

    def flush(self) -> None:
        """Forget all answers; what is being looked up now will not be kept."""
        self._cache.clear()
        self._generation += 1
        # Who asks after this gets a look-up of its own.
        self._running.clear()
        self._servers.forget()

    async def close(self) -> None:
        """Stop all look-ups; whoever waits for one gets RETRY. Idempotent."""
        while tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            # Why again and again? dnspython waits with asyncio.wait_for, which before Python 3.12
            # loses a cancellation that comes in the same turn of the loop as its result.
            await asyncio.wait(tasks, timeout=0.05)

    def _ended(self, key: str, task: asyncio.Task[Resolution]) -> None:
        self._tasks.discard(task)
        if self._running.get(key) is task:
            del self._running[key]

    async def _look_up_and_keep(self, key: str, generation: int) -> Resolution:
        resolution, secure = await self._look_up(key)
        if resolution.status is ResolutionStatus.RETRY:
            self.stats.failures += 1
        if generation == self._generation:
            expires_at = self._effects.monotonic() + resolution.ttl_s
            self._cache[key] = _Kept(resolution, expires_at, secure)
            self._cache.move_to_end(key)
            while len(self._cache) > self._config.cache_max:
                self._cache.popitem(last=False)
        return resolution

    async def _look_up(self, key: str) -> tuple[Resolution, frozenset[str]]:
        """Wait for a slot, then ask; each of the two takes at most ``lifetime_s``."""
        lifetime_s = self._config.lifetime_s
        try:
            async with asyncio.timeout(lifetime_s):
                await self._slots.acquire()
        except TimeoutError:
            # As many domains as there are slots are waiting for servers that are silent. To queue
            # behind them would only make the answer late.
            # That says nothing about the domain, so it is not kept as long as a failure of its own.
            busy = self._temporary("Too many look-ups are waiting")
            return busy._replace(ttl_s=self._config.ttl_min_s), frozenset()
        try:
            deadline = asyncio.get_running_loop().time() + lifetime_s
            lookup = _Lookup(self, deadline)
            resolution = await lookup.run(key)
            return resolution, frozenset(lookup.secure if lookup.way_is_secure else ())
        finally:
            self._slots.release()

    def _temporary(self, why: str) -> Resolution:
        text = f"{TEMPORARY}: {why}"
        return Resolution(ResolutionStatus.RETRY, (), self._config.negative_ttl_s, text)

    def _permanent(self, status: ResolutionStatus, text: str) -> Resolution:
        return Resolution(status, (), self._config.negative_ttl_s, text)


class _Lookup:
    """One look-up of one domain."""

    __slots__ = (
        "_config",
        "_deadline",
        "_resolver",
        "_servers",
        "_slots",
        "secure",
        "way_is_secure",
    )

    def __init__(self, resolver: Resolver, deadline: float) -> None:
        self.secure: set[str] = set()
        """Hosts whose addresses are validated."""
        self.way_is_secure = True
        """What names them is validated, or the operator has named them."""
        self._resolver = resolver
        self._config = resolver._config
        self._servers = resolver._servers
        self._deadline = deadline
        self._slots = asyncio.Semaphore(QUERIES_PER_LOOKUP_MAX)

    async def run(self, key: str) -> Resolution:
        """Return what there is to know about a domain."""
        resolver = self._resolver
        if key.startswith("[") and key.endswith("]"):
            return await self._addresses_only(key[1:-1])
        answer = await self._servers.ask(key, "MX", deadline=self._deadline)
        self.way_is_secure = answer.secure
        match answer.status:
            case AnswerStatus.RETRY:
                return resolver._temporary(answer.text)
            case AnswerStatus.BAD_NAME:
                return resolver._permanent(ResolutionStatus.NO_DOMAIN, BAD_DOMAIN)
            case AnswerStatus.NO_NAME:
                return resolver._permanent(ResolutionStatus.NO_DOMAIN, NO_DOMAIN)
            case AnswerStatus.NO_DATA:
                return await self._addresses_only(key)
            case AnswerStatus.OK:
                return await self._exchangers(answer)

    async def _addresses_only(self, name: str) -> Resolution:
        """Take a name as its own exchanger: the implicit MX of RFC 5321 5.1."""
        resolver = self._resolver
        found = await self._addresses(name)
        if found.addresses:
            hosts = _spread([(0, name, found.addresses)], resolver._max_addresses)
            return self._positive(hosts, found.ttl_s, whole=found.whole)
        if not found.whole:
            return resolver._temporary(found.text)
        if found.status is AnswerStatus.BAD_NAME:
            return resolver._permanent(ResolutionStatus.NO_DOMAIN, BAD_DOMAIN)
        if found.status is AnswerStatus.NO_NAME:
            return resolver._permanent(ResolutionStatus.NO_DOMAIN, NO_DOMAIN)
        return resolver._permanent(ResolutionStatus.NO_MX, NO_MX)

    async def _exchangers(self, answer: Answer) -> Resolution:
        """Find the addresses of the hosts that MX records name."""
        resolver = self._resolver
        preferences: dict[str, int] = {}
        for record in answer.records:
            name = _host_name(record.exchange)
            # OpenSMTPD takes `MX localhost` for a null MX, too (dns.c).
            if name not in ("", "localhost"):
                preferences[name] = min(record.preference, preferences.get(name, 65535))
        named = sorted((preference, name) for name, preference in preferences.items())
        if not named:
            ttl_s = self._clamp(answer.ttl_s)
            return Resolution(ResolutionStatus.NULL_MX, (), ttl_s, NULL_MX)
        named = named[: resolver._max_mx]
        found = await asyncio.gather(*[self._addresses(name) for _, name in named])
        hosts = _spread(
            [
                (preference, name, addresses.addresses)
                for (preference, name), addresses in zip(named, found, strict=True)
            ],
            resolver._max_addresses,
        )
        whole = all(addresses.whole for addresses in found)
        if not hosts:
            # RFC 5321 5.1 calls it an error. Ours is temporary, as OpenSMTPD's: the domain wants
            # mail, and a host without an address is more often an accident than an intention.
            return resolver._temporary(NO_ADDRESS)
        ttl_s = min(
            [answer.ttl_s, *(addresses.ttl_s for addresses in found if addresses.addresses)]
        )
        return self._positive(hosts, ttl_s, whole=whole)

    async def _addresses(self, name: str) -> "_Addresses":
        """Look up IPv4 and IPv6 addresses of a host."""
        four, six = await asyncio.gather(self._ask(name, "A"), self._ask(name, "AAAA"))
        texts = sorted({str(record.address) for record in four.records})
        texts += sorted({str(record.address) for record in six.records})
        ttls = [answer.ttl_s for answer in (four, six) if answer.status is AnswerStatus.OK]
        with_addresses = [each for each in (four, six) if each.records]
        if with_addresses and all(each.secure for each in with_addresses):
            self.secure.add(name)
        retry = [answer.text for answer in (four, six) if answer.status is AnswerStatus.RETRY]
        return _Addresses(
            tuple(texts),
            min(ttls, default=0.0),
            whole=not retry,
            status=four.status,
            text=retry[0] if retry else "",
        )

    async def _ask(self, name: str, rdtype: str) -> Answer:
        async with self._slots:
            return await self._servers.ask(name, rdtype, deadline=self._deadline)

    def _positive(self, hosts: tuple[MxHost, ...], ttl_s: float, *, whole: bool) -> Resolution:
        ttl_s = self._clamp(ttl_s)
        if not whole:
            # Some host's addresses are missing for now: ask again soon.
            ttl_s = min(ttl_s, self._config.negative_ttl_s)
        return Resolution(ResolutionStatus.OK, hosts, ttl_s)

    def _clamp(self, ttl_s: float) -> float:
        return min(max(ttl_s, self._config.ttl_min_s), self._config.ttl_max_s)


class _Addresses(NamedTuple):
    addresses: tuple[str, ...]
    ttl_s: float
    whole: bool
    """No name server failed on the way."""
    status: AnswerStatus
    """Of the question for A."""
    text: str


def address_literal(text: str) -> str | None:
    """Return the address that a literal stands for (RFC 5321 4.1.3), or None if it is a name."""
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if inner[:5].lower() == "ipv6:":
        inner = inner[5:]
    try:
        return str(ipaddress.ip_address(inner))
    except ValueError:
        return None


def _host_name(name: Any) -> str:
    """Return a dnspython name as lower-case text without the final dot; the root is empty."""
    text: str = name.to_text(omit_final_dot=True).lower()
    return "" if text in (".", "@") else text


def _spread(
    hosts: list[tuple[int, str, tuple[str, ...]]], addresses_max: int
) -> tuple[MxHost, ...]:
    """Return the hosts that have addresses, with at most ``addresses_max`` in all.

    Why in rounds? A first host with a hundred addresses must not hide the others.
    """
    taken = [0] * len(hosts)
    left = addresses_max
    while left > 0:
        before = left
        for index, (_, _, addresses) in enumerate(hosts):
            if left > 0 and taken[index] < len(addresses):
                taken[index] += 1
                left -= 1
        if left == before:
            break
    return tuple(
        MxHost(preference, name, addresses[:count])
        for (preference, name, addresses), count in zip(hosts, taken, strict=True)
        if count
    )
