"""Resident memory of the server, from what is in it.

Memory that an allocator has touched is given back late or never: arenas keep their holes. So the
estimate follows growth at once and shrinks only by the part that was seen to come back in a run that was
filled and drained.
"""

import math
from typing import Final

from sim.costs import MemoryCosts

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

    def rss_bytes(self, *, envelopes: int, body_bytes: int, messages: int) -> int:
        """Return the estimate now; calls are in order of time.

        Args:
            envelopes: queued envelopes.
            body_bytes: bytes of the queued messages.
            messages: messages accepted so far.
        """
        costs = self._costs
        live = costs.envelope_bytes * envelopes + costs.body_share * body_bytes
        self._high_bytes = max(self._high_bytes, live)
        kept = live + costs.kept_share * (self._high_bytes - live)
        return round(costs.base_bytes + costs.warm_bytes * warmth(messages) + kept)
