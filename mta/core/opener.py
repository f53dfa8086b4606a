"""Whether a destination may have one more connection, now, and the opening of it.

The questions are asked in the order of their prices: what the relay itself knows, then the caps and gaps that it shares with
others (`mta.core.places`), then which of its hosts.
"""

from mta.core.destinations import Destinations
from mta.core.ids import SessionId
from mta.core.instructions import Instruction, Note, OpenConnection
from mta.core.places import Choice, Places
from mta.core.relay import Connector, Relay, Route, Session
from mta.core.relaybook import RelayBook
from mta.core.rests import why_no_route
from mta.core.surrender import Surrender


class Opener:
    """Opens the connections of all relays."""

    def __init__(
        self,
        book: RelayBook,
        places: Places,
        destinations: Destinations,
        surrender: Surrender,
        *,
        first_session: SessionId,
    ) -> None:
        self._book = book
        self._places = places
        self._destinations = destinations
        self._surrender = surrender
        self.last_session = int(first_session)
        """Number of the latest connection; they count up."""

    def connect(self, relay: Relay, now: float, out: list[Instruction]) -> bool:
        """Open one connection if everything allows it; return whether one was opened."""
        if relay.resolved_until <= now:
            if not relay.asked:
                self._destinations.ask(relay, out)
            return False
        if len(relay.sessions) >= max(1, relay.policy.window):
            return False
        if relay.retry_at is not None and now < relay.retry_at:
            return False
        if relay.in_line:
            # It waits for a place, and will be asked when there is one: nothing has changed since.
            return False
        places = self._places
        if places.is_at_cap(relay):
            return False
        full = places.full_for(relay)
        if full is not None:
            places.stand_in_line(relay, full, out)
            return False
        wait_until = places.relay_gap_ends_at(relay)
        if now < wait_until:
            self._book.pause(relay, wait_until)
            return False
        choice = places.choose(relay, now)
        if choice.route is None or choice.connector is None or choice.target is None:
            self._cannot_connect(relay, choice, now, out)
            return False
        self._open(relay, choice.route, choice.connector, choice.target.host, now, out)
        return True

    def _open(
        self,
        relay: Relay,
        route: Route,
        connector: Connector,
        host: str,
        now: float,
        out: list[Instruction],
    ) -> None:
        self.last_session += 1
        session = Session(SessionId(self.last_session), relay, route, connector, host)
        if route.disabled:
            route.disabled = False
            out.append(Note(f"smtp-out: Enabling route {route}"))
        self._places.open(session, now)
        out.append(OpenConnection(session.id, relay.domain, route.source, route.address, host))

    def _cannot_connect(
        self, relay: Relay, choice: Choice, now: float, out: list[Instruction]
    ) -> None:
        """No host can be connected to now: wait for a place or a gap, or give the destination up."""
        earliest = choice.earliest
        for place in choice.full:
            self._places.stand_in_line(relay, place, out)
        if earliest is None:
            return
        rest = self._places.rest_ends_at(relay)
        if now < rest and not relay.sessions:
            # Every host has failed: the destination is dead until the first of them has rested.
            self._surrender.defer_all(relay, why_no_route(self._places, relay, now), rest, now, out)
        elif not choice.full:
            self._book.pause(relay, earliest)
        elif relay.look_at <= now or earliest < relay.look_at:
            # Why not a pause? A place may come free before the gap ends.
            relay.look_at = earliest
            self._book.look_again(relay, earliest)
