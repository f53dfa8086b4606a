"""`testbed peers` for real and small: a page with verdicts, whoever is here; one that dies is named and the others go on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import packages
from testbed.targets import apart
from testbed.targets.choice import PEERS, why_not
from tests.support.server import ROOT

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(apart.why_not()), reason=f"setting apart {apart.why_not()}"),
]

SMALL = ("--scale", "0.02", "--repeats", "1")


@pytest.fixture(autouse=True)
def peers() -> Iterator[None]:
    """The command runs elsewhere, and finds the same trees."""
    before = os.environ.get("TESTBED_PEERS")
    os.environ["TESTBED_PEERS"] = str(packages.default_directory().resolve())
    yield
    if before is None:
        del os.environ["TESTBED_PEERS"]
    else:
        os.environ["TESTBED_PEERS"] = before


def here() -> list[str]:
    return [name for name in PEERS if not why_not(name)]


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "testbed", "peers", "--out", "out", *arguments],
        cwd=directory, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_one_command_makes_one_page(tmp_path: Path) -> None:
    """Ours beside all that are here: the queue is kept, mail arrives, both questions are asked, and the page needs nothing else."""
    found = here()
    if not found:
        pytest.skip("needs another server: testbed peers install")
    sets = ("--set", "load.messages=300", "--set", "destinations.0.hosts=4")
    command = start(
        tmp_path, *SMALL, "--scenario", "full-speed", "--scenario", "long-queue", *sets, "--json"
    )
    stdout, stderr = command.communicate(timeout=220)
    assert command.returncode == 0, stderr
    result = json.loads(stdout)

    labels = ["ours", *found]
    assert [[each["label"] for each in section["cells"]] for section in result["scenarios"]] == [
        labels,
        labels,
    ]
    for cell in result["scenarios"][0]["cells"]:
        assert cell["quantities"]["delivered"]["values"] == [300], cell["label"]
        assert cell["quantities"]["lost"]["values"] == [0]
    speed, memory = result["verdicts"]
    if not result["failed"] and result["syncs"] and {"postfix", "exim"} & set(found):
        # How much faster is a benchmark's business; that both are known is this test's.
        assert speed["ours"] > 0
        assert speed["theirs"] > 0
        assert speed["against"] in ("postfix", "exim")
        assert result["syncs"]["ours"]["sum"] >= 1
    if "opensmtpd" in found:
        assert "scheduler" in result["scenarios"][1]["cells"][labels.index("opensmtpd")]["agents"]
    assert memory["answer"] in ("met", "missed", "not measured")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Speed, end to end, at equal durability" in page
    for word in ("http://", "https://", "<script"):
        assert word not in page.replace("http://www.w3.org", "")
    assert "[1/" in stderr
    assert "left" in stderr


def test_one_that_dies_is_named(tmp_path: Path) -> None:
    """Killed in the middle of its load: one line says so, ours is measured, the status is 1, and nothing is left running."""
    name = next(iter(here()), None)
    if name is None:
        pytest.skip("needs another server: testbed peers install")
    command = start(
        tmp_path,
        "--repeats",
        "1",
        "--scale",
        "0.2",
        "--scenario",
        "baseline",
        "--target",
        name,
        "--target",
        "ours",
        "--json",
    )
    try:
        record = tmp_path / "out" / f"baseline-{name}-1" / name / "load.jsonl"
        deadline = time.monotonic() + 120
        while not (record.is_file() and record.read_bytes().count(b"\n") > 20):
            assert command.poll() is None, command.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for pid in below(command.pid):
            if first_of(pid).endswith(("/master", "/smtpd", "/exim4")):
                os.kill(pid, signal.SIGKILL)
        stdout, stderr = command.communicate(timeout=150)
    finally:
        command.kill()
        command.wait()
    assert command.returncode == 1, stderr
    result = json.loads(stdout)
    (failed,) = [each for each in result["failed"] if each.startswith("baseline")]
    assert failed.startswith(f"baseline, {name}, 1: ")
    assert ["ours"] == [each["label"] for each in result["scenarios"][0]["cells"]]
    assert "Traceback" not in stderr
    page = (tmp_path / "out" / "report.html").read_text()
    assert "this run is left out" in page
    assert not [pid for pid in every_pid() if str(tmp_path) in first_of(pid, whole=True)]


def every_pid() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def first_of(pid: int, *, whole: bool = False) -> str:
    """Return a process's program, or its whole command line; empty if it is gone."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return ""
    return " ".join(words) if whole else words[0]


def below(pid: int) -> list[int]:
    """Return the processes that a process started, and theirs."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(each) for each in path.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *below(child)]
    return found
