"""Slopes, and how far to trust them."""

import numpy as np
import pytest

from testbed.fit import line, rising


def test_an_exact_line_is_found() -> None:
    """Points on a line give the line, without an error."""
    x = np.arange(10.0)
    found = line(x, 7.0 + 3.0 * x)

    assert found is not None
    assert (3.0, 7.0) == pytest.approx((found.slope, found.intercept))
    assert 0.0 == pytest.approx(found.stderr, abs=1e-9)
    assert 10 == found.samples


def test_the_error_covers_the_truth() -> None:
    """Of 200 noisy lines, the slope is within two standard errors in about 95 %."""
    rng = np.random.default_rng(20130126)
    x = np.linspace(0, 1000, 60)
    hits = 0
    for _ in range(200):
        found = line(x, 50.0 * x + rng.normal(0, 4000, len(x)))
        assert found is not None
        hits += abs(found.slope - 50.0) <= 2 * found.stderr
    assert 180 <= hits <= 200


def test_correlated_noise_widens_the_error() -> None:
    """Samples that follow each other closely are worth less: a random walk's error is not that of white noise."""
    rng = np.random.default_rng(7)
    x = np.linspace(0, 1000, 60)
    steps = rng.normal(0, 1000, len(x))
    white, walk = line(x, 50 * x + steps), line(x, 50 * x + np.cumsum(steps))

    assert white is not None
    assert walk is not None
    assert walk.stderr > 3 * white.stderr


def test_gaps_are_left_out() -> None:
    """A sample without a gauge does not count."""
    x = np.array([0.0, 1.0, np.nan, 3.0])
    found = line(x, np.array([0.0, 2.0, 99.0, 6.0]))

    assert found is not None
    assert (2.0, 3) == pytest.approx((found.slope, found.samples))


@pytest.mark.parametrize("x", [[], [1.0, 2.0], [5.0, 5.0, 5.0]])
def test_no_line_without_points(x: list[float]) -> None:
    """Two points, or one repeated, make no slope."""
    assert line(np.array(x), np.array(x)) is None


def test_the_rising_part_ends_at_the_peak() -> None:
    """From the last sample at 40 % of the peak or below, to the peak."""
    queue = np.array([0.0, 5.0, 0.0, 39.0, 41.0, 70.0, 100.0, 90.0, 0.0])

    assert slice(3, 7) == rising(queue)
    assert slice(0, 0) == rising(np.zeros(4))
    assert slice(0, 0) == rising(np.array([]))
