"""What a run of the model came to: series, counts, and what is reckoned from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mta.core.pressure import MemoryLevel
from sim.beside import Said
from sim.layout import Census
from sim.local import LocalResult

SAMPLE_S: Final = 0.2
"""Grain of the series, seconds; that of the bench and of the server's trace."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SERIES: Final = (
    "queued",
    "in_flight",
    "held",
    "rss_bytes",
    "live_bytes",
    "accepted",
    "delivered",
    "deferred",
    "connections",
)
"""The arrays of a result beside ``t``."""


class Restart(NamedTuple):
    """One end of the process and its next start, in seconds after the start of the load."""

    at_s: float
    """When the timeline wanted it."""
    how: str
    gone_s: float
    """When the process was gone."""
    opened_s: float
    """When its door was open again; NaN if the run ended before."""
    restored_s: float
    """When the core knew the whole queue again; NaN if the run ended before."""
    envelopes: int
    """How many there were on the disk at the start."""


@dataclass(frozen=True, slots=True)
class SimResult:
    """What a run of the model came to."""

    scenario: str
    representation: str
    seed: int
    replication: int
    t: Floats
    """float64[sample]: seconds after the start of the load, every `SAMPLE_S`, from 0."""
    queued: Ints
    """int64[sample], as all that follow: the gauge ``scheduler.envelope``."""
    in_flight: Ints
    """The gauge ``scheduler.envelope.inflight``."""
    held: Ints
    """The gauge ``scheduler.ramqueue.hold``."""
    rss_bytes: Ints
    """Resident memory of the server, as `sim.memory` estimates it."""
    live_bytes: Ints
    """What the queue takes of it: neither the process nor what an allocator keeps."""
    accepted: Ints
    """Envelopes accepted so far."""
    delivered: Ints
    """Envelopes delivered so far, reports not counted."""
    deferred: Ints
    """Temporary failures so far, which may be several of one envelope."""
    connections: Ints
    """The gauge ``mta.session``."""
    counts: Mapping[str, int]
    """What was counted until the end; see `COUNTS`."""
    load_s: float
    """When the last message was settled with its client."""
    drain_time_s: float | None
    """From the start of the load until the queue was empty for good; None if it was not."""
    end_s: float
    """When the run ended."""
    busy_share: float
    """Part of the time in which the event loop was busy."""
    accept_latency_s: Floats
    """float64[message]: from the instant at which it was due to its 250."""
    delivery_latency_s: Floats
    """float64[delivery]: from the instant at which its message was due."""
    stimuli: int
    """What the core was told; 0 if the run was not fingerprinted."""
    fingerprint: str
    """See `sim.records.Fingerprint`; empty if the run was not fingerprinted."""
    local: LocalResult | None = None
    """Of local mail; None if the scenario has none."""
    census: tuple[tuple[Census, int], ...] = ()
    """What was there at each sample, and messages accepted so far, if that was asked for: `sim.compare` counts memory
    again from it."""
    restarts: tuple[Restart, ...] = ()
    """Each end of the process and its next start."""
    memory_levels: tuple[tuple[float, MemoryLevel], ...] = ()
    """Each change of how short of memory the server was: when, and to what; empty without ``limits.memory.limit_bytes``."""
    beside: Mapping[str, Said] = field(default_factory=dict)
    """How connections ended that sent no mail, by kind of client and last word; see `sim.beside`."""
    stress_entered: int = 0
    """How often stress began at the door; counted where there are such clients."""
    layout: str = ""
    """Whose bytes ``rss_bytes`` and ``live_bytes`` are; empty for those of our representation."""

    @property
    def peak_queued(self) -> int:
        """Largest sample of ``queued``."""
        return int(self.queued.max())

    @property
    def peak_rss_bytes(self) -> int:
        """Largest sample of ``rss_bytes``."""
        return int(self.rss_bytes.max())

    @property
    def peak_live_bytes(self) -> int:
        """Largest sample of ``live_bytes``."""
        return int(self.live_bytes.max())

    @property
    def bytes_per_envelope(self) -> float | None:
        """``live_bytes`` of a queued envelope when that was largest; None if nothing was queued."""
        at = int(self.live_bytes.argmax())
        return float(self.live_bytes[at] / self.queued[at]) if self.queued[at] else None

    def quantiles(self) -> dict[str, float | None]:
        """Return p50, p95 and p99 of the time to delivery, in seconds; None without deliveries."""
        if not len(self.delivery_latency_s):
            return {"p50": None, "p95": None, "p99": None}
        values = np.percentile(self.delivery_latency_s, (50, 95, 99), method="inverted_cdf")
        return dict(zip(("p50", "p95", "p99"), map(float, values), strict=True))

    def summary(self) -> dict[str, Any]:
        """Return every number that is no array, for JSON."""
        return {
            "scenario": self.scenario,
            "representation": self.representation,
            "seed": self.seed,
            "replication": self.replication,
            **self.counts,
            "peak_queued": self.peak_queued,
            "layout": self.layout or None,
            "peak_rss_bytes": self.peak_rss_bytes,
            "peak_live_bytes": self.peak_live_bytes,
            "bytes_per_envelope": self.bytes_per_envelope,
            "load_s": round(self.load_s, 6),
            "drain_time_s": None if self.drain_time_s is None else round(self.drain_time_s, 6),
            "end_s": round(self.end_s, 6),
            "busy_share": round(self.busy_share, 6),
            "delivery_latency_s": self.quantiles(),
            "local": self.local.summary() if self.local is not None else None,
            "restarts": [told(each) for each in self.restarts],
            "memory_levels": [
                {"at_s": round(at, 6), "level": level.name.lower()}
                for at, level in self.memory_levels
            ],
            "beside": {
                name: {"times": said.times, "mean_s": round(said.mean_s, 6)}
                for name, said in self.beside.items()
            },
            "stress_entered": self.stress_entered,
            "stimuli": self.stimuli,
            "fingerprint": self.fingerprint,
        }


def told(restart: Restart) -> dict[str, Any]:
    """Return a restart for JSON: what has not happened is None."""
    return {
        key: None if value != value else round(value, 6) if isinstance(value, float) else value
        for key, value in restart._asdict().items()
    }


def later_trace(first: Path, number: int) -> Path:
    """Return where the trace of the n-th process of a run is, from 1: ``trace.jsonl``, ``trace-2.jsonl``."""
    return first if number == 1 else first.with_name(f"{first.stem}-{number}{first.suffix}")


COUNTS: Final = {
    "messages": "offered",
    "accepted_messages": "messages answered with 250",
    "refused_messages": "messages refused, after all tries",
    "turned_away": "times that a client heard 421, whether it came again or not",
    "accepted": "envelopes accepted",
    "delivered": "envelopes delivered, reports not counted",
    "deferred": "temporary failures, which may be several of one envelope",
    "bounced": "reports put into the queue",
    "failed": "envelopes given up: refused for good or expired; reports not counted",
    "expired": "envelopes and reports that became too old",
    "queued": "envelopes still there at the end, reports too",
    "transactions": "outbound transactions started",
    "connections_opened": "outbound connections tried",
    "connections_failed": "outbound connections that did not become ready",
    "commits": "group commits",
    "broken": "times that a client found no server, or lost it before it had its answer",
    "duplicates": "envelopes delivered once more because the end of a process hid the time before",
    "duplicates_client": "envelopes delivered once more because a client that had no answer sent again",
    "unacknowledged": "envelopes delivered of messages whose clients never had an answer",
}
"""Names in `SimResult.counts` and what they count."""
