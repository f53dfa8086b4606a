"""What an experiment is: where the load goes, what happens meanwhile, and to what server. Data only."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sim.checks import Problem, domain_problems, in_range
from sim.conditions import ConditionError
from sim.conditions import parse as parse_condition
from sim.groups import GROUPS_MAX, LocalGroup
from sim.profiles import Change, Profile
from sim.profiles import problems as profile_problems
from sim.scenario.traffic import MESSAGES_MAX, Load
from sim.timeline import EVENTS_MAX, Event

VALUES_MAX: Final = 50
"""Values of a key in a sweep; each is a run."""

DESTINATIONS_MAX: Final = 200
"""Destination i has the address block 127.0.(10 + i).0/24."""

HOSTS_MAX: Final = 254
"""Host j of a destination has the last octet 1 + j."""


@dataclass(slots=True)
class Destination:
    """Domains that share a group of hosts, and how those behave."""

    name: str
    """For tables, figures and conditions: ``p99_delivered.NAME``."""
    domain: str
    """Under ``.test`` or ``.example``."""
    domains: int = 1
    """1: ``domain`` itself. More: ``d1.domain`` and so on, all with the same MX hosts."""
    skew: float = 0.0
    """Popularity of the domains: the k-th has a share proportional to k**-skew; 0 for all alike."""
    share: float = 1.0
    """Part of the recipients, as a weight among all destinations."""
    hosts: int = 1
    """MX hosts, all with the same preference."""
    mx: int = 0
    """Hosts of each domain: the k-th has so many of them, from the one after the last of the domain before; 0 for all."""
    profile: str = ""
    """What kind of hosts they are, by name; see `sim.profiles`. ``testbed profiles`` lists those that ship."""
    pace: float = 1.0
    """Times of profiles are so many times as short and their rates as high, for experiments in compressed time."""
    behaviours: list[dict[str, Any]] = field(default_factory=list)
    """Each a ``kind`` with its parameters, for `sim.remote`, behind the profile's; none of both for a host that
    accepts at once."""
    changes: list[Change] = field(default_factory=list)
    """What they are like from which instants on."""
    tls: Literal[
        "none", "offered", "required", "broken", "expired", "wrong-name", "self-signed"
    ] = "none"
    """How the hosts do STARTTLS; see `testbed.world.tlssession`, and `sim.tls` for the model."""
    dane: Literal["none", "valid", "wrong"] = "none"
    """Whether the hosts have TLSA records, and whether those mean their keys. The world's answers about these
    names are said to be validated then."""

    def problems(self) -> Iterator[Problem]:
        """Yield what has the right type and makes no sense; see `mta.core.settings`."""
        if not self.name:
            yield "name", self.name, "must not be empty"
        yield from domain_problems("domain", self.domain)
        yield from in_range(
            ("domains", self.domains, 1, 1_000_000),
            ("skew", self.skew, 0, 10),
            ("share", self.share, 0, 1_000_000),
            ("hosts", self.hosts, 1, HOSTS_MAX),
            ("mx", self.mx, 0, self.hosts),
            ("pace", self.pace, 0.001, 1_000_000),
        )
        if self.dane != "none" and self.tls == "none":
            yield "dane", self.dane, "needs tls"
        lists = [("behaviours", self.behaviours)]
        lists += [
            (f"changes.{n}.behaviours", each.behaviours) for n, each in enumerate(self.changes)
        ]
        for key, behaviours in lists:
            for n, behaviour in enumerate(behaviours):
                if not isinstance(behaviour.get("kind"), str):
                    yield f"{key}.{n}", behaviour, "must have a kind"


@dataclass(slots=True)
class Scenario:
    """One experiment."""

    name: str
    title: str = ""
    question: str = ""
    """What it asks."""
    healthy: str = ""
    """What a healthy server shows."""
    expects: list[str] = field(default_factory=list)
    """The same as conditions that hold in a run of a healthy server, at any scale: ``lost == 0``; see `sim.conditions` and
    `testbed.quantities`."""
    vary: dict[str, Any] = field(default_factory=dict)
    """Of a sweep: a key, as ``server.limits.mta.max_conn_per_host``, and the values it is run with."""
    seed: int = 1
    """Root of all streams; see `sim.distributions.stream`."""
    drain_s: float = 60.0
    """Longest wait for the queue to become empty after the load."""
    representations: list[Literal["fixed", "whole", "full", "slim", "packed"]] = field(
        default_factory=lambda: ["whole", "full", "slim", "packed"]
    )
    """Which envelopes the bench runs, one server process each."""
    load: Load = field(default_factory=Load)
    destinations: list[Destination] = field(default_factory=list)
    local: list[LocalGroup] = field(default_factory=list)
    """The server's own users."""
    timeline: list[Event] = field(default_factory=list)
    """What the operator does while the load goes on, and what the disk does."""
    profiles: dict[str, Profile] = field(default_factory=dict)
    """Kinds of hosts beside those that ship, or in their place."""
    server: dict[str, Any] = field(default_factory=dict)
    """What the server is configured with beyond its defaults; the keys of its own file."""

    def problems(self) -> Iterator[Problem]:
        """Yield what has the right type and makes no sense; see `mta.core.settings`."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", self.name):
            yield "name", self.name, "must be lower-case letters, digits and hyphens, 32 at most"
        for condition in self.expects:
            try:
                parse_condition(condition)
            except ConditionError as error:
                yield "expects", condition, str(error)
        for key, values in self.vary.items():
            if not isinstance(values, list) or not 2 <= len(values) <= VALUES_MAX:
                yield "vary", key, f"must have a list of 2 to {VALUES_MAX} values"
        if self.seed < 0:
            yield "seed", self.seed, "must not be negative"
        if not self.drain_s > 0:
            yield "drain_s", self.drain_s, "must be above 0"
        if not self.representations:
            yield "representations", [], "must name at least one"
        if len(set(self.representations)) != len(self.representations):
            yield "representations", self.representations, "names one twice"
        if not 1 <= len(self.destinations) <= DESTINATIONS_MAX:
            yield (
                "destinations",
                len(self.destinations),
                f"must be from 1 to {DESTINATIONS_MAX} tables",
            )
        for i, each in enumerate(self.destinations):
            before = self.destinations[:i]
            if each.name in [other.name for other in before]:
                yield f"destinations.{i}.name", each.name, "is the name of another destination"
            if each.domain in [other.domain for other in before]:
                yield f"destinations.{i}.domain", each.domain, "belongs to another destination"
        if not any(each.share > 0 for each in self.destinations):
            yield "destinations.0.share", 0.0, "must be above 0 for one destination at least"
        if not self.local and not self.load.messages:
            yield "load.messages", 0, f"must be from 1 to {MESSAGES_MAX}"
        if len(self.timeline) > EVENTS_MAX:
            yield "timeline", len(self.timeline), f"must be {EVENTS_MAX} entries at most"
        yield from profile_problems(self)
        yield from self._local_problems()

    def _local_problems(self) -> Iterator[Problem]:
        if len(self.local) > GROUPS_MAX:
            yield "local", len(self.local), f"must be {GROUPS_MAX} tables at most"
        if self.messages > MESSAGES_MAX:
            yield "load.scale", self.load.scale, f"makes more than {MESSAGES_MAX} messages"
        outside = [each.domain for each in self.destinations]
        for i, group in enumerate(self.local):
            if group.name in [other.name for other in self.local[:i]]:
                yield f"local.{i}.name", group.name, "is the name of another group"
            if any(f".{group.domain}".endswith(f".{domain}") for domain in outside):
                yield f"local.{i}.domain", group.domain, "belongs to a destination"

    @property
    def about(self) -> str:
        """What it asks and what a healthy server shows, as one paragraph."""
        return " ".join(f"{self.question} {self.healthy}".split())

    @property
    def messages(self) -> int:
        """All messages: to the outside, and to local users."""
        return self.load.count + sum(each.count(self.load.scale) for each in self.local)
