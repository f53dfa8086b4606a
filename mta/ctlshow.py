"""How `mtactl` prints answers: tables on a terminal, smtpctl's lines in a pipe, or JSON.

Everything comes from hosts that may be hostile (addresses, replies, whole messages): nothing of it
reaches a terminal unescaped. Instants are seconds since the epoch; ``now`` is an argument.
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, TextIO, TypeAlias

from mta.core.shape import COLUMNS, TOTAL
from mta.ctltables import TABLES, print_pairs, print_table
from mta.ctlwords import Row, duration, escaped, plain

Mode: TypeAlias = Literal["terminal", "pipe", "json"]


def show(
    verb: str, rows: Iterator[Row], *, out: TextIO, mode: Mode, now: float, end: Callable[[], Row]
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
    elif verb in TABLES:
        print_table(verb, rows, out, now)
    else:
        print_pairs(verb, rows, out, now)


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
    """Return lines of ``smtpctl show relays`` (mta.c, ``mta_dump``), and what else there is behind them."""
    tasks, connections = row.get("tasks", 0), row.get("connections", 0)
    known = {
        "refcount": tasks + connections + bool(row.get("held")),
        "ntask": tasks,
        "nconn": connections,
        "lastconn": _since(row, now),
        "timeout": _left(row.get("dead_until") or row.get("retry_at"), now),
        "wait": plain(row.get("wait") or None) + ("[ONHOLD]" if row.get("held") else ""),
    }
    rest = _key_values(row, without=("domain", "tasks", "connections", "wait", "connectors"))
    lines = f"[relay:{plain(row.get('domain'))}] {_key_values(known)} {rest}\n"
    for one in row.get("connectors") or ():
        lines += (
            f"  connector {plain(one['source'])} nconn={one['connections']}"
            f" lastconn={_since(one, now)} flags={plain(one['flags'])}\n"
        )
    return lines


def _since(row: Row, now: float) -> str:
    at = row.get("last_connect_at")
    return "-" if at is None else duration(max(0.0, now - at))


def _left(instant: float | None, now: float) -> str:
    return "-" if instant is None or instant <= now else duration(instant - now)


def _route_line(row: Row, now: float) -> str:
    """Return a line of ``smtpctl show routes``: New, Disabled; a route's name here is its two ends."""
    source = row.get("source")
    ends = f"{'[]' if source in (None, '', '-') else plain(source)} <-> {plain(row.get('address'))}"
    new, disabled = row.get("state") == "new", row.get("state") == "disabled"
    known = {
        "nconn": row.get("connections"),
        "penalty": row.get("penalty"),
        "timeout": _left(row.get("enabled_at"), now),
    }
    rest = _key_values(row, without=("source", "address", "connections", "penalty"))
    return f"{ends} {'N' if new else '-'}{'D' if disabled else '-'} {_key_values(known)} {rest}\n"


def _host_line(row: Row, now: float) -> str:
    """Return a line of ``smtpctl show hosts``: address, name, then refcount, nconn, lastconn."""
    known = {
        "refcount": row.get("relays"),
        "nconn": row.get("connections"),
        "lastconn": _since(row, now),
    }
    return f"{plain(row.get('address'))} {plain(row.get('name'))} {_key_values(known)}\n"


def _session_line(row: Row, now: float) -> str:
    return f"{plain(row.get('session'))} {_key_values(row, without=('session',))}\n"


def _hoststat_line(row: Row, now: float) -> str:
    """Return a line of ``smtpctl show hoststats``: domain, time, last status."""
    return f"{plain(row['domain'])}|{int(row['at'])}|{plain(row.get('last_status'))}\n"


def _user_line(row: Row, now: float) -> str:
    return f"{plain(row.get('user'))} {_key_values(row, without=('user',))}\n"


def _shape_line(row: Row, now: float) -> str:
    head = ""
    if row["domain"] == TOTAL:
        titles = "".join(f"{title:>7}" for title in ("T", *COLUMNS))
        head = f"{'':>40}{titles}\n"
    counts = "".join(f"{count:>7}" for count in (row["total"], *row["ages"]))
    return f"{head}{plain(row['domain'])[-40:]:>40}{counts}\n"


def _limit_line(row: Row, now: float) -> str:
    value, default = json.dumps(row["value"]), json.dumps(row["default"])
    marks = ("" if value == default else f"  # default {default}") + (
        "  # restart" if row["change"] == "restart" else ""
    )
    return f"{row['key']} = {value}{marks}\n"


def _profile_line(row: Row, now: float) -> str:
    name = str(row["name"]).replace(" ", ":")
    return f"{row['group']}.{plain(name)} {_key_values(row, without=('group', 'name'))}\n"


def _paused_line(row: Row, now: float) -> str:
    return f"{row['agent']} {plain(row.get('source'))} -> {plain(row['only'])}\n"


_PLAIN: Final[Mapping[str, Callable[[Row, float], str]]] = {
    "show queue": _queue_line,
    "show envelope": _envelope_lines,
    "show stats": _stats_lines,
    "show status": _status_lines,
    "show relays": _relay_line,
    "show routes": _route_line,
    "show hosts": _host_line,
    "show sessions": _session_line,
    "show users": _user_line,
    "show hoststats": _hoststat_line,
    "show shape": _shape_line,
    "show limits": _limit_line,
    "show profile": _profile_line,
    "show mta paused": _paused_line,
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


def _monitor(rows: Iterator[Row], out: TextIO, mode: Mode) -> None:
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


def _message(rows: Iterator[Row], out: TextIO, mode: Mode, end: Callable[[], Row]) -> None:
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
    "discover": "discovered",
}


def _lines(verb: str, rows: Iterator[Row], out: TextIO, mode: Mode, end: Callable[[], Row]) -> None:
    for row in rows:
        out.write((json.dumps(row) if mode == "json" else escaped(row["line"])) + "\n")
        out.flush()
    if mode == "json":
        out.write(json.dumps(end()) + "\n")
    elif verb in _DONE:
        count = end()["envelopes"]
        out.write(f"{count} envelope{'' if count == 1 else 's'} {_DONE[verb]}\n")
    elif verb not in ("expand", "set") and not verb.startswith("update "):
        out.write("command succeeded\n")
