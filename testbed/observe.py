"""One server in one fresh world under one load: started, warmed up, loaded, drained, stopped, accounted for.

The order, and what ends it early:

1. world, then server; each is up or says why not;
2. a few messages, so that imports, caches and connections are in memory before anything is measured;
3. the load; its record says when it began, and the world's outages count from that instant;
4. the queue empties, for ``drain_s`` at most;
5. gauges come back to 0, sampling ends, the server is told to stop, then the world; the ledger is made.

Whatever goes wrong, and on Ctrl-C, all processes are ended before the error goes on.
"""

import contextlib
import importlib.util
import json
import math
import os
import smtplib
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from mta.core.metrics import DRAINING
from sim.scenario import Scenario, domains_of
from sim.workload import Schedule, draw, message_bytes
from testbed import diskphases
from testbed import ledger as accounts
from testbed.children import Child, RunError, python, source_environment
from testbed.ledger import Ledger
from testbed.localusers import LocalUsers
from testbed.operator import Operator, checked
from testbed.progress import Part
from testbed.rundir import Notes, write_json
from testbed.sampler import INTERVAL_S, Sampler
from testbed.targets.base import Owed, Target
from testbed.targets.choice import OURS, PEERS, make_target, placed_world
from testbed.targets.ours import OurServer, merged
from testbed.world.handle import World, WorldError

WARM_UP_MESSAGES: Final = 6
"""Of each client: enough for codecs, statements and connections to have been used."""

WARM_UP_CLIENTS_MAX: Final = 100
"""As many as the load has sessions, but so many at most."""

WARM_UP_APART_S: Final = 0.02
"""Between their connections. OpenSMTPD's backlog is 5."""

WARM_UP_S: Final = 20.0
"""Longest wait for these to be delivered."""

WARM_UP_STILL_S: Final = 5.0
"""The same while nothing changes in the queue: some destinations are dead, and stay so."""

IDLE_S: Final = 0.6
"""How long the server is watched doing nothing, before the load and after it."""

LOAD_START_S: Final = 60.0
"""Longest wait for the load to begin: it imports, and draws its schedule."""

LOAD_LATE_S: Final = 60.0
"""How long after the last due message the load may go on before it is taken to hang."""

PEER_LATE_S: Final = 240.0
"""The same with another server, for which a scenario's rate may be too much."""

DRAIN_STILL_S: Final = 12.0
"""Wait for the queue to change, if nothing in it is tried again before the bench stops waiting; OpenSMTPD opens one
connection for a route in 5 s, which is two of them."""

SETTLE_S: Final = 4.0
"""Longest wait for gauges to come back to 0 after the drain, beyond the keep-alive of idle connections."""

TRIES_MAX: Final = 100
"""Most attempts that the load generator makes for a message; loadtests/_settings.py."""

LOCAL_RECORD: Final = "local.jsonl"
"""What the server's own users got, in the form of the world's records."""

TREE_INTERVAL_S: Final = 0.5
"""Between two samples of a server of a hundred processes, each of which has to be looked at."""

LISTINGS: Final = 3
"""How often the queue of another server is listed at the end, at most: until a listing shows nothing new."""

LISTING_PAUSE_S: Final = 0.7
"""Between two of these."""

TICK_S: Final = 0.1
"""Between two looks at what is going on."""


def observe(
    scenario: Scenario,
    scenario_file: Path,
    representation: str,
    directory: Path,
    *,
    part: Part,
    keep_queue: bool = False,
    settle: bool = True,
) -> Ledger:
    """Run one representation; return the account, leave everything else in the directory.

    Args:
        scenario: what to run.
        scenario_file: the same, for the children to read.
        representation: how envelopes are kept; or the name of another server, of `PEERS`.
        directory: made here.
        part: where progress is shown.
        keep_queue: leave the server's queue there even if it is empty.
        settle: wait for gauges to come back to 0, and tell of those that do not.

    Raises:
        RunError: the run could not be made, or a child ended before its time.
        UsageError: a child can't use what the scenario says.
    """
    directory.mkdir()
    observation = _Observation(scenario, scenario_file, representation, directory, part)
    return observation.run(keep_queue, settle=settle)


class _Observation:
    def __init__(
        self,
        scenario: Scenario,
        scenario_file: Path,
        representation: str,
        directory: Path,
        part: Part,
    ) -> None:
        self._scenario = scenario
        self._file = scenario_file
        self._representation = representation
        self._is_peer = representation in PEERS
        self._directory = directory
        self._part = part
        self._schedule = draw(scenario)
        self._run_id = f"{scenario.name[:16]}-{representation}-{os.getpid()}"
        self._record = directory / "load.jsonl"
        self._load: Child | None = None
        self._accepted = 0
        self._delivered_before = 0.0
        self._operator: Operator | None = None
        self._is_restarted = any(event.restart for event in scenario.timeline)

    def run(self, keep_queue: bool, *, settle: bool) -> Ledger:
        """Do it all."""
        with contextlib.ExitStack() as stack:
            try:
                return self._run(stack, keep_queue, settle=settle)
            except WorldError as error:
                raise RunError(f"world: {error}") from error
            except OSError as error:
                # The disk is full, or somebody removed the run's directory.
                where = f"{error.filename}: " if error.filename else ""
                raise RunError(f"{where}{error.strerror or error}") from error

    def _run(self, stack: contextlib.ExitStack, keep_queue: bool, *, settle: bool) -> Ledger:
        scenario, directory, part = self._scenario, self._directory, self._part
        part.show("starting")
        world = stack.enter_context(placed_world(self._representation, self._file, directory))
        local = LocalUsers(directory, scenario, self._schedule, run_id=self._run_id)
        overrides = merged(local.settings, scenario.server) if scenario.local else scenario.server
        server = make_target(self._representation, directory, scenario, world, overrides)
        stack.callback(server.stop)
        server.start()
        stack.callback(self._end_load)
        with Sampler(
            directory / "samples.csv",
            server=server.pids,
            stats=server.stats,
            load=lambda: [self._load.pid] if self._load is not None else [],
            world=lambda: world.pids,
            interval_s=TREE_INTERVAL_S if server.is_tree else INTERVAL_S,
            usage=server.usage,
        ) as sampler:
            self._warm_up(server, sampler)
            sampler.phase = "idle"
            self._pause(server, IDLE_S)
            sampler.phase = "load"
            load_start = self._start_load(server, world)
            if isinstance(server, OurServer) and scenario.timeline:
                self._operator = Operator(
                    checked(scenario),
                    server.operate,
                    partial(self._restart, server, sampler),
                    server.set_disk,
                )
                self._operator.begin(load_start)
            self._watch_load(server, world, sampler)
            load_end = time.time()
            sampler.phase = "drain"
            drained = self._drain(server, world, sampler)
            sampler.phase = "idle-after"
            leaks = self._settle(server, sampler, settle=settle)
        part.show("stopping", self._delivered(sampler.latest))
        stats = dict(sampler.latest)
        queued = self._queued(server)
        status = server.stop()
        tally = world.stop()
        assert self._load is not None
        notes = Notes(
            run_id=self._run_id,
            representation=self._representation,
            load_start=load_start,
            load_end=load_end,
            drained=drained,
            server_status=status,
            load_status=self._load.wait(0.0) or 0,
            load=self._load_end_line(),
            world=tally,
            stats=stats,
            leaks=leaks,
            disk=diskphases.measured(
                accounts.read_lines(self._record), load_start, diskphases.phases_of(scenario)
            ),
            operated=self._operator.done if self._operator is not None else [],
            restarts=self._operator.restarts if self._operator is not None else [],
            target=self._representation if self._is_peer else OURS,
        )
        write_json(directory / "run.json", asdict(notes))
        if status != 0:
            raise RunError(server.describe_end())
        names = {domain: each.name for each in scenario.destinations for domain in domains_of(each)}

        def named(recipient: str) -> str:
            domain = recipient.rpartition("@")[2]
            return names.get(domain, domain)

        part.show("accounting")
        records = [*world.records]
        if scenario.local:
            local.keep(directory / LOCAL_RECORD)
            records.append(directory / LOCAL_RECORD)
        ledger = accounts.build(
            accounts.read_lines(self._record),
            (line for path in records for line in accounts.read_lines(path)),
            run_id=self._run_id,
            start=load_start,
            queued=queued,
            bounced=server.bounced(),
            queue_id=server.queue_id,
            destination=lambda recipient: local.group_of(recipient) or named(recipient),
        )
        if not keep_queue and not queued:
            server.discard_queue()
            local.discard()
        return ledger

    # Phases

    def _warm_up(self, server: Target, sampler: Sampler) -> None:
        sampler.phase = "warm-up"
        self._part.show("warm-up")
        # All at once: what a server needs for so many sessions is no envelope's, and it keeps it.
        clients = min(self._scenario.load.sessions, WARM_UP_CLIENTS_MAX)
        together = threading.Barrier(clients, timeout=WARM_UP_S)
        count = min(clients * WARM_UP_MESSAGES, len(self._schedule))

        def send(first: int) -> int:
            # Not in the same moment: a server with a short backlog would not see them all.
            time.sleep(first * WARM_UP_APART_S)
            share = range(first, count, clients)
            return _send(server.smtp_address, self._schedule, share, together)

        with ThreadPoolExecutor(clients) as pool:
            # A scenario may be about a server that takes fewer sessions than it is offered.
            sent = sum(pool.map(send, range(clients)))
        if not sent:
            # A server that died hangs up first and is gone a moment later.
            self._pause(server, 0.5)
            raise RunError("warm-up: the server does not take mail: not one message of its clients")
        deadline = time.monotonic() + WARM_UP_S
        self._next_sample(server, sampler)
        # What the world refuses on purpose stays in the queue: not every scenario can wait for it.
        still, changed = _in_queue(sampler.latest), time.monotonic()
        while _in_queue(sampler.latest) and time.monotonic() < deadline:
            if _in_queue(sampler.latest) != still:
                still, changed = _in_queue(sampler.latest), time.monotonic()
            elif time.monotonic() - changed > WARM_UP_STILL_S:
                break
            self._pause(server, TICK_S)
        self._delivered_before = sampler.latest.get("scheduler.delivery.ok", 0.0)

    def _start_load(self, server: Target, world: World) -> float:
        """Start the load; return when its schedule begins, in seconds since the epoch."""
        self._part.show("load")
        found = importlib.util.find_spec("loadtests")
        assert found is not None
        assert found.submodule_search_locations
        address, port = server.smtp_address
        self._load = Child(
            "load",
            [
                *python("locust", "-f", found.submodule_search_locations[0]),
                *("--headless", "--only-summary", "--host", f"smtp://{address}:{port}"),
                *("--scenario", str(self._file.resolve()), "--run-id", self._run_id),
                *("--record", str(self._record.resolve())),
                *("--lag-max", f"{self._scenario.load.lag_max_s:g}"),
                *("--tries", str(min(self._scenario.load.tries, TRIES_MAX))),
                *(("--expect", "4xx,lost") if self._is_restarted else ()),
            ],
            log=self._directory / "load.log",
            cwd=self._directory,
            environment={**source_environment(), "LOCUST_LOGLEVEL": "INFO"},
        )
        deadline = time.monotonic() + LOAD_START_S
        while time.monotonic() < deadline:
            start = _start_of(self._record)
            if start is not None:
                # It is a little in the future: the load spawns its users first.
                world.set_start(start)
                return start
            self._load.check()
            if self._load.status is not None:
                raise RunError(self._load.describe_end())
            self._pause(server, 0.02)
        raise RunError(f"load: did not begin within {LOAD_START_S:.0f} s")

    def _watch_load(self, server: Target, world: World, sampler: Sampler) -> None:
        load = self._load
        assert load is not None
        late_s = PEER_LATE_S if self._is_peer else LOAD_LATE_S
        deadline = time.monotonic() + float(self._schedule.due_s[-1]) + late_s
        asked = time.monotonic()
        while load.status is None:
            if time.monotonic() > deadline:
                raise RunError(f"load: not over {late_s:.0f} s after its last message was due")
            if time.monotonic() - asked > 1.0:
                asked = time.monotonic()
                world.stats()
            self._show("load", sampler.latest)
            self._pause(server, TICK_S)
        # 1: replies that nobody expected; 3: the generator was late. The summary tells of both.
        if load.status not in (0, 1, 3) or not self._load_end_line().get("complete"):
            raise RunError(load.describe_end())

    def _drain(self, server: Target, world: World, sampler: Sampler) -> bool:
        """Wait until the queue is empty; return whether it is.

        A server that can't be told to try again soon is not waited for once nothing moves.
        """
        self._next_sample(server, sampler)
        begun = time.monotonic()
        deadline = begun + self._scenario.drain_s
        patience = math.inf
        if (server.second_attempt_s or 0.0) > float(
            self._schedule.due_s[-1]
        ) + self._scenario.drain_s:
            patience = DRAIN_STILL_S
        still, changed = -1.0, begun
        while time.monotonic() < deadline:
            latest = sampler.latest
            self._show("drain", latest)
            if not _in_queue(latest):
                return True
            if _in_queue(latest) != still:
                still, changed = _in_queue(latest), time.monotonic()
            elif time.monotonic() - changed > patience:
                break
            self._pause(server, TICK_S)
        world.stats()
        return False

    def _settle(self, server: Target, sampler: Sampler, *, settle: bool) -> dict[str, float]:
        """Wait for gauges to come back; return those that did not, though the queue is empty."""
        self._pause(server, IDLE_S)
        if _in_queue(sampler.latest) or self._is_peer or not settle:
            return {}
        mta = self._scenario.server.get("limits", {}).get("mta", {})
        patience = SETTLE_S + min(float(mta.get("session_keepalive_s", 10.0)), 15.0)
        deadline = time.monotonic() + patience
        while True:
            latest = sampler.latest
            leaks = {name: latest[name] for name in DRAINING if latest.get(name)}
            if not leaks or time.monotonic() > deadline:
                return leaks
            self._show("settling", latest)
            self._pause(server, TICK_S)

    # Details

    def _queued(self, server: Target) -> list[Owed]:
        """Return what is still in the queue.

        Other servers list directories between which they move mail meanwhile, and miss what is on its way (postqueue(1)):
        what is in one of several listings is there.
        """
        found = dict.fromkeys(server.queued())
        if self._is_peer and found:
            for _ in range(LISTINGS - 1):
                before = len(found)
                self._pause(server, LISTING_PAUSE_S)
                found.update(dict.fromkeys(server.queued()))
                if len(found) == before:
                    break
        return list(found)

    def _pause(self, server: Target, seconds: float) -> None:
        time.sleep(seconds)
        server.check()
        if self._operator is not None:
            self._operator.act()

    def _restart(
        self, server: OurServer, sampler: Sampler, how: Literal["kill", "stop"], down_s: float
    ) -> dict[str, Any]:
        """Let the server end and start again; return what `OurServer.restart` says."""
        self._part.show("restart")
        before = self._delivered(sampler.latest)
        found = server.restart(how, down_s)
        # The next process counts from 0.
        self._delivered_before = -before
        wanted = sampler.samples + 2
        deadline = time.monotonic() + 10.0
        while sampler.samples < wanted and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def _next_sample(self, server: Target, sampler: Sampler) -> None:
        """Wait until the gauges are of now."""
        wanted = sampler.samples + 2
        deadline = time.monotonic() + 10.0
        while sampler.samples < wanted:
            if time.monotonic() > deadline:
                raise RunError("sampling: the server does not answer on its control socket")
            self._pause(server, 0.02)

    def _delivered(self, latest: Mapping[str, float]) -> float:
        return latest.get("scheduler.delivery.ok", 0.0) - self._delivered_before

    def _show(self, phase: str, latest: Mapping[str, float]) -> None:
        delivered = self._delivered(latest)
        numbers = (
            f"queue {_in_queue(latest):>6,.0f}  delivered {delivered:>7,.0f} of"
            f" {self._schedule.envelopes:,}  RSS {latest.get('rss_bytes', 0) / 2**20:.1f} MiB"
        )
        self._part.show(phase, delivered, numbers)

    def _load_end_line(self) -> dict[str, Any]:
        last: dict[str, Any] = {}
        for line in accounts.read_lines(self._record):
            if line.get("kind") == "end":
                last = line
        return last

    def _end_load(self) -> None:
        if self._load is not None:
            self._load.end()


def _in_queue(stats: Mapping[str, float]) -> float:
    return stats.get("scheduler.envelope", stats.get("queue.message", 0.0))


def _start_of(record: Path) -> float | None:
    """Return when the load's schedule begins, by the first line of its record; None before it is there."""
    try:
        with record.open("rb") as file:
            line = file.readline()
    except OSError:
        return None
    if not line.endswith(b"\n"):
        return None
    return float(json.loads(line)["load_start"])


def _send(
    address: tuple[str, int], schedule: Schedule, share: range, together: threading.Barrier
) -> int:
    """Send some messages of the schedule as those of a run that nobody accounts for; return how many were taken."""
    taken = 0
    try:
        with smtplib.SMTP(
            *address, local_hostname="client.testbed.test", timeout=WARM_UP_S
        ) as client:
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait()
            for i in share:
                recipients = [mailbox.address for mailbox in schedule.recipients(i)]
                client.sendmail(
                    schedule.sender(i), recipients, message_bytes(schedule, i, "warm-up")
                )
                taken += 1
    except (OSError, smtplib.SMTPException):
        together.abort()
    return taken
