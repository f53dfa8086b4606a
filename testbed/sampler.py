"""Watches processes while a run goes on: memory, CPU time, descriptors, and the server's gauges.

Five times a second, on a thread of its own, from outside: memory out of ``/proc/PID/smaps_rollup`` (RSS, PSS,
USS), so that a server in any language is measured in the same way. Each line of ``samples.csv`` has one instant,
the one at which memory was read; a gauge that could not be had is an empty cell, never a guess.
"""

import contextlib
import csv
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from _csv import Writer

INTERVAL_S: Final = 0.2
"""Between two samples."""

MEASURED: Final = (
    "t",
    "phase",
    "rss_bytes",
    "pss_bytes",
    "uss_bytes",
    "cpu_s",
    "fds",
    "threads",
    "load_cpu_s",
    "world_cpu_s",
    "machine_cpu_s",
    "gauges_s",
    "children_cpu_s",
)
"""The first columns of samples.csv; those of the server's gauges follow, by their own names.

``t``: seconds since the epoch. ``phase``: what the bench was doing. ``cpu_s``, ``load_cpu_s``, ``world_cpu_s``: user and
system time since the process began, of the server, the load and the world. ``machine_cpu_s``: time that all processors of the
machine were busy, whoever with. ``gauges_s``: how long the server took to
answer, which is how far its event loop was behind. ``children_cpu_s``: of the commands that the server started and that
have ended.
"""

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PROC: Final = Path("/proc")


class Memory(NamedTuple):
    """Memory of processes, in bytes."""

    rss: int
    """Resident, pages shared with others counted in full."""
    pss: int
    """Resident, pages shared with others counted in part."""
    uss: int
    """Resident, private pages only: what would be free if it ended."""


class Usage(NamedTuple):
    """What processes used, summed."""

    memory: Memory
    cpu_s: float
    fds: int
    threads: int
    children_cpu_s: float = 0.0


def memory_of(pid: int) -> Memory:
    """Return the memory of one process.

    Raises:
        OSError: there is no such process, or it is not ours to look at.
    """
    kib = {"Rss:": 0, "Pss:": 0, "Private_Clean:": 0, "Private_Dirty:": 0}
    for line in (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        words = line.split()
        if words[0] in kib:
            kib[words[0]] = int(words[1])
    private = kib["Private_Clean:"] + kib["Private_Dirty:"]
    return Memory(kib["Rss:"] * 1024, kib["Pss:"] * 1024, private * 1024)


def cpu_s_of(pid: int) -> float:
    """Return user and system time of one process, in seconds with the kernel's grain (10 ms).

    Raises:
        OSError: there is no such process.
    """
    return _cpu_s(_stat(pid))


def usage_of(pids: Sequence[int]) -> Usage:
    """Return what processes use, summed.

    Raises:
        OSError: one of them is gone.
    """
    rss = pss = uss = fds = threads = 0
    cpu_s = children_cpu_s = 0.0
    for pid in pids:
        memory, stat = memory_of(pid), _stat(pid)
        rss, pss, uss = rss + memory.rss, pss + memory.pss, uss + memory.uss
        cpu_s += _cpu_s(stat)
        children_cpu_s += (int(stat[13]) + int(stat[14])) / _TICKS_PER_S
        threads += int(stat[17])
        fds += sum(1 for _ in (_PROC / str(pid) / "fd").iterdir())
    return Usage(Memory(rss, pss, uss), round(cpu_s, 3), fds, threads, round(children_cpu_s, 3))


def usage_of_tree(pids: Sequence[int], reaped_s: float = 0.0) -> Usage:
    """Return what a server of many processes uses: processes may end meanwhile.

    Its time is that of the living and of the dead: each knows what the children took that it has waited for.

    Args:
        pids: its processes.
        reaped_s: seconds of those that none of these has waited for.

    Raises:
        OSError: all of them are gone.
    """
    rss = pss = uss = fds = threads = 0
    cpu_s = reaped_s
    found = False
    for pid in pids:
        try:
            one = usage_of([pid])
        except OSError:
            continue
        found = True
        rss, pss, uss = rss + one.memory.rss, pss + one.memory.pss, uss + one.memory.uss
        cpu_s += one.cpu_s + one.children_cpu_s
        fds, threads = fds + one.fds, threads + one.threads
    if not found:
        raise ProcessLookupError("no process is left")
    return Usage(Memory(rss, pss, uss), round(cpu_s, 3), fds, threads)


def machine_cpu_s() -> float:
    """Return the seconds that the machine's processors were busy since it was started, stolen ones included.

    Raises:
        OSError: the kernel does not tell.
    """
    # user nice system idle iowait irq softirq steal; proc(5). Guests are in user.
    ticks = (_PROC / "stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    return sum(int(each) for i, each in enumerate(ticks) if i not in (3, 4)) / _TICKS_PER_S


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name, which may contain anything."""
    text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    return text[text.rindex(")") + 2 :].split()


def _cpu_s(stat: Sequence[str]) -> float:
    return (int(stat[11]) + int(stat[12])) / _TICKS_PER_S


class Sampler:
    """Takes samples until it is closed; a thread of its own."""

    def __init__(
        self,
        path: Path,
        *,
        server: Callable[[], Sequence[int]],
        stats: Callable[[], Mapping[str, float]],
        load: Callable[[], Sequence[int]] = tuple,
        world: Callable[[], Sequence[int]] = tuple,
        interval_s: float = INTERVAL_S,
        usage: Callable[[], Usage] | None = None,
    ) -> None:
        """Make a sampler that does not run yet.

        Args:
            path: samples.csv; replaced.
            server: returns the server's process ids.
            stats: returns its gauges, or raises OSError.
            load: returns the process ids of the load.
            world: returns those of the world.
            interval_s: between two samples.
            usage: returns what the server uses, or raises OSError; None to add up its processes.
        """
        self.phase = "start"
        """Written into each sample; set it when something else begins."""
        self.latest: dict[str, float] = {}
        """The last gauges that were had, and ``rss_bytes``; replaced, never changed."""
        self.samples = 0
        """Lines in the file."""
        self._path = path
        self._server = server
        self._stats = stats
        self._others = (load, world)
        self._interval_s = interval_s
        self._usage = usage
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._error: BaseException | None = None

    def start(self) -> None:
        """Begin.

        Raises:
            OSError: the file can't be written.
        """
        # Opened here, so that whoever asks hears of it.
        self._file = self._path.open("w", encoding="utf-8", newline="")
        self._thread.start()

    def close(self) -> None:
        """Take a last sample, end the thread and close the file. Idempotent.

        Raises:
            RuntimeError: sampling ended early, for the reason that it names.
        """
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
            self._file.close()
        error, self._error = self._error, None
        if error is not None:
            raise RuntimeError(f"sampling ended early: {error!r}") from error

    def __enter__(self) -> "Sampler":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            writer = csv.writer(self._file, lineterminator="\n")
            names: list[str] = []
            due = time.monotonic()
            while True:
                stopping = self._stop.is_set()
                names = self._sample(writer, names)
                if stopping:
                    return
                # From the due time, not from now: the grain stays what it is said to be. After a long
                # stall the samples that were missed are not made up.
                due = max(due + self._interval_s, time.monotonic() - self._interval_s)
                self._stop.wait(max(0.0, due - time.monotonic()))
        except BaseException as error:  # noqa: BLE001 - told by close(), on the thread that can do something
            self._error = error

    def _sample(self, writer: "Writer", names: list[str]) -> list[str]:
        pids = list(self._server())
        now = time.time()
        try:
            usage = self._usage() if self._usage is not None else usage_of(pids)
        except OSError:
            usage = None
        if usage is None or not usage.memory.rss:
            # It ended, or has not begun. Whoever watches the process says so; there is nothing to measure.
            return names
        others = [_cpu_total(each()) for each in self._others]
        asked = time.monotonic()
        stats: Mapping[str, float] = {}
        with contextlib.suppress(OSError):
            stats = self._stats()
        took = time.monotonic() - asked
        if not names:
            if not stats:
                return names
            # The columns are those of the first answer; a server's gauges have fixed names.
            names = list(stats)
            writer.writerow([*MEASURED, *names])
        memory = usage.memory
        writer.writerow(
            [
                f"{now:.3f}",
                self.phase,
                memory.rss,
                memory.pss,
                memory.uss,
                f"{usage.cpu_s:.2f}",
                usage.fds,
                usage.threads,
                *(f"{each:.2f}" for each in others),
                f"{machine_cpu_s():.2f}",
                f"{took:.4f}" if stats else "",
                f"{usage.children_cpu_s:.2f}",
                *(stats.get(name, "") for name in names),
            ]
        )
        self._file.flush()
        self.samples += 1
        if stats:
            self.latest = {**stats, "rss_bytes": float(memory.rss)}
        return names


def _cpu_total(pids: Sequence[int]) -> float:
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += cpu_s_of(pid)
    return total
