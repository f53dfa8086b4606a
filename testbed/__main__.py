"""The `testbed` command: run, scenarios, compare, validate, peers, policies, report, show, trim, profiles, world.

Exit status: 0 done; 1 the run failed, or a condition of --fail-if holds, and why is the last line; 2 asked wrongly.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mta.core.settings import ConfigError
from testbed.children import RunError, UsageError
from testbed.comparecommand import compare_command, run_comparison
from testbed.ending import catch_signals, fail, interrupted
from testbed.gatecommand import check_gates, failed_gates, gates_of, help_if_asked
from testbed.peercommand import peers_app
from testbed.policycommand import policies_command
from testbed.results import print_result, render_result
from testbed.validatecommand import validate_command

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Put a mail server into a scripted Internet, load it, watch it, and compare it with its model.",
)

Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where runs are kept.")]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="Directory of a run, its name below runs/, or latest.")
]


FailIf = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-if",
        metavar="CONDITION",
        is_eager=True,
        callback=help_if_asked,
        help="Exit with 1 if it holds, as 'p99_accepted>800ms'; several may follow. `help` lists quantities; `unhealthy`:"
        " what the scenario expects does not hold.",
    ),
]
More = Annotated[
    list[str] | None, typer.Argument(metavar="[CONDITION]...", help="More of --fail-if.")
]


@app.command("run")
def run_command(
    scenario: Annotated[
        str, typer.Argument(help="Name or TOML file; `testbed scenarios` lists those that ship.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="Change one value of the scenario, as load.rate=500.",
        ),
    ] = None,
    representations: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Of fixed,whole,full,slim,packed; the scenario's without it."
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Which server: ours, postfix, opensmtpd or exim; see `peers`."
        ),
    ] = "ours",
    seed: Annotated[int | None, typer.Option(help="Root of all random streams.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The run's directory: new or empty. Default: below runs/."
        ),
    ] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Do not predict the run.")] = False,
    keep_queue: Annotated[
        bool, typer.Option("--keep-queue", help="Keep the servers' queues, even empty ones.")
    ] = False,
    fail_if: FailIf = None,
    more: More = None,
    syncs: Annotated[
        bool,
        typer.Option("--syncs", help="Count syncs per message too, in a short run under strace."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary instead of tables.")
    ] = False,
) -> None:
    """Run a scenario: each representation in a fresh server and a fresh world, then the model, then the report."""
    from sim.scenario import load
    from testbed.progress import Display  # `testbed --help` need not load numpy and matplotlib
    from testbed.run import Options, execute
    from testbed.sidebyside import sweep_plan

    gates = gates_of(fail_if, more)
    changes = list(overrides or ())
    if representations is not None:
        names = [name.strip() for name in representations.split(",") if name.strip()]
        changes.append(f"representations={json.dumps(names)}")
    if seed is not None:
        changes.append(f"seed={seed}")
    catch_signals()
    options = Options(
        scenario=scenario,
        overrides=tuple(changes),
        out=out,
        model=not no_model,
        keep_queue=keep_queue,
        target=target,
        syncs=syncs,
    )
    try:
        wanted = load(scenario, changes)
        check_gates(gates, wanted)
        if wanted.vary:
            run_comparison(sweep_plan(scenario, changes, out=out), gates, as_json=as_json)
            return
        with Display() as display:
            found = execute(options, display)
    except (ConfigError, RunError) as error:
        fail(error)
    except KeyboardInterrupt:
        interrupted()
    summary = found.summary
    _print(found, summary, as_json=as_json)
    if summary["failures"]:
        print(f"testbed: {summary['failures'][0]}", file=sys.stderr)
    if failed_gates(gates, summary) or summary["failures"]:
        raise typer.Exit(1)


app.command("compare")(compare_command)
app.command("policies")(policies_command)
app.command("validate")(validate_command)
app.add_typer(peers_app, name="peers")


@app.command("scenarios")
def scenarios_command(
    long: Annotated[
        bool,
        typer.Option("--long", "-l", help="With what each asks and what a healthy server shows."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False,
) -> None:
    """List the scenarios that ship."""
    from sim.listing import scenario_lines

    for line in scenario_lines(as_json=as_json, long=long):
        print(line)


@app.command("report")
def report_command(run: RunName = "latest", runs: Runs = Path("runs")) -> None:
    """Make summary and report of a run again, from its files."""
    from testbed.run import render
    from testbed.rundir import Run, find

    try:
        directory = find(run, runs)
        print(render_result(directory) or render(Run(directory)))
    except (ConfigError, RunError) as error:
        fail(error)


@app.command("show")
def show_command(
    run: RunName = "latest",
    runs: Runs = Path("runs"),
    fail_if: FailIf = None,
    more: More = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a comparison of servers for a document.")
    ] = False,
) -> None:
    """Print the tables of a run."""
    from testbed.rundir import Run, find

    gates = gates_of(fail_if, more)
    try:
        check_gates(gates, None)
        directory = find(run, runs)
        if print_result(directory, as_json=as_json, as_markdown=as_markdown) is None:
            if as_markdown:
                raise UsageError(f"{directory}: --markdown: no comparison of servers")
            found = Run(directory)
            _print(found, found.summary, as_json=as_json)
            if failed_gates(gates, found.summary):
                raise typer.Exit(1)
    except (ConfigError, RunError) as error:
        fail(error)


@app.command("trim")
def trim_command(
    run: RunName,
    target: Annotated[Path, typer.Argument(metavar="DIR", help="New directory.")],
    runs: Runs = Path("runs"),
) -> None:
    """Copy what reports and notebooks need of a run or a comparison, without traces, logs and records."""
    from testbed import comparing
    from testbed.run import render
    from testbed.rundir import Run, find, trim

    try:
        directory = find(run, runs)
        if comparing.result_file(directory) is not None:
            comparing.trim(directory, target)
        else:
            render(trim(Run(directory), target), page=False)
    except (ConfigError, RunError) as error:
        fail(error)
    print(target)


@app.command("profiles")
def profiles_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
    replies: Annotated[
        bool, typer.Option("--replies", help="List what real hosts say instead: provider/name.")
    ] = False,
) -> None:
    """List the kinds of hosts that a scenario can name with `profile`."""
    from rich.markup import escape
    from rich.table import Table

    from sim.behaviours.replies import known_replies
    from sim.profiles import shipped

    if replies:
        said = {name: f"{each.verb} {each.reply}" for name, each in known_replies().items()}
    else:
        said = {name: profile.about for name, profile in shipped().items()}
    if as_json:
        print(json.dumps(said))
        return
    table = Table("reply" if replies else "profile", "what it says" if replies else "what it does")
    for name, words in said.items():
        table.add_row(name, escape(words))
    Console(highlight=False).print(table)


@app.command(
    "world",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def world_command(context: typer.Context) -> None:
    """Run the scripted Internet alone: hosts that take mail as a scenario says, and their name server."""
    from testbed.world.world import main as world_main

    raise typer.Exit(world_main(context.args))


def _print(found: Any, summary: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary))
        return
    from testbed.show import tables

    console = Console(highlight=False)
    for each in tables(found):
        console.print(each)
    report = found.directory / "report.html"
    if report.is_file():
        console.print(f"report: {report}", soft_wrap=True, markup=False)


def main() -> None:
    """Run the command."""
    app()


if __name__ == "__main__":
    main()
