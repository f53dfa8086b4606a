"""TLSA look-ups (RFC 6698): what the DNS says about the certificate of a host's port, with a cache.

The rule: only an answer that DNSSEC has validated counts. One that says there is nothing, and one that nobody vouches
for, are the same: no DANE. A look-up that fails is neither, and the host has to wait (RFC 7672 2.2).
"""

import asyncio
from collections import OrderedDict
from typing import NamedTuple

from mta.config import DnsConfig
from mta.effects import Effects
from mta.nameserver import Answer, AnswerStatus, NameServers
from mta.tlsplan import Tlsa


class TlsaAnswer(NamedTuple):
    """What is known of a host's port."""

    records: tuple[Tlsa, ...] = ()
    """As the DNS has them, usable or not; empty for no DANE."""
    failure: str = ""
    """Why nobody knows."""


class TlsaLookups:
    """Looks records up and keeps them as long as they hold."""

    def __init__(self, servers: NameServers, config: DnsConfig, effects: Effects) -> None:
        """Ask nobody yet."""
        self._servers = servers
        self._config = config
        self._effects = effects
        self._cache: OrderedDict[str, tuple[TlsaAnswer, float]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many answers are kept."""
        return len(self._cache)

    async def look_up(self, host: str, port: int) -> TlsaAnswer:
        """Return what is to be known of a host's port, within ``dns.lifetime_s``."""
        name = f"_{port}._tcp.{host}"
        kept = self._cache.get(name)
        if kept is not None:
            answer, expires_at = kept
            if self._effects.monotonic() < expires_at:
                self._cache.move_to_end(name)
                return answer
            del self._cache[name]
        config = self._config
        deadline = asyncio.get_running_loop().time() + config.lifetime_s
        said = await self._servers.ask(name, "TLSA", deadline=deadline)
        answer = _read(said)
        ttl_s = config.negative_ttl_s
        if answer.records:
            ttl_s = min(max(said.ttl_s, config.ttl_min_s), config.ttl_max_s)
        elif answer.failure:
            ttl_s = config.ttl_min_s
        self._cache[name] = answer, self._effects.monotonic() + ttl_s
        while len(self._cache) > config.cache_max:
            self._cache.popitem(last=False)
        return answer

    def flush(self) -> None:
        """Forget all answers."""
        self._cache.clear()


def _read(said: Answer) -> TlsaAnswer:
    match said.status:
        case AnswerStatus.RETRY:
            return TlsaAnswer(failure=said.text)
        case AnswerStatus.OK if said.secure:
            records = [Tlsa(r.usage, r.selector, r.mtype, bytes(r.cert)) for r in said.records]
            return TlsaAnswer(tuple(records))
        case _:
            return TlsaAnswer()
