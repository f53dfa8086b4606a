"""All destinations that mail waits for, or that have to rest, and when to look at each of them again."""

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from mta.core.concurrency import make_concurrency
from mta.core.envelopes.base import EnvelopeState
from mta.core.holdqueue import HoldQueue
from mta.core.relay import Gauge, Relay, SessionState
from mta.core.relayrules import RelayRules

if TYPE_CHECKING:
    from mta.core.concurrency import ConcurrencySettings
    from mta.core.envelopes.base import EnvelopeStore
    from mta.core.limits import Limits


class RelayBook:
    """Relays by domain, at most ``limits.mta.max_relays``, and the instants they wait for."""

    def __init__(
        self,
        store: "EnvelopeStore",
        limits: "Limits",
        concurrency: "ConcurrencySettings",
        rules: RelayRules,
    ) -> None:
        self.relays: dict[str, Relay] = {}
        self._store = store
        self._limits = limits.mta
        self._scheduler_limits = limits.scheduler
        self._concurrency = concurrency
        self._rules = rules
        self._sites: dict[str, Gauge] = {}
        """Of smart hosts, as many as there are rules."""
        self.delayed: list[tuple[float, str]] = []
        """(instant, domain) of relays that wait for a gap or a rest to end: a heap, so the first is when `due` has something to yield."""

    def make(self, key: str) -> Relay | None:
        """Return a new relay, or None if there are too many."""
        if len(self.relays) >= self._limits.max_relays:
            return None
        plan = self._rules.plan_of(key)
        limits = plan.limits
        held = HoldQueue(
            self._store.new_list(EnvelopeState.HELD),
            high_water=limits.task_high_water,
            low_water=limits.task_low_water,
            release=limits.task_release,
            held_max=self._scheduler_limits.max_held,
        )
        site = None
        if plan.hosts:
            site = self._sites.setdefault(",".join(plan.hosts), Gauge())
        relay = Relay(key, held, make_concurrency(self._concurrency), plan, site=site)
        self.relays[key] = relay
        return relay

    def limits_changed(self) -> None:
        """Give hold queues the marks that count now."""
        for relay in self.relays.values():
            limits = relay.limits
            relay.held.set_marks(
                high_water=limits.task_high_water,
                # A rule may name one of the two; the other has moved.
                low_water=min(limits.task_low_water, limits.task_high_water - 1),
                release=limits.task_release,
                held_max=self._scheduler_limits.max_held,
            )

    def forget(self, relay: Relay) -> None:
        """Forget a relay; idempotent."""
        self.relays.pop(relay.domain, None)

    def pause(self, relay: Relay, until: float) -> None:
        """Let a relay open no connection before an instant."""
        relay.retry_at = until
        self.look_again(relay, until)

    def look_again(self, relay: Relay, at: float) -> None:
        """See to it that `due` names a relay at an instant, if it is still there."""
        heappush(self.delayed, (at, relay.domain))

    def due(self, now: float) -> Iterator[Relay]:
        """Yield relays whose instant has come; they wait for nothing any more."""
        while self.delayed and self.delayed[0][0] <= now:
            _, domain = heappop(self.delayed)
            relay = self.relays.get(domain)
            if relay is None:
                continue
            if relay.retry_at is not None and relay.retry_at <= now:
                relay.retry_at = None
            relay.in_line = False
            yield relay

    def validate(self) -> tuple[int, int]:
        """Assert the invariants of each relay; return how many envelopes are in flight and held. O(n), for tests."""
        in_flight = held = 0
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
            in_flight += waiting + relay.running_envelopes
            held += len(relay.held)
        return in_flight, held
