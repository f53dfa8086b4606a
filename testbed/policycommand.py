"""`testbed policies`: the command, and what `testbed show` and `testbed report` do with its directories."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mta.core.settings import ConfigError
from testbed.children import RunError, UsageError
from testbed.ending import catch_signals, fail, interrupted


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
        render_policies(directory)
        result = print_policies(directory, as_json=as_json)
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


def render_policies(directory: Path) -> Path | None:
    """Make report.html of a directory of `testbed policies` again; None if it is none.

    Raises:
        UsageError: its result is damaged.
    """
    from testbed.policies import RESULT, read

    if not (directory / RESULT).is_file():
        return None
    from testbed.policyreport import html

    path = directory / "report.html"
    path.write_text(html(read(directory / RESULT)), encoding="utf-8")
    return path


def print_policies(directory: Path, *, as_json: bool) -> dict[str, Any] | None:
    """Print the result of a directory of `testbed policies`; return it, or None if it is none.

    Raises:
        UsageError: its result is damaged.
    """
    from testbed.policies import RESULT, read

    if not (directory / RESULT).is_file():
        return None
    result = read(directory / RESULT)
    if as_json:
        typer.echo(json.dumps(result))
        return result
    from testbed.policyreport import tables

    console = Console(highlight=False)
    for each in tables(result):
        console.print(each)
    report = directory / "report.html"
    if report.is_file():
        console.print(f"report: {report}", soft_wrap=True, markup=False)
    return result
