"""What a server shows of itself: counters and gauges of all its parts, under the names of `mta.core.metrics`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mta.core.metrics import METRICS
from mta.core.pressure import MemoryLevel
from mta.footprint import estimate_bytes

if TYPE_CHECKING:
    from mta.server import MtaServer


def stats_of(server: "MtaServer") -> Mapping[str, int | float]:
    """Return all counters and gauges, and the uptime in seconds; the server's own registry knows them from then on."""
    metrics, driver = server.metrics, server.driver
    outbound, resolver = driver.outbound.stats, server.resolver.stats
    memory = server.memory.pressure
    tls = server.outbound_tls.stats
    values = {
        **server.engine.gauges(),
        **server.engine.counters(),
        "control.session": len(server.control) if server.control else 0,
        "smtp.bytes": server.door.bytes_in_memory,
        "smtp.proxy.waiting": (
            server.listeners.proxies_waiting if hasattr(server, "listeners") else 0
        ),
        "queue.message": server.queue.messages,
        "queue.envelope": server.queue.envelopes,
        "queue.bytes": server.queue.size_bytes,
        "queue.waiting": server.queue.waiting,
        "queue.evpcache.size": driver.recent.envelopes,
        "queue.evpcache.bytes": driver.recent.bytes,
        "queue.evpcache.load.hit": driver.loads_hit,
        "queue.evpcache.load.missed": driver.loads_missed,
        "bounce.message": driver.bouncer.messages,
        "bounce.envelope": driver.bouncer.envelopes,
        "smtp.session.local": driver.bouncer.submitted,
        "scheduler.delivery.loop": driver.loops,
        "mta.session.opened": outbound.opened,
        "mta.session.failed": outbound.failed,
        "mta.message": outbound.transactions,
        "mta.ambiguous": outbound.ambiguous,
        "mta.tls": tls.established,
        "mta.tls.resumed": tls.resumed,
        "mta.tls.failed": tls.failed,
        "mta.tls.downgraded": tls.downgraded,
        "mta.tls.refused": tls.refused,
        "mta.tls.session": len(server.outbound_tls),
        **server.outbound_tls.policy_stats(),
        "dns.pending": server.resolver.pending,
        "dns.cache.size": len(server.resolver),
        "dns.cache.hit": resolver.hits,
        "dns.cache.missed": resolver.misses,
        "dns.failed": resolver.failures,
        "memory.usage": memory.measure.usage,
        "memory.limit": memory.measure.limit,
        "memory.low": memory.bytes_of(MemoryLevel.LOW),
        "memory.soft": memory.bytes_of(MemoryLevel.SOFT),
        "memory.hard": memory.bytes_of(MemoryLevel.HARD),
        "memory.pressure": int(memory.level),
        "memory.shrink": server.memory.shrinks,
        "memory.pss": server.memory.shares.pss,
        "memory.commands": server.memory.shares.commands,
        "memory.commands.rss": server.memory.shares.commands_rss,
        "memory.commands.pss": server.memory.shares.commands_pss,
        "memory.envelopes": estimate_bytes(server.engine.store),
        "log.lost": server.log.lost,
        "trace.lost": server.record.lost if server.record else 0,
    }
    for name, value in values.items():
        if name in METRICS:
            metrics.set(name, value)
    listeners = server.listeners.stats() if hasattr(server, "listeners") else {}
    return {
        **metrics.snapshot(),
        **listeners,
        "uptime": round(server.effects.now() - server.started_at, 3),
    }
