"""Limits that the operator changes while the server runs: ``mtactl set limits.KEY=VALUE``.

A change goes through the same checks as the configuration, then to the core as a stimulus, so that a recorded
run can be replayed with it. All parts share the one `mta.core.limits.Limits`: whoever reads a limit
reads the new value from then on. What is open already stays open; what is over a lowered cap goes as
it ends.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from mta.core.limits import Limits
from mta.core.settings import ConfigError, build, flatten

LimitValue: TypeAlias = int | float | str | bool

AT_START: Final = frozenset({"limits.mda.policy", "limits.queue.commit_batch_max"})
"""What only a restart changes: who holds what would have to move, or a thread has its own copy."""


@dataclass(slots=True)
class _Root:
    """The place of the limits in a configuration, so that errors name the whole key."""

    limits: Limits = field(default_factory=Limits)


def limit_rows(limits: Limits, pattern: str = "") -> Iterator[dict[str, Any]]:
    """Yield key, value, default and when a change counts, of every limit whose key contains ``pattern``."""
    defaults = flatten(_Root())
    for key, value in flatten(_Root(limits)).items():
        if pattern.lower() in key:
            yield {
                "key": key,
                "value": value,
                "default": defaults[key],
                "change": "restart" if key in AT_START else "now",
            }


def parse_change(limits: Limits, text: str) -> tuple[str, LimitValue]:
    """Return the key and the new value that ``limits.KEY=VALUE`` names; nothing is changed yet.

    Raises:
        ConfigError: no such limit, a value that makes no sense beside the others, or one that only a
            restart changes. One line.
    """
    key, equals, _ = text.partition("=")
    key = key.strip()
    if not equals:
        raise ConfigError("", problem=f"expected limits.KEY=VALUE, got {text[:60]!r}")
    if key in AT_START:
        raise ConfigError("", key, problem="needs a restart; mtactl show limits says which do not")
    try:
        built = build(_Root, {"limits": dataclasses.asdict(limits)}, source="", overrides=[text])
    except ConfigError as error:
        raise ConfigError("", error.key, error.value, error.problem) from None
    values = flatten(built)
    if key not in values:
        raise ConfigError("", key, problem="names no single limit; see mtactl show limits")
    value: Any = values[key]
    return key, value


def read_limit(limits: Limits, key: str) -> LimitValue:
    """Return a limit by its dotted key."""
    value: LimitValue = getattr(*_place(limits, key))
    return value


def put_limit(limits: Limits, key: str, value: LimitValue) -> None:
    """Set a limit by its dotted key; it was checked before."""
    setattr(*_place(limits, key), value)


def _place(limits: Limits, key: str) -> tuple[object, str]:
    root, *path, name = key.split(".")
    assert root == "limits", key
    node: object = limits
    for part in path:
        node = getattr(node, part)
    return node, name
