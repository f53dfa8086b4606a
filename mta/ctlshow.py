"""How `mtactl` prints answers: tables on a terminal, smtpctl's lines in a pipe, or JSON.

Everything comes from hosts that may be hostile (addresses, replies, whole messages): nothing of it
reaches a terminal unescaped. Instants are seconds since the epoch; ``now`` is an argument.
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, Literal, NamedTuple, TextIO, TypeAlias

Row: TypeAlias = dict[str, Any]
Mode: TypeAlias = Literal["terminal", "pipe", "json"]

PAGE: Final = 256
"""Rows of one table: a queue of a million is printed as it comes, not collected."""


def show(
    verb: str, rows: Iterator[Row], *, out: TextIO, mode: str, now: float, end: Callable[[], Row]
) -> None:
    """Print an answer.

    Args:
        verb: what was asked.
        rows: the rows of the answer, as they come.
        out: where to.
        mode: ``terminal``, ``pipe`` or ``json``.
        now: the clock, for ages.
        end: returns the answer's last line, once the rows are through.
    """
    if verb == "monitor":
        _monitor(rows, out, mode)
    elif verb == "show message":
        _message(rows, out, mode, end)
    elif verb == "trace" or not verb.startswith("show "):
        _lines(verb, rows, out, mode, end)
    elif mode == "json":
        for row in rows:
            out.write(json.dumps(row) + "\n")
    elif mode == "pipe":
        for row in rows:
            out.write(_PLAIN[verb](row, now))
    elif verb in _COLUMNS:
        _tables(verb, rows, out, now)
    else:
        _pairs(verb, rows, out, now)


# ---- values in words


def duration(seconds: float) -> str:
    """Return a duration in its two largest units, as OpenSMTPD writes them: ``1d2h``, ``3m4s``, ``5s``."""
    sign, left = ("-" if seconds < 0 else ""), int(abs(seconds))
    if not left and seconds:
        return f"{seconds:.1f}s"
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or parts:
            parts.append(f"{count}{unit}" if count else "")
        if len(parts) == 2:
            break
    return sign + ("".join(parts) or "0s")


def size(count: float) -> str:
    """Return a number of bytes in words: ``512 B``, ``4.0 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def escaped(text: str) -> str:
    r"""Return text that can do nothing to a terminal: control characters are written as ``\x1b``."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def plain(value: Any) -> str:
    """Return a value as one word or one line: lists with commas, nothing as ``-``."""
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.0f}"
    if isinstance(value, list):
        return ",".join(plain(item) for item in value)
    return escaped(str(value))


# ---- in a pipe


def _key_values(row: Mapping[str, Any], *, without: Iterable[str] = ()) -> str:
    words = []
    for name, value in row.items():
        if name not in without:
            word = plain(value)
            words.append(f'{name}="{word}"' if " " in word else f"{name}={word}")
    return " ".join(words)


def _queue_line(row: Row, now: float) -> str:
    """Return a line of ``smtpctl show queue`` (smtpctl.c, ``show_queue_envelope``)."""
    state = str(row.get("state", "")).replace("_", "").replace("-", "").lower()
    flags = [flag for flag in row.get("flags") or [] if flag != "suspended"]
    # OpenSMTPD says `pending` of whatever is neither in flight nor off the queue.
    if state == "suspended" or "suspended" in (row.get("flags") or []):
        flags.append("suspend")
    if state == "held":
        flags.append("hold")
    if state == "inflight":
        tried_at = row.get("tried_at")
        runstate, seconds = "inflight", 0 if tried_at is None else int(now - tried_at)
    else:
        due_at = row.get("due_at")
        runstate, seconds = "pending", 0 if due_at is None else int(due_at - now)
    fields = (
        row["evpid"],
        row.get("family") or "inet4",
        "mta",
        ",".join(flags),
        row.get("sender") or "@",
        row.get("rcpt") or f"@{row.get('domain', '')}",
        row.get("rcpt") or f"@{row.get('domain', '')}",
        int(row.get("created_at") or 0),
        int(row.get("expires_at") or 0),
        int(row.get("tried_at") or 0),
        row.get("attempts") or 0,
        runstate,
        seconds,
        row.get("last_status") or "",
    )
    return "|".join(escaped(str(field)) for field in fields) + "\n"


def _stats_lines(row: Row, now: float) -> str:
    lines = []
    for name, value in row.items():
        if name == "uptime":
            lines.append(f"uptime={int(value)}\nuptime.human={duration(value)}\n")
        else:
            lines.append(f"{name}={plain(value)}\n")
    return "".join(lines)


def _status_lines(row: Row, now: float) -> str:
    agents = "".join(f"{name.upper()} {row[name]}\n" for name in ("mta", "smtp") if name in row)
    rest = (
        f"{name}={plain(value)}\n" for name, value in row.items() if name not in ("mta", "smtp")
    )
    return agents + "".join(rest)


def _envelope_lines(row: Row, now: float) -> str:
    return "".join(f"{name}: {plain(value)}\n" for name, value in row.items())


def _relay_line(row: Row, now: float) -> str:
    return f"[relay:{plain(row.get('domain'))}] {_key_values(row, without=('domain',))}\n"


def _route_line(row: Row, now: float) -> str:
    ends = f"{plain(row.get('source'))} <-> {plain(row.get('address'))}"
    return f"{ends} {_key_values(row, without=('source', 'address'))}\n"


def _host_line(row: Row, now: float) -> str:
    ends = f"{plain(row.get('address'))} {plain(row.get('name'))}"
    return f"{ends} {_key_values(row, without=('address', 'name'))}\n"


def _session_line(row: Row, now: float) -> str:
    return f"{plain(row.get('session'))} {_key_values(row, without=('session',))}\n"


_PLAIN: Final[Mapping[str, Callable[[Row, float], str]]] = {
    "show queue": _queue_line,
    "show envelope": _envelope_lines,
    "show stats": _stats_lines,
    "show status": _status_lines,
    "show relays": _relay_line,
    "show routes": _route_line,
    "show hosts": _host_line,
    "show sessions": _session_line,
}


# ---- streams, messages, and what has no rows


class Monitored(NamedTuple):
    """A column of ``smtpctl monitor``."""

    name: str
    counters: tuple[str, ...]
    """What it counts; how much these grew since the line before."""
    gauge: str = ""
    """What it shows instead, as it is now."""


MONITOR: Final = (
    Monitored("client.curr", (), "smtp.session"),
    Monitored("client.conn", ("smtp.session.inet4", "smtp.session.inet6")),
    Monitored("client.disc", ("smtp.disconnect",)),
    Monitored("envelope.curr", (), "scheduler.envelope"),
    Monitored("envelope.enq", ("scheduler.envelope.incoming",)),
    Monitored("envelope.deq", ("scheduler.envelope.outgoing",)),
    Monitored("delivery.ok", ("scheduler.delivery.ok",)),
    Monitored("delivery.tmpfail", ("scheduler.delivery.tempfail",)),
    Monitored("delivery.prmfail", ("scheduler.delivery.permfail",)),
    Monitored("delivery.loop", ("scheduler.delivery.loop",)),
    Monitored("expire", ("scheduler.envelope.expired",)),
    Monitored("remove", ("scheduler.envelope.removed",)),
    Monitored("bounce", ("queue.bounce",)),
)

_MONITOR_HEADER: Final = (
    "--- client ---  -- envelope --   ---- relay/delivery --- ------- misc -------\n"
    "curr conn disc  curr  enq  deq   ok tmpfail prmfail loop expire remove bounce\n"
)
"""smtpctl.c, ``do_monitor``; every `MONITOR_EVERY` lines."""
_MONITOR_LINE: Final = (
    "{:4} {:4} {:4}  {:4} {:4} {:4} {:4}    {:4}    {:4} {:4}   {:4}   {:4}   {:4}\n"
)
MONITOR_EVERY: Final = 25


def _monitor(rows: Iterator[Row], out: TextIO, mode: str) -> None:
    # The first line has the totals since the server's start, as smtpctl's and vmstat's have.
    last: Row = {}
    for number, row in enumerate(rows):
        values = [
            row[column.gauge]
            if column.gauge
            else sum(row[name] - last.get(name, 0) for name in column.counters)
            for column in MONITOR
        ]
        if mode == "json":
            names = (column.name for column in MONITOR)
            out.write(json.dumps({"t": row["t"], **dict(zip(names, values, strict=True))}) + "\n")
        else:
            if number % MONITOR_EVERY == 0:
                out.write(("\n" if number else "") + _MONITOR_HEADER)
            out.write(_MONITOR_LINE.format(*values))
        out.flush()
        last = row


def _message(rows: Iterator[Row], out: TextIO, mode: str, end: Callable[[], Row]) -> None:
    pieces = (base64.b64decode(row["base64"]) for row in rows)
    if mode == "json":
        body = b"".join(pieces)
        out.write(json.dumps({**end(), "base64": base64.b64encode(body).decode()}) + "\n")
    elif mode == "pipe":
        out.flush()
        for piece in pieces:
            # Bytes as they are in the queue: they need not be text.
            out.buffer.write(piece)
    else:
        for line in b"".join(pieces).decode("utf-8", "backslashreplace").split("\r\n"):
            out.write(escaped(line.replace("\t", "    ")) + "\n")


_DONE: Final = {
    "schedule": "scheduled",
    "remove": "removed",
    "pause envelope": "paused",
    "resume envelope": "resumed",
}


def _lines(verb: str, rows: Iterator[Row], out: TextIO, mode: str, end: Callable[[], Row]) -> None:
    for row in rows:
        out.write((json.dumps(row) if mode == "json" else escaped(row["line"])) + "\n")
        out.flush()
    if mode == "json":
        out.write(json.dumps(end()) + "\n")
    elif verb in _DONE:
        count = end()["envelopes"]
        out.write(f"{count} envelope{'' if count == 1 else 's'} {_DONE[verb]}\n")
    else:
        out.write("command succeeded\n")


# ---- on a terminal


class _Column(NamedTuple):
    title: str
    value: Callable[[Row, float], str]
    width: int | None = None
    """Characters; None shares what is left."""
    right: bool = False
    ratio: int = 1


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


_COLUMNS: Final[Mapping[str, tuple[_Column, ...]]] = {
    "show queue": (
        _Column("envelope", _field("evpid"), 16),
        _Column("state", _field("state"), 9),
        _Column("age", _ago("created_at"), 6, right=True),
        _Column("next", _next_try, 6, right=True),
        _Column("tries", _field("attempts"), 5, right=True),
        _Column("from", _sender, ratio=3),
        _Column("to", _rcpt, ratio=3),
        _Column("last reply", _field("last_status"), ratio=5),
    ),
    "show relays": (
        _Column("domain", _field("domain"), ratio=4),
        _Column("state", _field("state"), 10),
        _Column("tasks", _field("tasks"), 7, right=True),
        _Column("running", _field("running"), 7, right=True),
        _Column("held", _field("held"), 7, right=True),
        _Column("conns", _field("connections"), 5, right=True),
        _Column("window", _field("window"), 6, right=True),
        _Column("retry", _until("retry_at"), 6, right=True),
        _Column("last failure", _field("status"), ratio=5),
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
        _Column("last connect", _ago("last_connect_at"), 12, right=True),
    ),
    "show sessions": (
        _Column("session", _field("session"), 16),
        _Column("direction", _field("direction"), 9),
        _Column("peer", _field("peer"), ratio=3),
        _Column("state", _field("state"), 12),
        _Column("messages", _field("messages"), 8, right=True),
        _Column("since", _ago("since"), 8, right=True),
    ),
}

_COLOURS: Final = {
    "pending": "yellow",
    "held": "magenta",
    "suspended": "cyan",
    "dead": "red",
    "disabled": "red",
    "resting": "yellow",
    "paused": "red",
    "running": "green",
}
"""Only what wants attention has a colour."""


def _console(out: TextIO) -> Any:
    from rich.console import Console

    return Console(file=out, highlight=False, markup=False, emoji=False, soft_wrap=False)


def _tables(verb: str, rows: Iterator[Row], out: TextIO, now: float) -> None:
    from rich.table import Table
    from rich.text import Text

    console = _console(out)
    columns = _COLUMNS[verb]
    count = 0
    while page := list(islice(rows, PAGE)):
        # One table per page, without borders, all of the same widths: they look like one.
        table = Table(
            box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0), show_header=count == 0
        )
        for column in columns:
            table.add_column(
                column.title.upper(),
                header_style="bold",
                no_wrap=True,
                overflow="ellipsis",
                justify="right" if column.right else "left",
                width=column.width,
                ratio=None if column.width else column.ratio,
            )
        for row in page:
            cells = [column.value(row, now) for column in columns]
            table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in cells))
        console.print(table)
        count += len(page)
    what = verb.removeprefix("show ")
    if what == "queue":
        console.print(f"{count:,} envelope{'' if count == 1 else 's'}", style="dim")
    elif not count:
        console.print(f"no {what}", style="dim")


def _pairs(verb: str, rows: Iterator[Row], out: TextIO, now: float) -> None:
    from rich.table import Table
    from rich.text import Text

    console = _console(out)
    for row in rows:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(justify="right" if verb == "show stats" else "left", overflow="fold")
        group = ""
        for name, value in row.items():
            head = name.partition(".")[0]
            if verb == "show stats" and group and head != group:
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
    return f"{value:,}"
