"""Our own server as a target: `mta serve` with a configuration file, its control socket and its log."""

import contextlib
import json
import os
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Final, Literal

from sim.timeline import leaves
from testbed.children import Child, RunError, last_line, python, source_environment
from testbed.sampler import Usage, usage_of
from testbed.targets.base import STRACE, Owed

READY_S: Final = 30.0
"""Longest wait until the server takes mail; it has an empty queue."""

RESTORE_S: Final = 300.0
"""Longest wait until it has read a queue that is not empty."""

STOP_S: Final = 45.0
"""Longest wait for its end after SIGTERM: ``drain_s`` and more."""

PORTS: Final = 10_000
"""How many ports below those of outgoing connections are tried."""

ANSWER_S: Final = 10.0
"""Longest wait for an answer on the control socket."""

ANSWER_MAX: Final = 256 * 1024 * 1024
"""Bytes of an answer; a queue of a million envelopes takes about as much."""

_RESTORED: Final = re.compile(rb"queue: restored (\d+) envelopes in ([0-9.]+) s")
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
        pair: tuple[bytes, bytes] | None = None,
        comes_back: bool = False,
        has_disk: bool = False,
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
            pair: certificate and key, in PEM, unless the scenario names some; None for a server without TLS.
            comes_back: it will be restarted, and needs a port that nobody takes meanwhile.
            has_disk: its disk will be slow or full; see `set_disk`.
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
        self._disk = directory / "disk" if has_disk else None
        self._control: _Control | None = None
        # The sampler asks on a thread of its own.
        self._asking = threading.Lock()
        self._address = ("", 0)
        self._starts = 0
        own: dict[str, Any] = {
            "hostname": "relay.testbed.test",
            "envelope": representation,
            "seed": seed or 1,
            "smtp": {"listen": f"127.0.0.1:{_steady_port() if comes_back else 0}"},
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
        if pair is not None and "tls" not in overrides:
            own["tls"] = {"certificate": "tls.crt", "key": "tls.key"}
            for name, content, mode in (("tls.crt", pair[0], 0o644), ("tls.key", pair[1], 0o600)):
                (directory / name).touch(mode)
                (directory / name).write_bytes(content)
        self._settings = merged(overrides, own)
        self.config.write_text(to_toml(self._settings), encoding="utf-8")

    def start(self) -> None:
        """Start it and return when it takes mail.

        Raises:
            RunError: it ended, or was not ready in time.
            UsageError: it can't use its configuration.
        """
        assert self._child is None, "started twice"
        self._launch()
        self._until_open(READY_S)
        self._until_restored(READY_S)

    def _launch(self) -> None:
        """Start a process, the n-th with files of its own."""
        self._starts += 1
        suffix = f"-{self._starts}" if self._starts > 1 else ""
        command = python("mta", "serve", "--config", self.config.name)
        if self._disk is not None:
            command = python("testbed.targets.disk", self._disk.name, self.config.name)
        self._child = Child(
            "server",
            [*self._wrapper, *command],
            log=self.directory / f"server{suffix}.out",
            cwd=self.directory,
            environment=source_environment(),
        )

    def _until_open(self, patience_s: float) -> None:
        """Wait until it has a door; the control socket answers before."""
        self._until("not ready", patience_s, self._is_open)

    def _is_open(self, status: Mapping[str, Any]) -> bool:
        host, _, port = status["smtp_address"].rpartition(":")
        if not int(port):
            return False
        self._address = (host, int(port))
        return True

    def _until_restored(self, patience_s: float) -> None:
        """Wait until it has read its queue; it takes mail meanwhile."""
        self._until("its queue not read", patience_s, lambda status: not status["restoring"])

    def _until(
        self, problem: str, patience_s: float, holds: Callable[[Mapping[str, Any]], bool]
    ) -> None:
        child = self._child
        assert child is not None, "not started"
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            child.check()
            with contextlib.suppress(OSError):
                if holds(next(iter(self._ask("show status")))):
                    return
            time.sleep(0.02)
        said = last_line(self.log) or "no word from it"
        raise RunError(f"server: {problem} within {patience_s:.0f} s: {said}")

    def restart(self, how: Literal["kill", "stop"], down_s: float) -> dict[str, Any]:
        """Let the process end, start another one on the same queue, doors and sockets; return when it has read its queue.

        Args:
            how: by SIGKILL or SIGTERM.
            down_s: from its end until it is started again.

        Returns:
            Instants, seconds since the epoch: when it was ``asked`` to end, ``gone``, ``started``, ``opened`` (its door), ``restored``
            (its queue); and ``envelopes`` that it found, ``read_s`` that it took to read them by its own account.

        Raises:
            RunError: it did not end well, though asked nicely; or the next one is not what it was.
        """
        child = self._child
        assert child is not None, "not started"
        self._hang_up()
        asked = time.time()
        status = child.kill() if how == "kill" else child.end(grace_s=STOP_S)
        gone = time.time()
        if how == "stop" and status != 0:
            raise RunError(child.describe_end())
        # The same port; and the trace of a process is its own.
        number = self._starts + 1
        trace = f"{self.trace.stem}-{number}{self.trace.suffix}"
        again = {
            "smtp": {"listen": f"{self._address[0]}:{self._address[1]}"},
            "log": {"stimuli": trace},
        }
        self.config.write_text(to_toml(merged(self._settings, again)), encoding="utf-8")
        said = self.log.stat().st_size
        time.sleep(max(0.0, gone + down_s - time.time()))
        started = time.time()
        self._launch()
        self._until_open(READY_S)
        opened = time.time()
        self._until_restored(RESTORE_S)
        restored = time.time()
        envelopes, read_s = self._what_was_read(said)
        return {
            "asked": asked,
            "gone": gone,
            "started": started,
            "opened": opened,
            "restored": restored,
            "envelopes": envelopes,
            "read_s": read_s,
        }

    def _what_was_read(self, since: int) -> tuple[int, float]:
        """Return the envelopes that the log says were read at the start, and the seconds that it took."""
        deadline = time.monotonic() + ANSWER_S
        while True:
            with self.log.open("rb") as file:
                file.seek(since)
                found = _RESTORED.search(file.read())
            if found:
                return int(found[1]), float(found[2])
            # An empty queue is worth no line; one that is may still wait for its turn to be written.
            if not next(iter(self._ask("show stats")))["queue.envelope"]:
                return 0, 0.0
            if time.monotonic() > deadline:
                raise RunError(f"server: {self.log.name} does not say what was restored")
            time.sleep(0.05)

    def set_disk(self, what: Literal["well", "slow", "full"], slower: float) -> None:
        """Let the queue's disk be so from the next write on; `testbed.targets.disk` reads it.

        Args:
            what: it is like.
            slower: how many times as long a write takes, if it is slow.
        """
        assert self._disk is not None, "made for a disk that is always well"
        fresh = self._disk.with_suffix(".new")
        fresh.write_text(f"{what} {slower:g}\n" if what == "slow" else f"{what}\n", "ascii")
        fresh.replace(self._disk)

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
        self._hang_up()
        status = self._child.end(grace_s=STOP_S) if self._child is not None else 0
        shutil.rmtree(self._private, ignore_errors=True)
        return status

    def _hang_up(self) -> None:
        with self._asking:
            if self._control is not None:
                self._control.close()
                self._control = None

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


def _steady_port() -> int:
    """Return a free port of the loopback that no outgoing connection is given: one that is there again after a restart.

    Raises:
        RunError: there is none.
    """
    # ip(7): outgoing connections get ports from this range.
    text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
    top = int(text.split()[0])
    count = min(PORTS, max(top - 1024, 1))
    for i in range(count):
        # Runs at the same time begin at different places.
        port = top - 1 - (os.getpid() * 37 + i) % count
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                probe.listen()
            except OSError:
                continue
            return port
    raise RunError("no port of the loopback is free below those of outgoing connections")


def queue_id(reply: str) -> str:
    """Return the message id in our reply to a final dot; empty if it is none of ours."""
    found = _ACCEPTED.search(reply)
    return found[1] if found else ""


def given_up(lines: Iterable[str]) -> Iterator[Owed]:
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
    return "".join(f"{key} = {_value(value)}\n" for key, value in leaves(settings))


def _value(value: object) -> str:
    """Return a value as TOML has it on one line."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(each)}" for key, each in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)
