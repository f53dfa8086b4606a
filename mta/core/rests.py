"""What is left alone after a failure: routes, sources, and the words for it.

One connection that fails is news of its route; several that fail together are one piece of news; what
fails because of our own address says nothing of any host.
"""

from typing import TYPE_CHECKING, Final

from mta.core.ids import show_session
from mta.core.instructions import Instruction, Note

if TYPE_CHECKING:
    from mta.core.places import Places
    from mta.core.relay import Relay, Session

NETWORK_ERROR: Final = "451 4.4.1 Network error on destination MXs"
"""OpenSMTPD mta.c, ``mta_flush``."""
REJECTS_ALL: Final = "451 4.5.0 Destination seem to reject all mails"
NO_ROUTE: Final = "451 4.4.4 No valid route to destination"
"""OpenSMTPD mta.c, ``mta_on_source``; codes of RFC 3463."""


def route_failed(places: "Places", session: "Session", now: float, out: list[Instruction]) -> None:
    """Disable a route: its last connection did not become ready, and it is gone."""
    limits, route = session.relay.limits, session.route
    delay = route.fail(now, base_s=limits.route_delay_base_s, max_s=limits.route_delay_max_s)
    places.routes[route.source, route.address] = route
    out.append(Note(f"smtp-out: Disabling route {route} for {delay:g}s"))


def route_rejects(session: "Session", now: float, out: list[Instruction]) -> None:
    """Disable a route: its host takes connections, but no message. OpenSMTPD mta_session.c, MAX_TRYBEFOREDISABLE."""
    limits, route = session.relay.limits, session.route
    out.append(Note(f"{show_session(session.id)} mta host-rejects-all-mails"))
    delay = route.reject(now, base_s=limits.route_delay_base_s, max_s=limits.route_delay_max_s)
    out.append(Note(f"smtp-out: Disabling route {route} for {delay:g}s"))


def source_failed(
    places: "Places", session: "Session", reason: str, now: float, out: list[Instruction]
) -> None:
    """Leave a source alone: hosts are as good as before. OpenSMTPD mta.c, ``mta_source_error``."""
    source, limits = places.sources[session.route.source], session.relay.limits
    if source.enabled_at <= now:
        out.append(Note(f"smtp-out: Error on {session.route}: {reason}"))
        source.rest(now, base_s=limits.route_delay_base_s, max_s=limits.route_delay_max_s)


def why_no_route(places: "Places", relay: "Relay", now: float) -> str:
    """Return what senders are told when everything of a destination is at rest."""
    ways = [
        places.routes.get((connector.source, target.address))
        for target in relay.targets
        for connector in relay.connectors
    ]
    resting = [route for route in ways if route is not None and route.enabled_at > now]
    if any(route.rejects for route in resting):
        return REJECTS_ALL
    return (relay.status or NETWORK_ERROR) if resting else NO_ROUTE
