"""How short of memory the model's server is: `mta.core.pressure` decides, and what it is told is the model's own estimate.

The counterpart of mta/memory.py. That takes the nearest of what the operator, the control group and the machine allow; a model must not
depend on the machine that runs it, so that here only ``limits.memory.limit_bytes`` counts, and without it there is no limit.
"""

from collections.abc import Callable
from typing import Final

from mta.core.limits import MemoryLimits
from mta.core.pressure import Measure, MemoryLevel, MemoryPressure
from sim.kernel import Kernel

OFF_S: Final = 1.0
"""Between two looks whether there is a limit by now; mta/memory.py."""


class MemoryGuard:
    """Looks at the estimate every so often, and says when the level is another."""

    __slots__ = ("_bytes", "_changed", "_kernel", "_limits", "_pressure", "levels")

    def __init__(
        self,
        kernel: Kernel,
        limits: MemoryLimits,
        *,
        resident: Callable[[], int],
        changed: Callable[[MemoryLevel], None],
    ) -> None:
        """Get ready; `start` begins.

        Args:
            kernel: the clock.
            limits: the server's; who changes them changes what happens.
            resident: returns bytes now; 0 while there is no process.
            changed: told of each change of the level.
        """
        self._kernel = kernel
        self._limits = limits
        self._bytes = resident
        self._changed = changed
        self._pressure = MemoryPressure(limits)
        self.levels: list[tuple[float, MemoryLevel]] = []
        """Every change: when, and to what."""

    @property
    def level(self) -> MemoryLevel:
        """How short of memory the server is."""
        return self._pressure.level

    def start(self) -> None:
        """Look now and from now on."""
        self._kernel.schedule(0.0, self._look, None)

    def begin_anew(self) -> None:
        """Forget what was: the process that was short of memory is gone."""
        self._note(MemoryLevel.OK)
        self._pressure = MemoryPressure(self._limits)

    def _note(self, level: MemoryLevel) -> None:
        if level is not (self.levels[-1][1] if self.levels else MemoryLevel.OK):
            self.levels.append((self._kernel.now, level))
            self._changed(level)

    def _look(self, _: None) -> None:
        limits = self._limits
        resident = self._bytes()
        if limits.sample_s and limits.limit_bytes and resident:
            self._pressure.observe([Measure("config", resident, limits.limit_bytes)])
            self._note(self._pressure.level)
        else:
            self.begin_anew()
        self._kernel.schedule(limits.sample_s or OFF_S, self._look, None)
