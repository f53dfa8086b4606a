"""`mtactl top`: what the server does now, on one screen of 80 columns, once a second.

Rates are what changed between two readings, by the server's own clock; those of the first are means since its
start. On a terminal the screen is drawn anew each time; in a pipe readings follow each other; JSON is one object a line.
"""

import json
from collections.abc import Callable, Mapping
from itertools import count as counting
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO

from mta.ctlwords import Row, duration, escaped, plain, short_time, size

if TYPE_CHECKING:
    from rich.console import RenderableType

RATES: Final[Mapping[str, tuple[str, ...]]] = {
    "connections": ("smtp.session.inet4", "smtp.session.inet6"),
    "messages": ("smtp.message",),
    "bytes": ("smtp.message.bytes",),
    "refused": ("smtp.refused.connection", "smtp.refused.temporary", "smtp.refused.permanent"),
    "ok": ("scheduler.delivery.ok",),
    "tempfail": ("scheduler.delivery.tempfail",),
    "permfail": ("scheduler.delivery.permfail",),
    "expired": ("scheduler.envelope.expired",),
    "bounces": ("queue.bounce",),
    "commits": ("queue.commit",),
}
"""Name of a rate, and the counters whose sum it is of."""

STATES: Final = ("pending", "scheduled", "inflight", "hold", "suspended")
_GAUGES: Final = {
    state: f"scheduler.{'ramqueue' if state == 'hold' else 'envelope'}.{state}" for state in STATES
}


def rates(row: Row, before: Row | None) -> dict[str, float]:
    """Return how often a second each of `RATES` happened since the reading before, or the start."""
    now = row["stats"]
    then = before["stats"] if before else {}
    seconds = row["t"] - before["t"] if before else now["uptime"]
    return {
        name: sum(now[key] - then.get(key, 0) for key in keys) / max(seconds, 1e-3)
        for name, keys in RATES.items()
    }


def show_top(
    poll: Callable[[], Row],
    out: TextIO,
    mode: Literal["json", "terminal", "pipe"],
    *,
    count: int | None,
    interval_s: float,
    sleep: Callable[[float], None],
) -> None:
    """Show readings until there were enough.

    Args:
        poll: returns a reading.
        out: where to.
        mode: ``terminal``, ``pipe`` or ``json``.
        count: how many; None for ever.
        interval_s: seconds between two.
        sleep: waits.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console(file=out, highlight=False, markup=False, emoji=False)
    live = Live(console=console, screen=True, auto_refresh=False) if mode == "terminal" else None
    before: Row | None = None
    drawn: RenderableType = ""
    try:
        if live is not None and count != 1:
            live.start()
        for number in counting(1):
            row = poll()
            per_second = rates(row, before)
            if mode == "json":
                out.write(json.dumps({**row, "rates": per_second}) + "\n")
            else:
                lines = console.height if live is not None else None
                drawn = screen(row, per_second, lines=lines)
                if live is not None and count != 1:
                    live.update(drawn, refresh=True)
                else:
                    console.print(drawn)
            out.flush()
            if number == count:
                return
            before = row
            sleep(interval_s)
    finally:
        if live is not None and live.is_started:
            live.stop()
            console.print(drawn)  # what was last on the screen stays to be read


def screen(row: Row, per_second: Mapping[str, float], *, lines: int | None) -> "RenderableType":
    """Return one reading, ready to be drawn; destinations as far as ``lines`` of the terminal have room."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    stats: dict[str, Any] = row["stats"]
    used, limit = stats["memory.usage"], stats["memory.limit"]
    memory = size(used) + (f" of {size(limit)} ({used / limit:.0%})" if limit else "")
    head = Text(no_wrap=True, overflow="ellipsis")
    head.append(escaped(row["hostname"]), "bold")
    head.append(f"  up {duration(stats['uptime'])}  memory {memory}")
    if stats["memory.pressure"]:
        head.append(f"  pressure {stats['memory.pressure']}", "red")
    if stats["smtp.stress"]:
        head.append("  stress", "red")

    flow = _table("", "/s", "", "/s", "", "/s", "", "now")
    rate = {name: f"{value:,.1f}" for name, value in per_second.items()}
    flow.add_row(
        "in", rate["messages"], "refused", rate["refused"], "connects", rate["connections"],
        "clients", f"{stats['smtp.session']:,}",
    )  # fmt: skip
    flow.add_row(
        "bytes", f"{size(per_second['bytes'])}", "commits", rate["commits"], "bounces", rate["bounces"],
        "waiting", f"{stats['queue.waiting']:,}",
    )  # fmt: skip
    flow.add_row(
        "out", rate["ok"], "tempfail", rate["tempfail"], "permfail", rate["permfail"],
        "connections", f"{stats['mta.session']:,}",
    )  # fmt: skip

    queue = _table(*STATES, "all")
    counts = [stats[_GAUGES[state]] for state in STATES]
    queue.add_row(*(f"{number:,}" for number in (*counts, stats["scheduler.envelope"])))

    kept = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("memory", "of what"):
        kept.add_column(title, no_wrap=True, overflow="ellipsis")
    kept.add_column("count", justify="right", min_width=10)
    kept.add_column("about", justify="right", min_width=10)
    for part in row["memory"]:
        kept.add_row(part["agent"], part["what"], f"{part['count']:,}", size(part["bytes"]))

    slow = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", expand=True)
    slow.add_column("slowest", ratio=3, no_wrap=True, overflow="ellipsis")
    for title in ("time", "queued", "held", "conns"):
        slow.add_column(title, justify="right", no_wrap=True, min_width=5)
    slow.add_column("last reply", ratio=4, no_wrap=True, overflow="ellipsis")
    room = len(row["slowest"]) if lines is None else max(1, lines - 17)
    for one in row["slowest"][:room]:
        slow.add_row(
            plain(one["domain"]),
            Text("dead", "red") if one["dead"] else short_time(one["seconds"]),
            f"{one['queued']:,}",
            f"{one['held']:,}",
            f"{one['connections']:,}",
            plain(one["last_status"]),
        )
    parts: list[RenderableType] = [head, "", flow, "", queue, "", kept]
    if row["slowest"]:
        parts += ["", slow]
    return Group(*parts)


def _table(*titles: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        table.add_column(title, justify="right" if title else "left", min_width=7 if title else 0)
    return table
