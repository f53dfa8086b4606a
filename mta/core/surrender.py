"""A destination is given up: all that waits for it is deferred until an instant, or refused for good."""

from typing import TYPE_CHECKING

from mta.core.instructions import Instruction
from mta.core.outcomes import Outcomes
from mta.core.relay import Relay
from mta.core.relaybook import RelayBook
from mta.core.rests import NETWORK_ERROR
from mta.core.waiting import Waiting

if TYPE_CHECKING:
    from mta.core.scheduler import Scheduler


class Surrender:
    """Gives destinations up."""

    def __init__(
        self, scheduler: "Scheduler", book: RelayBook, waiting: Waiting, outcomes: Outcomes
    ) -> None:
        self._scheduler = scheduler
        self._book = book
        self._waiting = waiting
        self._outcomes = outcomes

    def defer_all(
        self, relay: Relay, status: str, until: float, now: float, out: list[Instruction]
    ) -> None:
        """Defer everything that waits for a destination, and leave it alone until an instant."""
        relay.dead_until = until
        relay.dead_status = status
        relay.policy.revive()
        relay.resolved_until = min(relay.resolved_until, until)
        self._book.look_again(relay, until)
        for handle in self._waiting.empty(relay):
            self._outcomes.defer(relay, handle, status, now, out)

    def reject_all(self, relay: Relay, status: str) -> None:
        """Fail everything that waits for a destination for good: it does not exist."""
        for handle in self._waiting.empty(relay):
            self._scheduler.permfailed(handle, status)

    def revive_or_rest(self, relay: Relay, status: str, now: float, out: list[Instruction]) -> None:
        """A destination whose connections all fail after the greeting is given up for a while."""
        if not relay.policy.dead:
            return
        if relay.busy or relay.idle:
            relay.policy.revive(busy=relay.busy)
            return
        until = now + relay.limits.route_delay_base_s
        self.defer_all(relay, status or NETWORK_ERROR, until, now, out)
