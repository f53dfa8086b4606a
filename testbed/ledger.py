"""What became of every recipient that was promised something: the account of a run.

A server that answers 250 to the final dot takes responsibility (RFC 5321 4.2.5, 6.1). The ledger joins what the load was
promised with what arrived in the world, what was given up with a report, and what is still queued;
whatever is in none of these is lost; or unaccounted for, if the server's queue can't be read. It believes the world about
arrivals, and the server only about what it still owes.

Order is that of one sender's mail to one destination: a message is *before* another if its 250 came before the other was begun.
Messages that were under way at the same time have no order. No server promises to keep it (RFC 5321 says nothing
of order), but a client that waits for each 250 can see it broken.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from testbed.targets.base import Owed

QUANTILES: Final = tuple(i / 100 for i in range(101))
"""Of the latencies that the ledger keeps: enough to draw a distribution, small enough to ship."""

FLOW_S: Final = 0.5
"""Width of the intervals in which accepted and delivered recipients are counted."""

EXAMPLES_MAX: Final = 20
"""Recipients of a kind of trouble that are named; all are counted."""


class Promise(NamedTuple):
    """A message that the server took, or may have taken, as the load has it."""

    seq: int
    scheduled: float
    """When it should have been sent, seconds since the epoch."""
    done: float
    """When its last reply came."""
    sent: float
    """When its first attempt began."""
    sender: str
    recipients: tuple[str, ...]
    """Those that were accepted; if the message was not, those that may be."""
    digest: str
    accepted: bool
    """The final dot was answered with 250."""
    queue_id: str
    unsure: int
    """Attempts before that ended without a reply to the final dot."""


class Arrival(NamedTuple):
    """A message that the world took."""

    seq: int
    t: float
    """When its 250 left, seconds since the epoch."""
    recipients: tuple[str, ...]
    digest: str
    address: str


@dataclass(slots=True)
class Spread:
    """Seconds, summed up."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0
    quantiles: list[float] = field(default_factory=list)
    """At each of `QUANTILES`."""


@dataclass(slots=True)
class Counts:
    """What became of recipients: of a run, or of one destination of it. All of these count recipients."""

    offered: int = 0
    """Recipients of all messages that the load tried to send."""
    accepted: int = 0
    """Promised with 250."""
    refused: int = 0
    """Offered and not accepted: told so, or cut off."""
    delivered: int = 0
    """Accepted and arrived, once or more often."""
    bounced: int = 0
    """Accepted, not arrived, and given up by the server with a report."""
    queued: int = 0
    """Accepted, not arrived, and still in the queue at the end."""
    lost: int = 0
    """Accepted, and none of these."""
    unaccounted: int = 0
    """The same, if the server's queue can't be read: lost, or still there."""
    duplicates: int = 0
    """Arrivals beyond the first, less those that the client is to blame for."""
    altered: int = 0
    """Arrivals whose bytes are not those that were sent."""
    reordered: int = 0
    """First arrivals after one that its sender had begun to send to the same destination when this one had its 250 already."""
    accept_latency_s: Spread = field(default_factory=Spread)
    """From the instant at which a message should have been sent until its 250; of messages with a recipient there."""

    @property
    def placed(self) -> int:
        """How many recipients are in one of the places; as many as were accepted."""
        return self.delivered + self.bounced + self.queued + self.lost + self.unaccounted


@dataclass(slots=True)
class Account(Counts):
    """What became of the recipients of one destination, or of one group of local users."""

    delivery_latency_s: Spread = field(default_factory=Spread)
    """From the instant at which a message should have been sent until the remote host's 250."""


@dataclass(slots=True)
class Ledger(Counts):
    """The account of one server's run. Everything counts recipients unless it says messages."""

    duplicates_client: int = 0
    """Arrivals beyond the first that the load caused: it had no reply to a final dot and sent again."""
    unacknowledged: int = 0
    """Arrivals of messages whose client never heard the 250: it gave up, the server did not."""
    unexpected: int = 0
    """Arrivals of recipients that were refused, or of messages that nobody sent."""
    messages_offered: int = 0
    messages_accepted: int = 0
    messages_delivered: int = 0
    """Transactions at the world's hosts."""
    reports: int = 0
    """Messages from ``<>`` that arrived: bounces, counted where they came in."""
    delivery_latency_s: dict[str, Spread] = field(default_factory=dict)
    """By destination."""
    destinations: dict[str, Account] = field(default_factory=dict)
    """The counts of each destination, and of each group of local users."""
    last_delivery_s: float | None = None
    """From the start of the load until the last arrival."""
    flow: dict[str, list[float]] = field(default_factory=dict)
    """``t`` in seconds since the start of the load, and recipients ``accepted`` and ``delivered`` in the `FLOW_S` from there."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Some recipients of each kind of trouble: ``seq 17 user3@a.test``."""


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines file. A last line without its end was never written.

    Raises:
        OSError: the file can't be read.
        ValueError: a line in the middle is not an object.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}: line {number}: not JSON") from error
            if not isinstance(record, dict):
                raise ValueError(f"{path}: line {number}: not an object")  # noqa: TRY004 - bad data, not a bad call
            yield record


def build(
    sent: Iterable[Mapping[str, Any]],
    arrived: Iterable[Mapping[str, Any]],
    *,
    run_id: str,
    start: float,
    queued: Collection[Owed] | None = (),
    bounced: Collection[Owed] = (),
    queue_id: Callable[[str], str] = lambda reply: "",
    destination: Callable[[str], str] = lambda recipient: recipient.rpartition("@")[2],
) -> Ledger:
    """Return the account of a run.

    Args:
        sent: the load's record, one line a message; see `loadtests`.
        arrived: the world's records, one line a message; see `testbed.world.records`.
        run_id: of the messages that count; others are warm-up.
        start: when the load began, seconds since the epoch.
        queued: what is still in the server's queue; None if it can't be read.
        bounced: what the server gave up with a report.
        queue_id: returns the message's id from the reply to its final dot.
        destination: returns the name of the destination, or of the group of local users, that a recipient belongs to.
    """
    ledger = Ledger()
    accounts: dict[str, Account] = defaultdict(Account)
    promises = _promises(sent, ledger, accounts, queue_id, destination)
    by_seq = {promise.seq: promise for promise in promises}
    arrivals = _arrivals(arrived, run_id, ledger)

    counts: Counter[tuple[int, str]] = Counter()
    waits: dict[str, list[float]] = defaultdict(list)
    order = _Order()
    trouble: dict[str, list[str]] = defaultdict(list)
    for arrival in arrivals:
        promise = by_seq.get(arrival.seq)
        wanted = set(promise.recipients) if promise is not None else set()
        first_at: set[str] = set()
        for recipient in arrival.recipients:
            who = f"seq {arrival.seq} {recipient}"
            if promise is None or recipient not in wanted:
                ledger.unexpected += 1
                trouble["unexpected"].append(who)
                continue
            key = (arrival.seq, recipient)
            name = destination(recipient)
            account = accounts[name]
            counts[key] += 1
            ledger.unacknowledged += not promise.accepted
            if arrival.digest != promise.digest:
                ledger.altered += 1
                account.altered += 1
                trouble["altered"].append(who)
            if counts[key] == 1:
                first_at.add(name)
                waits[name].append(arrival.t - promise.scheduled)
                if order.overtaken(promise, name):
                    ledger.reordered += 1
                    account.reordered += 1
                    trouble["reordered"].append(who)
        if promise is not None:
            order.arrived(promise, first_at)

    ledger.destinations = accounts
    _settle(
        ledger,
        promises,
        counts,
        None if queued is None else frozenset(queued),
        frozenset(bounced),
        trouble,
        lambda recipient: accounts[destination(recipient)],
    )
    ledger.messages_delivered = len(arrivals)
    ledger.delivery_latency_s = {name: spread(waits[name]) for name in sorted(waits)}
    for name, found in ledger.delivery_latency_s.items():
        accounts[name].delivery_latency_s = found
    ledger.destinations = {name: accounts[name] for name in sorted(accounts)}
    if arrivals:
        ledger.last_delivery_s = round(arrivals[-1].t - start, 3)
    ledger.flow = _flow(promises, arrivals, start)
    ledger.examples = {name: whos[:EXAMPLES_MAX] for name, whos in sorted(trouble.items())}
    return ledger


class _Order:
    """Tells whether a message came after one that its sender began when this one had been accepted."""

    def __init__(self) -> None:
        self._begun: dict[tuple[str, str], float] = {}

    def overtaken(self, promise: Promise, destination: str) -> bool:
        """Return whether a later message from the same sender to the same destination has arrived already."""
        return self._begun.get((promise.sender, destination), -math.inf) > promise.done

    def arrived(self, promise: Promise, destinations: Iterable[str]) -> None:
        """Take note of a first arrival."""
        for name in destinations:
            key = (promise.sender, name)
            self._begun[key] = max(self._begun.get(key, -math.inf), promise.sent)


def _promises(
    sent: Iterable[Mapping[str, Any]],
    ledger: Ledger,
    accounts: Mapping[str, Account],
    queue_id: Callable[[str], str],
    destination: Callable[[str], str],
) -> list[Promise]:
    """Return what was promised; count what was offered, accepted and refused. ``accounts`` makes what it has not."""
    promises: list[Promise] = []
    waits: list[float] = []
    by_destination: dict[str, list[float]] = defaultdict(list)
    for line in sent:
        if line.get("kind") != "message":
            continue
        ledger.messages_offered += 1
        is_accepted = line["code"] // 100 == 2
        recipients = line["accepted"] if is_accepted else line["rcpts"]
        taken = frozenset(recipients) if is_accepted else frozenset()
        for recipient in line["rcpts"]:
            account = accounts[destination(recipient)]
            for each in (ledger, account):
                each.offered += 1
                each.accepted += recipient in taken
                each.refused += recipient not in taken
        if is_accepted:
            ledger.messages_accepted += 1
            wait = line["done"] - line["scheduled"]
            waits.append(wait)
            for name in {destination(recipient) for recipient in recipients}:
                by_destination[name].append(wait)
        if is_accepted or line["unsure"]:
            promises.append(
                Promise(
                    seq=line["seq"],
                    scheduled=line["scheduled"],
                    done=line["done"],
                    sent=line["sent"],
                    sender=line["sender"],
                    recipients=tuple(recipients),
                    digest=line["digest"],
                    accepted=is_accepted,
                    queue_id=queue_id(line["reply"]),
                    unsure=line["unsure"],
                )
            )
    ledger.accept_latency_s = spread(waits)
    for name, found in by_destination.items():
        accounts[name].accept_latency_s = spread(found)
    return promises


def _arrivals(arrived: Iterable[Mapping[str, Any]], run_id: str, ledger: Ledger) -> list[Arrival]:
    arrivals: list[Arrival] = []
    for line in arrived:
        if line["mail_from"] == "" and line["run"] != run_id:
            ledger.reports += 1
        if line["run"] == run_id:
            arrivals.append(
                Arrival(
                    line["seq"], line["t"], tuple(line["rcpts"]), line["digest"], line["address"]
                )
            )
    arrivals.sort(key=lambda arrival: arrival.t)
    return arrivals


def _settle(
    ledger: Ledger,
    promises: Iterable[Promise],
    counts: Mapping[tuple[int, str], int],
    queued: frozenset[Owed] | None,
    bounced: frozenset[Owed],
    trouble: dict[str, list[str]],
    account_of: Callable[[str], Account],
) -> None:
    """Put every promised recipient where it belongs: in one place exactly."""
    for promise in promises:
        if not promise.accepted:
            continue
        for recipient in promise.recipients:
            who = f"seq {promise.seq} {recipient}"
            owed = Owed(promise.queue_id, recipient)
            both = (ledger, account_of(recipient))
            count = counts.get((promise.seq, recipient), 0)
            if count:
                extra = count - 1
                excused = min(extra, promise.unsure)
                ledger.duplicates_client += excused
                for each in both:
                    each.delivered += 1
                    each.duplicates += extra - excused
                if extra > excused:
                    trouble["duplicate"].append(who)
                continue
            for each in both:
                if owed in bounced:
                    each.bounced += 1
                elif queued is None:
                    each.unaccounted += 1
                elif owed in queued:
                    each.queued += 1
                else:
                    each.lost += 1
            if owed in bounced:
                trouble["bounced"].append(who)
            elif queued is not None and owed not in queued:
                trouble["lost"].append(who)
    for account in (ledger, *ledger.destinations.values()):
        assert account.accepted == account.placed, account


def _flow(
    promises: Iterable[Promise], arrivals: Iterable[Arrival], start: float
) -> dict[str, list[float]]:
    """Return recipients per interval. What came before the start counts for the first one."""
    taken: Counter[int] = Counter()
    given: Counter[int] = Counter()
    for promise in promises:
        if not promise.accepted:
            continue
        taken[max(0, int((promise.done - start) / FLOW_S))] += len(promise.recipients)
    for arrival in arrivals:
        given[max(0, int((arrival.t - start) / FLOW_S))] += len(arrival.recipients)
    last = max([*taken, *given], default=-1)
    steps = range(last + 1)
    return {
        "t": [round(i * FLOW_S, 3) for i in steps],
        "accepted": [float(taken[i]) for i in steps],
        "delivered": [float(given[i]) for i in steps],
    }


def spread(values: Iterable[float]) -> Spread:
    """Sum seconds up; quantiles by nearest rank."""
    ordered = sorted(values)
    n = len(ordered)
    if not n:
        return Spread()

    def at(q: float) -> float:
        return round(ordered[max(0, math.ceil(q * n) - 1)], 6)

    return Spread(
        count=n,
        mean=round(math.fsum(ordered) / n, 6),
        p50=at(0.5),
        p90=at(0.9),
        p95=at(0.95),
        p99=at(0.99),
        max=at(1.0),
        quantiles=[at(q) for q in QUANTILES],
    )


def to_json(ledger: Ledger) -> dict[str, Any]:
    """Return the ledger as plain tables, for ledger.json."""
    return asdict(ledger)
