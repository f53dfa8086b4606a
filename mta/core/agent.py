"""The relaying agent: who may connect to whom, now, and with what.

OpenSMTPD's mta process as a state machine. For each destination there is a `Relay` with its waiting
transactions; the agent opens connections for it as far as six kinds of caps, six kinds of gaps and the
concurrency policy allow, gives each connection one transaction after another, and keeps failing hosts
and destinations at rest, longer each time.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

from mta.core.envelopes.base import Handle
from mta.core.hoststats import HostStats
from mta.core.ids import SessionId
from mta.core.instructions import (
    Instruction,
    Note,
    OpenConnection,
    ResolveDomain,
    StartTransaction,
)
from mta.core.outcomes import Outcomes
from mta.core.places import ANYWHERE, Choice, Places
from mta.core.relay import Relay, Route, Session, SessionState, Task
from mta.core.relaybook import RelayBook
from mta.core.reply import Outcome
from mta.core.routing import failure_of, order_targets
from mta.core.waiting import Waiting

if TYPE_CHECKING:
    from random import Random

    from mta.core.concurrency import ConcurrencySettings
    from mta.core.limits import Limits
    from mta.core.routing import Resolution
    from mta.core.scheduler import Scheduler
    from mta.core.stimuli import DomainResolved, TransactionDone

_NETWORK_ERROR = "451 4.4.1 Network error on destination MXs"
"""OpenSMTPD mta.c, ``mta_flush``."""

_TTL_MIN_S = 1.0
"""An answer of the resolver holds at least so long: with a TTL of 0 (RFC 2181 8) it would be asked for
again before it was ever used. Ours."""


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
        source: str = "",
        own_names: Collection[str] = (),
        own_addresses: Collection[str] = (),
    ) -> None:
        self.scheduler = scheduler
        self.limits = limits.mta
        self.paused = False
        self.draining = False
        self.book = RelayBook(scheduler.store, limits, concurrency)
        self.relays = self.book.relays
        self.places = Places(self.limits, source=source)
        self.sessions = self.places.sessions
        self.routes = self.places.routes
        self.outcomes = Outcomes(scheduler, self.limits)
        self.doom = self.outcomes.doom
        self.suspend_later = self.outcomes.suspend_later
        self._waiting = Waiting(scheduler, self.limits)
        self.hoststats = HostStats()
        self._rng = rng
        self._next_session = int(first_session)
        self._own_names = own_names
        self._own_addresses = own_addresses

    # Envelopes arrive

    def take(self, handle: Handle, now: float, out: list[Instruction]) -> None:
        """Take an envelope in flight over from the scheduler."""
        store = self.scheduler.store
        domain = store.domain_of(handle)
        relay = self.relays.get(domain)
        if relay is None:
            relay = self.book.make(domain)
            if relay is None:
                self.scheduler.overflowed(handle, now, out)
                return
        if relay.is_dead(now):
            self.outcomes.defer(relay, handle, relay.dead_status, now, out)
            return
        if self._waiting.put(relay, handle, now, out):
            self._pump(relay, now, out)

    # The destination becomes known

    def resolved(self, answer: "DomainResolved", now: float, out: list[Instruction]) -> None:
        """Take the resolver's answer."""
        relay = self.relays.get(answer.domain)
        if relay is None or not relay.resolving:
            return
        relay.resolving = False
        resolution: Resolution = answer.resolution
        failure = failure_of(resolution)
        if failure is None:
            relay.targets = order_targets(
                resolution,
                own_names=self._own_names,
                own_addresses=self._own_addresses,
                max_mx=self.limits.max_mx,
                max_addresses=self.limits.max_addresses,
                rng=self._rng,
            )
            if relay.targets:
                relay.resolved_until = now + max(resolution.ttl_s, _TTL_MIN_S)
                # There may be other hosts now than the one that it waits for.
                relay.in_line = False
                self._pump(relay, now, out)
                self._forget_if_empty(relay, now)
                return
            failure = (Outcome.PERMFAIL, "554 5.4.6 Mail loops back to myself")
        outcome, status = failure
        self.hoststats.note(relay.domain, status, now)
        out.append(Note(f"smtp-out: Failed to resolve MX for [relay:{relay.domain}]: {status}"))
        if outcome is Outcome.TEMPFAIL:
            self._fail_relay(relay, status, now + self.limits.route_delay_base_s, now, out)
        else:
            self._reject_all(relay, status)
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
        relay.policy.revive()
        self._to_idle(session, now, out)
        self._pump(relay, now, out)
        if not validated:
            # What waited for the first connection of this route may have its own now.
            self._serve_blocked(route.address, now, out)
        if self.places.blocked:
            self._give_way(session, out)

    def failed(
        self, session_id: SessionId, reason: str, now: float, out: list[Instruction]
    ) -> None:
        """A connection did not become ready."""
        session = self.sessions.get(session_id)
        if session is None:
            return
        if session.state is not SessionState.CONNECTING:
            self.closed(session_id, reason, now, out)
            return
        relay, route = session.relay, session.route
        relay.connecting -= 1
        self.places.gone(session, now)
        relay.status = reason
        self.hoststats.note(relay.domain, reason, now)
        relay.policy.failed(busy=relay.busy)
        limits = self.limits
        if relay.busy or relay.idle:
            relay.policy.revive(busy=relay.busy)
        if route.validated and route.connections:
            # Why not rest? Others are connected to this host: it is our number that it minds.
            self.book.pause(relay, now + limits.route_delay_base_s)
        else:
            # Connections that fail together end here once, with the last of them: one piece of news.
            delay = route.fail(
                now, base_s=limits.route_delay_base_s, max_s=limits.route_delay_max_s
            )
            self.routes[route.address] = route
            out.append(Note(f"smtp-out: Disabling route {_route(route)} for {delay:g}s"))
        self._unblock(route, now, out)
        self._pump(relay, now, out)
        self._forget_if_empty(relay, now)

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
        self._revive_or_rest(relay, reason, now, out)
        # Why the others first? They have waited for this place longer than its last owner.
        self._unblock(session.route, now, out)
        self._pump(relay, now, out)
        self._forget_if_empty(relay, now)

    def done(self, done: "TransactionDone", now: float, out: list[Instruction]) -> None:
        """A transaction ended: settle each envelope, and give the connection its next one."""
        session = self.sessions.get(done.session)
        if session is None or session.task is None:
            return
        relay = session.relay
        task = self._end_task(session)
        any_ok = self.outcomes.settle(session, task, done.results, now, out)
        if done.results:
            status = done.results[-1].status
            self.hoststats.note(relay.domain, status, now, now - session.busy_since)
        session.messages += 1
        if done.usable:
            relay.policy.succeeded(busy=relay.busy + 1)
        elif not any_ok:
            relay.policy.failed(busy=relay.busy + 1)
            relay.status = done.results[-1].status if done.results else _NETWORK_ERROR
        if any_ok and relay.domain in self.outcomes.deferred:
            self.outcomes.try_deferred(relay)
        limits = self.limits
        worn = (
            session.messages >= limits.session_mail_max
            or session.failures >= limits.max_failures_per_session
        )
        if not done.usable or worn:
            self.places.close(session, out)
            self._revive_or_rest(relay, relay.status, now, out)
        else:
            self._to_idle(session, now, out)
        self._pump(relay, now, out)
        if self.places.blocked:
            self._give_way(session, out)

    # What a relay does next

    def _pump(self, relay: Relay, now: float, out: list[Instruction]) -> None:
        """Give idle connections work, and open more if that is wanted and allowed."""
        if self.paused or self.draining or relay.is_dead(now) or self.places.is_paused(relay):
            return
        tasks = relay.tasks
        while True:
            while tasks:
                if relay.idle:
                    self._start(relay, relay.idle.pop(), now, out)
                elif relay.connecting >= len(tasks) or not self._connect(relay, now, out):
                    break
            if not relay.held or not self._waiting.release(relay, now, out):
                return

    def _start(self, relay: Relay, session: Session, now: float, out: list[Instruction]) -> None:
        """Give a connection the oldest waiting transaction."""
        task = self._waiting.next_task(relay, now)
        if task is None:
            relay.idle.append(session)
            return
        handles = task.handles
        del self.places.idle[session]
        session.state = SessionState.BUSY
        session.busy_since = now
        session.task = task
        relay.busy += 1
        relay.running_envelopes += len(handles)
        store = self.scheduler.store
        evpids = tuple([store.evpid_of(handle) for handle in handles])
        out.append(StartTransaction(session.id, task.msgid, evpids))

    def _connect(self, relay: Relay, now: float, out: list[Instruction]) -> bool:
        """Open one connection if everything allows it; return whether one was opened."""
        if relay.resolved_until <= now:
            if not relay.resolving:
                relay.resolving = True
                out.append(ResolveDomain(relay.domain))
            return False
        if len(relay.sessions) >= max(1, relay.policy.window):
            return False
        if relay.retry_at is not None and now < relay.retry_at:
            return False
        if relay.in_line:
            # It waits for a place, and will be asked when there is one: nothing has changed since.
            return False
        places = self.places
        if places.is_at_cap(relay):
            return False
        if not places.has_place(ANYWHERE):
            places.stand_in_line(relay, ANYWHERE, out)
            return False
        wait_until = max(places.relay_gap_ends_at(relay), places.source_gap_ends_at())
        if now < wait_until:
            self.book.pause(relay, wait_until)
            return False
        choice = places.choose(relay, now)
        if choice.route is None or choice.target is None:
            self._cannot_connect(relay, choice, now, out)
            return False
        self._open(relay, choice.route, choice.target.host, now, out)
        return True

    def _open(
        self, relay: Relay, route: Route, host: str, now: float, out: list[Instruction]
    ) -> None:
        self._next_session += 1
        session = Session(SessionId(self._next_session), relay, route, host)
        self.places.open(session, now)
        out.append(OpenConnection(session.id, relay.domain, route.source, route.address, host))

    def _cannot_connect(
        self, relay: Relay, choice: Choice, now: float, out: list[Instruction]
    ) -> None:
        """No host can be connected to now: wait for a place or a gap, or give the destination up."""
        _, _, full, earliest = choice
        for address in full:
            self.places.stand_in_line(relay, address, out)
        if earliest is None:
            return
        rest = self.places.rest_ends_at(relay)
        if now < rest and not relay.sessions:
            # Every host has failed: the destination is dead until the first of them has rested.
            self._fail_relay(relay, relay.status or _NETWORK_ERROR, rest, now, out)
        elif not full:
            self.book.pause(relay, earliest)
        elif relay.look_at <= now or earliest < relay.look_at:
            # Why not a pause? A place may come free before the gap ends.
            relay.look_at = earliest
            self.book.look_again(relay, earliest)

    def _revive_or_rest(
        self, relay: Relay, status: str, now: float, out: list[Instruction]
    ) -> None:
        """A destination whose connections all fail after the greeting is given up for a while."""
        if not relay.policy.dead:
            return
        if relay.busy or relay.idle:
            relay.policy.revive(busy=relay.busy)
            return
        until = now + self.limits.route_delay_base_s
        self._fail_relay(relay, status or _NETWORK_ERROR, until, now, out)

    # Failure of a destination as a whole

    def _fail_relay(
        self, relay: Relay, status: str, until: float, now: float, out: list[Instruction]
    ) -> None:
        """Defer everything that waits for a destination, and leave it alone until an instant."""
        relay.dead_until = until
        relay.dead_status = status
        relay.policy.revive()
        relay.resolved_until = min(relay.resolved_until, until)
        self.book.look_again(relay, until)
        for handle in self._waiting.empty(relay):
            self.outcomes.defer(relay, handle, status, now, out)

    def _reject_all(self, relay: Relay, status: str) -> None:
        """Fail everything that waits for a destination for good: it does not exist."""
        for handle in self._waiting.empty(relay):
            self.scheduler.permfailed(handle, status)

    # Book-keeping of connections

    def _to_idle(self, session: Session, now: float, out: list[Instruction]) -> None:
        self.places.keep(session, now)
        if self.draining:
            self.places.close(session, out)

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
        gap_ends_at = self.places.relay_gap_ends_at(relay)
        if now < gap_ends_at:
            # Why keep it? A new relay would not know when its predecessor connected.
            self.book.look_again(relay, gap_ends_at)
            return
        self.book.forget(relay)

    # Places that others wait for

    def _give_way(self, session: Session, out: list[Instruction]) -> None:
        """Close a connection that has nothing to do if others wait for its place."""
        if session.state is not SessionState.IDLE:
            return
        for address in (ANYWHERE, session.route.address):
            for domain in self.places.blocked.get(address, ()):
                relay = self.relays.get(domain)
                if relay is not None and relay.tasks:
                    self.places.close(session, out)
                    return

    def _unblock(self, route: Route, now: float, out: list[Instruction]) -> None:
        """A connection is gone: others may have waited for its place."""
        self._serve_blocked(ANYWHERE, now, out)
        self._serve_blocked(route.address, now, out)

    def _serve_blocked(self, address: str, now: float, out: list[Instruction]) -> None:
        """Give free places to those that wait for them, in turn."""
        if address not in self.places.blocked:
            return
        for domain in self.places.turns(address):
            relay = self.relays.get(domain)
            if relay is not None:
                relay.in_line = False
                self._pump(relay, now, out)

    # Time

    def next_wakeup(self) -> float | None:
        """Return when `time_reached` has something to do, or None."""
        delayed_at = self.book.next_at()
        idle_at = self.places.idle_ends_at()
        if idle_at is None or delayed_at is None:
            return delayed_at if idle_at is None else idle_at
        return min(idle_at, delayed_at)

    def time_reached(self, now: float, out: list[Instruction]) -> None:
        """End rests and gaps, close connections that were idle for too long."""
        for relay in self.book.due(now):
            self._pump(relay, now, out)
            self._forget_if_empty(relay, now)
        self.places.time_reached(now, out)

    # The operator

    def withdraw(self, handle: Handle, now: float) -> bool:
        """Take an envelope out of its relay; False if its transaction is running."""
        relay = self.relays[self.scheduler.store.domain_of(handle)]
        if not self._waiting.withdraw(relay, handle):
            return False
        self._forget_if_empty(relay, now)
        return True

    def enable_route(self, address: str, now: float, out: list[Instruction]) -> None:
        """End the rest of a route, and of the destinations that failed with it."""
        route = self.routes.get(address)
        if route is None:
            return
        route.penalty = 0
        route.enabled_at = now
        out.append(Note(f"smtp-out: Enabling route {_route(route)} per admin request"))
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
        self.book.limits_changed()
        for relay in list(self.relays.values()):
            relay.in_line = False
            self._pump(relay, now, out)

    def drain(self, out: list[Instruction]) -> None:
        """Start nothing new; close what is idle."""
        self.draining = True
        for session in list(self.places.idle):
            self.places.close(session, out)

    # For tests

    def validate(self, *, in_flight: int = 0, held: int = 0) -> None:
        """Assert the invariants; O(n), for tests.

        Args:
            in_flight: envelopes in flight elsewhere.
            held: envelopes held elsewhere.
        """
        limits, changed = self.limits, self.places.limits_changed
        for domain, relay in self.relays.items():
            assert relay.domain == domain
            assert all(task.handles for task in relay.tasks.values()), domain
            waiting = sum(len(task.handles) for task in relay.tasks.values())
            assert waiting == relay.waiting_envelopes
            running = [s for s in relay.sessions if s.task is not None]
            assert len(running) == relay.busy
            assert sum(len(s.task.handles) for s in running if s.task) == relay.running_envelopes
            states = [session.state for session in relay.sessions]
            assert states.count(SessionState.CONNECTING) == relay.connecting
            assert states.count(SessionState.IDLE) == len(relay.idle)
            assert changed or len(relay.sessions) <= limits.max_conn_per_relay
            in_flight += waiting + relay.running_envelopes
            held += len(relay.held)
        assert in_flight == self.scheduler.in_flight, (in_flight, self.scheduler.in_flight)
        assert held == self.scheduler.held
        self.places.validate()
        tasks = [session.task for session in self.sessions.values() if session.task is not None]
        store = self.scheduler.store
        self.outcomes.validate({store.evpid_of(h) for task in tasks for h in task.handles})


def _route(route: Route) -> str:
    return f"{route.source or '[]'} <-> {route.address}"
