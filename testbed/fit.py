"""A straight line through measurements, and how far to trust its slope."""

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Line(NamedTuple):
    """``y = intercept + slope * x`` by least squares."""

    slope: float
    stderr: float
    """Standard error of the slope."""
    intercept: float
    r2: float
    """Share of y's variance that the line explains."""
    samples: int

    def at(self, x: Floats) -> Floats:
        """Return the line's values."""
        return self.intercept + self.slope * x


def line(x: Floats, y: Floats) -> Line | None:
    """Fit a line; None if there are fewer than three points, or x does not vary.

    Consecutive samples of one process are no independent measurements: what a sample is above the
    line, the next one is too. The textbook's standard error would be too small by several times, so it is widened by
    sqrt((1 + r) / (1 - r)), r being the correlation of neighbouring residuals (the effective sample size of a
    first-order process; Bayley and Hammersley 1946).
    """
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    n = len(x)
    if n < 3:
        return None
    dx, dy = x - x.mean(), y - y.mean()
    sxx = float(dx @ dx)
    if sxx <= 0:
        return None
    slope = float(dx @ dy) / sxx
    intercept = float(y.mean() - slope * x.mean())
    residuals = y - intercept - slope * x
    rss = float(residuals @ residuals)
    total = float(dy @ dy)
    correlation = 0.0
    if rss > 0:
        correlation = float(residuals[:-1] @ residuals[1:]) / rss
        correlation = min(max(correlation, 0.0), 1 - 2 / n)
    stderr = math.sqrt(rss / (n - 2) / sxx) * math.sqrt((1 + correlation) / (1 - correlation))
    return Line(slope, stderr, intercept, 1 - rss / total if total > 0 else 1.0, n)


RISING_FROM: Final = 0.4
"""Share of the peak at which the part that is fitted begins."""


def rising(x: Floats, low: float = RISING_FROM) -> slice:
    """Return the part of a series on which it grows steadily to its peak.

    From the last sample before the peak that is at ``low`` times the peak or below, to the peak. Empty if there is no
    peak above 0.

    Why not from the bottom? When a destination goes down, a server allocates once what the failing attempts of
    many envelopes at a time need: that is a step of some MiB, whatever the queue's length, and a line through it
    would count it as bytes per envelope. The intercept shows the step.
    """
    values = np.nan_to_num(x, nan=0.0)
    if not len(values) or values.max() <= 0:
        return slice(0, 0)
    top = int(values.argmax())
    below = np.flatnonzero(values[: top + 1] <= low * values[top])
    return slice(int(below[-1]) if len(below) else 0, top + 1)
