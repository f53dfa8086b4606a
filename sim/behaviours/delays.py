"""Slow hosts: distance, which commands that arrive together share, and tarpits, which they do not."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from sim.behaviours.base import (
    DELAY_MAX_S,
    VERBS,
    Behaviour,
    Problems,
    range_problem,
    verb_problems,
)
from sim.distributions import BLOCK


class LatencyBehaviour(Behaviour):
    """Draws how far away the host is. The host asks once for all commands of one instant."""

    __slots__ = ("sample", "verbs")

    def __init__(self, sample: Callable[[], float], verbs: frozenset[str]) -> None:
        self.sample = sample
        """Return the next delay in seconds."""
        self.verbs = verbs
        """The verbs whose replies wait."""


class TarpitBehaviour(Behaviour):
    """Holds each reply back, one after the other."""

    __slots__ = ("delay_s", "verbs")

    def __init__(self, delay_s: float, verbs: frozenset[str]) -> None:
        self.delay_s = delay_s
        self.verbs = verbs


@dataclass(frozen=True, slots=True)
class Latency:
    """``latency``: each reply comes later; commands that arrive together are answered together.

    So pipelining (RFC 2920) helps against it, as it does against distance.
    """

    law: Literal["fixed", "lognormal", "exponential"] = "fixed"
    """``exponential`` has no memory, as queueing theory likes it: for a model that is held against theory."""
    delay_s: float = 0.0
    """Seconds, for ``fixed``."""
    mean_s: float = 0.0
    """Seconds, for ``exponential``."""
    median_s: float = 0.0
    """Seconds, for ``lognormal``."""
    sigma: float = 0.0
    """Standard deviation of the natural logarithm, for ``lognormal``."""
    max_s: float = 300.0
    """Longer draws are cut to this; the laws of chance have no end. The default is what clients wait
    (RFC 5321 4.5.3.2)."""
    verbs: list[str] = field(default_factory=list)
    """Verbs whose replies wait; empty for all."""

    def problems(self) -> Problems:
        """Yield what makes no sense."""
        yield from range_problem("delay_s", self.delay_s, 0, DELAY_MAX_S)
        yield from range_problem("mean_s", self.mean_s, 0, DELAY_MAX_S)
        yield from range_problem("median_s", self.median_s, 0, DELAY_MAX_S)
        yield from range_problem("sigma", self.sigma, 0, 10)
        yield from range_problem("max_s", self.max_s, 0, DELAY_MAX_S)
        yield from verb_problems("verbs", self.verbs, VERBS)
        if self.law == "lognormal" and self.median_s == 0:
            yield "median_s", self.median_s, "must be above 0 for the law lognormal"
        if self.law == "exponential" and self.mean_s == 0:
            yield "mean_s", self.mean_s, "must be above 0 for the law exponential"
        if self.law != "lognormal" and (self.median_s or self.sigma):
            yield "law", self.law, "must be lognormal where median_s or sigma is given"
        if self.law != "fixed" and self.delay_s:
            yield "delay_s", self.delay_s, "belongs to the law fixed"
        if self.law != "exponential" and self.mean_s:
            yield "mean_s", self.mean_s, "belongs to the law exponential"

    def make(self, rng: random.Random) -> LatencyBehaviour:
        """Return the behaviour; ``rng`` is its own."""
        verbs = frozenset(self.verbs or VERBS)
        longest = self.max_s
        if self.law == "fixed":
            value = min(self.delay_s, longest)
            return LatencyBehaviour(lambda: value, verbs)
        mean_s, sigma = self.mean_s, self.sigma
        mu = math.log(self.median_s) if self.law == "lognormal" else 0.0
        values: list[float] = []
        drawn = 8
        generator: np.random.Generator | None = None

        # Why ahead of time? The model takes two of these for each message, and numpy draws many for
        # the price of a few. The first blocks are small: most hosts of a large scenario hear little.
        def sample() -> float:
            nonlocal drawn, generator
            if not values:
                if generator is None:
                    generator = np.random.Generator(np.random.PCG64(rng.getrandbits(128)))
                drawn = min(drawn * 2, BLOCK)
                if mean_s:
                    found = mean_s * generator.standard_exponential(drawn)
                else:
                    normal = np.minimum(mu + sigma * generator.standard_normal(drawn), 100.0)
                    found = np.exp(normal)
                values.extend(np.minimum(found, longest).tolist())
                values.reverse()
            return values.pop()

        return LatencyBehaviour(sample, verbs)


@dataclass(frozen=True, slots=True)
class Tarpit:
    """``tarpit``: the host sits on each reply in turn; pipelining does not help.

    Simulated stress mixes have 30 s for 2 % of hosts; Postfix's ``smtpd_error_sleep_time`` is 1 s.
    """

    delay_s: float = 30.0
    """Seconds for each reply."""
    verbs: list[str] = field(default_factory=list)
    """Verbs whose replies are held back; empty for all."""

    def problems(self) -> Problems:
        """Yield what makes no sense."""
        yield from range_problem("delay_s", self.delay_s, 0, DELAY_MAX_S)
        yield from verb_problems("verbs", self.verbs, VERBS)

    def make(self, rng: random.Random) -> TarpitBehaviour:
        """Return the behaviour; it draws nothing."""
        return TarpitBehaviour(self.delay_s, frozenset(self.verbs or VERBS))
