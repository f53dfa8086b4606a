"""When the writer wakes up, and when the event loop stands aside for it.

Submissions wake it when the loop's turn is over, so that all of a turn share a commit. What may lag
waits a short while for a commit that happens anyway. Why stand aside at all? See `Writer.let_run`.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from mta.queue.writer import Writer

LAG_S: Final = 0.05
"""Seconds that removals, deferrals and flags wait for a commit that happens anyway."""
TURN_S: Final = 0.0003
"""Seconds that the event loop stands aside for the writer. Enough for a thread to wake up."""
COMMIT_MIN_S: Final = 0.0005
"""Shortest commit that is reckoned with; an fsync of a fast disk."""
TURN_GAP_MAX_S: Final = 0.016
"""Longest time between two turns, while a commit takes its time: at worst 2 % of the loop's."""


class Waker:
    """The timers around one writer. On the event loop's thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        writer: Writer,
        *,
        batch_max: int,
        is_awaited: Callable[[], bool],
    ) -> None:
        """Watch over ``writer``; ``is_awaited`` says whether anybody waits for its commit."""
        self._loop = loop
        self._writer = writer
        self._batch_max = batch_max
        self._is_awaited = is_awaited
        self._rung = False
        self._closed = False
        self._lag_timer: asyncio.TimerHandle | None = None
        self._turn_timer: asyncio.TimerHandle | None = None
        self._turn_delay = 0.0
        self._commit_s = COMMIT_MIN_S

    def close(self) -> None:
        """Wake nobody any more."""
        self._closed = True
        for timer in (self._lag_timer, self._turn_timer):
            if timer is not None:
                timer.cancel()

    def ring_soon(self) -> None:
        """Wake the writer when this turn of the loop is over: what else it submits joins the batch."""
        if not self._rung and not self._closed:
            self._rung = True
            self._loop.call_soon(self._ring)

    def lag(self, waiting: int) -> None:
        """Wake the writer some time, at once if ``waiting`` fill a commit."""
        if waiting >= self._batch_max:
            self.ring_soon()
        elif self._lag_timer is None and not self._rung and not self._closed:
            self._lag_timer = self._loop.call_later(LAG_S, self._ring)

    def committed(self, seconds: float) -> None:
        """Be told that a commit ended, and how long it took."""
        # The quickest of late: what one takes when the writer need not wait for the interpreter.
        self._commit_s = min(max(seconds, COMMIT_MIN_S), self._commit_s * 1.05)
        if self._turn_timer is not None:
            self._turn_timer.cancel()
            self._turn_timer = None
        self._expect()

    def _ring(self) -> None:
        self._rung = False
        if self._lag_timer is not None:
            self._lag_timer.cancel()
            self._lag_timer = None
        if not self._closed:
            self._writer.ring_and_yield(TURN_S)
            self._expect()

    def _expect(self) -> None:
        """Arrange to stand aside when the commit that somebody waits for should be on the disk."""
        if self._turn_timer is None and not self._closed and self._is_awaited():
            self._turn_delay = self._commit_s
            self._turn_timer = self._loop.call_later(self._turn_delay, self._let_finish)

    def _let_finish(self) -> None:
        self._turn_timer = None
        if not self._closed and self._is_awaited():
            self._writer.let_run(TURN_S)
            self._turn_delay = min(self._turn_delay * 2, TURN_GAP_MAX_S)
            self._turn_timer = self._loop.call_later(self._turn_delay, self._let_finish)
