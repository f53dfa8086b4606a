"""What the operator sees and may do: the server's side of the control socket.

Rows are made from the core, the durable queue and the connections; nothing here waits. Implements
`mta.control.ControlTarget`.
"""

from collections.abc import Callable, Iterator, Mapping
from heapq import nlargest
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from mta.core.envelopes.base import EnvelopeState, Flag
from mta.core.ids import EvpId, MsgId, msgid_of, show_evpid, show_msgid, show_session
from mta.core.limitchange import limit_rows, parse_change, read_limit
from mta.core.relay import NEVER
from mta.core.stimuli import (
    Agent,
    AgentPaused,
    AgentResumed,
    LimitChanged,
    RouteEnabled,
    Selector,
)
from mta.footprint import estimate_bytes
from mta.queue.base import QueueUnavailableError, StoredEnvelope

if TYPE_CHECKING:
    from mta.core.relay import Connector, Relay
    from mta.core.stimuli import (
        RemoveRequested,
        ScheduleRequested,
        SuspendRequested,
        UnsuspendRequested,
    )
    from mta.server import MtaServer

Row = dict[str, Any]


PAUSED_MAX = 1000
"""Domains and users that may be paused one by one. Ours."""


SLOWEST = 20
"""Destinations that `mtactl top` is told of."""


class Operations:
    """Implements `mta.control.ControlTarget`."""

    def __init__(self, server: "MtaServer") -> None:
        self._server = server

    # What there is

    def status(self) -> Row:
        """Return what runs."""
        server = self._server
        return {
            "mta": "paused" if server.engine.agent.paused else "running",
            "mda": "paused" if server.engine.local.paused else "running",
            "smtp": "paused" if server.door.paused else "running",
            "stress": "yes" if server.door.stress.active else "no",
            "memory": server.door.memory.name.lower(),
            "queue": "healthy" if server.queue.healthy else "failing",
            "envelope": server.config.envelope,
            "hostname": server.config.hostname,
            "smtp_address": "{}:{}".format(*server.smtp_address),
            "seed": server.seed,
            "restoring": server.restoring,
        }

    def stats(self) -> Mapping[str, int | float]:
        """Return all counters and gauges."""
        return self._server.stats()

    def queue_rows(self, msgid: MsgId | None, after: EvpId | None, limit: int) -> list[Row]:
        """Return envelopes in the order of their ids."""
        queue = self._server.queue
        if msgid is not None:
            found = [s for s in queue.of_message(msgid) if after is None or s.evpid > after]
            return [self._envelope_row(stored) for stored in found[:limit]]
        page = queue.page(after=after or 0, limit=limit)
        return [self._envelope_row(stored) for stored in page]

    def _envelope_row(self, stored: StoredEnvelope) -> Row:
        """Return an envelope: its state from the core, which knows; the rest from the queue."""
        store = self._server.engine.store
        handle = store.find(stored.evpid)
        state, flags, attempts = None, stored.flags, stored.attempts
        due_at: float | None = stored.due_at
        if handle is not None:
            found = store.state_of(handle)
            state = found.name.lower()
            flags = store.flags_of(handle)
            attempts = store.attempts_of(handle)
            due_at = store.due_at_of(handle) if found is EnvelopeState.PENDING else None
        return {
            "evpid": show_evpid(stored.evpid),
            "state": state,
            "flags": [flag.name.lower() for flag in Flag if flag & flags and flag.name],
            "sender": stored.transaction.sender,
            "rcpt": stored.recipient.address,
            "domain": stored.recipient.domain,
            "created_at": stored.created_at,
            "expires_at": stored.expires_at,
            "due_at": due_at,
            "attempts": attempts,
            "last_status": stored.status or None,
        }

    def envelope(self, evpid: EvpId) -> Row | None:
        """Return everything that is known of one envelope."""
        stored = self._server.queue.envelope(evpid)
        if stored is None:
            return None
        transaction, recipient = stored.transaction, stored.recipient
        details = {
            name: value
            for name, value in {**transaction._asdict(), **recipient._asdict()}.items()
            if name not in ("sender", "address", "domain", "session")
        }
        return {
            **self._envelope_row(stored),
            "msgid": show_msgid(msgid_of(stored.evpid)),
            "session": show_session(transaction.session),
            **details,
        }

    def message(self, msgid: MsgId) -> bytes | None:
        """Return a message, or None."""
        queue = self._server.queue
        if not queue.of_message(msgid):
            return None
        try:
            return queue.body(msgid)
        except QueueUnavailableError:
            return None

    def relays(self) -> list[Row]:
        """Return destinations with something to do."""
        engine = self._server.engine
        now = self._server.effects.now()
        rows = []
        for relay in engine.agent.relays.values():
            states = []
            if relay.is_dead(now):
                states.append("dead")
            if relay.resolving:
                states.append("resolving")
            if relay.retry_at is not None and relay.retry_at > now:
                states.append("waiting")
            if relay.held:
                states.append("onhold")
            if engine.agent.places.is_paused(relay):
                states.append("paused")
            rows.append(
                {
                    "domain": relay.domain,
                    "state": ",".join(states) or "ready",
                    "tasks": len(relay.tasks),
                    "running": relay.busy,
                    "envelopes": relay.waiting_envelopes + relay.running_envelopes,
                    "held": len(relay.held),
                    "connections": len(relay.sessions),
                    "window": relay.policy.window,
                    "dead_until": relay.dead_until if relay.is_dead(now) else None,
                    "last_connect_at": _instant(relay.gauge.last_connect_at),
                    "last_status": relay.dead_status or relay.status or None,
                    "retry_at": relay.retry_at,
                    "wait": self._waits_for(relay, now),
                    "connectors": [self._connector(one, relay, now) for one in relay.connectors],
                }
            )
        return rows

    def _waits_for(self, relay: "Relay", now: float) -> list[str]:
        """Return what keeps a relay from opening another connection now, in smtpctl's manner."""
        agent = self._server.engine.agent
        found = ["MX"] if relay.resolving else []
        if relay.retry_at is not None and relay.retry_at > now:
            found.append("DELAY")
        if relay.in_line:
            found.append("PLACE")
        if len(relay.sessions) >= relay.limits.max_conn_per_relay:
            found.append("LIMIT_RELAY")
        if len(agent.sessions) >= agent.limits.max_conn:
            found.append("LIMIT_ALL")
        return found

    def _connector(self, connector: "Connector", relay: "Relay", now: float) -> Row:
        """Return one (source, relay), with smtpctl's words for what is wrong with it."""
        places = self._server.engine.agent.places
        source = places.sources.get(connector.source)
        flags = []
        if not {("", relay.domain), (connector.source, relay.domain)}.isdisjoint(places.paused):
            flags.append("ERROR_BLOCKED")
        if source is not None and source.enabled_at > now:
            flags.append("ERROR_SOURCE")
        if source is not None and source.connections >= relay.limits.max_conn_per_source:
            flags.append("LIMIT_SOURCE")
        if connector.connections >= relay.limits.max_conn_per_connector:
            flags.append("LIMIT_CONN")
        return {
            "source": connector.source or "[]",
            "connections": connector.connections,
            "last_connect_at": _instant(connector.last_connect_at),
            "flags": flags,
        }

    def routes(self) -> list[Row]:
        """Return pairs of source and address."""
        now = self._server.effects.now()
        return [
            {
                "source": route.source or "-",
                "address": route.address,
                "state": "disabled"
                if route.enabled_at > now
                else "ready"
                if route.validated
                else "new",
                "connections": route.connections,
                "penalty": route.penalty,
                "enabled_at": route.enabled_at if route.enabled_at > now else None,
                "last_connect_at": _instant(route.last_connect_at),
                "last_disconnect_at": _instant(route.last_disconnect_at),
            }
            for route in self._server.engine.agent.routes.values()
        ]

    def hosts(self) -> list[Row]:
        """Return the addresses that relays know, with their names."""
        agent = self._server.engine.agent
        names: dict[str, tuple[str, list[str]]] = {}
        for relay in agent.relays.values():
            for target in relay.targets:
                names.setdefault(target.address, (target.host, []))[1].append(relay.domain)
        rows = []
        for address, (name, domains) in names.items():
            host = agent.places.hosts.get(address)
            rows.append(
                {
                    "address": address,
                    "name": name,
                    "connections": host.connections if host else 0,
                    "relays": len(domains),
                    "last_connect_at": _instant(host.last_connect_at) if host else None,
                }
            )
        return rows

    def sessions(self) -> list[Row]:
        """Return open connections: those of clients, then ours to other hosts."""
        inbound = [
            {
                "session": show_session(client.session_id),
                "direction": "in",
                "peer": client.peer,
                "name": client.helo,
                "domain": "",
                "state": client.phase.value,
                "listener": client.listener.name,
                "tls": client.tls or None,
                "user": client.login or None,
                "messages": client.messages,
                "since": client.started_at,
            }
            for client in self._server.listeners.clients
        ]
        outbound = [
            {
                "session": show_session(row.session),
                "direction": "out",
                "peer": row.address,
                "name": row.host,
                "domain": row.domain,
                "state": row.state,
                "messages": row.messages,
                "since": row.opened_at,
            }
            for row in self._server.driver.outbound.rows()
        ]
        inbound.sort(key=itemgetter("session"))
        return inbound + outbound

    def users(self) -> list[Row]:
        """Return users with local mail to do, and those that are paused."""
        local = self._server.engine.local
        rows = []
        for key in sorted(local.users.keys() | local.paused_users):
            user = local.users.get(key)
            paused = local.paused or key in local.paused_users
            pending = len(user.waiting) if user else 0
            running = user.running if user else 0
            held = len(user.held) if user else 0
            state = (
                "paused" if paused else "onhold" if held else "running" if running else "waiting"
            )
            rows.append(
                {
                    "user": key[:-1],
                    "state": state,
                    "pending": pending,
                    "running": running,
                    "held": held,
                }
            )
        return rows

    def paused(self) -> list[Row]:
        """Return the domains and users that are left alone one by one."""
        engine = self._server.engine
        return [
            {"agent": "mta", "only": domain, "source": source or None}
            for source, domain in sorted(engine.agent.places.paused)
        ] + [
            {"agent": "mda", "only": key[:-1], "source": None}
            for key in sorted(engine.local.paused_users)
        ]

    def hoststats(self) -> list[Row]:
        """Return the latest news of each destination of the last four hours, the latest first."""
        now = self.now()
        return [
            {
                "domain": domain,
                "at": stat.at,
                "seconds": round(stat.seconds, 6) if stat.transactions else None,
                "transactions": stat.transactions,
                "last_status": stat.status or None,
            }
            for domain, stat in self._server.engine.agent.hoststats.items(now)
        ][::-1]

    def top(self) -> Row:
        """Return what `mtactl top` shows: counters, memory by who has it, the slowest destinations."""
        server = self._server
        store = server.engine.store
        stats = self.stats()
        return {
            "t": self.now(),
            "hostname": server.config.hostname,
            "stats": dict(stats),
            "memory": [
                {
                    "agent": "scheduler",
                    "what": f"envelopes, {store.name}",
                    "count": len(store),
                    "bytes": estimate_bytes(store),
                },
                {
                    "agent": "queue",
                    "what": "messages ready for a first attempt",
                    "count": stats["queue.evpcache.size"],
                    "bytes": stats["queue.evpcache.bytes"],
                },
                {
                    "agent": "smtp",
                    "what": "messages being received",
                    "count": stats["smtp.session"],
                    "bytes": stats["smtp.bytes"],
                },
            ],
            "slowest": self._slowest(),
        }

    def _slowest(self) -> list[Row]:
        """Return destinations: those at rest first, then by how long their transactions take."""
        now = self.now()
        agent = self._server.engine.agent
        stats = dict(agent.hoststats.items(now))
        rows = []
        for domain in stats.keys() | agent.relays.keys():
            relay, stat = agent.relays.get(domain), stats.get(domain)
            dead = relay is not None and relay.is_dead(now)
            queued = relay.waiting_envelopes + relay.running_envelopes if relay else 0
            seconds = stat.seconds if stat else 0.0
            rows.append(
                {
                    "domain": domain,
                    "dead": dead,
                    "queued": queued,
                    "held": len(relay.held) if relay else 0,
                    "connections": len(relay.sessions) if relay else 0,
                    "seconds": seconds if stat and stat.transactions else None,
                    "last_status": stat.status if stat else None,
                }
            )
        return nlargest(
            SLOWEST, rows, key=lambda row: (row["dead"], row["seconds"] or 0.0, row["queued"])
        )

    def ages(self) -> Iterator[tuple[str, float]]:
        """Iterate over (destination, when it was accepted) of all envelopes."""
        return self._server.engine.store.ages()

    def now(self) -> float:
        """Return the clock."""
        return self._server.effects.now()

    # What may be done

    def discover(self, which: Selector) -> int:
        """Take over envelopes that were put into the queue behind our back; they are tried at once."""
        return self._server.driver.restorer.discover(which)

    def request(
        self,
        stimulus: "ScheduleRequested | RemoveRequested | SuspendRequested | UnsuspendRequested",
    ) -> int:
        """Do something to envelopes; return how many there were."""
        server = self._server
        count = len(server.engine.scheduler.matching(stimulus.which))
        server.driver.tell(stimulus)
        return count

    def pause(self, what: str, only: str = "", source: str = "") -> None:
        """Stop relaying, local delivery or accepting, or one domain or user of it."""
        if what in ("mta", "mda"):
            if only and len(self.paused()) >= PAUSED_MAX:
                raise ValueError(
                    f"{PAUSED_MAX} are paused one by one already: pause {what} instead"
                )
            self._server.driver.tell(AgentPaused(Agent(what), only.lower(), source))
        else:
            assert what == "smtp", what
            self._server.door.paused = True

    def resume(self, what: str, only: str = "", source: str = "") -> None:
        """Start relaying, local delivery or accepting again, or one domain or user of it."""
        if what in ("mta", "mda"):
            self._server.driver.tell(AgentResumed(Agent(what), only.lower(), source))
        else:
            assert what == "smtp", what
            self._server.door.paused = False

    def enable_route(self, address: str) -> bool:
        """End the rest of a route."""
        if all(address != known for _, known in self._server.engine.agent.routes):
            return False
        self._server.driver.tell(RouteEnabled(address))
        return True

    def expand(self, address: str) -> list[str]:
        """Return how an address expands, as the lines of a tree."""
        addressing = self._server.driver.addressing
        if addressing is None:
            raise ValueError("there are no rules: every address is relayed")
        return list(addressing.show(address))

    def trace(self, subsystem: str, on: bool, only: str = "") -> None:
        """Switch tracing into the log."""
        self._server.tracer.set(subsystem, on, only)

    def follow(
        self, subsystem: str, write: Callable[[str], None], only: str = ""
    ) -> Callable[[], None]:
        """Send a subsystem's trace to ``write`` as well."""
        return self._server.tracer.follow(subsystem, write, only)

    # Limits, profile, tables

    def limit_rows(self, pattern: str) -> list[Row]:
        """Return limits by a part of their name."""
        return list(limit_rows(self._server.config.limits, pattern))

    def set_limit(self, assignment: str) -> str:
        """Set a limit; the core is told, and the parts that keep a copy."""
        limits = self._server.config.limits
        key, value = parse_change(limits, assignment)
        before = read_limit(limits, key)
        self._server.driver.tell(LimitChanged(key, value))
        self._server.limits_changed()
        return f"{key} {before} -> {value}"

    def profile(self, on: bool) -> None:
        """Begin or end the profile."""
        profile = self._server.profile
        if on:
            profile.start()
        else:
            profile.stop()

    def profile_rows(self) -> list[Row]:
        """Return what was timed."""
        return list(self._server.profile.rows())

    def update_table(self, name: str) -> str:
        """Read a table again."""
        addressing = self._server.driver.addressing
        if addressing is None:
            raise KeyError(name)
        return addressing.tables.update(name)

    def update_security(self, what: str) -> str:
        """Read the certificate, the users or the passwords of other hosts again."""
        return self._server.update_security(what)

    def verbose(self, on: bool) -> None:
        """Switch debug lines."""
        self._server.log.verbose = on


def _instant(value: float) -> float | None:
    """Return an instant, or None for one that never was."""
    return None if value == NEVER else value


__all__ = ["Operations"]
