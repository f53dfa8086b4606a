"""How a command of the bench ends that does not end well: one line, and an exit status that says whose doing it was."""

from typing import NoReturn

import typer

from mta.core.settings import ConfigError
from sim import ending
from sim.ending import catch_signals
from testbed.children import RunError, UsageError

__all__ = ["catch_signals", "fail", "interrupted"]


def interrupted() -> NoReturn:
    """End after an interruption: status 130."""
    ending.interrupted("testbed", "; everything that was started has been ended")


def fail(error: ConfigError | RunError) -> NoReturn:
    """End with one line: status 2 if the operator can do something about it, else 1."""
    typer.echo(f"testbed: {error}", err=True)
    raise typer.Exit(2 if isinstance(error, ConfigError | UsageError) else 1) from None
