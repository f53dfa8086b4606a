"""What is sent: every message of a scenario, drawn before the first one goes out.

Each attribute has a stream of its own and is drawn per message up front, so that message 17 is the
same message under every limit, every representation and in the model as in the load generator
(common random numbers). What one message is as bytes, and how a sink knows it again, is here too,
so that the two cannot disagree.
"""

import functools
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.distributions import (
    FREEBSD_NET_SIZES,
    BoundedPareto,
    Choice,
    Distribution,
    Exponential,
    Fixed,
    LogNormal,
    Zipf,
    stream,
)
from sim.groups import SECONDS_MAX, LocalGroup
from sim.scenario import Recipients, Scenario, Sizes, domains_of, sender_domain
from sim.shapes import shaped

Ints = npt.NDArray[np.int64]

RUN_ID_MAX: Final = 40
"""Characters of a run id: with it no header line is longer than 78, all of them fit into `SIZE_MIN`."""

LINE: Final = 76
"""Characters of a line of filler, without CRLF; RFC 5322 2.1.1 asks for 78 at most."""

_FILLER_LINES: Final = 1024
_LINE_BYTES: Final = LINE + 2
_DOT_EVERY: Final = 16
"""Lines of filler of which one begins with a dot; divides their number."""
_HEADER_BYTES_MAX: Final = 64 * 1024
"""A header section is searched no further than this for the fields that identify a message."""


class Mailbox(NamedTuple):
    """One recipient of one message."""

    destination: int
    """Index into `Scenario.destinations`; -1 - g for a user of local group g."""
    domain: str
    local_part: str

    @property
    def address(self) -> str:
        """As RCPT TO has it, without brackets."""
        return f"{self.local_part}@{self.domain}"


@dataclass(frozen=True, slots=True)
class Schedule:
    """All messages of a scenario, by sequence number from 0."""

    scenario: str
    """Name of the scenario."""
    due_s: npt.NDArray[np.float64]
    """float64[message]: seconds after the start of the load, never falling."""
    size: Ints
    """int64[message]: bytes of header and body with CRLF line ends, not dot-stuffed."""
    sender_number: Ints
    """int64[message]."""
    sender_domain: str
    first: Ints
    """int64[message + 1]: recipients of message i are ``first[i]:first[i + 1]`` of the next two."""
    recipient_domain: Ints
    """int64[recipient]: index into ``domains``."""
    mailbox: Ints
    """int64[recipient]."""
    domains: tuple[tuple[int, str], ...]
    """(destination, domain) of every domain that is sent to; local group g is destination -1 - g."""
    users: tuple[str, ...] = ()
    """Names of the local groups; user n of one has the local part ``<name><n>``."""
    service_s: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """float64[message]: how long each attempt at a local delivery takes beside the server's own work. Empty without
    local groups."""
    failures: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """int64[message]: attempts at the local delivery that fail for now before the one that settles it."""
    fatal: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=np.bool_))
    """bool[message]: that one fails for good."""

    think_s: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """float64[message]: how long a user of a closed loop thinks before it sends this message. Empty in an open loop."""

    def __len__(self) -> int:
        return len(self.due_s)

    @property
    def envelopes(self) -> int:
        """Recipients of all messages."""
        return len(self.mailbox)

    def sender(self, i: int) -> str:
        """Return the reverse-path of message ``i``, without brackets."""
        return f"sender{self.sender_number[i]}@{self.sender_domain}"

    def recipients(self, i: int) -> tuple[Mailbox, ...]:
        """Return the recipients of message ``i``, all different."""
        own = slice(int(self.first[i]), int(self.first[i + 1]))
        numbers = self.mailbox[own].tolist()
        where = [self.domains[index] for index in self.recipient_domain[own].tolist()]
        return tuple(
            Mailbox(destination, domain, f"{self.prefix(destination)}{number}")
            for (destination, domain), number in zip(where, numbers, strict=True)
        )

    def prefix(self, destination: int) -> str:
        """Return what a mailbox's number is put behind, by `Mailbox.destination`."""
        return "user" if destination >= 0 else self.users[-1 - destination]

    @property
    def group(self) -> Ints:
        """int64[message]: index into ``users`` of the local group it is for, or -1 if it goes to the outside."""
        destinations = np.array([destination for destination, _ in self.domains], dtype=np.int64)
        return np.maximum(-1 - destinations[self.recipient_domain[self.first[:-1]]], -1)


def size_law(sizes: Sizes) -> Distribution:
    """Return the law of message sizes before they are clamped."""
    match sizes.law:
        case "fixed":
            return Fixed(float(sizes.bytes))
        case "histogram":
            return FREEBSD_NET_SIZES
        case "lognormal":
            return LogNormal(sizes.median, sizes.sigma)
        case "bounded-pareto":
            return BoundedPareto(sizes.alpha, float(sizes.min), float(sizes.max))


def recipient_law(recipients: Recipients) -> Distribution:
    """Return the law of the number of recipients."""
    if recipients.law == "fixed":
        return Fixed(float(recipients.count))
    return Zipf(recipients.s, recipients.max)


def draw(scenario: Scenario, replication: int = 0) -> Schedule:
    """Draw all messages of a scenario.

    The same seed and replication give the same messages. The load's own parameters change only what
    they say: with another ``rate`` the instants scale, with more ``messages`` the first ones stay; a local group
    changes nothing of the mail to the outside, nor of another group's, but its numbers.
    """
    schedule = _draw_outside(scenario, replication)
    if scenario.local:
        parts = [schedule]
        for number, group in enumerate(scenario.local):
            parts.append(_draw_group(scenario, number, group, replication))
        schedule = _merged(scenario, parts)
    load = scenario.load
    if load.loop == "open":
        return schedule
    n = len(schedule)
    rng = stream(scenario.seed, "think", replication)
    thinks = rng.standard_exponential(n) if load.arrivals == "poisson" else np.ones(n)
    return replace(schedule, think_s=thinks * load.think_s)


def _draw_outside(scenario: Scenario, replication: int) -> Schedule:
    """Draw the messages to the destinations."""
    load = scenario.load
    n = load.count

    def named(name: str) -> np.random.Generator:
        return stream(scenario.seed, name, replication)

    poisson = load.arrivals == "poisson"
    gaps = named("arrivals").standard_exponential(n) if poisson else np.ones(n)
    # The first message comes after the first gap: at the start of the load, rates are equal.
    due_s = shaped(load.shape, np.cumsum(gaps) / load.rate, n / load.rate)

    counts = recipient_law(load.recipients).draw(named("recipients"), n).astype(np.int64)
    first = np.concatenate(([0], np.cumsum(counts)))
    total = int(first[-1])
    domains, recipient_domain = _domains(scenario, total, named)

    # Consecutive mailboxes from a random one: different recipients without a set per message.
    start = named("mailboxes").integers(0, load.recipients.mailboxes, n)
    within = np.arange(total) - np.repeat(first[:-1], counts)
    mailbox = (np.repeat(start, counts) + within) % load.recipients.mailboxes

    return Schedule(
        scenario=scenario.name,
        due_s=due_s,
        size=_sizes(load.sizes, named("sizes"), n),
        sender_number=named("senders").integers(0, load.senders, n),
        sender_domain=sender_domain(scenario),
        first=first,
        recipient_domain=recipient_domain,
        mailbox=mailbox,
        domains=domains,
    )


def _sizes(sizes: Sizes, rng: np.random.Generator, n: int) -> Ints:
    drawn = size_law(sizes).draw(rng, n)
    if sizes.law != "fixed":
        # Before the integers: a lognormal law can draw more than they hold.
        drawn = np.clip(drawn, sizes.min, sizes.max)
    return np.rint(drawn).astype(np.int64)


def service_law(group: LocalGroup) -> Distribution:
    """Return the law of the time that a delivery to a group takes beside the server's own work."""
    if group.law == "fixed" or not group.seconds:
        return Fixed(group.seconds)
    if group.law == "lognormal":
        return LogNormal(group.seconds, group.sigma)
    # Named by its median as the others.
    return Exponential(group.seconds / math.log(2))


def _draw_group(scenario: Scenario, number: int, group: LocalGroup, replication: int) -> Schedule:
    """Draw the messages to one local group; its streams are named after it."""
    load = scenario.load

    def named(name: str) -> np.random.Generator:
        return stream(scenario.seed, f"local/{group.name}/{name}", replication)

    n = group.count(load.scale)
    if group.arrivals == "poisson":
        position = np.sort(named("arrivals").random(n))
    else:
        position = np.arange(n) / n
    due_s = load.scale * (group.from_s + position * (group.to_s - group.from_s))
    # Every user gets the same number; whose turn it is, is drawn.
    mailbox = np.repeat(np.arange(group.users), group.per_user(load.scale))
    named("users").shuffle(mailbox)
    return Schedule(
        scenario=scenario.name,
        due_s=due_s,
        size=_sizes(load.sizes, named("sizes"), n),
        sender_number=named("senders").integers(0, load.senders, n),
        sender_domain=sender_domain(scenario),
        first=np.arange(n + 1),
        recipient_domain=np.zeros(n, dtype=np.int64),
        mailbox=mailbox,
        domains=((-1 - number, group.domain),),
        service_s=np.minimum(service_law(group).draw(named("service"), n), SECONDS_MAX),
        failures=named("tempfail").geometric(1 - group.tempfail, n) - 1,
        fatal=named("permfail").random(n) < group.permfail,
    )


def _merged(scenario: Scenario, parts: Sequence[Schedule]) -> Schedule:
    """Return all messages in the order of their instants; of those for the same one, the outside is first."""
    due_s = np.concatenate([part.due_s for part in parts])
    order = np.argsort(due_s, kind="stable")
    counts = np.concatenate([np.diff(part.first) for part in parts])
    offsets = np.concatenate(([0], np.cumsum(counts)))
    first = np.concatenate(([0], np.cumsum(counts[order])))
    # Where each recipient of the new order was in the parts put behind each other.
    own = np.repeat(offsets[:-1][order] - first[:-1], counts[order]) + np.arange(int(first[-1]))
    domains: list[tuple[int, str]] = []
    indices: list[Ints] = []
    for part in parts:
        indices.append(part.recipient_domain + len(domains))
        domains.extend(part.domains)
    outside = len(parts[0])

    def column(name: str, none: object) -> npt.NDArray[Any]:
        """Put a column of the local parts behind one that says ``none`` for the outside."""
        values = [getattr(part, name) for part in parts[1:]]
        return np.concatenate([np.full(outside, none, dtype=values[0].dtype), *values])[order]

    return Schedule(
        scenario=scenario.name,
        due_s=due_s[order],
        size=np.concatenate([part.size for part in parts])[order],
        sender_number=np.concatenate([part.sender_number for part in parts])[order],
        sender_domain=parts[0].sender_domain,
        first=first,
        recipient_domain=np.concatenate(indices)[own],
        mailbox=np.concatenate([part.mailbox for part in parts])[own],
        domains=tuple(domains),
        users=tuple(group.name for group in scenario.local),
        service_s=column("service_s", 0.0),
        failures=column("failures", 0),
        fatal=column("fatal", False),
    )


def _domains(
    scenario: Scenario, total: int, named: Callable[[str], np.random.Generator]
) -> tuple[tuple[tuple[int, str], ...], Ints]:
    """Return all domains as (destination, name), and for each recipient the index of its domain."""
    destinations = scenario.destinations
    shares = Choice(tuple(each.share for each in destinations))
    chosen = shares.draw(named("destinations"), total).astype(np.int64)
    # Drawn for every recipient, needed or not: a destination that gets more domains must not change
    # what the recipients of the others draw.
    uniform = named("domains").random(total)
    domains: list[tuple[int, str]] = []
    index = np.empty(total, dtype=np.int64)
    for i, destination in enumerate(destinations):
        mine = chosen == i
        rank = Zipf(destination.skew, destination.domains).ranks_at(uniform[mine])
        index[mine] = len(domains) + rank - 1
        domains.extend((i, name) for name in domains_of(destination))
    return tuple(domains), index


@functools.cache
def _filler() -> bytes:
    """Return lines of text, each of `LINE` characters, some of which begin with a dot.

    Transparency (RFC 5321 4.5.2) is part of every load: a relay that loses or adds a dot changes the
    digest.
    """
    alphabet = np.frombuffer(
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+ ", dtype=np.uint8
    )
    numbers = stream(0, "filler").integers(0, len(alphabet), (_FILLER_LINES, _LINE_BYTES))
    lines = alphabet[numbers]
    lines[::_DOT_EVERY, 0] = ord(".")
    lines[::64, 1] = ord(".")
    # A space at the end of a line is what the first careless gateway strips.
    lines[:, LINE - 1] = ord("=")
    lines[:, LINE] = ord("\r")
    lines[:, LINE + 1] = ord("\n")
    return lines.tobytes()


def is_run_id(text: str) -> bool:
    """Return True for letters, digits, dots, hyphens and underscores, `RUN_ID_MAX` at most."""
    return re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{RUN_ID_MAX - 1}}}", text) is not None


def headers(sender: str, i: int, run_id: str) -> bytes:
    """Return the header section of message ``i`` from ``sender``, with the empty line that ends it.

    All fields that a server adds for a local client when they are missing are there (Postfix
    ``cleanup``, OpenSMTPD: Date, Message-ID, From, To), because an added field would change the
    digest. The date is fixed, so that the same scenario gives the same bytes.
    """
    assert is_run_id(run_id), run_id
    return (
        "Date: Sat, 26 Jan 2013 09:37:23 +0000\r\n"
        f"From: <{sender}>\r\n"
        "To: undisclosed-recipients:;\r\n"
        f"Subject: message {i}\r\n"
        f"Message-ID: <{i}.{run_id}@testbed.test>\r\n"
        f"X-Testbed-Run: {run_id}\r\n"
        f"X-Testbed-Seq: {i}\r\n"
        "\r\n"
    ).encode("ascii")


def message_bytes(schedule: Schedule, i: int, run_id: str) -> bytes:
    """Return message ``i``: exactly ``schedule.size[i]`` bytes, CRLF line ends, not dot-stuffed.

    The same arguments give the same bytes. Lines have 78 characters at most.
    """
    head = headers(schedule.sender(i), i, run_id)
    left = int(schedule.size[i]) - len(head)
    assert left >= 2, (i, schedule.size[i], len(head))
    filler = _filler()
    start = i % _FILLER_LINES * _LINE_BYTES
    end = start + left - 2
    if end > len(filler):
        filler *= -(-end // len(filler))
    if filler[end - 1] == 0x0D and end > start:
        # The cut fell inside a CRLF.
        return b"".join((head, filler[start : end - 1], b"=\r\n"))
    return b"".join((head, filler[start:end], b"\r\n"))


class WireForm(NamedTuple):
    """Message as it goes over the wire after DATA: dots doubled (RFC 5321 4.5.2), and the final one."""

    head: bytes
    body: memoryview
    """Of a buffer that all messages share."""
    tail: bytes


def wire_form(schedule: Schedule, i: int, run_id: str, sender: str = "") -> WireForm:
    """Return message ``i`` ready to be sent: its own header, and a view of a body that was stuffed before.

    Together the same as stuffing `message_bytes`, without touching the body.

    Args:
        schedule: where it is from.
        i: its number.
        run_id: as in `message_bytes`.
        sender: its reverse-path, if that is known already.
    """
    head = headers(sender or schedule.sender(i), i, run_id)
    left = int(schedule.size[i]) - len(head)
    start = i % _FILLER_LINES * _LINE_BYTES
    end = start + left - 2
    tail = b"\r\n.\r\n"
    if end > start and end % _LINE_BYTES == _LINE_BYTES - 1:
        # The cut falls inside a CRLF.
        end -= 1
        tail = b"=\r\n.\r\n"
    tiles = -(-end // (_FILLER_LINES * _LINE_BYTES))
    buffer = _stuffed_filler(1 << max(0, tiles - 1).bit_length())
    return WireForm(head, buffer[_stuffed_at(start) : _stuffed_at(end)], tail)


def _stuffed_at(position: int) -> int:
    """Return where a byte of the filler is when its dots are doubled: every 16th line begins with one."""
    line, column = divmod(position, _LINE_BYTES)
    dots = (line + _DOT_EVERY - 1) // _DOT_EVERY
    return position + dots + (column > 0 and line % _DOT_EVERY == 0)


@functools.cache
def _stuffed_filler(tiles: int) -> memoryview:
    """Return the filler so many times, dots doubled; ``tiles`` is a power of two, so that few are made."""
    filler = _filler()
    one = b"." + filler.replace(b"\r\n.", b"\r\n..")
    assert len(one) == _stuffed_at(len(filler)), "every 16th line begins with a dot"
    return memoryview(one * tiles)


def digest(message: bytes) -> str:
    """Return 32 hexadecimal digits of what must arrive unchanged: a message as `message_bytes` made it."""
    return hashlib.sha256(message).hexdigest()[:32]


class Identity(NamedTuple):
    """What a sink knows of a message that arrived."""

    run: str
    """Run id, or empty if the message is none of ours (a bounce, for one)."""
    seq: int
    """Sequence number, or -1."""
    digest: str
    """`digest` of the message without the trace fields that servers put in front."""


_TRACE_FIELDS: Final = (
    b"received:",
    b"return-path:",
    b"delivered-to:",
    b"x-original-to:",
    b"authentication-results:",
)
"""What servers put in front of a message (RFC 5321 4.4, and Postfix, OpenSMTPD when they deliver)."""


def identify(message: bytes) -> Identity:
    """Tell which message arrived, and what its digest is now.

    Trace fields at the very beginning are left out of the digest; whatever else was changed, added
    or removed on the way changes it. Any bytes are fine: a message that says nothing about a run has
    an empty one.
    """
    start = _after_trace(message)
    end = message.find(b"\r\n\r\n", start, start + _HEADER_BYTES_MAX)
    run, seq = "", -1
    if end >= 0:
        # Our own fields are written by us and in this case; a relay may not touch them.
        found_run = _field(message, b"\r\nX-Testbed-Run: ", start, end)
        found_seq = _field(message, b"\r\nX-Testbed-Seq: ", start, end)
        if found_run is not None and found_seq is not None:
            number = found_seq.decode("latin-1")
            # A number of another length is not ours, and int() of a long one is slow.
            if number.isascii() and number.isdigit() and len(number) <= 12:
                run, seq = found_run.decode("latin-1"), int(number)
    return Identity(run, seq, digest(message[start:] if start else message))


def _after_trace(message: bytes) -> int:
    """Return where the first field begins that is no trace field, or that has no end."""
    field = 0
    limit = min(len(message), _HEADER_BYTES_MAX)
    while message[field : field + 24].lower().startswith(_TRACE_FIELDS):
        at = field
        while True:
            line_end = message.find(b"\n", at, limit)
            if line_end < 0:
                return field
            at = line_end + 1
            # Folded lines belong to the field.
            if message[at : at + 1] not in (b" ", b"\t"):
                break
        field = at
    return field


def _field(message: bytes, name: bytes, start: int, end: int) -> bytes | None:
    at = message.find(name, max(start - 2, 0), end)
    if at < 0:
        return None
    at += len(name)
    value_end = message.find(b"\r\n", at, end + 2)
    value = message[at:value_end]
    return value if 0 < len(value) <= RUN_ID_MAX else None
