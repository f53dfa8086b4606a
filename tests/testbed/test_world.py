# ruff: noqa: SIM117 - nesting shows who is inside whom
import json
import os
import select
import signal
import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import psutil
import pytest
import uvloop

from testbed.world.handle import World, WorldError
from testbed.world.records import Tally
from testbed.world.world import main, share_of
from tests.support.waiting import eventually

PATIENCE_S = 20.0

# libuv keeps one pipe for signals per process, from the first loop on: no leak, but a descriptor.
uvloop.new_event_loop().close()

SCENARIO = """
name = "two"
[load]
messages = 1
[[destinations]]
name = "steady"
domain = "steady.test"
hosts = 2
[[destinations]]
name = "flaky"
domain = "flaky.test"
behaviours = [{ kind = "outage", from_s = 5.0, to_s = 3600.0 }, { kind = "limit-connections", max = 2 }]
"""
STEADY, STEADY_2, FLAKY = "127.0.10.1", "127.0.10.2", "127.0.11.1"


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "two.toml"
    path.write_text(SCENARIO)
    return path


def deliver(address: str, port: int, count: int = 1) -> None:
    with smtplib.SMTP(address, port, local_hostname="client.test") as smtp:
        for i in range(count):
            smtp.sendmail("a@b.test", [f"u{i}@steady.test"], b"Subject: x\r\n\r\nhello\r\n")


def records(paths: list[Path]) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def gone(pid: int) -> bool:
    """Return True once a process has ended, reaped or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def a_process(*arguments: str, stdin: int = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command as an operator would; kill it at the end if the test has not ended it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "testbed.world", *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def event(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], PATIENCE_S)[0], "no event"
    line: dict[str, Any] = json.loads(process.stdout.readline())
    return line


class TestErrors:
    """What an operator can get wrong is one line and status 2."""

    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (["nope"], '"nope": there is no'),
            (["backlog", "--smtp-port", "70000"], "--smtp-port: 70000: must be from 0 to 65535"),
            (["backlog", "--dns-port", "-1"], "--dns-port: -1: must be from 0 to 65535"),
            (["backlog", "--processes", "0"], "--processes: 0: must be from 1 to 64"),
            (["backlog", "--start-at", "noon"], '--start-at: "noon": must be seconds'),
            (["backlog", "--set", "load.rat=1"], "load.rat = 1: unknown key"),
            (
                ["backlog", "--set", 'destinations.0.behaviours=[{kind="latencyy"}]'],
                'destinations.0.behaviours.0.kind = "latencyy": must be one of accept',
            ),
            (["backlog", "--record-dir", "/dev/null/x"], '--record-dir: "/dev/null/x"'),
        ],
    )
    def test_is_one_line(
        self,
        arguments: list[str],
        line: str,
        capsys: pytest.CaptureFixture[str],
        fds: Callable[[], dict[int, str]],
    ):
        """File or option, key, value and what is wrong."""
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("testbed world: ")
        assert err.count("\n") == 1
        assert line in err

    def test_a_taken_port_is_one_line(self, capsys: pytest.CaptureFixture[str]):
        """Taken on one of four addresses is taken."""
        with socket.socket() as other:
            other.bind((FLAKY, 0))
            other.listen()
            port = other.getsockname()[1]
            assert main(["backlog", "--smtp-port", str(port)]) == 2
        assert f"--smtp-port: {port}: {FLAKY}:{port} is taken" in capsys.readouterr().err


def test_hosts_are_dealt_out_to_processes():
    """Each host to one process, neighbours to different ones."""
    hosts: Any = {f"h{i}": i for i in range(5)}
    shares = [share_of(hosts, worker, 2) for worker in range(2)]
    assert [list(each) for each in shares] == [["h0", "h2", "h4"], ["h1", "h3"]]


@pytest.mark.system
class TestWorld:
    @pytest.mark.parametrize("processes", [1, 3])
    def test_a_run(
        self,
        scenario: Path,
        tmp_path: Path,
        processes: int,
        fds: Callable[[], dict[int, str]],
    ):
        """Start, deliver, begin, outage, count, stop: records complete, nothing left behind."""
        with World(scenario, record_dir=tmp_path / "run", processes=processes) as world:
            assert len(world.pids) == processes
            assert all(psutil.pid_exists(pid) for pid in world.pids)
            address, port = world.dns.split(":")
            query = dns.message.make_query("steady.test", "MX")
            answer = dns.query.udp(query, address, port=int(port), timeout=PATIENCE_S)
            assert sorted(str(one) for one in answer.answer[0]) == [
                "10 mx0.steady.test.",
                "10 mx1.steady.test.",
            ]
            deliver(STEADY, world.smtp_port, 3)
            deliver(FLAKY, world.smtp_port, 2)
            with (
                smtplib.SMTP(FLAKY, world.smtp_port, local_hostname="x"),
                smtplib.SMTP(FLAKY, world.smtp_port, local_hostname="x"),
            ):
                with pytest.raises(smtplib.SMTPConnectError, match="421"):
                    smtplib.SMTP(FLAKY, world.smtp_port, local_hostname="x")
            start = world.set_start(time.time() - 6.0)
            assert start == pytest.approx(time.time() - 6.0, abs=5.0)

            def refused() -> bool:
                with socket.socket() as sock:
                    return sock.connect_ex((FLAKY, world.smtp_port)) != 0

            eventually(refused)
            deliver(STEADY_2, world.smtp_port, 4)
            stats = world.stats()
            assert stats["messages"] == stats["records"] == 9
            assert stats["dns"]["queries"] == {"MX NOERROR": 1}
            assert len(records(world.records)) == 9
            with pytest.raises(WorldError, match="never decreases"):
                world.set_start(time.time() + 60.0)
            deliver(STEADY, world.smtp_port)
            pids = world.pids
        assert (world.final["messages"], world.final["records"]) == (10, 10)
        assert world.final["refused"] == {"CONNECT 421": 1}
        assert set(Tally.__slots__) <= set(world.final)
        found = records(world.records)
        assert len(found) == 10
        assert [one["rcpts"][0] for one in found if one["address"] == STEADY_2] == [
            f"u{i}@steady.test" for i in range(4)
        ]
        assert world.log.read_text() == ""
        assert all(gone(pid) for pid in pids)
        assert world.stop() == world.final

    def test_outages_count_from_the_start_that_was_set(self, tmp_path: Path, scenario: Path):
        """Away half a second after the start for half a second, under load, with uvloop as it runs:
        what was acknowledged and what was recorded are the same, message by message."""
        overrides = [
            "destinations.1.behaviours.0.from_s=0.3",
            "destinations.1.behaviours.0.to_s=0.8",
        ]
        acknowledged: list[str] = []
        refusals = resets = 0
        with World(scenario, record_dir=tmp_path / "run", overrides=overrides) as world:
            start = world.set_start()
            i = 0
            while time.time() < start + 1.2:
                try:
                    with smtplib.SMTP(FLAKY, world.smtp_port, "client.test", timeout=5) as smtp:
                        while time.time() < start + 1.2:
                            rcpt = f"u{i}@flaky.test"
                            i += 1
                            smtp.sendmail("a@b.test", [rcpt], b"\r\nx\r\n")
                            acknowledged.append(rcpt)
                except ConnectionRefusedError:
                    refusals += 1
                    time.sleep(0.002)
                except (smtplib.SMTPServerDisconnected, ConnectionError):
                    resets += 1
        found = records(world.records)
        assert [one["rcpts"][0] for one in found] == acknowledged
        assert refusals > 0
        assert resets >= 1
        at = [one["t"] - start for one in found]
        assert any(each < 0.3 for each in at)
        assert any(each >= 0.8 for each in at)
        assert not any(0.305 <= each < 0.795 for each in at)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_stops_it_and_flushes(self, scenario: Path, tmp_path: Path, number: int):
        """Status 0, the last event, and the records of what was just taken."""
        with a_process(str(scenario), "--record-dir", str(tmp_path / "run")) as process:
            ready = event(process)
            deliver(STEADY, ready["smtp_port"], 5)
            process.send_signal(number)
            stopped = event(process)
            assert (stopped["event"], stopped["messages"]) == ("stopped", 5)
            assert process.wait(PATIENCE_S) == 0
            assert process.stderr is not None
            assert process.stderr.read() == b""
        assert len(records([tmp_path / "run" / "sink-0.jsonl"])) == 5

    @pytest.mark.parametrize("processes", ["1", "2"])
    def test_it_ends_when_who_started_it_is_gone(self, scenario: Path, processes: str):
        """Standard input ends, even while clients are connected."""
        with a_process(str(scenario), "--processes", processes) as process:
            ready = event(process)
            with smtplib.SMTP(STEADY, ready["smtp_port"], "x"):
                assert process.stdin is not None
                process.stdin.close()
                assert event(process)["event"] == "stopped"
                assert process.wait(PATIENCE_S) == 0
            assert all(gone(pid) for pid in ready["pids"])

    def test_in_the_background_it_lives_without_input(self, scenario: Path):
        """``--ignore-input``: /dev/null as input is not the end."""
        with a_process(str(scenario), "--ignore-input", stdin=subprocess.DEVNULL) as process:
            ready = event(process)
            deliver(STEADY, ready["smtp_port"])
            process.terminate()
            assert event(process)["event"] == "stopped"
            assert process.wait(PATIENCE_S) == 0

    def test_requests_that_make_no_sense_are_answered(self, scenario: Path):
        """One error event each, and the world goes on."""
        with a_process(str(scenario)) as process:
            assert event(process)["event"] == "ready"
            assert process.stdin is not None
            requests = [
                b"nonsense",
                b"[]",
                b'{"cmd": "dance"}',
                b'{"cmd": "set_start", "epoch": "noon"}',
                b'{"cmd": "set_start", "epoch": true}',
            ]
            process.stdin.write(b"\n\n".join(requests) + b'\n{"cmd": "stats"}\n{"cmd": "stop"}\n')
            process.stdin.flush()
            events = [event(process) for _ in range(len(requests) + 2)]
            assert [each["event"] for each in events] == ["error"] * 5 + ["stats", "stopped"]
            assert process.wait(PATIENCE_S) == 0

    def test_a_process_that_dies_takes_the_world_down_loudly(self, scenario: Path):
        """Hosts that vanish unscripted would be believed to be the scenario: status 1 and one line."""
        with a_process(str(scenario), "--processes", "2") as process:
            ready = event(process)
            os.kill(ready["pids"][1], signal.SIGKILL)
            assert process.wait(PATIENCE_S) == 1
            assert process.stderr is not None
            assert process.stderr.read() == b"testbed world: process 1 ended with status -9\n"

    def test_a_full_disk_is_said_at_the_end(self, scenario: Path, tmp_path: Path):
        """Records that are missing make status 1, so that no ledger trusts the file."""
        run = tmp_path / "run"
        run.mkdir()
        (run / "sink-0.jsonl").symlink_to("/dev/full")
        with pytest.raises(WorldError, match="2 records could not be written"):
            with World(scenario, record_dir=run) as world:
                deliver(STEADY, world.smtp_port, 2)

    def test_a_start_that_fails_says_why(self, tmp_path: Path):
        """The world's own line is the error of the handle."""
        with pytest.raises(WorldError, match='"nope": there is no'):
            World("nope", record_dir=tmp_path / "run").start()

    def test_a_world_that_is_killed_is_noticed(self, scenario: Path, tmp_path: Path):
        """The next request says so; stopping cleans up."""
        world = World(scenario, record_dir=tmp_path / "run").start()
        os.kill(world.pids[0], signal.SIGKILL)
        with pytest.raises(WorldError, match="has ended"):
            world.stats()
        with pytest.raises(WorldError):
            world.stop()
        with suppress(WorldError):
            world.stop()
        assert gone(world.pids[0])
