"""A sweep in real processes: killed and continued, interrupted, on a Dask cluster; always the same result to the last bit."""

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.server import free_port
from tests.support.waiting import eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

SIM = (sys.executable, "-m", "sim", "sweep")
ASKED = (
    "backlog", "--set", "load.messages=500", "--over", "limits.mta.max_conn_per_host=1,2,3,4,5,6,7,8,9", "--replications", "3",
)  # fmt: skip
RUNS = 10 * 3
"""Of which two processes do some ten in a second, so that a kill after the second comes long before the last."""


def places(folder: Path, name: str = "one") -> tuple[str, ...]:
    return ("--cache", str(folder / f"cache-{name}"), "--out", str(folder / f"out-{name}"))


def said(stderr: str) -> str:
    """Return what was said beside how far it is, which a slow machine is told every ten seconds."""
    lines = stderr.splitlines(keepends=True)
    return "".join(each for each in lines if not re.match(r"sim: \d+ of \d+ runs", each))


def result(folder: Path, name: str = "one") -> tuple[bytes, bytes]:
    out = folder / f"out-{name}"
    return (out / "sweep.json").read_bytes(), (out / "report.html").read_bytes()


def finished(*words: str) -> str:
    """Return what a sweep says that comes to its end."""
    run = subprocess.run([*SIM, *words], capture_output=True, text=True, timeout=90)
    assert (run.returncode, said(run.stderr)) == (0, "")
    return run.stdout


def kept(folder: Path) -> int:
    return len(list((folder / "cache-one").glob("??/*.json")))


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        # A zombie only waits for somebody to ask how it ended.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@contextmanager
def under_way(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Yield a sweep of which some runs are done and many are not."""
    command = [*SIM, *ASKED, *places(folder), *words]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as it:
        try:
            eventually(lambda: kept(folder) >= 2, "nothing was kept", timeout_s=60.0)
            yield it
        finally:
            if it.poll() is None:
                it.kill()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """What the sweep comes to that nobody disturbs."""
    folder = tmp_path_factory.mktemp("expected")
    assert f"{RUNS} runs made, 0 kept from before" in finished(
        *ASKED, *places(folder), "--jobs", "2"
    )
    return result(folder)


def test_killed_and_continued(tmp_path: Path, expected):
    """Its workers end with it, nothing that was done is done again, and the result is that of one that was not killed."""
    with under_way(tmp_path, "--jobs", "2") as it:
        workers = psutil.Process(it.pid).children(recursive=True)
        assert len(workers) >= 2
        it.kill()
        it.communicate(timeout=10)
    eventually(
        lambda: not any(map(_runs, workers)), "workers that nobody asks go on", timeout_s=60.0
    )
    done = kept(tmp_path)
    assert 2 <= done < RUNS
    words = finished(*ASKED, *places(tmp_path), "--jobs", "1")
    assert f"{RUNS - done} runs made, {done} kept from before" in words
    assert result(tmp_path) == expected


def test_interrupted(tmp_path: Path):
    """One line that says what is kept; exit status 130."""
    with under_way(tmp_path, "--jobs", "2") as it:
        it.send_signal(signal.SIGINT)
        out, err = it.communicate(timeout=30)
    err = said(err)
    assert (it.returncode, out) == (130, "")
    assert err.startswith("sim: interrupted; ")
    assert err.count("\n") == 1
    found = re.search(r"interrupted; (\d+) runs are kept", err)
    assert found is not None
    # Each is kept before it is counted.
    assert 2 <= int(found[1]) <= kept(tmp_path) < RUNS


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A Dask scheduler and two workers on loopback."""
    if importlib.util.find_spec("distributed") is None:
        pytest.skip("needs distributed: pip install 'mta-testbed[cluster]'")
    address = f"tcp://127.0.0.1:{free_port()}"
    with ExitStack() as stack:

        def start(name: str, *words: str) -> subprocess.Popen[bytes]:
            log = stack.enter_context((tmp_path / f"{name}.log").open("wb"))
            command = [sys.executable, "-m", f"distributed.cli.dask_{words[0]}", *words[1:]]
            environment = {**os.environ, "DASK_TEMPORARY_DIRECTORY": str(tmp_path / "dask")}
            it = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--no-dashboard"], env=environment, stdout=log, stderr=log
            )  # fmt: skip
            stack.callback(_end, it)
            return it

        start("scheduler", "scheduler", "--port", address.rpartition(":")[2])
        log = tmp_path / "scheduler.log"
        eventually(lambda: b"Scheduler at" in log.read_bytes(), "no scheduler", timeout_s=60.0)
        workers = [
            start(f"worker{n}", "worker", address, "--nthreads", "1", "--no-nanny") for n in (1, 2)
        ]
        eventually(
            lambda: log.read_bytes().count(b"Register worker") == 2, "no workers", timeout_s=60.0
        )
        yield address, workers


def _end(it: subprocess.Popen[bytes]) -> None:
    it.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        it.wait(10)
        return
    it.kill()
    it.wait()


def test_a_cluster_gives_the_same(tmp_path: Path, cluster, expected):
    """To the last bit; when its workers are lost a line says so, and what was done is kept."""
    address, workers = cluster
    on_cluster = finished(*ASKED, *places(tmp_path, "two"), "--scheduler", address)
    assert f"{RUNS} runs made, 0 kept from before" in on_cluster
    assert result(tmp_path, "two") == expected
    with under_way(tmp_path, "--scheduler", address) as it:
        for worker in workers:
            worker.kill()
        out, err = it.communicate(timeout=60)
    err = said(err)
    assert (it.returncode, out) == (1, "")
    assert "; 0 runs are kept" not in err, err
    assert err.startswith("sim: the cluster "), err
    assert err.count("\n") == 1, err


def test_nobody_there(tmp_path: Path):
    """One line, exit status 2."""
    if importlib.util.find_spec("distributed") is None:
        pytest.skip("needs distributed: pip install 'mta-testbed[cluster]'")
    address = f"tcp://127.0.0.1:{free_port()}"
    # It waits for ten seconds, in case the scheduler is only just starting.
    code = "import sim.executors as it, sim.__main__ as sim; it.CONNECT_S = 0.5; sim.main()"
    run = subprocess.run(
        [sys.executable, "-c", code, "sweep", *ASKED, *places(tmp_path), "--scheduler", address],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert said(run.stderr) == f'sim: --scheduler: "{address}": nobody answers there\n'
