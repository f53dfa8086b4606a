"""The part of the server's configuration that a model needs, with the same keys and defaults.

The model can't import mta/config.py, which belongs to the shells; a test holds the two together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from mta.core.bounce import BounceSettings
from mta.core.concurrency import ConcurrencySettings
from mta.core.limits import Limits, Problem
from mta.core.relayrules import RelayRule, RelayRules, relay_problems
from mta.core.retry import RetrySettings
from mta.core.settings import ConfigError, build
from sim.resolver import DnsSettings

IGNORED: Final = (
    "hostname", "drain_s", "smtp", "listeners", "tls", "auth", "relay", "local", "rules", "tables", "userbases",
    "expansion", "queue",
    "control", "log",
)  # fmt: skip
"""Keys of the server that say where things are and who has mail, not what is decided. A model has no place for
them: it relays."""


@dataclass(slots=True)
class ModelConfig:
    """What decides in the server, and so in the model."""

    envelope: Literal["fixed", "whole", "full", "slim", "packed"] = "slim"
    """How envelopes are kept in memory."""
    seed: int = 0
    """Of MX order and jitter; 0 takes the scenario's."""
    dns: DnsSettings = field(default_factory=DnsSettings)
    retry: RetrySettings = field(default_factory=RetrySettings)
    bounce: BounceSettings = field(default_factory=BounceSettings)
    concurrency: ConcurrencySettings = field(default_factory=ConcurrencySettings)
    limits: Limits = field(default_factory=Limits)
    relays: list[RelayRule] = field(default_factory=list)
    """What is different for which destination. A model has no use for port, tls and auth."""

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong between rules and limits."""
        yield from relay_problems(self.relays, self.limits.mta, smart_host="relay.smart_host")

    def relay_rules(self, *, smart_host: str = "", hops: Sequence[str] = ()) -> RelayRules:
        """Return what is wanted for which destination."""
        return RelayRules(self.relays, self.limits.mta, smart_host=smart_host, hops=hops)


def model_config(
    server: Mapping[str, Any], *, source: str, overrides: Sequence[str] = ()
) -> ModelConfig:
    """Return what a model needs of a server's settings; `IGNORED` keys are left out.

    Args:
        server: a scenario's ``server`` table, or a whole configuration.
        source: the file's name, for errors.
        overrides: ``limits.mta.max_conn_per_host=2``, without ``server.``.

    Raises:
        ConfigError: an unknown key, or a value that makes no sense.
    """
    wanted = {key: value for key, value in server.items() if key not in IGNORED}
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key.split(".")[0] in IGNORED:
            problem = "says where things are, which a model does not ask"
            raise ConfigError("--set", key, problem=problem)
    return build(ModelConfig, wanted, source=source, overrides=overrides)


DELIVERY_TIMEOUT_S: Final = 300.0
"""Default of the server's ``local.limits.timeout_s``; a test holds the two together."""


def delivery_timeout(server: Mapping[str, Any], *, source: str) -> float:
    """Return how long a local delivery may take: of ``local``, all that a model asks for.

    Raises:
        ConfigError: it is no number above 0.
    """
    found: Any = server
    for key in ("local", "limits"):
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping) or "timeout_s" not in found:
        return DELIVERY_TIMEOUT_S
    value = found["timeout_s"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(
            source, "server.local.limits.timeout_s", value, "must be a number above 0"
        )
    return float(value)


def server_config(server: Mapping[str, Any], source: str, overrides: Sequence[str]) -> ModelConfig:
    """Return a scenario's settings of the server.

    Args:
        server: its table of the same name.
        source: the scenario's file.
        overrides: what was said of the scenario beside it; the error names whichever said it.

    Raises:
        ConfigError: one of them is wrong.
    """
    try:
        return model_config(server, source=source)
    except ConfigError as error:
        key = f"server.{error.key}"
        said = [override.partition("=")[0].strip() for override in overrides]
        if any(key == one or key.startswith(f"{one}.") for one in said):
            source = "--set"
        raise ConfigError(source, key, error.value, error.problem) from None
