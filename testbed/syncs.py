"""How often a server syncs for a message: a short run of its own, under strace.

A rate says little without this: a server that answers 250 before its disk has the message is fast. It is
counted apart from the run that measures time, because strace stops a process at every call that it looks at.
What a server syncs at its start and end is counted too and taken off: the same is done once without mail.
"""

import re
import smtplib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Protocol

from testbed.children import RunError
from testbed.targets.base import STRACE, SYNC_CALLS, Target

MESSAGES: Final = 60
"""Enough that what happens now and then hardly counts; one at a time, so that none shares another's sync."""

SIZE_BYTES: Final = 4096

DRAIN_S: Final = 20.0
"""Longest wait for the last delivery."""

TABLE_S: Final = 10.0
"""Longest wait for strace's table."""

_LINE: Final = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$")


class Traced(Protocol):
    """Makes a server that will run under strace."""

    def __call__(self, directory: Path) -> tuple[Target, Path]:
        """Return it, not started yet, and the file that strace writes its table to when it has ended."""
        ...


def why_not() -> str:
    """Return why syncs can't be counted here; empty if they can."""
    return "" if Path(STRACE[0]).exists() else "needs strace"


def count(
    make: Traced, directory: Path, recipient: Callable[[int], str], *, messages: int = MESSAGES
) -> dict[str, Any]:
    """Return syncs per message, by call and in sum, as ``{"fsync": 1.0, "sum": 1.0, "messages": 60}``.

    Args:
        make: makes a server under strace.
        directory: takes the directories of two runs.
        recipient: returns whom message ``i`` is for; somebody who takes it at once.
        messages: how many.

    Raises:
        RunError: a server did not do what it was started for.
    """
    without = _one(make, directory / "without", recipient, 0)
    with_mail = _one(make, directory / "with", recipient, messages)
    found = {
        name: round(max(0, with_mail.get(name, 0) - without.get(name, 0)) / messages, 2)
        for name in sorted({*with_mail, *without})
    }
    return {**found, "sum": round(sum(found.values()), 2), "messages": messages}


def _one(
    make: Traced, directory: Path, recipient: Callable[[int], str], messages: int
) -> dict[str, int]:
    directory.mkdir(parents=True)
    server, output = make(directory)
    try:
        server.start()
        if messages:
            _send(server, recipient, messages)
            deadline = time.monotonic() + DRAIN_S
            while _in_queue(server) and time.monotonic() < deadline:
                server.check()
                time.sleep(0.05)
    except (OSError, smtplib.SMTPException) as error:
        raise RunError(f"{server.name}: counting syncs: {error}") from error
    finally:
        server.stop()
    try:
        # It may end a moment after the server.
        deadline = time.monotonic() + TABLE_S
        while not output.stat().st_size and time.monotonic() < deadline:
            time.sleep(0.02)
        table = output.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"{server.name}: counting syncs: {error.strerror}: {output}") from error
    if "execve" not in table:
        raise RunError(f"{server.name}: counting syncs: strace left no table")
    return dict(counted(table.splitlines()))


def _send(server: Target, recipient: Callable[[int], str], messages: int) -> None:
    line = "x" * 76 + "\r\n"
    body = "Subject: sync\r\n\r\n" + line * (SIZE_BYTES // len(line))
    with smtplib.SMTP(
        *server.smtp_address, local_hostname="client.testbed.test", timeout=30
    ) as client:
        for i in range(messages):
            client.sendmail(recipient(i), [recipient(i)], body)


def _in_queue(server: Target) -> float:
    stats = server.stats()
    return stats.get("scheduler.envelope", stats.get("queue.message", 0.0))


def counted(lines: Iterable[str]) -> Iterable[tuple[str, int]]:
    """Yield the calls of `strace -c`, whose table has time, seconds, microseconds, calls, errors and name."""
    for line in lines:
        found = _LINE.match(line)
        if found and found[2] in SYNC_CALLS:
            yield found[2], int(found[1])
