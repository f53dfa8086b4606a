"""The page and the tables of a validation: real beside model at settings that the model has not seen, and what it comes to."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.markup import escape as plain
from rich.table import Table
from rich.text import Text

from testbed import heldoutplots
from testbed.comparereport import figures
from testbed.heldoutgates import (
    GATES,
    HOLDS,
    MISSES,
    MISSING,
    TOO_NOISY,
    Row,
    rows_of,
    word_of,
)
from testbed.report import NONE, notes_list, page, picture, table

HEADS: Final = ("real", "model", "error", "spread", "naive", "")


def html(result: Mapping[str, Any]) -> str:
    """Return the page: it needs nothing else."""
    rows = rows_of(result)
    parts = [_head(result), _summary(result)]
    parts.append(
        picture(
            heldoutplots.against_setting(result),
            "Points: real runs, median and range. Dashed: the model. Grey band: where it was calibrated, everything else it has not seen.",
        )
    )
    for quantity, gate in GATES.items():
        own = [row for row in rows if row.quantity == quantity]
        if own:
            unit = f", {gate.unit}" if gate.unit else ""
            parts.append(f"<h3>{escape(gate.title + unit)}</h3>")
            several = len({row.representation for row in own}) > 1
            parts.append(
                table(
                    [
                        _key(result),
                        *(["envelope"] if several else []),
                        *([] if gate.is_distance else ["real", "range", "model"]),
                        *HEADS[2:],
                    ],
                    [_html_cells(row, several) for row in own],
                )
            )
    if any(setting["curves"] for setting in result["settings"]):
        parts.append("<h2>Over time</h2>")
        parts.append(
            picture(
                heldoutplots.over_time(result),
                f"The first run of each, {result['representations'][0]} envelopes. All panels of a row have one scale.",
            )
        )
    parts.append(_reproduce(result))
    return page(f"Real against model: {result['title']}", [part for part in parts if part])


def _head(result: Mapping[str, Any]) -> str:
    verdict = result["verdict"]
    missed = [line for line in verdict["quantities"] if not line["ok"]]
    kind = "good" if verdict["ok"] else "bad"
    words = (
        "Every prediction is within its gate, or within what real runs differ by."
        if verdict["ok"]
        else f"Not within its gate: {', '.join(line['title'].lower() for line in missed)}."
    )
    held_out = [each for each in result["settings"] if not each["trains"]]
    runs = sum(each["repeats"] for each in held_out)
    return "\n".join(
        [
            f"<h1>Real against model: {escape(result['title'])}</h1>",
            f'<p class="{kind}"><strong>{escape(words)}</strong> Calibrated at {escape(_key(result))}'
            f" = {escape(str(result['train']))} ({result['training_runs']} runs); {len(held_out)} other settings predicted, {runs} real runs.</p>",
            f"<p>{escape(result['question'])}</p>",
            notes_list("bad", result["failed"]),
        ]
    )


def _verdict(word: str) -> str:
    kind = {HOLDS: "good", TOO_NOISY: "doubt"}.get(word, "bad")
    return f'<span class="{kind}">{escape(word)}</span>'


def _summary(result: Mapping[str, Any]) -> str:
    rows = [
        [
            f"<strong>{escape(line['title'])}</strong>",
            f"{line['held']} of {line['settings']}",
            _share(line["median_error"]),
            _share(line["worst_error"]),
            _share(line["gate"]),
            _share(line["real_spread"]),
            _share(line["naive_error"]),
            _verdict(word_of(result, line)),
        ]
        for line in result["verdict"]["quantities"]
    ]
    why = [
        f"{line['title']}: {each}"
        for line in result["verdict"]["quantities"]
        for each in line["why"]
    ]
    heads = ["", "Held", "Error, median", "Worst", "Gate", "Real spread", "Naive", ""]
    return table(heads, rows) + notes_list("warn", why)


def _html_cells(row: Row, several: bool) -> list[str]:
    factor = row.gate.factor
    amounts = [_amount(row.real, factor), _range(row, factor), _amount(row.model, factor)]
    verdict = "in-sample" if row.trains else escape(row.verdict)
    bad = row.verdict in (MISSES, MISSING)
    return [
        escape(str(row.value)),
        *([escape(row.representation)] if several else []),
        *([] if row.gate.is_distance else amounts),
        *_errors(row),
        f'<strong class="bad">{verdict}</strong>' if bad else verdict,
    ]


def _errors(row: Row) -> list[str]:
    error = _signed(row.error, signed=not row.gate.is_distance)
    return [error, _share(row.spread), _signed(row.naive)]


def _range(row: Row, factor: float) -> str:
    if row.low is None or row.low == row.high:
        return NONE
    return f"{_amount(row.low, factor)}{NONE}{_amount(row.high, factor)}"


def _reproduce(result: Mapping[str, Any]) -> str:
    machine, versions = result.get("host", {}), result.get("versions", {})
    where = result["calibration"]["provenance"]
    digests = [
        [escape(name), f"<code>{digest[:16]}</code>"] for name, digest in where["files"].items()
    ]
    return "\n".join(
        [
            "<h2>How to read it, and how to do it again</h2>",
            "<p>Error: (model - real) / real, of medians; of a curve, the area between or the mean relative difference. Spread: how far a run is"
            " from the median of its repeats, at worst; of a curve, how far one run is from the next. Naive: the number of the training setting, as it is or"
            " in proportion to the setting, whichever does better. The model knows the scenario of a held-out run and the costs of the training runs,"
            " nothing else. <em>too little</em>: real and model agree that there is next to nothing."
            " <em>within spread</em>: outside of the gate, but a second real run would be as far away.</p>",
            f"<pre>{escape(str(result.get('command', '')))}</pre>",
            f"<p>{machine.get('cores', '?')} cores, {escape(str(machine.get('cpu', '?')))}; "
            f"{escape(', '.join(f'{name} {value}' for name, value in versions.items()))}."
            f" CPU time explained by the calibration: {where['cpu_explained']:.0%}.</p>",
            "<p>Learnt from (SHA-256, first 16 digits):</p>",
            table(["File", "Digest"], digests),
            notes_list("warn", where["notes"]),
        ]
    )


def tables(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield what to print."""
    rows = rows_of(result)
    shown = Table(
        title=f"{plain(result['scenario'])}: calibrated at {_key(result)} = {plain(str(result['train']))}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for head in ("setting", *HEADS):
        shown.add_column(head, justify="left" if head in ("", "setting") else "right", no_wrap=True)
    for quantity, gate in GATES.items():
        own = [row for row in rows if row.quantity == quantity]
        if not own:
            continue
        unit = f", {gate.unit}" if gate.unit else ""
        shown.add_section()
        shown.add_row(
            f"[bold]{gate.title}{unit}[/]",
            "",
            "",
            f"[bold]\N{LESS-THAN OR EQUAL TO} {gate.error_max:.0%}[/]",
        )
        several = len({row.representation for row in own}) > 1
        for row in own:
            name = f"  {plain(str(row.value))}" + (f" {row.representation}" if several else "")
            cells = [
                _amount(row.real, gate.factor),
                _amount(row.model, gate.factor),
                *_errors(row),
            ]
            style = "red" if row.verdict in (MISSES, MISSING) else "dim" if row.trains else ""
            shown.add_row(name, *cells, "in-sample" if row.trains else row.verdict, style=style)
    yield shown
    for line in result["verdict"]["quantities"]:
        for why in line["why"]:
            yield Text(f"{line['title']}: {why}", style="yellow")
    for failure in result["failed"]:
        yield Text(f"FAILED: {failure}", style="bold red")
    missed = [line["title"] for line in result["verdict"]["quantities"] if not line["ok"]]
    if missed:
        yield Text(f"does not hold: {', '.join(missed)}", style="bold red")
    else:
        lines = result["verdict"]["quantities"]
        unsure = [line["title"] for line in lines if word_of(result, line) == TOO_NOISY]
        if unsure:
            yield Text(
                f"can't tell, real runs differ too much: {', '.join(unsure)}", style="yellow"
            )
        yield Text("all other gates hold" if unsure else "every gate holds", style="green")


def _key(result: Mapping[str, Any]) -> str:
    return str(result["key"]).rpartition(".")[2]


def _amount(value: float | None, factor: float) -> str:
    return NONE if value is None else figures(value * factor)


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}" if value < 0.1 else f"{value:.0%}"


def _signed(value: float | None, *, signed: bool = True) -> str:
    if value is None:
        return NONE
    if not signed:
        return _share(value)
    return f"{value:+.1%}" if abs(value) < 0.1 else f"{value:+.0%}"
