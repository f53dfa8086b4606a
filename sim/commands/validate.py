"""`sim validate`: is the model right, by theory and by what must be true of every run?"""

import json
from typing import Annotated

import typer

from mta.core.settings import ConfigError
from sim.commands.bars import experiments_bar
from sim.commands.options import AsJson, fail


def validate_model(
    profile: Annotated[
        str, typer.Option(help="quick, under two minutes; or nightly: stricter, and takes a while.")
    ] = "quick",
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="One experiment; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=10_000, help="Draws other replications.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Hold the model against queueing theory and against what must be true of every run. Exit status 1 if one fails."""
    from sim import validate as validating

    try:
        found = validating.profile_of(profile)
        experiments = validating.chosen(only or [])
    except ConfigError as error:
        raise fail(error) from None
    with experiments_bar() as advance:
        rows = list(validating.validate(found, experiments, seed=seed, progress=advance))
    if as_json:
        print(json.dumps(validating.report(found, rows), allow_nan=False))
    else:
        validating.table(rows, experiments)
    if not all(row.ok for row in rows):
        raise typer.Exit(1)
