"""Accept, make durable, relay: ours and Debian's Postfix under the same load in the same run.

    pytest -m benchmark -s tests/benchmarks/test_beside_postfix.py

smtp-source with 20 sessions and a connection per message, 4 KiB each; smtp-sink takes everything, and the
clock stops when it has the last one. The two take turns; MESSAGES and ROUNDS in the
environment change the size. Both sync message and queue file before their 250.
"""

import os
import statistics
import subprocess
import time

import pytest

from tests.support.postfix import RunningPostfix, missing
from tests.support.server import RunningServer, free_port
from tests.support.smtpsink import SmtpSink

MESSAGES = int(os.environ.get("MESSAGES", "3000"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
SESSIONS = 20
SIZE_BYTES = 4096


def one_round(port: int, sink: SmtpSink, *, kept: bool) -> float:
    """Send the load and return messages per second until the sink has the last one."""
    command = ["/usr/sbin/smtp-source", "-s", str(SESSIONS), "-m", str(MESSAGES)]
    command += ["-l", str(SIZE_BYTES), "-f", "a@source.test", "-t", "b@dest.test"]
    command += ["-d"] * kept + [f"127.0.0.1:{port}"]
    expected = sink.messages + MESSAGES
    started = time.perf_counter()
    subprocess.run(command, check=True, timeout=120)
    sink.wait_for(expected, 60)
    return MESSAGES / (time.perf_counter() - started)


@pytest.mark.benchmark
@pytest.mark.skipif(bool(missing()), reason=f"needs Debian's postfix: {missing()}")
@pytest.mark.skipif(os.geteuid() != 0, reason="Postfix must be started by root")
@pytest.mark.parametrize("kept", [False, True], ids=["connection-per-message", "kept"])
def test_at_least_as_fast_as_postfix(tmp_path, kept):
    """End to end at 20 sessions, 4 KiB: at least Postfix's rate, at the same durability."""
    ports = [free_port("127.0.0.2") for _ in range(2)]
    postfix_port = free_port()
    ours, theirs = [], []
    config = {"relay": {"port": ports[0], "smart_host": "[127.0.0.2]"}}
    server = RunningServer(tmp_path / "ours", config)
    postfix = RunningPostfix(
        tmp_path / "postfix", port=postfix_port, relayhost=f"[127.0.0.2]:{ports[1]}"
    )
    with (
        SmtpSink("127.0.0.2", ports[0]) as our_sink,
        SmtpSink("127.0.0.2", ports[1]) as their_sink,
        server,
        postfix,
    ):
        for number in range(ROUNDS + 1):
            pair = (
                one_round(server.port, our_sink, kept=kept),
                one_round(postfix_port, their_sink, kept=kept),
            )
            if number:  # the first round warms both up
                ours.append(pair[0])
                theirs.append(pair[1])
        stats = server.until(lambda s: s["scheduler.envelope"] == 0)
        assert stats["scheduler.delivery.ok"] == MESSAGES * (ROUNDS + 1)
        assert stats["scheduler.delivery.tempfail"] == 0
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(
        f"\n{'kept connections' if kept else 'connection per message'}: messages/s, median of {ROUNDS}"
        f"\n  ours    {statistics.median(ours):7.0f}  ({min(ours):.0f} to {max(ours):.0f})"
        f"\n  Postfix {statistics.median(theirs):7.0f}  ({min(theirs):.0f} to {max(theirs):.0f})"
        f"\n  ratio   {statistics.median(ratios):7.2f}  ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    assert statistics.median(ratios) >= 1.0
