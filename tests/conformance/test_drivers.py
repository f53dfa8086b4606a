"""Both drivers ask the same core the same way: same stimuli, same instructions, same instants.

The server's driver is real, with a real queue on disk; its remote hosts do as the test says. What its core heard
and said is then told to the model's driver, and told to a core again from the trace.
"""

import asyncio
from collections.abc import Callable
from heapq import heappop
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mta.core import records
from mta.core.engine import Engine
from mta.core.envelopes import REPRESENTATIONS
from mta.core.instructions import (
    BounceKind,
    DeferEnvelope,
    Instruction,
    Note,
    ResolveDomain,
    SendBounce,
    StartTransaction,
)
from mta.core.routing import Resolution, ResolutionStatus
from mta.core.settings import flatten
from mta.core.stimuli import (
    AgentPaused,
    AgentResumed,
    RemoveRequested,
    ScheduleRequested,
    Selector,
    Stimulus,
    SuspendRequested,
    TimeReached,
    UnsuspendRequested,
)
from mta.trace import encode
from sim.costs import Costs
from sim.heapkernel import HeapKernel
from sim.records import Retrace, retrace
from sim.runner import Model
from sim.settings import ModelConfig
from sim.workload import draw
from tests.support.driver import EPOCH, LATER, NEVER, OK, Rig, rig
from tests.support.model import scenario


class Heard(NamedTuple):
    """One stimulus of a driver's core."""

    stimulus: Stimulus
    now: float
    instructions: list[Instruction]
    wakeup: float | None


def listen(engine: Engine) -> list[Heard]:
    """Return a list that grows by what a core hears and says from now on."""
    heard: list[Heard] = []
    handle = engine.handle

    def listening(stimulus: Stimulus, *, now: float) -> list[Instruction]:
        instructions = handle(stimulus, now=now)
        heard.append(Heard(stimulus, now, list(instructions), engine.next_wakeup()))
        return instructions

    engine.handle = listening  # type: ignore[method-assign]
    return heard


async def eventful(it: Rig) -> None:
    """A bit of everything that can happen to mail."""
    it.out.answer = lambda rcpt: {"l": LATER, "n": NEVER}.get(rcpt[0], OK)
    await it.submit("a@two.test", "b@two.test", "later@two.test", "never@three.test")
    it.resolver.answers["gone.test"] = Resolution(ResolutionStatus.NO_DOMAIN)
    it.resolver.answers["dark.test"] = Resolution(ResolutionStatus.RETRY, ttl_s=5.0)
    await it.submit("x@gone.test", "y@dark.test")
    await it.settle()
    await it.advance(1.0)
    for n in range(30):
        await it.submit(
            f"u{n}@two.test", f"later{n}@four.test", sender="" if n % 9 == 0 else "a@a.test"
        )
        await it.advance(0.13)
    it.driver.tell(AgentPaused())
    await it.submit("p@two.test")
    it.driver.tell(AgentResumed())
    await it.settle()
    it.out.connect = "failed"
    await it.submit("z@five.test", "z@six.test")
    await it.settle()
    await it.advance(20.0)
    it.out.connect = "ready"
    queued = sorted(it.engine.store.evpid_of(handle) for handle in it.engine.store)
    it.driver.tell(SuspendRequested(Selector(evpid=queued[0])))
    it.driver.tell(RemoveRequested(Selector(evpid=queued[1])))
    it.driver.tell(UnsuspendRequested(Selector(evpid=queued[0])))
    for session in list(it.out.sessions):
        it.out.hang_up(session)
    await it.settle()
    await it.advance(30.0)
    it.out.answer = lambda rcpt: OK
    await it.submit("s@two.test", notify="SUCCESS,DELAY")
    it.driver.tell(ScheduleRequested(Selector()))
    await drained(it)


async def drained(it: Rig) -> None:
    """Let time pass from timer to timer until nothing is left, bounces included."""
    for _ in range(5000):
        if not (len(it.engine.store) or it.driver._tasks or it.out.sessions):
            return
        if it.loop.timers:
            await it.advance(max(it.loop.timers[0], 0.0))
        else:
            # A commit is on its way, on a thread.
            await asyncio.sleep(0.001)
    raise AssertionError("the queue does not drain")


async def run(
    directory: Path, script: Callable[[Rig], Any], **config: Any
) -> tuple[Rig, list[Heard]]:
    async with rig(directory, **config) as it:
        heard = listen(it.engine)
        await script(it)
        # What the end of the test tells the core is no part of it.
        return it, list(heard)


CONFIGS: dict[str, dict[str, Any]] = {
    "defaults": {"retry": {"base_s": 5.0}},
    "warned": {"retry": {"base_s": 5.0}, "bounce": {"warn_interval_s": [2.0, 10.0]}},
    "jitter": {"retry": {"base_s": 5.0, "jitter": "full"}},
    "narrow": {
        "retry": {"base_s": 5.0},
        "limits": {
            "mta": {"max_conn_per_host": 1, "task_high_water": 2, "task_low_water": 1},
            "scheduler": {"max_inflight": 4, "max_held": 3},
        },
    },
}


def header_of(it: Rig, representation: str) -> records.Record:
    values = flatten(it.driver.config)
    limits = {key: value for key, value in values.items() if key.startswith("limits.")}
    plain = {
        key: value if isinstance(value, int | float | str | bool | list | None) else str(value)
        for key, value in values.items()
        if key not in limits
    }
    return records.header(
        clock="simulated",
        started_at=EPOCH,
        seed=1,
        representation=representation,
        limits=limits,
        config={**plain, "envelope": representation},
        versions={},
        host={},
    )


def sessions_from(header: records.Record) -> Retrace:
    """Return a core as the rig's: its sessions are numbered from 0x100."""
    again = Retrace(header)
    again.engine.agent._opener.last_session = 0x100
    return again


@pytest.mark.parametrize("name", CONFIGS)
async def test_a_trace_told_again_gives_the_same_instructions(tmp_path: Path, name: str):
    """Through the file format and back, in every representation: the same instructions, and wake-ups."""
    it, heard = await run(tmp_path, eventful, **CONFIGS[name])
    kinds = {type(each.stimulus).__name__ for each in heard}
    assert {"MessageSubmitted", "TransactionDone", "ConnectionFailed", "TimeReached"} <= kinds
    asked = {type(one).__name__ for each in heard for one in each.instructions}
    assert {"SendBounce", "DeferEnvelope", "RemoveEnvelope", "CloseConnection"} <= asked
    told = {one.kind for each in heard for one in each.instructions if isinstance(one, SendBounce)}
    assert {BounceKind.FAILED, BounceKind.RELAYED} <= told
    assert (BounceKind.DELAYED in told) == (name == "warned")
    for representation in REPRESENTATIONS:
        header = header_of(it, representation)
        lines = [encode(header)]
        for stimulus, now, _, _ in heard:
            if representation == "whole" and hasattr(stimulus, "body"):
                stimulus = stimulus._replace(body=b"")
            lines.append(encode(records.to_record(stimulus, now)))
        trace = records.parse(lines)
        again = sessions_from(trace.header)
        for record, before in zip(trace.records, heard, strict=True):
            step = again.step(record)
            assert step is not None
            assert step.instructions == before.instructions
            assert step.t == before.now
            wakeup = again.engine.next_wakeup()
            assert (wakeup is None) == (before.wakeup is None)
            if wakeup is not None and before.wakeup is not None:
                # Never late. A store may be woken early: a wheel turns over levels.
                assert wakeup <= before.wakeup
        again.engine.validate()
        assert len(again.engine.store) == 0


async def test_another_seed_is_noticed(tmp_path: Path):
    """A core that draws other numbers does not give the same instructions: the check can fail."""
    it, heard = await run(tmp_path, eventful, **CONFIGS["jitter"])
    header = {**header_of(it, "slim"), "seed": 2}
    again = sessions_from(header)
    differs = False
    for stimulus, now, instructions, _ in heard:
        try:
            differs = differs or again.engine.handle(stimulus, now=now) != instructions
        except (AssertionError, KeyError):
            differs = True
            break
    assert differs


class Played(NamedTuple):
    """What the model's driver carried out."""

    now: float
    instruction: Instruction


def model_driver(it: Rig) -> tuple[Model, list[Played]]:
    """Return a model with the rig's settings, whose instructions are written down and not carried out."""
    config = it.driver.config
    of = scenario(messages=1)
    model = Model(
        of,
        config=ModelConfig(
            envelope=config.envelope,
            seed=1,
            retry=config.retry,
            bounce=config.bounce,
            concurrency=config.concurrency,
            limits=config.limits,
        ),
        costs=Costs(),
        schedule=draw(of),
        start=EPOCH,
        backend="heapq",
    )
    model.engine.agent._opener.last_session = 0x100
    played: list[Played] = []
    driver = model.driver
    for kind in driver._carry_out:
        driver._carry_out[kind] = lambda each: played.append(Played(driver.now, each))
    return model, played


def play(model: Model, heard: list[Heard]) -> None:
    """Tell the model's driver what the server's was told, but for the time: that it has to see for itself.

    Where the server's timer rang, the model's must ring; it must never be armed for later than the server's.
    """
    kernel, driver = model.kernel, model.driver
    assert isinstance(kernel, HeapKernel)
    rung = 0

    def observe(stimulus: Stimulus, now: float, instructions: list[Instruction]) -> None:
        nonlocal rung
        rung += type(stimulus) is TimeReached

    driver.observer = observe
    expected = 0
    for stimulus, now, _, wakeup in heard:
        kernel.now = now - EPOCH
        if type(stimulus) is not TimeReached:
            driver.tell(stimulus)
        else:
            expected += 1
            while rung < expected:
                assert kernel._heap, (now, "the model's timer did not ring")
                at, _, function, argument = heappop(kernel._heap)
                assert at <= kernel.now + 1e-6, (at, kernel.now)
                function(argument)
        assert rung == expected
        armed = driver._armed_at
        assert wakeup is None or armed <= wakeup


@pytest.mark.parametrize("name", CONFIGS)
async def test_both_drivers_carry_out_the_same(tmp_path: Path, name: str):
    """The model's driver carries out the same at the same instants, woken by its own timer."""
    it, heard = await run(tmp_path, eventful, **CONFIGS[name])
    model, played = model_driver(it)
    play(model, heard)
    expected = [Played(each.now, one) for each in heard for one in each.instructions]
    assert [each.instruction for each in played] == [each.instruction for each in expected]
    assert [each.now for each in played] == pytest.approx([each.now for each in expected], abs=1e-5)
    assert sum(type(each) is StartTransaction for _, each in played) > 30
    assert any(type(each) is ResolveDomain for _, each in played)
    assert any(type(each) is Note for _, each in played)
    assert sum(type(each.stimulus) is TimeReached for each in heard) > 5


async def test_the_timers_ring_at_the_due_instant(tmp_path: Path):
    """A deferred envelope is handed out at its due instant by both, not at the next tick of something."""

    async def script(it: Rig) -> None:
        it.out.answer = lambda rcpt: LATER
        await it.submit("later@two.test")
        await it.settle()
        it.out.answer = lambda rcpt: OK
        # To the instant, as the server's own timer would.
        await drained(it)

    it, heard = await run(tmp_path, script, retry={"base_s": 5.0})
    (due_at,) = [
        one.due_at for each in heard for one in each.instructions if type(one) is DeferEnvelope
    ]
    model, played = model_driver(it)
    play(model, heard)
    starts = [each.now for each in played if type(each.instruction) is StartTransaction]
    assert starts[-1] == pytest.approx(due_at, abs=1e-5)
    assert due_at == EPOCH + 5.0


async def test_lost_lines_are_said(tmp_path: Path):
    """A trace with a hole is no replay: whoever asks hears it instead of a guess."""
    it, heard = await run(tmp_path, eventful, **CONFIGS["defaults"])
    lines = [encode(header_of(it, "slim"))]
    lines += [encode(records.to_record(each.stimulus, each.now)) for each in heard[:5]]
    lines.append(encode({"t": heard[5].now, "k": "lost", "lines": 3}))
    with pytest.raises(records.TraceError, match="3 lines are lost"):
        list(retrace(records.parse(lines)))
    assert len(heard) > 100
