"""`testbed validate`: the model against real runs of settings that it has not seen."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mta.core.settings import ConfigError
from testbed.children import RunError
from testbed.ending import catch_signals, fail, interrupted
from testbed.results import print_result, render_result


def validate_command(
    scenario: Annotated[
        str, typer.Argument(help="One that varies a key: name or TOML file.")
    ] = "held-out",
    train: Annotated[
        str | None,
        typer.Option(metavar="VALUE", help="Calibrate at this one. Default: the second."),
    ] = None,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, max=50, help="Of each held-out value.")
    ] = 5,
    training_runs: Annotated[
        int, typer.Option(metavar="N", min=1, max=50, help="At the training value.")
    ] = 3,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change one value of the scenario."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="New, or begun by the same command: what is complete stays. Default: below runs/.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result instead of tables.")
    ] = False,
) -> None:
    """Calibrate at one value of what a scenario varies, predict the others, run them, and compare.

    Exit status 1 if a prediction is worse than its gate and than the real runs are among themselves.
    """
    from testbed.heldout import directory_of, plan_of, validate
    from testbed.progress import Display  # `testbed --help` need not load numpy and matplotlib

    words = ["testbed", "validate", scenario, "--repeats", str(repeats)]
    words += ["--training-runs", str(training_runs)]
    words += ["--train", train] if train is not None else []
    words += [word for each in overrides or () for word in ("--set", each)]
    catch_signals()
    directory = None
    try:
        plan = plan_of(
            scenario, overrides or (), train=train, repeats=repeats, training_runs=training_runs
        )
        directory = directory_of(plan, out)
        with Display() as display:
            result = validate(plan, directory, display, command=shlex.join(words))
        render_result(directory)
        print_result(directory, as_json=as_json)
    except (ConfigError, RunError) as error:
        fail(error)
    except KeyboardInterrupt:
        if directory is not None:
            again = shlex.join([*words, "--out", str(directory)])
            typer.echo(f"go on with: {again}", err=True)
        interrupted()
    if not result["verdict"]["ok"]:
        raise typer.Exit(1)
