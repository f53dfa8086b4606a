"""Local users of a scenario, by group: how much mail each gets, when, and how long its delivery takes.

Data only, as `sim.scenario`. A group's users are called ``flood0``, ``flood1`` and so on; a server that takes part
needs an account or a virtual user for each of them (`LocalGroup.user_names`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from sim.checks import Problem, domain_problems, in_range

GROUPS_MAX: Final = 100
USERS_MAX: Final = 1_000_000
GROUP_MESSAGES_MAX: Final = 100_000_000
SECONDS_MAX: Final = 86_400.0
"""Longest delivery: a day, far beyond any deadline of a server."""


@dataclass(slots=True)
class LocalGroup:
    """Users of the server itself who get alike mail."""

    name: str
    """Lower-case letters and hyphens: a user's name is this and a number."""
    domain: str = "local.test"
    """Where their addresses are; no destination's."""
    users: int = 1
    messages: int = 10
    """Messages for each of them; one recipient each."""
    scales: bool = True
    """``load.scale`` multiplies ``messages``. False for those whose few messages are what is looked at."""
    from_s: float = 0.0
    """The first message is due then, seconds after the start of the load; times ``load.scale``."""
    to_s: float = 60.0
    """The last one is due before; times ``load.scale``. Equal to ``from_s``: all at once."""
    arrivals: Literal["poisson", "constant"] = "poisson"
    """``poisson``: as a Poisson process of which this number is known (uniform and sorted). ``constant``: evenly spaced."""
    delivery: Literal["command", "maildir", "mbox", "lmtp"] = "command"
    """How the server delivers: ``|command``, or as named."""
    seconds: float = 0.0
    """How long a delivery takes beside the server's own work: the median of ``law``."""
    law: Literal["fixed", "lognormal", "exponential"] = "fixed"
    sigma: float = 0.5
    """Standard deviation of the natural logarithm, for ``lognormal``."""
    tempfail: float = 0.0
    """Part of the attempts that fail for now (EX_TEMPFAIL)."""
    permfail: float = 0.0
    """Part of the messages that fail for good (EX_UNAVAILABLE), after those attempts."""

    def problems(self) -> Iterator[Problem]:
        """Yield what has the right type and makes no sense; see `mta.core.settings`."""
        if not re.fullmatch(r"[a-z](?:[a-z-]{0,14}[a-z])?", self.name):
            # Why no digits? Users of `a1` would be users of `a`.
            yield "name", self.name, "must be lower-case letters and hyphens, 16 at most"
        yield from domain_problems("domain", self.domain)
        yield from in_range(
            ("users", self.users, 1, USERS_MAX),
            ("messages", self.messages, 1, GROUP_MESSAGES_MAX),
            ("from_s", self.from_s, 0, 10_000_000),
            ("to_s", self.to_s, 0, 10_000_000),
            ("seconds", self.seconds, 0, SECONDS_MAX),
            ("sigma", self.sigma, 0, 10),
            ("tempfail", self.tempfail, 0, 0.99),
            ("permfail", self.permfail, 0, 1),
        )
        if self.to_s < self.from_s:
            yield "to_s", self.to_s, f"must not be before from_s, which is {self.from_s:g}"

    def per_user(self, scale: float) -> int:
        """Return the messages for each user at a scale; one at least."""
        return max(1, round(self.messages * scale)) if self.scales else self.messages

    def count(self, scale: float) -> int:
        """Return the messages for all users at a scale."""
        return self.users * self.per_user(scale)

    def user_names(self) -> list[str]:
        """Return the local parts of all users."""
        return [f"{self.name}{n}" for n in range(self.users)]
