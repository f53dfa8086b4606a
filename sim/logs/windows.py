"""When a host was out of order: runs of failures that chance does not explain.

Greylisting refuses every first attempt too, and chance now and then refuses five in a row. So a run counts as an
outage only if first attempts fail in it that would not have failed outside: with n first attempts and a share p of
failures outside the run, fewer than one run in a hundred logs would be as long by chance, n * p**length < 0.01. Where
all first attempts are in the run, only the host's words tell the one from the other.
"""

import math
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

RUN_MIN: Final = 5
"""First attempts that must fail one after the other."""

RUN_MIN_UNREACHABLE: Final = 2
"""The same where connections fail, which is never about the message."""

BY_CHANCE: Final = 0.01
"""Runs of that length that chance may leave in a log."""

_GREYLISTING: Final = re.compile(r"gr[ae]y.?list|\b4\.7\.1\b", re.IGNORECASE)
"""RFC 6647 2.1 asks for no words; these are what postgrey, milter-greylist and rspamd say."""


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
    first_attempts: int
    """How many of them were a recipient's first."""
    reply: int
    """What it said most, index into `Record.replies`."""


def outages(tries: Sequence[Try], replies: Sequence[str] = ()) -> list[Outage]:
    """Return the outages of one host, in their order.

    Args:
        tries: every attempt, in the order in which they began.
        replies: what `Try.reply` is an index into.
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
            if outage is not None and not (
                outage.first_attempts == firsts and _is_greylisting(outage, replies)
            ):
                found.append(outage)
            run = []
        before = each
    return found


def _outage(
    run: Sequence[Try], before: Try | None, after: Try | None, firsts: int, failed_firsts: int
) -> Outage | None:
    # What was put off unasked says when somebody gave up, and not when the host did.
    asked = [each for each in run if each.asked] or run
    length = sum(1 for each in run if each.first)
    reachable = 2 * sum(1 for each in asked if not each.connected) < len(asked)
    if length < (RUN_MIN if reachable else RUN_MIN_UNREACHABLE):
        return None
    # As Laplace has it: who was never seen to fail may still do so.
    outside = (failed_firsts - length + 1) / (firsts - length + 2)
    if reachable and math.log(firsts) + length * math.log(outside) > math.log(BY_CHANCE):
        return None
    said = [each.reply for each in asked]
    return Outage(
        begin=-math.inf if before is None else (before.began_at + asked[0].began_at) / 2,
        end=math.inf if after is None else (asked[-1].began_at + after.began_at) / 2,
        reachable=reachable,
        attempts=len(run),
        first_attempts=length,
        reply=max(set(said), key=said.count),
    )


def _is_greylisting(outage: Outage, replies: Sequence[str]) -> bool:
    return outage.reply < len(replies) and _GREYLISTING.search(replies[outage.reply]) is not None
