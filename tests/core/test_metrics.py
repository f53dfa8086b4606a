"""What is counted, and what must come back to 0."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.metrics import DRAINING, METRICS, Kind, Metric, Metrics

OPENSMTPD = [
    "control.session",
    "smtp.session",
    "smtp.session.inet4",
    "smtp.session.inet6",
    "smtp.session.local",
    "queue.bounce",
    "queue.evpcache.size",
    "queue.evpcache.load.hit",
    "queue.evpcache.load.missed",
    "bounce.envelope",
    "bounce.message",
    "mta.connector",
    "mta.domain",
    "mta.envelope",
    "mta.host",
    "mta.relay",
    "mta.route",
    "mta.session",
    "mta.source",
    "mta.task",
    "mta.task.running",
    "scheduler.envelope",
    "scheduler.envelope.incoming",
    "scheduler.envelope.inflight",
    "scheduler.envelope.expired",
    "scheduler.envelope.removed",
    "scheduler.envelope.updated",
    "scheduler.delivery.ok",
    "scheduler.delivery.tempfail",
    "scheduler.delivery.permfail",
    "scheduler.delivery.loop",
    "scheduler.ramqueue.hold",
    "scheduler.ramqueue.holdq",
    "scheduler.ramqueue.hold-overflow",
]
"""What `smtpctl show stats` prints of what we have too."""


def test_what_reads_opensmtpd_reads_us():
    """Names are the same where the thing is the same."""
    assert set(OPENSMTPD) <= set(METRICS)


@pytest.mark.parametrize("metric", METRICS.values(), ids=str)
def test_every_metric_is_fit_for_prometheus(metric: Metric):
    """Dotted lower-case names, one line of help without a full stop; only gauges drain."""
    assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)*", metric.name)
    assert metric.help.isprintable()
    assert metric.help
    assert not metric.help.endswith(".")
    assert metric.kind is Kind.GAUGE or not metric.drains


def test_no_two_metrics_become_one_in_prometheus():
    """Dots and dashes both become underscores there."""
    assert len({re.sub(r"[.-]", "_", name) for name in METRICS}) == len(METRICS)


def test_a_new_server_has_counted_nothing():
    """Every metric is there from the start, at 0, in the order of the table."""
    metrics = Metrics()
    assert list(metrics.snapshot().items()) == [(name, 0) for name in METRICS]
    assert metrics.leaks() == {}


def test_counting():
    """Gauges go up and down, counters up."""
    metrics = Metrics()
    metrics.inc("smtp.session")
    metrics.inc("smtp.session", 2)
    metrics.dec("smtp.session")
    metrics.inc("smtp.message.bytes", 4096)
    metrics.set("queue.waiting", 7)
    metrics.set("queue.waiting", 5)
    metrics.set("queue.commit", 3)
    metrics.set("queue.commit", 3)
    assert metrics["smtp.session"] == 2
    assert metrics["smtp.message.bytes"] == 4096
    assert metrics["queue.waiting"] == 5
    assert metrics["queue.commit"] == 3


def test_a_snapshot_is_a_copy():
    """It does not move with the server."""
    metrics = Metrics()
    before = metrics.snapshot()
    metrics.inc("smtp.session")
    assert before["smtp.session"] == 0


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("inc", ("smtp.session", -1)),
        ("dec", ("smtp.session", 2)),
        ("dec", ("smtp.session", -1)),
        ("dec", ("smtp.message", 1)),
        ("set", ("smtp.session", -1)),
        ("set", ("smtp.message", 0)),
    ],
)
def test_a_wrong_count_is_our_fault(method, arguments):
    """A second decrement, or a counter that falls, is found where it happens, and changes nothing."""
    metrics = Metrics()
    metrics.inc("smtp.session")
    metrics.inc("smtp.message")
    before = metrics.snapshot()
    with pytest.raises(AssertionError):
        getattr(metrics, method)(*arguments)
    assert metrics.snapshot() == before


@pytest.mark.parametrize("method", ["inc", "dec", "set"])
def test_a_name_that_is_not_in_the_table_is_our_fault(method):
    """A typing mistake does not make a new metric."""
    with pytest.raises(KeyError):
        getattr(Metrics(), method)("smtp.sesion", 1)


def test_a_gauge_that_did_not_come_back_is_a_leak():
    """OpenSMTPD's fix of 2013-01-14: a missing decrement."""
    metrics = Metrics()
    metrics.inc("mta.session")
    metrics.inc("control.session")
    metrics.inc("queue.bytes", 10)
    metrics.inc("smtp.message")
    assert metrics.leaks() == {"mta.session": 1, "queue.bytes": 10}
    assert metrics.leaks(ignored=["queue.bytes"]) == {"mta.session": 1}
    assert metrics.gauges()["mta.session"] == 1
    assert set(metrics.gauges()) == set(DRAINING)


@given(steps=st.lists(st.tuples(st.sampled_from(sorted(DRAINING)), st.integers(0, 5))))
def test_what_is_given_back_drains(steps):
    """Adding and taking the same leaves nothing."""
    metrics = Metrics()
    for name, amount in steps:
        metrics.inc(name, amount)
    for name, amount in reversed(steps):
        metrics.dec(name, amount)
    assert metrics.leaks() == {}
