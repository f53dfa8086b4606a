"""The model's server is short of memory by its own estimate, and does what the core says of that."""

from dataclasses import replace
from typing import Any

import pytest

from mta.core.pressure import MemoryLevel
from sim.costs import Costs, MemoryCosts
from sim.result import SimResult
from sim.runner import simulate
from sim.scenario import Scenario, parse
from tests.support.model import model

MB = 10**6

SCENARIO = """
name = "x"
drain_s = 120.0
[load]
messages = MESSAGES
rate = 100.0
sessions = 20
tries = 2
keep = true
[load.recipients]
law = "fixed"
count = 10
[[destinations]]
name = "slow"
domain = "slow.test"
behaviours = [{ kind = "latency", delay_s = 0.05 }]
[server.limits.mta]
max_conn_per_route = 4
[server.limits.scheduler]
max_held = 100000
"""


def costs(kept: float = 0.0) -> Costs:
    """10 MB, and 1000 bytes for each envelope; half a second after a fill of 10,000 that is 20 MB."""
    memory = MemoryCosts(base_bytes=10e6, envelope_bytes=1000.0, warm_bytes=0.0, kept_share=kept)
    return replace(Costs(), memory={"slim": memory})


def scenario(limit_bytes: float = 0, extra: str = "", messages: int = 1000) -> Scenario:
    limit = f"[server.limits.memory]\nlimit_bytes = {limit_bytes:.0f}\n" if limit_bytes else ""
    text = SCENARIO.replace("MESSAGES", str(messages)) + limit + extra
    return parse(text.encode(), source="x.toml")


def run(limit_bytes: float = 0, extra: str = "", messages: int = 1000, **options: Any) -> SimResult:
    options.setdefault("costs", costs())
    return simulate(scenario(limit_bytes, extra, messages), **options)


def test_without_a_limit_the_machine_is_not_asked():
    """The model's numbers are the same everywhere: there is a guard only for a limit that somebody set."""
    assert model(scenario()).guard is None
    found = run()
    assert found.memory_levels == ()
    assert found.summary()["memory_levels"] == []
    assert found.counts["refused_messages"] == 0
    assert found.peak_rss_bytes > 15 * MB


def test_a_limit_that_is_never_near_changes_nothing():
    assert run(1000 * MB).fingerprint == run().fingerprint


def test_mail_is_refused_above_the_soft_mark_and_taken_again_below_it():
    """75 % of 17 MB are 12.75 MB: 2,750 envelopes, and what comes until the next look."""
    found = run(17 * MB, messages=3000)
    levels = [level for _, level in found.memory_levels]
    assert levels[0] is MemoryLevel.LOW or levels[0] is MemoryLevel.SOFT
    assert MemoryLevel.SOFT in levels
    assert found.counts["refused_messages"] > 0
    assert found.counts["accepted_messages"] + found.counts["refused_messages"] == 3000
    soft_at = next(at for at, level in found.memory_levels if level is MemoryLevel.SOFT)
    # Without kept memory the level ends as the queue drains, and what comes then is taken.
    after = found.accepted[found.t > soft_at + 1.0]
    assert after[-1] > after[0]
    # A second of mail at most is taken beyond the mark.
    assert found.peak_rss_bytes <= 0.75 * 17 * MB + 1.1 * 1000 * 1000
    assert found.counts["delivered"] == found.counts["accepted"]


def test_memory_that_is_kept_shuts_the_door_for_good():
    """An allocator that gives nothing back leaves the server short of memory with an empty queue."""
    found = run(17 * MB, costs=costs(kept=1.0))
    soft_at = next(at for at, level in found.memory_levels if level is MemoryLevel.SOFT)
    after = found.accepted[found.t > soft_at + 1.0]
    assert after[-1] == after[0]
    assert found.memory_levels[-1][1] >= MemoryLevel.SOFT


def test_new_connections_are_turned_away_above_the_hard_mark():
    """90 % of 10.9 MB is below what an empty server has: nobody gets in."""
    found = run(10.9 * MB)
    assert found.memory_levels[0] == (0.0, MemoryLevel.HARD)
    assert found.counts["accepted"] == 0
    assert found.counts["turned_away"] == 2 * 1000
    assert found.counts["refused_messages"] == 1000


def test_a_limit_may_come_later_and_go_again():
    said = (
        '[[timeline]]\nat_s = 2.0\nset = { "limits.memory.limit_bytes" = 11000000 }\n'
        '[[timeline]]\nat_s = 4.0\nset = { "limits.memory.limit_bytes" = 0 }\n'
    )
    found = run(extra=said)
    assert [level for _, level in found.memory_levels] == [MemoryLevel.HARD, MemoryLevel.OK]
    assert [at for at, _ in found.memory_levels] == pytest.approx([2.0, 4.0], abs=1.01)
    assert 100 < found.counts["refused_messages"] < 400
    assert found.counts["accepted_messages"] > 600


def test_who_does_not_look_refuses_nobody():
    found = run(10.9 * MB, "sample_s = 0.0\n")
    assert found.memory_levels == ()
    assert found.counts["refused_messages"] == 0


def test_a_new_process_begins_with_enough_memory():
    """What the one before kept went with it."""
    said = '[[timeline]]\nat_s = 6.0\nrestart = "kill"\ndown_s = 1.0\n'
    found = run(17 * MB, said, costs=costs(kept=1.0))
    shut = [at for at, level in found.memory_levels if level is MemoryLevel.SOFT]
    freed = [at for at, level in found.memory_levels if level is MemoryLevel.OK]
    assert shut[0] < 6.0 <= freed[0]
    assert found.counts["queued"] == 0


def test_the_same_run_twice_is_the_same_run():
    assert run(17 * MB).summary() == run(17 * MB).summary()
