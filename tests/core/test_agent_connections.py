"""Connections: the gaps between them, their wear, their idleness and their end."""

import pytest

from mta.core.ids import SessionId
from mta.core.instructions import CloseConnection, DeferEnvelope
from mta.core.stimuli import TransactionDone
from tests.support.agent import OFF, OK, PERM, A, B, core_with, grow, opened, started, submit
from tests.support.core import ev, only

# Gaps


@pytest.mark.parametrize(
    "gap",
    [
        "conn_delay_host_s",
        "conn_delay_route_s",
        "conn_delay_source_s",
        "conn_delay_connector_s",
        "conn_delay_relay_s",
        "conn_delay_domain_s",
    ],
)
def test_each_gap_between_connects_is_kept(gap):
    """With a gap of 5 s three connections open at 0, 5 and 10 s."""
    core = core_with(**{gap: 5.0})
    submit(core, 3)
    core.resolve("one.test", (10, A))
    core.ready(1)

    assert [] == opened(core.until(4.9))
    assert [(2, A)] == opened(core.until(5.0))
    assert [] == opened(core.until(9.9))
    assert [(3, A)] == opened(core.until(10.0))


def test_a_gap_outlives_the_relay_it_is_for():
    """The relay has had nothing to do since 1 s, but it connected at 0 s: the next connect is at 60 s."""
    core = core_with(conn_delay_relay_s=60.0)
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.ready(1)
    core.until(1.0)
    core.done(1)
    core.closed(1)
    assert [] == opened(core.submit("one.test"))

    assert [] == opened(core.until(59.9))
    assert [(2, A)] == opened(core.until(60.0))
    core.ready(2)
    core.done(2)
    core.settle()
    assert {} == core.leaks()


def test_a_gap_after_a_disconnect_outlives_the_last_connection():
    """Closed at 1 s, gap of 3 s: the next connect on this route is at 4 s."""
    core = core_with(reconn_delay_route_s=3.0)
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.ready(1)
    core.until(1.0)
    core.done(1)
    core.closed(1)
    core.submit("one.test")
    core.resolve("one.test", (10, A))

    assert [] == opened(core.until(3.9))
    assert [(2, A)] == opened(core.until(4.0))


def test_a_gap_between_relays_of_one_source_is_kept():
    """The source's gap is for all relays together."""
    core = core_with(conn_delay_source_s=5.0)
    for number, domain in enumerate(("one.test", "two.test"), 1):
        core.submit(domain)
        core.resolve(domain, (10, f"192.0.2.{number}"))

    assert [(2, B)] == opened(core.until(5.0))


def test_capped_here_and_in_a_gap_there_waits_for_whatever_comes_first():
    """One host is full, the other in its gap: the gap ends first."""
    core = core_with(max_conn_per_host=1, conn_delay_host_s=5.0)
    submit(core, 3)
    (_, first), (_, second) = opened(core.resolve("one.test", (10, A), (10, B)))
    core.ready(1)
    core.ready(2)
    core.closed(2)

    assert [(3, second)] == opened(core.until(5.0))
    assert first != second


# Connections


def test_a_connection_is_worn_out_after_so_many_messages():
    """`session_mail_max` messages, then a new connection."""
    core = core_with(session_mail_max=2, max_conn=1)
    submit(core, 3)
    core.resolve("one.test", (10, A))
    assert [(1, 1)] == started(core.ready(1))
    assert [(1, 2)] == started(core.done(1))

    assert [CloseConnection(1)] == only(CloseConnection, core.done(1))
    assert [(2, A)] == opened(core.closed(1))


def test_a_connection_on_which_nothing_works_is_given_up():
    """`max_failures_per_session` rejected recipients in a row; a delivery starts the count again."""
    core = core_with(max_failures_per_session=3, max_conn=1)
    for _ in range(3):
        core.submit("one.test", "one.test")
    core.resolve("one.test", (10, A))
    core.ready(1)
    assert [] == only(CloseConnection, core.done(1, PERM, OFF))
    assert [] == only(CloseConnection, core.done(1, OK, PERM))

    assert [CloseConnection(1)] == only(CloseConnection, core.done(1, PERM, OFF))


def test_an_idle_connection_is_kept_for_a_while():
    """Ten seconds after its last message, not before; used meanwhile, it stays."""
    core = core_with()
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.ready(1)
    core.until(1.0)
    core.done(1)
    assert [] == core.until(10.9)
    assert [(1, 2)] == started(core.submit("one.test"))
    core.done(1)

    assert [] == core.until(20.8)
    assert [CloseConnection(1)] == core.until(20.9)
    assert [] == core.until(100.0), "it is told once"
    core.closed(1)
    assert {} == core.leaks()


def test_each_idle_connection_has_its_own_end():
    """One idle since 0 s, one since 4 s: they close at 10 s and at 14 s."""
    core = core_with()
    submit(core, 2)
    core.resolve("one.test", (10, A))
    grow(core, 1)
    core.ready(2)
    core.done(1)
    core.until(4.0)
    core.done(2)

    assert [CloseConnection(1)] == core.until(13.9)
    assert [CloseConnection(2)] == core.until(14.0)


def test_an_idle_connection_that_the_host_closes_is_no_failure():
    """The host's own keepalive may be shorter than ours."""
    core = core_with()
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.ready(1)
    core.done(1)

    assert [] == core.closed(1)
    assert {} == core.leaks()


def test_the_last_connection_used_is_the_next():
    """Of two idle connections the warm one is used, so that the other can close."""
    core = core_with()
    submit(core, 2)
    core.resolve("one.test", (10, A))
    grow(core, 1)
    core.ready(2)
    core.done(1)
    core.until(1.0)
    core.done(2)

    assert [(2, 3)] == started(core.submit("one.test"))
    assert [CloseConnection(1)] == core.until(10.0)


def test_what_a_driver_says_too_late_or_twice_changes_nothing():
    """Sessions that are gone, were never there, or are past that point."""
    core = core_with()
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.ready(1)
    assert [] == core.ready(1)
    assert [] == core.resolve("one.test", (10, B))
    core.done(1)
    assert [] == core.ready(77) + core.failed(77) + core.closed(77)
    assert [] == core.tell(TransactionDone(SessionId(77), (), usable=True))
    assert [] == core.tell(TransactionDone(SessionId(1), (), usable=True)), "it is idle"


def test_a_failure_of_a_ready_connection_is_its_end():
    """A driver that says failed instead of closed loses neither connection nor mail."""
    core = core_with()
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.ready(1)

    assert [ev(1)] == [d.evpid for d in only(DeferEnvelope, core.failed(1))]
    core.settle()
    assert {} == core.leaks()


def test_the_end_of_a_connection_that_never_was_ready_is_its_failure():
    """A driver that says closed instead of failed: the route rests."""
    core = core_with()
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.closed(1)

    assert 1 == core.engine.agent.routes["", A].penalty
