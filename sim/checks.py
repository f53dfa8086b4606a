"""What the classes of a scenario check alike: numbers in range, names that no resolver outside will answer for."""

import re
from collections.abc import Iterator
from typing import Final, TypeAlias

DOMAIN_MAX: Final = 48
"""Characters of a domain: no header line of a message gets longer than 78."""

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}\.(?:test|example)")
"""Names that no resolver outside will ever answer for (RFC 2606)."""

Problem: TypeAlias = tuple[str, object, str]
"""(key, value, what is wrong), as `mta.core.settings` asks for it."""


def in_range(*checks: tuple[str, float, float, float]) -> Iterator[Problem]:
    """Yield a problem for each (key, value, lowest, highest) that is outside; bounds belong to it."""
    for key, value, low, high in checks:
        if not low <= value <= high:
            yield key, value, f"must be from {low} to {high}"


def domain_problems(key: str, domain: str) -> Iterator[Problem]:
    """Yield a problem if a domain is too long or could exist."""
    if len(domain) > DOMAIN_MAX or not _DOMAIN.fullmatch(domain):
        yield (
            key,
            domain,
            f"must be a name under .test or .example, {DOMAIN_MAX} characters at most",
        )
