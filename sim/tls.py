"""TLS of the model's connections: which of them have it, and what comes of it.

What a handshake costs is in `sim.costs`. What comes of one with a scripted host follows from the level that the operator wants
(mta/tlsplan.py) and from how the host does TLS (testbed/world/tlssession.py); no byte is encrypted. Policies of MTA-STS
are left out: the scripted Internet has none.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from mta.core.reply import Reply
from mta.core.settings import ConfigError
from sim.scenario import Scenario, addresses
from sim.settings import ModelConfig

LEVELS: Final = ("none", "may", "encrypt", "verify", "dane", "implicit")
"""``relay.tls``; mta/smtphello.py."""
FIRST_TLS: Final = Reply(530, "5.7.0", "Must issue a STARTTLS command first")
"""What a host that wants TLS says to everything else; testbed/world/tlssession.py."""
NOT_OFFERED: Final = "454 4.7.4 TLS is required, but was not offered by host"
NO_HANDSHAKE: Final = "454 4.7.5 Cannot start TLS: wrong version number"
_NOT_TRUSTED: Final = "454 4.7.5 Server certificate not trusted"
_BAD: Final = {
    "expired": "certificate has expired",
    "wrong-name": "Hostname mismatch",
    "self-signed": "self-signed certificate",
}
"""What a client that verifies says of it; in the words of OpenSSL, which adds names that the model has not."""


class Security(NamedTuple):
    """What happens on a connection after the first EHLO."""

    handshake: bool = False
    """Both sides do the work of a handshake, and EHLO is said again if nothing is wrong with it."""
    failure: str = ""
    """Why the connection can't be used."""
    again: bool = False
    """Another connection is tried, in clear."""
    refused: bool = False
    """The host takes no mail in clear, and gets it in clear."""


CLEAR: Final = Security()


def security(level: str, tls: str, dane: str = "none") -> Security:
    """Return what comes of a connection.

    Args:
        level: one of `LEVELS`; what the operator wants.
        tls: how the host does STARTTLS; `sim.scenario.Destination.tls`.
        dane: its TLSA records; `sim.scenario.Destination.dane`.
    """
    if level == "implicit":
        # The hosts greet in clear.
        return Security(failure=NO_HANDSHAKE)
    if level == "none":
        return Security(refused=tls == "required")
    by_records = level == "dane" and dane != "none"
    must = by_records or level in ("encrypt", "verify")
    if tls == "none":
        return Security(failure=NOT_OFFERED) if must else CLEAR
    if tls == "broken":
        return Security(failure=NO_HANDSHAKE) if must else Security(again=True)
    failure = ""
    if by_records and dane == "wrong":
        failure = f"{_NOT_TRUSTED}: certificate does not match TLSA records"
    elif level == "verify" and tls in _BAD:
        failure = f"{_NOT_TRUSTED}: {_BAD[tls]}"
    return Security(handshake=True, failure=failure)


def relay_tls(server: Mapping[str, Any], *, source: str) -> str:
    """Return the level of ``relay.tls``, the default one if a scenario's ``server`` table has none.

    Raises:
        ConfigError: there is no such level.
    """
    relay = server.get("relay")
    level = relay.get("tls", "may") if isinstance(relay, Mapping) else "may"
    if level not in LEVELS:
        problem = f"must be one of {', '.join(LEVELS)}"
        raise ConfigError(source, "server.relay.tls", level, problem)
    return str(level)


class Securities:
    """What comes of connections, for those who open them."""

    def __init__(
        self, scenario: Scenario, config: ModelConfig, *, source: str = "scenario"
    ) -> None:
        """Look at the hosts.

        Args:
            scenario: where mail goes.
            config: says what is different for which destination.
            source: the scenario's file, for errors.

        Raises:
            ConfigError: ``relay.tls`` makes no sense.
        """
        self._level = relay_tls(scenario.server, source=source)
        self._rules = config.relay_rules()
        self._hosts = {
            each.address: (
                scenario.destinations[each.destination].tls,
                scenario.destinations[each.destination].dane,
            )
            for each in addresses(scenario)
        }
        self._known: dict[tuple[str, str], Security] = {}

    def of(self, domain: str, address: str) -> Security:
        """Return what comes of a connection for a destination to a host; in clear if nobody knows it."""
        key = domain, address
        found = self._known.get(key)
        if found is None:
            level = self._rules.plan_of(domain).tls or self._level
            found = self._known[key] = security(level, *self._hosts.get(address, ("none", "none")))
        return found


def securities(
    scenario: Scenario, config: ModelConfig, *, source: str = "scenario"
) -> Callable[[str, str], Security] | None:
    """Return `Securities.of`; None if every connection is in clear and nobody minds.

    Raises:
        ConfigError: ``relay.tls`` makes no sense.
    """
    quiet = all(each.tls == "none" for each in scenario.destinations)
    levels = {relay_tls(scenario.server, source=source), *(rule.tls for rule in config.relays)}
    if quiet and levels <= {"", "none", "may", "dane"}:
        return None
    return Securities(scenario, config, source=source).of


__all__ = [
    "CLEAR",
    "FIRST_TLS",
    "LEVELS",
    "Securities",
    "Security",
    "relay_tls",
    "securities",
    "security",
]
