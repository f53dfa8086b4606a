"""What the destinations of a running world are like, and how that is changed: ``GROUP.key=value``.

A group is a destination, by its name. Keys: ``profile``, ``pace``, ``behaviours`` (all, or one as ``behaviours.0.wait_s``),
``KIND.parameter`` of the first behaviour of a kind, which is added where there is none, ``tls``, and ``outage``, which is
``refuse``, ``silent``, ``421`` or ``none``. What is not named stays, and keeps its memory. All of it or nothing of it is done.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mta.core.settings import ConfigError, build
from sim.behaviours import KINDS, read
from sim.profiles import Composer, hurried, shipped
from sim.profiles import problems as profile_problems
from sim.remote import NameServer, RemoteHost
from sim.scenario import Destination, HostAddress, Scenario, addresses
from testbed.world.sink import Sink

CHANGES_MAX: Final = 100
"""Changes of one request."""

_FIELDS: Final = ("profile", "pace", "behaviours", "tls")
_OUTAGES: Final = ("refuse", "silent", "421", "none")


class Groups:
    """The destinations of one process of the world: its hosts, and in the first the name servers."""

    def __init__(self, scenario: Scenario, sink: Sink, servers: Sequence[NameServer]) -> None:
        self._scenario = scenario
        self._sink = sink
        self._servers = servers
        self._by_address: Mapping[str, HostAddress] = {
            each.address: each for each in addresses(scenario)
        }
        self._now = [dataclasses.replace(each, changes=[]) for each in scenario.destinations]
        self._taken = [0] * len(self._now)
        """How many planned changes each has gone through."""

    def set(self, changes: Sequence[str]) -> list[str]:
        """Carry out changes; return the names of the groups that they were about.

        Raises:
            ConfigError: one of them makes no sense; then none was carried out.
        """
        if not 1 <= len(changes) <= CHANGES_MAX:
            raise ConfigError(
                "set", value=len(changes), problem=f"must be 1 to {CHANGES_MAX} changes"
            )
        now = self._sink.clock.now()
        wanted: dict[int, Destination] = {}
        for change in changes:
            name, dot, rest = change.partition(".")
            key, equals, value = rest.partition("=")
            names = [each.name for each in self._now]
            if not dot or not equals:
                raise ConfigError("set", value=change, problem="must be GROUP.key=value")
            if name not in names:
                raise ConfigError("set", value=name, problem=f"must be one of {', '.join(names)}")
            number = names.index(name)
            before = wanted.get(number) or self._current(number, now)
            wanted[number] = _changed(before, key, value, now)
        trial = dataclasses.replace(
            self._scenario, destinations=[wanted.get(n, each) for n, each in enumerate(self._now)]
        )
        for key, bad, problem in profile_problems(trial):
            raise ConfigError("set", key, bad, problem)
        composer = Composer(trial)
        plans: list[tuple[RemoteHost | NameServer, list[dict[str, Any]]]] = []
        for number, each in wanted.items():
            hosts: list[tuple[int | None, RemoteHost | NameServer]] = [
                (int(one.address.rpartition(".")[2]) - 1, one.host)
                for one in self._sink.listeners
                if self._by_address[one.address].destination == number
            ]
            if self._servers:
                hosts.append((None, self._servers[number]))
            for host, target in hosts:
                tables = composer.behaviours(number, host, each.profile, each.behaviours)
                read(tables, source="set", key=f"{each.name}.behaviours")
                plans.append((target, tables))
        for target, tables in plans:
            assert target.maker is not None
            target.change(target.maker.make(tables, source="set", key="behaviours"), now)
        for number, each in wanted.items():
            self._now[number] = each
            for one in self._sink.listeners:
                if self._by_address[one.address].destination == number:
                    one.set_tls(each.tls)
                    one.clock_changed()
        return [self._now[number].name for number in wanted]

    def show(self) -> list[dict[str, Any]]:
        """Return what each group is like now, and how many of its hosts listen and are talked to."""
        now = self._sink.clock.now()
        rows = []
        for number in range(len(self._now)):
            each = self._current(number, now)
            mine = [
                one
                for one in self._sink.listeners
                if self._by_address[one.address].destination == number
            ]
            rows.append(
                {
                    "group": each.name,
                    "domain": each.domain,
                    "profile": each.profile,
                    "behaviours": each.behaviours,
                    "tls": each.tls,
                    "hosts": len(mine),
                    "listening": sum(one.host.listening(now) for one in mine),
                    "open": sum(len(one.sessions) for one in mine),
                }
            )
        return rows

    def _current(self, number: int, now: float) -> Destination:
        """Return what a destination is like: as it was set, or as the last change that was planned left it."""
        planned = self._scenario.destinations[number].changes
        for change in itertools.islice(planned, self._taken[number], None):
            if now < change.at_s:
                break
            self._taken[number] += 1
            self._now[number] = dataclasses.replace(
                self._now[number], profile=change.profile, behaviours=change.behaviours
            )
        return self._now[number]


def merge_rows(parts: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of several processes as one set: each has some of the hosts."""
    merged = [dict(row) for row in parts[0]]
    for rows in parts[1:]:
        for total, row in zip(merged, rows, strict=True):
            for key in ("hosts", "listening", "open"):
                total[key] += row[key]
    return merged


def _changed(before: Destination, key: str, value: str, now: float) -> Destination:
    """Return a destination with one value changed."""
    source = f"set {before.name}"
    field, _, rest = key.partition(".")
    if key == "outage":
        if value not in _OUTAGES:
            raise ConfigError(source, key, value, f"must be one of {', '.join(_OUTAGES)}")
        kept = [each for each in before.behaviours if each.get("kind") != "outage"]
        away = [] if value == "none" else [{"kind": "outage", "from_s": now, "mode": value}]
        return dataclasses.replace(before, behaviours=[*away, *kept])
    if field in KINDS and rest:
        before = _opened(before, field)
        kinds = [each.get("kind") for each in before.behaviours]
        if field not in kinds:
            before = dataclasses.replace(before, behaviours=[*before.behaviours, {"kind": field}])
            kinds.append(field)
        key = f"behaviours.{kinds.index(field)}.{rest}"
    elif field not in _FIELDS:
        known = ", ".join((*_FIELDS, "outage", "KIND.parameter"))
        raise ConfigError(source, key, value, f"must be one of {known}")
    return build(
        Destination, dataclasses.asdict(before), source=source, overrides=[f"{key}={value}"]
    )


def _opened(before: Destination, kind: str) -> Destination:
    """Return a destination whose profile's behaviours are its own, if the profile has such a one to change."""
    profile = shipped().get(before.profile)
    if profile is None or not any(each.get("kind") == kind for each in profile.behaviours):
        return before
    own = [hurried(each, before.pace) for each in profile.behaviours]
    return dataclasses.replace(before, profile="", behaviours=[*own, *before.behaviours])
