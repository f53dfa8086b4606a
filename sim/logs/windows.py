"""When a host was out of order: runs of failures that chance does not explain.

Greylisting refuses every first attempt too, and chance now and then refuses five in a row. So a run counts as an
outage only if first attempts fail in it that would not have failed outside: with n first attempts and a share p of
failures outside the run, fewer than one run in a hundred logs would be as long by chance, n * p**length < 0.01.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

RUN_MIN: Final = 5
"""First attempts that must fail one after the other."""

RUN_MIN_UNREACHABLE: Final = 2
"""The same where connections fail, which is never about the message."""

BY_CHANCE: Final = 0.01
"""Runs of that length that chance may leave in a log."""


class Try(NamedTuple):
    """An attempt, as far as it says something about the host."""

    began_at: float
    failed: bool
    """For now. Who refuses for good is in order."""
    first: bool
    """The recipient's first."""
    asked: bool
    """False: it was put off unasked."""
    connected: bool
    reply: int
    """Index into `Record.replies`."""


class Outage(NamedTuple):
    """A time in which a host took nothing."""

    begin: float
    """Half way between the last attempt that went well and the first that did not; -inf if the log begins in it."""
    end: float
    """Half way back; inf if the log ends in it."""
    reachable: bool
    """It could be connected to, and refused what it was given."""
    attempts: int
    """Attempts that failed in it."""
    reply: int
    """What it said most, index into `Record.replies`."""


def outages(tries: Sequence[Try]) -> list[Outage]:
    """Return the outages of one host, in their order.

    Args:
        tries: every attempt, in the order in which they began.
    """
    firsts = sum(1 for each in tries if each.first)
    failed_firsts = sum(1 for each in tries if each.first and each.failed)
    found: list[Outage] = []
    before: Try | None = None
    run: list[Try] = []
    for each in [*tries, None]:
        if each is not None and each.failed:
            run.append(each)
            continue
        if run:
            outage = _outage(run, before, each, firsts, failed_firsts)
            if outage is not None:
                found.append(outage)
            run = []
        before = each
    return found


def _outage(
    run: Sequence[Try], before: Try | None, after: Try | None, firsts: int, failed_firsts: int
) -> Outage | None:
    length = sum(1 for each in run if each.first)
    unreachable = sum(1 for each in run if not each.connected)
    reachable = 2 * unreachable < len(run)
    if length < (RUN_MIN if reachable else RUN_MIN_UNREACHABLE):
        return None
    # As Laplace has it: who was never seen to fail may still do so.
    outside = (failed_firsts - length + 1) / (firsts - length + 2)
    if reachable and math.log(firsts) + length * math.log(outside) > math.log(BY_CHANCE):
        return None
    # What was put off unasked says when somebody gave up, and not when the host did.
    asked = [each for each in run if each.asked] or run
    replies = [each.reply for each in asked]
    return Outage(
        begin=-math.inf if before is None else (before.began_at + asked[0].began_at) / 2,
        end=math.inf if after is None else (asked[-1].began_at + after.began_at) / 2,
        reachable=reachable,
        attempts=len(run),
        reply=max(set(replies), key=replies.count),
    )
