"""`sim run`: what does the model make of a scenario?"""

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from mta.core.settings import ConfigError
from sim import scenario as scenarios
from sim.commands.bars import messages_bar
from sim.commands.options import AsJson, CostsFile, Overrides, fail
from sim.commands.runtable import show
from sim.settings import server_config
from sim.wholefile import none_left, whole


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
        raise fail(error) from None
    if as_json:
        found: Any = summaries[0] if replications == 1 else summaries
        print(json.dumps(found, allow_nan=False))
        return
    show(summaries)
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
    with messages_bar(messages) as advance:
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
