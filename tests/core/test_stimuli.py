"""What drivers may say."""

from mta.core import stimuli
from mta.core.ids import MsgId
from mta.core.stimuli import Agent, AgentPaused, AgentResumed, Selector
from tests.support.core import Core, ev


def test_every_stimulus_has_a_handler():
    """Nothing that a driver may say is unknown to the engine."""
    assert set(stimuli.Stimulus.__args__) == set(Core().engine._handlers)


def test_a_selector_of_nothing_in_particular_means_all():
    """Both fields empty; an envelope is more particular than its message."""
    core = Core()
    core.submit("one.test", "two.test")
    core.submit("one.test")
    find = core.engine.scheduler.matching
    found = [
        [core.engine.store.evpid_of(handle) for handle in find(which)]
        for which in (Selector(), Selector(msgid=MsgId(1)), Selector(ev(2), MsgId(1)))
    ]

    assert [[ev(1, 1), ev(1, 2), ev(2)], [ev(1, 1), ev(1, 2)], [ev(2)]] == found


def test_the_relaying_agent_is_the_one_that_is_stopped():
    """Until there is another."""
    assert Agent.MTA is AgentPaused().agent is AgentResumed().agent
