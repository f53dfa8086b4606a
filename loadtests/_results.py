"""Where the results of a run go: every file can be written, or nothing is sent; what is in them at the end.

Files of an earlier run are emptied at the start, lest what a killed run left behind be taken for its result.
"""

from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadtests import _tally
from loadtests._record import Recorder
from mta.core.settings import ConfigError


def prepare(options: Namespace, *, distributed: bool) -> Recorder | None:
    """Open or empty the files that the options name; return the record, unless workers write it.

    Raises:
        ConfigError: one of them can't be written.
    """
    for option, name in (("--histograms", options.histograms), ("--summary", options.summary)):
        if name:
            try:
                Path(name).write_bytes(b"")
            except OSError as error:
                raise _unwritable(option, name, error) from error
    if not options.record:
        return None
    if not distributed:
        return recorder(options.record)
    # Each worker has a part of its own; whether there can be one is known before they start.
    recorder(part_of(options.record, 0)).close()
    return None


def part_of(record: str, worker: int) -> str:
    """Return the file of a worker's part of the record: ``run.0.jsonl`` of ``run.jsonl``."""
    path = Path(record)
    return str(path.with_name(f"{path.stem}.{worker}{path.suffix}"))


def recorder(name: str) -> Recorder:
    """Open a record.

    Raises:
        ConfigError: it can't be written.
    """
    try:
        return Recorder(Path(name))
    except OSError as error:
        raise _unwritable("--record", name, error) from error


def _unwritable(option: str, name: str, error: OSError) -> ConfigError:
    return ConfigError(option, value=name, problem=f"can't be written: {error.strerror}")


def write(
    options: Namespace, histograms: Mapping[str, Any], started: float, summary: Mapping[str, Any]
) -> None:
    """Write what the options ask for at the end of a run.

    Raises:
        OSError: one of the files can't be written any more.
    """
    if options.histograms:
        _tally.write_log(Path(options.histograms), histograms, started)
    if options.summary:
        Path(options.summary).write_bytes(msgspec.json.encode(summary) + b"\n")


def summed(ends: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how a run of several workers ended: counts added up, lag and delay of the worst, and each one's own end."""
    outcomes: Counter[str] = Counter()
    for end in ends:
        outcomes.update(end["outcomes"])
    counts = ("messages", "settled", "accepted_envelopes", "retries")
    return {
        "kind": "end",
        "run": ends[0]["run"],
        "complete": all(end["complete"] for end in ends),
        "valid": all(end["valid"] for end in ends),
        **{name: sum(end[name] for end in ends) for name in counts},
        "outcomes": dict(sorted(outcomes.items())),
        **{name: _worst([end[name] for end in ends]) for name in ("generator_lag_s", "pulse_s")},
        "workers": list(ends),
    }


def _worst(spreads: Sequence[Mapping[str, float] | None]) -> Mapping[str, float] | None:
    known = [each for each in spreads if each is not None]
    return max(known, key=lambda each: each["p99"]) if known else None
