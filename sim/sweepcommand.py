"""`sim sweep`: which limits should be set? Runs, progress, the table on a terminal, the report."""

import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from mta.core.settings import ConfigError
from sim import costs as costing
from sim.ending import interrupted
from sim.executors import JOBS_MAX, Cluster, Executor, Here, Pool, WorkerLostError
from sim.pareto import WITHIN
from sim.sweep import POINTS_MAX, REPLICATIONS_MAX, Sampling, design
from sim.sweepcache import FOLDER, Cache
from sim.sweepresult import check_options, result_of
from sim.sweeprun import RUN_S_MAX, Found, Progress, carry_out_plan, make_plan
from sim.sweepstats import LATENCY, MEMORY
from sim.sweepsubject import subject
from sim.sweepwords import listed, mib, seconds, setting_of, settings_lines
from sim.wholefile import whole

SAY_EVERY_S: Final = 10.0
"""Seconds between lines of progress where there is no terminal."""

SHOWN_MAX: Final = 60
"""Rows of the table on a terminal; beyond, those of the front. The report has all."""


def sweep(
    name: Annotated[
        str,
        typer.Argument(metavar="SCENARIO|RUN", help="A scenario, a run directory, or `latest`."),
    ],
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B|LOW..HIGH[:log]",
            help="Values of a key, or of `layout`; a range with --sample. May be repeated; without it, what the scenario varies.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override one key at all points."),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Draw N points instead of running the whole grid."),
    ] = None,
    sampling: Annotated[
        str, typer.Option(help="How they are drawn: latin (hypercube), or random.")
    ] = "latin",
    replications: Annotated[
        int,
        typer.Option(
            metavar="R", help=f"Runs of each point, over other mail; {REPLICATIONS_MAX} at most."
        ),
    ] = 3,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Of mail, hosts and sample, in place of the scenario's."),
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(
            "--calibration", "--costs", metavar="FILE", help="What `sim calibrate` has written."
        ),
    ] = None,
    representation: Annotated[
        str, typer.Option(help="Which of a run's servers; the first by default.")
    ] = "",
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=JOBS_MAX, help="Processes; as many as processors by default."
        ),
    ] = None,
    scheduler: Annotated[
        str, typer.Option(metavar="tcp://HOST:PORT", help="Run on this Dask cluster instead.")
    ] = "",
    anywhere: Annotated[
        bool, typer.Option("--anywhere", help="The scheduler need not be on this machine.")
    ] = False,
    cache: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Keeps runs that were made; a sweep that was killed goes on."
        ),
    ] = FOLDER,
    within: Annotated[
        float,
        typer.Option(
            metavar="PART", help="Recommend the least memory with p95 within this part of the best."
        ),
    ] = WITHIN,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT",
            help="Recommend points with some of: lost, failed, refused, turned_away, sent_back, queued.",
        ),
    ] = None,
    points_max: Annotated[
        int,
        typer.Option(metavar="N", min=1, max=100_000, help="More points than this are an error."),
    ] = POINTS_MAX,
    run_max: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0.001, help="A run that takes longer has no result."),
    ] = RUN_S_MAX,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Takes sweep.json and report.html; runs/sweep-NAME by default."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Run a scenario, or a recorded run's mail, under many settings; recommend limits by memory and latency.

    Every point has the same mail and hosts. Exit status 1 if no point qualifies.
    """
    executor: Executor | None = None
    found: Found | None = None
    done = 0
    try:
        costed = costing.load(costs) if costs is not None else None
        of = subject(name, overrides or [], costs=costed, seed=seed, representation=representation)
        asked = design(
            over or [],
            vary=of.scenario.vary,
            sample=sample,
            sampling=_sampling(sampling),
            seed=of.scenario.seed,
            points_max=points_max,
        )
        plan = make_plan(of, asked, replications=replications, run_s_max=run_max)
        # What can't be asked for is said before the first run, and what can't be written, too.
        check_options(within, allow or [])
        folder = out or Path("runs") / f"sweep-{of.scenario.name}"
        _make(folder)
        kept = Cache(cache)
        executor = _executor(jobs, scheduler, anywhere, plan.runs)
        with _shown() as show:

            def tell(at: Progress) -> None:
                nonlocal done
                done = at.done
                show(at)

            found = carry_out_plan(plan, executor, kept, progress=tell)
        command = _command(
            name,
            {"--over": over, "--set": overrides, "--allow": allow},
            {
                "--sample": sample,
                "--sampling": sampling if sample else None,
                "--replications": replications,
                "--seed": of.scenario.seed,
                "--calibration": costs,
                "--representation": representation or None,
                "--within": within if within != WITHIN else None,
            },
        )
        result = result_of(found, within=within, allow=allow or [], command=command)
        _write(folder, result)
    except ConfigError as error:
        typer.echo(f"sim: {error}", err=True)
        raise typer.Exit(2) from None
    except WorkerLostError as error:
        typer.echo(f"sim: {error}; {done} runs are kept, the same command goes on", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        interrupted("sim", f"; {done} runs are kept, the same command goes on")
    finally:
        if isinstance(executor, Cluster):
            executor.close()
    for note in _notes(kept):
        typer.echo(f"sim: {note}", err=True)
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
    else:
        _print(result, found, folder)
    if result["chosen"] is None:
        raise typer.Exit(1)


def _sampling(text: str) -> Sampling:
    if text == "latin":
        return "latin"
    if text == "random":
        return "random"
    raise ConfigError("--sampling", value=text, problem="must be latin or random")


def _executor(jobs: int | None, scheduler: str, anywhere: bool, runs: int) -> Executor:
    if scheduler:
        if jobs is not None:
            raise ConfigError("--jobs", value=jobs, problem="is not for a cluster: it has its own")
        return Cluster(scheduler, anywhere=anywhere)
    wanted = min(jobs or len(os.sched_getaffinity(0)), runs, JOBS_MAX)
    return Pool(wanted) if wanted > 1 else Here()


def _command(
    name: str, lists: Mapping[str, Sequence[str] | None], single: Mapping[str, object]
) -> str:
    """Return what makes the same again, wherever it is run."""
    words = ["sim", "sweep", name]
    for option, values in lists.items():
        for value in values or ():
            words += [option, value]
    for option, said in single.items():
        if said is not None:
            words += [option, f"{said:g}" if isinstance(said, float) else str(said)]
    return shlex.join(words)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        usable = os.access(folder, os.W_OK | os.X_OK)
    except OSError as error:
        problem = f"can't be made: {error.strerror}"
        raise ConfigError("--out", value=str(folder), problem=problem) from None
    if not usable:
        raise ConfigError("--out", value=str(folder), problem="can't be written: Permission denied")


def _write(folder: Path, result: dict[str, Any]) -> None:
    from sim.sweepreport import html

    texts = {
        "sweep.json": json.dumps(result, indent=1, allow_nan=False) + "\n",
        "report.html": html(result),
    }
    for name, text in texts.items():
        try:
            with whole(folder / name) as path:
                path.write_text(text, encoding="utf-8")
        except OSError as error:
            problem = f"can't be written: {error.strerror}"
            raise ConfigError(str(folder / name), problem=problem) from None


def _notes(kept: Cache) -> Iterator[str]:
    if kept.damaged:
        yield f"{kept.damaged} damaged entries of {kept.folder} were computed again"
    if kept.problem:
        yield f"the cache can't be written, what was run is not kept: {kept.problem}"


# ---- on a terminal


@contextmanager
def _shown() -> Iterator[Callable[[Progress], None]]:
    """Show how far it is: a bar on a terminal, elsewhere a line now and then."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        said_at = time.perf_counter()

        def line(at: Progress) -> None:
            nonlocal said_at
            now = time.perf_counter()
            if now - said_at >= SAY_EVERY_S and at.done < at.total:
                said_at = now
                typer.echo(f"sim: {describe(at)}", err=True)

        yield line
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda at: bar.update(
            task, total=at.total, completed=at.done, description=describe(at)
        )


def describe(at: Progress) -> str:
    """Return how far a sweep is, in words."""
    text = f"{at.done:,} of {at.total:,} runs"
    if at.cached:
        text += f", {at.cached:,} kept from before"
    if at.left_s is not None:
        minutes, left = divmod(round(at.left_s), 60)
        text += f", about {minutes} min {left} s left" if minutes else f", about {left} s left"
    return text


def _print(result: dict[str, Any], found: Found, folder: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    points = listed(result)
    shown = points if len(points) <= SHOWN_MAX else _few(result)
    title = f"{result['scenario']}: {len(points)} points, {result['replications']} runs of each, seed {result['seed']}"
    sheet = Table(title=title, title_justify="left")
    for axis in result["axes"]:
        sheet.add_column(escape(axis["short"].rpartition(".")[2]))
    for head in ("p95", "peak memory", "drain, s", "peak\nqueued", "deferred", ""):
        sheet.add_column(head, justify="right" if head else "left")
    for point in shown:
        cells = [escape(setting_of(result, point, axis["key"])) for axis in result["axes"]]
        told = point["means"][LATENCY]["mean"] is not None
        cells += [seconds(point, LATENCY) if told else "-"]
        cells += [mib(point) if point["means"][MEMORY]["mean"] is not None else "-"]
        for name in ("drain_time_s", "peak_queued", "deferred"):
            mean = point["means"][name]["mean"]
            cells.append("-" if mean is None else f"{mean:,.1f}" if mean < 100 else f"{mean:,.0f}")
        sheet.add_row(*cells, mark(result, point))
    console = Console()
    if not console.is_terminal:
        # A file has no width to fit into.
        console.width = 200
    console.print(sheet)
    for line in result["words"]:
        typer.echo(line)
    for line in settings_lines(result):
        typer.echo(f"    {line}")
    for note in result["notes"]:
        typer.echo(f"not in the model: {note}" if not result["recorded"] else f"note: {note}")
    made = f"{found.ran:,} runs made, {found.cached:,} kept from before"
    typer.echo(f"{made}; {folder / 'report.html'}")


def _few(result: dict[str, Any]) -> list[Any]:
    wanted = {0, *result["front"]}
    return [point for point in result["points"] if point["number"] in wanted]


def mark(result: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    """Return what is to be said of a point in a word or two."""
    number = point["number"]
    if number == result["chosen"]:
        return "recommended" if number else "now, recommended"
    if not number:
        return "; ".join(["now", *point["why_not"]])
    if number in result["front"]:
        return "front"
    return "; ".join(point["why_not"])
