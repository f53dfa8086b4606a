"""Our server on a disk that is slow or full when the bench says so: the same process, with another seam under it.

    python -m testbed.targets.disk STATE CONFIG

serves as ``mta serve --config CONFIG`` does. STATE is a file of one line that the bench replaces (`testbed.targets.ours`):
``well``, ``slow 20``, ``full``; it is read at each effect that it bears on, so that the next commit knows. These are the
effects by which the queue becomes durable (`mta.effects`); log, trace and what is read are left alone.

Slow: the effect happens, is timed, and its thread sleeps for the rest, as if the disk had taken so many times as long. That
is the writer's thread or one of those that write large bodies, never the event loop's. An effect counts for no more than the
median of its kind lately: a thread that waits for the interpreter or a processor is no slow disk, and its waits are far longer. Full: nothing is written; SQLite's
statements fail with SQLITE_FULL, files with ENOSPC, and no space is free.
"""

import errno
import os
import sqlite3
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import typer

from mta.__main__ import load, serve_until_told
from mta.core.settings import ConfigError
from mta.effects import Effects, Space

BODY: Final = frozenset(
    (op, site)
    for op in ("create", "write", "fsync", "fsync_dir")
    for site in ("queue.body", "queue.bodies")
)
"""What makes a large body durable; mta/queue/bodies.py."""

COMMIT: Final = frozenset(
    ("sqlite", site)
    for site in ("commit", "commit.part", "commit.commit", "probe", "probe.commit", "checkpoint")
)
"""What writes the database; mta/queue/database.py."""

WRITES: Final = BODY | COMMIT

RECENT: Final = 63
"""Effects of a kind that the median is of."""


class DiskEffects(Effects):
    """Real effects, whose writes of the queue are slow or fail."""

    def __init__(
        self, state: Path, *, sleep: Callable[[float], None] = time.sleep, **options: Any
    ) -> None:
        """Look into the file ``state`` from now on; one that is not there says that the disk is well.

        Args:
            state: what the disk is like.
            sleep: waits so many seconds, on the thread that writes.
            options: of `Effects`.
        """
        super().__init__(**options)
        self._state = state
        self._sleep = sleep
        self._began = threading.local()

    def point(self, op: str, site: str) -> None:
        """See `Effects.point`.

        Raises:
            OSError, sqlite3.OperationalError: the disk is full.
        """
        if (op, site) not in WRITES:
            return
        what, slower = self._read()
        if what == "full":
            if op == "sqlite":
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                error.sqlite_errorname = "SQLITE_FULL"
                raise error
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # Read once: an effect that began on a slow disk is slow to its end.
        self._began.effect = (op, site, slower, self.monotonic())

    def done(self, op: str, site: str) -> None:
        """See `Effects.done`; comes late on a slow disk."""
        if (op, site) not in WRITES:
            return
        began = self._began.__dict__.pop("effect", None)
        if began is None or began[:2] != (op, site):
            return
        took = self.monotonic() - began[3]
        recent = self._began.__dict__.setdefault(f"{op} {site}", deque(maxlen=RECENT))
        recent.append(took)
        if began[2] > 1.0:
            self._sleep(min(took, median(recent)) * (began[2] - 1.0))

    def space(self, path: Path, *, site: str) -> Space:
        """See `Effects.space`; there is none on a full disk."""
        found = super().space(path, site=site)
        if self._read()[0] == "full":
            return found._replace(free_bytes=0)
        return found

    def _read(self) -> tuple[str, float]:
        """Return what the disk is like, and how many times as long it takes."""
        try:
            what, *slower = self._state.read_text(encoding="ascii").split()
        except FileNotFoundError:
            return "well", 1.0
        return what, float(slower[0]) if what == "slow" else 1.0


def main(arguments: list[str]) -> int:
    """Serve until told to stop; return the exit status, as ``mta serve`` does."""
    state, config = map(Path, arguments)
    try:
        settings, source = load(config, None)
        serve_until_told(settings, source, DiskEffects(state, allow=settings.relay.allow))
    except ConfigError as error:
        sys.stderr.write(f"mta: {error}\n")
        return 2
    except typer.Exit as ended:
        return ended.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
