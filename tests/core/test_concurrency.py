"""How the window of a destination moves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.core.concurrency import ConcurrencySettings, make_concurrency
from mta.core.feedback import FeedbackConcurrency


def feedback(**changes):
    """Return a new feedback window."""
    return FeedbackConcurrency(ConcurrencySettings(**changes))


def after(policy, deliveries, busy=100):
    """Return the windows after each of some deliveries: + is a success, - a failure."""
    windows = []
    for delivery in deliveries:
        (policy.succeeded if delivery == "+" else policy.failed)(busy=busy)
        windows.append(policy.window)
    return windows


class Postfix:
    """qmgr_queue.c, told again statement by statement, loops and all: what ours is compared with."""

    def __init__(self, settings):
        self.settings = settings
        self.window = settings.initial
        self.success = self.failure = self.fail_cohorts = 0.0

    def feedback(self, name):
        return {
            "1": 1.0,
            "1/concurrency": 1 / self.window,
            "1/sqrt_concurrency": self.window**-0.5,
        }[name]

    def unthrottle(self, busy):
        self.fail_cohorts = 0.0
        if self.window == 0:
            self.window = busy if busy > 0 else self.settings.initial
            self.success = self.failure = 0.0
            return
        limit = self.settings.limit
        if limit > self.window and self.window < busy + self.settings.initial:
            value = self.feedback(self.settings.positive_feedback)
            self.success += value
            while self.success + value / 2 >= 1:
                self.window += 1
                self.success -= 1
                self.failure = 0.0
            self.window = min(self.window, limit)

    def throttle(self):
        self.fail_cohorts += 1.0 / self.window
        limit = self.settings.cohort_limit
        if limit > 0 and self.fail_cohorts >= limit:
            self.window = 0
        if self.window > 0:
            value = self.feedback(self.settings.negative_feedback)
            self.failure -= value
            while self.failure - value / 2 < 0:
                self.window -= 1
                self.success = 0.0
                self.failure += 1
            self.window = max(self.window, 1)


names = st.sampled_from(["1", "1/concurrency", "1/sqrt_concurrency"])


@given(
    initial=st.integers(1, 10),
    above=st.integers(0, 30),
    positive=names,
    negative=names,
    cohort_limit=st.sampled_from([0.0, 0.5, 1.0, 1.5, 10.0]),
    # Why weighted? A fair coin keeps the window at the bottom and never sees the top.
    deliveries=st.lists(st.tuples(st.sampled_from("+++-r"), st.integers(0, 30)), max_size=200),
)
def test_feedback_is_postfix_number_for_number(
    initial, above, positive, negative, cohort_limit, deliveries
):
    """The same deliveries move our window and Postfix's alike; it is within bounds at every step."""
    settings = ConcurrencySettings(
        initial=initial,
        limit=initial + above,
        positive_feedback=positive,
        negative_feedback=negative,
        cohort_limit=cohort_limit,
    )
    ours, theirs = make_concurrency(settings), Postfix(settings)
    for delivery, busy in deliveries:
        busy = min(busy, settings.limit)
        if delivery == "+":
            ours.succeeded(busy=busy)
            theirs.unthrottle(busy)
        elif theirs.window == 0:
            # Postfix asks QMGR_QUEUE_READY before it throttles, and revives by a timer.
            if delivery == "-":
                ours.failed(busy=busy)
            else:
                ours.revive(busy=busy)
                theirs.unthrottle(busy)
        elif delivery == "-":
            ours.failed(busy=busy)
            theirs.throttle()
        else:
            ours.revive(busy=busy)
        assert theirs.window == ours.window
        assert 0 <= ours.window <= settings.limit
        assert ours.dead == (ours.window == 0)


def test_a_new_destination_gets_five_connections_and_at_most_twenty():
    """Defaults of Postfix: initial 5, limit 20, one more for each success."""
    policy = make_concurrency(ConcurrencySettings())
    assert policy.window == 5
    assert [6, 7, 8, 9, 10] == after(policy, "+" * 5)
    assert after(policy, "+" * 30)[-1] == 20


def test_a_window_that_is_not_used_does_not_grow():
    """With two connections busy the window stays at 2 + 5."""
    assert [6, 7, 7, 7] == after(feedback(), "++++", busy=2)


def test_growth_by_one_in_concurrency_takes_a_cohort():
    """With feedback 1/concurrency five successes open a sixth connection, six more a seventh."""
    policy = feedback(positive_feedback="1/concurrency")
    windows = after(policy, "+" * 12)
    assert [5, 5, 5, 5, 6] == windows[:5]
    assert 10 == windows.index(7)


def test_growth_by_the_square_root_is_in_between():
    """Feedback 1/sqrt_concurrency: three successes at nine connections."""
    policy = feedback(initial=9, positive_feedback="1/sqrt_concurrency")
    assert [9, 9, 10] == after(policy, "+++")


def test_one_failed_cohort_kills_a_destination():
    """At a window of 1 the first failure is a cohort: it counts one over the window."""
    policy = feedback(initial=1)
    assert [0] == after(policy, "-")
    assert policy.dead


def test_failures_count_in_cohorts_of_the_shrinking_window():
    """1/5 + 1/3 + 1/2 reaches 1 with the third failure: the first takes two connections."""
    assert [3, 2, 0] == after(feedback(), "---")


def test_reaching_the_limit_of_cohorts_is_enough():
    """The code compares with >=, the README with >: two failures at a window of 2 make exactly 1."""
    policy = feedback(initial=2, negative_feedback="1/concurrency", cohort_limit=1.5)
    assert [1, 0] == after(policy, "--")


def test_a_success_forgets_failed_cohorts():
    """Failures that are not in a row don't kill."""
    policy = feedback(negative_feedback="1/concurrency")
    after(policy, "-+" * 100)
    assert not policy.dead


def test_cohort_limit_zero_never_kills():
    """0 turns the detection off, as in Postfix; the window stays at 1."""
    policy = feedback(cohort_limit=0.0)
    assert 1 == after(policy, "-" * 100)[-1]


def test_failures_of_a_dead_destination_change_nothing():
    """The other connections of the cohort fail a little later."""
    policy = feedback(initial=1)
    assert [0, 0, 0] == after(policy, "---")


def test_revival_starts_from_the_initial_window():
    """After its rest a destination is as new."""
    policy = feedback(initial=3)
    after(policy, "---")
    policy.revive()
    assert not policy.dead
    assert 3 == policy.window
    assert [4] == after(policy, "+")


def test_a_late_success_revives_with_what_is_in_use():
    """A delivery under way that comes through proves that so many connections work."""
    policy = feedback()
    after(policy, "---")
    policy.succeeded(busy=2)
    assert 2 == policy.window


def test_revival_of_the_living_changes_nothing():
    """A timer that comes late does no harm."""
    policy = feedback()
    after(policy, "+")
    policy.revive()
    assert 6 == policy.window


def test_a_limit_below_the_initial_window_wins():
    """Start and revival stay within the limit."""
    policy = feedback(initial=5, limit=2)
    assert 2 == policy.window
    after(policy, "--")
    assert policy.dead
    policy.revive(busy=4)
    assert 2 == policy.window


def test_a_fixed_window_never_moves():
    """For a smart host: all connections always, never dead."""
    policy = make_concurrency(ConcurrencySettings(policy="fixed", limit=7))
    assert [7, 7, 7, 7] == after(policy, "+---")
    policy.revive()
    assert 7 == policy.window
    assert not policy.dead


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        (ConcurrencySettings(), []),
        (ConcurrencySettings(initial=0), ["initial"]),
        (ConcurrencySettings(limit=0), ["limit"]),
        (ConcurrencySettings(cohort_limit=float("nan")), ["cohort_limit"]),
    ],
)
def test_settings_that_no_policy_can_work_with_are_problems(settings, keys):
    """Each impossible value is named."""
    assert keys == [key for key, _, _ in settings.problems()]
