"""What the server and its model count, under one set of names.

Names are OpenSMTPD's where it has the thing (``smtpctl show stats``), so that what reads those statistics
reads ours. A counter only ever grows. A gauge is an amount that is there now; those marked
``drains`` must be 0 again once the queue is empty and no connection is open. OpenSMTPD's users found leaks by
such a gauge that did not come back, and one of its fixes of January 2013 was a missing decrement.
"""

import enum
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple


class Kind(enum.Enum):
    """How a value moves."""

    COUNTER = "counter"
    GAUGE = "gauge"


class Metric(NamedTuple):
    """One thing that is counted."""

    name: str
    kind: Kind
    help: str
    """One line, without a full stop, as Prometheus shows it."""
    drains: bool = False
    """A gauge that must be 0 when there is nothing to do."""


def _counter(name: str, text: str) -> Metric:
    return Metric(name, Kind.COUNTER, text)


def _gauge(name: str, text: str, *, drains: bool = True) -> Metric:
    return Metric(name, Kind.GAUGE, text, drains)


_ALL = (
    # The control socket
    # Why not `drains`? Who asks is connected.
    _gauge("control.session", "Open connections to the control socket", drains=False),
    # The door
    _gauge("smtp.session", "Open inbound connections"),
    _counter("smtp.session.inet4", "Inbound connections over IPv4"),
    _counter("smtp.session.inet6", "Inbound connections over IPv6"),
    _counter("smtp.session.local", "Messages submitted from inside, as bounces are"),
    _counter("smtp.disconnect", "Inbound connections that ended"),
    _counter("smtp.refused.connection", "Inbound connections refused with 421"),
    _counter("smtp.refused.temporary", "Commands and messages refused with 4xx"),
    _counter("smtp.refused.permanent", "Commands and messages refused with 5xx"),
    _counter("smtp.timeout", "Inbound connections that were idle or open too long"),
    _gauge("smtp.proxy.waiting", "Connections that wait for their PROXY header"),
    _counter("smtp.proxy.failed", "Connections of proxies without a usable PROXY header"),
    _counter("smtp.message", "Messages accepted with 250"),
    _counter("smtp.message.bytes", "Bytes of the messages accepted"),
    # Why not `drains`? The operator may want it all the time.
    _gauge("smtp.stress", "1 while limits are smaller because connections run out", drains=False),
    _counter("smtp.stress.entered", "How often stress began"),
    _gauge("smtp.lookup", "Recipients that wait for tables"),
    _counter(
        "smtp.lookup.failed", "Recipients refused because tables took too long or too many waited"
    ),
    _gauge("smtp.accept.paused", "Listeners that let nobody in for want of descriptors"),
    _counter("smtp.accept.pauses", "How often a listener stopped letting clients in"),
    _gauge("smtp.bytes", "Bytes of messages that are being received and are not durable yet"),
    _gauge("smtp.tls", "Open inbound connections that said STARTTLS"),
    _gauge("smtp.smtps", "Open inbound connections with TLS from the first byte on"),
    _counter("smtp.tls.failed", "Handshakes that failed, took too long, or lost their client"),
    _counter("smtp.auth.ok", "Logins"),
    _counter("smtp.auth.permfail", "Logins refused: no such user, or another password"),
    _counter("smtp.auth.tempfail", "Logins that could not be checked"),
    _gauge("smtp.auth.pending", "Passwords being checked, or waiting for that"),
    # The durable queue
    _gauge("queue.message", "Messages in the durable queue"),
    _gauge("queue.envelope", "Envelopes in the durable queue"),
    _gauge("queue.bytes", "Bytes of messages in the durable queue"),
    _gauge("queue.waiting", "Submissions that wait for a commit"),
    _counter("queue.commit", "Commits"),
    _counter("queue.commit.failed", "Commits that failed and were rolled back"),
    _counter("queue.bounce", "Reports put into the queue"),
    _gauge("queue.evpcache.size", "Envelopes kept ready for their first attempt"),
    _gauge("queue.evpcache.bytes", "Bytes of messages kept ready for their first attempt"),
    _counter("queue.evpcache.load.hit", "Envelopes that did not have to be read"),
    _counter("queue.evpcache.load.missed", "Envelopes that had to be read"),
    # Reports
    _gauge("bounce.message", "Reports that are being submitted"),
    _gauge("bounce.envelope", "Envelopes that these report"),
    # The scheduler
    _gauge("scheduler.envelope", "Envelopes that the scheduler knows"),
    _gauge("scheduler.envelope.pending", "Envelopes that wait for their next try"),
    _gauge("scheduler.envelope.scheduled", "Envelopes that are due and wait for a slot"),
    _gauge("scheduler.envelope.inflight", "Envelopes that the relaying agent has"),
    _gauge("scheduler.envelope.suspended", "Envelopes that the operator paused"),
    _counter("scheduler.envelope.incoming", "Envelopes that entered the queue"),
    _counter("scheduler.envelope.outgoing", "Envelopes that left the queue"),
    _counter("scheduler.envelope.expired", "Envelopes that became too old"),
    _counter("scheduler.envelope.removed", "Envelopes that the operator removed"),
    _counter("scheduler.envelope.updated", "Envelopes that were given a new due time"),
    _counter("scheduler.delivery.ok", "Attempts that delivered"),
    _counter("scheduler.delivery.tempfail", "Attempts that failed for now"),
    _counter("scheduler.delivery.permfail", "Attempts that failed for good"),
    _counter("scheduler.delivery.loop", "Attempts that failed because mail went round"),
    _gauge("scheduler.ramqueue.hold", "Envelopes held because their relay is at high water"),
    _gauge("scheduler.ramqueue.holdq", "Relays that hold envelopes"),
    _counter("scheduler.ramqueue.hold-overflow", "Envelopes sent back by a full hold queue"),
    # The relaying agent
    _gauge("mta.connector", "Pairs of source and relay"),
    _gauge("mta.domain", "Destination domains"),
    _gauge("mta.envelope", "Envelopes that wait in transactions"),
    _gauge("mta.host", "Addresses of mail exchangers"),
    _gauge("mta.relay", "Destinations with something to do"),
    # Why not `drains`? A route that failed is remembered until it has rested.
    _gauge("mta.route", "Pairs of source and address", drains=False),
    _gauge("mta.route.disabled", "Routes that rest after failures", drains=False),
    _gauge("mta.session", "Open outbound connections"),
    _gauge("mta.source", "Local addresses in use"),
    _gauge("mta.task", "Transactions that wait"),
    _gauge("mta.task.running", "Transactions under way"),
    _counter("mta.session.opened", "Outbound connections tried"),
    _counter("mta.session.failed", "Outbound connections that did not become ready"),
    _counter("mta.message", "Transactions that ended"),
    _counter("mta.ambiguous", "Connections lost after the dot: what may have been delivered twice"),
    _counter("mta.tls", "Outbound TLS handshakes completed"),
    _counter("mta.tls.resumed", "Outbound TLS handshakes that continued an earlier session"),
    _counter("mta.tls.failed", "Outbound TLS handshakes that failed, bad certificates included"),
    _counter("mta.tls.downgraded", "Outbound connections tried again with less TLS or none"),
    _counter("mta.tls.refused", "Outbound connections not made because of a policy"),
    _gauge("mta.dane.cache.size", "Answers about TLSA records kept", drains=False),
    _gauge(
        "mta.sts.cache.size",
        "Domains whose MTA-STS policy is known or known to be none",
        drains=False,
    ),
    _counter("mta.sts.fetched", "MTA-STS policies fetched"),
    _counter("mta.sts.failed", "MTA-STS policies announced that could not be had"),
    _gauge("mta.tls.session", "TLS sessions kept to be resumed", drains=False),
    # Local delivery
    _gauge("mda.envelope", "Envelopes that local delivery has"),
    _gauge("mda.pending", "Envelopes that wait for their local delivery"),
    _gauge("mda.running", "Local deliveries under way"),
    _gauge("mda.user", "Users with local deliveries to do"),
    _counter("mda.refused", "Envelopes sent back because too many wait for local delivery"),
    # The resolver
    _gauge("dns.pending", "Look-ups under way"),
    _gauge("dns.cache.size", "Domains kept", drains=False),
    _counter("dns.cache.hit", "Look-ups answered from memory"),
    _counter("dns.cache.missed", "Look-ups that went to the name server"),
    _counter("dns.failed", "Look-ups that failed for now"),
    # Memory
    _gauge("memory.usage", "Bytes used, as whoever sets the limit counts them", drains=False),
    _gauge("memory.limit", "Bytes that may be used; 0 if that is not known", drains=False),
    _gauge(
        "memory.low", "Bytes from which on nothing is kept that can be read again", drains=False
    ),
    _gauge("memory.soft", "Bytes from which on messages are refused", drains=False),
    _gauge("memory.hard", "Bytes from which on connections are refused", drains=False),
    # Why not `drains`? What uses the memory may be the machine's, or the control group's.
    _gauge("memory.pressure", "0 enough memory, 1 low, 2 soft, 3 hard", drains=False),
    # Read while somebody asks for /metrics: see mta/memory.py. Why not `drains`? They are as of the last sample.
    _gauge("memory.pss", "Bytes of the server's proportional set; 0 if not known", drains=False),
    _gauge("memory.commands", "Processes of local delivery that could be measured", drains=False),
    _gauge("memory.commands.rss", "Bytes that these processes have resident", drains=False),
    _gauge("memory.commands.pss", "Bytes of these processes' proportional sets", drains=False),
    # Why not `drains`? Columns stay as long as they once were.
    _gauge("memory.envelopes", "About how many bytes the queued envelopes take", drains=False),
    _counter("memory.shrink", "Times that what can be read again was let go"),
    _counter("memory.refused", "Connections and messages refused for want of memory"),
    # Ourselves
    _counter("log.lost", "Log lines that could not be written"),
    _counter("trace.lost", "Trace records that were dropped"),
    _counter("error.internal", "Faults of ours that a reply 451 stood for"),
)

METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _ALL})
"""Every metric by its name, in the order in which they are shown."""

assert len(METRICS) == len(_ALL), "two metrics have the same name"


class Metrics:
    """The values of one server, or of one run of the model. All are whole numbers, none negative."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values = dict.fromkeys(METRICS, 0)

    def __getitem__(self, name: str) -> int:
        """Return a value."""
        return self._values[name]

    def inc(self, name: str, amount: int = 1) -> None:
        """Add to a counter or a gauge."""
        assert amount >= 0, (name, amount)
        self._values[name] += amount

    def dec(self, name: str, amount: int = 1) -> None:
        """Take from a gauge what was added to it."""
        assert METRICS[name].kind is Kind.GAUGE, f"{name} is a counter"
        value = self._values[name] - amount
        assert 0 <= value <= self._values[name], (name, self._values[name], amount)
        self._values[name] = value

    def set(self, name: str, value: int) -> None:
        """Set a gauge to what is there, or a counter to a total that was kept elsewhere."""
        before = self._values[name]
        assert value >= 0, (name, value)
        assert METRICS[name].kind is Kind.GAUGE or value >= before, (name, before, value)
        self._values[name] = value

    def snapshot(self) -> dict[str, int]:
        """Return all values by name, in the order of `METRICS`; a copy."""
        return dict(self._values)

    def gauges(self) -> dict[str, int]:
        """Return the gauges that must be 0 after a drain, by name."""
        return {name: self._values[name] for name in DRAINING}

    def leaks(self, ignored: Iterable[str] = ()) -> dict[str, int]:
        """Return the gauges that are not 0 though they should be after a drain."""
        ignore = frozenset(ignored)
        return {
            name: value for name, value in self.gauges().items() if value and name not in ignore
        }


DRAINING = tuple(metric.name for metric in _ALL if metric.drains)
"""Names of the gauges that must be 0 after a drain."""
