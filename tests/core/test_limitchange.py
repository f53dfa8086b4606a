"""Limits that change while the core runs."""

import dataclasses

import pytest

from mta.core.limitchange import AT_START, limit_rows, parse_change, put_limit, read_limit
from mta.core.limits import Limits
from mta.core.routing import ResolutionStatus
from mta.core.settings import ConfigError, flatten
from mta.core.stimuli import Agent, AgentPaused, AgentResumed, LimitChanged
from tests.support.core import EPOCH, Core


def test_every_limit_is_listed_with_its_default():
    """By its key; `change` says which need a restart, and each of these exists."""
    rows = {row["key"]: row for row in limit_rows(Limits())}
    assert rows.keys() == {f"limits.{key}" for key in flatten(Limits())}
    assert {key for key, row in rows.items() if row["change"] == "restart"} == AT_START
    assert all(row["value"] == row["default"] for row in rows.values())


def test_a_pattern_is_a_part_of_the_key():
    """Upper case or lower; a value that was changed differs from its default."""
    limits = Limits()
    limits.smtp.max_rcpt = 5
    (row,) = limit_rows(limits, "SMTP.max_rc")
    assert (5, 1000, "now") == (row["value"], row["default"], row["change"])
    assert [] == list(limit_rows(limits, "nothing"))


def test_a_change_is_checked_and_changes_nothing_itself():
    """The value has the key's type."""
    limits = Limits()
    before = dataclasses.asdict(limits)
    assert ("limits.smtp.max_rcpt", 5) == parse_change(limits, "limits.smtp.max_rcpt=5")
    assert ("limits.smtp.timeout_s", 7.0) == parse_change(limits, " limits.smtp.timeout_s = 7")
    assert before == dataclasses.asdict(limits)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("limits.smtp.max_rcpt", "expected limits.KEY=VALUE, got 'limits.smtp.max_rcpt'"),
        ("limits.smtp.max_rctp=5", "unknown key (did you mean max_rcpt?)"),
        ("limits.smtp.max_rcpt=0", "limits.smtp.max_rcpt = 0: must be above 0"),
        ("limits.smtp.max_rcpt=many", "must be a whole number"),
        ("limits.smtp={max_rcpt = 5}", "limits.smtp: names no single limit"),
        ("limits.mta.task_low_water=50", "must be below task_high_water (50)"),
        ("limits.mda.policy=raised", "limits.mda.policy: needs a restart"),
        ("hostname=x", "unknown key"),
    ],
)
def test_what_can_not_be_set_is_told_in_one_line(text, told):
    """With the key, as in a configuration."""
    with pytest.raises(ConfigError) as caught:
        parse_change(Limits(), text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_limit_is_read_and_put_by_its_key():
    """The object that all parts share changes."""
    limits = Limits()
    mta = limits.mta
    put_limit(limits, "limits.mta.max_conn", 7)
    assert 7 == read_limit(limits, "limits.mta.max_conn") == mta.max_conn


def test_a_raised_cap_counts_at_once():
    """Users that were at theirs, and the agent that was at its own, go on in the same call."""
    core = Core(mda={"max_session": 2, "max_session_per_user": 1}, representations=("slim",))
    core.mail(*("alice",) * 3)
    assert 1 == len(core.ledger.delivering)
    core.tell(LimitChanged("limits.mda.max_session_per_user", 2))
    assert 2 == len(core.ledger.delivering)
    core.tell(LimitChanged("limits.mda.max_session_per_user", 5))
    assert 2 == len(core.ledger.delivering)
    core.tell(LimitChanged("limits.mda.max_session", 5))
    assert 3 == len(core.ledger.delivering)


def test_a_lowered_cap_ends_nothing_that_runs():
    """The next one waits until there are fewer."""
    core = Core(mda={"max_session_per_user": 2}, representations=("slim",))
    core.mail(*("alice",) * 4)
    core.tell(LimitChanged("limits.mda.max_session_per_user", 1))
    assert 2 == len(core.ledger.delivering)
    core.delivered(min(core.ledger.delivering))
    assert 1 == len(core.ledger.delivering)
    core.delivered(min(core.ledger.delivering))
    assert 1 == len(core.ledger.delivering)


def test_a_raised_cap_of_the_relaying_agent_counts_at_once():
    """A relay that was at its cap connects again in the same call."""
    core = Core(mta={"max_conn": 1}, representations=("slim",))
    core.submit("one.test")
    core.submit("two.test")
    core.resolve("one.test", (10, "192.0.2.1"))
    core.resolve("two.test", (10, "192.0.2.2"))
    assert 1 == len(core.ledger.connections)
    core.tell(LimitChanged("limits.mta.max_conn", 5))
    assert 2 == len(core.ledger.connections)
    core.tell(LimitChanged("limits.mta.max_conn", 1))
    core.settle()


def test_one_destination_is_paused_and_the_others_go_on():
    """From any source, or from the one that there is; mail waits until the last pause of it is undone."""
    core = Core(representations=("slim",))
    core.tell(AgentPaused(Agent.MTA, "one.test"))
    core.tell(AgentPaused(Agent.MTA, "one.test", "127.0.0.9"))
    core.submit("one.test")
    core.submit("two.test")
    core.answer_all()
    assert ["two.test"] == [c.domain for c in core.ledger.connections.values()]
    core.tell(AgentResumed(Agent.MTA, "one.test"))
    core.tell(AgentResumed(Agent.MTA, "never.test"))
    core.tell(AgentResumed(Agent.MTA, "one.test", "127.0.0.9"))
    core.answer_all()
    core.settle()
    assert {} == core.ledger.rows


def test_one_user_is_paused_and_the_others_go_on():
    """Mail waits; it is delivered when the user is resumed; saying it twice changes nothing."""
    core = Core(representations=("slim",))
    for _ in range(2):
        core.tell(AgentPaused(Agent.MDA, "alice"))
    core.mail("alice", "bob")
    assert ["bob"] == list(core.ledger.delivering.values())
    for _ in range(2):
        core.tell(AgentResumed(Agent.MDA, "alice"))
    assert {"alice", "bob"} == set(core.ledger.delivering.values())
    core.tell(AgentResumed(Agent.MDA, "nobody"))


def test_a_user_with_a_turn_that_is_paused_loses_it():
    """Who waited for a place when the pause came does not get it."""
    core = Core(mda={"max_session": 1}, representations=("slim",))
    core.mail("bob")
    core.mail("alice")
    core.tell(AgentPaused(Agent.MDA, "alice"))
    core.delivered(min(core.ledger.delivering))
    assert {} == core.ledger.delivering
    core.tell(AgentResumed(Agent.MDA, "alice"))
    assert ["alice"] == list(core.ledger.delivering.values())


def test_a_due_backlog_is_handed_out_in_batches():
    """So many envelopes a call, so that a large backlog does not hold up everything else."""
    core = Core(scheduler={"max_schedule": 3}, mta={"max_deferred": 0}, representations=("slim",))
    for _ in range(8):
        core.submit("slow.test")
    core.unresolved("slow.test", ResolutionStatus.RETRY)
    core.now = EPOCH + 5000
    found = []
    for _ in range(4):
        before = core.engine.scheduler.in_flight
        core.wake()
        found.append(core.engine.scheduler.in_flight - before)
    assert [3, 3, 2, 0] == found
