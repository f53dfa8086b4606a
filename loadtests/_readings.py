"""What the dashboard shows, a row for each second: gauges as they are, counters as rates, gaps where nothing was known.

A row is made once, whoever looks at it. A server that was started again has its counters at zero: then there is no rate for
that second, never a negative or an enormous one.
"""

import secrets
from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Any, Final, NamedTuple

GAUGES: Final[Mapping[str, str]] = {
    "rss": "process_resident_memory_bytes",
    "pss": "mta_memory_pss",
    "commands_rss": "mta_memory_commands_rss",
    "commands_pss": "mta_memory_commands_pss",
    "bytes_scheduler": "mta_memory_envelopes",
    "bytes_queue": "mta_queue_evpcache_bytes",
    "bytes_smtp": "mta_smtp_bytes",
    "pending": "mta_scheduler_envelope_pending",
    "scheduled": "mta_scheduler_envelope_scheduled",
    "inflight": "mta_scheduler_envelope_inflight",
    "hold": "mta_scheduler_ramqueue_hold",
    "suspended": "mta_scheduler_envelope_suspended",
    "at_scheduler": "mta_scheduler_envelope",
    "at_queue": "mta_queue_evpcache_size",
    "at_mta": "mta_envelope",
    "at_mda": "mta_mda_envelope",
    "at_bounce": "mta_bounce_envelope",
}
"""Columns that are gauges, and what they are called on the page."""

RATES: Final[Mapping[str, str]] = {
    "accepted": "mta_smtp_message_total",
    "delivered": "mta_scheduler_delivery_ok_total",
    "deferred": "mta_scheduler_delivery_tempfail_total",
    "failed": "mta_scheduler_delivery_permfail_total",
    "bounces": "mta_queue_bounce_total",
}
"""Columns that are a counter's growth per second."""

UNKNOWN_IS_ZERO: Final = frozenset({"rss", "pss"})
"""Gauges that are 0 when the server could not find out."""

NEEDED: Final = "mta_scheduler_envelope"
"""What a page must have to be our server's."""

STARTED: Final = "process_start_time_seconds"

COLUMNS: Final = ("t", *GAUGES, *RATES, "lag")
"""Of a row, in this order; ``t`` in seconds since 1970, ``lag`` in seconds, memory in bytes."""

ROWS: Final = 1800
"""Rows that are kept: half an hour."""


class State(NamedTuple):
    """How it stands with the server."""

    name: str
    """``waiting`` for the first look, ``ok``, or ``away`` when there is nothing to be read."""
    since: float
    """Instant of the first look that found it so."""
    words: str = ""
    """What is the matter, if something is."""


class Readings:
    """The latest rows."""

    def __init__(self, rows: int = ROWS) -> None:
        """Begin with none; keep so many."""
        self.state = State("waiting", 0.0)
        self.id = secrets.token_hex(4)
        """Other readings have another one: numbers of rows are only good for these."""
        self.restarts = 0
        """How often the server turned out to be another one than before."""
        self.restarted_at = 0.0
        """When the last of them was noticed."""
        self.started_at = 0.0
        """When the server was started, as it says; 0 if it has not said."""
        self._rows: deque[tuple[float | None, ...]] = deque(maxlen=rows)
        self._taken = 0
        self._before: tuple[float, Mapping[str, float]] | None = None

    def take(self, t: float, values: Mapping[str, float], lag_s: float | None) -> None:
        """Add a look that succeeded.

        Args:
            t: When it was, in seconds since 1970.
            values: The numbers on the page.
            lag_s: By how much the load was late at worst since the row before; None if there is no load.
        """
        if NEEDED not in values:
            self.miss(t, f"it answers, but has no {NEEDED}: is it another server?", lag_s)
            return
        started = values.get(STARTED, 0.0)
        if self._before is not None and self._is_another(values):
            self.restarts += 1
            self.restarted_at = t
            self._before = None
        self.started_at = started
        if self.state.name != "ok":
            self.state = State("ok", t)
        gauges = (
            None if not values.get(name) and key in UNKNOWN_IS_ZERO else values.get(name)
            for key, name in GAUGES.items()
        )
        rates = (self._rate(t, values, name) for name in RATES.values())
        self._add((round(t, 3), *gauges, *rates, lag_s))
        self._before = (t, values)

    def miss(self, t: float, words: str, lag_s: float | None) -> None:
        """Add a look that found nothing, and why."""
        since = self.state.since if self.state.name == "away" else t
        self.state = State("away", since, words)
        self._add((round(t, 3), *(None for _ in (*GAUGES, *RATES)), lag_s))

    def _is_another(self, values: Mapping[str, float]) -> bool:
        """Return whether counters have begun again, or the server has."""
        assert self._before is not None
        before = self._before[1]
        if before.get(STARTED) != values.get(STARTED):
            return True
        return any(values.get(name, 0.0) < before.get(name, 0.0) for name in RATES.values())

    def _rate(self, t: float, values: Mapping[str, float], name: str) -> float | None:
        """Return what a counter grew by per second, over the time since it was last read."""
        if self._before is None or name not in values or name not in self._before[1]:
            return None
        seconds = t - self._before[0]
        growth = values[name] - self._before[1][name]
        return round(growth / seconds, 3) if seconds > 0 else None

    def _add(self, row: tuple[float | None, ...]) -> None:
        assert len(row) == len(COLUMNS), row
        self._rows.append(row)
        self._taken += 1

    def since(self, number: int) -> dict[str, Any]:
        """Return the rows from a number on, as far as they are kept, and how it stands.

        Args:
            number: What ``next`` was in the answer before; 0 for all.
        """
        oldest = self._taken - len(self._rows)
        first = min(max(number, oldest), self._taken)
        rows = list(islice(self._rows, first - oldest, None))
        return {
            "id": self.id,
            "columns": COLUMNS,
            "first": first,
            "next": self._taken,
            "kept": self._rows.maxlen,
            "rows": rows,
            "looked_at": self._rows[-1][0] if self._rows else None,
            "state": self.state._asdict(),
            "restarts": self.restarts,
            "restarted_at": self.restarted_at,
            "started_at": self.started_at,
        }


REPORTED_S: Final = 4.0
"""How long a worker's report is true; Locust's come every 3 s."""


class WorkersLag:
    """By how much the workers of a distributed load were late, as they report it."""

    def __init__(self) -> None:
        """Begin without any."""
        self._reports: dict[str, tuple[float, float]] = {}

    def add(self, worker: str, t: float, lag_s: float) -> None:
        """Take a report that came at ``t``."""
        self._reports[worker] = (t, lag_s)

    def worst_s(self, t: float) -> float | None:
        """Return the largest of the latest reports; None if there is none, as before and after a run."""
        self._reports = {
            worker: report for worker, report in self._reports.items() if t - report[0] < REPORTED_S
        }
        return max((lag_s for _, lag_s in self._reports.values()), default=None)
