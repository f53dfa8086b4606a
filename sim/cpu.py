"""The server's event loop as one server of a queue: first come, first served, one thing at a time.

Everything that the process does, inbound, scheduling and outbound, takes turns here. That is the term
which makes or breaks a prediction of a Python server's throughput.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from sim.kernel import Kernel


class EventLoop:
    """A single server whose jobs find out what they cost while they run.

    A job runs at the instant at which its turn begins, and charges what it does; what it sends leaves
    at `done_at`, when all that it has charged so far is worked off.
    """

    __slots__ = ("_kernel", "_waiting", "_woken", "done_at", "idle_s", "longest_wait")

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._waiting: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._woken = False
        self.done_at = 0.0
        """When what was charged so far is done. A job charges by adding its seconds."""
        self.idle_s = 0.0
        """Seconds without work until `done_at`."""
        self.longest_wait = 0
        """Most jobs that waited at once."""

    def do(self, job: Callable[[Any], None], argument: Any) -> None:
        """Run a job now, or as soon as those before it are done."""
        now = self._kernel.now
        if self._woken or self.done_at > now:
            self._waiting.append((job, argument))
            if not self._woken:
                self._woken = True
                self._kernel.schedule(self.done_at - now, self._next, None)
            return
        self.idle_s += now - self.done_at
        self.done_at = now
        job(argument)

    def _next(self, _: None) -> None:
        waiting, kernel = self._waiting, self._kernel
        now = kernel.now
        while True:
            if len(waiting) > self.longest_wait:
                self.longest_wait = len(waiting)
            if self.done_at < now:
                # By a rounding error at most: the call was scheduled for this instant.
                self.done_at = now
            job, argument = waiting.popleft()
            job(argument)
            if not waiting:
                self._woken = False
                return
            left = self.done_at - now
            if left < 0.0:
                left = 0.0
            if not kernel.skip_to(now + left):
                kernel.schedule(left, self._next, None)
                return
            now += left

    def lose(self) -> list[tuple[Callable[[Any], None], Any]]:
        """The process is gone: return the jobs that waited, none of which will be done.

        Its calls that the clock still has are the caller's to forget.
        """
        lost = list(self._waiting)
        self._waiting.clear()
        self._woken = False
        self.done_at = min(self.done_at, self._kernel.now)
        return lost

    @property
    def busy_s(self) -> float:
        """Seconds of work so far, what is charged but not done yet included."""
        return self.done_at - self.idle_s

    @property
    def waiting(self) -> int:
        """Jobs that wait for their turn."""
        return len(self._waiting)
