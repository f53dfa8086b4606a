"""Every shape reaches the wire through Locust: messages leave when the shape says, whatever the scenario's own shape is."""

import itertools
import json
import subprocess

import pytest

from sim.scenario import load
from sim.workload import draw
from tests.loadtests.locusts import ROOT, command, run, sorted_messages

pytestmark = pytest.mark.system

MESSAGES = 120
SOME = (
    f"load.messages={MESSAGES}",
    "load.rate=240",
    "load.sessions=8",
    "load.arrivals=constant",
    "load.keep=true",
)
KINDS = ("steady", "ramp", "step", "spike", "soak", "burst", "day")


@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_is_chosen_by_option(serve, tmp_path, kind):
    """The instants of the record are those of the schedule that the shape makes, and nothing leaves before its instant."""
    done, _, lines = run(tmp_path, "--host", serve().url, "--shape", kind, settings=SOME)
    assert done.returncode == 0, done.stderr
    assert lines[-1]["outcomes"] == {"250": MESSAGES}
    due = draw(load("backlog", [*SOME, f"load.shape.kind={kind}"])).due_s.tolist()
    start = lines[0]["load_start"]
    for line, instant in zip(sorted_messages(lines), due, strict=True):
        assert line["scheduled"] - start == pytest.approx(instant, abs=1e-5)
        assert line["sent"] >= line["scheduled"] - 1e-5


def test_no_two_shapes_are_the_same():
    """They differ by a tenth of the run somewhere, so that the test above tells them apart."""
    due = {kind: draw(load("backlog", [*SOME, f"load.shape.kind={kind}"])).due_s for kind in KINDS}
    for one, other in itertools.combinations(KINDS, 2):
        assert max(abs(due[one] - due[other])) > 0.01 * MESSAGES / 240, (one, other)


def test_the_warm_up_of_a_run_is_in_no_statistics(serve, tmp_path):
    """Half of the run: messages of that half are sent and recorded, and are in no histogram."""
    summary = tmp_path / "end"
    some = (*SOME, "load.warm_up_s=0.25")
    done, rows, lines = run(
        tmp_path, "--host", serve().url, "--summary", str(summary), settings=some
    )
    assert done.returncode == 0, done.stderr
    end = json.loads(summary.read_text())
    assert end["outcomes"] == {"250": MESSAGES}
    assert len(sorted_messages(lines)) == MESSAGES
    edge = lines[0]["load_start"] + 0.25
    late = sum(line["scheduled"] >= edge for line in sorted_messages(lines))
    assert late == pytest.approx(MESSAGES / 2, abs=1)
    # The one that is due at the edge itself may be on either side of a microsecond's rounding.
    assert end["verbs"]["message"]["count"] == pytest.approx(late, abs=1)
    assert rows["message"]["num_requests"] == end["verbs"]["message"]["count"]


def test_a_shape_that_there_is_not():
    """The choices are words: the scenario's own shape has one, too."""
    done = subprocess.run(
        command("--headless", "--shape", "nope", settings=()),
        cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = [each for each in done.stderr.splitlines() if "invalid choice" in each]
    assert "'scenario'" in line
    assert "''" not in line
