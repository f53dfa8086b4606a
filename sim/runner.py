"""One run of the model, from a scenario to numbers."""

import gc
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mta.core import records
from mta.core.engine import Engine
from mta.core.ids import SessionId
from mta.core.settings import flatten
from sim.costs import Costs
from sim.cpu import EventLoop
from sim.driver import Driver, Observer
from sim.kernel import Backend, Kernel, make_kernel
from sim.layout import Census, Layout, Standing
from sim.local import LocalResult
from sim.memory import NO_LOCAL, Memory
from sim.records import Fingerprint, TraceWriter
from sim.remote import build_hosts, build_name_servers
from sim.resolver import Resolver
from sim.scenario import Scenario, domains_of, mx_records, sender_domain
from sim.settings import ModelConfig, model_config
from sim.workload import Schedule, draw

SAMPLE_S: Final = 0.2
"""Grain of the series, seconds; that of the bench and of the server's trace."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SERIES: Final = (
    "queued",
    "in_flight",
    "held",
    "rss_bytes",
    "live_bytes",
    "accepted",
    "delivered",
    "deferred",
    "connections",
)
"""The arrays of a result beside ``t``."""


@dataclass(frozen=True, slots=True)
class SimResult:
    """What a run of the model came to."""

    scenario: str
    representation: str
    seed: int
    replication: int
    t: Floats
    """float64[sample]: seconds after the start of the load, every `SAMPLE_S`, from 0."""
    queued: Ints
    """int64[sample], as all that follow: the gauge ``scheduler.envelope``."""
    in_flight: Ints
    """The gauge ``scheduler.envelope.inflight``."""
    held: Ints
    """The gauge ``scheduler.ramqueue.hold``."""
    rss_bytes: Ints
    """Resident memory of the server, as `sim.memory` estimates it."""
    live_bytes: Ints
    """What the queue takes of it: neither the process nor what an allocator keeps."""
    accepted: Ints
    """Envelopes accepted so far."""
    delivered: Ints
    """Envelopes delivered so far, reports not counted."""
    deferred: Ints
    """Temporary failures so far, which may be several of one envelope."""
    connections: Ints
    """The gauge ``mta.session``."""
    counts: Mapping[str, int]
    """What was counted until the end; see `COUNTS`."""
    load_s: float
    """When the last message was settled with its client."""
    drain_time_s: float | None
    """From the start of the load until the queue was empty for good; None if it was not."""
    end_s: float
    """When the run ended."""
    busy_share: float
    """Part of the time in which the event loop was busy."""
    accept_latency_s: Floats
    """float64[message]: from the instant at which it was due to its 250."""
    delivery_latency_s: Floats
    """float64[delivery]: from the instant at which its message was due."""
    stimuli: int
    """What the core was told; 0 if the run was not fingerprinted."""
    fingerprint: str
    """See `sim.records.Fingerprint`; empty if the run was not fingerprinted."""
    local: LocalResult | None = None
    """Of local mail; None if the scenario has none."""
    census: tuple[tuple[Census, int], ...] = ()
    """What was there at each sample, and messages accepted so far, if that was asked for: `sim.compare` counts memory
    again from it."""
    layout: str = ""
    """Whose bytes ``rss_bytes`` and ``live_bytes`` are; empty for those of our representation."""

    @property
    def peak_queued(self) -> int:
        """Largest sample of ``queued``."""
        return int(self.queued.max())

    @property
    def peak_rss_bytes(self) -> int:
        """Largest sample of ``rss_bytes``."""
        return int(self.rss_bytes.max())

    @property
    def peak_live_bytes(self) -> int:
        """Largest sample of ``live_bytes``."""
        return int(self.live_bytes.max())

    @property
    def bytes_per_envelope(self) -> float | None:
        """``live_bytes`` of a queued envelope when that was largest; None if nothing was queued."""
        at = int(self.live_bytes.argmax())
        return float(self.live_bytes[at] / self.queued[at]) if self.queued[at] else None

    def quantiles(self) -> dict[str, float | None]:
        """Return p50, p95 and p99 of the time to delivery, in seconds; None without deliveries."""
        if not len(self.delivery_latency_s):
            return {"p50": None, "p95": None, "p99": None}
        values = np.percentile(self.delivery_latency_s, (50, 95, 99), method="inverted_cdf")
        return dict(zip(("p50", "p95", "p99"), map(float, values), strict=True))

    def summary(self) -> dict[str, Any]:
        """Return every number that is no array, for JSON."""
        return {
            "scenario": self.scenario,
            "representation": self.representation,
            "seed": self.seed,
            "replication": self.replication,
            **self.counts,
            "peak_queued": self.peak_queued,
            "layout": self.layout or None,
            "peak_rss_bytes": self.peak_rss_bytes,
            "peak_live_bytes": self.peak_live_bytes,
            "bytes_per_envelope": self.bytes_per_envelope,
            "load_s": round(self.load_s, 6),
            "drain_time_s": None if self.drain_time_s is None else round(self.drain_time_s, 6),
            "end_s": round(self.end_s, 6),
            "busy_share": round(self.busy_share, 6),
            "delivery_latency_s": self.quantiles(),
            "local": self.local.summary() if self.local is not None else None,
            "stimuli": self.stimuli,
            "fingerprint": self.fingerprint,
        }


COUNTS: Final = {
    "messages": "offered",
    "accepted_messages": "messages answered with 250",
    "refused_messages": "messages refused, after all tries",
    "accepted": "envelopes accepted",
    "delivered": "envelopes delivered, reports not counted",
    "deferred": "temporary failures, which may be several of one envelope",
    "bounced": "reports put into the queue",
    "failed": "envelopes given up: refused for good or expired; reports not counted",
    "expired": "envelopes and reports that became too old",
    "queued": "envelopes still there at the end, reports too",
    "transactions": "outbound transactions started",
    "connections_opened": "outbound connections tried",
    "connections_failed": "outbound connections that did not become ready",
    "commits": "group commits",
}
"""Names in `SimResult.counts` and what they count."""


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
        source: str = "scenario",
    ) -> None:
        """Build the parts; see `simulate` for the arguments.

        Raises:
            ConfigError: a behaviour of a destination is wrong.
        """
        self.scenario = scenario
        self.config = config
        self.costs = _slowed(costs)
        self.schedule = schedule
        self.seed = config.seed or scenario.seed or 1
        self.kernel: Kernel = make_kernel(backend)
        name = f"{self.seed}" if not replication else f"{self.seed}/{replication}"
        self.engine = Engine(
            # All decide alike, and what `fixed` takes is reckoned: the model need not really have it.
            representation="slim" if config.envelope == "fixed" else config.envelope,
            limits=config.limits,
            retry=config.retry,
            concurrency=config.concurrency,
            stream=lambda concern: Random(f"{name}/{concern}"),
            now=start,
            first_session=SessionId(0),
            warn_after_s=config.bounce.warn_interval_s,
        )

        def resolver(_: EventLoop) -> Resolver:
            return Resolver(
                self.kernel,
                config.dns,
                records=mx_records(scenario),
                destinations=_destinations(scenario),
                servers=build_name_servers(scenario, replication=replication, source=source),
                network_s=self.costs.lookup_network_s,
            )

        self.driver = Driver(
            self.kernel,
            self.engine,
            self.costs,
            config.limits,
            load=scenario.load,
            schedule=schedule,
            hosts=build_hosts(scenario, replication=replication, source=source),
            resolver=resolver,
            groups=scenario.local,
            start=start,
        )
        self.layout = layout
        self.census: list[tuple[Census, int]] | None = None
        """What was there at each sample, and messages accepted by then; None if nobody asks."""
        self.memory = Memory(costs.memory_of(config.envelope))
        self.start_at = start
        self.replication = replication
        self.writer: TraceWriter | None = None
        self.progress: Callable[[float, int, int], None] | None = None
        """Told at each sample: seconds, messages settled, queued envelopes."""
        self._t: list[float] = []
        self._samples: list[tuple[int, ...]] = []
        self._horizon_s = math.inf

    def header(self) -> records.Record:
        """Return the first line of the run's trace."""
        settings = flatten(self.config)
        limits = {key: value for key, value in settings.items() if key.startswith("limits.")}
        return records.header(
            clock="simulated",
            started_at=self.start_at,
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
        self.kernel.schedule(0.0, self._sample, None)
        # Nothing of what the run makes refers back to itself: the collector would look in vain.
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            self.kernel.run()
        finally:
            if was_enabled:
                gc.enable()

    def _sample(self, _: None) -> None:
        driver, kernel = self.driver, self.kernel
        scheduler = self.engine.scheduler
        queued = len(scheduler.store)
        inbound = driver.inbound
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
                scheduler.counts.tempfail,
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
        kernel.schedule(max(0.0, len(self._t) * SAMPLE_S - kernel.now), self._sample, None)

    def _bytes(self) -> tuple[int, int]:
        """Return resident memory now, and what of it is the queue."""
        driver, memory, fill = self.driver, self.memory, self.driver.fill
        if self.census is not None:
            self.census.append((self._census(), driver.inbound.accepted))
        if self.layout is not None:
            live = self.layout.live_bytes(self._census())
            return live, live
        local = self._local_standing() if driver.ledger is not None else NO_LOCAL
        envelopes = len(self.engine.store) - fill.local
        in_flight = self.engine.scheduler.in_flight - local.in_flight
        live_bytes = memory.live_bytes(
            envelopes=envelopes, body_bytes=fill.size_bytes, in_flight=in_flight, local=local
        )
        rss_bytes = memory.rss_bytes(
            envelopes=envelopes,
            body_bytes=fill.size_bytes,
            messages=driver.inbound.accepted,
            in_flight=in_flight,
            local=local,
        )
        return rss_bytes, round(live_bytes)

    def _local_standing(self) -> Standing:
        local, fill = self.engine.local, self.driver.fill
        held = sum(len(user.held) for user in local.users.values())
        scheduled = len(self.engine.scheduler._scheduled_local)
        pending = fill.local - local.envelopes - held - scheduled
        return Standing(pending, scheduled, held, local.envelopes)

    def _census(self) -> Census:
        """Return what is in the server now."""
        driver, gauges = self.driver, self.engine.gauges()
        local = self._local_standing() if driver.ledger is not None else NO_LOCAL
        every = Standing(
            gauges["scheduler.envelope.pending"],
            gauges["scheduler.envelope.scheduled"],
            gauges["scheduler.ramqueue.hold"],
            gauges["scheduler.envelope.inflight"],
        )
        return Census(
            relayed=Standing(*(a - b for a, b in zip(every, local, strict=True))),
            local=local,
            messages=len(driver.messages),
            body_bytes=driver.fill.size_bytes,
            tasks=gauges["mta.task"] + gauges["mta.task.running"],
            users=gauges["mda.user"],
            hold_queues=gauges["scheduler.ramqueue.holdq"],
        )

    def result(self, fingerprint: Fingerprint | None = None) -> SimResult:
        """Return what the run came to."""
        driver, counted = self.driver, self.engine.scheduler.counts
        columns = np.array(self._samples, dtype=np.int64).T
        inbound, outbound = driver.inbound, driver.outbound
        drained = inbound.ended_at is not None and not driver.messages
        counts = {
            "messages": len(self.schedule),
            "accepted_messages": inbound.accepted,
            "refused_messages": inbound.refused,
            "accepted": inbound.accepted_envelopes,
            "delivered": driver.delivered,
            "deferred": counted.tempfail,
            "bounced": counted.bounced,
            "failed": driver.failed,
            "expired": counted.expired,
            "queued": len(self.engine.store),
            "transactions": outbound.transactions,
            "connections_opened": outbound.opened,
            "connections_failed": outbound.failed,
            "commits": driver.queue.commits,
        }
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
        source=source,
    )
    model.progress = progress
    model.census = [] if census else None
    observers: list[Observer] = []
    print_ = Fingerprint() if fingerprint else None
    if print_ is not None:
        observers.append(print_.observe)
    if trace is not None:
        model.writer = TraceWriter(trace, model.header())
        observers.append(model.writer.observe)
        model.driver.queue.on_commit = _commit_records(model)
    model.driver.observer = _all(observers)
    try:
        model.run()
    finally:
        if model.writer is not None:
            model.writer.close()
    return model.result(print_)


def _commit_records(model: Model) -> Callable[[int, int, float], None]:
    def write(batch: int, lagging: int, seconds: float) -> None:
        assert model.writer is not None
        model.writer.measured(
            "commit", model.driver.now, batch=batch, lagging=lagging, seconds=round(seconds, 6)
        )

    return write


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
