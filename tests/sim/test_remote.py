import math
import random
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mta.core.settings import ConfigError
from sim.behaviours import KINDS, read
from sim.behaviours.dns import DnsAnswer
from sim.behaviours.limits import LimitRateBehaviour
from sim.behaviours.refusals import FailThenAcceptBehaviour, GreylistBehaviour
from sim.behaviours.windows import WindowBehaviour
from sim.remote import (
    RECIPIENTS_MAX,
    SIZE_MAX,
    Conn,
    RemoteHost,
    build_host,
    build_hosts,
    build_name_servers,
)
from sim.scenario import Destination, Scenario

PEER = "127.0.0.1"
SENDER = "alice@sender.test"
RCPT = "bob@flaky.test"


def host_of(*behaviours: Mapping[str, Any], seed: int = 1) -> RemoteHost:
    return build_host(behaviours, rng=random.Random(seed))


def ready(host: RemoteHost, now: float = 0.0, peer: str = PEER) -> Conn:
    """Return a connection that has said EHLO."""
    conn, verdict = host.connect(peer, now)
    assert verdict.reply is not None, verdict
    assert not verdict.close, verdict
    host.command(conn, "EHLO", "client.test", now)
    return conn


def rcpt_code(host: RemoteHost, rcpt: str, now: float, *, sender: str = SENDER) -> int:
    """Return what one RCPT on a connection of its own is answered."""
    conn = ready(host, now)
    host.command(conn, "MAIL", sender, now)
    verdict = host.command(conn, "RCPT", rcpt, now)
    host.disconnect(conn, now)
    assert verdict.reply is not None
    return verdict.reply.code


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


class TestLimitConnections:
    @given(
        st.integers(0, 4),
        st.sampled_from(["host", "client"]),
        st.lists(
            st.tuples(st.sampled_from(["open", "quit", "drop"]), st.integers(0, 5)), max_size=60
        ),
    )
    def test_never_more_than_the_limit_and_never_less(
        self, limit: int, per: str, steps: list[tuple[str, int]]
    ):
        """A connection gets 421 if and only if so many are open already."""
        host = host_of({"kind": "limit-connections", "max": limit, "per": per})
        open_: list[Conn] = []
        for number, (step, which) in enumerate(steps):
            now = float(number)
            if step == "open":
                peer = f"127.0.0.{1 + which % 2}"
                mine = [one for one in open_ if per == "host" or one.peer == peer]
                conn, verdict = host.connect(peer, now)
                assert verdict.reply is not None
                assert (verdict.reply.code == 421) == (len(mine) >= limit) == verdict.close
                if not verdict.close:
                    open_.append(conn)
            elif open_:
                conn = open_.pop(which % len(open_))
                if step == "quit":
                    host.command(conn, "QUIT", "", now)
                host.disconnect(conn, now)
                host.disconnect(conn, now)
            assert host.open_count == len(open_)

    def test_a_silent_connection_keeps_its_place(self):
        """A host that hangs fills up."""
        host = host_of(
            {"kind": "limit-connections", "max": 1},
            {"kind": "drop", "verb": "EHLO", "mode": "silent"},
        )
        conn, _ = host.connect(PEER, 0.0)
        host.command(conn, "EHLO", "x", 0.0)
        assert host.connect(PEER, 1.0)[1].close
        host.disconnect(conn, 2.0)
        assert not host.connect(PEER, 3.0)[1].close


class TestLimitRate:
    @given(
        st.floats(0.1, 100),
        st.floats(1, 10),
        st.lists(st.floats(0, 2), min_size=1, max_size=80),
    )
    def test_a_bucket_never_gives_more_than_it_holds(
        self, rate: float, burst: float, gaps: list[float]
    ):
        """In any interval at most ``burst + rate * t`` messages pass."""
        host = host_of({"kind": "limit-rate", "rate": rate, "burst": burst})
        conn = ready(host)
        now = 0.0
        taken: list[float] = []
        for gap in gaps:
            now += gap
            (reply,) = host.transaction(conn, SENDER, [RCPT], 1000, now).results
            assert reply is not None
            assert reply.code in (250, 450)
            if reply.code == 250:
                taken.append(now)
        for i, first in enumerate(taken):
            for j in range(i, len(taken)):
                assert j - i + 1 <= burst + rate * (taken[j] - first) + 1e-6

    def test_a_sender_that_keeps_to_the_rate_is_never_refused(self):
        """Two a second pass for ever; the third in a second does not."""
        host = host_of({"kind": "limit-rate", "rate": 2.0})
        conn = ready(host)
        codes = [
            host.transaction(conn, SENDER, [RCPT], 9, at).results[0].code  # type: ignore[union-attr]
            for at in (0.0, 0.5, 1.0, 1.5, 1.75, 2.0, 2.25, 2.5)
        ]
        assert codes == [250, 250, 250, 250, 450, 250, 450, 250]

    def test_connections_above_the_rate_get_421(self):
        """The burst passes, then it is one a second."""
        host = host_of({"kind": "limit-rate", "what": "connections", "rate": 1.0, "burst": 2.0})
        verdicts = [host.connect(PEER, at)[1] for at in (0.0, 0.0, 0.0, 1.0, 1.5)]
        assert [each.reply.code for each in verdicts if each.reply] == [220, 220, 421, 220, 421]
        assert [each.close for each in verdicts] == [False, False, True, False, True]

    def test_messages_can_be_answered_with_421(self):
        """The answer that mail engineers know from large receivers: 421 that depends on the rate."""
        host = host_of({"kind": "limit-rate", "rate": 1.0, "code": 421, "enhanced": "4.7.28"})
        conn = ready(host)
        assert host.transaction(conn, SENDER, [RCPT], 9, 0.0).usable
        verdict = host.transaction(conn, SENDER, [RCPT], 9, 0.1)
        assert [str(each) for each in verdict.results] == ["421 4.7.28 Too much mail, slow down"]
        assert not verdict.usable

    def test_recipients_are_counted_one_by_one(self):
        """A message with five recipients gets three through a bucket of three."""
        host = host_of({"kind": "limit-rate", "what": "recipients", "rate": 0.0, "burst": 3})
        verdict = host.transaction(ready(host), SENDER, [f"u{i}@f.test" for i in range(5)], 9, 0.0)
        assert [each.code for each in verdict.results if each] == [250, 250, 250, 450, 450]

    def test_clients_have_buckets_of_their_own_and_few_are_kept(self):
        """Three clients, each with one message; two buckets are remembered."""
        host = host_of({"kind": "limit-rate", "rate": 0.0, "per": "client", "max_entries": 2})
        for peer in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
            conn = ready(host, peer=peer)
            codes = [
                host.transaction(conn, SENDER, [RCPT], 9, 0.0).results[0].code  # type: ignore[union-attr]
                for _ in range(2)
            ]
            assert codes == [250, 450]
        (behaviour,) = host.behaviours_at(0.0)
        assert isinstance(behaviour, LimitRateBehaviour)
        assert len(behaviour) == 2


class TestOutage:
    WINDOW: ClassVar[dict[str, Any]] = {"kind": "outage", "from_s": 3.0, "to_s": 18.0}

    def test_refuse_does_not_listen_from_the_first_instant_to_the_last(self):
        """The beginning belongs to the outage, the end does not."""
        host = host_of(self.WINDOW)
        at = (-1e9, 0.0, 2.999, 3.0, 10.0, 17.999, 18.0, 1e9)
        assert [host.listening(now) for now in at] == [True] * 3 + [False] * 3 + [True] * 2
        assert [host.next_change(now) for now in at] == [3.0] * 3 + [18.0] * 3 + [None] * 2

    def test_what_gets_through_nevertheless_is_reset(self):
        """A connection that was in the kernel's queue, and a command on one that was open."""
        host = host_of(self.WINDOW)
        conn = ready(host, 2.0)
        assert host.command(conn, "NOOP", "", 3.0) == (None, 0.0, 0.0, True)
        late, verdict = host.connect(PEER, 4.0)
        assert verdict == (None, 0.0, 0.0, True)
        assert late.closed
        assert host.open_count == 0
        assert not host.connect(PEER, 18.0)[1].close

    def test_421_answers_everything_with_it(self):
        """The greeting, and the next command of a kept connection."""
        host = host_of({**self.WINDOW, "mode": "421"})
        conn = ready(host, 2.0)
        assert host.listening(10.0)
        verdict = host.transaction(conn, SENDER, [RCPT], 9, 3.0)
        assert [str(each) for each in verdict.results] == [
            "421 4.3.2 Service not available, closing channel"
        ]
        assert not verdict.usable
        assert str(host.connect(PEER, 4.0)[1].reply).startswith("421 4.3.2")

    def test_silent_takes_connections_and_says_nothing(self):
        """Not even when the outage is over; new connections are greeted again."""
        host = host_of({**self.WINDOW, "mode": "silent"})
        assert host.listening(10.0)
        conn, verdict = host.connect(PEER, 4.0)
        assert verdict == (None, 0.0, 0.0, False)
        assert host.open_count == 1
        assert host.command(conn, "EHLO", "x", 20.0).reply is None
        host.disconnect(conn, 21.0)
        assert host.connect(PEER, 21.0)[1].reply is not None

    def test_a_silent_connection_is_reset_by_an_outage(self):
        """Who hangs in DATA learns of the outage, and until then nothing."""
        host = host_of({"kind": "drop", "verb": "DATA", "mode": "silent"}, self.WINDOW)
        conn = ready(host, 0.0)
        for verb, argument in (("MAIL", SENDER), ("RCPT", RCPT), ("DATA", "")):
            verdict = host.command(conn, verb, argument, 0.0)
        assert verdict.reply is None
        assert host.end_of_data(conn, 9, 1.0) == (None, 0.0, 0.0, False)
        assert host.end_of_data(conn, 9, 3.0) == (None, 0.0, 0.0, True)
        assert host.open_count == 0

    @pytest.mark.parametrize("extra", [[], [{"kind": "reject", "probability": 0.0}]])
    def test_a_transaction_that_the_outage_cuts_is_not_taken(self, extra: list[dict[str, Any]]):
        """The connection breaks at the beginning of the outage, not when the reply was due."""
        host = host_of({"kind": "latency", "delay_s": 0.25}, self.WINDOW, *extra)
        conn = ready(host, 1.0)
        assert host.transaction(conn, SENDER, [RCPT], 9, 2.0).usable
        for began_at, spent_s in ((2.625, 0.375), (2.875, 0.125)):
            conn = ready(host, 2.0)
            verdict = host.transaction(conn, SENDER, [RCPT], 9, began_at)
            assert verdict == (spent_s, (None,), False)
            assert conn.closed

    def test_a_look_ahead_of_one_connection_does_not_blind_the_host(self):
        """A transaction that ends after a short outage leaves the outage there for the others."""
        host = host_of(
            {"kind": "latency", "delay_s": 5.0},
            {"kind": "outage", "from_s": 11, "to_s": 12, "mode": "421"},
        )
        first, second = ready(host, 9.0), ready(host, 9.0)
        assert host.transaction(first, SENDER, [RCPT], 9, 10.0).usable
        assert not host.transaction(second, SENDER, [RCPT], 9, 11.5).usable

    @given(st.floats(0, 100), st.floats(0.125, 50), st.floats(0.125, 50), st.floats(-10, 5000))
    def test_a_host_that_flaps_changes_exactly_when_it_says(
        self, from_s: float, up_s: float, down_s: float, now: float
    ):
        """`next_change` is after ``now``, the state there is the other one, and nothing between."""
        window = WindowBehaviour(from_s, from_s + down_s, down_s + up_s, "refuse")
        change = window.next_change(now)
        assert change > now
        between = now + (change - now) / 2
        assert window.away(between) == window.away(now)
        # At an end that is reached by repeated rounding the state may differ within an ulp.
        after = change + 1e-6
        assume(window.next_change(change) > after)
        assert window.away(after) != window.away(now)

    def test_dead_is_dead_before_the_start_and_for_ever(self):
        """Refusing or silent; and it never changes."""
        host = host_of({"kind": "dead"})
        assert not host.listening(-1e9)
        assert not host.listening(1e9)
        assert host.next_change(0.0) is None
        silent = host_of({"kind": "dead", "mode": "silent"})
        assert silent.listening(0.0)
        assert silent.connect(PEER, 0.0)[1] == (None, 0.0, 0.0, False)


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


class TestConfig:
    @pytest.mark.parametrize(
        ("behaviour", "line"),
        [
            ({"kind": "tarpitt"}, "s.toml: destinations.1.behaviours.0.kind"),
            ({}, "s.toml: destinations.1.behaviours.0.kind"),
            ({"kind": 7}, "s.toml: destinations.1.behaviours.0.kind = 7"),
            (
                {"kind": "latency", "median": 1},
                "s.toml: destinations.1.behaviours.0.median = 1: unknown key",
            ),
            (
                {"kind": "latency", "delay_s": "1"},
                's.toml: destinations.1.behaviours.0.delay_s = "1": must be a number',
            ),
            ({"kind": "latency", "delay_s": -1}, "delay_s = -1"),
            ({"kind": "latency", "law": "lognormal"}, "median_s = 0.0: must be above 0"),
            ({"kind": "latency", "median_s": 1.0}, 'law = "fixed"'),
            ({"kind": "latency", "law": "lognormal", "median_s": 1, "delay_s": 1}, "delay_s = 1"),
            ({"kind": "latency", "verbs": ["FROB"]}, 'verbs = "FROB": must be one of CONNECT'),
            ({"kind": "tarpit", "delay_s": 1e9}, "must be from 0 to 3600"),
            ({"kind": "reject", "code": 250}, "code = 250: must be from 400 to 599"),
            ({"kind": "reject", "probability": 1.5}, "probability = 1.5"),
            ({"kind": "reject", "enhanced": "5.1.1"}, 'enhanced = "5.1.1": must be 4.subject'),
            ({"kind": "reject", "text": "a\r\nb"}, "text = "),
            ({"kind": "reject", "verb": "QUIT"}, 'verb = "QUIT"'),
            ({"kind": "reject", "verb": "MAIL", "per_recipient": True}, "per_recipient = true"),
            ({"kind": "reject", "verb": "DATA", "match": ["x"]}, 'match = ["x"]'),
            ({"kind": "drop", "verb": "nope"}, 'verb = "nope"'),
            ({"kind": "greylist", "retry_window_s": 5}, "retry_window_s = 5"),
            ({"kind": "greylist", "code": 550, "enhanced": ""}, "code = 550: must be 4xx"),
            ({"kind": "greylist", "max_entries": 0}, "max_entries = 0"),
            ({"kind": "fail-then-accept", "failures": -1}, "failures = -1"),
            ({"kind": "limit-connections", "max": -1}, "max = -1"),
            ({"kind": "limit-rate", "burst": 0}, "burst = 0"),
            ({"kind": "limit-rate", "code": 200}, "code = 200"),
            ({"kind": "limit-rate", "enhanced": "5.7.1"}, 'enhanced = "5.7.1"'),
            ({"kind": "outage", "from_s": 5, "to_s": 5}, "to_s = 5"),
            ({"kind": "outage", "to_s": 5, "every_s": 5}, "every_s = 5"),
            ({"kind": "outage", "mode": "refused"}, 'mode = "refused": must be one of'),
            ({"kind": "dns", "answer": "lies"}, 'answer = "lies"'),
            ({"kind": "dns", "from_s": 5, "to_s": 5}, "to_s = 5"),
        ],
    )
    def test_a_wrong_behaviour_is_one_line_that_names_it(
        self, behaviour: dict[str, Any], line: str
    ):
        """File, key, value, and what is wrong."""
        with pytest.raises(ConfigError) as caught:
            read([behaviour], source="s.toml", key="destinations.1.behaviours")
        assert line in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_too_many_behaviours_are_refused(self):
        """Each costs a call per command."""
        with pytest.raises(ConfigError, match="at most 32"):
            read([{"kind": "accept"}] * 33)

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_has_defaults_that_work(self, kind: str):
        """A kind alone is a behaviour, and a host of it answers or refuses a transaction."""
        host = host_of({"kind": kind})
        conn, verdict = host.connect(PEER, 0.0)
        if not verdict.close and verdict.reply is not None:
            host.command(conn, "EHLO", "x", 0.0)
            assert len(host.transaction(conn, SENDER, [RCPT], 9, 0.0).results) == 1

    def test_hosts_of_a_scenario_have_their_addresses_and_their_own_chance(self):
        """Two hosts of a destination draw differently; a second reading draws the same."""
        scenario = Scenario(
            "two",
            destinations=[
                Destination("a", "a.test"),
                Destination(
                    "b",
                    "b.test",
                    hosts=2,
                    behaviours=[{"kind": "latency", "law": "lognormal", "median_s": 1, "sigma": 1}],
                ),
            ],
        )
        hosts, again = build_hosts(scenario), build_hosts(scenario)
        assert list(hosts) == ["127.0.10.1", "127.0.11.1", "127.0.11.2"]
        first, second = (hosts[f"127.0.11.{j}"].connect(PEER, 0.0)[1].delay_s for j in (1, 2))
        assert first != second
        assert again["127.0.11.1"].connect(PEER, 0.0)[1].delay_s == first
        other = build_hosts(scenario, replication=1)
        assert other["127.0.11.1"].connect(PEER, 0.0)[1].delay_s != first


class TestNameServer:
    def test_tells_the_truth_by_default_and_lies_in_its_window(self):
        """One destination, SERVFAIL from 5 s to 10 s, everything 20 ms late."""
        scenario = Scenario(
            "dns",
            destinations=[
                Destination("a", "a.test"),
                Destination(
                    "b",
                    "b.test",
                    behaviours=[
                        {"kind": "dns", "delay_s": 0.02, "ttl_s": 60},
                        {"kind": "dns", "answer": "servfail", "from_s": 5, "to_s": 10},
                    ],
                ),
            ],
        )
        plain, lying = build_name_servers(scenario)
        assert plain.decide(7.0)[:3] == (0.0, DnsAnswer.OK, 3600)
        answers = [lying.decide(now) for now in (-1e9, 4.9, 5.0, 9.9, 10.0)]
        assert [each.answer for each in answers] == [
            DnsAnswer.OK,
            DnsAnswer.OK,
            DnsAnswer.SERVFAIL,
            DnsAnswer.SERVFAIL,
            DnsAnswer.OK,
        ]
        assert {(each.delay_s, each.ttl_s) for each in answers} == {(0.02, 60)}
