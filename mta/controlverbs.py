"""What can be asked over the control socket: requests, verbs, and what answers them.

The verbs are smtpctl's. Each answer is an iterator, so that the listing of a million envelopes can be
sent in pieces while the server goes on; nothing here knows of sockets.
"""

import base64
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from mta.core.ids import EvpId, MsgId, msgid_of, show_evpid, show_msgid
from mta.core.settings import ConfigError
from mta.core.shape import Shape
from mta.core.stimuli import (
    RemoveRequested,
    ScheduleRequested,
    Selector,
    SuspendRequested,
    UnsuspendRequested,
)

Row: TypeAlias = dict[str, Any]
"""Text, numbers, and lists of these. Ids as hexadecimal digits, instants as seconds since the epoch."""

ROWS: Final = 256
"""Rows that are made before the event loop goes on with other things."""
MESSAGE_PIECE: Final = 48 * 1024
"""Bytes of a message in one row."""


class RequestError(Exception):
    """A request that can't be answered; the text is one line for whoever asked."""

    def __init__(self, text: str, *, usage: bool = False) -> None:
        super().__init__(text)
        self.usage = usage
        """It can never be answered, whatever the server has."""


class ControlTarget(Protocol):
    """What the server lets the operator see and do. Everything here is quick and never waits.

    Rows may have more fields than are named here; `mtactl` shows what it gets.
    """

    def status(self) -> Row:
        """Return ``mta`` and ``smtp``, each ``running`` or ``paused``, and what else is worth a line."""
        ...

    def stats(self) -> Mapping[str, int | float]:
        """Return all counters and gauges by the names of `mta.core.metrics`, and ``uptime`` in seconds."""
        ...

    def queue_rows(self, msgid: MsgId | None, after: EvpId | None, limit: int) -> list[Row]:
        """Return envelopes in the order of their ids: those after ``after``, ``limit`` at most.

        Fields: evpid, state, flags (list), sender, rcpt, domain, created_at, expires_at, due_at,
        attempts, last_status; what is not known is None.

        Raises:
            QueueUnavailableError, OSError: the queue can't be read now.
        """
        ...

    def envelope(self, evpid: EvpId) -> Row | None:
        """Return everything that is known of one envelope, or None."""
        ...

    def message(self, msgid: MsgId) -> bytes | None:
        """Return header and body of a message, or None."""
        ...

    def relays(self) -> list[Row]:
        """Return destinations: domain, state, tasks, running, held, connections, window, ..."""
        ...

    def routes(self) -> list[Row]:
        """Return routes: source, address, state, connections, penalty, enabled_at, ..."""
        ...

    def hosts(self) -> list[Row]:
        """Return hosts: address, name, connections, last_connect_at, ..."""
        ...

    def sessions(self) -> list[Row]:
        """Return connections, both ways: session, direction, peer, state, messages, since, ..."""
        ...

    def request(
        self,
        stimulus: ScheduleRequested | RemoveRequested | SuspendRequested | UnsuspendRequested,
    ) -> int:
        """Do something to envelopes; return how many it was done to."""
        ...

    def pause(self, what: str, only: str = "", source: str = "") -> None:
        """Stop ``mta`` (relaying), ``mda`` (local delivery) or ``smtp`` (accepting). Idempotent.

        Args:
            what: which.
            only: the domain or the user to leave alone; empty for all.
            source: the address from which the domain is left alone; empty for any.

        Raises:
            ValueError: too many are left alone already; one line.
        """
        ...

    def resume(self, what: str, only: str = "", source: str = "") -> None:
        """Start ``mta``, ``mda`` or ``smtp`` again, or undo the pause of one part. Idempotent."""
        ...

    def paused(self) -> list[Row]:
        """Return what is left alone one by one: agent, only, source."""
        ...

    def hoststats(self) -> list[Row]:
        """Return destinations of the last four hours: domain, at, seconds, transactions, last_status."""
        ...

    def top(self) -> Row:
        """Return t, stats, memory (agent, what, count, bytes) and slowest (domain, queued, seconds, ...)."""
        ...

    def users(self) -> list[Row]:
        """Return users with local mail to do: user, state, pending, running, held."""
        ...

    def ages(self) -> Iterator[tuple[str, float]]:
        """Iterate over (destination, when it was accepted) of all envelopes, while mail goes on."""
        ...

    def now(self) -> float:
        """Return the clock, seconds since the epoch."""
        ...

    def discover(self, which: Selector) -> int:
        """Take over envelopes that were put into the queue behind the server's back; return how many."""
        ...

    def limit_rows(self, pattern: str) -> list[Row]:
        """Return the limits whose key contains a pattern: key, value, default, change (now, restart)."""
        ...

    def set_limit(self, assignment: str) -> str:
        """Set ``limits.KEY=VALUE``; return ``KEY OLD -> NEW``.

        Raises:
            ConfigError: it can't be set; one line.
        """
        ...

    def profile(self, on: bool) -> None:
        """Begin or end the profile. Idempotent."""
        ...

    def profile_rows(self) -> list[Row]:
        """Return what was timed: group, name, count, total_s, p50_s, p99_s, max_s."""
        ...

    def update_table(self, name: str) -> str:
        """Read a table again; return in one line what came of it.

        Raises:
            KeyError: there is no such table.
        """
        ...

    def update_security(self, what: str) -> str:
        """Read files again; return in one line what came of it.

        Args:
            what: ``tls`` (the certificate), ``auth`` (the users), ``relay`` (authorities, passwords of other hosts).

        Raises:
            ValueError: there is none, or it can't be used, and the one before still counts. One line.
        """
        ...

    def enable_route(self, address: str) -> bool:
        """Let a route that rests be used again, its penalty forgotten; False: there is no such route."""
        ...

    def expand(self, address: str) -> list[str]:
        """Return how an address expands, as the lines of a tree.

        Raises:
            ValueError: it is no address, or there are no rules.
        """
        ...

    def trace(self, subsystem: str, on: bool, only: str = "") -> None:
        """Switch tracing into the log; ``only`` lines about an address or an id.

        Raises:
            ValueError: there is no such subsystem.
        """
        ...

    def follow(
        self, subsystem: str, write: Callable[[str], None], only: str = ""
    ) -> Callable[[], None]:
        """Send a subsystem's trace to ``write`` as well, until what is returned is called.

        Raises:
            ValueError: there is no such subsystem.
        """
        ...

    def verbose(self, on: bool) -> None:
        """Switch debug lines of the log."""
        ...


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """One request. Which fields a verb looks at is said in `VERBS`; the others must be absent."""

    verb: str
    id: str | None = None
    """``all``, 16 hexadecimal digits of an envelope, or 8 of a message."""
    subsystem: str | None = None
    address: str | None = None
    only: str | None = None
    """Address or id that a trace is about; user or domain that is left alone."""
    source: str | None = None
    pattern: str | None = None
    assignment: str | None = None
    table: str | None = None
    follow: bool | None = None
    count: int | None = None
    interval_s: float | None = None


def parse_id(text: str | None) -> Selector:
    """Return what an id means.

    Raises:
        RequestError: it is neither ``all`` nor an id.
    """
    if text == "all":
        return Selector()
    if text is not None and re.fullmatch(r"[0-9A-Fa-f]{16}", text):
        envelope = EvpId(int(text, 16))
        if msgid_of(envelope) and envelope & 0xFFFFFFFF:
            return Selector(evpid=envelope)
    elif text is not None and re.fullmatch(r"[0-9A-Fa-f]{8}", text) and int(text, 16):
        return Selector(msgid=MsgId(int(text, 16)))
    shown = "nothing" if text is None else repr(text[:40])
    raise RequestError(
        f"expected an envelope (16 hexadecimal digits), a message (8) or all, got {shown}",
        usage=True,
    )


# ---- answers

Answer: TypeAlias = Iterator[Row | None]
"""Rows, and None wherever the event loop should have a turn."""


class Verb(Protocol):
    """What answers a request: yields the rows, and puts into ``end`` what the last line says."""

    def __call__(self, target: ControlTarget, request: Request, end: Row) -> Answer:
        """Answer one request."""
        ...


def _rows_of(name: str) -> Verb:
    def answer(target: ControlTarget, request: Request, end: Row) -> Answer:
        rows: list[Row] = getattr(target, name)()
        yield from rows

    return answer


def _status(target: ControlTarget, request: Request, end: Row) -> Answer:
    yield target.status()


def _stats(target: ControlTarget, request: Request, end: Row) -> Answer:
    yield dict(target.stats())


def _queue(target: ControlTarget, request: Request, end: Row) -> Answer:
    chosen = Selector() if request.id is None else parse_id(request.id)
    if chosen.evpid is not None:
        raise RequestError("expected a message (8 hexadecimal digits), got an envelope", usage=True)
    after: EvpId | None = None
    while True:
        rows = target.queue_rows(chosen.msgid, after, ROWS)
        yield from rows
        if len(rows) < ROWS:
            return
        after = EvpId(int(rows[-1]["evpid"], 16))
        yield None


def _envelope(target: ControlTarget, request: Request, end: Row) -> Answer:
    chosen = parse_id(request.id)
    if chosen.evpid is None:
        raise RequestError("expected an envelope (16 hexadecimal digits)", usage=True)
    row = target.envelope(chosen.evpid)
    if row is None:
        raise RequestError(f"no envelope {show_evpid(chosen.evpid)}")
    yield row


def _message(target: ControlTarget, request: Request, end: Row) -> Answer:
    chosen = parse_id(request.id)
    message = chosen.msgid if chosen.evpid is None else msgid_of(chosen.evpid)
    if message is None:
        raise RequestError("expected a message (8 hexadecimal digits)", usage=True)
    body = target.message(message)
    if body is None:
        raise RequestError(f"no message {show_msgid(message)}")
    end.update(msgid=show_msgid(message), size=len(body))
    for start in range(0, len(body), MESSAGE_PIECE):
        yield {"base64": base64.b64encode(body[start : start + MESSAGE_PIECE]).decode("ascii")}
        yield None


def _request(
    stimulus: type[ScheduleRequested | RemoveRequested | SuspendRequested | UnsuspendRequested],
) -> Verb:
    def answer(target: ControlTarget, request: Request, end: Row) -> Answer:
        end["envelopes"] = target.request(stimulus(parse_id(request.id)))
        yield from ()

    return answer


def _call(name: str, *arguments: object) -> Verb:
    def answer(target: ControlTarget, request: Request, end: Row) -> Answer:
        getattr(target, name)(*arguments)
        yield from ()

    return answer


def _agent(method: str, agent: str) -> Verb:
    def answer(target: ControlTarget, request: Request, end: Row) -> Answer:
        if request.source and not request.only:
            raise RequestError(f"{request.verb} from {request.source[:60]}: for what?", usage=True)
        try:
            getattr(target, method)(agent, request.only or "", request.source or "")
        except ValueError as error:
            raise RequestError(str(error)) from error
        yield from ()

    return answer


SHAPE_TURN: Final = 5000
"""Envelopes counted before the event loop goes on: some 3 ms."""


def _shape(target: ControlTarget, request: Request, end: Row) -> Answer:
    shape = Shape(target.now())
    for count, (domain, created_at) in enumerate(target.ages(), 1):
        shape.add(domain, created_at)
        if count % SHAPE_TURN == 0:
            yield None
    yield from shape.rows()


def _top(target: ControlTarget, request: Request, end: Row) -> Answer:
    yield target.top()


def _discover(target: ControlTarget, request: Request, end: Row) -> Answer:
    chosen = parse_id(request.id)
    if chosen == Selector():
        raise RequestError("expected an envelope or a message, got all", usage=True)
    end["envelopes"] = target.discover(chosen)
    yield from ()


def _limits(target: ControlTarget, request: Request, end: Row) -> Answer:
    rows = target.limit_rows(request.pattern or "")
    if not rows:
        raise RequestError(f"no limit has {(request.pattern or '')[:60]!r} in its name")
    yield from rows


def _set(target: ControlTarget, request: Request, end: Row) -> Answer:
    try:
        end["changed"] = target.set_limit(request.assignment or "")
    except ConfigError as error:
        raise RequestError(str(error), usage=True) from error
    yield {"line": end["changed"]}


def _update_table(target: ControlTarget, request: Request, end: Row) -> Answer:
    name = request.table or ""
    try:
        yield {"line": target.update_table(name)}
    except KeyError:
        raise RequestError(f"no table {name[:60]!r}") from None


def _update_security(what: str) -> Verb:
    def answer(target: ControlTarget, request: Request, end: Row) -> Answer:
        try:
            yield {"line": target.update_security(what)}
        except ValueError as error:
            raise RequestError(str(error)) from None

    return answer


def _route(target: ControlTarget, request: Request, end: Row) -> Answer:
    address = request.address or ""
    if not target.enable_route(address):
        raise RequestError(f"no route to {address[:60]!r}")
    yield from ()


def _expand(target: ControlTarget, request: Request, end: Row) -> Answer:
    try:
        lines = target.expand(request.address or "")
    except ValueError as error:
        raise RequestError(str(error), usage=True) from error
    yield from ({"line": line} for line in lines)


def _trace(on: bool) -> Verb:
    def answer(target: ControlTarget, request: Request, end: Row) -> Answer:
        try:
            target.trace(request.subsystem or "", on, request.only or "")
        except ValueError as error:
            raise RequestError(str(error), usage=True) from error
        yield from ()

    return answer


VERBS: Final[Mapping[str, tuple[frozenset[str], Verb]]] = {
    verb: (frozenset(fields.split()), answer)
    for verb, fields, answer in (
        ("show status", "", _status),
        ("show stats", "", _stats),
        ("show queue", "id", _queue),
        ("show envelope", "id", _envelope),
        ("show message", "id", _message),
        ("show relays", "", _rows_of("relays")),
        ("show routes", "", _rows_of("routes")),
        ("show hosts", "", _rows_of("hosts")),
        ("show sessions", "", _rows_of("sessions")),
        ("schedule", "id", _request(ScheduleRequested)),
        ("remove", "id", _request(RemoveRequested)),
        ("pause envelope", "id", _request(SuspendRequested)),
        ("resume envelope", "id", _request(UnsuspendRequested)),
        ("show limits", "pattern", _limits),
        ("show shape", "", _shape),
        ("show users", "", _rows_of("users")),
        ("show hoststats", "", _rows_of("hoststats")),
        ("top", "", _top),
        ("show profile", "", _rows_of("profile_rows")),
        ("show mta paused", "", _rows_of("paused")),
        ("discover", "id", _discover),
        ("set", "assignment", _set),
        ("update table", "table", _update_table),
        ("update tls", "", _update_security("tls")),
        ("update auth", "", _update_security("auth")),
        ("update relay", "", _update_security("relay")),
        ("profile", "", _call("profile", True)),
        ("unprofile", "", _call("profile", False)),
        ("pause mta", "only source", _agent("pause", "mta")),
        ("pause mda", "only", _agent("pause", "mda")),
        ("pause smtp", "", _call("pause", "smtp")),
        ("resume mta", "only source", _agent("resume", "mta")),
        ("resume mda", "only", _agent("resume", "mda")),
        ("resume smtp", "", _call("resume", "smtp")),
        ("resume route", "address", _route),
        ("expand", "address", _expand),
        ("trace", "subsystem only", _trace(True)),
        ("untrace", "subsystem", _trace(False)),
        ("log brief", "", _call("verbose", False)),
        ("log verbose", "", _call("verbose", True)),
    )
}
"""Verb -> the fields that it looks at, and what answers it."""

STREAMS: Final[Mapping[str, frozenset[str]]] = {
    "monitor": frozenset(("count", "interval_s")),
    "trace": frozenset(("subsystem", "follow", "only")),
}
"""Verbs whose answer goes on, and their fields: ``trace`` with ``follow``, and ``monitor``."""

_SILENT: Final = ("show ", "monitor", "expand", "top")


def changes(verb: str) -> bool:
    """Say whether a verb does something, so that the log should know who did it."""
    return not verb.startswith(_SILENT)


def show_request(request: Request) -> str:
    """Return a request as the log says it: ``pause mta only=example.org``; no more than a line."""
    words = [request.verb]
    for name in ("id", "subsystem", "address", "only", "source", "pattern", "assignment", "table"):
        value = getattr(request, name)
        if value is not None:
            words.append(f"{name}={value[:80]}")
    return " ".join(words)


def read_request(line: bytes) -> Request:
    """Return the request on a line.

    Raises:
        RequestError: there is none.
    """
    try:
        request = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"not a request: {error}", usage=True) from error
    allowed: frozenset[str] = frozenset()
    if request.verb in VERBS:
        allowed = VERBS[request.verb][0]
    if request.verb in STREAMS:
        allowed |= STREAMS[request.verb]
    elif not allowed and request.verb not in VERBS:
        raise RequestError(f"no verb {request.verb[:40]!r}", usage=True)
    for field in msgspec.structs.fields(Request):
        if field.name not in allowed | {"verb"} and getattr(request, field.name) is not None:
            raise RequestError(f"{request.verb} takes no {field.name}", usage=True)
    return request


_decoder: Final = msgspec.json.Decoder(Request)
_encoder: Final = msgspec.json.Encoder()


def encode(record: Row) -> bytes:
    """Return one line of an answer."""
    try:
        return _encoder.encode(record) + b"\n"
    except UnicodeEncodeError:
        # Half a surrogate pair in what the network said. The operator sees a question mark.
        clean = _without_surrogates(record)
        return _encoder.encode(clean) + b"\n"


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_surrogates(item) for item in value]
    return value
