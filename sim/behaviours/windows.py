"""Hosts that are away: for a while, again and again, or for ever."""

import math
import random
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from mta.core.reply import Reply
from sim.behaviours.base import Behaviour, Problems, Refusal, range_problem

AwayMode: TypeAlias = Literal["refuse", "silent", "421"]
"""How a host is away: nothing listens and connections are reset; connections are taken and nothing
is ever said; or everything is answered with 421. Loopback can't lose a SYN, so ``silent`` is the
nearest to a host behind a packet filter: the client waits for the greeting, not for TCP."""

_REFUSALS: Final[dict[str, Refusal]] = {
    "refuse": Refusal(None, close=True),
    "silent": Refusal(None),
    "421": Refusal(Reply(421, "4.3.2", "Service not available, closing channel"), close=True),
}

ALWAYS: Final = (-math.inf, math.inf)


class WindowBehaviour(Behaviour):
    """Knows when the host is away. The host asks before everything else."""

    __slots__ = ("_every_s", "_from_s", "_to_s", "mode", "refusal")

    def __init__(self, from_s: float, to_s: float, every_s: float, mode: AwayMode) -> None:
        self._from_s = from_s
        self._to_s = to_s
        self._every_s = every_s
        self.mode = mode
        self.refusal = _REFUSALS[mode]

    def _begin(self, now: float) -> float:
        """Return when the last window that began by ``now`` began; the first if none has."""
        if self._every_s and now > self._from_s:
            begin = self._from_s + (now - self._from_s) // self._every_s * self._every_s
            # Floor division and product may disagree by one ulp about what has begun.
            return begin if begin <= now else begin - self._every_s
        return self._from_s

    def away(self, now: float) -> bool:
        """Return True from the beginning of a window, and no longer at its end."""
        begin = self._begin(now)
        return begin <= now < self._end(begin)

    def _end(self, begin: float) -> float:
        # The first window ends exactly when the scenario says; a difference may be an ulp off.
        return self._to_s if begin == self._from_s else begin + (self._to_s - self._from_s)

    def next_change(self, now: float) -> float:
        """Return the first instant after ``now`` at which a window begins or ends; inf if none."""
        if self._from_s == -math.inf:
            return math.inf
        if now < self._from_s:
            return self._from_s
        begin = self._begin(now)
        end = self._end(begin)
        if now < end:
            return end
        if not self._every_s:
            return math.inf
        following = begin + self._every_s
        return following if following > now else following + self._every_s


@dataclass(frozen=True, slots=True)
class Outage:
    """``outage``: away from one instant to another, once or again and again."""

    from_s: float = 0.0
    """Seconds after the start of the load; negative: before it."""
    to_s: float = math.inf
    """The host is back from this instant on."""
    every_s: float = 0.0
    """Period of a host that flaps; 0: once."""
    mode: AwayMode = "refuse"
    """``refuse``: nobody listens; ``silent``: it takes connections and says nothing; ``421``: that is its answer to everything."""

    def problems(self) -> Problems:
        """Yield what makes no sense."""
        yield from range_problem("from_s", self.from_s, -1e10, 1e9)
        if not self.to_s > self.from_s:
            yield "to_s", self.to_s, "must be after from_s"
        if self.every_s and not self.to_s - self.from_s < self.every_s <= 1e9:
            yield "every_s", self.every_s, "must be 0, or longer than the outage"

    def make(self, rng: random.Random) -> WindowBehaviour:
        """Return the behaviour; it draws nothing."""
        return WindowBehaviour(self.from_s, self.to_s, self.every_s, self.mode)


@dataclass(frozen=True, slots=True)
class Dead:
    """``dead``: away for ever, and before the start."""

    mode: Literal["refuse", "silent"] = "refuse"
    """As of ``outage``."""

    def make(self, rng: random.Random) -> WindowBehaviour:
        """Return the behaviour; it draws nothing."""
        return WindowBehaviour(*ALWAYS, 0.0, self.mode)
