"""The relaying agent: who may connect to whom, now, and with what.

OpenSMTPD's mta process as a state machine. For each destination there is a `Relay` with its waiting
transactions; the agent opens connections for it as far as six kinds of caps, six kinds of gaps and the
concurrency policy allow, gives each connection one transaction after another, and keeps failing hosts
and destinations at rest, longer each time.
"""

from array import array
from collections import OrderedDict
from collections.abc import Collection, Iterator
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from mta.core.concurrency import make_concurrency
from mta.core.envelopes.base import EnvelopeState, Handle
from mta.core.holdqueue import HoldQueue
from mta.core.ids import EvpId, MsgId, SessionId, msgid_of
from mta.core.instructions import (
    CloseConnection,
    Instruction,
    Note,
    OpenConnection,
    ResolveDomain,
    StartTransaction,
)
from mta.core.relay import NEVER, Gauge, Relay, Route, Session, SessionState, Task
from mta.core.reply import Outcome
from mta.core.routing import Target, failure_of, order_targets

if TYPE_CHECKING:
    from random import Random

    from mta.core.concurrency import ConcurrencySettings
    from mta.core.limits import Limits
    from mta.core.routing import Resolution
    from mta.core.scheduler import Scheduler
    from mta.core.stimuli import DomainResolved, Result, TransactionDone

_NETWORK_ERROR = "451 4.4.1 Network error on destination MXs"
"""OpenSMTPD mta.c, ``mta_flush``."""

_TTL_MIN_S = 1.0
"""An answer of the resolver holds at least so long: with a TTL of 0 (RFC 2181 8) it would be asked for
again before it was ever used. Ours."""

_ANYWHERE = ""
"""Key of those that wait for a place under the caps that all connections share."""

_SWEEP_EVERY_S = 60.0
"""How often routes that nobody uses are looked for; costs one pass over all routes."""


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
        self.relays: dict[str, Relay] = {}
        self.sessions: dict[SessionId, Session] = {}
        self.routes: dict[str, Route] = {}
        self._concurrency = concurrency
        self._held_max = limits.scheduler.max_held
        self._rng = rng
        self._next_session = int(first_session)
        self._source = source
        self._own_names = own_names
        self._own_addresses = own_addresses
        self._source_gauge = Gauge()
        self._idle: OrderedDict[Session, None] = OrderedDict()
        """Idle connections, longest idle first."""
        self._delayed: list[tuple[float, str]] = []
        """(instant, domain) of relays that wait for a gap or a rest to end."""
        self._blocked: dict[str, dict[str, None]] = {}
        """Domains whose relay waits for a place that others have, longest waiting first, by the address
        that is full; `_ANYWHERE` if all are."""
        self._deferred: dict[str, array[int]] = {}
        """Per domain, the latest envelopes that failed: tried again at once when it works again."""
        self._sweep_at = NEVER
        self._doomed: set[EvpId] = set()
        """Envelopes in a running transaction that the operator removed."""
        self._paused_envelopes: set[EvpId] = set()
        """Envelopes in a running transaction that the operator suspended."""

    # Envelopes arrive

    def take(self, handle: Handle, now: float, out: list[Instruction]) -> None:
        """Take an envelope in flight over from the scheduler."""
        store = self.scheduler.store
        domain = store.domain_of(handle)
        relay = self.relays.get(domain)
        if relay is None:
            if len(self.relays) >= self.limits.max_relays:
                self.scheduler.overflowed(handle, now, out)
                return
            relay = self._new_relay(domain)
        if relay.is_dead(now):
            self._defer(relay, handle, relay.dead_status, now, out)
            return
        if self._enlist(relay, handle, now, out):
            self._pump(relay, now, out)

    def _new_relay(self, domain: str) -> Relay:
        limits = self.limits
        held = HoldQueue(
            self.scheduler.store.new_list(EnvelopeState.HELD),
            high_water=limits.task_high_water,
            low_water=limits.task_low_water,
            release=limits.task_release,
            held_max=self._held_max,
        )
        relay = Relay(domain, held, make_concurrency(self._concurrency))
        self.relays[domain] = relay
        return relay

    def _enlist(
        self,
        relay: Relay,
        handle: Handle,
        now: float,
        out: list[Instruction],
        *,
        held: bool = False,
    ) -> bool:
        """Put an envelope into a waiting transaction; hold it instead at high water."""
        store = self.scheduler.store
        message = msgid_of(store.evpid_of(handle))
        task = relay.tasks.get(message)
        if task is None or len(task.handles) >= self.limits.max_rcpt_per_task:
            if not held and relay.held.must_hold(len(relay.tasks)):
                if relay.held.is_full():
                    self.scheduler.overflowed(handle, now, out)
                    return False
                if not relay.held:
                    out.append(
                        Note(
                            f"smtp-out: hiwat reached on [relay:{relay.domain}]: holding envelopes"
                        )
                    )
                self.scheduler.hold(handle)
                relay.held.hold(handle)
                return False
            if task is not None:
                # A full transaction of the same message steps aside under a key that no message has.
                relay.tasks[MsgId(-int(store.evpid_of(handle)))] = task
                del relay.tasks[message]
            task = Task(message)
            relay.tasks[message] = task
        task.handles.append(handle)
        relay.waiting_envelopes += 1
        return True

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
        if self._blocked:
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
        self._gone(session, now)
        relay.status = reason
        relay.policy.failed(busy=relay.busy)
        limits = self.limits
        if relay.busy or relay.idle:
            relay.policy.revive(busy=relay.busy)
        if route.validated and route.connections:
            # Why not rest? Others are connected to this host: it is our number that it minds.
            self._pause_relay(relay, now + limits.route_delay_base_s)
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
                self._tempfail(relay, handle, reason, now, out)
        self._gone(session, now)
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
        any_ok = self._settle(relay, session, task, done.results, now, out)
        session.messages += 1
        if done.usable:
            relay.policy.succeeded(busy=relay.busy + 1)
        elif not any_ok:
            relay.policy.failed(busy=relay.busy + 1)
            relay.status = done.results[-1].status if done.results else _NETWORK_ERROR
        if any_ok and relay.domain in self._deferred:
            self._try_deferred(relay, now, out)
        limits = self.limits
        worn = (
            session.messages >= limits.session_mail_max
            or session.failures >= limits.max_failures_per_session
        )
        if not done.usable or worn:
            self._close(session, out)
            self._revive_or_rest(relay, relay.status, now, out)
        else:
            self._to_idle(session, now, out)
        self._pump(relay, now, out)
        if self._blocked:
            self._give_way(session, out)

    def _settle(
        self,
        relay: Relay,
        session: Session,
        task: Task,
        results: "tuple[Result, ...]",
        now: float,
        out: list[Instruction],
    ) -> bool:
        """Give each envelope of a transaction its outcome; return whether one was delivered."""
        scheduler = self.scheduler
        any_ok = False
        if len(results) == 1 == len(task.handles) and results[0].outcome is Outcome.OK:
            # The common case without the book-keeping of the others.
            session.failures = 0
            self._doomed.discard(results[0].evpid)
            self._paused_envelopes.discard(results[0].evpid)
            scheduler.delivered(task.handles[0], results[0].status, out)
            return True
        by_id = {result.evpid: result for result in results}
        for handle in task.handles:
            evpid = scheduler.store.evpid_of(handle)
            result = by_id[evpid]
            if result.outcome is Outcome.OK:
                any_ok = True
                session.failures = 0
                self._doomed.discard(evpid)
                self._paused_envelopes.discard(evpid)
                scheduler.delivered(handle, result.status, out)
            elif result.outcome is Outcome.TEMPFAIL:
                session.failures += 1
                self._tempfail(relay, handle, result.status, now, out)
            else:
                session.failures += 1
                self._doomed.discard(evpid)
                self._paused_envelopes.discard(evpid)
                scheduler.permfailed(handle, result.status)
        return any_ok

    def _tempfail(
        self, relay: Relay, handle: Handle, status: str, now: float, out: list[Instruction]
    ) -> None:
        """Defer an envelope of a transaction, unless the operator wanted something else meanwhile."""
        evpid = self.scheduler.store.evpid_of(handle)
        if evpid in self._doomed:
            self._doomed.discard(evpid)
            self._paused_envelopes.discard(evpid)
            self.scheduler.removed(handle, out)
        elif evpid in self._paused_envelopes:
            self._paused_envelopes.discard(evpid)
            self.scheduler.set_suspended(handle, True, out)
            self.scheduler.suspended(handle)
        else:
            self._defer(relay, handle, status, now, out)

    def _defer(
        self, relay: Relay, handle: Handle, status: str, now: float, out: list[Instruction]
    ) -> None:
        evpid = self.scheduler.store.evpid_of(handle)
        deferred = self._deferred.get(relay.domain)
        if deferred is None and len(self._deferred) < self.limits.max_relays:
            deferred = self._deferred[relay.domain] = array("Q")
        if deferred is not None:
            deferred.append(evpid)
            if len(deferred) > self.limits.max_deferred:
                del deferred[0]
        self.scheduler.tempfailed(handle, status, now, out)

    def _try_deferred(self, relay: Relay, now: float, out: list[Instruction]) -> None:
        """The destination works: try the latest failures at once. OpenSMTPD, ``mta max-deferred``."""
        store = self.scheduler.store
        for evpid in self._deferred.pop(relay.domain):
            handle = store.find(EvpId(evpid))
            if handle is not None and store.state_of(handle) is EnvelopeState.PENDING:
                self.scheduler.take_out(handle)
                self.scheduler.put_scheduled(handle)

    # What a relay does next

    def _pump(self, relay: Relay, now: float, out: list[Instruction]) -> None:
        """Give idle connections work, and open more if that is wanted and allowed."""
        if self.paused or self.draining or relay.is_dead(now):
            return
        tasks = relay.tasks
        while True:
            while tasks:
                if relay.idle:
                    self._start(relay, relay.idle.pop(), now, out)
                elif relay.connecting >= len(tasks) or not self._connect(relay, now, out):
                    break
            if not relay.held or not self._release(relay, now, out):
                return

    def _release(self, relay: Relay, now: float, out: list[Instruction]) -> bool:
        """Take the next held envelopes on, if it is time; return whether there were any."""
        released = relay.held.release(len(relay.tasks))
        if not released:
            return False
        if not relay.held:
            out.append(Note(f"smtp-out: back to lowat on [relay:{relay.domain}]: releasing"))
        self.scheduler.release(len(released))
        for handle in released:
            if self.scheduler.store.expires_at_of(handle) <= now:
                self.scheduler.expired_in_flight(handle)
            else:
                self._enlist(relay, handle, now, out, held=True)
        return True

    def _start(self, relay: Relay, session: Session, now: float, out: list[Instruction]) -> None:
        """Give a connection the oldest waiting transaction."""
        message, task = next(iter(relay.tasks.items()))
        del relay.tasks[message]
        store = self.scheduler.store
        handles = task.handles
        relay.waiting_envelopes -= len(handles)
        expired = [handle for handle in handles if store.expires_at_of(handle) <= now]
        if expired:
            handles = task.handles = [handle for handle in handles if handle not in expired]
            for handle in expired:
                self.scheduler.expired_in_flight(handle)
            if not handles:
                relay.idle.append(session)
                return
        del self._idle[session]
        session.state = SessionState.BUSY
        session.task = task
        relay.busy += 1
        relay.running_envelopes += len(handles)
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
        limits = self.limits
        if (
            len(relay.sessions) >= limits.max_conn_per_relay
            or len(relay.sessions) >= limits.max_conn_per_connector
            or len(relay.sessions) >= limits.max_conn_per_domain
        ):
            return False
        if not self._has_place(_ANYWHERE):
            self._block(relay, _ANYWHERE, out)
            return False
        wait_until = max(
            relay.gauge.last_connect_at + self._relay_gap_s,
            self._source_gauge.last_connect_at + limits.conn_delay_source_s,
        )
        if now < wait_until:
            self._pause_relay(relay, wait_until)
            return False
        return self._connect_to_best(relay, now, out)

    def _connect_to_best(self, relay: Relay, now: float, out: list[Instruction]) -> bool:
        """Connect to the best usable host: lowest preference, then fewest connections.

        Hosts of the next preference are for when all before them are at rest, not for when they are busy
        (RFC 5321 5.1; OpenSMTPD mta.c, ``mta_find_route``).
        """
        best: Route | None = None
        best_target: Target | None = None
        full: list[str] = []
        earliest: float | None = None
        preference: int | None = None
        usable = False
        for target in relay.targets:
            if target.preference != preference:
                if usable:
                    break
                preference = target.preference
            route = self.routes.get(target.address) or Route(self._source, target.address)
            wait_until = max(route.enabled_at, self._gap_ends_at(route))
            usable = usable or route.enabled_at <= now
            if now < wait_until:
                earliest = wait_until if earliest is None else min(earliest, wait_until)
            elif not self._has_place(route.address):
                full.append(route.address)
            elif best is None or route.connections < best.connections:
                best, best_target = route, target
        if best is None or best_target is None:
            self._cannot_connect(relay, full, earliest, now, out)
            return False
        self.routes[best.address] = best
        self._next_session += 1
        session = Session(SessionId(self._next_session), relay, best, best_target.host)
        self.sessions[session.id] = session
        relay.sessions.add(session)
        relay.connecting += 1
        relay.gauge.last_connect_at = now
        best.connections += 1
        best.last_connect_at = now
        self._source_gauge.connections += 1
        self._source_gauge.last_connect_at = now
        out.append(
            OpenConnection(session.id, relay.domain, self._source, best.address, best_target.host)
        )
        return True

    def _cannot_connect(
        self,
        relay: Relay,
        full: list[str],
        earliest: float | None,
        now: float,
        out: list[Instruction],
    ) -> None:
        """No host can be connected to now: wait for a place or a gap, or give the destination up."""
        for address in full:
            self._block(relay, address, out)
        if earliest is None:
            return
        routes = [self.routes.get(target.address) for target in relay.targets]
        rest = min(NEVER if route is None else route.enabled_at for route in routes)
        if now < rest and not relay.sessions:
            # Every host has failed: the destination is dead until the first of them has rested.
            self._fail_relay(relay, relay.status or _NETWORK_ERROR, rest, now, out)
        elif not full:
            self._pause_relay(relay, earliest)
        elif relay.look_at <= now or earliest < relay.look_at:
            # Why not a pause? A place may come free before the gap ends.
            relay.look_at = earliest
            self._delay(relay, earliest)

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
        self._delay(relay, until)
        for handle in self._empty(relay):
            self._defer(relay, handle, status, now, out)

    def _reject_all(self, relay: Relay, status: str) -> None:
        """Fail everything that waits for a destination for good: it does not exist."""
        for handle in self._empty(relay):
            self.scheduler.permfailed(handle, status)

    def _empty(self, relay: Relay) -> list[Handle]:
        """Take all waiting and held envelopes of a relay out; they are in flight."""
        handles = [handle for task in relay.tasks.values() for handle in task.handles]
        relay.tasks.clear()
        relay.waiting_envelopes = 0
        held = relay.held.release_all()
        self.scheduler.release(len(held))
        return handles + held

    # Book-keeping of connections

    def _to_idle(self, session: Session, now: float, out: list[Instruction]) -> None:
        session.state = SessionState.IDLE
        session.idle_since = now
        session.relay.idle.append(session)
        self._idle[session] = None
        if self.draining:
            self._close(session, out)

    def _end_task(self, session: Session) -> Task:
        task = session.task
        assert task is not None, session.id
        session.task = None
        session.relay.busy -= 1
        session.relay.running_envelopes -= len(task.handles)
        return task

    def _close(self, session: Session, out: list[Instruction]) -> None:
        if session.state is SessionState.IDLE:
            session.relay.idle.remove(session)
            del self._idle[session]
        session.state = SessionState.CLOSING
        out.append(CloseConnection(session.id))

    def _gone(self, session: Session, now: float) -> None:
        relay, route = session.relay, session.route
        if session.state is SessionState.IDLE:
            relay.idle.remove(session)
            del self._idle[session]
        relay.sessions.remove(session)
        del self.sessions[session.id]
        route.connections -= 1
        route.last_disconnect_at = now
        self._source_gauge.connections -= 1
        if not route.connections and max(route.enabled_at, self._gap_ends_at(route)) <= now:
            del self.routes[route.address]

    def _forget_if_empty(self, relay: Relay, now: float) -> None:
        """Forget a relay that nothing needs and that need not rest."""
        if not relay.is_empty() or relay.is_dead(now):
            return
        if relay.retry_at is not None and now < relay.retry_at:
            return
        gap_ends_at = relay.gauge.last_connect_at + self._relay_gap_s
        if now < gap_ends_at:
            # Why keep it? A new relay would not know when its predecessor connected.
            self._delay(relay, gap_ends_at)
            return
        self.relays.pop(relay.domain, None)

    # Places: caps that relays share

    def _has_place(self, address: str) -> bool:
        """Return whether one more connection to an address, or to `_ANYWHERE`, is within the caps."""
        limits = self.limits
        if address == _ANYWHERE:
            return (
                len(self.sessions) < limits.max_conn
                and self._source_gauge.connections < limits.max_conn_per_source
            )
        route = self.routes.get(address)
        if route is None or not route.connections:
            return True
        # A route that never worked gets one connection at a time until one becomes ready.
        return route.validated and route.connections < min(
            limits.max_conn_per_route, limits.max_conn_per_host
        )

    def _block(self, relay: Relay, address: str, out: list[Instruction]) -> None:
        """Let a relay wait for a place; whoever only keeps one warm gives it up."""
        relay.in_line = True
        waiting = self._blocked.setdefault(address, {})
        if relay.domain in waiting:
            return
        waiting[relay.domain] = None
        for session in self._idle:
            if address in (_ANYWHERE, session.route.address):
                self._close(session, out)
                return

    def _give_way(self, session: Session, out: list[Instruction]) -> None:
        """Close a connection that has nothing to do if others wait for its place."""
        if session.state is not SessionState.IDLE:
            return
        for address in (_ANYWHERE, session.route.address):
            for domain in self._blocked.get(address, ()):
                relay = self.relays.get(domain)
                if relay is not None and relay.tasks:
                    self._close(session, out)
                    return

    def _unblock(self, route: Route, now: float, out: list[Instruction]) -> None:
        """A connection is gone: others may have waited for its place."""
        self._serve_blocked(_ANYWHERE, now, out)
        self._serve_blocked(route.address, now, out)

    def _serve_blocked(self, address: str, now: float, out: list[Instruction]) -> None:
        """Give free places to those that wait for them, in turn: who wants a second one queues again."""
        waiting = self._blocked.get(address)
        if waiting is None:
            return
        turns = len(waiting)
        while turns and self._has_place(address):
            turns -= 1
            domain = next(iter(waiting))
            del waiting[domain]
            relay = self.relays.get(domain)
            if relay is not None:
                relay.in_line = False
                self._pump(relay, now, out)
        if not waiting:
            del self._blocked[address]

    # Time

    @property
    def _relay_gap_s(self) -> float:
        limits = self.limits
        return max(
            limits.conn_delay_relay_s, limits.conn_delay_connector_s, limits.conn_delay_domain_s
        )

    def _gap_ends_at(self, route: Route) -> float:
        """Return from when on a route may be connected again."""
        limits = self.limits
        return max(
            route.last_connect_at + max(limits.conn_delay_route_s, limits.conn_delay_host_s),
            route.last_disconnect_at + limits.reconn_delay_route_s,
        )

    def _pause_relay(self, relay: Relay, until: float) -> None:
        relay.retry_at = until
        self._delay(relay, until)

    def _delay(self, relay: Relay, until: float) -> None:
        heappush(self._delayed, (until, relay.domain))

    def next_wakeup(self) -> float | None:
        """Return when `time_reached` has something to do, or None."""
        delayed_at = self._delayed[0][0] if self._delayed else None
        if not self._idle:
            return delayed_at
        idle_at = next(iter(self._idle)).idle_since + self.limits.session_keepalive_s
        return idle_at if delayed_at is None or idle_at < delayed_at else delayed_at

    def time_reached(self, now: float, out: list[Instruction]) -> None:
        """End rests and gaps, close connections that were idle for too long."""
        while self._delayed and self._delayed[0][0] <= now:
            _, domain = heappop(self._delayed)
            relay = self.relays.get(domain)
            if relay is not None:
                if relay.retry_at is not None and relay.retry_at <= now:
                    relay.retry_at = None
                relay.in_line = False
                self._pump(relay, now, out)
                self._forget_if_empty(relay, now)
        keepalive = self.limits.session_keepalive_s
        while self._idle:
            session = next(iter(self._idle))
            if session.idle_since + keepalive > now:
                break
            self._close(session, out)
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_EVERY_S
            self._sweep_routes(now)

    def _sweep_routes(self, now: float) -> None:
        """Forget routes that nobody uses and whose failures are long past."""
        unused = [
            address
            for address, route in self.routes.items()
            if not route.connections
            and route.enabled_at + self.limits.route_delay_max_s <= now
            and self._gap_ends_at(route) <= now
        ]
        for address in unused:
            del self.routes[address]

    # The operator

    def withdraw(self, handle: Handle, now: float) -> bool:
        """Take an envelope out of its relay; False if its transaction is running."""
        store = self.scheduler.store
        relay = self.relays[store.domain_of(handle)]
        if store.state_of(handle) is EnvelopeState.HELD:
            relay.held.withdraw(handle)
            self.scheduler.release(1)
            self._forget_if_empty(relay, now)
            return True
        for message, task in relay.tasks.items():
            if handle in task.handles:
                task.handles.remove(handle)
                relay.waiting_envelopes -= 1
                if not task.handles:
                    del relay.tasks[message]
                self._forget_if_empty(relay, now)
                return True
        return False

    def doom(self, handle: Handle) -> None:
        """Remember that an envelope of a running transaction is to be removed if it is not delivered."""
        self._doomed.add(self.scheduler.store.evpid_of(handle))

    def suspend_later(self, handle: Handle, suspended: bool) -> None:
        """Remember that an envelope of a running transaction is to be suspended if it is not delivered."""
        evpid = self.scheduler.store.evpid_of(handle)
        if suspended:
            self._paused_envelopes.add(evpid)
        else:
            self._paused_envelopes.discard(evpid)

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

    def drain(self, out: list[Instruction]) -> None:
        """Start nothing new; close what is idle."""
        self.draining = True
        for session in list(self._idle):
            self._close(session, out)

    # For tests

    def _running(self) -> Iterator[Session]:
        return (session for session in self.sessions.values() if session.task is not None)

    def validate(self, *, in_flight: int = 0, held: int = 0) -> None:
        """Assert the invariants; O(n), for tests.

        Args:
            in_flight: envelopes in flight elsewhere.
            held: envelopes held elsewhere.
        """
        limits = self.limits
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
            assert len(relay.sessions) <= limits.max_conn_per_relay
            in_flight += waiting + relay.running_envelopes
            held += len(relay.held)
        assert in_flight == self.scheduler.in_flight, (in_flight, self.scheduler.in_flight)
        assert held == self.scheduler.held
        assert len(self.sessions) == self._source_gauge.connections <= limits.max_conn
        assert sum(route.connections for route in self.routes.values()) == len(self.sessions)
        for route in self.routes.values():
            assert 0 <= route.connections <= limits.max_conn_per_route
        for session in self.sessions.values():
            assert session in session.relay.sessions
            assert (session in self._idle) == (session.state is SessionState.IDLE)
        running_ids = {
            self.scheduler.store.evpid_of(h)
            for session in self._running()
            for h in (session.task.handles if session.task else ())
        }
        assert self._doomed <= running_ids
        assert self._paused_envelopes <= running_ids


def _route(route: Route) -> str:
    return f"{route.source or '[]'} <-> {route.address}"
