"""How a load's rate changes while it goes on: its instants, drawn for an even rate, are moved in time.

The number of messages and the mean rate stay what the scenario says, whatever the shape: only when they come
changes, so runs of different shapes send the same messages. Data and arithmetic only.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from sim.checks import Problem, in_range

Floats = npt.NDArray[np.float64]

Kind: TypeAlias = Literal["steady", "ramp", "step", "spike", "soak", "burst", "day"]

CELLS: Final = 4096
"""Pieces of a run within which the rate is taken for constant."""

DAY_LOW_H: Final = 4.0
"""Hour of the day with the least mail; 12 hours later there is the most."""

SOAK_EDGE: Final = 0.1
"""Part of a soak that it takes to rise, and again to fall."""


@dataclass(slots=True)
class Shape:
    """The rate over the run. A run's length is ``messages / rate``, whatever the shape."""

    kind: Kind = "steady"
    """``ramp`` rises evenly; ``step`` in equal steps; ``spike`` is high from ``at`` for ``width`` of the run; ``soak``
    rises within a tenth, stays high, and falls within the last tenth; ``burst`` is high ``times`` times;
    ``day`` is a wave, lowest at 4 o'clock and highest at 16, the run being 24 hours from midnight."""
    factor: float = 5.0
    """Highest rate over the lowest."""
    steps: int = 4
    """Levels of ``step``."""
    at: float = 0.4
    """When the spike begins, as a part of the run."""
    width: float = 0.2
    """How long it lasts, as a part of the run; of ``burst``, the part of each period that is high."""
    times: int = 5
    """Periods of ``burst``."""

    def problems(self) -> Iterator[Problem]:
        """Yield what has the right type and makes no sense; see `mta.core.settings`."""
        yield from in_range(
            ("factor", self.factor, 1, 10_000),
            ("steps", self.steps, 2, 100),
            ("at", self.at, 0, 0.99),
            ("width", self.width, 0.01, 0.99),
            ("times", self.times, 1, 200),
        )
        if self.kind == "spike" and self.at + self.width > 1:
            yield "width", self.width, f"ends after the run: at is {self.at}"


def relative_rate(shape: Shape, part: float) -> float:
    """Return the rate at a part of the run over its lowest: from 1 to ``factor``."""
    high = shape.factor
    match shape.kind:
        case "steady":
            return 1.0
        case "ramp":
            return 1 + (high - 1) * part
        case "step":
            level = min(int(part * shape.steps), shape.steps - 1)
            return 1 + (high - 1) * level / (shape.steps - 1)
        case "spike":
            return high if shape.at <= part < shape.at + shape.width else 1.0
        case "soak":
            return 1 + (high - 1) * min(1.0, part / SOAK_EDGE, max(0.0, 1 - part) / SOAK_EDGE)
        case "burst":
            return high if part * shape.times % 1 < shape.width else 1.0
        case "day":
            wave = (1 - math.cos(2 * math.pi * (24 * part - DAY_LOW_H) / 24)) / 2
            return 1 + (high - 1) * wave


def shaped(shape: Shape, even_s: Floats, length_s: float) -> Floats:
    """Return the instants of a load of this shape.

    Args:
        shape: the wanted one.
        even_s: instants at an even rate, never falling.
        length_s: of the run; the mean rate within it stays. What is due after it, as the last few of a Poisson process
            may be, keeps the distance to it.
    """
    if shape.kind == "steady" or not len(even_s):
        return even_s
    rates = np.array([relative_rate(shape, (i + 0.5) / CELLS) for i in range(CELLS)])
    sent = np.concatenate(([0.0], np.cumsum(rates))) / rates.sum()
    inside = np.interp(even_s / length_s, sent, np.linspace(0.0, 1.0, CELLS + 1)) * length_s
    return np.where(even_s > length_s, even_s, inside)
