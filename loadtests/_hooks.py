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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gevent
from locust import events, stats
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import STATE_MISSING, LocalRunner, MasterRunner, Runner, WorkerRunner

from loadtests._outcomes import DEFAULT
from loadtests._player import LAG_MAX_S, Player
from loadtests._record import Recorder, three_digits
from loadtests._settings import DEFAULT_HOST, Settings
from mta.core.settings import ConfigError
from sim.scenario import Scenario, load
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


@dataclass(slots=True)
class Run:
    """What the users of one run need."""

    player: Player
    settings: Settings
    users: int = 0
    """Users that have joined and not taken leave."""


class _Hooks:
    """What this process knows between the events; Locust has one environment per process."""

    def __init__(self) -> None:
        self.listening = False
        self.run: Run | None = None
        self.recorder: Recorder | None = None
        self.starts = 0
        self.asked_run_id = ""
        self.asked_start = 0.0
        self.done_workers: set[str] = set()
        self.drawn: tuple[Scenario, Schedule] | None = None


_hooks = _Hooks()


def listen() -> None:
    """Register for Locust's events, once per process however often a locustfile is imported."""
    if _hooks.listening:
        return
    _hooks.listening = True
    stats.bucket_response_time = three_digits  # type: ignore[assignment]  # any number will do there
    hooks: Any = events  # its methods have no types
    hooks.init_command_line_parser.add_listener(_add_options)
    hooks.init.add_listener(_on_init)
    hooks.test_start.add_listener(_on_start)
    hooks.test_stop.add_listener(_on_stop)
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


def _add_options(parser: LocustArgumentParser) -> None:
    add = parser.add_argument  # not of a group: only here Locust learns what its UI shows
    hidden: dict[str, Any] = {"include_in_web_ui": False}
    add(
        "--scenario", default="backlog", help="name or TOML file of the scenario (default: backlog)"
    )
    add(
        "--set",
        dest="scenario_set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one value of the scenario, as load.rate=500; may be given again",
        **hidden,
    )
    add(
        "--run-id",
        default="",
        help="carried by every message (default: scenario and a random number)",
    )
    add(
        "--open-loop",
        "--schedule",
        dest="open_loop",
        choices=["on", "off"],
        default="on",
        help="on: each message has its instant, whatever the server does; off: users take the same "
        "messages at their own pace (default: on)",
    )
    add("--record", default="", metavar="FILE", help="write one JSON line per message", **hidden)
    add(
        "--load-start",
        type=float,
        default=0.0,
        metavar="EPOCH",
        help="when the schedule begins, in seconds since 1970 (default: at once)",
        **hidden,
    )
    add(
        "--expect",
        default=DEFAULT,
        metavar="LIST",
        help=f"replies that do not fail the run: codes, 4xx, 5xx, lost (default: {DEFAULT})",
    )
    add(
        "--tries",
        type=int,
        default=3,
        help="attempts per message after 421 or a lost connection (default: 3)",
    )
    add(
        "--retry-wait",
        type=float,
        default=1.0,
        metavar="S",
        help="seconds between them (default: 1)",
    )
    add(
        "--smtp-timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="longest wait for a reply (default: 60)",
    )


def _on_init(environment: Environment, **_: Any) -> None:
    options, runner = _options(environment), _runner(environment)
    environment.host = environment.host or DEFAULT_HOST
    _hooks.asked_run_id = options.run_id
    _hooks.asked_start = options.load_start
    if isinstance(runner, MasterRunner):
        runner.register_message("testbed-done", _on_worker_done)
    try:
        scenario = load(options.scenario, _overrides(options))
        Settings.read(options, environment.host)
        if options.record and isinstance(runner, LocalRunner):
            _hooks.recorder = _recorder(Path(options.record))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    if options.num_users is None:
        options.num_users = scenario.load.sessions
    if options.spawn_rate is None:
        options.spawn_rate = min(float(options.num_users), SPAWN_RATE_MAX)
    if not options.user_classes and not options.class_picker:
        wanted = [
            each
            for each in environment.user_classes
            if getattr(each, "keep", None) == scenario.load.keep
        ]
        environment.user_classes = wanted or environment.user_classes


def _overrides(options: Namespace) -> list[str]:
    return [each for each in options.scenario_set if each]


def _recorder(path: Path) -> Recorder:
    try:
        return Recorder(path)
    except OSError as error:
        raise ConfigError(
            "--record", value=str(path), problem=f"can't be written: {error.strerror}"
        ) from error


def _on_start(environment: Environment, **_: Any) -> None:
    """Begin a run; in the web UI there may be many, each with other options."""
    options, runner = _options(environment), _runner(environment)
    if isinstance(runner, MasterRunner):
        _start_workers(runner, options)
        return
    try:
        scenario = load(options.scenario, _overrides(options))
        settings = Settings.read(options, environment.host or DEFAULT_HOST)
        index, of = 0, 1
        if isinstance(runner, WorkerRunner):
            index, of = options.testbed_shares[runner.client_id]
            if options.record and _hooks.recorder is None:
                path = Path(options.record)
                _hooks.recorder = _recorder(path.with_name(f"{path.stem}.{index}{path.suffix}"))
    except ConfigError as error:
        # Checked at the start, so this came out of the web UI; or a worker has another machine's files.
        log.error("%s", error)  # noqa: TRY400  # one line is what the operator needs
        environment.process_exit_code = 2
        _hooks.run = None
        gevent.spawn(_finish, environment)
        return
    if environment.process_exit_code == 2:
        environment.process_exit_code = None  # it was for options that have been put right
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
        open_loop=options.open_loop == "on",
        start_at=start_at,
        share=(index, of),
        recorder=_hooks.recorder,
    )
    _hooks.run = Run(player, settings)
    log.info("Run %s: %d messages at %g/s", run_id, scenario.messages, scenario.load.rate)
    gevent.spawn(_watch, environment, _hooks.run)


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
        runner.send_message("testbed-done")
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
    _hooks.done_workers.clear()
    options.run_id = _next_run_id(Namespace(run_id=_hooks.asked_run_id, scenario=options.scenario))
    options.load_start = _hooks.asked_start or time.time() + LEAD_DISTRIBUTED_S
    _hooks.asked_start = 0.0
    options.testbed_shares = {client.id: (i, len(ready)) for i, client in enumerate(ready)}
    gevent.spawn(_watch_workers, runner, dict(options.testbed_shares))


def _on_worker_done(environment: Environment, msg: Any, **_: Any) -> None:
    _hooks.done_workers.add(msg.node_id)


def _watch_workers(runner: MasterRunner, shares: dict[str, tuple[int, int]]) -> None:
    """End a distributed run when every worker is done, or gone."""
    gone: set[str] = set()
    while set(shares) - _hooks.done_workers - gone:
        gevent.sleep(0.1)
        if _options(runner.environment).testbed_shares != shares:
            return
        for each in shares:
            worker = runner.clients.get(each)
            if worker is None or worker.state == STATE_MISSING:
                gone.add(each)
    gone -= _hooks.done_workers
    if gone:
        log.error(
            "%d of %d workers were lost with their shares of the load", len(gone), len(shares)
        )
        runner.environment.process_exit_code = 1
    _finish(runner.environment)


def _on_stop(environment: Environment, **_: Any) -> None:
    """Write down how the run ended."""
    run, _hooks.run = _hooks.run, None
    if run is None:
        return
    end = run.player.end()
    run.player.finished.set()  # who watches it need not wait any longer
    log.info("Run %s ended: %s", end["run"], end["outcomes"])
    lag = end["generator_lag_s"]
    if run.player.open_loop and lag and lag["p99"] > LAG_MAX_S:
        log.warning(
            "The generator was late: p99 %.0f ms. What it measured is not the load that it says.",
            lag["p99"] * 1000,
        )


def _on_quit(**_: Any) -> None:
    if _hooks.recorder is not None:
        _hooks.recorder.close()
