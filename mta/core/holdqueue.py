"""Back-pressure between the scheduler and one relay: high water, low water, releases.

OpenSMTPD since November 2013 (scheduler_ramqueue.c, mta.c): a relay that has `high_water` transactions
waiting takes no more; envelopes for it are held; when its waiting transactions have gone down to
`low_water` it asks for `release` of them back. Unlike there, the oldest held envelope is released
first (OpenSMTPD's list is last in, first out, so under sustained load the oldest starve).
"""

from mta.core.envelopes.base import EnvelopeList, Handle


class HoldQueue:
    """The held envelopes of one relay, and the rule when to hold and when to release."""

    __slots__ = ("_held", "_held_max", "_high_water", "_low_water", "_release")

    def __init__(
        self, held: EnvelopeList, *, high_water: int, low_water: int, release: int, held_max: int
    ) -> None:
        assert 0 <= low_water < high_water and release > 0 and held_max > 0
        self._held = held
        self._high_water = high_water
        self._low_water = low_water
        self._release = release
        self._held_max = held_max

    def set_marks(self, *, high_water: int, low_water: int, release: int, held_max: int) -> None:
        """Go on with other marks: the operator changed a limit. What is held stays held."""
        assert 0 <= low_water < high_water and release > 0 and held_max > 0
        self._held_max = held_max
        self._high_water = high_water
        self._low_water = low_water
        self._release = release

    def must_hold(self, waiting: int) -> bool:
        """Return whether a further envelope must be held, with `waiting` transactions before it."""
        # Why also while others are held? Whoever comes later must not overtake them.
        return waiting >= self._high_water or (len(self._held) > 0 and waiting > self._low_water)

    def is_full(self) -> bool:
        """Return whether the next envelope overflows: it goes back to pending."""
        return len(self._held) >= self._held_max

    def hold(self, handle: Handle) -> None:
        """Park an envelope."""
        assert not self.is_full()
        self._held.append(handle)

    def release(self, waiting: int) -> list[Handle]:
        """Return the envelopes that go on now, oldest first, with `waiting` transactions left."""
        if waiting > self._low_water or not self._held:
            return []
        return self._take(self._release)

    def release_all(self) -> list[Handle]:
        """Return all held envelopes, oldest first: the relay has failed."""
        return self._take(len(self._held))

    def withdraw(self, handle: Handle) -> None:
        """Take one envelope out, because the operator wants it elsewhere."""
        self._held.remove(handle)

    def _take(self, count: int) -> list[Handle]:
        taken: list[Handle] = []
        while len(taken) < count and (handle := self._held.popleft()) is not None:
            taken.append(handle)
        return taken

    def __len__(self) -> int:
        return len(self._held)
