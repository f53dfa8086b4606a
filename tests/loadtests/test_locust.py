"""Locust itself, as a child process: what the operator sees, types and gets back."""

import contextlib
import json
import signal
import socket
import subprocess
import urllib.parse
import urllib.request
from collections import Counter
from functools import partial

import pytest

from sim.scenario import load
from sim.workload import digest, draw, identify, message_bytes
from tests.loadtests.fake_server import OK
from tests.loadtests.locusts import MESSAGES, ROOT, SMALL, command, run, sorted_messages, started
from tests.support.server import free_port
from tests.support.waiting import eventually

pytestmark = pytest.mark.system


@pytest.mark.parametrize("keep", ["false", "true"])
def test_a_schedule_is_played_to_its_end(serve, tmp_path, keep):
    """Every message arrives once and unchanged, every verb is counted, the exit status is 0."""
    server = serve()
    done, rows, lines = run(
        tmp_path, "--host", server.url, "--run-id", "run-1", settings=(*SMALL, f"load.keep={keep}")
    )
    assert done.returncode == 0, done.stderr
    schedule = draw(load("backlog", SMALL))
    expected = {i: digest(message_bytes(schedule, i, "run-1")) for i in range(MESSAGES)}
    arrived = [identify(each.message) for each in server.taken]
    assert sorted(arrived) == sorted(("run-1", i, expected[i]) for i in range(MESSAGES))
    connections = server.verbs["CONNECT"]
    assert connections == MESSAGES if keep == "false" else connections <= 5
    counts = {name: row["num_requests"] for name, row in rows.items()}
    assert counts == {
        "CONNECT": connections,
        "EHLO": connections,
        "MAIL": MESSAGES,
        "RCPT": schedule.envelopes,
        "DATA": MESSAGES,
        ".": MESSAGES,
        "QUIT": connections,
        "message": MESSAGES,
    }
    # Finer than Locust's milliseconds: some verb on loopback takes a fraction of one.
    assert any(float(key) % 1 for key in rows["MAIL"]["response_times"])
    assert [lines[0]["kind"], lines[-1]["kind"]] == ["start", "end"]
    end = lines[-1]
    assert (end["complete"], end["outcomes"], end["retries"]) == (True, {"250": MESSAGES}, 0)
    assert [line["seq"] for line in sorted_messages(lines)] == list(range(MESSAGES))
    for line in sorted_messages(lines):
        due = lines[0]["load_start"] + schedule.due_s[line["seq"]]
        assert line["scheduled"] == pytest.approx(due, abs=1e-5)
        assert due - 1e-5 <= line["sent"] <= line["done"]


def test_a_full_server_is_no_failure(serve, tmp_path):
    """452 is an outcome with a name; the run succeeds."""
    server = serve(
        lambda verb, n: b"452 4.3.1 Full\r\n" if verb == "MAIL" and n % 3 == 0 else OK[verb]
    )
    done, rows, lines = run(tmp_path, "--host", server.url)
    assert done.returncode == 0, done.stderr
    assert rows["message 452"]["num_requests"] == rows["MAIL 452"]["num_requests"] == MESSAGES // 3
    assert rows["message"]["num_requests"] == MESSAGES - MESSAGES // 3
    assert lines[-1]["outcomes"] == {"250": MESSAGES - MESSAGES // 3, "452": MESSAGES // 3}


@pytest.mark.parametrize(("expect", "status"), [("4xx", 1), ("4xx,554", 0)])
def test_a_refusal_that_nobody_expected_is_a_failure(serve, tmp_path, expect, status):
    """Exit status 1, and one kind of failure, however many texts there were; unless it was expected."""
    server = serve(lambda verb, n: b"554 5.7.1 No %d\r\n" % n if verb == "." else OK[verb])
    done, rows, lines = run(tmp_path, "--host", server.url, "--expect", expect)
    assert done.returncode == status, done.stderr
    assert lines[-1]["outcomes"] == {"554": MESSAGES}
    if status:
        assert rows["message"]["num_failures"] == rows["."]["num_failures"] == MESSAGES
        assert done.stdout.count("554 5.7.1") == 0
    else:
        assert rows["message 554"]["num_failures"] == 0


def test_421_is_tried_again(serve, tmp_path):
    """The same message with the same number, over a new connection, as often as --tries says."""
    server = serve(
        lambda verb, n: b"421 4.3.2 Busy\r\n" if verb == "CONNECT" and n < 4 else OK[verb]
    )
    done, rows, lines = run(tmp_path, "--host", server.url, "--retry-wait", "0.05", "--tries", "5")
    assert done.returncode == 0, done.stderr
    assert rows["CONNECT 421"]["num_requests"] == 4
    assert (lines[-1]["outcomes"], lines[-1]["retries"]) == ({"250": MESSAGES}, 4)
    assert sum(line["attempts"] - 1 for line in sorted_messages(lines)) == 4
    assert len({identify(each.message).seq for each in server.taken}) == MESSAGES


def test_tries_have_an_end(serve, tmp_path):
    """A server that only ever says 421 gets each message N times, and the run ends."""
    server = serve(lambda verb, n: b"421 4.3.2 Busy\r\n")
    few = ("load.messages=4", "load.rate=100", "load.sessions=2")
    done, rows, lines = run(
        tmp_path, "--host", server.url, "--retry-wait", "0", "--tries", "2", settings=few
    )
    assert done.returncode == 0, done.stderr
    assert server.verbs["CONNECT"] == 8
    assert rows["message 421"]["num_requests"] == 4
    assert lines[-1]["outcomes"] == {"421": 4}


@pytest.mark.parametrize(("expect", "status"), [("4xx", 1), ("4xx,lost", 0)])
def test_a_connection_lost_after_the_dot_is_recorded_as_unsure(serve, tmp_path, expect, status):
    """The message is sent again, and the record says that the server may have it twice."""
    server = serve(lambda verb, n: None if verb == "." and n < 2 else OK[verb])
    done, _, lines = run(tmp_path, "--host", server.url, "--retry-wait", "0", "--expect", expect)
    assert done.returncode == status, done.stderr
    unsure = [line for line in sorted_messages(lines) if line["unsure"]]
    assert 1 <= len(unsure) <= 2
    assert sum(line["unsure"] for line in unsure) == 2
    assert all(line["code"] == 250 and line["attempts"] == line["unsure"] + 1 for line in unsure)
    assert len(server.taken) == MESSAGES + 2


def test_nobody_listens(tmp_path):
    """A refused connection is a failure of every message, and the run still ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    few = ("load.messages=3", "load.rate=100")
    done, rows, lines = run(
        tmp_path, "--host", f"smtp://127.0.0.1:{port}", "--retry-wait", "0", settings=few
    )
    assert done.returncode == 1
    assert rows["message"]["num_failures"] == 3
    assert lines[-1]["outcomes"] == {"lost": 3}
    assert {line["reply"] for line in sorted_messages(lines)} == {"connection refused"}


def test_users_of_a_closed_loop_think(serve, tmp_path):
    """Four users, 50 ms each: ten messages one after the other take half a second at least."""
    server = serve()
    some = ("load.messages=40", "load.users=4", "load.think_s=0.05", "load.arrivals=constant")
    done, _, lines = run(tmp_path, "--host", server.url, "--loop", "closed", settings=some)
    assert done.returncode == 0, done.stderr
    sent = sorted(line["sent"] for line in sorted_messages(lines))
    assert 0.4 <= sent[-1] - sent[0] <= 10
    assert lines[-1]["outcomes"] == {"250": 40}
    assert lines[0]["open_loop"] is False


def test_the_users_can_be_named(serve, tmp_path):
    """A class on the command line wins over the scenario, and so does a number of users."""
    server = serve()
    done, _, lines = run(tmp_path, "--host", server.url, "-u", "2", "-r", "2", "KeptConnection")
    assert done.returncode == 0, done.stderr
    assert server.verbs["CONNECT"] <= 2
    assert lines[-1]["outcomes"] == {"250": MESSAGES}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--scenario", "nope"), 'scenario: "nope": there is no such scenario; there are '),
        (("--scenario", "no/file.toml"), "no/file.toml: can't be read: No such file or directory"),
        (("--set", "load.rate=fast"), '--set: load.rate = "fast": must be a number'),
        (
            ("--host", "smtp://192.0.2.1:25"),
            '--host: "smtp://192.0.2.1:25": must be an address of this',
        ),
        (
            ("--host", "smtp://[::1]:25", "--set", "load.sources=2"),
            "scenario: load.sources = 2: needs --host with an address of IPv4",
        ),
        (("--run-id", "a b"), '--run-id: "a b": must be letters'),
        (("--expect", "maybe"), '--expect: "maybe": must be codes'),
        (("--record", "no/such/file"), '--record: "no/such/file": can\'t be written: No such file'),
        (
            ("--summary", "no/such/file"),
            '--summary: "no/such/file": can\'t be written: No such file',
        ),
        (("--histograms", "tests"), '--histograms: "tests": can\'t be written: Is a directory'),
        (
            ("--set", "load.warm_up_s=22", "--set", "load.messages=4400"),
            "scenario: load.warm_up_s = 22.0: must end before the load, which takes 22 s",
        ),
        (
            ("--master", "--master-bind-port", "0", "--record", "no/such/file"),
            '--record: "no/such/file.0": can\'t be written: No such file',
        ),
    ],
)
def test_what_the_operator_did_wrong_is_one_line(tmp_path, arguments, line):
    """And exit status 2, before anything is sent."""
    done = subprocess.run(
        command("--headless", *arguments, settings=()),
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_sigterm_leaves_a_record_with_an_end(serve, tmp_path):
    """What was under way is recorded as stopped, and as unsure if its dot was sent."""
    server = serve(lambda verb, n: b"" if verb == "." else OK[verb])
    record = tmp_path / "record"
    with started("--headless", "--host", server.url, "--record", str(record)) as process:
        eventually(lambda: server.verbs["."] == 5)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 0
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    end = lines[-1]
    assert (end["kind"], end["complete"], end["outcomes"]) == ("end", False, {"stopped": 5})
    assert [line["unsure"] for line in sorted_messages(lines)] == [1] * 5


def test_the_web_ui_starts_runs(serve, tmp_path):
    """The page is there; two runs in a row have different ids and one record."""
    server, port, record = serve(), free_port(), tmp_path / "record"
    base = f"http://127.0.0.1:{port}"

    def get(path: str, form: dict[str, str] | None = None) -> str:
        data = urllib.parse.urlencode(form).encode() if form else None
        with urllib.request.urlopen(base + path, data=data, timeout=10) as response:
            assert response.status == 200
            return str(response.read(), "utf-8")

    def is_up() -> bool:
        with contextlib.suppress(OSError):
            return "Locust" in get("/")
        return False

    def is_over(messages: int) -> bool:
        state = json.loads(get("/stats/requests"))["state"]
        return len(server.taken) == messages and bool(state == "stopped")

    web = ("--web-host", "127.0.0.1", "--web-port", str(port), "--run-id", "web")
    with started("--host", server.url, "--record", str(record), *web) as process:
        eventually(is_up)
        for messages in (MESSAGES, 2 * MESSAGES):
            form = {"user_count": "5", "spawn_rate": "5", "host": server.url, "scenario": "backlog"}
            assert json.loads(get("/swarm", form))["success"]
            eventually(partial(is_over, messages))
        rows = {row["name"]: row for row in json.loads(get("/stats/requests"))["stats"]}
        assert rows["message"]["num_requests"] == MESSAGES
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 0
    runs = Counter(identify(each.message).run for each in server.taken)
    assert runs == {"web": MESSAGES, "web.2": MESSAGES}
    kinds = [json.loads(line)["kind"] for line in record.read_text().splitlines()]
    assert [kind for kind in kinds if kind != "message"] == ["start", "end", "start", "end"]


def test_a_wrong_option_in_the_web_ui_stops_the_run(serve, tmp_path):
    """Nothing is sent, the line is in the log, and the page stays."""
    server, port = serve(), free_port()
    base = f"http://127.0.0.1:{port}"
    web = ("--web-host", "127.0.0.1", "--web-port", str(port), "--host", server.url)
    with started(*web) as process:

        def post(form: dict[str, str]) -> bool:
            data = urllib.parse.urlencode(form).encode()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{base}/swarm", data, 10):
                return True
            return False

        eventually(lambda: post({"user_count": "1", "spawn_rate": "1", "scenario": "nope"}))

        def is_over() -> bool:
            with urllib.request.urlopen(f"{base}/stats/requests", timeout=10) as response:
                return bool(json.load(response)["state"] == "stopped")

        eventually(is_over)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 2
        assert 'scenario: "nope": there is no such scenario' in output
        assert "Traceback" not in output
    assert not server.verbs
