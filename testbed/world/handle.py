"""How the bench holds a world: starts its processes, tells them when the load begins, stops them.

The world ends with whoever started it: its standard input is a pipe of ours.
"""

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

READY_S: Final = 30.0
"""Longest wait for a world to listen."""

ANSWER_S: Final = 15.0
"""Longest wait for an answer, and for the end."""


class WorldError(Exception):
    """The world did not start, does not answer, or ended badly. ``str()`` is one line."""


class World:
    """A world in its own processes. A context: started inside it, stopped after it.

    Use from one thread. ``stop`` is idempotent.
    """

    def __init__(
        self,
        scenario: str | Path,
        *,
        record_dir: Path,
        overrides: Sequence[str] = (),
        smtp_port: int = 0,
        dns_port: int = 0,
        processes: int = 1,
    ) -> None:
        """Set up; nothing runs yet.

        Args:
            scenario: Name or path.
            record_dir: Gets ``sink-<n>.jsonl``, what arrived, ``world.log``, what went wrong, and ``ca.pem``.
            overrides: ``key=value`` on top of the scenario.
            smtp_port: Of all hosts; 0 chooses one.
            dns_port: Of the name server; 0 chooses one.
            processes: How many share the hosts.
        """
        self.record_dir = record_dir
        self.smtp_port = smtp_port
        """Of all hosts, once started."""
        self.dns = ""
        """``address:port`` of the name server, once started."""
        self.pids: list[int] = []
        """Of all processes, once started."""
        self.final: dict[str, Any] = {}
        """What was counted in all, once stopped; see `testbed.world.records.Tally`."""
        self._command = [sys.executable, "-m", "testbed.world", str(scenario)]
        for override in overrides:
            self._command += ["--set", override]
        self._command += ["--smtp-port", str(smtp_port), "--dns-port", str(dns_port)]
        self._command += ["--record-dir", str(record_dir), "--processes", str(processes)]
        self._command += ["--ca-file", str(self.ca_file)]
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._reader: threading.Thread | None = None

    def start(self) -> Self:
        """Start, and wait until everything listens.

        Raises:
            WorldError: it ended instead, with its own words, or took too long.
        """
        assert self._process is None, "a world starts once"
        self.record_dir.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            # A Ctrl-C on the terminal is for the bench, which wants to ask for the counts first.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, name="world", daemon=True)
        self._reader.start()
        try:
            ready = self._answer("ready", READY_S)
        except BaseException:
            self._kill()
            raise
        self.smtp_port = int(ready["smtp_port"])
        self.dns = str(ready["dns"])
        self.pids = [int(pid) for pid in ready["pids"]]
        return self

    @property
    def log(self) -> Path:
        """What the world wrote to standard error."""
        return self.record_dir / "world.log"

    @property
    def ca_file(self) -> Path:
        """The certificate of the authority that vouches for hosts with TLS; there once started."""
        return self.record_dir / "ca.pem"

    @property
    def records(self) -> list[Path]:
        """The files that say what arrived, one per process; complete once stopped."""
        return sorted(self.record_dir.glob("sink-*.jsonl"))

    def set_start(self, epoch: float | None = None) -> float:
        """Say when the load starts, in seconds since the epoch; None: now. Outages count from it.

        Returns:
            The start, as the world understood it.

        Raises:
            WorldError: it was set already, or the world does not answer.
        """
        self._say({"cmd": "set_start", "epoch": epoch})
        return float(self._answer("start")["epoch"])

    def stats(self) -> dict[str, Any]:
        """Return what was counted so far; the record files have as much.

        Raises:
            WorldError: the world does not answer.
        """
        self._say({"cmd": "stats"})
        answer = self._answer("stats")
        del answer["event"]
        return answer

    def set(self, *changes: str) -> None:
        """Change groups, each as ``GROUP.key=value``; see `testbed.world.groups`.

        Raises:
            WorldError: it makes no sense, in the world's words, or the world does not answer.
        """
        self._say({"cmd": "set", "changes": list(changes)})
        self._answer("set")

    def show(self) -> list[dict[str, Any]]:
        """Return what the groups are like now.

        Raises:
            WorldError: the world does not answer.
        """
        self._say({"cmd": "show"})
        groups: list[dict[str, Any]] = self._answer("show")["groups"]
        return groups

    def stop(self) -> dict[str, Any]:
        """Stop, and return what was counted in all.

        Raises:
            WorldError: it did not end well; some records may be missing.
        """
        process = self._process
        if process is None or self.final:
            return self.final
        try:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
            final = self._answer("stopped")
            del final["event"]
            try:
                status = process.wait(ANSWER_S)
            except subprocess.TimeoutExpired:
                raise WorldError("the world does not end") from None
            if status != 0:
                raise WorldError(self._words(f"the world ended with status {status}"))
            self.final = final
        finally:
            self._kill()
        return self.final

    def __enter__(self) -> Self:
        """Start; see `start`."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop; see `stop`. An error that is on its way already is the one to see."""
        if error is None:
            self.stop()
        else:
            with contextlib.suppress(WorldError):
                self.stop()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                self._lines.put(line)
        self._lines.put(b"")

    def _say(self, request: dict[str, object]) -> None:
        process = self._process
        if process is None or process.stdin is None or process.stdin.closed:
            raise WorldError("the world is not running")
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            raise WorldError(self._words("the world has ended")) from None

    def _answer(self, event: str, limit_s: float = ANSWER_S) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=limit_s)
        except queue.Empty:
            raise WorldError(f"the world does not answer within {limit_s:g} s") from None
        if not line:
            # Whoever asks again hears the same.
            self._lines.put(b"")
            assert self._process is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(ANSWER_S)
            raise WorldError(self._words("the world has ended"))
        answer: dict[str, Any] = json.loads(line)
        if answer.get("event") == "error":
            raise WorldError(str(answer.get("problem")))
        if answer.get("event") != event:
            raise WorldError(f"the world answers {answer.get('event')!r} instead of {event!r}")
        return answer

    def _words(self, otherwise: str) -> str:
        """Return the last line of the log, or what is known without it."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").strip().splitlines()
            if lines:
                return lines[-1]
        return otherwise

    def _kill(self) -> None:
        """See to it that nothing is left: no process, thread or pipe."""
        process = self._process
        assert process is not None
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(ANSWER_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._reader is not None:
            self._reader.join(ANSWER_S)
