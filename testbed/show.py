"""The result of a run as a terminal shows it: two tables and what to know besides."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from testbed.rundir import Run
from testbed.summary import SUMMED, as_told

MIB: Final = 1024 * 1024
NONE: Final = "-"


def tables(run: Run) -> Iterator[RenderableType]:
    """Yield what to print.

    Raises:
        UsageError: the run has no summary, or a damaged one.
    """
    summary = as_told(run.summary)
    model = summary["model"]
    table = Table(
        title=f"{run.scenario.name}, seed {summary['seed']}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("\nenvelopes", no_wrap=True)
    # Two lines each: the table fits into 80 columns.
    for head in (
        "B/envl\nserver",
        "\nstore",
        "MiB\npeak",
        "queue\npeak",
        "empty\ns",
        "ms\nCPU",
    ):
        table.add_column(head, justify="right", no_wrap=True)
    if model is not None:
        for head in ("off by\nqueue", "\ndrain", "\nRSS"):
            table.add_column(head, justify="right", no_wrap=True)
    for name, part in summary["representations"].items():
        row = [
            name,
            _plus_minus(part["bytes_per_envelope"], part["bytes_per_envelope_stderr"]),
            _number(part["store_bytes_per_envelope"], 0),
            f"{part['peak_rss_bytes'] / MIB:.1f}",
            _number(part["peak_queue"], 0),
            _number(part["drain_time_s"], 1),
            _number(part["cpu_ms_per_message"], 2),
        ]
        if model is not None:
            found = model["representations"].get(name, {})
            row += [
                _percent(found.get(key))
                for key in ("peak_queue_error", "drain_time_error", "peak_rss_error")
            ]
        table.add_row(*row)
    yield table
    yield Text(
        "B/envl: bytes per queued envelope, by the whole server's RSS and in the store alone; MiB: RSS;"
        " queue: longest; empty: seconds of load until the queue was; ms CPU: per message"
        + ("; off by: the model, relative" if model is not None else "")
        + ".",
        style="dim",
    )
    yield Text(savings(summary["representations"]))
    yield Text("  ".join(f"{key} {summary[key]:,}" for key in SUMMED))
    for warning in summary["warnings"]:
        yield Text(f"note: {warning}", style="yellow")
    for failure in summary["failures"]:
        yield Text(f"FAILED: {failure}", style="bold red")


def savings(parts: Mapping[str, Any]) -> str:
    """Return in one line what dropping fields saves and what packing saves, in the store alone."""
    words = []
    for before, after, what in (
        ("full", "slim", "dropping fields"),
        ("slim", "packed", "packing"),
    ):
        old = parts.get(before, {}).get("store_bytes_per_envelope")
        new = parts.get(after, {}).get("store_bytes_per_envelope")
        if old and new:
            words.append(
                f"{what} ({before} to {after}) saves {old - new:,.0f} B, {old / new:.1f} to 1"
            )
    return "; ".join(words)


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def _plus_minus(value: float | None, error: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}±{error or 0:,.0f}"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"
