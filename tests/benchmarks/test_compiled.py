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
"""Of CPU, for reading the record of a million messages and for what the model makes of them."""
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

REPLAY = """
import json, pathlib, resource, sys, time
from sim.replay import arrivals
from sim.runner import simulate
from tests.benchmarks.test_compiled import million

of = million()
started = time.process_time()
schedule, start, sent = arrivals(pathlib.Path(sys.argv[1]), of)
read_s = time.process_time() - started
result = simulate(of, schedule=schedule, backend="heapq", fingerprint=False)
seconds = time.process_time() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
from tests.benchmarks.test_model import timeouts_per_second
reference = max(timeouts_per_second() for _ in range(3))
print(json.dumps([read_s, seconds, peak, reference, len(sent), result.counts]))
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
    """Read and replayed within 30 s of CPU and 1 GB, on a machine that does what that of the figures does."""
    record = tmp_path / "load.jsonl"
    due_s = draw(million()).due_s.tolist()
    with record.open("w") as file:
        file.write('{"kind": "start", "load_start": 1000.0}\n')
        for number, due in enumerate(due_s):
            file.write(
                f'{{"kind": "message", "seq": {number}, "scheduled": {1000 + due}, "sent": {1000 + due}, "done": {1000.01 + due},'
                f' "attempts": 1, "code": 250, "reply": "2.0.0 {number + 1:08x} Message accepted for delivery",'
                f' "rcpts": ["user{number}@a.test"]}}\n'
            )
    read_s, seconds, peak, reference, sent, counts = run(REPLAY, str(record))
    assert sent == counts["accepted"] == counts["delivered"] == MILLION
    assert counts["queued"] == counts["refused_messages"] == 0
    assert counts["deferred"] > 0.1 * MILLION
    print(
        f"\nreplay of a million: {read_s:.1f} s to read {record.stat().st_size / 1e6:.0f} MB, {seconds:.1f} s in all,"
        f" {counts['deferred']:,} deferrals, peak RSS {peak / 1e6:.0f} MB"
    )
    assert peak < RSS_MAX
    assert seconds * min(1.0, reference / REFERENCE) < SECONDS_MAX
