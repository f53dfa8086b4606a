"""The parts of the load that decide: options, expectations, records, and who sends what when."""

import json
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests._dialogue import Attempt
from loadtests._outcomes import Expectations, failure_of, name_of
from loadtests._player import STOPPED, Player
from loadtests._record import Recorder, Spread, three_digits
from loadtests._settings import Settings, address_of
from mta.core.settings import ConfigError
from sim.scenario import load
from sim.shares import GOLDEN, SILVER, in_share
from sim.workload import digest, draw, message_bytes

OPTIONS = Namespace(
    run_id="",
    tries=3,
    retry_wait=1.0,
    smtp_timeout=60.0,
    load_start=0.0,
    lag_max=0.05,
    expect="4xx",
    scenario="backlog",
)


def options(**changes: object) -> Namespace:
    return Namespace(**(vars(OPTIONS) | changes))


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("smtp://127.0.0.1:2525", ("127.0.0.1", 2525)),
        ("127.0.0.1:2525", ("127.0.0.1", 2525)),
        ("smtp://localhost", ("127.0.0.1", 25)),
        ("smtp://127.9.8.7:26/", ("127.9.8.7", 26)),
        ("smtp://[::1]:2525", ("::1", 2525)),
    ],
)
def test_the_host_is_on_this_machine(host, address):
    """An address of the loopback, with port 25 if there is none."""
    assert address_of(host) == address


@pytest.mark.parametrize(
    "host",
    [
        "smtp://mail.example.com:25",
        "smtp://10.0.0.1:25",
        "smtp://0.0.0.0:25",
        "http://127.0.0.1:25",
        "smtp://127.0.0.1:0",
        "smtp://127.0.0.1:65536",
        "smtp://127.0.0.1:port",
        "smtp://user@127.0.0.1:25",
        "smtp://127.0.0.1:25/x",
        "smtp://:25",
        "smtp://[::1",
        "",
    ],
)
def test_any_other_host_is_refused(host):
    """Load never leaves the machine, and nothing is looked up to find out."""
    with pytest.raises(ConfigError, match=r"^--host: "):
        address_of(host)


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"run_id": "a b"}, "--run-id"),
        ({"tries": 0}, "--tries"),
        ({"retry_wait": -1.0}, "--retry-wait"),
        ({"retry_wait": float("nan")}, "--retry-wait"),
        ({"smtp_timeout": 0.0}, "--smtp-timeout"),
        ({"load_start": -1.0}, "--load-start"),
        ({"lag_max": -1.0}, "--lag-max"),
        ({"expect": "4xx,what"}, "--expect"),
    ],
)
def test_options_that_make_no_sense_are_one_line(change, option):
    """Option, value and rule."""
    with pytest.raises(ConfigError, match=rf"^{option}: [^\n]+$"):
        Settings.read(options(**change), "smtp://127.0.0.1:2525")


def test_expectations_cover_what_they_name():
    """4xx is a class, 550 is one code, lost is no code at all; success needs no mention."""
    some = Expectations.parse("4xx, 550 lost")
    assert [some.covers(code) for code in (250, 354, 421, 452, 550, 0)] == [True] * 6
    assert not some.covers(551)
    none = Expectations.parse("")
    assert [none.covers(code) for code in (250, 452, 550, 0)] == [True, False, False, False]


@pytest.mark.parametrize("word", ["250", "2xx", "4x", "1000", "450-459", "٤٥٠", "Lost"])
def test_other_words_are_no_expectations(word):
    """The word itself is in the error."""
    with pytest.raises(ValueError, match=f"^{word}$"):
        Expectations.parse(f"4xx {word}")


def test_outcomes_have_few_names():
    """Addresses and ids in a reply do not multiply the rows of the statistics."""
    assert [name_of("message", code) for code in (250, 452, 0)] == [
        "message",
        "message 452",
        "message lost",
    ]
    assert str(failure_of("RCPT", 550, "5.1.1 <user81@a.test> unknown")) == "RCPT: 550 5.1.1"
    assert str(failure_of("RCPT", 550, "<user81@a.test> unknown")) == "RCPT: 550"
    assert str(failure_of(".", 0, "connection reset")) == ".: connection reset"


@given(st.floats(0.001, 1e6))
def test_rounding_keeps_three_digits(milliseconds):
    """Within half a percent, and above a microsecond; with few different values."""
    assert three_digits(milliseconds) == pytest.approx(milliseconds, rel=0.0051, abs=0.000501)


def test_percentiles_are_nearest_rank():
    """Of 1 to 200 the 99th percentile is 198."""
    spread = Spread()
    assert spread.summary() is None
    for value in range(200, 0, -1):
        spread.add(float(value))
    assert spread.summary() == {"p50": 100.0, "p99": 198.0, "max": 200.0}


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    """A record in the file ``record`` of the test's directory."""
    made = Recorder(tmp_path / "record")
    yield made
    made.close()
    made.close()


def player(*overrides: str, **changes: object) -> Player:
    scenario = load("backlog", ["load.messages=7", "load.rate=1000", *overrides])
    known: dict[str, Any] = {"run_id": "run", "start_at": time.time() - 60.0}
    return Player(scenario, draw(scenario), **(known | changes))


def settle(
    one: Player, code: int = 250, text: str = "2.0.0 Ok", attempts: int = 1, unsure: int = 0
) -> float:
    taken = one.take()
    assert taken is not None
    accepted = taken.recipients if code == 250 else ()
    last = Attempt(".", code, text, accepted, (), unsure=bool(unsure))
    return one.settle(taken, sent=one.now(), attempts=attempts, unsure=unsure, last=last)


def test_every_message_is_taken_once_and_recorded(tmp_path, recorder):
    """In the order of the schedule, with what a sink needs to know it again."""
    one = player(recorder=recorder)
    schedule = draw(load("backlog", ["load.messages=7", "load.rate=1000"]))
    for _ in range(7):
        assert not one.finished.is_set()
        # A minute late, and that is in the latency, because it counts from the message's instant.
        assert settle(one) == pytest.approx(60.0, abs=5.0)
    assert one.take() is None
    assert one.finished.is_set()
    end = one.end()
    assert end == one.end()
    start, *messages, last = lines_of(tmp_path / "record")
    assert (start["kind"], start["run"], start["messages"]) == ("start", "run", 7)
    assert last == end
    assert (end["complete"], end["outcomes"], end["accepted_envelopes"]) == (
        True,
        {"250": 7},
        schedule.envelopes,
    )
    assert [line["seq"] for line in messages] == list(range(7))
    for line in messages:
        message = message_bytes(schedule, line["seq"], "run")
        assert (line["size"], line["digest"]) == (len(message), digest(message))
        assert line["rcpts"] == [each.address for each in schedule.recipients(line["seq"])]
        assert line["scheduled"] == pytest.approx(
            start["load_start"] + schedule.due_s[line["seq"]], abs=1e-5
        )
        assert line["sent"] <= line["done"]


def test_shares_are_disjoint_and_complete():
    """Three processes together send each message once."""
    seqs = []
    for i in range(3):
        one = player(share=(i, 3))
        while (taken := one.take()) is not None:
            seqs.append(taken.seq)
    assert sorted(seqs) == list(range(7))


def test_no_message_is_taken_before_it_is_due():
    """The greenlet sleeps until the instant, and little longer."""
    one = player(start_at=time.time() + 0.05)
    taken = one.take()
    assert taken is not None
    assert 0 <= one.now() - taken.scheduled < 5.0


def test_a_busy_server_is_not_the_generators_lag():
    """Who asks late is late because of the server; only a late wake-up is the generator's."""
    one = player()
    settle(one)
    end = one.end()
    assert end["start_delay_s"]["p50"] > 50
    assert end["generator_lag_s"]["p50"] < 5
    assert (end["complete"], end["settled"]) == (False, 1)


def test_the_worst_lag_since_it_was_last_asked():
    """For whoever looks now and then; the lag of the whole run is not changed by it."""
    one = player()
    assert one.take_worst_lag_s() == 0.0
    for _ in range(3):
        settle(one)
    worst = one.take_worst_lag_s()
    assert one.take_worst_lag_s() == 0.0
    assert one.end()["generator_lag_s"]["max"] == round(worst, 6) > 0


def test_what_was_not_answered_is_told_apart(tmp_path, recorder):
    """Refused, lost, and stopped by the operator are three outcomes; retries are counted."""
    one = player(recorder=recorder)
    settle(one, 452, "4.3.1 Full")
    settle(one, 0, "connection reset", attempts=3, unsure=2)
    settle(one, 0, STOPPED)
    end = one.end()
    assert end["outcomes"] == {"452": 1, "lost": 1, STOPPED: 1}
    assert (end["retries"], end["accepted_envelopes"], end["latency_s"]) == (2, 0, None)
    lost = lines_of(tmp_path / "record")[2]
    assert (lost["code"], lost["attempts"], lost["unsure"], lost["accepted"]) == (0, 3, 2, [])


def test_who_is_stopped_while_waiting_has_sent_nothing(tmp_path, recorder):
    """A message whose instant never came is counted as stopped, and the record has no line for it."""
    one = player(recorder=recorder, start_at=time.time() + 3600.0)
    user = gevent.spawn(one.take)
    gevent.sleep(0)
    user.kill()
    assert (one.end()["outcomes"], one.end()["settled"], one.end()["complete"]) == (
        {STOPPED: 1},
        1,
        False,
    )
    assert [line["kind"] for line in lines_of(tmp_path / "record")] == ["start", "end"]


def test_a_closed_loop_has_no_instants():
    """A user thinks as long as the schedule says; the message is due then, and the generator is never late."""
    one = player("load.loop=closed", "load.think_s=0.01", "load.arrivals=constant")
    before = one.now()
    taken = one.take()
    assert taken is not None
    assert taken.scheduled == pytest.approx(before + 0.01, abs=0.005)
    assert one.lag_s == 0.0
    assert [one.rank(), one.rank()] == [0, 1]


def test_a_shape_of_a_closed_loop_is_its_crowd():
    """At the start of a ramp a fifth of the users takes part, at its end all; when it is steady, always all."""
    shaped = "load.shape.kind=ramp", "load.loop=closed"
    soon, late = player(*shaped, start_at=time.time() + 9), player(*shaped)
    assert [soon.takes_part(rank, 10) for rank in range(10)] == [True] * 2 + [False] * 8
    assert all(late.takes_part(rank, 10) for rank in range(10))
    assert player("load.loop=closed").takes_part(9, 10)


def test_shares_are_spread_evenly():
    """Close to the part that is asked for from the first few on; none and all are exact."""
    for share in (0.1, 0.3, 0.5, 0.9):
        for by in (GOLDEN, SILVER):
            for n in (20, 100, 1000):
                assert abs(sum(in_share(k, share, by) for k in range(n)) - share * n) <= 2
    assert not any(in_share(k, 0.0) for k in range(1000))
    assert all(in_share(k, 1.0) for k in range(1000))


def test_a_record_that_cannot_be_written_says_so(tmp_path):
    """The error is the operating system's, for the caller to report."""
    with pytest.raises(OSError, match="No such file"):
        Recorder(tmp_path / "none" / "record")
