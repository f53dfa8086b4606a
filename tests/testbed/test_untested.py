"""What is done to a server that has nothing to do shows nothing, and is not said to."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sim.scenario import load
from sim.timeline import Event
from testbed.gates import expectations, tripped
from testbed.rundir import Notes, Samples
from testbed.untested import untested

NOTES = Notes(
    run_id="x",
    representation="slim",
    load_start=1000.0,
    load_end=1012.5,
    drained=True,
    server_status=0,
    load_status=0,
    operated=[{"t": 6.02, "at_s": 6.0, "said": "set"}, {"t": 13.05, "at_s": 13.0, "said": "pause"}],
)
TIMELINE = [
    Event(6.0, set={"limits.mta.max_conn": 5}),
    Event(13.0, pause=["mta"]),
    Event(20.0, resume=["mta"]),
]


def samples(until: float) -> Samples:
    """A queue that is not empty until an instant."""
    t = np.arange(0.0, 30.0, 0.25)
    return Samples({"t": t, "scheduler.envelope": np.where(t < until, 10.0, 0.0)})


@pytest.mark.parametrize(
    ("notes", "until", "why"),
    [
        (NOTES, 25.0, ""),
        (NOTES, 13.5, ""),
        (NOTES, 9.0, "nothing waited at 13 s"),
        (replace(NOTES, load_end=1002.0), 4.0, "nothing waited at 6 s"),
        (replace(NOTES, load_end=1020.0), 9.0, ""),  # mail still comes
        (replace(NOTES, operated=NOTES.operated[:1]), 25.0, "the run was over before 13 s"),
    ],
)
def test_what_an_entry_found(notes: Notes, until: float, why: str) -> None:
    """Each entry needs mail that comes or waits; one that only undoes, as `resume`, does not."""
    assert why == untested(TIMELINE, notes, samples(until))
    assert "" == untested([], notes, samples(until))


def test_what_can_not_be_told_is_not_said_to_hold() -> None:
    """An expectation that holds of a run that asked nothing is neither kept nor broken; a gate on it fails."""
    summary = {"representations": {"slim": {"lost": 0, "duplicates": 2}}}
    found = expectations(["lost == 0", "duplicates == 0"], summary, {"slim": "nothing waited"})
    assert [None, False] == [each["holds"] for each in found]
    assert "can't tell: nothing waited (0)" == found[0]["value"]
    assert 2 == len(tripped(["unhealthy"], {**summary, "expected": found}))
    assert expectations(["lost == 0"], summary, {"slim": ""})[0]["holds"]


@pytest.mark.system
def test_a_timeline_that_comes_too_late(tmp_path: Path) -> None:
    """`limit-change` at a fiftieth of its length is over before anything is changed: it says so."""
    from testbed.progress import Display
    from testbed.run import Options, execute

    options = Options(
        scenario="limit-change",
        overrides=(
            "load.scale=0.02",
            "load.lag_max_s=60",
            "server.limits.mta.session_keepalive_s=0.3",
        ),
        out=tmp_path / "run",
        model=False,
        footprint=0,
        is_part=True,
        page=False,
    )
    with Display(quiet=True) as display:
        summary = execute(options, display).summary
    assert {None} == {each["holds"] for each in summary["expected"]}
    assert "can't tell" in summary["expected"][0]["value"]
    assert len(summary["warnings"]) >= len(load("limit-change").expects)
