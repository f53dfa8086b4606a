"""What becomes of a recipient's attempts, as a log says."""

from dataclasses import dataclass
from typing import NamedTuple


class Edge(NamedTuple):
    """A recorded attempt at the edge of an outage."""

    at: float
    fails: bool


@dataclass(slots=True)
class Fate:
    """Why a recipient's attempts fail beside outages."""

    failures: int = 0
    """Times that it is put off."""
    fatal: bool = False
    """It is refused for good when it is not put off any more."""
    failed_s: float = 0.0
    """What an attempt takes that fails."""
    edges: tuple[Edge, ...] = ()
