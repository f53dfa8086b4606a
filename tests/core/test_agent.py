"""Who may connect to whom, now, and what happens when that goes wrong."""

from pathlib import Path

import pytest

from mta.core.concurrency import ConcurrencySettings
from mta.core.ids import SessionId
from mta.core.instructions import (
    CloseConnection,
    DeferEnvelope,
    Note,
    OpenConnection,
    Removal,
    RemoveEnvelope,
    ResolveDomain,
    SendBounce,
    StartTransaction,
)
from mta.core.limits import MtaLimits
from mta.core.relayrules import RelayRule
from mta.core.reply import Outcome
from mta.core.routing import ResolutionStatus
from mta.core.stimuli import (
    AgentPaused,
    AgentResumed,
    DrainRequested,
    RemoveRequested,
    RouteEnabled,
    Selector,
    SuspendRequested,
    TransactionDone,
)
from tests.support.core import EPOCH, Core, ev, only

A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"
FIXED = ConcurrencySettings(policy="fixed", limit=20)
OFF, OK, PERM = Outcome.TEMPFAIL, Outcome.OK, Outcome.PERMFAIL


def core_with(concurrency=FIXED, **mta):
    return Core(mta=mta, concurrency=concurrency)


def submit(core, count, domain="one.test"):
    out = []
    for _ in range(count):
        out += core.submit(domain)
    return out


def opened(instructions):
    return [(o.session, o.address) for o in only(OpenConnection, instructions)]


def started(instructions):
    return [(s.session, s.msgid) for s in only(StartTransaction, instructions)]


def grow(core, session):
    """Let the first connection of a route become ready, so that more may follow; it is busy then."""
    return opened(core.ready(session))


# Routes: validation, rest, recovery


def test_a_new_route_is_validated_by_one_connection():
    """Five messages open one connection; the other four follow when it has become ready."""
    core = core_with()
    submit(core, 5)

    assert [(1, A)] == opened(core.resolve("one.test", (10, A)))
    assert [(n, A) for n in (2, 3, 4, 5)] == grow(core, 1)


def test_who_waits_for_the_first_connection_of_another_relay_need_not_wait_for_its_end():
    """Two domains share a host: when the first domain's connection is ready, the second may connect."""
    core = core_with()
    submit(core, 1, "one.test")
    submit(core, 1, "two.test")
    core.resolve("one.test", (10, A))
    assert [] == opened(core.resolve("two.test", (10, A)))

    assert [(2, A)] == opened(core.ready(1))


def test_rests_escalate_and_a_success_resets_them():
    """A dead host is left alone for 15, 60, 135 seconds; after a success for 15 again."""
    core = core_with()
    rests = []
    for works in (False, False, False, True, False):
        core.submit("one.test")
        core.resolve("one.test", (10, A))
        session = max(core.ledger.connections)
        if works:
            core.ready(session)
            core.done(session)
            core.closed(session)
            continue
        started_at = core.t
        out = core.failed(session)
        assert 1 == len(only(DeferEnvelope, out))
        # Before the rest is over mail is deferred untried, after it a connection is tried.
        route = core.engine.agent.routes["", A]
        rests.append(route.enabled_at - EPOCH - started_at)
        core.until(route.enabled_at - EPOCH - 0.5)
        assert [] == only(ResolveDomain, core.submit("one.test"))
        core.tell(RemoveRequested(Selector()))
        core.until(route.enabled_at - EPOCH)

    assert [15, 60, 135, 15] == rests


def test_all_that_waits_for_a_dead_destination_is_deferred_with_its_reason():
    """One refused connection: three messages are pending again and say why."""
    core = core_with()
    submit(core, 3)
    core.resolve("one.test", (10, A))

    out = core.failed(1, "Connection refused")

    assert [Note("smtp-out: Disabling route [] <-> 192.0.2.1 for 15s")] == only(Note, out)
    assert [DeferEnvelope(ev(n), 1, EPOCH + 400, "Connection refused") for n in (1, 2, 3)] == only(
        DeferEnvelope, out
    )


def test_connections_that_fail_together_are_one_piece_of_news():
    """Five connections are lost at once, and reconnecting fails: the penalty is 1, not 5."""
    core = core_with()
    submit(core, 5)
    core.resolve("one.test", (10, A))
    grow(core, 1)
    core.closed(1)
    for session in (2, 3, 4, 5):
        core.failed(session)

    assert 1 == core.engine.agent.routes["", A].penalty


def test_refused_while_others_are_connected_means_too_many_not_dead():
    """A 421 to the second connection: the first works on, and the next is tried 15 s later."""
    core = core_with()
    submit(core, 3)
    core.resolve("one.test", (10, A))
    assert [(2, A), (3, A)] == grow(core, 1)
    core.failed(2, "421 4.7.0 too many connections")

    out = core.failed(3, "421 4.7.0 too many connections")

    assert [] == only(DeferEnvelope, out)
    assert 0 == core.engine.agent.routes["", A].penalty
    assert [] == core.until(14.9)
    assert [(4, A), (5, A)] == opened(core.until(15.0))


def test_a_refusal_is_remembered_when_all_connections_are_gone():
    """After a 421 nobody connects for 15 s, also if there is nothing to do for a part of that time."""
    core = core_with()
    submit(core, 2)
    core.resolve("one.test", (10, A))
    grow(core, 1)
    core.failed(2, "421 4.7.0 too many connections")
    core.done(1)
    core.done(1)
    core.closed(1)
    core.until(5.0)

    assert [] == core.submit("one.test")
    assert [(3, A)] == opened(core.until(15.0))


def test_a_dead_host_beside_a_living_one_rests_like_any_other():
    """One of two equal hosts refuses: it is disabled, and the other takes all connections at once.

    Found here: the whole relay paused for 15 s, again and again, and the dead host never rested.
    """
    core = core_with()
    submit(core, 4)
    first, second = (a for _, a in opened(core.resolve("one.test", (10, A), (10, B))))
    core.ready(1)

    out = core.failed(2)

    assert 1 == core.engine.agent.routes["", second].penalty
    assert {first} == {a for _, a in opened(out)}
    assert 4 == len(core.ledger.connections)


def test_a_host_of_the_next_preference_is_for_when_the_first_rests():
    """Mail goes to preference 20 only while every host of preference 10 is disabled."""
    core = core_with()
    submit(core, 2)
    assert [(1, A)] == opened(core.resolve("one.test", (20, B), (10, A)))

    assert [(2, B)] == opened(core.failed(1))
    core.until(14.9)
    assert [(3, B), (4, B)] == opened(core.ready(2) + core.submit("one.test"))
    core.until(15.0)
    assert [(5, A)] == opened(core.submit("one.test"))


def test_a_host_that_is_only_busy_is_waited_for():
    """At its cap, or in its gap, a better host is not passed over (RFC 5321 5.1).

    Found here: the backup got mail as soon as the first host had its first connection.
    """
    core = core_with(max_conn_per_host=2)
    submit(core, 4)
    assert [(1, A)] == opened(core.resolve("one.test", (10, A), (20, B)))
    assert [(2, A)] == grow(core, 1)
    assert [] == opened(core.ready(2))

    slow = core_with(conn_delay_host_s=5.0)
    submit(slow, 2)
    assert [(1, A)] == opened(slow.resolve("one.test", (10, A), (20, B)))
    assert [] == opened(slow.ready(1))
    assert [(2, A)] == opened(slow.until(5.0))


def test_within_a_preference_the_host_with_fewest_connections_is_next():
    """Six connections over three equal hosts are two for each, once all are validated."""
    core = core_with()
    submit(core, 3)
    core.resolve("one.test", (10, A), (10, B), (10, C))
    for session in (1, 2, 3):
        core.ready(session)
    submit(core, 3)

    addresses = [c.address for c in core.ledger.connections.values()]
    assert {A: 2, B: 2, C: 2} == {a: addresses.count(a) for a in addresses}


def test_a_destination_with_all_hosts_at_rest_is_dead_until_the_first_has_rested():
    """Two hosts fail 5 s apart: mail is deferred untried until the first one's 15 s are over."""
    core = core_with()
    core.submit("one.test")
    core.resolve("one.test", (10, A), (20, B))
    core.failed(1)
    core.until(5.0)
    out = core.failed(2, "no route to host")
    assert ["no route to host"] == [d.status for d in only(DeferEnvelope, out)]
    assert 15.0 == core.engine.agent.relays["one.test"].dead_until - EPOCH

    core.until(14.9)
    out = core.submit("one.test")
    assert [ev(2)] == [d.evpid for d in only(DeferEnvelope, out)]
    core.until(15.0)
    core.submit("one.test")
    assert [(3, A)] == opened(core.resolve("one.test", (10, A), (20, B)))


def test_the_operator_can_end_a_rest():
    """An enabled route is tried with the next message, without its penalty; others are unknown."""
    core = core_with()
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.failed(1)
    assert [] == core.tell(RouteEnabled("203.0.113.1"))

    assert [Note("smtp-out: Enabling route [] <-> 192.0.2.1 per admin request")] == core.tell(
        RouteEnabled(A)
    )
    assert {} == core.engine.agent.relays
    assert [] == core.until(15.0), "the end of a rest that is over already"
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.failed(2)

    assert 1 == core.engine.agent.routes["", A].penalty


def test_enabling_a_route_helps_those_that_wait_for_it():
    """A relay that paused because of a 421 connects at once; relays elsewhere are left alone."""
    core = core_with()
    submit(core, 2)
    core.resolve("one.test", (10, A))
    grow(core, 1)
    core.failed(2, "421 busy")
    core.submit("two.test")
    core.resolve("two.test", (10, B))

    assert [(4, A)] == opened(core.tell(RouteEnabled(A)))


def test_old_failures_are_forgotten():
    """An hour after its rest an unused route is no longer known: its next failure is its first."""
    core = core_with()
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.failed(1)
    core.tell(RemoveRequested(Selector()))
    core.until(15.0)
    core.submit("two.test")
    core.resolve("two.test", (10, B))
    core.ready(1 + 1)
    core.done(2)
    core.now = EPOCH + 15 + 3599
    core.wake()
    assert ("", A) in core.engine.agent.routes

    core.now += 61
    core.wake()

    assert ("", A) not in core.engine.agent.routes


def test_every_connection_that_fails_after_the_greeting_rests_the_destination():
    """A host that greets and then hangs up on every message is left alone for 15 s."""
    core = core_with(ConcurrencySettings(initial=1, limit=5, cohort_limit=1.0))
    submit(core, 3)
    core.resolve("one.test", (10, A))
    core.ready(1)

    out = core.closed(1, "Connection reset by peer")

    assert [1, 2, 3] == [d.evpid >> 32 for d in only(DeferEnvelope, out)]
    assert {"Connection reset by peer"} == {d.status for d in only(DeferEnvelope, out)}
    assert [] == opened(out)
    assert 15.0 == core.engine.agent.relays["one.test"].dead_until - EPOCH


def test_an_unusable_connection_rests_the_destination_too():
    """The last connection ends its transaction with a 421: the destination rests."""
    core = core_with(ConcurrencySettings(initial=1, limit=5, cohort_limit=1.0))
    submit(core, 2)
    core.resolve("one.test", (10, A))
    core.ready(1)

    out = core.done(1, OFF, usable=False, status="421 4.3.2 shutting down")

    assert [CloseConnection(1)] == only(CloseConnection, out)
    assert [(ev(1), "421 4.3.2 shutting down"), (ev(2), "421 4.3.2 shutting down")] == [
        (d.evpid, d.status) for d in only(DeferEnvelope, out)
    ]


def test_a_connection_that_delivers_and_is_lost_is_no_failure_of_the_destination():
    """Delivered, then unusable (421 after the dot): a new connection, no smaller window, no rest."""
    core = core_with(ConcurrencySettings(initial=1, limit=5, cohort_limit=1.0))
    submit(core, 2)
    core.resolve("one.test", (10, A))
    core.ready(1)

    assert [CloseConnection(1)] == only(CloseConnection, core.done(1, usable=False))
    assert [(2, A)] == opened(core.closed(1))


def test_a_lost_connection_among_several_is_no_reason_to_rest():
    """While another transaction runs the destination works; the window is what is in use."""
    core = core_with(ConcurrencySettings(initial=2, limit=5, cohort_limit=0.5))
    submit(core, 3)
    core.resolve("one.test", (10, A))
    grow(core, 1)
    core.ready(2)

    out = core.closed(2)

    assert [ev(2)] == [d.evpid for d in only(DeferEnvelope, out)]
    assert [(1, 3)] == started(core.done(1))


# Names


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (ResolutionStatus.NO_DOMAIN, "550 5.1.2 Domain does not exist"),
        (ResolutionStatus.NULL_MX, "556 5.1.10 Domain does not accept mail"),
        (ResolutionStatus.NO_MX, "550 5.4.4 No MX found for domain"),
    ],
)
def test_a_domain_that_takes_no_mail_is_one_bounce_per_message(status, text):
    """Both recipients of a message in one report; the relay is gone."""
    core = core_with()
    core.submit("one.test", "one.test")
    core.submit("one.test")

    out = core.unresolved("one.test", status)

    assert [((ev(1, 1), text), (ev(1, 2), text)), ((ev(2), text),)] == [
        b.failures for b in only(SendBounce, out)
    ]
    assert {} == core.leaks()


def test_a_failing_name_server_is_asked_again_after_a_rest():
    """SERVFAIL defers; mail within 15 s is deferred without a look-up."""
    core = core_with()
    core.submit("one.test")

    out = core.unresolved("one.test", ResolutionStatus.RETRY)

    assert ["451 4.4.3 Temporary failure in MX lookup"] == [
        d.status for d in only(DeferEnvelope, out)
    ]
    assert [] == only(ResolveDomain, core.submit("one.test"))
    core.until(15.0)
    assert {} == core.engine.agent.relays
    assert [ResolveDomain("one.test")] == core.submit("one.test")


def test_mail_for_us_does_not_go_round():
    """We are the best exchanger by name, but do not deliver there: a bounce, not a loop."""
    core = Core(own_names=[f"mx-{A}"])
    core.submit("one.test")

    out = core.resolve("one.test", (10, A), (20, B))

    assert [((ev(1), "554 5.4.6 Mail loops back to myself"),)] == [
        b.failures for b in only(SendBounce, out)
    ]


@pytest.mark.parametrize(("port", "loops"), [(0, False), (25, True), (2525, False)])
def test_an_address_is_ours_at_the_ports_that_we_listen_on(port: int, loops: bool):
    """Another port of the same address is somebody else's: a test-bed has all of them on one host."""
    rule = RelayRule(["one.test"], port=port)
    core = Core(own_addresses=[], own_by_port={25: [A]}, relays=[rule])
    core.submit("one.test")
    out = core.resolve("one.test", (10, A))
    assert bool(only(SendBounce, out)) == loops


def test_an_answer_with_no_lifetime_is_used_once():
    """A TTL of 0 does not make the core ask for ever."""
    core = core_with()
    core.submit("one.test")

    assert [(1, A)] == opened(core.resolve("one.test", (10, A), ttl_s=0.0))


def test_an_answer_holds_for_its_ttl():
    """After 60 s the next connection asks again, while the open one works on."""
    core = core_with()
    submit(core, 2)
    core.resolve("one.test", (10, A), ttl_s=60.0)
    core.ready(1)
    core.now = EPOCH + 59.9
    assert [(3, A)] == opened(core.submit("one.test"))
    core.now = EPOCH + 60
    assert [ResolveDomain("one.test")] == core.submit("one.test")
    assert [] == core.submit("one.test")


def test_a_name_that_nobody_waits_for_any_more_leaves_nothing():
    """The operator removes the only envelope during the look-up; the relay does not stay for ever.

    Found here: it did, and mta.relay never came back to 0.
    """
    core = core_with()
    core.submit("one.test")
    core.tell(RemoveRequested(Selector()))

    assert [] == core.resolve("one.test", (10, A))
    assert {} == core.leaks()


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


# Transactions


def test_recipients_of_one_message_in_one_domain_share_a_transaction():
    """Two domains are two transactions, however many recipients they have."""
    core = core_with()
    core.submit("one.test", "two.test", "one.test")
    core.resolve("one.test", (10, A))

    assert [(ev(1, 1), ev(1, 3))] == [s.evpids for s in only(StartTransaction, core.ready(1))]


def test_a_transaction_has_no_more_recipients_than_any_server_takes():
    """250 recipients are transactions of 100, 100 and 50, in order (RFC 5321 4.5.3.1.8)."""
    core = core_with(max_conn=1)
    core.validating = False
    core.submit(*["one.test"] * 250)
    core.resolve("one.test", (10, A))
    (first,) = only(StartTransaction, core.ready(1))
    (second,) = only(StartTransaction, core.done(1))
    (third,) = only(StartTransaction, core.done(1))

    assert tuple(ev(1, n) for n in range(1, 251)) == first.evpids + second.evpids + third.evpids
    assert [100, 100, 50] == [len(s.evpids) for s in (first, second, third)]


def test_a_message_that_needs_two_transactions_keeps_its_turn():
    """A full transaction is not sent behind messages that came later."""
    core = core_with(max_conn=1, max_rcpt_per_task=2)
    core.submit(*["one.test"] * 3)
    core.submit("one.test")
    core.resolve("one.test", (10, A))

    order = [only(StartTransaction, core.ready(1))[0].evpids]
    order += [only(StartTransaction, core.done(1))[0].evpids for _ in range(2)]

    assert [(ev(1, 1), ev(1, 2)), (ev(1, 3),), (ev(2, 1),)] == order


def test_a_lost_connection_fails_all_recipients_for_now():
    """Nobody knows what the host made of them: all are tried again."""
    core = core_with()
    core.submit("one.test", "one.test")
    core.resolve("one.test", (10, A))
    core.ready(1)

    out = core.closed(1, "Connection reset by peer")

    assert [(ev(1, 1), 1), (ev(1, 2), 1)] == [
        (d.evpid, d.attempts) for d in only(DeferEnvelope, out)
    ]


# High and low water


def test_high_water_low_water_and_releases():
    """50 wait, the rest is held; at 30 ten are asked back, oldest first; both are logged once."""
    core = core_with(max_conn=1, session_mail_max=1000)
    core.validating = False
    notes = only(Note, submit(core, 65))
    assert ["smtp-out: hiwat reached on [relay:one.test]: holding envelopes"] == [
        n.text for n in notes
    ]
    assert 15 == core.engine.scheduler.held
    core.resolve("one.test", (10, A))
    core.ready(1)  # starts the first: 49 wait
    order = [1]
    held = []
    for _ in range(64):
        ((_, message),) = started(core.done(1))
        order.append(message)
        held.append(core.engine.scheduler.held)

    assert list(range(1, 66)) == order
    assert [15] * 18 + [5] * 10 + [0] * 36 == held
    assert "smtp-out: back to lowat on [relay:one.test]: releasing" not in [n.text for n in notes]


def test_a_great_many_releases_do_not_dig_too_deep():
    """1,500 held messages are released one at a time in one go: a loop, not a recursion.

    Found here: RecursionError.
    """
    core = Core(
        mta={"task_release": 1, "task_high_water": 2, "task_low_water": 1, "max_conn": 1},
        scheduler={"max_held": 1500, "envelope_ttl_s": 100.0},
        representations=["slim", "packed"],
        validating=False,
    )
    submit(core, 1502)
    core.resolve("one.test", (10, A))
    core.now = EPOCH + 100

    core.ready(1)

    assert {"expired"} == set(core.ledger.fates.values())
    assert 1502 == len(core.ledger.fates)


def test_mail_for_a_failed_relay_is_deferred_also_where_it_was_held():
    """Waiting and held envelopes are pending again when the destination fails."""
    core = core_with(task_high_water=2, task_low_water=1, task_release=1)
    submit(core, 5)
    core.resolve("one.test", (10, A))

    out = core.failed(1)

    assert [ev(n) for n in range(1, 6)] == [d.evpid for d in only(DeferEnvelope, out)]
    core.until(15.0)
    assert {0} == {core.engine.gauges()[name] for name in ("scheduler.ramqueue.hold", "mta.relay")}


# Recovery


def test_the_latest_failures_are_tried_at_once_when_it_works_again():
    """Of three deferred messages the last two (`max_deferred`) follow the first delivery."""
    core = core_with(max_deferred=2)
    submit(core, 3)
    core.resolve("one.test", (10, A))
    core.failed(1)
    core.until(15.0)
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.ready(2)

    out = core.done(2)

    assert [(2, 2)] == started(out)
    assert [(2, 3)] == started(core.done(2))
    assert [] == started(core.done(2)), "the first one waits for its time"
    core.settle()
    assert {"delivered"} == set(core.ledger.fates.values())


def test_those_that_are_gone_or_suspended_are_not_tried_after_a_recovery():
    """Memory of failures is by id, and an id may have become nobody, or somebody to be left alone."""
    core = core_with()
    submit(core, 3)
    core.resolve("one.test", (10, A))
    core.failed(1)
    core.tell(RemoveRequested(Selector(msgid=1)))
    core.tell(SuspendRequested(Selector(msgid=2)))
    core.until(15.0)
    core.submit("one.test")
    core.resolve("one.test", (10, A))
    core.ready(2)

    assert [(2, 3)] == started(core.done(2))


def test_memory_of_failures_is_bounded():
    """Failures are remembered for `max_relays` domains; mail of others just waits for its time."""
    core = core_with(max_relays=1)
    core.submit("one.test")
    core.unresolved("one.test", ResolutionStatus.RETRY)
    core.until(15.0)
    core.submit("two.test")
    core.unresolved("two.test", ResolutionStatus.RETRY)

    assert ["one.test"] == list(core.engine.agent.outcomes.deferred)


# Pause and drain


def test_a_pause_lets_transactions_end_and_starts_nothing():
    """Mail that comes meanwhile waits as scheduled; resuming starts it."""
    core = core_with()
    submit(core, 2)
    core.resolve("one.test", (10, A))
    core.ready(1)
    core.tell(AgentPaused())

    out = core.ready(2) + core.done(1) + core.submit("two.test")

    assert [Removal.DELIVERED] == [r.reason for r in only(RemoveEnvelope, out)]
    assert [RemoveEnvelope] == [type(i) for i in out]
    assert 1 == core.engine.gauges()["scheduler.envelope.scheduled"]
    out = core.tell(AgentResumed())
    assert [2] == [message for _, message in started(out)]
    assert [ResolveDomain("two.test")] == only(ResolveDomain, out)


def test_a_drain_closes_every_connection_as_soon_as_it_is_free():
    """Idle ones at once, busy ones after their transaction, and one that was just opened.

    Found here: the latter two stayed for the keepalive, and a stop took ten seconds more.
    """
    core = core_with()
    submit(core, 4)
    core.resolve("one.test", (10, A))
    grow(core, 1)
    core.ready(2)
    core.ready(3)
    core.tell(RemoveRequested(Selector(msgid=4)))
    core.done(2)
    assert [CloseConnection(2)] == core.tell(DrainRequested())

    assert [CloseConnection(1)] == only(CloseConnection, core.done(1))
    assert [CloseConnection(3)] == only(CloseConnection, core.done(3))
    assert [CloseConnection(4)] == core.ready(4)
    for session in (1, 2, 3, 4):
        core.closed(session)
    assert [] == core.submit("one.test") + core.tell(AgentResumed())
    assert core.next_wakeup() is None


# Fairness


def test_a_dead_destination_does_not_hold_up_the_others():
    """10,000 messages for a host that is down, and one for a host that works, goes out at once."""
    core = Core(representations=["slim", "packed"], validating=False)
    submit(core, 10_000, "dead.test")
    core.resolve("dead.test", (10, A))

    assert [ResolveDomain("live.test")] == core.submit("live.test")
    core.resolve("live.test", (10, B))
    assert [(2, 10_001)] == started(core.ready(2))
    core.failed(1, "Connection refused")
    assert [(2, 10_002)] == started(core.done(2) + core.submit("live.test"))
    core.validate()


def test_a_dead_destination_at_its_due_time_does_not_hold_up_the_others():
    """Its whole backlog is due again at one instant: the other's mail is under way in the same instant."""
    core = Core(representations=["slim", "packed"], validating=False)
    submit(core, 3000, "dead.test")
    core.unresolved("dead.test", ResolutionStatus.RETRY)
    core.now = EPOCH + 400
    core.wake()

    assert [ResolveDomain("live.test")] == only(ResolveDomain, core.submit("live.test"))
    core.validate()


def test_every_limit_of_the_agent_has_a_test_here():
    """A new limit in `MtaLimits` comes with the test that reaches it."""
    text = Path(__file__).read_text()
    shells = {"session_timeout_s", "connect_timeout_s", "tls_sessions_max", "sts_policies_max"}
    elsewhere = {"route_delay_base_s", "route_delay_max_s", "session_keepalive_s"}
    text += (Path(__file__).parent / "test_sources.py").read_text()
    missing = {
        name for name in MtaLimits.__slots__ if name not in text and name not in shells | elsewhere
    }
    assert set() == missing
