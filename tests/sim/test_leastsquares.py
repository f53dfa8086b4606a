"""Known coefficients are found in synthetic data, within the errors that are printed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.costs import Costs
from sim.cpufit import REGRESSED, Windows, fit
from sim.leastsquares import near_prior, nonnegative, widening
from sim.memory import fit as fit_memory
from sim.memory import fit_together, warmth

TRUTH = {
    "idle_share": 0.012,
    "message_s": 500e-6,
    "byte_s": 5e-9,
    "recipient_s": 90e-6,
    "transaction_s": 300e-6,
    "delivery_s": 80e-6,
}
"""Of a machine that is slower than the one of the defaults."""


def windows(seed: int, count: int = 60) -> Windows:
    """What a run did that varied everything, and what it took; /proc counts in hundredths of a second."""
    draw = np.random.default_rng(seed)
    messages = draw.poisson(150, count)
    done = np.zeros((count, len(REGRESSED)))
    done[:, 0] = 1.0
    done[:, 1] = messages
    done[:, 2] = messages * draw.lognormal(9, 1, count)
    done[:, 3] = messages * draw.integers(1, 12, count)
    done[:, 4] = draw.poisson(150, count)
    done[:, 5] = done[:, 4] * draw.integers(1, 12, count)
    costs = np.array([TRUTH.get(name, 0.0) for name in REGRESSED])
    return Windows(done, np.maximum(done @ costs + draw.normal(0, 0.004, count), 0.0))


class TestCpu:
    @pytest.mark.parametrize("seed", range(5))
    def test_costs_are_within_three_printed_errors(self, seed: int):
        """Each that the runs did, over two runs."""
        costs, errors, explained = fit(Costs(), [windows(seed), windows(seed + 100)], [])
        assert explained > 0.95
        assert set(errors) == set(TRUTH)
        for name, truth in TRUTH.items():
            assert abs(getattr(costs, name) - truth) < 3 * errors[name], name
        assert errors["recipient_s"] < 0.1 * TRUTH["recipient_s"]

    def test_more_runs_are_better_known(self):
        """Four times the windows halve the errors, about."""
        _, one, _ = fit(Costs(), [windows(1)], [])
        _, four, _ = fit(Costs(), [windows(seed) for seed in range(1, 5)], [])
        assert all(four[name] < one[name] for name in ("message_s", "recipient_s", "delivery_s"))

    def test_what_moves_in_step_keeps_its_ratio(self):
        """Two costs that are always paid together can only be told by the prior."""
        table = np.column_stack((np.arange(1.0, 30), np.arange(1.0, 30)))
        found = near_prior(table, table.sum(axis=1) * 2.0, np.array([3.0, 1.0]), 0.5)
        assert found.values == pytest.approx([3.0, 1.0], rel=1e-6)


class TestMemory:
    def run(
        self, seed: int, *, base: float, envelope: float, flight: float
    ) -> dict[str, np.ndarray]:
        """A queue that is filled and does not drain, with samples that hang together in time."""
        draw = np.random.default_rng(seed)
        accepted = np.arange(0.0, 6000, 40)
        queued = accepted * 5
        in_flight = 200.0 * draw.integers(1, 20, len(accepted))
        in_flight = np.maximum.accumulate(in_flight)
        warm = np.array([warmth(int(each)) for each in accepted])
        noise = np.zeros(len(accepted))
        for i in range(1, len(noise)):
            noise[i] = 0.7 * noise[i - 1] + draw.normal(0, 60e3)
        rss = base + envelope * queued + 2e6 * warm + flight * in_flight + noise
        return {
            "rss_bytes": rss,
            "scheduler.envelope": queued,
            "scheduler.envelope.inflight": in_flight,
            "smtp.message": accepted,
        }

    @pytest.mark.parametrize("seed", range(5))
    def test_bytes_by_state_are_within_three_printed_errors(self, seed: int):
        """Over two runs: of an envelope, and of one in flight beside."""
        found = fit_memory(
            *(self.run(seed + i, base=50e6, envelope=700.0, flight=3000.0) for i in (0, 50))
        )
        assert found is not None
        assert abs(found.envelope_bytes - 700) < 3 * found.envelope_stderr
        assert abs(found.in_flight_bytes - 3000) < 3 * found.in_flight_stderr
        assert abs(found.base_bytes - 50e6) < 3 * found.base_stderr
        assert found.envelope_stderr < 100

    @pytest.mark.parametrize("seed", range(3))
    def test_what_two_representations_differ_by_is_within_its_error(self, seed: int):
        """The processes begin a little apart, by chance; one base for both keeps that out of the envelopes."""
        found = fit_together(
            {
                "full": [self.run(seed, base=50.2e6, envelope=800.0, flight=0.0)],
                "slim": [self.run(seed + 9, base=50e6, envelope=500.0, flight=0.0)],
            }
        )
        full, slim = found["full"], found["slim"]
        assert full.base_bytes == slim.base_bytes
        assert full.warm_bytes == slim.warm_bytes
        error = full.envelope_stderr + slim.envelope_stderr
        assert abs(full.envelope_bytes - slim.envelope_bytes - 300) < 3 * error
        assert full.samples == slim.samples

    def test_what_is_not_there_is_not_found(self):
        """A state that costs nothing gets nothing, not whatever explains the noise."""
        found = fit_memory(self.run(3, base=50e6, envelope=700.0, flight=0.0))
        assert found is not None
        assert found.in_flight_bytes < 700
        assert fit_memory({}) is None

    @given(st.integers(0, 10_000))
    def test_no_coefficient_is_negative_and_none_could_be_better(self, seed: int):
        """The conditions of Karush, Kuhn and Tucker: no free direction lowers the sum of squares."""
        draw = np.random.default_rng(seed)
        table = draw.normal(size=(30, 4))
        target = table @ draw.normal(size=4) + draw.normal(0, 0.1, 30)
        found = nonnegative(table, target).values
        gradient = table.T @ (target - table @ found)
        assert (found >= 0).all()
        assert gradient[found > 0] == pytest.approx(0, abs=1e-6)
        assert (gradient[found == 0] <= 1e-6).all()

    def test_columns_of_zeros_and_perfect_fits_have_no_error(self):
        """Nothing is divided by zero."""
        table = np.column_stack((np.ones(5), np.zeros(5)))
        found = nonnegative(table, np.full(5, 7.0))
        assert found.values == pytest.approx([7.0, 0.0])
        assert found.stderr == pytest.approx([0.0, 0.0], abs=1e-12)
        assert nonnegative(table, np.full(5, -7.0)).values == pytest.approx([0.0, 0.0])
        assert widening(np.zeros(9)) == 1.0
