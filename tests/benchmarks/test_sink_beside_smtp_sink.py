"""The scripted hosts beside Postfix's smtp-sink, taking turns, under the same smtp-source.

    pytest -m benchmark -s tests/benchmarks/test_sink_beside_smtp_sink.py

20 sessions, 4 KiB, one process each. Ours reads every message, takes its digest and writes a line about it, as it does in an
experiment; smtp-sink throws it away. What limits an experiment must be the server, so ours may not be far slower.
Before anything is timed, messages with known contents go there: every one must arrive, once and unchanged.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from sim.scenario import load
from sim.workload import digest, draw, message_bytes
from testbed.world.handle import World
from tests.support.server import ROOT, free_port
from tests.support.smtpsink import SmtpSink

MESSAGES = int(os.environ.get("MESSAGES", "10000"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
KNOWN = 2000
SESSIONS = 20
SIZE_BYTES = 4096
SOURCE = Path("/usr/sbin/smtp-source")
HOST = "127.0.10.1"
SCENARIO = f"""
name = "sink"
[load]
messages = {KNOWN}
rate = 1e6
sessions = {SESSIONS}
keep = true
[[destinations]]
name = "one"
domain = "one.test"
"""

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.skipif(not SOURCE.exists(), reason="needs Debian's postfix for smtp-source"),
]


def rate(address: str, port: int, *, kept: bool) -> float:
    """Return messages per second of smtp-source to a sink; it ends when the last one was answered."""
    command = [str(SOURCE), "-s", str(SESSIONS), "-m", str(MESSAGES), "-l", str(SIZE_BYTES)]
    command += ["-f", "a@one.test", "-t", "b@one.test"]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, *["-d"] * kept, f"{address}:{port}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return MESSAGES / (time.perf_counter() - started)


def records(world: World) -> list[dict]:
    return [json.loads(line) for path in world.records for line in path.read_text().splitlines()]


def takes_what_is_sent(world: World, scenario: Path) -> None:
    """Assert that known messages arrive: each once, with the digest of what was sent."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests"), "--headless"),
            *("--only-summary", "--host", f"smtp://{HOST}:{world.smtp_port}", "--lag-max", "60"),
            *("--scenario", str(scenario), "--run-id", "known"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    world.stats()  # flushes
    schedule = draw(load(str(scenario)))
    sent = Counter((i, digest(message_bytes(schedule, i, "known"))) for i in range(KNOWN))
    assert Counter((each["seq"], each["digest"]) for each in records(world)) == sent


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "connection-per-message"])
def test_throughput_beside_smtp_sink(tmp_path, kept):
    """At least half of what a sink in C takes, and nothing is lost on the way."""
    scenario = tmp_path / "sink.toml"
    scenario.write_text(SCENARIO)
    port = free_port()
    mine, others, ratios = [], [], []
    with (
        World(scenario, record_dir=tmp_path / "world") as world,
        SmtpSink("127.0.0.1", port) as sink,
    ):
        world.set_start()
        takes_what_is_sent(world, scenario)
        for number in range(ROUNDS + 1):
            expected = sink.messages + MESSAGES
            other = rate("127.0.0.1", port, kept=kept)
            sink.wait_for(expected, 30)
            mine_now = rate(HOST, world.smtp_port, kept=kept)
            if number:  # the first round warms both up
                mine.append(mine_now)
                others.append(other)
                ratios.append(mine_now / other)
        world.stats()
        taken = records(world)[KNOWN:]
    assert len(taken) == MESSAGES * (ROUNDS + 1)
    assert {(each["code"], tuple(each["rcpts"])) for each in taken} == {(250, ("b@one.test",))}
    assert all(each["size"] >= SIZE_BYTES for each in taken)
    print(
        f"\n{'kept connections' if kept else 'connection per message'}: messages/s, median of {ROUNDS}"
        f"\n  ours       {statistics.median(mine):7.0f}  ({min(mine):.0f} to {max(mine):.0f})"
        f"\n  smtp-sink  {statistics.median(others):7.0f}  ({min(others):.0f} to {max(others):.0f})"
        f"\n  ratio      {statistics.median(ratios):7.2f}  ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    assert statistics.median(ratios) >= 0.5
