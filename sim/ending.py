"""How a command ends that is interrupted: one line, and exit status 130. Files are the matter of `sim.wholefile`."""

import signal
from typing import Final, NoReturn

import typer

INTERRUPTED: Final = 130
"""Exit status after an interruption: 128 and the number of SIGINT, as a shell has it."""


def catch_signals() -> None:
    """Let a supervisor's SIGTERM end a command as Ctrl-C does: by `KeyboardInterrupt`, so that all that is open is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: object) -> NoReturn:
    # Once: an impatient second signal must not end a command before it has cleaned up.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def interrupted(program: str, more: str = "") -> NoReturn:
    """End after an interruption with one line; ``more`` says what there is to know."""
    typer.echo(f"{program}: interrupted{more}", err=True)
    raise typer.Exit(INTERRUPTED) from None
