"""Processes that the bench starts: each has a name, a file for what it says, and an end.

A child is ended by its own process id, never by its name; SIGTERM first, SIGKILL when it does not
listen. Whatever ends a run early, Ctrl-C included, goes through `Child.end`, so that nothing is left
running. Children are in a session of their own: a Ctrl-C of the terminal reaches the bench alone, and
the bench decides in which order they go.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

GRACE_S: Final = 15.0
"""How long a child may take to end after SIGTERM before it is killed."""

LOG_TAIL: Final = 64 * 1024
"""Bytes at the end of a log that are searched for its last line."""

LINE_SHOWN: Final = 300
"""Characters of a child's last words that a message shows."""


class RunError(Exception):
    """A run can't be what it should have been; ``str()`` is one line, the exit status 1."""


class UsageError(RunError):
    """The same, and it is the operator's doing: exit status 2."""


class Child:
    """One process."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        log: Path,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it.

        Args:
            name: what messages call it.
            arguments: program and arguments.
            log: file that takes what it says on both outputs; replaced.
            cwd: where it runs; here if None.
            environment: added to ours.

        Raises:
            RunError: it can't be started.
        """
        self.name = name
        self.log = log
        try:
            with log.open("wb") as out:
                self._process = subprocess.Popen(
                    list(arguments),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    cwd=cwd,
                    env={**os.environ, **(environment or {})},
                    start_new_session=True,
                )
        except OSError as error:
            raise RunError(f"{name}: can't be started: {error.strerror}") from error

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def check(self) -> None:
        """Raise if it has ended though nobody asked it to.

        Raises:
            RunError: it has; with the last line of its log.
            UsageError: it exited with 2, which is how our programs blame the operator.
        """
        status = self.status
        if status is None:
            return
        what = UsageError if status == 2 else RunError
        raise what(self.describe_end())

    def describe_end(self) -> str:
        """Return one line: how it ended and what it said last."""
        status = self.status
        if status is None:
            how = "is still running"
        elif status < 0:
            how = f"was ended by {_signal_name(-status)}"
        else:
            how = f"ended with status {status}"
        said = last_line(self.log)
        return f"{self.name} {how}" + (f": {said}" if said else "")

    def wait(self, timeout_s: float) -> int | None:
        """Wait for its end; return the exit status, or None if it still runs."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> int:
        """End it with SIGKILL, as a crash does, and return its exit status. Idempotent."""
        process = self._process
        if process.poll() is None:
            process.kill()
        return process.wait()

    def end(self, grace_s: float = GRACE_S) -> int:
        """End it and return its exit status. Idempotent."""
        process = self._process
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(grace_s)
            except subprocess.TimeoutExpired:
                process.kill()
        return process.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_line(path: Path) -> str:
    """Return the last line of a log that says something, printable and cut; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        text = "".join(c if c.isprintable() else " " for c in line).strip()
        # A traceback's frame says nothing; the line that names the exception is below it.
        if text:
            return text if len(text) <= LINE_SHOWN else text[: LINE_SHOWN - 1] + "…"
    return ""


def python(*arguments: str) -> list[str]:
    """Return the command line of a module in this interpreter: ``python("mta", "serve")``."""
    return [sys.executable, "-m", *arguments]


def source_environment() -> dict[str, str]:
    """Return what a child needs to import the packages that we import, wherever it runs."""
    root = str(Path(__file__).resolve().parents[1])
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": root + (os.pathsep + before if before else ""), "PYTHONUNBUFFERED": "1"}
