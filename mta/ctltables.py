"""What `mtactl` prints on a terminal: tables as wide as it is, ages in words, colour where it matters."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TextIO

from mta.core.shape import COLUMNS
from mta.ctlwords import Row, duration, escaped, plain, short_time, size

if TYPE_CHECKING:
    from rich.console import Console  # only a terminal needs it, and it takes longest to load


class _Column(NamedTuple):
    title: str
    value: Callable[[Row, float], str]
    width: int | None = None
    """Characters; None shares what is left."""
    right: bool = False
    ratio: int = 1
    below: bool = False
    """On a narrow terminal it gets a line of its own."""


def _field(name: str) -> Callable[[Row, float], str]:
    return lambda row, now: plain(row.get(name))


def _ago(name: str) -> Callable[[Row, float], str]:
    return lambda row, now: "-" if row.get(name) is None else duration(max(0.0, now - row[name]))


def _until(name: str) -> Callable[[Row, float], str]:
    def value(row: Row, now: float) -> str:
        instant = row.get(name)
        return (
            "-"
            if instant is None
            else duration(max(0.0, instant - now))
            if instant > now
            else "now"
        )

    return value


def _next_try(row: Row, now: float) -> str:
    return _until("due_at")(row, now) if row.get("state") == "pending" else "-"


def _sender(row: Row, now: float) -> str:
    sender = row.get("sender")
    return "-" if sender is None else escaped(sender) or "<>"


def _rcpt(row: Row, now: float) -> str:
    return plain(row.get("rcpt") or f"@{row.get('domain', '')}")


def _age(number: int) -> Callable[[Row, float], str]:
    return lambda row, now: str(row["ages"][number])


def _seconds(name: str) -> Callable[[Row, float], str]:
    return lambda row, now: short_time(row.get(name))


TABLES: dict[str, tuple[_Column, ...]] = {
    "show queue": (
        _Column("envelope", _field("evpid"), 16),
        _Column("state", _field("state"), 9),
        _Column("age", _ago("created_at"), 6, right=True),
        _Column("next", _next_try, 6, right=True),
        _Column("tries", _field("attempts"), 5, right=True),
        _Column("from", _sender, ratio=3),
        _Column("to", _rcpt, ratio=3),
        _Column("last reply", _field("last_status"), ratio=5, below=True),
    ),
    "show relays": (
        _Column("domain", _field("domain"), ratio=4),
        _Column("state", _field("state"), 14),
        _Column("tasks", _field("tasks"), 7, right=True),
        _Column("running", _field("running"), 7, right=True),
        _Column("held", _field("held"), 7, right=True),
        _Column("conns", _field("connections"), 5, right=True),
        _Column("window", _field("window"), 6, right=True),
        _Column("dead for", _until("dead_until"), 8, right=True),
        _Column("last failure", _field("last_status"), ratio=5, below=True),
    ),
    "show routes": (
        _Column("source", _field("source"), 16),
        _Column("address", _field("address"), ratio=3),
        _Column("state", _field("state"), 10),
        _Column("conns", _field("connections"), 5, right=True),
        _Column("penalty", _field("penalty"), 7, right=True),
        _Column("enabled in", _until("enabled_at"), 10, right=True),
    ),
    "show hosts": (
        _Column("address", _field("address"), 24),
        _Column("name", _field("name"), ratio=3),
        _Column("conns", _field("connections"), 5, right=True),
        _Column("relays", _field("relays"), 6, right=True),
        _Column("last connect", _ago("last_connect_at"), 12, right=True),
    ),
    "show sessions": (
        _Column("session", _field("session"), 16),
        _Column("direction", _field("direction"), 9),
        _Column("peer", _field("peer"), ratio=2),
        _Column("domain", _field("domain"), ratio=3),
        _Column("state", _field("state"), 12),
        _Column("messages", _field("messages"), 8, right=True),
        _Column("since", _ago("since"), 8, right=True),
    ),
}

TABLES |= {
    "show hoststats": (
        _Column("domain", _field("domain"), ratio=4),
        _Column("heard of", _ago("at"), 8, right=True),
        _Column("messages", _field("transactions"), 8, right=True),
        _Column("time", lambda row, now: short_time(row.get("seconds")), 7, right=True),
        _Column("last status", _field("last_status"), ratio=5),
    ),
    "show users": (
        _Column("user", _field("user"), ratio=3),
        _Column("state", _field("state"), 10),
        _Column("pending", _field("pending"), 9, right=True),
        _Column("running", _field("running"), 9, right=True),
        _Column("held", _field("held"), 9, right=True),
    ),
    "show shape": (
        _Column("destination", _field("domain"), ratio=1),
        _Column("T", _field("total"), 7, right=True),
        *(_Column(title, _age(number), 5, right=True) for number, title in enumerate(COLUMNS)),
    ),
    "show limits": (
        _Column("limit", _field("key"), ratio=3),
        _Column("value", _field("value"), 12, right=True),
        _Column("default", _field("default"), 12, right=True),
        _Column("changes", _field("change"), 8),
    ),
    "show profile": (
        _Column("what", lambda row, now: f"{row['group']} {plain(row['name'])}", ratio=3),
        _Column("count", _field("count"), 9, right=True),
        _Column("total", _seconds("total_s"), 9, right=True),
        _Column("p50", _seconds("p50_s"), 9, right=True),
        _Column("p99", _seconds("p99_s"), 9, right=True),
        _Column("longest", _seconds("max_s"), 9, right=True),
    ),
    "show mta paused": (
        _Column("agent", _field("agent"), 5),
        _Column("from", _field("source"), 20),
        _Column("for", _field("only"), ratio=3),
    ),
}

_COLOURS: Final = {
    "pending": "yellow",
    "held": "magenta",
    "suspended": "cyan",
    "dead": "red",
    "disabled": "red",
    "onhold": "magenta",
    "waiting": "yellow",
    "paused": "red",
    "failing": "red",
    "running": "green",
}
"""Only what wants attention has a colour."""


def _console(out: TextIO) -> "Console":
    from rich.console import Console

    return Console(file=out, highlight=False, markup=False, emoji=False)


NARROW: Final = 110
"""Columns of a terminal below which the last column gets lines of its own."""


def print_table(verb: str, rows: Iterator[Row], out: TextIO, now: float) -> None:
    """Print rows as a table, page by page.

    Why not rich's Table? It looks at all rows before it prints the first, and takes 0.2 ms for each; a
    queue may have a million.
    """
    console = _console(out)
    ink = _ink if console.is_terminal and not console.no_color else _no_ink
    columns = TABLES[verb]
    below = columns[-1] if console.width < NARROW and columns[-1].below else None
    if below:
        columns = columns[:-1]
    widths = _widths(columns, console.width)
    count = 0
    for count, row in enumerate(rows, 1):
        if count == 1:
            titles = "  ".join(_laid_out([column.title for column in columns], columns, widths))
            out.write(ink(titles.upper().rstrip(), "bold") + "\n")
        cells = [column.value(row, now) for column in columns]
        parts = _laid_out(cells, columns, widths)
        parts[-1] = parts[-1].rstrip()
        styled = (
            ink(part, _COLOURS.get(cell.partition(",")[0]))
            for cell, part in zip(cells, parts, strict=True)
        )
        out.write("  ".join(styled) + "\n")
        if below and (text := below.value(row, now)) != "-":
            out.write("    " + ink(_cut(text, console.width - 4), "dim") + "\n")
    what = verb.removeprefix("show ")
    if what == "queue":
        out.write(ink(f"{count:,} envelope{'' if count == 1 else 's'}", "dim") + "\n")
    elif not count:
        out.write(ink(f"no {what}", "dim") + "\n")


_SGR: Final = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "magenta": 35, "cyan": 36}
"""ECMA-48, 8.3.117 (SELECT GRAPHIC RENDITION)."""


def _ink(text: str, style: str | None) -> str:
    return f"\x1b[{_SGR[style]}m{text}\x1b[0m" if style else text


def _no_ink(text: str, style: str | None) -> str:
    return text


def _widths(columns: Sequence[_Column], width: int) -> list[int]:
    """Share the width of a terminal out: what is fixed first, the rest by ratio, 8 at least."""
    left = width - sum(column.width or 0 for column in columns) - 2 * (len(columns) - 1)
    shares = sum(column.ratio for column in columns if not column.width)
    return [column.width or max(8, left * column.ratio // shares) for column in columns]


def _laid_out(cells: Sequence[str], columns: Sequence[_Column], widths: Sequence[int]) -> list[str]:
    """Return cells that are all as wide as their columns."""
    parts = []
    for cell, column, width in zip(cells, columns, widths, strict=True):
        text = _cut(cell, width)
        # Why not ljust? Letters of some scripts are two columns wide.
        space = " " * (width - _width(text))
        parts.append(space + text if column.right else text + space)
    return parts


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    if text.isascii():
        return text[: width - 1].rstrip() + "…"
    from rich.cells import set_cell_size

    return set_cell_size(text, width - 1).rstrip() + "…"


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def print_pairs(verb: str, rows: Iterator[Row], out: TextIO, now: float) -> None:
    """Print what is no table: a name and a value on each line."""
    from rich.table import Table
    from rich.text import Text

    console = _console(out)
    for row in rows:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(justify="right" if verb == "show stats" else "left", overflow="fold")
        group = ""
        sizes = Counter(name.partition(".")[0] for name in row)
        for name, value in row.items():
            head = name.partition(".")[0]
            if verb == "show stats" and group and head != group and sizes[head] + sizes[group] > 2:
                table.add_row("", "")
            group = head
            text = _in_words(name, value, now)
            table.add_row(name, Text(text, style=_COLOURS.get(text, "dim" if value == 0 else "")))
        console.print(table)


def _in_words(name: str, value: Any, now: float) -> str:
    """Return a value as a human wants it: by what its name ends in."""
    if value is None or isinstance(value, bool | str | list):
        return plain(value)
    if name == "uptime" or name.endswith("_s"):
        return duration(value)
    if name.endswith("_at"):
        return f"{duration(now - value)} ago" if value <= now else f"in {duration(value - now)}"
    if name == "size" or name.endswith(("bytes", ".rss")):
        return size(value)
    return str(value) if name in ("pid", "seed") else f"{value:,}"
