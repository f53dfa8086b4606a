"""The front of two amounts of which less is better, and the point that is recommended.

The rule is one that can be said: of all points whose latency is within some per cent of the best one, the one with the least
memory; memory that differs by a per cent is the same, and then what is set now is kept, or else the lowest limits are
taken: a limit should be no higher than it needs to be.
Curvature has no unit that memory and seconds share, so no rule by curvature would survive a change of units.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

WITHIN: Final = 0.10
"""How much worse than the best latency the recommended one may be, as a part; default of ``--within``."""

SAME: Final = 0.01
"""Memory that differs by this part is the same: nobody changes a limit for it."""


class Amounts(NamedTuple):
    """What a point costs."""

    memory: float
    latency: float

    def dominates(self, other: "Amounts") -> bool:
        """Return True if this is worse in nothing and better in something."""
        return (
            self.memory <= other.memory
            and self.latency <= other.latency
            and self != other
        )  # fmt: skip


def front(points: Sequence[Amounts]) -> list[int]:
    """Return the numbers of the points that no other dominates, by rising memory; of equal ones the first."""
    order = sorted(range(len(points)), key=lambda n: (points[n].memory, points[n].latency, n))
    found: list[int] = []
    for number in order:
        if not found or points[number].latency < points[found[-1]].latency:
            found.append(number)
    return found


def knee(
    points: Sequence[Amounts],
    within: float = WITHIN,
    *,
    now: int | None = None,
    heights: Sequence[float] | None = None,
) -> int | None:
    """Return the number of the recommended point; None if there are none.

    Args:
        points: all that qualify.
        within: see `WITHIN`.
        now: the number of what is set now, if that qualifies.
        heights: how high the limits of each point are, in whatever measure; by default all alike.
    """
    if not points:
        return None
    best = min(each.latency for each in points)
    quick = [n for n, each in enumerate(points) if each.latency <= best * (1 + within)]
    least = min(points[n].memory for n in quick)
    lean = [n for n in quick if points[n].memory <= least * (1 + SAME)]
    if now in lean:
        return now
    return min(lean, key=lambda n: (heights[n] if heights else 0.0, *points[n], n))
