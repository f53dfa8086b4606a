"""What the bench asks of a mail server, whichever it is.

A target is met from outside: it is started and stopped as a process, asked over what its operators ask it
with, and judged by what went in and what came out. Nothing here imports a server.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

from testbed.sampler import Usage

SYNC_CALLS: Final = ("fsync", "fdatasync", "sync_file_range", "syncfs", "sync")
"""How a program makes the disk have something."""

STRACE: Final = (
    *("/usr/bin/strace", "-f", "-c", "-qq", "-I", "2"),
    *("-e", f"trace=execve,{','.join(SYNC_CALLS)}"),
)
"""Counts them, in all processes; ``-o FILE`` is to follow. With execve, so that no table can be empty. It ends at a
signal (``-I 2``), which it passes on."""


class Owed(NamedTuple):
    """One recipient of one accepted message, as the server names it."""

    queue_id: str
    """What the reply to the final dot called the message."""
    recipient: str
    """Forward-path, without brackets."""


class Target(Protocol):
    """One mail server, from its start to its end."""

    name: str
    is_tree: bool
    """It is many processes, which come and go."""
    second_attempt_s: int | None
    """When it tries again at the earliest, if it can't be told; None if it keeps the scenario's pace."""

    def start(self) -> None:
        """Start it and return when it takes mail.

        Raises:
            RunError: it ended, or was not ready in time.
        """
        ...

    @property
    def smtp_address(self) -> tuple[str, int]:
        """Where it takes mail."""
        ...

    def check(self) -> None:
        """Raise RunError if it has ended though nobody asked it to."""
        ...

    def pids(self) -> list[int]:
        """Return the processes whose memory and time are the server's."""
        ...

    def stats(self) -> Mapping[str, float]:
        """Return its counters and gauges; ``scheduler.envelope`` or ``queue.message`` is the least there is.

        What a server can't tell is not in it. Names that ours has too mean the same.

        Raises:
            OSError: it does not answer now.
        """
        ...

    def queued(self) -> list[Owed]:
        """Return what its queue holds; as it is running or after it was stopped.

        Raises:
            OSError: it does not answer now.
        """
        ...

    def bounced(self) -> list[Owed]:
        """Return what it gave up, by its own log: failed for good or too old."""
        ...

    def queue_id(self, reply: str) -> str:
        """Return the message's id from the reply to its final dot; empty if it has none."""
        ...

    def usage(self) -> Usage:
        """Return what its processes use, and the time of those that have ended, if it has many.

        Raises:
            OSError: it has none now.
        """
        ...

    def stop(self) -> int:
        """End it and return its exit status. Idempotent."""
        ...

    def discard_queue(self) -> None:
        """Remove its queue from the disk; only after `stop`."""
        ...

    def describe_end(self) -> str:
        """Return one line on how it ended."""
        ...
