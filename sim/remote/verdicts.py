"""What a host answers: to one command, and to a transaction as a whole."""

import math
from typing import Final, NamedTuple

from mta.core.reply import Reply


class Verdict(NamedTuple):
    """What a host answers to one command.

    ``reply`` None and ``close`` True: the connection is refused or reset. ``reply`` None and
    ``close`` False: silence; nothing more will ever be said on this connection.
    """

    reply: Reply | None
    delay_s: float = 0.0
    """Seconds from the arrival of the command; counted at the same time for all that wait."""
    work_s: float = 0.0
    """Seconds after that and after the reply before; counted for one reply after the other."""
    close: bool = False
    """The host closes after the reply. It has forgotten the connection already."""

    def due_at(self, arrived_at: float, before: float) -> float:
        """Return when the reply leaves, given when the reply before left."""
        return max(arrived_at + self.delay_s, before) + self.work_s


SILENCE: Final = Verdict(None)
RESET: Final = Verdict(None, close=True)


class TransactionVerdict(NamedTuple):
    """What a client that pipelines MAIL, RCPT and DATA learns in one transaction."""

    duration_s: float
    """The host's part of the time; inf if it never answers, so that the client's patience decides."""
    results: tuple[Reply | None, ...]
    """For each recipient the reply that decided about it; None if the connection broke or hung."""
    usable: bool
    """The connection can take another transaction."""


def broken(
    verdict: Verdict, results: list[Reply | None], count: int, spent_s: float
) -> TransactionVerdict:
    """Return what a client knows when no reply comes: refusals count, the rest is open."""
    known = [None if one is None or one.code < 400 else one for one in results]
    known += [None] * (count - len(known))
    return TransactionVerdict(spent_s if verdict.close else math.inf, tuple(known), False)


def closed(
    reply: Reply, results: list[Reply | None], count: int, spent_s: float
) -> TransactionVerdict:
    """Return what a client knows when a reply closes the channel before the message was sent."""
    known = [reply if one is None or one.code < 400 else one for one in results]
    known += [reply] * (count - len(known))
    return TransactionVerdict(spent_s, tuple(known), False)
