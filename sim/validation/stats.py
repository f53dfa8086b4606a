"""Means of independent replications and how far they can be trusted. The only randomness is the model's own."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple


def student_cdf(t: float, freedom: int) -> float:
    """Return P(T <= t) of Student's law. Abramowitz and Stegun 26.7.3 and 26.7.4, exact for whole degrees of freedom."""
    assert freedom >= 1, freedom
    angle = math.atan(t / math.sqrt(freedom))
    cos2 = math.cos(angle) ** 2
    if freedom % 2:
        term = total = math.cos(angle) if freedom > 1 else 0.0
        for k in range(2, freedom - 1, 2):
            term *= cos2 * k / (k + 1)
            total += term
        inside = 2 / math.pi * (angle + math.sin(angle) * total)
    else:
        term = total = 1.0
        for k in range(1, freedom - 2, 2):
            term *= cos2 * k / (k + 1)
            total += term
        inside = math.sin(angle) * total
    return 0.5 + inside / 2


def student_quantile(probability: float, freedom: int) -> float:
    """Return the t with ``student_cdf(t, freedom) == probability``, from one half up to 0.99999, to 1e-10."""
    assert 0.5 <= probability <= 0.99999, probability
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < probability:
        high *= 2
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        if student_cdf(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


class Estimate(NamedTuple):
    """A mean of replications."""

    mean: float
    error: float
    """Standard error of the mean; inf if there is one replication only."""
    runs: int

    def half_width(self, confidence: float = 0.95) -> float:
        """Return half of the interval that holds the true mean with this probability (Student's t)."""
        if self.runs < 2:
            return math.inf
        return self.error * student_quantile((1 + confidence) / 2, self.runs - 1)

    def deviation(self, theory: float) -> float:
        """Return how many standard errors the mean is above the theory; 0 if they are the same."""
        if self.mean == theory:
            return 0.0
        if not self.error:
            return math.copysign(math.inf, self.mean - theory)
        return (self.mean - theory) / self.error


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of values, one or more, of independent replications."""
    n = len(values)
    return Estimate(fmean(values), stdev(values) / math.sqrt(n) if n > 1 else math.inf, n)
