"""A mail log as a world for the model: mail that comes when it came, and hosts that answer as they answered.

Attempts are not replayed, because with other settings there are others. What is kept is why they failed:

- A host was out of order (`sim.logs.windows`): whoever asks in that time is put off, or finds nobody listening.
- A recipient was put off otherwise, k times (greylisting, a full mailbox, a rate): so is every replay, k times.
- A recipient was refused for good: so it is, whenever it is asked.

An attempt takes as long as it took for the same recipient. Only at the edges of an outage, where a millisecond
decides, an attempt that comes within `EDGE_S` of a recorded one has that one's fate.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mta.core.reply import Outcome
from mta.core.settings import ConfigError
from sim.logs.fate import Edge, Fate
from sim.logs.host import EDGE_S, RecordedHost
from sim.logs.reader import MailLog
from sim.logs.record import CONNECTED, TRIED, Record
from sim.logs.windows import Outage, Try, outages
from sim.result import SAMPLE_S
from sim.scenario import DESTINATIONS_MAX, Destination, Load, Scenario, addresses
from sim.workload import Schedule

if TYPE_CHECKING:
    from sim.remote import RemoteHost

FOREVER: Final = 1 << 30
"""Attempts of who was never delivered."""

HOSTS: Final = 20
"""Hosts of a destination: more than any limit looks at (``limits.mta.max_mx``)."""

REPORTS: Final = "reports"
"""Where the model's reports go: senders' hosts, of which a log of somebody else's mail says little."""

OTHERS: Final = "others"
"""The domains beyond those that have a destination of their own."""

SAMPLES_MAX: Final = 100_000
"""Samples of the queue in the time of a log: five and a half hours of a run's grain, and a week in steps of 6 s."""

DRAIN_S: Final = 6 * 3600.0
DRAIN_SPANS: Final = 4.0
"""Longest wait for an empty queue after the end of a log whose queue was empty then: so long, or so many times the log."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Site(NamedTuple):
    """A destination as the log knows it."""

    name: str
    """Its domain, or `OTHERS`."""
    recipients: int
    attempts: int
    deferred: int
    refused: int
    hosts: int
    """That were connected to."""
    median_s: float
    """What an attempt took that asked somebody."""
    outages: tuple[Outage, ...]
    """With seconds since the start of the load."""


class Told(NamedTuple):
    """What the log says became of its mail, reports included where nothing else is said."""

    rows: dict[str, Any]
    """With the keys of `sim.replay.ROWS`."""
    queued_at: Floats
    """Instants at which the queue changed, seconds since the start."""
    queued: Ints
    """Recipients in the queue from then on."""
    latency_s: Floats
    """From arrival to delivery."""


@dataclass(frozen=True, slots=True)
class World:
    """What the model needs of a log."""

    scenario: Scenario
    schedule: Schedule
    sites: tuple[Site, ...]
    told: Told
    service_s: list[float]
    fates: dict[int, Fate]
    start_at: float
    """Instant of the log that is second 0."""
    sample_s: float
    """Grain of the model's series: that of a run, or so much that there are `SAMPLES_MAX` in the log."""
    accept_s: float
    """Median time from arrival until the first attempt could be made."""
    notes: tuple[str, ...]

    def hosts(self) -> dict[str, "RemoteHost"]:
        """Return the hosts in their first state, by address."""
        found: dict[str, RemoteHost] = {}
        left: dict[int, int] = {}
        for each in addresses(self.scenario):
            site = self.sites[each.destination] if each.destination < len(self.sites) else None
            windows = [(one.begin, one.end, one.reachable) for one in site.outages] if site else []
            found[each.address] = RecordedHost(
                windows,
                service_s=self.service_s,
                fates=self.fates,
                usual_s=site.median_s if site else self.sites[0].median_s,
                left=left,
            )
        return found


class _Columns:
    """A record as arrays, ordered as the model wants it: messages by arrival, recipients by message, attempts by start."""

    def __init__(self, record: Record) -> None:
        arrived = np.array(record.arrived_at)
        self.is_report = np.array(record.is_report, dtype=bool)
        message_of = np.array(record.message_of, dtype=np.int64)
        counts = np.bincount(message_of, minlength=len(arrived))
        # Without a recipient nobody knows where it was to go: the log ends before its first attempt.
        mail = np.flatnonzero(~self.is_report & (counts > 0))
        # The load begins with what came while the log was written; what was there before comes at once.
        late = np.array(record.is_late, dtype=bool)
        own = arrived[mail[~late[mail]]]
        self.start = float(own.min()) if len(own) else record.first_at
        due = np.maximum(arrived[mail] - self.start, 0.0)
        self.messages = mail[np.argsort(due, kind="stable")]
        self.due_s = np.maximum(arrived[self.messages] - self.start, 0.0)
        rank = np.full(len(arrived), -1, dtype=np.int64)
        rank[self.messages] = np.arange(len(self.messages))
        self.rank = rank
        of_mail = np.flatnonzero(rank[message_of] >= 0)
        self.recipients = of_mail[np.argsort(rank[message_of[of_mail]], kind="stable")]
        self.counts = counts[self.messages]
        self.number = np.full(len(message_of), -1, dtype=np.int64)
        self.number[self.recipients] = np.arange(len(self.recipients))
        self.arrived = arrived
        self.message_of = message_of
        self.gone_at = np.array(record.gone_at)
        # Attempts
        self.recipient_of = np.array(record.recipient_of, dtype=np.int64)
        self.ended_at = np.array(record.ended_at)
        self.service_s = np.array(record.service_s)
        self.outcome = np.array(record.outcome, dtype=np.int64)
        flags = np.array(record.flags, dtype=np.int64)
        self.tried = (flags & TRIED) > 0
        self.connected = (flags & CONNECTED) > 0
        self.host = np.array(record.host_of, dtype=np.int64)
        self.reply = np.array(record.reply_of, dtype=np.int64)
        self.began_s = self.ended_at - self.service_s - self.start


def build(mail: MailLog) -> World:
    """Return the world that a log tells of.

    A destination is a domain; beyond `DESTINATIONS_MAX` of them the smallest share one. If one host took nearly
    everything, it was a smart host, and the only destination.

    Raises:
        ConfigError: there is not one attempt in it.
    """
    record = mail.record
    columns = _Columns(record)
    if not len(columns.recipients):
        problem = f"says of no message where it was to go: {record.messages:,} arrivals, no attempt"
        raise ConfigError(str(mail.files[0]), problem=problem)
    notes: list[str] = []
    names, site_of = _sites(record, columns)
    starts = np.argsort(columns.began_s, kind="stable")
    known = starts[columns.number[columns.recipient_of[starts]] >= 0]
    sites, fates, service = _behaviour(columns, known, names, site_of, record)
    if not columns.service_s.any():
        notes.append("the log does not say how long an attempt took: none takes any time here")
    if columns.is_report.any():
        notes.append("reports are written by the model, and taken by everybody")
    queued_s = np.array(record.queued_s)[columns.messages]
    accept_s = float(np.median(queued_s[queued_s > 0])) if (queued_s > 0).any() else 0.0
    scenario = _scenario(mail, columns, sites, fates)
    for kind, count in sorted(record.kinds.items()):
        notes.append(f"{kind}: {count:,}")
    return World(
        scenario=scenario,
        schedule=_schedule(scenario, columns, site_of, record),
        sites=sites,
        told=_told(columns, record),
        service_s=service,
        fates=fates,
        start_at=columns.start,
        sample_s=max(SAMPLE_S, (record.last_at - columns.start) / SAMPLES_MAX),
        accept_s=accept_s,
        notes=tuple(notes),
    )


def _sites(record: Record, columns: _Columns) -> tuple[list[str], Ints]:
    """Return the names of the destinations, and the number of each recipient's."""
    domain = np.array(record.domain_of, dtype=np.int64)[columns.recipients]
    taken = columns.connected & (columns.host > 0) | (columns.outcome == Outcome.OK)
    hosts = np.bincount(columns.host[taken], minlength=1)
    share = hosts.max() / max(1, hosts.sum())
    domains = np.bincount(domain, minlength=len(record.domains))
    if np.count_nonzero(domains) > 5 and share > 0.9 and record.hosts[int(hosts.argmax())]:
        return [record.hosts[int(hosts.argmax())]], np.zeros(len(domain), dtype=np.int64)
    # One is left for reports.
    order = np.argsort(-domains, kind="stable")[: np.count_nonzero(domains)]
    most = DESTINATIONS_MAX - 2
    site_of_domain = np.full(len(domains), most, dtype=np.int64)
    site_of_domain[order[:most]] = np.arange(min(most, len(order)))
    names = [record.domains[int(number)] for number in order[:most]]
    if len(order) > most:
        names.append(OTHERS)
    return names, site_of_domain[domain]


def _behaviour(
    columns: _Columns, known: Ints, names: Sequence[str], site_of: Ints, record: Record
) -> tuple[tuple[Site, ...], dict[int, Fate], list[float]]:
    """Return the destinations with their outages, what happens to whom, and how long each recipient's attempt takes."""
    number = columns.number[columns.recipient_of[known]]
    tried, connected = columns.tried[known], columns.connected[known]
    failed = columns.outcome[known] == Outcome.TEMPFAIL
    fatal = columns.outcome[known] >= Outcome.PERMFAIL
    began, service_s, reply = columns.began_s[known], columns.service_s[known], columns.reply[known]
    host = columns.host[known]
    named = connected & np.array([bool(name) for name in record.hosts.names], dtype=bool)[host]
    first = np.zeros(len(known), dtype=bool)
    first[np.unique(number, return_index=True)[1]] = True
    site = site_of[number]
    # What each recipient's last attempt took; one that never failed has one only.
    service = np.zeros(len(site_of))
    service[number] = service_s
    sites: list[Site] = []
    for i, name in enumerate(names):
        mine = np.flatnonzero(site == i)
        rows = zip(
            began[mine].tolist(), failed[mine].tolist(), first[mine].tolist(), tried[mine].tolist(),
            connected[mine].tolist(), reply[mine].tolist(), strict=True,
        )  # fmt: skip
        asked = service_s[mine[tried[mine]]]
        sites.append(
            Site(
                name=name,
                recipients=int((site_of == i).sum()),
                attempts=len(mine),
                deferred=int(failed[mine].sum()),
                refused=int(fatal[mine].sum()),
                hosts=len(np.unique(host[mine[named[mine]]])),
                median_s=float(np.median(asked)) if len(asked) else 0.0,
                # A host of many domains can't be told from the others: each failure there is its own.
                outages=()
                if name == OTHERS
                else tuple(outages([Try(*row) for row in rows], record.replies.names)),
            )
        )
    fates: dict[int, Fate] = {}
    special = np.zeros(len(site_of), dtype=bool)
    special[number[failed | fatal]] = True
    for i, each in enumerate(sites):
        for outage in each.outages:
            for edge in (outage.begin, outage.end):
                if math.isfinite(edge):
                    special[number[(site == i) & (abs(began - edge) <= EDGE_S)]] = True
    attempts: dict[int, list[int]] = defaultdict(list)
    for row in np.flatnonzero(special[number]).tolist():
        attempts[int(number[row])].append(row)
    gone = ~np.isnan(columns.gone_at[columns.recipients])
    delivered = np.zeros(len(site_of), dtype=bool)
    delivered[number[~failed]] = True
    for who, rows_of in attempts.items():
        windows = sites[int(site_of[who])].outages
        fates[who] = fate = Fate(failed_s=sites[int(site_of[who])].median_s)
        edges: list[Edge] = []
        own = False
        for row in rows_of:
            at = float(began[row])
            inside = any(one.begin <= at < one.end for one in windows)
            near = any(min(abs(at - one.begin), abs(at - one.end)) <= EDGE_S for one in windows)
            if failed[row]:
                if tried[row]:
                    fate.failed_s = float(service_s[row])
                    own = not inside
                    fate.failures += own and not near
            elif fatal[row]:
                fate.fatal = True
            if near and tried[row]:
                edges.append(Edge(at, bool(failed[row])))
        fate.edges = tuple(edges)
        if not delivered[who] and (own or gone[who]):
            # It was in the queue until the end, or given up there.
            fate.failures = FOREVER
    return tuple(sites), fates, service.tolist()


def _scenario(
    mail: MailLog, columns: _Columns, sites: Sequence[Site], fates: Mapping[int, Fate]
) -> Scenario:
    """Return a scenario with the log's destinations; what is sent is in the schedule."""
    span_s = max(1.0, float(columns.due_s[-1]) if len(columns.due_s) else 1.0)
    # As many clients as it takes that none has to wait for one: that they did is not in a log.
    peak = int(np.bincount(columns.due_s.astype(np.int64), minlength=1).max())
    destinations = [
        Destination(
            name=site.name,
            domain=f"d{i}.test",
            share=max(1, site.recipients),
            hosts=min(max(1, site.hosts), HOSTS),
        )
        for i, site in enumerate(sites)
    ]
    destinations.append(Destination(name=REPORTS, domain=f"{REPORTS}.test", share=0))
    rest_s = max(mail.record.last_at - columns.start - span_s, SAMPLE_S)
    # What the log leaves in the queue is compared at the log's end; what it does not may take its time.
    drains = not (
        np.isnan(columns.gone_at).any() or any(fate.failures == FOREVER for fate in fates.values())
    )
    wait_s = max(DRAIN_S, DRAIN_SPANS * span_s)
    return Scenario(
        name=f"log-of-{mail.kind}",
        drain_s=rest_s + wait_s if drains else rest_s,
        load=Load(
            messages=len(columns.messages),
            rate=max(0.001, len(columns.messages) / span_s),
            sessions=min(10_000, max(100, 2 * peak)),
            keep=True,
            sender_domain=f"{REPORTS}.test",
        ),
        destinations=destinations,
    )


def _schedule(scenario: Scenario, columns: _Columns, site_of: Ints, record: Record) -> Schedule:
    size = np.array(record.size, dtype=np.int64)[columns.messages]
    usual = int(np.median(size[size >= 0])) if (size >= 0).any() else 4096
    n = len(columns.messages)
    return Schedule(
        scenario=scenario.name,
        due_s=columns.due_s,
        size=np.where(size < 0, usual, size),
        sender_number=np.arange(n, dtype=np.int64),
        sender_domain=f"{REPORTS}.test",
        first=np.concatenate(([0], np.cumsum(columns.counts))),
        recipient_domain=site_of,
        mailbox=np.arange(len(site_of), dtype=np.int64),
        domains=tuple((i, each.domain) for i, each in enumerate(scenario.destinations)),
    )


def _told(columns: _Columns, record: Record) -> Told:
    """Return what the log says, in the words of a replay."""
    gone = columns.gone_at
    arrived = columns.arrived[columns.message_of]
    inside = np.maximum(arrived - columns.start, 0.0)
    left = gone - columns.start
    settled = ~np.isnan(gone)
    instants = np.concatenate((inside, left[settled]))
    steps = np.concatenate((np.ones(len(inside)), -np.ones(int(settled.sum()))))
    order = np.argsort(instants, kind="stable")
    queued = np.cumsum(steps[order]).astype(np.int64)
    mine = columns.number >= 0
    ok = columns.outcome == Outcome.OK
    done = np.zeros(len(gone), dtype=bool)
    done[columns.recipient_of[ok]] = True
    of_mail = columns.number[columns.recipient_of] >= 0
    latency_s = np.sort((gone - arrived)[mine & done & settled])
    quantiles: dict[str, float | None] = dict.fromkeys(("p50", "p95", "p99"))
    if len(latency_s):
        values = np.percentile(latency_s, (50, 95, 99), method="inverted_cdf")
        quantiles = dict(zip(quantiles, map(float, values), strict=True))
    talks = columns.connected & columns.tried
    keys = np.stack(
        (columns.message_of[columns.recipient_of[talks]].astype(np.float64), columns.ended_at[talks], columns.host[talks])
    )  # fmt: skip
    rows = {
        "accepted": int(mine.sum()),
        "delivered": int((mine & done).sum()),
        "deferred": int(((columns.outcome == Outcome.TEMPFAIL) & of_mail).sum()),
        "bounced": int(columns.is_report.sum()),
        "failed": int((mine & settled & ~done).sum()),
        "queued": int((~settled).sum()),
        "peak_queued": int(queued.max()) if len(queued) else 0,
        "drain_time_s": float(left.max()) if settled.all() and len(left) else None,
        **quantiles,
        "peak_rss_bytes": None,
        "transactions": int(np.unique(keys, axis=1).shape[1]) if talks.any() else 0,
        "connections_opened": None,
    }
    return Told(rows, instants[order], queued, latency_s)
