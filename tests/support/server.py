"""A real server process for system tests and benchmarks."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
START_S = 20.0
LOG_S = 0.15
"""Log lines are written up to 0.1 s after the fact; whoever waited for something may read of it."""


def _toml(table: Mapping[str, object], prefix: str = "") -> str:
    plain, nested = [], []
    for key, value in table.items():
        if isinstance(value, Mapping):
            name = f"{prefix}{key}"
            nested.append(f"\n[{name}]\n{_toml(value, f'{name}.')}")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            nested += [f"\n[[{prefix}{key}]]\n{_toml(item, f'{prefix}{key}.')}" for item in value]
        else:
            plain.append(f"{key} = {json.dumps(value)}")
    return "\n".join([*plain, *nested])


class RunningServer:
    """`mta serve` in a directory of its own; started again, it finds the queue it left."""

    def __init__(self, directory: Path, config: Mapping[str, object] | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.log = directory / "log"
        self.control = directory / "control.sock"
        self.file = directory / "mta.toml"
        own: dict[str, object] = {
            "hostname": "mx.system.test",
            "seed": 1,
            "smtp": {"listen": "127.0.0.1:0"},
            "queue": {"directory": str(directory / "queue")},
            "control": {"socket": str(self.control)},
            "log": {"file": str(self.log)},
        }
        for key, value in (config or {}).items():
            if isinstance(value, Mapping) and isinstance(own.get(key), dict):
                own[key] = {**own[key], **value}
            else:
                own[key] = value
        self.file.write_text(_toml(own))
        self.wrapper: tuple[str, ...] = ()
        """What its command line begins with."""
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0
        """Of the first listener."""
        self.ports: dict[str, int] = {}
        """By the names of listeners."""
        self._listeners = bool(own["smtp"].get("listen")) + len(own.get("listeners", ()))  # type: ignore[attr-defined, arg-type]

    def start(self, *arguments: str) -> "RunningServer":
        seen = self.log.read_text().count("smtp listening") if self.log.exists() else 0
        serve = [sys.executable, "-m", "mta", "serve", "-c", str(self.file)]
        command = [*self.wrapper, *serve, *arguments]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            lines = self._listening()
            if len(lines) >= seen + self._listeners:
                for line in lines[seen:]:
                    words = dict(word.split("=", 1) for word in line.split() if "=" in word)
                    self.ports[words["listener"]] = int(words["port"])
                self.port = next(iter(self.ports.values()))
                return self
            if self.process.poll() is not None:
                raise AssertionError(self._stderr())
            time.sleep(0.02)
        self.kill()
        raise AssertionError("the server did not start in time")

    def _listening(self) -> list[str]:
        if not self.log.exists():
            return []
        return [line for line in self.log.read_text().splitlines() if "smtp listening" in line]

    def _stderr(self) -> str:
        assert self.process is not None
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL, at once."""
        self._end(signal.SIGKILL)

    def stop(self, timeout_s: float = 40.0) -> int:
        """SIGTERM; return the exit status."""
        return self._end(signal.SIGTERM, timeout_s)

    def _end(self, number: int, timeout_s: float = 40.0) -> int:
        process = self.process
        if process is None:
            return 0
        self.process = None
        if process.poll() is None:
            os.kill(process.pid, number)
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            assert process.stderr is not None
            self.errors = process.stderr.read().decode()
            process.stderr.close()
        return status

    def ask(self, *words: str) -> list[dict]:
        """Run `mtactl --json`; return its rows."""
        done = subprocess.run(
            [sys.executable, "-m", "mta.ctl", "-s", str(self.control), "--json", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def stats(self) -> dict[str, float]:
        return self.ask("show", "stats")[0]

    def until(self, condition, timeout_s: float = 30.0) -> dict[str, float]:
        """Wait until the statistics meet a condition; return them."""
        deadline = time.monotonic() + timeout_s
        while True:
            stats = self.stats()
            if condition(stats):
                time.sleep(LOG_S)
                return stats
            assert time.monotonic() < deadline, stats
            time.sleep(0.05)

    def until_logged(self, text: str, count: int = 1, timeout_s: float = 5.0) -> None:
        """Wait until a text is in the log so often; lines are written up to 0.1 s after the fact."""
        deadline = time.monotonic() + timeout_s
        while (found := self.log.read_text().count(text)) != count:
            assert time.monotonic() < deadline, (text, found)
            time.sleep(0.02)

    def until_logged_some(self, text: str, timeout_s: float = 5.0) -> None:
        """Wait until a text is in the log, however often."""
        deadline = time.monotonic() + timeout_s
        while text not in self.log.read_text():
            assert time.monotonic() < deadline, text
            time.sleep(0.02)

    def rss_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def __enter__(self) -> "RunningServer":
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.kill()


def free_port(address: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]
