"""SimPy and a plain heap are the same clock."""

from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.kernel import Backend, Kernel, make_kernel
from sim.runner import simulate
from sim.scenario import load
from tests.support.model import LATENCY, scenario

BACKENDS: tuple[Backend, ...] = ("simpy", "heapq")

SCENARIOS = {
    "backlog": load("backlog", ["load.messages=1500", "load.rate=120"]),
    "kept connections": scenario(LATENCY, messages=400, keep=True, sessions=5),
    "greylist": scenario(LATENCY, {"kind": "greylist", "wait_s": 2.0}, recipients=3),
    "limited": scenario(LATENCY, {"kind": "limit-connections", "max": 2}),
    "silent": scenario(
        {"kind": "outage", "from_s": 0.3, "to_s": 2.0, "mode": "silent"},
        server={"limits": {"mta": {"session_timeout_s": 3.0}}, "retry": {"base_s": 1.0}},
    ),
    "no dns": scenario({"kind": "dns", "answer": "servfail", "from_s": 0.0, "to_s": 1.0}),
    "bounces": scenario({"kind": "reject", "code": 550, "match": ["user1*@*"]}, recipients=4),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_both_clocks_give_the_same_run(name: str):
    """Every stimulus comes at the same instant, to the last bit, and the results are the same."""
    first, second = (simulate(SCENARIOS[name], backend=backend) for backend in BACKENDS)
    assert first.stimuli > 100
    assert first.fingerprint == second.fingerprint
    assert first.summary() == second.summary()
    assert (first.queued == second.queued).all()
    assert (first.t == second.t).all()


def test_another_seed_is_another_run():
    """The fingerprint can tell two runs apart."""
    one = scenario(LATENCY, seed=1)
    other = scenario(LATENCY, seed=2)
    assert simulate(one).fingerprint == simulate(one).fingerprint
    assert simulate(one).fingerprint != simulate(other).fingerprint


def test_a_replication_is_another_run():
    """Replications of one seed draw other messages and meet other hosts."""
    of = scenario(LATENCY)
    assert simulate(of).fingerprint != simulate(of, replication=1).fingerprint


def calls(kernel: Kernel, delays: list[tuple[float, list[float]]]) -> list[Any]:
    seen: list[Any] = []

    def note(argument: tuple[int, list[float]]) -> None:
        number, later = argument
        seen.append((kernel.now, number))
        for i, delay in enumerate(later):
            kernel.schedule(delay, note, (number * 100 + i + 1, []))

    for number, (delay, later) in enumerate(delays, 1):
        kernel.schedule(delay, note, (number, later))
    kernel.run()
    return seen


DELAYS = st.sampled_from([0.0, 0.1, 0.2, 1 / 3, 1e-9, 7.0])


@given(st.lists(st.tuples(DELAYS, st.lists(DELAYS, max_size=3)), max_size=8))
def test_calls_come_in_order_of_time_then_of_asking(delays: list[tuple[float, list[float]]]):
    """The same calls at the same instants; instants never fall; nothing is forgotten."""
    first, second = (calls(make_kernel(backend), delays) for backend in BACKENDS)
    assert first == second
    assert [at for at, _ in first] == sorted(at for at, _ in first)
    assert len(first) == len(delays) + sum(len(later) for _, later in delays)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_scheduled_behind_a_stop_is_not_called(backend: Backend):
    """`stop` ends the run after the call that is being made."""
    kernel = make_kernel(backend)
    seen: list[str] = []

    def stop(_: None) -> None:
        seen.append("stop")
        kernel.stop()

    kernel.schedule(1.0, stop, None)
    kernel.schedule(1.0, seen.append, "late")
    kernel.run()
    assert ["stop"] == seen
    assert kernel.now == 1.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_call_goes_on_later_if_nothing_comes_between(backend: Backend):
    """Up to the next call, not at it, because that was asked for first; and never behind a stop."""
    kernel = make_kernel(backend)
    seen: list[Any] = []

    def go_on(_: None) -> None:
        seen.extend((kernel.skip_to(at), kernel.now) for at in (2.0, 3.0, 2.5))
        kernel.schedule(0.25, seen.append, "after what it skipped")

    def end(_: None) -> None:
        seen.append((kernel.skip_to(9.0), kernel.now))
        kernel.stop()
        seen.append((kernel.skip_to(10.0), kernel.now))

    kernel.schedule(1.0, go_on, None)
    kernel.schedule(3.0, end, None)
    kernel.run()
    assert seen == [
        (True, 2.0),
        (False, 2.0),
        (True, 2.5),
        "after what it skipped",
        (True, 9.0),
        (False, 9.0),
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_calls_of_an_owner_are_forgotten(backend: Backend):
    """Those of its methods, through any number of partials; they are returned in their order, and all others are made in theirs."""
    kernel = make_kernel(backend)
    seen: list[Any] = []

    class Owner:
        def call(self, argument: Any) -> None:
            seen.append((kernel.now, argument))

        def do(self, job: Any, argument: Any) -> None:
            job(argument)

    dead, alive = Owner(), Owner()

    def end(_: None) -> None:
        gone = kernel.forget([dead, []])
        seen.append([(each.at, each.argument) for each in gone])
        kernel.schedule(0.0, dead.call, "born again")

    kernel.schedule(2.0, dead.call, "b")
    kernel.schedule(1.0, end, None)
    for argument in "xyz":
        kernel.schedule(1.5, partial(alive.do, dead.call), argument)
        kernel.schedule(1.5, partial(dead.do, alive.call), argument)
    kernel.schedule(1.0, dead.call, "a")
    kernel.schedule(0.5, dead.call, "before")
    kernel.run()
    assert seen == [
        (0.5, "before"),
        [(1.0, "a"), (1.5, "x"), (1.5, "y"), (1.5, "z"), (2.0, "b")],
        (1.0, "born again"),
        *[(1.5, argument) for argument in "xyz"],
    ]
