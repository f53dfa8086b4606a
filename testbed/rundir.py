"""A run is a directory: what is in it, and how to read it.

``scenario.toml``, ``summary.json``, ``ledger.json``, ``report.html``, and for each representation a directory with
``run.json`` (the bench's notes: when what happened), ``samples.csv`` and, unless the run was trimmed to be
shipped, the server's configuration, trace and log, the load's and the world's records; ``model.csv`` if the run was
predicted. Reports, notebooks and replays read only this.
"""

import csv
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sim.scenario import Scenario, load
from testbed.children import UsageError
from testbed.packages import PACKAGE_OF

Floats = npt.NDArray[np.float64]

LATEST: Final = "latest"
"""Name of the link to the run that ended last, beside the runs."""


@dataclass(slots=True)
class Notes:
    """What the bench wrote down about one server's run. Instants are seconds since the epoch."""

    run_id: str
    representation: str
    load_start: float
    """The instant that the schedule and the outages count from."""
    load_end: float
    """When the last message was settled."""
    drained: bool
    """The queue became empty before the bench gave up waiting."""
    server_status: int
    """Exit status."""
    load_status: int
    """Exit status; 1 if there were replies that nobody expected, 3 if the generator was late by itself."""
    load: dict[str, Any] = field(default_factory=dict)
    """The last line of the load's record: outcomes, how late the generator was."""
    world: dict[str, Any] = field(default_factory=dict)
    """What the world counted."""
    stats: dict[str, float] = field(default_factory=dict)
    """The server's counters and gauges at the end."""
    leaks: dict[str, float] = field(default_factory=dict)
    """Gauges that should have been 0 after the drain and were not."""
    operated: list[dict[str, Any]] = field(default_factory=list)
    """What the operator did, of the scenario's timeline: ``t``, ``at_s``, ``said``."""
    disk: list[dict[str, float]] = field(default_factory=list)
    """What clients got in each phase of a disk that the timeline made slow or full; see `testbed.diskphases`."""
    restarts: list[dict[str, Any]] = field(default_factory=list)
    """Each end of the server's process and its next start; see `testbed.operator.Operator.restarts`."""
    target: str = "ours"
    """Which server; ``representation`` is its name, if it is not ours."""


class Samples:
    """One samples.csv, or one model.csv: a column is an array of floats, one per instant."""

    def __init__(self, columns: Mapping[str, Floats]) -> None:
        self._columns = dict(columns)

    def __getitem__(self, name: str) -> Floats:
        """Return a column; NaN where there was no value.

        Raises:
            KeyError: there is no such column.
        """
        return self._columns[name]

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()), ()))

    @property
    def queue(self) -> Floats:
        """How long the queue was: in envelopes, or in messages if the server does not tell more."""
        return self["scheduler.envelope" if "scheduler.envelope" in self else "queue.message"]

    @property
    def names(self) -> list[str]:
        """All columns."""
        return list(self._columns)

    def at_or_after(self, seconds: float) -> "Samples":
        """Return the samples from an instant on."""
        chosen = self["t"] >= seconds
        return Samples({name: column[chosen] for name, column in self._columns.items()})

    def before(self, seconds: float) -> "Samples":
        """Return the samples up to an instant."""
        chosen = self["t"] < seconds
        return Samples({name: column[chosen] for name, column in self._columns.items()})

    def without(self, gaps: Sequence[tuple[float, float]]) -> "Samples":
        """Return the samples with one that has no values in the place of all in each gap, so that a line through them breaks."""
        found = self
        for begin, end in gaps:
            t = found["t"]
            kept = (t < begin) | (t >= end)
            at = int(np.count_nonzero(t < begin))
            middle = (begin + end) / 2
            found = Samples(
                {
                    name: np.insert(found[name][kept], at, middle if name == "t" else np.nan)
                    for name in found.names
                }
            )
        return found


def read_samples(path: Path, *, start: float = 0.0) -> Samples:
    """Return a table of numbers; ``t`` counts from ``start``. Text columns are left out.

    Raises:
        OSError: it can't be read.
        ValueError: it is no such table.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        names = next(reader, [])
        # A bench that was killed leaves half a line.
        rows = [row for row in reader if len(row) == len(names)]
    if "t" not in names:
        raise ValueError(f"{path}: no column t")
    columns: dict[str, Floats] = {}
    for i, name in enumerate(names):
        try:
            columns[name] = np.array([float(row[i]) if row[i] else math.nan for row in rows])
        except ValueError:
            continue
    columns["t"] = columns["t"] - start
    return Samples(columns)


def write_samples(path: Path, columns: Mapping[str, Floats]) -> None:
    """Write a table of numbers that `read_samples` reads back."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(
            [
                "" if math.isnan(value) else f"{value:.10g}" if name != "t" else f"{value:.3f}"
                for name, value in zip(columns, row, strict=True)
            ]
            for row in zip(*columns.values(), strict=True)
        )


class Run:
    """One run directory, read when asked."""

    def __init__(self, directory: Path) -> None:
        """Look at a directory.

        Raises:
            UsageError: it is not there, or is no run.
        """
        self.directory = directory
        if not directory.is_dir():
            raise UsageError(f"{directory}: there is no such run")
        if not (directory / "scenario.toml").is_file():
            raise UsageError(f"{directory}: not a run: it has no scenario.toml")

    @property
    def scenario(self) -> Scenario:
        """What was run.

        Raises:
            ConfigError: its file is damaged.
        """
        return load(self.directory / "scenario.toml")

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        return self._json("summary.json")

    @property
    def ledgers(self) -> dict[str, Any]:
        """The content of ledger.json: an account for each representation."""
        return self._json("ledger.json")

    @property
    def representations(self) -> list[str]:
        """Those that were run to their end, in the order of the scenario; or the other server that was."""
        return [
            name
            for name in (*self.scenario.representations, *PACKAGE_OF)
            if (self.directory / name / "run.json").is_file()
        ]

    def notes(self, representation: str) -> Notes:
        """Return what the bench wrote down about one of them."""
        name = f"{representation}/run.json"
        try:
            return Notes(**self._json(name))
        except TypeError as error:
            raise UsageError(f"{self.directory / name}: not the notes of a run: {error}") from error

    def samples(self, representation: str) -> Samples:
        """Return what was measured; ``t`` counts from the start of the load."""
        start = self.notes(representation).load_start
        path = self.directory / representation / "samples.csv"
        try:
            return read_samples(path, start=start)
        except OSError as error:
            raise UsageError(f"{path}: can't be read: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(str(error)) from error

    def first_process(self, representation: str) -> Samples:
        """Return what was measured until the server's process ended for the first time, if the timeline let it."""
        samples, restarts = self.samples(representation), self.notes(representation).restarts
        return samples.before(restarts[0]["gone_s"]) if restarts else samples

    def prediction(self, representation: str) -> Samples | None:
        """Return what the model says of the same; None if it was not asked."""
        path = self.directory / representation / "model.csv"
        return read_samples(path) if path.is_file() else None

    def _json(self, name: str) -> dict[str, Any]:
        path = self.directory / name
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{path}: can't be read: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"{path}: not JSON") from error
        return content


SHIPPED: Final = (
    "scenario.toml",
    "begun.json",
    "footprints.json",
    "syncs.json",
    "predictions.json",
    "ledger.json",
)
"""Files of a run that a report is made of, beside those of each representation. Not all runs have all."""

SHIPPED_GAUGES: Final = (
    "smtp.message",
    "queue.message",
    "scheduler.envelope",
    "scheduler.envelope.pending",
    "scheduler.envelope.inflight",
    "scheduler.delivery.ok",
    "scheduler.delivery.tempfail",
    "mta.session",
)
"""Gauges that a trimmed run keeps; what was measured from outside it keeps whole."""


def trim(run: Run, target: Path) -> Run:
    """Copy what a report, a notebook and a table need of a run: without traces, logs and records, some 100 kB.

    Raises:
        UsageError: the target is there already.
    """
    try:
        target.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"{target}: can't be made: {(error.strerror or '').lower()}") from None
    for name in SHIPPED:
        if (run.directory / name).is_file():
            shutil.copyfile(run.directory / name, target / name)
    for name in run.representations:
        (target / name).mkdir()
        for each in ("run.json", "model.csv"):
            if (run.directory / name / each).is_file():
                shutil.copyfile(run.directory / name / each, target / name / each)
        with (
            (run.directory / name / "samples.csv").open(encoding="utf-8", newline="") as source,
            (target / name / "samples.csv").open("w", encoding="utf-8", newline="") as out,
        ):
            rows = csv.reader(source)
            heads = next(rows, [])
            kept = [
                i
                for i, head in enumerate(heads)
                if "." not in head or head in SHIPPED_GAUGES or head.startswith("process.")
            ]
            writer = csv.writer(out, lineterminator="\n")
            writer.writerows(
                [row[i] for i in kept] for row in [heads, *rows] if len(row) == len(heads)
            )
    return Run(target)


def find(name: str, runs: Path) -> Path:
    """Return the directory that a name means: a path, or a run below ``runs``, or ``latest``.

    Raises:
        UsageError: there is none.
    """
    for candidate in (Path(name), runs / name):
        if candidate.is_dir():
            return candidate
    known = ", ".join(entry.name for entry in _recent(runs))
    raise UsageError(
        f"{name}: there is no such run" + (f"; the latest are {known}" if known else "")
    )


def _recent(runs: Path, count: int = 5) -> Iterator[Path]:
    if not runs.is_dir():
        return
    found = [entry for entry in runs.iterdir() if (entry / "scenario.toml").is_file()]
    found = [entry for entry in found if not entry.is_symlink()]
    yield from sorted(found, key=lambda entry: entry.stat().st_mtime, reverse=True)[:count]


def link_latest(directory: Path) -> None:
    """Let ``latest`` beside a run point to it, in one step: whoever looks finds the one or the other."""
    link = directory.parent / LATEST
    if link.exists() and not link.is_symlink():
        return  # somebody's own directory of that name
    fresh = directory.parent / f".{LATEST}.{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(directory.name)
    fresh.replace(link)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    fresh.replace(path)
