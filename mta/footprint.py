"""About how much memory the queued envelopes take, for `mtactl top`: a sample, times how many there are.

An estimate, and said to be one: what the allocator loses is not in it. `testbed` measures resident memory.
"""

import sys
from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mta.core.envelopes.base import EnvelopeStore

SAMPLE: Final = 64
"""Envelopes that are looked at."""
_OBJECTS_MAX: Final = 20_000
"""Objects that one estimate looks at, so that it never takes longer than some 10 ms."""


def estimate_bytes(store: "EnvelopeStore") -> int:
    """Return about how many bytes the store takes.

    Columns and tables are counted as they are; of records and heap entries `SAMPLE` stand for all.
    What several records share counts once.
    """
    total = 0
    for container in vars(store).values():
        total += sys.getsizeof(container)
        if isinstance(container, dict):
            total += _sampled(container.values(), len(container))
        elif isinstance(container, list):
            total += _sampled(container, len(container))
    return total


def _sampled(items: Iterable[object], count: int) -> int:
    sample = list(islice(items, SAMPLE))
    if not sample:
        return 0
    seen: set[int] = set()
    waiting = deque(sample)
    members = {id(one) for one in sample}
    size = 0
    while waiting and len(seen) < _OBJECTS_MAX:
        one = waiting.popleft()
        if id(one) in seen or isinstance(one, type):
            continue
        seen.add(id(one))
        size += sys.getsizeof(one)
        if isinstance(one, tuple | list):
            waiting.extend(one)
        for kind in type(one).__mro__:
            for name in getattr(kind, "__slots__", ()):
                value = getattr(one, name, None)
                # Links lead to other records, which count for themselves.
                if value is not None and id(value) not in members and type(value) is not type(one):
                    waiting.append(value)
    return size * count // len(sample)
