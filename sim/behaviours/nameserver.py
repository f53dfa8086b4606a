"""The name servers of one destination, composed of behaviours as its hosts are."""

import math
from collections.abc import Sequence
from typing import Self

from sim.behaviours.base import Behaviour
from sim.behaviours.dns import TRUTH, DnsBehaviour, DnsVerdict
from sim.behaviours.maker import Maker


class NameServer:
    """What the name servers of one destination answer; the truth unless a behaviour says otherwise."""

    def __init__(self, behaviours: Sequence[DnsBehaviour]) -> None:
        self._phases = [(-math.inf, tuple(behaviours))]
        self.maker: Maker | None = None
        """What made them, for those who change them."""

    @classmethod
    def of(cls, plan: Sequence[tuple[float, Sequence[Behaviour]]], maker: Maker) -> Self:
        """Return name servers that are like this from which instants on."""
        server = cls(())
        server.maker = maker
        server._phases = [(at, _dns(behaviours)) for at, behaviours in plan]
        return server

    def change(self, behaviours: Sequence[Behaviour], now: float) -> None:
        """Be like this from now on, until the next instant that was planned."""
        later = [each for each in self._phases if each[0] > now]
        self._phases = [(-math.inf, _dns(behaviours)), *later]
        if self.maker is not None:
            self.maker.keep(each for _, phase in self._phases for each in phase)

    def decide(self, now: float, name: str = "") -> DnsVerdict:
        """Return how a query that comes now is answered: by the first behaviour that has its own way.

        Delays add up; the TTL is the first behaviour's.

        Args:
            now: seconds since the start.
            name: what is asked for, in lower case without a final dot; empty for any.
        """
        behaviours = self._phases[0][1]
        for at, later in self._phases[1:]:
            if now < at:
                break
            behaviours = later
        if not behaviours:
            return TRUTH
        verdicts = [one.decide(now, name) for one in behaviours]
        for verdict in verdicts:
            if verdict.answer is not TRUTH.answer:
                break
        else:
            verdict = verdicts[0]
        return verdict._replace(
            delay_s=math.fsum(one.delay_s for one in verdicts), ttl_s=verdicts[0].ttl_s
        )


def _dns(behaviours: Sequence[Behaviour]) -> tuple[DnsBehaviour, ...]:
    return tuple(one for one in behaviours if isinstance(one, DnsBehaviour))
