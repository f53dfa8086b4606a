"""Axes that all figures share."""

import pytest

from sim.figures import from_zero, make_panels


@pytest.mark.parametrize("values", [[18.0, 18.002], [2.0, 18.0], [5.0, 5.0]])
def test_an_axis_from_zero_has_room_above_the_highest_value(values: list[float]):
    """Values that are nearly the same are not drawn on the frame."""
    _, (axes,) = make_panels(1)
    axes.plot([0.0, 1.0], values)
    from_zero(axes)
    assert axes.get_ylim() == pytest.approx((0, max(values) * 1.08))


def test_an_axis_from_zero_without_values():
    """An empty panel keeps an axis that can be drawn."""
    _, (axes,) = make_panels(1)
    from_zero(axes)
    low, high = axes.get_ylim()
    assert low == 0 < high
