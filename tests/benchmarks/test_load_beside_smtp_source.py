"""The load generator beside Postfix's smtp-source, taking turns, into the same smtp-sink.

    pytest -m benchmark -s tests/benchmarks/test_load_beside_smtp_source.py

20 sessions, 4 KiB, one process each. All must have arrived before a time counts. Locust's times are its own, from the
first message to the last reply: smtp-source starts in a millisecond, Locust in a second.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.server import free_port
from tests.support.smtpsink import SmtpSink

ROOT = Path(__file__).resolve().parents[2]
MESSAGES = int(os.environ.get("MESSAGES", "10000"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
SESSIONS = 20
SIZE_BYTES = 4096
SOURCE = Path("/usr/sbin/smtp-source")
FIXED = ("load.recipients.law=fixed", "load.sizes.law=fixed", f"load.sessions={SESSIONS}")

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.skipif(not SOURCE.exists(), reason="needs Debian's postfix for smtp-source"),
]


def theirs(port: int, sink: SmtpSink, *, kept: bool) -> float:
    """Return messages per second of smtp-source."""
    command = [str(SOURCE), "-s", str(SESSIONS), "-m", str(MESSAGES), "-l", str(SIZE_BYTES)]
    command += ["-d"] * kept + [f"127.0.0.1:{port}"]
    expected = sink.messages + MESSAGES
    started = time.perf_counter()
    subprocess.run(command, check=True, timeout=120)
    took = time.perf_counter() - started
    sink.wait_for(expected, 30)
    return MESSAGES / took


def ours(port: int, record: Path, *settings: str) -> tuple[int, dict[str, object]]:
    """Return exit status and the last line of the record."""
    sets = [word for each in (*FIXED, *settings) for word in ("--set", each)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests"), "--headless"),
            *("--only-summary", "--host", f"smtp://127.0.0.1:{port}", "--lag-max", "60"),
            *("--summary", str(record), *sets),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.returncode, json.loads(record.read_text())


@pytest.mark.parametrize(
    ("kept", "least"), [(True, 0.7), (False, 0.4)], ids=["kept", "connection-per-message"]
)
def test_throughput_beside_smtp_source(tmp_path, kept, least):
    """Kept connections: at least 0.7 of what a client in C sends."""
    port = free_port()
    ratios, mine, others = [], [], []
    with SmtpSink("127.0.0.1", port) as sink:
        for number in range(ROUNDS + 1):
            other = theirs(port, sink, kept=kept)
            expected = sink.messages + MESSAGES
            settings = (
                f"load.messages={MESSAGES}",
                "load.rate=1000000",
                f"load.keep={kept}".lower(),
            )
            _, end = ours(port, tmp_path / "end", *settings)
            sink.wait_for(expected, 30)
            assert end["outcomes"] == {"250": MESSAGES}
            mine_now = MESSAGES / float(str(end["took_s"]))
            if number:  # the first round warms both up
                mine.append(mine_now)
                others.append(other)
                ratios.append(mine_now / other)
    print(
        f"\n{'kept connections' if kept else 'connection per message'}: messages/s, median of {ROUNDS}"
        f"\n  Locust       {statistics.median(mine):7.0f}  ({min(mine):.0f} to {max(mine):.0f})"
        f"\n  smtp-source  {statistics.median(others):7.0f}  ({min(others):.0f} to {max(others):.0f})"
        f"\n  ratio        {statistics.median(ratios):7.2f}  ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    assert statistics.median(ratios) >= least


def test_a_thousand_a_second_leave_in_time(tmp_path):
    """At 1,000 scheduled messages a second 99 of 100 leave within 10 ms of their instant."""
    port = free_port()
    with SmtpSink("127.0.0.1", port) as sink:
        settings = ("load.messages=10000", "load.rate=1000", "load.keep=true")
        _, end = ours(port, tmp_path / "end", *settings)
        sink.wait_for(10_000, 30)
    print(f"\nlag of the generator: {end['generator_lag_s']}, start: {end['start_delay_s']}")
    lag = end["generator_lag_s"]
    assert isinstance(lag, dict)
    assert lag["p99"] <= 0.010
