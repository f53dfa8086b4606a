"""The kinds of behaviour that a scenario can name, each a pure state machine.

    base.py      what a behaviour is; connections, refusals
    delays.py    latency, tarpit
    refusals.py  reject, drop, greylist, fail-then-accept
    limits.py    limit-connections, limit-rate
    windows.py   outage, dead
    providers.py provider, asked-for
    dns.py       dns
    replies.py   real hosts' words, which any that refuses may take: `reply = "gmail/rate"`
    maker.py     makes them from what a scenario says
    composition.py, nameserver.py
                 all of one host, and of one domain's name servers

`sim.remote` makes hosts of them.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mta.core.settings import ABSENT, ConfigError, build
from sim.behaviours.base import NONE, Behaviour, Parameters
from sim.behaviours.delays import Latency, Tarpit
from sim.behaviours.dns import Dns
from sim.behaviours.limits import LimitConnections, LimitRate
from sim.behaviours.providers import AskedFor, Provider
from sim.behaviours.refusals import Drop, FailThenAccept, Greylist, Reject
from sim.behaviours.replies import known_replies
from sim.behaviours.windows import Dead, Outage


@dataclass(frozen=True, slots=True)
class Accept:
    """``accept``: takes everything at once; what a host does that nothing is said about."""

    def make(self, rng: random.Random) -> Behaviour:
        """Return a behaviour that does nothing."""
        return Behaviour()


KINDS: Final[dict[str, type[Parameters]]] = {
    "accept": Accept,
    "latency": Latency,
    "tarpit": Tarpit,
    "reject": Reject,
    "drop": Drop,
    "greylist": Greylist,
    "fail-then-accept": FailThenAccept,
    "provider": Provider,
    "asked-for": AskedFor,
    "limit-connections": LimitConnections,
    "limit-rate": LimitRate,
    "outage": Outage,
    "dead": Dead,
    "dns": Dns,
}

BEHAVIOURS_MAX: Final = 32
"""Most behaviours of one host; each costs a call for each command."""


def read(
    behaviours: Sequence[Mapping[str, object]], *, source: str = "scenario", key: str = "behaviours"
) -> list[Parameters]:
    """Return the parameters of each behaviour of a list, checked.

    Args:
        behaviours: Tables with a ``kind`` and its parameters.
        source: The file that says it, for errors.
        key: Where in the file the list is, for errors.

    Raises:
        ConfigError: unknown kind, unknown parameter, or a value that makes no sense.
    """
    if len(behaviours) > BEHAVIOURS_MAX:
        raise ConfigError(
            source, key, len(behaviours), f"must be at most {BEHAVIOURS_MAX} behaviours"
        )
    found: list[Parameters] = []
    for number, table in enumerate(behaviours):
        here = f"{key}.{number}"
        kind = table.get("kind", ABSENT)
        if not isinstance(kind, str) or kind not in KINDS:
            known = ", ".join(KINDS)
            raise ConfigError(source, f"{here}.kind", kind, f"must be one of {known}")
        parameters = {name: value for name, value in table.items() if name != "kind"}
        if "reply" in parameters:
            _put_words(parameters, kind, source, here)
        try:
            found.append(build(KINDS[kind], parameters, source=source))
        except ConfigError as error:
            raise ConfigError(source, f"{here}.{error.key}", error.value, error.problem) from None
    return found


def _put_words(parameters: dict[str, object], kind: str, source: str, here: str) -> None:
    """Put a known reply's code and words in the place of its name."""
    name = parameters.pop("reply")
    fields = {field.name for field in dataclasses.fields(KINDS[kind])}  # type: ignore[arg-type]
    if "code" not in fields:
        raise ConfigError(source, f"{here}.reply", name, f"{kind} has no reply of its own")
    for key in ("code", "enhanced", "text"):
        if key in parameters:
            raise ConfigError(source, f"{here}.{key}", parameters[key], "is the reply's already")
    known = known_replies()
    reply = known.get(name) if isinstance(name, str) else None
    if reply is None:
        raise ConfigError(source, f"{here}.reply", name, f"must be one of {', '.join(known)}")
    parameters |= {"code": reply.code, "enhanced": reply.enhanced or NONE, "text": reply.text}
    if "verb" in fields:
        parameters.setdefault("verb", reply.verb)
