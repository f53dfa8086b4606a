"""When to try an envelope again after a temporary failure.

Policies are pure: same arguments, same draws, same instant. They answer with an absolute instant that
lies after `now`, because a wait is only half of an answer: OpenSMTPD's schedule counts from the
creation of the envelope, Postfix's from the attempt.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from mta.core.envelopes.base import TICK

if TYPE_CHECKING:
    from random import Random


@dataclass(slots=True)
class RetrySettings:
    """How long to wait between attempts. All waits are seconds."""

    policy: Literal["quadratic", "age-clamped", "exponential"] = "quadratic"
    """`quadratic` is OpenSMTPD's, `age-clamped` Postfix's, `exponential` Amazon's with full jitter."""
    base_s: float = 400.0
    """quadratic: attempt n is at creation + base * n**2 (OpenSMTPD BACKOFF_TRANSFER, 400).
    exponential: bound of the first wait."""
    overflow_base_s: float = 3.0
    """The same for an envelope that found its hold queue full (OpenSMTPD BACKOFF_OVERFLOW)."""
    mda_base_s: float = 10.0
    """The same for a local delivery (OpenSMTPD BACKOFF_DELIVERY)."""
    min_s: float = 300.0
    """age-clamped: shortest wait. Postfix ``minimal_backoff_time``."""
    max_s: float = 4000.0
    """age-clamped, exponential: longest wait. Postfix ``maximal_backoff_time``."""
    scan_s: float = 0.0
    """age-clamped: attempts begin only at multiples of this many seconds since the epoch, because only then somebody looks
    which are due. Postfix ``queue_run_delay``, 300; 0: on time."""
    factor: float = 2.0
    """exponential: each bound is the one before times this. Ours, as nearly everybody's."""
    jitter: Literal["none", "full"] = "none"
    """`full` draws the wait uniformly between nothing and what the policy says, so that what failed
    together does not come back together. `exponential` always does; OpenSMTPD and Postfix never."""

    def problems(self) -> Iterator[tuple[str, object, str]]:
        """Yield (key, value, problem) for every value that no policy can work with."""
        for key in ("base_s", "overflow_base_s", "mda_base_s", "min_s", "max_s"):
            value = getattr(self, key)
            if not value >= TICK:
                yield key, value, f"must be at least {TICK} s, the grain of the queue's times"
        if not self.max_s >= self.min_s:
            yield "max_s", self.max_s, f"must not be below min_s ({self.min_s:g})"
        if not 0 <= self.scan_s <= 86_400:
            yield "scan_s", self.scan_s, "must be from 0 to 86400"
        if not self.factor > 1:
            yield "factor", self.factor, "must be above 1"


class RetryPolicy(Protocol):
    """Decides when an envelope is due again."""

    def next_attempt_at(
        self, *, created_at: float, now: float, attempts: int, rng: "Random"
    ) -> float:
        """Return the instant of the next attempt, in seconds since the epoch, after ``now``.

        Args:
            created_at: when the envelope was accepted.
            now: when the last attempt failed.
            attempts: failed attempts so far; 0 for an envelope that was sent back untried.
            rng: drawn from only by a policy with jitter.
        """
        ...


class QuadraticRetry:
    """A fixed timetable from creation on: base * n**2; slots that have passed are skipped.

    Source: OpenSMTPD scheduler_ramqueue.c, scheduler_next: n starts at the envelope's retry count and
    is raised until the slot lies in the future. There it is a loop; here a square root, because
    the overflow timetable (base 3 s) reaches n = 339 after four days.
    """

    __slots__ = ("_base_s",)

    def __init__(self, base_s: float) -> None:
        assert base_s >= TICK, base_s
        self._base_s = base_s

    def next_attempt_at(
        self, *, created_at: float, now: float, attempts: int, rng: "Random"
    ) -> float:
        """Return the first slot after ``now`` that is not before slot ``attempts``."""
        assert attempts >= 0, attempts
        base_s = self._base_s
        # The last slot that has passed, or its neighbour if the division was rounded: two or three turns.
        age = now - created_at
        step = max(attempts, math.isqrt(int(age / base_s)) if age > 0 else 0)
        while (at := created_at + base_s * step * step) <= now:
            step += 1
        return at


class AgeClampedRetry:
    """Wait as long as the envelope is old, within bounds.

    Source: Postfix qmgr_active.c, qmgr_active_done_3_generic: delay = now - create_time, at least
    ``minimal_backoff_time``, at most ``maximal_backoff_time``. Postfix also looks only every
    ``queue_run_delay`` (300 s); we keep one timer and are on time, unless told to look as seldom.
    """

    __slots__ = ("_max_s", "_min_s", "_scan_s")

    def __init__(self, min_s: float, max_s: float, scan_s: float = 0.0) -> None:
        assert TICK <= min_s <= max_s, (min_s, max_s)
        self._min_s = min_s
        self._max_s = max_s
        self._scan_s = scan_s

    def next_attempt_at(
        self, *, created_at: float, now: float, attempts: int, rng: "Random"
    ) -> float:
        """Return ``now`` plus the age of the envelope, clamped, or the next look after that."""
        assert attempts >= 0, attempts
        at = now + min(max(now - created_at, self._min_s), self._max_s)
        return math.ceil(at / self._scan_s) * self._scan_s if self._scan_s else at


class ExponentialRetry:
    """Draw the wait uniformly below a bound that grows by a factor with each failure.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015: "full jitter",
    sleep = random_between(0, min(cap, base * 2 ** attempt)). The attempt counts from 0 there.
    """

    __slots__ = ("_base_s", "_factor", "_max_s", "_steps")

    def __init__(self, base_s: float, max_s: float, factor: float) -> None:
        assert min(base_s, max_s) >= TICK, (base_s, max_s)
        assert factor > 1, factor
        self._base_s = base_s
        self._max_s = max_s
        self._factor = factor
        # From this step on the bound is max_s; not computed then, as it would overflow a float.
        self._steps = math.log(max_s / base_s) / math.log(factor)

    def next_attempt_at(
        self, *, created_at: float, now: float, attempts: int, rng: "Random"
    ) -> float:
        """Return ``now`` plus the drawn wait, which is at least one `TICK`."""
        assert attempts >= 0, attempts
        step = max(attempts - 1, 0)
        bound = self._max_s
        if step < self._steps:
            bound = min(bound, self._base_s * self._factor**step)
        return now + max(rng.uniform(0.0, bound), TICK)


class JitteredRetry:
    """Full jitter over another policy: any instant between now and what that says is as likely."""

    __slots__ = ("_policy",)

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy

    def next_attempt_at(
        self, *, created_at: float, now: float, attempts: int, rng: "Random"
    ) -> float:
        """Return a drawn instant, at least one `TICK` after ``now``."""
        at = self._policy.next_attempt_at(
            created_at=created_at, now=now, attempts=attempts, rng=rng
        )
        return now + max(rng.uniform(0.0, at - now), TICK)


def make_retry(settings: RetrySettings) -> RetryPolicy:
    """Return the policy that the settings name."""
    if settings.policy == "exponential":
        return ExponentialRetry(settings.base_s, settings.max_s, settings.factor)
    policy: RetryPolicy
    if settings.policy == "age-clamped":
        policy = AgeClampedRetry(settings.min_s, settings.max_s, settings.scan_s)
    else:
        assert settings.policy == "quadratic", settings
        policy = QuadraticRetry(settings.base_s)
    return policy if settings.jitter == "none" else JitteredRetry(policy)


def overflow_policy(settings: RetrySettings) -> RetryPolicy:
    """Return the policy for an envelope that found its hold queue full.

    Always quadratic, from ``attempts=0``. Source: OpenSMTPD scheduler_ramqueue.c, scheduler_ram_batch,
    RQ_ENVELOPE_OVERFLOW: scheduler_next(ctime, BACKOFF_OVERFLOW, 0).
    """
    policy = QuadraticRetry(settings.overflow_base_s)
    return policy if settings.jitter == "none" else JitteredRetry(policy)


def local_policy(settings: RetrySettings) -> RetryPolicy:
    """Return the policy for a local delivery that failed.

    Always quadratic. Source: OpenSMTPD scheduler_ramqueue.c, scheduler_next(ctime, BACKOFF_DELIVERY, retry).
    """
    policy = QuadraticRetry(settings.mda_base_s)
    return policy if settings.jitter == "none" else JitteredRetry(policy)
