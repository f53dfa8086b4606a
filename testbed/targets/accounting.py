"""Processor time of everything that a server ever started, by the kernel's account of a control group.

Adding up processes is not enough: the time of a process whose parent ignores SIGCHLD is in nobody's (wait(2)), and
Exim's receiving processes do that. A group counts all that ran in it. Both versions of control groups will do, each
without limits; where neither can be written there is none, and whoever asks adds up processes.
"""

import contextlib
import itertools
import os
from pathlib import Path
from typing import Final

ROOTS: Final = (
    Path("/sys/fs/cgroup/unified"),
    Path("/sys/fs/cgroup"),
    Path("/sys/fs/cgroup/cpuacct"),
    Path("/sys/fs/cgroup/cpu,cpuacct"),
)
"""Where groups may be made: the first that counts time is taken."""

_numbers = itertools.count(1)


class Account:
    """One control group. `close` removes it, when all that was in it has ended."""

    def __init__(self, directory: Path) -> None:
        """Take a group that was just made."""
        self.directory = directory

    def seconds(self) -> float | None:
        """Return user and system time so far; None if the kernel does not tell."""
        with contextlib.suppress(OSError, ValueError):
            if (self.directory / "cpuacct.usage").exists():
                return int((self.directory / "cpuacct.usage").read_text(encoding="ascii")) / 1e9
            for line in (self.directory / "cpu.stat").read_text(encoding="ascii").splitlines():
                name, _, value = line.partition(" ")
                if name == "usage_usec":
                    return int(value) / 1e6
        return None

    def close(self) -> None:
        """Remove it. Idempotent."""
        with contextlib.suppress(OSError):
            self.directory.rmdir()


def open_account(name: str) -> Account | None:
    """Make a group; None where that is not possible."""
    for root in ROOTS:
        _sweep(root)
        directory = root / f"testbed-{name}-{os.getpid()}-{next(_numbers)}"
        with contextlib.suppress(OSError):
            directory.mkdir()
            account = Account(directory)
            if account.seconds() is not None and os.access(directory / "cgroup.procs", os.W_OK):
                return account
            account.close()
    return None


def _sweep(root: Path) -> None:
    """Remove empty groups of benches that were killed."""
    for directory in root.glob("testbed-*-*-*"):
        pid = directory.name.split("-")[-2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            Account(directory).close()
