"""The core as drivers see it: stimuli in, instructions out, one clock.

`Engine.handle` is the only way to change anything. It gives the stimulus to the scheduler or to one of
the two agents, relaying or local delivery, then hands out what is due. The clock is an argument, in seconds since the epoch, and
never decreases.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mta.core.agent import MtaAgent
from mta.core.concurrency import ConcurrencySettings
from mta.core.envelopes import make_store
from mta.core.envelopes.base import EnvelopeState, EnvelopeStore, Handle, is_local_key
from mta.core.expiry import PausedExpiry
from mta.core.ids import SessionId
from mta.core.instructions import Instruction
from mta.core.limitchange import put_limit
from mta.core.limits import Limits
from mta.core.local import LocalAgent
from mta.core.relayrules import RelayRules
from mta.core.retry import RetrySettings, local_policy, make_retry, overflow_policy
from mta.core.scheduler import Scheduler
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
    LocalDeliveryDone,
    MessageSubmitted,
    RemoveRequested,
    RouteEnabled,
    ScheduleRequested,
    Stimulus,
    SuspendRequested,
    TimeReached,
    TransactionDone,
    UnsuspendRequested,
)

if TYPE_CHECKING:
    from random import Random

_FIRST_SESSION = SessionId(0)


class Engine:
    """Scheduler and agents behind one door."""

    def __init__(
        self,
        *,
        representation: str,
        limits: Limits,
        retry: RetrySettings,
        concurrency: ConcurrencySettings,
        stream: "Callable[[str], Random]",
        now: float,
        first_session: SessionId = _FIRST_SESSION,
        own_names: Collection[str] = (),
        own_addresses: Collection[str] = (),
        own_by_port: Mapping[int, Collection[str]] | None = None,
        warn_after_s: Sequence[float] = (),
        rules: RelayRules | None = None,
    ) -> None:
        """Make an empty core.

        Args:
            representation: how envelopes are kept, one of `mta.core.envelopes.REPRESENTATIONS`.
            limits: every cap and gap.
            retry: when to try again.
            concurrency: how many connections a destination may have.
            stream: returns the random stream for a concern: ``retry`` (jitter), ``mx`` (order of hosts
                with the same preference).
            now: the clock, seconds since the epoch.
            first_session: outbound sessions are numbered from the next one.
            own_names: host names that are us, lower case: never relayed to (RFC 5321 5.1).
            own_addresses: addresses and networks that are us, at the port that mail goes to.
            own_by_port: the same for rules with a port of their own.
            warn_after_s: when a sender is told that an envelope is late: `BounceSettings.warn_interval_s`.
            rules: what the operator wants for which destination; by default nothing special.
        """
        self.limits = limits
        self.store: EnvelopeStore = make_store(representation, epoch=now)
        self.scheduler = Scheduler(
            self.store,
            limits=limits.scheduler,
            retry=make_retry(retry),
            overflow=overflow_policy(retry),
            rng=stream("retry"),
            warn_after_s=warn_after_s,
        )
        self.agent = MtaAgent(
            self.scheduler,
            limits=limits,
            concurrency=concurrency,
            rng=stream("mx"),
            first_session=first_session,
            rules=rules,
            own_names=own_names,
            own_addresses=own_addresses,
            own_by_port=own_by_port,
        )
        self.local = LocalAgent(self.scheduler, limits=limits, retry=local_policy(retry))
        self.expiry = PausedExpiry(self.scheduler, self._agent_of)
        self._now = now
        self._handlers: dict[type, Callable[[Any, float, list[Instruction]], None]] = {
            MessageSubmitted: self._submitted,
            EnvelopeRestored: self._restored,
            TimeReached: self._time_reached,
            DomainResolved: self.agent.resolved,
            ConnectionReady: self._ready,
            ConnectionFailed: self._failed,
            TransactionDone: self.agent.done,
            ConnectionClosed: self._closed,
            LocalDeliveryDone: self.local.done,
            ScheduleRequested: self._schedule,
            RemoveRequested: self._remove,
            SuspendRequested: self._suspend,
            UnsuspendRequested: self._unsuspend,
            AgentPaused: self._pause,
            AgentResumed: self._resume,
            RouteEnabled: self._enable_route,
            LimitChanged: self._change_limit,
            DrainRequested: self._drain,
        }

    def handle(self, stimulus: Stimulus, now: float) -> list[Instruction]:
        """Take in what has happened; return what to do, in this order.

        Args:
            stimulus: what has happened.
            now: when, in seconds since the epoch; never before that of the call before.
        """
        assert now >= self._now, (now, self._now)
        self._now = now
        out: list[Instruction] = []
        self._handlers[type(stimulus)](stimulus, now, out)
        scheduler = self.scheduler
        if scheduler.scheduled or scheduler.due_at <= now or scheduler.has_local:
            self._hand_out(now, out)
        if self.expiry.active:
            self.expiry.run(now)
        if scheduler.has_local:
            self.local.start(now, out)
        if scheduler.failures:
            scheduler.settle_failures(out)
        return out

    def next_wakeup(self) -> float | None:
        """Return when `TimeReached` is next wanted, or None; not later than ``now`` means at once."""
        at = self.agent.next_wakeup()
        relayed, local = self._takers()
        if relayed or local:
            scheduler_at = self.scheduler.next_wakeup(self._now, relayed, local)
            if scheduler_at < at:
                at = scheduler_at
        if self.expiry.active:
            at = min(at, self.expiry.next_wakeup(self._now))
        return at if at < math.inf else None

    def _takers(self) -> tuple[bool, bool]:
        """Return whether relaying takes envelopes, and whether local delivery does."""
        agent, local = self.agent, self.local
        return (
            not (agent.paused or agent.draining),
            not (local.paused or local.draining),
        )

    def _hand_out(self, now: float, out: list[Instruction]) -> None:
        relayed, local = self._takers()
        if relayed or local:
            for handle in self.scheduler.hand_out(now, out, relayed=relayed, local=local):
                self._agent_of(handle).take(handle, now, out)

    def _agent_of(self, handle: Handle) -> MtaAgent | LocalAgent:
        """Return whose an envelope is."""
        if self.scheduler.has_local and is_local_key(self.store.domain_of(handle)):
            return self.local
        return self.agent

    # One method per stimulus

    def _submitted(self, stimulus: MessageSubmitted, now: float, out: list[Instruction]) -> None:
        for handle in self.scheduler.submit(stimulus, now):
            agent = self._agent_of(handle)
            if agent.paused or agent.draining:
                self.scheduler.back_to_scheduled(handle)
            else:
                agent.take(handle, now, out)

    def _restored(self, stimulus: EnvelopeRestored, now: float, out: list[Instruction]) -> None:
        self.scheduler.restore(stimulus, now)
        if self.expiry.active:
            self.expiry.restored(stimulus.expires_at)

    def _time_reached(self, stimulus: TimeReached, now: float, out: list[Instruction]) -> None:
        self.agent.time_reached(now, out)

    def _ready(self, stimulus: ConnectionReady, now: float, out: list[Instruction]) -> None:
        self.agent.ready(stimulus.session, now, out)

    def _failed(self, stimulus: ConnectionFailed, now: float, out: list[Instruction]) -> None:
        session, reason, source_fault = stimulus
        self.agent.failed(session, reason, now, out, source_fault=source_fault)

    def _closed(self, stimulus: ConnectionClosed, now: float, out: list[Instruction]) -> None:
        self.agent.closed(stimulus.session, stimulus.reason, now, out)

    def _pause(self, stimulus: AgentPaused, now: float, out: list[Instruction]) -> None:
        if stimulus.agent is Agent.MDA and stimulus.only:
            self.local.pause_user(stimulus.only)
        elif stimulus.agent is Agent.MDA:
            self.local.paused = True
        elif stimulus.only:
            self.agent.pause_one(stimulus.only, stimulus.source)
        else:
            self.agent.paused = True
        self._watch_expiry(now)

    def _watch_expiry(self, now: float) -> None:
        agent, local = self.agent, self.local
        paused = agent.paused or local.paused or agent.places.paused or local.paused_users
        self.expiry.watch(bool(paused), now)

    def _resume(self, stimulus: AgentResumed, now: float, out: list[Instruction]) -> None:
        if stimulus.agent is Agent.MDA and stimulus.only:
            self.local.resume_user(stimulus.only)
        elif stimulus.agent is Agent.MDA:
            self.local.paused = False
        elif stimulus.only:
            self.agent.resume_one(stimulus.only, stimulus.source, now, out)
        else:
            self.agent.resume(now, out)
        self._watch_expiry(now)

    def _enable_route(self, stimulus: RouteEnabled, now: float, out: list[Instruction]) -> None:
        self.agent.enable_route(stimulus.address, stimulus.source, now, out)

    def _change_limit(self, stimulus: LimitChanged, now: float, out: list[Instruction]) -> None:
        put_limit(self.limits, stimulus.key, stimulus.value)
        self.agent.limits_changed(now, out)
        self.local.limits_changed()

    def _drain(self, stimulus: DrainRequested, now: float, out: list[Instruction]) -> None:
        self.agent.drain(out)
        self.local.draining = True

    # The operator's selections: an envelope may be anywhere

    def _schedule(self, stimulus: ScheduleRequested, now: float, out: list[Instruction]) -> None:
        scheduler = self.scheduler
        for handle in scheduler.matching(stimulus.which):
            state = self.store.state_of(handle)
            if state is EnvelopeState.PENDING:
                scheduler.take_out(handle)
                scheduler.put_scheduled(handle)
            elif state is EnvelopeState.HELD:
                self._agent_of(handle).withdraw(handle, now)
                scheduler.back_to_scheduled(handle)

    def _remove(self, stimulus: RemoveRequested, now: float, out: list[Instruction]) -> None:
        scheduler = self.scheduler
        for handle in scheduler.matching(stimulus.which):
            if self._is_with_agent(handle):
                agent = self._agent_of(handle)
                if agent.withdraw(handle, now):
                    scheduler.removed(handle, out)
                else:
                    agent.doom(handle)
            else:
                scheduler.take_out(handle)
                scheduler.put_removed(handle, out)

    def _suspend(self, stimulus: SuspendRequested, now: float, out: list[Instruction]) -> None:
        scheduler = self.scheduler
        for handle in scheduler.matching(stimulus.which):
            if self.store.state_of(handle) is EnvelopeState.SUSPENDED:
                continue
            if not self._is_with_agent(handle):
                scheduler.take_out(handle)
                scheduler.set_suspended(handle, True, out)
                scheduler.put_suspended(handle)
            elif self._agent_of(handle).withdraw(handle, now):
                scheduler.set_suspended(handle, True, out)
                scheduler.suspended(handle)
            else:
                self._agent_of(handle).suspend_later(handle, True)

    def _unsuspend(self, stimulus: UnsuspendRequested, now: float, out: list[Instruction]) -> None:
        scheduler = self.scheduler
        for handle in scheduler.matching(stimulus.which):
            if self.store.state_of(handle) is EnvelopeState.SUSPENDED:
                scheduler.take_out(handle)
                scheduler.set_suspended(handle, False, out)
                scheduler.put_scheduled(handle)
            elif self.store.state_of(handle) is EnvelopeState.IN_FLIGHT:
                self._agent_of(handle).suspend_later(handle, False)

    def _is_with_agent(self, handle: Handle) -> bool:
        return self.store.state_of(handle) in (EnvelopeState.IN_FLIGHT, EnvelopeState.HELD)

    # What the operator and the sampler want to know

    def gauges(self) -> dict[str, int]:
        """Return how many there are of everything now, by the names of `mta.core.metrics`."""
        scheduler, agent = self.scheduler, self.agent
        relays = agent.relays.values()
        local = self.local
        held_local = sum(1 for user in local.users.values() if user.held)
        used = [route for route in agent.routes.values() if route.connections]
        return {
            "scheduler.envelope": len(self.store),
            "scheduler.envelope.pending": scheduler.count_of(EnvelopeState.PENDING),
            "scheduler.envelope.scheduled": scheduler.count_of(EnvelopeState.SCHEDULED),
            "scheduler.envelope.inflight": scheduler.in_flight,
            "scheduler.envelope.suspended": scheduler.count_of(EnvelopeState.SUSPENDED),
            "scheduler.ramqueue.hold": scheduler.held,
            "scheduler.ramqueue.holdq": sum(1 for relay in relays if relay.held) + held_local,
            "mda.envelope": local.envelopes,
            "mda.pending": local.waiting,
            "mda.running": len(local.running),
            "mda.user": len(local.users),
            "mta.connector": sum(1 for r in relays for c in r.connectors if c.connections),
            "mta.domain": len(agent.relays),
            "mta.envelope": scheduler.in_flight - local.envelopes,
            "mta.host": len({route.address for route in used}),
            "mta.relay": len(agent.relays),
            "mta.route": len(agent.routes),
            "mta.route.disabled": sum(1 for r in agent.routes.values() if r.enabled_at > self._now),
            "mta.session": len(agent.sessions),
            "mta.source": len({route.source for route in used}),
            "mta.task": sum(len(relay.tasks) for relay in relays),
            "mta.task.running": sum(relay.busy for relay in relays),
        }

    def counters(self) -> dict[str, int]:
        """Return how often everything has happened, by the names of `mta.core.metrics`."""
        counts = self.scheduler.counts
        return {
            "queue.bounce": counts.bounced,
            "scheduler.envelope.incoming": counts.enqueued,
            "scheduler.envelope.outgoing": counts.dequeued,
            "scheduler.envelope.expired": counts.expired,
            "scheduler.envelope.removed": counts.removed,
            "scheduler.envelope.updated": counts.updated,
            "scheduler.delivery.ok": counts.ok,
            "scheduler.delivery.tempfail": counts.tempfail,
            "scheduler.delivery.permfail": counts.permfail,
            "scheduler.ramqueue.hold-overflow": counts.hold_overflow,
            "mda.refused": self.local.refused,
        }

    def validate(self) -> None:
        """Assert the invariants of everything; O(n), for tests."""
        self.scheduler.validate()
        local = self.local
        local.validate()
        held = sum(len(user.held) for user in local.users.values())
        self.agent.validate(in_flight=local.envelopes, held=held)
