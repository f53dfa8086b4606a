"""The pulse of the generator: late when this process is, and by as much."""

import time

import gevent
import pytest

from loadtests._pulse import BEAT_S, Pulse


class Clock:
    """Time that only passes in `sleep`, which takes longer than asked by what is in ``late``, in turn."""

    def __init__(self, late: list[float]) -> None:
        self.time = 100.0
        self.late = late
        self.asked: list[float] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        self.time += seconds + self.late.pop(0)

    def is_over(self) -> bool:
        return not self.late


def beaten(late: list[float], start_s: float = 0.0) -> tuple[Pulse, Clock]:
    clock = Clock([*late, 0.0])
    pulse = Pulse(now=clock.now, sleep=clock.sleep)
    pulse.run(start_s, clock.is_over)
    return pulse, clock


def test_a_process_that_is_on_time_has_an_even_pulse():
    """Each beat a hundredth of a second after the other, none late; the first one when the load starts."""
    pulse, clock = beaten([0.0] * 200, start_s=3.0)
    assert clock.asked == [3.0] + [BEAT_S] * 200
    assert pulse.p99_s == 0.0
    assert pulse.summary() == {"p50": 0.0, "p99": 0.0, "max": 0.0}


def test_a_stall_counts_as_all_the_beats_that_it_swallowed():
    """One beat of 400 is a second late: 100 beats of 499 were, half of them by half a second or more."""
    pulse, _ = beaten([0.0] * 399 + [1.0])
    found = pulse.summary()
    assert found is not None
    assert found["p50"] == 0.0
    assert found["p99"] == pytest.approx(0.96, abs=0.01)
    assert found["max"] == pytest.approx(1.0, rel=0.001)


def test_no_pulse_is_no_lag():
    """A run that was over before its load began has nothing to say."""
    pulse, _ = beaten([])
    assert (pulse.summary(), pulse.p99_s) == (None, 0.0)


def test_whoever_keeps_the_process_to_himself_makes_it_late():
    """Real greenlets: one that computes for 0.3 s without a pause holds up the others, and the pulse says so."""
    pulse, over = Pulse(), gevent.event.Event()
    beating = gevent.spawn(pulse.run, 0.0, over.is_set)
    gevent.sleep(0.05)
    time.sleep(0.3)
    gevent.sleep(0.05)
    over.set()
    beating.join(10)
    assert beating.successful()
    assert pulse.p99_s > 0.2


def test_the_worst_since_it_was_last_asked():
    """For whoever looks now and then: each look begins anew; the pulse of the whole run does not."""
    pulse, _ = beaten([0.0, 0.2, 0.1])
    assert pytest.approx(0.2) == pulse.take_worst_s()
    assert 0.0 == pulse.take_worst_s()
    summary = pulse.summary()
    assert summary is not None
    assert pytest.approx(0.2, rel=0.01) == summary["max"]
