"""Where the runs of a sweep are carried out: here, in processes of this machine, or on a Dask cluster.

All give the same: a run depends on its task alone. Each hands out a few tasks more than there are workers, so that an
interrupt has little to wait for and a long sweep little to keep.
"""

import importlib
import ipaddress
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from mta.core.settings import ConfigError
from sim.sweeptask import Common, Outcome, Task, carry_out

JOBS_MAX: Final = 256
"""Processes of a pool."""

AHEAD: Final = 2
"""Tasks handed out for each worker: one that runs and one that follows at once."""

CONNECT_S: Final = 10.0
"""Longest wait for a scheduler, and then for its first worker."""


LOOK_S: Final = 2.0
"""Seconds after which it is looked whether a cluster still has workers."""


class WorkerLostError(Exception):
    """A worker died with a task. ``str()`` is one line."""


class Executor(Protocol):
    """Carries tasks out."""

    workers: int
    """How many at a time, for the time that is left."""

    def run(self, common: Common, tasks: Sequence[Task]) -> Iterator[tuple[int, Outcome]]:
        """Yield number and outcome of each task, as they become ready.

        Raises:
            WorkerLostError: a worker died.
        """
        ...


class Here:
    """One after the other, in this process."""

    workers = 1

    def run(self, common: Common, tasks: Sequence[Task]) -> Iterator[tuple[int, Outcome]]:
        """See `Executor.run`."""
        for number, task in enumerate(tasks):
            yield number, carry_out(common, task)


class Pool:
    """Processes of this machine."""

    def __init__(self, jobs: int) -> None:
        """Keep the number of processes."""
        assert 1 <= jobs <= JOBS_MAX, jobs
        self.workers = jobs

    def run(self, common: Common, tasks: Sequence[Task]) -> Iterator[tuple[int, Outcome]]:
        """See `Executor.run`."""
        # Why spawn? A fork of a process with threads (numpy's, a notebook's) may hang.
        pool = ProcessPoolExecutor(
            min(self.workers, len(tasks)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(common,),
        )
        running: dict[Future[Outcome], int] = {}
        waiting = iter(enumerate(tasks))
        done = False
        try:
            while True:
                while len(running) < AHEAD * self.workers and (found := next(waiting, None)):
                    running[pool.submit(_carry_out, found[1])] = found[0]
                if not running:
                    break
                ready, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in sorted(ready, key=running.__getitem__):
                    yield running.pop(future), future.result()
            done = True
        except BrokenProcessPool:
            problem = (
                "a worker process died: out of memory, or killed? fewer --jobs need less memory"
            )
            raise WorkerLostError(problem) from None
        finally:
            if not done:
                # Whoever was interrupted will not wait for runs that nobody wants any more.
                for process in list((getattr(pool, "_processes", None) or {}).values()):
                    process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)


_common: Common | None = None
"""In a worker: what all its tasks share."""


def _begin(common: Common) -> None:
    global _common  # the one way to hand a worker something once
    _common = common
    # An interrupt from the keyboard goes to all processes of a terminal; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """End when the parent does: a worker whose parent was killed would wait for tasks for ever."""
    wait_for([sentinel])
    os._exit(1)


def _carry_out(task: Task) -> Outcome:
    assert _common is not None
    return carry_out(_common, task)


class Cluster:
    """A Dask cluster: ``dask scheduler`` and ``dask worker`` with this package installed."""

    def __init__(self, address: str, *, anywhere: bool = False) -> None:
        """Connect.

        Args:
            address: ``tcp://host:port`` of the scheduler.
            anywhere: allow a host that is not this one. Tasks and results are pickles: whoever can talk to the scheduler
                can run code on all workers and here.

        Raises:
            ConfigError: no such address, not loopback, distributed is not installed, nobody answers, or there is no worker.
        """
        _checked(address, anywhere=anywhere)
        try:
            # Has no types. Not a statement: only who sweeps on a cluster needs it.
            self._distributed: Any = importlib.import_module("distributed")
        except ImportError:
            problem = "needs distributed: pip install 'mta-testbed[cluster]'"
            raise ConfigError("--scheduler", value=address, problem=problem) from None
        _quiet()
        self._client: Any = None
        try:
            self._client = self._distributed.Client(address, timeout=CONNECT_S)
            self._client.wait_for_workers(1, timeout=CONNECT_S)
        except (OSError, TimeoutError):
            answered = self._client is not None
            self.close()
            problem = "has no workers" if answered else "nobody answers there"
            raise ConfigError("--scheduler", value=address, problem=problem) from None
        threads = self._client.nthreads().values()
        self.workers = sum(threads)

    def run(self, common: Common, tasks: Sequence[Task]) -> Iterator[tuple[int, Outcome]]:
        """See `Executor.run`."""
        client, distributed = self._client, self._distributed
        lost = (
            distributed.KilledWorker,
            distributed.client.FutureCancelledError,
            distributed.client.FuturesCancelledError,
            OSError,  # of which distributed.CommClosedError is one
        )
        running: dict[Any, int] = {}
        waiting = iter(enumerate(tasks))
        idle_s = 0.0
        try:
            shared = client.scatter(common, broadcast=True, hash=False)
            while True:
                while len(running) < AHEAD * self.workers and (found := next(waiting, None)):
                    # Not pure: the same task of another sweep is another run, should its worker have other code.
                    running[client.submit(carry_out, shared, found[1], pure=False)] = found[0]
                if not running:
                    break
                try:
                    ready = distributed.wait(
                        list(running), timeout=LOOK_S, return_when="FIRST_COMPLETED"
                    ).done
                except TimeoutError:
                    # Tasks without workers would wait for ever. One that is busy is there.
                    idle_s = 0.0 if client.nthreads() else idle_s + LOOK_S
                    if idle_s >= CONNECT_S:
                        raise WorkerLostError("the cluster has no workers any more") from None
                    continue
                for future in sorted(ready, key=running.__getitem__):
                    yield running.pop(future), future.result()
        except lost as error:
            if isinstance(error, distributed.KilledWorker):
                problem = "a run killed several workers: out of memory?"
            else:
                problem = "the cluster was lost: its scheduler or all of its workers are gone"
            raise WorkerLostError(problem) from None
        finally:
            if running and client.status == "running":
                client.cancel(list(running), force=True)

    def close(self) -> None:
        """Let go of the cluster; it goes on without us."""
        if self._client is not None:
            self._client.close()


def _quiet() -> None:
    """Let Dask's loggers say nothing: they say in forty lines what we say in one. Each has a level of its own."""
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] in ("distributed", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _checked(address: str, *, anywhere: bool) -> None:
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "tcp" or not parts.hostname or not port or parts.path:
        raise ConfigError("--scheduler", value=address, problem="must be tcp://host:port")
    if anywhere:
        return
    try:
        loopback = ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        loopback = parts.hostname == "localhost"
    if not loopback:
        problem = "is not this machine; --anywhere allows it: whoever reaches the scheduler runs code on its workers"
        raise ConfigError("--scheduler", value=address, problem=problem)
