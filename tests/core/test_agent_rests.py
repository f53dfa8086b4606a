"""Routes and destinations that fail: who rests, for how long, and who must not suffer."""

from mta.core.concurrency import ConcurrencySettings
from mta.core.instructions import CloseConnection, DeferEnvelope, Note, ResolveDomain
from mta.core.stimuli import RemoveRequested, RouteEnabled, Selector
from tests.support.agent import OFF, A, B, C, core_with, grow, opened, started, submit
from tests.support.core import EPOCH, ev, only

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
