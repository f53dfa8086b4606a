"""The windows of `mta.core.concurrency`: one that never moves, and Postfix's, which follows what deliveries come to."""

import math
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from mta.core.concurrency import ConcurrencySettings

Feedback: TypeAlias = Literal["1", "1/concurrency", "1/sqrt_concurrency"]
"""How much one delivery counts. Postfix's names; the last is documented there but compiled out."""


class FixedConcurrency:
    """A window that never moves, for a smart host and for experiments."""

    __slots__ = ("_limit",)

    def __init__(self, settings: "ConcurrencySettings") -> None:
        assert settings.limit >= 1, settings
        self._limit = settings.limit

    @property
    def window(self) -> int:
        """The limit."""
        return self._limit

    @property
    def dead(self) -> bool:
        """Never."""
        return False

    def succeeded(self, *, busy: int) -> None:
        """Change nothing."""

    def failed(self, *, busy: int) -> None:
        """Change nothing."""

    def revive(self, *, busy: int = 0) -> None:
        """Change nothing."""


class FeedbackConcurrency:
    """Postfix's feedback with hysteresis, number for number.

    Source: Postfix src/qmgr/qmgr_queue.c, qmgr_queue_unthrottle and qmgr_queue_throttle. Where code and
    the pseudo-code in SCHEDULER_README disagree we follow the code: a destination dies when the failed
    cohorts *reach* the limit (the text: exceed it); steps are taken half a feedback early, so that ten
    times 1/10 is a whole step in spite of binary fractions; therefore the first failure of a cycle takes
    two connections if the feedback is 1; and a destination that proves alive while deliveries are
    under way gets these as its window.
    """

    __slots__ = ("_fail_cohorts", "_failure", "_settings", "_success", "_window")

    def __init__(self, settings: "ConcurrencySettings") -> None:
        assert settings.initial >= 1, settings
        assert settings.limit >= 1, settings
        # Shared by all relays: one reference instead of five numbers in each.
        self._settings = settings
        self._window = min(settings.initial, settings.limit)
        self._success = 0.0
        self._failure = 0.0
        self._fail_cohorts = 0.0

    @property
    def window(self) -> int:
        """Connections that the relay may have now; 0 while the destination is dead."""
        return self._window

    @property
    def dead(self) -> bool:
        """True if the destination failed for too many cohorts and was not revived yet."""
        return self._window == 0

    def succeeded(self, *, busy: int) -> None:
        """Widen the window by the positive feedback; what was said of failures is forgotten.

        A window that is not used does not grow: it stays below busy + initial, or it would take many
        failures to bring it back to what is in use.
        """
        assert busy >= 0, busy
        self._fail_cohorts = 0.0
        if self._window == 0:
            # A delivery that was under way when the others failed has come through.
            self.revive(busy=busy)
            return
        settings = self._settings
        window = self._window
        if window >= settings.limit or window >= busy + settings.initial:
            return
        feedback = _value(settings.positive_feedback, window)
        self._success += feedback
        # Why half a feedback? The sum of rounded fractions may miss the whole by a little.
        # Postfix loops here; a feedback is at most 1, so that one step is all there can be.
        if self._success + feedback / 2 >= 1:
            self._window = window + 1
            self._success -= 1
            self._failure = 0.0

    def failed(self, *, busy: int) -> None:
        """Narrow the window by the negative feedback; a whole cohort of failures closes it.

        Why cohorts? Twenty parallel connections fail together when one host goes down: that is one
        piece of news, not twenty.
        """
        assert busy >= 0, busy
        if self._window == 0:
            return
        settings = self._settings
        window = self._window
        self._fail_cohorts += 1 / window
        if 0 < settings.cohort_limit <= self._fail_cohorts:
            self._window = 0
            return
        feedback = _value(settings.negative_feedback, window)
        self._failure -= feedback
        # At most twice, because a feedback is at most 1.
        while self._failure - feedback / 2 < 0:
            self._window = max(self._window - 1, 1)
            self._success = 0.0
            self._failure += 1

    def revive(self, *, busy: int = 0) -> None:
        """Open the window of a dead destination: to what is in use, else to the initial one."""
        assert busy >= 0, busy
        if self._window:
            return
        settings = self._settings
        self._window = min(busy or settings.initial, settings.limit)
        self._success = self._failure = self._fail_cohorts = 0.0


def _value(feedback: Feedback, window: int) -> float:
    """Return how much one delivery counts at this window. Source: qmgr.h, QMGR_FEEDBACK_VAL."""
    if feedback == "1":
        return 1.0
    if feedback == "1/concurrency":
        return 1 / window
    assert feedback == "1/sqrt_concurrency", feedback
    return 1 / math.sqrt(window)
