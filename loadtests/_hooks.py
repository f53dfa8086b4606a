"""Joins Locust and the schedule: options, the start and the end of a run, finer statistics.

The master of a distributed run decides run id, start and shares; it tells its workers through the
parsed options, which Locust sends along before the first user is spawned. What the operator did
wrong is one line and exit status 2, before anything is sent.
"""

import logging
import secrets
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import gevent
import psutil
from locust import events, stats
from locust.env import Environment
from locust.rpc import Message
from locust.runners import STATE_INIT, STATE_MISSING, MasterRunner, Runner, WorkerRunner

from loadtests import _dashboard, _locuststats, _results, _tally
from loadtests._options import add_options, asked
from loadtests._player import Player
from loadtests._pulse import Pulse
from loadtests._readings import WorkersLag
from loadtests._record import Recorder, three_digits
from loadtests._session import Wants
from loadtests._settings import DEFAULT_HOST, Settings
from loadtests._tally import Tally
from mta.core.settings import ConfigError
from sim.clients import ClientGroup
from sim.scenario import Load, Scenario
from sim.shares import SILVER, in_share
from sim.workload import RUN_ID_MAX, Schedule, draw, is_run_id

log = logging.getLogger(__name__)

LEAD_S: Final = 0.2
"""From the order to start until the load's start: users are spawned meanwhile."""

LEAD_DISTRIBUTED_S: Final = 2.0
"""The same when workers must hear of it first, and draw the schedule."""

SPAWN_RATE_MAX: Final = 100.0
"""Users per second that are spawned unless --spawn-rate says otherwise; Locust warns above."""

GOODBYE_S: Final = 5.0
"""Longest wait for the users' last QUIT when everything is sent."""

ENDS_S: Final = 10.0
"""Longest wait of a master for workers to say how their shares ended, once they were told to."""

HELO: Final = "client.testbed.test"
"""What every client calls itself."""

LATE: Final = 3
"""Exit status of a run whose generator was late: its numbers are not of the load that the scenario says."""


@dataclass(slots=True)
class Run:
    """What the users of one run need."""

    player: Player
    settings: Settings
    load: Load
    recipient: str
    """Somebody the server knows, for clients that need one."""
    tally: Tally
    pulse: Pulse = field(default_factory=Pulse)
    users: int = 0
    """Users that have joined and not taken leave."""
    connections: int = 0
    """Asked for so far, in this process."""

    @property
    def lag_s(self) -> float:
        """By how much this process was late: the 99th percentile of messages that left, or of its pulse."""
        return max(self.player.lag_s, self.pulse.p99_s)

    def take_worst_lag_s(self) -> float:
        """Return by how much this process was late at worst since this was last asked."""
        return max(self.player.take_worst_lag_s(), self.pulse.take_worst_s())

    @property
    def pipelining(self) -> bool:
        """Whether commands go in groups."""
        return self.load.pipelining

    @property
    def beside(self) -> dict[str, ClientGroup]:
        """Slow and misbehaving clients by kind."""
        return {group.kind: group for group in self.load.beside}

    def wants(self) -> Wants:
        """Return what the next connection shall be like."""
        number, load = self.connections, self.load
        self.connections += 1
        return Wants(
            source=f"127.0.0.{1 + number % load.sources}" if load.sources > 1 else "",
            tls=in_share(number, load.tls),
            login=(load.user, load.password) if in_share(number, load.auth, SILVER) else None,
        )


class _Hooks:
    """What this process knows between the events; Locust has one environment per process."""

    def __init__(self) -> None:
        self.listening = False
        self.run: Run | None = None
        self.recorder: Recorder | None = None
        self.starts = 0
        self.asked_run_id = ""
        self.asked_start = 0.0
        self.is_over = False
        self.played = ""
        self.refused: set[str] = set()
        self.worker_ends: dict[str, Mapping[str, Any]] = {}
        self.drawn: tuple[Scenario, Schedule] | None = None
        self.workers_lag = WorkersLag()


_hooks = _Hooks()


def listen() -> None:
    """Register for Locust's events, once per process however often a locustfile is imported."""
    if _hooks.listening:
        return
    _hooks.listening = True
    stats.bucket_response_time = three_digits  # type: ignore[assignment]  # any number will do there
    hooks: Any = events  # its methods have no types
    hooks.init_command_line_parser.add_listener(add_options)
    hooks.init.add_listener(_on_init)
    hooks.test_start.add_listener(_on_start)
    hooks.test_stop.add_listener(_on_stop)
    hooks.report_to_master.add_listener(_on_report_to_master)
    hooks.worker_report.add_listener(_on_worker_report)
    hooks.quitting.add_listener(_on_quitting)
    hooks.quit.add_listener(_on_quit)


def current_run() -> Run | None:
    """Return the run that is going on, or None if it could not begin."""
    return _hooks.run


def _options(environment: Environment) -> Namespace:
    options: Namespace | None = environment.parsed_options
    assert options is not None, "only Locust as a library has no options"
    return options


def _runner(environment: Environment) -> Runner:
    runner = environment.runner
    assert runner is not None, "the events that come here have one"
    return runner


def _on_init(environment: Environment, **_: Any) -> None:
    options, runner = _options(environment), _runner(environment)
    environment.host = environment.host or DEFAULT_HOST
    _hooks.asked_run_id = options.run_id
    _hooks.asked_start = options.load_start
    if isinstance(runner, MasterRunner):
        runner.register_message("testbed-end", _on_worker_end)
        runner.register_message("testbed-refused", _on_worker_refused)
    if isinstance(runner, WorkerRunner):
        return  # the master's options come with its order to start, and so does who shall be there
    try:
        scenario = asked(options, environment.host)[0]
        _dashboard.attach(environment, options.metrics_url, _worst_lag_s)
        distributed = isinstance(runner, MasterRunner)
        _hooks.recorder = _results.prepare(options, distributed=distributed)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        if options.processes:
            # Locust would leave them behind: they ask for a master for a minute, with our standard error open.
            for worker in psutil.Process().children():
                worker.terminate()
        sys.exit(2)
    beside = {group.kind: group.users for group in scenario.load.beside}
    if options.num_users is None:
        options.num_users = scenario.load.clients + sum(beside.values())
    if options.spawn_rate is None:
        options.spawn_rate = min(float(options.num_users), SPAWN_RATE_MAX)
    if not options.user_classes and not options.class_picker:
        wanted = []
        for each in environment.user_classes:
            kind = getattr(each, "kind", None)
            if kind is not None:
                each.fixed_count = beside.get(kind, 0)
            elif (
                getattr(each, "on_request", False)
                or getattr(each, "keep", None) != scenario.load.keep
            ):
                continue
            if kind is None or each.fixed_count:
                wanted.append(each)
        environment.user_classes = wanted or environment.user_classes


def _worst_lag_s() -> float | None:
    """Return by how much the load was late at worst since this was last asked; None while there is none."""
    run = _hooks.run
    return run.take_worst_lag_s() if run else _hooks.workers_lag.worst_s(time.monotonic())


def _on_report_to_master(client_id: str, data: dict[str, Any], **_: Any) -> None:
    if _hooks.run is not None:
        data["testbed_worst_lag_s"] = _hooks.run.take_worst_lag_s()


def _on_worker_report(client_id: str, data: dict[str, Any], **_: Any) -> None:
    if "testbed_worst_lag_s" in data:
        _hooks.workers_lag.add(client_id, time.monotonic(), data["testbed_worst_lag_s"])


def _on_start(environment: Environment, **_: Any) -> None:
    """Begin a run; in the web UI there may be many, each with other options."""
    options, runner = _options(environment), _runner(environment)
    if isinstance(runner, MasterRunner):
        _start_workers(runner, options)
        return
    if isinstance(runner, WorkerRunner):
        if options.run_id == _hooks.played:
            # Stopped in the middle of the ramp, and here are the orders to spawn that were under way.
            _hooks.run = None
            return
        _hooks.played = options.run_id
    try:
        scenario, settings = asked(options, environment.host)
        index, of = 0, 1
        if isinstance(runner, WorkerRunner):
            index, of = options.testbed_shares[runner.client_id]
            if options.record and _hooks.recorder is None:
                _hooks.recorder = _results.recorder(_results.part_of(options.record, index))
    except ConfigError as error:
        # Checked at the start, so this came out of the web UI; or a worker can't write its part of the record.
        _hooks.run = None
        if isinstance(runner, WorkerRunner):
            runner.send_message("testbed-refused", {"error": str(error)})
        else:
            _refuse(environment, str(error))
            gevent.spawn(_finish, environment)
        return
    _forgive(environment)
    if _hooks.drawn is None or _hooks.drawn[0] != scenario:
        _hooks.drawn = (scenario, draw(scenario))
    if isinstance(runner, WorkerRunner):
        run_id, start_at = options.run_id, options.load_start
    else:
        run_id = _next_run_id(options)
        start_at = _hooks.asked_start or time.time() + LEAD_S
        # It was for the first run; another one from the web UI starts when it is asked for.
        _hooks.asked_start = 0.0
    player = Player(
        *_hooks.drawn,
        run_id=run_id,
        start_at=start_at,
        share=(index, of),
        recorder=_hooks.recorder,
    )
    somebody = next(iter(_hooks.drawn[1].recipients(0)))
    tally = Tally(player.counts_from)
    run = _hooks.run = Run(player, settings, scenario.load, somebody.address, tally)
    log.info("Run %s: %d messages at %g/s", run_id, scenario.messages, scenario.load.rate)
    gevent.spawn(_watch, environment, run)
    gevent.spawn(_flush, environment, run)
    gevent.spawn(run.pulse.run, player.statistics_from - player.now(), player.finished.is_set)


def _refuse(environment: Environment, line: str) -> None:
    """Say what the operator did wrong, unless it is the exit status already."""
    if environment.process_exit_code != 2:
        log.error("%s", line)
        environment.process_exit_code = 2


def _forgive(environment: Environment) -> None:
    """Forget an exit status that was for options which have been put right."""
    if environment.process_exit_code == 2:
        environment.process_exit_code = None


def _flush(environment: Environment, run: Run) -> None:
    """Let the statistics follow while the run goes on."""
    while _hooks.run is run:
        gevent.sleep(_locuststats.FLUSH_S)
        _locuststats.flush(run.tally, _runner(environment).stats)


def _next_run_id(options: Namespace) -> str:
    """Return the id of this run: no two runs of a process have the same."""
    _hooks.starts += 1
    # A field of the web UI may have been changed since.
    asked = str(options.run_id or _hooks.asked_run_id)
    if not asked:
        name = Path(options.scenario).stem
        return (
            f"{name[: RUN_ID_MAX - 9]}-{secrets.token_hex(4)}"
            if is_run_id(name)
            else secrets.token_hex(4)
        )
    if _hooks.starts == 1:
        return asked
    suffix = f".{_hooks.starts}"
    return asked[: RUN_ID_MAX - len(suffix)] + suffix


def _watch(environment: Environment, run: Run) -> None:
    """End the run when everything is sent and everybody has said goodbye."""
    run.player.finished.wait()
    deadline = time.monotonic() + GOODBYE_S
    while _hooks.run is run and run.users and time.monotonic() < deadline:
        gevent.sleep(0.02)
    if _hooks.run is not run:
        return
    runner = _runner(environment)
    if isinstance(runner, WorkerRunner):
        runner.stop()  # which sends the master how it ended
    else:
        _finish(environment)


def _finish(environment: Environment) -> None:
    """Stop: for good if nobody looks at a web UI."""
    if environment.web_ui is None or _options(environment).headless:
        _runner(environment).quit()
    else:
        _runner(environment).stop()


def _start_workers(runner: MasterRunner, options: Namespace) -> None:
    ready = [*runner.clients.ready, *runner.clients.running, *runner.clients.spawning]
    _hooks.worker_ends.clear()
    _hooks.refused.clear()
    _hooks.is_over = False
    _forgive(runner.environment)
    try:
        asked(options, runner.environment.host)
    except ConfigError as error:
        _refuse(
            runner.environment, str(error)
        )  # and so will the workers, which is how the run ends
    options.run_id = _next_run_id(Namespace(run_id=_hooks.asked_run_id, scenario=options.scenario))
    options.load_start = _hooks.asked_start or time.time() + LEAD_DISTRIBUTED_S
    _hooks.asked_start = 0.0
    options.testbed_shares = {client.id: (i, len(ready)) for i, client in enumerate(ready)}
    gevent.spawn(_watch_workers, runner, dict(options.testbed_shares))


def _busy(runner: MasterRunner, shares: Iterable[str]) -> set[str]:
    """Return the workers that are there and have not said how their share ended."""
    over = _hooks.refused | _hooks.worker_ends.keys()
    known = {each: runner.clients.get(each) for each in shares if each not in over}
    return {each for each, node in known.items() if node and node.state != STATE_MISSING}


def _watch_workers(runner: MasterRunner, shares: dict[str, tuple[int, int]]) -> None:
    """End a distributed run when every worker is done, or gone."""
    while _busy(runner, shares) and not _hooks.refused:
        gevent.sleep(0.1)
        if _options(runner.environment).testbed_shares != shares:
            return
    gone = set(shares) - set(_hooks.worker_ends)
    if gone and not (_hooks.refused or _hooks.is_over):
        log.error(
            "%d of %d workers were lost with their shares of the load", len(gone), len(shares)
        )
        runner.environment.process_exit_code = 1
    if runner.environment.web_ui is not None:
        # A stop in the middle of Locust's ramp is overtaken by the orders that are still to come.
        while not runner.spawning_completed:
            gevent.sleep(0.05)
    _finish(runner.environment)


def _on_worker_refused(environment: Environment, msg: Any, **_: Any) -> None:
    _hooks.refused.add(msg.node_id)
    _refuse(environment, f"worker {msg.node_id}: {msg.data['error']}")


def _on_worker_end(environment: Environment, msg: Any, **_: Any) -> None:
    _hooks.worker_ends[msg.node_id] = msg.data


def _await_ends(runner: MasterRunner, shares: Iterable[str]) -> None:
    """Make the workers end their shares, if that was not how it came to this, and tell."""
    for each in _busy(runner, shares):
        runner.server.send_to_client(Message("stop", None, each))
    deadline = time.monotonic() + ENDS_S
    while _busy(runner, shares) and time.monotonic() < deadline:
        gevent.sleep(0.05)


def _on_stop(environment: Environment, **_: Any) -> None:
    """Write down how the run ended."""
    runner = _runner(environment)
    if isinstance(runner, MasterRunner):
        _await_ends(runner, _options(environment).testbed_shares)
        _hooks.is_over = True
        ends = list(_hooks.worker_ends.values())
        if ends:
            histograms = _tally.merged([end["histograms"] for end in ends])
            lag_s = max(end["lag_s"] for end in ends)
            started = min(end["started"] for end in ends)
            summary = _results.summed([end["end"] for end in ends])
            summary |= {"verbs": _tally.percentiles(histograms)}
            _conclude(environment, histograms, lag_s, started, summary)
        return
    run, _hooks.run = _hooks.run, None
    if run is None:
        return
    _locuststats.flush(run.tally, runner.stats)
    histograms = run.tally.histograms()
    late = run.lag_s > _options(environment).lag_max
    end = run.player.end(
        valid=not late, pulse_s=run.pulse.summary(), verbs=_tally.percentiles(histograms)
    )
    run.player.finished.set()  # who watches it need not wait any longer
    log.info("Run %s ended: %s", end["run"], end["outcomes"])
    if isinstance(runner, WorkerRunner):
        part = {
            "histograms": _tally.encoded(histograms),
            "end": end,
            "lag_s": run.lag_s,
            "started": run.player.start_at,
        }
        runner.send_message("testbed-end", part)
    else:
        _conclude(environment, histograms, run.lag_s, run.player.start_at, end)


def _conclude(
    environment: Environment,
    histograms: Mapping[str, Any],
    lag_s: float,
    started: float,
    summary: Mapping[str, Any],
) -> None:
    """Say what the verbs took, and whether the run is what it says."""
    options = _options(environment)
    if histograms:
        log.info("Percentiles of the whole run:\n%s", _tally.table(histograms))
    try:
        _results.write(options, histograms, started, summary)
    except OSError as error:
        log.error("%s: can't be written: %s", error.filename, error.strerror)  # noqa: TRY400
        environment.process_exit_code = 2
    if lag_s > options.lag_max:
        log.error(
            "INVALID: the generator was late: p99 %.1f ms, at most %.1f ms are allowed (--lag-max). What it measured is "
            "not the load that it says.",
            lag_s * 1000,
            options.lag_max * 1000,
        )
        environment.process_exit_code = LATE


def _on_quitting(environment: Environment, **_: Any) -> None:
    """End a run that a signal cut short: the exit status is made next, and depends on how it ended."""
    runner = _runner(environment)
    if isinstance(runner, MasterRunner):
        runner.stop(send_stop_to_client=False)
    elif runner.state != STATE_INIT:
        runner.stop()


def _on_quit(**_: Any) -> None:
    if _hooks.recorder is not None:
        _hooks.recorder.close()
