"""The nouns of the relaying agent: hosts, routes, sessions, relays.

They hold state and answer questions about it; `mta.core.agent` decides. Vocabulary: OpenSMTPD,
``struct mta_host``, ``mta_route``, ``mta_relay`` (smtpd.h).
"""

import enum
from collections import deque
from typing import TYPE_CHECKING

from mta.core.ids import MsgId, SessionId

if TYPE_CHECKING:
    from mta.core.concurrency import ConcurrencyPolicy
    from mta.core.envelopes.base import Handle
    from mta.core.holdqueue import HoldQueue
    from mta.core.routing import Target

NEVER = float("-inf")
"""An instant before all others."""


class Gauge:
    """Open connections of one thing, and when the last one was opened."""

    __slots__ = ("connections", "last_connect_at")

    def __init__(self) -> None:
        self.connections = 0
        self.last_connect_at = NEVER


class Route:
    """One (source, address): what can be penalised and disabled."""

    __slots__ = (
        "address",
        "connections",
        "enabled_at",
        "last_connect_at",
        "last_disconnect_at",
        "penalty",
        "source",
        "validated",
    )

    def __init__(self, source: str, address: str) -> None:
        self.source = source
        self.address = address
        self.connections = 0
        self.last_connect_at = NEVER
        self.last_disconnect_at = NEVER
        self.penalty = 0
        """Failures in a row; the rest is base * penalty**2 seconds."""
        self.enabled_at = NEVER
        """The route is disabled until then."""
        self.validated = False
        """A connection has become ready since the last failure."""

    def fail(self, now: float, *, base_s: float, max_s: float) -> float:
        """Disable the route, longer each time; return for how long, in seconds.

        Source: OpenSMTPD mta.c, DELAY_ROUTE_BASE and DELAY_ROUTE_MAX. There the penalty never passes
        1, because enabling the route takes one off again; here only a success does.
        """
        self.penalty += 1
        self.validated = False
        delay = min(base_s * self.penalty * self.penalty, max_s)
        self.enabled_at = now + delay
        return delay

    def succeed(self) -> None:
        """Forget all failures."""
        self.penalty = 0
        self.enabled_at = NEVER
        self.validated = True


class SessionState(enum.Enum):
    """Where an outbound connection stands."""

    CONNECTING = "connecting"
    IDLE = "idle"
    BUSY = "busy"
    CLOSING = "closing"


class Task:
    """The envelopes of one message for one relay: one SMTP transaction."""

    __slots__ = ("handles", "msgid")

    def __init__(self, msgid: MsgId) -> None:
        self.msgid = msgid
        self.handles: list[Handle] = []


class Session:
    """One outbound connection."""

    __slots__ = (
        "busy_since",
        "failures",
        "host",
        "id",
        "idle_since",
        "messages",
        "relay",
        "route",
        "state",
        "task",
    )

    def __init__(self, session: SessionId, relay: "Relay", route: Route, host: str) -> None:
        self.id = session
        self.relay = relay
        self.route = route
        self.host = host
        self.state = SessionState.CONNECTING
        self.task: Task | None = None
        self.messages = 0
        self.failures = 0
        """Rejected recipients in a row."""
        self.idle_since = NEVER
        self.busy_since = NEVER
        """When its transaction started."""


class Relay:
    """All delivery to one domain."""

    __slots__ = (
        "busy",
        "connecting",
        "dead_status",
        "dead_until",
        "domain",
        "gauge",
        "held",
        "idle",
        "in_line",
        "look_at",
        "policy",
        "resolved_until",
        "resolving",
        "retry_at",
        "running_envelopes",
        "sessions",
        "status",
        "targets",
        "tasks",
        "waiting_envelopes",
    )

    def __init__(self, domain: str, held: "HoldQueue", policy: "ConcurrencyPolicy") -> None:
        self.domain = domain
        self.held = held
        self.policy = policy
        self.tasks: dict[MsgId, Task] = {}
        """Transactions that wait for a connection, oldest first."""
        self.waiting_envelopes = 0
        self.running_envelopes = 0
        self.sessions: set[Session] = set()
        self.connecting = 0
        self.busy = 0
        self.idle: deque[Session] = deque()
        self.targets: tuple[Target, ...] = ()
        self.resolved_until = NEVER
        self.resolving = False
        self.dead_until = NEVER
        """The destination failed as a whole: nothing is tried until then."""
        self.dead_status = ""
        self.status = ""
        """The last failure, for whatever has to be told to senders."""
        self.retry_at: float | None = None
        """When a gap or a rest ends that keeps this relay from connecting."""
        self.in_line = False
        """It waits for a place that it shares with others; asked when one comes free."""
        self.look_at = NEVER
        """When a gap or a rest ends at one host, while others have no place: worth another look."""
        self.gauge = Gauge()

    def is_dead(self, now: float) -> bool:
        """Return whether the destination is left alone for now."""
        return now < self.dead_until

    def is_empty(self) -> bool:
        """Return whether nothing needs this relay any more."""
        return not (self.tasks or self.sessions or self.held or self.resolving)
