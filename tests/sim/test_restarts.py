"""A process of the model ends in the middle of its work: nothing accepted is lost, and all books balance over it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.core.limits import Limits
from mta.core.settings import ConfigError, build
from sim.costs import Costs
from sim.records import Retrace
from sim.result import SimResult
from sim.runner import simulate
from sim.scenario import Scenario, parse
from sim.timeline import Event, changes_of
from sim.validation.audit import audited, rough
from tests.support.model import model

SCENARIO = """
name = "x"
drain_s = 600.0
[load]
messages = {messages}
rate = 100.0
sessions = 20
tries = {tries}
keep = {keep}
[load.recipients]
law = "fixed"
count = 3
[[destinations]]
name = "slow"
domain = "slow.test"
behaviours = [{{ kind = "latency", delay_s = 0.05 }}]
[[destinations]]
name = "away"
domain = "away.test"
behaviours = [{{ kind = "outage", from_s = 0.0, to_s = 6.0, mode = "refuse" }}]
[server.retry]
base_s = 1.0
"""

KILL = 'at_s = 2.0\nrestart = "kill"\ndown_s = 1.0'
STOP = KILL.replace("kill", "stop")


def scenario(*entries: str, messages: int = 400, tries: int = 30, keep: str = "false") -> Scenario:
    text = SCENARIO.format(messages=messages, tries=tries, keep=keep)
    text += "".join(f"[[timeline]]\n{entry}\n" for entry in entries)
    return parse(text.encode(), source="x.toml")


def run(*entries: str, **options: Any) -> SimResult:
    return simulate(scenario(*entries), **options)


@pytest.mark.parametrize("entry", [KILL, STOP])
def test_everything_accepted_arrives(entry):
    """Clients come again until they are served; what waited for its next try still does, and is tried."""
    result = run(entry)
    counts = result.counts
    assert counts["accepted_messages"] == 400
    assert counts["delivered"] == counts["accepted"] == 1200
    assert counts["queued"] == counts["failed"] == 0
    [restart] = result.restarts
    assert restart.gone_s == pytest.approx(2.0, abs=0.5)
    assert restart.envelopes > 200
    assert restart.opened_s == pytest.approx(restart.gone_s + 1.0 + Costs().start_s)
    assert restart.restored_s >= restart.opened_s + 0.99 * restart.envelopes * Costs().restore_s


def test_clients_find_nobody_while_the_server_is_down():
    """No message is accepted from the end of the process until its door is open; all are afterwards."""
    result = run(KILL)
    [restart] = result.restarts
    down = (result.t > restart.gone_s) & (result.t < restart.opened_s)
    assert len(set(result.accepted[down])) == 1
    assert set(result.rss_bytes[down]) == {0}
    assert set(result.queued[down]) == {restart.envelopes}
    assert result.counts["broken"] > 20
    assert result.counts["turned_away"] == 0


def test_clients_that_do_not_come_again_are_refused():
    """With one try each, whoever comes meanwhile is not accepted, and nothing else is."""
    counts = simulate(scenario(KILL, tries=1)).counts
    # 1.5 s at 100 messages a second, and what was in the server's hands.
    assert 110 < counts["refused_messages"] < 200
    assert counts["accepted_messages"] + counts["refused_messages"] == 400
    assert counts["delivered"] == counts["accepted"]


def test_a_stop_in_good_order_repeats_nothing():
    """Who is in the middle of a message is served, the rest hears 421; transactions end before the process does."""
    for at in np.linspace(1.0, 3.0, 11):
        counts = run(f'at_s = {at:.2f}\nrestart = "stop"\ndown_s = 0.5').counts
        assert counts["duplicates"] == counts["duplicates_client"] == counts["unacknowledged"] == 0
        assert counts["turned_away"] + counts["broken"] > 0
        assert counts["delivered"] == counts["accepted"] == 1200


def test_what_a_host_took_and_no_commit_knew_of_is_delivered_again():
    """Removals wait up to 50 ms for a commit: kills between arrival and commit repeat a delivery, at some instants at least."""
    found = []
    # No mail comes any more that the removals could ride along with.
    for at in np.linspace(6.1, 8.1, 21):
        counts = run(f'at_s = {at:.3f}\nrestart = "kill"\ndown_s = 0.5').counts
        assert counts["delivered"] == counts["accepted"] == 1200
        found.append(counts["duplicates"])
    assert sum(found) > 0
    # Twenty connections with a message each, and the 50 ms before.
    assert max(found) < 60


def test_a_message_that_was_durable_and_not_answered_is_there_twice():
    """Commits that take a while make it likely: its client sends it again, and both copies arrive."""
    slow = Costs(commit_s=0.05)
    total = 0
    for at in np.linspace(1.0, 2.0, 6):
        counts = run(f'at_s = {at:.3f}\nrestart = "kill"\ndown_s = 0.5', costs=slow).counts
        assert counts["delivered"] == counts["accepted"] == 1200
        assert counts["unacknowledged"] == 0
        total += counts["duplicates_client"]
    assert total > 0
    # Those that give up leave theirs behind.
    counts = simulate(scenario(KILL, tries=1), costs=slow).counts
    assert counts["unacknowledged"] > 0 == counts["duplicates_client"]


@pytest.mark.parametrize("entry", [KILL, STOP])
def test_the_same_run_twice_is_the_same_run(entry):
    """On either clock; until the end of the process it is the run without one."""
    first = run(entry)
    for backend in ("heapq", "simpy"):
        again = run(entry, backend=backend)
        assert first.fingerprint == again.fingerprint
        assert dict(first.counts) == dict(again.counts)
        assert first.restarts == again.restarts
    without = run()
    before = without.t < 2.0
    assert np.array_equal(first.queued[: before.sum()], without.queued[before])
    assert first.fingerprint != without.fingerprint


def test_what_was_set_and_paused_goes_with_the_process():
    """The next one has what is configured: it relays, with as many connections as before."""
    paused = run('at_s = 1.0\npause = ["mta", "smtp"]', KILL)
    assert paused.counts["delivered"] == paused.counts["accepted"] == 1200
    result = run('at_s = 1.0\nset = { "limits.mta.max_conn" = 1 }', KILL)
    assert result.drain_time_s == pytest.approx(run(KILL).drain_time_s, rel=0.3)


def test_it_may_end_again_before_it_has_read_its_queue():
    """What it did not get to is on the disk as before."""
    slow = Costs(restore_s=0.01)
    result = run(KILL, 'at_s = 5.0\nrestart = "kill"', 'at_s = 9.0\nrestart = "kill"', costs=slow)
    counts = result.counts
    assert counts["delivered"] == counts["accepted"] == 1200
    assert len(result.restarts) == 3
    assert all(each.restored_s > each.opened_s for each in result.restarts)


def test_a_process_begins_with_the_memory_of_one():
    """Neither what it had grown to nor its caches are there any more."""
    result = run(KILL)
    [restart] = result.restarts
    before = result.rss_bytes[result.t < restart.gone_s].max()
    after = result.rss_bytes[result.t >= restart.opened_s][0]
    assert 0 < after < before


def test_a_trace_has_a_file_for_each_process(tmp_path):
    """Each is what one core heard, and can be asked again."""
    trace = tmp_path / "trace.jsonl"
    result = run(KILL, trace=trace)
    [restart] = result.restarts
    restored = 0
    for file in (trace, tmp_path / "trace-2.jsonl"):
        header, *lines = [json.loads(line) for line in file.read_text().splitlines()]
        core = Retrace(header)
        for line in lines:
            step = core.step(line)
            restored += step is not None and type(step.stimulus).__name__ == "EnvelopeRestored"
    assert restored == restart.envelopes


disks = st.builds(
    'at_s = {}\ndisk = "{}"'.format,
    st.integers(0, 80).map(lambda at: at / 10),
    st.sampled_from(["slow", "full", "well"]),
)
entries = st.builds(
    'at_s = {}\nrestart = "{}"\ndown_s = {}'.format,
    st.integers(0, 80).map(lambda at: at / 10),
    st.sampled_from(["kill", "stop"]),
    st.sampled_from([0.1, 0.5, 2.0]),
)


@given(
    st.lists(entries, min_size=1, max_size=3),
    st.lists(disks, max_size=3),
    st.sampled_from(["true", "false"]),
    st.sampled_from([1, 3]),
)
@settings(max_examples=40, deadline=None)
def test_no_mail_appears_or_disappears_wherever_it_ends(said, disk, keep, tries):
    """Messages are accepted or refused, accepted envelopes delivered once, and every delivery too many is counted."""
    well = 'at_s = 60.0\ndisk = "well"'
    wanted = scenario(*said, *disk, well, messages=150, keep=keep, tries=tries)
    try:
        changes_of(wanted.timeline, Limits(), source="x")
    except ConfigError:
        return
    counts = simulate(wanted, costs=Costs(commit_s=0.02)).counts
    assert counts["accepted_messages"] + counts["refused_messages"] == 150
    assert counts["delivered"] == counts["accepted"]
    assert counts["queued"] == counts["bounced"] == 0


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_the_books_balance_when_everything_happens(how):
    """Refusals, reports, local mail, full queues, and three ends of the process in the middle of it: Little's law holds."""
    timeline = [{"at_s": at, "restart": how, "down_s": 0.5} for at in (1.3, 4.0, 8.05)]
    auditor, result, model = audited(900, timeline=timeline)
    assert auditor.wrong == auditor.late == 0
    assert len(result.restarts) == 3
    for name, area in auditor.areas.items():
        assert area == pytest.approx(auditor.sojourns[name], rel=1e-9), name
    counts = result.counts
    assert counts["accepted_messages"] + counts["refused_messages"] == counts["messages"]
    assert counts["delivered"] + counts["failed"] == counts["accepted"]
    assert counts["queued"] == len(model.driver.messages) == 0
    assert model.driver.fill.envelopes == model.driver.fill.size_bytes == 0
    assert model.driver.inbound.connections == 0
    model.engine.validate()


@pytest.mark.parametrize("at_s", [0.3, 0.35])
def test_local_mail_whose_delivery_nobody_heard_of_counts_as_delivered(at_s):
    """It is delivered again, and each group's books say when it was for the first time."""
    entry = {"at_s": at_s, "restart": "kill", "down_s": 0.5}
    result = simulate(rough(150, timeline=[entry]), costs=Costs(local_done_s=0.02))
    assert result.counts["duplicates"] > 0
    assert result.local is not None
    for group in result.local.groups:
        assert group.delivered + group.failed == group.accepted > 0


def told_limits(path: Path) -> list[Any]:
    records = map(json.loads, path.read_bytes().splitlines())
    return [each["value"] for each in records if each["k"] == "LimitChanged"]


def test_what_waits_for_a_start_is_said_in_its_order(tmp_path):
    """Also where the later one would come first by its own clock."""
    down = 'at_s = 2.0\nrestart = "kill"\ndown_s = 0.5'
    many, few = (
        f'at_s = {at}\nset = {{ "limits.mta.max_conn" = {n} }}' for at, n in ((2.5, 50), (2.55, 7))
    )
    costs = Costs(start_s=0.12, restore_s=0.0)
    result = run(down, many, few, costs=costs, trace=tmp_path / "trace.jsonl")
    # What was due first would knock again at 2.7, what was due later at 2.65.
    assert 2.6 < result.restarts[0].restored_s < 2.65
    assert told_limits(tmp_path / "trace-2.jsonl") == [50, 7]


def test_a_server_is_not_ended_before_it_has_heard_what_was_said_first():
    """However busy it is: a disk that became slow before is slow afterwards."""
    slow = 'at_s = 2.0\ndisk = "slow"\nslower = 300.0'
    busy = Costs(message_s=0.05)
    well, bad = (simulate(scenario(*said, KILL), costs=busy) for said in ((), (slow,)))
    assert bad.counts["commits"] < 0.8 * well.counts["commits"]
    [restart] = bad.restarts
    assert 2.0 < restart.gone_s < 2.3


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ('at_s = 1.0\nrestart = "kill"\nschedule = true', 'x.toml: timeline.0.restart = "kill": must be an entry of its own'),
        ('at_s = 1.0\nrestart = "9"', 'x.toml: timeline.0.restart = "9": must be one of "", "kill", "stop"'),
        ('at_s = 1.0\nrestart = "kill"\ndown_s = 0.0', "x.toml: timeline.0.down_s = 0.0: must be from 0.1 to 3600.0"),
    ],
)  # fmt: skip
def test_entries_that_make_no_sense(entry, line):
    """One line that names file, key and value."""
    with pytest.raises(ConfigError) as told:
        scenario(entry)
    assert str(told.value) == line


def test_nothing_can_be_said_to_a_server_that_is_down():
    """An entry before it is started again is refused before anything runs."""
    down = Event(2.0, restart="kill", down_s=3.0)
    with pytest.raises(ConfigError) as told:
        changes_of([Event(4.9, schedule=True), down], Limits(), source="x")
    assert str(told.value) == "x: timeline.0.at_s = 4.9: the server is down then"
    assert len(changes_of([Event(5.0, schedule=True), down], Limits(), source="x")) == 2
    assert [event.words() for event in (down, Event(2.0, restart="stop"))] == [
        ["SIGKILL, 3 s down"],
        ["SIGTERM, 1 s down"],
    ]


def test_a_run_that_ends_while_it_is_down_says_so():
    """What never came is nowhere: no number stands for it."""
    text = SCENARIO.format(messages=50, tries=1, keep="false").replace("600.0", "1.0")
    wanted = parse(f"{text}[[timeline]]\n{KILL.replace('1.0', '900.0')}".encode(), source="x")
    result = simulate(wanted)
    if result.restarts:
        assert math.isnan(result.restarts[0].opened_s)
        assert result.summary()["restarts"][0]["opened_s"] is None
    assert result.counts["queued"] > 0


@pytest.mark.parametrize("loop", ["open", "closed"])
def test_a_connection_to_the_process_before_is_none_of_the_next(loop):
    """Clients that take longer to close than the server is down: it counts its own, and is without any in the end."""
    rate = {"rate": 100.0} if loop == "open" else {"loop": "closed", "users": 10, "think_s": 0.1}
    data = {
        "name": "x",
        "load": {"messages": 150, "sessions": 10, "tries": 30, **rate},
        "destinations": [{"name": "a", "domain": "a.test"}],
        "timeline": [{"at_s": 1.0, "restart": "kill", "down_s": 0.1}],
    }
    if loop == "closed":
        del data["load"]["sessions"]
    of = build(Scenario, data, source="x")
    run = model(of, costs=Costs(client_close_s=0.5, start_s=0.01))
    counted: list[int] = []
    run.progress = lambda *_: counted.append(run.driver.inbound.connections)
    run.run()
    assert 0 < max(counted) <= 10
    assert min(counted) == run.driver.inbound.connections == 0
