"""Hosts that refuse a part of the mail in a provider's words, and hosts that do what a recipient's name says.

KumoMTA's smart-sink does both: so many percent deferred and bounced for a domain, with replies as they were seen,
and local parts that choose the answer.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mta.core.reply import Reply
from sim.behaviours.base import Behaviour, Conn, Problems, Refusal, enhanced_of, range_problem
from sim.behaviours.replies import providers

_VERBS: Final = ("MAIL", "RCPT", ".")

Chances = tuple[float, float, Sequence[Refusal], Sequence[Refusal]]
"""At one verb: of a deferral, of that or a rejection, and with which words."""


class ProviderBehaviour(Behaviour):
    """Draws at each verb at which the provider has something to say."""

    __slots__ = ("_chances", "_rng", "judges")

    def __init__(self, chances: Mapping[str, Chances], rng: random.Random) -> None:
        self.judges = tuple(chances)
        self._chances = chances
        self._rng = rng

    def judge(self, conn: Conn, verb: str, argument: str, size: int, now: float) -> Refusal | None:
        """Refuse by chance; see `Provider`."""
        defer, either, temporary, permanent = self._chances[verb]
        drawn = self._rng.random()
        if drawn >= either:
            return None
        return self._rng.choice(temporary if drawn < defer else permanent)


@dataclass(frozen=True, slots=True)
class Provider:
    """``provider``: a part of the messages to one recipient is refused, in the words of a provider.

    Each of its replies is as likely as the others of its class and comes at its own verb. A message with
    several recipients has one draw for each where the verb is RCPT.
    """

    name: str = "gmail"
    """A table of ``replies.toml``."""
    defer: float = 0.05
    """Part that gets 4xx; smart-sink's default."""
    reject: float = 0.1
    """Part that gets 5xx; smart-sink's default."""

    def problems(self) -> Problems:
        """Yield what makes no sense."""
        yield from range_problem("defer", self.defer, 0, 1)
        yield from range_problem("reject", self.reject, 0, 1 - self.defer)
        if self.name not in providers():
            yield "name", self.name, f"must be one of {', '.join(providers())}"
            return
        for key, part, low in (("defer", self.defer, 400), ("reject", self.reject, 500)):
            codes = [each.code for each in providers()[self.name].values() if each.verb in _VERBS]
            if part > 0 and not any(low <= code < low + 100 for code in codes):
                yield key, part, f"must be 0: {self.name} is not known to say that"

    def make(self, rng: random.Random) -> ProviderBehaviour:
        """Return the behaviour; ``rng`` is its own."""
        said = [each for each in providers()[self.name].values() if each.verb in _VERBS]
        temporary = [each for each in said if each.code < 500]
        permanent = [each for each in said if each.code >= 500]
        chances: dict[str, Chances] = {}
        passed = 1.0
        for verb in _VERBS:
            sides = []
            for part, replies in ((self.defer, temporary), (self.reject, permanent)):
                here = [each for each in replies if each.verb == verb]
                share = part * len(here) / len(replies) if replies else 0.0
                refusals = [Refusal(each.reply, close=each.code == 421) for each in here]
                sides.append((share, refusals))
            (defer, now), (reject, never) = sides
            if defer + reject > 0:
                # Who got so far has passed the verbs before: the shares are those of all mail.
                chances[verb] = (defer / passed, (defer + reject) / passed, now, never)
                passed = max(passed - defer - reject, 1e-12)
        return ProviderBehaviour(chances, rng)


_CODE: Final = re.compile(r"([45][0-9][0-9])(?:-.*)?")
_WORDS: Final = {
    "tempfail": Reply(450, "4.2.0", "As you wish"),
    "permfail": Reply(550, "5.1.1", "As you wish"),
}


class AskedForBehaviour(Behaviour):
    """Reads local parts."""

    __slots__ = ()

    judges = ("RCPT",)

    def judge(self, conn: Conn, verb: str, argument: str, size: int, now: float) -> Refusal | None:
        """Refuse who asks for it."""
        local = argument.rpartition("@")[0].partition("+")[0].lower()
        reply = _WORDS.get(local)
        if reply is None:
            found = _CODE.fullmatch(local)
            if found is None:
                return None
            code = int(found[1])
            reply = Reply(code, enhanced_of(code, ""), "As you wish")
        return Refusal(reply, close=reply.code == 421)


@dataclass(frozen=True, slots=True)
class AskedFor:
    """``asked-for``: recipients ``tempfail``, ``permfail``, ``450`` or ``450-x`` get what their names say; a ``+tag`` is ignored."""

    def make(self, rng: random.Random) -> AskedForBehaviour:
        """Return the behaviour; it draws nothing."""
        return AskedForBehaviour()
