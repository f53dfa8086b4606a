"""What a trace says about durations and amounts: every answer beside what it answers.

A trace has stimuli only. A core that hears them again says what it asked for and when, so that the time
from the question to the answer is known: of transactions, connections, look-ups and local deliveries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mta.core import records
from mta.core.instructions import (
    DeferEnvelope,
    DeliverLocally,
    OpenConnection,
    ResolveDomain,
    StartTransaction,
)
from mta.core.records import TraceError
from mta.core.stimuli import (
    ConnectionFailed,
    ConnectionReady,
    DomainResolved,
    EnvelopeRestored,
    LocalDeliveryDone,
    MessageSubmitted,
    TransactionDone,
)
from sim.records import Retrace


@dataclass(slots=True)
class Measured:
    """What a trace says, by kind; instants are the trace's, durations seconds."""

    submitted: list[tuple[float, int, int]] = field(default_factory=list)
    """(instant, envelopes, bytes) of each message."""
    finished: list[tuple[float, int]] = field(default_factory=list)
    """(end, envelopes) of each transaction."""
    transactions: list[tuple[float, int, str]] = field(default_factory=list)
    """(seconds, envelopes, address) of each transaction that left its connection usable."""
    connected: list[tuple[float, float, str]] = field(default_factory=list)
    """(instant, seconds, address) of each connection that became ready."""
    connects: list[float] = field(default_factory=list)
    """Instant of each connection that was tried."""
    lookups: list[float] = field(default_factory=list)
    """Seconds of each look-up."""
    deferrals: list[float] = field(default_factory=list)
    """Instant of each."""
    commits: list[tuple[int, int, float]] = field(default_factory=list)
    """(submissions, removals and deferrals, seconds) of each."""
    committed: list[float] = field(default_factory=list)
    """Instant of each."""
    delivered: list[tuple[float, float, str]] = field(default_factory=list)
    """(end, seconds, user) of each local delivery, however it ended."""
    restored: int = 0
    """Envelopes that the queue held at the start."""

    def __add__(self, later: "Measured") -> "Measured":
        """Return what two processes of a server measured, one after the other."""
        return Measured(
            *(getattr(self, each.name) + getattr(later, each.name) for each in fields(Measured))
        )


class _Matcher:
    """Finds for each answer what asked for it."""

    def __init__(self) -> None:
        self.found = Measured()
        self._running: dict[int, tuple[float, int]] = {}
        self._opening: dict[int, float] = {}
        self._address: dict[int, str] = {}
        self._asked: dict[str, float] = {}
        self._delivering: dict[int, tuple[float, str]] = {}

    def take(self, t: float, stimulus: Any, instructions: Sequence[Any]) -> None:
        """Take one stimulus and what the core said to it.

        Raises:
            KeyError: it answers what was never asked.
        """
        found = self.found
        kind = type(stimulus)
        if kind is TransactionDone:
            began, count = self._running.pop(stimulus.session)
            found.finished.append((t, count))
            if stimulus.usable:
                found.transactions.append((t - began, count, self._address[stimulus.session]))
        elif kind is MessageSubmitted:
            found.submitted.append((t, len(stimulus.recipients), stimulus.transaction.size))
        elif kind is ConnectionReady:
            began = self._opening.pop(stimulus.session)
            found.connected.append((t, t - began, self._address[stimulus.session]))
        elif kind is ConnectionFailed:
            self._opening.pop(stimulus.session)
        elif kind is DomainResolved:
            began = self._asked.pop(stimulus.domain)
            found.lookups.append(t - began)
        elif kind is LocalDeliveryDone:
            began, user = self._delivering.pop(stimulus.evpid)
            found.delivered.append((t, t - began, user))
        elif kind is EnvelopeRestored:
            found.restored += 1
        for instruction in instructions:
            asks = type(instruction)
            if asks is StartTransaction:
                self._running[instruction.session] = (t, len(instruction.evpids))
            elif asks is DeliverLocally:
                self._delivering[instruction.evpid] = (t, instruction.user)
            elif asks is DeferEnvelope:
                found.deferrals.append(t)
            elif asks is OpenConnection:
                self._opening[instruction.session] = t
                self._address[instruction.session] = instruction.address
                found.connects.append(t)
            elif asks is ResolveDomain:
                self._asked[instruction.domain] = t


def measure(path: Path) -> tuple[records.Record, Measured]:
    """Return a trace's header and its measurements.

    Raises:
        OSError: it can't be read.
        TraceError: it is no trace, has a hole, or its stimuli are not answers to what our core asks.
    """
    matcher = _Matcher()
    with path.open("rb") as file:
        trace = records.parse(file, source=path.name)
        core = Retrace(trace.header)
        for number, record in enumerate(trace.records, 2):
            if record["k"] == "commit":
                commit = (record["batch"], record["lagging"], record["seconds"])
                matcher.found.commits.append(commit)
                matcher.found.committed.append(record["t"])
                continue
            try:
                step = core.step(record)
                if step is not None:
                    matcher.take(*step)
            except (KeyError, AssertionError):
                problem = "not what this core would have been told"
                raise TraceError(f"{path.name}: line {number}: {problem}") from None
    return trace.header, matcher.found
