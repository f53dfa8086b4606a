"""Bytes per envelope by where it stands: our representations', and those of other mail servers, as data.

A layout lets the model's run answer for somebody else's memory: same decisions, same queue, other bytes. It counts what
lives; what an allocator keeps after a drain is not in it, nor is the process itself. Files are TOML in ``sim/layouts``,
each with the source of its numbers.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from mta.core.settings import ConfigError, build
from sim.checks import Problem


class Standing(NamedTuple):
    """How many envelopes stand where; `mta.core.envelopes.base.EnvelopeState`."""

    pending: int = 0
    scheduled: int = 0
    held: int = 0
    in_flight: int = 0

    @property
    def active(self) -> int:
        """Those that an agent or the way to one has."""
        return self.scheduled + self.held + self.in_flight


class Census(NamedTuple):
    """What is in a server at one instant."""

    relayed: Standing = Standing()
    local: Standing = Standing()
    messages: int = 0
    body_bytes: int = 0
    """Of the queued messages."""
    tasks: int = 0
    """Relaying transactions that wait or run."""
    users: int = 0
    """Local users with something to do."""
    hold_queues: int = 0
    """Relays and users with held mail."""
    sessions: int = 0
    """Open inbound connections."""
    connections: int = 0
    """Open outbound connections."""

    @property
    def envelopes(self) -> int:
        """All of them."""
        return sum(self.relayed) + sum(self.local)

    @property
    def active(self) -> int:
        """Envelopes that are not pending."""
        return self.relayed.active + self.local.active


@dataclass(slots=True)
class EnvelopeBytes:
    """Bytes of one envelope in all processes together, by its state."""

    pending: float = 0.0
    """Waits for its next try."""
    scheduled: float = 0.0
    """Due, waits for a slot."""
    held: float = 0.0
    """Parked because its relay or user is at high water."""
    in_flight: float = 0.0
    """An agent has it."""

    def of(self, standing: Standing) -> float:
        """Return the bytes of so many envelopes."""
        return (
            self.pending * standing.pending
            + self.scheduled * standing.scheduled
            + self.held * standing.held
            + self.in_flight * standing.in_flight
        )

    def problems(self) -> Iterator[Problem]:
        """Yield what makes no sense; see `mta.core.settings`."""
        yield from _negative(self)


@dataclass(slots=True)
class Source:
    """Where a number comes from."""

    what: str
    where: str


@dataclass(slots=True)
class Layout:
    """How one server keeps envelopes. All numbers are bytes unless they say something else."""

    title: str
    relayed: EnvelopeBytes
    local: EnvelopeBytes
    sources: list[Source]
    message: float = 0.0
    """Each queued message."""
    message_active: float = 0.0
    """Each message with an envelope that is not pending, beyond ``message``."""
    task: float = 0.0
    """Each relaying transaction that waits or runs."""
    user: float = 0.0
    """Each local user with something to do."""
    holdq: float = 0.0
    """Each hold queue with something in it."""
    cache_entries: int = 0
    """A cache of envelopes has so many at most."""
    cache_bytes: float = 0.0
    """Each of them."""
    active_max: int = 0
    """No more envelopes than this are in memory; 0 for no such limit."""
    body_share_active: float = 0.0
    """Part of the bodies of messages that are not pending that is in memory."""
    notes: dict[str, str] = field(default_factory=dict)
    """What was not counted."""
    name: str = ""
    """Of its file."""

    def problems(self) -> Iterator[Problem]:
        """Yield what makes no sense; see `mta.core.settings`."""
        yield from _negative(self)
        if not self.sources:
            yield "sources", [], "must say where the numbers come from"

    def live_bytes(self, census: Census) -> int:
        """Return the bytes that this layout needs for what is in a server.

        Messages with an envelope that is not pending are reckoned from the mean number of recipients.
        """
        active, envelopes = census.active, census.envelopes
        per_envelope = census.messages / envelopes if envelopes else 0.0
        resident = 1.0
        if self.active_max and active > self.active_max:
            resident = self.active_max / active
        bytes_ = self.relayed.of(census.relayed) + self.local.of(census.local)
        bytes_ += self.message_active * active * per_envelope
        if active:
            bytes_ += self.body_share_active * census.body_bytes * active / envelopes
        return round(
            bytes_ * resident
            + self.message * census.messages
            + self.task * census.tasks
            + self.user * census.users
            + self.holdq * census.hold_queues
            + self.cache_bytes * min(self.cache_entries, envelopes)
        )


def _negative(numbers: object) -> Iterator[Problem]:
    for name, value in asdict(numbers).items():  # type: ignore[call-overload]  # both callers are dataclasses
        if isinstance(value, int | float) and not value >= 0:
            yield name, value, "must not be negative"


def available() -> list[str]:
    """Return the names of the layouts that ship, sorted."""
    names = (entry.name for entry in (resources.files("sim") / "layouts").iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load(path_or_name: str) -> Layout:
    """Read a layout by its name, or from a file: a string with a slash or that ends in ``.toml`` is a path.

    Raises:
        ConfigError: no such layout, not readable, not TOML, or a key or value is wrong.
    """
    if "/" in path_or_name or path_or_name.endswith(".toml"):
        source = path_or_name
        try:
            content = Path(source).read_bytes()
        except OSError as error:
            raise ConfigError(source, problem=f"can't be read: {error.strerror}") from None
    elif path_or_name in available():
        source = f"{path_or_name}.toml"
        content = (resources.files("sim") / "layouts" / source).read_bytes()
    else:
        known = ", ".join(available())
        problem = f"there is no such layout; there are {known}"
        raise ConfigError("layout", value=path_or_name, problem=problem)
    try:
        data: dict[str, Any] = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError(source, problem=f"is not TOML: {problem}") from None
    data.setdefault("name", Path(source).name.removesuffix(".toml"))
    return build(Layout, data, source=source)
