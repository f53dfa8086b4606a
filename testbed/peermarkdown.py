"""A comparison of servers as Markdown: for `docs/peers-measured.md`, for notebooks, and for whoever writes to a list."""

from collections.abc import Mapping, Sequence
from typing import Any

from testbed.compareplots import unit_of
from testbed.comparereport import COUNTS, HEADS, figures, headed
from testbed.verdicts import find_cell, labels, not_comparable, syncs_of, verdicts


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column is text and whose others are numbers."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def setting(result: Mapping[str, Any]) -> str:
    """Return in a paragraph what was run, where and when."""
    machine, servers = result["host"], result.get("servers", {})
    names = [
        f"{label} {servers[label]['version']}" if label in servers else label
        for label in labels(result)
    ]
    runs = sum(cell["repeats"] for section in result["scenarios"] for cell in section["cells"])
    return (
        f"`{result['command']}`, {result['started'][:10]}, {machine['cores']} cores: {', '.join(names)}; {runs} runs, taking"
        " turns. Load, server and scripted hosts share the machine."
    )


def scenarios(result: Mapping[str, Any]) -> str:
    """Return the table of what was run."""
    return table(
        ["scenario", "messages", "rate", "connections", "what it asks"],
        [
            [
                f"`{section['name']}`",
                f"{section['load']['messages']:,}",
                f"{section['load']['rate']:g}/s" if section["load"]["rate"] else "theirs",
                f"{section['load']['clients']}",
                section["title"],
            ]
            for section in result["scenarios"]
        ],
    )


def answers(result: Mapping[str, Any]) -> str:
    """Return the verdicts, with what each rests on below the table."""
    found = verdicts(result)
    rows = [
        [
            each.name,
            each.wanted,
            "-" if each.ours is None else f"{each.ours:,.0f} {each.unit}",
            "-" if each.theirs is None else f"{each.theirs:,.0f} {each.unit} ({each.against})",
            "-" if each.ratio is None else f"{each.ratio:.1f}",
            f"**{each.answer}**",
        ]
        for each in found
    ]
    heads = ["question", "wanted", "ours", "theirs", "times better", "verdict"]
    return table(heads, rows) + "".join(f"\n\n*{each.name}.* {each.why}" for each in found)


def quantities(section: Mapping[str, Any]) -> str:
    """Return the table of one scenario: medians, with the range over repeats."""
    cells = section["cells"]
    shown = [
        name for name in HEADS if any(c["quantities"][name]["median"] is not None for c in cells)
    ]
    rows = [
        [cell["label"], *(_spread(cell["quantities"][name], unit_of(name)[1]) for name in shown)]
        for cell in cells
    ]
    return table(["server", *(headed(name) for name in shown)], rows)


def _spread(found: Mapping[str, Any], factor: float) -> str:
    if found["median"] is None:
        return "-"
    text = figures(found["median"] * factor)
    if len(found["values"]) > 1:
        text += f" ({figures(found['low'] * factor)} to {figures(found['high'] * factor)})"
    return text


def counts(result: Mapping[str, Any]) -> str:
    """Return the table of every recipient that was promised something, in all runs, and of syncs per message."""
    rows = []
    for label in labels(result):
        cells = [find_cell(result, each["name"], label) for each in result["scenarios"]]
        totals = [
            sum(sum(cell["quantities"][name]["values"]) for cell in cells if cell is not None)
            for name in COUNTS
        ]
        synced = syncs_of(result, label)
        rows.append(
            [label, "-" if synced is None else f"{synced:g}", *(f"{each:,.0f}" for each in totals)]
        )
    return table(["server", "syncs per message", *COUNTS], rows)


def gaps(result: Mapping[str, Any]) -> str:
    """Return the list of what could not be compared, and why."""
    return "\n".join(f"- {each}" for each in not_comparable(result))


def measured(result: Mapping[str, Any]) -> str:
    """Return the whole of it."""
    parts = ["# Servers side by side: as measured", setting(result), answers(result)]
    for section in result["scenarios"]:
        parts += [f"## {section['title']} (`{section['name']}`)", quantities(section)]
    parts += ["## Recipients, all runs", counts(result)]
    if gaps(result):
        parts += ["## What could not be compared, and why", gaps(result)]
    return "\n\n".join(parts) + "\n"
