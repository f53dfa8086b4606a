"""Caps on connections: each holds, and who waits for a place gets it in turn."""

import pytest

from mta.core.concurrency import ConcurrencySettings
from mta.core.instructions import CloseConnection, DeferEnvelope, ResolveDomain
from mta.core.stimuli import RemoveRequested, Selector
from tests.support.agent import A, B, C, core_with, grow, opened, submit
from tests.support.core import EPOCH, ev, only

# Caps


@pytest.mark.parametrize(
    ("cap", "most"),
    [
        ("max_conn_per_host", 2),
        ("max_conn_per_route", 2),
        ("max_conn_per_source", 2),
        ("max_conn_per_connector", 2),
        ("max_conn_per_relay", 2),
        ("max_conn_per_domain", 2),
        ("max_conn", 2),
    ],
)
def test_each_cap_holds_and_gives_its_place_on(cap, most):
    """With a cap of 2 the third connection waits until one of the two has closed."""
    core = core_with(**{cap: most})
    submit(core, 4)
    core.resolve("one.test", (10, A))
    assert [(2, A)] == grow(core, 1)
    assert [] == opened(core.ready(2))

    assert [(3, A)] == opened(core.closed(1))
    core.settle()
    assert {} == core.leaks()


def test_the_window_of_the_policy_is_a_cap_too():
    """A destination that we know nothing of gets `initial` connections."""
    core = core_with(ConcurrencySettings(initial=3, limit=20))
    submit(core, 9)
    core.resolve("one.test", (10, A))

    assert [(2, A), (3, A)] == grow(core, 1)


def test_places_go_in_turn():
    """One place for three relays with three messages each: who had it queues behind those who wait.

    The first one asks for a second place before the others ask for their first. Found here: the relay
    that had just had the place always got it again.
    """
    core = core_with(max_conn=1, session_mail_max=1)
    domains = ["one.test", "two.test", "three.test"]
    for domain in domains:
        submit(core, 3, domain)
    for number, domain in enumerate(domains, 1):
        core.resolve(domain, (10, f"192.0.2.{number}"))
    turns = []
    while core.ledger.connections:
        ((session, connection),) = core.ledger.connections.items()
        turns.append(connection.domain)
        core.ready(session)
        core.done(session)
        core.closed(session)

    one, two, three = domains
    assert [one, one, two, three, one, two, three, two, three] == turns


def test_places_at_one_host_go_in_turn():
    """The same for three domains that share the one connection to their host."""
    core = core_with(max_conn_per_host=1, session_mail_max=1)
    domains = ["one.test", "two.test", "three.test"]
    for domain in domains:
        submit(core, 2, domain)
    for domain in domains:
        core.resolve(domain, (10, A))
    turns = []
    while core.ledger.connections:
        ((session, connection),) = core.ledger.connections.items()
        turns.append(connection.domain)
        core.ready(session)
        core.done(session)
        core.closed(session)

    one, two, three = domains
    assert [one, one, two, three, two, three] == turns


@pytest.mark.parametrize("cap", ["max_conn", "max_conn_per_host"])
def test_who_only_keeps_a_connection_warm_gives_it_up(cap):
    """An idle connection is closed for a relay that waits for its place, not after its keepalive.

    Found here: a thousand domains at one host got one message per second and place.
    """
    core = core_with(**{cap: 1})
    core.submit("one.test")
    core.submit("two.test")
    core.resolve("one.test", (10, A))
    core.resolve("two.test", (10, A))
    core.ready(1)
    core.done(1)
    core.closed(1)
    core.ready(2)
    core.done(2)
    core.submit("three.test")

    out = core.resolve("three.test", (10, A))

    assert [CloseConnection(2)] == out
    assert [(3, A)] == opened(core.closed(2))


@pytest.mark.parametrize("cap", ["max_conn", "max_conn_per_host"])
def test_who_has_nothing_left_to_do_gives_way_at_once(cap):
    """A connection whose last message is done is closed, not kept, while somebody waits for its place."""
    core = core_with(**{cap: 1})
    core.submit("one.test")
    core.submit("two.test")
    core.resolve("one.test", (10, A))
    core.resolve("two.test", (10, A))
    core.ready(1)

    assert [CloseConnection(1)] == only(CloseConnection, core.done(1))
    assert [(2, A)] == opened(core.closed(1))
    core.ready(2)
    assert [] == only(CloseConnection, core.done(2)), "nobody waits any more"


def test_who_waits_and_has_nothing_to_send_any_more_is_no_reason_to_give_way():
    """The operator removed what waited for the place."""
    core = core_with(max_conn=1)
    core.submit("one.test")
    core.submit("two.test")
    core.resolve("one.test", (10, A))
    core.resolve("two.test", (10, B))
    core.ready(1)
    core.tell(RemoveRequested(Selector(msgid=2)))

    assert [] == only(CloseConnection, core.done(1))


def test_a_connection_that_is_ready_for_nothing_gives_way():
    """Its only message was removed while it connected, and others wait."""
    core = core_with(max_conn=1)
    core.submit("one.test")
    core.submit("two.test")
    core.resolve("one.test", (10, A))
    core.resolve("two.test", (10, B))
    core.tell(RemoveRequested(Selector(msgid=1)))

    assert [CloseConnection(1)] == core.ready(1)
    assert [(2, B)] == opened(core.closed(1))


def test_who_waits_at_two_hosts_takes_the_first_place_and_keeps_the_other_turn():
    """Two hosts, one place each, four messages: a place that comes free is used, whichever it is."""
    core = core_with(max_conn_per_host=1)
    submit(core, 4)
    (_, first), (_, second) = opened(core.resolve("one.test", (10, A), (10, B)))
    core.ready(1)
    core.ready(2)

    assert [(3, first)] == opened(core.closed(1))
    assert [(4, second)] == opened(core.closed(2))


def test_who_waits_for_a_place_here_and_a_rest_there_looks_again_once():
    """A place comes free before the rest ends: it is used, and the end of the rest is not forgotten."""
    core = core_with(max_conn_per_host=1)
    submit(core, 4)
    (_, first), (_, second) = opened(core.resolve("one.test", (10, A), (10, B)))
    core.ready(1)
    core.failed(2)

    assert [(3, first)] == opened(core.closed(1))
    assert [(4, second)] == opened(core.until(15.0))
    core.settle()
    assert {} == core.leaks()


def test_new_hosts_of_a_domain_are_tried_also_by_those_in_line():
    """The answer that held for 60 s named a host that is full; the next one names another."""
    core = core_with(max_conn_per_host=1)
    submit(core, 2)
    core.resolve("one.test", (10, A), ttl_s=60.0)
    core.ready(1)
    core.now = EPOCH + 60
    core.submit("one.test")

    assert [(2, B)] == opened(core.resolve("one.test", (10, B)))


def test_a_warm_connection_elsewhere_is_no_help_and_stays():
    """Who waits for a place at one host does not close connections to another."""
    core = core_with(max_conn_per_host=1)
    core.submit("one.test")
    core.resolve("one.test", (10, B))
    core.ready(1)
    core.done(1)
    core.submit("two.test")
    core.resolve("two.test", (10, A))
    core.ready(2)
    core.submit("three.test")

    assert [] == core.resolve("three.test", (10, A))


def test_a_relay_that_is_gone_does_not_take_the_place_of_those_that_wait():
    """The first in line was removed by the operator: the next one gets the place."""
    core = core_with(max_conn=1)
    for number, domain in enumerate(("one.test", "two.test", "three.test"), 1):
        core.submit(domain)
        core.resolve(domain, (10, f"192.0.2.{number}"))
    core.tell(RemoveRequested(Selector(msgid=2)))

    assert [(2, C)] == opened(core.failed(1))


def test_more_destinations_than_allowed_wait_outside():
    """The third of two relays is sent back for some seconds, which is no attempt; then there is room."""
    core = core_with(max_relays=2)
    out = core.submit("one.test", "two.test", "three.test")
    assert [DeferEnvelope(ev(1, 3), 0, EPOCH + 3, "")] == only(DeferEnvelope, out)

    core.resolve("one.test", (10, A))
    core.ready(1)
    core.done(1)
    core.closed(1)

    assert [ResolveDomain("three.test")] == core.until(3.0)


def test_exchangers_and_addresses_are_capped():
    """Of three hosts only as many are tried as the limits say."""
    for limit in ("max_mx", "max_addresses"):
        core = core_with(**{limit: 2})
        core.submit("one.test")
        core.resolve("one.test", (10, A), (20, B), (30, C))
        tried = []
        while core.ledger.connections:
            ((session, connection),) = core.ledger.connections.items()
            tried.append(connection.address)
            core.failed(session)
        assert [A, B] == tried, limit
