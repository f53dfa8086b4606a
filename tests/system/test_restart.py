"""The bench ends a real server by SIGKILL and by SIGTERM under load, starts it again, and accounts for every recipient."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sim.calibrate import calibrate
from sim.records import Retrace
from sim.scenario import load
from testbed.children import RunError, UsageError
from testbed.progress import Display
from testbed.run import Options, execute
from testbed.rundir import Run
from testbed.targets.ours import OurServer

SCENARIO = """
name = "twice"
seed = 7
drain_s = 40.0
representations = ["slim"]
[load]
messages = 150
rate = 50.0
sessions = 6
tries = 60
lag_max_s = 60.0
[load.recipients]
law = "fixed"
count = 4
[[destinations]]
name = "steady"
domain = "steady.test"
behaviours = [{ kind = "latency", delay_s = 0.02 }]
[[destinations]]
name = "away"
domain = "away.test"
behaviours = [{ kind = "outage", from_s = 0.0, to_s = 2.5, mode = "refuse" }]
[server.retry]
base_s = 0.5
[server.limits.mta]
session_keepalive_s = 0.3
[[timeline]]
at_s = 0.3
set = { "limits.mta.max_conn_per_host" = 3 }
[[timeline]]
at_s = 0.7
restart = "kill"
down_s = 0.25
[[timeline]]
at_s = 1.9
restart = "stop"
down_s = 0.25
[[timeline]]
at_s = 2.2
set = { "limits.mta.max_conn_per_host" = 4 }
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run of it, model included."""
    place = tmp_path_factory.mktemp("restart")
    (place / "twice.toml").write_text(SCENARIO)
    options = Options(
        scenario=str(place / "twice.toml"),
        out=place / "run",
        footprint=0,
        settle=False,
        is_part=True,
    )
    with Display(quiet=True) as display:
        return execute(options, display)


def notes_of(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.directory / "slim" / "run.json").read_text())
    return found


@pytest.mark.system
@pytest.mark.timeout(120)
def test_nothing_is_lost(run: Run):
    """Every recipient that was promised something arrived; all clients were served in the end; who repeats is named."""
    summary = run.summary
    part = summary["representations"]["slim"]
    assert summary["failures"] == []
    assert part["accepted"] == part["delivered"] == 600
    assert part["lost"] == part["refused"] == part["queued"] == part["unexpected"] == 0
    assert [each["how"] for each in part["restarts"]] == ["kill", "stop"]
    assert part["recovery_s"] > 0.25
    # Counters began at 0 twice; the sum knows of all lives.
    assert part["cpu_s"] > 0.3
    assert part["drained"]


@pytest.mark.system
@pytest.mark.timeout(120)
def test_what_was_written_down(run: Run):
    """When it went and came back, in this order; what was on the disk; what was said before and after."""
    notes = notes_of(run)
    for each in notes["restarts"]:
        order = ("at_s", "asked_s", "gone_s", "started_s", "opened_s", "restored_s")
        assert sorted(each[name] for name in order) == [each[name] for name in order]
        assert each["started_s"] - each["gone_s"] >= 0.24
        # Half of the mail waits for a host that is away.
        assert each["envelopes"] >= 20
        assert each["read_s"] >= 0
    assert [each["said"] for each in notes["operated"]] == [
        "set limits.mta.max_conn_per_host=3",
        "SIGKILL, 0.25 s down",
        "SIGTERM, 0.25 s down",
        "set limits.mta.max_conn_per_host=4",
    ]
    text = (run.directory / "slim" / "load.jsonl").read_text()
    load_lines = [json.loads(line) for line in text.splitlines()]
    sent = [line for line in load_lines if line["kind"] == "message"]
    assert any(line["attempts"] > 1 for line in sent)
    down = [
        (notes["load_start"] + r["gone_s"], notes["load_start"] + r["started_s"])
        for r in notes["restarts"]
    ]
    assert not any(
        begin < line["done"] < end and line["code"] == 250 for line in sent for begin, end in down
    )


@pytest.mark.system
@pytest.mark.timeout(120)
def test_each_process_has_a_trace(run: Run):
    """A core that hears each of them again says what the server did; those of the later ones begin with the queue."""
    restored = []
    for name in ("trace.jsonl", "trace-2.jsonl", "trace-3.jsonl"):
        lines = (run.directory / "slim" / name).read_bytes().splitlines(keepends=True)
        core = Retrace(json.loads(lines[0]))
        count = 0
        for line in lines[1:]:
            if line.endswith(b"\n"):
                step = core.step(json.loads(line))
                count += step is not None and type(step.stimulus).__name__ == "EnvelopeRestored"
        restored.append(count)
    assert restored == [0, *(each["envelopes"] for each in notes_of(run)["restarts"])]
    costs = calibrate(run.directory)
    assert 0.05 < costs.start_s < 20
    assert set(costs.provenance.files) >= {
        "slim/trace.jsonl",
        "slim/trace-2.jsonl",
        "slim/trace-3.jsonl",
    }


@pytest.mark.system
@pytest.mark.timeout(120)
def test_the_model_and_the_report_have_them_too(run: Run):
    """Beside each other; what the model says of the same two ends."""
    found = run.summary["model"]["representations"]["slim"]
    assert [each["how"] for each in found["restarts"]] == ["kill", "stop"]
    assert all(each["envelopes"] >= 20 for each in found["restarts"])
    assert found["counts"]["accepted"] == found["counts"]["delivered"] == 600
    page = (run.directory / "report.html").read_text()
    assert "The end of the process, and the next one" in page
    assert "SIGTERM" in page
    assert load(run.directory / "scenario.toml").timeline == run.scenario.timeline


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OurServer]:
    """A server without a world."""
    made = OurServer(
        tmp_path,
        representation="slim",
        overrides={},
        seed=1,
        relay_port=25,
        nameserver="127.0.0.1:9",
        comes_back=True,
    )
    yield made
    made.stop()


@pytest.mark.system
@pytest.mark.timeout(120)
def test_it_comes_back_where_it_was(server: OurServer):
    """On the same port, which no outgoing connection can have taken; another process, and nothing to read."""
    server.start()
    address, [pid] = server.smtp_address, server.pids()
    found = server.restart("kill", 0.1)
    assert server.smtp_address == address
    assert server.pids() != [pid]
    assert found["envelopes"] == found["read_s"] == 0
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert 1024 <= address[1] < low
    with socket.create_connection(address, timeout=10) as client:
        assert client.recv(4) == b"220 "


@pytest.mark.system
@pytest.mark.timeout(120)
def test_one_that_can_not_come_back_says_why(server: OurServer, monkeypatch: pytest.MonkeyPatch):
    """Somebody took its port while it was down: one line, in the words of the server."""
    server.start()
    launch = server._launch
    with socket.socket() as other:

        def launch_too_late() -> None:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(server.smtp_address)
            other.listen()
            launch()

        monkeypatch.setattr(server, "_launch", launch_too_late)
        with pytest.raises((RunError, UsageError)) as told:
            server.restart("kill", 0.1)
    assert "smtp.listen" in str(told.value)
    assert "\n" not in str(told.value)
