"""`testbed policies`: the command."""

from pathlib import Path
from typing import Annotated

import typer

from mta.core.settings import ConfigError
from testbed.children import RunError, UsageError
from testbed.ending import catch_signals, fail, interrupted
from testbed.results import print_result, render_result


def policies_command(
    scenario: Annotated[
        str, typer.Argument(help="Name or TOML file of a scenario with local users.")
    ] = "local-burst",
    policies: Annotated[
        str, typer.Option(metavar="LIST", help="Of tempfail,raised,hold.")
    ] = "tempfail,raised,hold",
    representations: Annotated[
        str, typer.Option(metavar="LIST", help="Of fixed,whole,full,slim,packed.")
    ] = "fixed,full,slim",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="Change one value of the scenario; load.scale=0.2 is a burst of 20,000.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The directory: new or empty. Default: below runs/."),
    ] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Do not ask the model.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result instead of a table.")
    ] = False,
) -> None:
    """Compare what becomes of a local burst under each policy, in each representation, with real servers."""
    from testbed.policies import Matrix, run_matrix  # `testbed --help` need not load numpy
    from testbed.progress import Display

    catch_signals()
    try:
        matrix = Matrix(
            scenario=scenario,
            policies=_names(policies, "--policies"),
            representations=_names(representations, "--representations"),
            overrides=tuple(overrides or ()),
            out=out,
            model=not no_model,
        )
        with Display() as display:
            directory = run_matrix(matrix, display)
        render_result(directory)
        result = print_result(directory, as_json=as_json)
    except (ConfigError, RunError) as error:
        fail(error)
    except KeyboardInterrupt:
        interrupted()
    if result is not None and result["failures"]:
        typer.echo(f"testbed: {result['failures'][0]}", err=True)
        raise typer.Exit(1)


def _names(text: str, option: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names or len(set(names)) != len(names):
        raise UsageError(f"{option}: {text!r}: must name at least one, and none twice")
    return names
