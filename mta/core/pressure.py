"""How short of memory the server is, and so what it may still take in.

The rule: first give up what can be read again, then refuse messages, then connections, and all of it before the
kernel ends the process. Levels and ratios are KumoMTA's (kumo-server-memory: low at 60 % of the limit, soft at
75 %), which refuses connections at soft; here those that are open are told 452 first, and 421 comes at a third mark.
A level ends a little below where it begins, so that it does not flap.
"""

import enum
from collections.abc import Sequence
from typing import NamedTuple

from mta.core.limits import MemoryLimits

UNKNOWN_MAX = 10
"""Samples in a row that may fail before the level is forgotten: who can't measure must not refuse for ever."""


class MemoryLevel(enum.IntEnum):
    """What is to be done about memory; each level does what those below do as well."""

    OK = 0
    LOW = 1
    """Keep nothing that can be read again."""
    SOFT = 2
    """Take no new message: 452 4.3.1 at MAIL. Read nothing ahead."""
    HARD = 3
    """Take no new connection: 421 4.3.2; give up messages that are being received."""


class Measure(NamedTuple):
    """One limit on memory, and how much of it is used."""

    source: str
    """Who sets the limit: ``config``, ``cgroup2``, ``cgroup1``, ``rlimit-as``, ``rlimit-data`` or ``ram``."""
    usage: int
    """Bytes, counted as whoever sets the limit counts."""
    limit: int
    """Bytes, above 0."""

    @property
    def ratio(self) -> float:
        """Used share of the limit; above 1 if it is exceeded."""
        return self.usage / self.limit


UNMEASURED = Measure("", 0, 0)


class MemoryPressure:
    """The level, from one sample to the next."""

    __slots__ = ("_limits", "_unknown", "level", "measure")

    def __init__(self, limits: MemoryLimits) -> None:
        """Begin with nothing measured, which is enough memory."""
        self._limits = limits
        self._unknown = 0
        self.level = MemoryLevel.OK
        self.measure = UNMEASURED
        """What the level follows from: of all limits the one that is nearest."""

    def observe(self, measures: Sequence[Measure]) -> bool:
        """Take in a sample, empty if nothing could be measured; return whether the level is another now."""
        before = self.level
        if measures:
            self._unknown = 0
            self.measure = max(measures, key=lambda measure: measure.ratio)
            self.level = self._level(self.measure.ratio)
        else:
            self._unknown += 1
            if self._unknown >= UNKNOWN_MAX:
                self.measure = UNMEASURED
                self.level = MemoryLevel.OK
        return self.level is not before

    def _level(self, ratio: float) -> MemoryLevel:
        found = MemoryLevel.OK
        for level in (MemoryLevel.LOW, MemoryLevel.SOFT, MemoryLevel.HARD):
            begins = self.ratio_of(level)
            if ratio >= (begins - self._limits.hysteresis if level <= self.level else begins):
                found = level
        return found

    def ratio_of(self, level: MemoryLevel) -> float:
        """Return the share of the limit at which a level begins."""
        limits = self._limits
        return (0.0, limits.low_ratio, limits.soft_ratio, limits.hard_ratio)[level]

    def bytes_of(self, level: MemoryLevel) -> int:
        """Return the bytes at which a level begins; 0 if nothing is measured."""
        return int(self.measure.limit * self.ratio_of(level))
