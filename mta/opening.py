"""What a server opens when it starts: its log, its trace, its queue, its control socket, its metrics.

What can't be used is one line that names the key of the configuration.
"""

import os
import platform
import sqlite3
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from mta.control import ControlServer, ControlSocketBusyError
from mta.core import records
from mta.core.settings import ConfigError, flatten
from mta.effects import Effects
from mta.exposition import Exposition
from mta.listeners import parse_address, unusable
from mta.log import Log
from mta.queue.base import QueueUnavailableError
from mta.queue.database import QueueCorruptError
from mta.queue.sqlite import QueueLockedError, SqliteQueue
from mta.trace import StimulusTrace

if TYPE_CHECKING:
    from mta.config import Config


def open_log(config: "Config", source: str, effects: Effects) -> Log:
    """Open the log.

    Raises:
        ConfigError: its file can't be written.
    """
    try:
        return Log(
            effects,
            config.log.file,
            host=config.hostname,
            pid=os.getpid(),
            verbose=config.log.verbose,
        )
    except OSError as error:
        raise unusable(source, "log.file", config.log.file, error) from None


def open_record(
    config: "Config",
    source: str,
    effects: Effects,
    *,
    started_at: float,
    seed: int,
    own: Callable[[], Mapping[int, tuple[str, ...]]],
) -> StimulusTrace | None:
    """Open the trace of stimuli, if there shall be one; its first line says what is run.

    Args:
        config: what the operator wants.
        source: its file, for errors.
        effects: how it is written.
        started_at: when the server started, seconds since the epoch.
        seed: root of all streams.
        own: finds the addresses that the server listens on, by port.

    Raises:
        ConfigError: its file can't be written.
    """
    if config.log.stimuli is None:
        return None
    try:
        return StimulusTrace(effects, config.log.stimuli, _header(config, started_at, seed, own()))
    except OSError as error:
        raise unusable(source, "log.stimuli", config.log.stimuli, error) from None


def _header(
    config: "Config", started_at: float, seed: int, own: Mapping[int, tuple[str, ...]]
) -> records.Record:
    settings = flatten(config)
    return records.header(
        clock="epoch",
        started_at=started_at,
        seed=seed,
        representation=config.envelope,
        limits={k: v for k, v in settings.items() if k.startswith("limits.")},
        config={k: _plain(v) for k, v in settings.items() if not k.startswith("limits.")},
        versions=_versions(),
        host={
            "cores": os.cpu_count() or 1,
            "kernel": platform.release(),
            "own": {str(port): list(addresses) for port, addresses in own.items()},
        },
    )


def _plain(value: object) -> object:
    return value if isinstance(value, (int, float, str, bool, list, type(None))) else str(value)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    for name in ("mta-testbed", "aiosmtpd", "dnspython", "uvloop"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions


async def open_queue(queue: SqliteQueue, config: "Config", source: str) -> None:
    """Lock and open the queue.

    Raises:
        ConfigError: it is in use or damaged, or its directory can't be used.
    """
    key, directory = "queue.directory", config.queue.directory
    try:
        await queue.open()
    except QueueLockedError as error:
        problem = f"in use by another server, process {error.pid or 'unknown'}"
        raise ConfigError(source, key, str(directory), problem) from None
    except QueueCorruptError as error:
        raise ConfigError(source, key, str(directory), f"damaged: {error.problem}") from None
    except (sqlite3.Error, QueueUnavailableError) as error:
        raise ConfigError(source, key, str(directory), f"can't be used: {error}") from None
    except OSError as error:
        raise unusable(source, key, directory, error) from None


async def open_control(control: ControlServer, config: "Config", source: str) -> None:
    """Listen on the control socket.

    Raises:
        ConfigError: it is in use, or can't be used.
    """
    key, path = "control.socket", config.control.socket
    try:
        await control.start()
    except ControlSocketBusyError as error:
        raise ConfigError(source, key, str(path), str(error)) from None
    except OSError as error:
        raise unusable(source, key, path, error) from None


async def open_metrics(exposition: Exposition, config: "Config", source: str) -> None:
    """Listen for those that scrape.

    Raises:
        ConfigError: the address is none, in use, or can't be used.
    """
    key, place = "control.metrics", config.control.metrics
    address, port = parse_address(source, key, place)
    try:
        await exposition.start(address, port)
    except OSError as error:
        raise unusable(source, key, place, error) from None
