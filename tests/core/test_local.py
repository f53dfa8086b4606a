"""Local delivery: turns, caps, the three policies for what has to wait, and what the operator does."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mta.core.envelopes import REPRESENTATIONS, make_store
from mta.core.envelopes.base import (
    EnvelopeState,
    MdaEnvelope,
    Recipient,
    Transaction,
    is_local_key,
    local_key,
    mda_envelope,
)
from mta.core.instructions import (
    BounceKind,
    DeferEnvelope,
    DeliverLocally,
    Note,
    Removal,
    RemoveEnvelope,
    ResolveDomain,
    SendBounce,
)
from mta.core.local import TOO_MANY
from mta.core.reply import Outcome
from mta.core.retry import JitteredRetry, RetrySettings, local_policy
from mta.core.stimuli import (
    Agent,
    AgentPaused,
    AgentResumed,
    DrainRequested,
    EnvelopeRestored,
    LimitChanged,
    LocalDeliveryDone,
    RemoveRequested,
    ScheduleRequested,
    Selector,
    SuspendRequested,
    UnsuspendRequested,
)
from tests.support.core import EPOCH, Core, ev, only

FEW = {"max_session": 3, "max_session_per_user": 2}
SMALL = {"task_high_water": 2, "task_low_water": 1, "task_release": 1, **FEW}


def started(instructions):
    """Return whose deliveries began, in order."""
    return [instruction.user for instruction in only(DeliverLocally, instructions)]


def state(core, message, number=1):
    """Return where an envelope stands."""
    return core.engine.store.state_of(core.engine.store.find(ev(message, number)))


# ---- the key, and what is kept


def test_the_key_of_a_user_is_no_domain():
    """It ends in @, even that of the server's own deliveries, which have no user."""
    assert is_local_key(local_key("alice"))
    assert is_local_key(local_key(""))
    assert not is_local_key("example.test")
    assert not is_local_key("[192.0.2.1]")


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_what_representations_keep_for_a_local_delivery(name):
    """All of it while it is in flight; after a failure slim and packed read it again; relaying gets nothing."""
    store = make_store(name, epoch=EPOCH)
    recipient = Recipient(
        "info@here.test",
        "alice@",
        delivery="pipe:/bin/cat -",
        user="alice",
        tag="lists",
        dest="alice+lists@here.test",
        rule="here",
    )
    transaction = Transaction("a@from.test", 3)
    expected = MdaEnvelope(
        "a@from.test",
        "info@here.test",
        "alice+lists@here.test",
        "alice",
        "pipe:/bin/cat -",
        EPOCH,
        "lists",
        "here",
    )
    assert mda_envelope(transaction, recipient, created_at=EPOCH) == expected
    assert mda_envelope(transaction, recipient._replace(dest=""), created_at=EPOCH).dest == (
        "info@here.test"
    )
    times = {"created_at": EPOCH, "expires_at": EPOCH + 10, "body": b"x"}
    local = store.add(ev(1), recipient, transaction, **times)
    relayed = store.add(ev(2), Recipient("x@b.test", "b.test"), transaction, **times)
    assert store.mda_envelope_of(local) == (None if name == "packed" else expected)
    assert store.mda_envelope_of(relayed) is None
    if name == "slim":
        assert store.mta_envelope_of(local) is None
    store.defer(local, due_at=EPOCH + 1, attempts=1)
    assert store.mda_envelope_of(local) == (expected if store.keeps_envelopes else None)


# ---- one delivery


def test_mail_for_a_user_is_delivered_and_leaves_the_queue():
    """One instruction, one answer, and nothing is left of the user."""
    core = Core()
    assert core.mail("alice") == [DeliverLocally(ev(1), "alice")]
    assert core.delivered(ev(1)) == [RemoveEnvelope(ev(1), Removal.DELIVERED, "250 2.0.0 Ok")]
    assert core.leaks() == {}
    assert core.engine.local.users == {}


def test_an_answer_that_comes_twice_is_ignored():
    """So is one to a delivery that nobody ordered."""
    core = Core()
    core.mail("alice")
    core.delivered(ev(1))
    assert core.delivered(ev(1)) == []
    assert core.delivered(ev(9), Outcome.PERMFAIL) == []


@pytest.mark.parametrize("outcome", [Outcome.PERMFAIL, Outcome.LOOP])
def test_a_delivery_that_fails_for_good_bounces(outcome):
    """With the reason."""
    core = Core()
    core.mail("alice")
    (bounce,) = core.delivered(ev(1), outcome)
    assert isinstance(bounce, SendBounce)
    assert bounce.kind is BounceKind.FAILED
    assert core.leaks() == {}


def test_a_delivery_that_fails_for_now_is_tried_soon():
    """On the timetable of local deliveries, 10 s times the square of the attempts, not that of relaying."""
    core = Core()
    core.mail("alice")
    (deferred,) = core.delivered(ev(1), Outcome.TEMPFAIL)
    assert deferred == DeferEnvelope(ev(1), 1, EPOCH + 10, "451 4.3.0 later")
    assert started(core.until(9.9)) == []
    assert started(core.until(10.0)) == ["alice"]
    (deferred,) = core.delivered(ev(1), Outcome.TEMPFAIL)
    assert deferred.due_at == EPOCH + 40


def test_jitter_spreads_local_retries_too():
    """As everywhere."""
    assert isinstance(local_policy(RetrySettings(jitter="full")), JitteredRetry)


def test_one_message_for_here_and_elsewhere_is_both():
    """Each envelope goes to its agent."""
    core = Core()
    out = core.mail("alice", domains=("b.test",))
    assert ResolveDomain("b.test") in out
    assert DeliverLocally(ev(1, 1), "alice") in out
    gauges = core.engine.gauges()
    assert (gauges["mda.envelope"], gauges["mta.envelope"]) == (1, 1)
    core.settle()
    assert core.ledger.fates == {ev(1, 1): "delivered", ev(1, 2): "delivered"}


def test_a_restored_envelope_is_delivered():
    """After a restart the key says whose it is."""
    core = Core()
    recipient = Recipient("alice@here.test", "alice@", delivery="local", user="alice")
    found = EnvelopeRestored(
        ev(5), recipient, Transaction("a@b.test", 2), EPOCH, EPOCH + 100, 0, EPOCH, body=b"xx"
    )
    assert started(core.tell(found)) + started(core.until(1.0)) == ["alice"]


# ---- turns and caps


def test_a_user_has_few_deliveries_at_a_time_and_all_have_not_many():
    """max_session_per_user and max_session; what ends makes room for the next in turn."""
    core = Core(mda=FEW)
    for _ in range(4):
        core.mail("alice")
    assert len(core.ledger.delivering) == 2
    core.mail("bob")
    core.mail("bob")
    assert list(core.ledger.delivering.values()) == ["alice", "alice", "bob"]
    assert started(core.delivered(ev(1))) == ["bob"], "alice has had her turn"
    assert started(core.delivered(ev(5))) == ["alice"]


def test_mail_of_one_user_is_delivered_in_order():
    """First in, first out, through the hold queue too."""
    core = Core(mda={**SMALL, "max_session_per_user": 1})
    for _ in range(9):
        core.mail("alice")
    order = []
    while core.ledger.delivering:
        (identity,) = core.ledger.delivering
        order.append(identity)
        core.delivered(identity)
    assert order == [ev(message) for message in range(1, 10)]


@pytest.mark.parametrize("policy", ["tempfail", "raised", "hold"])
def test_others_get_their_mail_while_one_drains(policy):
    """Whoever comes during a flood waits for one round of turns, not for its end."""
    core = Core(mda={"policy": policy, "raised_max_pending": 5000, **FEW}, validating=False)
    for _ in range(300):
        core.mail("flood")
    for n in range(10):
        core.mail(f"user{n}")
    rounds = 0
    waiting = {f"user{n}" for n in range(10)}
    while waiting:
        rounds += 1
        for identity, user in list(core.ledger.delivering.items()):
            core.delivered(identity)
            waiting.discard(user)
    assert rounds <= 10
    assert any(identity not in core.ledger.fates for identity in map(ev, range(1, 301)))


# ---- what has to wait


def test_hold_parks_what_is_above_high_water_and_fails_nothing():
    """Beyond high water envelopes are held, and asked back at low water."""
    core = Core(mda={**SMALL, "max_session_per_user": 1})
    notes = [note for _ in range(6) for note in only(Note, core.mail("alice"))]
    assert notes == [Note("mda: hiwat reached on [user:alice]: holding envelopes")]
    assert core.engine.gauges()["scheduler.ramqueue.hold"] == 3
    assert core.engine.gauges()["scheduler.ramqueue.holdq"] == 1
    core.settle()
    assert set(core.ledger.fates.values()) == {"delivered"}
    assert core.engine.counters()["scheduler.delivery.tempfail"] == 0
    assert core.leaks() == {}


def test_a_full_hold_queue_overflows_to_pending_untried():
    """It comes back on the overflow's timetable, and that was no attempt."""
    core = Core(mda={**SMALL, "max_session_per_user": 1}, scheduler={"max_held": 1})
    out = [instruction for _ in range(5) for instruction in core.mail("alice")]
    assert only(DeferEnvelope, out) == [DeferEnvelope(ev(5), 0, EPOCH + 3, "")]
    core.settle()
    assert set(core.ledger.fates.values()) == {"delivered"}


@pytest.mark.parametrize("policy", ["tempfail", "raised"])
def test_the_policies_of_old_send_back_what_is_too_much(policy):
    """Above the user's cap, and above that of all; words and numbers of 2012 and 2013."""
    caps = {f"{policy}_max_pending": 5, f"{policy}_max_pending_per_user": 3}
    core = Core(mda={"policy": policy, **caps, **FEW})
    out = [i for user in ("alice",) * 4 + ("bob",) * 3 for i in core.mail(user)]
    deferred = only(DeferEnvelope, out)
    assert [(d.evpid, d.attempts, d.status) for d in deferred] == [
        (ev(4), 1, TOO_MANY),
        (ev(7), 1, TOO_MANY),
    ]
    assert core.engine.counters()["mda.refused"] == 2
    core.mail("carol")
    assert "carol@" not in core.engine.local.users
    core.settle()
    assert set(core.ledger.fates.values()) == {"delivered"}


def test_what_became_too_old_while_it_was_held_expires_when_its_turn_comes():
    """OpenSMTPD would deliver it, or keep it for ever."""
    core = Core(
        mda={**SMALL, "max_session_per_user": 1},
        scheduler={"envelope_ttl_s": 100.0},
    )
    for _ in range(4):
        core.mail("alice")
    core.until(200.0)
    assert state(core, 4) is EnvelopeState.HELD
    out = core.delivered(ev(1))
    assert [b.kind for b in only(SendBounce, out)] == [BounceKind.EXPIRED] * 3
    assert core.ledger.rows == {}
    assert core.leaks() == {}


# ---- the operator


def test_a_paused_agent_keeps_what_it_has_and_goes_on_later():
    """Running deliveries end; nothing starts; the others relay."""
    core = Core()
    core.mail("alice")
    core.tell(AgentPaused(Agent.MDA))
    assert core.mail("bob") == []
    assert core.delivered(ev(1)) != []
    assert ResolveDomain("b.test") in core.submit("b.test")
    assert started(core.until(5.0)) == []
    assert started(core.tell(AgentResumed(Agent.MDA))) == ["bob"]


def test_relaying_that_is_paused_does_not_stop_local_mail():
    """What is due for relaying waits for its agent without being looked at again and again."""
    core = Core()
    core.mail("alice")
    core.delivered(ev(1), Outcome.TEMPFAIL)
    core.submit("b.test")
    core.resolve("b.test", (10, "192.0.2.1"))
    core.failed(1)
    core.tell(AgentPaused())
    assert core.submit("c.test") == []
    assert started(core.until(2000.0)) == ["alice"]
    assert state(core, 2) is EnvelopeState.SCHEDULED
    assert state(core, 3) is EnvelopeState.SCHEDULED
    assert core.next_wakeup() is None or core.next_wakeup() > core.now
    core.tell(AgentResumed())
    core.settle()
    assert set(core.ledger.fates.values()) == {"delivered"}


def test_both_agents_have_every_other_turn_for_slots():
    """A backlog of one does not keep the other waiting."""
    core = Core(scheduler={"max_inflight": 2})
    for _ in range(3):
        core.submit("b.test")
    for _ in range(3):
        core.mail("alice")
    assert core.engine.gauges()["scheduler.envelope.scheduled"] == 4
    core.tell(RemoveRequested(Selector(evpid=ev(1))))
    core.until(0.0)
    assert list(core.ledger.delivering) == [ev(4)]
    core.settle()
    assert set(core.ledger.fates.values()) == {"delivered", "removed"}


def test_a_drain_starts_no_delivery():
    """What runs may end; what waits is in the queue for the next start."""
    core = Core(mda=FEW)
    for _ in range(3):
        core.mail("alice")
    core.tell(DrainRequested())
    assert started(core.delivered(ev(1))) == []
    assert started(core.mail("bob")) == []
    assert core.next_wakeup() is None


def crowd():
    """Return a core in which 1 runs, 2 and 3 wait, 4 and 5 are held."""
    core = Core(mda={**SMALL, "max_session_per_user": 1})
    for _ in range(5):
        core.mail("alice")
    assert [state(core, n) for n in (3, 4)] == [EnvelopeState.IN_FLIGHT, EnvelopeState.HELD]
    return core


@pytest.mark.parametrize("message", [2, 3, 4, 5])
def test_what_waits_or_is_held_can_be_removed(message):
    """At once; the others are delivered."""
    core = crowd()
    out = core.tell(RemoveRequested(Selector(evpid=ev(message))))
    assert [i.evpid for i in only(RemoveEnvelope, out)] == [ev(message)]
    core.settle()
    assert list(core.ledger.fates.values()).count("delivered") == 4


def test_everything_can_be_removed():
    """What runs is removed if it fails for now."""
    core = crowd()
    core.tell(RemoveRequested(Selector()))
    assert core.ledger.rows.keys() == {ev(1)}
    (removed,) = core.delivered(ev(1), Outcome.TEMPFAIL)
    assert removed.reason is Removal.REMOVED
    assert core.leaks() == {}


@pytest.mark.parametrize("message", [1, 2, 4])
def test_an_envelope_can_be_suspended_wherever_it_is(message):
    """What runs is suspended if it fails for now; it goes on when it may."""
    core = crowd()
    core.tell(SuspendRequested(Selector(evpid=ev(message))))
    core.delivered(ev(1), Outcome.TEMPFAIL)
    assert state(core, message) is EnvelopeState.SUSPENDED
    core.settle()
    assert core.ledger.rows.keys() == {ev(message)}
    core.tell(UnsuspendRequested(Selector(evpid=ev(message))))
    core.settle()
    assert core.ledger.rows == {}


def test_a_wish_to_suspend_can_be_taken_back():
    """Before the delivery that runs has ended."""
    core = crowd()
    core.tell(SuspendRequested(Selector(evpid=ev(1))))
    core.tell(UnsuspendRequested(Selector(evpid=ev(1))))
    core.delivered(ev(1), Outcome.TEMPFAIL)
    assert state(core, 1) is EnvelopeState.PENDING


def test_held_and_pending_mail_is_tried_when_the_operator_asks():
    """`mtactl schedule` takes envelopes out of the hold queue."""
    core = crowd()
    core.tell(ScheduleRequested(Selector(evpid=ev(5))))
    core.delivered(ev(1), Outcome.TEMPFAIL)
    core.tell(ScheduleRequested(Selector(evpid=ev(1))))
    core.settle()
    assert set(core.ledger.fates.values()) == {"delivered"}


# ---- what always holds


class Post(RuleBasedStateMachine):
    """Users, floods, failures and an operator, under any policy and any small caps."""

    @initialize(
        policy=st.sampled_from(["tempfail", "raised", "hold"]),
        sessions=st.tuples(st.integers(1, 4), st.integers(1, 3)),
        water=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
        caps=st.tuples(st.integers(1, 8), st.integers(1, 4)),
        held=st.integers(1, 4),
        inflight=st.integers(8, 12),
        ttl_s=st.sampled_from([60.0, 5000.0]),
    )
    def begin(self, policy, sessions, water, caps, held, inflight, ttl_s):
        low = water[0] - 1
        self.core = Core(
            mda={
                "policy": policy,
                "max_session": sessions[0],
                "max_session_per_user": sessions[1],
                "task_low_water": low,
                "task_high_water": low + water[1],
                "task_release": water[2],
                **{f"{p}_max_pending": caps[0] for p in ("tempfail", "raised")},
                **{f"{p}_max_pending_per_user": caps[1] for p in ("tempfail", "raised")},
            },
            scheduler={
                "max_held": held,
                "max_inflight": inflight,
                "max_schedule": 3,
                "envelope_ttl_s": ttl_s,
            },
        )
        self.policy = policy

    @rule(
        users=st.lists(st.sampled_from(["alice", "alice", "bob", ""]), min_size=1, max_size=4),
        elsewhere=st.booleans(),
        sender=st.sampled_from(["a@from.test", ""]),
    )
    def mail(self, users, elsewhere, sender):
        self.core.mail(*users, sender=sender, domains=("b.test",) * elsewhere)

    @precondition(lambda self: self.core.ledger.delivering)
    @rule(data=st.data(), outcome=st.sampled_from(Outcome))
    def end(self, data, outcome):
        identity = data.draw(st.sampled_from(sorted(self.core.ledger.delivering)))
        self.core.delivered(identity, outcome)

    @rule(seconds=st.sampled_from([0.0, 3.0, 10.0, 70.0, 500.0]))
    def pass_time(self, seconds):
        self.core.until(self.core.t + seconds)

    @rule(
        kind=st.sampled_from(
            [ScheduleRequested, RemoveRequested, SuspendRequested, UnsuspendRequested]
        ),
        data=st.data(),
    )
    def operate(self, kind, data):
        rows = sorted(self.core.ledger.rows)
        which = data.draw(st.sampled_from([None, *rows]))
        self.core.tell(kind(Selector(evpid=which)))

    @rule(kind=st.sampled_from([AgentPaused, AgentResumed]), agent=st.sampled_from(Agent))
    def pause(self, kind, agent):
        self.core.tell(kind(agent))

    @rule(kind=st.sampled_from([AgentPaused, AgentResumed]), user=st.sampled_from(["alice", "bob"]))
    def pause_one(self, kind, user):
        self.core.tell(kind(Agent.MDA, user))

    @rule(
        change=st.sampled_from(
            [
                LimitChanged("limits.mda.max_session", 1),
                LimitChanged("limits.mda.max_session", 5),
                LimitChanged("limits.mda.max_session_per_user", 1),
                LimitChanged("limits.mda.max_session_per_user", 4),
                LimitChanged("limits.mda.task_low_water", 0),
                LimitChanged("limits.scheduler.max_held", 1),
                LimitChanged("limits.scheduler.max_inflight", 40),
            ]
        )
    )
    def change_limit(self, change):
        self.core.tell(change)

    @invariant()
    def nothing_is_sent_back_under_hold(self):
        if hasattr(self, "core") and self.policy == "hold":
            assert self.core.engine.local.refused == 0

    def teardown(self):
        if not hasattr(self, "core"):
            return
        core = self.core
        core.tell(AgentResumed(Agent.MDA))
        core.tell(AgentResumed(Agent.MTA))
        for user in ("alice", "bob"):
            core.tell(AgentResumed(Agent.MDA, user))
        core.tell(UnsuspendRequested(Selector()))
        core.settle()
        assert core.ledger.rows == {}
        assert core.leaks() == {}
        assert core.engine.local.users == {}


Post.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestPost = Post.TestCase


@settings(deadline=None, max_examples=20)
@given(
    flood=st.integers(20, 80),
    others=st.lists(st.integers(1, 3), min_size=1, max_size=6),
    per_user=st.integers(1, 7),
    places=st.integers(1, 10),
)
def test_under_hold_nothing_fails_and_the_others_come_first(flood, others, per_user, places):
    """However large the flood: the k-th message of anybody else waits for at most k rounds of turns."""
    core = Core(
        mda={
            "max_session": places,
            "max_session_per_user": per_user,
            "task_high_water": 5,
            "task_low_water": 3,
            "task_release": 2,
        },
        representations=("slim",),
        validating=False,
    )
    core.mail(*("flood",) * flood)
    for user, count in enumerate(others):
        core.mail(*(f"user{user}",) * count)
    order = []
    while core.ledger.delivering:
        identity, user = next(iter(core.ledger.delivering.items()))
        order.append(user)
        core.delivered(identity)
    turns = len(others) + 1
    # Those that ran already when the others came, then rounds of one delivery each.
    last = max(place for place, user in enumerate(order) if user != "flood")
    assert last < per_user + max(others) * turns + turns
    assert core.engine.counters()["scheduler.delivery.tempfail"] == 0


def test_the_answer_carries_what_the_log_needs():
    """The stimulus is plain data."""
    done = LocalDeliveryDone(ev(1), Outcome.OK, "Delivered")
    assert done == (ev(1), Outcome.OK, "Delivered")
