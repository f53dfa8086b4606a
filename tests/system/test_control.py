"""`mtactl` against the real server: every verb does what it says."""

import os
import signal
import smtplib
import socket
import subprocess
import sys
import time

import pytest

from tests.support.server import ROOT, RunningServer, free_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


def send(server: RunningServer, *rcpts: str) -> str:
    with smtplib.SMTP("127.0.0.1", server.port, local_hostname="client.test") as smtp:
        smtp.ehlo()
        smtp.mail("a@one.test")
        for rcpt in rcpts:
            smtp.rcpt(rcpt)
        code, reply = smtp.data("Subject: hello\r\n\r\n" + "line\r\n" * 20)
    assert code == 250, reply
    return reply.split()[1].decode()


def refused(server: RunningServer, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mta.ctl", "-s", str(server.control), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode, done
    assert 1 == done.stderr.count("\n"), done.stderr
    return done.stderr


def settle(server: RunningServer, condition, *words: str) -> list[dict]:
    """Ask until the rows meet a condition."""
    deadline = time.monotonic() + 20
    while not condition(rows := server.ask(*words)):
        assert time.monotonic() < deadline, rows
        time.sleep(0.05)
    return rows


def logged(server: RunningServer, text: str, times: int = 1) -> None:
    """Wait until the log has a text: it is written in batches."""
    deadline = time.monotonic() + 10
    while server.log.read_text().count(text) < times:
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.02)


@pytest.fixture
def server(tmp_path):
    config = {"relay": {"port": free_port("127.0.0.2")}}
    with RunningServer(tmp_path, config) as running:
        yield running


def test_what_is_queued_is_shown(server):
    """Queue, envelope and message, by every kind of id."""
    msgid = send(server, "b@[127.0.0.2]", "c@[127.0.0.2]")
    rows = settle(
        server,
        lambda rows: len(rows) == 2 and all(row["state"] == "pending" for row in rows),
        "show",
        "queue",
    )
    assert [f"{msgid}00000001", f"{msgid}00000002"] == [row["evpid"] for row in rows]
    assert rows == server.ask("show", "queue", msgid)
    assert ["b@[127.0.0.2]", "c@[127.0.0.2]"] == [row["rcpt"] for row in rows]
    (one,) = server.ask("show", "envelope", f"{msgid}00000002")
    assert ("c@[127.0.0.2]", "client.test", "127.0.0.1", True) == (
        one["rcpt"],
        one["helo"],
        one["peer_address"],
        one["esmtp"],
    )
    done = subprocess.run(
        [sys.executable, "-m", "mta.ctl", "-s", str(server.control), "show", "message", msgid],
        cwd=ROOT,
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.startswith(b"Received: from client.test (localhost [127.0.0.1])")
    assert 20 == done.stdout.count(b"line")
    assert "no message" in refused(server, "show", "message", "00ffffff")
    assert "no envelope" in refused(server, "show", "envelope", "00ffffff00000001")


def test_what_is_relayed_is_shown(server):
    """Relays, routes, hosts: a destination that refuses connections is dead, and says so."""
    send(server, "b@[127.0.0.2]")
    (relay,) = settle(server, lambda rows: rows and "dead" in rows[0]["state"], "show", "relays")
    assert "[127.0.0.2]" == relay["domain"]
    assert "refused" in relay["last_status"]
    (route,) = server.ask("show", "routes")
    assert ("127.0.0.2", "disabled") == (route["address"], route["state"])
    (host,) = server.ask("show", "hosts")
    assert ("127.0.0.2", 1) == (host["address"], host["relays"])

    server.ask("resume", "route", "127.0.0.2")

    logged(server, "Enabling route [] <-> 127.0.0.2 per admin request")
    assert "no route" in refused(server, "resume", "route", "127.0.0.77")


def test_a_limit_counts_from_when_it_is_set(server):
    """For the next command of a client, and the log says what it was."""
    assert [1000] == [row["value"] for row in server.ask("show", "limits", "smtp.max_rcpt")]
    server.ask("set", "limits.smtp.max_rcpt=1")
    with smtplib.SMTP("127.0.0.1", server.port, local_hostname="client.test") as smtp:
        smtp.ehlo()
        smtp.mail("a@one.test")
        assert [250, 452] == [smtp.rcpt(f"{name}@[127.0.0.2]")[0] for name in "bc"]
    logged(server, "limits.smtp.max_rcpt 1000 -> 1")
    assert "needs a restart" in refused(server, "set", "limits.mda.policy=raised")


def test_one_destination_is_paused_while_the_other_goes_on(server):
    """Its mail waits; resumed, it is tried."""
    server.ask("pause", "mta", "for", "[127.0.0.2]")
    send(server, "b@[127.0.0.2]", "c@[127.0.0.3]")
    (paused,) = server.ask("show", "mta", "paused")
    assert ("mta", "[127.0.0.2]", None) == (paused["agent"], paused["only"], paused["source"])
    settle(
        server, lambda rows: [row["domain"] for row in rows] == ["[127.0.0.3]"], "show", "hoststats"
    )
    assert {"inflight", "in_flight"} & {row["state"] for row in server.ask("show", "queue")}
    server.ask("resume", "mta", "for", "[127.0.0.2]")
    settle(server, lambda rows: len(rows) == 2, "show", "hoststats")


def test_ages_times_and_the_live_view(server):
    """The shape of the queue, the profile, and one reading of top."""
    server.ask("profile")
    send(server, "b@[127.0.0.2]", "c@[127.0.0.2]")
    settle(server, lambda rows: len(rows) == 1, "show", "hoststats")
    total, one = server.ask("show", "shape")
    assert ("TOTAL", 2, 2) == (total["domain"], total["total"], total["ages"][0])
    assert ("[127.0.0.2]", 2) == (one["domain"], one["total"])
    server.ask("unprofile")
    rows = {(row["group"], row["name"]): row for row in server.ask("show", "profile")}
    assert 1 == rows["stimulus", "MessageSubmitted"]["count"]
    assert rows["effect", "sqlite commit"]["p99_s"] > 0
    (row,) = server.ask("top", "--once")
    assert 2 == row["stats"]["scheduler.envelope"]
    assert row["rates"]["messages"] > 0
    assert "[127.0.0.2]" == row["slowest"][0]["domain"]


def test_sessions_of_both_directions_are_shown(tmp_path):
    """A client in the middle of a message, and a host that never greets."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.2", 0))
        silent.listen()
        config = {"relay": {"port": silent.getsockname()[1]}}
        with RunningServer(tmp_path, config) as server:
            send(server, "b@[127.0.0.2]")
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                assert client.recv(100).startswith(b"220 ")
                client.sendall(b"EHLO busy.test\r\n")
                assert client.recv(1000).startswith(b"250")
                client.sendall(b"MAIL FROM:<>\r\nRCPT TO:<x@[127.0.0.2]>\r\nDATA\r\n")
                reply = b""
                while b"354" not in reply:
                    reply += client.recv(1000)
                rows = settle(server, lambda rows: len(rows) == 2, "show", "sessions")
                inward, outward = rows
                assert ("in", "127.0.0.1", "busy.test", "message") == tuple(
                    inward[key] for key in ("direction", "peer", "name", "state")
                )
                assert ("out", "127.0.0.2", "[127.0.0.2]") == tuple(
                    outward[key] for key in ("direction", "peer", "domain")
                )
                client.sendall(b"hello\r\n.\r\n")
                assert client.recv(1000).startswith(b"250 2.0.0")
            server.ask("remove", "all")
            # The host that never greets does not hold up the end.
            began = time.monotonic()
            assert 0 == server.stop()
            assert time.monotonic() - began < 10
            assert "" == server.errors


def test_envelopes_are_paused_resumed_scheduled_and_removed(server):
    """Each by envelope, by message, or all; the answer says how many."""
    first, second = send(server, "b@[127.0.0.2]", "c@[127.0.0.2]"), send(server, "d@[127.0.0.2]")
    server.until(lambda s: s["scheduler.envelope.pending"] == 3)

    server.ask("pause", "envelope", first)
    stats = server.until(lambda s: s["scheduler.envelope.suspended"] == 2)
    assert 1 == stats["scheduler.envelope.pending"]
    rows = {row["rcpt"][0]: row for row in server.ask("show", "queue")}
    assert ("suspended", "suspended", "pending") == tuple(rows[name]["state"] for name in "bcd")
    server.ask("resume", "envelope", f"{first}00000001")
    server.until(lambda s: s["scheduler.envelope.suspended"] == 1)

    attempts = rows["d"]["attempts"]
    server.ask("resume", "route", "127.0.0.2")
    server.ask("schedule", second)
    settle(server, lambda rows: rows and rows[0]["attempts"] > attempts, "show", "queue", second)

    server.ask("remove", f"{first}00000001")
    server.until(lambda s: s["queue.envelope"] == 2)
    server.ask("remove", "all")
    stats = server.until(lambda s: s["queue.envelope"] == 0 == s["scheduler.envelope"])
    assert 3 == stats["scheduler.envelope.removed"]
    assert [] == server.ask("show", "queue")
    logged(server, f"relay: Remove for {first}00000001: ")


def test_relaying_and_accepting_are_paused_and_resumed(server):
    """`pause mta` keeps mail here, `pause smtp` keeps it out; status says which."""
    server.ask("pause", "mta")
    send(server, "b@[127.0.0.2]")
    server.until(lambda s: s["scheduler.envelope.scheduled"] == 1)
    assert "mta connecting" not in server.log.read_text()
    server.ask("pause", "smtp")
    assert ("paused", "paused") == tuple(
        server.ask("show", "status")[0][key] for key in ("mta", "smtp")
    )
    with pytest.raises(smtplib.SMTPConnectError, match="421"):
        smtplib.SMTP("127.0.0.1", server.port)
    stats = server.stats()
    assert 1 == stats["smtp.refused.connection"]

    server.ask("resume", "smtp")
    server.ask("resume", "mta")

    server.until(lambda s: s["scheduler.envelope.pending"] == 1)
    send(server, "c@[127.0.0.2]")
    assert ("running", "running") == tuple(
        server.ask("show", "status")[0][key] for key in ("mta", "smtp")
    )


def test_traces_go_to_the_log_and_to_whoever_follows(server):
    """`trace smtp --follow` prints the dialogue as it happens; `trace smtp` writes it into the log."""
    follower = subprocess.Popen(
        [sys.executable, "-m", "mta.ctl", "-s", str(server.control), "trace", "smtp", "--follow"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with follower:
        try:
            server.until(lambda s: s["control.session"] >= 2)
            send(server, "b@[127.0.0.2]")
            assert follower.stdout is not None
            for line in follower.stdout:
                if "MAIL FROM:<a@one.test>" in line.upper().replace("A@ONE.TEST", "a@one.test"):
                    break
            else:
                raise AssertionError("the follower saw no MAIL")
        finally:
            follower.kill()
    assert "trace smtp:" not in server.log.read_text()

    server.ask("trace", "smtp")
    server.ask("log", "verbose")
    send(server, "b@[127.0.0.2]")
    server.ask("untrace", "smtp")
    server.ask("log", "brief")

    logged(server, "disconnected reason=quit", 2)
    lines = [line for line in server.log.read_text().splitlines() if "trace smtp:" in line]
    assert any("<<< DATA" in line.upper() for line in lines)
    send(server, "b@[127.0.0.2]")
    logged(server, "disconnected reason=quit", 3)
    assert len(lines) == server.log.read_text().count("trace smtp:")
    assert "nothing" in refused(server, "trace", "nothing")


def test_a_hang_up_opens_the_log_anew(server):
    """SIGHUP after a rotation: new lines go to the new file, none is lost, the server goes on."""
    old = server.log.rename(server.log.with_name("log.0"))
    send(server, "before@[127.0.0.2]")

    os.kill(server.pid, signal.SIGHUP)

    deadline = time.monotonic() + 10
    while not server.log.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    send(server, "after@[127.0.0.2]")
    server.until(lambda s: s["queue.envelope"] == 2)
    server.ask("remove", "all")
    assert 0 == server.stop()
    assert "before@" in old.read_text()
    assert "after@" in server.log.read_text()
    assert "mta stopped" in server.log.read_text()
    assert "" == server.errors


def test_a_drain_sends_idle_clients_away(server):
    """SIGTERM: an idle client hears 421 at once and does not hold up the end."""
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        assert client.recv(100).startswith(b"220 ")
        client.sendall(b"EHLO idle.test\r\n")
        assert client.recv(1000).startswith(b"250")
        began = time.monotonic()
        assert server.process is not None
        os.kill(server.pid, signal.SIGTERM)
        assert client.recv(1000).startswith(b"421 4.3.2 ")
    assert 0 == server.process.wait(20)
    assert time.monotonic() - began < 10
