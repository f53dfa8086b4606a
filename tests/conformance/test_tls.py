"""What comes of TLS is the same in the model and for real: each level with each kind of host."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mta.config import Config
from mta.core.reply import Outcome
from mta.core.settings import build
from mta.core.stimuli import ConnectionFailed, ConnectionReady, TransactionDone
from mta.effects import Effects
from mta.outtls import OutboundTls
from sim.remote import build_host
from sim.tls import security
from testbed.world.clock import WorldClock
from testbed.world.sink import Sink
from testbed.world.tls import Authority
from tests.support.scriptedmx import S1, Recorder

HOST, NAME = "127.0.10.1", "mx0.a.test"
MODES = ("none", "offered", "required", "broken", "expired", "wrong-name", "self-signed")


@contextlib.asynccontextmanager
async def a_sink(mode: str, authority: Authority) -> AsyncIterator[Sink]:
    host = build_host([], rng=random.Random(1))
    async with Sink(
        {HOST: host}, WorldClock(), names={HOST: NAME}, tls={NAME: mode}, authority=authority
    ) as sink:
        yield sink


@pytest.mark.parametrize("mode", MODES)
async def test_what_comes_of_tls_is_the_same_in_the_model(mode: str, tmp_path: Path) -> None:
    authority = Authority(1, time.time())
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.pem())
    for level in ("none", "may", "encrypt", "verify", "implicit"):
        relay = {"ca_file": str(ca), "tls": level}
        config = build(Config, {"relay": relay}, source="test")
        tls = OutboundTls(config, Effects(), rules=config.relay_rules(), source="test")
        expected = security(level, mode)
        async with a_sink(mode, authority) as sink, asyncio.timeout(20):
            recorder = Recorder(sink.port, tls=tls)

            def react(stimulus: object, recorder: Recorder = recorder) -> None:
                if isinstance(stimulus, ConnectionReady):
                    assert recorder.send(S1)
                elif isinstance(stimulus, TransactionDone) and stimulus.usable:
                    recorder.outbound.close(S1)

            recorder.react = react
            recorder.open(address=HOST, host=NAME)
            first = (await recorder.told_count(1))[0]
            await recorder.outbound.wait_idle()
            stats = tls.stats
            where = f"{level} with {mode}"
            assert isinstance(first, ConnectionFailed) == bool(expected.failure), where
            # Ours is not done with a handshake whose certificate it does not take; the work is done.
            completed = expected.handshake and not expected.failure
            assert (stats.established, stats.downgraded) == (completed, expected.again), where
            if isinstance(first, ConnectionFailed):
                # In the words of OpenSSL, which go on with names.
                assert first.reason.startswith(expected.failure), where
            else:
                done = next(each for each in recorder.told if isinstance(each, TransactionDone))
                refused = done.results[0].outcome is Outcome.PERMFAIL
                assert refused == expected.refused, where
                assert refused or done.results[0].outcome is Outcome.OK, where
