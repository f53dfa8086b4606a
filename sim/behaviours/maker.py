"""Makes behaviours from what a scenario says, and knows which ones it has made already."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from sim.behaviours import read
from sim.behaviours.base import Behaviour


class Maker:
    """Makes the behaviours of one host. What is said again as it was before is the same one, with its memory."""

    def __init__(self, rng: random.Random) -> None:
        """``rng`` seeds the behaviours' streams, each its own: one more leaves the others' draws alone."""
        self._rng = rng
        self._made: dict[str, Behaviour] = {}

    def make(
        self, tables: Sequence[Mapping[str, object]], *, source: str, key: str
    ) -> list[Behaviour]:
        """Return the behaviours of a list; ``source`` and ``key`` say in errors where it is.

        Raises:
            ConfigError: unknown kind, unknown parameter, or a value that makes no sense.
        """
        again = Counter[str]()
        made: list[Behaviour] = []
        for each in read(tables, source=source, key=key):
            # Two of a kind with the same parameters are two, with memories of their own.
            again[repr(each)] += 1
            name = f"{each!r} {again[repr(each)]}"
            if name not in self._made:
                self._made[name] = each.make(random.Random(self._rng.getrandbits(64)))
            made.append(self._made[name])
        return made

    def keep(self, behaviours: Iterable[Behaviour]) -> None:
        """Forget all but these: who changes a host for days must not fill memory."""
        kept = set(map(id, behaviours))
        self._made = {name: one for name, one in self._made.items() if id(one) in kept}
