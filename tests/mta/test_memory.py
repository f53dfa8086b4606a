"""Memory is measured as the system counts it, whatever the system says; a watch acts on it."""

import asyncio
import errno
import os
import resource
import subprocess
import threading
from pathlib import Path

import pytest

from mta.core.limits import MemoryLimits
from mta.core.pressure import UNKNOWN_MAX, Measure, MemoryLevel
from mta.memory import PROCESSES_MAX, MemoryWatch, Meter, Shares
from mta.memoryeffects import MemoryEffects
from tests.support.faults import FaultyEffects, Plan
from tests.support.waiting import until

PAGE = resource.getpagesize()
MIB = 1024 * 1024


class Machine:
    """A tree with what /proc and /sys of some machine say."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.effects = FaultyEffects()
        self.write("proc/self/statm", "1000 200 50 1 0 300 0\n")
        self.write("proc/meminfo", "MemTotal:       16384 kB\nMemFree:  1 kB\n")

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def group2(self, path: str, high: str = "max", **of: object) -> None:
        """A control group of version 2: max, current, stat."""
        base = f"sys/fs/cgroup{path}"
        self.write(f"{base}/memory.high", f"{high}\n")
        for name, value in of.items():
            self.write(f"{base}/memory.{name}", f"{value}\n")

    def measure(self, **limits: float) -> list[Measure]:
        return Meter(MemoryLimits(**limits), self.effects, root=self.root).measure()  # type: ignore[arg-type]

    def of_groups(self) -> list[Measure]:
        return [measure for measure in self.measure() if "group" in measure.source]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


class TestMeter:
    def test_ram_is_the_last_limit(self, machine):
        """What the process has resident, of all that there is."""
        assert Measure("ram", 200 * PAGE, 16 * MIB) in machine.measure()

    def test_a_group_has_its_working_set(self, machine):
        """Version 2: what could be dropped at once (inactive_file) does not count, and never less than anon."""
        machine.write("proc/self/cgroup", "0::/mail\n")
        machine.group2("/mail", max=1000, current=900, stat="anon 100\ninactive_file 300\n")
        assert [Measure("cgroup2", 600, 1000)] == machine.of_groups()
        machine.group2("/mail", max=1000, current=900, stat="anon 800\ninactive_file 300\n")
        assert [Measure("cgroup2", 800, 1000)] == machine.of_groups()

    def test_high_is_a_limit_too(self, machine):
        """Above it the kernel makes the process wait; the smaller of both counts."""
        machine.write("proc/self/cgroup", "0::/mail\n")
        machine.group2("/mail", high="500", max=1000, current=400, stat="")
        assert [Measure("cgroup2", 400, 500)] == machine.of_groups()
        machine.group2("/mail", high="500", max="max", current=400, stat="")
        assert [Measure("cgroup2", 400, 500)] == machine.of_groups()

    def test_max_is_no_limit(self, machine):
        """The word, in both files."""
        machine.write("proc/self/cgroup", "0::/mail\n")
        machine.group2("/mail", max="max", current=400, stat="")
        assert [] == machine.of_groups()

    def test_the_groups_above_count(self, machine):
        """A slice's limit is shared by its units."""
        machine.write("proc/self/cgroup", "0::/system.slice/mta.service\n")
        machine.group2("/system.slice/mta.service", max="max", current=10, stat="")
        machine.group2("/system.slice", max=1000, current=700, stat="inactive_file 100\n")
        machine.group2("", max=5000, current=800, stat="")
        assert [Measure("cgroup2", 600, 1000), Measure("cgroup2", 800, 5000)] == machine.of_groups()

    def test_version_one(self, machine):
        """With its own names; "no limit" is a number there; a container sees only the top."""
        machine.write("proc/self/cgroup", "5:cpu,memory:/docker/a:b\n4:name=systemd:/x\n0::/\n")
        for path, limit in (("/docker/a:b", 2**63 - 4096), ("", 1000)):
            base = f"sys/fs/cgroup/memory{path}"
            machine.write(f"{base}/memory.limit_in_bytes", f"{limit}\n")
            machine.write(f"{base}/memory.usage_in_bytes", "900\n")
            machine.write(f"{base}/memory.stat", "total_inactive_file 200\ntotal_rss 5\n")
        assert [Measure("cgroup1", 700, 1000)] == machine.of_groups()

    @pytest.mark.parametrize(
        "text", ["", "\n", "0", "0::", "0::relative\n", "0::/../..\n", "a:memory\n", "\xff:::\n"]
    )
    def test_a_group_that_is_none(self, machine, text):
        """Whatever the file says, it is not a fault; a path never leaves the tree."""
        machine.write("proc/self/cgroup", text)
        assert [] == machine.of_groups()

    @pytest.mark.parametrize("text", ["", "lots", "-1", "1_000", "0x10", "9" * 5000, "\xff", "1 2"])
    @pytest.mark.parametrize("file", ["max", "current"])
    def test_numbers_that_are_none(self, machine, text, file):
        """Then there is no such limit."""
        machine.write("proc/self/cgroup", "0::/mail\n")
        machine.group2("/mail", **({"max": 1000, "current": 900, "stat": ""} | {file: text}))
        assert [] == machine.of_groups()

    def test_a_stat_that_is_nonsense(self, machine):
        """Then all that is used counts."""
        machine.write("proc/self/cgroup", "0::/mail\n")
        machine.group2("/mail", max=1000, current=900, stat="anon\ninactive_file x\nanon 9 9 9\n\n")
        assert [Measure("cgroup2", 900, 1000)] == machine.of_groups()

    @pytest.mark.parametrize("text", ["", "1 2", "a b c d e f g", "1 -2 3 4 5 6 7"])
    def test_a_process_without_a_size(self, machine, text):
        """Groups are still measured."""
        machine.write("proc/self/cgroup", "0::/mail\n")
        machine.group2("/mail", max=1000, current=900, stat="")
        machine.write("proc/self/statm", text)
        assert [Measure("cgroup2", 900, 1000)] == machine.measure()
        assert [] == machine.measure(limit_bytes=1000)

    def test_nothing_at_all(self, tmp_path):
        """Neither /proc nor /sys: nothing is known, nothing raises."""
        assert [] == Meter(MemoryLimits(), FaultyEffects(), root=tmp_path / "none").measure()

    def test_the_operator_says_how_much(self, machine):
        """limit_bytes is the only limit then, against what is resident."""
        machine.write("proc/self/cgroup", "0::/mail\n")
        machine.group2("/mail", max=1000, current=900, stat="")
        assert [Measure("config", 200 * PAGE, 5000)] == machine.measure(limit_bytes=5000)

    def test_resource_limits_count_what_they_limit(self, machine, monkeypatch):
        """RLIMIT_AS the address space, RLIMIT_DATA the data: resident pages say nothing about either."""
        soft = {resource.RLIMIT_AS: 5000 * PAGE, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
        monkeypatch.setattr("mta.memoryeffects.resource.getrlimit", lambda which: (soft[which], -1))
        assert Measure("rlimit-as", 1000 * PAGE, 5000 * PAGE) in machine.measure()
        soft[resource.RLIMIT_DATA] = 400 * PAGE
        assert Measure("rlimit-data", 300 * PAGE, 400 * PAGE) in machine.measure()

    def test_any_read_may_fail(self, machine):
        """EMFILE, EIO or EACCES at the n-th effect: what it belongs to is left out, the rest is measured."""
        machine.write("proc/self/cgroup", "3:memory:/mail\n0::/mail\n")
        machine.group2("/mail", max=1000, current=900, stat="")
        machine.write("sys/fs/cgroup/memory/mail/memory.limit_in_bytes", "2000\n")
        machine.write("sys/fs/cgroup/memory/mail/memory.usage_in_bytes", "900\n")
        whole = machine.measure()
        points = len(machine.effects.seen) // 2
        assert points >= 12
        for number in range(1, points + 1):
            for code in (errno.EMFILE, errno.EACCES):
                machine.effects = FaultyEffects(
                    Plan(number, lambda code=code: OSError(code, os.strerror(code)))
                )
                found = {measure.source: measure.limit for measure in machine.measure()}
                assert found.items() <= {m.source: m.limit for m in whole}.items()
                assert len(machine.effects.failed) == 1

    def test_this_machine_can_be_measured(self):
        """The real /proc: this process has some memory, and less than there is."""
        found = Meter(MemoryLimits(), FaultyEffects()).measure()
        (ram,) = [measure for measure in found if measure.source == "ram"]
        assert MIB < ram.usage < ram.limit


def rollup(rss: int, pss: int) -> str:
    """What the kernel says of a process's memory, in KiB."""
    return f"5581-7ffc ---p 00000000 00:00 0 [rollup]\nRss: {rss:>12} kB\nPss: {pss:>12} kB\n"


class TestShares:
    """Memory by process."""

    def shares(self, machine: Machine) -> Shares:
        return Meter(MemoryLimits(), machine.effects, root=machine.root).shares()

    def test_the_server_and_what_it_has_started(self, machine):
        """Whichever thread forked, and what the children forked themselves; one that may not be read is left out."""
        machine.write("proc/self/smaps_rollup", rollup(900, 700))
        machine.write("proc/self/task/1/children", "")
        machine.write("proc/self/task/2/children", "20 30 ")
        machine.write("proc/20/task/20/children", "40 ")
        machine.write("proc/20/smaps_rollup", rollup(10, 5))
        machine.write("proc/40/smaps_rollup", rollup(100, 50))
        assert Shares(700 * 1024, 2, 110 * 1024, 55 * 1024) == self.shares(machine)

    def test_nothing_can_be_read(self, machine):
        """Then nothing is known, and nobody hears of errors."""
        assert Shares() == self.shares(machine)

    def test_it_looks_at_so_many(self, machine):
        """However many there are."""
        children = range(100, 100 + PROCESSES_MAX + 1)
        machine.write("proc/self/task/1/children", " ".join(map(str, children)))
        for child in children:
            machine.write(f"proc/{child}/smaps_rollup", rollup(1, 1))
        assert PROCESSES_MAX == self.shares(machine).commands

    def test_of_ourselves(self):
        """The real files: part of what is resident is our own."""
        child = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
        try:
            shares = Meter(MemoryLimits(), FaultyEffects()).shares()
        finally:
            child.communicate()
        assert shares.commands >= 1
        assert 0 < shares.commands_pss <= shares.commands_rss
        assert shares.pss > MIB


class Watched:
    """A watch on a machine, and what it did."""

    def __init__(self, machine: Machine, **limits: float) -> None:
        self.lines: list[str] = []
        self.levels: list[MemoryLevel] = []
        self.shrunk = 0
        self.machine = machine
        options = {"sample_s": 0.001, "limit_bytes": 1000 * PAGE, **limits}
        self.limits = MemoryLimits(**options)  # type: ignore[arg-type]
        self.watch = MemoryWatch(
            self.limits,
            machine.effects,
            log=self.lines.append,
            on_level=self.levels.append,
            shrink=self._shrink,
            root=machine.root,
        )

    def _shrink(self) -> None:
        self.shrunk += 1

    def use(self, pages: int) -> None:
        # In one step: the watch reads it meanwhile.
        self.machine.write("statm", f"9999 {pages} 50 1 0 300 0\n")
        (self.machine.root / "statm").replace(self.machine.root / "proc/self/statm")


class TestWatch:
    async def test_it_says_what_changes(self, machine):
        """Each change once, in the log and to those who decide; shrinking goes on while it is needed."""
        it = Watched(machine)
        it.use(950)
        it.watch.start()
        try:
            await until(lambda: it.shrunk > 3)
            it.use(620)
            await until(lambda: len(it.levels) == 2)
            it.use(100)
            await until(lambda: len(it.levels) == 3)
            shrunk = it.watch.shrinks
            await asyncio.sleep(0.02)
        finally:
            await it.watch.close()
        assert [MemoryLevel.HARD, MemoryLevel.LOW, MemoryLevel.OK] == it.levels
        assert it.lines == [
            f"memory pressure={name} usage={pages * PAGE} limit={1000 * PAGE} source=config"
            for name, pages in (("hard", 950), ("low", 620), ("ok", 100))
        ]
        assert it.watch.shrinks == it.shrunk == shrunk
        assert ("trim", "memory") in {(point.op, point.site) for point in machine.effects.seen}

    async def test_shares_are_read_for_whoever_asks(self, machine, monkeypatch):
        """And only then: nothing is read for nobody."""
        machine.write("proc/self/smaps_rollup", rollup(900, 700))
        monkeypatch.setattr("mta.memory.ASKED_S", 3600.0)
        it = Watched(machine)
        it.watch.start()
        try:
            await until(lambda: it.watch.pressure.measure.usage)
            assert Shares() == it.watch.shares
            it.watch.ask()
            await until(lambda: it.watch.shares.pss)
        finally:
            await it.watch.close()
        assert Shares(700 * 1024) == it.watch.shares

    async def test_shares_that_can_not_be_had_harm_nobody(self, machine, monkeypatch):
        """No thread, no memory: they are not known, and the limits are watched as before."""

        def fails(meter: Meter) -> Shares:
            raise MemoryError

        monkeypatch.setattr(Meter, "shares", fails)
        it = Watched(machine)
        it.watch.ask()
        it.watch.start()
        try:
            it.use(950)
            await until(lambda: it.levels == [MemoryLevel.HARD])
        finally:
            await it.watch.close()
        assert Shares() == it.watch.shares

    async def test_shares_are_forgotten_when_nobody_asks(self, machine, monkeypatch):
        """An old value is none."""
        machine.write("proc/self/smaps_rollup", rollup(900, 700))
        monkeypatch.setattr("mta.memory.ASKED_S", 3600.0)
        it = Watched(machine)
        it.watch.ask()
        it.watch.start()
        try:
            await until(lambda: it.watch.shares.pss)
            monkeypatch.setattr("mta.memory.ASKED_S", 0.0)  # by now it is longer ago
            await until(lambda: not it.watch.shares.pss)
        finally:
            await it.watch.close()

    async def test_it_can_be_switched_off(self, machine):
        """sample_s 0: nothing is measured."""
        it = Watched(machine, sample_s=0)
        it.use(999)
        it.watch.start()
        await asyncio.sleep(0.01)
        await it.watch.close()
        assert [] == it.levels == machine.effects.seen

    async def test_it_can_be_switched_off_and_on_again(self, machine, monkeypatch):
        """While it runs, as ``mtactl set`` does: the level ends at once, and comes back."""
        monkeypatch.setattr("mta.memory.OFF_S", 0.001)
        it = Watched(machine)
        it.use(950)
        it.watch.start()
        try:
            await until(lambda: it.levels)
            it.limits.sample_s = 0
            await until(lambda: len(it.levels) == 2)
            it.limits.sample_s = 0.001
            await until(lambda: len(it.levels) == 3)
        finally:
            await it.watch.close()
        assert [MemoryLevel.HARD, MemoryLevel.OK, MemoryLevel.HARD] == it.levels

    async def test_blindness_is_said_once_and_ends_the_level(self, machine):
        """The level stays for some samples, then nobody is refused any more; sight comes back by itself."""
        it = Watched(machine)
        it.use(800)
        it.watch.start()
        try:
            await until(lambda: it.levels)
            machine.effects.plan = Plan(1, for_good=True)
            await until(lambda: len(it.levels) == 2)
            assert [MemoryLevel.SOFT, MemoryLevel.OK] == it.levels
            machine.effects.heal()
            await until(lambda: len(it.levels) == 3)
        finally:
            await it.watch.close()
        assert [line.split()[1] for line in it.lines] == [
            "pressure=soft",
            "can't",
            "pressure=ok",
            "pressure=soft",
        ]

    async def test_a_mistake_of_ours_stops_nothing(self, machine):
        """Whatever a sample raises, the next one is taken; so too where memory is given back."""
        it = Watched(machine)
        it.use(800)
        machine.effects.plan = Plan(
            1, lambda: RuntimeError("bug"), True, matches=lambda point: point.op == "trim"
        )
        it.watch.start()
        try:
            await until(lambda: machine.effects.failed)
            machine.effects.plan = Plan(1, lambda: ValueError("bug"), for_good=True)
            await until(lambda: len(machine.effects.failed) > UNKNOWN_MAX)
            machine.effects.heal()
            it.use(100)
            await until(lambda: it.levels[-1:] == [MemoryLevel.OK])
        finally:
            await it.watch.close()
        assert "memory can't be measured: ValueError" in it.lines

    async def test_a_kernel_that_hangs_holds_nobody(self, machine, monkeypatch):
        """The event loop goes on, and the server stops all the same."""
        monkeypatch.setattr("mta.memory.CLOSE_S", 0.01)
        gate = machine.effects.gates["read", "memory"] = threading.Event()
        it = Watched(machine)
        it.watch.start()
        await asyncio.sleep(0.01)
        await it.watch.close()
        await it.watch.close()
        gate.set()
        assert [] == it.levels


def test_trimming_is_the_c_librarys(monkeypatch):
    """Where it can't, nothing happens."""
    assert MemoryEffects(FaultyEffects()).trim() in (True, False)
    monkeypatch.setattr("mta.memoryeffects.ctypes.CDLL", lambda name: object())
    assert not MemoryEffects(FaultyEffects()).trim()
