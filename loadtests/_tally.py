"""What the verbs took: kept per name as it comes, handed on a few times a second, and counted in HDR histograms.

Locust's own numbers are rounded; the histograms keep three digits from a microsecond to an hour, per verb, for the
whole run. Whoever imports Locust has all of Python's blocking calls patched; this file can do without.
"""

import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from hdrh.histogram import HdrHistogram

HIGHEST_US: Final = 3_600_000_000
"""Largest value of a histogram, an hour; what took longer is counted as that."""

DIGITS: Final = 3
"""Significant decimal digits of a histogram."""

_SUB_BUCKET_BITS: Final = 11
"""Binary digits that a histogram of three decimal ones keeps (HdrHistogram: 2,048 sub-buckets)."""

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 100.0)


class Gathered(NamedTuple):
    """Some successes of one name."""

    name: str
    seconds: np.ndarray[Any, np.dtype[np.float64]]
    counts: Mapping[int, int]
    """How often each value comes, in microseconds, as finely as a histogram can tell them apart."""
    octets: int


class Tally:
    """The successes of one run in one process."""

    def __init__(self, counts_from: float = 0.0) -> None:
        """Begin with nothing.

        Args:
            counts_from: Instant of `time.perf_counter` from which on what begins counts: the end of the warm-up.
        """
        self._counts_from = counts_from
        self._waiting: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
        self._counts: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self._bytes: Counter[str] = Counter()

    def add(self, name: str, seconds: float, octets: int = 0) -> None:
        """Take one more, which has just ended and took so long, unless it began in the warm-up."""
        if self._counts_from and time.perf_counter() - seconds < self._counts_from:
            return
        self._waiting[name].append(seconds)
        if octets:
            self._bytes[name] += octets

    def take(self) -> list[Gathered]:
        """Return what has been gathered since the last time, a piece for each name."""
        waiting, self._waiting = self._waiting, defaultdict(lambda: array("d"))
        octets, self._bytes = self._bytes, Counter()
        taken = []
        for name, seconds in waiting.items():
            values = np.maximum(np.frombuffer(seconds, dtype=np.float64), 0.0)
            counts = _counted(values)
            self._counts[name].update(counts)
            taken.append(Gathered(name, values, counts, octets[name]))
        return taken

    def histograms(self) -> dict[str, HdrHistogram]:
        """Return a histogram of microseconds for each name; `take` first."""
        found = {}
        for name, counts in sorted(self._counts.items()):
            histogram = new_histogram()
            for value, count in counts.items():
                histogram.record_value(min(value, HIGHEST_US), count)
            found[name] = histogram
        return found


def new_histogram() -> HdrHistogram:
    """Return an empty histogram of microseconds."""
    return HdrHistogram(1, HIGHEST_US, DIGITS)


def _counted(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[int, int]:
    """Return how often each value comes, in microseconds, as finely as the histogram can tell them apart."""
    micros = np.rint(values * 1e6).astype(np.int64)
    bits = np.frexp(micros.astype(np.float64))[1]
    shift = np.maximum(bits - _SUB_BUCKET_BITS, 0)
    unique, counts = np.unique(micros >> shift << shift, return_counts=True)
    return dict(zip(unique.tolist(), counts.tolist(), strict=True))


def encoded(histograms: Mapping[str, HdrHistogram]) -> dict[str, str]:
    """Return histograms as text (HdrHistogram V2, compressed, base64), for another process."""
    return {name: str(each.encode(), "ascii") for name, each in histograms.items()}


def merged(parts: list[Mapping[str, str]]) -> dict[str, HdrHistogram]:
    """Return the sum of what several processes have encoded."""
    total: dict[str, HdrHistogram] = {}
    for part in parts:
        for name, text in part.items():
            total.setdefault(name, new_histogram()).decode_and_add(text)
    return dict(sorted(total.items()))


def percentiles(histograms: Mapping[str, HdrHistogram]) -> dict[str, dict[str, float]]:
    """Return count, p50 to p99.9 and max in seconds for each name."""
    return {
        name: {
            "count": each.get_total_count(),
            **{
                "max" if p == 100 else f"p{p:g}": each.get_value_at_percentile(p) / 1e6
                for p in PERCENTILES
            },
        }
        for name, each in histograms.items()
    }


def table(histograms: Mapping[str, HdrHistogram]) -> str:
    """Return the percentiles in milliseconds as lines of text."""
    columns = ["p50", "p90", "p99", "p99.9", "max"]
    lines = [f"{'ms':<24}{'count':>10}" + "".join(f"{each:>10}" for each in columns)]
    for name, row in percentiles(histograms).items():
        values = "".join(f"{row[each] * 1000:>10.3f}" for each in columns)
        lines.append(f"{name:<24}{row['count']:>10}{values}")
    return "\n".join(lines)


def write_log(path: Path, histograms: Mapping[str, HdrHistogram], started: float) -> None:
    """Write a log that the tools of HdrHistogram read: one line per name, its tag; microseconds.

    Raises:
        OSError: it can't be written.
    """
    lines = ["#[Histogram log format version 1.3]", f"#[StartTime: {started:.3f} (seconds)]"]
    lines.append(
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"'
    )
    for name, each in histograms.items():
        most = each.get_max_value() / 1e6
        length = each.get_total_count() and most
        tag = name.replace(" ", "-").replace(",", "-")
        lines.append(f"Tag={tag},{started:.3f},{length:.3f},{most:.6f},{each.encode().decode()}")
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
