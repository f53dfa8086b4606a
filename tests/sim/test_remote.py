"""A remote host that nothing is said about, how its replies are timed, and what holds for any host."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.remote import RECIPIENTS_MAX, SIZE_MAX, Conn, RemoteHost
from tests.support.remote import PEER, RCPT, SENDER, host_of, ready


class TestPlainHost:
    def test_accepts_and_says_so_with_enhanced_codes(self):
        """A host that nothing is said about takes mail at once."""
        host = host_of()
        conn, greeting = host.connect(PEER, 0.0)
        assert str(greeting.reply) == "220 ESMTP testbed"
        replies = [
            str(host.command(conn, verb, argument, 0.0).reply)
            for verb, argument in (
                ("EHLO", "client.test"),
                ("MAIL", SENDER),
                ("RCPT", RCPT),
                ("DATA", ""),
            )
        ]
        assert replies == [
            "250 testbed",
            "250 2.1.0 Ok",
            "250 2.1.5 Ok",
            "354 End data with <CR><LF>.<CR><LF>",
        ]
        taken = host.end_of_data(conn, 4096, 0.0)
        assert str(taken.reply) == "250 2.0.0 Ok: queued"
        assert taken.delay_s == 0.0
        bye = host.command(conn, "QUIT", "", 0.0)
        assert str(bye.reply) == "221 2.0.0 Bye"
        assert bye.close
        assert host.open_count == 0

    @pytest.mark.parametrize(
        ("before", "verb", "code"),
        [
            ([], "MAIL", 503),
            (["EHLO"], "RCPT", 503),
            (["EHLO"], "DATA", 503),
            (["EHLO", "MAIL"], "MAIL", 503),
            (["EHLO", "MAIL"], "DATA", 554),
            (["EHLO", "MAIL", "RSET"], "RCPT", 503),
            (["EHLO", "MAIL", "RCPT", "EHLO"], "DATA", 503),
            (["EHLO", "MAIL", "RCPT"], "RCPT", 250),
            (["HELO"], "MAIL", 250),
            (["EHLO"], "VRFY", 252),
            ([], "NOOP", 250),
            ([], "RSET", 250),
            ([], "XYZZY", 500),
            ([], "STARTTLS", 500),
        ],
    )
    def test_keeps_the_order_of_commands(self, before: list[str], verb: str, code: int):
        """RFC 5321 4.1.4: a command that has no place is 503, one that nobody knows is 500."""
        host = host_of()
        conn, _ = host.connect(PEER, 0.0)
        for each in before:
            host.command(conn, each, RCPT, 0.0)
        verdict = host.command(conn, verb, RCPT, 0.0)
        assert verdict.reply is not None
        assert code == verdict.reply.code

    def test_takes_a_thousand_recipients_and_no_more(self):
        """Recipient 1,001 is 452 4.5.3 and the first thousand stay."""
        host = host_of()
        conn = ready(host)
        rcpts = [f"u{i}@flaky.test" for i in range(RECIPIENTS_MAX + 1)]
        verdict = host.transaction(conn, SENDER, rcpts, 1000, 1.0)
        codes = [reply.code for reply in verdict.results if reply is not None]
        assert codes == [250] * RECIPIENTS_MAX + [452]
        assert verdict.usable

    def test_refuses_a_message_that_is_too_big(self):
        """By its declared size at MAIL, by its real one at the dot; 552 5.3.4 both times."""
        host = host_of()
        conn = ready(host)
        assert str(host.command(conn, "MAIL", SENDER, 0.0, size=SIZE_MAX + 1).reply).startswith(
            "552"
        )
        host.command(conn, "MAIL", SENDER, 0.0)
        host.command(conn, "RCPT", RCPT, 0.0)
        host.command(conn, "DATA", "", 0.0)
        assert str(host.end_of_data(conn, SIZE_MAX + 1, 0.0).reply).startswith("552 5.3.4")

    def test_a_transaction_takes_no_time_and_all_recipients(self):
        """The fast way and verb by verb agree on the simplest case."""
        host = host_of()
        verdict = host.transaction(ready(host), SENDER, [RCPT, "eve@flaky.test"], 4096, 5.0)
        assert verdict.duration_s == 0.0
        assert verdict.usable
        assert [str(reply) for reply in verdict.results] == ["250 2.0.0 Ok: queued"] * 2


class TestTiming:
    def test_latency_is_shared_by_commands_that_come_together(self):
        """Pipelining helps against distance: one delay for the envelope, one for the dot."""
        host = host_of({"kind": "latency", "delay_s": 0.1})
        verdict = host.transaction(ready(host), SENDER, [RCPT] * 5, 4096, 1.0)
        assert verdict.duration_s == pytest.approx(0.2)

    def test_a_tarpit_is_not_shared(self):
        """MAIL, five times RCPT, DATA and the dot: eight replies, eight times the wait."""
        host = host_of({"kind": "tarpit", "delay_s": 0.1})
        verdict = host.transaction(ready(host), SENDER, [RCPT] * 5, 4096, 1.0)
        assert verdict.duration_s == pytest.approx(0.8)

    def test_a_tarpit_can_be_about_one_verb(self):
        """Only RCPT is slow: three recipients, three waits."""
        host = host_of({"kind": "tarpit", "delay_s": 2.0, "verbs": ["RCPT"]})
        verdict = host.transaction(ready(host), SENDER, [RCPT] * 3, 4096, 1.0)
        assert verdict.duration_s == pytest.approx(6.0)

    def test_latency_can_be_about_one_verb(self):
        """Only the dot is slow, as it is where content is scanned."""
        host = host_of({"kind": "latency", "delay_s": 3.0, "verbs": ["."]})
        conn, greeting = host.connect(PEER, 0.0)
        assert greeting.delay_s == 0.0
        host.command(conn, "EHLO", "x", 0.0)
        assert host.transaction(conn, SENDER, [RCPT], 4096, 1.0).duration_s == pytest.approx(3.0)

    def test_latencies_add_up(self):
        """A distance and a slow scanner are both there."""
        host = host_of(
            {"kind": "latency", "delay_s": 0.5}, {"kind": "latency", "delay_s": 3.0, "verbs": ["."]}
        )
        assert host.transaction(ready(host), SENDER, [RCPT], 9, 1.0).duration_s == pytest.approx(
            4.0
        )

    def test_lognormal_latency_has_the_median_that_was_asked_for(self):
        """Half of 4,001 greetings come sooner than the median, within 5 %."""
        host = host_of(
            {"kind": "latency", "law": "lognormal", "median_s": 0.35, "sigma": 1.41, "max_s": 60.0}
        )
        delays = sorted(host.connect(PEER, float(i))[1].delay_s for i in range(4001))
        assert delays[2000] == pytest.approx(0.35, rel=0.05)
        assert delays[-1] <= 60.0
        # P(<= 1 s) is 0.77 at the department whose sessions these parameters fit.
        assert sum(each <= 1.0 for each in delays) / 4001 == pytest.approx(0.77, abs=0.03)


BEHAVIOURS = st.lists(
    st.sampled_from(
        [
            {"kind": "accept"},
            {"kind": "latency", "delay_s": 0.5},
            {"kind": "latency", "law": "lognormal", "median_s": 0.1, "sigma": 1.0},
            {"kind": "latency", "delay_s": 0.5, "verbs": ["RCPT", "."]},
            {"kind": "tarpit", "delay_s": 0.25, "verbs": ["RCPT"]},
            {"kind": "reject", "probability": 0.3},
            {"kind": "reject", "probability": 0.3, "verb": "MAIL", "code": 550},
            {"kind": "reject", "probability": 0.2, "verb": "DATA", "code": 421},
            {"kind": "reject", "probability": 0.2, "verb": ".", "code": 452},
            {"kind": "drop", "probability": 0.1},
            {"kind": "drop", "probability": 0.1, "verb": "RCPT", "mode": "silent"},
            {"kind": "greylist", "wait_s": 3},
            {"kind": "fail-then-accept", "failures": 2},
            {"kind": "fail-then-accept", "per": "message"},
            {"kind": "limit-connections", "max": 2},
            {"kind": "limit-rate", "rate": 1.0, "burst": 3.0},
            {"kind": "limit-rate", "what": "recipients", "rate": 3.0},
            {"kind": "outage", "from_s": 5, "to_s": 8, "mode": "421"},
            {"kind": "outage", "from_s": 9, "to_s": 10, "every_s": 4},
            {"kind": "dns", "answer": "servfail"},
        ]
    ),
    max_size=4,
)


MESSAGES = st.lists(
    st.tuples(st.floats(0, 2), st.lists(st.sampled_from("abc"), min_size=1, max_size=3)),
    max_size=20,
)


def play(host: RemoteHost, messages: list[tuple[float, list[str]]]) -> list[object]:
    """Return everything that a host answers to a client that reconnects when it has to."""
    heard: list[object] = []
    now = 0.0
    conn: Conn | None = None
    for gap, rcpts in messages:
        now += gap
        if conn is None:
            conn, verdict = host.connect(PEER, now)
            heard.append(verdict)
            if verdict.close or verdict.reply is None:
                host.disconnect(conn, now)
                conn = None
                continue
            hello = host.command(conn, "EHLO", "x", now)
            heard.append(hello)
            if hello.close or hello.reply is None:
                host.disconnect(conn, now)
                conn = None
                continue
        outcome = host.transaction(conn, SENDER, [f"{each}@f.test" for each in rcpts], 99, now)
        heard.append(outcome)
        assert len(outcome.results) == len(rcpts)
        assert outcome.duration_s >= 0.0
        if outcome.duration_s < math.inf:
            now += outcome.duration_s
        if not outcome.usable or (host.next_change(now) is not None and not host.listening(now)):
            host.disconnect(conn, now)
            conn = None
    if conn is not None:
        host.disconnect(conn, now)
    assert host.open_count == 0
    return heard


class TestAlways:
    @given(BEHAVIOURS, MESSAGES, st.integers(0, 2**32))
    def test_the_same_seed_gives_the_same_verdicts(
        self, behaviours: list[dict[str, Any]], messages: list[tuple[float, list[str]]], seed: int
    ):
        """Two hosts from one seed can't be told apart."""
        assert play(host_of(*behaviours, seed=seed), messages) == play(
            host_of(*behaviours, seed=seed), messages
        )

    @given(
        st.sampled_from(
            [
                [],
                [{"kind": "latency", "delay_s": 0.0}],
                [{"kind": "latency", "delay_s": 0.3}],
                [{"kind": "latency", "law": "lognormal", "median_s": 0.1, "sigma": 1.5}],
                [{"kind": "latency", "delay_s": 0.1}, {"kind": "limit-connections", "max": 1}],
            ]
        ),
        MESSAGES,
        st.integers(0, 2**32),
    )
    def test_the_fast_way_is_the_verbs(
        self, behaviours: list[dict[str, Any]], messages: list[tuple[float, list[str]]], seed: int
    ):
        """A plain host answers a transaction as it answers its verbs, to the last bit."""
        fast, slow = host_of(*behaviours, seed=seed), host_of(*behaviours, seed=seed)
        assert fast._is_plain
        slow._is_plain = False
        assert play(fast, messages) == play(slow, messages)

    @given(BEHAVIOURS, MESSAGES, st.integers(0, 2**32))
    def test_one_more_behaviour_leaves_the_draws_of_the_others_alone(
        self, behaviours: list[dict[str, Any]], messages: list[tuple[float, list[str]]], seed: int
    ):
        """A scenario that differs in one thing differs in that thing: `accept` at the end is nothing."""
        more = [*behaviours, {"kind": "accept"}]
        assert play(host_of(*behaviours, seed=seed), messages) == play(
            host_of(*more, seed=seed), messages
        )
