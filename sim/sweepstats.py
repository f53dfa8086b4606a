"""Means of a point's runs with their intervals, and differences of two points, run by run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sim.validation.stats import estimate

MEMORY: Final = "peak_rss_bytes"
LATENCY: Final = "p95"
"""The two amounts of the front; see `sim.sweeptask.NUMBERS`."""

CONFIDENCE: Final = 0.95


def estimated(values: Sequence[float | None]) -> dict[str, float | None]:
    """Return ``mean`` and ``half``: mean and half of the interval; None where there is none."""
    there = [value for value in values if value is not None]
    if not there or len(there) < len(values):
        return {"mean": None, "half": None}
    of = estimate(there)
    half = of.half_width(CONFIDENCE)
    return {"mean": of.mean, "half": half if math.isfinite(half) else None}


def against(base: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mean differences of two points, replication by replication: common luck drops out of them."""
    found: dict[str, Any] = {}
    for name in (MEMORY, LATENCY, "drain_time_s", "peak_queued"):
        pairs = list(zip(base["values"][name], point["values"][name], strict=False))
        whole = base["runs"] == point["runs"]
        differences = [b - a for a, b in pairs if a is not None and b is not None]
        found[name] = estimated(differences if whole and len(differences) == len(pairs) else [])
    return found
