"""Effects that fail where a test says so: the tool of every sweep over error paths.

Run a scenario once with no plan and look at `FaultyEffects.seen`: these are the points there are. Run it
again for each of them with a plan that fails there, and see whether what has to hold still holds.
"""

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from mta.effects import Effects


class Point(NamedTuple):
    """One place in a run where an effect was about to happen (before) or had happened (after)."""

    op: str
    site: str
    when: Literal["before", "after"]


def disk_full() -> BaseException:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def io_error() -> BaseException:
    return OSError(errno.EIO, os.strerror(errno.EIO))


@dataclass
class Plan:
    """Which effect fails, and how."""

    number: int
    """The n-th point that `matches`, from 1."""
    error: Callable[[], BaseException] = io_error
    for_good: bool = False
    """Every later one fails too, until `FaultyEffects.heal`."""
    when: Literal["before", "after"] = "before"
    matches: Callable[[Point], bool] = field(default=lambda point: True)


class FaultyEffects(Effects):
    """Real effects, of which some fail."""

    def __init__(self, plan: Plan | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.plan = plan
        self.seen: list[Point] = []
        """Every point that was reached, in order."""
        self.failed: list[Point] = []
        """Those that failed."""
        self.gates: dict[tuple[str, str], threading.Event] = {}
        """(op, site): that effect hangs until the event is set, if a thread does it."""
        self.hangs: set[tuple[str, str]] = set()
        """(op, site): that effect hangs until it is cancelled, if a coroutine does it."""
        self._count = 0
        self._mutex = threading.Lock()

    def heal(self) -> None:
        """Let everything work from now on."""
        self.plan = None

    def _reach(self, point: Point) -> None:
        with self._mutex:
            self.seen.append(point)
            plan = self.plan
            if plan is None or point.when != plan.when or not plan.matches(point):
                return
            self._count += 1
            if self._count != plan.number and not (plan.for_good and self._count > plan.number):
                return
            self.failed.append(point)
        raise plan.error()

    def point(self, op: str, site: str) -> None:
        gate = self.gates.get((op, site))
        if gate is not None:
            assert gate.wait(30), (op, site)
        self._reach(Point(op, site, "before"))

    def done(self, op: str, site: str) -> None:
        self._reach(Point(op, site, "after"))

    async def apoint(self, op: str, site: str) -> None:
        if (op, site) in self.hangs:
            await asyncio.get_running_loop().create_future()
        self.point(op, site)
