"""What the name servers of a destination answer, beyond the truth.

The host of a destination does not care, but the scenario says it in the same list: a destination
whose domain can't be looked up is one more way to be slow or away. The real name server and the
model's resolver are both shells around this.
"""

import enum
import math
import random
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sim.behaviours.base import DELAY_MAX_S, Behaviour, Problems, range_problem


class DnsAnswer(enum.Enum):
    """What comes back for a name of the destination."""

    OK = "ok"
    SERVFAIL = "servfail"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    """Nothing comes back."""
    NXDOMAIN = "nxdomain"
    NODATA = "nodata"
    """The name exists, without a mail exchanger or an address."""
    NULL_MX = "null-mx"
    """``MX 0 .``: the domain takes no mail (RFC 7505)."""


class DnsVerdict(NamedTuple):
    """How one query is answered."""

    delay_s: float
    answer: DnsAnswer
    ttl_s: int


TTL_S = 3600
"""How long answers hold where the scenario says nothing; "office-relay v1"."""

TRUTH = DnsVerdict(0.0, DnsAnswer.OK, TTL_S)
"""What is answered where no behaviour says otherwise."""


class DnsBehaviour(Behaviour):
    """Decides about queries; a host never asks it."""

    __slots__ = ("_answer", "_parameters", "_rng")

    def __init__(self, parameters: "Dns", rng: random.Random) -> None:
        self._parameters = parameters
        self._answer = DnsAnswer(parameters.answer)
        self._rng = rng

    def decide(self, now: float) -> DnsVerdict:
        """Return how a query that comes now is answered; ``now`` as for hosts."""
        parameters = self._parameters
        delay_s = parameters.delay_s
        if parameters.sigma:
            drawn = self._rng.gauss(0.0, parameters.sigma)
            delay_s = min(delay_s * math.exp(min(drawn, 100.0)), DELAY_MAX_S)
        answer = DnsAnswer.OK
        if (
            parameters.from_s <= now < parameters.to_s
            and self._rng.random() < parameters.probability
        ):
            answer = self._answer
        return DnsVerdict(delay_s, answer, parameters.ttl_s)


@dataclass(frozen=True, slots=True)
class Dns:
    """``dns``: queries for the destination's domains are slow, or fail."""

    answer: Literal["ok", "servfail", "refused", "timeout", "nxdomain", "nodata", "null-mx"] = "ok"
    probability: float = 1.0
    """Of that answer; otherwise the truth."""
    delay_s: float = 0.0
    """Seconds until an answer leaves; the median if ``sigma`` is given. Measured look-ups of mail
    exchangers have median 0.022 and sigma 1.96 (simulated workloads take this for cache misses)."""
    sigma: float = 0.0
    """Standard deviation of the natural logarithm of the delay; 0: always the same."""
    ttl_s: int = TTL_S
    """How long answers hold."""
    from_s: float = 0.0
    """The answer is given from this instant on; before it, the truth."""
    to_s: float = math.inf
    """The truth is told again from this instant on."""

    def problems(self) -> Problems:
        """Yield what makes no sense."""
        yield from range_problem("probability", self.probability, 0, 1)
        yield from range_problem("delay_s", self.delay_s, 0, DELAY_MAX_S)
        yield from range_problem("sigma", self.sigma, 0, 10)
        yield from range_problem("ttl_s", self.ttl_s, 0, 2**31 - 1)
        if not self.to_s > self.from_s:
            yield "to_s", self.to_s, "must be after from_s"

    def make(self, rng: random.Random) -> DnsBehaviour:
        """Return the behaviour; ``rng`` is its own."""
        return DnsBehaviour(self, rng)
