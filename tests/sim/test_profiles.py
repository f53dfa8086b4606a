"""Kinds of hosts by name: those that ship, those of a scenario, mixes of them, and hosts that change."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.settings import ConfigError
from sim.behaviours import read
from sim.behaviours.providers import ProviderBehaviour
from sim.behaviours.replies import known_replies, providers
from sim.profiles import Composer, hurried, shipped
from sim.remote import RemoteHost, Verdict, build_host, build_hosts, build_name_servers
from sim.scenario import Scenario, addresses, load, mx_records, parse, to_toml

HEAD = b'name = "x"\n[load]\nmessages = 1\n'


def scenario(text: str, *overrides: str) -> Scenario:
    return parse(HEAD + text.encode(), source="x.toml", overrides=overrides)


def one(text: str) -> Scenario:
    return scenario(f'[[destinations]]\nname = "a"\ndomain = "a.test"\n{text}')


def only(at: Scenario) -> RemoteHost:
    (host,) = build_hosts(at).values()
    return host


def greeting(host: RemoteHost, now: float) -> Verdict:
    conn, verdict = host.connect("127.0.0.1", now)
    host.disconnect(conn, now)
    return verdict


def codes(host: RemoteHost, now: float, rcpt: str = "u@a.test") -> list[int]:
    """Return the codes of one message's transaction: for the recipient, or what came instead."""
    conn, verdict = host.connect("127.0.0.1", now)
    if verdict.reply is None or verdict.close:
        return [0 if verdict.reply is None else verdict.reply.code]
    host.command(conn, "EHLO", "x", now)
    results = host.transaction(conn, "s@b.test", [rcpt], 100, now).results
    host.disconnect(conn, now)
    return [0 if reply is None else reply.code for reply in results]


class TestShipped:
    @pytest.mark.parametrize("name", list(shipped()))
    def test_every_profile_makes_hosts(self, name: str) -> None:
        """Each says what it is, in words and in behaviours that exist."""
        assert shipped()[name].about.endswith(".")
        at = one(f'profile = "{name}"\nhosts = 50')
        assert len(build_hosts(at)) == 50
        assert len(build_name_servers(at)) == 1

    def test_those_that_everybody_asks_for_are_there(self) -> None:
        wanted = "fast slow greylisting rate-limited connection-limited tarpit flaky dead mixed"
        assert set(wanted.split()) < set(shipped())

    def test_a_destination_adds_its_own(self) -> None:
        """Behind the profile's; at its pace, which is not theirs."""
        at = one('profile = "slow"\npace = 2\nbehaviours = [{ kind = "greylist", wait_s = 8.0 }]')
        latency, own = Composer(at).plan(0, 0)[0][1]
        assert (latency["median_s"], own["wait_s"]) == (0.4, 8.0)

    def test_they_do_what_their_names_say(self) -> None:
        assert codes(only(one('profile = "dead"')), 0.0) == [0]
        grey = only(one('profile = "greylisting"\npace = 100'))
        assert [codes(grey, now) for now in (0.0, 2.9, 3.0)] == [[450], [450], [250]]
        limited = only(one('profile = "rate-limited"'))
        assert Counter(codes(limited, 0.0)[0] for _ in range(30)) == {250: 20, 450: 10}
        flaky = only(one('profile = "flaky"'))
        assert [flaky.listening(now) for now in (299.0, 300.0, 419.9, 420.0, 1500.0)] == [
            True, False, False, True, False,
        ]  # fmt: skip


@given(
    st.floats(0.01, 1000),
    st.fixed_dictionaries(
        {"wait_s": st.floats(0, 1e6), "rate": st.floats(0.1, 10), "max": st.integers(1, 9)}
    ),
)
def test_a_pace_changes_times_and_rates_and_nothing_else(
    pace: float, table: dict[str, Any]
) -> None:
    again = hurried({"kind": "x", "ttl_s": 60, **table}, pace)
    assert again["wait_s"] * pace == pytest.approx(table["wait_s"])
    assert again["rate"] / pace == pytest.approx(table["rate"])
    assert (again["kind"], again["ttl_s"], again["max"]) == ("x", 60, table["max"])


class TestMix:
    def test_shares_are_those_of_the_profile(self) -> None:
        """As many of each kind as its share says, whatever the seed; which ones the seed says."""
        orders = []
        for seed in (1, 2):
            at = one('profile = "mixed"\nhosts = 100')
            at.seed = seed
            kinds = Composer(at)._kinds(0, "mixed", shipped()["mixed"])
            assert Counter(kinds) == {
                "fast": 70, "slow": 12, "greylisting": 8, "connection-limited": 4,
                "rate-limited": 2, "tarpit": 2, "dead": 2,
            }  # fmt: skip
            orders.append(kinds)
        assert orders[0] != orders[1]
        assert sum(not host.listening(0.0) for host in build_hosts(at).values()) == 2

    def test_domains_may_have_hosts_of_their_own(self) -> None:
        """Domain k has host k, round and round, so that one dead host is one dead domain."""
        at = one("hosts = 3\ndomains = 4\nmx = 1")
        found = {name: [mx.host for mx in each] for name, each in mx_records(at).items()}
        assert found == {f"d{k + 1}.a.test": [f"mx{k % 3}.a.test"] for k in range(4)}
        at = one("hosts = 3\ndomains = 2\nmx = 2")
        found = {name: [mx.host for mx in each] for name, each in mx_records(at).items()}
        assert found["d2.a.test"] == ["mx2.a.test", "mx0.a.test"]


class TestOwn:
    def test_a_scenario_has_its_own_and_writes_them(self) -> None:
        """What is written is read back; a name that ships is replaced."""
        at = one(
            'profile = "mine"\n[profiles.mine]\nbehaviours = [{ kind = "reject", code = 550 }]\n'
            '[profiles.fast]\nabout = "faster"\n'
        )
        assert codes(only(at), 0.0) == [550]
        again = parse(to_toml(at).encode(), source="again")
        assert again == at

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ('profile = "fats"', 'destinations.0.profile = "fats": must be one of fast, slow'),
            (
                '[[destinations.changes]]\nat_s = 1\nprofile = "x"',
                "destinations.0.changes.0.profile",
            ),
            (
                "[[destinations.changes]]\nat_s = 2\n[[destinations.changes]]\nat_s = 2",
                "destinations.0.changes.1.at_s = 2.0: must be after the one before",
            ),
            ("[[destinations.changes]]\nat_s = -1", "destinations.0.changes.0.at_s"),
            ("pace = 0", "destinations.0.pace"),
            ("mx = 2", "destinations.0.mx"),
            ('[profiles.m]\nmix = [{ profile = "mixed" }]', "is a mix itself"),
            ('[profiles.m]\nmix = [{ profile = "no" }]', "profiles.m.mix.0.profile"),
            ('[profiles.m]\nmix = [{ profile = "fast", share = 0 }]', "must have a share above 0"),
            (
                '[profiles.m]\nmix = [{ profile = "fast" }]\nbehaviours = [{ kind = "dead" }]',
                "is instead of behaviours",
            ),
            (
                "[[destinations.changes]]\nat_s = 1\nbehaviours = [{ wait_s = 1 }]",
                "destinations.0.changes.0.behaviours.0",
            ),
        ],
    )
    def test_mistakes_are_one_line(self, text: str, problem: str) -> None:
        with pytest.raises(ConfigError) as caught:
            one(text)
        assert problem in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_change_that_is_wrong_names_its_place(self) -> None:
        at = one(
            '[[destinations.changes]]\nat_s = 1\nbehaviours = [{ kind = "greylist", wait = 1 }]'
        )
        with pytest.raises(ConfigError, match=r"destinations\.0\.changes\.0\.behaviours\.0\.wait"):
            build_hosts(at)


class TestPolicy:
    POLICY = """
[profiles.mine]
behaviours = [{ kind = "reject", reply = "gmail/unknown" }]
[destinations.a]
profile = "mine"
"""

    def file(self, tmp_path: Path, policy: str, line: str = "") -> Path:
        (tmp_path / "policy.toml").write_text(policy)
        path = tmp_path / "x.toml"
        text = line.encode() + HEAD + b'[[destinations]]\nname = "a"\ndomain = "a.test"\n'
        path.write_bytes(text)
        return path

    def test_it_is_put_on_top_by_the_scenario_or_the_command(self, tmp_path: Path) -> None:
        """Relative to the scenario's file there, as it is on a command line; the result needs no file."""
        by_file = load(self.file(tmp_path, self.POLICY, 'policy = "policy.toml"\n'))
        path = self.file(tmp_path, self.POLICY)
        assert load(path).destinations[0].profile == ""
        by_command = load(path, [f"policy={tmp_path / 'policy.toml'}"])
        assert by_file == by_command
        assert codes(only(by_file), 0.0) == [550]
        assert parse(to_toml(by_file).encode(), source="again") == by_file

    @pytest.mark.parametrize(
        ("policy", "problem"),
        [
            ("[destinations.b]", "destinations.b: is no destination of the scenario"),
            ("[destinations.a]\nshare = 2", "destinations.a.share = 2: must be profile"),
            ("[load]\nrate = 1", "must be profiles or destinations"),
            ("profiles = 1", "must be tables by name"),
            ("[", "is not TOML"),
        ],
    )
    def test_mistakes_name_the_policy(self, tmp_path: Path, policy: str, problem: str) -> None:
        path = self.file(tmp_path, policy, 'policy = "policy.toml"\n')
        with pytest.raises(ConfigError, match=r"policy\.toml") as caught:
            load(path)
        assert problem in str(caught.value)

    def test_a_policy_that_is_not_there(self, tmp_path: Path) -> None:
        path = self.file(tmp_path, "", 'policy = "no.toml"\n')
        with pytest.raises(ConfigError, match="can't be read"):
            load(path)
        with pytest.raises(ConfigError, match="must be a file"):
            parse(b"policy = 1\n" + HEAD, source="x")


class TestReplies:
    def test_every_provider_says_where_it_is_from(self) -> None:
        assert {"gmail", "yahoo", "microsoft", "postfix"} < set(providers())
        assert all(400 <= each.code < 600 for each in known_replies().values())

    @pytest.mark.parametrize(
        ("table", "expected"),
        [
            (
                {"kind": "reject", "reply": "postfix/no-space"},
                "452 4.3.1 Insufficient system storage",
            ),
            (
                {"kind": "limit-rate", "burst": 1, "rate": 0, "reply": "postfix/mail-rate"},
                "450 4.7.1 Error: too much mail from 192.0.2.1",
            ),
            (
                {"kind": "reject", "reply": "yahoo/too-quickly"},
                "450 User is receiving mail too quickly",
            ),
            (
                {"kind": "limit-rate", "burst": 1, "rate": 0, "reply": "yahoo/max-messages"},
                "421 Max message per connection reached, closing transmission channel",
            ),
        ],
    )
    def test_a_behaviour_takes_its_words(self, table: dict[str, Any], expected: str) -> None:
        """Code, enhanced code, or none, and text; and the verb where it has one."""
        host = build_host([table], rng=random.Random(1))
        conn, _ = host.connect("127.0.0.1", 0.0)
        host.command(conn, "EHLO", "x", 0.0)
        if table["kind"] == "limit-rate":
            host.command(conn, "MAIL", "s@b.test", 0.0)
            host.command(conn, "RSET", "", 0.0)
        said = [
            host.command(conn, verb, argument, 0.0).reply
            for verb, argument in (("MAIL", "s@b.test"), ("RCPT", "u@a.test"))
            if not conn.closed
        ]
        assert expected in [str(reply) for reply in said]

    @pytest.mark.parametrize(
        ("table", "problem"),
        [
            ({"kind": "reject", "reply": "gmail/no"}, "must be one of gmail/busy"),
            ({"kind": "reject", "reply": 1}, "must be one of"),
            ({"kind": "reject", "reply": "gmail/busy", "code": 450}, "is the reply's already"),
            ({"kind": "latency", "reply": "gmail/busy"}, "latency has no reply of its own"),
            ({"kind": "provider", "name": "nobody"}, "must be one of gmail"),
            ({"kind": "provider", "name": "rackspace", "reject": 0.1}, "must be 0"),
            ({"kind": "provider", "defer": 0.6, "reject": 0.6}, "must be from 0 to 0.4"),
        ],
    )
    def test_mistakes(self, table: dict[str, Any], problem: str) -> None:
        with pytest.raises(ConfigError, match=problem):
            read([table])


class TestProviders:
    @pytest.mark.parametrize("name", ["gmail", "yahoo", "microsoft"])
    def test_shares_are_those_of_all_messages(self, name: str) -> None:
        """Of 20,000 messages with one recipient each, wherever in the transaction the words come."""
        table = {"kind": "provider", "name": name, "defer": 0.2, "reject": 0.1}
        host = build_host([table], rng=random.Random(7))
        found = Counter(codes(host, 0.0)[0] // 100 for _ in range(20_000))
        assert found[4] / 20_000 == pytest.approx(0.2, abs=0.012)
        assert found[5] / 20_000 == pytest.approx(0.1, abs=0.01)

    def test_every_word_comes(self) -> None:
        """Each reply of a class is as likely as the others."""
        (parameters,) = read([{"kind": "provider", "name": "yahoo", "defer": 0.5, "reject": 0.5}])
        behaviour = parameters.make(random.Random(1))
        assert isinstance(behaviour, ProviderBehaviour)
        said: Counter[str] = Counter()
        for _ in range(4000):
            for verb in ("MAIL", "RCPT", "."):
                refusal = behaviour.judge(None, verb, "", 0, 0.0)  # type: ignore[arg-type]
                if refusal is not None:
                    said[str(refusal.reply)] += 1
                    assert refusal.close == (
                        refusal.reply is not None and refusal.reply.code == 421
                    )
                    break
        assert sum(said.values()) == 4000, "all are refused"
        assert len(said) == 7
        assert min(said.values()) > 300

    def test_recipients_get_what_they_ask_for(self) -> None:
        """Names of KumoMTA's smart-sink; all others are taken."""
        host = build_host([{"kind": "asked-for"}], rng=random.Random(1))
        asked = {
            "tempfail": 450, "permfail": 550, "tempfail+x": 450, "451": 451, "552-too-big": 552,
            "421-bye": 421, "250-fine": 250, "4511": 250, "permfailure": 250, "PERMFAIL": 550,
        }  # fmt: skip
        assert asked == {local: codes(host, 0.0, f"{local}@a.test")[0] for local in asked}


class TestChanges:
    def test_a_host_is_what_the_plan_says(self) -> None:
        """From the instant on, whatever is asked of it, and it comes back."""
        at = one(
            'profile = "fast"\n'
            '[[destinations.changes]]\nat_s = 10\nprofile = "dead"\n'
            "[[destinations.changes]]\nat_s = 20\n"
            'behaviours = [{ kind = "reject", code = 550 }]\n'
            '[[destinations.changes]]\nat_s = 30\nbehaviours = [{ kind = "dns", answer = "servfail" }]'
        )
        host = only(at)
        assert [host.listening(now) for now in (-1e9, 9.9, 10.0, 19.9, 20.0)] == [
            True, True, False, False, True,
        ]  # fmt: skip
        assert [host.next_change(now) for now in (0.0, 10.0, 25.0, 30.0)] == [
            10.0,
            20.0,
            30.0,
            None,
        ]
        assert [codes(host, now) for now in (0.0, 10.0, 20.0, 30.0)] == [[250], [0], [550], [250]]
        (server,) = build_name_servers(at)
        assert [server.decide(now).answer.value for now in (0.0, 29.0, 30.0)] == [
            "ok", "ok", "servfail",
        ]  # fmt: skip

    def test_what_stays_keeps_its_memory(self) -> None:
        """A greylist that is said again is the same list; a window elsewhere changes nothing about it."""
        grey = '{ kind = "greylist", wait_s = 5.0 }'
        host = only(
            one(
                f"behaviours = [{grey}]\n[[destinations.changes]]\nat_s = 3\n"
                f'behaviours = [{{ kind = "latency", delay_s = 0.1 }}, {grey}]'
            )
        )
        assert [codes(host, now) for now in (0.0, 4.0, 5.0)] == [[451], [451], [250]]

    def test_a_limit_counts_those_that_came_before_it(self) -> None:
        """A planned one as well as one that is put there at run time."""
        planned = only(
            one(
                "[[destinations.changes]]\nat_s = 5\n"
                'behaviours = [{ kind = "limit-connections", max = 2 }]'
            )
        )
        changed = only(one(""))
        for host in (planned, changed):
            conns = [host.connect("127.0.0.1", 1.0)[0] for _ in range(2)]
            if host is changed:
                tables = [{"kind": "limit-connections", "max": 2}]
                host.change([each.make(random.Random(1)) for each in read(tables)], 5.0)
            assert codes(host, 6.0) == [421]
            host.disconnect(conns[0], 7.0)
            assert codes(host, 7.0) == [250]
            host.disconnect(conns[1], 8.0)
            assert host.open_count == 0

    def test_a_transaction_that_runs_into_the_end_of_its_host_is_broken(self) -> None:
        """As one that runs into an outage: what was not acknowledged by then was not taken."""
        host = only(
            one(
                'behaviours = [{ kind = "latency", delay_s = 4.0 }]\n'
                '[[destinations.changes]]\nat_s = 10\nprofile = "dead"'
            )
        )
        conn, _ = host.connect("127.0.0.1", 0.0)
        host.command(conn, "EHLO", "x", 0.0)
        verdict = host.transaction(conn, "s@b.test", ["u@a.test"], 100, 1.0)
        assert (verdict.duration_s, verdict.usable) == (8.0, True)
        verdict = host.transaction(conn, "s@b.test", ["u@a.test"], 100, 9.0)
        assert (verdict.duration_s, verdict.results, verdict.usable) == (1.0, (None,), False)

    def test_what_was_planned_comes_after_a_change_at_run_time(self) -> None:
        host = only(one('[[destinations.changes]]\nat_s = 10\nprofile = "dead"'))
        host.change([each.make(random.Random(1)) for each in read([{"kind": "reject"}])], 5.0)
        assert codes(host, 6.0) == [450]
        assert not host.listening(10.0)


TURN = st.lists(
    st.sampled_from(
        [
            {"kind": "latency", "delay_s": 0.7},
            {"kind": "latency", "delay_s": 1.9},
            {"kind": "greylist", "wait_s": 3.0},
            {"kind": "reject", "verb": ".", "probability": 0.5},
            {"kind": "limit-connections", "max": 1},
            {"kind": "tarpit", "delay_s": 0.4},
        ]
    ),
    max_size=3,
)


@given(TURN, TURN, st.lists(st.sampled_from([0.0, 0.5, 2.0]), max_size=10), st.integers(0, 99))
def test_a_change_is_the_same_on_the_fast_ways(
    first: list[dict[str, Any]], second: list[dict[str, Any]], gaps: list[float], seed: int
) -> None:
    """Whole transactions, straight or plain, are what verb by verb they would be, across the change.

    Delays are fixed: a plain transaction that a change interrupts has lost a draw, see `RemoteHost.transaction`.
    """
    seen = []
    for slow in (False, True):
        host = build_host(first, rng=random.Random(seed))
        later = [each.make(random.Random(seed + n)) for n, each in enumerate(read(second), start=1)]
        host.plan([(4.0, later)])
        if slow:
            for phase in host._phases:
                phase.is_plain = phase.is_straight = False
            host._enter(host._phases[0])
        now, found = 0.0, []
        for gap in gaps:
            now += gap
            conn, verdict = host.connect("127.0.0.1", now)
            found.append(verdict)
            if verdict.close:
                continue
            host.command(conn, "EHLO", "x", now)
            done = host.transaction(conn, "a@b.test", ["u@a.test", "v@a.test"], 9, now)
            found.append(done)
            now += done.duration_s
            host.disconnect(conn, now)
        seen.append((found, host.open_count))
    assert seen[0] == seen[1]


def test_addresses_are_as_ever() -> None:
    """Profiles change what hosts do, not where they are."""
    at = one('profile = "mixed"\nhosts = 2')
    assert [each.address for each in addresses(at)] == ["127.0.10.1", "127.0.10.2"]
