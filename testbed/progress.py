"""What is shown while a run goes on: bars on a terminal, plain lines elsewhere, always on standard error."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

LINE_EVERY_S: Final = 5.0
"""Between two plain lines of the same phase."""


class Display:
    """Shows phases and numbers. A context; use from one thread."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        """Make a display.

        Args:
            console: where to; standard error if None.
            quiet: show nothing.
        """
        self._console = console or Console(stderr=True, quiet=quiet, highlight=False)
        self._bars: Progress | None = None
        if self._console.is_terminal and not quiet:
            self._bars = Progress(
                TextColumn("[bold]{task.description:<8}"),
                TextColumn("{task.fields[phase]:<10}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=self._console,
            )
        self._is_whole = False
        self._line_at = 0.0
        self._shown = ("", "")

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, text: str) -> None:
        """Show one line that stays."""
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def part(self, name: str, total: float = 1.0) -> Iterator["Part"]:
        """Show one part of the run, such as a representation."""
        task = None
        if self._bars is not None:
            task = self._bars.add_task(name, total=total, phase="", numbers="")
        part = Part(self, name, total, task)
        try:
            yield part
            part.show("done", total)
        finally:
            self._put_away(task)

    def _put_away(self, task: TaskID | None) -> None:
        if self._bars is not None and task is not None and self._is_whole:
            # Of many runs only the one that is made is shown: a terminal has few lines.
            self._bars.remove_task(task)

    @contextmanager
    def whole(self, runs: int) -> Iterator["Whole"]:
        """Show how many of several runs are over, and about how long the rest takes, above their parts."""
        task = None
        if self._bars is not None:
            task = self._bars.add_task("all", total=runs, phase="", numbers="")
        self._is_whole = True
        try:
            yield Whole(self, runs, task)
        finally:
            self._is_whole = False

    def _show(self, part: "Part", phase: str, done: float, numbers: str) -> None:
        if self._bars is not None and part.task is not None:
            self._bars.update(part.task, completed=done, phase=phase, numbers=numbers)
            return
        now = time.monotonic()
        if (part.name, phase) == self._shown and now - self._line_at < LINE_EVERY_S:
            return
        self._shown = (part.name, phase)
        self._line_at = now
        self.say(f"{part.name}: {phase}" + (f": {numbers}" if numbers else ""))


class Part:
    """One line of the display."""

    def __init__(self, display: Display, name: str, total: float, task: TaskID | None) -> None:
        self.name = name
        self.total = total
        self.task = task
        self._display = display
        self._numbers = ""

    def show(self, phase: str, done: float = 0.0, numbers: str | None = None) -> None:
        """Say what is going on, how much of the total is done, and what is counted."""
        if numbers is not None:
            self._numbers = numbers
        self._display._show(self, phase, min(done, self.total), self._numbers)


class Whole:
    """The first line of a display of several runs; see `Display.whole`."""

    def __init__(self, display: Display, runs: int, task: TaskID | None) -> None:
        self._display = display
        self._runs = runs
        self._task = task

    def show(self, done: int, what: str, left_s: float) -> None:
        """Say what is run now, how many are over, and about how long the rest takes, this one included."""
        left = f"about {left_s / 60:.0f} min left" if left_s >= 90 else f"about {left_s:.0f} s left"
        bars = self._display._bars
        if bars is not None and self._task is not None:
            bars.update(
                self._task,
                completed=done,
                phase=f"{done}/{self._runs}",
                numbers=f"{what}; {left}" if done < self._runs else what,
            )
        elif done < self._runs:
            self._display.say(f"[{done + 1}/{self._runs}] {what}; {left}")
