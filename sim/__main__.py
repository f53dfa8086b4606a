"""The `sim` command: run a model, replay a run, calibrate, list scenarios."""

import json
import math
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mta.core.settings import ConfigError
from sim import scenario as scenarios
from sim.ending import catch_signals, interrupted
from sim.settings import server_config
from sim.sweepcommand import sweep
from sim.wholefile import none_left, whole


class _Commands(TyperGroup):
    """All commands: whichever is interrupted says so."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run one."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            interrupted("sim")


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    help="A model of the server: the same decisions, with calibrated costs, thousands of times as fast.",
)

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override one key; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]
CostsFile = Annotated[
    Path | None,
    typer.Option(
        "--calibration", "--costs", metavar="FILE", help="What `sim calibrate` has written."
    ),
]

_ROWS = (
    ("accepted", "envelopes"),
    ("delivered", "envelopes"),
    ("deferred", "attempts"),
    ("bounced", "reports"),
    ("expired", "envelopes"),
    ("refused_messages", "messages"),
    ("queued", "at the end"),
    ("peak_queued", "envelopes"),
    ("drain_time_s", "s"),
    ("p50", "s to delivery"),
    ("p95", "s to delivery"),
    ("p99", "s to delivery"),
    ("peak_rss_bytes", "bytes, estimated"),
    ("peak_live_bytes", "bytes of the queue"),
    ("bytes_per_envelope", "then"),
    ("busy_share", "of the event loop"),
)
"""Rows of a table of results: key and unit."""

_RESTART_ROWS = (
    ("gone_s", "s, the end of the process"),
    ("opened_s", "s, its door is open again"),
    ("restored_s", "s, its queue is read"),
    ("envelopes", "envelopes on the disk"),
)
"""The same of each restart."""

_HARM_ROWS = (
    ("broken", "times that a client lost its server"),
    ("duplicates", "envelopes, delivered once more"),
    ("duplicates_client", "envelopes, sent once more"),
    ("unacknowledged", "envelopes, kept and never answered"),
)
"""What all restarts did to mail."""

_LOCAL_ROWS = (
    ("burst_drain_s", "s, first acceptance to last fate"),
    ("oldest_age_s", "s in the queue"),
    ("jain", "over users, in the burst"),
    ("peak_agent", "envelopes, sampled"),
    ("attempts", "deliveries started"),
    ("retries", "put back, to come again"),
    ("tempfails", "attempts and refusals"),
    ("refused", "by the agent: too many"),
    ("overflows", "of hold queues"),
)
"""The same of local mail."""


def _fail(error: ConfigError) -> typer.Exit:
    print(f"sim: {error}", file=sys.stderr)
    return typer.Exit(2)


@app.command()
def run(
    name: Annotated[str, typer.Argument(metavar="SCENARIO", help="A name, or a file.")],
    overrides: Overrides = None,
    costs: CostsFile = None,
    seed: Annotated[int | None, typer.Option(help="In place of the scenario's.")] = None,
    replications: Annotated[
        int, typer.Option(metavar="N", min=1, max=10_000, help="Repetitions with other draws.")
    ] = 1,
    backend: Annotated[str, typer.Option(help="simpy, or heapq: the same run, faster.")] = "simpy",
    layout: Annotated[
        str,
        typer.Option(metavar="NAME", help="Reckon memory as another server; see `sim layouts`."),
    ] = "",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Takes trace.jsonl and summary.json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the model of a scenario and print what it came to."""
    try:
        summaries = _run(name, overrides or [], costs, seed, replications, backend, layout, out)
    except ConfigError as error:
        raise _fail(error) from None
    if as_json:
        found: Any = summaries[0] if replications == 1 else summaries
        print(json.dumps(found, allow_nan=False))
        return
    _show(summaries)
    for line in summaries[0]["not_in_model"]:
        print(f"not in the model: {line}")


def _run(
    name: str,
    overrides: list[str],
    costs_file: Path | None,
    seed: int | None,
    replications: int,
    backend: str,
    layout_name: str,
    out: Path | None,
) -> list[dict[str, Any]]:
    from sim import costs as costing
    from sim import layout as layouts
    from sim.beyond import beyond
    from sim.runner import simulate

    if seed is not None:
        overrides = [*overrides, f"seed={seed}"]
    if backend not in ("simpy", "heapq"):
        raise ConfigError("--backend", value=backend, problem="must be simpy or heapq")
    scenario = scenarios.load(name, overrides)
    source = name if "/" in name or name.endswith(".toml") else f"{name}.toml"
    config = server_config(scenario.server, source, overrides)
    costs = costing.load(costs_file) if costs_file is not None else costing.Costs()
    layout = layouts.load(layout_name) if layout_name else None
    if out is not None:
        _make(out)
    summaries = []
    messages = scenario.messages * replications
    with _progress(messages) as advance:
        for number in range(replications):
            trace = None
            if out is not None:
                trace = out / ("trace.jsonl" if replications == 1 else f"trace-{number}.jsonl")
            done = number * scenario.messages
            try:
                with none_left(out, f"{trace.stem}*.jsonl") if out and trace else nullcontext():
                    result = simulate(
                        scenario,
                        costs=costs,
                        config=config,
                        replication=number,
                        trace=trace,
                        backend="simpy" if backend == "simpy" else "heapq",
                        layout=layout,
                        progress=lambda t, settled, queued, done=done: advance(done + settled),  # type: ignore[misc]
                        source=source,
                    )
            except OSError as error:
                problem = f"can't be written: {error.strerror}"
                raise ConfigError("--out", value=str(out), problem=problem) from None
            summaries.append({**result.summary(), "not_in_model": list(beyond(scenario))})
    if out is not None:
        found: Any = summaries[0] if replications == 1 else summaries
        _write(out / "summary.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
        _write(out / "scenario.toml", scenarios.to_toml(scenario))
    return summaries


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        usable = os.access(out, os.W_OK)
    except OSError as error:
        problem = f"can't be made: {error.strerror}"
        raise ConfigError("--out", value=str(out), problem=problem) from None
    if not usable:
        raise ConfigError("--out", value=str(out), problem="can't be written: Permission denied")


def _write(path: Path, text: str) -> None:
    try:
        with whole(path) as new:
            new.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(path), problem=f"can't be written: {error.strerror}") from None


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """Show a bar on a terminal once more than two seconds have passed."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done: None
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.completed:,} of {task.total:,} messages"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task("", total=total)
    shown = False

    def advance(done: int) -> None:
        nonlocal shown
        bar.update(task, completed=done)
        if not shown and bar.tasks[0].elapsed is not None and bar.tasks[0].elapsed > 2:
            shown = True
            bar.start()

    try:
        yield advance
    finally:
        if shown:
            bar.stop()


def _flat(summary: dict[str, Any]) -> dict[str, Any]:
    flat = {**summary, **summary["delivery_latency_s"]}
    local = summary["local"]
    for number, restart in enumerate(summary["restarts"], 1):
        flat.update({f"restart {number} {key}": restart[key] for key, _ in _RESTART_ROWS})
    flat.update({name: said["times"] for name, said in summary["beside"].items()})
    if local is not None:
        flat.update({key: local[key] for key, _ in _LOCAL_ROWS})
        for group, found in local["groups"].items():
            flat.update({f"{group} {key}": value for key, value in found["latency_s"].items()})
    return flat


def _rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return key and unit of each row of the table of a run."""
    rows = list(_ROWS)
    if summary["restarts"]:
        for number in range(1, len(summary["restarts"]) + 1):
            rows.extend((f"restart {number} {key}", unit) for key, unit in _RESTART_ROWS)
        rows.extend(_HARM_ROWS)
    if summary["beside"]:
        rows.append(("stress_entered", "times that stress began"))
        rows.extend((name, "connections that ended so") for name in summary["beside"])
    if summary["local"] is not None:
        rows.extend(_LOCAL_ROWS)
        for group in summary["local"]["groups"]:
            rows.extend(
                (f"{group} {key}", "s from 250 to delivery") for key in ("p50", "p99", "max")
            )
    return rows


def _show(summaries: Sequence[dict[str, Any]]) -> None:
    """Print a table: one column of results, or mean and interval over replications."""
    from rich.console import Console
    from rich.table import Table

    first = summaries[0]
    kept = f"layout {first['layout']}" if first["layout"] else f"envelope {first['representation']}"
    title = f"{first['scenario']}, {kept}, seed {first['seed']}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    many = len(summaries) > 1
    table.add_column(f"mean of {len(summaries)}" if many else "model", justify="right")
    if many:
        table.add_column("95 %", justify="right")
    table.add_column("")
    flat = [_flat(summary) for summary in summaries]
    for key, unit in _rows(first):
        values = [each[key] for each in flat if each.get(key) is not None]
        if not values:
            cells = ["-"] + [""] * many
        else:
            mean = statistics.fmean(values)
            cells = [_number(mean if many else values[0])]
            if many:
                cells.append(f"± {_number(half_width(values))}")
        table.add_row(key, *cells, unit)
    Console().print(table)
    if not many and first["memory_levels"]:
        changes = [f"{each['level']} at {each['at_s']:g} s" for each in first["memory_levels"]]
        more = f", and {len(changes) - 8} more changes" if len(changes) > 8 else ""
        print(f"memory (limits.memory): {', '.join(changes[:8])}{more}")
    for summary in summaries[:5]:
        print(f"fingerprint {summary['fingerprint']}  ({summary['stimuli']} stimuli)")
    if len(summaries) > 5:
        print(f"and {len(summaries) - 5} more")


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of the mean of independent replications; 0 for one of them."""
    n = len(values)
    if n < 2:
        return 0.0
    # Student's t at 97.5 %: Cornish and Fisher's expansion, within 1 % from 4 degrees of freedom on.
    z, nu = 1.959964, n - 1
    exact = {1: 12.706, 2: 4.303, 3: 3.182}
    t = exact.get(nu) or (
        z
        + (z**3 + z) / (4 * nu)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * nu**3)
    )
    return t * statistics.stdev(values) / math.sqrt(n)


def _number(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if value and abs(value) < 100:
        return f"{value:.3g}"
    return f"{value:,.0f}"


@app.command()
def compare(
    name: Annotated[str, typer.Argument(metavar="SCENARIO", help="A name, or a file.")],
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B", help="Values of a key, or of `layout`; may be repeated."),
    ] = None,
    overrides: Overrides = None,
    costs: CostsFile = None,
    seed: Annotated[int | None, typer.Option(help="In place of the scenario's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a scenario under every combination of settings, over the same messages, and print a row for each.

    Without --vary, a scenario with local users compares the policies for pending deliveries by representation.
    """
    from sim import compare as comparing
    from sim import costs as costing

    said = list(overrides or [])
    if seed is not None:
        said.append(f"seed={seed}")
    try:
        wanted = comparing.variations(vary or [], scenarios.load(name, said))
        found = costing.load(costs) if costs is not None else costing.Costs()
        with _progress(comparing.messages(name, said, wanted)) as advance:
            rows = list(comparing.compare(name, said, wanted, costs=found, progress=advance))
    except ConfigError as error:
        raise _fail(error) from None
    if as_json:
        print(json.dumps([row.as_dict() for row in rows], allow_nan=False))
    else:
        comparing.table(rows)


@app.command()
def replay(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|LOG...",
            help="A run directory, or `latest`; or a mail log of Postfix, OpenSMTPD, Exim or this server: files, plain or"
            " compressed, in any order, or a directory of them.",
        ),
    ] = None,
    overrides: Overrides = None,
    representation: Annotated[
        str, typer.Option(help="Of a run: which of its servers; the first by default.")
    ] = "",
    kind: Annotated[
        str,
        typer.Option(help="Of a log: postfix, opensmtpd or exim; by default what it looks like."),
    ] = "",
    year: Annotated[
        int | None,
        typer.Option(min=1971, max=9998, help="Of a log whose lines do not say: of the first one."),
    ] = None,
    main_cf: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Of Postfix's log: its main.cf, or what postconf -n prints."
        ),
    ] = None,
    costs: CostsFile = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of a log: takes a figure of the queue, .svg or .png."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask what a recorded run, or the mail in a log, would have been with other settings.

    Keys of --set are the server's: envelope=full, limits.mta.max_conn_per_host=2.
    """
    from sim import costs as costing
    from sim.logs.command import is_log, replay_log
    from sim.replay import replay as replay_run
    from sim.replay import table

    said = names or ["latest"]
    of_log = is_log(said)
    if not of_log and (len(said) > 1 or kind or year is not None or main_cf):
        problem = "is a run, not a log: one at a time, and without the options of logs"
        raise _fail(ConfigError("replay", value=said[0], problem=problem))
    try:
        if of_log:
            show, found = replay_log(
                said,
                overrides or [],
                kind=kind,
                year=year,
                main_cf=main_cf,
                costs_file=costs,
                plot=plot,
            )
        else:
            found = replay_run(
                said[0],
                overrides or [],
                representation=representation,
                costs=costing.load(costs) if costs is not None else None,
            )
            show = table
    except ConfigError as error:
        raise _fail(error) from None
    if as_json:
        print(json.dumps(found, allow_nan=False))
    else:
        show(found)


@app.command("calibrate")
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
        raise _fail(error) from None
    path = out or directories[0] / "calibration.json"
    try:
        costing.save(costs, path)
    except OSError as error:
        raise _fail(ConfigError(str(path), problem=f"can't be written: {error.strerror}")) from None
    if as_json:
        print(path.read_text(encoding="utf-8"), end="")
    else:
        report(costs)
        print(f"written to {path}")


@app.command("perfetto")
def export_timeline(
    run_name: Annotated[
        str, typer.Argument(metavar="RUN", help="A run directory, a trace.jsonl, or `latest`.")
    ] = "latest",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="By default timeline.json.gz beside the trace."),
    ] = None,
    envelopes: Annotated[
        int, typer.Option(metavar="N", min=0, help="Envelopes drawn, the first ones.")
    ] = 2000,
    representation: Annotated[
        str, typer.Option(help="Which of the run's servers; the first by default.")
    ] = "",
) -> None:
    """Draw a run as a timeline that ui.perfetto.dev opens: connections, transactions, envelopes, gauges."""
    from sim.perfetto import export
    from sim.replay import trace_of

    try:
        trace = trace_of(run_name, representation)
        path = out or trace.with_name("timeline.json.gz")
        count = export(trace, path, envelopes_max=envelopes)
    except ConfigError as error:
        raise _fail(error) from None
    print(f"{count:,} events written to {path}; open it at https://ui.perfetto.dev")


app.command()(sweep)


@app.command("validate")
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
        raise _fail(error) from None
    with _bar() as advance:
        rows = list(validating.validate(found, experiments, seed=seed, progress=advance))
    if as_json:
        print(json.dumps(validating.report(found, rows), allow_nan=False))
    else:
        validating.table(rows, experiments)
    if not all(row.ok for row in rows):
        raise typer.Exit(1)


@contextmanager
def _bar() -> Iterator[Any]:
    """Show on a terminal which experiment runs, and how much of all is done."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda name, part: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda name, part: bar.update(task, completed=part, description=name)


@app.command("scenarios")
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


@app.command("layouts")
def list_layouts(as_json: AsJson = False) -> None:
    """List the layouts that memory can be reckoned in, with their sources."""
    from dataclasses import asdict

    from sim import layout as layouts

    every = [layouts.load(name) for name in layouts.available()]
    if as_json:
        print(json.dumps([asdict(each) for each in every], allow_nan=False))
        return
    for each in every:
        print(f"{each.name:<20} {each.title}")
        for kind, numbers in (("relayed", each.relayed), ("local", each.local)):
            states = (f"{state} {value:,.0f}" for state, value in asdict(numbers).items())
            print(f"    {kind:<8} {', '.join(states)} bytes an envelope")
        for source in each.sources:
            print(f"    {source.what}\n        {source.where}")
        for note in each.notes.values():
            print(f"    {note}")


def main() -> None:
    """Run the command."""
    catch_signals()
    app()


if __name__ == "__main__":
    main()
