"""How many connections a destination may have now.

A policy holds one number, the window, for one relay. It grows with deliveries and shrinks with
failures of the destination. Failures of the destination are connections that could not be opened or
greeted; a recipient that was rejected is news about the recipient (Postfix SCHEDULER_README, "connection
or handshake failure").
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from mta.core.feedback import Feedback, FeedbackConcurrency, FixedConcurrency


@dataclass(slots=True)
class ConcurrencySettings:
    """How the window of each relay moves. Names and defaults: Postfix, postconf(5)."""

    policy: Literal["fixed", "feedback"] = "feedback"
    """`fixed` is always ``limit``; `feedback` is Postfix's since 2.5."""
    initial: int = 5
    """Connections to a destination that we know nothing of. ``initial_destination_concurrency``."""
    limit: int = 20
    """Most connections to a destination. ``default_destination_concurrency_limit``."""
    positive_feedback: Feedback = "1"
    """What one success adds. ``default_destination_concurrency_positive_feedback``."""
    negative_feedback: Feedback = "1"
    """What one failure takes. ``default_destination_concurrency_negative_feedback``."""
    cohort_limit: float = 1.0
    """So many failed cohorts make a destination dead; 0 never does, as in Postfix.
    ``default_destination_concurrency_failed_cohort_limit``."""

    def problems(self) -> Iterator[tuple[str, object, str]]:
        """Yield (key, value, problem) for every value that no policy can work with."""
        if self.initial < 1:
            yield "initial", self.initial, "must be at least 1"
        if self.limit < 1:
            yield "limit", self.limit, "must be at least 1"
        if not self.cohort_limit >= 0:
            yield "cohort_limit", self.cohort_limit, "must not be negative"


class ConcurrencyPolicy(Protocol):
    """The window of one relay."""

    @property
    def window(self) -> int:
        """Connections that the relay may have now; 0 while the destination is dead."""
        ...

    @property
    def dead(self) -> bool:
        """True from the failure that completed the last cohort until `revive`."""
        ...

    def succeeded(self, *, busy: int) -> None:
        """The destination took mail; ``busy`` connections are in use."""
        ...

    def failed(self, *, busy: int) -> None:
        """The destination could not be talked to; ``busy`` connections are in use."""
        ...

    def revive(self, *, busy: int = 0) -> None:
        """The rest of a dead destination is over: try again with the initial window."""
        ...


def make_concurrency(settings: ConcurrencySettings) -> ConcurrencyPolicy:
    """Return a new window, for one relay."""
    if settings.policy == "fixed":
        return FixedConcurrency(settings)
    assert settings.policy == "feedback", settings
    return FeedbackConcurrency(settings)
