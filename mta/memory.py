"""How much memory the server uses and may use, and what it does about it.

Measured as KumoMTA does (kumo-server-memory): the control group's working set against its limit (version 2, then
1), the process against its resource limits, the process against the machine's memory. KumoMTA takes the first
that it finds; here the nearest counts, for any of them ends the server. `mta.core.pressure` decides.

Sampled on a thread of its own: reading a control group's statistics may take the kernel milliseconds. What can't be
read is left out; it is a limit that we don't know.
"""

import asyncio
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple, TypeVar

from mta.core.limits import MemoryLimits
from mta.core.pressure import Measure, MemoryLevel, MemoryPressure
from mta.effects import Effects
from mta.memoryeffects import MemoryEffects

_T = TypeVar("_T")

NO_LIMIT: Final = 2**60
"""Version 1 writes "no limit" as the largest multiple of a page below 2**63; nobody has an exbibyte."""
TRIM_GAP_S: Final = 2.0
"""Seconds between two times that memory is given back: it locks the heap, and what was free is soon used."""
OFF_S: Final = 1.0
"""Seconds between two looks whether measuring was switched on again."""
CLOSE_S: Final = 1.0
"""Seconds that `MemoryWatch.close` waits for a measurement."""
PROCESSES_MAX: Final = 64
"""Processes of local delivery whose memory is read; ours. ``limits.mda.max_session`` is 50 by default."""
ASKED_S: Final = 5.0
"""Seconds for which `Shares` are kept up to date after somebody asked: a few times as long as scrapers wait."""
_SITE: Final = "memory"
_CGROUPS: Final = "sys/fs/cgroup"


class Use(NamedTuple):
    """What the process has, in bytes, by /proc/self/statm."""

    virtual: int
    resident: int
    data: int


class Shares(NamedTuple):
    """Memory by process, in bytes, by smaps_rollup; 0 where it can't be read. Shared pages count by part in ``pss``."""

    pss: int = 0
    """Of the server."""
    commands: int = 0
    """How many processes it has started that could be measured: commands of local delivery, and what they started."""
    commands_rss: int = 0
    commands_pss: int = 0


class Meter:
    """Reads limits and usage."""

    def __init__(self, limits: MemoryLimits, effects: Effects, *, root: Path = Path("/")) -> None:
        """Measure under ``root``, which has ``proc`` and ``sys``."""
        self._limits = limits
        self._effects = MemoryEffects(effects)
        self._root = root

    def measure(self) -> list[Measure]:
        """Return all limits with their usage; only the operator's if there is one. Never raises OSError."""
        use = self._use()
        if self._limits.limit_bytes:
            return [Measure("config", use.resident, self._limits.limit_bytes)] if use else []
        found = list(self._of_cgroups())
        if use is not None:
            found += self._of_process(use)
        return [measure for measure in found if 0 < measure.limit < NO_LIMIT]

    def shares(self) -> Shares:
        """Return the server's memory and that of its commands, `PROCESSES_MAX` at most. Never raises OSError.

        Why not always? The kernel walks all pages for it: milliseconds for a large process.
        """
        rollups = [self._fields(f"proc/{pid}/smaps_rollup") for pid in self._commands()]
        known = [each for each in rollups if "Rss" in each]
        return Shares(
            self._fields("proc/self/smaps_rollup").get("Pss", 0) * 1024,
            len(known),
            sum(each["Rss"] for each in known) * 1024,
            sum(each.get("Pss", 0) for each in known) * 1024,
        )

    def _commands(self) -> list[str]:
        """Return the ids of the processes below ours. Who forks is a thread, and the kernel lists them by thread."""
        found: list[str] = []
        waiting = ["self"]
        while waiting and len(found) < PROCESSES_MAX:
            process = waiting.pop()
            try:
                tasks = self._effects.effects.listdir(
                    self._root / f"proc/{process}/task", site=_SITE
                )
            except OSError:
                continue  # it has ended
            for task in tasks:
                children = (self._read(f"proc/{process}/task/{task}/children") or b"").split()
                found += (pids := [child.decode() for child in children if child.isdigit()])
                waiting += pids
        return found[:PROCESSES_MAX]

    def _of_process(self, use: Use) -> Iterator[Measure]:
        # Why not the resident size? What a limit on address space counts is address space.
        for source, which, usage in (
            ("rlimit-as", resource.RLIMIT_AS, use.virtual),
            ("rlimit-data", resource.RLIMIT_DATA, use.data),
        ):
            with suppress(OSError):
                limit = self._effects.rlimit(which)
                if limit is not None:
                    yield Measure(source, usage, limit)
        ram = self._fields("proc/meminfo").get("MemTotal")
        if ram is not None:
            yield Measure("ram", use.resident, ram * 1024)

    def _use(self) -> Use | None:
        words = (self._read("proc/self/statm") or b"").split()
        if len(words) < 6 or not all(word.isdigit() for word in words):
            return None
        page = self._effects.page_size()
        return Use(int(words[0]) * page, int(words[1]) * page, int(words[5]) * page)

    def _of_cgroups(self) -> Iterator[Measure]:
        for line in (self._read("proc/self/cgroup") or b"").decode("utf-8", "replace").splitlines():
            controllers, _, path = line.partition(":")[2].partition(":")
            if not path.startswith("/") or ".." in PurePosixPath(path).parts:
                continue  # a group outside of what is mounted here
            if not controllers:
                yield from self._of_groups(f"{_CGROUPS}{path}", _CGROUPS, self._group2)
            elif "memory" in controllers.split(","):
                base = f"{_CGROUPS}/memory"
                yield from self._of_groups(f"{base}{path}", base, self._group1)

    def _of_groups(
        self, path: str, base: str, measured: Callable[[str], Measure | None]
    ) -> Iterator[Measure]:
        """Yield the limits of a group and of those above it: each of them counts."""
        group = PurePosixPath(path)
        top = PurePosixPath(base)
        while group.is_relative_to(top):
            found = measured(str(group))
            if found is not None:
                yield found
            group = group.parent

    def _group2(self, group: str) -> Measure | None:
        # memory.high does not end anybody, but above it everything crawls.
        limits = [self._number(f"{group}/memory.{name}") for name in ("max", "high")]
        known = [limit for limit in limits if limit is not None]
        usage = self._number(f"{group}/memory.current") if known else None
        if usage is None:
            return None
        stat = self._fields(f"{group}/memory.stat")
        working = max(usage - stat.get("inactive_file", 0), stat.get("anon", 0))
        return Measure("cgroup2", working, min(known))

    def _group1(self, group: str) -> Measure | None:
        limit = self._number(f"{group}/memory.limit_in_bytes")
        if limit is None or limit >= NO_LIMIT:
            return None
        usage = self._number(f"{group}/memory.usage_in_bytes")
        if usage is None:
            return None
        stat = self._fields(f"{group}/memory.stat")
        working = max(usage - stat.get("total_inactive_file", 0), stat.get("total_rss", 0))
        return Measure("cgroup1", working, limit)

    def _number(self, path: str) -> int | None:
        """Return a file's number; None if it is missing, unreadable, ``max``, or none."""
        text = (self._read(path) or b"").strip()
        # Digits only: int() would take "1_0" and be slow for what is very long.
        return int(text) if text.isdigit() and len(text) < 30 else None

    def _fields(self, path: str) -> dict[str, int]:
        """Return the numbers of a file of lines ``name number``, or ``name: number kB``."""
        found = {}
        for line in (self._read(path) or b"").splitlines():
            words = line.split()
            if len(words) >= 2 and words[1].isdigit() and len(words[1]) < 30:
                found[words[0].rstrip(b":").decode("ascii", "replace")] = int(words[1])
        return found

    def _read(self, path: str) -> bytes | None:
        try:
            return self._effects.effects.read_file(self._root / path, site=_SITE)
        except OSError:
            return None


class MemoryWatch:
    """Measures every so often, and says when the level is another."""

    def __init__(
        self,
        limits: MemoryLimits,
        effects: Effects,
        *,
        log: Callable[[str], None],
        on_level: Callable[[MemoryLevel], None],
        shrink: Callable[[], None],
        root: Path = Path("/"),
    ) -> None:
        """Watch nothing yet.

        Args:
            limits: when which level begins, and how often to look.
            effects: how memory is measured.
            log: told of each change, for the operator.
            on_level: told of each change, for those who decide.
            shrink: lets go of what can be read again; asked at each sample above `MemoryLevel.OK`.
            root: where ``proc`` and ``sys`` are.
        """
        self.pressure = MemoryPressure(limits)
        self.shrinks = 0
        """How often `shrink` was asked."""
        self.shares = Shares()
        """As of the last sample, if somebody asks; all 0 otherwise."""
        self._asked_at = float("-inf")
        self._limits = limits
        self._effects = MemoryEffects(effects)
        self._meter = Meter(limits, effects, root=root)
        self._log = log
        self._on_level = on_level
        self._shrink = shrink
        self._task: asyncio.Task[None] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._work: asyncio.Future[Any] | None = None
        self._trimmed_at = float("-inf")
        self._is_blind = False

    def start(self) -> None:
        """Look now and from now on, whenever ``sample_s`` is not 0."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="memory")
        self._task = asyncio.get_running_loop().create_task(self._run(), name="memory")

    def ask(self) -> None:
        """Keep `shares` up to date for a while, from the next sample on."""
        self._asked_at = self._effects.effects.monotonic()

    async def close(self) -> None:
        """Look no more. Idempotent."""
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._work is not None and not self._work.done():
            await asyncio.wait({self._work}, timeout=CLOSE_S)
        if self._pool is not None:
            pool, self._pool = self._pool, None
            pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        while True:
            if not self._limits.sample_s:
                self._set(MemoryPressure(self._limits))
                self.shares = Shares()
                await asyncio.sleep(OFF_S)
                continue
            try:
                measures = await self._on_thread(self._meter.measure)
            except Exception as error:  # noqa: BLE001  # no thread, no memory, a mistake: look again later
                measures = []
                self._complain(type(error).__name__)
            self.take(measures)
            self.shares = await self._shares()
            if self.pressure.level and self._is_time_to_trim():
                with suppress(Exception):
                    await self._on_thread(self._effects.trim)
            await asyncio.sleep(self._limits.sample_s)

    async def _shares(self) -> Shares:
        if self._effects.effects.monotonic() - self._asked_at > ASKED_S:
            return Shares()
        try:
            return await self._on_thread(self._meter.shares)
        except Exception:  # noqa: BLE001  # as above; nothing depends on it
            return Shares()

    async def _on_thread(self, work: Callable[[], _T]) -> _T:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, work)
        self._work = future
        # Shielded: a thread that is at it can't be stopped, and `close` waits for it.
        return await asyncio.shield(future)

    def _set(self, pressure: MemoryPressure) -> None:
        """Begin anew, with enough memory."""
        before, self.pressure = self.pressure.level, pressure
        if before is not pressure.level:
            self._on_level(pressure.level)

    def take(self, measures: list[Measure]) -> None:
        """Act on a sample."""
        pressure = self.pressure
        changed = pressure.observe(measures)
        if measures:
            self._is_blind = False
        else:
            self._complain("nothing to be read")
        if changed:
            source, usage, limit = pressure.measure
            self._log(
                f"memory pressure={pressure.level.name.lower()} usage={usage} limit={limit}"
                f" source={source or 'unknown'}"
            )
            self._on_level(pressure.level)
        if pressure.level:
            self.shrinks += 1
            self._shrink()

    def _complain(self, why: str) -> None:
        if not self._is_blind:
            self._is_blind = True
            self._log(f"memory can't be measured: {why}")

    def _is_time_to_trim(self) -> bool:
        now = self._effects.effects.monotonic()
        if now - self._trimmed_at < TRIM_GAP_S:
            return False
        self._trimmed_at = now
        return True


__all__ = ["MemoryWatch", "Meter"]
