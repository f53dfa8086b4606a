"""Kinds of hosts by name, and what a host of a scenario is made of at which time.

Profiles are data: those that ship are in ``sim/behaviours/profiles.toml``; a scenario, or a policy file that it
names, may have its own. A destination takes one with ``profile = "slow"`` and adds behaviours of its own behind it;
``changes`` say what it is like from when on.
"""

import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from mta.core.settings import ConfigError, build
from sim.checks import Problem, in_range
from sim.distributions import random_stream

if TYPE_CHECKING:
    from sim.scenario import Destination, Scenario

CHANGES_MAX: Final = 1000
"""Changes of one destination."""

Table = dict[str, Any]
"""One behaviour as a scenario has it: its ``kind`` and parameters."""

_SOURCE: Final = "profiles.toml"
_RATES: Final = ("rate",)


@dataclass(slots=True)
class Part:
    """A part of the hosts of a mix."""

    profile: str
    share: float = 1.0
    """As a weight among the parts."""

    def problems(self) -> Sequence[Problem]:
        """Return what makes no sense."""
        return list(in_range(("share", self.share, 0, 1_000_000)))


@dataclass(slots=True)
class Profile:
    """One kind of hosts."""

    about: str = ""
    """One line."""
    behaviours: list[dict[str, Any]] = field(default_factory=list)
    mix: list[Part] = field(default_factory=list)
    """Which kinds the hosts of a destination are, instead of one; drawn with the scenario's seed."""

    def problems(self) -> Sequence[Problem]:
        """Return what makes no sense."""
        if self.mix and self.behaviours:
            return [("mix", len(self.mix), "is instead of behaviours")]
        if self.mix and not any(part.share > 0 for part in self.mix):
            return [("mix", 0.0, "must have a share above 0")]
        return []


@dataclass(slots=True)
class Change:
    """What a destination is like from some instant on, instead of what it was."""

    at_s: float
    """Seconds after the start of the load."""
    profile: str = ""
    behaviours: list[dict[str, Any]] = field(default_factory=list)
    """Behind the profile's; neither: it accepts at once."""

    def problems(self) -> Sequence[Problem]:
        """Return what makes no sense."""
        return list(in_range(("at_s", self.at_s, 0, 1e9)))


@functools.cache
def shipped() -> Mapping[str, Profile]:
    """Return the profiles that ship, by name, in the order of their file."""
    text = (resources.files("sim") / "behaviours" / _SOURCE).read_text(encoding="utf-8")
    return {
        name: build(Profile, table, source=f"{_SOURCE}: {name}")
        for name, table in tomllib.loads(text).items()
    }


def problems(scenario: "Scenario") -> list[Problem]:
    """Return the profiles that are named and do not exist, and changes that are out of order."""
    known = {**shipped(), **scenario.profiles}
    found: list[Problem] = []

    def check(key: str, name: str) -> None:
        if name and name not in known:
            found.append((key, name, f"must be one of {', '.join(known)}"))

    for name, profile in scenario.profiles.items():
        for number, part in enumerate(profile.mix):
            check(f"profiles.{name}.mix.{number}.profile", part.profile)
            if part.profile in known and known[part.profile].mix:
                key = f"profiles.{name}.mix.{number}.profile"
                found.append((key, part.profile, "is a mix itself"))
    for number, destination in enumerate(scenario.destinations):
        key = f"destinations.{number}"
        check(f"{key}.profile", destination.profile)
        if len(destination.changes) > CHANGES_MAX:
            count = len(destination.changes)
            found.append((f"{key}.changes", count, f"must be {CHANGES_MAX} at most"))
        before = -1.0
        for turn, change in enumerate(destination.changes):
            check(f"{key}.changes.{turn}.profile", change.profile)
            if change.at_s <= before:
                found.append(
                    (f"{key}.changes.{turn}.at_s", change.at_s, "must be after the one before")
                )
            before = change.at_s
    return found


def hurried(table: Table, pace: float) -> Table:
    """Return a behaviour whose times are so many times as short, and whose rates are as high."""
    if pace == 1.0:
        return table
    result = dict(table)
    for key, value in table.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            if key.endswith("_s") and key != "ttl_s":
                result[key] = value / pace
            elif key in _RATES:
                result[key] = value * pace
    return result


class Composer:
    """Says what each host of a scenario is made of."""

    def __init__(self, scenario: "Scenario", *, replication: int = 0) -> None:
        self._scenario = scenario
        self._replication = replication
        self._known = {**shipped(), **scenario.profiles}
        self._drawn: dict[tuple[int, str], list[str]] = {}

    def plan(self, number: int, host: int | None) -> list[tuple[float, list[Table]]]:
        """Return (from when on, behaviours), the first from the beginning.

        Args:
            number: of the destination.
            host: its number in the destination; None for its name servers, which are no host's of a mix.
        """
        destination = self._scenario.destinations[number]
        plan = [
            (
                float("-inf"),
                self.behaviours(number, host, destination.profile, destination.behaviours),
            )
        ]
        for change in destination.changes:
            tables = self.behaviours(number, host, change.profile, change.behaviours)
            plan.append((change.at_s, tables))
        return plan

    def behaviours(
        self, number: int, host: int | None, name: str, own: Sequence[Table]
    ) -> list[Table]:
        """Return a profile's behaviours for one host, at the destination's pace, and behind them its own."""
        if not name:
            return list(own)
        profile = self._known.get(name)
        if profile is None:
            problem = f"must be one of {', '.join(self._known)}"
            raise ConfigError("scenario", f"destinations.{number}.profile", name, problem)
        if profile.mix:
            if host is None:
                return list(own)
            profile = self._known[self._kinds(number, name, profile)[host]]
        pace = self._scenario.destinations[number].pace
        return [*(hurried(table, pace) for table in profile.behaviours), *own]

    def _kinds(self, number: int, name: str, profile: Profile) -> list[str]:
        """Return the profile of each host: as many of each as its share says, in an order that is drawn."""
        kinds = self._drawn.get((number, name))
        if kinds is not None:
            return kinds
        destination: Destination = self._scenario.destinations[number]
        rng = random_stream(self._scenario.seed, f"mix {number} {name}", self._replication)
        total = sum(part.share for part in profile.mix)
        offset = rng.random()
        kinds = []
        for host in range(destination.hosts):
            at = (host + offset) / destination.hosts * total
            for part in profile.mix:
                at -= part.share
                if at < 0:
                    break
            kinds.append(part.profile)
        rng.shuffle(kinds)
        self._drawn[number, name] = kinds
        return kinds
