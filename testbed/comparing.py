"""Runs side by side: the same quantities of several servers, settings or days, with median and range over repeats.

A comparison is a table of cells, one for each scenario and contender, each of which has some runs. It is made from run
directories that are there (`testbed compare`), or makes them (`testbed.sidebyside`). ``compare.json`` has all that the report and
a script need. Nothing is averaged over scenarios, and no score is made of it.
"""

import gzip
import json
import math
import statistics
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from sim.scenario import Scenario
from testbed.children import UsageError
from testbed.quantities import QUANTITIES, value_of
from testbed.rundir import Run
from testbed.summary import AGENT, STEADY_ENVELOPES, SUMMED

RESULT: Final = "compare.json"
SCHEMA: Final = 1

COLUMNS: Final = (
    "messages_per_s",
    "accepted_per_s",
    "cpu_per_message",
    "foreign_cpu",
    "idle_pss",
    "pss_per_envelope",
    "uss_per_envelope",
    "store_per_envelope",
    "peak_pss",
    "peak_queue",
    "drain_time",
    "p50_accepted",
    "p99_accepted",
    "p50_delivered",
    "p99_delivered",
    "fsyncs_per_message",
    "deferred_per_recipient",
    "refused",
    *SUMMED,
    "reordered",
)
"""What is compared, by the names of `testbed.quantities`."""

POINTS_MAX: Final = 200
"""Of each curve that is kept."""


@dataclass(slots=True)
class Cell:
    """One contender in one scenario."""

    scenario: str
    label: str
    """A target, a value of a sweep, or a run's name."""
    runs: list[tuple[Run, str]] = field(default_factory=list)
    """Run and server in it; several are repeats."""


def cells_of(runs: Iterable[Run]) -> list[Cell]:
    """Return the cells of some runs: those of the same scenario, settings and server are repeats of each other.

    Raises:
        UsageError: a run is damaged.
    """
    found: dict[tuple[str, str], Cell] = {}
    same: dict[tuple[str, str, str], str] = {}
    for run in runs:
        scenario = run.scenario
        toml = (run.directory / "scenario.toml").read_text(encoding="utf-8")
        for server in run.representations:
            identity = (scenario.name, server, toml)
            label = same.get(identity)
            if label is None:
                label = server
                if (scenario.name, label) in found:
                    # The same server with other settings: its directory is what tells them apart.
                    label = f"{server}, {run.directory.name}"
                same[identity] = label
            cell = found.setdefault((scenario.name, label), Cell(scenario.name, label))
            cell.runs.append((run, server))
    if not found:
        raise UsageError("compare: no run has come to its end")
    return list(found.values())


def compared(
    cells: Sequence[Cell], *, syncs: Mapping[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """Return the content of compare.json.

    Args:
        cells: in the order in which they are shown.
        syncs: what `testbed.syncs` counted of contenders, by label, if that was done apart from the runs.
        more: title, command, host, versions and so on, as they are to be in it.

    Raises:
        UsageError: a run is damaged.
    """
    sections: dict[str, dict[str, Any]] = {}
    for cell in cells:
        run, _ = cell.runs[0]
        scenario = run.scenario
        section = sections.setdefault(
            cell.scenario,
            {
                "name": scenario.name,
                "title": scenario.title,
                "question": scenario.question.strip(),
                "healthy": scenario.healthy.strip(),
                "load": load_of(scenario),
                "cells": [],
            },
        )
        try:
            section["cells"].append(_cell(cell, (syncs or {}).get(cell.label)))
        except (KeyError, TypeError) as error:
            where = ", ".join(str(each.directory) for each, _ in cell.runs)
            raise UsageError(f"{where}: damaged: {cell.label}: no {error}") from error
    return {
        "schema": SCHEMA,
        **more,
        "syncs": dict(syncs or {}),
        "scenarios": list(sections.values()),
    }


def load_of(scenario: Scenario) -> dict[str, Any]:
    """Return what a reader of the numbers has to know of the load."""
    load = scenario.load
    return {
        "messages": load.count,
        "rate": load.rate if load.loop == "open" else None,
        "clients": load.clients,
        "keep": load.keep,
        "drain_s": scenario.drain_s,
        "outage": next(
            (
                [each["from_s"], each["to_s"]]
                for destination in scenario.destinations
                for each in destination.behaviours
                if each.get("kind") == "outage" and "from_s" in each and "to_s" in each
            ),
            None,
        ),
    }


def _cell(cell: Cell, synced: Mapping[str, Any] | None) -> dict[str, Any]:
    parts: list[Mapping[str, Any]] = []
    failures: list[str] = []
    unhealthy: list[str] = []
    for run, server in cell.runs:
        summary = run.summary
        parts.append(summary["representations"][server])
        failures += [each for each in summary["failures"] if each.startswith(f"{server}: ")]
        unhealthy += [
            f"{each['condition']}: {each['value']}"
            for each in summary.get("expected", [])
            # What another server can't tell is absent, not wrong.
            if each["server"] == server and each["holds"] is False
        ]
    first, server = cell.runs[0]
    quantities = {name: _spread(name, parts) for name in COLUMNS}
    if synced is not None:
        quantities["fsyncs_per_message"] = _spread(
            "fsyncs_per_message", [{"fsyncs_per_message": synced["sum"]}]
        )
    return {
        "label": cell.label,
        "target": parts[0].get("target", "ours"),
        "repeats": len(parts),
        "runs": [str(run.directory) for run, _ in cell.runs],
        "quantities": quantities,
        "queue_unit": parts[0]["queue_unit"],
        "drained": [bool(part["drained"]) for part in parts],
        "watched_s": [part.get("watched_s") for part in parts],
        "agents": parts[0].get("agents") or {},
        "errors": {
            name: parts[0].get(f"bytes_per_envelope_{name}_stderr") for name in ("pss", "uss")
        },
        "failures": failures,
        "unhealthy": sorted(set(unhealthy)),
        "curves": _curves(first, server),
    }


def _spread(name: str, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return median and range of a quantity over repeats; the median of an even number is one that occurred."""
    values = []
    for part in parts:
        value = value_of(part, name)
        if name in _SLOPES and not _tells(part, value, _SLOPES[name]):
            value = None
        if value is not None:
            values.append(value)
    if not values:
        return {"median": None, "low": None, "high": None, "values": []}
    return {
        "median": statistics.median_low(values),
        "low": min(values),
        "high": max(values),
        "values": values,
    }


_SLOPES: Final[Mapping[str, str]] = {
    "pss_per_envelope": "bytes_per_envelope_pss_stderr",
    "uss_per_envelope": "bytes_per_envelope_uss_stderr",
}
"""Slopes of memory on the queue, and the key of the standard error of each."""


def _tells(part: Mapping[str, Any], slope: float | None, error: str) -> bool:
    """Return whether a slope of memory on the queue says what an envelope costs."""
    if slope is None or (part["peak_queue"] or 0) < STEADY_ENVELOPES:
        return False
    # Memory that moved for other reasons, as processes that came and went, has any slope.
    return slope > 2 * (part.get(error) or 0.0)


def _curves(run: Run, server: str) -> dict[str, list[float | None]]:
    """Return queue and memory over time, thinned."""
    samples = run.samples(server).at_or_after(0.0)
    step = max(1, math.ceil(len(samples) / POINTS_MAX))
    queue = samples["scheduler.envelope" if "scheduler.envelope" in samples else "queue.message"]
    kept = {
        "t": _plain(samples["t"][::step], 2),
        "queued": _plain(queue[::step], 0),
        "pss_bytes": _plain(samples["pss_bytes"][::step], 0),
    }
    for name in samples.names:
        if name.startswith(AGENT) and name.endswith(".uss_bytes"):
            kept[name] = _plain(samples[name][::step], 0)
    return kept


def _plain(values: Any, digits: int) -> list[float | None]:
    return [round(float(each), digits) if np.isfinite(each) else None for each in values]


def as_summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a comparison in the form in which conditions are checked: every run of every cell is a server."""
    parts: dict[str, Any] = {}
    expected: list[dict[str, Any]] = []
    for section in result["scenarios"]:
        for cell in section["cells"]:
            for number, directory in enumerate(cell["runs"]):
                summary = Run(Path(directory)).summary
                name = f"{section['name']}, {cell['label']}" + (f", {number + 1}" if number else "")
                server = next(iter(summary["representations"]))
                parts[name] = (
                    summary["representations"].get(cell["label"])
                    or (summary["representations"][server])
                )
                expected += [{**each, "server": name} for each in summary.get("expected", [])]
    return {"representations": parts, "expected": expected}


def failures_of(result: Mapping[str, Any]) -> list[str]:
    """Return what went wrong in any run, each in one line."""
    return [
        f"{section['name']}, {cell['label']}: {each}"
        for section in result["scenarios"]
        for cell in section["cells"]
        for each in cell["failures"]
    ] + list(result.get("failed", []))


def leader(section: Mapping[str, Any], name: str) -> str:
    """Return the label of the best contender at a quantity, or nothing if it is nobody's.

    ranges that overlap are a draw, and so
    is what was run once.
    """
    better = QUANTITIES[name].better
    found = [
        (cell["quantities"][name], cell["label"])
        for cell in section["cells"]
        if cell["quantities"][name]["median"] is not None
    ]
    # A single run has no range: who leads may be chance.
    once = any(len(each["values"]) < 2 for each, _ in found)
    if len(found) < 2 or not better or once:
        return ""
    found.sort(key=lambda each: each[0]["median"], reverse=better == "more")
    (first, label), (second, _) = found[0], found[1]
    apart = first["low"] > second["high"] if better == "more" else first["high"] < second["low"]
    return label if apart else ""


PACKED: Final = RESULT + ".gz"
"""The same, compressed, as it is shipped: without the runs that it was made of."""


def result_file(directory: Path) -> Path | None:
    """Return where a directory has its comparison; None if it has none."""
    found = (directory / name for name in (RESULT, PACKED))
    return next((path for path in found if path.is_file()), None)


def read(path: Path) -> dict[str, Any]:
    """Return a comparison that was written: `RESULT` or `PACKED`.

    Raises:
        UsageError: it is damaged.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        content: dict[str, Any] = json.loads(data)
        if content["schema"] != SCHEMA:
            raise UsageError(f"{path}: schema {content['schema']}, not {SCHEMA}")
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: no comparison") from error
    return content


def trim(directory: Path, target: Path) -> Path:
    """Write a comparison compressed and without the places of its runs, to be shipped; return the new file.

    Raises:
        UsageError: it is damaged, or the target is there already.
    """
    source = result_file(directory)
    assert source is not None, "whoever trims has looked"
    result = read(source)
    for section in result["scenarios"]:
        for cell in section["cells"]:
            cell["runs"] = [Path(run).name for run in cell["runs"]]
    try:
        target.mkdir(parents=True)
        path = target / PACKED
        text = json.dumps(result, separators=(",", ":"), allow_nan=False)
        # The same content is the same file, whenever it was made.
        path.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))
    except OSError as error:
        raise UsageError(f"{target}: can't be made: {(error.strerror or '').lower()}") from None
    return path
