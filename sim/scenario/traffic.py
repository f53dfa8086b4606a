"""What is sent: the load of a scenario, the sizes of its messages and their recipients. Data only."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from sim.checks import Problem, domain_problems, in_range
from sim.clients import CLIENT_GROUPS_MAX, ClientGroup
from sim.shapes import Shape

SIZE_MIN: Final = 512
"""Bytes of the smallest message: the headers that identify it must fit (`sim.workload`)."""

SIZE_MAX: Final = 1024 * 1024 * 1024
"""Bytes of the largest message; keeps a slip of the pen from filling memory."""

MESSAGES_MAX: Final = 100_000_000
"""Messages of a scenario; a schedule takes about 60 bytes each."""

RECIPIENTS_MAX: Final = 100_000
"""Recipients of a message: far more than any server takes, to see that it does not."""

SOURCES_MAX: Final = 250
"""Source addresses of the load: of 127.0.0.0/24, where no host of a destination is."""


@dataclass(slots=True)
class Sizes:
    """How large messages are. Results are rounded and clamped to ``min``..``max``."""

    law: Literal["fixed", "histogram", "lognormal", "bounded-pareto"] = "histogram"
    """``histogram`` is freebsd-net 2002, median 4.2 KiB, mean 53 kB; see `sim.distributions`."""
    bytes: int = 4096
    """Size of all messages, for ``fixed``."""
    median: float = 4096.0
    """Bytes, for ``lognormal``."""
    sigma: float = 1.0
    """Standard deviation of the natural logarithm, for ``lognormal``."""
    alpha: float = 0.6
    """Tail index, for ``bounded-pareto``; 0.6 fits freebsd-net from 2 KiB to 1 MiB."""
    min: int = SIZE_MIN
    """Smallest size in bytes; the lower bound of ``bounded-pareto``."""
    max: int = 2 * 1024 * 1024
    """Largest size in bytes; the upper bound of ``bounded-pareto``."""

    def problems(self) -> Iterator[Problem]:
        """Yield what has the right type and makes no sense; see `mta.core.settings`."""
        yield from in_range(
            ("bytes", self.bytes, SIZE_MIN, SIZE_MAX),
            ("min", self.min, SIZE_MIN, SIZE_MAX),
            ("max", self.max, SIZE_MIN, SIZE_MAX),
            ("median", self.median, 1, SIZE_MAX),
            ("sigma", self.sigma, 0, 10),
            ("alpha", self.alpha, 0.01, 100),
        )
        if self.min >= self.max:
            yield "max", self.max, f"must be above min, which is {self.min}"


@dataclass(slots=True)
class Recipients:
    """How many recipients a message has, and who they are."""

    law: Literal["fixed", "zipf"] = "zipf"
    count: int = 1
    """Recipients of every message, for ``fixed``."""
    s: float = 2.6
    """Exponent of ``zipf``: P(k) is proportional to k**-s. 2.6 up to 100 has the mean 1.67 that
    gimeno.co.uk measured (1.66 over 27 weeks and 10 million mails)."""
    max: int = 100
    """Most recipients of a message, for ``zipf``."""
    mailboxes: int = 100_000
    """Different mailboxes per domain; a triplet of greylisting comes again sooner if there are few."""

    def problems(self) -> Iterator[Problem]:
        """Yield what has the right type and makes no sense; see `mta.core.settings`."""
        yield from in_range(
            ("count", self.count, 1, RECIPIENTS_MAX),
            ("s", self.s, 0, 100),
            ("max", self.max, 1, RECIPIENTS_MAX),
            ("mailboxes", self.mailboxes, 1, 1_000_000_000),
        )
        most = self.count if self.law == "fixed" else self.max
        if most > self.mailboxes:
            yield (
                "mailboxes",
                self.mailboxes,
                f"must be {most} or more: a message's recipients differ",
            )


@dataclass(slots=True)
class Load:
    """What is sent, when, and over how many connections."""

    messages: int = 1000
    """Messages to the outside; 0 if there are only local ones."""
    scale: float = 1.0
    """Shortens or lengthens the experiment at the same rates: times ``messages`` here, and times messages and
    window of each local group."""
    rate: float = 100.0
    """Messages per second, whatever the server does (open loop)."""
    arrivals: Literal["poisson", "constant"] = "poisson"
    """``constant`` spaces messages evenly."""
    sessions: int = 20
    """Connections at a time at most."""
    loop: Literal["open", "closed"] = "open"
    """``open``: each message has its instant. ``closed``: ``users`` think, send, wait for the answer, and think again, so that a
    slow server gets less to do; ``rate`` has no meaning then."""
    users: int = 20
    """Who sends in a closed loop, each over a connection of its own; ``sessions`` has no meaning then."""
    think_s: float = 0.1
    """Mean time between an answer and the user's next message, in a closed loop. It is exponential if ``arrivals`` are
    ``poisson``, else always the same."""
    tries: int = 3
    """Attempts of a client that hears 421 or loses its connection, a second apart. The bench passes it on; the load generator by itself
    has an option of its own, --tries."""
    lag_max_s: float = 0.05
    """A run is not valid if one of a hundred messages left later than this because of the load generator itself: it
    did not offer the load that the run is about. The load generator has an option of its own, --lag-max."""
    keep: bool = False
    """True sends message after message over kept connections; False makes one for each message."""
    warm_up_s: float = 0.0
    """Seconds at the start of the load that its statistics leave out: percentiles, histograms and Locust's rows. Failures,
    outcomes, the record and the ledger leave out nothing. Fill-and-drain experiments have none."""
    senders: int = 1000
    """Different senders."""
    sender_domain: str = ""
    """Where bounces go; empty for the domain of the first destination."""
    pipelining: bool = True
    """Commands go in groups where the server offers PIPELINING (RFC 2920)."""
    tls: float = 0.0
    """Part of the connections that say STARTTLS; which, is spread evenly. The bench gives our server a
    certificate for that if its configuration names none."""
    auth: float = 0.0
    """Part of the connections that log in with AUTH PLAIN; where that is offered only in TLS, they say STARTTLS first."""
    user: str = "load"
    """Who logs in."""
    password: str = "load"  # noqa: S105  # of an experiment on the loopback
    """With what."""
    bdat: float = 0.0
    """Part of the messages that go by BDAT where the server offers CHUNKING (RFC 3030)."""
    sources: int = 1
    """Addresses of 127.0.0.0/24 that connections come from in turn, from 127.0.0.1 on. One has some 28,000 ports, and
    each of them rests for a minute after a connection."""
    sizes: Sizes = field(default_factory=Sizes)
    recipients: Recipients = field(default_factory=Recipients)
    shape: Shape = field(default_factory=Shape)
    """How the rate changes; the local groups have windows of their own. In a closed loop it says how many of the users
    take part, at an even pace from start to ``messages / rate`` seconds later."""
    beside: list[ClientGroup] = field(default_factory=list)
    """Slow and misbehaving clients at the same time."""

    def problems(self) -> Iterator[Problem]:
        """Yield what has the right type and makes no sense; see `mta.core.settings`."""
        yield from in_range(
            ("messages", self.messages, 0, MESSAGES_MAX),
            ("scale", self.scale, 0.0001, 1000),
            ("rate", self.rate, 0.001, 1_000_000),
            ("sessions", self.sessions, 1, 10_000),
            ("users", self.users, 1, 10_000),
            ("think_s", self.think_s, 0, 1_000_000),
            ("tries", self.tries, 1, 1000),
            ("lag_max_s", self.lag_max_s, 0, 3600),
            ("warm_up_s", self.warm_up_s, 0, 1_000_000),
            ("senders", self.senders, 1, 1_000_000),
            ("tls", self.tls, 0, 1),
            ("auth", self.auth, 0, 1),
            ("bdat", self.bdat, 0, 1),
            ("sources", self.sources, 1, SOURCES_MAX),
        )
        if self.sender_domain:
            yield from domain_problems("sender_domain", self.sender_domain)
        for key, value in (("user", self.user), ("password", self.password)):
            if not value or "\0" in value:
                yield key, value, "must be some characters, none of them NUL"
        if len(self.beside) > CLIENT_GROUPS_MAX:
            problem = f"must be {CLIENT_GROUPS_MAX} tables at most"
            yield "beside", len(self.beside), problem
        kinds = [group.kind for group in self.beside]
        for i, kind in enumerate(kinds):
            if kind in kinds[:i]:
                yield f"beside.{i}.kind", kind, "has a table already"

    @property
    def clients(self) -> int:
        """Connections at a time at most."""
        return self.users if self.loop == "closed" else self.sessions

    @property
    def count(self) -> int:
        """Messages to the outside at this scale; one at least, if there are any."""
        return max(1, round(self.messages * self.scale)) if self.messages else 0
