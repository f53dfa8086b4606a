"""Stimuli and measurements as plain records: the schema of ``trace.jsonl``.

One line is one JSON object. The first is the header (`header`); each other one has ``t``, the instant in
seconds since the epoch (or since the start of a model's run: the header's ``clock`` says which), and
``k``, what it is: the name of a stimulus, or one of

- ``gauges``: how many there are of everything, by the names of ``show stats``;
- ``commit``, ``transaction``, ``lookup`` and the like: a duration that was measured;
- ``lost``: so many lines could not be written here (disk full); what follows is no replay of the run.

The server and the model write the same lines, and whoever has a file reads them with `parse`. Ids are
the hexadecimal digits of the logs, so that a trace and a log can be searched for the same word. Fields
that have their default are left out. Bodies are never in a trace: only their size is.

This module turns records into stimuli and back; it opens no files.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from mta.core.envelopes.base import Recipient, Transaction, plain_recipient, plain_transaction
from mta.core.ids import EvpId, MsgId, SessionId
from mta.core.reply import OUTCOME_WORDS, Outcome
from mta.core.routing import MxHost, Resolution, ResolutionStatus
from mta.core.stimuli import (
    Agent,
    AgentPaused,
    AgentResumed,
    ConnectionClosed,
    ConnectionFailed,
    ConnectionReady,
    DomainResolved,
    DrainRequested,
    EnvelopeRestored,
    LimitChanged,
    LocalDeliveryDone,
    MessageSubmitted,
    RemoveRequested,
    Result,
    RouteEnabled,
    ScheduleRequested,
    Selector,
    Stimulus,
    SuspendRequested,
    TimeReached,
    TransactionDone,
    UnsuspendRequested,
)

SCHEMA: Final = 1
"""Version of the schema. It grows when a reader of the version before would read something wrong."""

HEADER: Final = "header"
GAUGES: Final = "gauges"
LOST: Final = "lost"

Record: TypeAlias = dict[str, Any]
"""One line of a trace: text, numbers, and lists and dicts of these."""


Decode: TypeAlias = Callable[[bytes], Any]
"""Reads the JSON of one line; raises ValueError."""

_raw_decode: Final = json.JSONDecoder().raw_decode
"""What `json.loads` calls in the end; it guesses an encoding before, which takes as long."""


def plain_json(line: bytes) -> Any:
    """Return what a line of JSON says, by the standard library.

    Raises:
        ValueError: it is none.
    """
    text = line.decode().strip()
    value, end = _raw_decode(text)
    if end != len(text):
        raise ValueError("more than one value")
    return value


class TraceError(ValueError):
    """A file is not a trace that we can read; the text is one line."""


# ---- values

_new: Final = tuple.__new__
"""Of a named tuple, without the call of Python code that its own is: for what there is one of for each message."""
_OUTCOME_OF: Final = {word: outcome for outcome, word in OUTCOME_WORDS.items()}
_TRANSACTION_DEFAULTS: Final = tuple(Transaction._field_defaults.items())
_RECIPIENT_DEFAULTS: Final = tuple(Recipient._field_defaults.items())


def _transaction(transaction: Transaction) -> Record:
    record: Record = {"sender": transaction.sender, "size": transaction.size}
    for name, default in _TRANSACTION_DEFAULTS:
        value = getattr(transaction, name)
        if value != default:
            record[name] = f"{value:016x}" if name == "session" else value
    return record


def _to_transaction(record: Record) -> Transaction:
    if len(record) == 2:
        return plain_transaction(record["sender"], record["size"])
    fields = dict(record)
    if "session" in fields:
        fields["session"] = SessionId(int(fields["session"], 16))
    return Transaction(**fields)


def _recipient(recipient: Recipient) -> Record:
    record: Record = {"address": recipient.address, "domain": recipient.domain}
    for name, default in _RECIPIENT_DEFAULTS:
        value = getattr(recipient, name)
        if value != default:
            record[name] = value
    return record


def _to_recipient(record: Record) -> Recipient:
    # Nearly all have no more than these two.
    if len(record) == 2:
        return plain_recipient(record["address"], record["domain"])
    return Recipient(**record)


def _session(record: Record) -> SessionId:
    return SessionId(int(record["session"], 16))


def _body(record: Record) -> bytes | None:
    size = record.get("body_bytes")
    return None if size is None else bytes(size)


# ---- one pair of functions for each stimulus that has fields


def _submitted(stimulus: MessageSubmitted) -> Record:
    record: Record = {
        "msgid": f"{stimulus.msgid:08x}",
        "transaction": _transaction(stimulus.transaction),
        "recipients": [_recipient(recipient) for recipient in stimulus.recipients],
    }
    if stimulus.body is not None:
        record["body_bytes"] = len(stimulus.body)
    return record


def _to_submitted(record: Record) -> MessageSubmitted:
    fields = (
        MsgId(int(record["msgid"], 16)),
        _to_transaction(record["transaction"]),
        tuple([_to_recipient(recipient) for recipient in record["recipients"]]),
        _body(record),
    )
    return _new(MessageSubmitted, fields)


def _restored(stimulus: EnvelopeRestored) -> Record:
    record: Record = {
        "evpid": f"{stimulus.evpid:016x}",
        "recipient": _recipient(stimulus.recipient),
        "transaction": _transaction(stimulus.transaction),
        "created_at": stimulus.created_at,
        "expires_at": stimulus.expires_at,
        "attempts": stimulus.attempts,
        "due_at": stimulus.due_at,
    }
    if stimulus.flags:
        record["flags"] = int(stimulus.flags)
    if stimulus.body is not None:
        record["body_bytes"] = len(stimulus.body)
    return record


def _to_restored(record: Record) -> EnvelopeRestored:
    return EnvelopeRestored(
        EvpId(int(record["evpid"], 16)),
        _to_recipient(record["recipient"]),
        _to_transaction(record["transaction"]),
        record["created_at"],
        record["expires_at"],
        record["attempts"],
        record["due_at"],
        record.get("flags", 0),
        _body(record),
    )


def _resolved(stimulus: DomainResolved) -> Record:
    status, hosts, ttl_s, text = stimulus.resolution
    return {
        "domain": stimulus.domain,
        "status": status.value,
        "hosts": [
            {"preference": host.preference, "name": host.name, "addresses": list(host.addresses)}
            for host in hosts
        ],
        "ttl_s": ttl_s,
        "text": text,
    }


def _to_resolved(record: Record) -> DomainResolved:
    hosts = tuple(
        MxHost(host["preference"], host["name"], tuple(host["addresses"]))
        for host in record["hosts"]
    )
    return DomainResolved(
        record["domain"],
        Resolution(ResolutionStatus(record["status"]), hosts, record["ttl_s"], record["text"]),
    )


def _done(stimulus: TransactionDone) -> Record:
    return {
        "session": f"{stimulus.session:016x}",
        "results": [
            {
                "evpid": f"{evpid:016x}",
                "outcome": OUTCOME_WORDS[outcome],
                "status": status,
                **({"reports": True} if reports else {}),
            }
            for evpid, outcome, status, reports in stimulus.results
        ],
        "usable": stimulus.usable,
    }


def _to_done(record: Record) -> TransactionDone:
    results = tuple(
        [
            _new(
                Result,
                (
                    EvpId(int(result["evpid"], 16)),
                    _OUTCOME_OF[result["outcome"]],
                    result["status"],
                    bool(result.get("reports", False)),
                ),
            )
            for result in record["results"]
        ]
    )
    return _new(TransactionDone, (_session(record), results, record["usable"]))


def _local_done(stimulus: LocalDeliveryDone) -> Record:
    return {
        "evpid": f"{stimulus.evpid:016x}",
        "outcome": OUTCOME_WORDS[stimulus.outcome],
        "status": stimulus.status,
    }


def _to_local_done(record: Record) -> LocalDeliveryDone:
    return LocalDeliveryDone(
        EvpId(int(record["evpid"], 16)), _to_outcome(record["outcome"]), record["status"]
    )


def _to_outcome(word: str) -> Outcome:
    return _OUTCOME_OF[word]


def _which(stimulus: Any) -> Record:
    record: Record = {}
    if stimulus.which.evpid is not None:
        record["evpid"] = f"{stimulus.which.evpid:016x}"
    if stimulus.which.msgid is not None:
        record["msgid"] = f"{stimulus.which.msgid:08x}"
    return record


def _to_which(record: Record) -> Selector:
    envelope, message = record.get("evpid"), record.get("msgid")
    return Selector(
        None if envelope is None else EvpId(int(envelope, 16)),
        None if message is None else MsgId(int(message, 16)),
    )


def _reason(stimulus: ConnectionFailed | ConnectionClosed) -> Record:
    return {"session": f"{stimulus.session:016x}", "reason": stimulus.reason}


def _failed(stimulus: ConnectionFailed) -> Record:
    record: Record = _reason(stimulus)
    if stimulus.source_fault:
        record["source_fault"] = True
    return record


def _route(stimulus: RouteEnabled) -> Record:
    record: Record = {"address": stimulus.address}
    if stimulus.source is not None:
        record["source"] = stimulus.source
    return record


def _agent(stimulus: AgentPaused | AgentResumed) -> Record:
    record = {"agent": stimulus.agent.value}
    if stimulus.only:
        record["only"] = stimulus.only
    if stimulus.source:
        record["source"] = stimulus.source
    return record


def _to_agent(record: Record) -> tuple[Agent, str, str]:
    return Agent(record["agent"]), record.get("only", ""), record.get("source", "")


def _nothing(stimulus: Stimulus) -> Record:
    return {}


_WRITERS: Final[Mapping[type, tuple[str, Callable[[Any], Record]]]] = {
    kind: (kind.__name__, write)
    for kind, write in (
        (MessageSubmitted, _submitted),
        (EnvelopeRestored, _restored),
        (TimeReached, _nothing),
        (DomainResolved, _resolved),
        (ConnectionReady, lambda stimulus: {"session": f"{stimulus.session:016x}"}),
        (ConnectionFailed, _failed),
        (TransactionDone, _done),
        (ConnectionClosed, _reason),
        (LocalDeliveryDone, _local_done),
        (ScheduleRequested, _which),
        (RemoveRequested, _which),
        (SuspendRequested, _which),
        (UnsuspendRequested, _which),
        (AgentPaused, _agent),
        (AgentResumed, _agent),
        (RouteEnabled, _route),
        (LimitChanged, lambda stimulus: {"key": stimulus.key, "value": stimulus.value}),
        (DrainRequested, _nothing),
    )
}

_READERS: Final[Mapping[str, Callable[[Record], Stimulus]]] = {
    "MessageSubmitted": _to_submitted,
    "EnvelopeRestored": _to_restored,
    "TimeReached": lambda record: TimeReached(),
    "DomainResolved": _to_resolved,
    "ConnectionReady": lambda record: ConnectionReady(_session(record)),
    "ConnectionFailed": lambda record: ConnectionFailed(
        _session(record), record["reason"], record.get("source_fault", False)
    ),
    "TransactionDone": _to_done,
    "ConnectionClosed": lambda record: ConnectionClosed(_session(record), record["reason"]),
    "LocalDeliveryDone": _to_local_done,
    "ScheduleRequested": lambda record: ScheduleRequested(_to_which(record)),
    "RemoveRequested": lambda record: RemoveRequested(_to_which(record)),
    "SuspendRequested": lambda record: SuspendRequested(_to_which(record)),
    "UnsuspendRequested": lambda record: UnsuspendRequested(_to_which(record)),
    "AgentPaused": lambda record: AgentPaused(*_to_agent(record)),
    "AgentResumed": lambda record: AgentResumed(*_to_agent(record)),
    "RouteEnabled": lambda record: RouteEnabled(record["address"], record.get("source")),
    "LimitChanged": lambda record: LimitChanged(record["key"], record["value"]),
    "DrainRequested": lambda record: DrainRequested(),
}

STIMULI: Final = frozenset(_READERS)
"""Every ``k`` that is a stimulus."""


def to_record(stimulus: Stimulus, now: float) -> Record:
    """Return the line of a stimulus that was handled at ``now``."""
    kind, write = _WRITERS[type(stimulus)]
    return {"t": now, "k": kind, **write(stimulus)}


def from_record(record: Record) -> tuple[Stimulus, float]:
    """Return a stimulus and its instant; a body comes back as so many zero bytes.

    Raises:
        TraceError: the record is of another kind, or a field is missing or wrong.
    """
    kind = record.get("k")
    try:
        return _READERS[str(kind)](record), float(record["t"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = "no stimulus" if kind not in STIMULI else f"{type(error).__name__}: {error}"
        raise TraceError(f"record of kind {kind!r}: {problem}") from error


# ---- whole traces


def header(
    *,
    clock: str,
    started_at: float,
    seed: int,
    representation: str,
    limits: Mapping[str, object],
    config: Mapping[str, object],
    versions: Mapping[str, str],
    host: Mapping[str, object],
) -> Record:
    """Return the first line of a trace.

    Args:
        clock: ``epoch`` for a server, ``simulated`` for a model.
        started_at: the first instant of that clock.
        seed: of the core's random streams; a replay with it makes the same choices.
        representation: how envelopes were kept.
        limits: ``limits.*`` as `mta.core.settings.flatten` names them.
        config: all other settings, flat too.
        versions: name -> version, of Python and of what else may matter.
        host: what the machine is: name, cores, memory, kernel.
    """
    return {
        "k": HEADER,
        "schema": SCHEMA,
        "clock": clock,
        "started_at": started_at,
        "seed": seed,
        "representation": representation,
        "limits": dict(limits),
        "config": dict(config),
        "versions": dict(versions),
        "host": dict(host),
    }


class Trace(NamedTuple):
    """A trace that is being read."""

    header: Record
    records: Iterator[Record]
    """All lines but the header, in order; each has ``t`` and ``k``."""


def parse(lines: Iterable[bytes], *, source: str = "trace", decode: Decode = plain_json) -> Trace:
    """Read a trace, line by line, as a binary file gives it.

    Args:
        lines: of the file, each with its end.
        source: its name, for errors.
        decode: a faster reader of JSON that says the same.

    A writer that was killed leaves a last line without its end: that line is not a record. The same goes
    for a line before a ``lost`` record: the disk was full in the middle of it.

    Raises:
        TraceError: at once when the header is missing or of another schema; while iterating when a
            line in the middle is not a record.
    """
    iterator = iter(lines)
    first = next(iterator, b"")
    found = _decode(first, decode)
    if found is None or found.get("k") != HEADER:
        raise TraceError(f"{source}: line 1: no header of a trace")
    if found.get("schema") != SCHEMA:
        raise TraceError(f"{source}: line 1: schema {found.get('schema')!r}, this reads {SCHEMA}")
    return Trace(found, _records(iterator, source, decode))


def _decode(line: bytes, decode: Decode) -> Record | None:
    """Return the record of a whole line, or None."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = decode(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and isinstance(record.get("k"), str)
    return record if whole else None


def _records(lines: Iterator[bytes], source: str, decode: Decode) -> Iterator[Record]:
    torn, ended = 0, True
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        record = _decode(line, decode)
        if torn and (record is None or record["k"] != LOST):
            raise TraceError(f"{source}: line {torn}: not a record")
        if record is None:
            torn, ended = number, line.endswith(b"\n")
        elif not isinstance(record.get("t"), int | float):
            raise TraceError(f"{source}: line {number}: no instant")
        else:
            torn = 0
            yield record
    # Why no complaint about a last line without its end? A server that is killed leaves one.
    if torn and ended:
        raise TraceError(f"{source}: line {torn}: not a record")
