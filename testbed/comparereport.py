"""The page and the tables of a comparison: what an engineer forwards, with what it can't show."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from testbed import compareplots, peerreport
from testbed.compareplots import unit_of
from testbed.comparing import failures_of, leader
from testbed.quantities import QUANTITIES
from testbed.report import NONE, notes_list, page, picture, table
from testbed.summary import SUMMED

HEADS: Final[Mapping[str, str]] = {
    "messages_per_s": "Msg per s",
    "cpu_per_message": "CPU per msg",
    "idle_pss": "PSS idle",
    "pss_per_envelope": "PSS per envelope",
    "drain_time": "Empty after",
    "p50_accepted": "Accepted, p50",
    "p99_accepted": "Accepted, p99",
    "p50_delivered": "Delivered, p50",
    "p99_delivered": "Delivered, p99",
    "fsyncs_per_message": "fsyncs per msg",
    "deferred_per_recipient": "Failed tries",
}

COUNTS: Final = (*SUMMED, "reordered")

TERMINAL: Final = (
    "messages_per_s", "cpu_per_message", "idle_pss", "pss_per_envelope", "drain_time", "p99_accepted", "p99_delivered",
    "lost", "duplicates",
)  # fmt: skip


def html(result: Mapping[str, Any]) -> str:
    """Return the page: it needs nothing else."""
    if result.get("kind") == "peers":
        parts = peerreport.front(result)
        parts.append("<h2>Details</h2>")
        parts += [
            peerreport.folded(section, _section(section, result)) for section in result["scenarios"]
        ]
        parts += [peerreport.fairness(), _reproduce(result)]
        return page(str(result["title"]), parts)
    parts = [_head(result)]
    parts += [_section(section, result) for section in result["scenarios"]]
    parts.append(_reproduce(result))
    return page(str(result.get("title") or "Runs side by side"), parts)


def _head(result: Mapping[str, Any]) -> str:
    failures = failures_of(result)
    cells = [cell for section in result["scenarios"] for cell in section["cells"]]
    lost = sum(_total(cell, "lost") for cell in cells)
    twice = sum(_total(cell, "duplicates") for cell in cells)
    accepted = sum(_total(cell, "accepted") for cell in cells)
    kind = "bad" if failures or lost else "good"
    runs = sum(cell["repeats"] for cell in cells)
    lines = [
        f"<h1>{escape(str(result.get('title') or 'Runs side by side'))}</h1>",
        f'<p class="{kind}"><strong>{"Not every promise was kept." if lost else "Every promise was kept."}</strong>'
        f" {runs:,} runs, {accepted:,.0f} recipients accepted, {lost:,.0f} lost, {twice:,.0f} duplicates."
        f" {_when(result)}</p>",
        notes_list("bad", failures),
        notes_list("warn", [f"left out: {each}" for each in result.get("skipped", [])]),
    ]
    return "\n".join(line for line in lines if line)


def _when(result: Mapping[str, Any]) -> str:
    started = result.get("started")
    return f"Started {escape(str(started))}." if started else ""


def _total(cell: Mapping[str, Any], name: str) -> float:
    return float(sum(cell["quantities"][name]["values"]))


def _section(section: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    cells = section["cells"]
    shown = [
        name
        for name in HEADS
        if any(cell["quantities"][name]["median"] is not None for cell in cells)
    ]
    best = {name: leader(section, name) for name in shown}
    heads = ["", *(headed(name) for name in shown)]
    rows = [
        [
            f"<strong>{escape(cell['label'])}</strong>",
            *(
                f"<strong>{_spread(cell, name)}</strong>"
                if best[name] == cell["label"]
                else _spread(cell, name)
                for name in shown
            ),
        ]
        for cell in cells
    ]
    counts = [
        [f"<strong>{escape(cell['label'])}</strong>", *(f"{_total(cell, n):,.0f}" for n in COUNTS)]
        for cell in cells
    ]
    unhealthy = [
        f"{cell['label']}: expected {each}" for cell in cells for each in cell["unhealthy"]
    ]
    figure = compareplots.swept(section, result["vary"]) if result.get("vary") else None
    return "\n".join(
        [
            f"<h2>{escape(section['title'] or section['name'])} <small>({escape(section['name'])})</small></h2>",
            f"<p>{escape(section['question'])}</p>" if section["question"] else "",
            table(heads, rows),
            picture(figure, f"Against {result['vary']}.") if figure is not None else "",
            picture(
                compareplots.beside(section),
                "Marks: the median; bars: the range over repeats. Axes begin at 0.",
            )
            if len(cells) > 1
            else "",
            picture(compareplots.over_time(section), "The first run of each."),
            table(["Recipients, all runs", *(name.capitalize() for name in COUNTS)], counts),
            "<p>What the scenario expects and did not find:</p>" if unhealthy else "",
            notes_list("warn", unhealthy),
        ]
    )


def headed(name: str) -> str:
    """Return the head of a quantity's column, with its unit."""
    unit, _ = unit_of(name)
    return f"{HEADS[name]}, {unit}" if unit and unit != "per s" else HEADS[name]


def _spread(cell: Mapping[str, Any], name: str) -> str:
    found = cell["quantities"][name]
    if found["median"] is None:
        return NONE
    _, factor = unit_of(name)
    text = figures(found["median"] * factor)
    if len(found["values"]) > 1:
        text += f'<br><small class="model">{figures(found["low"] * factor)}{NONE}{figures(found["high"] * factor)}</small>'
    return text


def figures(value: float) -> str:
    """Return a number with about three digits."""
    size = abs(value)
    if size >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.1f}" if size >= 10 else f"{value:,.2f}" if size >= 0.1 else f"{value:,.3f}"


def _reproduce(result: Mapping[str, Any]) -> str:
    machine, versions = result.get("host", {}), result.get("versions", {})
    meanings = "; ".join(
        f"<em>{escape(head)}</em>: {escape(QUANTITIES[name].meaning)}"
        for name, head in HEADS.items()
    )
    where = [
        f"{machine.get('cores', '?')} cores, {machine.get('cpu', '?')}",
        ", ".join(f"{name} {value}" for name, value in versions.items()),
    ]
    return "\n".join(
        [
            "<h2>How to read it, and how to do it again</h2>",
            f"<p>{meanings}. Latencies count from the instant at which a message was due, so a server that is behind can't hide it."
            " Median of the repeats, with their range in grey below it; bold: better than each other, ranges do not overlap."
            " PSS and processor time are those of all processes of a server, ended ones included. A dash: this server can't tell,"
            " or the queue was too short to say.</p>",
            "<p>Sinks, load and server share one machine and loopback is the network: the order of servers carries over to other"
            " machines more likely than the numbers. At an offered rate that all can serve, messages per second are those offered.</p>",
            f"<pre>{escape(str(result.get('command', '')))}</pre>",
            f"<p>{escape('. '.join(each for each in where if each))}.</p>",
        ]
    )


# ---- for a terminal


def tables(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield what to print."""
    for section in result["scenarios"]:
        shown = Table(
            title=f"{section['name']}: {section['title']}",
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        shown.add_column("", no_wrap=True)
        for name in TERMINAL:
            unit, _ = unit_of(name)
            # Three short lines each: the table fits into 80 columns.
            shown.add_column(f"{_SHORT[name]}\n{unit}", justify="right", no_wrap=True)
        for cell in section["cells"]:
            shown.add_row(cell["label"], *(_cell_text(cell, name) for name in TERMINAL))
        yield shown
        for cell in section["cells"]:
            for each in cell["unhealthy"]:
                yield Text(f"note: {cell['label']}: expected {each}", style="yellow")
    if result.get("kind") == "peers":
        yield from peerreport.lines(result)
    else:
        for each in result.get("skipped", []):
            yield Text(f"left out: {each}", style="yellow")
    for failure in failures_of(result):
        yield Text(f"FAILED: {failure}", style="bold red")


_SHORT: Final[Mapping[str, str]] = {
    "messages_per_s": "msg",
    "cpu_per_message": "CPU/\nmsg",
    "idle_pss": "PSS\nidle",
    "pss_per_envelope": "PSS/\nenvl",
    "drain_time": "empty",
    "p99_accepted": "acc.\np99",
    "p99_delivered": "deliv.\np99",
    "lost": "lost",
    "duplicates": "twice",
}


def _cell_text(cell: Mapping[str, Any], name: str) -> str:
    found = cell["quantities"][name]
    if found["median"] is None:
        return "-"
    if name in COUNTS:
        return f"{_total(cell, name):,.0f}"
    return figures(found["median"] * unit_of(name)[1])
