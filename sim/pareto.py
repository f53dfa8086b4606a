"""The front of two amounts of which less is better, and the point on it that is recommended.

The rule is one that can be said in a sentence: of all points whose latency is within some per cent of the best one, the one with
the least memory. Curvature has no unit that memory and seconds share, so no rule by curvature would survive a change of units.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

WITHIN: Final = 0.10
"""How much worse than the best latency the recommended one may be, as a part; default of ``--within``."""


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


def knee(points: Sequence[Amounts], within: float = WITHIN) -> int | None:
    """Return the number of the recommended point; None if there are none.

    Args:
        points: all that qualify.
        within: see `WITHIN`.
    """
    on_front = front(points)
    if not on_front:
        return None
    best = points[on_front[-1]].latency
    # By rising memory: the first that is quick enough.
    return next(n for n in on_front if points[n].latency <= best * (1 + within))
