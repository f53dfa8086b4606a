"""What a cell keeps apart, and that nothing of it is left, however it or its bench ends."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.children import RunError
from testbed.packages import Peer
from testbed.targets import accounting, apart
from testbed.targets.apart import Cell
from testbed.targets.postfix import Postfix
from tests.support.server import ROOT
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(60),
    pytest.mark.skipif(bool(apart.why_not()), reason=f"setting apart {apart.why_not()}"),
]

STUBBORN = "trap '' TERM; (trap '' TERM; sleep 1000) & (setsid sleep 1000 &) ; wait"
"""Does not hear SIGTERM, and has an orphan."""


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[Cell]:
    made = Cell("test", tmp_path / "cell", tree=None, hostname="cell")
    yield made
    made.stop(0.2)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def test_files_names_and_processes_are_its_own(cell: Cell) -> None:
    """Below /etc its own on top of the machine's; /var and /run its own; the system sees nothing of it."""
    cell.write("etc/resolv.conf", "nameserver 127.0.0.1\n")
    cell.start(["/bin/sleep", "1000"])
    assert cell.run("/bin/cat", "/etc/resolv.conf").out == "nameserver 127.0.0.1\n"
    assert cell.run("/bin/sh", "-c", "test -e /etc/os-release").status == 0
    assert cell.run("/bin/sh", "-c", "echo x > /var/spool/mine").status == 0
    assert (cell.directory / "var/spool/mine").read_text() == "x\n"
    assert not Path("/var/spool/mine").exists()
    assert cell.run("/bin/sh", "-c", "echo x > /mine").status != 0
    assert cell.run("/bin/sh", "-c", "echo x > /usr/mine").status != 0
    assert cell.run("/bin/sh", "-c", "echo x > /etc/mine").status != 0
    assert cell.run("/bin/sh", "-c", "echo x > /tmp/mine").status == 0
    assert not Path("/tmp/mine").exists()
    assert cell.run("/bin/hostname").out == "cell\n"
    processes = cell.run("/bin/sh", "-c", "echo /proc/[0-9]*").out.split()
    assert len(processes) == 3, "the first, the server and who asks"


def test_it_knows_a_server_that_ends(cell: Cell) -> None:
    """And what it said; commands go on."""
    cell.start(["/bin/sh", "-c", "echo sorry >&2; exit 3"])
    eventually(lambda: cell.status is not None)
    assert cell.status == 3
    assert cell.log.read_text() == "sorry\n"
    assert cell.run("/bin/echo", "here").out == "here\n"
    assert cell.stop() == 3


def test_commands_that_hang_or_are_not_there_are_answers(cell: Cell) -> None:
    cell.start(["/bin/sleep", "1000"])
    assert cell.run("/bin/sleep", "1000", timeout_s=0.1).status == 124
    assert cell.run("/nowhere").status == 127
    assert cell.run("/bin/echo", "on").out == "on\n"


def test_processes_that_do_not_listen_are_ended_too(cell: Cell) -> None:
    """SIGTERM first, then the whole namespace, orphans in sessions of their own included."""
    cell.start(["/bin/sh", "-c", STUBBORN])
    eventually(lambda: len(cell.pids()) >= 3)
    pids = cell.pids()
    assert cell.stop(0.3) == -signal.SIGKILL
    assert [pid for pid in pids if alive(pid)] == []
    assert cell.stop() == -signal.SIGKILL


def test_nothing_is_left_of_a_bench_that_was_killed(tmp_path: Path) -> None:
    """SIGKILL, in the middle of everything: no process of the server outlives it."""
    program = (
        "import sys, time; from pathlib import Path; from testbed.targets.apart import Cell\n"
        f"cell = Cell('test', Path({str(tmp_path / 'cell')!r}), tree=None, hostname='cell')\n"
        f"cell.start(['/bin/sh', '-c', {STUBBORN!r}])\n"
        "while len(cell.pids()) < 3: time.sleep(0.02)\n"
        "print(*cell.pids(), flush=True); time.sleep(1000)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as bench:
        assert bench.stdout is not None
        pids = [int(word) for word in bench.stdout.readline().split()]
        bench.kill()
    assert len(pids) >= 3
    eventually(lambda: not any(map(alive, pids)), timeout_s=15.0)
    eventually(lambda: _groups_left_by(bench.pid) == [], timeout_s=15.0)


def _groups_left_by(pid: int) -> list[Path]:
    """What is left when the next bench has swept; the kernel may take a moment to see that a group is empty."""
    again = accounting.open_account("again")
    if again is None:
        return []
    left = list(again.directory.parent.glob(f"testbed-test-{pid}-*"))
    again.close()
    return left


class Sorry(Postfix):
    """Ends at once."""

    def command(self) -> list[str]:
        return ["/bin/sh", "-c", "echo first; echo I am sorry >&2; exit 3"]


def test_a_server_that_cannot_start_is_one_line(tmp_path: Path) -> None:
    """With its last words, and nothing is left."""
    peer = Peer("postfix", "", None, is_here=True)
    server = Sorry(tmp_path, peer, overrides={}, nameserver="127.0.0.1")
    try:
        with pytest.raises(RunError, match=r"^postfix ended with status 3: I am sorry$"):
            server.start()
    finally:
        assert server.stop() == 3
    assert server.pids() == []


def test_time_is_that_of_all_that_ever_ran(cell: Cell) -> None:
    """Children of a parent that ignores SIGCHLD are in nobody's account but the control group's."""
    spin = "for (my $i = 0; $i < 2e7; $i++) {}"
    cell.start(
        ["/usr/bin/perl", "-e", f"$SIG{{CHLD}} = 'IGNORE'; fork or do {{ {spin}; exit }}; sleep"]
    )
    if cell.cpu_s() is None:
        pytest.skip("no control group can be made here")
    eventually(lambda: (cell.cpu_s() or 0.0) >= 0.1 and len(cell.pids()) == 1, timeout_s=30.0)
    before = cell.cpu_s()
    assert before is not None
    assert cell.run("/usr/bin/perl", "-e", spin).status == 0
    after = cell.cpu_s()
    assert after is not None
    assert after - before < before / 2, "what the bench asks for is not the server's"
    account = cell._account
    assert account is not None
    cell.stop(0.2)
    assert not account.directory.exists()
