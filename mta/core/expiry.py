"""Envelopes that expire while somebody who could take them is paused.

Everywhere else an envelope that is too old is noticed when it is touched, because it is due at its expiry at the
latest. What waits for an agent, a destination or a user that the operator has paused is not touched; nobody should
learn after a week of maintenance that mail of the first hour was never delivered.

One pass over all envelopes finds them, at most once a minute and only when one can have become too old. What the
operator has suspended by itself stays, as in OpenSMTPD.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from mta.core.envelopes.base import EnvelopeState, Handle

if TYPE_CHECKING:
    from mta.core.ids import EvpId
    from mta.core.scheduler import Scheduler

PASS_S = 60.0
"""Least seconds between two passes. Ours: expiry is a matter of days."""
EXPIRED_PER_CALL = 1000
"""Envelopes that expire in one go, so that a long pause does not end in a long stall."""


class Agent(Protocol):
    """Who has an envelope that is in flight or held."""

    def withdraw(self, handle: Handle, now: float) -> bool:
        """Take an envelope out of wherever it waits; False if it is being delivered."""
        ...


class PausedExpiry:
    """Lets envelopes expire as long as something is paused."""

    def __init__(self, scheduler: "Scheduler", agent_of: Callable[[Handle], Agent]) -> None:
        self.active = False
        """Something is paused."""
        self._scheduler = scheduler
        self._agent_of = agent_of
        self._found: deque[EvpId] = deque()
        self._pass_at = math.inf
        self._not_before = -math.inf

    def watch(self, active: bool, now: float) -> None:
        """Say whether anything is paused now."""
        if active and not self.active:
            self._pass_at = max(now, self._not_before)
        elif not active:
            self._found.clear()
        self.active = active

    def restored(self, expires_at: float) -> None:
        """Note an envelope that may be the first to expire."""
        self._pass_at = min(self._pass_at, max(expires_at, self._not_before))

    def next_wakeup(self, now: float) -> float:
        """Return when `run` is next worth a call."""
        return now if self._found else self._pass_at

    def run(self, now: float) -> None:
        """Let expire what is too old and waits."""
        if not self._found and self._pass_at <= now:
            self._look(now)
        store, scheduler = self._scheduler.store, self._scheduler
        for _ in range(min(len(self._found), EXPIRED_PER_CALL)):
            handle = store.find(self._found.popleft())
            if handle is None:
                continue  # gone since
            state = store.state_of(handle)
            if state in (EnvelopeState.PENDING, EnvelopeState.SCHEDULED):
                scheduler.take_out(handle)
                scheduler.expired(handle)
            elif state is not EnvelopeState.SUSPENDED and self._agent_of(handle).withdraw(
                handle, now
            ):
                scheduler.expired_in_flight(handle)

    def _look(self, now: float) -> None:
        """Find what is too old, in the order of ids, and when it is worth to look again."""
        store = self._scheduler.store
        limits = self._scheduler.limits
        # What comes later expires later than this.
        next_at = now + min(limits.envelope_ttl_s, limits.bounce_ttl_s)
        for handle in store:
            if store.state_of(handle) is EnvelopeState.SUSPENDED:
                continue
            expires_at = store.expires_at_of(handle)
            if expires_at <= now:
                self._found.append(store.evpid_of(handle))
            elif expires_at < next_at:
                next_at = expires_at
        if self._found:
            self._found = deque(sorted(self._found))
        self._not_before = now + PASS_S
        self._pass_at = max(next_at, self._not_before)
