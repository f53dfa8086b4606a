"""Places: what connections share, and who waits for it.

A connection takes a place under six kinds of caps, and six kinds of gaps keep the next one off. The
relaying agent asks here whether there is a place and on which route, and tells what became of it. Relays that
find none stand in line, by the address that is full; whoever only keeps a connection warm gives way.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from mta.core.instructions import CloseConnection, Instruction
from mta.core.relay import NEVER, Gauge, Relay, Route, Session, SessionState
from mta.core.routing import Target

if TYPE_CHECKING:
    from mta.core.ids import SessionId
    from mta.core.limits import MtaLimits

ANYWHERE = ""
"""Key of those that wait for a place under the caps that all connections share."""

_SWEEP_EVERY_S = 60.0
"""How often routes that nobody uses are looked for; costs one pass over all routes."""


class Choice(NamedTuple):
    """Where to connect, or why nowhere."""

    route: Route | None
    target: Target | None
    full: list[str]
    """Addresses that have no place."""
    earliest: float | None
    """When the first gap or rest ends, if there is one."""


class Places:
    """All outbound connections and routes."""

    def __init__(self, limits: "MtaLimits", *, source: str) -> None:
        self.sessions: dict[SessionId, Session] = {}
        self.routes: dict[str, Route] = {}
        self.idle: OrderedDict[Session, None] = OrderedDict()
        """Idle connections, longest idle first."""
        self.blocked: dict[str, dict[str, None]] = {}
        """Domains whose relay waits for a place that others have, longest waiting first, by the address
        that is full; `ANYWHERE` if all are."""
        self.limits = limits
        self.source_gauge = Gauge()
        self._source = source
        self._sweep_at = NEVER
        self.paused: set[tuple[str, str]] = set()
        """(source, domain) that the operator wants left alone; an empty source is any."""
        self.limits_changed = False
        """More may be open than the caps say, until it closes."""

    # What the operator wants left alone

    def is_paused(self, relay: Relay) -> bool:
        """Return whether the operator wants no mail sent to a relay from any source that it has."""
        return bool(self.paused) and not self.paused.isdisjoint(
            (("", relay.domain), (self._source, relay.domain))
        )

    # Where is a place?

    def has_place(self, address: str) -> bool:
        """Return whether one more connection to an address, or to `ANYWHERE`, is within the caps."""
        limits = self.limits
        if address == ANYWHERE:
            return (
                len(self.sessions) < limits.max_conn
                and self.source_gauge.connections < limits.max_conn_per_source
            )
        route = self.routes.get(address)
        if route is None or not route.connections:
            return True
        # A route that never worked gets one connection at a time until one becomes ready.
        return route.validated and route.connections < min(
            limits.max_conn_per_route, limits.max_conn_per_host
        )

    def is_at_cap(self, relay: Relay) -> bool:
        """Return whether a relay has as many connections as one may have."""
        limits = self.limits
        have = len(relay.sessions)
        return (
            have >= limits.max_conn_per_relay
            or have >= limits.max_conn_per_connector
            or have >= limits.max_conn_per_domain
        )

    def choose(self, relay: Relay, now: float) -> Choice:
        """Return the best usable route: lowest preference, then fewest connections.

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
            wait_until = max(route.enabled_at, self.gap_ends_at(route))
            usable = usable or route.enabled_at <= now
            if now < wait_until:
                earliest = wait_until if earliest is None else min(earliest, wait_until)
            elif not self.has_place(route.address):
                full.append(route.address)
            elif best is None or route.connections < best.connections:
                best, best_target = route, target
        return Choice(best, best_target, full, earliest)

    def rest_ends_at(self, relay: Relay) -> float:
        """Return when the first host of a relay is no longer at rest; in the past if one is not."""
        routes = [self.routes.get(target.address) for target in relay.targets]
        return min(NEVER if route is None else route.enabled_at for route in routes)

    # Gaps

    def relay_gap_ends_at(self, relay: Relay) -> float:
        """Return from when on a relay may connect again, whatever it connects to."""
        limits = self.limits
        return relay.gauge.last_connect_at + max(
            limits.conn_delay_relay_s, limits.conn_delay_connector_s, limits.conn_delay_domain_s
        )

    def source_gap_ends_at(self) -> float:
        """Return from when on a source may connect again."""
        return self.source_gauge.last_connect_at + self.limits.conn_delay_source_s

    def gap_ends_at(self, route: Route) -> float:
        """Return from when on a route may be connected again."""
        limits = self.limits
        return max(
            route.last_connect_at + max(limits.conn_delay_route_s, limits.conn_delay_host_s),
            route.last_disconnect_at + limits.reconn_delay_route_s,
        )

    # What becomes of a place

    def open(self, session: Session, now: float) -> None:
        """A connection is being opened."""
        relay, route = session.relay, session.route
        self.routes[route.address] = route
        self.sessions[session.id] = session
        relay.sessions.add(session)
        relay.connecting += 1
        relay.gauge.last_connect_at = now
        route.connections += 1
        route.last_connect_at = now
        self.source_gauge.connections += 1
        self.source_gauge.last_connect_at = now

    def keep(self, session: Session, now: float) -> None:
        """A connection has nothing to do; it is kept warm."""
        session.state = SessionState.IDLE
        session.idle_since = now
        session.relay.idle.append(session)
        self.idle[session] = None

    def close(self, session: Session, out: list[Instruction]) -> None:
        """Close a connection; it keeps its place until it is gone."""
        if session.state is SessionState.IDLE:
            session.relay.idle.remove(session)
            del self.idle[session]
        session.state = SessionState.CLOSING
        out.append(CloseConnection(session.id))

    def gone(self, session: Session, now: float) -> None:
        """A connection has ended: its place is free."""
        relay, route = session.relay, session.route
        if session.state is SessionState.IDLE:
            relay.idle.remove(session)
            del self.idle[session]
        relay.sessions.remove(session)
        del self.sessions[session.id]
        route.connections -= 1
        route.last_disconnect_at = now
        self.source_gauge.connections -= 1
        if not route.connections and max(route.enabled_at, self.gap_ends_at(route)) <= now:
            del self.routes[route.address]

    # Lines

    def stand_in_line(self, relay: Relay, address: str, out: list[Instruction]) -> None:
        """Let a relay wait for a place; whoever only keeps one warm gives it up."""
        relay.in_line = True
        waiting = self.blocked.setdefault(address, {})
        if relay.domain in waiting:
            return
        waiting[relay.domain] = None
        for session in self.idle:
            if address in (ANYWHERE, session.route.address):
                self.close(session, out)
                return

    def turns(self, address: str) -> Iterator[str]:
        """Yield those whose turn it is while there are free places: who wants a second one queues again."""
        waiting = self.blocked.get(address)
        if waiting is None:
            return
        turns = len(waiting)
        while turns and self.has_place(address):
            turns -= 1
            domain = next(iter(waiting))
            del waiting[domain]
            yield domain
        if not waiting:
            del self.blocked[address]

    # Time

    def idle_ends_at(self) -> float | None:
        """Return when the longest idle connection has been kept long enough, or None."""
        if not self.idle:
            return None
        return next(iter(self.idle)).idle_since + self.limits.session_keepalive_s

    def time_reached(self, now: float, out: list[Instruction]) -> None:
        """Close connections that were idle for too long; forget routes that nobody needs."""
        keepalive = self.limits.session_keepalive_s
        while self.idle:
            session = next(iter(self.idle))
            if session.idle_since + keepalive > now:
                break
            self.close(session, out)
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
            and self.gap_ends_at(route) <= now
        ]
        for address in unused:
            del self.routes[address]

    def validate(self) -> None:
        """Assert the invariants; O(n), for tests."""
        limits = self.limits
        changed = self.limits_changed
        assert len(self.sessions) == self.source_gauge.connections
        assert changed or len(self.sessions) <= limits.max_conn
        assert sum(route.connections for route in self.routes.values()) == len(self.sessions)
        for route in self.routes.values():
            assert route.connections >= 0
            assert changed or route.connections <= limits.max_conn_per_route
        for session in self.sessions.values():
            assert session in session.relay.sessions
            assert (session in self.idle) == (session.state is SessionState.IDLE)
