"""Real Postfix, OpenSMTPD and Exim in cells of their own, under a scenario's load in a scripted Internet.

A server that this machine has not is downloaded once; without a network its tests are skipped.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import packages, syncs
from testbed.children import RunError
from testbed.targets import apart
from testbed.targets.choice import PEERS
from tests.support.server import ROOT

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(apart.why_not()), reason=f"setting apart {apart.why_not()}"),
]

SCENARIO = """
name = "short"
seed = 7
drain_s = 12.0

[load]
messages = 120
rate = 60.0
sessions = 5
lag_max_s = 60

[load.recipients]
law = "zipf"
s = 1.33
max = 3

[[destinations]]
name = "steady"
domain = "steady.test"
share = 0.8
hosts = 2

[[destinations]]
name = "never"
domain = "never.test"
share = 0.2
behaviours = [{ kind = "reject", code = 550, enhanced = "5.1.1", text = "No such user" }]

[server.retry]
base_s = 1.0
"""


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the servers are; those that are nowhere yet are brought there by the tests that want them."""
    known = packages.default_directory().resolve()
    directory = known if known.is_dir() else tmp_path_factory.mktemp("peers")
    before = os.environ.get("TESTBED_PEERS")
    os.environ["TESTBED_PEERS"] = str(directory)
    yield directory
    if before is None:
        del os.environ["TESTBED_PEERS"]
    else:
        os.environ["TESTBED_PEERS"] = before


def have(name: str, directory: Path) -> None:
    """Skip unless the server is here or can be had."""
    if not packages.find(name, directory).is_here:
        try:
            packages.install(name, directory, say=print)
        except RunError as error:
            pytest.skip(f"needs {name}: {error}")


def run(tmp_path: Path, name: str, *options: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    scenario = tmp_path / "short.toml"
    scenario.write_text(SCENARIO)
    out = tmp_path / "run"
    command = [sys.executable, "-m", "testbed", "run", str(scenario), "--target", name]
    done = subprocess.run(
        [*command, "--out", str(out), "--json", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    return done, out


@pytest.mark.parametrize("name", PEERS)
def test_every_promise_of_another_server_is_accounted_for(
    name: str, peers: Path, tmp_path: Path
) -> None:
    """Delivered, bounced by its own log, or in its queue; and memory, time and queue were measured."""
    have(name, peers)
    counts = name == "exim" and not syncs.why_not()
    done, out = run(tmp_path, name, *(["--syncs"] if counts else []))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    ledger = json.loads((out / "ledger.json").read_text())[name]
    assert ledger["accepted"] > 150
    assert ledger["lost"] == ledger["duplicates"] == ledger["altered"] == 0
    assert ledger["bounced"] > 20
    if name != "opensmtpd":  # which opens a connection in five seconds
        assert ledger["queued"] == 0
        assert ledger["delivered"] + ledger["bounced"] == ledger["accepted"]
    part = summary["representations"][name]
    assert part["target"] == name
    assert part["queue_unit"] == ("envelopes" if name == "opensmtpd" else "messages")
    assert part["cpu_ms_per_message"] > 0.3
    assert 2e6 < part["base_pss_bytes"] < 100e6
    assert ("scheduler" in part["agents"]) == (name == "opensmtpd"), (
        "a process that is watched apart"
    )
    if name != "opensmtpd":
        assert part["bytes_per_envelope"] is None, "it does not tell envelopes"
    if counts:
        assert part["fsyncs_per_message"] >= 3, "body, header and directory, before its 250"
    assert part["ambiguous"] is None, "which it does not tell"
    assert (out / "report.html").is_file()
    processes = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _alive(path)]
    assert not [line for line in processes if str(out).encode() in line], "something is left"


def _alive(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def test_a_server_that_is_not_here_is_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "none"
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "testbed", "peers", "list", "--dir", str(empty), "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    absent = [peer["name"] for peer in json.loads(done.stdout) if not peer["is_here"]]
    if not absent:
        pytest.skip("all of them are installed on this machine")
    scenario = tmp_path / "short.toml"
    scenario.write_text(SCENARIO)
    done = subprocess.run(
        [sys.executable, "-m", "testbed", "run", str(scenario), "--target", absent[0]],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "TESTBED_PEERS": str(empty)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"testbed: {absent[0]} is not here: testbed peers install {absent[0]}"
    ]
