"""How each destination has answered lately: OpenSMTPD's ``show hoststats``.

One entry a destination: when it last answered or failed to, what it said, and how long its transactions take.
Entries live four hours, as there (mta.c, ``hoststat_expire``), and there are at most so many: those that were
heard of least lately go first.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

KEEP_S: Final = 4 * 3600.0
"""How long an entry lives without news, seconds. OpenSMTPD mta.c, HOSTSTAT_EXPIRE_DELAY."""
ENTRIES_MAX: Final = 10_000
"""Entries kept. Ours; OpenSMTPD has no bound."""
_SMOOTHING: Final = 0.125
"""Weight of the latest transaction in the mean. RFC 6298 2, as for round trips."""


class HostStat:
    """The latest news of one destination."""

    __slots__ = ("at", "seconds", "status", "transactions")

    def __init__(self) -> None:
        self.at = 0.0
        self.status = ""
        self.seconds = 0.0
        """Smoothed mean duration of transactions; 0 if there was none."""
        self.transactions = 0


class HostStats:
    """All of them, by destination."""

    __slots__ = ("_stats",)

    def __init__(self) -> None:
        self._stats: OrderedDict[str, HostStat] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stats)

    def note(self, domain: str, status: str, now: float, seconds: float | None = None) -> None:
        """Take in news: a reply or a failure, and how long the transaction took if there was one."""
        stats = self._stats
        stat = stats.get(domain)
        if stat is None:
            stat = stats[domain] = HostStat()
            if len(stats) > ENTRIES_MAX:
                stats.popitem(last=False)
        else:
            stats.move_to_end(domain)
        stat.at = now
        stat.status = status
        if seconds is not None:
            first = not stat.transactions
            stat.transactions += 1
            stat.seconds = (
                seconds if first else stat.seconds + _SMOOTHING * (seconds - stat.seconds)
            )

    def items(self, now: float) -> Iterator[tuple[str, HostStat]]:
        """Yield destinations and their news, the latest last; those that are too old are forgotten."""
        stats = self._stats
        while stats:
            oldest = next(iter(stats))
            if stats[oldest].at + KEEP_S > now:
                break
            del stats[oldest]
        yield from stats.items()
