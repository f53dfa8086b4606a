"""The server as its operator starts, stops and breaks it."""

import os
import signal
import smtplib
import socket
import subprocess
import sys
import time

import pytest

from tests.support.server import ROOT, RunningServer, free_port

pytestmark = pytest.mark.system


def mta(*arguments, timeout=20):
    return subprocess.run(
        [sys.executable, "-m", "mta", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def complaint(done):
    """Return the one line that an operator's mistake is answered with."""
    assert 2 == done.returncode, done
    assert "" == done.stdout
    assert 1 == done.stderr.count("\n"), done.stderr
    return done.stderr


def write(tmp_path, text):
    path = tmp_path / "mta.toml"
    path.write_text(text)
    return str(path)


def test_an_unknown_key_is_named(tmp_path):
    """File, key and value, and what was probably meant; never a traceback."""
    path = write(tmp_path, "[limits.mta]\nmax_conn_per_hots = 2\n")

    line = complaint(mta("serve", "-c", path))

    assert f"mta: {path}: limits.mta.max_conn_per_hots = 2" in line
    assert "max_conn_per_host" in line


def test_a_value_of_the_wrong_type_is_named(tmp_path):
    """File, key and value."""
    path = write(tmp_path, '[limits.smtp]\nmax_rcpt = "many"\n')

    assert f'mta: {path}: limits.smtp.max_rcpt = "many"' in complaint(mta("serve", "-c", path))


@pytest.mark.parametrize("content", [None, "[smtp\n", b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    """Missing, not TOML, not text: one line."""
    path = tmp_path / "mta.toml"
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        path.write_bytes(content)

    assert f"mta: {path}: " in complaint(mta("serve", "-c", str(path)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("smtp.listen", "nonsense"),
        ("smtp.relay_networks", '["10.0.0.0/99"]'),
        ("dns.nameserver", "nobody"),
        ("log.trace", '["nothing"]'),
        ("log.file", "/nonexistent/log"),
        ("control.socket", "/nonexistent/control.sock"),
        ("queue.directory", "/proc/nowhere"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(tmp_path, key, value):
    """What types cannot tell is one line too, once it is tried."""
    settings = {
        "queue.directory": str(tmp_path / "queue"),
        "control.socket": str(tmp_path / "control.sock"),
        "smtp.listen": "127.0.0.1:0",
        key: value,
    }
    arguments = [word for k, v in settings.items() for word in ("--set", f"{k}={v}")]

    line = complaint(mta("serve", *arguments))

    assert key in line


def test_a_taken_port_is_named(tmp_path):
    """The port belongs to somebody else: one line, and nothing is left behind."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        path = write(
            tmp_path,
            f'[smtp]\nlisten = "{listen}"\n[queue]\ndirectory = "{tmp_path}/queue"\n'
            f'[control]\nsocket = "{tmp_path}/control.sock"\n',
        )

        line = complaint(mta("serve", "-c", path))

    assert f'mta: {path}: smtp.listen = "{listen}": in use' in line
    assert not (tmp_path / "control.sock").exists()


def test_the_queue_of_a_running_server_is_refused(tmp_path):
    """Two servers never share a queue; the one line names the process that has it."""
    with RunningServer(tmp_path / "first") as server:
        path = write(
            tmp_path,
            f'[smtp]\nlisten = "127.0.0.1:0"\n[queue]\ndirectory = "{tmp_path}/first/queue"\n'
            f'[control]\nsocket = "{tmp_path}/control.sock"\n',
        )

        line = complaint(mta("serve", "-c", path))

        assert "queue.directory" in line
        assert str(server.pid) in line


def test_a_drained_server_leaves_nothing(tmp_path):
    """SIGTERM ends it with status 0, without a word on standard error; gauges were 0 before."""
    sink = free_port("127.0.0.2")
    with RunningServer(tmp_path, {"relay": {"port": sink}}) as server:
        with smtplib.SMTP("127.0.0.1", server.port, local_hostname="client.test") as client:
            client.sendmail("a@one.test", ["b@[127.0.0.2]"], "Subject: x\r\n\r\nhello\r\n")
        server.until(lambda s: s["scheduler.envelope.pending"] == 1)
        server.ask("remove", "all")
        stats = server.until(
            lambda s: (
                s["scheduler.envelope"] == 0 and s["queue.envelope"] == 0 and not s["smtp.session"]
            )
        )
        assert 1 == stats["scheduler.envelope.removed"]

        assert 0 == server.stop()

    assert "" == server.errors
    assert not server.control.exists()
    assert "mta stopped" in server.log.read_text()


def test_a_second_signal_stops_at_once(tmp_path):
    """Two SIGTERMs in a row end it with status 0, though a client is in the middle of a message."""
    with RunningServer(tmp_path, {"drain_s": 60.0}) as server:
        client = socket.create_connection(("127.0.0.1", server.port))
        assert client.recv(200).startswith(b"220")
        client.sendall(b"EHLO client.test\r\nMAIL FROM:<a@one.test>\r\n")
        client.recv(500)
        started = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        while "stopping" not in server.log.read_text():
            assert time.monotonic() - started < 10
            time.sleep(0.02)
        assert 0 == server.stop(timeout_s=10)
        client.close()

    assert "" == server.errors


def test_envelopes_survive_a_restart(tmp_path):
    """What was queued before SIGTERM is queued after the start, with its attempts and its due time."""
    config = {"relay": {"port": free_port("127.0.0.2")}}
    server = RunningServer(tmp_path, config)
    with server:
        with smtplib.SMTP("127.0.0.1", server.port, local_hostname="client.test") as client:
            for number in range(3):
                rcpts = [f"u{number}@[127.0.0.2]", f"v{number}@[127.0.0.2]"]
                client.sendmail("a@one.test", rcpts, "Subject: x\r\n\r\nhello\r\n")
        server.until(lambda s: s["scheduler.envelope.pending"] == 6)
        before = server.ask("show", "queue")
        assert 0 == server.stop()
    with server:
        server.until(lambda s: s["scheduler.envelope"] == 6)
        assert before == server.ask("show", "queue")
        server.stop()
