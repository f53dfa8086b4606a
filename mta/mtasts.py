"""MTA-STS: what a domain says about its hosts and their TLS (RFC 8461). Pure: text in, a policy out.

The rule: a policy counts only if all of it makes sense; a domain that says nonsense is a domain that says nothing.
"""

import enum
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from mta.core.address import domain_key

POLICY_BYTES_MAX: Final = 64 * 1024
"""Longest policy (RFC 8461 3.3)."""
MAX_AGE_MAX_S: Final = 31_557_600
"""Longest life of a policy: a year (RFC 8461 3.2)."""
MX_MAX: Final = 1000
"""Most ``mx`` patterns of one policy. Ours."""

_ID: Final = re.compile(r"[A-Za-z0-9]{1,32}")


class Mode(enum.Enum):
    """How serious a domain is."""

    ENFORCE = "enforce"
    """No mail without TLS, a good certificate, and a host that the policy names."""
    TESTING = "testing"
    """Say what would have failed, and deliver."""
    NONE = "none"


class StsPolicy(NamedTuple):
    """One domain's policy."""

    mode: Mode
    max_age_s: int
    mx: tuple[str, ...]
    """Hosts, lower case; ``*.`` stands for one label."""

    def allows(self, host: str) -> bool:
        """Return whether mail may go to a host (RFC 8461 4.1)."""
        name = host.lower().rstrip(".")
        first, dot, rest = name.partition(".")
        return name in self.mx or bool(first and dot and f"*.{rest}" in self.mx)


def policy_id(texts: Sequence[bytes]) -> str | None:
    """Return the id in the TXT records of ``_mta-sts.domain``; None if there is no valid one (RFC 8461 3.1)."""
    ours = [text for text in texts if re.match(rb"v=STSv1[ \t]*(;|$)", text)]
    if len(ours) != 1:
        return None
    try:
        fields = ours[0].decode("ascii").split(";")[1:]
    except UnicodeDecodeError:
        return None
    for field in fields:
        key, _, value = field.partition("=")
        if key.strip() == "id":
            return value.strip() if _ID.fullmatch(value.strip()) else None
    return None


def parse_policy(body: bytes) -> StsPolicy:
    """Return what a policy file says (RFC 8461 3.2). Unknown keys are skipped; of a key that comes twice the first counts.

    Raises:
        ValueError: it is none; the message says why, in our words only.
    """
    if len(body) > POLICY_BYTES_MAX:
        raise ValueError(f"is longer than {POLICY_BYTES_MAX} bytes")
    try:
        lines = body.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    fields: dict[str, str] = {}
    patterns: list[str] = []
    for line in lines:
        line = line.rstrip(" \t\r")
        if not line:
            continue
        key, colon, value = line.partition(":")
        value = value.strip(" \t")
        if not colon or not key:
            raise ValueError("has a line that is not key: value")
        if key == "mx":
            patterns.append(_pattern(value))
        else:
            fields.setdefault(key, value)
    if fields.get("version") != "STSv1":
        raise ValueError("is not version STSv1")
    try:
        mode = Mode(fields.get("mode"))
    except ValueError:
        raise ValueError("has no known mode") from None
    age = fields.get("max_age", "")
    if not (age.isascii() and age.isdigit() and len(age) <= 10):
        raise ValueError("has no max_age")
    if mode is not Mode.NONE and not patterns:
        raise ValueError("names no mx")
    if len(patterns) > MX_MAX:
        raise ValueError(f"names more than {MX_MAX} mx")
    return StsPolicy(mode, min(int(age), MAX_AGE_MAX_S), tuple(dict.fromkeys(patterns)))


def _pattern(value: str) -> str:
    name = value[2:] if value.startswith("*.") else value
    key = domain_key(name.rstrip("."))
    if key is None or key.startswith("["):
        raise ValueError("has an mx that is no host name")
    return f"*.{key}" if value.startswith("*.") else key
