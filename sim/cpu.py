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

    __slots__ = ("_kernel", "_waiting", "_woken", "busy_s", "done_at", "longest_wait")

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._waiting: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._woken = False
        self.done_at = 0.0
        """When what was charged so far is done."""
        self.busy_s = 0.0
        """Seconds of work so far."""
        self.longest_wait = 0
        """Most jobs that waited at once."""

    def do(self, job: Callable[[Any], None], argument: Any) -> None:
        """Run a job now, or as soon as those before it are done."""
        now = self._kernel.now
        if self._woken or self.done_at > now:
            self._waiting.append((job, argument))
            if len(self._waiting) > self.longest_wait:
                self.longest_wait = len(self._waiting)
            if not self._woken:
                self._woken = True
                self._kernel.schedule(self.done_at - now, self._next, None)
            return
        self.done_at = now
        job(argument)

    def charge(self, seconds: float) -> None:
        """Add to the cost of the job that runs."""
        self.done_at += seconds
        self.busy_s += seconds

    def _next(self, _: None) -> None:
        now = self._kernel.now
        if self.done_at < now:
            self.done_at = now
        job, argument = self._waiting.popleft()
        job(argument)
        if self._waiting:
            self._kernel.schedule(max(0.0, self.done_at - now), self._next, None)
        else:
            self._woken = False

    @property
    def waiting(self) -> int:
        """Jobs that wait for their turn."""
        return len(self._waiting)
