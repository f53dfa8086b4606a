"""What measuring and returning memory does to the world, beyond `mta.effects`.

Every effect here is a point of the server's one `Effects` (see there).
"""

import ctypes
import resource
from typing import Final

from mta.effects import Effects

_SITE: Final = "memory"


class MemoryEffects:
    """Asks for resource limits and gives memory back, through the server's `Effects`."""

    __slots__ = ("effects",)

    def __init__(self, effects: Effects) -> None:
        self.effects = effects

    def rlimit(self, which: int) -> int | None:
        """Return the soft limit of a resource (``resource.RLIMIT_AS``), or None if there is none."""
        self.effects.point("getrlimit", _SITE)
        soft, _ = resource.getrlimit(which)
        self.effects.done("getrlimit", _SITE)
        return None if soft == resource.RLIM_INFINITY else soft

    def page_size(self) -> int:
        """Return the bytes of a page."""
        return resource.getpagesize()

    def trim(self) -> bool:
        """Give free memory back to the system, where the C library can (glibc's ``malloc_trim``).

        Takes milliseconds for a large heap; other threads run meanwhile.
        """
        self.effects.point("trim", _SITE)
        give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
        done = give_back is not None and bool(give_back(0))
        self.effects.done("trim", _SITE)
        return done
