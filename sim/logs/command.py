"""`sim replay LOG`: which of its arguments are logs, and what its options mean."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mta.core.settings import ConfigError
from sim import costs as costing
from sim.logs import maincf
from sim.logs.replay import Replay, table

PLOTS = (".svg", ".png")
"""What a figure can be."""
RUN_FILES = ("scenario.toml", "trace.jsonl")
"""What makes a directory a run."""


def is_log(names: Sequence[str]) -> bool:
    """Return whether names mean a log: files, or directories that are no runs and have files.

    A name that is neither is left to those who look for runs.
    """
    for name in names:
        path = Path(name)
        if path.is_dir():
            if any((path / each).exists() for each in RUN_FILES):
                return False
            if not any(each.is_file() for each in path.iterdir()):
                return False
        elif not path.is_file():
            return len(names) > 1 or path.suffix in (".log", ".gz", ".bz2", ".xz")
    return True


def replay_log(
    names: Sequence[str],
    overrides: Sequence[str],
    *,
    kind: str = "",
    year: int | None = None,
    host: str = "",
    main_cf: Path | None = None,
    costs_file: Path | None = None,
    plot: Path | None = None,
) -> tuple[Callable[[dict[str, Any]], None], dict[str, Any]]:
    """Replay a log; return what prints it, and what came out. ``plot`` takes a figure of the queue, as its name's end says.

    Raises:
        ConfigError: a file or an option is wrong.
    """
    server: Mapping[str, Any] = {}
    if main_cf is not None:
        if kind not in ("", "postfix"):
            raise ConfigError(
                "--main-cf", value=str(main_cf), problem=f"is Postfix's, not {kind}'s"
            )
        kind = "postfix"
        server = maincf.load(main_cf)
    costs = costing.load(costs_file) if costs_file is not None else None
    if plot is not None and plot.suffix not in PLOTS:
        raise ConfigError("--plot", value=str(plot), problem=f"must end in {' or '.join(PLOTS)}")
    replayed = Replay(names, kind=kind, year=year, host=host, server=server, costs=costs)
    found = replayed.compare(overrides)
    if plot is not None:
        _draw(replayed, plot)
    return table, found


def _draw(replayed: Replay, path: Path) -> None:
    # Here, because matplotlib takes longer than most replays.
    from sim.figures import png, svg
    from sim.logs import plots

    figure = plots.queue(replayed, replayed.results)
    try:
        path.write_bytes(png(figure) if path.suffix == ".png" else svg(figure))
    except OSError as error:
        problem = f"can't be written: {error.strerror}"
        raise ConfigError("--plot", value=str(path), problem=problem) from None
