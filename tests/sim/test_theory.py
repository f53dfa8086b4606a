"""Formulas of queueing theory: published values, special cases, and what they say of each other."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import theory

LOADS = st.floats(0.01, 50.0)
SERVERS = st.integers(1, 60)


class TestErlang:
    @pytest.mark.parametrize(
        ("servers", "load", "blocked"),
        [(1, 1.0, 0.5), (2, 1.0, 0.2), (5, 4.0, 0.19907), (20, 20.0, 0.15889), (50, 60.0, 0.21612)],
    )
    def test_published_losses(self, servers: int, load: float, blocked: float):
        """Values of Erlang's table."""
        assert theory.erlang_b(servers, load) == pytest.approx(blocked, abs=1e-5)

    @pytest.mark.parametrize(
        ("servers", "load", "waits", "queue"),
        [(4, 3.0, 0.50943, 1.5283), (20, 16.0, 0.25608, 1.0243), (100, 95.0, 0.50646, 9.6227)],
    )
    def test_published_delays(self, servers: int, load: float, waits: float, queue: float):
        """Values of Erlang's second formula, and the queue that goes with each."""
        found = theory.mmc(servers, load, 1.0)
        assert found.waits == pytest.approx(waits, abs=1e-5)
        assert found.queue == pytest.approx(queue, rel=1e-4)

    @given(SERVERS, LOADS)
    def test_losses_are_those_of_the_sum(self, servers: int, load: float):
        """The recursion gives what Erlang's own fraction does."""
        terms = [k * math.log(load) - math.lgamma(k + 1) for k in range(servers + 1)]
        top = max(terms)
        fraction = math.exp(terms[-1] - top) / math.fsum(math.exp(term - top) for term in terms)
        assert theory.erlang_b(servers, load) == pytest.approx(fraction, rel=1e-9)

    @given(SERVERS, LOADS)
    def test_more_servers_lose_less(self, servers: int, load: float):
        """A share, and falling."""
        assert 0 <= theory.erlang_b(servers + 1, load) < theory.erlang_b(servers, load) <= 1

    @given(st.floats(0.01, 0.99))
    def test_one_server_is_mm1(self, load: float):
        """M/M/1: the share of those who wait is the load, the number in the system a / (1 - a)."""
        found = theory.mmc(1, load, 1.0)
        assert found.waits == pytest.approx(load)
        assert theory.little(load, found.sojourn_s) == pytest.approx(load / (1 - load))


class TestOneServer:
    @given(st.floats(0.01, 0.95), st.floats(0.001, 100.0))
    def test_exponential_service(self, load: float, mean_s: float):
        """Pollaczek and Khinchine agree with Erlang where both apply; constant service waits half of that."""
        rate = load / mean_s
        wait_s = theory.mmc(1, rate, mean_s).wait_s
        assert theory.pollaczek_khinchine(rate, mean_s, mean_s**2) == pytest.approx(wait_s)
        assert theory.pollaczek_khinchine(rate, mean_s, 0.0) == pytest.approx(wait_s / 2)

    def test_a_second_turn_without_load_costs_nothing(self):
        """Nobody is before it."""
        assert theory.second_turn(1e-9, 0.5, 0.1) == pytest.approx(0.5)

    @given(st.floats(0.01, 0.9), st.floats(0.001, 10.0))
    def test_times_scale(self, load: float, k: float):
        """All times k times as long give waits k times as long."""
        once = theory.second_turn(load, 1.0, 0.5)
        assert theory.second_turn(load / k, k, 0.5 * k * k) == pytest.approx(k * once)


class TestPoisson:
    def test_values(self):
        """P(N <= 2) of mean 1 is 2.5 / e."""
        assert theory.poisson_cdf(1.0, 2) == pytest.approx(2.5 / math.e)

    @given(st.floats(0.01, 100.0))
    def test_it_is_a_law(self, mean: float):
        """Rises to 1."""
        values = [theory.poisson_cdf(mean, k) for k in range(300)]
        assert values == sorted(values)
        assert values[-1] == pytest.approx(1.0)


class TestGroupCommit:
    @given(st.floats(0.001, 1000.0), st.floats(0.001, 1.0))
    def test_between_its_bounds(self, rate: float, commit_s: float):
        """Who waits for one commit at least waits for one and a half at most, on average."""
        found = theory.group_commit(rate, commit_s)
        assert commit_s * (1 - 1e-9) <= found.sojourn_s <= 1.5 * commit_s * (1 + 1e-9)
        assert found.batch >= max(1.0, rate * commit_s) * (1 - 1e-9)

    def test_ends(self):
        """Rare messages are alone; many wait half of the commit that runs."""
        rare, many = theory.group_commit(1e-6, 0.5), theory.group_commit(1e4, 0.5)
        assert rare == pytest.approx((1.0, 0.5), rel=1e-5)
        assert many == pytest.approx((5000.0, 0.75), rel=1e-5)


class TestUsers:
    @given(st.integers(1, 20), st.floats(0.01, 10.0), st.floats(0.01, 2.0))
    def test_takacs_with_exponential_service_is_mva(
        self, users: int, think_s: float, service_s: float
    ):
        """Two ways to the machine repairman."""
        found = theory.takacs(users, think_s, service_s, lambda s: 1 / (1 + s * service_s))
        expected = theory.mean_value_analysis(users, think_s, [service_s])
        assert found == pytest.approx(expected, rel=1e-6)

    @given(st.integers(1, 20), st.floats(0.01, 10.0), st.floats(0.01, 2.0))
    def test_no_more_than_the_bound(self, users: int, think_s: float, service_s: float):
        """Constant service is faster than exponential, and both stay below the asymptotes."""
        constant = theory.takacs(users, think_s, service_s, lambda s: math.exp(-s * service_s))
        bound = theory.throughput_bound(users, think_s, [service_s])
        exponential = theory.mean_value_analysis(users, think_s, [service_s])
        assert exponential <= constant * (1 + 1e-9)
        assert constant <= bound * (1 + 1e-9)

    def test_one_user_waits_for_nobody(self):
        """N = 1: it thinks and is served, in turn."""
        found = theory.takacs(1, 2.0, 0.5, lambda s: math.exp(-s * 0.5))
        assert found == pytest.approx(1 / 2.5)
        assert theory.mean_value_analysis(1, 2.0, [0.25, 0.25]) == pytest.approx(1 / 2.5)
        assert theory.throughput_bound(1, 2.0, [0.25, 0.25]) == pytest.approx(1 / 2.5)


class TestTries:
    @given(st.floats(0.0, 0.95), st.integers(1, 30))
    def test_mean_is_that_of_the_sum(self, refused: float, most: int):
        """Try n is made if the n - 1 before it were refused."""
        expected = math.fsum(refused**n for n in range(most))
        assert theory.mean_tries(refused, most) == pytest.approx(expected)
        assert theory.given_up(refused, most) == pytest.approx(refused**most)

    def test_published(self):
        """p = 0.3, five tries."""
        assert theory.mean_tries(0.3, 5) == pytest.approx(1.4251)
        assert theory.given_up(0.3, 5) == pytest.approx(0.00243)


def test_a_backlog_drains_by_what_is_left_of_the_capacity():
    """2,000 at 200 less 100 a second."""
    assert theory.drain_s(2000, 100.0, 20, 0.1) == pytest.approx(20.0)
