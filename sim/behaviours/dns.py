"""What the name servers of a destination answer, beyond the truth.

The host of a destination does not care, but the scenario says it in the same list: a destination
whose domain can't be looked up is one more way to be slow or away. The real name server and the
model's resolver are both shells around this.
"""

import enum
import fnmatch
import math
import random
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from sim.behaviours.base import DELAY_MAX_S, Behaviour, Problems, range_problem
from sim.behaviours.windows import WindowBehaviour


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
    MANY_MX = "many-mx"
    """The truth, and exchangers beside it that have no addresses."""
    TRUNCATED = "truncated"
    """Over UDP nothing but TC; the truth over TCP (RFC 2181 9, RFC 7766)."""
    WRONG_ID = "wrong-id"
    """Over UDP somebody else's NXDOMAIN first, with another id; then the truth (RFC 5452 9.1)."""
    WRONG_QUESTION = "wrong-question"
    """Over UDP NXDOMAIN for another name first, with the right id; then the truth (RFC 5452 9.1)."""
    ALIAS = "alias"
    """The exchangers' names are aliases of those that have the addresses (RFC 5321 5.1 knows better, DNS does not)."""
    LAME = "lame"
    """A server that does not know the name, and says only who else might: a referral, not an answer (RFC 2308 2.2)."""


class DnsVerdict(NamedTuple):
    """How one query is answered."""

    delay_s: float
    answer: DnsAnswer
    ttl_s: int
    exchangers: int = 0
    """How many exchangers without addresses there are beside the truth, ``x<n>.<name>``."""
    preference: int = 0
    """Theirs."""


EXCHANGERS_MAX = 2500
"""Most that ``many-mx`` adds: a message has 65,535 bytes at most, and each takes 22 and more."""

TTL_S = 3600
"""How long answers hold where the scenario says nothing; "office-relay v1"."""

TRUTH = DnsVerdict(0.0, DnsAnswer.OK, TTL_S)
"""What is answered where no behaviour says otherwise."""


class DnsBehaviour(Behaviour):
    """Decides about queries; a host never asks it."""

    __slots__ = ("_answer", "_domains", "_parameters", "_rng", "_window")

    def __init__(self, parameters: "Dns", rng: random.Random) -> None:
        self._parameters = parameters
        self._answer = DnsAnswer(parameters.answer)
        self._domains = tuple(pattern.lower() for pattern in parameters.domains)
        self._rng = rng
        self._window = WindowBehaviour(
            parameters.from_s, parameters.to_s, parameters.every_s, "refuse"
        )

    def decide(self, now: float, name: str = "") -> DnsVerdict:
        """Return how a query for a name that comes now is answered; ``now`` as for hosts."""
        parameters = self._parameters
        if parameters.domains and not any(
            fnmatch.fnmatchcase(name, pattern) for pattern in self._domains
        ):
            return DnsVerdict(0.0, DnsAnswer.OK, parameters.ttl_s)
        delay_s = parameters.delay_s
        if parameters.sigma:
            drawn = self._rng.gauss(0.0, parameters.sigma)
            delay_s = min(delay_s * math.exp(min(drawn, 100.0)), DELAY_MAX_S)
        answer = DnsAnswer.OK
        if self._window.away(now) and self._rng.random() < parameters.probability:
            answer = self._answer
        extra = parameters.exchangers if answer is DnsAnswer.MANY_MX else 0
        return DnsVerdict(delay_s, answer, parameters.ttl_s, extra, parameters.preference)


@dataclass(frozen=True, slots=True)
class Dns:
    """``dns``: queries for the destination's domains are slow, or fail."""

    answer: Literal[
        "ok", "servfail", "refused", "timeout", "nxdomain", "nodata", "null-mx",
        "many-mx", "truncated", "wrong-id", "wrong-question", "alias", "lame",] = "ok"  # fmt: skip
    """``timeout``: none; ``nodata``: the name is there, without exchanger or address; ``null-mx``: takes no mail (RFC 7505); ``many-mx``:
    exchangers without addresses beside the true ones; ``truncated``: over UDP only TC; ``wrong-id``, ``wrong-question``: a forged NXDOMAIN
    comes first; ``alias``: exchangers are CNAMEs; ``lame``: a referral to who else might know."""
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
    every_s: float = 0.0
    """Period of name servers that flap; 0: once."""
    domains: list[str] = field(default_factory=list)
    """Only names like one of these, as ``d1.*``, are late and wrong; empty for all of the destination."""
    exchangers: int = 2000
    """Of ``many-mx``: so many beside the true ones."""
    preference: int = 20
    """Of ``many-mx``: theirs; below 10 they come before the true ones."""

    def problems(self) -> Problems:
        """Yield what makes no sense."""
        yield from range_problem("probability", self.probability, 0, 1)
        yield from range_problem("delay_s", self.delay_s, 0, DELAY_MAX_S)
        yield from range_problem("sigma", self.sigma, 0, 10)
        yield from range_problem("ttl_s", self.ttl_s, 0, 2**31 - 1)
        if not self.to_s > self.from_s:
            yield "to_s", self.to_s, "must be after from_s"
        if self.every_s and not self.to_s - self.from_s < self.every_s <= 1e9:
            yield "every_s", self.every_s, "must be 0, or longer than the fault"
        yield from range_problem("exchangers", self.exchangers, 1, EXCHANGERS_MAX)
        yield from range_problem("preference", self.preference, 0, 65_535)

    def make(self, rng: random.Random) -> DnsBehaviour:
        """Return the behaviour; ``rng`` is its own."""
        return DnsBehaviour(self, rng)
