"""The fast ways of a remote host are the slow way: same replies, same times, same draws."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sim.distributions import random_stream
from sim.remote import RemoteHost, build_host

LATENCY = st.sampled_from(
    [
        [],
        [{"kind": "latency", "delay_s": 0.0}],
        [{"kind": "latency", "delay_s": 0.3}],
        [{"kind": "latency", "law": "lognormal", "median_s": 0.1, "sigma": 1.5}],
    ]
)
JUDGE = st.one_of(
    st.builds(
        lambda verb, code, probability: {
            "kind": "reject",
            "verb": verb,
            "code": code,
            "probability": probability,
        },
        st.sampled_from(["MAIL", "RCPT", "DATA", "."]),
        st.sampled_from([421, 450, 550]),
        st.sampled_from([0.2, 0.6, 1.0]),
    ),
    st.just({"kind": "greylist"}),
    st.just({"kind": "limit-rate", "rate": 0.5, "burst": 2.0, "what": "recipients"}),
    st.just({"kind": "limit-rate", "rate": 0.5, "burst": 2.0, "what": "messages"}),
)
BEHAVIOURS = st.tuples(LATENCY, st.lists(JUDGE, max_size=3)).map(lambda both: [*both[0], *both[1]])
MESSAGES = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.5, 7.0]), st.lists(st.integers(0, 3), min_size=1, max_size=4)
    ),
    max_size=12,
)


def play(host: RemoteHost, messages: list[tuple[float, list[int]]]) -> list[object]:
    """Return all that a client sees who opens a connection when it has none."""
    seen: list[object] = []
    now, conn = 0.0, None
    for gap, rcpts in messages:
        now += gap
        if conn is None:
            conn, verdict = host.connect("127.0.0.1", now)
            seen.append(verdict)
            if verdict.close:
                conn = None
                continue
            seen.append(host.command(conn, "EHLO", "x", now))
        verdict_ = host.transaction(conn, "a@b.test", [f"u{i}@f.test" for i in rcpts], 99, now)
        seen += [
            verdict_,
            conn.sender,
            list(conn.rcpts),
            conn.closed,
            str(conn.wave_at),
            conn.waves,
        ]
        now += verdict_.duration_s
        if not verdict_.usable:
            host.disconnect(conn, now)
            conn = None
    seen.append(host.open_count)
    return seen


@given(BEHAVIOURS, MESSAGES, st.integers(0, 2**16))
def test_a_host_that_judges_answers_straight_as_it_does_verb_by_verb(
    behaviours: list[dict[str, Any]], messages: list[tuple[float, list[int]]], seed: int
):
    """Leaving out the verdicts that accept changes nothing, to the last bit of the last draw."""
    hosts = [build_host(behaviours, rng=random_stream(seed, "x")) for _ in range(2)]
    assert hosts[0]._is_straight
    hosts[0]._is_plain = False
    hosts[1]._is_plain = hosts[1]._is_straight = False
    assert play(hosts[0], messages) == play(hosts[1], messages)
