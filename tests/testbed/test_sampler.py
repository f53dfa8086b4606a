"""Watching a real process from outside."""

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.sampler import MEASURED, Sampler, cpu_s_of, memory_of, usage_of

HUNGRY = """
import sys
held = None
for line in sys.stdin:
    word, amount = line.split()
    if word == "hold":
        held = b"x" * int(amount)
    elif word == "spin":
        n = 0
        while n < int(amount):
            n += 1
    print("done", flush=True)
"""
MIB = 1024 * 1024


class Hungry:
    """A child that takes memory and time when it is told to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HUNGRY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.do("hold 1")

    def do(self, what: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        assert "done\n" == self.process.stdout.readline()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture
def hungry() -> Iterator[Hungry]:
    child = Hungry()
    yield child
    child.close()


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_memory_is_seen(hungry: Hungry) -> None:
    """64 MiB that a process takes are 64 MiB of RSS, PSS and USS more."""
    before = memory_of(hungry.process.pid)
    hungry.do(f"hold {64 * MIB}")
    after = memory_of(hungry.process.pid)

    for what in ("rss", "pss", "uss"):
        assert 64 == pytest.approx((getattr(after, what) - getattr(before, what)) / MIB, abs=2), (
            what
        )
    assert after.uss <= after.pss <= after.rss


def test_time_and_descriptors_are_seen(hungry: Hungry) -> None:
    """A loop costs CPU time; descriptors and threads are those of the process."""
    before = cpu_s_of(hungry.process.pid)
    hungry.do("spin 3000000")

    assert cpu_s_of(hungry.process.pid) > before
    usage = usage_of([hungry.process.pid])
    assert (3, 1) == (usage.fds, usage.threads)


def test_time_of_commands_is_seen_when_they_have_ended(hungry: Hungry) -> None:
    """That of the process itself is not in it."""
    hungry.do("spin 3000000")
    assert 0.0 == usage_of([hungry.process.pid]).children_cpu_s

    mine = usage_of([os.getpid()]).children_cpu_s
    spin = "n = 0\nwhile n < 3000000: n += 1"
    subprocess.run([sys.executable, "-c", spin], check=True, timeout=60)
    assert usage_of([os.getpid()]).children_cpu_s > mine


def test_processes_are_summed(hungry: Hungry) -> None:
    """A server of several processes is measured as one."""
    one = usage_of([hungry.process.pid])
    both = usage_of([hungry.process.pid, os.getpid()])

    assert both.memory.rss > one.memory.rss
    assert both.threads > one.threads


def test_a_process_that_is_gone_is_an_error(hungry: Hungry) -> None:
    """Nobody takes 0 for the memory of a dead process."""
    hungry.close()

    with pytest.raises(OSError, match="No such"):
        usage_of([hungry.process.pid])


def test_samples_have_phases_and_gauges(hungry: Hungry, tmp_path: Path) -> None:
    """A line has instant, phase, what was measured and what the server said; the last one is of the end."""
    path = tmp_path / "samples.csv"
    pid = hungry.process.pid
    gauges = {"scheduler.envelope": 0.0, "smtp.message": 5.0}
    with Sampler(path, server=lambda: [pid], stats=lambda: gauges, interval_s=0.01) as sampler:
        while not sampler.samples:
            sampler._stop.wait(0.005)
        sampler.phase = "load"
        gauges = {"scheduler.envelope": 7.0, "smtp.message": 6.0}
    found = rows(path)

    assert [*MEASURED, "scheduler.envelope", "smtp.message"] == list(found[0])
    assert "start" == found[0]["phase"]
    assert ("load", "7.0", "6.0") == tuple(
        found[-1][name] for name in ("phase", "scheduler.envelope", "smtp.message")
    )
    assert len(found) == sampler.samples
    assert float(found[0]["t"]) <= float(found[-1]["t"])
    assert 7.0 == sampler.latest["scheduler.envelope"]


def test_a_gauge_that_can_not_be_had_is_empty(hungry: Hungry, tmp_path: Path) -> None:
    """A server too busy to answer leaves a hole; its memory is measured all the same."""
    path = tmp_path / "samples.csv"
    pid = hungry.process.pid
    answers = iter([{"scheduler.envelope": 1.0}])

    def stats() -> dict[str, float]:
        try:
            return next(answers)
        except StopIteration:
            raise TimeoutError from None

    with Sampler(path, server=lambda: [pid], stats=stats, interval_s=0.01) as sampler:
        while sampler.samples < 2:
            sampler._stop.wait(0.005)
    found = rows(path)

    assert "1.0" == found[0]["scheduler.envelope"]
    assert ("", "") == (found[1]["scheduler.envelope"], found[1]["gauges_s"])
    assert int(found[1]["rss_bytes"]) > 0


def test_a_dead_server_ends_no_sampler(hungry: Hungry, tmp_path: Path) -> None:
    """What can't be measured any more is not written; closing is still possible, twice."""
    path = tmp_path / "samples.csv"
    pid = hungry.process.pid
    sampler = Sampler(path, server=lambda: [pid], stats=lambda: {"a": 1.0}, interval_s=0.01)
    sampler.start()
    while not sampler.samples:
        sampler._stop.wait(0.005)
    hungry.close()
    sampler.close()
    sampler.close()

    assert len(rows(path)) == sampler.samples


def test_our_own_fault_is_told(tmp_path: Path) -> None:
    """A bug on the sampling thread does not end as a short file that nobody notices."""

    def broken() -> dict[str, float]:
        raise ZeroDivisionError

    sampler = Sampler(
        tmp_path / "samples.csv", server=lambda: [os.getpid()], stats=broken, interval_s=0.01
    )
    sampler.start()
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        sampler.close()


def test_an_unwritable_file_is_told_at_once(tmp_path: Path) -> None:
    """Whoever starts sampling hears that there is no place for it."""
    sampler = Sampler(tmp_path / "no" / "samples.csv", server=list, stats=dict)
    with pytest.raises(FileNotFoundError):
        sampler.start()
    sampler.close()
