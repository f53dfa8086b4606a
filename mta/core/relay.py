"""The nouns of the relaying agent: hosts, routes, sessions, relays.

They hold state and answer questions about it; `mta.core.agent` decides. Vocabulary: OpenSMTPD,
``struct mta_host``, ``mta_route``, ``mta_relay`` (smtpd.h).
"""

import enum
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from mta.core.ids import MsgId, SessionId

if TYPE_CHECKING:
    from mta.core.concurrency import ConcurrencyPolicy
    from mta.core.envelopes.base import Handle
    from mta.core.holdqueue import HoldQueue
    from mta.core.relayrules import RelayPlan
    from mta.core.routing import Resolution, Target

NEVER = float("-inf")
"""An instant before all others."""


class Gauge:
    """Open connections of one thing, and when the last one was opened."""

    __slots__ = ("connections", "last_connect_at")

    def __init__(self) -> None:
        self.connections = 0
        self.last_connect_at = NEVER


class Resting:
    """What is left alone after a failure, longer each time."""

    __slots__ = ("enabled_at", "penalty")

    def __init__(self) -> None:
        self.penalty = 0
        """Failures since the last success; the rest is base * penalty**2 seconds."""
        self.enabled_at = NEVER
        """It rests until then."""

    def rest(self, now: float, *, base_s: float, max_s: float, weight: int = 1) -> float:
        """Rest, longer each time; return for how long, in seconds.

        Source: OpenSMTPD mta.c, DELAY_ROUTE_BASE and DELAY_ROUTE_MAX. There the penalty never passes
        1, because enabling the route takes one off again; here only a success does.
        """
        self.penalty += weight
        delay = min(base_s * self.penalty * self.penalty, max_s)
        self.enabled_at = now + delay
        return delay

    def wake(self) -> None:
        """Forget all failures."""
        self.penalty = 0
        self.enabled_at = NEVER


class Route(Resting):
    """One (source, address): what can be penalised and disabled."""

    __slots__ = (
        "address",
        "connections",
        "disabled",
        "last_connect_at",
        "last_disconnect_at",
        "rejects",
        "source",
        "validated",
    )

    def __init__(self, source: str, address: str) -> None:
        super().__init__()
        self.source = source
        self.address = address
        self.connections = 0
        self.last_connect_at = NEVER
        self.last_disconnect_at = NEVER
        self.disabled = False
        """The log says that it is disabled."""
        self.rejects = False
        """The host took none of many messages: a connection alone is no success."""
        self.validated = False
        """A connection has become ready since the last failure."""

    def __str__(self) -> str:
        """Return ``127.0.0.2 <-> 192.0.2.1``, as OpenSMTPD names a route."""
        return f"{self.source or '[]'} <-> {self.address}"

    def fail(self, now: float, *, base_s: float, max_s: float) -> float:
        """Disable the route: no connection became ready. Return for how long, in seconds."""
        self.validated = False
        self.disabled = True
        return self.rest(now, base_s=base_s, max_s=max_s)

    def reject(self, now: float, *, base_s: float, max_s: float) -> float:
        """Disable the route: its host takes connections, but no mail. Return for how long, in seconds.

        It counts twice: OpenSMTPD mta.c, ``mta_route_down``, where the call is compiled out.
        """
        self.rejects = True
        self.disabled = True
        return self.rest(now, base_s=base_s, max_s=max_s, weight=2)

    def succeed(self, *, accepted: bool = False) -> None:
        """Forget failures: a connection has become ready, or (``accepted``) a message was taken."""
        self.validated = True
        if accepted or not self.rejects:
            self.wake()
            self.rejects = False


class Source(Resting):
    """One local address. It rests when it can't be used: that says nothing about any host."""

    __slots__ = ("connections", "last_connect_at")

    def __init__(self) -> None:
        super().__init__()
        self.connections = 0
        self.last_connect_at = NEVER


class Connector(Gauge):
    """One (source, relay)."""

    __slots__ = ("source",)

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source


class SessionState(enum.Enum):
    """Where an outbound connection stands."""

    CONNECTING = "connecting"
    IDLE = "idle"
    BUSY = "busy"
    PAUSED = "paused"
    """Between two transactions: limits.mta.session_transaction_delay_s."""
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
        "connector",
        "failures",
        "host",
        "id",
        "idle_since",
        "messages",
        "relay",
        "route",
        "state",
        "task",
        "tried",
    )

    def __init__(
        self,
        session: SessionId,
        relay: "Relay",
        route: Route,
        connector: Connector,
        host: str,
    ) -> None:
        self.id = session
        self.relay = relay
        self.route = route
        self.connector = connector
        self.host = host
        self.state = SessionState.CONNECTING
        self.task: Task | None = None
        self.messages = 0
        self.failures = 0
        """Rejected recipients in a row."""
        self.tried = 0
        """Messages in a row of which the host took none."""
        self.idle_since = NEVER
        self.busy_since = NEVER
        """When its transaction started."""


class Relay:
    """All delivery to one domain, or by one list of smart hosts."""

    __slots__ = (
        "answers",
        "asked",
        "busy",
        "connecting",
        "connectors",
        "dead_status",
        "dead_until",
        "domain",
        "gauge",
        "held",
        "idle",
        "in_line",
        "limits",
        "look_at",
        "plan",
        "policy",
        "resolved_until",
        "retry_at",
        "running_envelopes",
        "sessions",
        "site",
        "status",
        "targets",
        "tasks",
        "waiting_envelopes",
        "warm",
    )

    def __init__(
        self,
        domain: str,
        held: "HoldQueue",
        policy: "ConcurrencyPolicy",
        plan: "RelayPlan",
        *,
        site: Gauge | None = None,
    ) -> None:
        self.domain = domain
        """Its key; see `mta.core.relayrules.RelayRules.key_of`."""
        self.plan = plan
        self.limits = plan.limits
        self.connectors = tuple([Connector(source) for source in plan.sources])
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
        self.asked: set[str] = set()
        """Names that are being looked up."""
        self.answers: dict[str, Resolution] = {}
        """What is known of them so far."""
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
        self.site = self.gauge if site is None else site
        """Shared with relays that lead to the same smart hosts in other ways."""
        self.warm: OrderedDict[Session, None] = OrderedDict()
        """Idle connections of all relays with the same limits, longest idle first; set by `Places.adopt`."""

    @property
    def resolving(self) -> bool:
        """A look-up is under way."""
        return bool(self.asked)

    def is_dead(self, now: float) -> bool:
        """Return whether the destination is left alone for now."""
        return now < self.dead_until

    def is_empty(self) -> bool:
        """Return whether nothing needs this relay any more."""
        return not (self.tasks or self.sessions or self.held or self.asked)
