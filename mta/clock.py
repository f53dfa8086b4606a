"""The server's one clock: seconds since the epoch, never decreasing.

The wall clock is read once, at the start, and the monotonic clock carries it on. So nobody has to
ask what a retry time means after an administrator set the date back. The price: the clock does not
follow later corrections of the wall clock (NTP slews by 0.05 %: 43 s a day at worst).
"""

import time


class Clock:
    """Seconds since the epoch that never go back within a run."""

    __slots__ = ("_offset",)

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        """Return seconds since the epoch."""
        return self._offset + time.monotonic()

    def monotonic(self) -> float:
        """Return seconds since an arbitrary instant, for durations."""
        return time.monotonic()
