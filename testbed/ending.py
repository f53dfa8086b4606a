"""How a command of the bench ends that does not end well: one line, and an exit status that says whose doing it was."""

import signal
from typing import NoReturn

import typer

from mta.core.settings import ConfigError
from testbed.children import RunError, UsageError


def catch_signals() -> None:
    """Let a supervisor's SIGTERM end a run as Ctrl-C does: children first."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: object) -> NoReturn:
    # Once: an impatient second signal must not end the bench before its children have ended.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def interrupted() -> NoReturn:
    """End after an interruption: status 130."""
    typer.echo("testbed: interrupted; everything that was started has been ended", err=True)
    raise typer.Exit(130) from None


def fail(error: ConfigError | RunError) -> NoReturn:
    """End with one line: status 2 if the operator can do something about it, else 1."""
    typer.echo(f"testbed: {error}", err=True)
    raise typer.Exit(2 if isinstance(error, ConfigError | UsageError) else 1) from None
