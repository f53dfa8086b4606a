"""How far a command is: bars on a terminal, nothing elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def messages_bar(total: int) -> Iterator[Any]:
    """Show a bar on a terminal once more than two seconds have passed."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done: None
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.completed:,} of {task.total:,} messages"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task("", total=total)
    shown = False

    def advance(done: int) -> None:
        nonlocal shown
        bar.update(task, completed=done)
        if not shown and bar.tasks[0].elapsed is not None and bar.tasks[0].elapsed > 2:
            shown = True
            bar.start()

    try:
        yield advance
    finally:
        if shown:
            bar.stop()


@contextmanager
def experiments_bar() -> Iterator[Any]:
    """Show on a terminal which experiment runs, and how much of all is done."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda name, part: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda name, part: bar.update(task, completed=part, description=name)
