"""The core as a driver meets it: four engines side by side, and a ledger that holds them to their contract.

`Core` tells every representation the same and wants the same instructions from all. Its `Ledger` knows
what a driver and a durable queue know, nothing of the core's insides, and checks every instruction
against that: answered once, within the limits, no envelope lost or in two places.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from mta.core.concurrency import ConcurrencySettings
from mta.core.engine import Engine
from mta.core.envelopes import REPRESENTATIONS
from mta.core.envelopes.base import (
    WARNED_SHIFT,
    EnvelopeState,
    Flag,
    Recipient,
    Transaction,
    is_local_key,
    local_key,
    to_tick,
)
from mta.core.ids import EvpId, MsgId, SessionId, evpid, msgid_of
from mta.core.instructions import (
    BounceKind,
    CloseConnection,
    DeferEnvelope,
    DeliverLocally,
    Instruction,
    Note,
    OpenConnection,
    Removal,
    RemoveEnvelope,
    ResolveDomain,
    SendBounce,
    StartTransaction,
    SuspendEnvelope,
)
from mta.core.limits import Limits, MdaLimits, MtaLimits, SchedulerLimits
from mta.core.metrics import DRAINING
from mta.core.relayrules import RelayRule, RelayRules, relay_problems
from mta.core.reply import Outcome
from mta.core.retry import RetrySettings
from mta.core.routing import MxHost, Resolution, ResolutionStatus
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
    LocalDeliveryDone,
    MessageSubmitted,
    RemoveRequested,
    Result,
    Selector,
    Stimulus,
    SuspendRequested,
    TimeReached,
    TransactionDone,
    UnsuspendRequested,
)

EPOCH = 1_700_000_000.0
BODY = b"Subject: x\r\n\r\nhello\r\n"
STATUS = {
    Outcome.OK: "250 2.0.0 Ok",
    Outcome.TEMPFAIL: "451 4.3.0 later",
    Outcome.PERMFAIL: "550 5.1.1 no such user",
    Outcome.LOOP: "554 5.4.6 too many hops",
}


def ev(message: int, number: int = 1) -> EvpId:
    """Return the id of a recipient of a message."""
    return evpid(MsgId(message), number)


def mx(*hosts: tuple[int, str], ttl_s: float = 300.0) -> Resolution:
    """Return an answer with one host per (preference, address)."""
    return Resolution(
        ResolutionStatus.OK,
        tuple(MxHost(preference, f"mx-{address}", (address,)) for preference, address in hosts),
        ttl_s,
    )


@dataclass
class Row:
    """What the durable queue has of an envelope."""

    transaction: Transaction
    recipient: Recipient
    created_at: float
    expires_at: float
    attempts: int
    due_at: float
    flags: int


@dataclass
class Connection:
    """What the driver knows of a connection."""

    domain: str
    source: str
    address: str
    ready: bool = False
    closing: bool = False
    messages: int = 0
    running: tuple[EvpId, ...] = ()


def born_with(sender: str, notify: str) -> int:
    """Return the flags of a new envelope: RFC 5321 4.5.5, RFC 3461 4.1."""
    if not sender or notify == "NEVER":
        return Flag.NO_BOUNCE | Flag.NO_WARNING
    if not notify:
        return 0
    words = notify.split(",")
    return (
        Flag.NO_BOUNCE * ("FAILURE" not in words)
        | Flag.SUCCESS * ("SUCCESS" in words)
        | Flag.NO_WARNING * ("DELAY" not in words)
    )


@dataclass
class Ledger:
    """What drivers know, and the rules that instructions keep."""

    limits: Limits
    rules: RelayRules
    rows: dict[EvpId, Row] = field(default_factory=dict)
    """The durable queue."""
    fates: dict[EvpId, str] = field(default_factory=dict)
    """What became of those that left it; each leaves once."""
    resolving: set[str] = field(default_factory=set)
    connections: dict[SessionId, Connection] = field(default_factory=dict)
    doomed: set[EvpId] = field(default_factory=set)
    """In a running transaction, and removed by the operator."""
    suspended: set[EvpId] = field(default_factory=set)
    """Those that the operator wants left alone."""
    paused: bool = False
    paused_mda: bool = False
    delivering: dict[EvpId, str] = field(default_factory=dict)
    """Whose mailbox each running local delivery is for."""
    draining: bool = False
    seen: set[SessionId] = field(default_factory=set)
    worked: set[tuple[str, str]] = field(default_factory=set)
    """Routes that have ever been ready."""
    connected_at: dict[tuple[str, ...], float] = field(default_factory=dict)
    """By what has a gap."""
    closed_at: dict[tuple[str, str], float] = field(default_factory=dict)
    warn_after_s: tuple[float, ...] = ()
    reporting: set[EvpId] = field(default_factory=set)
    """Delivered by this stimulus to a host that reports itself."""

    # What the driver tells

    def told(self, stimulus: Stimulus, now: float) -> tuple[dict[EvpId, Outcome], set[EvpId]]:
        """Take note of a stimulus; return the outcomes it brings and the envelopes it removes."""
        outcomes: dict[EvpId, Outcome] = {}
        removed: set[EvpId] = set()
        match stimulus:
            case MessageSubmitted(msgid, transaction, recipients):
                ttl_s = (
                    self.limits.scheduler.envelope_ttl_s
                    if transaction.sender
                    else self.limits.scheduler.bounce_ttl_s
                )
                created_at = to_tick(now)
                expires_at = to_tick(created_at + ttl_s)
                for number, recipient in enumerate(recipients, 1):
                    flags = born_with(transaction.sender, recipient.notify)
                    self.rows[evpid(msgid, number)] = Row(
                        transaction, recipient, created_at, expires_at, 0, now, flags
                    )
            case EnvelopeRestored():
                s = stimulus
                self.rows[s.evpid] = Row(
                    s.transaction,
                    s.recipient,
                    s.created_at,
                    s.expires_at,
                    s.attempts,
                    s.due_at,
                    s.flags,
                )
                if s.flags & Flag.SUSPENDED:
                    self.suspended.add(s.evpid)
            case DomainResolved(domain):
                self.resolving.discard(domain)
            case ConnectionReady(session):
                if (c := self.connections.get(session)) is not None:
                    c.ready = True
                    self.worked.add((c.source, c.address))
            case ConnectionFailed(session) | ConnectionClosed(session):
                if (c := self.connections.pop(session, None)) is not None:
                    outcomes = dict.fromkeys(c.running, Outcome.TEMPFAIL)
                    self.closed_at[c.source, c.address] = now
            case TransactionDone(session, results):
                if (c := self.connections.get(session)) is not None:
                    assert set(c.running) == {r.evpid for r in results}
                    outcomes = {r.evpid: r.outcome for r in results}
                    self.reporting = {r.evpid for r in results if r.reports}
                    c.running = ()
            case LocalDeliveryDone(identity, outcome):
                if self.delivering.pop(identity, None) is not None:
                    outcomes = {identity: outcome}
            case RemoveRequested(which):
                removed = self.matching(which)
                self.doomed |= removed
            case SuspendRequested(which):
                self.suspended |= self.matching(which)
            case UnsuspendRequested(which):
                self.suspended -= self.matching(which)
            case AgentPaused(agent, "") | AgentResumed(agent, ""):
                paused = isinstance(stimulus, AgentPaused)
                if agent is Agent.MDA:
                    self.paused_mda = paused
                else:
                    self.paused = paused
            case DrainRequested():
                self.draining = True
        return outcomes, removed

    def matching(self, which: Selector) -> set[EvpId]:
        """Return what is in the queue of what the operator means."""
        return {
            identity
            for identity in self.rows
            if (which.evpid is None or identity == which.evpid)
            and (which.evpid is not None or which.msgid in (None, msgid_of(identity)))
        }

    def running(self) -> dict[EvpId, SessionId]:
        """Return which envelope is in which running transaction, 0 for a local delivery; none is in two."""
        found = dict.fromkeys(self.delivering, SessionId(0))
        for session, connection in self.connections.items():
            for identity in connection.running:
                assert identity not in found, (identity, session, found[identity])
                found[identity] = session
        return found

    # What the core answers

    def check(self, stimulus: Stimulus, instructions: list[Instruction], now: float) -> None:
        """Take note of a stimulus and check the instructions that it led to."""
        outcomes, removed = self.told(stimulus, now)
        settled: set[EvpId] = set()
        reports: set[tuple[MsgId, BounceKind]] = set()
        for instruction in instructions:
            match instruction:
                case ResolveDomain(domain):
                    assert domain not in self.resolving, instruction
                    assert not self.paused, instruction
                    assert not self.draining, instruction
                    self.resolving.add(domain)
                case OpenConnection():
                    self._opened(instruction, now)
                case StartTransaction():
                    self._started(instruction)
                case CloseConnection(session):
                    connection = self.connections[session]
                    assert connection.ready, instruction
                    assert not connection.closing, instruction
                    assert not connection.running, instruction
                    connection.closing = True
                case DeliverLocally(identity, user):
                    self._delivery_began(identity, user, now)
                case DeferEnvelope(identity, attempts, due_at, status):
                    row = self._free(identity)
                    assert identity not in self.doomed | self.suspended, instruction
                    assert outcomes.get(identity, Outcome.TEMPFAIL) is Outcome.TEMPFAIL
                    assert due_at > now or due_at == row.expires_at, (instruction, now)
                    assert due_at <= row.expires_at
                    # What has no status was not tried.
                    assert attempts == row.attempts + bool(status), (instruction, row)
                    row.attempts, row.due_at = attempts, due_at
                    settled.add(identity)
                case RemoveEnvelope(identity, reason, _):
                    self._left(identity, reason, outcomes, now)
                    settled.add(identity)
                case SendBounce(msgid, kind, failures):
                    assert failures, instruction
                    assert (msgid, kind) not in reports, instruction
                    reports.add((msgid, kind))
                    for identity, _ in failures:
                        assert msgid_of(identity) == msgid, instruction
                        row = self._free(identity)
                        if kind is BounceKind.DELAYED:
                            self._warned(identity, row, now)
                            continue
                        if kind.is_success:
                            assert outcomes[identity] is Outcome.OK, instruction
                            assert row.flags & Flag.SUCCESS, instruction
                            assert identity not in self.reporting, instruction
                            is_local = is_local_key(row.recipient.domain)
                            assert (kind is BounceKind.DELIVERED) == is_local, instruction
                            self._forget(identity, "delivered")
                            settled.add(identity)
                            continue
                        assert not row.flags & Flag.NO_BOUNCE, instruction
                        self._forget(identity, kind.value)
                        settled.add(identity)
                        if kind is BounceKind.EXPIRED:
                            assert row.expires_at <= now, (instruction, now)
                        else:
                            assert outcomes.get(identity) in (
                                Outcome.PERMFAIL,
                                Outcome.LOOP,
                            ) or isinstance(stimulus, DomainResolved), instruction
                case SuspendEnvelope(identity, flags):
                    row = self._free(identity)
                    assert bool(flags & Flag.SUSPENDED) == (identity in self.suspended)
                    assert flags ^ row.flags == Flag.SUSPENDED, (instruction, row)
                    row.flags = flags
                    settled.add(identity)
                case _:
                    assert isinstance(instruction, Note), instruction
        assert settled >= outcomes.keys(), outcomes.keys() - settled
        still = removed & self.rows.keys()
        assert still <= self.running().keys(), "the operator's removals wait only for transactions"
        self.doomed &= self.rows.keys()

    def _opened(self, instruction: OpenConnection, now: float) -> None:
        plan = self.rules.plan_of(instruction.domain)
        limits = plan.limits
        session, domain, source, address, _ = instruction
        assert not self.paused, instruction
        assert not self.draining, instruction
        assert session not in self.seen, instruction
        assert source in plan.sources, instruction
        assert plan.reaches(source, address), instruction
        self.seen.add(session)
        others = list(self.connections.values())
        to_address = [c for c in others if c.address == address]
        to_domain = [c for c in others if c.domain == domain]
        on_route = [c for c in to_address if c.source == source]
        assert len(others) < self.limits.mta.max_conn
        assert len([c for c in others if c.source == source]) < limits.max_conn_per_source
        assert len(to_address) < limits.max_conn_per_host
        assert len(on_route) < limits.max_conn_per_route
        assert len(to_domain) < min(limits.max_conn_per_relay, limits.max_conn_per_domain)
        assert len([c for c in to_domain if c.source == source]) < limits.max_conn_per_connector
        assert not on_route or (source, address) in self.worked, "one connection validates a route"
        gaps = {
            ("host", address): limits.conn_delay_host_s,
            ("route", source, address): limits.conn_delay_route_s,
            ("source", source): limits.conn_delay_source_s,
            ("connector", source, domain): limits.conn_delay_connector_s,
            ("relay", domain): max(limits.conn_delay_relay_s, limits.conn_delay_domain_s),
        }
        for key, gap_s in gaps.items():
            assert now >= self.connected_at.get(key, -1e9) + gap_s, (key, instruction)
            self.connected_at[key] = now
        closed_at = self.closed_at.get((source, address), -1e9)
        assert now >= closed_at + limits.reconn_delay_route_s, instruction
        self.connections[session] = Connection(domain, source, address)

    def _started(self, instruction: StartTransaction) -> None:
        session, msgid, evpids = instruction
        assert not self.paused, instruction
        assert not self.draining, instruction
        connection = self.connections[session]
        assert connection.ready, instruction
        assert not connection.closing, instruction
        assert not connection.running, instruction
        limits = self.rules.plan_of(connection.domain).limits
        assert 0 < len(evpids) <= limits.max_rcpt_per_task
        assert len(set(evpids)) == len(evpids)
        for identity in evpids:
            row = self._free(identity)
            assert self.rules.key_of(row.recipient.domain) == connection.domain
            assert msgid_of(identity) == msgid
            assert identity not in self.doomed | self.suspended, instruction
        connection.running = evpids
        connection.messages += 1
        assert connection.messages <= limits.session_mail_max

    def _delivery_began(self, identity: EvpId, user: str, now: float) -> None:
        limits = self.limits.mda
        assert not self.paused_mda, identity
        assert not self.draining, identity
        row = self._free(identity)
        assert row.recipient.domain == local_key(user)
        assert row.expires_at > now, "what is too old expires when its turn comes"
        assert identity not in self.doomed | self.suspended, identity
        assert len(self.delivering) < limits.max_session
        assert list(self.delivering.values()).count(user) < limits.max_session_per_user
        self.delivering[identity] = user

    def _free(self, identity: EvpId) -> Row:
        """Return the row of an envelope that is in the queue and in no transaction."""
        assert identity not in self.running(), identity
        return self.rows[identity]

    def _left(
        self, identity: EvpId, reason: Removal, outcomes: dict[EvpId, Outcome], now: float
    ) -> None:
        row = self._free(identity)
        if reason is Removal.DELIVERED:
            assert outcomes[identity] is Outcome.OK
            assert not row.flags & Flag.SUCCESS or identity in self.reporting
        elif reason is Removal.REMOVED:
            assert identity in self.doomed
        else:
            assert row.flags & Flag.NO_BOUNCE
            assert reason is not Removal.EXPIRED or row.expires_at <= now
        self._forget(identity, reason.value)

    def _warned(self, identity: EvpId, row: Row, now: float) -> None:
        """Its latest warning is due, was not given, and is wanted; it failed again just now."""
        assert not row.flags & Flag.NO_WARNING, row
        passed = [after for after in self.warn_after_s if row.created_at + after <= now]
        assert len(passed) > row.flags >> WARNED_SHIFT, row
        row.flags = row.flags % (1 << WARNED_SHIFT) + (len(passed) << WARNED_SHIFT)

    def _forget(self, identity: EvpId, fate: str) -> None:
        assert identity not in self.fates, (identity, self.fates[identity], fate)
        del self.rows[identity]
        self.fates[identity] = fate
        self.suspended.discard(identity)


class Core:
    """Four engines that are told the same, and answer the same."""

    def __init__(
        self,
        *,
        mta: dict[str, Any] | None = None,
        mda: dict[str, Any] | None = None,
        scheduler: dict[str, Any] | None = None,
        retry: RetrySettings | None = None,
        concurrency: ConcurrencySettings | None = None,
        own_names: Collection[str] = (),
        own_addresses: Collection[str] = (),
        own_by_port: Mapping[int, Collection[str]] | None = None,
        representations: Collection[str] = REPRESENTATIONS,
        validating: bool = True,
        now: float = EPOCH,
        warn_after_s: tuple[float, ...] = (),
        relays: Sequence[RelayRule] = (),
        smart_host: str = "",
    ) -> None:
        self.limits = Limits(
            mta=MtaLimits(**(mta or {})),
            mda=MdaLimits(**(mda or {})),
            scheduler=SchedulerLimits(**(scheduler or {})),
        )
        parts = (self.limits, self.limits.mta, self.limits.mda, self.limits.scheduler)
        assert not [problem for part in parts for problem in part.problems()]
        assert not list(relay_problems(relays, self.limits.mta, smart_host=smart_host))
        assert not [problem for rule in relays for problem in rule.problems()]
        rules = RelayRules(relays, self.limits.mta, smart_host=smart_host)
        self.engines = [
            Engine(
                representation=name,
                limits=self.limits,
                retry=retry or RetrySettings(),
                concurrency=concurrency or ConcurrencySettings(),
                stream=lambda concern: Random(f"7 {concern}"),
                now=now,
                own_names=own_names,
                own_addresses=own_addresses,
                own_by_port=own_by_port,
                warn_after_s=warn_after_s,
                rules=rules,
            )
            for name in representations
        ]
        self.ledger = Ledger(self.limits, rules, warn_after_s=warn_after_s)
        self.now = now
        self.validating = validating
        self._seen: dict[tuple[int, str], int] = {}
        """Engine and what is limited -> how many there were at the last look."""
        self._seeing: dict[tuple[int, str], int] = {}
        self._messages = 0
        self._at_this_instant = 0

    @property
    def engine(self) -> Engine:
        """The first engine, for questions."""
        return self.engines[0]

    @property
    def t(self) -> float:
        """Seconds since the start."""
        return self.now - EPOCH

    # Telling

    def tell(self, stimulus: Stimulus) -> list[Instruction]:
        """Tell all engines; return what they all answer."""
        answers = [engine.handle(stimulus, now=self.now) for engine in self.engines]
        first = answers[0]
        for engine, answer in zip(self.engines, answers, strict=True):
            assert first == answer, (engine.store.name, stimulus)
            assert [type(i) for i in first] == [type(i) for i in answer]
        self.ledger.check(stimulus, first, self.now)
        if self.validating:
            self.validate()
        return first

    def _within(self, engine: Engine, what: str, count: int, limit: int) -> None:
        """Assert that a limit is kept; what a lowered one finds above it may stay, and never grow."""
        key = (self.engines.index(engine), what)
        assert count <= max(limit, self._seen.get(key, 0)), (what, count, limit)
        self._seeing[key] = count

    def validate(self) -> None:
        """Check that every engine is consistent, agrees with the ledger, and keeps the limits."""
        ledger, limits = self.ledger, self.limits
        running = ledger.running()
        self._seen, self._seeing = self._seeing, {}
        for engine in self.engines:
            engine.validate()
            store = engine.store
            assert {store.evpid_of(handle) for handle in store} == ledger.rows.keys()
            for identity, row in ledger.rows.items():
                handle = store.find(identity)
                assert store.attempts_of(handle) == row.attempts
                assert store.flags_of(handle) == row.flags
                parked = store.state_of(handle) is EnvelopeState.SUSPENDED
                assert parked == (identity in ledger.suspended and identity not in running)
                if identity in running:
                    assert store.state_of(handle) is EnvelopeState.IN_FLIGHT
            assert engine.agent.sessions.keys() == ledger.connections.keys()
            assert engine.local.running.keys() == ledger.delivering.keys()
            self._within(engine, "relays", len(engine.agent.relays), limits.mta.max_relays)
            for relay in engine.agent.relays.values():
                own = ledger.rules.plan_of(relay.domain).limits
                water = max(own.task_high_water, own.task_low_water + own.task_release)
                name = relay.domain
                self._within(engine, f"held {name}", len(relay.held), limits.scheduler.max_held)
                self._within(engine, f"tasks {name}", len(relay.tasks), water)
            gauges = engine.gauges()
            assert min(gauges.values()) >= 0, gauges
            assert len(ledger.connections) == gauges["mta.session"]
            assert len(ledger.rows) == gauges["scheduler.envelope"]
            assert (
                sum(bool(c.running) for c in ledger.connections.values())
                == (gauges["mta.task.running"])
            )

    def submit(
        self,
        *domains: str,
        sender: str = "a@from.test",
        notify: str = "",
        message: int | None = None,
    ) -> list[Instruction]:
        """Submit one message with a recipient in each domain; messages are numbered from 1."""
        self._messages = self._messages + 1 if message is None else message
        recipients = tuple(Recipient(f"x{n}@{d}", d, notify) for n, d in enumerate(domains, 1))
        transaction = Transaction(sender, len(BODY))
        return self.tell(MessageSubmitted(MsgId(self._messages), transaction, recipients, BODY))

    def mail(
        self,
        *users: str,
        sender: str = "a@from.test",
        domains: tuple[str, ...] = (),
        notify: str = "",
    ) -> list[Instruction]:
        """Submit one message for users of ours, and perhaps for others elsewhere."""
        self._messages += 1
        recipients = [
            Recipient(f"{u}@here.test", local_key(u), notify, delivery="local", user=u, rule="here")
            for u in users
        ]
        recipients += [Recipient(f"x@{domain}", domain) for domain in domains]
        transaction = Transaction(sender, len(BODY))
        return self.tell(
            MessageSubmitted(MsgId(self._messages), transaction, tuple(recipients), BODY)
        )

    def delivered(self, identity: EvpId, outcome: Outcome = Outcome.OK) -> list[Instruction]:
        """Say what became of a local delivery."""
        return self.tell(LocalDeliveryDone(identity, outcome, STATUS[outcome]))

    def resolve(
        self, domain: str, *hosts: tuple[int, str], ttl_s: float = 300.0
    ) -> list[Instruction]:
        """Answer a look-up with (preference, address) pairs."""
        return self.tell(DomainResolved(domain, mx(*hosts, ttl_s=ttl_s)))

    def unresolved(self, domain: str, status: ResolutionStatus) -> list[Instruction]:
        """Answer a look-up with a failure."""
        return self.tell(DomainResolved(domain, Resolution(status)))

    def ready(self, session: int) -> list[Instruction]:
        """Say that a connection can take a transaction."""
        return self.tell(ConnectionReady(SessionId(session)))

    def failed(self, session: int, reason: str = "Connection refused") -> list[Instruction]:
        """Say that a connection did not become ready."""
        return self.tell(ConnectionFailed(SessionId(session), reason))

    def closed(self, session: int, reason: str = "Connection reset") -> list[Instruction]:
        """Say that a connection is gone."""
        return self.tell(ConnectionClosed(SessionId(session), reason))

    def done(
        self,
        session: int,
        *outcomes: Outcome,
        usable: bool = True,
        status: str | None = None,
        reports: bool = False,
    ) -> list[Instruction]:
        """End a transaction, with one outcome for each envelope or one for all; delivered by default."""
        evpids = self.ledger.connections[SessionId(session)].running
        all_outcomes = outcomes if len(outcomes) > 1 else (outcomes or (Outcome.OK,)) * len(evpids)
        results = tuple(
            Result(e, o, STATUS[o] if status is None else status, reports)
            for e, o in zip(evpids, all_outcomes, strict=True)
        )
        return self.tell(TransactionDone(SessionId(session), results, usable))

    # Time

    def next_wakeup(self) -> float | None:
        """Return when all engines want to be woken, at the latest: `packed` may ask a little early."""
        wakeups = [engine.next_wakeup() for engine in self.engines]
        asked = [at for at in wakeups if at is not None]
        assert len(asked) in (0, len(wakeups)), wakeups
        return min(asked, default=None)

    def wake(self) -> list[Instruction]:
        """Tell the time once, and mind that nobody asks for it for ever at one instant."""
        before = len(self.ledger.rows)
        out = self.tell(TimeReached())
        wakeup = self.next_wakeup()
        if out or wakeup is None or wakeup > self.now:
            self._at_this_instant = 0
        else:
            self._at_this_instant += 1
            assert self._at_this_instant <= before + 100, "livelock: time stands still"
        return out

    def until(self, t: float) -> list[Instruction]:
        """Let time pass as a driver does, to an instant in seconds since the start."""
        out: list[Instruction] = []
        target = EPOCH + t
        since, steps = self.now, 0
        while (wakeup := self.next_wakeup()) is not None and wakeup <= target:
            self.now = max(self.now, wakeup)
            out += self.wake()
            steps += 1
            if self.now >= since + 60.0:  # days of waiting for a name server are no livelock
                since, steps = self.now, 0
            assert steps < 2_000, "livelock: time moves on too slowly"
        assert target >= self.now
        self.now = target
        return out

    # A world in which everything works

    def answer_all(self, address: str = "192.0.2.1") -> int:
        """Give every question that is open its good answer, once; return how many there were."""
        questions = 0
        for domain in sorted(self.ledger.resolving):
            questions += 1
            self.resolve(domain, (10, address))
        for session, connection in sorted(self.ledger.connections.items()):
            if connection.running:
                self.done(session)
            elif connection.closing:
                self.closed(session)
            elif not connection.ready:
                self.ready(session)
            else:
                continue
            questions += 1
        for identity in sorted(self.ledger.delivering):
            self.delivered(identity)
            questions += 1
        return questions

    def settle(self, *, answers_max: int = 10_000) -> None:
        """Let everything work and time pass until there is nothing left to do."""
        steps = 0
        while True:
            while self.answer_all():
                steps += 1
                assert steps < answers_max, "livelock: the core never rests"
            wakeup = self.next_wakeup()
            if wakeup is None:
                return
            self.now = max(self.now, wakeup)
            self.wake()
            steps += 1
            assert steps < answers_max, "livelock: the core never rests"

    def leaks(self) -> dict[str, int]:
        """Return the gauges of all engines that should be 0 once nothing is left, and are not."""
        return {
            f"{engine.store.name} {name}": value
            for engine in self.engines
            for name, value in engine.gauges().items()
            if name in DRAINING and value
        }


def only(kind: type[Any], instructions: Iterable[Instruction]) -> list[Any]:
    """Return the instructions of one kind, in order."""
    return [instruction for instruction in instructions if type(instruction) is kind]
