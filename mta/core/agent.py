"""The relaying agent: who may connect to whom, now, and with what.

OpenSMTPD's mta process as a state machine. For each destination there is a `Relay` with its waiting
transactions; the agent opens connections for it as far as seven kinds of caps, the gaps and the
concurrency policy allow, gives each connection one transaction after another, and keeps failing routes,
sources and destinations at rest, longer each time.
"""

from collections.abc import Collection, Mapping
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

from mta.core.destinations import WRONG_FAMILY, Destinations
from mta.core.envelopes.base import Handle
from mta.core.hoststats import HostStats
from mta.core.ids import EvpId, SessionId, msgid_of
from mta.core.instructions import (
    Instruction,
    Note,
    StartTransaction,
)
from mta.core.opener import Opener
from mta.core.outcomes import Outcomes
from mta.core.places import Place, Places, places_of
from mta.core.relay import Relay, Session, SessionState, Task
from mta.core.relaybook import RelayBook
from mta.core.relayrules import RelayRules
from mta.core.reply import Outcome
from mta.core.rests import (
    route_failed,
    route_rejects,
    source_failed,
)
from mta.core.surrender import Surrender
from mta.core.waiting import Waiting

if TYPE_CHECKING:
    from random import Random

    from mta.core.concurrency import ConcurrencySettings
    from mta.core.limits import Limits
    from mta.core.scheduler import Scheduler
    from mta.core.stimuli import DomainResolved, TransactionDone

_new: Final = tuple.__new__  # of a named tuple, without a call of Python code


class MtaAgent:
    """All relays, and the connections that they share hosts with."""

    def __init__(
        self,
        scheduler: "Scheduler",
        *,
        limits: "Limits",
        concurrency: "ConcurrencySettings",
        rng: "Random",
        first_session: SessionId,
        rules: RelayRules | None = None,
        own_names: Collection[str] = (),
        own_addresses: Collection[str] = (),
        own_by_port: Mapping[int, Collection[str]] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.limits = limits.mta
        self.paused = False
        self.draining = False
        self.rules = rules or RelayRules((), self.limits)
        self._plain = self.rules.trivial
        self.book = RelayBook(scheduler.store, limits, concurrency, self.rules)
        self.relays = self.book.relays
        self.places = Places(self.limits, self.relays)
        self.sessions = self.places.sessions
        self.routes = self.places.routes
        self.outcomes = Outcomes(scheduler, self.limits)
        self.doom = self.outcomes.doom
        self.suspend_later = self.outcomes.suspend_later
        self._waiting = Waiting(scheduler)
        self.hoststats = HostStats()
        self._destinations = Destinations(
            own_names=own_names,
            own_addresses=own_addresses,
            own_by_port=own_by_port or {},
            rng=rng,
        )
        self._surrender = Surrender(scheduler, self.book, self._waiting, self.outcomes)
        self._opener = Opener(
            self.book, self.places, self._destinations, self._surrender, first_session=first_session
        )
        self._paused_sessions: list[tuple[float, SessionId]] = []
        """(instant, session) of connections between two transactions."""

    # Envelopes arrive

    def take(self, handle: Handle, now: float, out: list[Instruction]) -> None:
        """Take an envelope in flight over from the scheduler."""
        store = self.scheduler.store
        key = store.domain_of(handle)
        if not self._plain:
            key = self.rules.key_of(key)
        relay = self.relays.get(key)
        if relay is None:
            relay = self.book.make(key)
            if relay is None:
                self.scheduler.overflowed(handle, now, out)
                return
            self.places.adopt(relay)
        if now < relay.dead_until:
            self.outcomes.defer(relay, handle, relay.dead_status, now, out)
            return
        if (
            relay.idle
            and not relay.tasks
            and not (self.paused or self.draining or self.places.paused)
            and store.expires_at_of(handle) > now
        ):
            # What `put` and `_pump` come to where nothing waits, which is nearly always in a server that keeps up.
            task = Task(msgid_of(store.evpid_of(handle)))
            task.handles.append(handle)
            self._give(relay, relay.idle.pop(), task, now, out)
            if self.scheduler.held:
                self._pump(relay, now, out)
        elif self._waiting.put(relay, handle, now, out):
            self._pump(relay, now, out)

    # The destination becomes known

    def resolved(self, answer: "DomainResolved", now: float, out: list[Instruction]) -> None:
        """Take the resolver's answer."""
        for relay in self._destinations.answered(answer):
            self._resolved(relay, now, out)

    def _resolved(self, relay: Relay, now: float, out: list[Instruction]) -> None:
        failure = self._destinations.find(relay, now)
        if failure is None:
            # There may be other hosts now than the one that it waits for.
            relay.in_line = False
            self._pump(relay, now, out)
            self._forget_if_empty(relay, now)
            return
        outcome, status = failure
        self.hoststats.note(relay.domain, status, now)
        if failure == WRONG_FAMILY:
            out.append(Note(f"smtp-out: Address family mismatch on [relay:{relay.domain}]"))
        else:
            out.append(Note(f"smtp-out: Failed to resolve MX for [relay:{relay.domain}]: {status}"))
        if outcome is Outcome.TEMPFAIL:
            self._surrender.defer_all(
                relay, status, now + relay.limits.route_delay_base_s, now, out
            )
        else:
            self._surrender.reject_all(relay, status)
            self._forget_if_empty(relay, now)

    # Connections

    def ready(self, session_id: SessionId, now: float, out: list[Instruction]) -> None:
        """A connection can take its first transaction."""
        session = self.sessions.get(session_id)
        if session is None or session.state is not SessionState.CONNECTING:
            return
        relay, route = session.relay, session.route
        relay.connecting -= 1
        validated = route.validated
        route.succeed()
        self.places.sources[route.source].wake()
        relay.policy.revive()
        self._to_idle(session, now, out)
        self._pump(relay, now, out)
        if not validated:
            # What waited for the first connection of this route may have its own now.
            self._serve_blocked(("host", route.address), now, out)
        if self.places.blocked:
            self._give_way(session, out)

    def failed(
        self,
        session_id: SessionId,
        reason: str,
        now: float,
        out: list[Instruction],
        *,
        source_fault: bool = False,
    ) -> None:
        """A connection did not become ready."""
        session = self.sessions.get(session_id)
        if session is None:
            return
        if session.state is not SessionState.CONNECTING:
            self.closed(session_id, reason, now, out)
            return
        relay = session.relay
        relay.connecting -= 1
        self.places.gone(session, now)
        if source_fault:
            source_failed(self.places, session, reason, now, out)
        else:
            self._route_failed(session, reason, now, out)
        self._unblock(session, now, out)
        self._pump(relay, now, out)
        self._forget_if_empty(relay, now)

    def _route_failed(
        self, session: Session, reason: str, now: float, out: list[Instruction]
    ) -> None:
        relay, route, limits = session.relay, session.route, session.relay.limits
        relay.status = reason
        self.hoststats.note(relay.domain, reason, now)
        relay.policy.failed(busy=relay.busy)
        if relay.busy or relay.idle:
            relay.policy.revive(busy=relay.busy)
        if route.validated and route.connections:
            # Why not rest? Others are connected to this host: it is our number that it minds.
            self.book.pause(relay, now + limits.route_delay_base_s)
            return
        # Connections that fail together end here once, with the last of them: one piece of news.
        route_failed(self.places, session, now, out)

    def closed(
        self, session_id: SessionId, reason: str, now: float, out: list[Instruction]
    ) -> None:
        """A connection that had been ready is gone; a running transaction failed with it."""
        session = self.sessions.get(session_id)
        if session is None:
            return
        if session.state is SessionState.CONNECTING:
            self.failed(session_id, reason, now, out)
            return
        relay = session.relay
        if session.task is not None:
            relay.status = reason
            relay.policy.failed(busy=relay.busy)
            task = self._end_task(session)
            for handle in task.handles:
                self.outcomes.tempfail(relay, handle, reason, now, out)
            self.hoststats.note(relay.domain, reason, now, now - session.busy_since)
        self.places.gone(session, now)
        self._surrender.revive_or_rest(relay, reason, now, out)
        # Why the others first? They have waited for this place longer than its last owner.
        self._unblock(session, now, out)
        self._pump(relay, now, out)
        self._forget_if_empty(relay, now)

    def done(self, done: "TransactionDone", now: float, out: list[Instruction]) -> None:
        """A transaction ended: settle each envelope, and give the connection its next one."""
        # Unpacked: the fields of a named tuple cost more one by one.
        session_id, results, usable = done
        session = self.sessions.get(session_id)
        if session is None or session.task is None:
            return
        relay = session.relay
        task = self._end_task(session)
        any_ok = self.outcomes.settle(session, task, results, now, out)
        status = results[-1].status
        self.hoststats.note(relay.domain, status, now, now - session.busy_since)
        session.messages += 1
        if usable:
            relay.policy.succeeded(busy=relay.busy + 1)
        elif not any_ok:
            relay.policy.failed(busy=relay.busy + 1)
            relay.status = status
        if any_ok:
            session.tried = 0
            if relay.domain in self.outcomes.deferred:
                self.outcomes.try_deferred(relay)
            if session.route.rejects:
                session.route.succeed(accepted=True)
        else:
            session.tried += 1
        limits = relay.limits
        if not usable:
            self._end_session(session, now, out)
        elif session.tried >= limits.max_try_before_disable:
            route_rejects(session, now, out)
            self._end_session(session, now, out)
        elif (
            session.messages >= limits.session_mail_max
            or session.failures >= limits.max_failures_per_session
        ):
            self._end_session(session, now, out)
        elif limits.session_transaction_delay_s:
            self._pause_session(session, now + limits.session_transaction_delay_s, out)
        else:
            self._to_idle(session, now, out)
        if relay.tasks or self.scheduler.held:
            self._pump(relay, now, out)
        if self.places.blocked:
            self._give_way(session, out)

    def _end_session(self, session: Session, now: float, out: list[Instruction]) -> None:
        self.places.close(session, out)
        self._surrender.revive_or_rest(session.relay, session.relay.status, now, out)

    # What a relay does next

    def _pump(self, relay: Relay, now: float, out: list[Instruction]) -> None:
        """Give idle connections work, and open more if that is wanted and allowed."""
        places = self.places
        # In the cheapest order, without a call where there is nothing: this runs for each step of each message.
        if self.paused or self.draining or now < relay.dead_until:
            return
        if places.paused and places.is_paused(relay):
            return
        tasks = relay.tasks
        while True:
            while tasks:
                if relay.idle:
                    self._start(relay, relay.idle.pop(), now, out)
                elif relay.connecting >= len(tasks) or not self._opener.connect(relay, now, out):
                    break
            if not relay.held or not self._waiting.release(relay, now, out):
                return

    def _start(self, relay: Relay, session: Session, now: float, out: list[Instruction]) -> None:
        """Give a connection the oldest waiting transaction."""
        task = self._waiting.next_task(relay, now)
        if task is None:
            relay.idle.append(session)
            return
        self._give(relay, session, task, now, out)

    def _give(
        self, relay: Relay, session: Session, task: Task, now: float, out: list[Instruction]
    ) -> None:
        """Give a connection that was idle a transaction."""
        handles = task.handles
        del relay.warm[session]
        session.state = SessionState.BUSY
        session.busy_since = now
        session.task = task
        relay.busy += 1
        relay.running_envelopes += len(handles)
        evpid_of = self.scheduler.store.evpid_of
        evpids: tuple[EvpId, ...]
        if len(handles) == 1:
            evpids = (evpid_of(handles[0]),)
        else:
            evpids = tuple([evpid_of(handle) for handle in handles])
        out.append(_new(StartTransaction, (session.id, task.msgid, evpids)))

    # Book-keeping of connections

    def _to_idle(self, session: Session, now: float, out: list[Instruction]) -> None:
        self.places.keep(session, now)
        if self.draining:
            self.places.close(session, out)

    def _pause_session(self, session: Session, until: float, out: list[Instruction]) -> None:
        """Let a connection do nothing until an instant."""
        if self.draining:
            self.places.close(session, out)
            return
        session.state = SessionState.PAUSED
        heappush(self._paused_sessions, (until, session.id))

    def _end_task(self, session: Session) -> Task:
        task = session.task
        assert task is not None, session.id
        session.task = None
        session.relay.busy -= 1
        session.relay.running_envelopes -= len(task.handles)
        return task

    def _forget_if_empty(self, relay: Relay, now: float) -> None:
        """Forget a relay that nothing needs and that need not rest."""
        if not relay.is_empty() or relay.is_dead(now):
            return
        if relay.retry_at is not None and now < relay.retry_at:
            return
        needed_until = self.places.needed_until(relay)
        if now < needed_until:
            # Why keep it? A new relay would not know when its predecessor connected.
            self.book.look_again(relay, needed_until)
            return
        self.book.forget(relay)

    # Places that others wait for

    def _give_way(self, session: Session, out: list[Instruction]) -> None:
        """Close a connection that has nothing to do if others wait for its place."""
        if session.state is SessionState.IDLE and self.places.is_wanted(session):
            self.places.close(session, out)

    def _unblock(self, session: Session, now: float, out: list[Instruction]) -> None:
        """A connection is gone: others may have waited for its place."""
        if self.places.blocked:
            for place in places_of(session):
                self._serve_blocked(place, now, out)

    def _serve_blocked(self, place: Place, now: float, out: list[Instruction]) -> None:
        """Give free places to those that wait for them, in turn."""
        if place in self.places.blocked:
            for relay in self.places.turns(place):
                self._pump(relay, now, out)

    # Time

    def next_wakeup(self) -> float:
        """Return when `time_reached` has something to do; infinity if never."""
        at = self.places.idle_ends_at()
        delayed = self.book.delayed
        if delayed and delayed[0][0] < at:
            at = delayed[0][0]
        paused = self._paused_sessions
        if paused and paused[0][0] < at:
            at = paused[0][0]
        return at

    def time_reached(self, now: float, out: list[Instruction]) -> None:
        """End rests and gaps, close connections that were idle for too long."""
        for relay in self.book.due(now):
            self._pump(relay, now, out)
            self._forget_if_empty(relay, now)
        while self._paused_sessions and self._paused_sessions[0][0] <= now:
            session = self.sessions.get(heappop(self._paused_sessions)[1])
            if session is not None and session.state is SessionState.PAUSED:
                self._to_idle(session, now, out)
                self._pump(session.relay, now, out)
        self.places.time_reached(now, out)

    # The operator

    def withdraw(self, handle: Handle, now: float) -> bool:
        """Take an envelope out of its relay; False if its transaction is running."""
        relay = self.relays[self.rules.key_of(self.scheduler.store.domain_of(handle))]
        if not self._waiting.withdraw(relay, handle):
            return False
        self._forget_if_empty(relay, now)
        return True

    def enable_route(
        self, address: str, source: str | None, now: float, out: list[Instruction]
    ) -> None:
        """End the rest of routes to an address, and of the destinations that failed with them."""
        routes = [
            route
            for route in self.routes.values()
            if route.address == address and source in (None, route.source)
        ]
        for route in routes:
            route.penalty = 0
            route.enabled_at = now
            route.disabled = False
            out.append(Note(f"smtp-out: Enabling route {route} per admin request"))
        if not routes:
            return
        for relay in list(self.relays.values()):
            if any(target.address == address for target in relay.targets):
                relay.dead_until = now
                relay.retry_at = None
                relay.in_line = False
                self._pump(relay, now, out)
                self._forget_if_empty(relay, now)

    def resume(self, now: float, out: list[Instruction]) -> None:
        """Go on after a pause."""
        self.paused = False
        for relay in list(self.relays.values()):
            self._pump(relay, now, out)

    def pause_one(self, domain: str, source: str) -> None:
        """Send a domain nothing more, from one source or from any; what runs may end. Idempotent."""
        self.places.paused.add((source, domain))

    def resume_one(self, domain: str, source: str, now: float, out: list[Instruction]) -> None:
        """Undo `pause_one`. Idempotent."""
        self.places.paused.discard((source, domain))
        relay = self.relays.get(domain)
        if relay is not None:
            relay.in_line = False
            self._pump(relay, now, out)

    def limits_changed(self, now: float, out: list[Instruction]) -> None:
        """Take changed limits over, and do what they allow now; rests and gaps that run go on to their end."""
        self.places.limits_changed = True
        self.rules.refresh()
        self.book.limits_changed()
        for relay in list(self.relays.values()):
            relay.in_line = False
            self._pump(relay, now, out)

    def drain(self, out: list[Instruction]) -> None:
        """Start nothing new; close what is idle."""
        self.draining = True
        for session in list(self.sessions.values()):
            if session.state in (SessionState.IDLE, SessionState.PAUSED):
                self.places.close(session, out)

    # For tests

    def validate(self, *, in_flight: int = 0, held: int = 0) -> None:
        """Assert the invariants; O(n), for tests.

        Args:
            in_flight: envelopes in flight elsewhere.
            held: envelopes held elsewhere.
        """
        flying, waiting = self.book.validate()
        in_flight += flying
        held += waiting
        caps = {
            relay.limits.max_conn_per_relay - len(relay.sessions) for relay in self.relays.values()
        }
        assert self.places.limits_changed or min(caps, default=0) >= 0
        assert in_flight == self.scheduler.in_flight, (in_flight, self.scheduler.in_flight)
        assert held == self.scheduler.held
        self.places.validate()
        tasks = [session.task for session in self.sessions.values() if session.task is not None]
        store = self.scheduler.store
        self.outcomes.validate({store.evpid_of(h) for task in tasks for h in task.handles})
