"""The bench lets a real server's disk be slow and full under load, and accounts for every recipient; the model beside it says the same."""

import json

import pytest

from testbed.progress import Display
from testbed.run import Options, execute
from testbed.rundir import Run

SCENARIO = """
name = "trouble"
seed = 5
drain_s = 40.0
representations = ["slim"]
[load]
messages = 400
rate = 50.0
sessions = 40
keep = true
lag_max_s = 60.0
[load.recipients]
law = "fixed"
count = 1
[[destinations]]
name = "steady"
domain = "steady.test"
behaviours = [{ kind = "latency", delay_s = 0.02 }]
[[timeline]]
at_s = 1.0
disk = "slow"
slower = 40.0
[[timeline]]
at_s = 2.0
disk = "well"
[[timeline]]
at_s = 3.0
disk = "full"
[[timeline]]
at_s = 4.5
disk = "well"
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run of it, model included."""
    place = tmp_path_factory.mktemp("trouble")
    (place / "trouble.toml").write_text(SCENARIO)
    options = Options(
        scenario=str(place / "trouble.toml"),
        out=place / "run",
        footprint=0,
        settle=False,
        is_part=True,
    )
    with Display(quiet=True) as display:
        return execute(options, display)


@pytest.mark.system
@pytest.mark.timeout(120)
def test_nothing_is_lost(run: Run):
    """Who was refused heard 452 and nothing else; what was accepted arrived, once."""
    part = run.summary["representations"]["slim"]
    assert run.summary["failures"] == []
    assert part["accepted"] == part["delivered"] == 400 - part["refused"]
    assert part["lost"] == part["duplicates"] == part["queued"] == part["unexpected"] == 0
    text = (run.directory / "slim" / "load.jsonl").read_text()
    sent = [line for line in map(json.loads, text.splitlines()) if line["kind"] == "message"]
    refused = [line for line in sent if line["code"] != 250]
    assert {line["code"] for line in refused} == {452}
    assert len(refused) == part["refused"]
    # It found room by itself, while clients were there.
    assert max(line["done"] for line in sent if line["code"] == 250) > max(
        line["done"] for line in refused
    )


@pytest.mark.system
@pytest.mark.timeout(120)
def test_each_phase_is_what_it_says(run: Run):
    """Later answers on the slow disk; refusals from the full one on only, for the 3 s until the second look."""
    well, slow, between, full, after = run.notes("slim").disk
    assert slow["p50"] > well["p50"]
    assert well["refused"] == slow["refused"] == between["refused"] == 0
    assert full["refused"] > 0
    assert after["accepted"] > 0
    operated = json.loads((run.directory / "slim" / "run.json").read_text())["operated"]
    said = ["disk slow 40x", "disk well", "disk full", "disk well"]
    assert [each["said"] for each in operated] == said


@pytest.mark.system
@pytest.mark.timeout(120)
def test_the_model_and_the_report_have_them_too(run: Run):
    """As many phases; each message is accepted or refused, the refused about as many."""
    found = run.summary["model"]["representations"]["slim"]
    counts = found["counts"]
    assert counts["accepted"] == counts["delivered"] == 400 - counts["refused"]
    well, slow, _between, _full, after = found["disk"]
    assert slow["p50"] > well["p50"]
    assert after["accepted"] > 0
    # Some 50 a second for 3 s, and up to a second more until the free space is looked at again.
    for refused in (counts["refused"], run.summary["representations"]["slim"]["refused"]):
        assert 75 <= refused <= 300
    page = (run.directory / "report.html").read_text()
    assert "<h2>The disk</h2>" in page
    assert "slow 40x" in page
