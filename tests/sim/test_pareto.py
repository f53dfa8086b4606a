"""The front and the recommended point: for whatever amounts, and by hand."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.pareto import SAME, Amounts, front, knee

AMOUNTS = st.lists(
    st.builds(Amounts, st.integers(1, 12).map(float), st.integers(1, 12).map(float)), max_size=30
)


@given(AMOUNTS)
def test_nothing_dominates_the_front_and_it_dominates_the_rest(points: list[Amounts]):
    """Along it memory rises and latency falls; what is not on it is dominated by, or equal to, something on it."""
    found = front(points)
    assert bool(found) == bool(points)
    for a, b in pairwise(found):
        assert points[a].memory < points[b].memory
        assert points[a].latency > points[b].latency
    for number, point in enumerate(points):
        if number in found:
            assert not any(other.dominates(point) for other in points)
        else:
            assert any(points[n].dominates(point) or points[n] == point for n in found)


@given(AMOUNTS, st.sampled_from([0.0, 0.1, 0.5, 2.0]))
def test_the_recommended_point_is_what_the_rule_says(points: list[Amounts], within: float):
    """Quick enough, and nothing that is quick enough has clearly less memory, or the same and is quicker."""
    chosen = knee(points, within)
    if not points:
        assert chosen is None
        return
    assert chosen is not None
    best = min(each.latency for each in points)
    quick = [each for each in points if each.latency <= best * (1 + within)]
    assert points[chosen] in quick
    least = min(each.memory for each in quick)
    assert points[chosen].memory <= least * (1 + SAME)
    if points[chosen].memory == least:
        assert points[chosen] == min(each for each in quick if each.memory == least)


@pytest.mark.parametrize(
    ("within", "now", "chosen"),
    [
        (0.10, None, 1),  # 105 ms for half of the memory
        (0.00, None, 2),  # the quickest, whatever it takes
        (1.00, None, 0),  # twice as long is fine: the least memory
        (0.10, 3, 3),  # 0.5 % more memory than the best answer is no reason to change anything
        (0.10, 2, 1),  # what is set now takes twice the memory
        (1.00, 3, 0),
    ],
)
def test_by_hand(within: float, now: int | None, chosen: int):
    """What is set now is kept if memory is the same."""
    points = [Amounts(10, 0.2), Amounts(50, 0.105), Amounts(100, 0.1), Amounts(50.2, 0.108)]
    assert knee(points, within, now=now) == chosen
    assert front(points) == [0, 1, 2]


def test_of_equal_points_the_first():
    """Nothing is changed for nothing."""
    points = [Amounts(2, 2), Amounts(1, 1), Amounts(1, 1)]
    assert front(points) == [1]
    assert knee(points) == 1


def test_a_limit_is_no_higher_than_it_needs_to_be():
    """Of points whose memory is the same, all quick enough, the one with the lowest limits; then the leaner one."""
    points = [Amounts(100.2, 0.109), Amounts(100, 0.1), Amounts(100.1, 0.109), Amounts(10, 9)]
    assert knee(points, heights=[1, 2, 1, 0]) == 2
    assert knee(points, heights=[1, 0, 1, 0]) == 1
    assert knee(points) == 1
