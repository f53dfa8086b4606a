"""What time it is in the scenario: seconds since the load began.

The world stands before the load starts, so the start is told to it when it is known. Until then it
is long before: no outage has begun, and buckets and greylists live as ever.
"""

import time
from collections.abc import Callable

LONG_BEFORE_S = 1e9
"""How long before the start it is while no start is known. Windows begin at 0 at the earliest."""


class WorldClock:
    """Scenario time, from the monotonic clock; the wall clock is read only to learn the start."""

    def __init__(
        self,
        start_at: float | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Begin.

        Args:
            start_at: When the load starts, seconds since the epoch; None if that is not known yet.
            monotonic: Clock that never decreases, seconds.
            wall: Seconds since the epoch.
        """
        self._monotonic = monotonic
        self.wall = wall
        self.start_at = start_at
        """Seconds since the epoch, or None."""
        if start_at is None:
            self._zero = monotonic() + LONG_BEFORE_S
        else:
            self._zero = monotonic() + (start_at - wall())

    def now(self) -> float:
        """Return the seconds since the start; negative before it."""
        return self._monotonic() - self._zero

    def set_start(self, epoch: float) -> None:
        """Learn when the load starts, in seconds since the epoch; past or future.

        Raises:
            ValueError: hosts would see time run backwards: a start was set already, to an earlier
                instant or the world is too long in a scenario that began.
        """
        zero = self._monotonic() + (epoch - self.wall())
        if not zero <= self._zero:
            raise ValueError("the start was set already, and scenario time never decreases")
        self._zero = zero
        self.start_at = epoch
