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


def ended(command: subprocess.Popen[str], timeout_s: float) -> tuple[str, str]:
    """Return what a command said; it is told to end if it takes too long."""
    try:
        return command.communicate(timeout=timeout_s)
    except BaseException:
        command.terminate()
        command.communicate()
        raise


def test_one_command_makes_one_page(tmp_path: Path) -> None:
    """Ours twice, taking turns with one that syncs: mail arrives, the first question is answered, and the page needs nothing else."""
    other = next((name for name in ("postfix", "exim") if name in here()), None)
    if other is None:
        pytest.skip("needs postfix or exim: testbed peers install")
    command = start(
        tmp_path, "--repeats", "2", "--scenario", "full-speed", "--set", "load.messages=100",
        "--target", "ours", "--target", other, "--json",
    )  # fmt: skip
    stdout, stderr = ended(command, 220)
    assert command.returncode == 0, stderr
    result = json.loads(stdout)

    (section,) = result["scenarios"]
    assert ["ours", other] == [cell["label"] for cell in section["cells"]]
    for cell in section["cells"]:
        assert cell["quantities"]["delivered"]["values"] == [100, 100], cell["label"]
        assert cell["quantities"]["lost"]["values"] == [0, 0]
    speed, memory = result["verdicts"]
    # How much faster is a benchmark's business; that it is known, and why the other is not, is this test's.
    if result["syncs"]:
        assert speed["against"] == other
        assert speed["ratio"] == pytest.approx(speed["ours"] / speed["theirs"])
        assert result["syncs"]["ours"]["sum"] >= 1
    assert memory["answer"] == "not measured"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Speed, end to end, at equal durability" in page
    for word in ("http://", "https://", "<script"):
        assert word not in page.replace("http://www.w3.org", "")
    assert "[4/4] full-speed, ours, 2 of 2; about " in stderr


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
        stdout, stderr = ended(command, 150)
    finally:
        command.terminate()
        command.communicate()
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
