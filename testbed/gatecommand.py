"""``--fail-if`` of the commands that make or read runs: conditions from a command line to an exit status.

0 if none holds, 1 if one does, 2 if one is not understood, which is said before anything is started.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mta.core.settings import ConfigError
from sim.conditions import UNITS, ConditionError
from sim.scenario import Scenario
from testbed.children import UsageError
from testbed.gates import UNHEALTHY, tripped, understand
from testbed.quantities import describe

HELP = "help"


def help_if_asked(values: list[str] | None) -> list[str] | None:
    """List the quantities and end with 0 if that is what is asked: before anything else of the command line is missed."""
    if values and HELP in values:
        _help()
        raise typer.Exit(0)
    return values


def gates_of(options: Sequence[str] | None, more: Sequence[str] | None) -> list[str]:
    """Return the conditions of a command line; or print what there is, and end with 0."""
    if more and not options:
        # What is no option of a condition is a slip of the pen.
        raise typer.BadParameter(f"Got unexpected extra argument ({more[0]})")
    gates = [*(options or ()), *(more or ())]
    help_if_asked(gates)
    return gates


def check_gates(gates: Sequence[str], scenario: Scenario | None) -> None:
    """Raise ConfigError if a condition, or one that the scenario expects, is not understood."""
    names = None
    if scenario is not None:
        names = [
            *(each.name for each in scenario.destinations),
            *(each.name for each in scenario.local),
        ]
        for text in scenario.expects:
            _check(text, names, "expects")
    for text in gates:
        if text.strip() != UNHEALTHY:
            _check(text, names, "--fail-if")


def _check(text: str, names: Sequence[str] | None, where: str) -> None:
    try:
        understand(text, names)
    except ConditionError as error:
        raise ConfigError(where, value=text, problem=str(error)) from error


def failed_gates(gates: Sequence[str], summary: Mapping[str, Any]) -> bool:
    """Say on standard error which gates fail a run; return whether one does.

    Raises:
        UsageError: a condition is not understood.
    """
    try:
        lines = tripped(gates, summary)
    except ConditionError as error:
        raise UsageError(f"--fail-if: {error}") from error
    for line in lines:
        typer.echo(f"testbed: --fail-if: {line}", err=True)
    return bool(lines)


def _help() -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0))
    for head in ("quantity", "of", "meaning"):
        table.add_column(head, no_wrap=head != "meaning")
    for row in describe():
        # A destination's name in brackets is no markup.
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    console = Console(highlight=False)
    console.print(table)
    units = ", ".join(UNITS)
    console.print(
        f"Units: {units}. Operators: > >= < <= == !=. A condition holds if it holds for one of the run's servers. Any other number of"
        f" a server's part of summary.json has its path as name, as delivery_latency_s.steady.p95. {UNHEALTHY}: something that the"
        " scenario expects (expects = ...) does not hold."
    )
