"""A run that is not the load it says ends with exit status 3, whoever looks at its numbers."""

import json
import signal
import time

import pytest

from tests.loadtests.locusts import SMALL, run, started
from tests.support.waiting import eventually

pytestmark = pytest.mark.system


def test_a_generator_later_than_allowed_makes_the_run_invalid(serve, tmp_path):
    """Nothing leaves within no time at all: exit status 3, one line that says why, and the summary says it too."""
    server = serve()
    summary = tmp_path / "summary"
    done, rows, lines = run(
        tmp_path, "--host", server.url, "--summary", str(summary), "--lag-max", "0"
    )
    assert done.returncode == 3
    assert json.loads(summary.read_text())["valid"] is False
    assert lines[-1]["valid"] is False
    # It was played all the same, and its numbers are there.
    assert lines[-1]["complete"] is True
    assert rows["message"]["num_failures"] == 0


def test_a_generator_that_was_held_up_says_so(serve, tmp_path):
    """Stopped for half a second. Too few messages were due in just that moment to tell, but the pulse was away."""
    server, record = serve(), tmp_path / "record"
    many = (*SMALL, "load.messages=600", "load.rate=300", "load.sessions=3", "load.keep=true")
    arguments = ("--headless", "--loglevel", "ERROR", "--host", server.url, "--record", str(record))
    with started(*arguments, "--lag-max", "0.05", settings=many) as process:
        eventually(lambda: server.verbs["."] >= 100)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.6)
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 3, output
    assert "INVALID: the generator was late: p99 " in output
    end = json.loads(record.read_text().splitlines()[-1])
    assert (end["valid"], end["complete"], end["outcomes"]) == (False, True, {"250": 600})
    assert end["pulse_s"]["max"] >= 0.5
    assert end["pulse_s"]["p99"] > 0.05
