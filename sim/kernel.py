"""The model's clock: call this function with this argument after so many seconds.

That is all that the model needs of SimPy, and so a plain heap can stand in for it: both must give the
same run to the last bit, which is a test of either. No process per message and no race of time-outs,
because SimPy can't cancel what is scheduled: a model of mail would fill with 5-minute timers.
"""

import itertools
from collections.abc import Callable, Collection
from functools import partial
from heapq import heapify, heappop, heappush
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

import simpy
from simpy.core import StopSimulation
from simpy.events import NORMAL

Backend: TypeAlias = Literal["simpy", "heapq"]


class Forgotten(NamedTuple):
    """A call that will not be made."""

    at: float
    """When it would have been."""
    function: Callable[[Any], None]
    argument: Any


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
        kept, gone = _split(queue, owners, lambda entry: entry[3][0], lambda entry: entry[:3])
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


class HeapKernel:
    """`Kernel` on a heap of tuples; twice as fast, and the judge of the other."""

    def __init__(self) -> None:
        self.now = 0.0
        self._stopped = False
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._numbers = itertools.count()

    def schedule(self, delay: float, function: Callable[[Any], None], argument: Any) -> None:
        """See `Kernel.schedule`."""
        heappush(self._heap, (self.now + delay, next(self._numbers), function, argument))

    def skip_to(self, at: float) -> bool:
        """See `Kernel.skip_to`."""
        heap = self._heap
        if self._stopped or (heap and heap[0][0] <= at):
            return False
        self.now = at
        return True

    def forget(self, owners: Collection[object]) -> list[Forgotten]:
        """See `Kernel.forget`."""
        kept, gone = _split(self._heap, owners, lambda entry: entry[2], lambda entry: entry[:2])
        self._heap[:] = kept
        heapify(self._heap)
        return [Forgotten(at, function, argument) for at, _, function, argument in gone]

    def run(self) -> None:
        """See `Kernel.run`."""
        heap = self._heap
        while heap and not self._stopped:
            self.now, _, function, argument = heappop(heap)
            function(argument)

    def stop(self) -> None:
        """See `Kernel.stop`."""
        self._stopped = True


def _split(
    entries: list[Any],
    owners: Collection[object],
    function_of: Callable[[Any], Any],
    order: Callable[[Any], Any],
) -> tuple[list[Any], list[Any]]:
    """Return what stays and what goes, the latter in its order."""
    dead = set(map(id, owners))
    kept: list[Any] = []
    gone: list[Any] = []
    for entry in entries:
        function = function_of(entry)
        while isinstance(function, partial):
            function = function.args[0]
        (gone if id(getattr(function, "__self__", None)) in dead else kept).append(entry)
    return kept, sorted(gone, key=order)


def make_kernel(backend: Backend) -> Kernel:
    """Return a clock at 0."""
    return HeapKernel() if backend == "heapq" else SimpyKernel()
