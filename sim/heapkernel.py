"""The model's clock on a heap of tuples: without SimPy, and what a compiled model runs on."""

import itertools
from collections.abc import Callable, Collection
from functools import partial
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple


class Forgotten(NamedTuple):
    """A call that will not be made."""

    at: float
    """When it would have been."""
    function: Callable[[Any], None]
    argument: Any


class HeapKernel:
    """`sim.kernel.Kernel` on a heap of tuples; twice as fast, and the judge of the other."""

    def __init__(self) -> None:
        self.now = 0.0
        self._stopped = False
        self._heap: list[Any] = []
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
        kept, gone = without(self._heap, owners, lambda entry: entry[2], lambda entry: entry[:2])
        self._heap[:] = kept
        heapify(self._heap)
        return [Forgotten(at, function, argument) for at, _, function, argument in gone]

    def run(self) -> None:
        """See `Kernel.run`."""
        heap = self._heap
        while heap and not self._stopped:
            at, _, function, argument = heappop(heap)
            self.now = at
            function(argument)

    def stop(self) -> None:
        """See `Kernel.stop`."""
        self._stopped = True


def without(
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
