"""Locust as a child process, as the operator would start it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.server import free_port

Line = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
MESSAGES = 60
SMALL = ("load.rate=300", f"load.messages={MESSAGES}", "load.sessions=5")


def command(*arguments: str, settings: tuple[str, ...] = SMALL) -> list[str]:
    sets = [word for each in settings for word in ("--set", each)]
    locust = [sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests"), "--skip-log-setup"]
    # Only the tests that are about lag may fail because the machine was busy.
    return [*locust, "--lag-max", "30", *sets, *arguments]


def run(
    tmp_path: Path, *arguments: str, settings: tuple[str, ...] = SMALL
) -> tuple[subprocess.CompletedProcess[str], dict[str, Line], list[Line]]:
    """Return the process, its statistics by name, and the lines of its record."""
    record, stats = tmp_path / "record.jsonl", tmp_path / "stats"
    done = subprocess.run(
        command(
            "--headless",
            "--record",
            str(record),
            "--json-file",
            str(stats),
            *arguments,
            settings=settings,
        ),
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    lines = (
        [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    )
    written = stats.with_suffix(".json")  # Locust adds it
    rows = json.loads(written.read_text()) if written.exists() else []
    return done, {row["name"]: row for row in rows}, lines


def sorted_messages(lines: list[Line]) -> list[Line]:
    return sorted(
        (each for each in lines if each["kind"] == "message"), key=lambda each: each["seq"]
    )


@contextlib.contextmanager
def started(*arguments: str, settings: tuple[str, ...] = SMALL) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(*arguments, settings=settings),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    try:
        yield process
    finally:
        # With the workers that it may have forked: they have our pipe.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)


def fetched(url: str) -> Any:
    """Return what Locust's web UI says, read as JSON; None while it does not listen."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)
    except OSError:
        return None


def master(port: int) -> tuple[str, ...]:
    """Return the options of a master on loopback."""
    return ("--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", str(port))


def processes(number: int) -> tuple[str, ...]:
    """Return the options of a master that starts its own workers."""
    port = str(free_port())
    where = ("--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port)
    return ("--processes", str(number), *where)
