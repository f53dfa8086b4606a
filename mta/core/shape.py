"""How old the queued mail is, by destination: Postfix's qshape.

The columns are qshape(1)'s: minutes, doubling from 5; each counts the envelopes no older than it says and older
than the column before says, the last one all that are older still. A destination that is broken has
its mail on the right, one that is busy on the left; one sender's burst fills a single column.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, Final

BUCKETS_MIN: Final = (5, 10, 20, 40, 80, 160, 320, 640, 1280)
"""Upper ends of the columns, minutes. Postfix qshape.pl, ``-b 10 -t 5``."""
COLUMNS: Final = (*(str(end) for end in BUCKETS_MIN), f"{BUCKETS_MIN[-1]}+")
TOTAL: Final = "TOTAL"

_ENDS_S = tuple(60.0 * end for end in BUCKETS_MIN)


class Shape:
    """Counts envelopes by destination and age."""

    __slots__ = ("_counts", "_now")

    def __init__(self, now: float) -> None:
        """Begin with nothing; ages are counted back from ``now``, seconds since the epoch."""
        self._now = now
        self._counts: dict[str, list[int]] = {}

    def add(self, domain: str, created_at: float) -> None:
        """Count one envelope."""
        counts = self._counts.get(domain)
        if counts is None:
            counts = self._counts[domain] = [0] * len(COLUMNS)
        counts[bisect_left(_ENDS_S, self._now - created_at)] += 1

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the totals, then each destination, the one with most envelopes first.

        Fields: ``domain``, ``total``, and ``ages`` with a count for each of `COLUMNS`.
        """
        every = [sum(column) for column in zip(*self._counts.values(), strict=True)]
        yield _row(TOTAL, every or [0] * len(COLUMNS))
        for domain in sorted(self._counts, key=lambda name: (-sum(self._counts[name]), name)):
            yield _row(domain, self._counts[domain])


def _row(domain: str, counts: list[int]) -> dict[str, Any]:
    return {"domain": domain, "total": sum(counts), "ages": list(counts)}
