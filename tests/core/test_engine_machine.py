"""Whatever a driver may say, in whatever order, the core stays right; and when all is well, mail arrives."""

from hypothesis import HealthCheck, assume, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from mta.core.concurrency import ConcurrencySettings
from mta.core.envelopes.base import EnvelopeState, Recipient, Transaction, to_tick
from mta.core.ids import MsgId, SessionId, evpid
from mta.core.limits import MtaLimits
from mta.core.relayrules import RelayRule
from mta.core.reply import Outcome
from mta.core.retry import RetrySettings
from mta.core.routing import Resolution, ResolutionStatus
from mta.core.stimuli import (
    Agent,
    AgentPaused,
    AgentResumed,
    ConnectionClosed,
    ConnectionFailed,
    ConnectionReady,
    DomainResolved,
    DrainRequested,
    EnvelopeRestored,
    LimitChanged,
    MessageSubmitted,
    RemoveRequested,
    Result,
    RouteEnabled,
    ScheduleRequested,
    Selector,
    SuspendRequested,
    TransactionDone,
    UnsuspendRequested,
)
from tests.support.core import BODY, EPOCH, STATUS, Core, mx

DOMAINS = ["one.test", "two.test", "three.test", "four.test"]
"""One more than there may be relays."""
ADDRESSES = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
OURS = "192.0.2.9"

TINY = {
    "max_rcpt_per_task": 2,
    "session_mail_max": 2,
    "max_failures_per_session": 2,
    "task_high_water": 3,
    "task_low_water": 1,
    "task_release": 1,
    "max_deferred": 2,
    "max_relays": 3,
    "max_try_before_disable": 3,
}
TWO_SOURCES = ["198.51.100.1", "198.51.100.2"]
RULES = [
    [],
    [],
    [RelayRule(["*"], sources=TWO_SOURCES)],
    [
        RelayRule(["one.test"], smart_host=["three.test", "[hub.test]"], balance=True),
        RelayRule(["two.test"], smart_host=["three.test"], limits={"max_conn_per_host": 1}),
    ],
    [
        RelayRule([".test"], sources=TWO_SOURCES, smart_host=["[hub.test]"]),
        RelayRule(["*"], limits={"session_keepalive_s": 1.0}),
    ],
]
CAPS = [
    "max_conn_per_host",
    "max_conn_per_route",
    "max_conn_per_source",
    "max_conn_per_connector",
    "max_conn_per_relay",
    "max_conn_per_domain",
    "max_conn",
]
GAPS = [
    "conn_delay_host_s",
    "conn_delay_route_s",
    "conn_delay_source_s",
    "conn_delay_connector_s",
    "conn_delay_relay_s",
    "conn_delay_domain_s",
    "reconn_delay_route_s",
    "session_transaction_delay_s",
]
STEPS = [0.0, 0.01, 1.0, 7.0, 15.0, 61.0, 400.0, 3600.0, 30_000.0, 200_000.0]

resolutions = st.one_of(
    st.lists(
        st.tuples(st.sampled_from([10, 20]), st.sampled_from([*ADDRESSES, OURS])),
        min_size=1,
        max_size=4,
    ).map(lambda hosts: mx(*hosts)),
    st.sampled_from([0.0, 1e-9, 5.0]).map(lambda ttl_s: mx((10, ADDRESSES[0]), ttl_s=ttl_s)),
    st.sampled_from(
        [
            Resolution(status)
            for status in ResolutionStatus  # OK without hosts among them
        ]
    ),
)
outcomes = st.sampled_from([*Outcome, Outcome.OK, Outcome.TEMPFAIL])


class Driver(RuleBasedStateMachine):
    """A driver without a plan: every stimulus at any time that it may come, and some that are too late."""

    @initialize(
        cap=st.sampled_from([None, *CAPS]),
        tight=st.integers(1, 2),
        gap=st.sampled_from([None, None, None, *GAPS]),
        keepalive_s=st.sampled_from([0.0, 10.0]),
        max_inflight=st.sampled_from([4, 8]),
        relays=st.sampled_from(RULES),
        concurrency=st.sampled_from(
            [
                ConcurrencySettings(policy="fixed", limit=3),
                ConcurrencySettings(initial=2, limit=3),
                ConcurrencySettings(initial=1, limit=2, cohort_limit=0),
            ]
        ),
        retry=st.sampled_from(
            [
                RetrySettings(),
                RetrySettings(policy="age-clamped"),
                RetrySettings(policy="exponential", jitter="full"),
            ]
        ),
    )
    def begin(self, cap, tight, gap, keepalive_s, max_inflight, relays, concurrency, retry):
        # One tight cap and one gap at a time: the tightest of many would hide the others.
        mta = {**TINY, **dict.fromkeys(CAPS, 3), "max_conn": 5, "max_conn_per_source": 5}
        mta["session_keepalive_s"] = keepalive_s
        if cap is not None:
            mta[cap] = tight
        if gap is not None:
            mta[gap] = 5.0
        scheduler = {"max_inflight": max_inflight, "max_schedule": 3, "max_held": 2}
        self.settings = {
            "mta": mta,
            "scheduler": scheduler,
            "retry": retry,
            "concurrency": concurrency,
            "own_addresses": [OURS],
            "warn_after_s": (100.0, 20_000.0),
            "relays": relays,
        }
        self.core = Core(**self.settings)
        self.number = 0
        self.gone = [SessionId(0), SessionId(10**6)]
        """Sessions that nobody has, or has no more."""

    @property
    def ledger(self):
        return self.core.ledger

    def tell(self, stimulus):
        note(f"t={self.core.t}: {stimulus}")
        for instruction in self.core.tell(stimulus):
            note(f"    {instruction}")

    def sessions(self, *, ready=None, running=None):
        return sorted(
            session
            for session, c in self.ledger.connections.items()
            if ready in (None, c.ready) and running in (None, bool(c.running))
        )

    # Mail

    @rule(
        domains=st.lists(st.sampled_from(DOMAINS), min_size=1, max_size=5),
        sender=st.sampled_from(["a@from.test", "a@from.test", ""]),
        notify=st.sampled_from(
            ["", "", "NEVER", "SUCCESS", "SUCCESS,FAILURE,DELAY", "FAILURE", "DELAY"]
        ),
    )
    def submit(self, domains, sender, notify):
        self.number += 1
        recipients = tuple(Recipient(f"x{n}@{d}", d, notify) for n, d in enumerate(domains, 1))
        self.tell(MessageSubmitted(MsgId(self.number), Transaction(sender, 99), recipients, BODY))

    @rule(
        domain=st.sampled_from(DOMAINS),
        age_s=st.sampled_from([0.0, 1000.0, 345_599.0, 400_000.0]),
        due_s=st.sampled_from([-500.0, 0.0, 30.0, 9000.0]),
        attempts=st.integers(0, 5),
        flags=st.sampled_from([0, 0, 1, 2, 3]),
        number=st.integers(1, 3),
    )
    def restore(self, domain, age_s, due_s, attempts, flags, number):
        self.number += 1
        now = self.core.now
        created_at = to_tick(now - age_s)
        expires_at = created_at + 345_600.0
        self.tell(
            EnvelopeRestored(
                evpid(MsgId(self.number), number),
                Recipient(f"r@{domain}", domain),
                Transaction("a@from.test", 99),
                created_at,
                expires_at,
                attempts,
                min(now + due_s, expires_at),
                flags,
                BODY,
            )
        )

    # Answers

    @precondition(lambda self: self.ledger.resolving)
    @rule(data=st.data(), resolution=resolutions)
    def resolved(self, data, resolution):
        self.tell(
            DomainResolved(data.draw(st.sampled_from(sorted(self.ledger.resolving))), resolution)
        )

    @precondition(lambda self: self.sessions(ready=False))
    @rule(
        works=st.lists(st.sampled_from([True, True, False]), min_size=1, max_size=4),
        source_fault=st.booleans(),
    )
    def connected(self, works, source_fault):
        for session, ready in zip(self.sessions(ready=False), works, strict=False):
            if ready:
                self.tell(ConnectionReady(session))
            else:
                self.tell(ConnectionFailed(session, "Connection refused", source_fault))
                self.gone.append(session)

    @precondition(lambda self: self.sessions(running=True))
    @rule(
        data=st.data(),
        usable=st.sampled_from([True, True, False]),
        most=st.integers(1, 4),
        regret=st.sampled_from([None, None, RemoveRequested, SuspendRequested]),
    )
    def ended(self, data, usable, most, regret):
        """Transactions end, with any mix of outcomes; the operator may have wanted something else."""
        for session in self.sessions(running=True)[:most]:
            results = []
            if regret is not None:
                self.tell(regret(Selector(self.ledger.connections[session].running[0])))
            for identity in self.ledger.connections[session].running:
                outcome = data.draw(outcomes)
                results.append(Result(identity, outcome, STATUS[outcome], identity % 2 == 0))
            self.tell(TransactionDone(session, tuple(results), usable))

    @precondition(lambda self: self.sessions())
    @rule(data=st.data())
    def closed(self, data):
        session = data.draw(st.sampled_from(self.sessions()))
        self.tell(ConnectionClosed(session, "Connection reset"))
        self.gone.append(session)

    @rule(data=st.data(), kind=st.integers(0, 4), domain=st.sampled_from(DOMAINS))
    def too_late(self, data, kind, domain):
        """What nobody asked for, or not any more, changes nothing."""
        # Not one of an earlier start's, whose number is somebody else's now.
        gone = [session for session in self.gone if session not in self.ledger.connections]
        session = data.draw(st.sampled_from(gone))
        if kind == 0:
            assume(domain not in self.ledger.resolving)
            stimulus = DomainResolved(domain, mx((10, ADDRESSES[0])))
        elif kind == 1:
            stimulus = ConnectionReady(session)
        elif kind == 2:
            stimulus = ConnectionFailed(session, "late")
        elif kind == 3:
            stimulus = ConnectionClosed(session, "late")
        else:
            stimulus = TransactionDone(session, (), usable=data.draw(st.booleans()))
        before = set(self.ledger.connections)
        self.tell(stimulus)
        # The core may hand out what became due; it must not take this for one of its own.
        assert before <= set(self.ledger.connections)

    @rule()
    def answer_all(self):
        note("everything that was asked is answered well")
        self.core.answer_all()

    @rule(
        domain=st.sampled_from(DOMAINS),
        count=st.integers(3, 7),
        recipients=st.integers(1, 2),
        answers=st.integers(0, 4),
    )
    def rush(self, domain, count, recipients, answers):
        """Many messages for one destination, which works for a while: transactions run, mail is held."""
        for _ in range(count):
            self.submit([domain] * recipients, "a@from.test", "")
        if domain in self.ledger.resolving:
            self.tell(DomainResolved(domain, mx((10, ADDRESSES[0]), (10, ADDRESSES[1]))))
        for session in self.sessions(ready=False)[:answers]:
            self.tell(ConnectionReady(session))

    # Time

    @rule(step_s=st.sampled_from(STEPS), late=st.booleans())
    def time_passes(self, step_s, late):
        """A driver rings on time, or much too late: it may be busy with other things."""
        late = late or step_s > 10_000.0  # every ring of days would take minutes
        note(f"{'late' if late else 'until'} t={self.core.t + step_s}")
        if late:
            self.core.now += step_s
            self.core.wake()
        else:
            self.core.until(self.core.t + step_s)

    # The operator

    @rule(
        data=st.data(),
        kind=st.sampled_from(
            [ScheduleRequested, RemoveRequested, SuspendRequested, UnsuspendRequested]
        ),
        state=st.sampled_from([*EnvelopeState, None]),
        scope=st.sampled_from(["envelope", "envelope", "message", "all"]),
    )
    def operate(self, data, kind, state, scope):
        """The operator means an envelope in some state, or in none: nobody."""
        store = self.core.engine.store
        known = sorted(store.evpid_of(h) for h in store if store.state_of(h) is state)
        identity = data.draw(st.sampled_from(known or [evpid(MsgId(0xFFFFFF), 1)]))
        selectors = {
            "envelope": Selector(identity),
            "message": Selector(None, MsgId(identity >> 32)),
            "all": Selector(),
        }
        self.tell(kind(selectors[scope]))

    @rule(stimulus=st.sampled_from([AgentPaused(), AgentResumed(), AgentResumed()]))
    def pause_or_resume(self, stimulus):
        self.tell(stimulus)

    @rule(
        kind=st.sampled_from([AgentPaused, AgentResumed]),
        domain=st.sampled_from(DOMAINS),
        source=st.sampled_from(["", *TWO_SOURCES]),
    )
    def pause_or_resume_one(self, kind, domain, source):
        """One destination, from any source or from one: the others go on."""
        self.tell(kind(Agent.MTA, domain, source))

    @rule(
        key=st.sampled_from(
            [f"mta.{name}" for name in (*CAPS, "task_high_water", "max_relays", "session_mail_max")]
            + ["scheduler.max_inflight", "scheduler.max_held", "scheduler.max_schedule"]
        ),
        value=st.integers(2, 6),
    )
    def change_limit(self, key, value):
        """Up or down, whatever is open or waits."""
        self.tell(LimitChanged(f"limits.{key}", value))

    @rule(address=st.sampled_from([*ADDRESSES, "203.0.113.1"]))
    def enable_route(self, address):
        self.tell(RouteEnabled(address))

    @precondition(lambda self: len(self.ledger.fates) > 5)
    @rule()
    def stop_and_start(self):
        """A drain ends every connection; the next start finds in the queue what the last one left."""
        note("drain")
        self.tell(DrainRequested())
        while self.core.answer_all():
            pass
        if MtaLimits().session_keepalive_s:  # not even idle connections are left
            assert self.ledger.connections == {}
        before = self.ledger
        assert before.resolving == set()
        self.core = Core(**self.settings, now=self.core.now)
        self.core.ledger.fates = before.fates
        for identity, row in sorted(before.rows.items()):
            self.tell(
                EnvelopeRestored(
                    identity,
                    row.recipient,
                    row.transaction,
                    row.created_at,
                    row.expires_at,
                    row.attempts,
                    row.due_at,
                    row.flags,
                    BODY,
                )
            )

    # The end

    def teardown(self):
        """With hosts that work and time that passes, everything is delivered or was too old."""
        if not hasattr(self, "core"):
            return
        core, ledger = self.core, self.ledger
        note("the end: everything works")
        self.tell(AgentResumed())
        for domain in DOMAINS:
            for source in ("", *TWO_SOURCES):
                self.tell(AgentResumed(Agent.MTA, domain, source))
        for address in ADDRESSES:
            self.tell(RouteEnabled(address))
        left = dict(ledger.rows)
        parked = set(ledger.suspended)
        core.settle()
        assert ledger.rows.keys() == parked & ledger.rows.keys()
        for identity, row in left.items():
            fate = ledger.fates.get(identity)
            if fate == "expired":
                assert row.expires_at <= core.now
            else:
                assert fate in ("delivered", "removed") or identity in parked, (identity, fate)
        self.tell(RemoveRequested(Selector()))
        core.settle()
        assert ledger.rows == {}
        assert core.leaks() == {}
        assert core.next_wakeup() is None
        assert core.now >= EPOCH


Driver.TestCase.settings = settings(
    stateful_step_count=50, suppress_health_check=[HealthCheck.too_slow]
)
TestDriver = Driver.TestCase
