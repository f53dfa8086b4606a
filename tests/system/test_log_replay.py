"""A real Postfix's log of 100,000 messages, replayed."""

from pathlib import Path

import pytest

from sim.logs.replay import Replay

LOG = Path(__file__).parents[2] / "notebooks" / "data" / "maillog" / "postfix-100k.log.bz2"

pytestmark = pytest.mark.system


def test_the_model_of_then_is_the_log():
    """Every count, though every retry is the model's own; the drain and the queue's length within the gates of a run in the sample.

    notebooks/data/maillog/scenario.toml says what there was: an outage of 55 s, greylisting, refusals.
    """
    replayed = Replay([str(LOG)])
    assert replayed.mail.record.messages > 100_000
    found = replayed.compare()
    assert found["agreement"]["counts_differ"] == {}
    assert found["then"]["deferred"] > 8000
    assert abs(found["agreement"]["drain_time"]) < 0.1
    assert found["agreement"]["queue_area"] < 0.15
    assert found["agreement"]["latency_ks"] < 0.1
    flaky = next(site for site in found["sites"] if site["name"] == "flaky.test")
    (outage,) = flaky["outages"]
    assert 54 < outage["to_s"] - outage["from_s"] < 56
