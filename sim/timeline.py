"""What happens to the server while the load goes on: what its operator does, what its disk does, and when its process ends.

A scenario lists it (``[[timeline]]``), each entry at an instant of the load. The model tells its core at that instant
(`sim.operator`), the bench says it on the control socket of the real server (`testbed.operator`): the same limits by the
same names, ``mtactl``'s verbs. The real server's disk is slow or full where it writes its queue (`testbed.targets.disk`).
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from mta.core.limitchange import LimitValue, parse_change, put_limit
from mta.core.limits import Limits
from mta.core.settings import ConfigError, typed
from sim.checks import Problem, in_range

EVENTS_MAX: Final = 1000
"""Entries of a timeline: an operator's day, not a load of its own."""

SLOWER_MAX: Final = 1e6
"""Times that a disk may be slower."""

DOWN_MIN_S: Final = 0.1
DOWN_MAX_S: Final = 3600.0
"""Seconds for which a server may be down."""

Part: TypeAlias = Literal["smtp", "mta", "mda"]
"""What ``mtactl pause`` can stop as a whole."""


SIGNALS: Final = {"kill": "SIGKILL", "stop": "SIGTERM"}
"""By which a server ends."""


@dataclass(slots=True)
class Event:
    """What is done at one instant: limits first, then what is paused and resumed, then retries."""

    at_s: float
    """Seconds after the start of the load."""
    set: dict[str, Any] = field(default_factory=dict)
    """New limits by their keys, as ``"limits.mta.max_conn_per_host" = 5``; those that ``mtactl set`` takes, set one after the other."""
    pause: list[Part] = field(default_factory=list)
    """Parts that stop."""
    resume: list[Part] = field(default_factory=list)
    """Parts that go on."""
    schedule: bool = False
    """Everything that waits for its next try is tried now, as ``mtactl schedule all`` does."""
    disk: Literal["", "well", "slow", "full"] = ""
    """What the queue's disk is like from now on. ``full``: no commit succeeds, every message is refused with 452 4.3.1, what
    was accepted stays and is relayed; that it was is written down when there is room again. The server looks for that itself,
    1, 3, 7, 15, 31 s after the first commit that failed, and every 30 s from then on."""
    slower: float = 10.0
    """How many times as long a commit takes on a slow disk, a large body's file included."""
    restart: Literal["", "kill", "stop"] = ""
    """The server's process ends and is started again on the same queue: ``kill`` by SIGKILL, ``stop`` by SIGTERM, which lets
    it finish what it is doing. An entry of its own, and no other may come before it is started again."""
    down_s: float = 1.0
    """From its end until it is started again. Until it has read its queue it takes some time more."""

    def problems(self) -> Iterator[Problem]:
        """Yield what has the right type and makes no sense; see `mta.core.settings`."""
        yield from in_range(("at_s", self.at_s, 0, 1e9), ("slower", self.slower, 1, SLOWER_MAX))
        yield from in_range(("down_s", self.down_s, DOWN_MIN_S, DOWN_MAX_S))
        for key, value in leaves(self.set):
            if not isinstance(value, bool | int | float | str):
                yield "set", key, "must have a single value"
        for part in self.pause:
            if part in self.resume:
                yield "resume", part, "is paused at the same instant"
        others = self.set or self.pause or self.resume or self.schedule or self.disk
        if not (others or self.restart):
            problem = "is the instant of nothing: set, pause, resume, schedule, disk, restart"
            yield "at_s", self.at_s, problem
        if others and self.restart:
            yield "restart", self.restart, "must be an entry of its own"

    def words(self) -> list[str]:
        """Return what is done, each as ``mtactl`` would be told; for logs and plots."""
        said = [f"set {key}={typed(value)}" for key, value in leaves(self.set)]
        said += [f"pause {part}" for part in self.pause]
        said += [f"resume {part}" for part in self.resume]
        if self.schedule:
            said.append("schedule all")
        if self.disk:
            said.append(f"disk {self.disk}" + (f" {self.slower:g}x" if self.disk == "slow" else ""))
        if self.restart:
            said.append(f"{SIGNALS[self.restart]}, {self.down_s:g} s down")
        return said


class Change(NamedTuple):
    """An entry of a timeline whose limits were checked against those of the server."""

    event: Event
    limits: tuple[tuple[str, LimitValue], ...]
    """Keys and values of the type that each limit has."""


def leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values, whether the keys were written with dots, in quotes or as tables."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def changes_of(events: Sequence[Event], limits: Limits, *, source: str) -> list[Change]:
    """Return a timeline in the order of its instants; each change is checked beside those before it.

    Args:
        events: as the scenario has them.
        limits: the server's at its start; they are not touched.
        source: the scenario's file, for errors.

    Raises:
        ConfigError: a limit that there is not, that needs a restart, or a value that makes no sense then; an entry while
            the server is down; a restart while its disk is full.
    """
    now = copy.deepcopy(limits)
    checked = []
    up_s = 0.0
    is_full = False
    numbered = sorted(enumerate(events), key=lambda each: each[1].at_s)
    for number, event in numbered:
        if event.at_s < up_s:
            raise ConfigError(
                source, f"timeline.{number}.at_s", event.at_s, "the server is down then"
            )
        is_full = event.disk == "full" if event.disk else is_full
        if event.restart:
            if is_full:
                raise ConfigError(
                    source,
                    f"timeline.{number}.restart",
                    event.restart,
                    "the disk is full then: nothing could start",
                )
            up_s = event.at_s + event.down_s
            now = copy.deepcopy(limits)  # What was set goes with the process.
        found = []
        for name, value in leaves(event.set):
            try:
                key, parsed = parse_change(now, f"{name}={typed(value)}")
            except ConfigError as error:
                problem = error.problem
                raise ConfigError(
                    source, f"timeline.{number}.set.{name}", value, problem
                ) from error
            put_limit(now, key, parsed)
            found.append((key, parsed))
        checked.append(Change(event, tuple(found)))
    return checked
