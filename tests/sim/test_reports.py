"""Reports of delay in the model: mail that waits longer than the operator says costs one more message."""

import pytest

from tests.support.model import model, scenario

DARK = {"kind": "outage", "from_s": 0.0, "to_s": 100.0}


@pytest.mark.parametrize(("intervals", "warnings"), [([], 0), ([20.0], 1), ([20.0, 50.0], 2)])
def test_what_waits_is_reported_and_delivered(intervals, warnings):
    """A report for each message and interval; nothing failed, nothing is left."""
    server = {"retry": {"base_s": 1.0}, "bounce": {"warn_interval_s": intervals}}
    of = scenario(DARK, messages=5, server=server)
    of.drain_s = 1e6
    it = model(of, backend="heapq")
    it.run()
    it.engine.validate()
    counts = it.result().counts
    assert counts["bounced"] == 5 * warnings
    assert counts["delivered"] == 5
    assert counts["failed"] == counts["queued"] == 0
    assert it.driver.delivered_bounces == 5 * warnings
