"""Where mail of a relay goes: what the resolver says, and how long that holds."""

import pytest

from mta.core.instructions import DeferEnvelope, ResolveDomain, SendBounce
from mta.core.relayrules import RelayRule
from mta.core.routing import ResolutionStatus
from mta.core.stimuli import RemoveRequested, Selector
from tests.support.agent import A, B, core_with, opened, submit
from tests.support.core import EPOCH, Core, ev, only

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
