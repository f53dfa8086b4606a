"""Locust's statistics, told of many requests at once.

An event for each verb of each message would cost as much as saying it. Successes are gathered and added a few times a
second; failures, which are few, go the ordinary way.
"""

import time
from typing import Any, Final

from locust.stats import RequestStats, StatsEntry

from loadtests._record import three_digits
from loadtests._tally import Gathered, Tally

FLUSH_S: Final = 0.25
"""How often what was gathered becomes visible."""

METHOD: Final = "SMTP"
"""What the statistics call the type of every request."""


def flush(tally: Tally, stats: RequestStats) -> None:
    """Hand over what has been gathered since the last time."""
    now = time.time()
    for gathered in tally.take():
        part = _entry(stats, gathered, now)
        stats.get(gathered.name, METHOD).extend(part)
        stats.total.extend(part)


def _entry(stats: RequestStats, gathered: Gathered, now: float) -> StatsEntry:
    """Return some requests as Locust would have counted them one by one; times are in milliseconds there."""
    entry: Any = StatsEntry(stats, gathered.name, METHOD)
    entry.num_requests = len(gathered.seconds)
    entry.total_response_time = float(gathered.seconds.sum()) * 1000
    entry.min_response_time = float(gathered.seconds.min()) * 1000
    entry.max_response_time = float(gathered.seconds.max()) * 1000
    for micros, count in gathered.counts.items():
        entry.response_times[three_digits(micros / 1000)] += count
    entry.num_reqs_per_sec[int(now)] = len(gathered.seconds)
    entry.last_request_timestamp = now
    entry.total_content_length = gathered.octets
    return entry  # type: ignore[no-any-return]
