"""Hosts that refuse: by chance, by name, the first time, or by hanging up."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.behaviours.refusals import FailThenAcceptBehaviour, GreylistBehaviour
from sim.remote import Conn
from tests.support.remote import PEER, RCPT, SENDER, host_of, rcpt_code, ready


class TestReject:
    def test_refuses_as_often_as_asked(self):
        """A tenth of 5,000 recipients, within four standard deviations."""
        host = host_of({"kind": "reject", "probability": 0.1, "code": 550})
        codes = [rcpt_code(host, f"u{i}@flaky.test", 0.0) for i in range(5000)]
        assert codes.count(550) == pytest.approx(500, abs=85)
        assert set(codes) == {250, 550}

    def test_a_bad_recipient_stays_bad(self):
        """With per_recipient, an address has one fate, and fates are as likely as asked."""
        host = host_of({"kind": "reject", "probability": 0.3, "code": 550, "per_recipient": True})
        first = [rcpt_code(host, f"u{i}@flaky.test", 0.0) for i in range(2000)]
        again = [rcpt_code(host, f"U{i}@Flaky.test", 9.0) for i in range(2000)]
        assert first == again
        assert first.count(550) == pytest.approx(600, abs=85)

    def test_can_be_about_some_recipients(self):
        """Of a transaction with three recipients, those that match are refused, the others taken."""
        host = host_of(
            {
                "kind": "reject",
                "match": ["bad*@*"],
                "code": 550,
                "enhanced": "5.1.1",
                "text": "No such user",
            }
        )
        verdict = host.transaction(
            ready(host), SENDER, ["a@f.test", "bad1@f.test", "b@f.test"], 9, 0.0
        )
        assert [str(each) for each in verdict.results] == [
            "250 2.0.0 Ok: queued",
            "550 5.1.1 No such user",
            "250 2.0.0 Ok: queued",
        ]

    @pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "."])
    def test_at_any_verb_no_recipient_is_taken_and_the_connection_lives(self, verb: str):
        """4xx at MAIL, RCPT, DATA or the dot decides about all recipients; the next message can come."""
        host = host_of({"kind": "reject", "verb": verb, "code": 451})
        conn = ready(host)
        for now in (1.0, 2.0):
            verdict = host.transaction(conn, SENDER, [RCPT, "eve@flaky.test"], 4096, now)
            assert [str(each) for each in verdict.results] == ["451 4.0.0 Not now"] * 2
            assert verdict.usable

    @pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "."])
    def test_421_closes_at_any_verb(self, verb: str):
        """421 means that the channel closes (RFC 5321 3.8); all recipients are deferred by it."""
        host = host_of({"kind": "reject", "verb": verb, "code": 421})
        verdict = host.transaction(ready(host), SENDER, [RCPT, "eve@flaky.test"], 4096, 0.0)
        assert [each.code for each in verdict.results if each] == [421, 421]
        assert not verdict.usable
        assert host.open_count == 0

    @pytest.mark.parametrize("code", [421, 554])
    def test_a_refused_greeting_closes(self, code: int):
        """Whatever the code, nothing can be done on the connection."""
        host = host_of({"kind": "reject", "verb": "CONNECT", "code": code})
        conn, verdict = host.connect(PEER, 0.0)
        assert verdict.reply is not None
        assert verdict.reply.code == code
        assert verdict.close
        assert conn.closed
        assert host.open_count == 0

    @pytest.mark.parametrize("verb", ["EHLO", "HELO"])
    def test_ehlo_and_helo_mean_each_other(self, verb: str):
        """A host that rejects the one rejects the other."""
        host = host_of({"kind": "reject", "verb": "EHLO", "code": 550})
        conn, _ = host.connect(PEER, 0.0)
        assert str(host.command(conn, verb, "x", 0.0).reply).startswith("550")


class TestDrop:
    @pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "."])
    def test_reset_leaves_every_recipient_open(self, verb: str):
        """No reply and a broken connection: nobody knows, so nobody bounces."""
        host = host_of({"kind": "drop", "verb": verb}, {"kind": "latency", "delay_s": 1.0})
        verdict = host.transaction(ready(host), SENDER, [RCPT, "eve@flaky.test"], 4096, 5.0)
        assert verdict.results == (None, None)
        assert not verdict.usable
        assert verdict.duration_s < math.inf
        assert host.open_count == 0

    @pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "."])
    def test_silence_is_for_ever(self, verb: str):
        """The client's patience has to end it; until then the connection counts as open."""
        host = host_of({"kind": "drop", "verb": verb, "mode": "silent"})
        conn = ready(host)
        verdict = host.transaction(conn, SENDER, [RCPT], 4096, 5.0)
        assert verdict == (math.inf, (None,), False)
        assert host.command(conn, "QUIT", "", 6.0).reply is None
        assert host.open_count == 1
        host.disconnect(conn, 7.0)
        assert host.open_count == 0


class TestGreylist:
    @pytest.mark.parametrize(
        ("times", "codes"),
        [
            ([0, 299], [451, 451]),
            ([0, 300], [451, 250]),
            ([0, 100, 200, 300], [451, 451, 451, 250]),
            ([0, 1000], [451, 250]),
            ([0, 1001], [451, 451]),
            ([0, 1001, 1301], [451, 451, 250]),
            ([0, 300, 301, 5300], [451, 250, 250, 250]),
            ([0, 300, 5300, 10300], [451, 250, 250, 250]),
            ([0, 300, 5301], [451, 250, 451]),
            ([0, 300, 5301, 5600, 5601], [451, 250, 451, 451, 250]),
        ],
    )
    def test_truth_table(self, times: list[float], codes: list[int]):
        """Wait 300 s, come back within 1,000 s, remembered for 5,000 s after the last message."""
        host = host_of(
            {"kind": "greylist", "wait_s": 300, "retry_window_s": 1000, "remember_s": 5000}
        )
        assert codes == [rcpt_code(host, RCPT, float(at)) for at in times]

    def test_all_three_parts_count_and_case_does_not(self):
        """Another client, sender or recipient is another triplet."""
        host = host_of({"kind": "greylist", "wait_s": 10})
        assert rcpt_code(host, RCPT, 0.0) == 451
        assert rcpt_code(host, RCPT.upper(), 10.0, sender=SENDER.upper()) == 250
        assert rcpt_code(host, "eve@flaky.test", 20.0) == 451
        assert rcpt_code(host, RCPT, 20.0, sender="eve@sender.test") == 451
        conn = ready(host, 20.0, peer="127.0.0.9")
        host.command(conn, "MAIL", SENDER, 20.0)
        assert str(host.command(conn, "RCPT", RCPT, 20.0).reply).startswith("451 4.7.1")

    def test_the_table_is_bounded_and_forgets_the_oldest(self):
        """Of three triplets in a table for two, the first has to start again."""
        (behaviour,) = (
            one
            for one in host_of({"kind": "greylist", "wait_s": 10, "max_entries": 2}).behaviours_at(
                0.0
            )
            if isinstance(one, GreylistBehaviour)
        )
        conn = Conn(PEER)
        conn.sender = SENDER

        def passes(rcpt: str, now: float) -> bool:
            return behaviour.judge(conn, "RCPT", rcpt, 0, now) is None

        assert [passes(name, 0.0) for name in "abc"] == [False] * 3
        assert len(behaviour) == 2
        assert [passes(name, 10.0) for name in "cba"] == [True, True, False]
        assert len(behaviour) == 2


class TestFailThenAccept:
    @given(st.integers(0, 5), st.lists(st.sampled_from("abc"), max_size=40))
    def test_exactly_the_first_n_attempts_of_each_recipient_fail(self, n: int, order: list[str]):
        """Whatever the order in which they come."""
        host = host_of({"kind": "fail-then-accept", "failures": n})
        seen = dict.fromkeys("abc", 0)
        for i, name in enumerate(order):
            code = rcpt_code(host, f"{name}@flaky.test", float(i))
            assert (code == 250) == (seen[name] >= n)
            seen[name] += 1

    @given(st.integers(0, 4), st.integers(1, 3))
    def test_exactly_the_first_n_attempts_of_each_message_fail(self, n: int, rounds: int):
        """A message that was accepted is forgotten: the next that looks like it fails again."""
        host = host_of({"kind": "fail-then-accept", "failures": n, "per": "message"})
        conn = ready(host)
        codes = []
        for i in range(rounds * (n + 1)):
            (reply,) = host.transaction(conn, SENDER, [RCPT], 4096, float(i)).results
            assert reply is not None
            codes.append(reply.code)
        assert codes == ([451] * n + [250]) * rounds

    def test_messages_are_told_apart(self):
        """Another size is another message."""
        host = host_of({"kind": "fail-then-accept", "per": "message"})
        conn = ready(host)
        codes = [
            host.transaction(conn, SENDER, [RCPT], size, 0.0).results[0].code  # type: ignore[union-attr]
            for size in (1, 2, 1, 2)
        ]
        assert codes == [451, 451, 250, 250]

    def test_can_be_about_clients(self):
        """Each client address is turned away twice with 421 and then let in."""
        host = host_of({"kind": "fail-then-accept", "failures": 2, "per": "client", "code": 421})
        codes = [
            host.connect(peer, 0.0)[1].reply.code  # type: ignore[union-attr]
            for peer in (
                "127.0.0.1",
                "127.0.0.2",
                "127.0.0.1",
                "127.0.0.1",
                "127.0.0.2",
                "127.0.0.2",
            )
        ]
        assert codes == [421, 421, 421, 220, 421, 220]

    def test_the_table_is_bounded(self):
        """Ten recipients in a table for four."""
        host = host_of({"kind": "fail-then-accept", "max_entries": 4})
        for i in range(10):
            rcpt_code(host, f"u{i}@flaky.test", 0.0)
        (behaviour,) = host.behaviours_at(0.0)
        assert isinstance(behaviour, FailThenAcceptBehaviour)
        assert len(behaviour) == 4
