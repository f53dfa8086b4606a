"""The model's two servers, the event loop and the writer, against what queueing theory says of them."""

from typing import Any

import numpy as np
import pytest

from sim.costs import Costs
from sim.cpu import EventLoop
from sim.distributions import random_stream
from sim.heapkernel import HeapKernel
from sim.kernel import SimpyKernel
from sim.queue import LAG_S, GroupCommit


class TestEventLoop:
    def test_jobs_run_one_after_the_other(self):
        """A job that comes while another runs begins when that is done; the order is that of coming."""
        kernel = SimpyKernel()
        loop = EventLoop(kernel)
        began: list[tuple[float, str]] = []

        def job(name: str) -> None:
            began.append((kernel.now, name))
            loop.done_at += 1.0

        for at, name in ((0.0, "a"), (0.5, "b"), (0.6, "c"), (5.0, "d")):
            kernel.schedule(at, lambda each: loop.do(job, each), name)
        kernel.run()
        assert [(0.0, "a"), (1.0, "b"), (2.0, "c"), (5.0, "d")] == began
        assert loop.busy_s == 4.0
        assert loop.idle_s == 2.0
        assert loop.longest_wait == 2
        assert loop.waiting == 0

    def test_a_job_that_makes_jobs_is_finished_first(self):
        """What a job asks for waits behind what was there before."""
        kernel = HeapKernel()
        loop = EventLoop(kernel)
        began: list[str] = []

        def job(name: str) -> None:
            began.append(name)
            loop.done_at += 0.1
            if name == "a":
                loop.do(job, "child")

        kernel.schedule(0.0, lambda each: loop.do(job, each), "a")
        kernel.schedule(0.05, lambda each: loop.do(job, each), "b")
        kernel.run()
        assert ["a", "child", "b"] == began

    @pytest.mark.parametrize("utilisation", [0.5, 0.8])
    def test_waiting_is_that_of_m_m_1(self, utilisation: float):
        """Poisson arrivals, exponential service: the mean wait is rho / (mu - lambda).

        At 0.8 the 95 % half-width of 190,000 customers is 5 % by its asymptotic variance.
        """
        kernel = HeapKernel()
        loop = EventLoop(kernel)
        rng = random_stream(5, f"mm1 {utilisation}")
        waits: list[float] = []

        def job(came: float) -> None:
            waits.append(kernel.now - came)
            loop.done_at += rng.expovariate(1.0)

        def arrive(left: int) -> None:
            loop.do(job, kernel.now)
            if left:
                kernel.schedule(rng.expovariate(utilisation), arrive, left - 1)

        kernel.schedule(0.0, arrive, 190_000)
        kernel.run()
        expected = utilisation / (1 - utilisation)
        assert np.mean(waits) == pytest.approx(expected, rel=0.08)
        assert loop.busy_s / kernel.now == pytest.approx(utilisation, rel=0.03)

    def test_waiting_is_that_of_m_d_1(self):
        """Constant service halves the wait of exponential service (Pollaczek and Khinchine)."""
        kernel = HeapKernel()
        loop = EventLoop(kernel)
        rng = random_stream(6, "md1")
        waits: list[float] = []

        def job(came: float) -> None:
            waits.append(kernel.now - came)
            loop.done_at += 1.0

        def arrive(left: int) -> None:
            loop.do(job, kernel.now)
            if left:
                kernel.schedule(rng.expovariate(0.7), arrive, left - 1)

        kernel.schedule(0.0, arrive, 40_000)
        kernel.run()
        assert np.mean(waits) == pytest.approx(0.7 / (2 * 0.3), rel=0.1)


def writer(**costs: float) -> tuple[HeapKernel, GroupCommit, list[tuple[float, Any]]]:
    kernel = HeapKernel()
    told: list[tuple[float, Any]] = []
    queue = GroupCommit(
        kernel,
        Costs(**costs),  # type: ignore[arg-type]
        batch_max=4,
        durable=lambda each: told.append((kernel.now, each)),
    )
    return kernel, queue, told


class TestGroupCommit:
    def test_who_waits_goes_together(self):
        """What comes during a commit goes with the next one, at the price of one fsync."""
        kernel, queue, told = writer(commit_s=1.0, commit_message_s=0.125)
        for at in (0.0, 0.25, 0.5):
            kernel.schedule(at, lambda each: queue.put(each, 0.0), at)
        kernel.run()
        assert [(1.125, 0.0), (2.375, 0.25), (2.375, 0.5)] == told
        assert queue.commits == 2
        assert queue.longest_batch == 2

    def test_a_commit_has_a_largest_size(self):
        """More than the limit goes in several commits, oldest first."""
        kernel, queue, told = writer(commit_s=1.0, commit_message_s=0.0)
        for number in range(10):
            kernel.schedule(0.0, lambda each: queue.put(each, 0.0), number)
        kernel.run()
        # All ten were put before the writer could look.
        assert [1.0] * 4 + [2.0] * 4 + [3.0] * 2 == [at for at, _ in told]
        assert list(range(10)) == [each for _, each in told]

    def test_the_writer_begins_when_the_loop_is_done(self):
        """`after` is the rest of the job that asks."""
        kernel, queue, told = writer(commit_s=1.0, commit_message_s=0.0)
        kernel.schedule(0.0, lambda each: queue.put(each, 0.5, last=True), "x")
        kernel.run()
        assert [(1.5, "x")] == told

    def test_removals_wait_for_somebody_elses_commit(self):
        """They go with the next commit, or with one of their own after a while, or when they are many."""
        kernel, queue, _ = writer(commit_s=1.0, commit_lagging_s=0.0)
        commits: list[tuple[float, int, int]] = []
        queue.on_commit = lambda batch, lagging, s: commits.append((kernel.now, batch, lagging))
        kernel.schedule(0.0, lambda _: queue.lag(), None)
        kernel.run()
        assert [(LAG_S + 1.0, 0, 1)] == commits
        commits.clear()
        start = kernel.now
        for _ in range(4):
            kernel.schedule(0.0, lambda _: queue.lag(), None)
        kernel.run()
        assert [(start + 1.0, 0, 4)] == commits

    def test_under_load_the_batch_grows_as_theory_says(self):
        """Saturated, a writer commits all that came in one commit: batch = rate * f(batch).

        With f(n) = 10 ms + n * 1 ms and 500 per second the fixed point is 10 messages in 20 ms.
        """
        kernel = HeapKernel()
        batches: list[int] = []
        queue = GroupCommit(
            kernel,
            Costs(commit_s=0.01, commit_message_s=0.001, commit_lagging_s=0.0),
            batch_max=256,
            durable=lambda each: None,
        )
        queue.on_commit = lambda batch, lagging, seconds: batches.append(batch)
        rng = random_stream(3, "commits")

        def arrive(left: int) -> None:
            queue.put(left, 0.0)
            if left:
                kernel.schedule(rng.expovariate(500.0), arrive, left - 1)

        kernel.schedule(0.0, arrive, 20_000)
        kernel.run()
        assert np.mean(batches[10:]) == pytest.approx(10.0, rel=0.05)
