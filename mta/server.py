"""The server: builds the parts, starts them in order, stops them in order.

Start: log, queue (locked, opened), core, driver, control socket, metrics, door, and then, while mail is
already taken, the envelopes that the queue held before. Stop, on the first SIGTERM or SIGINT:

1. the door takes no more connections or messages, and sends its clients away with 421, those in the
   middle of a message after its answer;
2. idle outbound connections are closed; running transactions may end, for `drain_s` seconds;
3. what is left is cut off: it is tried again after the next start;
4. control socket and metrics end, the queue is flushed and unlocked, the log is closed.

A second signal skips the wait. Stopping twice is harmless. SIGHUP opens the log file anew, and
reads the certificate and the users again.
"""

import asyncio
import gc
import signal
import traceback
from collections.abc import Mapping
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any

from mta import readings
from mta.authentication import Authenticator
from mta.control import ControlServer
from mta.core.engine import Engine
from mta.core.ids import SessionId
from mta.core.metrics import Metrics
from mta.core.pressure import MemoryLevel
from mta.core.routing import own_by_port
from mta.door import ServerDoor
from mta.driver import Driver
from mta.effects import Effects
from mta.exposition import Exposition
from mta.listeners import (
    Listeners,
    interface_addresses,
    listening,
)
from mta.memory import MemoryWatch
from mta.opening import open_control, open_log, open_metrics, open_queue, open_record
from mta.operations import Operations
from mta.profile import EffectProbe, Profile
from mta.queue.sqlite import SqliteQueue
from mta.serverstats import stats_of
from mta.trace import StimulusTrace, Tracer

if TYPE_CHECKING:
    from mta.addressing import Addressing
    from mta.certificates import Certificates
    from mta.config import Config
    from mta.log import Log
    from mta.outtls import OutboundTls
    from mta.passwords import Passwords
    from mta.queue.batch import Commit
    from mta.resolver import Resolver

SAMPLE_S = 0.2
"""Grain of the gauges in trace.jsonl, seconds."""

OUTBOUND_SESSIONS = 1 << 31
"""Outbound session ids have this bit, inbound ones do not: a log shows the direction."""


class ServerFailedError(Exception):
    """The server can't go on and has stopped; started again, it finds its queue. The text is one line."""


class MtaServer:
    """One running server."""

    def __init__(self, config: "Config", *, source: str, effects: Effects | None = None) -> None:
        """Take a configuration; `run` does the rest.

        Args:
            config: what the operator wants.
            source: the configuration's file name, for errors.
            effects: the way to the world; None for the usual one.
        """
        self.config = config
        self.source = source
        self.effects = effects or Effects(allow=config.relay.allow)
        self.seed = config.seed or self.effects.entropy() & 0xFFFFFFFF
        self.metrics = Metrics()
        self.profile = Profile()
        self.restoring = False
        self.smtp_address: tuple[str, int] = ("", 0)
        self.listeners: Listeners
        self.log: Log
        self.tracer: Tracer
        self.queue: SqliteQueue
        self.engine: Engine
        self.driver: Driver
        self.memory: MemoryWatch
        self.door: ServerDoor
        self.record: StimulusTrace | None = None
        self.control: ControlServer | None = None
        self._exposition: Exposition | None = None
        self.resolver: Resolver
        self.outbound_tls: OutboundTls
        self._addressing: Addressing | None = None
        self._certificates: Certificates | None = None
        self._passwords: Passwords | None = None
        self._authenticator: Authenticator | None = None
        self.started_at = self.effects.now()
        self._failure = ""
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()

    async def run(self) -> None:
        """Serve until a signal says stop.

        Raises:
            ConfigError: something that the configuration names can't be used.
            ServerFailedError: it had to stop by itself.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._fault)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            await self._start()
            await self._restore_until_stopped()
            await self._stop.wait()
            await self._drain()
        finally:
            await self._close()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)
            loop.set_exception_handler(None)
        if self._failure:
            raise ServerFailedError(self._failure)

    def _fail(self, problem: str) -> None:
        """Stop at once, for whoever supervises the server to start it again.

        Without a queue that writes, every message would get 452 and every delivery would be repeated later.
        """
        self._failure = f"stopped, to be started again: {problem}"
        self.log.warn(f"mta {self._failure}")
        self.stop()
        self._stop_now.set()

    def stop(self) -> None:
        """Ask the server to stop; the second time, to stop at once."""
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    def _reload(self) -> None:
        """Open the log anew, read certificates, users and passwords again; what can't be read is in the log."""
        if hasattr(self, "log"):
            self.log.reopen()
            outbound = getattr(self, "outbound_tls", None)
            for part in (self._certificates, self._passwords, outbound):
                with suppress(ValueError):
                    if part is not None:
                        part.update()

    def _fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log what nobody foresaw: one line for the operator, the rest for us."""
        error = context.get("exception")
        self.metrics.inc("error.internal")
        if not hasattr(self, "log"):
            loop.default_exception_handler(context)
            return
        what = context.get("message") or "unknown fault"
        self.log.warn(f"internal error: {what}" + (f": {error!r}" if error is not None else ""))
        if isinstance(error, BaseException):
            for line in "".join(traceback.format_exception(error)).splitlines():
                self.log.warn(f"internal error: {line}")

    # Start

    async def _start(self) -> None:
        config, effects = self.config, self.effects
        self._open_log()
        await self._open_queue()
        # Session ids: the high half is the second of the start, so that logs of two runs differ.
        sessions = (int(self.started_at) & 0xFFFFFFFF) << 32
        now = effects.now()
        rules = config.relay_rules()
        own = self._own_by_port()
        self.engine = Engine(
            representation=config.envelope,
            limits=config.limits,
            retry=config.retry,
            concurrency=config.concurrency,
            stream=lambda name: Random(f"{self.seed}/{name}"),
            now=now,
            first_session=SessionId(sessions | OUTBOUND_SESSIONS),
            own_names=(config.hostname.lower(),),
            own_addresses=own.get(config.relay.port, ()),
            own_by_port=own,
            warn_after_s=config.bounce.warn_interval_s,
            rules=rules,
        )
        found = readings.read(
            config,
            self.source,
            rules=rules,
            effects=effects,
            log=self.log,
            tracer=self.tracer,
        )
        self.resolver, self.outbound_tls = found.resolver, found.outbound_tls
        self._addressing = found.addressing
        self._certificates, self._passwords = found.certificates, found.passwords
        if found.passwords is not None:
            self._authenticator = Authenticator(
                found.passwords,
                effects=effects,
                limits=config.limits.smtp,
                metrics=self.metrics,
                log=self.log.warn,
            )
        self.driver = Driver(
            self.engine,
            config,
            effects=effects,
            queue=self.queue,
            resolver=self.resolver,
            log=self.log,
            tracer=self.tracer,
            record=self.record,
            profile=self.profile,
            addressing=found.addressing,
            tls=self.outbound_tls,
        )
        self.door = ServerDoor(
            config,
            self.driver,
            self.queue,
            log=self.log,
            tracer=self.tracer,
            metrics=self.metrics,
            first_session=SessionId(sessions),
            certificates=self._certificates,
            authenticator=self._authenticator,
        )
        self.memory = MemoryWatch(
            config.limits.memory,
            effects,
            log=self.log.warn,
            on_level=self._set_memory_level,
            shrink=self._shrink,
        )
        self._watch_effects()
        await self._open_control()
        await self._open_door()
        self.memory.start()
        if self.record is not None:
            self._sample()
        # What was made so far lives as long as the server: the collector need not look at it again.
        gc.collect()
        gc.freeze()

    def _watch_effects(self) -> None:
        """Show effects to whoever wants them, from when they want to until they do not."""
        loop = asyncio.get_running_loop()
        probe = EffectProbe(self.effects, self.profile, self.tracer, loop)

        def changed() -> None:
            probe.install(self.profile.on or self.tracer.io)

        self.profile.watch(changed)
        self.tracer.watch(changed)
        changed()

    def _own_by_port(self) -> dict[int, tuple[str, ...]]:
        """Return the addresses that we listen on, by port: mail that is sent there would come back.

        A port that the system chooses is nobody's mail exchanger.
        """
        places = [(each.address, each.port) for each in listening(self.config, self.source)]
        fixed = [place for place in places if place[1]]
        return own_by_port(fixed, lambda: interface_addresses(self.effects))

    def update_security(self, what: str) -> str:
        """Read ``tls`` (the certificate), ``auth`` (the users) or ``relay`` (authorities, passwords of other hosts) again.

        Returns:
            In one line, what came of it.

        Raises:
            ValueError: there is none, or it can't be used; what was read before still counts. One line.
        """
        if what == "relay":
            return self.outbound_tls.update()
        part = self._certificates if what == "tls" else self._passwords
        if part is None:
            raise ValueError(f"the configuration has no [{what}]")
        return part.update()

    def _open_log(self) -> None:
        config, source = self.config, self.source
        self.log = open_log(config, source, self.effects)
        self.tracer = Tracer(self.log)
        readings.trace(config, source, self.tracer)
        self.record = open_record(
            config,
            source,
            self.effects,
            started_at=self.started_at,
            seed=self.seed,
            own=self._own_by_port,
        )

    async def _open_queue(self) -> None:
        self.queue = SqliteQueue(
            self.config.queue.directory,
            effects=self.effects,
            limits=self.config.limits.queue,
            note=self.log.warn,
            on_commit=self._committed,
            on_death=self._fail,
        )
        await open_queue(self.queue, self.config, self.source)

    async def _open_control(self) -> None:
        self.control = ControlServer(
            self.config.control.socket,
            Operations(self),
            self.effects,
            log=self.log.info,
            trace=lambda text: self.tracer.line("control", text),
        )
        await open_control(self.control, self.config, self.source)
        if self.config.control.metrics:
            self._exposition = Exposition(self._scraped, self.effects)
            await open_metrics(self._exposition, self.config, self.source)

    async def _open_door(self) -> None:
        self.listeners = Listeners(
            self.config,
            self.source,
            self.door,
            effects=self.effects,
            metrics=self.metrics,
            log=self.log.info,
        )
        self.listeners.open(seed=self.seed)
        self.smtp_address = self.listeners.address

    async def _restore_until_stopped(self) -> None:
        """Restore the queue; a signal interrupts that."""
        restoring = asyncio.ensure_future(self._restore())
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({restoring, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            restoring.cancel()
            await asyncio.wait({restoring, stopping})
        if not restoring.cancelled():
            restoring.result()

    async def _restore(self) -> None:
        self.restoring = True
        started = self.effects.monotonic()
        count = await self.driver.restore()
        self.restoring = False
        if count:
            seconds = self.effects.monotonic() - started
            self.log.info(f"queue: restored {count} envelopes in {seconds:.2f} s")

    # While it runs

    def _committed(self, commit: "Commit") -> None:
        self.metrics.inc("queue.commit.failed" if commit.problem else "queue.commit")
        if self.tracer.queue:
            self.tracer.line(
                "queue",
                f"commit submissions={len(commit.items)} lagging={commit.lagging}"
                f" seconds={commit.seconds:.6f}"
                + (f" problem={commit.problem}" if commit.problem else ""),
            )
        if self.record is not None and not commit.problem:
            self.record.measured(
                "commit",
                self.effects.now(),
                batch=len(commit.items),
                lagging=commit.lagging,
                seconds=round(commit.seconds, 6),
            )

    def _set_memory_level(self, level: MemoryLevel) -> None:
        self.door.memory = level
        self.driver.recent.closed = level > MemoryLevel.OK
        if level >= MemoryLevel.SOFT:
            self.resolver.flush()
            self.outbound_tls.flush()

    def _shrink(self) -> None:
        """Let go of what can be read again."""
        self.driver.recent.clear()
        self.driver.engine.store.shrink()
        self.queue.shrink()

    def _sample(self) -> None:
        """Write gauges into the trace, five times a second."""
        if self.record is None:
            return
        self.record.gauges(self.stats(), self.effects.now())
        asyncio.get_running_loop().call_later(SAMPLE_S, self._sample)

    def limits_changed(self) -> None:
        """Give changed limits to the parts that keep a copy of them; all others read the same object."""
        limits = self.config.limits
        self.resolver.set_limits(max_mx=limits.mta.max_mx, max_addresses=limits.mta.max_addresses)
        self.driver.limits_changed()
        self.door.limits_changed()

    def stats(self) -> Mapping[str, int | float]:
        """Return all counters and gauges by the names of `mta.core.metrics`, and the uptime in seconds."""
        return stats_of(self)

    def _scraped(self) -> Mapping[str, int | float]:
        """Return `stats` to somebody who will come again: memory by process is worth reading."""
        self.memory.ask()
        return self.stats()

    # Stop

    async def _drain(self) -> None:
        self.log.info(f"mta stopping reason={'failure' if self._failure else 'signal'}")
        self.door.draining = True
        self.listeners.drain()
        self.driver.drain()
        try:
            async with asyncio.timeout(self.config.drain_s):
                while not self._stop_now.is_set() and not (
                    self.driver.is_quiet() and not self.door.connections
                ):
                    try:
                        await asyncio.wait_for(self._stop_now.wait(), 0.05)
                    except TimeoutError:
                        continue
        except TimeoutError:
            self.log.warn("mta: transactions are cut off after drain_s")

    async def _close(self) -> None:
        """Undo whatever was started."""
        if hasattr(self, "listeners"):
            self.listeners.close()
        if hasattr(self, "memory"):
            await self.memory.close()
        if hasattr(self, "driver"):
            await self.driver.stop()
            await self.resolver.close()
        if self._addressing is not None:
            self._addressing.close()
        if self._authenticator is not None:
            self._authenticator.close()
        if self.control is not None:
            await self.control.close()
        if self._exposition is not None:
            await self._exposition.close()
        if hasattr(self, "queue"):
            await self.queue.close()
        # Only now: a message that became durable in the last moment has been answered.
        if hasattr(self, "listeners"):
            self.listeners.cut_off()
        if self.record is not None:
            record, self.record = self.record, None
            record.close()
        if hasattr(self, "log"):
            if self.smtp_address[1]:
                self.log.info("mta stopped")
            self.log.close()
