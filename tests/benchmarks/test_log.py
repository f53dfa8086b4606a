"""What it costs to say and to record what happens: it must not be felt, and not bend what is measured."""

import asyncio
import timeit

import pytest

from mta.core import stimuli
from mta.core.envelopes.base import Recipient, Transaction
from mta.core.ids import MsgId, SessionId, evpid
from mta.core.records import header
from mta.core.reply import Outcome
from mta.effects import Effects
from mta.log import Log
from mta.trace import StimulusTrace

pytestmark = pytest.mark.benchmark

LINE = "0000000000000001 smtp envelope evpid=0000002a00000001 from=<alice@a.test> to=<bob@b.test>"


def test_a_line_of_the_log(tmp_path):
    """Less than 3 microseconds: there are two or three lines per envelope."""
    maillog = Log(Effects(), tmp_path / "log", host="mx", pid=42)

    async def lines(count):
        started = timeit.default_timer()
        for _ in range(count):
            maillog.info(LINE)
        maillog.flush()
        return (timeit.default_timer() - started) / count

    try:
        best = min(asyncio.run(lines(5000)) for _ in range(5))
    finally:
        maillog.close()
    assert maillog.lost == 0
    assert len((tmp_path / "log").read_bytes().splitlines()) == 25_000
    print(f"\nlog: {best * 1e6:.2f} us per line")
    assert best < 3e-6


def test_a_stimulus_of_the_trace(tmp_path):
    """Less than 8 microseconds, for the two stimuli that every message has."""
    header_line = header(
        clock="epoch",
        started_at=1.0,
        seed=1,
        representation="slim",
        limits={},
        config={},
        versions={},
        host={},
    )
    submitted = stimuli.MessageSubmitted(
        MsgId(7), Transaction("a@a.test", 4096), (Recipient("b@b.test", "b.test"),)
    )
    done = stimuli.TransactionDone(
        SessionId(3), (stimuli.Result(evpid(MsgId(7), 1), Outcome.OK, "250 2.0.0 Ok"),), True
    )
    trace = StimulusTrace(Effects(), tmp_path / "trace", header_line)

    async def both(count):
        started = timeit.default_timer()
        for _ in range(count):
            trace.stimulus(submitted, 1.5)
            trace.stimulus(done, 1.5)
        trace.flush()
        return (timeit.default_timer() - started) / count / 2

    best = min(asyncio.run(both(3000)) for _ in range(5))
    trace.close()
    assert trace.lost == 0
    assert len((tmp_path / "trace").read_bytes().splitlines()) == 30_001
    print(f"\ntrace: {best * 1e6:.2f} us per stimulus")
    assert best < 8e-6
