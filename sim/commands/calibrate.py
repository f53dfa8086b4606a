"""`sim calibrate`: what do things cost, by what was recorded?"""

from pathlib import Path
from typing import Annotated

import typer

from mta.core.settings import ConfigError
from sim.commands.options import AsJson, fail


def calibrate_run(
    run_names: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run directories, or `latest`.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="By default calibration.json in the (first) run."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure costs in recorded runs and write them down, with their errors and the digests of what they come from."""
    from sim import costs as costing
    from sim.calibrate import calibrate, report
    from sim.replay import find_run

    try:
        directories = [find_run(name) for name in run_names]
        costs = calibrate(*directories)
    except ConfigError as error:
        raise fail(error) from None
    path = out or directories[0] / "calibration.json"
    try:
        costing.save(costs, path)
    except OSError as error:
        raise fail(ConfigError(str(path), problem=f"can't be written: {error.strerror}")) from None
    if as_json:
        print(path.read_text(encoding="utf-8"), end="")
    else:
        report(costs)
        print(f"written to {path}")
