"""A master and two workers on loopback: one schedule, nothing lost, and statistics as if one process had played it."""

import contextlib
import json
import signal
import urllib.parse
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from hdrh.histogram import HdrHistogram

from sim.scenario import load
from sim.workload import digest, draw, identify, message_bytes
from tests.loadtests.locusts import master, processes, run, started
from tests.support.server import free_port
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

MESSAGES = 300
SOME = (f"load.messages={MESSAGES}", "load.rate=300", "load.sessions=6", "load.keep=true")


def histograms(path: Path) -> dict[str, HdrHistogram]:
    """Return the histograms of a log by their tags."""
    found = {}
    for line in path.read_text().splitlines()[3:]:
        tag, _, _, _, encoded = line.split(",")
        found[tag.removeprefix("Tag=")] = HdrHistogram.decode(encoded)
    return found


def values(histogram: HdrHistogram) -> list[int]:
    """Return what was recorded, microseconds, in order."""
    return [
        each.value_iterated_to
        for each in histogram.get_recorded_iterator()
        for _ in range(each.count_at_value_iterated_to)
    ]


def test_two_workers_are_as_good_as_one(serve, tmp_path):
    """Workers that were given no options: every message arrives once and unchanged, and all adds up.

    The histogram of both is that of every single latency in their records, value by value.
    """
    server, port = serve(), free_port()
    where = ("--worker", "--master-host", "127.0.0.1", "--master-port", str(port))
    with started(*where, settings=()) as one, started(*where, settings=()) as other:
        done, rows, _ = run(
            tmp_path,
            *("--host", server.url, "--run-id", "pair", *master(port), "--expect-workers", "2"),
            *("--summary", str(tmp_path / "end"), "--histograms", str(tmp_path / "hdr")),
            settings=SOME,
        )
        assert [each.wait(timeout=30) for each in (one, other)] == [0, 0]
    assert done.returncode == 0, done.stderr
    schedule = draw(load("backlog", SOME))
    wanted = {("pair", i, digest(message_bytes(schedule, i, "pair"))) for i in range(MESSAGES)}
    arrived = [identify(each.message) for each in server.taken]
    assert len(arrived) == MESSAGES
    assert set(arrived) == wanted

    parts = [
        [json.loads(line) for line in (tmp_path / f"record.{i}.jsonl").read_text().splitlines()]
        for i in (0, 1)
    ]
    messages = [line for part in parts for line in part if line["kind"] == "message"]
    assert sorted(each["seq"] for each in messages) == list(range(MESSAGES))
    assert all(part[-1]["settled"] == MESSAGES // 2 for part in parts)
    assert parts[0][0]["load_start"] == parts[1][0]["load_start"]

    end = json.loads((tmp_path / "end").read_text())
    assert (end["run"], end["complete"], end["valid"]) == ("pair", True, True)
    assert (end["messages"], end["settled"]) == (MESSAGES, MESSAGES)
    assert end["outcomes"] == {"250": MESSAGES}
    assert end["accepted_envelopes"] == schedule.envelopes

    found = histograms(tmp_path / "hdr")
    latencies = sorted(round((each["done"] - each["scheduled"]) * 1e6) for each in messages)
    recorded = values(found["message"])
    assert len(recorded) == MESSAGES
    for value, latency in zip(recorded, latencies, strict=True):
        # Three digits of the histogram, and the microsecond to which the record rounds both instants.
        assert value == pytest.approx(latency, rel=0.001, abs=2)
    # Of every verb as many as the server heard, in Locust's rows and in the histograms.
    heard = Counter({verb: count for verb, count in server.verbs.items() if count})
    assert {name: each.get_total_count() for name, each in found.items()} == heard | {
        "message": MESSAGES
    }
    assert {name: row["num_requests"] for name, row in rows.items()} == heard | {
        "message": MESSAGES
    }


def test_wrong_options_of_two_processes_are_one_line(tmp_path):
    """Not one line from each of three processes."""
    done, _, _ = run(tmp_path, *processes(2), settings=("load.rate=fast",))
    assert done.returncode == 2
    assert done.stderr == '--set: load.rate = "fast": must be a number\n'


@pytest.mark.parametrize("how", ["signal", "run-time"])
def test_a_run_of_two_processes_that_is_cut_short_has_a_summary(serve, tmp_path, how):
    """Either way the workers are asked how far they came: what was accepted is what the server has.

    And lag is judged: with no time at all to be late in, one share after the other is invalid, hence the run.
    """
    server = serve()
    summary = tmp_path / "end"
    long = ("load.messages=6000", "load.rate=100", "load.sessions=4", "load.keep=true")
    limit = ("--run-time", "5s") if how == "run-time" else ("--lag-max", "0")
    arguments = ("--headless", "--host", server.url, "--summary", str(summary), *processes(2))
    with started(*arguments, *limit, settings=long) as process:
        eventually(lambda: len(server.taken) >= 10)
        if how == "signal":
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == (0 if how == "run-time" else 3)
    end = json.loads(summary.read_text())
    assert (end["complete"], end["messages"], len(end["workers"])) == (False, 6000, 2)
    assert {end["valid"], *(each["valid"] for each in end["workers"])} == {how == "run-time"}
    assert 10 <= end["outcomes"]["250"] <= len(server.taken) < 6000
    assert end["verbs"]["message"]["count"] == end["outcomes"]["250"]
    assert len(server.taken) - end["outcomes"]["250"] <= end["outcomes"].get("stopped", 0)


def test_a_worker_that_is_lost_takes_its_share_with_it(serve, tmp_path):
    """Killed in the middle: the run ends with status 1 and says so; what the other one did is in the summary."""
    server, port = serve(), free_port()
    summary = tmp_path / "end"
    where = ("--worker", "--master-host", "127.0.0.1", "--master-port", str(port))
    some = ("load.messages=200", "load.rate=200", "load.sessions=4", "load.keep=true")
    with started(*where, settings=()) as one, started(*where, settings=()) as other:
        arguments = ("--headless", "--host", server.url, "--summary", str(summary), *master(port))
        with started(
            *arguments, "--expect-workers", "2", "--loglevel", "ERROR", settings=some
        ) as head:
            eventually(lambda: len(server.taken) >= 10)
            one.kill()
            output, _ = head.communicate(timeout=60)
        assert other.wait(timeout=30) == 0
    assert head.returncode == 1
    assert "1 of 2 workers were lost with their shares of the load" in output
    end = json.loads(summary.read_text())
    assert (len(end["workers"]), end["outcomes"]) == (1, {"250": 100})
    assert len(server.taken) >= 100


def test_a_record_that_one_worker_cannot_write_ends_the_run(serve, tmp_path):
    """The second worker's part is a directory: one line, exit status 2."""
    server = serve()
    (tmp_path / "record.1.jsonl").mkdir()
    done, _, _ = run(tmp_path, "--host", server.url, "--loglevel", "ERROR", *processes(2))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("can't be written: Is a directory\n")
    assert not server.taken, "what the other one sent is not the load that was asked for"


def test_the_web_page_of_two_workers_survives_a_wrong_option(serve, tmp_path):
    """Nothing is sent, one line is in the log, and the next run is played by the same workers."""
    server, port = serve(), free_port()
    base = f"http://127.0.0.1:{port}"
    web = ("--web-port", str(port), "--host", server.url, "--loglevel", "ERROR")
    with started(*web, *processes(2), settings=SOME) as process:

        def swarms(scenario: str, spawn_rate: str = "6") -> bool:
            form = {"user_count": "6", "spawn_rate": spawn_rate, "scenario": scenario}
            form["host"] = server.url
            data = urllib.parse.urlencode(form).encode()
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{base}/swarm", data, 10) as answer,
            ):
                return bool(json.load(answer)["success"])
            return False

        def page() -> dict:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{base}/stats/requests", timeout=10) as answer,
            ):
                return dict(json.load(answer))
            return {}

        def two_are_ready() -> bool:
            return [each["state"] for each in page().get("workers", ())] == ["ready", "ready"]

        eventually(two_are_ready)
        assert swarms("nope")
        eventually(lambda: page()["state"] == "stopped" and two_are_ready())
        assert not server.verbs
        # The ramp takes longer than the schedule, which is not played again by those who come late.
        assert swarms("backlog", spawn_rate="2")
        eventually(lambda: len(server.taken) == MESSAGES)
        eventually(lambda: page()["state"] == "stopped")
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert output.count("there is no such scenario") == 1
    assert "Traceback" not in output
    assert sorted(identify(each.message).seq for each in server.taken) == list(range(MESSAGES))
