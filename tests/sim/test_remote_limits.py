"""Hosts that take so many connections, so much in a time, or nothing for a while."""

from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sim.behaviours.limits import LimitRateBehaviour
from sim.behaviours.windows import WindowBehaviour
from tests.support.remote import PEER, RCPT, SENDER, host_of, ready

if TYPE_CHECKING:
    from sim.remote import Conn


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
