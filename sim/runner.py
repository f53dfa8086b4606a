"""One run of the model, from a scenario to numbers."""

import copy
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np

from mta.core import records
from mta.core.engine import Engine
from mta.core.ids import SessionId
from mta.core.instructions import Instruction
from mta.core.limitchange import limit_rows
from mta.core.settings import flatten
from mta.core.stimuli import Stimulus
from sim.census import census_of, local_standing
from sim.collector import no_collector
from sim.costs import Costs
from sim.cpu import EventLoop
from sim.driver import Driver, Observer
from sim.kernel import Backend, Kernel, make_kernel
from sim.layout import Census, Layout
from sim.memory import Memory
from sim.operator import Operator
from sim.pressure import MemoryGuard
from sim.records import Fingerprint, TraceWriter
from sim.remote import RemoteHost, build_hosts, build_name_servers
from sim.resolver import Resolver
from sim.restarts import RestartDriver
from sim.result import COUNTS, SAMPLE_S, SERIES, SimResult, later_trace
from sim.scenario import Scenario, domains_of, mx_records, sender_domain
from sim.settings import ModelConfig, delivery_timeout, model_config
from sim.timeline import changes_of
from sim.tls import securities
from sim.workload import Schedule, draw

DRAIN_S: Final = 30.0
"""Longest wait of an orderly stop, unless the scenario's server says otherwise; mta/config.py."""

__all__ = ["COUNTS", "SAMPLE_S", "SERIES", "Model", "SimResult", "simulate"]


class Model:
    """One run that has not begun: every part in its place."""

    def __init__(
        self,
        scenario: Scenario,
        *,
        config: ModelConfig,
        costs: Costs,
        schedule: Schedule,
        start: float = 0.0,
        replication: int = 0,
        backend: Backend = "simpy",
        layout: Layout | None = None,
        hosts: Mapping[str, RemoteHost] | None = None,
        sample_s: float = SAMPLE_S,
        source: str = "scenario",
    ) -> None:
        """Build the parts; see `simulate` for the arguments.

        Raises:
            ConfigError: a behaviour of a destination is wrong.
        """
        self.scenario = scenario
        # A timeline changes limits, and the next run begins with those that the server begins with.
        self.config = config = replace(config, limits=copy.deepcopy(config.limits))
        self.costs = _slowed(costs)
        self.schedule = schedule
        self.seed = config.seed or scenario.seed or 1
        self.kernel: Kernel = make_kernel(backend)
        name = f"{self.seed}" if not replication else f"{self.seed}/{replication}"

        def make_engine(now: float) -> Engine:
            """Return the core of a process; as for real, it has the seed of the one before."""
            return Engine(
                # All decide alike, and what `fixed` takes is reckoned: the model need not really have it.
                representation="slim" if config.envelope == "fixed" else config.envelope,
                limits=config.limits,
                retry=config.retry,
                concurrency=config.concurrency,
                stream=lambda concern: Random(f"{name}/{concern}"),
                now=now,
                first_session=SessionId(0),
                warn_after_s=config.bounce.warn_interval_s,
                rules=config.relay_rules(),
            )

        def resolver(_: EventLoop) -> Resolver:
            return Resolver(
                self.kernel,
                config.dns,
                records=mx_records(scenario),
                destinations=_destinations(scenario),
                servers=build_name_servers(scenario, replication=replication, source=source),
                network_s=self.costs.lookup_network_s,
                max_mx=config.limits.mta.max_mx,
            )

        parts: dict[str, Any] = {
            "load": scenario.load,
            "schedule": schedule,
            "hosts": build_hosts(scenario, replication=replication, source=source)
            if hosts is None
            else dict(hosts),
            "resolver": resolver,
            "groups": scenario.local,
            "delivery_timeout_s": delivery_timeout(scenario.server, source=source),
            "start": start,
            "security": securities(scenario, config, source=source),
        }
        core = self.kernel, make_engine(start), self.costs, config.limits
        timeline = changes_of(scenario.timeline, config.limits, source=source)
        self._mortal: RestartDriver | None = None
        """The driver, if its process ends before the run does."""
        if any(change.event.restart for change in timeline):
            self._mortal = RestartDriver(*core, **parts)
            self._mortal.prepare(
                config.limits,
                make_engine=make_engine,
                configured={row["key"]: row["value"] for row in limit_rows(config.limits)},
                drain_s=float(scenario.server.get("drain_s", DRAIN_S)),
            )
        self.driver = self._mortal or Driver(*core, **parts)
        self.operator = Operator(self.kernel, self.driver, timeline)
        self.guard: MemoryGuard | None = None
        """Who looks at the memory, if there is a limit or may be one later."""
        if config.limits.memory.limit_bytes or any(
            key == "limits.memory.limit_bytes" for change in timeline for key, _ in change.limits
        ):
            self.guard = MemoryGuard(
                self.kernel,
                config.limits.memory,
                resident=lambda: self._bytes()[0],
                changed=self.driver.inbound.memory_is,
            )
        self.layout = layout
        self.census: list[tuple[Census, int]] | None = None
        """What was there at each sample, and messages accepted by then; None if nobody asks."""
        self.memory = Memory(costs.memory_of(config.envelope), scenario.load.tls)
        self._starts = 0
        self.start_at = start
        self.replication = replication
        self.writer: TraceWriter | None = None
        self.progress: Callable[[float, int, int], None] | None = None
        """Told at each sample: seconds, messages settled, queued envelopes."""
        self._sample_s = sample_s
        self._t: list[float] = []
        self._samples: list[tuple[int, ...]] = []
        self._horizon_s = math.inf

    @property
    def engine(self) -> Engine:
        """The core; of the process that there is now, or was last."""
        return self.driver.engine

    def trace_into(self, first: Path) -> None:
        """Write what each process measures to a trace of its own, beginning with this one; `trace` takes what it hears.

        Raises:
            OSError: it can't be written.
        """
        driver = self.driver
        self.writer = TraceWriter(first, self.header())

        def committed(batch: int, lagging: int, seconds: float) -> None:
            assert self.writer is not None
            self.writer.measured(
                "commit", driver.now, batch=batch, lagging=lagging, seconds=round(seconds, 6)
            )

        def born() -> None:
            assert self.writer is not None
            assert self._mortal is not None
            self.writer.close()
            number = len(self._mortal.restarts) + 1
            self.writer = TraceWriter(later_trace(first, number), self.header(driver.now))

        driver.queue.on_commit = committed
        if self._mortal is not None:
            self._mortal.born = born

    def trace(self, stimulus: Stimulus, now: float, instructions: list[Instruction]) -> None:
        """Write a stimulus to the trace of the process that heard it."""
        assert self.writer is not None
        self.writer.observe(stimulus, now, instructions)

    def header(self, started_at: float | None = None) -> records.Record:
        """Return the first line of the run's trace, or of that of a process that was started later."""
        settings = flatten(self.config)
        limits = {key: value for key, value in settings.items() if key.startswith("limits.")}
        return records.header(
            clock="simulated",
            started_at=self.start_at if started_at is None else started_at,
            seed=self.seed,
            representation=self.config.envelope,
            limits=limits,
            config={key: value for key, value in settings.items() if key not in limits},
            versions=_versions(),
            host={},
        )

    def run(self) -> None:
        """Run until everything is quiet, or until `Scenario.drain_s` after the load."""
        self.driver.start()
        self.operator.start()
        if self.guard is not None:
            self.guard.start()
        self.kernel.schedule(0.0, self._sample, None)
        with no_collector():
            self.kernel.run()

    def _sample(self, _: None) -> None:
        driver, kernel = self.driver, self.kernel
        scheduler, mortal = self.engine.scheduler, self._mortal
        queued = len(scheduler.store)
        deferred = scheduler.counts.tempfail
        if mortal is not None:
            deferred += mortal.past["tempfail"]
            if mortal.is_down:
                queued = len(mortal.spool)
        inbound = driver.inbound
        if self.census is not None and not (mortal is not None and mortal.is_down):
            self.census.append((census_of(driver), driver.inbound.accepted))
        rss_bytes, live_bytes = self._bytes()
        self._t.append(kernel.now)
        self._samples.append(
            (
                queued,
                scheduler.in_flight,
                scheduler.held,
                rss_bytes,
                live_bytes,
                inbound.accepted_envelopes,
                driver.delivered,
                deferred,
                len(driver.outbound.connections),
            )
        )
        if driver.ledger is not None:
            agent = self.engine.local.envelopes
            driver.ledger.peak_agent = max(driver.ledger.peak_agent, agent)
        if self.writer is not None:
            values = {**self.engine.gauges(), **self.engine.counters()}
            values["smtp.session"] = inbound.connections
            values["queue.waiting"] = driver.queue.waiting
            self.writer.gauges(values, driver.now)
        if self.progress is not None:
            self.progress(kernel.now, inbound.accepted + inbound.refused, queued)
        if inbound.ended_at is not None and self._horizon_s == math.inf:
            self._horizon_s = inbound.ended_at + self.scenario.drain_s
        if driver.is_quiet() or kernel.now >= self._horizon_s:
            kernel.stop()
            return
        # Not now + grain: the sum of rounded fifths of a second would drift.
        kernel.schedule(max(0.0, len(self._t) * self._sample_s - kernel.now), self._sample, None)

    def _bytes(self) -> tuple[int, int]:
        """Return resident memory now, and what of it is the queue."""
        driver, memory, fill = self.driver, self.memory, self.driver.fill
        mortal, before = self._mortal, 0
        if mortal is not None:
            if mortal.is_down:
                return 0, 0
            before = mortal.accepted_before
            if len(mortal.restarts) != self._starts:
                # What the process before had and kept went with it.
                self._starts = len(mortal.restarts)
                self.memory = memory = Memory(
                    self.costs.memory_of(self.config.envelope), self.scenario.load.tls
                )
                if self.guard is not None:
                    self.guard.begin_anew()
        if self.layout is not None:
            live = self.layout.live_bytes(census_of(driver))
            return live, live
        local = local_standing(driver)
        envelopes = len(self.engine.store) - fill.local
        in_flight = self.engine.scheduler.in_flight - local.in_flight
        scheduler = self.engine.scheduler
        due = scheduler.scheduled + scheduler.held - local.scheduled - local.held
        live_bytes = memory.live_bytes(
            envelopes=envelopes,
            body_bytes=fill.size_bytes,
            in_flight=in_flight,
            due=due,
            local=local,
        )
        rss_bytes = memory.rss_bytes(
            envelopes=envelopes,
            body_bytes=fill.size_bytes,
            messages=driver.inbound.accepted - before,
            in_flight=in_flight,
            due=due,
            local=local,
            sessions=driver.inbound.connections,
            connections=len(driver.outbound.connections),
        )
        return rss_bytes, round(live_bytes)

    def result(self, fingerprint: Fingerprint | None = None) -> SimResult:
        """Return what the run came to."""
        driver, counted, mortal = self.driver, self.engine.scheduler.counts, self._mortal
        columns = np.array(self._samples, dtype=np.int64).T
        inbound, outbound = driver.inbound, driver.outbound
        drained = inbound.ended_at is not None and not driver.messages
        counts = {
            "messages": len(self.schedule),
            "accepted_messages": inbound.accepted,
            "refused_messages": inbound.refused,
            "turned_away": inbound.turned_away,
            "accepted": inbound.accepted_envelopes,
            "delivered": driver.delivered,
            "deferred": counted.tempfail,
            "bounced": counted.bounced,
            "failed": driver.failed,
            "expired": counted.expired,
            "queued": len(self.engine.store) if mortal is None else len(mortal.spool),
            "transactions": outbound.transactions,
            "connections_opened": outbound.opened,
            "connections_failed": outbound.failed,
            "commits": driver.queue.commits,
            "broken": inbound.broken,
            "duplicates": 0 if mortal is None else mortal.duplicates,
            "duplicates_client": 0 if mortal is None else mortal.duplicates_client,
            "unacknowledged": 0 if mortal is None else mortal.unacknowledged,
        }
        if mortal is not None:
            for key, name in (
                ("deferred", "tempfail"),
                ("bounced", "bounced"),
                ("expired", "expired"),
            ):
                counts[key] += mortal.past[name]
        assert counts.keys() == COUNTS.keys()
        return SimResult(
            scenario=self.scenario.name,
            representation=self.config.envelope,
            seed=self.seed,
            replication=self.replication,
            t=np.array(self._t),
            **dict(zip(SERIES, columns, strict=True)),
            counts=counts,
            load_s=self.kernel.now if inbound.ended_at is None else inbound.ended_at,
            drain_time_s=driver.emptied_at if drained else None,
            end_s=self.kernel.now,
            busy_share=driver.loop.busy_s / self.kernel.now if self.kernel.now else 0.0,
            accept_latency_s=np.array(inbound.latency_s),
            delivery_latency_s=np.array(driver.latency_s),
            stimuli=fingerprint.stimuli if fingerprint else 0,
            fingerprint=fingerprint.hexdigest() if fingerprint else "",
            local=None
            if driver.ledger is None
            else driver.ledger.result(now=self.kernel.now, attempts=driver.local.started),
            census=tuple(self.census or ()),
            restarts=() if mortal is None else tuple(mortal.restarts),
            memory_levels=() if self.guard is None else tuple(self.guard.levels),
            beside={} if driver.beside is None else driver.beside.said,
            stress_entered=0 if driver.beside is None else driver.beside.stress_entered,
            layout=self.layout.name if self.layout is not None else "",
        )


def simulate(
    scenario: Scenario,
    *,
    representation: str | None = None,
    costs: Costs | None = None,
    config: ModelConfig | None = None,
    start: float = 0.0,
    schedule: Schedule | None = None,
    replication: int = 0,
    trace: Path | None = None,
    fingerprint: bool = True,
    backend: Backend = "simpy",
    layout: Layout | None = None,
    census: bool = False,
    hosts: Mapping[str, RemoteHost] | None = None,
    sample_s: float = SAMPLE_S,
    progress: Callable[[float, int, int], None] | None = None,
    source: str = "scenario",
) -> SimResult:
    """Run the model of a scenario.

    Args:
        scenario: the experiment.
        representation: how envelopes are kept; by default what the settings say.
        costs: what things cost; by default those of `sim.costs`.
        config: the server's settings; by default those of the scenario's ``server`` table.
        start: what the core's clock says at the start of the load; an instant of the epoch puts the
            model on the clock of a recorded run.
        schedule: every message; by default drawn from the scenario. With the instants of a recorded
            run it makes the model answer for the same arrivals.
        replication: number of the repetition: other messages, other hosts, other choices.
        trace: file for a trace in the server's schema.
        fingerprint: reckon the fingerprint; costs about half a microsecond per stimulus.
        backend: what the clock runs on.
        layout: whose bytes memory is reckoned in; by default those of the representation.
        census: keep what was there at each sample.
        hosts: every host by its address, in its first state; by default what the scenario makes of them.
        sample_s: grain of the series, seconds.
        progress: told at each sample: seconds, messages settled, queued envelopes.
        source: the scenario's file, for errors.

    Raises:
        ConfigError: the scenario says something about the server or a host that can't be.
        OSError: the trace can't be written.
    """
    if config is None:
        config = model_config(scenario.server, source=source)
    if representation is not None:
        config = replace(config, envelope=representation)  # type: ignore[arg-type]  # checked by make_store
    model = Model(
        scenario,
        config=config,
        costs=costs or Costs(),
        schedule=draw(scenario, replication) if schedule is None else schedule,
        start=start,
        replication=replication,
        backend=backend,
        layout=layout,
        hosts=hosts,
        sample_s=sample_s,
        source=source,
    )
    model.progress = progress
    model.census = [] if census else None
    observers: list[Observer] = []
    print_ = Fingerprint() if fingerprint else None
    if print_ is not None:
        observers.append(print_.observe)
    if trace is not None:
        model.trace_into(trace)
        observers.append(model.trace)
    model.driver.observer = _all(observers)
    try:
        model.run()
    finally:
        if model.writer is not None:
            model.writer.close()
    return model.result(print_)


def _all(observers: Sequence[Observer]) -> Observer | None:
    if len(observers) < 2:
        return observers[0] if observers else None

    def observe(stimulus: Any, now: float, instructions: Any) -> None:
        for observer in observers:
            observer(stimulus, now, instructions)

    return observe


def _slowed(costs: Costs) -> Costs:
    """Return the costs on a loop of which somebody else takes a share."""
    if not costs.idle_share:
        return costs
    factor = 1 / (1 - costs.idle_share)
    names = (
        "session_s",
        "message_s",
        "recipient_s",
        "byte_s",
        "connect_s",
        "transaction_s",
        "delivery_s",
        "sent_byte_s",
        "deferral_s",
        "lookup_s",
        "local_rcpt_s",
        "local_s",
        "fork_s",
        "local_done_s",
        "restore_s",
    )
    return replace(costs, idle_share=0.0, **{name: getattr(costs, name) * factor for name in names})


def _destinations(scenario: Scenario) -> dict[str, int]:
    """Return the destination whose name servers answer for each domain."""
    found = {sender_domain(scenario): 0}
    for number, destination in enumerate(scenario.destinations):
        found.update(dict.fromkeys(domains_of(destination), number))
    return found


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("mta-testbed", "simpy", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions
