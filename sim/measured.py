"""What one trace says, measured: instants, durations and amounts, by kind."""

from array import array
from dataclasses import dataclass, field, fields

from sim.rows import Rows


def _floats() -> "array[float]":
    return array("d")


@dataclass(slots=True)
class Measured:
    """What a trace says, by kind; instants are the trace's, durations seconds."""

    submitted: Rows[tuple[float, int, int]] = field(default_factory=lambda: Rows("dqq"))
    """(instant, envelopes, bytes) of each message."""
    finished: Rows[tuple[float, int]] = field(default_factory=lambda: Rows("dq"))
    """(end, envelopes) of each transaction."""
    transactions: Rows[tuple[float, int, str]] = field(default_factory=lambda: Rows("dqO"))
    """(seconds, envelopes, address) of each transaction that left its connection usable."""
    connected: Rows[tuple[float, float, str]] = field(default_factory=lambda: Rows("ddO"))
    """(instant, seconds, address) of each connection that became ready."""
    connects: "array[float]" = field(default_factory=_floats)
    """Instant of each connection that was tried."""
    lookups: "array[float]" = field(default_factory=_floats)
    """Seconds of each look-up."""
    deferrals: "array[float]" = field(default_factory=_floats)
    """Instant of each."""
    commits: Rows[tuple[int, int, float]] = field(default_factory=lambda: Rows("qqd"))
    """(submissions, removals and deferrals, seconds) of each."""
    committed: "array[float]" = field(default_factory=_floats)
    """Instant of each."""
    delivered: Rows[tuple[float, float, str]] = field(default_factory=lambda: Rows("ddO"))
    """(end, seconds, user) of each local delivery, however it ended."""
    restored: int = 0
    """Envelopes that the queue held at the start."""

    def __add__(self, later: "Measured") -> "Measured":
        """Return what two processes of a server measured, one after the other."""
        return Measured(
            *(getattr(self, each.name) + getattr(later, each.name) for each in fields(Measured))
        )
