"""`testbed compare`, `testbed peers` and the sweep of `testbed run`: several runs, one page."""

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mta.core.settings import ConfigError
from testbed.children import RunError, UsageError
from testbed.ending import catch_signals, fail, interrupted
from testbed.gatecommand import check_gates, failed_gates, gates_of, help_if_asked
from testbed.results import print_result, render_result

if TYPE_CHECKING:
    from testbed.rundir import Run

FailIf = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-if",
        metavar="CONDITION",
        is_eager=True,
        callback=help_if_asked,
        help="As of `testbed run`; about every run.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result instead of tables.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="New or empty. Default: below runs/."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change one value of every scenario."),
]


NO_RESULTS: Final = "has no results: none of its servers came to its end"


def compare_command(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Runs, or directories of several.")
    ],
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="Where runs are kept.")
    ] = Path("runs"),
    out: Out = None,
    fail_if: FailIf = None,
    as_json: AsJson = False,
) -> None:
    """Put runs beside each other: a table, figures and a page. Runs of the same scenario, settings and server are repeats."""
    from testbed.comparing import RESULT, cells_of, compared
    from testbed.run import new_directory
    from testbed.rundir import write_json
    from testbed.summary import host, versions

    gates = gates_of(fail_if, None)
    try:
        check_gates(gates, None)
        found, skipped = _found(names, runs)
        result = compared(
            cells_of(found),
            title="Runs side by side",
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            command=shlex.join(["testbed", "compare", *names]),
            host=host(),
            versions=versions(),
            skipped=skipped,
            failed=[],
            vary="",
        )
        directory = new_directory(out, "compare")
        write_json(directory / RESULT, result)
        render_result(directory)
        print_result(directory, as_json=as_json)
        for line in skipped if as_json else ():
            typer.echo(f"testbed: left out: {line}", err=True)
        if failed_gates(gates, _gated(result)):
            raise typer.Exit(1)
    except (ConfigError, RunError) as error:
        fail(error)


def _found(names: Sequence[str], runs: Path) -> tuple[list["Run"], list[str]]:
    """Return the runs that are meant, and which parts of a comparison have no results.

    Raises:
        UsageError: a name means no run, or one without results.
    """
    from testbed.rundir import Run, find

    found: list[Run] = []
    skipped: list[str] = []
    for name in names:
        directory = find(name, runs)
        for part in _parts(directory):
            run = Run(part)
            if run.representations:
                found.append(run)
            elif part == directory:
                raise UsageError(f"{name}: {NO_RESULTS}")
            else:
                skipped.append(f"{part}: {NO_RESULTS}")
    return found, skipped


def _parts(directory: Path) -> list[Path]:
    """Return the run directories that a directory is or has."""
    from testbed.comparing import RESULT, read

    if (directory / RESULT).is_file():
        result = read(directory / RESULT)
        every = [
            directory / Path(run).name
            for section in result["scenarios"]
            for cell in section["cells"]
            for run in cell["runs"]
        ]
        return list(dict.fromkeys(every))
    return [directory]


def peers_command(
    context: typer.Context,
    scenarios: Annotated[
        list[str] | None,
        typer.Option(
            "--scenario",
            metavar="NAME",
            help="May be repeated. Default: full-speed, long-queue, baseline, backlog, dead-destination.",
        ),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--target", metavar="NAME", help="May be repeated. Default: all that can run here."
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, max=50, help="Of each, taking turns.")
    ] = 2,
    scale: Annotated[
        float,
        typer.Option(
            metavar="X",
            min=0.01,
            max=100.0,
            help="Length of scenarios with a fixed rate: messages and outages, at the same rates; 1 is all of them.",
        ),
    ] = 0.25,
    overrides: Overrides = None,
    out: Out = None,
    gates: Annotated[
        bool,
        typer.Option(
            "--gates", help="Exit with 1 if a verdict is missed or could not be measured."
        ),
    ] = False,
    fail_if: FailIf = None,
    as_json: AsJson = False,
) -> None:
    """Run the same scenarios on our server, Postfix, OpenSMTPD and Exim, taking turns, and write one page with verdicts.

    The others are Debian's packages, unpacked and not installed; it needs root.
    """
    if context.invoked_subcommand is not None:
        return
    from testbed.sidebyside import peers_plan, targets_of

    try:
        plan = peers_plan(
            scenarios,
            targets_of(targets),
            overrides or (),
            repeats=repeats,
            out=out,
            scale=scale,
        )
    except (ConfigError, RunError) as error:
        fail(error)
    run_comparison(plan, gates_of(fail_if, None), as_json=as_json, verdicts=gates)


def run_comparison(plan: Any, gates: list[str], *, as_json: bool, verdicts: bool = False) -> None:
    """Make the runs of a plan, and print and gate what they came to.

    Args:
        plan: see `testbed.sidebyside`.
        gates: conditions of --fail-if.
        as_json: print JSON.
        verdicts: a verdict that is not met fails the command.
    """
    from testbed.comparing import RESULT, failures_of, read
    from testbed.progress import Display
    from testbed.sidebyside import run_plan

    catch_signals()
    try:
        check_gates(gates, None)
        with Display() as display:
            directory = run_plan(plan, display)
        render_result(directory)
        print_result(directory, as_json=as_json)
        result = read(directory / RESULT)
        failures = failures_of(result)
        if failures:
            typer.echo(f"testbed: {failures[0]}", err=True)
        unmet = [each for each in result.get("verdicts", []) if each["answer"] != "met"]
        for each in unmet if verdicts else []:
            typer.echo(f"testbed: {each['name']}: {each['answer']}: {each['why']}", err=True)
        if failed_gates(gates, _gated(result)) or failures or (verdicts and unmet):
            raise typer.Exit(1)
    except (ConfigError, RunError) as error:
        fail(error)
    except KeyboardInterrupt:
        interrupted()


def _gated(result: Mapping[str, Any]) -> dict[str, Any]:
    from testbed.comparing import as_summary

    return as_summary(result)
