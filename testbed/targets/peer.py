"""What other servers have in common as targets: a cell, a port, a log, and what their processes take.

All are set up for the same task: take mail from loopback without local users, look up MX records at the world's name
server, deliver to port 25, try again at the scenario's pace where they can be told so. Everything else is as
Debian ships it, unless the server's file says what was changed and why.
"""

import contextlib
import math
import os
import re
import shutil
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from testbed.children import RunError, last_line
from testbed.packages import Peer
from testbed.sampler import Usage, usage_of_tree
from testbed.targets.apart import Cell
from testbed.targets.base import STRACE, Owed

HOSTNAME: Final = "relay.testbed.test"

PORT: Final = 2525
"""Where they take mail; their network is their own, so it is free."""

READY_S: Final = 20.0
"""Longest wait until one takes mail."""

LOOK_AGAIN: Final = 20.0
"""A look at the queue is worth so many times as long as it took: a long one is not taken five times a second."""

LISTING_HOLDS_S: Final = 5.0
"""A listing of the queue that is so new is not made again when the server is stopped: a long queue takes seconds to list."""

LOOK_AGAIN_S: Final = 2.0
"""After which it is looked at again anyway: a look that took long because the machine was busy says nothing of the next."""

_USER: Final = "{name}:x:{number}:{number}::{home}:/usr/sbin/nologin\n"


class Pace(NamedTuple):
    """How long to wait between attempts, in whole seconds; what our own settings come to."""

    first_s: int
    most_s: int


def pace_of(overrides: Mapping[str, Any]) -> Pace | None:
    """Return the scenario's pace; None if it leaves the servers theirs.

    ``quadratic`` has no longest wait: what it comes to within five attempts is taken.
    """
    retry = overrides.get("retry")
    if not retry:
        return None
    if retry.get("policy", "quadratic") == "quadratic":
        base_s = float(retry.get("base_s", 400.0))
        return Pace(max(1, math.ceil(base_s)), max(1, math.ceil(base_s * 5)))
    most_s = float(retry.get("max_s", 4000.0))
    first_s = float(retry.get("min_s" if retry["policy"] == "age-clamped" else "base_s", 300.0))
    return Pace(max(1, math.ceil(min(first_s, most_s))), max(1, math.ceil(most_s)))


def look_again_at(began: float, ended: float) -> float:
    """Return when a look at the queue that took from one instant to another is worth repeating."""
    return ended + min(LOOK_AGAIN * (ended - began), LOOK_AGAIN_S)


class PeerServer(ABC):
    """Implements `testbed.targets.base.Target` for servers in cells."""

    name: str
    is_tree = True
    users: tuple[tuple[str, str], ...] = ()
    """Names and homes of users that it runs as."""
    second_attempt_s: int | None = None
    groups: tuple[str, ...] = ()
    """Groups beside those of its users."""
    accepted: re.Pattern[str]
    """Finds the message's id in the reply to its final dot."""

    def __init__(
        self, directory: Path, peer: Peer, *, overrides: Mapping[str, Any], nameserver: str
    ) -> None:
        """Write its configuration; `start` does the rest.

        Args:
            directory: gets the cell.
            peer: where the server is.
            overrides: the scenario's ``server`` table, of which the pace of attempts is kept.
            nameserver: address of the world's, which answers on port 53.
        """
        self.peer = peer
        self.pace = pace_of(overrides)
        self.connect_timeout_s = max(
            1, math.ceil(overrides.get("limits", {}).get("mta", {}).get("connect_timeout_s", 30.0))
        )
        self.cell = Cell(
            self.name, directory / "cell", tree=peer.tree, hostname=HOSTNAME.partition(".")[0]
        )
        self._wrapper: tuple[str, ...] = ()
        self._queued: list[Owed] | None = None
        self._listed: tuple[float, list[Owed]] = (-math.inf, [])
        self._length = (0.0, 0.0)
        if peer.tree is not None and (peer.tree / "etc").is_dir():
            shutil.copytree(
                peer.tree / "etc", self.cell.directory / "etc", symlinks=True, dirs_exist_ok=True
            )
        self.cell.write(
            "etc/resolv.conf", f"nameserver {nameserver}\noptions timeout:5 attempts:2\n"
        )
        self.cell.write(
            "etc/hosts", f"127.0.0.1 {HOSTNAME} {HOSTNAME.partition('.')[0]} localhost\n"
        )
        self.cell.write("etc/mailname", f"{HOSTNAME}\n")
        # Names from the file and from DNS, and nothing that waits for a daemon that is not here.
        self.cell.write(
            "etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\nservices: files\n"
        )
        self._write_users()
        self.configure()

    # What each has its own way of

    @abstractmethod
    def configure(self) -> None:
        """Write its files."""

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Return how it is started in the foreground."""

    @property
    @abstractmethod
    def log(self) -> Path:
        """Its log."""

    @abstractmethod
    def queue_length(self) -> Mapping[str, float]:
        """Return the gauges that it has; OSError if it does not answer."""

    @abstractmethod
    def read_queue(self) -> list[Owed]:
        """Ask it what is in its queue; OSError if it does not answer."""

    @abstractmethod
    def given_up(self, lines: Iterable[str]) -> Iterator[Owed]:
        """Yield the recipients that lines of its log say were given up."""

    # The rest of a target

    def bounced(self) -> list[Owed]:
        """Return what its log says it gave up."""
        try:
            with self.log.open(encoding="utf-8", errors="replace") as lines:
                return list(self.given_up(lines))
        except FileNotFoundError:
            return []

    def queue_id(self, reply: str) -> str:
        """Return the message's id from the reply to its final dot; empty if it has none."""
        found = self.accepted.search(reply)
        return found[1] if found else ""

    def start(self) -> None:
        """Start it and return when it takes mail.

        Raises:
            RunError: it ended, or was not ready in time.
            UsageError: this machine can't set it apart.
        """
        self.cell.start([*self._wrapper, *self.command()])
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            self.check()
            with (
                contextlib.suppress(OSError),
                socket.create_connection(self.smtp_address, timeout=1.0) as connection,
            ):
                connection.settimeout(5.0)
                if connection.recv(3) == b"220":
                    connection.sendall(b"QUIT\r\n")
                    return
            time.sleep(0.05)
        raise RunError(f"{self.name}: not ready within {READY_S:.0f} s: {self._words()}")

    def trace_syncs(self) -> Path:
        """Let strace count its calls of fsync and the like; before `start`. Returns the file of its table."""
        self._wrapper = (*STRACE, "-o", "/var/log/syncs")
        return self.cell.directory / "var/log/syncs"

    @property
    def smtp_address(self) -> tuple[str, int]:
        """Where it takes mail."""
        return "127.0.0.1", PORT

    def check(self) -> None:
        """Raise RunError if it has ended though nobody asked it to."""
        if self.cell.status is not None:
            raise RunError(self.describe_end())

    def pids(self) -> list[int]:
        """Return all its processes."""
        return self.cell.pids()

    def usage(self) -> Usage:
        """Return what its processes use, and the time of all that it ever had.

        Raises:
            OSError: it has none now.
        """
        usage = usage_of_tree(self.pids(), self.cell.reaped_s)
        cpu_s = self.cell.cpu_s()
        return usage if cpu_s is None else usage._replace(cpu_s=round(cpu_s, 3))

    def stats(self) -> Mapping[str, float]:
        """Return what it can be asked for. ``queue.message`` is the least there is.

        Raises:
            OSError: it does not answer now.
        """
        return self.queue_length()

    def queued(self) -> list[Owed]:
        """Return what its queue holds; what it held, if it was stopped.

        Raises:
            OSError: it does not answer now.
        """
        if self._queued is not None:
            return self._queued
        found = self.read_queue()
        self._listed = time.monotonic(), found
        return found

    def stop(self) -> int:
        """End it and return its exit status. Idempotent."""
        if self._queued is None and self.cell.status is None:
            at, found = self._listed
            if time.monotonic() - at < LISTING_HOLDS_S:
                self._queued = found
            else:
                with contextlib.suppress(OSError):
                    self._queued = self.read_queue()
        self.end()
        status = self.cell.stop()
        # Whoever ends at our SIGTERM has ended well; not all say so with a 0.
        return 0 if status in (0, -15, 128 + 15) else status

    def discard_queue(self) -> None:
        """Remove its spool; only after `stop`."""
        self.cell.discard("var/spool")

    def describe_end(self) -> str:
        """Return one line on how it ended."""
        status = self.cell.status
        how = "is still running" if status is None else f"ended with status {status}"
        return f"{self.name} {how}: {self._words()}"

    def end(self) -> None:  # noqa: B027 - most need nothing
        """Tell it to end, if SIGTERM is not the way to tell it."""

    # For the servers

    def ask(self, *command: str, group: str = "root") -> str:
        """Return what a command among its files prints.

        Raises:
            OSError: it fails.
        """
        done = self.cell.run(*command, group=self._number("group", group))
        if done.status != 0:
            raise ConnectionError(f"{command[0]}: {(done.err or done.out).strip()[:200]}")
        return done.out

    def files_below(self, *directories: str, suffix: str = "") -> float:
        """Return how many files there are in directories of the cell; not more often than is reasonable."""
        until, known = self._length
        now = time.monotonic()
        if now < until:
            return known
        count = float(sum(_files(self.cell.directory / each, suffix) for each in directories))
        self._length = (look_again_at(now, time.monotonic()), count)
        return count

    def _words(self) -> str:
        return last_line(self.log) or last_line(self.cell.log) or "no word from it"

    def _write_users(self) -> None:
        """Let the cell have the machine's users and those that the server runs as."""
        passwd = Path("/etc/passwd").read_text(encoding="utf-8")
        group = Path("/etc/group").read_text(encoding="utf-8")
        there = {line.partition(":")[0] for line in passwd.splitlines()}
        groups = {line.partition(":")[0] for line in group.splitlines()}
        taken = {
            line.split(":")[2]
            for line in [*passwd.splitlines(), *group.splitlines()]
            if ":" in line
        }
        numbers = (number for number in range(900, 60_000) if str(number) not in taken)
        for name, home in self.users:
            if name not in there and name not in groups:
                number = next(numbers)
                passwd += _USER.format(name=name, number=number, home=home)
                group += f"{name}:x:{number}:\n"
        for name in self.groups:
            if name not in groups:
                group += f"{name}:x:{next(numbers)}:\n"
        self.cell.write("etc/passwd", passwd)
        self.cell.write("etc/group", group)

    def own(self, path: str, user: str, group: str = "", *, mode: int = 0o755) -> None:
        """Make a directory of the cell and give it to one of its users."""
        directory = self.cell.directory / path
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(mode)
        shutil.chown(directory, self._number("passwd", user), self._number("group", group or user))

    def _number(self, table: str, name: str) -> int:
        for line in (self.cell.directory / "etc" / table).read_text(encoding="utf-8").splitlines():
            if line.partition(":")[0] == name:
                return int(line.split(":")[2])
        raise AssertionError(f"{name} is not in {table}")


def _files(directory: Path, suffix: str) -> int:
    """Count files below a directory, which may change meanwhile."""
    count = 0
    waiting = [str(directory)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        count += entry.name.endswith(suffix)
        except OSError:
            continue
    return count
