"""The page of `testbed peers`: verdicts, four figures and what could not be compared first; everything else is folded.

What is in front fits on one sheet of paper, which is what gets forwarded. Numbers are those of compare.json.
"""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

from rich.console import RenderableType
from rich.text import Text

from testbed import peerplots
from testbed.comparing import failures_of
from testbed.peerplots import COST, RECOVERY
from testbed.report import NONE, notes_list, picture, table
from testbed.verdicts import (
    MEMORY,
    SPEED,
    Verdict,
    find_cell,
    labels,
    middle,
    not_comparable,
    syncs_of,
    verdicts,
)

_KIND: Final = {"met": "good", "missed": "bad", "not measured": "warn"}


def front(result: Mapping[str, Any]) -> list[str]:
    """Return what is in front: the parts of a page before its details."""
    found = verdicts(result)
    gaps = list(not_comparable(result))
    return [
        _lead(result, found),
        _verdict_table(found),
        _servers(result),
        picture(
            peerplots.overview(result),
            "Bars: medians, with the range over repeats. Memory is of all processes of a server (PSS); a queue is counted in"
            " envelopes, or in messages where a server does not tell more: in the last figure a message is for 4.1 recipients in the"
            " mean. Shaded: one of two destinations is down.",
        ),
        "<h2>What could not be compared, and why</h2>" if gaps else "",
        _list(gaps),
    ]


def _lead(result: Mapping[str, Any], found: list[Verdict]) -> str:
    failures = failures_of(result)
    cells = [cell for section in result["scenarios"] for cell in section["cells"]]
    lost, twice, taken = (
        sum(sum(cell["quantities"][name]["values"]) for cell in cells)
        for name in ("lost", "duplicates", "accepted")
    )
    runs = sum(cell["repeats"] for cell in cells)
    machine = result.get("host", {})
    kind = "bad" if lost else "good"
    kept = "Not every promise was kept." if lost else "Every promise was kept."
    answers = "; ".join(f"{each.name.lower()}: {each.answer}" for each in found)
    return "\n".join(
        line
        for line in (
            f"<h1>{escape(str(result.get('title') or 'Mail servers side by side'))}</h1>",
            f'<p class="{kind}"><strong>{kept}</strong> {runs:,} runs of {len(labels(result))} servers, {taken:,.0f} recipients'
            f" accepted, {lost:,.0f} lost, {twice:,.0f} duplicates. {escape(answers[:1].upper() + answers[1:])}.</p>",
            f"<p>{escape(str(result.get('started', ''))[:16].replace('T', ' '))} UTC, {machine.get('cores', '?')} cores,"
            f" {escape(str(machine.get('cpu', '?')))}; load, server and the other side share this machine."
            f" <code>{escape(str(result.get('command', '')))}</code></p>",
            notes_list("bad", failures),
        )
        if line
    )


def _verdict_table(found: list[Verdict]) -> str:
    rows = []
    for each in found:
        ratio = NONE
        if each.ratio is not None:
            ratio = f"<strong>{each.ratio:,.1f}</strong>"
            if each.low is not None:
                ratio += f'<br><small class="model">at least {each.low:,.1f}</small>'
        rows.append(
            [
                f"<strong>{escape(each.name)}</strong><br><small>{escape(each.why)}</small>",
                escape(each.wanted),
                _value(each.ours, each.unit),
                _value(each.theirs, each.unit)
                + (f"<br><small>{escape(each.against)}</small>" if each.against else ""),
                ratio,
                f'<p class="{_KIND[each.answer]}"><strong>{each.answer}</strong></p>',
            ]
        )
    return table(
        ["Question", "Wanted", "Ours", "Theirs", "Times better", "Verdict"], rows, text_columns=2
    )


def _value(value: float | None, unit: str) -> str:
    return NONE if value is None else f"{value:,.0f} {escape(unit)}"


COLUMNS: Final = (
    (SPEED, "messages_per_s", "Speed, msg/s", 1.0),
    (COST, "cpu_per_message", "CPU, ms/msg", 1e3),
    (COST, "idle_pss", "PSS idle, MiB", 1 / 2**20),
    (COST, "p99_accepted", "Accepted p99, ms", 1e3),
    (COST, "p99_delivered", "Delivered p99, ms", 1e3),
    (MEMORY, "uss_per_envelope", "Whole server, B per queued envelope", 1.0),
    ("dead-destination", "p99_delivered", "Beside a dead host: delivered p99, ms", 1e3),
    (RECOVERY, "drain_time", "Empty after an outage, s", 1.0),
)
"""Of the table of servers: scenario, quantity, head and what the value is multiplied with."""


def _servers(result: Mapping[str, Any]) -> str:
    """One row for each server, with the one number of each scenario that one asks for first."""
    there = {section["name"] for section in result["scenarios"]}
    columns = [each for each in COLUMNS if each[0] in there]
    rows = []
    for label in labels(result):
        version = result.get("servers", {}).get(label, {}).get("version", "")
        syncs = syncs_of(result, label)
        row = [
            f"<strong>{escape(label)}</strong>"
            + (f"<br><small>{escape(version)}</small>" if version else ""),
            NONE if syncs is None else f"{syncs:g}",
        ]
        row += [_figure(result, label, *each) for each in columns]
        cells = [find_cell(result, name, label) for name in there]
        for name in ("lost", "duplicates"):
            row.append(
                f"{sum(sum(c['quantities'][name]['values']) for c in cells if c is not None):,.0f}"
            )
        rows.append(row)
    heads = ["", "Syncs per msg", *(head for _, _, head, _ in columns), "Lost", "Twice"]
    return table(heads, rows)


def _figure(
    result: Mapping[str, Any], label: str, scenario: str, name: str, _: str, factor: float
) -> str:
    cell = find_cell(result, scenario, label)
    value = middle(cell, name)
    if cell is None:
        return NONE
    if value is None:
        if name == "drain_time":
            waited = max((each for each in cell["watched_s"] if each), default=None)
            return NONE if waited is None else f"not in {waited:,.0f}"
        return NONE
    found = cell["quantities"][name]
    text = _digits(value * factor)
    if len(found["values"]) > 1:
        text += (
            f'<br><small class="model">{_digits(found["low"] * factor)}{NONE}'
            f"{_digits(found['high'] * factor)}</small>"
        )
    return text


def _digits(value: float) -> str:
    return (
        f"{value:,.0f}"
        if abs(value) >= 20
        else f"{value:,.1f}"
        if abs(value) >= 2
        else f"{value:.2f}"
    )


def _list(lines: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(each)}</li>" for each in lines) + "</ul>" if lines else ""


EQUAL: Final = (
    "The same messages in the same order from the same load, the same scripted hosts and name server, the same clock; one"
    " server at a time, each in fresh processes, contenders taking turns.",
    "Each server as Debian ships it, on its own spool on the same disk. Changed, because otherwise the set-up would be"
    " measured: no pause of intake in Postfix (in_flow_delay), no limits per client address, all clients being one; no end of a"
    " connection after 100 messages in OpenSMTPD; one queue runner at a time in Exim. Where time is compressed, retries of Postfix and"
    " Exim are told to keep that pace; OpenSMTPD's can't be told.",
    "Ours runs with its defaults and the limits that the scenario names, keeps envelopes packed, and writes the trace that the model"
    " reads, which no other server does.",
    "Processor time is that of a control group, ended processes included. Memory is PSS summed over all processes of a server.",
    "Syncs per message are counted by strace in a run of their own, one message at a time, so that none shares another's.",
)
"""What is equal and what is not."""


def fairness() -> str:
    """Return the folded part on what is equal."""
    return _fold("What is equal, and what is not", _list(list(EQUAL)))


def _fold(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>\n{content}\n</details>"


def folded(section: Mapping[str, Any], content: str) -> str:
    """Return a scenario's section, folded."""
    load = section["load"]
    pace = f"{load['rate']:g}/s" if load["rate"] else "as fast as they are taken"
    what = f"{section['name']}: {section['title']} ({load['messages']:,} messages, {pace}, {load['clients']} connections)"
    return _fold(what, content)


def lines(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the verdicts and gaps for a terminal."""
    style = {"met": "bold green", "missed": "bold red", "not measured": "yellow"}
    for each in verdicts(result):
        times = f": {each.ratio:,.1f} times" if each.ratio is not None else ""
        numbers = (
            f" ({each.ours:,.0f} and {each.theirs:,.0f} {each.unit}, {each.against})"
            if each.ours is not None and each.theirs is not None
            else ""
        )
        yield Text(
            f"{each.answer.upper()}: {each.name}{times}{numbers}; wanted: {each.wanted}",
            style=style[each.answer],
        )
        if each.answer != "met":
            yield Text(f"  {each.why}")
    for gap in not_comparable(result):
        yield Text(f"- {gap}")
