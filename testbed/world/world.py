"""The scripted Internet as processes: `python -m testbed.world SCENARIO`, or ``testbed world``.

One process serves all hosts and the name server; with ``--processes N`` the hosts are dealt out among
N, each host to one, because its state is its own. The first process starts the others.

It speaks JSON lines. On standard output: ``{"event": "ready", "smtp_port", "dns", "pids"}`` once
everything listens, then one answer per request, at the end ``{"event": "stopped", ...}``. On standard
input: ``{"cmd": "set_start", "epoch": seconds or null for now}``, ``{"cmd": "stats"}``, ``{"cmd":
"stop"}``, ``{"cmd": "set", "changes": ["GROUP.key=value"]}``, ``{"cmd": "show"}``; all but stop also on its control
socket, see `control.py`. It stops on SIGTERM, SIGINT and when standard input ends, because then whoever started it is
gone. Order: hosts close and flush their records, the name server closes, the other processes end.
"""

import argparse
import asyncio
import contextlib
import os
import resource
import signal
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from mta.core.settings import ConfigError
from sim.remote import RemoteHost, build_hosts, build_name_servers
from sim.scenario import Scenario, addresses, load
from testbed.world.clock import WorldClock
from testbed.world.control import control
from testbed.world.control import main as control_main
from testbed.world.dns import DnsServer
from testbed.world.groups import Groups, merge_rows
from testbed.world.records import merge
from testbed.world.sink import Sink, reserve
from testbed.world.tls import Authority, tls_modes, tlsa_records
from testbed.world.zone import destinations_of, zone_of

LINE_MAX: Final = 65_536
"""Bytes of a request; a longer one ends the input."""

PROCESSES_MAX: Final = 64
"""Most processes of a world."""

ANSWER_S: Final = 10.0
"""Longest wait for another process of the world."""

_START_S: Final = 30.0
_REQUESTS_MAX: Final = 1000
_CHANGES_KEPT: Final = 1000


@dataclass(frozen=True, slots=True)
class Options:
    """What a world is told when it starts."""

    scenario: str
    """Name or path; see `sim.scenario.load`."""
    overrides: list[str] = field(default_factory=list)
    """``key=value`` on top of the scenario."""
    smtp_port: int = 0
    """Of all hosts; 0 chooses one."""
    dns_port: int = 0
    """Of the name server; 0 chooses one."""
    record_dir: Path | None = None
    """Where ``sink-<process>.jsonl`` go; made if missing; None records nothing."""
    start_at: float | None = None
    """When the load starts, seconds since the epoch; None until ``set_start`` says it."""
    processes: int = 1
    worker: int = 0
    """Which of the processes this is; 0 is the one that starts the others."""
    watch_input: bool = True
    """Stop when standard input ends."""
    control: Path | None = None
    """Where the control socket is; None for a place of this process in `testbed.world.control.directory`."""
    ca_file: Path | None = None
    """Where to write the certificate of the authority that vouches for the hosts; None writes none."""


class WorldFailedError(Exception):
    """The world can't go on: another of its processes is gone or does not answer."""


def share_of(hosts: dict[str, RemoteHost], worker: int, processes: int) -> dict[str, RemoteHost]:
    """Return the hosts of one process: dealt out in turn, so that a destination is spread."""
    return dict(list(hosts.items())[worker::processes])


class _Worker:
    """Another process of the same world, seen from the first."""

    def __init__(self, number: int, process: asyncio.subprocess.Process) -> None:
        self.number = number
        self.process = process
        self._turn = asyncio.Lock()

    async def answer(self, limit_s: float = ANSWER_S) -> dict[str, Any]:
        """Return its next line.

        Raises:
            WorldFailedError: it has ended, or does not answer.
        """
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(limit_s):
                line = await self.process.stdout.readline()
        except TimeoutError:
            raise WorldFailedError(f"process {self.number} does not answer") from None
        if not line:
            raise WorldFailedError(f"process {self.number} has ended")
        answer: dict[str, Any] = msgspec.json.decode(line)
        return answer

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return its answer to a request; see `answer`."""
        assert self.process.stdin is not None
        async with self._turn:
            with contextlib.suppress(ConnectionError):
                self.process.stdin.write(msgspec.json.encode(request) + b"\n")
                await self.process.stdin.drain()
            return await self.answer()

    async def stop(self) -> dict[str, Any] | None:
        """End it, and return what it counted; None if it had nothing to say any more."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        last: dict[str, Any] | None = None
        try:
            while True:
                answer = await self.answer()
                if answer.get("event") == "stopped":
                    last = answer
        except WorldFailedError:
            pass
        try:
            async with asyncio.timeout(ANSWER_S):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        return last


@contextlib.asynccontextmanager
async def _workers(options: Options, smtp_port: int) -> AsyncIterator[list[_Worker]]:
    """Start the other processes; end them all, whatever happens."""
    workers: list[_Worker] = []
    try:
        for number in range(1, options.processes):
            command = [sys.executable, "-m", "testbed.world", options.scenario]
            for override in options.overrides:
                command += ["--set", override]
            command += ["--smtp-port", str(smtp_port), "--processes", str(options.processes)]
            command += ["--worker", str(number)]
            if options.record_dir is not None:
                command += ["--record-dir", str(options.record_dir)]
            if options.start_at is not None:
                command += ["--start-at", repr(options.start_at)]
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # A Ctrl-C on the terminal is for the first process, which tells the others.
                start_new_session=True,
            )
            workers.append(_Worker(number, process))
        for worker in workers:
            ready = await worker.answer(_START_S)
            if ready.get("event") != "ready":
                raise WorldFailedError(f"process {worker.number}: {ready.get('problem', ready)}")
        yield workers
    finally:
        for worker in workers:
            if worker.process.returncode is None:
                await worker.stop()


class _World:
    """What runs in the first process, and without workers and name server in the others."""

    def __init__(self, options: Options, scenario: Scenario) -> None:
        self._options = options
        self._scenario = scenario
        self._clock = WorldClock(options.start_at)
        self._requests: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._workers: list[_Worker] = []
        self._turn = asyncio.Lock()
        self._changes: deque[dict[str, object]] = deque(maxlen=_CHANGES_KEPT)
        """What was set at run time, and when."""
        self._sink: Sink
        self._groups: Groups
        self._dns: DnsServer | None = None

    async def run(self) -> int:
        """Serve until told to stop; return the exit status.

        Raises:
            ConfigError: the scenario or a port is wrong.
            WorldFailedError: another process of the world failed.
        """
        options, scenario = self._options, self._scenario
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._requests.put_nowait, None)
        hosts = build_hosts(scenario, source=options.scenario)
        names = {each.address: each.host for each in addresses(scenario)}
        record: Path | None = None
        if options.record_dir is not None:
            record = options.record_dir / f"sink-{options.worker}.jsonl"
            try:
                options.record_dir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(
                    "--record-dir", value=str(options.record_dir), problem=str(error.strerror)
                ) from None
        authority = Authority(scenario.seed, self._clock.wall())
        if options.ca_file is not None and options.worker == 0:
            _write(options.ca_file, authority.pem())
        async with contextlib.AsyncExitStack() as stack:
            smtp_port = options.smtp_port
            if options.worker == 0:
                # The ports of all processes are held by the first, so that the others find them.
                smtp_port, guards = reserve(hosts, smtp_port)
                for guard in guards:
                    stack.callback(guard.close)
            self._sink = Sink(
                share_of(hosts, options.worker, options.processes),
                self._clock,
                port=smtp_port,
                names=names,
                record=record,
                tls=tls_modes(scenario),
                authority=authority,
                label=str(options.worker),
            )
            if options.worker == 0:
                zone, destinations = zone_of(scenario), destinations_of(scenario)
                for name, tlsa in tlsa_records(scenario, authority, smtp_port).items():
                    zone[name] = {"TLSA": [tlsa]}
                    destinations[name] = destinations[name.split(".", 2)[2]]
                self._dns = await stack.enter_async_context(
                    DnsServer(
                        zone,
                        self._clock,
                        port=options.dns_port,
                        destinations=destinations,
                        servers=build_name_servers(scenario, source=options.scenario),
                        signed={n for n, d in enumerate(scenario.destinations) if d.dane != "none"},
                    )
                )
                self._workers = await stack.enter_async_context(_workers(options, smtp_port))
            servers = self._dns.servers if self._dns is not None else ()
            self._groups = Groups(scenario, self._sink, servers)
            async with self._sink:
                where: Path | None = None
                if options.worker == 0:
                    where = await stack.enter_async_context(control(options.control, self._asked))
                self._ready(smtp_port, where)
                if options.watch_input:
                    self._watch_input(loop)
                await self._serve()
            return await self._stopped()

    async def _asked(self, line: bytes) -> dict[str, Any]:
        """Answer at the control socket, where nobody can stop the world."""
        answer = await self._ask(line)
        refused = {"event": "error", "problem": "a signal stops the world"}
        return refused if answer["event"] == "stop" else answer

    def _ready(self, smtp_port: int, where: Path | None) -> None:
        pids = [os.getpid(), *(worker.process.pid for worker in self._workers)]
        event: dict[str, object] = {"event": "ready", "smtp_port": smtp_port, "pids": pids}
        if self._dns is not None:
            event["dns"] = f"{self._dns.address}:{self._dns.port}"
        if where is not None:
            event["control"] = str(where)
        _emit(event)

    async def _serve(self) -> None:
        """Answer requests until there is a reason to stop."""
        async with contextlib.AsyncExitStack() as stack:
            if self._workers:
                group = await stack.enter_async_context(asyncio.TaskGroup())
                watchers = [
                    group.create_task(self._watch(worker), name=f"watch {worker.number}")
                    for worker in self._workers
                ]
                for watcher in watchers:
                    stack.callback(watcher.cancel)
            while True:
                line = await self._requests.get()
                if line is None or not await self._answer(line):
                    return

    async def _watch(self, worker: _Worker) -> None:
        status = await worker.process.wait()
        raise WorldFailedError(f"process {worker.number} ended with status {status}")

    async def _answer(self, line: bytes) -> bool:
        """Carry out one request of standard input; return False if it was to stop."""
        answer = await self._ask(line)
        if answer.get("event") == "stop":
            return False
        _emit(answer)
        return True

    async def _ask(self, line: bytes) -> dict[str, Any]:
        """Carry out one request, whoever asks; return the answer."""
        # One after the other: the other processes must hear of changes in the same order.
        async with self._turn:
            try:
                request = msgspec.json.decode(line, type=dict[str, Any])
                return await self._carry_out(request)
            except msgspec.DecodeError:
                return {"event": "error", "problem": "not a JSON object"}
            except (ConfigError, ValueError) as error:
                return {"event": "error", "problem": str(error)}

    async def _carry_out(self, request: dict[str, Any]) -> dict[str, Any]:
        match request.get("cmd"):
            case "stop":
                return {"event": "stop"}
            case "stats":
                return {"event": "stats", **await self._stats()}
            case "set_start":
                epoch = request.get("epoch")
                if epoch is None:
                    epoch = self._clock.wall()
                if not isinstance(epoch, int | float) or isinstance(epoch, bool) or epoch < 0:
                    raise ValueError("epoch must be seconds since the epoch")
                self._sink.set_start(float(epoch))
                for worker in self._workers:
                    await worker.ask({"cmd": "set_start", "epoch": epoch})
                return {"event": "start", "epoch": epoch}
            case "set":
                changes = request.get("changes")
                if not isinstance(changes, list) or not all(isinstance(c, str) for c in changes):
                    raise ValueError("changes must be a list of GROUP.key=value")
                names = self._groups.set(changes)
                for worker in self._workers:
                    answer = await worker.ask(request)
                    assert answer["event"] == "set", answer
                self._changes.append({"t": self._clock.wall(), "changes": changes})
                return {"event": "set", "groups": names}
            case "show":
                theirs = [(await worker.ask(request))["groups"] for worker in self._workers]
                rows = merge_rows([self._groups.show(), *theirs])
                return {"event": "show", "groups": rows}
        raise ValueError("cmd must be set_start, set, show, stats or stop")

    async def _stats(self) -> dict[str, object]:
        parts = [self._sink.stats()]
        for worker in self._workers:
            answer = await worker.ask({"cmd": "stats"})
            parts.append({key: value for key, value in answer.items() if key != "event"})
        return self._summed(parts)

    def _summed(self, parts: Sequence[dict[str, object]]) -> dict[str, object]:
        total = merge(parts)
        if self._changes:
            total["set"] = list(self._changes)
        if self._dns is not None:
            total["dns"] = self._dns.stats()
        return total

    async def _stopped(self) -> int:
        """Report for the last time; the sink is closed."""
        parts = [self._sink.stats()]
        ended_well = True
        for worker in self._workers:
            last = await worker.stop()
            ended_well = ended_well and last is not None and worker.process.returncode == 0
            if last is not None:
                parts.append({key: value for key, value in last.items() if key != "event"})
        total = self._summed(parts)
        _emit({"event": "stopped", **total})
        if not ended_well:
            raise WorldFailedError("another process of the world did not end well")
        if total["records_lost"]:
            raise WorldFailedError(f"{total['records_lost']} records could not be written")
        return 0

    def _watch_input(self, loop: asyncio.AbstractEventLoop) -> None:
        # Why a thread? Standard input may be a pipe, a terminal or a file, and event loops take
        # only some of these. It reads the descriptor itself: a lock of sys.stdin that a daemon
        # thread holds would stop the interpreter from ending.
        def put(line: bytes | None) -> None:
            if line is None or self._requests.qsize() < _REQUESTS_MAX:
                self._requests.put_nowait(line)

        def read() -> None:
            rest = b""
            with contextlib.suppress(OSError):
                while len(rest) <= LINE_MAX and (data := os.read(0, LINE_MAX)):
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        if line.strip():
                            _hand_over(loop, put, line)
            _hand_over(loop, put, None)

        threading.Thread(target=read, name="standard input", daemon=True).start()


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError("--ca-file", value=str(path), problem=str(error.strerror)) from None


def _hand_over(loop: asyncio.AbstractEventLoop, put: Any, line: bytes | None) -> None:
    # The loop may be closed already; then nobody wants the line.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(put, line)


def _emit(event: dict[str, object]) -> None:
    """Write one line; whoever started the world may be gone, and then input ends too."""
    data = memoryview(msgspec.json.encode(event) + b"\n")
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(1, data) :]


def run_world(options: Options) -> int:
    """Run a world until it is told to stop; return the exit status.

    Raises:
        ConfigError: the scenario, an override, a port or a directory is wrong.
        WorldFailedError: a process of the world failed, or records are missing.
    """
    scenario = load(options.scenario, options.overrides)
    _raise_descriptor_limit()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            return runner.run(_World(options, scenario).run())
        except ExceptionGroup as group:
            raise _root(group) from None


def _root(error: BaseException) -> BaseException:
    """Return the first single exception of a group; the rest are its consequences."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line of a world."""
    made = argparse.ArgumentParser(
        prog="testbed world",
        description="Scripted mail exchangers and a name server on loopback, as a scenario has them. While they run:"
        " `testbed world show` says what their hosts are like, `testbed world set GROUP.key=value` changes it.",
    )
    made.add_argument("scenario", help="name of a scenario, or a file")
    made.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="on top of the scenario"
    )
    made.add_argument(
        "--smtp-port",
        type=int,
        default=0,
        metavar="PORT",
        help="of all hosts (0: any that is free)",
    )
    made.add_argument(
        "--dns-port", type=int, default=0, metavar="PORT", help="of the name server (0: any)"
    )
    made.add_argument(
        "--record-dir", type=Path, metavar="DIR", help="write what arrives to DIR/sink-N.jsonl"
    )
    made.add_argument(
        "--ca-file", type=Path, metavar="FILE", help="write the certificate of the hosts' authority"
    )
    made.add_argument(
        "--control",
        type=Path,
        metavar="PATH",
        help="control socket for `testbed world set` and show",
    )
    made.add_argument(
        "--start-at",
        metavar="EPOCH",
        help='when outages count from, seconds since the epoch or "now"; without it, when standard input says set_start',
    )
    made.add_argument("--processes", type=int, default=1, metavar="N", help="for the hosts (1)")
    made.add_argument(
        "--ignore-input",
        action="store_true",
        help="go on when standard input ends, as in the background",
    )
    made.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    return made


def _options(arguments: argparse.Namespace) -> Options:
    for key in ("smtp_port", "dns_port"):
        port = getattr(arguments, key)
        if not 0 <= port <= 65_535:
            raise ConfigError(
                f"--{key.replace('_', '-')}", value=port, problem="must be from 0 to 65535"
            )
    if not 1 <= arguments.processes <= PROCESSES_MAX:
        raise ConfigError(
            "--processes", value=arguments.processes, problem=f"must be from 1 to {PROCESSES_MAX}"
        )
    start_at: float | None = None
    if arguments.start_at == "now":
        start_at = WorldClock().wall()
    elif arguments.start_at is not None:
        try:
            start_at = float(arguments.start_at)
        except ValueError:
            start_at = -1.0
        if not 0 <= start_at < 1e11:
            raise ConfigError(
                "--start-at",
                value=arguments.start_at,
                problem='must be seconds since the epoch, or "now"',
            )
    return Options(
        scenario=arguments.scenario,
        overrides=arguments.set,
        smtp_port=arguments.smtp_port,
        dns_port=arguments.dns_port,
        record_dir=arguments.record_dir,
        start_at=start_at,
        processes=arguments.processes,
        worker=arguments.worker,
        watch_input=not arguments.ignore_input,
        ca_file=arguments.ca_file,
        control=arguments.control,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status: 0, 1 if the world failed, 2 if it was told nonsense."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["set"], ["show"]):
        return control_main(words)
    try:
        return run_world(_options(parser().parse_args(words)))
    except ConfigError as error:
        sys.stderr.write(f"testbed world: {error}\n")
        return 2
    except WorldFailedError as error:
        sys.stderr.write(f"testbed world: {error}\n")
        return 1
