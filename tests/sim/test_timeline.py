"""What an operator does while the load goes on counts at once, and changes nothing else."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.core.limits import Limits
from mta.core.settings import ConfigError
from sim.beyond import beyond
from sim.result import SimResult
from sim.runner import simulate
from sim.scenario import Scenario, load, parse, to_toml
from sim.timeline import Event, changes_of

SCENARIO = """
name = "x"
drain_s = 600.0
[load]
messages = {messages}
rate = 100.0
keep = {keep}
[[destinations]]
name = "slow"
domain = "slow.test"
behaviours = [{{ kind = "latency", delay_s = 0.05 }}]
[server.limits.mta]
max_conn_per_host = 2
"""


def scenario(*entries: str, messages: int = 400, keep: str = "false") -> Scenario:
    text = SCENARIO.format(messages=messages, keep=keep)
    text += "".join(f"[[timeline]]\n{entry}\n" for entry in entries)
    return parse(text.encode(), source="x.toml")


def run(*entries: str, **options: Any) -> SimResult:
    return simulate(scenario(*entries), **options)


def drained_s(result: SimResult) -> float:
    assert result.drain_time_s is not None
    return result.drain_time_s


WIDE = 'at_s = 3.0\nset = { "limits.mta.max_conn_per_host" = 20 }'


def test_a_limit_counts_from_its_instant():
    """Until then the run is the same to the last envelope, from then on the queue drains faster."""
    before, after = run(), run(WIDE)
    assert np.array_equal(before.queued[before.t < 3.0], after.queued[after.t < 3.0])
    assert drained_s(after) < 0.6 * drained_s(before)
    assert before.counts["delivered"] == after.counts["delivered"] == after.counts["accepted"]


def test_arrivals_are_those_of_the_scenario():
    """Random streams are one per concern: the same messages come at the same instants."""
    before, after = run(), run(WIDE)
    assert before.counts["accepted"] == after.counts["accepted"]
    assert before.load_s == pytest.approx(after.load_s, abs=0.05)


@pytest.mark.parametrize(
    "entry", [WIDE, 'at_s = 1.0\npause = ["mta"]\n[[timeline]]\nat_s = 2.0\nresume = ["mta"]']
)
def test_the_same_run_twice_is_the_same_run(entry):
    """On either clock, and again with the very same scenario: what it changed is not kept."""
    wanted = scenario(entry)
    first = simulate(wanted)
    assert first.fingerprint == simulate(wanted).fingerprint
    assert first.fingerprint == simulate(wanted, backend="heapq").fingerprint
    assert first.fingerprint != simulate(scenario()).fingerprint


def test_nothing_is_relayed_in_a_pause():
    """What is under way ends; then nothing until relaying is resumed."""
    result = run('at_s = 1.0\npause = ["mta"]', 'at_s = 8.0\nresume = ["mta"]')
    during = (result.t > 1.5) & (result.t < 8.0)
    assert len(set(result.delivered[during])) == 1
    assert result.counts["delivered"] == result.counts["accepted"]
    assert drained_s(result) > 8.0


def test_clients_are_turned_away_while_the_door_is_shut():
    """421 for who comes, three times; who was let in before is served."""
    result = run('at_s = 1.0\npause = ["smtp"]', 'at_s = 1.5\nresume = ["smtp"]')
    assert result.counts["turned_away"] > 0
    assert result.counts["refused_messages"] == 0
    assert result.counts["delivered"] == result.counts["accepted"]
    shut = run('at_s = 1.0\npause = ["smtp"]')
    assert shut.counts["refused_messages"] > 200


def test_a_full_disk_is_a_temporary_refusal():
    """Mail of that time is refused, what was accepted before and after is delivered."""
    result = run('at_s = 1.0\ndisk = "full"', 'at_s = 2.0\ndisk = "well"')
    counts = result.counts
    assert 60 < counts["refused_messages"] < 140
    assert counts["accepted_messages"] + counts["refused_messages"] == 400
    assert counts["delivered"] == counts["accepted"]


def test_relaying_goes_on_without_a_disk():
    """What was accepted is delivered while nothing can be written; its queue empties, and nothing of it comes again."""
    result = run('at_s = 1.0\ndisk = "full"', 'at_s = 12.0\ndisk = "well"')
    during = (result.t > 6.0) & (result.t < 12.0)
    assert set(result.queued[during]) == {0}
    counts = result.counts
    assert counts["delivered"] == counts["accepted"]
    assert counts["refused_messages"] > 250


@pytest.mark.parametrize(
    ("well_s", "again_s"), [(1.5, 2.0), (2.5, 4.0), (4.5, 8.0), (8.5, 16.0), (40.0, 62.0)]
)
def test_room_is_found_by_looking(well_s, again_s):
    """1, 3, 7, 15, 31, 61 s after the first commit that failed, as the writer probes (mta/queue/writer.py)."""
    text = SCENARIO.format(messages=7000, keep="true").replace("delay_s = 0.05", "delay_s = 0.001")
    text += (
        f'[[timeline]]\nat_s = 1.0\ndisk = "full"\n[[timeline]]\nat_s = {well_s}\ndisk = "well"\n'
    )
    result = simulate(parse(text.encode(), source="x"))
    before = result.accepted[(result.t > 1.1) & (result.t < again_s)]
    assert before.min() == before.max()
    later = result.accepted[result.t > again_s + 0.5]
    assert later.min() > before.max()


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_server_may_end_while_it_does_not_trust_its_disk(how):
    """The next process finds it well at once; who was refused by the one before has their answer or comes again."""
    entries = (
        'at_s = 1.0\ndisk = "full"',
        'at_s = 1.99\ndisk = "well"',
        f'at_s = 2.0\nrestart = "{how}"\ndown_s = 0.5',
    )
    wanted = scenario(*entries)
    result = simulate(wanted)
    counts = result.counts
    assert counts["accepted_messages"] + counts["refused_messages"] == 400
    assert counts["delivered"] == counts["accepted"]
    assert simulate(wanted, backend="heapq").fingerprint == result.fingerprint


def test_a_slow_disk_makes_clients_wait():
    """Every commit takes ten times as long; nothing is refused for it."""
    well, slow = run(), run('at_s = 0.0\ndisk = "slow"')
    assert slow.accept_latency_s.mean() > 3 * well.accept_latency_s.mean()
    assert slow.counts["accepted"] == well.counts["accepted"]


def test_waiting_mail_is_tried_when_the_operator_says_so():
    """A host that was down is up again: all that waits for its next try goes now."""
    text = SCENARIO.format(messages=100, keep="true").replace(
        "behaviours = [",
        'behaviours = [{ kind = "outage", from_s = 0.0, to_s = 2.0, mode = "refuse" }, ',
    )
    text += "\n[server.retry]\nbase_s = 100.0\n"
    patient = simulate(parse(text.encode(), source="x"))
    told = simulate(
        parse((text + "[[timeline]]\nat_s = 20.0\nschedule = true\n").encode(), source="x")
    )
    assert drained_s(told) < 30 < drained_s(patient)


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ("at_s = -1.0\nschedule = true", "x.toml: timeline.0.at_s = -1.0: must be from 0 to 1000000000.0"),
        ("at_s = 1.0", "x.toml: timeline.0.at_s = 1.0: is the instant of nothing: set, pause, resume, schedule, disk, restart"),
        ('at_s = 1.0\npause = ["mta"]\nresume = ["mta"]', 'x.toml: timeline.0.resume = "mta": is paused at the same instant'),
        ('at_s = 1.0\npause = ["queue"]', 'x.toml: timeline.0.pause.0 = "queue": must be one of "smtp", "mta", "mda"'),
        ("at_s = 1.0\nset = { limits = { mta = [1] } }", 'x.toml: timeline.0.set = "limits.mta": must have a single value'),
    ],
)  # fmt: skip
def test_entries_that_make_no_sense(entry, line):
    """One line that names file, key and value."""
    with pytest.raises(ConfigError) as told:
        scenario(entry)
    assert str(told.value) == line


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ('set = { "limits.mta.nope" = 1 }', "x: timeline.0.set.limits.mta.nope = 1: unknown key"),
        ('set = { "limits.mta.max_conn_per_host" = 0 }', "must be above 0"),
        ('set = { "limits.queue.commit_batch_max" = 5 }', "needs a restart"),
        ("set = { seed = 5 }", "timeline.0.set.seed"),
    ],
)
def test_limits_that_can_not_be_set(entry, line):
    """They are those of ``mtactl set``, checked before anything runs."""
    wanted = scenario(f"at_s = 1.0\n{entry}")
    with pytest.raises(ConfigError) as told:
        changes_of(wanted.timeline, Limits(), source="x")
    assert line in str(told.value)
    with pytest.raises(ConfigError):
        simulate(wanted)


def test_the_second_change_is_checked_beside_the_first():
    """They are set one after the other, as on the command line: high water must be above low water at each step."""
    first = Event(1.0, {"limits.mta.task_high_water": 100, "limits.mta.task_low_water": 90})
    later = Event(2.0, {"limits": {"mta": {"task_low_water": 95}}})
    assert len(changes_of([later, first], Limits(), source="x")) == 2
    with pytest.raises(ConfigError, match=r"timeline\.0\.set"):
        changes_of([Event(2.0, {"limits.mta.task_low_water": 101}), first], Limits(), source="x")


def test_a_timeline_is_read_back_as_written(tmp_path):
    """A run directory has the scenario that was run."""
    wanted = scenario(WIDE, 'at_s = 9.0\npause = ["mta", "smtp"]\ndisk = "slow"\nslower = 3.0')
    file = tmp_path / "scenario.toml"
    file.write_text(to_toml(wanted))
    assert load(file) == wanted
    assert [word for each in wanted.timeline for word in each.words()] == [
        "set limits.mta.max_conn_per_host=20", "pause mta", "pause smtp", "disk slow 3x"
    ]  # fmt: skip


entries = st.builds(
    "at_s = {}\n{}".format,
    st.integers(0, 12),
    st.sampled_from(
        [
            'pause = ["mta"]',
            'resume = ["mta"]',
            'pause = ["smtp"]',
            'resume = ["smtp"]',
            "schedule = true",
            'disk = "full"',
            'disk = "slow"',
            'disk = "well"',
            'set = { "limits.mta.max_conn_per_host" = 1 }',
            'set = { "limits.mta.max_conn_per_route" = 9 }',
            'set = { "limits.mta.task_low_water" = 1, "limits.mta.task_high_water" = 3 }',
            'set = { "limits.smtp.max_conn" = 3 }',
        ]
    ),
)


@given(st.lists(entries, max_size=6), st.sampled_from(["true", "false"]))
@settings(max_examples=25, deadline=None)
def test_no_mail_appears_or_disappears_whatever_the_operator_does(said, keep):
    """Messages are accepted or refused, envelopes delivered or queued, and once all goes on again none is left."""
    well = ('at_s = 20.0\nresume = ["mta", "smtp"]\ndisk = "well"', "at_s = 21.0\nschedule = true")
    counts = simulate(scenario(*said, *well, messages=150, keep=keep)).counts
    assert counts["accepted_messages"] + counts["refused_messages"] == 150
    assert counts["delivered"] == counts["accepted"]
    assert counts["queued"] == counts["bounced"] == 0


def test_what_the_model_leaves_out_of_a_full_disk_is_said():
    """Sessions that are refused again and again are hung up on; the model does not count their errors."""
    full = 'at_s = 1.0\ndisk = "full"'
    parsed = [list(beyond(scenario(*said, keep="true"))) for said in ((full,), ())]
    assert ["max_errors" in line for line in parsed[0]] == [True]
    assert parsed[1] == []
