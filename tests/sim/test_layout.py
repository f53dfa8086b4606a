"""Bytes of envelopes: those of others as published, ours as an engine is seen to allocate them."""

import gc
import tracemalloc
from random import Random

import pytest

from mta.core.concurrency import ConcurrencySettings
from mta.core.engine import Engine
from mta.core.envelopes.base import Recipient, Transaction, local_key
from mta.core.ids import MsgId, SessionId
from mta.core.limits import Limits
from mta.core.retry import RetrySettings
from mta.core.settings import ConfigError
from mta.core.stimuli import MessageSubmitted
from sim.costs import Costs
from sim.layout import Census, EnvelopeBytes, Layout, Source, Standing, available, load
from sim.runner import simulate
from sim.scenario import Scenario
from sim.scenario import load as load_scenario

KIB = 1024


@pytest.mark.parametrize("name", available())
def test_every_layout_says_where_its_numbers_come_from(name: str):
    """And has a title, and no state that is cheaper than the one before it on an envelope's way."""
    layout = load(name)
    assert layout.name == name
    assert layout.title
    assert all(source.what and source.where for source in layout.sources)
    for kind in (layout.relayed, layout.local):
        assert kind.pending <= kind.scheduled <= kind.in_flight


def test_the_numbers_of_2013():
    """What the agents had of an envelope: 8,592 bytes, then 112 for a relayed one and 240 for a local one."""
    full, slim = load("opensmtpd-2013-full"), load("opensmtpd-2013-slim")
    assert full.relayed.in_flight - full.relayed.held == 8592
    assert slim.relayed.in_flight - slim.relayed.held == 112
    assert slim.local.in_flight - slim.local.held == 240
    # 200,000 pending local envelopes: 1.72 GB or 48 MB, so that the cap could be raised.
    pending = Census(local=Standing(in_flight=200_000), messages=200_000)
    known = 200_000 * (128 + 80)
    assert full.live_bytes(pending) - known == 200_000 * 8592
    assert slim.live_bytes(pending) - known == 48_000_000


def test_what_head_needs_for_a_queue():
    """240 bytes of the scheduler and 48 of the queue process for a message of one recipient; the cache is bounded."""
    head = load("opensmtpd")
    queue = Census(relayed=Standing(pending=1_000_000), messages=1_000_000)
    assert head.live_bytes(queue) == 1_000_000 * 288 + 1024 * 7616
    few = Census(relayed=Standing(pending=10), messages=10, users=2, hold_queues=1, tasks=3)
    assert head.live_bytes(few) == 10 * (288 + 7616) + 2 * 8800 + 80 + 3 * 112


def test_postfix_bounds_by_number():
    """720 bytes for an active message of one recipient, for 20,000 of them at most; deferred mail takes nothing."""
    postfix = load("postfix")
    active = Census(relayed=Standing(in_flight=1000), messages=1000)
    assert postfix.live_bytes(active) == 720_000
    many = Census(relayed=Standing(500_000, 50_000, 0, 50_000), messages=600_000)
    assert postfix.live_bytes(many) == 20_000 * 720
    assert postfix.live_bytes(Census(relayed=Standing(pending=9), messages=9)) == 0


def test_kumomta_keeps_data_until_the_first_attempt():
    """Its 96 bytes always, the message's data while it is active."""
    kumo = load("kumomta")
    census = Census(
        relayed=Standing(pending=10, in_flight=10), messages=20, body_bytes=20 * 4 * KIB
    )
    assert kumo.live_bytes(census) == 20 * 96 + 10 * 4 * KIB
    assert kumo.live_bytes(Census()) == 0


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("title = 3", 'own.toml: title = 3: must be a string'),
        ("title = 'x'\nrelayed = {pending = -1}\nlocal = {}\nsources = []", "own.toml: relayed.pending = -1.0: must not be"),
        ("title = 'x'\nrelayed = {}\nlocal = {}\nsources = []", "own.toml: sources = []: must say where"),
        ("title = 'x'\nrelayed = {}\nlocal = {}\nsources = []\ntasks = 3", "own.toml: tasks = 3: unknown key (did you mean task?)"),
        ("title =", "own.toml: is not TOML: "),
    ],
)  # fmt: skip
def test_a_wrong_layout_is_one_line(tmp_path, text: str, error: str):
    """File, key, value."""
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(error)
    assert "\n" not in str(caught.value)


def test_a_missing_layout_names_those_there_are(tmp_path):
    """And a missing file itself."""
    with pytest.raises(ConfigError, match="there is no such layout; there are kumomta, "):
        load("exim")
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        load(str(tmp_path / "none.toml"))


def burst(policy: str, *more: str) -> Scenario:
    return load_scenario(
        "local-burst", ["load.scale=0.03", f"server.limits.mda.policy={policy}", *more]
    )


def test_the_story_of_2013():
    """With the caps raised, whole envelopes cost ten times as much as slim ones and more; held, they cost alike."""
    peaks: dict[tuple[str, str], int] = {}
    for policy in ("raised", "hold"):
        for name in ("opensmtpd-2013-full", "opensmtpd-2013-slim"):
            more = "server.limits.scheduler.max_held=100000"
            result = simulate(
                burst(policy, more), layout=load(name), backend="heapq", fingerprint=False
            )
            assert result.layout == name
            assert result.rss_bytes.tolist() == result.live_bytes.tolist()
            peaks[policy, name] = result.peak_live_bytes
    assert peaks["raised", "opensmtpd-2013-full"] > 10 * peaks["raised", "opensmtpd-2013-slim"]
    # 57 envelopes of the flood are in the agent, whatever waits behind them, and a few of the others.
    full, slim = peaks["hold", "opensmtpd-2013-full"], peaks["hold", "opensmtpd-2013-slim"]
    assert full - slim < 80 * 8592
    assert peaks["raised", "opensmtpd-2013-full"] > 10 * full


def test_bytes_per_envelope_are_those_of_the_peak():
    """Live bytes over queued envelopes, in the sample with most of them."""
    result = simulate(burst("raised"), backend="heapq", fingerprint=False)
    at = int(result.live_bytes.argmax())
    assert result.bytes_per_envelope == result.live_bytes[at] / result.queued[at]
    costs = Costs().memory_of("slim").local
    assert costs.pending <= result.bytes_per_envelope <= costs.in_flight + 1


def fill(representation: str, state: str, count: int) -> Engine:
    """Return an engine with so many local envelopes in one state."""
    limits = Limits()
    limits.scheduler.max_inflight = limits.scheduler.max_held = count + 1
    mda = limits.mda
    if state == "in_flight":
        mda.policy = "raised"
        mda.raised_max_pending = mda.raised_max_pending_per_user = count + 1
    elif state == "pending":
        mda.policy = "tempfail"
        mda.tempfail_max_pending_per_user = 1
    engine = Engine(
        representation=representation,
        limits=limits,
        retry=RetrySettings(),
        concurrency=ConcurrencySettings(),
        stream=Random,
        now=1e9,
    )
    body = b"" if engine.store.keeps_bodies else None
    for number in range(count):
        # Objects of its own, as each message that comes over the network has.
        sender, user, host = (
            text.encode().decode()
            for text in (f"sender{number % 1000}@outside.test", "flood0", "client.testbed.test")
        )
        transaction = Transaction(sender, 4096, SessionId(1 << 40 | number), host)
        recipient = Recipient(f"{user}@local.test", local_key(user), "", "", "local", user)
        engine.handle(MessageSubmitted(MsgId(number + 1), transaction, (recipient,), body), now=1e9)
    return engine


@pytest.mark.parametrize("representation", Costs().memory)
@pytest.mark.parametrize("state", ["pending", "held", "in_flight"])
def test_our_own_bytes_are_what_an_engine_allocates(representation: str, state: str):
    """Within a third: tables double their size now and then."""
    count = 6000
    fill(representation, state, 200)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        engine = fill(representation, state, count)
        gc.collect()
        each = (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()
    gauges = engine.gauges()
    local, held = gauges["mda.envelope"], gauges["scheduler.ramqueue.hold"]
    of = {"pending": count - local - held, "held": held, "in_flight": local}[state]
    assert of >= count - 57
    assert each == pytest.approx(getattr(Costs().memory_of(representation).local, state), rel=1 / 3)


def test_a_layout_is_checked():
    """No negative bytes."""
    with pytest.raises(StopIteration):
        next(EnvelopeBytes().problems())
    layout = Layout("x", EnvelopeBytes(), EnvelopeBytes(), [Source("a", "b")], user=-1.0)
    assert list(layout.problems()) == [("user", -1.0, "must not be negative")]
