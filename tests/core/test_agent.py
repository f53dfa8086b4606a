"""The relaying agent as a whole: pauses, drains, fairness, and a test for each of its limits."""

from pathlib import Path

from mta.core.instructions import CloseConnection, Removal, RemoveEnvelope, ResolveDomain
from mta.core.limits import MtaLimits
from mta.core.routing import ResolutionStatus
from mta.core.stimuli import AgentPaused, AgentResumed, DrainRequested, RemoveRequested, Selector
from tests.support.agent import A, B, core_with, grow, started, submit
from tests.support.core import EPOCH, Core, only

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
    """A new limit in `MtaLimits` comes with the test that reaches it, in one of the files about the agent."""
    here = Path(__file__).parent
    files = [*sorted(here.glob("test_agent*.py")), here / "test_sources.py"]
    text = "".join(path.read_text() for path in files)
    shells = {"session_timeout_s", "connect_timeout_s", "tls_sessions_max", "sts_policies_max"}
    elsewhere = {"route_delay_base_s", "route_delay_max_s", "session_keepalive_s"}
    missing = {
        name for name in MtaLimits.__slots__ if name not in text and name not in shells | elsewhere
    }
    assert set() == missing
