"""Laws of chance: what they say about themselves is what they do."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.distributions import (
    BLOCK,
    FREEBSD_NET_SIZES,
    Blocks,
    BoundedPareto,
    Choice,
    Distribution,
    Exponential,
    Fixed,
    Histogram,
    LogNormal,
    Zipf,
    random_stream,
    stream,
)

LAWS: dict[str, Callable[[], Distribution]] = {
    "fixed": lambda: Fixed(7.5),
    "exponential": lambda: Exponential(0.25),
    "lognormal": lambda: LogNormal(4096.0, 0.7),
    "bounded-pareto": lambda: BoundedPareto(0.6, 2048.0, 65536.0),
    "bounded-pareto-1": lambda: BoundedPareto(1.0, 1.0, 100.0),
    "bounded-pareto-2": lambda: BoundedPareto(2.0, 1.0, 100.0),
    "histogram": lambda: Histogram((1.0, 2.0, 4.0, 32.0), (0.2, 0.5, 0.99)),
    "zipf": lambda: Zipf(2.6, 100),
    "uniform-zipf": lambda: Zipf(0.0, 6),
    "choice": lambda: Choice((1.0, 0.0, 3.0)),
}


@pytest.mark.parametrize("name", LAWS)
def test_moments_are_those_of_the_sample(name):
    """Mean and variance in closed form lie within four standard errors of 200,000 draws."""
    law = LAWS[name]()
    sample = law.draw(stream(1, name), 200_000)
    n = len(sample)
    assert abs(sample.mean() - law.mean) <= 4 * math.sqrt(law.variance / n) + 1e-12
    squares = (sample - law.mean) ** 2
    assert abs(squares.mean() - law.variance) <= 4 * squares.std() / math.sqrt(n) + 1e-9


@pytest.mark.parametrize("name", LAWS)
@given(short=st.integers(0, 50), more=st.integers(0, 50))
def test_a_shorter_draw_is_the_beginning_of_a_longer_one(name, short, more):
    """More messages never change the first ones."""
    law = LAWS[name]()
    few = law.draw(stream(3, name), short)
    many = law.draw(stream(3, name), short + more)
    assert few.tolist() == many[:short].tolist()


def test_streams_are_named():
    """Another name, replication or seed gives other values; the same three the same."""
    first = stream(5, "sizes").random(4).tolist()
    assert first == stream(5, "sizes").random(4).tolist()
    others = (stream(5, "arrivals"), stream(5, "sizes", 1), stream(6, "sizes"))
    assert all(first != other.random(4).tolist() for other in others)


def test_a_stream_is_the_same_on_every_machine():
    """Golden values: a change here changes every published result."""
    assert stream(1, "sizes").integers(0, 1000, 5).tolist() == GOLDEN
    assert random_stream(1, "mx").randrange(10**6) == GOLDEN_RANDOM


GOLDEN = [733, 473, 409, 509, 552]
GOLDEN_RANDOM = 582233


def test_random_streams_are_named_too():
    """`random_stream` keeps the promise of `stream`."""
    assert random_stream(2, "a").random() == random_stream(2, "a").random()
    assert random_stream(2, "a").random() != random_stream(2, "b").random()
    assert random_stream(2, "a").random() != random_stream(2, "a", 1).random()


@given(st.floats(0.0, 4.0), st.integers(1, 300))
def test_zipf_stays_in_its_range(s, top):
    """Every draw is a whole number from 1 to the top, the very last uniform value included."""
    law = Zipf(s, top)
    assert law.ranks_at(np.array([0.0, np.nextafter(1.0, 0.0)])).tolist() == [1, top]
    drawn = law.draw(stream(1, "zipf"), 200)
    assert ((drawn >= 1) & (drawn <= top) & (drawn == np.rint(drawn))).all()


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8).filter(lambda w: sum(w) > 0))
def test_choice_never_draws_what_has_no_weight(weights):
    """Rounding cannot wake a destination whose share is 0."""
    drawn = set(Choice(tuple(weights)).draw(stream(1, "choice"), 500).astype(int).tolist())
    assert all(weights[index] > 0 for index in drawn)


@given(st.floats(0.1, 5.0), st.floats(0.5, 1e4), st.floats(1.01, 1e4))
def test_bounded_pareto_keeps_its_bounds(alpha, low, ratio):
    """No draw is outside the two bounds, and the mean is inside too."""
    law = BoundedPareto(alpha, low, low * ratio)
    drawn = law.draw(stream(1, "pareto"), 200)
    assert ((drawn >= low * (1 - 1e-12)) & (drawn <= low * ratio)).all()
    assert low * (1 - 1e-6) <= law.mean <= low * ratio * (1 + 1e-6)


def test_sizes_of_freebsd_net_are_as_published():
    """Median 4.2 KiB and mean 53 kB; half of the messages are below 4 KiB."""
    drawn = FREEBSD_NET_SIZES.draw(stream(1, "sizes"), 200_000)
    assert float(np.median(drawn)) == pytest.approx(4.2 * 1024, rel=0.03)
    assert FREEBSD_NET_SIZES.mean == pytest.approx(53_000, rel=0.03)
    assert float((drawn < 4096).mean()) == pytest.approx(0.4917, abs=0.005)


def test_recipients_of_zipf_are_those_of_the_measurement():
    """Exponent 2.6 up to 100 has the mean 1.66 that was measured."""
    assert Zipf(2.6, 100).mean == pytest.approx(1.66, abs=0.02)


def test_lognormal_from_a_quantile():
    """77 % of the remote sessions took at most a second, half of them 0.35 s."""
    law = LogNormal.from_quantile(0.35, 0.77, 1.0)
    assert law.sigma == pytest.approx(1.42, abs=0.01)
    assert NormalDist().cdf(math.log(1.0 / 0.35) / law.sigma) == pytest.approx(0.77)


def test_blocks_give_the_values_of_one_long_draw():
    """Drawing one by one across blocks is drawing all at once."""
    blocks = Blocks(Exponential(2.0), stream(4, "blocks"))
    one_by_one = [blocks() for _ in range(2 * BLOCK + 3)]
    whole = np.concatenate([Exponential(2.0).draw(stream(4, "blocks"), 3 * BLOCK)])
    assert one_by_one == whole[: 2 * BLOCK + 3].tolist()
