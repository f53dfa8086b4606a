"""A real server with few descriptors and many clients."""

import resource
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.server import RunningServer, free_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(60)]


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / 100


def test_clients_wait_and_mail_goes_on(tmp_path):
    """64 descriptors, 200 clients: some are served, the others told or waiting; nothing spins, a large
    body finds a descriptor, and when the clients go the next one gets in."""
    server = RunningServer(
        tmp_path,
        {
            "relay": {"port": free_port("127.0.0.2")},
            "limits": {"queue": {"body_file_bytes": 100}},
        },
    )
    real = subprocess.Popen

    def popen(*args, **options):
        few = (64, 64)
        return real(
            *args,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, few),
            **options,
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.support.server.subprocess.Popen", popen)
        server.start()
    clients: list[socket.socket] = []
    try:
        for _ in range(200):
            clients.append(socket.create_connection(("127.0.0.1", server.port), 10))
            clients[-1].settimeout(10)
        first = clients[0]
        assert first.recv(100).startswith(b"220 ")
        stats = server.until(lambda stats: stats["smtp.accept.paused"])
        assert stats["smtp.session"] < 48
        before = cpu_s(server.pid)
        for line in ("EHLO x", "MAIL FROM:<a@b.test>", "RCPT TO:<c@[127.0.0.2]>", "DATA"):
            first.sendall(line.encode() + b"\r\n")
            assert first.recv(1000)[:1] in b"23", line
        first.sendall(b"x" * 200 + b"\r\n.\r\n")
        assert first.recv(1000).startswith(b"250 "), "its body's file found no descriptor"
        last = clients[50].recv(100)
        assert last.startswith(b"421 4.3.2 "), last
        assert cpu_s(server.pid) - before < 2.0
        for client in clients:
            client.close()
        server.until(lambda stats: not stats["smtp.session"])
        with socket.create_connection(("127.0.0.1", server.port), 10) as client:
            assert client.recv(100).startswith(b"220 ")
        stats = server.until(lambda stats: not stats["smtp.accept.paused"])
        assert stats["smtp.accept.pauses"] >= 1
        assert stats["smtp.refused.connection"] >= 1
        assert 0 == stats["error.internal"]
        log = server.log.read_text()
        assert "smtp disabling incoming connections reason=descriptors" in log
        assert "smtp enabling incoming connections" in log
    finally:
        for client in clients:
            client.close()
        server.kill()
