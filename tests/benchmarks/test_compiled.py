"""The compiled model: the same run as the interpreted one, 50,000 messages per second and core, a million from a recording.

Each measurement is a process of its own on the packages that `sim.compiled` made; fingerprints and counts first. Compiling takes
about a minute when the sources have changed.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sim.compiled import BUILD, ROOT, build, environment
from sim.runner import simulate
from sim.workload import draw
from tests.benchmarks.test_model import MESSAGES, REFERENCE, away, refusing

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

TARGET = 50_000
"""Messages per second of one core."""
MILLION = 1_000_000
SECONDS_MAX = 30.0
"""Of CPU, for a replay of a million messages with all that it does."""
RSS_MAX = 10**9
"""Bytes, of all of the process."""

SPEED = """
import json, time
import mta.core.engine, sim.driver
from sim.runner import simulate
from sim.workload import draw
from tests.benchmarks.test_model import MESSAGES, away, refusing, timeouts_per_second

assert mta.core.engine.__file__.endswith(".so") and sim.driver.__file__.endswith(".so")
found, reference = {}, 0.0
for name, make in (("away", away), ("refused", refusing)):
    of = make()
    schedule = draw(of)
    for backend in ("heapq", "simpy"):
        best = 0.0
        for _ in range(4):
            reference = max(reference, timeouts_per_second())
            started = time.process_time()
            simulate(of, schedule=schedule, backend=backend, fingerprint=False)
            best = max(best, MESSAGES / (time.process_time() - started))
        result = simulate(of, schedule=schedule, backend=backend)
        found[f"{name} {backend}"] = [best, result.fingerprint, result.counts]
print(json.dumps([reference, found]))
"""

RECORD = """
import json, pathlib, sys
from sim.runner import simulate
from sim.scenario import to_toml
from sim.workload import draw
from tests.benchmarks.test_compiled import million

of, run = million(), pathlib.Path(sys.argv[1])
(run / "slim").mkdir(parents=True)
(run / "scenario.toml").write_text(to_toml(of))
schedule = draw(of)
result = simulate(of, schedule=schedule, trace=run / "slim" / "trace.jsonl", backend="heapq", fingerprint=False)
with (run / "slim" / "load.jsonl").open("w") as file:
    file.write('{"kind": "start", "load_start": 0.0}\\n')
    for number, due in enumerate(schedule.due_s.tolist()):
        file.write(
            f'{{"kind": "message", "seq": {number}, "scheduled": {due}, "sent": {due}, "done": {0.01 + due}, "attempts": 1,'
            f' "unsure": 0, "verb": ".", "code": 250, "reply": "2.0.0 {number + 1:08x} Message accepted for delivery",'
            f' "sender": "someone@a.test", "rcpts": ["user{number}@a.test"]}}\\n'
        )
print(json.dumps(result.counts))
"""

REPLAY = """
import json, resource, sys, time

started = time.process_time()
import sim.measure, sim.recorded
from sim.replay import replay

assert sim.measure.__file__.endswith(".so") and sim.recorded.__file__.endswith(".so")
found = replay(sys.argv[1], sys.argv[2:])
seconds = time.process_time() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
from tests.benchmarks.test_model import timeouts_per_second
reference = max(timeouts_per_second() for _ in range(3))
print(json.dumps([seconds, peak, reference, found]))
"""


def million() -> Any:
    """A million messages in 42 minutes, a fifth of them for a host that is away for the first quarter of an hour."""
    of = away(MILLION, until_s=900.0)
    of.drain_s = 100_000.0
    return of


def run(script: str, *arguments: str) -> Any:
    """Run a script on the compiled packages; return what it printed."""
    compiled = build(ROOT / BUILD)
    env = environment(compiled)
    env["PYTHONPATH"] += f":{ROOT}"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=env,
        stdout=subprocess.PIPE,
        timeout=900,
        check=True,
    )
    return json.loads(done.stdout)


def test_messages_per_second():
    """50,000 with a fifth of deferrals, as the same run to the last bit; three quarters are a failure."""
    reference, found = run(SPEED)
    for name, make in (("away", away), ("refused", refusing)):
        of = make()
        expected = simulate(of, schedule=draw(of), backend="heapq")
        assert expected.counts["delivered"] == MESSAGES
        for backend in ("heapq", "simpy"):
            rate, fingerprint, counts = found[f"{name} {backend}"]
            assert fingerprint == expected.fingerprint
            assert counts == expected.counts
            print(f"\nmodel, compiled, {name}: {rate:,.0f} messages/s ({backend})", end="")
    print(f"; SimPy alone {reference / 1e6:.2f} M timeouts/s")
    for name in ("away", "refused"):
        assert found[f"{name} heapq"][0] > 0.75 * TARGET * min(1.0, reference / REFERENCE), name


def test_a_million_messages_from_a_recording(tmp_path: Path):
    """Within 30 s of CPU and 1 GB: reading trace and load, calibrating, telling what was, and the model's answer.

    With a setting changed the model answers twice, and the memory is still that.
    """
    counts = run(RECORD, str(tmp_path / "run"))
    assert counts["delivered"] == counts["accepted"] == MILLION
    assert counts["queued"] == counts["refused_messages"] == 0
    assert counts["deferred"] > 0.1 * MILLION
    size = sum(path.stat().st_size for path in (tmp_path / "run" / "slim").iterdir())
    for changes in ([], ["limits.mta.max_conn_per_host=2"]):
        seconds, peak, reference, found = run(REPLAY, str(tmp_path / "run"), *changes)
        for name in ("accepted", "delivered", "deferred", "bounced", "queued", "transactions"):
            assert found["then"][name] == counts[name], name
        assert found["model"]["delivered"] == MILLION
        assert found["model"]["drain_time_s"] == pytest.approx(found["then"]["drain_time_s"], 0.05)
        assert bool(found["what_if"]) == bool(changes)
        print(
            f"\nreplay of a million from {size / 1e6:.0f} MB, {1 + len(changes)} answers: {seconds:.1f} s of CPU,"
            f" peak RSS {peak / 1e6:.0f} MB",
            end="",
        )
        assert peak < RSS_MAX
        if not changes:
            assert seconds * min(1.0, reference / REFERENCE) < SECONDS_MAX
    print()
