"""The model's clock: call this function with this argument after so many seconds.

That is all that the model needs of SimPy, and so a plain heap can stand in for it: both must give the
same run to the last bit, which is a test of either. No process per message and no race of time-outs,
because SimPy can't cancel what is scheduled: a model of mail would fill with 5-minute timers.
"""

from collections.abc import Callable, Collection
from heapq import heapify, heappush
from typing import Any, Final, Literal, Protocol, TypeAlias

import simpy
from simpy.core import StopSimulation
from simpy.events import NORMAL

from sim.heapkernel import Forgotten, HeapKernel, without

Backend: TypeAlias = Literal["simpy", "heapq"]


class Kernel(Protocol):
    """Simulated time. Calls for the same instant are made in the order in which they were scheduled."""

    now: float
    """Seconds since the start of the load; never decreasing."""

    def schedule(self, delay: float, function: Callable[[Any], None], argument: Any) -> None:
        """Call ``function(argument)`` at ``now + delay``."""
        ...

    def skip_to(self, at: float) -> bool:
        """Let the call that is being made go on at a later instant, if no other is due until then or at it.

        What would have been scheduled for that instant can then be done at once. Returns whether the clock was moved.
        """
        ...

    def forget(self, owners: Collection[object]) -> list[Forgotten]:
        """Make none of the calls of methods of some objects that are scheduled now; return them in their order.

        A call of `EventLoop.do` belongs to whose job it is. Takes as long as there are calls: it is for the end of a process.
        """
        ...

    def run(self) -> None:
        """Make all calls, in order of time, until none is left or `stop` is called."""
        ...

    def stop(self) -> None:
        """Make no further call after the one that is being made."""
        ...


class _Call(list[Any]):
    """``[function, argument, instant]``, and what SimPy asks of an event: a sixth of the cost of its Timeout.

    Why a list? It is made without a call of Python code.
    """

    __slots__ = ("callbacks",)

    callbacks: list[Callable[[Any], None]]
    _ok = True


class SimpyKernel:
    """`Kernel` on a simpy.Environment."""

    def __init__(self) -> None:
        self.environment: Final = simpy.Environment()
        self.now = 0.0
        self._stopped = False
        # One list for all: SimPy reads an event's callbacks, and we add none later.
        self._callbacks: list[Callable[[Any], None]] = [self._make]
        self._queue: Any = self.environment._queue
        self._numbers = self.environment._eid

    def schedule(self, delay: float, function: Callable[[Any], None], argument: Any) -> None:
        """See `Kernel.schedule`. As `simpy.Environment.schedule`, whose two steps are spared."""
        at = self.now + delay
        call = _Call((function, argument, at))
        call.callbacks = self._callbacks
        heappush(self._queue, (at, NORMAL, next(self._numbers), call))

    def skip_to(self, at: float) -> bool:
        """See `Kernel.skip_to`."""
        if self._stopped or self.environment.peek() <= at:
            return False
        self.now = at
        return True

    def forget(self, owners: Collection[object]) -> list[Forgotten]:
        """See `Kernel.forget`."""
        queue = self._queue
        kept, gone = without(queue, owners, lambda entry: entry[3][0], lambda entry: entry[:3])
        queue[:] = kept
        heapify(queue)
        return [Forgotten(at, call[0], call[1]) for at, _, _, call in gone]

    def _make(self, call: Any) -> None:
        function, argument, self.now = call
        function(argument)
        if self._stopped:
            raise StopSimulation(None)

    def run(self) -> None:
        """See `Kernel.run`."""
        self.environment.run()

    def stop(self) -> None:
        """See `Kernel.stop`."""
        self._stopped = True


def make_kernel(backend: Backend) -> Kernel:
    """Return a clock at 0."""
    return HeapKernel() if backend == "heapq" else SimpyKernel()
