"""A real server that runs short of memory refuses, keeps what it promised, and recovers."""

import contextlib
import socket
import subprocess
import time

import pytest

from tests.support.server import RunningServer, free_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

MIB = 1024 * 1024
LINE = b"x" * 1022 + b"\r\n"


class Sender:
    """A client that says one thing after the other, and may stop in the middle of a message."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 20)
        self.file = self.socket.makefile("rb")
        self.greeting = self.reply()

    def reply(self) -> str:
        while True:
            line = self.file.readline().decode()
            if line[3:4] != "-":
                return line

    def say(self, text: str) -> str:
        self.socket.sendall(text.encode() + b"\r\n")
        return self.reply()

    def begin(self, size: int) -> str:
        """Send the first ``size`` bytes of a message; return the reply to MAIL or DATA."""
        self.say("EHLO client.test")
        answer = self.say("MAIL FROM:<a@one.test>")
        if answer.startswith("250"):
            assert self.say("RCPT TO:<b@[127.0.0.2]>").startswith("250")
            answer = self.say("DATA")
            self.more(size)
        return answer

    def more(self, size: int) -> None:
        self.socket.sendall(LINE * (size // len(LINE)))

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def server(tmp_path):
    """A server whose limit is twice what it has when it starts."""
    config = {"relay": {"port": free_port("127.0.0.2")}}
    with RunningServer(tmp_path / "idle", config) as idle:
        rss = idle.until(lambda stats: stats["memory.usage"])
        assert rss["memory.limit"] > rss["memory.usage"] > MIB
        base = idle.rss_bytes()
    config["limits"] = {"memory": {"limit_bytes": 2 * base, "sample_s": 0.05}}
    with RunningServer(tmp_path / "short", config) as running:
        yield running


def test_a_server_short_of_memory_refuses_and_recovers(server):
    """452 at MAIL, then 421 at connect; what got 250 is in the queue; the gauges come back."""
    limit = server.stats()["memory.limit"]
    started = [server.until(lambda stats: stats["memory.usage"])["memory.pressure"]]
    assert [0] == started
    senders: list[Sender] = []
    with contextlib.ExitStack() as cleanup:

        def connect() -> Sender:
            sender = Sender(server.port)
            cleanup.callback(sender.close)
            return sender

        early = connect()
        assert early.begin(1000).startswith("354")
        answer = ""
        for _ in range(200):
            sender = connect()
            answer = sender.begin(MIB)
            if not answer.startswith("354"):
                break
            senders.append(sender)
            time.sleep(0.06)  # a sample
        assert answer.startswith("452 4.3.1 Insufficient system resources"), answer
        assert sender.say("NOOP").startswith("250"), "the connection goes on"
        assert server.ask("show", "status")[0]["memory"] == "soft"

        # Those that are at it fill the rest; each of these connections gets the news in time.
        greeting = ""
        deadline = time.monotonic() + 20
        while not greeting.startswith("421"):
            assert time.monotonic() < deadline, server.stats()
            for sender in senders:
                sender.more(MIB // 4)
            greeting = connect().greeting
        assert greeting.startswith("421 4.3.2 Load shedding"), greeting

        said = [sender.say(".")[:9] for sender in (early, *senders)]
        assert set(said) <= {"250 2.0.0", "452 4.3.1"}
        assert "452 4.3.1" in said, "none was given up"
        accepted = said.count("250 2.0.0")

        stats = server.until(lambda stats: not stats["memory.pressure"])
        assert stats["memory.usage"] < limit
        last = connect()
        assert last.begin(1000).startswith("354")
        assert last.say(".").startswith("250")
        accepted += 1
    stats = server.until(lambda stats: not stats["smtp.session"])
    assert (accepted, accepted) == (stats["queue.envelope"], len(server.ask("show", "queue")))
    assert (0, 0) == (stats["smtp.bytes"], stats["error.internal"])
    assert stats["memory.refused"] >= 3
    assert stats["memory.shrink"] >= 3
    log = server.log.read_text()
    for level in ("soft", "hard", "ok"):
        assert f"memory pressure={level} usage=" in log
    assert "Error" not in log


def test_bodies_in_memory_make_room(tmp_path):
    """A server that keeps whole messages takes more of them than fit, because they are on disk too."""
    config = {
        "relay": {"port": free_port("127.0.0.2")},
        "envelope": "whole",
    }
    with RunningServer(tmp_path / "idle", config) as idle:
        base = idle.rss_bytes()
    limit = base + 48 * MIB
    config["limits"] = {
        "memory": {"limit_bytes": limit, "sample_s": 0.05},
        "queue": {"cache_bytes": 0},
    }
    with RunningServer(tmp_path / "short", config) as server:
        sender = Sender(server.port)
        taken, deadline = 0, time.monotonic() + 60
        while taken < 2 * limit // MIB:
            assert time.monotonic() < deadline, server.stats()
            if sender.begin(MIB).startswith("354"):
                assert sender.say(".").startswith("250")
                taken += 1
            else:
                time.sleep(0.02)
        assert server.stats()["memory.shrink"] >= 1
        assert server.rss_bytes() < limit
        assert taken == len(server.ask("show", "queue"))
        sender.close()


def test_a_limit_on_address_space_is_found(tmp_path):
    """As ``ulimit -v`` sets it: the server says so and counts what the kernel counts."""
    import resource

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    server = RunningServer(tmp_path)
    real = subprocess.Popen

    def popen(*args, **options):
        return real(*args, preexec_fn=limited, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.support.server.subprocess.Popen", popen)
        server.start()
    try:
        stats = server.until(lambda stats: stats["memory.usage"])
        assert 1 << 30 == stats["memory.limit"]
        assert stats["memory.usage"] > server.rss_bytes()
    finally:
        assert 0 == server.stop()
