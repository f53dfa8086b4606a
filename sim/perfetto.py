"""A run as a timeline: Trace Event JSON, which Perfetto and Chrome's tracing page open.

Connections, transactions, look-ups, commits and envelopes become spans, gauges become curves. What no
line of a trace says (which transaction ran when, what an envelope waited for) is asked of the core again, by
retracing: so a simulated run and a real one give the same picture.

Spans overlap, hence they are asynchronous events (``b`` and ``e`` with an id), not ``B`` and ``E``, which must nest
within a thread. Format: "Trace Event Format", Google; nested asynchronous events share category and id.
"""

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

from mta.core import records
from mta.core.ids import EvpId, MsgId, SessionId, evpid, show_evpid
from mta.core.instructions import (
    CloseConnection,
    DeferEnvelope,
    DeliverLocally,
    Instruction,
    Note,
    OpenConnection,
    RemoveEnvelope,
    ResolveDomain,
    SendBounce,
    StartTransaction,
    SuspendEnvelope,
)
from mta.core.records import GAUGES, Record, TraceError
from mta.core.reply import OUTCOME_WORDS, Outcome
from mta.core.settings import ConfigError
from mta.core.stimuli import (
    ConnectionClosed,
    ConnectionFailed,
    ConnectionReady,
    DomainResolved,
    EnvelopeRestored,
    LocalDeliveryDone,
    MessageSubmitted,
    Stimulus,
    TransactionDone,
)
from sim.records import Retrace
from sim.tracefile import parse
from sim.wholefile import whole

Event: TypeAlias = dict[str, Any]

ENVELOPES_MAX: Final = 2000
"""Envelopes drawn, the first ones: more rows than that nobody reads."""

_CONNECTIONS, _ENVELOPES, _LOOKUPS, _WRITER, _GAUGES, _LOCAL = range(1, 7)
_GROUPS: Final = {
    _CONNECTIONS: "connections",
    _LOCAL: "local deliveries",
    _LOOKUPS: "look-ups",
    _WRITER: "queue writer",
    _GAUGES: "gauges",
    _ENVELOPES: "envelopes",
}
"""Groups of rows, from the top; the format calls them processes."""

_CURVES: Final = {
    "envelopes by state": (
        ("pending", "scheduler.envelope.pending"),
        ("in flight", "scheduler.envelope.inflight"),
        ("held", "scheduler.ramqueue.hold"),
    ),
    "messages being committed": (("messages", "queue.waiting"),),
    "inbound connections": (("open", "smtp.session"),),
    "outbound connections": (("open", "mta.session"),),
    "local deliveries under way": (("running", "mda.running"),),
}
"""Name of a curve -> its parts: name, gauge."""


def events(trace: records.Trace, *, envelopes_max: int = ENVELOPES_MAX) -> Iterator[Event]:
    """Yield the events of a run, in the order of the trace; every span that begins ends.

    Args:
        trace: of a server or of the model.
        envelopes_max: how many envelopes get a row.

    Raises:
        TraceError: the trace has a hole, or a record is wrong.
    """
    again = Retrace(trace.header)
    drawing = _Drawing(float(trace.header["started_at"]), envelopes_max)
    for order, (group, name) in enumerate(_GROUPS.items()):
        yield _named(group, "process_name", name=name)
        yield _named(group, "process_sort_index", sort_index=order)
    for record in trace.records:
        step = again.step(record)
        if step is None:
            try:
                yield from drawing.measured(record)
            except (LookupError, TypeError):
                problem = f"{record['k']} at {record['t']}: lacks a number"
                raise TraceError(problem) from None
        else:
            yield from drawing.step(step.stimulus, step.instructions, step.t)
    yield from drawing.rest()


def _named(group: int, what: str, **args: object) -> Event:
    return {"ph": "M", "pid": group, "tid": 0, "name": what, "args": args}


class _Drawing:
    """What is open, and the events that change it."""

    def __init__(self, started_at: float, envelopes_max: int) -> None:
        self._started_at = started_at
        self._now_us = self._committed_us = 0.0
        self._room = envelopes_max
        self._open: dict[tuple[int, str], list[str]] = {}
        """(group, id) -> names of its open spans, the innermost last."""
        self._transactions: dict[SessionId, tuple[EvpId, ...]] = {}
        self._handled: dict[type, Callable[[Any], Iterator[Event]]] = {
            MessageSubmitted: self._submitted,
            EnvelopeRestored: self._restored,
            DomainResolved: self._resolved,
            ConnectionReady: self._ready,
            ConnectionFailed: self._lost,
            ConnectionClosed: self._lost,
            TransactionDone: self._done,
            LocalDeliveryDone: self._local_done,
        }

    # Spans

    def _begin(self, group: int, key: str, name: str, **args: object) -> Event:
        self._open.setdefault((group, key), []).append(name)
        return self._event("b", group, key, name, args)

    def _end(self, group: int, key: str, **args: object) -> Iterator[Event]:
        """End the innermost span of a row, if there is one."""
        names = self._open.get((group, key))
        if names:
            yield self._event("e", group, key, names.pop(), args)
            if not names:
                del self._open[group, key]

    def _mark(self, group: int, key: str, name: str, **args: object) -> Iterator[Event]:
        if (group, key) in self._open:
            yield self._event("n", group, key, name, args)

    def _event(self, kind: str, group: int, key: str, name: str, args: Event) -> Event:
        event: Event = {
            "ph": kind,
            "cat": _GROUPS[group],
            "id": key,
            "name": name,
            "pid": group,
            "tid": group,
            "ts": self._now_us,
        }
        if args:
            event["args"] = args
        return event

    def rest(self) -> Iterator[Event]:
        """End what the run left open."""
        for (group, key), names in list(self._open.items()):
            for _ in list(names):
                yield from self._end(group, key, end="the trace ends here")

    # Lines of the trace

    def measured(self, record: Record) -> Iterator[Event]:
        """Draw a measurement."""
        self._now_us = _us(record["t"] - self._started_at)
        if record["k"] == GAUGES:
            for name, parts in _CURVES.items():
                values = {part: record[gauge] for part, gauge in parts if gauge in record}
                if values:
                    yield {
                        "ph": "C",
                        "pid": _GAUGES,
                        "name": name,
                        "ts": self._now_us,
                        "args": values,
                    }
        elif record["k"] == "commit" and "seconds" in record:
            # Its end was noticed a little late: without the clamp two commits of one thread would overlap.
            start = max(self._committed_us, self._now_us - _us(record["seconds"]))
            self._committed_us = self._now_us
            yield {
                "ph": "X",
                "pid": _WRITER,
                "tid": _WRITER,
                "name": "commit",
                "ts": start,
                "dur": round(self._now_us - start, 3),
                "args": {"messages": record.get("batch", 0), "lagging": record.get("lagging", 0)},
            }

    def step(
        self, stimulus: Stimulus, instructions: list[Instruction], now: float
    ) -> Iterator[Event]:
        """Draw what happened, and what the core said to it."""
        self._now_us = _us(now - self._started_at)
        handle = self._handled.get(type(stimulus))
        if handle is not None:
            yield from handle(stimulus)
        for instruction in instructions:
            yield from self._said(instruction)

    def _submitted(self, stimulus: MessageSubmitted) -> Iterator[Event]:
        for number, recipient in enumerate(stimulus.recipients, 1):
            one = evpid(stimulus.msgid, number)
            yield from self._envelope(one, recipient.domain, stimulus.transaction.size)

    def _restored(self, stimulus: EnvelopeRestored) -> Iterator[Event]:
        size = stimulus.transaction.size
        yield from self._envelope(stimulus.evpid, stimulus.recipient.domain, size)

    def _envelope(self, one: EvpId, domain: str, size: int) -> Iterator[Event]:
        if self._room > 0:
            self._room -= 1
            key = show_evpid(one)
            yield self._begin(_ENVELOPES, key, f"to {domain}", evpid=key, bytes=size)

    def _resolved(self, stimulus: DomainResolved) -> Iterator[Event]:
        status = stimulus.resolution.status.value
        yield from self._end(_LOOKUPS, stimulus.domain, status=status)

    def _ready(self, stimulus: ConnectionReady) -> Iterator[Event]:
        key = f"{stimulus.session:016x}"
        yield from self._end(_CONNECTIONS, key)
        # Setting up ends here; what remains is the span of the connection.

    def _lost(self, stimulus: ConnectionFailed | ConnectionClosed) -> Iterator[Event]:
        key = f"{stimulus.session:016x}"
        for one in self._transactions.pop(stimulus.session, ()):
            yield from self._end_attempt(one, reason=stimulus.reason)
        while (_CONNECTIONS, key) in self._open:
            yield from self._end(_CONNECTIONS, key, reason=stimulus.reason)

    def _done(self, stimulus: TransactionDone) -> Iterator[Event]:
        self._transactions.pop(stimulus.session, None)
        delivered = 0
        for one, outcome, status, _ in stimulus.results:
            delivered += outcome is Outcome.OK
            result = OUTCOME_WORDS[outcome]
            yield from self._end_attempt(one, result=result, stat=status)
        failed = len(stimulus.results) - delivered
        key = f"{stimulus.session:016x}"
        yield from self._end(_CONNECTIONS, key, delivered=delivered, failed=failed)

    def _local_done(self, stimulus: LocalDeliveryDone) -> Iterator[Event]:
        result = OUTCOME_WORDS[stimulus.outcome]
        yield from self._end_attempt(stimulus.evpid, result=result, stat=stimulus.status)
        yield from self._end(_LOCAL, show_evpid(stimulus.evpid), result=result)

    def _end_attempt(self, one: EvpId, **args: object) -> Iterator[Event]:
        key = show_evpid(one)
        if len(self._open.get((_ENVELOPES, key), ())) > 1:
            yield from self._end(_ENVELOPES, key, **args)

    # Instructions

    def _said(self, instruction: Instruction) -> Iterator[Event]:
        match instruction:
            case ResolveDomain(domain):
                yield self._begin(_LOOKUPS, domain, f"MX {domain}")
            case OpenConnection(session, domain, source, address, host):
                key = f"{session:016x}"
                yield self._begin(
                    _CONNECTIONS,
                    key,
                    host,
                    session=key,
                    relay=domain,
                    address=address,
                    source=source,
                )
                yield self._begin(_CONNECTIONS, key, "connect")
            case StartTransaction(session, msgid, evpids):
                self._transactions[session] = evpids
                key = f"{session:016x}"
                yield self._begin(_CONNECTIONS, key, "transaction", **_message(msgid, evpids))
                for one in evpids:
                    yield from self._attempt(one, "attempt", session=key)
            case CloseConnection(session):
                yield from self._mark(_CONNECTIONS, f"{session:016x}", "QUIT")
            case DeliverLocally(one, user):
                key = show_evpid(one)
                yield self._begin(_LOCAL, key, user, evpid=key)
                yield from self._attempt(one, "delivery", user=user)
            case DeferEnvelope(one, attempts, due_at, status):
                due_s = round(due_at - self._started_at, 3)
                yield from self._mark(
                    _ENVELOPES,
                    show_evpid(one),
                    "deferred",
                    attempts=attempts,
                    due_s=due_s,
                    stat=status,
                )
            case RemoveEnvelope(one, reason, status):
                yield from self._gone(one, reason.value, status)
            case SendBounce(_, kind, failures):
                for one, status in failures:
                    yield from self._gone(one, f"reported {kind.value}", status)
            case Note(text):
                yield {
                    "ph": "i",
                    "pid": _CONNECTIONS,
                    "tid": _CONNECTIONS,
                    "s": "p",
                    "name": text,
                    "ts": self._now_us,
                }
            case SuspendEnvelope(one, flags):
                yield from self._mark(_ENVELOPES, show_evpid(one), "flags changed", flags=flags)

    def _attempt(self, one: EvpId, name: str, **args: object) -> Iterator[Event]:
        key = show_evpid(one)
        if (_ENVELOPES, key) in self._open:
            yield self._begin(_ENVELOPES, key, name, **args)

    def _gone(self, one: EvpId, why: str, status: str) -> Iterator[Event]:
        key = show_evpid(one)
        while (_ENVELOPES, key) in self._open:
            yield from self._end(_ENVELOPES, key, end=why, stat=status)


def _message(msgid: MsgId, evpids: Iterable[EvpId]) -> Event:
    return {"msgid": f"{msgid:08x}", "envelopes": [show_evpid(one) for one in evpids]}


def _us(seconds: float) -> float:
    """Return microseconds, the format's unit; three digits after the point are nanoseconds."""
    return round(seconds * 1e6, 3)


def export(trace: Path, out: Path, *, envelopes_max: int = ENVELOPES_MAX) -> int:
    """Write a trace as a timeline and return how many events it has; a name ending in ``.gz`` is compressed.

    Raises:
        ConfigError: a file can't be read or written, or the trace is none that can be retraced.
    """
    try:
        with trace.open("rb") as lines, whole(out) as new, _writable(new) as file:
            try:
                parsed = parse(lines, source=str(trace))
                return _write(file, parsed.header, events(parsed, envelopes_max=envelopes_max))
            except TraceError as error:
                raise ConfigError(str(trace), problem=str(error)) from None
    except OSError as error:
        raise ConfigError(str(error.filename or out), problem=f"{error.strerror}".lower()) from None


def _writable(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "wt", encoding="ascii", compresslevel=5)
    return path.open("w", encoding="ascii")


def _write(file: IO[str], header: Record, found: Iterator[Event]) -> int:
    about = {key: str(header.get(key)) for key in ("clock", "started_at", "seed", "representation")}
    start = json.dumps({"displayTimeUnit": "ms", "otherData": about})
    file.write(f'{start[:-1]}, "traceEvents": [\n')
    count = 0
    for count, event in enumerate(found, 1):
        file.write(",\n" if count > 1 else "")
        file.write(json.dumps(event, separators=(",", ":")))
    file.write("\n]}\n")
    return count
