"""Resident memory of the server, from what is in it.

Memory that an allocator has touched is given back late or never: arenas keep their holes. So the
estimate follows growth at once and shrinks only by the part that was seen to come back in a run that was
filled and drained.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from sim.costs import MemoryCosts
from sim.layout import Standing
from sim.leastsquares import nonnegative

Floats = npt.NDArray[np.float64]

SAMPLES_MIN: Final = 10
"""Fewer samples say nothing."""
QUEUE_MIN: Final = 100
"""A queue that never held so many envelopes says nothing of what one costs."""

NO_LOCAL: Final = Standing()

WARM_MESSAGES: Final = 500
"""After so many messages a server has grown by two thirds of what it grows by once."""


def warmth(messages: int) -> float:
    """Return how warm a server is after so many messages: 0 is cold, 1 is as large as it gets."""
    return -math.expm1(-messages / WARM_MESSAGES)


class Memory:
    """The estimate of one server's RSS over time."""

    __slots__ = ("_costs", "_high_bytes")

    def __init__(self, costs: MemoryCosts) -> None:
        self._costs = costs
        self._high_bytes = 0.0

    def live_bytes(
        self,
        *,
        envelopes: int,
        body_bytes: int,
        in_flight: int = 0,
        local: Standing = NO_LOCAL,
    ) -> float:
        """Return what the queue takes now, the process and what its allocator keeps not counted."""
        costs = self._costs
        live = costs.envelope_bytes * envelopes + costs.body_share * body_bytes
        live += costs.in_flight_bytes * in_flight
        return live + costs.local.of(local) if local is not NO_LOCAL else live

    def rss_bytes(
        self,
        *,
        envelopes: int,
        body_bytes: int,
        messages: int,
        in_flight: int = 0,
        local: Standing = NO_LOCAL,
    ) -> int:
        """Return the estimate now; calls are in order of time.

        Args:
            envelopes: queued envelopes that are relayed.
            body_bytes: bytes of the queued messages.
            messages: messages accepted so far.
            in_flight: those of ``envelopes`` that the agent has.
            local: queued envelopes of local deliveries.
        """
        costs = self._costs
        live = self.live_bytes(
            envelopes=envelopes, body_bytes=body_bytes, in_flight=in_flight, local=local
        )
        self._high_bytes = max(self._high_bytes, live)
        kept = live + costs.kept_share * (self._high_bytes - live)
        return round(costs.base_bytes + costs.warm_bytes * warmth(messages) + kept)


def fit(*runs: Mapping[str, Floats]) -> MemoryCosts | None:
    """Fit RSS to what is in a server, over runs with one representation; None if they say nothing. See `fit_together`."""
    return fit_together({"": runs}).get("")


def fit_together(
    runs: Mapping[str, Sequence[Mapping[str, Floats]]],
) -> dict[str, MemoryCosts]:
    """Fit RSS to what is queued, what is in flight and how warm the server is, over runs that were filled and drained.

    The regressors are not the counts but the counts with the part of their high-water mark that is kept, which is how
    `Memory` reckons. No coefficient is negative. What an envelope in flight takes besides counts only if the runs insist: more
    than two standard errors. An empty server is the same with every representation, and so are its caches: one base and one
    warmth for all, so that what envelopes are compared by is not the chance of where a process begins.

    Args:
        runs: by representation, of each run the columns ``rss_bytes``, ``scheduler.envelope`` and, if they were had,
            ``scheduler.envelope.inflight`` and ``smtp.message``.

    Returns:
        What each representation costs, without those of which there are too few samples or whose queue did not grow.
    """
    usable = {
        name: filled
        for name, each in runs.items()
        if (filled := [run for samples in each if (run := _filled(samples)) is not None])
    }
    if not usable:
        return {}
    kept = {
        name: float(np.median([_kept(rss, queued) for rss, queued, _, _ in each]))
        for name, each in usable.items()
    }
    names = list(usable)
    blocks, observed = [], []
    for name, each in usable.items():
        for rss, queued, accepted, in_flight in each:
            block = np.zeros((len(rss), 2 + 2 * len(names)))
            block[:, 0] = 1.0
            block[:, 1] = [warmth(int(count)) for count in accepted]
            at = 2 + 2 * names.index(name)
            block[:, at] = _with_kept(queued, kept[name])
            block[:, at + 1] = _with_kept(in_flight, kept[name])
            blocks.append(block)
            observed.append(rss)
    table, rss = np.vstack(blocks), np.concatenate(observed)
    found = nonnegative(table, rss)
    vague = [at for at in range(3, table.shape[1], 2) if found.values[at] <= 2 * found.stderr[at]]
    if vague:
        table[:, vague] = 0.0
        found = nonnegative(table, rss)
    return {
        name: MemoryCosts(
            base_bytes=float(found.values[0]),
            envelope_bytes=float(found.values[2 + 2 * i]),
            warm_bytes=float(found.values[1]),
            in_flight_bytes=float(found.values[3 + 2 * i]),
            body_share=0.0,
            kept_share=kept[name],
            base_stderr=float(found.stderr[0]),
            envelope_stderr=float(found.stderr[2 + 2 * i]),
            in_flight_stderr=float(found.stderr[3 + 2 * i]),
            samples=sum(len(each[0]) for each in usable[name]),
        )
        for i, name in enumerate(names)
    }


def _filled(samples: Mapping[str, Floats]) -> tuple[Floats, Floats, Floats, Floats] | None:
    """Return RSS, queued, accepted and in flight, from the first message of the load on; None if they say nothing."""
    if "rss_bytes" not in samples:
        return None
    rss, queued = samples["rss_bytes"], samples["scheduler.envelope"]
    nothing = np.zeros(len(rss))
    accepted = samples.get("smtp.message", nothing)
    in_flight = np.nan_to_num(samples.get("scheduler.envelope.inflight", nothing), nan=0.0)
    known = np.isfinite(rss) & np.isfinite(queued) & np.isfinite(accepted)
    columns = [each[known] for each in (rss, queued, accepted, in_flight)]
    # From the first message of the load on: before, modules are loaded.
    busy = np.flatnonzero(np.diff(columns[2], prepend=columns[2][:1]) > 0)
    if len(busy):
        columns = [each[busy[0] :] for each in columns]
    if len(columns[0]) < SAMPLES_MIN or columns[1].max() < QUEUE_MIN:
        return None
    return columns[0], columns[1], columns[2], columns[3]


def _kept(rss: Floats, queued: Floats) -> float:
    """Return the share of the growth that is still there when the queue has drained; 1 if it did not."""
    top = int(np.argmax(queued))
    floor, peak = float(rss[: top + 1].min()), float(rss.max())
    if queued[-1] >= 0.2 * queued[top] or peak <= floor:
        return 1.0
    # What has come back by the end, of what had grown.
    gone = 1 - float(queued[-1] / queued[top])
    return min(max(1 - (peak - float(rss[-1])) / (peak - floor) / gone, 0.0), 1.0)


def _with_kept(count: Floats, kept: float) -> Floats:
    high: Floats = np.maximum.accumulate(count)
    return count + kept * (high - count)
