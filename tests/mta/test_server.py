"""The server as a whole, in this process: starting, refusing to start, being asked, and stopping."""

import asyncio
import os
import signal
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from mta.core.metrics import METRICS
from mta.core.pressure import Measure
from mta.core.settings import ConfigError
from mta.operations import Operations
from mta.queue.base import QueueUnavailableError
from tests.support.faults import FaultyEffects, Plan
from tests.support.inprocess import drained, send, serving
from tests.support.waiting import until

DEAD = "b@[127.0.0.7]"


@pytest.fixture(autouse=True)
def _quick(monkeypatch) -> None:
    monkeypatch.setattr("mta.server.gc.freeze", lambda: None)
    monkeypatch.setattr("mta.inbound_connection.LINGER_S", 0.05)
    monkeypatch.setattr("mta.restorer.AGAIN_S", 0.01)


async def problem(tmp_path: Path, **config) -> str:
    """Return the one line that a server does not start with."""
    with pytest.raises(ConfigError) as caught:
        async with serving(tmp_path, FaultyEffects(), **config):
            pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class TestRefusingToStart:
    """One line with file, key and value; nothing is left locked, bound or open."""

    @pytest.mark.parametrize(
        ("config", "line"),
        [
            ({"smtp": {"listen": "127.0.0.1"}}, 'smtp.listen = "127.0.0.1": expected address:port'),
            ({"smtp": {"listen": "no.such.host.test:25"}}, "not an address"),
            ({"control": {"metrics": "10.0.0.1:9"}}, "control.metrics"),
            ({"control": {"metrics": "x"}}, 'control.metrics = "x": expected address:port'),
            ({"log": {"file": "/nonexistent/log"}}, "log.file"),
            ({"log": {"stimuli": "/nonexistent/trace"}}, "log.stimuli"),
            ({"log": {"trace": ["smtp", "x"]}}, 'log.trace.1 = "x"'),
            ({"dns": {"nameserver": "x"}}, "dns.nameserver"),
            ({"smtp": {"listen": "127.0.0.1:0", "relay_networks": ["x"]}}, "smtp.relay_networks"),
        ],
    )
    async def test_what_can_not_be_used(self, tmp_path, fds, config, line):
        """Each key that only trying can tell of."""
        if "control" in config:
            config = {"control": {"socket": str(tmp_path / "control"), **config["control"]}}
        assert line in await problem(tmp_path, **config)

    async def test_a_metrics_address_that_is_not_ours_says_why(self, tmp_path):
        """Not `permission denied`: the operator would look for the wrong thing."""
        control = {"socket": str(tmp_path / "control"), "metrics": "10.0.0.1:9"}
        assert "not a loopback address" in await problem(tmp_path, control=control)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda data: b"not a database at all" * 100,
            lambda data: data[: len(data) // 2],
            lambda data: data[:4096] + b"\xff" * (len(data) - 4096),
            lambda data: b"",
        ],
        ids=["nonsense", "cut", "overwritten", "empty"],
    )
    async def test_a_damaged_queue(self, tmp_path, fds, spoil):
        """It is not touched; an empty file is a new queue."""
        async with serving(tmp_path, FaultyEffects()) as server:
            said = await send(server.smtp_address[1], "a@one.test", [DEAD], "x", size=30_000)
            assert said.accepted
        file = tmp_path / "queue" / "queue.db"
        spoilt = spoil(file.read_bytes())
        file.write_bytes(spoilt)
        for log in (tmp_path / "queue").glob("queue.db-*"):
            log.unlink()
        if not spoilt:
            async with serving(tmp_path, FaultyEffects()) as server:
                assert 0 == server.queue.envelopes
            return
        assert "queue.directory" in await problem(tmp_path)
        assert spoilt == file.read_bytes()

    async def test_a_fault_while_starting(self, tmp_path, fds):
        """A read that fails while orphans are looked for is one line as well."""
        effects = FaultyEffects(
            Plan(
                1,
                error=lambda: sqlite3.OperationalError("disk I/O error"),
                for_good=True,
                matches=lambda point: point.site == "read",
            )
        )
        (tmp_path / "queue" / "bodies").mkdir(parents=True)
        (tmp_path / "queue" / "bodies" / "00000001").touch()
        with pytest.raises(ConfigError, match=r"queue\.directory"):
            async with serving(tmp_path, effects):
                pass


class TestRunning:
    async def test_every_metric_is_there_and_none_is_unknown(self, tmp_path):
        """What is shown is `METRICS` and the uptime; counters that were moved have moved."""
        async with serving(tmp_path, FaultyEffects()) as server:
            await send(server.smtp_address[1], "a@one.test", [DEAD], "x")
            await until(lambda: server.engine.scheduler.counts.tempfail)
            stats = server.stats()
            assert {*METRICS, "uptime"} == set(stats)
            assert (1, 1, 1) == tuple(
                stats[name] for name in ("smtp.message", "queue.envelope", "smtp.session.inet4")
            )
            assert stats["memory.envelopes"] > 0
            assert stats["mta.session.failed"] == stats["mta.session.opened"] >= 1

    async def test_a_fault_of_ours_is_logged_and_counted(self, tmp_path):
        """What nobody foresaw is a warning with where it was; the server goes on."""
        async with serving(tmp_path, FaultyEffects()) as server:
            asyncio.get_running_loop().call_soon(lambda: 1 // 0)
            await asyncio.sleep(0.01)
            assert 1 == server.stats()["error.internal"]
            said = await send(server.smtp_address[1], "a@one.test", [DEAD], "x")
            assert said.accepted
        log = (tmp_path / "log").read_text()
        assert "warn: internal error: " in log
        assert "ZeroDivisionError" in log

    async def test_clients_that_take_too_long_are_counted(self, tmp_path):
        """smtp.timeout is theirs, and they are no refused commands."""
        async with serving(
            tmp_path, FaultyEffects(), limits={"smtp": {"timeout_s": 0.05}}
        ) as server:
            reader, writer = await asyncio.open_connection(*server.smtp_address)
            text = (await reader.read()).decode()
            assert "421 4.4.2 Timeout" in text
            stats = server.stats()
            assert (1, 0) == (stats["smtp.timeout"], stats["smtp.refused.temporary"])
            writer.close()
            await writer.wait_closed()

    async def test_slow_clients_make_room_under_stress(self, tmp_path, cleanup):
        """Clients that send a byte now and then fill the door; under stress they go, and mail gets in."""
        limits = {"max_conn": 10, "stress_timeout_s": 0.3}
        async with serving(tmp_path, FaultyEffects(), limits={"smtp": limits}) as server:
            host, port = server.smtp_address
            # Why no streams? What is written to a socket that the server has closed would cost the stream its answer.
            slow = [cleanup.enter_context(socket.create_connection((host, port))) for _ in range(8)]
            await until(lambda: 8 == server.door.connections)
            assert "no" == Operations(server).status()["stress"]
            slow += [
                cleanup.enter_context(socket.create_connection((host, port))) for _ in range(2)
            ]
            await until(lambda: 10 == server.door.connections)
            assert "yes" == Operations(server).status()["stress"]
            assert 1 == server.stats()["smtp.stress"]
            while server.door.connections:
                for client in slow:
                    with suppress(ConnectionError):
                        client.send(b"N")
                await asyncio.sleep(0.01)
            said = await send(port, "a@one.test", [DEAD], "x")
            assert said.accepted
            for client in slow:
                assert b"421 4.4.2 Timeout" in client.recv(4096)
            stats = server.stats()
            assert (10, 0, 1) == (
                stats["smtp.timeout"],
                stats["smtp.stress"],
                stats["smtp.stress.entered"],
            )
        log = (tmp_path / "log").read_text()
        assert "smtp stress began connections=9 max=10 timeout=0.3s" in log
        assert "smtp stress ended" in log

    async def test_short_of_memory_it_keeps_nothing_ready(self, tmp_path):
        """Bodies of fresh mail are let go first: they are in the queue, and delivered from there."""
        async with serving(tmp_path, FaultyEffects(), limits={"memory": {"sample_s": 0}}) as server:
            port = server.smtp_address[1]
            said = await send(port, "a@one.test", [DEAD], "x")
            assert said.accepted
            for usage, level in ((65, "low"), (80, "soft"), (95, "hard"), (10, "ok")):
                server.memory.take([Measure("ram", usage, 100)])
                assert level == Operations(server).status()["memory"]
                assert (level == "ok") != server.driver.recent.closed
                if level != "ok":
                    assert 0 == server.stats()["queue.evpcache.bytes"]
            said = await send(port, "a@one.test", [DEAD], "y")
            assert said.accepted

    async def test_a_refused_connection_is_counted_once(self, tmp_path):
        """As a connection, and not as a command too."""
        async with serving(tmp_path, FaultyEffects()) as server:
            server.door.paused = True
            reader, writer = await asyncio.open_connection(*server.smtp_address)
            assert (await reader.read()).startswith(b"421 4.3.2 ")
            stats = server.stats()
            assert (1, 0) == (stats["smtp.refused.connection"], stats["smtp.refused.temporary"])
            writer.close()
            await writer.wait_closed()

    async def test_the_operator_sees_clients_and_envelopes(self, tmp_path):
        """The rows of `Operations`, with what only the core knows."""
        async with serving(tmp_path, FaultyEffects()) as server:
            shown = Operations(server)
            assert "running" == shown.status()["smtp"]
            reader, writer = await asyncio.open_connection(*server.smtp_address)
            await reader.readline()
            (row,) = shown.sessions()
            assert ("in", "127.0.0.1", "command") == (row["direction"], row["peer"], row["state"])
            writer.close()
            await writer.wait_closed()
            await send(server.smtp_address[1], "a@one.test", [DEAD], "x")
            await until(lambda: server.engine.scheduler.counts.tempfail)
            (envelope,) = shown.queue_rows(None, None, 10)
            assert ("pending", "a@one.test", DEAD) == tuple(
                envelope[key] for key in ("state", "sender", "rcpt")
            )
            assert envelope["due_at"] > envelope["created_at"]
            (relay,) = shown.relays()
            assert "[127.0.0.7]" == relay["domain"]
            assert shown.message(1) is not None
            assert shown.message(2) is None
            assert shown.envelope(1) is None
            assert not shown.enable_route("127.0.0.99")

    async def test_a_message_that_can_not_be_read_is_not_shown(self, tmp_path):
        """`mtactl show message` says so; the server goes on."""
        effects = FaultyEffects()
        async with serving(tmp_path, effects) as server:
            await send(server.smtp_address[1], "a@one.test", [DEAD], "x")
            effects.plan = Plan(
                1,
                error=lambda: sqlite3.OperationalError("disk I/O error"),
                for_good=True,
                matches=lambda point: point.site == "read",
            )
            with pytest.raises(QueueUnavailableError):
                Operations(server).queue_rows(None, None, 10)
            effects.heal()


class TestStopping:
    async def test_a_signal_interrupts_restoring(self, tmp_path, monkeypatch):
        """A queue that can't be read now, and an operator who does not want to wait for it."""
        monkeypatch.setattr("mta.restorer.AGAIN_S", 3600.0)
        effects = FaultyEffects()
        async with serving(tmp_path, effects) as server:
            await send(server.smtp_address[1], "a@one.test", [DEAD], "x")
        effects.plan = Plan(
            1,
            error=lambda: sqlite3.OperationalError("disk I/O error"),
            for_good=True,
            matches=lambda point: point.site == "restore",
        )
        async with asyncio.timeout(20), serving(tmp_path, effects) as server:
            await until(lambda: server.restoring)
            assert server.stats()["scheduler.envelope"] == 0
            os.kill(os.getpid(), signal.SIGTERM)
        effects.heal()
        async with serving(tmp_path, effects) as server:
            await until(lambda: not server.restoring)
            assert 1 == len(server.engine.store)

    async def test_a_message_half_way_is_let_in_before_the_end(self, tmp_path):
        """The client at DATA gets its answer, then 421; the message is in the queue."""
        async with serving(tmp_path, FaultyEffects()) as server:
            reader, writer = await asyncio.open_connection(*server.smtp_address)
            writer.write(b"EHLO client.test\r\n")
            while not (await reader.readline()).startswith(b"250 "):
                pass
            writer.write(b"MAIL FROM:<a@one.test>\r\nRCPT TO:<b@[127.0.0.7]>\r\nDATA\r\n")
            while not (await reader.readline()).startswith(b"354 "):
                pass
            server.stop()
            await until(lambda: server.door.draining)
            writer.write(b"Subject: x\r\n\r\nhello\r\n.\r\n")
            text = (await reader.read()).decode()
            assert text.startswith("250 2.0.0 "), text
            assert "\r\n421 4.3.2 " in text
            writer.close()
            await writer.wait_closed()
        async with serving(tmp_path, FaultyEffects()) as server:
            await until(lambda: not server.restoring)
            assert 1 == server.queue.envelopes

    async def test_a_client_that_never_finishes_is_cut_off(self, tmp_path, fds):
        """After drain_s, with its connection."""
        async with serving(tmp_path, FaultyEffects(), drain_s=0.1) as server:
            reader, writer = await asyncio.open_connection(*server.smtp_address)
            writer.write(b"EHLO client.test\r\n")
            while not (await reader.readline()).startswith(b"250 "):
                pass
            writer.write(b"MAIL FROM:<>\r\nRCPT TO:<b@[127.0.0.7]>\r\nDATA\r\n")
            while not (await reader.readline()).startswith(b"354 "):
                pass
        with suppress(ConnectionResetError):
            assert b"" == await reader.read()
        writer.close()
        assert "cut off after drain_s" in (tmp_path / "log").read_text()

    async def test_an_empty_server_starts_and_stops(self, tmp_path, fds):
        """And leaves no descriptor, no socket, no lock."""
        async with serving(tmp_path, FaultyEffects()) as server:
            await drained(server)
        assert not (tmp_path / "control").exists()
