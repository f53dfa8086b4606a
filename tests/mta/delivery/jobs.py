"""Jobs, and what every test of a delivery asks of them."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from mta.core.ids import EvpId
from mta.core.reply import Outcome
from mta.delivery.base import DeliveryResult, Job
from tests.support.faults import FaultyEffects, Plan, disk_full, io_error

BODY = (
    b"Received: from a by b; 1 Jan\r\nSubject: one\r\n\r\nFirst line\r\n.\r\nFrom here\r\nlast\r\n"
)


def job(home: Path, **changes: Any) -> Job:
    """A message for ann, who is whoever runs the tests."""
    home.mkdir(parents=True, exist_ok=True)
    plain = Job(
        evpid=EvpId(1 << 32 | 1),
        sender="bob@remote.test",
        rcpt="ann+list@example.test",
        dest="ann@example.test",
        user="ann",
        uid=os.geteuid(),
        gid=os.getegid(),
        home=home,
        tag="list",
        body=BODY,
        created_at=1_700_000_000.0,
    )
    return plain._replace(**changes)


def no_descriptors() -> BaseException:
    return OSError(errno.EMFILE, os.strerror(errno.EMFILE))


FAULTS = [
    ("before", disk_full),
    ("after", disk_full),
    ("after", io_error),
    ("before", no_descriptors),
]
"""When and how effects fail in a sweep: before they happen, or when their result is lost."""


def is_discreet(result: DeliveryResult, home: Path) -> bool:
    """A status tells a stranger neither a path nor an error of this machine."""
    status = result.status
    words = {os.strerror(number) for number in (errno.ENOSPC, errno.EIO, errno.EMFILE)}
    return (
        str(home) not in status
        and "Errno" not in status
        and not any(word in status for word in words)
        and status.isprintable()
    )


async def sweep(
    home: Path,
    when: Any,
    error: Callable[[], BaseException],
    deliverer: Callable[[FaultyEffects], Any],
    copies: Callable[[Path], int],
    descriptors: Callable[[], dict[int, str]],
    **changes: Any,
) -> list[str]:
    """Make the n-th effect of a delivery fail, for each n: what is said is what is there.

    Returns:
        The effects that failed, in order.
    """
    reached = []
    for number in range(1, 200):
        place = home / str(number)
        effects = FaultyEffects()
        shell = deliverer(effects)
        task = job(place, **changes)
        before = set(descriptors())
        effects.plan = Plan(number, error=error, when=when)
        result = await shell.deliver(task)
        if not effects.failed:
            assert (Outcome.OK, 1) == (result.outcome, copies(place))
            return reached
        reached.append(effects.failed[0].op)
        at = (number, effects.failed, result)
        assert result.outcome in (Outcome.OK, Outcome.TEMPFAIL), at
        assert (1 if result.outcome is Outcome.OK else 0) == copies(place), at
        assert is_discreet(result, home), at
        if result.outcome is Outcome.TEMPFAIL:
            assert result.status.startswith("4."), at
        assert before >= set(descriptors()), at
        effects.heal()
        if result.outcome is not Outcome.OK:
            assert (await shell.deliver(task)).outcome is Outcome.OK, at
        assert 1 == copies(place), at
    raise AssertionError("the sweep does not end")


def children() -> set[int]:
    """This process's children, dead ones that nobody has reaped included."""
    return {child.pid for child in psutil.Process().children()}
