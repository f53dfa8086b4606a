"""Policies of domains: looked up, fetched, and kept as long as the domains said (RFC 8461 3, 5.1).

The rules: a policy that was once had holds until its own max_age is over, whatever happens to DNS or HTTPS meanwhile;
so nobody makes it go away by breaking them. A domain whose policy was never had is one without. No delivery waits
longer than `FETCH_S`.
"""

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from mta.config import DnsConfig
from mta.core.limits import MtaLimits
from mta.effects import Effects
from mta.mtasts import Mode, StsPolicy, parse_policy, policy_id
from mta.nameserver import AnswerStatus, NameServers
from mta.stsfetch import FetchError, fetch

FETCH_S: Final = 60.0
"""Longest wait for a policy (RFC 8461 3.3)."""
FETCHES_MAX: Final = 20
"""Policies that are fetched at once. Ours."""
AGAIN_S: Final = 300.0
"""A domain whose policy could not be had is asked again after this; Postfix's and others' helpers take 5 minutes."""
ADDRESSES_MAX: Final = 3
"""Addresses of one policy host that are tried. Ours."""


class StsStats:
    """Counters since the start."""

    __slots__ = ("failed", "fetched")

    def __init__(self) -> None:
        self.fetched = 0
        """Policies that were had."""
        self.failed = 0
        """Policies that were announced and could not be had."""


@dataclass(slots=True)
class _Known:
    """What is known of one domain; times are of the effects' monotonic clock."""

    policy: StsPolicy | None = None
    id: str = ""
    expires_at: float = 0.0
    """Of the policy."""
    ask_at: float = 0.0
    """When the DNS is to be asked again whether there is a new one."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class StsPolicies:
    """The policies of all domains."""

    def __init__(
        self,
        servers: NameServers,
        config: DnsConfig,
        effects: Effects,
        context: ssl.SSLContext,
        *,
        port: int,
        limits: MtaLimits,
        log: Callable[[str], None],
    ) -> None:
        """Know nothing yet.

        Args:
            servers: answer for ``_mta-sts`` and ``mta-sts``.
            config: how long answers are kept.
            effects: to connect.
            context: of TLS, that verifies.
            port: of HTTPS.
            limits: ``sts_policies_max``, as it is when it is asked.
            log: takes one line.
        """
        self.stats = StsStats()
        self._servers = servers
        self._config = config
        self._effects = effects
        self.context = context
        """Of TLS, that verifies; may be replaced."""
        self._port = port
        self._limits = limits
        self._log = log
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._slots = asyncio.Semaphore(FETCHES_MAX)

    def __len__(self) -> int:
        """Return how many domains are known, those without a policy included."""
        return len(self._known)

    async def policy(self, domain: str) -> StsPolicy | None:
        """Return what holds for a domain now; None for no policy, and for one of mode ``none``."""
        known = self._known.setdefault(domain, _Known())
        self._known.move_to_end(domain)
        if self._effects.monotonic() >= known.ask_at:
            known.waiting += 1
            try:
                async with known.lock:
                    if self._effects.monotonic() >= known.ask_at:
                        await self._refresh(domain, known)
            finally:
                known.waiting -= 1
        self._forget_oldest()
        policy = known.policy if self._effects.monotonic() < known.expires_at else None
        return None if policy is None or policy.mode is Mode.NONE else policy

    async def _refresh(self, domain: str, known: _Known) -> None:
        try:
            async with asyncio.timeout(FETCH_S):
                await self._ask(domain, known)
        except (TimeoutError, FetchError, ValueError) as error:
            self.stats.failed += 1
            reason = "time-out" if isinstance(error, TimeoutError) else str(error)
            self._log(f"mta-sts: no policy fetched for {domain}: {reason}")
            known.ask_at = self._effects.monotonic() + AGAIN_S

    async def _ask(self, domain: str, known: _Known) -> None:
        """Ask the DNS whether there is a policy that we don't have; fetch it.

        Raises:
            FetchError: it can't be had.
            ValueError: it makes no sense.
        """
        config, now = self._config, self._effects.monotonic
        deadline = asyncio.get_running_loop().time() + config.lifetime_s
        answer = await self._servers.ask(f"_mta-sts.{domain}", "TXT", deadline=deadline)
        found = None
        ttl_s = config.negative_ttl_s
        if answer.status is AnswerStatus.OK:
            found = policy_id([b"".join(record.strings) for record in answer.records])
            ttl_s = min(max(answer.ttl_s, config.ttl_min_s), config.ttl_max_s)
        if found is None or (found == known.id and now() < known.expires_at):
            known.ask_at = now() + ttl_s
            return
        async with self._slots:
            body = await self._fetch(f"mta-sts.{domain}")
        policy = parse_policy(body)
        self.stats.fetched += 1
        known.policy, known.id = policy, found
        known.expires_at = now() + policy.max_age_s
        known.ask_at = now() + ttl_s
        self._log(
            f"mta-sts: policy of {domain} id={found} mode={policy.mode.value}"
            f" max-age={policy.max_age_s}"
        )

    async def _fetch(self, host: str) -> bytes:
        deadline = asyncio.get_running_loop().time() + self._config.lifetime_s
        addresses: list[str] = []
        for rdtype in ("A", "AAAA"):
            answer = await self._servers.ask(host, rdtype, deadline=deadline)
            addresses += [str(record.address) for record in answer.records]
        failure = FetchError("policy host has no address")
        for address in addresses[:ADDRESSES_MAX]:
            try:
                return await fetch(
                    self._effects, self.context, host, address, self._port, timeout_s=FETCH_S
                )
            except FetchError as error:
                failure = error
        raise failure

    def _forget_oldest(self) -> None:
        """Keep the bound; a domain that somebody waits for stays."""
        excess = len(self._known) - self._limits.sts_policies_max
        if excess <= 0:
            return
        idle = [domain for domain, known in self._known.items() if not known.waiting][:excess]
        for domain in idle:
            del self._known[domain]
