"""Least squares as calibrations need it: near a prior, or without negative costs, and how far to trust each coefficient.

Consecutive samples of one process are fewer independent measurements than they are lines, so standard errors are
widened by sqrt((1 + r) / (1 - r)), r being the correlation of neighbouring residuals (Bayley and Hammersley 1946).
"""

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FLOOR: Final = 0.1
"""A cost that is fitted near a prior does not fall below this part of it: nothing is free."""


EXACT: Final = 1e-4
"""Smallest noise that is believed, as a part of what was paid."""


class Fit(NamedTuple):
    """Coefficients of a table's columns."""

    values: Floats
    stderr: Floats
    """Standard error of each; 0 for one that is at its bound, of which the data say nothing but that."""


def near_prior(table: Floats, target: Floats, prior: Floats, spread: float) -> Fit:
    """Return the costs that explain a target and are not far from a prior.

    Where the table can't tell two of them apart, their ratio stays that of the prior.

    Args:
        table: float64[observation, cost]: how often each was paid.
        target: float64[observation]: what was paid.
        prior: float64[cost], all above 0; one factor for all of them is found first.
        spread: how far a cost may lie from the prior, relative to it, before the table has to insist: one standard
            deviation.
    """
    scaled = table * prior
    guess = scaled.sum(axis=1)
    factor = max(float(guess @ target) / float(guess @ guess), 0.01)
    scaled = scaled * factor
    # No measurement is exact; and a prior that weighs nothing could not tell two costs apart.
    exact = EXACT * (float(np.sqrt(np.mean(target**2))) or 1.0)
    noise = max(float(np.std(target - guess * factor)), exact)
    found = Fit(np.ones(len(prior)), np.full(len(prior), spread))
    for _ in range(2):
        # The second time with the noise that the first one has left.
        found = _ridge(scaled, target, noise / spread)
        noise = max(float(np.std(target - scaled @ found.values)), exact)
    return Fit(found.values * factor * prior, found.stderr * factor * prior)


def _ridge(table: Floats, target: Floats, weight: float) -> Fit:
    """Return the multiples of each column, near 1 and none below `FLOOR`."""
    count = table.shape[1]
    free = np.ones(count, dtype=bool)
    found = np.ones(count)
    for _ in range(count):
        rows = np.vstack((table[:, free], weight * np.eye(int(free.sum()))))
        wanted = np.concatenate(
            (target - table[:, ~free] @ found[~free], np.full(free.sum(), weight))
        )
        found[free] = np.linalg.lstsq(rows, wanted, rcond=None)[0]
        low = free & (found < FLOOR)
        if not low.any():
            break
        found[low] = FLOOR
        free &= ~low
        if not free.any():
            break
    stderr = np.zeros(count)
    if free.any():
        residual = target - table @ found
        inside = table[:, free].T @ table[:, free] + weight**2 * np.eye(int(free.sum()))
        variance = np.diag(np.linalg.pinv(inside)) * float(residual @ residual) / len(target)
        stderr[free] = np.sqrt(np.maximum(variance, 0.0)) * widening(residual)
    return Fit(found, stderr)


def nonnegative(table: Floats, target: Floats) -> Fit:
    """Return the least squares among coefficients of 0 or more (Lawson and Hanson 1974, chapter 23).

    Standard errors are those of ordinary least squares on the columns that are above 0.
    """
    scale = np.abs(table).max(axis=0)
    scale[scale == 0] = 1.0
    scaled = table / scale
    count = table.shape[1]
    inside = np.zeros(count, dtype=bool)
    found = np.zeros(count)
    tolerance = 1e-10 * max(float(np.abs(scaled.T @ target).max(initial=0.0)), 1e-300)
    for _ in range(3 * count):
        gradient = scaled.T @ (target - scaled @ found)
        gradient[inside] = -math.inf
        best = int(np.argmax(gradient))
        if gradient[best] <= tolerance:
            break
        inside[best] = True
        while True:
            tried = np.zeros(count)
            tried[inside] = np.linalg.lstsq(scaled[:, inside], target, rcond=None)[0]
            bad = inside & (tried <= 0)
            if not bad.any():
                break
            # As far as no coefficient falls below 0.
            step = float((found[bad] / (found[bad] - tried[bad])).min())
            found = found + step * (tried - found)
            inside &= found > 1e-12 * max(float(found.max()), 1e-300)
            found[~inside] = 0.0
            if not inside.any():
                break
        found = tried
    stderr = np.zeros(count)
    if inside.any():
        stderr[inside] = _standard_errors(scaled[:, inside], target - scaled @ found)
    return Fit(found / scale, stderr / scale)


def _standard_errors(table: Floats, residual: Floats) -> Floats:
    n, k = table.shape
    total = float(residual @ residual)
    if n <= k or total <= 0:
        return np.zeros(k)
    variance = np.diag(np.linalg.pinv(table.T @ table)) * total / (n - k)
    errors: Floats = np.sqrt(np.maximum(variance, 0.0)) * widening(residual)
    return errors


def widening(residual: Floats) -> float:
    """Return by how much larger standard errors are because neighbours are alike."""
    n, total = len(residual), float(residual @ residual)
    if n < 3 or total <= 0:
        return 1.0
    r = min(max(float(residual[:-1] @ residual[1:]) / total, 0.0), 1 - 2 / n)
    return math.sqrt((1 + r) / (1 - r))
