"""Rules per destination in the engine: sources, connectors, smart hosts, families, limits, hosts that reject all."""

import pytest

from mta.core.concurrency import ConcurrencySettings
from mta.core.ids import SessionId
from mta.core.instructions import (
    CloseConnection,
    DeferEnvelope,
    Note,
    OpenConnection,
    ResolveDomain,
    SendBounce,
    StartTransaction,
)
from mta.core.relayrules import RelayRule
from mta.core.reply import Outcome
from mta.core.routing import ResolutionStatus
from mta.core.stimuli import (
    Agent,
    AgentPaused,
    AgentResumed,
    ConnectionFailed,
    DrainRequested,
    RouteEnabled,
)
from tests.support.core import Core, only

A, B, SIX = "192.0.2.1", "192.0.2.2", "2001:db8::1"
S1, S2, S3 = "198.51.100.1", "198.51.100.2", "198.51.100.3"
FIXED = ConcurrencySettings(policy="fixed", limit=20)
LATER, PERM = Outcome.TEMPFAIL, Outcome.PERMFAIL


def core_of(*rules, mta=None, **more):
    return Core(mta=mta, concurrency=FIXED, relays=[RelayRule(**rule) for rule in rules], **more)


def submit(core, count, domain="one.test"):
    return [i for _ in range(count) for i in core.submit(domain)]


def opened(instructions):
    return [(o.source, o.address) for o in only(OpenConnection, instructions)]


def notes(instructions):
    return [note.text for note in only(Note, instructions)]


def statuses(instructions):
    return {defer.status for defer in only(DeferEnvelope, instructions)}


def source_fails(core, session):
    reason = "Cannot assign requested address"
    return core.tell(ConnectionFailed(SessionId(session), reason, source_fault=True))


class TestSources:
    """Routes are pairs; a source's trouble is not the destination's."""

    def test_connections_go_round(self):
        """The least used source is next, and of equals the one that was used longest ago."""
        core = core_of({"domains": ["*"], "sources": [S1, S2, S3]})
        submit(core, 6)
        first = core.resolve("one.test", (10, A))
        assert [(S1, A), (S2, A), (S3, A)] == opened(first), "each new route is tried once"
        for session in (1, 2, 3):
            core.ready(session)
        submit(core, 6)
        used = [c.source for c in core.ledger.connections.values()]
        assert [4, 3, 3] == [used.count(source) for source in (S1, S2, S3)]

    def test_one_source_may_be_full_while_another_is_not(self):
        """max_conn_per_source counts for each source alone; who waits gets the first place that is free."""
        core = core_of({"domains": ["*"], "sources": [S1, S2]}, mta={"max_conn_per_source": 1})
        submit(core, 3)
        assert [(S1, A), (S2, A)] == opened(core.resolve("one.test", (10, A)))
        assert [] == opened(core.ready(1))
        assert [] == opened(core.submit("two.test"))
        assert [] == opened(core.resolve("two.test", (10, B)))
        core.closed(1, "quit")
        routes = [(c.source, c.address) for c in core.ledger.connections.values()]
        assert [(S2, A), (S1, A)] == routes, "the place went to the one in line first"

    def test_a_connector_has_a_cap_of_its_own(self):
        """max_conn_per_connector bounds (source, relay): two sources make twice as many connections."""
        core = core_of({"domains": ["*"], "sources": [S1, S2]}, mta={"max_conn_per_connector": 2})
        submit(core, 9)
        core.resolve("one.test", (10, A))
        core.ready(1)
        core.ready(2)
        used = [c.source for c in core.ledger.connections.values()]
        assert (2, 2) == (used.count(S1), used.count(S2))

    def test_gaps_of_sources_and_connectors(self):
        """conn_delay_source_s keeps one source off; the other may connect meanwhile."""
        core = core_of({"domains": ["*"], "sources": [S1, S2]}, mta={"conn_delay_source_s": 5.0})
        submit(core, 4)
        assert [(S1, A), (S2, A)] == opened(core.resolve("one.test", (10, A)))
        core.ready(1)
        core.ready(2)
        assert [] == opened(core.until(4.9))
        assert [(S1, A), (S2, A)] == opened(core.until(5.0))

    def test_penalties_belong_to_pairs(self):
        """A route that fails rests; the same host is reached from the other source."""
        core = core_of({"domains": ["*"], "sources": [S1, S2]}, mta={"max_conn_per_relay": 1})
        submit(core, 1)
        assert [(S1, A)] == opened(core.resolve("one.test", (10, A)))
        out = core.failed(1, "No route to host")
        assert [f"smtp-out: Disabling route {S1} <-> {A} for 15s"] == notes(out)
        assert [(S2, A)] == opened(out)
        assert not statuses(out)
        out = core.failed(2, "No route to host")
        assert {"No route to host"} == statuses(out)
        assert {(S1, A): 1, (S2, A): 1} == {
            k: r.penalty for k, r in core.engine.agent.routes.items()
        }

    def test_a_source_that_cannot_be_used(self):
        """It rests, longer each time; the host has no penalty and gets the mail from the other."""
        core = core_of({"domains": ["*"], "sources": [S1, S2]}, mta={"max_conn_per_relay": 1})
        submit(core, 1)
        core.resolve("one.test", (10, A))
        out = source_fails(core, 1)
        assert [f"smtp-out: Error on {S1} <-> {A}: Cannot assign requested address"] == notes(out)
        assert [(S2, A)] == opened(out)
        core.ready(2)
        core.done(2)
        assert {} == {k: r.penalty for k, r in core.engine.agent.routes.items() if r.penalty}

    def test_connections_that_fail_together_for_one_source_are_one_piece_of_news(self):
        """The source rests once, and the log says so once."""
        core = core_of({"domains": ["*"], "sources": [S1]})
        submit(core, 1)
        submit(core, 1, "two.test")
        core.resolve("one.test", (10, A))
        core.resolve("two.test", (10, B))
        assert 1 == len(notes(source_fails(core, 1)))
        assert [] == notes(source_fails(core, 2))
        assert 1 == core.engine.agent.places.sources[S1].penalty

    def test_a_host_has_a_place_for_a_source_that_never_went_there(self):
        """Who waits for the host gets the place that another source's connection had."""
        core = core_of(
            {"domains": ["one.test"], "sources": [S1]},
            {"domains": ["two.test"], "sources": [S2]},
            mta={"max_conn_per_host": 2},
        )
        submit(core, 2)
        core.resolve("one.test", (10, A))
        core.ready(1)
        submit(core, 1, "two.test")
        assert [] == opened(core.resolve("two.test", (10, A)))
        core.ready(2)
        core.done(1, usable=False)
        assert [(S2, A)] == opened(core.closed(1, "quit"))

    def test_no_source_can_be_used(self):
        """Mail is tried later, and senders are told OpenSMTPD's words, not our errno."""
        core = core_of({"domains": ["*"], "sources": [S1, S2]}, mta={"max_conn_per_relay": 1})
        submit(core, 1)
        core.resolve("one.test", (10, A))
        source_fails(core, 1)
        out = source_fails(core, 2)
        assert {"451 4.4.4 No valid route to destination"} == statuses(out)
        assert [] == opened(core.submit("one.test"))
        core.until(15.0)
        core.submit("one.test")
        assert [(S1, A)] == opened(core.resolve("one.test", (10, A)))
        source_fails(core, 3)
        sources = core.engine.agent.places.sources
        assert {S1: 2, S2: 1} == {name: source.penalty for name, source in sources.items()}

    def test_the_operator_pauses_one_source(self):
        """`pause mta from S1 for one.test`: the other source goes on; with both paused nothing is sent."""
        core = core_of({"domains": ["*"], "sources": [S1, S2]})
        core.tell(AgentPaused(Agent.MTA, "one.test", S1))
        submit(core, 2)
        assert [(S2, A)] == opened(core.resolve("one.test", (10, A)))
        core.tell(AgentPaused(Agent.MTA, "one.test", S2))
        assert [] == opened(submit(core, 3))
        assert [(S1, A)] == opened(core.tell(AgentResumed(Agent.MTA, "one.test", S1)))

    def test_one_route_is_enabled_again(self):
        """`resume route` for one source leaves the other at rest."""
        core = core_of({"domains": ["*"], "sources": [S1, S2]}, mta={"max_conn_per_relay": 1})
        submit(core, 1)
        core.resolve("one.test", (10, A))
        core.failed(1)
        core.failed(2)
        out = core.tell(RouteEnabled(A, S2))
        assert [f"smtp-out: Enabling route {S2} <-> {A} per admin request"] == notes(out)
        assert [] == core.tell(RouteEnabled(A, S3))
        core.submit("one.test")
        assert [(S2, A)] == opened(core.resolve("one.test", (10, A)))

    def test_a_rest_that_ended_is_in_the_log(self):
        """OpenSMTPD's `Enabling route`, when the route is used again."""
        core = core_of()
        submit(core, 1)
        core.resolve("one.test", (10, A))
        core.failed(1)
        core.until(15.0)
        core.submit("one.test")
        out = core.resolve("one.test", (10, A))
        assert [f"smtp-out: Enabling route [] <-> {A}"] == notes(out)

    def test_routes_and_hosts_without_use_are_forgotten(self):
        """Whatever gaps they had to be kept for."""
        core = core_of({"domains": ["*"], "sources": [S1, S2]}, mta={"conn_delay_host_s": 5.0})
        submit(core, 1)
        core.resolve("one.test", (10, A))
        core.ready(1)
        core.done(1)
        core.closed(1, "quit")
        places = core.engine.agent.places
        assert [A] == list(places.hosts)
        core.until(4000.0)
        core.wake()
        assert {} == places.routes
        assert {} == places.hosts


class TestFamilies:
    """inet4, inet6, and what sources can reach."""

    @pytest.mark.parametrize(
        ("rule", "address"),
        [({"inet6": False}, A), ({"inet4": False}, SIX), ({"sources": [S1]}, A)],
    )
    def test_only_addresses_of_the_family(self, rule, address):
        """Others are as if they were not there."""
        core = core_of({"domains": ["*"], **rule})
        submit(core, 9)
        assert {address} == {to for _, to in opened(core.resolve("one.test", (10, SIX), (10, A)))}

    def test_sources_of_both_families(self):
        """Each goes to addresses of its own; the destination is dead when both ways are at rest."""
        ours = "2001:db8::9"
        core = core_of({"domains": ["*"], "sources": [S1, ours]}, mta={"max_conn_per_relay": 1})
        submit(core, 1)
        assert [(S1, A)] == opened(core.resolve("one.test", (10, A), (20, SIX)))
        assert [(ours, SIX)] == opened(core.failed(1))
        assert {"Connection refused"} == statuses(core.failed(2))

    def test_none_is_left(self):
        """Temporary, with OpenSMTPD's words: the operator's mistake, or the zone's."""
        core = core_of({"domains": ["*"], "inet6": False})
        submit(core, 1)
        out = core.resolve("one.test", (10, SIX))
        assert ["smtp-out: Address family mismatch on [relay:one.test]"] == notes(out)
        assert {"451 4.4.4 Address family mismatch on destination MXs"} == statuses(out)


HUBS = {"domains": ["*"], "smart_host": ["hub.test", "[back.test]"]}


class TestSmartHosts:
    """Several hosts, in order or balanced."""

    def test_domains_share_one_relay(self):
        """Its hosts are looked up once each, however many domains there are."""
        core = core_of(HUBS)
        out = core.submit("one.test") + core.submit("two.test")
        assert ["hub.test", "[back.test]"] == [r.domain for r in only(ResolveDomain, out)]
        assert [] == core.resolve("hub.test", (10, A))
        assert [("", A)] == opened(core.resolve("[back.test]", (0, B)))
        (relay,) = core.engine.agent.relays
        assert "hub.test,[back.test]" == relay
        core.ready(1)
        core.settle()

    def test_the_second_is_for_when_the_first_is_at_rest(self):
        """Whatever the preferences of the second's records."""
        core = core_of(HUBS)
        submit(core, 1)
        core.resolve("hub.test", (50, A))
        core.resolve("[back.test]", (0, B))
        assert [("", B)] == opened(core.failed(1))

    def test_balanced(self):
        """All are as good as the first."""
        core = core_of({**HUBS, "balance": True})
        submit(core, 2)
        core.resolve("hub.test", (0, A))
        assert {A, B} == {to for _, to in opened(core.resolve("[back.test]", (0, B)))}

    def test_one_that_is_not_found_is_left_out(self):
        """The other takes the mail."""
        core = core_of(HUBS)
        submit(core, 1)
        core.unresolved("hub.test", ResolutionStatus.NO_DOMAIN)
        assert [("", B)] == opened(core.resolve("[back.test]", (0, B)))

    @pytest.mark.parametrize(
        "status", [s for s in ResolutionStatus if s is not ResolutionStatus.OK]
    )
    def test_none_is_found(self, status):
        """Never a bounce: the recipient's domain has nothing to do with it. Postfix pretends the same."""
        core = core_of(HUBS)
        submit(core, 1)
        core.unresolved("hub.test", status)
        out = core.unresolved("[back.test]", status)
        assert [] == only(SendBounce, out)
        (text,) = statuses(out)
        assert text.startswith("451 4.")

    def test_two_ways_to_one_smart_host_share_the_cap_of_the_domain(self):
        """Rules with other parameters have other relays; max_conn_per_domain is for both together."""
        core = core_of(
            {"domains": ["one.test"], "smart_host": ["hub.test"]},
            {"domains": ["two.test"], "smart_host": ["hub.test"], "port": 26},
            mta={"max_conn_per_domain": 1},
        )
        submit(core, 1, "one.test")
        assert [] == only(ResolveDomain, submit(core, 1, "two.test")), "one look-up for both"
        assert [("", A)] == opened(core.resolve("hub.test", (0, A)))
        core.ready(1)
        assert [CloseConnection(SessionId(1))] == only(CloseConnection, core.done(1))
        assert ["hub.test#2"] == [o.domain for o in only(OpenConnection, core.closed(1, "quit"))]
        core.settle()
        assert not core.leaks()

    def test_what_is_asked_for_by_two_relays_is_looked_up_once(self):
        """And both go on with the answer."""
        core = core_of(
            {"domains": ["one.test"], "smart_host": ["hub.test"]},
            {"domains": ["two.test"], "smart_host": ["hub.test"], "port": 26},
        )
        out = core.submit("one.test") + core.submit("two.test")
        assert ["hub.test"] == [r.domain for r in only(ResolveDomain, out)]
        assert [("", A)] == opened(core.resolve("hub.test", (0, A)))
        assert [("", A)] == opened(core.ready(1))
        domains = {c.domain for c in core.ledger.connections.values()}
        assert {"hub.test", "hub.test#2"} == domains


class TestLimits:
    """Overrides by destination."""

    def test_caps_of_one_destination(self):
        """The narrow one keeps to its own, beside others to the same host."""
        core = core_of({"domains": ["slow.test"], "limits": {"max_conn_per_host": 1}})
        submit(core, 3, "slow.test")
        submit(core, 3, "fast.test")
        core.resolve("slow.test", (10, A))
        core.resolve("fast.test", (10, A))
        core.ready(1)
        by_domain = [c.domain for c in core.ledger.connections.values()]
        assert (1, 3) == (by_domain.count("slow.test"), by_domain.count("fast.test"))
        core.settle()
        assert not core.leaks()

    def test_who_has_wider_limits_need_not_wait_behind_who_has_narrower_ones(self):
        """A place that is too narrow for the first in line is given to the next for whom it is not."""
        core = core_of(
            {"domains": ["slow.test", "slow2.test"], "limits": {"max_conn_per_host": 1}},
            mta={"max_conn_per_host": 2},
        )
        submit(core, 2, "fast.test")
        core.resolve("fast.test", (10, A))
        core.ready(1)
        for domain in ("slow.test", "slow2.test", "third.test", "fourth.test"):
            submit(core, 1, domain)
            core.resolve(domain, (10, A))
        core.ready(2)
        out = core.done(2, usable=False) + core.closed(2, "quit")
        assert ["third.test"] == [o.domain for o in only(OpenConnection, out)]
        core.settle()
        assert not core.leaks()

    def test_keepalive_of_one_destination(self):
        """Each connection is kept as long as its own destination says."""
        core = core_of({"domains": ["one.test"], "limits": {"session_keepalive_s": 60.0}})
        for number, domain in enumerate(("one.test", "two.test"), 1):
            submit(core, 1, domain)
            core.resolve(domain, (10, f"192.0.2.{number}"))
            core.ready(number)
            core.done(number)
        assert [CloseConnection(SessionId(2))] == core.until(59.0)
        assert [CloseConnection(SessionId(1))] == core.until(60.0)

    def test_session_transaction_delay(self):
        """session_transaction_delay_s: a pause between two transactions of a connection, for this domain."""
        core = core_of(
            {
                "domains": ["one.test"],
                "limits": {"session_transaction_delay_s": 2.0, "max_conn_per_relay": 1},
            }
        )
        submit(core, 2)
        core.resolve("one.test", (10, A))
        core.ready(1)
        assert [] == only(StartTransaction, core.done(1))
        assert [] == only(StartTransaction, core.until(1.9))
        assert 1 == len(only(StartTransaction, core.until(2.0)))

    def test_a_pause_between_transactions_ends_with_the_connection(self):
        """Closed by the host, or by the operator's stop."""
        core = core_of(mta={"session_transaction_delay_s": 2.0})
        submit(core, 2)
        core.resolve("one.test", (10, A))
        core.ready(1)
        core.ready(2)
        core.done(1)
        core.closed(1)
        out = core.tell(DrainRequested())
        core.done(2)
        assert [] == only(CloseConnection, out)
        core.until(10.0)
        assert core.ledger.connections[SessionId(2)].closing

    def test_a_stop_closes_what_pauses(self):
        """At once: it carries no mail."""
        core = core_of(mta={"session_transaction_delay_s": 2.0})
        submit(core, 1)
        core.resolve("one.test", (10, A))
        core.ready(1)
        core.done(1)
        assert [CloseConnection(SessionId(1))] == only(CloseConnection, core.tell(DrainRequested()))


class TestHostsThatRejectAll:
    """max_try_before_disable: OpenSMTPD's MAX_TRYBEFOREDISABLE, with the rest that is compiled out there."""

    def rejected(self, core, session, count, outcome=PERM):
        return [i for _ in range(count) for i in core.done(session, outcome)]

    def one(self, **mta):
        core = core_of(mta={"max_conn_per_relay": 1, **mta})
        submit(core, 30)
        core.resolve("one.test", (10, A))
        core.ready(1)
        return core

    @pytest.mark.parametrize("outcome", [PERM, LATER])
    def test_ten_messages_without_one_accepted(self, outcome):
        """The connection is closed, the route rests for 60 s, mail that waits is tried later and told why."""
        core = self.one()
        assert [] == only(CloseConnection, self.rejected(core, 1, 9, outcome))
        out = core.done(1, outcome)
        assert [CloseConnection(SessionId(1))] == only(CloseConnection, out)
        assert [
            "0000000000000001 mta host-rejects-all-mails",
            f"smtp-out: Disabling route [] <-> {A} for 60s",
        ] == notes(out)[:2]
        assert {"451 4.5.0 Destination seem to reject all mails"} == statuses(
            core.closed(1, "quit")
        )

    def test_one_accepted_message_starts_the_count_again(self):
        """Nine rejected ones, one taken, nine rejected ones."""
        core = self.one()
        self.rejected(core, 1, 9)
        core.done(1)
        assert [] == only(CloseConnection, self.rejected(core, 1, 9))

    def test_the_limit_is_the_operators(self):
        """By destination too."""
        core = self.one(max_try_before_disable=2)
        assert [CloseConnection(SessionId(1))] == only(CloseConnection, self.rejected(core, 1, 2))

    def test_only_accepted_mail_ends_the_escalation(self):
        """The host takes connections: that is no news. The second rest is 15 s times four squared."""
        core = self.one(max_try_before_disable=2)
        self.rejected(core, 1, 2)
        core.closed(1, "quit")
        core.until(60.0)
        submit(core, 3)
        core.resolve("one.test", (10, A))
        core.ready(2)
        out = self.rejected(core, 2, 2)
        assert f"smtp-out: Disabling route [] <-> {A} for 240s" in notes(out)
        core.closed(2, "quit")
        core.until(60.0 + 240.0)
        submit(core, 1)
        core.resolve("one.test", (10, A))
        core.ready(3)
        core.done(3)
        assert 0 == core.engine.agent.routes["", A].penalty
        assert not core.engine.agent.routes["", A].rejects

    def test_another_host_takes_over(self):
        """The rest is for the route; the next exchanger is tried at once."""
        core = core_of(mta={"max_conn_per_relay": 1, "max_try_before_disable": 1})
        submit(core, 2)
        core.resolve("one.test", (10, A), (20, B))
        core.ready(1)
        core.done(1, LATER)
        assert [("", B)] == opened(core.closed(1, "quit"))
