"""`sim scenarios`: what ships."""

from typing import Annotated

import typer

from sim.commands.options import AsJson


def list_scenarios(
    long: Annotated[
        bool,
        typer.Option("--long", "-l", help="With what each asks and what a healthy server shows."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the scenarios that ship."""
    from sim.listing import scenario_lines

    for line in scenario_lines(as_json=as_json, long=long):
        print(line)
