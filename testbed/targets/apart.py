"""The bench's side of a cell: a server that runs apart, commands beside it, and what its processes take.

See `testbed.targets.cell` for what happens in it, and `private_network` for the ports: a mail server looks for others on port
25 and for names on port 53, so a run of one has a network of its own in which both are free, and from
which no mail can get out.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import queue
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from testbed.children import RunError, UsageError
from testbed.targets import cell
from testbed.targets.accounting import Account, open_account

ANSWER_S: Final = 20.0
"""Longest wait for a command in a cell."""

START_S: Final = 20.0
"""Longest wait until a cell has started its server."""

PROCESSES_MAX: Final = 10_000
"""Processes of one server that are looked at."""

SECOND_ADDRESS: Final = "192.0.2.1"
"""Of a private network's loopback; of TEST-NET-1 (RFC 5737), which is nobody's."""

_CLONE_NEWNET: Final = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFADDR, _IFF_UP = 0x8913, 0x8914, 0x8916, 0x1


class Done(NamedTuple):
    """A command that was run in a cell."""

    status: int
    out: str
    err: str


def why_not() -> str:
    """Return why this machine can't set a server apart; empty if it can, as far as can be seen."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root"
    if "overlay" not in Path("/proc/filesystems").read_text(encoding="ascii"):
        return "needs overlay file systems (modprobe overlay)"
    return ""


@contextlib.contextmanager
def private_network() -> Iterator[None]:
    """Put this thread, and whatever it starts, into a network with nothing but a loopback.

    Threads and processes that were there before stay where they were; Unix sockets are of the file system and
    work across.

    Raises:
        UsageError: it is not allowed here.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open("rb") as before:
        if libc.unshare(_CLONE_NEWNET) != 0:
            problem = os.strerror(ctypes.get_errno())
            raise UsageError(f"this machine sets no network apart: {problem.lower()}")
        try:
            _raise_loopback()
            yield
        finally:
            if libc.setns(before.fileno(), _CLONE_NEWNET) != 0:
                raise RunError("can't go back to the machine's network")


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request)
        flags = struct.unpack("16sH14x", answer)[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
        # OpenSMTPD's resolver asks for IPv4 addresses only if the machine has one beside 127.0.0.1 (AI_ADDRCONFIG).
        address = socket.inet_aton(SECOND_ADDRESS)
        request = struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, address)
        fcntl.ioctl(any_socket, _SIOCSIFADDR, request)


class Cell:
    """One server in a cell. Thread-safe; `stop` is idempotent."""

    def __init__(self, name: str, directory: Path, *, tree: Path | None, hostname: str) -> None:
        """Make its directories; nothing runs yet.

        Args:
            name: what messages call it.
            directory: gets ``etc``, ``var``, ``run`` and ``tmp``, which the server sees as ``/etc`` (on top of the
                machine's), ``/var``, ``/run`` and ``/tmp``.
            tree: laid over ``/usr``; None if the machine has the server.
            hostname: the machine's name as the server sees it.
        """
        self.name = name
        self.directory = directory.resolve()
        self.log = self.directory / "output.log"
        """What the server says on its outputs."""
        self.reaped_s = 0.0
        """Processor seconds of orphans that have ended, as far as they are known; commands not included."""
        self._tools_s = 0.0
        self._account: Account | None = None
        self._tree = tree
        self._hostname = hostname
        self._process: subprocess.Popen[bytes] | None = None
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader: threading.Thread | None = None
        self._asking = threading.Lock()
        self._asked = 0
        self._status: int | None = None
        for each in ("etc", "var", "run", "tmp"):
            (self.directory / each).mkdir(parents=True)
        for each in ("var/lib", "var/log", "var/mail", "var/spool", "var/tmp", "run/lock"):
            (self.directory / each).mkdir()
        for each in ("tmp", "var/tmp"):
            (self.directory / each).chmod(0o1777)
        (self.directory / "var/run").symlink_to("/run")

    def write(self, path: str, text: str, *, mode: int = 0o644) -> None:
        """Write a file of the cell, as ``etc/resolv.conf``."""
        file = self.directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        file.chmod(mode)

    def start(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start the server.

        Raises:
            UsageError: the machine does not let us.
            RunError: it can't be started.
        """
        assert self._process is None, "a cell starts once"
        self._account = open_account(self.name)
        plan = {
            "tree": str(self._tree) if self._tree is not None else "",
            "directory": str(self.directory),
            "hostname": self._hostname,
            "log": str(self.log),
            "command": list(command),
            "account": str(self._account.directory) if self._account is not None else "",
            "environment": {
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "LC_ALL": "C",
                **(environment or {}),
            },
        }
        file = self.directory / "plan.json"
        file.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(cell.__file__).resolve()), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"cell {self.name}", daemon=True)
        self._reader.start()
        event = self._next(START_S)
        if event.get("event") == "error":
            self.stop()
            raise UsageError(f"{self.name}: {event['problem']}")
        if event.get("event") != "started":
            self.stop()
            raise RunError(f"{self.name}: its cell did not start")

    @property
    def status(self) -> int | None:
        """The server's exit status; None while it runs, or was never started."""
        return self._status

    def run(self, *command: str, group: int = 0, timeout_s: float = ANSWER_S) -> Done:
        """Run a command among the server's files, as root and with a group.

        Raises:
            OSError: the cell does not answer.
        """
        with self._asking:
            self._asked += 1
            self._say(
                {
                    "do": "run",
                    "id": self._asked,
                    "command": command,
                    "group": group,
                    "timeout_s": timeout_s,
                }
            )
            event = self._next(timeout_s + ANSWER_S)
            while event.get("event") == "ran" and event["id"] != self._asked:
                event = self._next(
                    timeout_s + ANSWER_S
                )  # of a question that nobody waits for any more
            if event.get("event") != "ran":
                raise ConnectionError(f"{self.name}: its cell is gone")
            self._told(event)
            return Done(event["status"], event["out"], event["err"])

    def pids(self) -> list[int]:
        """Return the server's processes, orphans included, by the machine's numbers; not the cell's own."""
        if self._process is None:
            return []
        found: list[int] = []
        for first in _children(self._process.pid):
            waiting = _children(first)
            while waiting and len(found) < PROCESSES_MAX:
                pid = waiting.pop()
                found.append(pid)
                waiting += _children(pid)
        return found

    def cpu_s(self) -> float | None:
        """Return the processor seconds of all that ever ran in it, without our commands; None if nobody counts them."""
        seconds = self._account.seconds() if self._account is not None else None
        return None if seconds is None else max(0.0, seconds - self._tools_s)

    def stop(self, grace_s: float = 20.0) -> int:
        """End the server with SIGTERM, then everything in the cell; return the server's exit status."""
        process = self._process
        if process is None:
            return 0
        if process.poll() is None:
            with self._asking, contextlib.suppress(OSError):
                self._say({"do": "stop", "grace_s": grace_s})
                event = self._next(grace_s + ANSWER_S)
                while event.get("event") == "ran":
                    event = self._next(grace_s + ANSWER_S)
                if event.get("event") == "stopped":
                    self._status = event["status"]
                    self._told(event)
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
        if self._reader is not None:
            self._reader.join(ANSWER_S)
        if self._account is not None:
            self._account.close()
        return self._status if self._status is not None else 0

    def discard(self, *paths: str) -> None:
        """Remove directories of the cell; only after `stop`."""
        for path in paths:
            shutil.rmtree(self.directory / path, ignore_errors=True)

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                event = json.loads(line)
                if event["event"] == "ended":
                    self._status = event["status"]
                else:
                    self._events.put(event)
        self._events.put({})

    def _told(self, event: Mapping[str, Any]) -> None:
        self.reaped_s, self._tools_s = float(event["reaped_s"]), float(event["tools_s"])

    def _next(self, limit_s: float) -> dict[str, Any]:
        try:
            event = self._events.get(timeout=limit_s)
        except queue.Empty:
            raise TimeoutError(f"{self.name}: its cell does not answer") from None
        if not event:
            # Whoever asks again hears the same.
            self._events.put(event)
        return event

    def _say(self, request: Mapping[str, object]) -> None:
        process = self._process
        if process is None or process.stdin is None or process.stdin.closed:
            raise ConnectionError(f"{self.name}: its cell is not running")
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()


def _children(pid: int) -> list[int]:
    found: list[int] = []
    # Threads have children, too.
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text(encoding="ascii").split())
    return found
