"""The numbers of a run by the names that conditions, tables and scripts use.

Each is a path into one server's part of ``summary.json`` with a meaning and a dimension, so that ``p99_accepted > 800 ms`` can be
checked and a comparison knows what is better. Any other number of that part has a name, too: its path, as
``delivery_latency_s.steady.p95``. Values are in seconds, bytes, of one, and per second.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

Dimension = Literal["", "time", "size", "share", "rate"]


class Quantity(NamedTuple):
    """One number of a run."""

    name: str
    path: str
    """In the part of one server; ``*`` stands for the worst destination, or for the one that is named."""
    dimension: Dimension
    meaning: str
    better: Literal["less", "more", ""] = ""
    """Which way is good news; empty if it says nothing by itself."""
    factor: float = 1.0
    """What the number in the file is multiplied with to be in its dimension's own unit."""

    @property
    def by_destination(self) -> bool:
        """Whether ``name.destination`` is a quantity, too."""
        return "*" in self.path or self.name in PLACES


PLACES: Final = (
    "offered",
    "accepted",
    "refused",
    "delivered",
    "bounced",
    "queued",
    "lost",
    "unaccounted",
    "duplicates",
    "altered",
    "reordered",
)
"""Counts of recipients that there are for each destination, too."""

_COUNTS: Final = (
    Quantity("offered", "offered", "", "recipients that the load tried to send"),
    Quantity("accepted", "accepted", "", "recipients promised with 250", "more"),
    Quantity("refused", "refused", "", "recipients offered and not accepted", "less"),
    Quantity("delivered", "delivered", "", "accepted recipients that arrived", "more"),
    Quantity("bounced", "bounced", "", "accepted recipients given up with a report", "less"),
    Quantity("queued", "queued", "", "accepted recipients still in the queue at the end", "less"),
    Quantity("lost", "lost", "", "accepted recipients that are nowhere", "less"),
    Quantity("unaccounted", "unaccounted", "", "lost or queued, of a server whose queue can't be read", "less"),
    Quantity("duplicates", "duplicates", "", "arrivals too many that the load did not cause", "less"),
    Quantity("duplicates_client", "duplicates_client", "", "arrivals too many that it did cause", "less"),
    Quantity("altered", "altered", "", "arrivals whose bytes are not those sent", "less"),
    Quantity("reordered", "reordered", "", "arrivals overtaken by mail that was begun after their 250", "less"),
    Quantity("unexpected", "unexpected", "", "arrivals that nobody was promised", "less"),
    Quantity("unacknowledged", "unacknowledged", "", "arrivals whose client never heard the 250", "less"),
    Quantity("messages_accepted", "messages_accepted", "", "messages answered with 250", "more"),
    Quantity("messages_delivered", "messages_delivered", "", "transactions at the remote hosts"),
    Quantity("attempts_deferred", "attempts_deferred", "", "attempts that failed for now", "less"),
    Quantity("deferred_per_recipient", "deferred_per_recipient", "", "attempts that failed for now, for each accepted recipient", "less"),
    Quantity("recipients_per_transaction", "recipients_per_transaction", "", "arrived recipients for each transaction", "more"),
    Quantity("ambiguous", "ambiguous", "", "connections lost after the dot: each may be a duplicate", "less"),
    Quantity("peak_queue", "peak_queue", "", "longest queue, envelopes (messages, of servers that count these)", "less"),
    Quantity("peak_fds", "peak_fds", "", "most open descriptors", "less"),
    Quantity("peak_threads", "peak_threads", "", "most threads", "less"),
    Quantity("fsyncs_per_message", "fsyncs_per_message", "", "fsync and fdatasync calls for each accepted message", "less"),
    Quantity("commits_per_message", "commits_per_message", "", "commits of our queue for each accepted message", "less"),
)  # fmt: skip

_LATENCIES: Final = tuple(
    quantity
    for q in ("p50", "p90", "p95", "p99", "max")
    for quantity in (
        Quantity(f"{q}_accepted", f"accept_latency_s.{q}", "time", f"{q} from the due instant to the 250", "less"),
        Quantity(f"{q}_delivered", f"delivery_latency_s.*.{q}", "time", f"{q} from the due instant to the remote 250, worst destination", "less"),
    )
)  # fmt: skip

_COSTS: Final = (
    Quantity("messages_per_s", "messages_per_s", "rate", "messages from the first due instant to the last arrival", "more"),
    Quantity("accepted_per_s", "accepted_per_s", "rate", "messages while the load lasted", "more"),
    Quantity("drain_time", "drain_time_s", "time", "from the start of the load until the queue was empty", "less"),
    Quantity("recovery", "recovery_s", "time", "from the end of the server's process until the next one had read its queue, at worst", "less"),
    Quantity("watched", "watched_s", "time", "from the start of the load until nobody looked any more"),
    Quantity("peak_queue_at", "peak_queue_at_s", "time", "when the queue was longest"),
    Quantity("cpu", "cpu_s", "time", "processor time of the server under load", "less"),
    Quantity("cpu_per_message", "cpu_ms_per_message", "time", "processor time of the server for each accepted message", "less", 1e-3),
    Quantity("children_cpu", "children_cpu_s", "time", "processor time of what the server ran", "less"),
    Quantity("load_cpu", "load_cpu_s", "time", "processor time of the load"),
    Quantity("world_cpu", "world_cpu_s", "time", "processor time of the world"),
    Quantity("loop_lag_p99", "loop_lag_p99_s", "time", "p99 of the server's answer to the bench", "less"),
    Quantity("generator_lag_p99", "generator_lag_p99_s", "time", "p99 of how late the load was by its own doing", "less"),
    Quantity("foreign_cpu", "foreign_cpu_share", "share", "part of the machine that other programs took", "less"),
    Quantity("idle_rss", "base_rss_bytes", "size", "RSS before the load (of other servers: PSS of all their processes)", "less"),
    Quantity("idle_pss", "base_pss_bytes", "size", "PSS before the load", "less"),
    Quantity("idle_uss", "base_uss_bytes", "size", "private memory before the load", "less"),
    Quantity("peak_rss", "peak_rss_bytes", "size", "largest RSS", "less"),
    Quantity("peak_pss", "peak_pss_bytes", "size", "largest PSS", "less"),
    Quantity("peak_uss", "peak_uss_bytes", "size", "largest private memory", "less"),
    Quantity("growth_rss", "growth_rss_bytes", "size", "largest RSS less that before the load", "less"),
    Quantity("end_rss", "end_rss_bytes", "size", "RSS after the drain", "less"),
    Quantity("bytes_per_envelope", "bytes_per_envelope", "size", "slope of RSS on queued envelopes", "less"),
    Quantity("pss_per_envelope", "bytes_per_envelope_pss", "size", "slope of PSS on queued envelopes", "less"),
    Quantity("uss_per_envelope", "bytes_per_envelope_uss", "size", "slope of private memory on them", "less"),
    Quantity("store_per_envelope", "store_bytes_per_envelope", "size", "RSS for each envelope in the store alone", "less"),
)  # fmt: skip

QUANTITIES: Final = {each.name: each for each in (*_COUNTS, *_LATENCIES, *_COSTS)}

PART_KEYS: Final = frozenset(
    {each.path.partition(".")[0] for each in QUANTITIES.values()} | {
        "bytes_per_envelope_stderr", "bytes_per_envelope_uss_stderr", "bytes_per_envelope_pss_stderr", "fit", "leaks",
        "store_body_bytes_per_envelope", "store_envelopes", "destinations", "commits", "agents", "restarts",
    }
)  # fmt: skip
"""First words of paths into the part of one server."""

_SUFFIXES: Final[tuple[tuple[str, Dimension, float], ...]] = (
    ("_ms_per_message", "time", 1e-3),
    ("_bytes", "size", 1.0),
    ("_bytes_per_envelope", "size", 1.0),
    ("_share", "share", 1.0),
    ("_per_s", "rate", 1.0),
    ("_s", "time", 1.0),
)


def known(name: str) -> bool:
    """Return whether a name can be that of a quantity; of destinations and paths a run has the last word."""
    first, _, rest = name.partition(".")
    found = QUANTITIES.get(first)
    if found is not None and (not rest or found.by_destination):
        return True
    return first in PART_KEYS


def dimension_of(name: str) -> Dimension:
    """Return what a quantity is of."""
    found = _named(name)
    if found is not None:
        return found[0].dimension
    return _of_path(name)[0]


def value_of(part: Mapping[str, Any], name: str) -> float | None:
    """Return a quantity of one server's part of a summary; None if this run has no value for it."""
    found = _named(name)
    if found is None:
        value = _at(part, name.split("."))
        return None if value is None else value * _of_path(name)[1]
    quantity, destination = found
    if destination and quantity.name in PLACES:
        path = ["destinations", destination, quantity.path]
    elif "*" in quantity.path:
        above, _, below = quantity.path.partition(".*.")
        table = part.get(above) or {}
        if not destination:
            values = [_at(each, [below]) for each in table.values()]
            return max((each for each in values if each is not None), default=None)
        path = [above, destination, below]
    else:
        path = quantity.path.split(".")
    value = _at(part, path)
    return None if value is None else value * quantity.factor


def _named(name: str) -> tuple[Quantity, str] | None:
    first, _, destination = name.partition(".")
    found = QUANTITIES.get(first)
    if found is None or (destination and not found.by_destination):
        return None
    return found, destination


def _of_path(path: str) -> tuple[Dimension, float]:
    for word in reversed(path.split(".")):
        for suffix, dimension, factor in _SUFFIXES:
            if word.endswith(suffix):
                return dimension, factor
    return "", 1.0


def _at(table: Any, path: list[str]) -> float | None:
    for key in path:
        if not isinstance(table, Mapping):
            return None
        table = table.get(key)
    if isinstance(table, bool) or not isinstance(table, int | float) or not math.isfinite(table):
        return None
    return float(table)


def shown(value: float | None, dimension: Dimension) -> str:
    """Return a value for people: ``912 ms``, ``1.5 MiB``, ``12 %``."""
    if value is None:
        return "no value"
    size = abs(value)
    match dimension:
        case "time":
            if size < 1e-3:
                return f"{value * 1e6:.3g} us"
            return f"{value * 1e3:.3g} ms" if size < 1 else f"{value:.3g} s"
        case "size":
            for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
                if size >= factor:
                    return f"{value / factor:.3g} {unit}"
            return f"{value:.0f} B"
        case "share":
            return f"{value:.1%}".replace("%", " %")
        case "rate":
            return f"{value:,.1f} /s"
        case "":
            return f"{value:,.0f}" if value == round(value) else f"{value:.3g}"


def describe() -> Iterator[tuple[str, str, str]]:
    """Yield name, dimension and meaning of each, for ``--fail-if help`` and the reference."""
    units = {"": "number", "time": "time", "size": "size", "share": "share", "rate": "rate"}
    for each in QUANTITIES.values():
        name = each.name + ("[.DESTINATION]" if each.by_destination else "")
        yield name, units[each.dimension], each.meaning
