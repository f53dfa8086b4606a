"""The table of `sim run`: one column of results, or mean and interval over replications."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

_ROWS = (
    ("accepted", "envelopes"),
    ("delivered", "envelopes"),
    ("deferred", "attempts"),
    ("bounced", "reports"),
    ("expired", "envelopes"),
    ("refused_messages", "messages"),
    ("queued", "at the end"),
    ("peak_queued", "envelopes"),
    ("drain_time_s", "s"),
    ("p50", "s to delivery"),
    ("p95", "s to delivery"),
    ("p99", "s to delivery"),
    ("peak_rss_bytes", "bytes, estimated"),
    ("peak_live_bytes", "bytes of the queue"),
    ("bytes_per_envelope", "then"),
    ("busy_share", "of the event loop"),
)
"""Rows of a table of results: key and unit."""

_RESTART_ROWS = (
    ("gone_s", "s, the end of the process"),
    ("opened_s", "s, its door is open again"),
    ("restored_s", "s, its queue is read"),
    ("envelopes", "envelopes on the disk"),
)
"""The same of each restart."""

_HARM_ROWS = (
    ("broken", "times that a client lost its server"),
    ("duplicates", "envelopes, delivered once more"),
    ("duplicates_client", "envelopes, sent once more"),
    ("unacknowledged", "envelopes, kept and never answered"),
)
"""What all restarts did to mail."""

_LOCAL_ROWS = (
    ("burst_drain_s", "s, first acceptance to last fate"),
    ("oldest_age_s", "s in the queue"),
    ("jain", "over users, in the burst"),
    ("peak_agent", "envelopes, sampled"),
    ("attempts", "deliveries started"),
    ("retries", "put back, to come again"),
    ("tempfails", "attempts and refusals"),
    ("refused", "by the agent: too many"),
    ("overflows", "of hold queues"),
)
"""The same of local mail."""


def _flat(summary: dict[str, Any]) -> dict[str, Any]:
    flat = {**summary, **summary["delivery_latency_s"]}
    local = summary["local"]
    for number, restart in enumerate(summary["restarts"], 1):
        flat.update({f"restart {number} {key}": restart[key] for key, _ in _RESTART_ROWS})
    flat.update({name: said["times"] for name, said in summary["beside"].items()})
    if local is not None:
        flat.update({key: local[key] for key, _ in _LOCAL_ROWS})
        for group, found in local["groups"].items():
            flat.update({f"{group} {key}": value for key, value in found["latency_s"].items()})
    return flat


def _rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return key and unit of each row of the table of a run."""
    rows = list(_ROWS)
    if summary["restarts"]:
        for number in range(1, len(summary["restarts"]) + 1):
            rows.extend((f"restart {number} {key}", unit) for key, unit in _RESTART_ROWS)
        rows.extend(_HARM_ROWS)
    if summary["beside"]:
        rows.append(("stress_entered", "times that stress began"))
        rows.extend((name, "connections that ended so") for name in summary["beside"])
    if summary["local"] is not None:
        rows.extend(_LOCAL_ROWS)
        for group in summary["local"]["groups"]:
            rows.extend(
                (f"{group} {key}", "s from 250 to delivery") for key in ("p50", "p99", "max")
            )
    return rows


def show(summaries: Sequence[dict[str, Any]]) -> None:
    """Print a table: one column of results, or mean and interval over replications."""
    from rich.console import Console
    from rich.table import Table

    first = summaries[0]
    kept = f"layout {first['layout']}" if first["layout"] else f"envelope {first['representation']}"
    title = f"{first['scenario']}, {kept}, seed {first['seed']}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    many = len(summaries) > 1
    table.add_column(f"mean of {len(summaries)}" if many else "model", justify="right")
    if many:
        table.add_column("95 %", justify="right")
    table.add_column("")
    flat = [_flat(summary) for summary in summaries]
    for key, unit in _rows(first):
        values = [each[key] for each in flat if each.get(key) is not None]
        if not values:
            cells = ["-"] + [""] * many
        else:
            mean = statistics.fmean(values)
            cells = [_number(mean if many else values[0])]
            if many:
                cells.append(f"± {_number(half_width(values))}")
        table.add_row(key, *cells, unit)
    Console().print(table)
    if not many and first["memory_levels"]:
        changes = [f"{each['level']} at {each['at_s']:g} s" for each in first["memory_levels"]]
        more = f", and {len(changes) - 8} more changes" if len(changes) > 8 else ""
        print(f"memory (limits.memory): {', '.join(changes[:8])}{more}")
    for summary in summaries[:5]:
        print(f"fingerprint {summary['fingerprint']}  ({summary['stimuli']} stimuli)")
    if len(summaries) > 5:
        print(f"and {len(summaries) - 5} more")


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of the mean of independent replications; 0 for one of them."""
    n = len(values)
    if n < 2:
        return 0.0
    # Student's t at 97.5 %: Cornish and Fisher's expansion, within 1 % from 4 degrees of freedom on.
    z, nu = 1.959964, n - 1
    exact = {1: 12.706, 2: 4.303, 3: 3.182}
    t = exact.get(nu) or (
        z
        + (z**3 + z) / (4 * nu)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * nu**3)
    )
    return t * statistics.stdev(values) / math.sqrt(n)


def _number(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if value and abs(value) < 100:
        return f"{value:.3g}"
    return f"{value:,.0f}"
