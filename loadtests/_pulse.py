"""Whether this process is on time: it wants to wake up a hundred times a second, and says by how much it did not.

A message that leaves late because every user is busy is the server's doing, unless users are busy because this process
was not given the CPU, or spent it: then replies lie in sockets unread and the server is blamed. The pulse has nothing
else to do, so when it is late, everything here is. A beat that was missed counts as one that came when the late one did
(G. Tene's correction of coordinated omission, ``recordCorrectedValue`` of HdrHistogram): a stall of a second is a
hundred late beats, not one.
"""

import time
from collections.abc import Callable
from typing import Final

import gevent

from loadtests._tally import new_histogram

BEAT_S: Final = 0.01
"""Between two beats; one costs some 20 microseconds."""


class Pulse:
    """The pulse of one run in one process."""

    def __init__(
        self,
        *,
        now: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = gevent.sleep,
    ) -> None:
        """Remember how to tell the time, and how to wait."""
        self._now = now
        self._sleep = sleep
        self._late_us = new_histogram()
        self._worst_us = 0

    def run(self, start_s: float, is_over: Callable[[], bool]) -> None:
        """Beat until it is over, asked after each beat.

        Args:
            start_s: Seconds until the first beat is due.
            is_over: Whether to end.
        """
        wait = max(start_s, 0.0)
        while True:
            due = self._now() + wait
            self._sleep(wait)
            if is_over():
                return
            late = round(max(self._now() - due, 0.0) * 1e6)
            self._worst_us = max(self._worst_us, late)
            self._late_us.record_corrected_value(late, round(BEAT_S * 1e6))
            wait = BEAT_S

    @property
    def p99_s(self) -> float:
        """Seconds that 99 of 100 beats were not later than; 0 if there were none."""
        return float(self._late_us.get_value_at_percentile(99.0)) / 1e6

    def take_worst_s(self) -> float:
        """Return by how many seconds a beat was late at worst since this was last asked."""
        worst, self._worst_us = self._worst_us, 0
        return worst / 1e6

    def summary(self) -> dict[str, float] | None:
        """Return p50, p99 and max in seconds; None if there was no beat."""
        if not self._late_us.get_total_count():
            return None
        of = self._late_us.get_value_at_percentile
        return {"p50": of(50.0) / 1e6, "p99": of(99.0) / 1e6, "max": of(100.0) / 1e6}
