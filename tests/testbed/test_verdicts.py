"""What a comparison says of us: when a question is answered, how, and what is said where it can't be."""

from copy import deepcopy
from typing import Any

import pytest

from testbed.comparing import COLUMNS
from testbed.verdicts import MEMORY, SPEED, not_comparable, verdicts


def cell(
    label: str, unit: str = "envelopes", **values: float | list[float] | None
) -> dict[str, Any]:
    """Return one server's part of a scenario; quantities that are not given have no value."""
    quantities: dict[str, Any] = {}
    given: dict[str, Any] = {"lost": 0.0, "altered": 0.0, "queued": 0.0, "duplicates": 0.0,
                                "accepted": 100.0, **values}  # fmt: skip
    for name in COLUMNS:
        found = given.get(name)
        every = found if isinstance(found, list) else [] if found is None else [found]
        quantities[name] = {
            "median": sorted(every)[(len(every) - 1) // 2] if every else None,
            "low": min(every, default=None),
            "high": max(every, default=None),
            "values": every,
        }
    return {
        "label": label,
        "target": label,
        "repeats": 1,
        "runs": [],
        "quantities": quantities,
        "queue_unit": unit,
        "drained": [True],
        "watched_s": [30.0],
        "agents": {},
        "errors": {"pss": 1.0, "uss": 1.0},
        "failures": [],
        "unhealthy": [],
        "second_attempt_s": None,
    }


def section(name: str, *cells: dict[str, Any], rate: float | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "title": name,
        "question": "",
        "healthy": "",
        "load": {"messages": 100, "rate": rate, "clients": 20, "keep": True, "drain_s": 30.0, "outage": None},
        "left_out": {},
        "cells": list(cells),
    }  # fmt: skip


@pytest.fixture
def result() -> dict[str, Any]:
    """Ours 1,800/s with one sync; Postfix 600/s with one; OpenSMTPD 2,000/s with none, 240 B a queued envelope."""
    keeper = cell("opensmtpd", uss_per_envelope=336.0)
    keeper["agents"] = {
        "scheduler": {"bytes_per_envelope_uss": 240.0, "bytes_per_envelope_uss_stderr": 3.0}
    }
    return {
        "scenarios": [
            section(
                SPEED,
                cell("ours", messages_per_s=[1700.0, 1800.0, 1900.0], fsyncs_per_message=1.0),
                cell("postfix", "messages", messages_per_s=[590.0, 600.0, 650.0], fsyncs_per_message=1.02),
                cell("opensmtpd", messages_per_s=2000.0, fsyncs_per_message=0.0),
                cell("exim", "messages", messages_per_s=100.0, fsyncs_per_message=4.0),
            ),
            section(MEMORY, cell("ours", store_per_envelope=48.0, uss_per_envelope=80.0), keeper),
        ],
        "skipped": [],
        "failed": [],
    }  # fmt: skip


def test_both_are_met(result: dict[str, Any]) -> None:
    """The fastest that syncs as much is who counts, by medians; the worst case stands beside it."""
    speed, memory = verdicts(result)

    assert ("met", "postfix", 3.0) == (speed.answer, speed.against, speed.ratio)
    assert speed.low == pytest.approx(1700 / 650)
    assert "opensmtpd (syncs 0 times a message)" in speed.why
    assert ("met", "opensmtpd, scheduler", 5.0) == (memory.answer, memory.against, memory.ratio)
    assert "4.2 times" in memory.why  # the whole server of each
    assert "3.0 times" in memory.why  # all of ours against their scheduler alone


@pytest.mark.parametrize(("rate", "answer"), [(900.0, "met"), (899.0, "missed")])
def test_speed_has_a_threshold(result: dict[str, Any], rate: float, answer: str) -> None:
    """1.5 times is enough and less is not."""
    result["scenarios"][0]["cells"][0] = cell("ours", messages_per_s=rate, fsyncs_per_message=1.0)

    assert answer == verdicts(result)[0].answer


@pytest.mark.parametrize(("store", "answer"), [(60.0, "met"), (60.1, "missed")])
def test_memory_has_a_threshold(result: dict[str, Any], store: float, answer: str) -> None:
    """A quarter is enough and more is not."""
    result["scenarios"][1]["cells"][0] = cell("ours", store_per_envelope=store)

    assert answer == verdicts(result)[1].answer


def test_speed_without_durability_is_no_speed(result: dict[str, Any]) -> None:
    """If ours did not sync, the question is not answered in our favour."""
    ours = cell("ours", messages_per_s=9000.0, fsyncs_per_message=0.1)
    result["scenarios"][0]["cells"][0] = ours

    assert "not measured" == verdicts(result)[0].answer


def test_who_loses_mail_is_not_fast(result: dict[str, Any]) -> None:
    """Ours fails if it lost any; another server that lost any is nobody to be measured against."""
    cells = result["scenarios"][0]["cells"]
    cells[1] = cell("postfix", "messages", messages_per_s=5000.0, fsyncs_per_message=1.0, lost=1.0)
    assert ("met", "exim") == (verdicts(result)[0].answer, verdicts(result)[0].against)

    cells[0] = cell("ours", messages_per_s=9000.0, fsyncs_per_message=1.0, lost=2.0)
    assert "missed" == verdicts(result)[0].answer
    assert "2 recipients lost" in verdicts(result)[0].why


def test_without_strace_nobody_knows(result: dict[str, Any]) -> None:
    """Durability that was not counted is not assumed, neither ours nor theirs."""
    for each in result["scenarios"][0]["cells"]:
        each["quantities"]["fsyncs_per_message"] = {"median": None, "low": None, "high": None, "values": []}  # fmt: skip
    assert "not measured" == verdicts(result)[0].answer

    result["scenarios"][0]["cells"][0] = cell("ours", messages_per_s=9e3, fsyncs_per_message=1.0)
    speed = verdicts(result)[0]
    assert "not measured" == speed.answer
    assert "postfix (not counted)" in speed.why


@pytest.mark.parametrize("missing", [SPEED, MEMORY])
def test_what_was_not_run_is_not_measured(result: dict[str, Any], missing: str) -> None:
    """A comparison of other scenarios answers what it can."""
    result["scenarios"] = [each for each in result["scenarios"] if each["name"] != missing]

    answers = {each.answer for each in verdicts(result)}
    # Without the first, nobody's syncs are known either; the second stands alone.
    assert answers == {"met", "not measured"}


def test_every_server_may_be_missing(result: dict[str, Any]) -> None:
    """Whichever died or is not here: no question breaks."""
    for name in ("ours", "postfix", "opensmtpd", "exim"):
        left = deepcopy(result)
        for each in left["scenarios"]:
            each["cells"] = [one for one in each["cells"] if one["label"] != name]
        speed, memory = verdicts(left)
        assert (speed.answer == "not measured") == (name == "ours")
        assert (memory.answer == "not measured") == (name in ("ours", "opensmtpd"))
    assert {"not measured"} == {
        each.answer for each in verdicts({"scenarios": [], "skipped": [], "failed": []})
    }


def test_memory_that_moved_by_chance_is_no_measurement(result: dict[str, Any]) -> None:
    """A slope within two of its standard errors is not divided by."""
    agent = result["scenarios"][1]["cells"][1]["agents"]["scheduler"]
    agent["bytes_per_envelope_uss_stderr"] = 150.0

    assert "not measured" == verdicts(result)[1].answer


def test_noise_is_a_doubt(result: dict[str, Any]) -> None:
    """What other programs took of the machine is said with the verdict."""
    ours = cell("ours", messages_per_s=1800.0, fsyncs_per_message=1.0, foreign_cpu=0.4)
    result["scenarios"][0]["cells"][0] = ours

    assert "Doubtful: other programs took 40%" in verdicts(result)[0].why


def test_gaps_are_said_in_words(result: dict[str, Any]) -> None:
    """Not drained, not taken, not told, not synced, not run, not here: each is a line that names the server."""
    waits = cell("opensmtpd", queued=[1029.0], accepted_per_s=100.0, refused=[7.0])
    waits |= {"drained": [False], "watched_s": [42.4], "second_attempt_s": 400}
    result["scenarios"].append(section("backlog", cell("ours"), waits, rate=200.0))
    result["scenarios"][1]["left_out"] = {"exim": "it keeps no queue in memory"}
    result["skipped"] = ["postfix: postfix is not here: testbed peers install postfix"]
    result["failed"] = ["baseline, exim, 1: exim ended with status 9"]

    text = "\n".join(not_comparable(result))
    for words in (
        "testbed peers install postfix",
        "exim ended with status 9: this run is left out",
        "opensmtpd: backlog: not drained in 42 s, 1,029 recipients left in its queue: what failed once is tried again 400 s",
        "opensmtpd: took less than was offered: 100 messages/s of 200 in backlog.",
        "opensmtpd: refused 7 recipients in backlog",
        "opensmtpd: syncs 0 times a message",
        "exim: not in long-queue: it keeps no queue in memory",
        "postfix: does not tell envelopes",
    ):
        assert words in text
    assert "ours" not in text
