"""A trace of the real server, told again to a core, gives the server's own counts at every sample."""

import json
import smtplib
from pathlib import Path
from typing import Any

import pytest

from mta.core import records
from mta.core.stimuli import TransactionDone
from sim.measure import measure
from sim.records import Retrace
from sim.scenario import to_toml
from testbed.world.handle import World
from tests.support.model import scenario
from tests.support.server import RunningServer

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


@pytest.mark.parametrize("representation", ["full", "packed"])
def test_a_server_did_what_a_core_would_have_done(tmp_path: Path, representation: str):
    """Its gauges and counters at each sample are those of the core that hears its trace again."""
    of = scenario(
        {"kind": "latency", "delay_s": 0.002},
        {"kind": "reject", "probability": 0.4, "code": 450},
        {"kind": "reject", "code": 550, "match": ["never*@*"]},
    )
    world_file = tmp_path / "world.toml"
    world_file.write_text(to_toml(of))
    trace = tmp_path / "trace.jsonl"
    with World(world_file, record_dir=tmp_path / "world") as world:
        world.set_start()
        config: dict[str, Any] = {
            "envelope": representation,
            "relay": {"port": world.smtp_port},
            "dns": {"nameserver": world.dns},
            "retry": {"base_s": 0.4, "jitter": "full"},
            "limits": {"mta": {"session_keepalive_s": 0.3}},
            "log": {"stimuli": str(trace)},
        }
        with RunningServer(tmp_path / "server", config) as server:
            with smtplib.SMTP("127.0.0.1", server.port, local_hostname="client.test") as smtp:
                for number in range(60):
                    rcpts = [f"u{number}@a.test", f"v{number}@a.test"]
                    if number % 10 == 0:
                        rcpts.append("never@a.test")
                    smtp.sendmail("sender@a.test", rcpts, "Subject: x\r\n\r\nhello\r\n")
            server.until(lambda stats: not stats["queue.envelope"] and not stats["mta.session"])
            assert server.stop() == 0
    samples = 0
    with trace.open("rb") as file:
        read = records.parse(file)
        core = Retrace(read.header)
        for record in read.records:
            if record["k"] == records.GAUGES:
                ours = {**core.engine.gauges(), **core.engine.counters()}
                theirs = {name: record[name] for name in ours}
                assert theirs == ours, record["t"]
                samples += 1
            else:
                core.step(record)
    assert samples > 2
    core.engine.validate()
    assert len(core.engine.store) == 0
    counts = core.engine.scheduler.counts
    assert counts.ok >= 120
    assert counts.tempfail > 10
    assert counts.bounced > 0
    # Every answer has its question, so durations can be had.
    _, measured = measure(trace)
    assert len(measured.transactions) > 60
    assert all(seconds > 0 for seconds, _, _ in measured.transactions)
    assert json.loads(trace.read_text().splitlines()[0])["representation"] == representation
    assert TransactionDone.__name__ in trace.read_text()
