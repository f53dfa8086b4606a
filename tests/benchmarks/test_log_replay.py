"""How fast a mail log is replayed."""

import time
from pathlib import Path

import pytest

from sim.logs.replay import Replay

LOG = Path(__file__).parents[2] / "notebooks" / "data" / "maillog" / "postfix-100k.log.bz2"

pytestmark = pytest.mark.benchmark


def test_a_hundred_thousand_messages_are_replayed_in_ten_seconds():
    """Read, built and run; seconds of this process, because the machine may have others. The answer is right first."""
    began = time.process_time()
    replayed = Replay([str(LOG)])
    read_s = time.process_time() - began
    found = replayed.compare()
    took_s = time.process_time() - began
    assert found["agreement"]["counts_differ"] == {}
    print(
        f"{replayed.mail.record.messages:,} messages: read in {read_s:.1f} s, in all {took_s:.1f} s"
    )
    assert took_s < 10
