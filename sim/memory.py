"""Resident memory of the server, from what is in it.

Memory that an allocator has touched is given back late or never: arenas keep their holes. So the
estimate follows growth at once and shrinks only by the part that was seen to come back in a run that was
filled and drained.
"""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from sim.costs import MemoryCosts
from sim.layout import Standing

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


def fit(samples: Mapping[str, Floats]) -> MemoryCosts | None:
    """Fit RSS to what is queued and to how warm the server is, over a run that was filled and drained.

    The regressor is not the queue but the queue with the part of its high-water mark that is kept, which is how
    `Memory` reckons.

    Args:
        samples: columns ``rss_bytes``, ``scheduler.envelope`` and, if it was had, ``smtp.message``.

    Returns:
        None if there are too few samples, or the queue did not grow.
    """
    if "rss_bytes" not in samples:
        return None
    rss, queued = samples["rss_bytes"], samples["scheduler.envelope"]
    accepted = samples.get("smtp.message", np.zeros(len(rss)))
    known = np.isfinite(rss) & np.isfinite(queued) & np.isfinite(accepted)
    rss, queued, accepted = rss[known], queued[known], accepted[known]
    # From the first message of the load on: before, modules are loaded.
    busy = np.flatnonzero(np.diff(accepted, prepend=accepted[:1]) > 0)
    if len(busy):
        rss, queued, accepted = (column[busy[0] :] for column in (rss, queued, accepted))
    top = int(np.argmax(queued)) if len(queued) else 0
    if len(rss) < SAMPLES_MIN or queued[top] < QUEUE_MIN:
        return None
    floor, peak = float(rss[: top + 1].min()), float(rss.max())
    kept = 1.0
    if queued[-1] < 0.2 * queued[top] and peak > floor:
        # What has come back by the end, of what had grown.
        gone = 1 - queued[-1] / queued[top]
        kept = min(max(1 - (peak - float(rss[-1])) / (peak - floor) / gone, 0.0), 1.0)
    high = np.maximum.accumulate(queued)
    load = queued + kept * (high - queued)
    warm = np.array([warmth(int(each)) for each in accepted])
    table = np.column_stack((np.ones(len(rss)), load, warm))
    found = np.linalg.lstsq(table, rss, rcond=None)[0]
    if found[1] < 0 or found[2] < 0:
        # Too short to tell the two apart.
        table = table[:, :2]
        found = np.append(np.linalg.lstsq(table, rss, rcond=None)[0], 0.0)
        found[1] = max(found[1], 0.0)
    residual = rss - table @ found[: table.shape[1]]
    stderr = _standard_errors(table, residual)
    return MemoryCosts(
        base_bytes=float(max(found[0], 0.0)),
        envelope_bytes=float(found[1]),
        warm_bytes=float(found[2]),
        body_share=0.0,
        kept_share=float(kept),
        base_stderr=float(stderr[0]),
        envelope_stderr=float(stderr[1]),
        samples=len(rss),
    )


def _standard_errors(table: Floats, residual: Floats) -> Floats:
    """Return the standard error of each coefficient, for residuals that hang together in time.

    Widened by sqrt((1 + r) / (1 - r)), r being the correlation of neighbours: samples of one process are
    fewer independent measurements than they are lines (Bayley and Hammersley 1946).
    """
    n, k = table.shape
    total = float(residual @ residual)
    if n <= k or total <= 0:
        return np.zeros(k)
    r = min(max(float(residual[:-1] @ residual[1:]) / total, 0.0), 1 - 2 / n)
    scale = np.abs(table).max(axis=0)
    scale[scale == 0] = 1.0
    inverse = np.linalg.pinv((table / scale).T @ (table / scale))
    variance = np.diag(inverse) * total / (n - k)
    errors: Floats = np.sqrt(np.maximum(variance, 0)) / scale * math.sqrt((1 + r) / (1 - r))
    return errors
