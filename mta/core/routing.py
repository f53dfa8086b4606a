"""Which hosts to try for a domain, and in which order (RFC 5321 5.1)."""

import enum
from typing import NamedTuple


class ResolutionStatus(enum.Enum):
    """What a look-up of mail exchangers ended in."""

    OK = "ok"
    RETRY = "retry"
    """The name servers did not answer, or with SERVFAIL or REFUSED: temporary."""
    NO_DOMAIN = "no-domain"
    """NXDOMAIN: permanent."""
    NO_MX = "no-mx"
    """Neither MX nor address records: permanent by RFC 5321 5.1."""
    NULL_MX = "null-mx"
    """The domain says that it takes no mail (RFC 7505): permanent, 556 5.1.10."""


class MxHost(NamedTuple):
    """One mail exchanger with its addresses."""

    preference: int
    """Lower is tried first."""
    name: str
    addresses: tuple[str, ...]


class Resolution(NamedTuple):
    """The answer of the resolver for one domain."""

    status: ResolutionStatus
    hosts: tuple[MxHost, ...] = ()
    ttl_s: float = 300.0
    """How long the answer holds."""
    text: str = ""
    """For the log and the bounce."""
