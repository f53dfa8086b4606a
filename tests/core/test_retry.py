"""When an envelope is tried again."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.envelopes.base import TICK
from mta.core.retry import (
    AgeClampedRetry,
    ExponentialRetry,
    JitteredRetry,
    QuadraticRetry,
    RetrySettings,
    make_retry,
    overflow_policy,
)

DAY = 86_400.0

instants = st.floats(min_value=0, max_value=4e9, allow_nan=False)
ages = st.floats(min_value=0, max_value=10 * DAY, allow_nan=False)
attempt_counts = st.integers(min_value=0, max_value=5000)
policies = st.sampled_from(["quadratic", "age-clamped", "exponential"])


def timetable(policy, lifetime=4 * DAY):
    """Return when an envelope that always fails at once is tried, in seconds after its creation."""
    times = [0.0]
    for attempts in range(1, 1000):
        times.append(
            policy.next_attempt_at(created_at=0.0, now=times[-1], attempts=attempts, rng=Random(1))
        )
    return [at for at in times if 0 < at < lifetime]


def test_quadratic_is_the_timetable_of_opensmtpd():
    """In four days a relayed envelope is tried 30 times, at 400 * n**2 seconds; the first is n = 0."""
    times = [0.0, *timetable(QuadraticRetry(400.0))]
    assert [0, 400, 1600, 3600, 6400, 10_000] == times[:6]
    assert (30, 336_400) == (len(times), times[-1])


def test_quadratic_skips_slots_that_have_passed():
    """After ten hours of a stopped server the next slot is the tenth, not the second."""
    at = QuadraticRetry(400.0).next_attempt_at(
        created_at=1000.0, now=1000.0 + 36_000.0, attempts=1, rng=Random(1)
    )
    assert 1000.0 + 400.0 * 10**2 == at


def test_a_slot_that_is_now_has_passed():
    """The slot must lie after now (scheduler_next goes on while t <= currtime)."""
    at = QuadraticRetry(400.0).next_attempt_at(created_at=0.0, now=400.0, attempts=1, rng=Random(1))
    assert at == 1600.0


def test_quadratic_never_goes_back_to_an_earlier_slot():
    """An envelope that failed five times in a minute waits for the fifth slot."""
    at = QuadraticRetry(400.0).next_attempt_at(created_at=0.0, now=60.0, attempts=5, rng=Random(1))
    assert at == 10_000.0


def test_an_envelope_from_the_future_waits_for_its_slot():
    """A creation after now, as after a clock was set back, is no reason to fail."""
    at = QuadraticRetry(400.0).next_attempt_at(created_at=50.0, now=0.0, attempts=0, rng=Random(1))
    assert at == 50.0


@given(created_at=instants, age=ages, attempts=attempt_counts, base_s=st.floats(TICK, 4000))
def test_quadratic_is_the_loop_of_opensmtpd(created_at, age, attempts, base_s):
    """The square root finds the very slot that raising n one by one finds."""
    now = created_at + age
    step = attempts
    while created_at + base_s * step * step <= now:
        step += 1
    at = QuadraticRetry(base_s).next_attempt_at(
        created_at=created_at, now=now, attempts=attempts, rng=Random(1)
    )
    assert created_at + base_s * step * step == at


@pytest.mark.parametrize(
    ("age", "wait"), [(0, 300), (299, 300), (300, 300), (1000, 1000), (4000, 4000), (9e5, 4000)]
)
def test_age_clamped_is_postfix(age, wait):
    """The wait is the age, at least 300 and at most 4000 seconds."""
    policy = AgeClampedRetry(300.0, 4000.0)
    at = policy.next_attempt_at(created_at=7.0, now=7.0 + age, attempts=9, rng=Random(1))
    assert 7.0 + age + wait == at


@pytest.mark.parametrize(
    ("now", "at"), [(1000.0, 1500.0), (1199.0, 1500.0), (1200.0, 1500.0), (1201.0, 1800.0)]
)
def test_who_looks_seldom_is_late(now: float, at: float):
    """Postfix looks every queue_run_delay only: what is due after 300 s is tried at the next multiple of 300 s."""
    policy = make_retry(RetrySettings(policy="age-clamped", min_s=300.0, scan_s=300.0))
    assert at == policy.next_attempt_at(created_at=1000.0, now=now, attempts=1, rng=Random(1))


def test_age_clamped_doubles_the_age():
    """From 300 s on each wait doubles the age, until it is 4000 s for good."""
    assert [300, 600, 1200, 2400, 4800, 8800, 12_800] == timetable(AgeClampedRetry(300.0, 4000.0))[
        :7
    ]


def test_exponential_draws_below_a_growing_bound():
    """Bounds are 10, 20, 40, 60, 60: base * 2**(n-1), at most max_s; half of that on average."""
    policy = ExponentialRetry(10.0, 60.0, 2.0)
    rng = Random(4)
    for attempts, bound in [(0, 10), (1, 10), (2, 20), (3, 40), (4, 60), (5, 60), (10**6, 60)]:
        waits = [
            policy.next_attempt_at(created_at=0.0, now=5.0, attempts=attempts, rng=rng) - 5.0
            for _ in range(2000)
        ]
        assert bound * 0.98 < max(waits) <= bound
        assert min(waits) < bound * 0.02
        assert bound * 0.45 < sum(waits) / len(waits) < bound * 0.55


def test_a_bound_below_the_base_holds_from_the_start():
    """max_s wins over base_s."""
    policy = ExponentialRetry(100.0, 5.0, 2.0)
    at = policy.next_attempt_at(created_at=0.0, now=0.0, attempts=1, rng=Random(1))
    assert TICK <= at <= 5.0


class LowestRandom(Random):
    """A die that always shows its lowest side."""

    def random(self):
        return 0.0


@pytest.mark.parametrize(
    "policy", [ExponentialRetry(10.0, 60.0, 2.0), JitteredRetry(QuadraticRetry(400.0))]
)
def test_the_shortest_wait_is_one_tick(policy):
    """A draw of nothing is still in the future of a store that counts in ticks."""
    at = policy.next_attempt_at(created_at=0.0, now=64.0, attempts=1, rng=LowestRandom())
    assert 64.0 + TICK == at


def test_full_jitter_spreads_over_the_whole_wait():
    """What failed together comes back anywhere between now and the slot."""
    policy = make_retry(RetrySettings(jitter="full"))
    rng = Random(2)
    times = [
        policy.next_attempt_at(created_at=0.0, now=0.0, attempts=1, rng=rng) for _ in range(2000)
    ]
    assert 392 < max(times) <= 400
    assert min(times) < 8


@pytest.mark.parametrize("policy", ["quadratic", "age-clamped"])
def test_without_jitter_no_die_is_cast(policy):
    """The random stream of a run does not move for a policy that needs none."""
    rng, untouched = Random(1), Random(1)
    make_retry(RetrySettings(policy=policy)).next_attempt_at(
        created_at=0.0, now=1.0, attempts=1, rng=rng
    )
    assert untouched.random() == rng.random()


def test_overflow_counts_from_creation_in_small_squares():
    """A full hold queue sends back for 3 * n**2 seconds, whatever the policy (BACKOFF_OVERFLOW)."""
    policy = overflow_policy(RetrySettings(policy="age-clamped"))
    asked = [
        policy.next_attempt_at(created_at=0.0, now=now, attempts=0, rng=Random(1))
        for now in (0.0, 3.0, 100.0)
    ]
    assert [3.0, 12.0, 108.0] == asked


def test_overflow_may_have_jitter():
    """`jitter = full` holds for both timetables."""
    policy = overflow_policy(RetrySettings(jitter="full", overflow_base_s=100.0))
    at = policy.next_attempt_at(created_at=0.0, now=0.0, attempts=0, rng=Random(1))
    assert 0.0 < at < 100.0


@given(
    policy=policies,
    jitter=st.sampled_from(["none", "full"]),
    created_at=instants,
    age=ages,
    attempts=attempt_counts,
    seed=st.integers(0, 2**32),
)
def test_the_next_attempt_lies_in_the_future_and_is_reproducible(
    policy, jitter, created_at, age, attempts, seed
):
    """Every policy answers after now, and the same with the same seed."""
    retry = make_retry(RetrySettings(policy=policy, jitter=jitter))
    now = created_at + age
    first, second = (
        retry.next_attempt_at(created_at=created_at, now=now, attempts=attempts, rng=Random(seed))
        for _ in range(2)
    )
    assert first > now
    assert first == second


def test_attempts_are_never_negative():
    """A negative count is our fault, not data."""
    for policy in (QuadraticRetry(1.0), AgeClampedRetry(1.0, 2.0), ExponentialRetry(1.0, 2.0, 2.0)):
        with pytest.raises(AssertionError):
            policy.next_attempt_at(created_at=0.0, now=0.0, attempts=-1, rng=Random(1))


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        (RetrySettings(), []),
        (RetrySettings(base_s=0.0), ["base_s"]),
        (RetrySettings(overflow_base_s=-1.0), ["overflow_base_s"]),
        (RetrySettings(min_s=float("nan")), ["min_s", "max_s"]),
        (RetrySettings(min_s=5000.0), ["max_s"]),
        (RetrySettings(max_s=0.0), ["max_s", "max_s"]),
        (RetrySettings(factor=1.0), ["factor"]),
        (RetrySettings(scan_s=-1.0), ["scan_s"]),
        (RetrySettings(scan_s=1e6), ["scan_s"]),
    ],
)
def test_settings_that_no_policy_can_work_with_are_problems(settings, keys):
    """Each impossible value is named."""
    assert keys == [key for key, _, _ in settings.problems()]
