"""What one commit takes: submissions and markers in their order, and what lags behind them.

A submission is answered when its commit is done. What lags (removals, deferrals, flags, the mark) has nobody waiting
for it, goes with some later commit, and stays here until then. No locks, no files: the writer (`mta.queue.writer`) has those.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, TypeAlias, TypeVar

from mta.core.ids import EvpId, MsgId
from mta.queue.schema import Change, Row

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(slots=True, eq=False)
class Item:
    """A submission on its way to the disk."""

    msgid: MsgId
    changes: list[Row]
    """Rows of the view ``change``: the message, its further envelopes, what it replaces."""
    envelopes: int
    size_bytes: int
    in_file: bool
    replaces: bool
    """It takes envelopes away."""
    error: Exception | None = None
    """Why it was not kept; set before `done`."""
    told: bool = False
    """The event loop was told what became of it."""


@dataclass(slots=True, eq=False)
class Marker:
    """Stands in the line of submissions: all that was asked for before it goes into this commit."""

    replaces: bool = False
    error: Exception | None = None
    told: bool = False


Waiting: TypeAlias = Item | Marker


class Lagging(NamedTuple):
    """What goes with some later commit. Dicts, because they keep their order."""

    removes: dict[EvpId, None]
    defers: dict[EvpId, Row]
    """(Change.DEFER, evpid, attempts, due_at, status)."""
    flags: dict[EvpId, int]

    def count_all(self) -> int:
        """Return how many things lag."""
        return len(self.removes) + len(self.defers) + len(self.flags)

    def first(self, count: int | None) -> "Lagging":
        """Return the ``count`` oldest of each kind; all of them, and the same dicts, for None."""
        return Lagging(
            _first(self.removes, count), _first(self.defers, count), _first(self.flags, count)
        )

    def without(self, taken: "Lagging") -> "Lagging":
        """Return what `first` left, in dicts that nobody else has."""
        return Lagging(
            _without(self.removes, taken.removes),
            _without(self.defers, taken.defers),
            _without(self.flags, taken.flags),
        )

    def and_then(self, later: "Lagging") -> "Lagging":
        """Return both: of one envelope what is said later counts."""
        return Lagging(
            self.removes | later.removes, self.defers | later.defers, self.flags | later.flags
        )


class Commit(NamedTuple):
    """What one turn of the writer did, told to the event loop."""

    items: Sequence[Waiting]
    seconds: float
    """From its beginning to the end of its fsync."""
    lagging: int
    """Removals, deferrals and flags in it."""
    problem: str
    """Empty, or why nothing of it was kept."""


@dataclass(slots=True)
class Batch:
    """What the writer took for one commit."""

    items: list[Waiting] = field(default_factory=list)
    lagging: Lagging = field(default_factory=lambda: Lagging({}, {}, {}))
    mark: tuple[int, bool] | None = None

    def __bool__(self) -> bool:
        return bool(self.items or any(self.lagging) or self.mark is not None)

    def changes(self, *, begin: bool) -> tuple[list[Row], int]:
        """Return the rows of the view ``change``, and the bytes of the bodies that are not in files."""
        changes: list[Row] = [(Change.BEGIN,)] if begin else []
        size_bytes = 0
        for item in self.items:
            if isinstance(item, Item):
                changes += item.changes
                if not item.in_file:
                    size_bytes += item.size_bytes
        lagging = self.lagging
        changes += lagging.defers.values()
        changes += [(Change.FLAGS, evpid, flags) for evpid, flags in lagging.flags.items()]
        changes += [(Change.REMOVE, evpid) for evpid in lagging.removes]
        if self.mark is not None:
            changes.append((Change.MARK, *self.mark))
        return changes, size_bytes

    def apart(self) -> "list[Batch]":
        """Split into what lags, first, and each submission alone."""
        lags = any(self.lagging) or self.mark is not None
        parts = [Batch([], self.lagging, self.mark)] if lags else []
        return parts + [Batch([item]) for item in self.items]


def _first(things: dict[_K, _V], count: int | None) -> dict[_K, _V]:
    """Return the ``count`` oldest; the same dict if that is all."""
    if count is None or len(things) <= count:
        return things
    return dict(islice(things.items(), count))


def _without(things: dict[_K, _V], taken: dict[_K, _V]) -> dict[_K, _V]:
    """Return what `_first` left, as a dict that nobody else has."""
    if taken is things:
        return {}
    for key in taken:
        del things[key]
    return things
