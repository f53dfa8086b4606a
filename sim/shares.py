"""Which of many belong to a part of them: spread evenly, always the same, and no two parts alike.

Additive recurrences: the fractions of k times an irrational number fill [0, 1) evenly from the first few on, so that a
share of 0.3 is met among ten connections already, not only on average.
"""

import math
from typing import Final

GOLDEN: Final = (math.sqrt(5) - 1) / 2
"""For messages, and for the STARTTLS of connections."""

SILVER: Final = math.sqrt(2) - 1
"""For the AUTH of connections: not the same ones as with TLS."""


def in_share(number: int, share: float, by: float = GOLDEN) -> bool:
    """Return whether the one with this number, from 0 on, belongs to the share."""
    return (number + 1) * by % 1.0 < share
