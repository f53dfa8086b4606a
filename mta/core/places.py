"""Places: what connections share, and who waits for it.

A connection takes a place under seven caps (all connections; source, host, route, connector, relay, domain), and
gaps keep the next one off. The relaying agent asks here whether there is a place and on which route, and tells
what became of it. Relays that find none stand in line for what is full; whoever only keeps a connection warm
gives way. A relay is judged by its own limits.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from mta.core.instructions import CloseConnection, Instruction
from mta.core.relay import NEVER, Connector, Gauge, Relay, Route, Session, SessionState, Source
from mta.core.routing import Target

if TYPE_CHECKING:
    from mta.core.ids import SessionId
    from mta.core.limits import MtaLimits

Place: TypeAlias = tuple[str, str]
"""What can be full: (``source``, ``host`` or ``site``, its name), or `ANYWHERE`."""

ANYWHERE: Final[Place] = ("", "")
"""The place that all connections share."""

_SWEEP_EVERY_S = 60.0
"""How often routes that nobody uses are looked for; costs one pass over all routes."""


class Choice(NamedTuple):
    """Where to connect, or why nowhere."""

    route: Route | None
    connector: Connector | None
    target: Target | None
    full: list[Place]
    """What has no place."""
    earliest: float | None
    """When the first gap or rest ends, if there is one."""


class Places:
    """All outbound connections and routes."""

    def __init__(self, limits: "MtaLimits", relays: Mapping[str, Relay]) -> None:
        self.sessions: dict[SessionId, Session] = {}
        self.routes: dict[tuple[str, str], Route] = {}
        """By source and address."""
        self.sources: dict[str, Source] = {}
        """As many as the configuration names; the empty one is the system's choice."""
        self.hosts: dict[str, Gauge] = {}
        """By address."""
        self.blocked: dict[Place, dict[str, None]] = {}
        """Keys of relays that wait for a place that others have, longest waiting first."""
        self.limits = limits
        self._relays = relays
        self._warm: dict[int, tuple[MtaLimits, OrderedDict[Session, None]]] = {}
        """Idle connections, by the limits that say how long they are kept."""
        self._sweep_at = NEVER
        self.paused: set[tuple[str, str]] = set()
        """(source, domain) that the operator wants left alone; an empty source is any."""
        self.limits_changed = False
        """More may be open than the caps say, until it closes."""

    # What the operator wants left alone

    def is_paused(self, relay: Relay) -> bool:
        """Return whether the operator wants no mail sent to a relay from any source that it has."""
        paused = self.paused
        return bool(paused) and (
            ("", relay.domain) in paused
            or all((connector.source, relay.domain) in paused for connector in relay.connectors)
        )

    def adopt(self, relay: Relay) -> None:
        """Give a new relay its part of what is shared."""
        limits = relay.limits
        relay.warm = self._warm.setdefault(id(limits), (limits, OrderedDict()))[1]
        for connector in relay.connectors:
            self.sources.setdefault(connector.source, Source())

    def idle(self) -> Iterator[Session]:
        """Yield idle connections; those with the same limits longest idle first."""
        return chain.from_iterable([warm for _, warm in self._warm.values()])

    # Where is a place?

    def has_place(self, place: Place, relay: Relay) -> bool:
        """Return whether one more connection of a relay is within the caps of a place."""
        kind, name = place
        limits = relay.limits
        if kind == "host":
            host = self.hosts.get(name)
            if host is None or not host.connections:
                return True
            if host.connections >= limits.max_conn_per_host:
                return False
            return any(self._route_has_place(c.source, name, limits) for c in relay.connectors)
        if kind == "source":
            return self.sources[name].connections < limits.max_conn_per_source
        if kind == "site":
            return relay.site.connections < limits.max_conn_per_domain
        return len(self.sessions) < self.limits.max_conn

    def _route_has_place(self, source: str, address: str, limits: "MtaLimits") -> bool:
        route = self.routes.get((source, address))
        if route is None or not route.connections:
            return True
        # A route that never worked gets one connection at a time until one becomes ready.
        return route.validated and route.connections < limits.max_conn_per_route

    def is_at_cap(self, relay: Relay) -> bool:
        """Return whether a relay has as many connections as one may have."""
        limits = relay.limits
        have = len(relay.sessions)
        if have >= limits.max_conn_per_relay:
            return True
        return relay.site is relay.gauge and have >= limits.max_conn_per_domain

    def full_for(self, relay: Relay) -> Place | None:
        """Return what is full for a relay wherever it would connect, or None."""
        if len(self.sessions) >= self.limits.max_conn:
            return ANYWHERE
        if relay.site.connections >= relay.limits.max_conn_per_domain:
            return "site", ",".join(relay.plan.hosts)
        return None

    def choose(self, relay: Relay, now: float) -> Choice:
        """Return the best usable route: lowest preference, least used source, then fewest connections.

        Hosts of the next preference are for when all before them are at rest, not for when they are busy
        (RFC 5321 5.1; OpenSMTPD mta.c, ``mta_find_route``).
        """
        full: list[Place] = []
        waits: list[float] = []
        connectors = relay.connectors
        if len(connectors) > 1:
            usable_ones = [c for c in connectors if (c.source, relay.domain) not in self.paused]
            connectors = tuple(sorted(usable_ones, key=_by_use))
        free = [self._is_free(c, relay, now, full, waits) for c in connectors]
        best: Route | None = None
        best_rank = (0, 0)
        connector: Connector | None = None
        best_target: Target | None = None
        preference: int | None = None
        usable = False
        for target in relay.targets:
            if target.preference != preference:
                if usable:
                    break
                preference = target.preference
            address = target.address
            for number, candidate in enumerate(connectors):
                source = candidate.source
                if self.sources[source].enabled_at > now or not relay.plan.reaches(source, address):
                    continue
                route = self.routes.get((source, address)) or Route(source, address)
                usable = usable or route.enabled_at <= now
                wait_until = max(route.enabled_at, self._gap_ends_at(route, relay.limits))
                if now < wait_until:
                    waits.append(wait_until)
                elif not free[number]:
                    pass
                elif not self._is_open(route, relay.limits):
                    full.append(("host", address))
                elif best is None or (number, route.connections) < best_rank:
                    best, best_rank = route, (number, route.connections)
                    connector, best_target = candidate, target
        return Choice(best, connector, best_target, full, min(waits) if waits else None)

    def _is_free(
        self, connector: Connector, relay: Relay, now: float, full: list[Place], waits: list[float]
    ) -> bool:
        """Return whether a source may connect for a relay; say what it waits for if not."""
        limits = relay.limits
        source = self.sources[connector.source]
        wait_until = max(
            source.enabled_at,
            connector.last_connect_at + limits.conn_delay_connector_s,
            source.last_connect_at + limits.conn_delay_source_s,
        )
        if now < wait_until:
            waits.append(wait_until)
            return False
        if source.connections >= limits.max_conn_per_source:
            full.append(("source", connector.source))
            return False
        return connector.connections < limits.max_conn_per_connector

    def _is_open(self, route: Route, limits: "MtaLimits") -> bool:
        """Return whether a route and its host are within their caps."""
        host = self.hosts.get(route.address)
        if host is not None and host.connections >= limits.max_conn_per_host:
            return False
        return not route.connections or self._route_has_place(route.source, route.address, limits)

    def rest_ends_at(self, relay: Relay) -> float:
        """Return when the first way to a host is no longer at rest; in the past if one is not."""
        ends: list[float] = []
        for target in relay.targets:
            for connector in relay.connectors:
                if relay.plan.reaches(connector.source, target.address):
                    route = self.routes.get((connector.source, target.address))
                    rest = NEVER if route is None else route.enabled_at
                    ends.append(max(rest, self.sources[connector.source].enabled_at))
        return min(ends)

    # Gaps

    def relay_gap_ends_at(self, relay: Relay) -> float:
        """Return from when on a relay may connect again, whatever it connects to."""
        limits = relay.limits
        return max(
            relay.gauge.last_connect_at + limits.conn_delay_relay_s,
            relay.site.last_connect_at + limits.conn_delay_domain_s,
        )

    def needed_until(self, relay: Relay) -> float:
        """Return until when a relay has to be remembered, so that its successor keeps its gaps."""
        delay_s = relay.limits.conn_delay_connector_s
        ends = [connector.last_connect_at + delay_s for connector in relay.connectors]
        return max(self.relay_gap_ends_at(relay), *ends)

    def _gap_ends_at(self, route: Route, limits: "MtaLimits") -> float:
        """Return from when on a route may be connected again."""
        ends = max(
            route.last_connect_at + limits.conn_delay_route_s,
            route.last_disconnect_at + limits.reconn_delay_route_s,
        )
        host = self.hosts.get(route.address)
        return ends if host is None else max(ends, host.last_connect_at + limits.conn_delay_host_s)

    # What becomes of a place

    def open(self, session: Session, now: float) -> None:
        """A connection is being opened."""
        relay, route, connector = session.relay, session.route, session.connector
        self.routes[route.source, route.address] = route
        self.sessions[session.id] = session
        relay.sessions.add(session)
        relay.connecting += 1
        host = self.hosts.get(route.address)
        if host is None:
            host = self.hosts[route.address] = Gauge()
        for gauge in (relay.gauge, connector, route, host, self.sources[route.source]):
            gauge.connections += 1
            gauge.last_connect_at = now
        if relay.site is not relay.gauge:
            relay.site.connections += 1
            relay.site.last_connect_at = now

    def keep(self, session: Session, now: float) -> None:
        """A connection has nothing to do; it is kept warm."""
        session.state = SessionState.IDLE
        session.idle_since = now
        session.relay.idle.append(session)
        session.relay.warm[session] = None

    def close(self, session: Session, out: list[Instruction]) -> None:
        """Close a connection; it keeps its place until it is gone."""
        if session.state is SessionState.IDLE:
            session.relay.idle.remove(session)
            del session.relay.warm[session]
        session.state = SessionState.CLOSING
        out.append(CloseConnection(session.id))

    def gone(self, session: Session, now: float) -> None:
        """A connection has ended: its place is free."""
        relay, route = session.relay, session.route
        if session.state is SessionState.IDLE:
            relay.idle.remove(session)
            del relay.warm[session]
        relay.sessions.remove(session)
        del self.sessions[session.id]
        host = self.hosts[route.address]
        for gauge in (relay.gauge, session.connector, route, host, self.sources[route.source]):
            gauge.connections -= 1
        if relay.site is not relay.gauge:
            relay.site.connections -= 1
        route.last_disconnect_at = now
        ends = self._gap_ends_at(route, relay.limits)
        if not route.connections and max(route.enabled_at, ends) <= now:
            del self.routes[route.source, route.address]
        if not host.connections and ends <= now:
            del self.hosts[route.address]

    # Lines

    def stand_in_line(self, relay: Relay, place: Place, out: list[Instruction]) -> None:
        """Let a relay wait for a place; whoever only keeps one warm gives it up."""
        relay.in_line = True
        waiting = self.blocked.setdefault(place, {})
        if relay.domain in waiting:
            return
        waiting[relay.domain] = None
        for session in self.idle():
            if place in places_of(session):
                self.close(session, out)
                return

    def turns(self, place: Place) -> Iterator[Relay]:
        """Yield those whose turn it is while there are free places: who wants a second one queues again."""
        waiting = self.blocked[place]
        turns = len(waiting)
        while turns:
            turns -= 1
            key = next(iter(waiting))
            relay = self._relays.get(key)
            if relay is not None and not self.has_place(place, relay):
                break
            del waiting[key]
            if relay is not None:
                relay.in_line = False
                yield relay
        if len(self._warm) > 1:
            yield from self._later_turns(place, waiting)
        if not waiting:
            del self.blocked[place]

    def _later_turns(self, place: Place, waiting: dict[str, None]) -> Iterator[Relay]:
        """Yield those behind the first for whom there is no place: their own limits may be wider."""
        too_small: set[int] = set()
        for key in list(waiting):
            relay = self._relays.get(key)
            if relay is None or id(relay.limits) in too_small:
                continue
            if self.has_place(place, relay):
                del waiting[key]
                relay.in_line = False
                yield relay
            else:
                too_small.add(id(relay.limits))
                if len(too_small) == len(self._warm):
                    return

    def is_wanted(self, session: Session) -> bool:
        """Return whether somebody with mail waits for a place of a session."""
        return any(
            (relay := self._relays.get(key)) is not None and relay.tasks
            for place in places_of(session)
            for key in self.blocked.get(place, ())
        )

    # Time

    def idle_ends_at(self) -> float:
        """Return when the first idle connection has been kept long enough; infinity if none is idle."""
        first = math.inf
        for limits, warm in self._warm.values():
            for session in warm:
                ends_at = session.idle_since + limits.session_keepalive_s
                if ends_at < first:
                    first = ends_at
                break
        return first

    def time_reached(self, now: float, out: list[Instruction]) -> None:
        """Close connections that were idle for too long; forget routes that nobody needs."""
        for limits, warm in self._warm.values():
            while warm:
                session = next(iter(warm))
                if session.idle_since + limits.session_keepalive_s > now:
                    break
                self.close(session, out)
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_EVERY_S
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        """Forget routes that nobody uses and whose failures are long past, and hosts without any."""
        limits = [limits for limits, _ in self._warm.values()] or [self.limits]
        rest_s = max(one.route_delay_max_s for one in limits)
        for key, route in list(self.routes.items()):
            if (
                not route.connections
                and route.enabled_at + rest_s <= now
                and max(self._gap_ends_at(route, one) for one in limits) <= now
            ):
                del self.routes[key]
        gap_s = max(one.conn_delay_host_s for one in limits)
        for address, host in list(self.hosts.items()):
            if not host.connections and host.last_connect_at + gap_s <= now:
                del self.hosts[address]

    def validate(self) -> None:
        """Assert the invariants; O(n), for tests."""
        assert self.limits_changed or len(self.sessions) <= self.limits.max_conn
        for gauges in (self.routes, self.hosts, self.sources):
            counts = [gauge.connections for gauge in gauges.values()]
            assert sum(counts) == len(self.sessions)
            assert min(counts, default=0) >= 0
        if not self.limits_changed:
            widest = max((one.max_conn_per_route for one, _ in self._warm.values()), default=0)
            assert all(route.connections <= widest for route in self.routes.values())
        for session in self.sessions.values():
            assert session in session.relay.sessions
            assert (session in session.relay.warm) == (session.state is SessionState.IDLE)


def places_of(session: Session) -> tuple[Place, ...]:
    """Return whatever a connection has a place in."""
    route, relay = session.route, session.relay
    shared = (ANYWHERE, ("source", route.source), ("host", route.address))
    if relay.site is relay.gauge:
        return shared
    return (*shared, ("site", ",".join(relay.plan.hosts)))


def _by_use(connector: Connector) -> tuple[int, float]:
    return connector.connections, connector.last_connect_at
