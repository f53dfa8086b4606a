"""Laws of chance that know their own moments, and the streams that they draw from.

One stream per concern, named, so that what one part draws never depends on how much another drew:
common random numbers by construction. A law says its mean and variance in closed form, so that a
test can hold a sample against them and a model against queueing theory (the idea of Ciw's
``ciw.dists``).
"""

import math
import random
import zlib
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BLOCK: Final = 1024
"""Values drawn at once by `Blocks`: numpy's overhead per call is that of about a hundred values."""


def _sequence(seed: int, name: str, replication: int) -> np.random.SeedSequence:
    key = (replication, zlib.crc32(name.encode()))
    return np.random.SeedSequence(seed, spawn_key=key)


def stream(seed: int, name: str, replication: int = 0) -> np.random.Generator:
    """Return the stream of a concern: same seed, name and replication, same values.

    Different names, replications or seeds give independent streams (NumPy documents this for
    ``spawn_key``), in whatever order they are asked for.

    Args:
        seed: The scenario's; 0 or more.
        name: What the stream is for, as ``sizes``.
        replication: Number of the repetition of the experiment, from 0.
    """
    return np.random.Generator(np.random.PCG64(_sequence(seed, name, replication)))


def random_stream(seed: int, name: str, replication: int = 0) -> random.Random:
    """Return a `random.Random` with the same promise as `stream`, for code that draws one by one."""
    words = _sequence(seed, name, replication).generate_state(8)
    return random.Random(int.from_bytes(words.tobytes(), "little"))


class Distribution(Protocol):
    """A law that can be drawn from."""

    @property
    def mean(self) -> float:
        """Expected value; `math.inf` if there is none."""
        ...

    @property
    def variance(self) -> float:
        """Expected squared distance from the mean; `math.inf` if there is none."""
        ...

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """Return float64[n], independent values.

        The first k of n values are the k values that a shorter draw from the same stream gives.
        """
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same value."""

    value: float

    @property
    def mean(self) -> float:
        """The value."""
        return self.value

    @property
    def variance(self) -> float:
        """Zero."""
        return 0.0

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """Return the value n times; draws nothing from the stream."""
        return np.full(n, self.value)


@dataclass(frozen=True, slots=True)
class Exponential:
    """Gaps of a Poisson process."""

    mean: float

    def __post_init__(self) -> None:
        assert self.mean > 0, self.mean

    @property
    def variance(self) -> float:
        """Square of the mean."""
        return self.mean**2

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """Return float64[n]; a multiple of the same standard values whatever the mean is."""
        return rng.standard_exponential(n) * self.mean


@dataclass(frozen=True, slots=True)
class LogNormal:
    """A value whose logarithm is normal, named by its median, as measurements report it."""

    median: float
    sigma: float
    """Standard deviation of the natural logarithm."""

    def __post_init__(self) -> None:
        assert self.median > 0 and self.sigma >= 0, self

    @classmethod
    def from_quantile(cls, median: float, quantile: float, value: float) -> "LogNormal":
        """Return the law with this median and P(x <= value) = quantile (above one half)."""
        assert 0.5 < quantile < 1 and value >= median, (median, quantile, value)
        return cls(median, math.log(value / median) / NormalDist().inv_cdf(quantile))

    @property
    def mean(self) -> float:
        """``median * exp(sigma**2 / 2)``."""
        return self.median * math.exp(self.sigma**2 / 2)

    @property
    def variance(self) -> float:
        """``mean**2 * (exp(sigma**2) - 1)``."""
        return self.mean**2 * math.expm1(self.sigma**2)

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """Return float64[n]."""
        return self.median * np.exp(self.sigma * rng.standard_normal(n))


@dataclass(frozen=True, slots=True)
class BoundedPareto:
    """A power law between two bounds: heavy, but with moments."""

    alpha: float
    """Tail index: P(x > t) falls as t**-alpha well below the upper bound."""
    low: float
    high: float

    def __post_init__(self) -> None:
        assert self.alpha > 0 and 0 < self.low < self.high, self

    def _moment(self, k: int) -> float:
        """Return E(x**k)."""
        ratio = math.pow(self.low / self.high, self.alpha)
        scale = self.alpha * math.pow(self.low, self.alpha) / (1 - ratio)
        power = float(k - self.alpha)
        if abs(power) < 1e-12:
            return scale * math.log(self.high / self.low)
        return scale * (math.pow(self.high, power) - math.pow(self.low, power)) / power

    @property
    def mean(self) -> float:
        """First moment."""
        return self._moment(1)

    @property
    def variance(self) -> float:
        """Second central moment."""
        return self._moment(2) - self._moment(1) ** 2

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """Return float64[n], by inversion."""
        lost = -math.expm1(self.alpha * math.log(self.low / self.high))
        values = self.low * (1 - rng.random(n) * lost) ** (-1 / self.alpha)
        return np.minimum(values, self.high)


class Histogram:
    """Buckets with shares; the logarithm is uniform inside a bucket.

    A size histogram with buckets that double is a straight line on log-log paper inside each of
    them, which is how sizes of mail look between 2 KiB and 1 MiB.
    """

    def __init__(self, edges: tuple[float, ...], cumulative: tuple[float, ...]) -> None:
        """Keep the law.

        Args:
            edges: Bounds of the buckets, rising, positive; one more than there are buckets.
            cumulative: Share of values below the upper bound of each bucket; scaled so that the
                last is 1 (published tables are rounded and often stop a little below).
        """
        assert len(edges) == len(cumulative) + 1 >= 2, (edges, cumulative)
        self._edges = np.log(np.asarray(edges, dtype=np.float64))
        self._cumulative = np.concatenate(([0.0], np.asarray(cumulative) / cumulative[-1]))
        assert (np.diff(self._edges) > 0).all() and (np.diff(self._cumulative) >= 0).all()

    def _moment(self, k: int) -> float:
        """Return E(x**k): per bucket (high**k - low**k) / (k * log(high / low))."""
        powers = np.exp(k * self._edges)
        inside = np.diff(powers) / (k * np.diff(self._edges))
        return float(np.dot(np.diff(self._cumulative), inside))

    @property
    def mean(self) -> float:
        """First moment."""
        return self._moment(1)

    @property
    def variance(self) -> float:
        """Second central moment."""
        return self._moment(2) - self._moment(1) ** 2

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """Return float64[n], by inversion: one uniform value each."""
        values: Floats = np.exp(np.interp(rng.random(n), self._cumulative, self._edges))
        return values


class Zipf:
    """P(k) proportional to k**-s on the integers 1..top."""

    def __init__(self, s: float, top: int) -> None:
        """Keep the law; s = 0 makes all of 1..top equally likely."""
        assert top >= 1 and s >= 0, (s, top)
        self._ranks = np.arange(1, top + 1, dtype=np.float64)
        weights = self._ranks**-s
        self._shares = weights / weights.sum()
        self._cumulative = np.cumsum(self._shares)
        # Rounding may leave the last a hair below 1, and then a draw could fall past the end.
        self._cumulative[-1] = 1.0

    @property
    def mean(self) -> float:
        """First moment."""
        return float(np.dot(self._shares, self._ranks))

    @property
    def variance(self) -> float:
        """Second central moment."""
        return float(np.dot(self._shares, self._ranks**2)) - self.mean**2

    def ranks_at(self, uniform: Floats) -> npt.NDArray[np.int64]:
        """Return int64[n]: the values that these uniform ones from 0 to below 1 stand for."""
        return np.searchsorted(self._cumulative, uniform, side="right") + 1

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """Return float64[n] of whole numbers, by inversion."""
        return self.ranks_at(rng.random(n)).astype(np.float64)


class Choice:
    """Index 0..n-1 by weight; weights need not add up to 1."""

    def __init__(self, weights: tuple[float, ...]) -> None:
        """Keep the law; at least one weight is above 0 and none is below."""
        values = np.asarray(weights, dtype=np.float64)
        assert values.size and (values >= 0).all() and values.sum() > 0, weights
        self._shares = values / values.sum()
        self._cumulative = np.cumsum(self._shares)
        # The last index with a weight takes what rounding leaves; one without is never drawn.
        self._cumulative[int(np.flatnonzero(values)[-1]) :] = 1.0

    @property
    def mean(self) -> float:
        """Mean index."""
        return float(np.dot(self._shares, np.arange(self._shares.size)))

    @property
    def variance(self) -> float:
        """Variance of the index."""
        return float(np.dot(self._shares, np.arange(self._shares.size) ** 2)) - self.mean**2

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """Return float64[n] of whole numbers, by inversion."""
        return np.searchsorted(self._cumulative, rng.random(n), side="right").astype(np.float64)


class Blocks:
    """One value at a time from a law, drawn a block at a time; the values of one long draw."""

    __slots__ = ("_distribution", "_rng", "_values")

    def __init__(self, distribution: Distribution, rng: np.random.Generator) -> None:
        """Draw from ``rng`` alone; nobody else may use it meanwhile."""
        self._distribution = distribution
        self._rng = rng
        self._values: list[float] = []

    def __call__(self) -> float:
        """Return the next value."""
        if not self._values:
            self._values = self._distribution.draw(self._rng, BLOCK).tolist()
            self._values.reverse()
        return self._values.pop()


_KIB = 1024.0

FREEBSD_NET_SIZES: Final = Histogram(
    edges=(
        900.0,
        2 * _KIB,
        4 * _KIB,
        8 * _KIB,
        16 * _KIB,
        32 * _KIB,
        64 * _KIB,
        128 * _KIB,
        256 * _KIB,
        512 * _KIB,
        1024 * _KIB,
        2048 * _KIB,
    ),
    cumulative=(
        0.2353,
        0.4917,
        0.676,
        0.7958,
        0.8536,
        0.9047,
        0.933,
        0.9574,
        0.9724,
        0.9849,
        0.9996,
    ),
)
"""Bytes of a message on freebsd-net in 2002, as J. Buchner published it in 2009. Median 4.2 KiB,
mean 53 kB. That no message is below 900 bytes is ours: the table begins with "below 2 KiB"."""
