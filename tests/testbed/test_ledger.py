"""The account of a run: everything that was promised is in one place exactly."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed import ledger
from testbed.ledger import Ledger, read_lines, spread
from testbed.targets.base import Owed

RUN = "run-1"
START = 1000.0


def sent(seq: int = 0, **changes: Any) -> dict[str, Any]:
    """A line of the load's record: a message to a@x.test and b@y.test that was accepted."""
    line = {
        "kind": "message",
        "seq": seq,
        "scheduled": START + seq,
        "sent": START + seq,
        "done": START + seq + 0.01,
        "attempts": 1,
        "unsure": 0,
        "verb": ".",
        "code": 250,
        "reply": f"2.0.0 {seq:08x} Message accepted for delivery",
        "sender": "s@x.test",
        "rcpts": ["a@x.test", "b@y.test"],
        "accepted": ["a@x.test", "b@y.test"],
        "refused": [],
        "size": 1000,
        "digest": f"d{seq}",
    }
    return line | changes


def came(seq: int = 0, *rcpts: str, **changes: Any) -> dict[str, Any]:
    """A line of the world's records."""
    line = {
        "t": START + seq + 0.5,
        "address": "127.0.10.1",
        "session": "0.1",
        "mail_from": "s@x.test",
        "rcpts": list(rcpts),
        "size": 1200,
        "run": RUN,
        "seq": seq,
        "digest": f"d{seq}",
        "code": 250,
    }
    return line | changes


def account(load: list[dict[str, Any]], world: list[dict[str, Any]], **more: Any) -> Ledger:
    return ledger.build(
        load,
        world,
        run_id=RUN,
        start=START,
        queue_id=lambda reply: reply.split()[-5] if "accepted" in reply else "",
        destination=lambda recipient: recipient.rpartition("@")[2].partition(".")[0],
        **more,
    )


BOTH = came(0, "a@x.test", "b@y.test")
A, B = came(0, "a@x.test"), came(0, "b@y.test", address="127.0.11.1")
NOTHING = {
    "accepted": 2,
    "refused": 0,
    "delivered": 0,
    "bounced": 0,
    "queued": 0,
    "lost": 0,
    "duplicates": 0,
    "duplicates_client": 0,
    "altered": 0,
    "unexpected": 0,
    "unacknowledged": 0,
    "reordered": 0,
}

CASES: dict[
    str, tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any], dict[str, int]]
] = {
    "both arrive in one transaction": ([sent()], [BOTH], {}, {"delivered": 2}),
    "both arrive in two": ([sent()], [A, B], {}, {"delivered": 2}),
    "one is lost": ([sent()], [A], {}, {"delivered": 1, "lost": 1}),
    "all is lost": ([sent()], [], {}, {"lost": 2}),
    "one is still queued": (
        [sent()],
        [A],
        {"queued": [Owed("00000000", "b@y.test")]},
        {"delivered": 1, "queued": 1},
    ),
    "another message's envelope in the queue excuses nothing": (
        [sent()],
        [A],
        {"queued": [Owed("00000001", "b@y.test")]},
        {"delivered": 1, "lost": 1},
    ),
    "one bounced": (
        [sent()],
        [A],
        {"bounced": [Owed("00000000", "b@y.test")]},
        {"delivered": 1, "bounced": 1},
    ),
    "one arrives twice": ([sent()], [A, B, B], {}, {"delivered": 2, "duplicates": 1}),
    "one arrives three times": ([sent()], [A, B, B, B], {}, {"delivered": 2, "duplicates": 2}),
    "the client had no reply once and sent again": (
        [sent(attempts=2, unsure=1)],
        [BOTH, BOTH],
        {},
        {"delivered": 2, "duplicates_client": 2},
    ),
    "the client sent again once, and the server one more": (
        [sent(attempts=2, unsure=1)],
        [BOTH, BOTH, A],
        {},
        {"delivered": 2, "duplicates_client": 2, "duplicates": 1},
    ),
    "bytes differ": (
        [sent()],
        [A, came(0, "b@y.test", digest="other")],
        {},
        {"delivered": 2, "altered": 1},
    ),
    "refused and not sent": (
        [sent(code=452, accepted=[])],
        [],
        {},
        {"accepted": 0, "refused": 2},
    ),
    "refused and delivered all the same": (
        [sent(code=550, accepted=[])],
        [BOTH],
        {},
        {"accepted": 0, "refused": 2, "unexpected": 2},
    ),
    "no reply, and delivered": (
        [sent(code=0, reply="lost", accepted=["a@x.test", "b@y.test"], unsure=1)],
        [BOTH],
        {},
        {"accepted": 0, "refused": 2, "unacknowledged": 2},
    ),
    "one recipient was refused": (
        [sent(accepted=["a@x.test"])],
        [A],
        {},
        {"accepted": 1, "refused": 1, "delivered": 1},
    ),
    "a message that nobody sent": (
        [sent()],
        [BOTH, came(7, "a@x.test")],
        {},
        {"delivered": 2, "unexpected": 1},
    ),
    "warm-up does not count": (
        [sent()],
        [BOTH, came(0, "a@x.test", run="warm-up")],
        {},
        {"delivered": 2},
    ),
    "the second overtakes the first at one host": (
        [sent(0), sent(1)],
        [
            came(1, "a@x.test", t=START + 2.0),
            came(0, "a@x.test", t=START + 3.0),
            B,
            came(1, "b@y.test"),
        ],
        {},
        {"accepted": 4, "delivered": 4, "reordered": 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_accounts(name: str) -> None:
    """Each kind of end is counted where it belongs, and nowhere else."""
    load, world, more, expected = CASES[name]

    found = account(load, world, **more)

    assert NOTHING | expected == {key: getattr(found, key) for key in NOTHING}


def test_trouble_is_named() -> None:
    """Whoever looks for a lost recipient learns which it was."""
    found = account([sent(3)], [came(3, "a@x.test")])

    assert {"lost": ["seq 3 b@y.test"]} == found.examples


def test_latency_counts_from_the_due_instant() -> None:
    """A message that a slow server made late is late: what counts is when it was due."""
    found = account([sent(2, done=START + 2.25)], [came(2, "a@x.test", "b@y.test", t=START + 4.0)])

    assert 0.25 == found.accept_latency_s.p50
    assert {"x": 2.0, "y": 2.0} == {k: v.max for k, v in found.delivery_latency_s.items()}
    assert 4.0 == found.last_delivery_s


def test_flow_counts_recipients_per_half_second() -> None:
    """Accepted and delivered recipients appear in the interval in which they came."""
    found = account([sent(0, done=START + 0.1)], [came(0, "a@x.test", t=START + 1.2)])

    assert {
        "t": [0.0, 0.5, 1.0],
        "accepted": [2.0, 0.0, 0.0],
        "delivered": [0.0, 0.0, 1.0],
    } == found.flow


def test_a_bounce_that_arrives_is_a_report() -> None:
    """Mail from <> is counted as a report and is nobody's delivery."""
    found = account([sent()], [BOTH, came(-1, "s@x.test", mail_from="", run="")])

    assert 1 == found.reports
    assert 0 == found.unexpected


@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["a@x.test", "b@y.test"])), max_size=30
    ),
    queued=st.sets(st.tuples(st.integers(0, 3), st.sampled_from(["a@x.test", "b@y.test"]))),
    bounced=st.sets(st.tuples(st.integers(0, 3), st.sampled_from(["a@x.test", "b@y.test"]))),
)
def test_the_account_balances(
    arrivals: list[tuple[int, str]], queued: set[tuple[int, str]], bounced: set[tuple[int, str]]
) -> None:
    """Delivered, bounced, queued and lost are what was accepted; no arrival goes uncounted."""
    found = account(
        [sent(i) for i in range(4)],
        [came(seq, who) for seq, who in arrivals],
        queued=[Owed(f"{seq:08x}", who) for seq, who in queued],
        bounced=[Owed(f"{seq:08x}", who) for seq, who in bounced],
    )

    assert found.accepted == found.delivered + found.bounced + found.queued + found.lost
    assert len(arrivals) == found.delivered + found.duplicates + found.unexpected


def test_an_unreadable_queue_is_not_a_loss() -> None:
    """What can't be found is unaccounted for if nobody can look into the server's queue."""
    found = account([sent()], [A], queued=None)

    assert (1, 0, 0, 1) == (found.delivered, found.lost, found.queued, found.unaccounted)
    assert {} == found.examples


@pytest.mark.parametrize(
    ("later", "reordered"),
    [
        ({}, 1),
        # It was begun before the first one had its 250: neither was first.
        ({"sent": START + 0.005}, 0),
        ({"sender": "other@x.test"}, 0),
        # Begun after, and to another destination.
        ({"rcpts": ["b@y.test"], "accepted": ["b@y.test"]}, 0),
    ],
)
def test_order_is_of_a_sender_and_a_destination(later: dict[str, Any], reordered: int) -> None:
    """A message is before another if its 250 came before the other was begun, by the same sender to the same place."""
    one = {"rcpts": ["a@x.test"], "accepted": ["a@x.test"]}
    second = sent(1, **(one | later))
    found = account(
        [sent(0, **one), second],
        [came(1, *second["rcpts"], t=START + 2.0), came(0, "a@x.test", t=START + 3.0)],
    )

    assert reordered == found.reordered
    assert reordered == sum(each.reordered for each in found.destinations.values())


def test_each_destination_has_its_account() -> None:
    """Lost at one place and delivered at another, with the latencies of each."""
    found = account([sent()], [A], queued=[])

    x, y = found.destinations["x"], found.destinations["y"]
    assert (1, 1, 0) == (x.accepted, x.delivered, x.lost)
    assert (1, 0, 1) == (y.accepted, y.delivered, y.lost)
    assert (0.5, 0) == (x.delivery_latency_s.max, y.delivery_latency_s.count)
    assert 0.01 == x.accept_latency_s.max == y.accept_latency_s.max


COUNTS = ("offered", "accepted", "refused", "delivered", "bounced", "queued", "lost", "unaccounted")
COUNTS += ("duplicates", "altered", "reordered")
WHO = st.sampled_from(["a@x.test", "b@y.test"])


@given(
    messages=st.lists(
        st.tuples(st.sampled_from([250, 550, 0]), st.integers(0, 2), st.sets(WHO)), max_size=5
    ),
    arrivals=st.lists(
        st.tuples(st.integers(0, 6), WHO, st.booleans(), st.floats(0, 5)), max_size=30
    ),
    queued=st.none() | st.sets(st.tuples(st.integers(0, 4), WHO)),
)
def test_destinations_add_up(
    messages: list[tuple[int, int, set[str]]],
    arrivals: list[tuple[int, str, bool, float]],
    queued: set[tuple[int, str]] | None,
) -> None:
    """Whatever happened, everything is in one place exactly, at each destination and in all."""
    found = account(
        [
            sent(i, code=code, unsure=unsure, accepted=sorted(taken) if code == 250 else [])
            for i, (code, unsure, taken) in enumerate(messages)
        ],
        [
            came(seq, who, digest=f"d{seq}" if intact else "other", t=START + t)
            for seq, who, intact, t in arrivals
        ],
        queued=None if queued is None else [Owed(f"{seq:08x}", who) for seq, who in queued],
    )

    assert 2 * len(messages) == found.offered == found.accepted + found.refused
    for each in (found, *found.destinations.values()):
        assert each.accepted == each.placed
    for name in COUNTS:
        assert getattr(found, name) == sum(
            getattr(each, name) for each in found.destinations.values()
        ), name
    assert queued is not None or found.queued == found.lost == 0
    assert queued is None or found.unaccounted == 0
    assert found.reordered <= found.delivered + found.unacknowledged


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8))
def test_mail_in_order_is_never_reordered(gaps: list[tuple[int, int]]) -> None:
    """Messages that arrive in the order in which they were accepted are in order, however close; no clock is that exact."""
    t, load, world = START, [], []
    for i, (pause, took) in enumerate(gaps):
        load.append(sent(i, sent=t + pause, done=t + pause + took))
        t += pause + took
        world.append(came(i, "a@x.test", t=t))

    assert 0 == account(load, world).reordered


def test_a_torn_last_line_is_no_line(tmp_path: Path) -> None:
    """A writer that was killed leaves half a line, which is nothing; in the middle it is damage."""
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": 2')
    assert [{"a": 1}] == list(read_lines(file))
    file.write_bytes(b'{"a": 1\n{"a": 2}\n')
    with pytest.raises(ValueError, match="line 1"):
        list(read_lines(file))


def test_quantiles_are_values_that_occurred() -> None:
    """Nearest rank: no quantile lies between two measurements."""
    found = spread([0.4, 0.1, 0.3, 0.2])

    assert (4, 0.25, 0.2, 0.4, 0.4) == (found.count, found.mean, found.p50, found.p99, found.max)
    assert {0.1, 0.2, 0.3, 0.4} == set(found.quantiles)
    assert 0 == spread([]).count


def test_the_ledger_is_json() -> None:
    """ledger.json can hold it, and nothing in it is infinite."""
    found = ledger.to_json(account([sent()], [A]))

    assert found == json.loads(json.dumps(found, allow_nan=False))
