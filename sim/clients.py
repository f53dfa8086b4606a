"""Clients of a scenario that send no mail that counts: slow ones, and ones that break the rules.

Data only, as `sim.scenario`; the load generator plays them beside the messages of the schedule, and `sim.beside` for the model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from sim.checks import Problem, in_range

CLIENT_GROUPS_MAX: Final = 20

Kind: TypeAlias = Literal[
    "slow-commands", "slow-body", "idle", "garbage", "hang-up", "early-talker", "noop"
]


@dataclass(slots=True)
class ClientGroup:
    """So many clients of one kind, each with one connection at a time, from the start of the load to its end."""

    kind: Kind
    """``slow-commands``: every command a byte at a time (slowloris). ``slow-body``: quick until DATA, then a byte at a time,
    without an end. ``idle``: connects and says nothing. ``garbage``: lines that are no commands, overlong ones,
    octets above 127. ``hang-up``: leaves without QUIT, each time one verb later. ``early-talker``: everything in one
    write before the greeting, without waiting for a 354 (RFC 2920 3.1 forbids it). ``noop``: NOOP without an end."""
    users: int = 10
    """Connections at a time at most."""
    bytes_per_s: float = 1.0
    """Of the slow ones."""
    pause_s: float = 0.1
    """Between two connections of a client, and between two lines of ``garbage`` and ``noop``."""

    def problems(self) -> Iterator[Problem]:
        """Yield what has the right type and makes no sense; see `mta.core.settings`."""
        yield from in_range(
            ("users", self.users, 1, 10_000),
            ("bytes_per_s", self.bytes_per_s, 0.001, 1_000_000),
            ("pause_s", self.pause_s, 0, 3600),
        )
