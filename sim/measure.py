"""What a trace says about durations and amounts: every answer beside what it answers.

A trace has stimuli only. A core that hears them again says what it asked for and when, so that the time
from the question to the answer is known: of transactions, connections, look-ups and local deliveries.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from mta.core import records
from mta.core.engine import Engine
from mta.core.instructions import (
    DeferEnvelope,
    DeliverLocally,
    Instruction,
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
    Stimulus,
    TransactionDone,
)
from sim.collector import no_collector
from sim.measured import Measured
from sim.records import Retrace
from sim.tracefile import parse


class Listener(Protocol):
    """Who hears a trace that is told again, in the same pass as the measurements; `sim.recorded.Story`."""

    def begins(self, path: Path, engine: Engine, *, more: bool) -> None:
        """Hear of a process that starts; ``more`` if its run has others."""

    def passes(self, at: float) -> None:
        """Let time come to the next record."""

    def hears(self, t: float, stimulus: Stimulus, instructions: Sequence[Instruction]) -> None:
        """Take one stimulus and what the core said to it."""


class _Matcher:
    """Finds for each answer what asked for it."""

    def __init__(self) -> None:
        self.found = Measured()
        self._running: dict[int, tuple[float, int]] = {}
        self._opening: dict[int, float] = {}
        self._address: dict[int, str] = {}
        self._asked: dict[str, float] = {}
        self._delivering: dict[int, tuple[float, str]] = {}
        # What there is one of for each message goes straight to its columns.
        self._submitted = self.found.submitted.columns
        self._finished = self.found.finished.columns
        self._transactions = self.found.transactions.columns

    def take(self, t: float, stimulus: Any, instructions: Sequence[Any]) -> None:
        """Take one stimulus and what the core said to it.

        Raises:
            KeyError: it answers what was never asked.
        """
        found = self.found
        kind = type(stimulus)
        if kind is TransactionDone:
            began, count = self._running.pop(stimulus.session)
            ends, counts = self._finished
            ends.append(t)
            counts.append(count)
            if stimulus.usable:
                seconds, counts, addresses = self._transactions
                seconds.append(t - began)
                counts.append(count)
                addresses.append(self._address[stimulus.session])
        elif kind is MessageSubmitted:
            instants, counts, sizes = self._submitted
            instants.append(t)
            counts.append(len(stimulus.recipients))
            sizes.append(stimulus.transaction.size)
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


def measure(
    path: Path, listener: Listener | None = None, *, more: bool = False
) -> tuple[records.Record, Measured]:
    """Return a trace's header and its measurements.

    Args:
        path: of the trace.
        listener: who hears it, too.
        more: whether the server has other traces; for the listener.

    Raises:
        OSError: it can't be read.
        TraceError: it is no trace, has a hole, or its stimuli are not answers to what our core asks.
    """
    matcher = _Matcher()
    found = matcher.found
    batches, laggings, durations = found.commits.columns
    committed = found.committed
    with no_collector(), path.open("rb") as file:
        trace = parse(file, source=path.name)
        core = Retrace(trace.header)
        if listener is not None:
            listener.begins(path, core.engine, more=more)
        for number, record in enumerate(trace.records, 2):
            if listener is not None:
                listener.passes(record["t"])
            try:
                if record["k"] == "commit":
                    batches.append(record["batch"])
                    laggings.append(record["lagging"])
                    durations.append(record["seconds"])
                    committed.append(record["t"])
                    continue
                step = core.step(record)
                if step is not None:
                    matcher.take(*step)
            except TraceError as error:
                raise TraceError(f"{path.name}: line {number}: {error}") from None
            except (LookupError, OverflowError, TypeError):
                problem = "not what this core would have been told"
                raise TraceError(f"{path.name}: line {number}: {problem}") from None
            if step is not None and listener is not None:
                listener.hears(*step)
    return trace.header, found
