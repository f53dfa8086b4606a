"""The whole bench with real processes, on a scenario that takes seconds."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sim.scenario import load
from sim.workload import draw
from testbed.report import html
from testbed.rundir import Run

pytestmark = pytest.mark.system

TINY = """
name = "tiny"
seed = 7
drain_s = 20.0
representations = ["packed"]

[load]
lag_max_s = 60
messages = 120
rate = 80.0
sessions = 5
sizes = { law = "fixed", bytes = 2048 }
recipients = { law = "fixed", count = 3 }

[[destinations]]
name = "steady"
domain = "steady.test"

[[destinations]]
name = "flaky"
domain = "flaky.test"
behaviours = [{ kind = "outage", from_s = 0.3, to_s = 1.2, mode = "refuse" }]

[server.retry]
policy = "quadratic"
base_s = 1.0
overflow_base_s = 0.5

[server.limits.mta]
route_delay_base_s = 0.2
route_delay_max_s = 0.5
session_keepalive_s = 0.5
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@contextlib.contextmanager
def bench(*arguments: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `testbed` in a directory; whatever the test does, it ends with it."""
    with subprocess.Popen(
        [sys.executable, "-m", "testbed", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fail if a process that the test started, or one that such a process started, is still there."""
    me = psutil.Process()
    yield
    gone, alive = psutil.wait_procs(me.children(recursive=True), timeout=5)
    del gone
    assert [] == [" ".join(each.cmdline()) for each in alive]


def outside(directory: Path) -> list[str]:
    """Return the command lines of processes that work in a run's directory, whoever's children they are."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(directory) in process.cwd() or any(
                str(directory) in w for w in process.cmdline()
            ):
                found.append(" ".join(process.cmdline()))
    return found


def test_from_a_scenario_to_a_report(scenario: Path, tmp_path: Path, nothing_left: None) -> None:
    """Everything that was accepted arrives in spite of an outage, and the run's directory tells it all."""
    with bench("run", str(scenario), "--json", cwd=tmp_path) as process:
        stdout, stderr = process.communicate(timeout=100)

    assert 0 == process.returncode, stderr
    summary = json.loads(stdout)
    assert (360, 360, 0, 0, 0, 0, 0) == tuple(
        summary[key]
        for key in ("accepted", "delivered", "bounced", "queued", "lost", "duplicates", "altered")
    )
    part = summary["representations"]["packed"]
    assert part["drained"]
    assert part["attempts_deferred"] > 0
    assert 40 < part["store_bytes_per_envelope"] < 120
    assert {} == part["leaks"]
    assert 0 <= summary["model"]["peak_queue_error"]
    assert 7 == summary["seed"]

    run = Run(tmp_path / "runs" / "latest")
    assert summary == run.summary
    assert "Every promise was kept" in (run.directory / "report.html").read_text()
    assert html(run) == (run.directory / "report.html").read_text()
    assert len(run.samples("packed")) > 10
    for name in ("mta.toml", "trace.jsonl", "load.jsonl", "sink-0.jsonl", "server.log"):
        assert (run.directory / "packed" / name).stat().st_size > 0, name
    assert not (run.directory / "packed" / "queue").exists()
    assert [] == outside(tmp_path)
    # Without a terminal: plain lines, and none of them repeated ten times a second.
    assert "packed: load" in stderr
    assert len(stderr.splitlines()) < 40


LOCAL = """
name = "tiny-local"
seed = 7
drain_s = 40.0
representations = ["fixed"]
[load]
lag_max_s = 60
messages = 40
rate = 20.0
sessions = 5
sizes = { law = "fixed", bytes = 2048 }
recipients = { law = "fixed", count = 1 }
[[local]]
name = "flood"
messages = 150
from_s = 0.0
to_s = 0.5
seconds = 0.2
tempfail = 0.05
permfail = 0.05
[[local]]
name = "others"
users = 5
messages = 4
from_s = 0.0
to_s = 2.0
delivery = "maildir"
[[destinations]]
name = "outside"
domain = "outside.test"
[server.retry]
mda_base_s = 0.5
overflow_base_s = 0.5
[server.limits.mda]
policy = "tempfail"
tempfail_max_pending_per_user = 10
[server.limits.mta]
session_keepalive_s = 0.5
"""


@pytest.mark.skipif(shutil.which("perl") is None, reason="no perl")
def test_local_users_are_accounted_for(tmp_path: Path, nothing_left: None) -> None:
    """Commands, Maildirs and the outside together; what a command refuses for good is a bounce."""
    (tmp_path / "local.toml").write_text(LOCAL)
    arguments = ("run", "./local.toml", "--no-model", "--json", "--out", "out")
    with bench(*arguments, cwd=tmp_path) as process:
        stdout, stderr = process.communicate(timeout=100)

    assert 0 == process.returncode, stderr
    summary = json.loads(stdout)
    fatal = int(draw(load(tmp_path / "local.toml")).fatal.sum())
    assert fatal > 0
    assert (210, 210 - fatal, fatal, 0, 0, 0, 0) == tuple(
        summary[key]
        for key in ("accepted", "delivered", "bounced", "queued", "lost", "duplicates", "altered")
    )
    part = summary["representations"]["fixed"]
    assert part["attempts_deferred"] > 0
    assert {} == part["leaks"]
    waits = part["delivery_latency_s"]
    assert {"flood": 150 - fatal, "others": 20, "outside": 40} == {
        name: wait["count"] for name, wait in waits.items()
    }
    samples = Run(tmp_path / "out").samples("fixed")
    assert samples["mda.refused"][-1] > 0
    assert not (tmp_path / "out" / "fixed" / "homes").exists()
    assert [] == outside(tmp_path)


def test_the_server_knows_the_authority_of_a_world_with_tls(
    tmp_path: Path, nothing_left: None
) -> None:
    """A server that sends to verified hosts only delivers everything; the configuration names a file."""
    verified = TINY.partition('[[destinations]]\nname = "flaky"')[0]
    verified += '[[destinations]]\nname = "private"\ndomain = "private.test"\ntls = "required"\n'
    verified = verified.replace('domain = "steady.test"', 'domain = "steady.test"\ntls = "offered"')
    verified += '[server.relay]\ntls = "verify"\n'
    (tmp_path / "verified.toml").write_text(verified)
    arguments = ("run", "./verified.toml", "--no-model", "--json", "--out", "out")
    with bench(*arguments, "--set", "load.messages=40", cwd=tmp_path) as process:
        stdout, stderr = process.communicate(timeout=100)

    assert 0 == process.returncode, stderr
    summary = json.loads(stdout)
    assert (120, 120, 0) == tuple(summary[key] for key in ("accepted", "delivered", "lost"))
    assert 'ca_file = "ca.pem"' in (tmp_path / "out" / "packed" / "mta.toml").read_text()
    tally = json.loads((tmp_path / "out" / "packed" / "run.json").read_text())["world"]
    assert tally["tls"] > 0
    assert tally["tls_failed"] == 0


def test_a_server_that_dies_fails_the_run(
    scenario: Path, tmp_path: Path, nothing_left: None
) -> None:
    """One line that says how; status 1; nothing is left running."""
    with bench("run", str(scenario), "--no-model", "--out", "out", cwd=tmp_path) as process:
        _wait_for_server(process, tmp_path).kill()
        _, stderr = process.communicate(timeout=60)

    assert 1 == process.returncode
    assert stderr.splitlines()[-1].startswith("testbed: server was ended by SIGKILL")
    assert [] == outside(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(
    scenario: Path, tmp_path: Path, nothing_left: None, number: signal.Signals
) -> None:
    """Ctrl-C, or a supervisor's SIGTERM: all processes end, in order, and it is said."""
    with bench("run", str(scenario), "--no-model", "--out", "out", cwd=tmp_path) as process:
        _wait_for_server(process, tmp_path)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)

    assert 130 == process.returncode
    assert stderr.splitlines()[-1].startswith("testbed: interrupted")
    assert "Traceback" not in stderr
    assert [] == outside(tmp_path)


def test_settings_that_the_server_can_not_use(
    scenario: Path, tmp_path: Path, nothing_left: None
) -> None:
    """The scenario has a typo in the server's table: its line, status 2, and no directory that looks like a run."""
    for wrong in ("server.limits.mta.max_con=3", "server.relay.prot=3"):
        with bench("run", str(scenario), "--set", wrong, cwd=tmp_path) as process:
            _, stderr = process.communicate(timeout=60)

        assert 2 == process.returncode
        assert wrong.partition(".")[2].partition("=")[0] in stderr.splitlines()[-1]
        assert [] == list(tmp_path.glob("runs/*"))
        assert [] == outside(tmp_path)


def _wait_for_server(process: subprocess.Popen[str], directory: Path) -> psutil.Process:
    """Return the server's process once it takes mail."""
    deadline = time.monotonic() + 40
    log = directory / "out" / "packed" / "server.log"
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if log.is_file() and "smtp connected" in log.read_text():
            for each in psutil.Process(process.pid).children(recursive=True):
                if "serve" in each.cmdline():
                    return each
        time.sleep(0.05)
    raise AssertionError("the server did not start")
