"""What a sweep runs: axes, the points of a grid or of a sample, and the base that all are compared with.

A point is a value for each axis, as one would say it with ``--set``. Point 0 is the base: everything as it is set now. The
random parts of a run do not depend on a point (`sim.distributions`): the n-th replication of each has the same arrivals and the
same remote hosts, so that what differs is what was varied.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, get_type_hints

import numpy as np

from mta.core.settings import ConfigError, typed
from sim.distributions import stream
from sim.settings import ModelConfig

AXES_MAX: Final = 10
"""Keys that are varied at once: more is no question that a front of two amounts answers."""

POINTS_MAX: Final = 1000
"""Points of a sweep, the base not counted; default of ``--points-max``."""

REPLICATIONS_MAX: Final = 100
"""Runs of each point. Half of the interval at 100 is a tenth of a standard deviation's double: more buys little."""

Sampling = Literal["grid", "latin", "random"]


class Axis(NamedTuple):
    """A key and what it is set to."""

    key: str
    """As in ``--set`` of `sim run`: ``server.limits.mta.max_conn_per_host``, ``load.rate``; or ``layout``."""
    values: tuple[str, ...] = ()
    """In the order in which they were given; empty for a range."""
    low: float = 0.0
    high: float = 0.0
    """Bounds of a range, both included."""
    whole: bool = False
    """A range of whole numbers."""
    logarithmic: bool = False
    """Of a range: each factor is as likely, instead of each difference."""

    @property
    def is_range(self) -> bool:
        """True if values are drawn, false if they are listed."""
        return not self.values

    @property
    def short(self) -> str:
        """The key as an operator writes it in the server's file, where that is clear."""
        return self.key.removeprefix("server.")

    def at(self, part: float) -> str:
        """Return the value that lies so far along the axis, from 0 to below 1."""
        assert 0 <= part < 1, part
        if self.values:
            return self.values[int(part * len(self.values))]
        top = self.high + (1 if self.whole else 0)
        if self.logarithmic:
            value = math.exp(math.log(self.low) + part * (math.log(top) - math.log(self.low)))
        else:
            value = self.low + part * (top - self.low)
        if self.whole:
            # exp(log(x)) may be a hair below x.
            return str(min(max(math.floor(value), int(self.low)), int(self.high)))
        return f"{min(max(float(f'{value:.4g}'), self.low), self.high)!r}"


@dataclass(frozen=True, slots=True)
class Design:
    """What is asked: axes and points."""

    axes: tuple[Axis, ...]
    points: tuple[tuple[str, ...], ...]
    """Values of the axes, in their order."""
    sampling: Sampling = "grid"
    dropped: int = 0
    """Points of a sample that came out the same as another."""

    def settings(self, point: tuple[str, ...]) -> dict[str, str]:
        """Return value by key of a point."""
        return {axis.key: value for axis, value in zip(self.axes, point, strict=True)}


_RANGE: Final = re.compile(r"\s*([-+0-9.eE]+?)\s*\.\.\s*([-+0-9.eE]+)\s*(:\s*log\s*)?")


def axis(text: str) -> Axis:
    """Read ``key=value,value``, ``key=low..high`` or ``key=low..high:log``; the server's keys need no ``server.`` in front.

    Raises:
        ConfigError: it is nothing of the kind.
    """
    key, equals, said = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError("--over", value=text, problem="must be key=value,value or key=low..high")
    if key.split(".")[0] in get_type_hints(ModelConfig) and key != "seed":
        # The scenario has a seed of its own, which is the one that is meant.
        key = f"server.{key}"
    if key == "seed":
        raise ConfigError("--over", key, problem="is what --replications is for")
    found = _RANGE.fullmatch(said)
    if found:
        return _range(text, key, found)
    values = tuple(each.strip() for each in _split(said))
    if not all(values):
        raise ConfigError("--over", value=text, problem="must be key=value,value or key=low..high")
    if len(set(values)) != len(values):
        raise ConfigError("--over", value=text, problem="names a value twice")
    return Axis(key, values)


def _range(text: str, key: str, found: re.Match[str]) -> Axis:
    ends = found[1], found[2]
    try:
        low, high = map(float, ends)
    except ValueError:
        raise ConfigError("--over", value=text, problem="the range has no two numbers") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError("--over", value=text, problem="the range must rise")
    if found[3] and not low > 0:
        raise ConfigError("--over", value=text, problem="a logarithmic range must begin above 0")
    whole = all(re.fullmatch(r"[-+]?\d+", each) for each in ends)
    return Axis(key, (), low, high, whole, bool(found[3]))


def _split(text: str) -> list[str]:
    """Split at the commas that are in no brackets and no quotes: a value may be a list."""
    parts, depth, quoted = [""], 0, False
    for character in text:
        quoted ^= character == '"'
        if not quoted:
            depth += (character in "[{") - (character in "]}")
        if character == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def design(
    texts: Sequence[str],
    *,
    vary: dict[str, Any] | None = None,
    sample: int | None = None,
    sampling: Sampling = "latin",
    seed: int = 1,
    points_max: int = POINTS_MAX,
) -> Design:
    """Return the points to run.

    Args:
        texts: as for `axis`.
        vary: keys and values that the scenario itself asks about; taken if there are no texts.
        sample: so many points drawn at random instead of the whole grid; ranges need it.
        sampling: how they are drawn. ``latin``: each axis is cut into as many strata as there are points, and each stratum is hit
            once (McKay, Beckman, Conover, Technometrics 21, 1979). ``random``: each point on its own.
        seed: of the sample.
        points_max: more points than this are an error.

    Raises:
        ConfigError: nothing to vary, a key twice, a range without a sample, or too many points.
    """
    if texts:
        axes = [axis(text) for text in texts]
    else:
        axes = [Axis(key, tuple(map(typed, values))) for key, values in (vary or {}).items()]
    if not axes:
        raise ConfigError("--over", problem="is missing: say key=value,value")
    if len(axes) > AXES_MAX:
        raise ConfigError("--over", value=len(axes), problem=f"must be {AXES_MAX} keys at most")
    keys = [each.key for each in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError("--over", value=key, problem="is varied twice")
    dropped = 0
    if sample is None:
        for each in axes:
            if each.is_range:
                raise ConfigError("--over", each.key, problem="is a range, which needs --sample")
        count = math.prod(len(each.values) for each in axes)
        _few(count, points_max)
        points = list(itertools.product(*(each.values for each in axes)))
        sampling = "grid"
    else:
        _few(sample, points_max)
        drawn = _drawn(axes, sample, sampling, seed)
        points = list(dict.fromkeys(drawn))
        dropped = len(drawn) - len(points)
    return Design(tuple(axes), tuple(points), sampling, dropped)


def _few(count: int, most: int) -> None:
    if count > most:
        problem = f"must make {most} points at most; --points-max allows more, --sample draws some"
        raise ConfigError("--over", value=count, problem=problem)


def _drawn(
    axes: Sequence[Axis], count: int, sampling: Sampling, seed: int
) -> list[tuple[str, ...]]:
    columns = []
    for each in axes:
        rng = stream(seed, f"sweep/{each.key}")
        parts = rng.random(count)
        if sampling == "latin":
            parts = (rng.permutation(count) + parts) / count
        # The sum of a stratum and what is just below 1 may be rounded up to the next.
        columns.append([each.at(min(float(part), math.nextafter(1.0, 0.0))) for part in parts])
    return list(zip(*columns, strict=True))


def numeric(axis_: Axis, points: Sequence[tuple[str, ...]], number: int) -> list[float] | None:
    """Return each point's value on the number-th axis as a number, or None if one is none."""
    try:
        found = [float(point[number]) for point in points]
    except ValueError:
        return None
    return found if bool(np.isfinite(found).all()) and axis_.key else None
