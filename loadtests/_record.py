"""What was sent and what was answered, one JSON line per message: the load's half of the ledger.

First line ``"kind": "start"``, last line ``"kind": "end"``; without the last one the run is not
over, or was killed. Instants are seconds since the epoch.
"""

import math
import time
from array import array
from pathlib import Path
from typing import Any, Final

import msgspec

FLUSH_S: Final = 0.2
"""How long a line may wait in memory: what watches a run reads this file."""


class Recorder:
    """Writes the lines. Opened for the first run, kept for the next one in the same process."""

    def __init__(self, path: Path) -> None:
        """Make the file, or empty it.

        Raises:
            OSError: it can't be.
        """
        self._file = path.open("wb")
        self._encode = msgspec.json.Encoder().encode
        self._flushed_at = 0.0

    def write(self, line: dict[str, Any]) -> None:
        """Add one line."""
        self._file.write(self._encode(line))
        self._file.write(b"\n")
        now = time.monotonic()
        if now - self._flushed_at > FLUSH_S:
            self._file.flush()
            self._flushed_at = now

    def flush(self) -> None:
        """Write out what waits in memory."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close. Idempotent."""
        self._file.close()


class Spread:
    """Seconds, for percentiles: 8 bytes each."""

    def __init__(self) -> None:
        self._values = array("d")

    def add(self, seconds: float) -> None:
        """Take one more."""
        self._values.append(seconds)

    def __len__(self) -> int:
        return len(self._values)

    def summary(self) -> dict[str, float] | None:
        """Return p50, p99 (nearest rank) and max in seconds; None if there are no values."""
        if not self._values:
            return None
        ordered = sorted(self._values)
        n = len(ordered)
        ranks = {"p50": math.ceil(0.50 * n), "p99": math.ceil(0.99 * n), "max": n}
        return {name: round(ordered[rank - 1], 6) for name, rank in ranks.items()}


def three_digits(response_time: float) -> float:
    """Round milliseconds to three digits, at least to microseconds.

    In place of ``locust.stats.bucket_response_time``, which rounds to whole milliseconds: every verb
    on loopback would take 0 or 1.
    """
    if response_time < 1:
        return round(response_time, 3)
    if response_time < 10:
        return round(response_time, 2)
    if response_time < 100:
        return round(response_time, 1)
    if response_time < 1000:
        return round(response_time)
    return round(response_time, -1 if response_time < 10_000 else -2)
