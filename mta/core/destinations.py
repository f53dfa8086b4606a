"""Where mail of a relay goes: look-ups that several relays may wait for, and what answers come to."""

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from mta.core.instructions import Instruction, ResolveDomain
from mta.core.relay import NEVER, Relay
from mta.core.reply import Outcome
from mta.core.routing import order_hosts

if TYPE_CHECKING:
    from random import Random

    from mta.core.stimuli import DomainResolved

WRONG_FAMILY: Final = (
    Outcome.TEMPFAIL,
    "451 4.4.4 Address family mismatch on destination MXs",
)
"""OpenSMTPD mta.c, ``mta_on_source``; code of RFC 3463."""

_TTL_MIN_S: Final = 1.0
"""An answer of the resolver holds at least so long: with a TTL of 0 (RFC 2181 8) it would be asked for
again before it was ever used. Ours."""


class Destinations:
    """Asks for the hosts of relays, each name once at a time."""

    def __init__(
        self,
        *,
        own_names: Collection[str],
        own_addresses: Collection[str],
        own_by_port: Mapping[int, Collection[str]],
        rng: "Random",
    ) -> None:
        self._own_names = own_names
        self._own_addresses = own_addresses
        self._own_by_port = own_by_port
        self._rng = rng
        self._asked: dict[str, list[Relay]] = {}
        """Who waits for which name to be looked up."""

    def ask(self, relay: Relay, out: list[Instruction]) -> None:
        """Ask for the hosts of a relay."""
        names = relay.plan.hosts or (relay.domain,)
        relay.answers = {}
        relay.asked.update(names)
        for name in names:
            waiting = self._asked.setdefault(name, [])
            if not waiting:
                out.append(ResolveDomain(name))
            waiting.append(relay)

    def answered(self, answer: "DomainResolved") -> Iterator[Relay]:
        """Yield relays that wait for no other answer than this one."""
        for relay in self._asked.pop(answer.domain, ()):
            relay.asked.discard(answer.domain)
            relay.answers[answer.domain] = answer.resolution
            if not relay.asked:
                yield relay

    def find(self, relay: Relay, now: float) -> tuple[Outcome, str] | None:
        """Set the addresses of a relay, and until when they hold, from its answers; return why there are none."""
        plan, limits = relay.plan, relay.limits
        answers = [relay.answers[name] for name in plan.hosts or (relay.domain,)]
        relay.answers = {}
        found, failure = order_hosts(
            answers,
            smart=bool(plan.hosts),
            balance=plan.balance,
            own_names=self._own_names,
            own_addresses=(
                self._own_by_port.get(plan.port, ()) if plan.port else self._own_addresses
            ),
            max_mx=limits.max_mx,
            max_addresses=limits.max_addresses,
            rng=self._rng,
        )
        targets = tuple([target for target in found if plan.takes(target.address)])
        if not targets:
            relay.resolved_until = NEVER
            return WRONG_FAMILY if found else failure
        relay.targets = targets
        relay.resolved_until = now + max(min(answer.ttl_s for answer in answers), _TTL_MIN_S)
        return None
