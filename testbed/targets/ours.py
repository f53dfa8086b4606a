"""Our own server as a target: `mta serve` with a configuration file, its control socket and its log."""

import contextlib
import json
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

from testbed.children import Child, RunError, last_line, python, source_environment
from testbed.sampler import Usage, usage_of
from testbed.targets.base import STRACE, Owed

READY_S: Final = 30.0
"""Longest wait until the server takes mail; it has an empty queue."""

ANSWER_S: Final = 10.0
"""Longest wait for an answer on the control socket."""

ANSWER_MAX: Final = 256 * 1024 * 1024
"""Bytes of an answer; a queue of a million envelopes takes about as much."""

_ACCEPTED: Final = re.compile(r"\b([0-9a-f]{8}) Message accepted")
_DELIVERY: Final = re.compile(
    r" m[td]a delivery evpid=([0-9a-f]{8})[0-9a-f]{8} from=<[^>]*> to=<([^>]*)>"
    r' .*?\bresult="?([A-Za-z]+)\b'
)
_EXPIRED: Final = re.compile(r"\bExpire for ([0-9a-f]{8})[0-9a-f]{8}: .*?\bto=<([^>]*)>")


class OurServer:
    """Implements `testbed.targets.base.Target`."""

    name = "mta"
    is_tree = False
    second_attempt_s: int | None = None

    def __init__(
        self,
        directory: Path,
        *,
        representation: str,
        overrides: Mapping[str, Any],
        seed: int,
        relay_port: int,
        nameserver: str,
        ca_file: Path | None = None,
    ) -> None:
        """Write the configuration into a directory of its own; `start` does the rest.

        Args:
            directory: takes configuration, queue, log and trace.
            representation: how envelopes are kept.
            overrides: the scenario's ``server`` table.
            seed: of its random choices; 0 is taken as 1, because 0 would draw one.
            relay_port: where the world's hosts listen.
            nameserver: ``address:port`` of the world's.
            ca_file: of the authority that vouches for the world's hosts, unless the scenario names one; None if none has TLS.
        """
        self.directory = directory
        self.config = directory / "mta.toml"
        self.log = directory / "server.log"
        self.trace = directory / "trace.jsonl"
        self.queue = directory / "queue"
        # A Unix socket's path has 107 characters at most: a run directory may be longer.
        self._private = Path(tempfile.mkdtemp(prefix="testbed-"))
        self._socket = self._private / "control"
        self._child: Child | None = None
        self._wrapper: tuple[str, ...] = ()
        self._control: _Control | None = None
        # The sampler asks on a thread of its own.
        self._asking = threading.Lock()
        self._address = ("", 0)
        own: dict[str, Any] = {
            "hostname": "relay.testbed.test",
            "envelope": representation,
            "seed": seed or 1,
            "smtp": {"listen": "127.0.0.1:0"},
            "relay": {"port": relay_port, "allow": "loopback"},
            "dns": {"nameserver": nameserver},
            # Relative: the server runs in this directory, and it may be moved afterwards.
            "queue": {"directory": self.queue.name},
            "control": {"socket": str(self._socket)},
            "log": {"file": self.log.name, "stimuli": self.trace.name},
        }
        if ca_file is not None:
            # Relative, too, where it can be.
            inside = ca_file.parent == directory
            named = {"relay": {"ca_file": ca_file.name if inside else str(ca_file)}}
            overrides = merged(named, overrides)
        settings = merged(overrides, own)
        self.config.write_text(to_toml(settings), encoding="utf-8")

    def start(self) -> None:
        """Start it and return when it takes mail.

        Raises:
            RunError: it ended, or was not ready in time.
            UsageError: it can't use its configuration.
        """
        assert self._child is None, "started twice"
        self._child = child = Child(
            "server",
            [*self._wrapper, *python("mta", "serve", "--config", self.config.name)],
            log=self.directory / "server.out",
            cwd=self.directory,
            environment=source_environment(),
        )
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            child.check()
            with contextlib.suppress(OSError):
                status = next(iter(self._ask("show status")))
                host, _, port = status["smtp_address"].rpartition(":")
                # The control socket answers before there is a door.
                if not status["restoring"] and int(port):
                    self._address = (host, int(port))
                    return
            time.sleep(0.05)
        raise RunError(
            f"server: not ready within {READY_S:.0f} s: {last_line(self.log) or 'no word from it'}"
        )

    def trace_syncs(self) -> Path:
        """Let strace count its calls of fsync and the like; before `start`. Returns the file of its table."""
        output = self.directory / "syncs"
        # -D: strace is not the parent, so that signals and the exit status are the server's.
        self._wrapper = (*STRACE, "-D", "-o", str(output.resolve()))
        return output

    @property
    def smtp_address(self) -> tuple[str, int]:
        """Where it takes mail."""
        assert self._address[1], "not started"
        return self._address

    def check(self) -> None:
        """Raise RunError if it has ended though nobody asked it to."""
        if self._child is not None:
            self._child.check()

    def pids(self) -> list[int]:
        """Return the one process that it is."""
        return [self._child.pid] if self._child is not None else []

    def usage(self) -> Usage:
        """Return what its process uses.

        Raises:
            OSError: it is gone.
        """
        return usage_of(self.pids())

    def stats(self) -> Mapping[str, float]:
        """Return its counters and gauges by the names of `mta.core.metrics`.

        Raises:
            OSError: it does not answer now.
        """
        return next(iter(self._ask("show stats")), {})

    def queued(self) -> list[Owed]:
        """Return what its queue holds.

        Raises:
            OSError: it does not answer now.
        """
        return [Owed(row["evpid"][:8], row["rcpt"]) for row in self._ask("show queue")]

    def bounced(self) -> list[Owed]:
        """Return what its log says it gave up."""
        try:
            with self.log.open(encoding="utf-8", errors="replace") as lines:
                return list(given_up(lines))
        except FileNotFoundError:
            return []

    def queue_id(self, reply: str) -> str:
        """Return the message id in ``2.0.0 0000002a Message accepted for delivery``."""
        return queue_id(reply)

    def stop(self) -> int:
        """End it with SIGTERM and return its exit status. Idempotent."""
        with self._asking:
            if self._control is not None:
                self._control.close()
                self._control = None
        status = self._child.end(grace_s=45.0) if self._child is not None else 0
        shutil.rmtree(self._private, ignore_errors=True)
        return status

    def discard_queue(self) -> None:
        """Remove the queue's directory; only after `stop`."""
        shutil.rmtree(self.queue, ignore_errors=True)

    def describe_end(self) -> str:
        """Return one line on how it ended."""
        return self._child.describe_end() if self._child is not None else "server was never started"

    def operate(self, verb: str, **fields: str) -> None:
        """Say on the control socket what ``mtactl`` says.

        Raises:
            OSError: no answer, or a refusal.
        """
        self._ask(verb, **fields)

    def _ask(self, verb: str, **fields: str) -> list[dict[str, Any]]:
        with self._asking:
            if self._control is None:
                self._control = _Control(self._socket)
            try:
                return self._control.ask(verb, **fields)
            except OSError:
                self._control.close()
                self._control = None
                raise


class _Control:
    """A connection to the control socket: one JSON line asks, lines of rows and an end answer."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_S)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._file = self._socket.makefile("rb")

    def ask(self, verb: str, **fields: str) -> list[dict[str, Any]]:
        """Return the rows of an answer.

        Raises:
            OSError: no whole answer, or a refusal.
        """
        self._socket.sendall(json.dumps({"verb": verb, **fields}).encode() + b"\n")
        rows: list[dict[str, Any]] = []
        left = ANSWER_MAX
        while left > 0:
            line = self._file.readline(left)
            left -= len(line)
            if not line.endswith(b"\n"):
                raise ConnectionError("the answer was cut off")
            answer = json.loads(line)
            if "error" in answer:
                raise ConnectionError(answer["error"])
            if "end" in answer:
                return rows
            rows.append(answer["row"])
        raise ConnectionError("the answer is too long")

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._file.close()
        self._socket.close()


def queue_id(reply: str) -> str:
    """Return the message id in our reply to a final dot; empty if it is none of ours."""
    found = _ACCEPTED.search(reply)
    return found[1] if found else ""


def given_up(lines: Iterator[str] | Sequence[str]) -> Iterator[Owed]:
    """Yield every recipient that a log of ours says was given up."""
    for line in lines:
        found = _DELIVERY.search(line)
        if found and found[3] not in ("PermFail", "Loop"):
            continue
        found = found or _EXPIRED.search(line)
        if found:
            yield Owed(found[1], found[2])


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the values of ``over`` put on top, table by table; neither is changed."""
    result = deepcopy(dict(base))
    for key, value in over.items():
        below = result.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            result[key] = merged(below, value)
        else:
            result[key] = deepcopy(value)
    return result


def to_toml(settings: Mapping[str, Any]) -> str:
    """Return a configuration file: one dotted key a line, as `mta config` prints it."""
    return "".join(f"{key} = {_value(value)}\n" for key, value in _leaves(settings))


def _value(value: object) -> str:
    """Return a value as TOML has it on one line."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(each)}" for key, each in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
