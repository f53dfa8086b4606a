"""The model's shells keep the promises of those that they stand for."""

import random
from typing import Any

import pytest

from mta.config import Config, DnsConfig
from mta.core.ids import EvpId, SessionId
from mta.core.instructions import OpenConnection
from mta.core.limits import MtaLimits
from mta.core.reply import Outcome
from mta.core.routing import Resolution, ResolutionStatus
from mta.core.settings import ConfigError, flatten
from mta.core.stimuli import ConnectionClosed, ConnectionFailed, ConnectionReady, TransactionDone
from mta.queue.wake import LAG_S as SERVERS_LAG_S
from mta.smtpclient import TIMED_OUT as SERVERS_TIMED_OUT
from mta.smtpclient import Timeouts
from sim import outbound as shell
from sim.costs import Costs
from sim.cpu import EventLoop
from sim.heapkernel import HeapKernel
from sim.outbound import REFUSED, RESET, TIMED_OUT, Outbound
from sim.queue import LAG_S
from sim.remote import NameServer, build_host
from sim.resolver import DnsSettings, Resolver
from sim.runner import simulate
from sim.scenario import MxAnswer
from sim.settings import IGNORED, ModelConfig, model_config
from tests.support.model import LATENCY, scenario

NO_COSTS = Costs(
    connect_s=0.0,
    transaction_s=0.0,
    delivery_s=0.0,
    sent_byte_s=0.0,
    network_s=0.0,
    connect_network_s=0.0,
)
ADDRESS = "127.0.10.1"
ONE = SessionId(1)
E1, E2 = EvpId(1 << 32 | 1), EvpId(1 << 32 | 2)


class Host:
    """One host, and one core's view of it."""

    def __init__(self, *behaviours: dict[str, Any], costs: Costs = NO_COSTS) -> None:
        self.kernel = HeapKernel()
        self.loop = EventLoop(self.kernel)
        self.told: list[tuple[float, Any]] = []
        host = build_host(behaviours, rng=random.Random(1))
        self.remote = host
        self.out = Outbound(
            self.kernel,
            self.loop,
            costs,
            MtaLimits(session_timeout_s=30.0),
            hosts={ADDRESS: host},
            tell=lambda stimulus: self.told.append((self.kernel.now, stimulus)),
        )

    def at(self, t: float, action: Any) -> None:
        self.kernel.schedule(t, lambda _: self.loop.do(lambda _: action(), None), None)

    def open(self, session: int = 1, address: str = ADDRESS) -> None:
        self.out.open(OpenConnection(SessionId(session), "a.test", "", address, "mx0.a.test"))

    def start(self, *evpids: EvpId, session: int = 1, size: int = 1000) -> None:
        rcpts = [f"u{evpid & 0xFF}@a.test" for evpid in evpids]
        self.out.start(SessionId(session), evpids, "s@b.test", rcpts, size)

    def run(self) -> list[tuple[float, Any]]:
        self.kernel.run()
        return self.told


class TestOutbound:
    def test_a_host_that_listens_becomes_ready(self):
        """Greeting and EHLO are two waits of the host."""
        host = Host({"kind": "latency", "delay_s": 0.25})
        host.at(1.0, host.open)
        assert [(1.5, ConnectionReady(ONE))] == host.run()

    def test_a_host_that_leaves_while_its_greeting_is_under_way(self):
        """The reset waits for the busy event loop; meanwhile nobody says EHLO to a host that is gone."""
        host = Host(
            {"kind": "latency", "delay_s": 0.25},
            {"kind": "outage", "from_s": 1.125, "to_s": 9.0, "mode": "refuse"},
        )
        host.at(1.0, host.open)

        def work_a_second() -> None:
            host.loop.done_at += 1.0

        host.at(1.0625, work_a_second)
        assert [(2.0625, ConnectionFailed(ONE, RESET))] == host.run()
        assert {} == host.out.connections

    def test_nobody_there(self):
        """An address that the scenario does not have refuses, as loopback does."""
        host = Host()
        host.at(1.0, lambda: host.open(address="127.9.9.9"))
        assert [(1.0, ConnectionFailed(ONE, REFUSED))] == host.run()
        assert {} == host.out.connections

    @pytest.mark.parametrize(
        ("behaviour", "at", "reason"),
        [
            ({"kind": "dead"}, 1.0, REFUSED),
            ({"kind": "dead", "mode": "silent"}, 31.0, TIMED_OUT),
            ({"kind": "reject", "verb": "CONNECT", "code": 554}, 1.0, "554 5.0.0 Not now"),
            ({"kind": "reject", "verb": "EHLO", "code": 450}, 1.0, "450 4.0.0 Not now"),
            ({"kind": "reject", "verb": "EHLO", "code": 502}, 1.0, "502 5.0.0 Not now"),
            ({"kind": "latency", "delay_s": 40.0}, 31.0, TIMED_OUT),
        ],
    )
    def test_a_connection_that_does_not_become_ready_is_told_once(
        self, behaviour: dict[str, Any], at: float, reason: str
    ):
        """Refused, silent, turned away at the greeting or at EHLO and HELO, or too slow."""
        host = Host(behaviour)
        host.at(1.0, host.open)
        assert [(at, ConnectionFailed(ONE, reason))] == host.run()
        assert host.remote.open_count == 0
        assert host.out.failed == 1

    def test_a_transaction_and_the_end(self):
        """Every recipient has its reply; QUIT ends the connection."""
        host = Host({"kind": "reject", "code": 550, "match": ["u2@*"]})
        host.at(0.0, host.open)
        host.at(1.0, lambda: host.start(E1, E2))
        host.at(2.0, lambda: host.out.close(ONE))
        told = host.run()
        (at, done), (closed_at, closed) = told[1:]
        assert at == 1.0
        assert isinstance(done, TransactionDone)
        assert [Outcome.OK, Outcome.PERMFAIL] == [each.outcome for each in done.results]
        assert ["250 2.0.0 Ok: queued", "550 5.0.0 Not now"] == [e.status for e in done.results]
        assert done.usable
        assert (closed_at, closed) == (2.0, ConnectionClosed(ONE, "quit"))

    def test_a_host_that_goes_away_resets_what_is_open(self):
        """Idle, busy and half-open connections end at that instant, each told once, in its own way."""
        host = Host(
            {"kind": "outage", "from_s": 5.0, "to_s": 9.0}, {"kind": "latency", "delay_s": 1.0}
        )
        host.at(0.0, lambda: host.open(1))
        host.at(0.1, lambda: host.open(2))
        host.at(4.5, lambda: host.open(3))
        host.at(4.9, lambda: host.start(E1, session=1))
        ends = [(at, each) for at, each in host.run() if at >= 5.0]
        assert {5.0} == {at for at, _ in ends}
        assert {
            ConnectionClosed(ONE, RESET),
            ConnectionClosed(SessionId(2), RESET),
            ConnectionFailed(SessionId(3), RESET),
        } == {each for _, each in ends if not isinstance(each, TransactionDone)}
        assert len(ends) == 4
        assert host.out.connections == {}
        assert host.remote.open_count == 0

    def test_a_host_that_resets_in_a_transaction(self):
        """Its envelopes fail for now, then the connection is told gone, once."""
        host = Host(
            {"kind": "outage", "from_s": 5.0, "to_s": 9.0}, {"kind": "latency", "delay_s": 1.0}
        )
        host.at(0.0, host.open)
        host.at(4.5, lambda: host.start(E1, E2))
        told = host.run()
        assert [5.0, 5.0] == [at for at, _ in told[1:]]
        done, closed = (each for _, each in told[1:])
        assert [Outcome.TEMPFAIL] * 2 == [each.outcome for each in done.results]
        assert not done.usable
        assert closed == ConnectionClosed(ONE, RESET)

    def test_a_transaction_that_is_started_on_a_dead_connection_fails(self):
        """The reset waits in our event loop while the core gives the connection a transaction."""
        host = Host({"kind": "outage", "from_s": 5.0, "to_s": 9.0})

        def busy() -> None:
            host.loop.done_at += 1.0
            host.loop.do(lambda _: host.start(E1), None)

        host.at(0.0, host.open)
        host.at(4.5, busy)
        told = host.run()
        done, closed = (each for _, each in told[1:])
        assert [Outcome.TEMPFAIL] == [each.outcome for each in done.results]
        assert closed == ConnectionClosed(ONE, RESET)
        assert len(told) == 3

    def test_our_patience_ends_a_transaction_that_is_never_answered(self):
        """A host that falls silent is left after the time-out of one reply."""
        host = Host({"kind": "outage", "from_s": 1.0, "to_s": 1e6, "mode": "silent"})
        host.at(0.0, host.open)
        host.at(2.0, lambda: host.start(E1))
        told = host.run()
        assert [32.0, 32.0] == [at for at, _ in told[1:]]
        assert told[1][1].results[0].status == TIMED_OUT

    def test_a_421_is_the_answer_and_the_end(self):
        """RFC 5321 3.8: the channel closes after it."""
        host = Host({"kind": "reject", "verb": "MAIL", "code": 421})
        host.at(0.0, host.open)
        host.at(1.0, lambda: host.start(E1))
        told = host.run()
        assert told[1][1].results[0].status == "421 4.0.0 Not now"
        assert not told[1][1].usable
        assert told[2][1] == ConnectionClosed(ONE, "421 4.0.0 Not now")

    def test_envelopes_to_one_address_are_one_recipient(self):
        """Only local parts have case. A host that takes two recipients has room for three envelopes."""
        host = Host({"kind": "limit-rate", "what": "recipients", "rate": 0.001, "burst": 2.0})
        host.at(0.0, host.open)
        rcpts = ["u@a.test", "U@a.test", "u@A.test", "v@a.test"]
        evpids = tuple(EvpId(1 << 32 | number) for number in (1, 2, 3, 4))
        host.at(1.0, lambda: host.out.start(ONE, evpids, "s@b.test", rcpts, 100))
        done = next(each for _, each in host.run() if isinstance(each, TransactionDone))
        ok, temporary = Outcome.OK, Outcome.TEMPFAIL
        assert [each.outcome for each in done.results] == [ok, ok, ok, temporary]
        assert [each.evpid for each in done.results] == list(evpids)

    def test_closing_twice_is_harmless(self):
        """The core may ask for what is over."""
        host = Host()
        host.at(0.0, host.open)
        host.at(1.0, lambda: host.out.close(ONE))
        host.at(1.0, lambda: host.out.close(ONE))
        host.at(2.0, lambda: host.out.close(ONE))
        assert [ConnectionReady(ONE), ConnectionClosed(ONE, "quit")] == [s for _, s in host.run()]
        assert not host.out.start(ONE, (E1,), "s@b.test", ["x@a.test"], 1)


class TestResolver:
    def ask(self, *behaviours: dict[str, Any], again_at: float = 1e9, domain: str = "a.test"):
        from sim.behaviours.dns import DnsBehaviour

        kernel = HeapKernel()
        made = [build(each) for each in behaviours]
        servers = [NameServer([each for each in made if isinstance(each, DnsBehaviour)])]
        resolver = Resolver(
            kernel,
            DnsSettings(),
            records={"a.test": (MxAnswer(10, "mx0.a.test", "127.0.10.1"),)},
            destinations={"a.test": 0},
            servers=servers,
            network_s=0.5,
        )
        told: list[tuple[float, Resolution]] = []
        cached: list[Resolution | None] = []
        resolver.look_up(domain, 0.0, lambda each: told.append((kernel.now, each[1])))
        kernel.schedule(again_at, lambda _: cached.append(resolver.cached(domain)), None)
        kernel.run()
        return told[0], cached[0]

    def test_the_truth(self):
        """One answer, kept for its TTL less the time since."""
        (at, resolution), later = self.ask(again_at=100.5)
        assert at == 0.5
        assert resolution.status is ResolutionStatus.OK
        assert [("127.0.10.1",)] == [host.addresses for host in resolution.hosts]
        assert resolution.ttl_s == 3600.0
        assert later is not None
        assert later.ttl_s == pytest.approx(3500.0)

    def test_an_answer_expires(self):
        """After its TTL it has to be asked for again."""
        assert self.ask(again_at=3601.0)[1] is None

    @pytest.mark.parametrize(
        ("answer", "status", "at"),
        [
            ("servfail", ResolutionStatus.RETRY, 0.5),
            ("refused", ResolutionStatus.RETRY, 0.5),
            ("timeout", ResolutionStatus.RETRY, 15.5),
            ("nxdomain", ResolutionStatus.NO_DOMAIN, 0.5),
            ("nodata", ResolutionStatus.NO_MX, 0.5),
            ("null-mx", ResolutionStatus.NULL_MX, 0.5),
        ],
    )
    def test_what_fails(self, answer: str, status: ResolutionStatus, at: float):
        """Each way to fail has its meaning and its time."""
        (told_at, resolution), _ = self.ask({"kind": "dns", "answer": answer})
        assert (told_at, resolution.status) == (at, status)

    def test_a_domain_that_nobody_has(self):
        """Is no domain."""
        (_, resolution), _ = self.ask(domain="b.test")
        assert resolution.status is ResolutionStatus.NO_DOMAIN

    def test_addresses_are_asked_for_after_the_exchangers(self):
        """Two waits, not one and not three."""
        (at, _), _ = self.ask({"kind": "dns", "delay_s": 0.25})
        assert at == 1.0


def build(behaviour: dict[str, Any]) -> Any:
    from sim.behaviours import read

    return read([behaviour], source="test", key="behaviours")[0].make(random.Random(1))


class TestSettings:
    def test_the_model_has_the_servers_keys_and_defaults(self):
        """What the model takes is what the server takes, and what it ignores is there to be ignored."""
        ours, theirs = flatten(ModelConfig()), flatten(Config())
        assert {key: theirs[key] for key in ours} == ours
        left = {key.split(".")[0] for key in theirs if key not in ours}
        assert set(IGNORED) == left
        assert flatten(DnsSettings()) == flatten(DnsConfig())

    def test_an_ignored_key_is_ignored_in_a_file_and_refused_as_an_override(self):
        """A file is for the server too; who types a key means it."""
        server = {"smtp": {"listen": "127.0.0.1:1"}, "envelope": "full"}
        assert model_config(server, source="x.toml").envelope == "full"
        with pytest.raises(ConfigError, match=r"--set: smtp\.listen"):
            model_config({}, source="x.toml", overrides=["smtp.listen=1"])

    @pytest.mark.parametrize("key", ["envelop", "limits.mta.max_con", "retry.base"])
    def test_an_unknown_key_is_one_line(self, key: str):
        """It names the key."""
        with pytest.raises(ConfigError, match=rf"--set: {key}.*unknown key"):
            model_config({}, source="x.toml", overrides=[f"{key}=1"])

    def test_constants_are_the_servers(self):
        """What the model copies from the shells is still what they say."""
        assert LAG_S == SERVERS_LAG_S
        assert TIMED_OUT == SERVERS_TIMED_OUT
        waits = Timeouts.scaled(30.0)
        assert waits.transaction == 30.0 * shell.TRANSACTION_PATIENCE
        assert waits.quit == shell.QUIT_PATIENCE_S
        assert waits.banner == waits.hello == waits.mail == 30.0


class TestDoor:
    def test_a_full_queue_refuses(self):
        """The admission rules are the server's: over the limit, messages are refused and not kept."""
        of = scenario(
            {"kind": "dead"},
            messages=50,
            server={"limits": {"queue": {"max_envelopes": 20}}, "retry": {"base_s": 1000.0}},
        )
        of.drain_s = 0.5
        result = simulate(of)
        assert result.counts["accepted_messages"] == 20
        assert result.counts["refused_messages"] == 30
        assert result.queued.max() == 20

    def test_too_large_a_message_is_refused(self):
        """552: no try again."""
        of = scenario(
            messages=5,
            sizes={"law": "fixed", "bytes": 2048},
            server={"limits": {"smtp": {"max_message_size": 1024}}},
        )
        assert simulate(of).counts["refused_messages"] == 5

    def test_too_many_connections_are_turned_away_and_come_again(self):
        """421: a client tries a few times."""
        of = scenario(
            LATENCY,
            messages=100,
            rate=2000.0,
            sessions=50,
            server={"limits": {"smtp": {"max_conn": 3}}},
        )
        counts = simulate(of).counts
        assert counts["accepted_messages"] + counts["refused_messages"] == 100
        assert counts["accepted_messages"] == counts["delivered"] > 50

    def test_recipients_above_the_limit_are_refused_alone(self):
        """452 4.5.3: those before them are accepted."""
        of = scenario(
            LATENCY, messages=3, recipients=9, server={"limits": {"smtp": {"max_rcpt": 4}}}
        )
        assert simulate(of).counts["accepted"] == 12

    def test_few_sessions_make_messages_wait_for_a_client(self):
        """With one session, throughput is one over the time of a dialogue."""
        of = scenario(LATENCY, messages=50, rate=10_000.0, sessions=1)
        costs = Costs(client_s=0.1, client_close_s=0.1)
        result = simulate(of, costs=costs)
        assert result.load_s == pytest.approx(50 * 0.2, rel=0.1)
        assert result.accept_latency_s.max() > 9.0

    def test_kept_connections_pay_for_one_session(self):
        """The cost of a connection is not paid for each message."""
        costs = Costs(session_s=0.05)
        kept = simulate(scenario(messages=40, sessions=2, keep=True), costs=costs)
        each = simulate(scenario(messages=40, sessions=2, keep=False), costs=costs)
        saved = each.busy_share * each.end_s - kept.busy_share * kept.end_s
        assert saved == pytest.approx(38 * 0.05, rel=0.01)
