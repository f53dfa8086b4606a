"""The commands of docs/load.md, run as they stand there; only ports, paths and the number of messages are others."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from tests.support.server import ROOT, RunningServer, free_port
from tests.support.waiting import eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

MESSAGES = 40
SMALL = f"--lag-max 30 --set load.messages={MESSAGES} --set load.rate=200 --set load.sessions=4"
PAGE = (ROOT / "docs" / "load.md").read_text()
SHELL = dict(re.findall(r"```sh (\w+)\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that keeps what it takes: nothing listens where it would send it."""
    config = {"relay": {"smart_host": "[127.0.0.3]", "port": 9}}
    with RunningServer(tmp_path_factory.mktemp("server"), config) as running:
        yield running


def adapted(script: str, server: RunningServer, tmp_path: Path, web_port: int = 0) -> str:
    """Return a script of the page for this server, small, with ports that nobody else has."""
    assert set(re.findall(r"\b\d{4}\b", script)) <= {"2525", "5557", "8089"}
    port = str(free_port())
    lines = []
    for line in script.splitlines():
        if not line.startswith("locust "):
            lines.append(line)
            continue
        small = f"locust {SMALL} " + line.removeprefix("locust ")
        if "--processes" in line:
            small += f" --master-port {port} --master-bind-port {port}"
        lines.append(small)
    script = "\n".join(lines)
    script = script.replace(":2525", f":{server.port}").replace("5557", port)
    script = script.replace("8089", str(web_port)).replace(
        "-f loadtests", f"-f {ROOT / 'loadtests'}"
    )
    program = tmp_path / "bin" / "locust"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m locust "$@"\n')
    program.chmod(0o755)
    return script


def environment(tmp_path: Path) -> dict[str, str]:
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def shell() -> str:
    found = shutil.which("sh")
    assert found is not None
    return found


def test_every_block_is_run():
    """A block of shell has a name and a test here; nothing on the page is only text."""
    assert set(SHELL) == {*TIMES, "web"}
    assert len(re.findall(r"^```\S", PAGE, re.MULTILINE)) == len(SHELL)


TIMES = {"headless": 1, "shape": 1, "parts": 2, "rude": 1, "processes": 1, "workers": 1}
"""How many runs each block is."""


@pytest.mark.parametrize("name", TIMES)
def test_a_block_works(server, tmp_path, name):
    """Exit status 0; every message was accepted, by the summary and by the server; files that it names are there."""
    before = server.stats()["smtp.message"]
    done = subprocess.run(
        [shell(), "-e", "-c", adapted(SHELL[name], server, tmp_path)],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    end = json.loads((tmp_path / "end.json").read_text())
    assert (end["outcomes"], end["complete"], end["valid"]) == ({"250": MESSAGES}, True, True)
    assert server.stats()["smtp.message"] - before == MESSAGES * TIMES[name]
    for option, file in re.findall(r"--(histograms|record) (\S+)", SHELL[name]):
        written = (
            [tmp_path / file]
            if name == "headless" or option == "histograms"
            else parts(tmp_path, file)
        )
        for path in written:
            assert path.read_text().count("\n") > 5
    assert ("workers" in end) == (name in ("processes", "workers"))


def parts(directory: Path, file: str) -> list[Path]:
    return [directory / file.replace(".", f".{i}.") for i in (0, 1)]


def test_the_web_page_works(server, tmp_path):
    """It is there, on loopback only, and starts a run."""
    port = free_port()
    before = server.stats()["smtp.message"]
    process = subprocess.Popen(
        [shell(), "-c", "exec " + adapted(SHELL["web"], server, tmp_path, port).strip()],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    try:
        form = urllib.parse.urlencode({"user_count": "4", "spawn_rate": "4"}).encode()

        def swarms() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/swarm", form, 10) as answer:
                    return bool(json.load(answer)["success"])
            except OSError:
                return False

        def is_over() -> bool:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{port}/stats/requests", timeout=10
            ) as answer:
                return bool(json.load(answer)["state"] == "stopped")

        eventually(swarms)
        eventually(is_over)
        assert server.stats()["smtp.message"] - before == MESSAGES
        assert listening(port) == {"0100007F"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()


def listening(port: int) -> set[str]:
    """Return the IPv4 addresses that somebody listens on at a port, as the kernel writes them."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {
        local.partition(":")[0]
        for _, local, _, state, *_ in rows
        if state == "0A" and int(local.partition(":")[2], 16) == port
    }
