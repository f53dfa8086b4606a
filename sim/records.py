"""Traces: what the model writes in the server's schema, and what a trace says when the core is asked again.

A trace holds stimuli only. The core is deterministic, so that feeding them to a core with the same
settings and seed gives every instruction with its instant: `retrace`. Where that fails, either the
trace has a hole or a decision depends on something that is no stimulus.
"""

import contextlib
import hashlib
import json
import zlib
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import IO, Any, Final, NamedTuple

from mta.core import records
from mta.core.engine import Engine
from mta.core.ids import SessionId
from mta.core.instructions import Instruction
from mta.core.records import GAUGES, LOST, STIMULI, Record, TraceError, from_record, to_record
from mta.core.settings import ConfigError
from mta.core.stimuli import (
    AgentPaused,
    AgentResumed,
    ConnectionClosed,
    ConnectionFailed,
    ConnectionReady,
    DomainResolved,
    DrainRequested,
    EnvelopeRestored,
    LimitChanged,
    LocalDeliveryDone,
    MessageSubmitted,
    ScheduleRequested,
    Stimulus,
    TimeReached,
    TransactionDone,
)
from sim.settings import ModelConfig, model_config

OUTBOUND_SESSIONS: Final = 1 << 31
"""Outbound session ids have this bit (mta/server.py)."""

_KINDS: Final[Mapping[type, int]] = {
    kind: number
    for number, kind in enumerate(
        (
            MessageSubmitted,
            TimeReached,
            DomainResolved,
            ConnectionReady,
            ConnectionFailed,
            TransactionDone,
            ConnectionClosed,
            LocalDeliveryDone,
            LimitChanged,
            AgentPaused,
            AgentResumed,
            ScheduleRequested,
            EnvelopeRestored,
            DrainRequested,
        )
    )
}

_OPERATORS: Final = _KINDS[LimitChanged]
"""From here on it is what an operator says, and what a start restores, which is seldom."""


class Fingerprint:
    """A digest of every stimulus with its instant, to the last bit.

    Two runs with the same fingerprint were the same run. The idea is that of OMNeT++'s fingerprint tests.
    """

    __slots__ = ("_keys", "_times", "stimuli")

    def __init__(self) -> None:
        self._times = array("d")
        self._keys = array("Q")
        self.stimuli = 0

    def observe(self, stimulus: Stimulus, now: float, instructions: list[Instruction]) -> None:
        """Take one stimulus in, and how much the core had to say to it."""
        kind = type(stimulus)
        if kind is TransactionDone:
            results = stimulus.results  # type: ignore[union-attr]  # the line above
            key = int(stimulus.session) << 8  # type: ignore[union-attr]
            for _, outcome, _, _ in results:
                key = (key * 5 + outcome) & 0xFFFFFFFFFFFF
        elif kind is MessageSubmitted:
            key = stimulus.msgid  # type: ignore[union-attr]
        elif kind is TimeReached or kind is DomainResolved:
            key = 0
        elif kind is LocalDeliveryDone:
            key = int(stimulus.evpid) << 2 | stimulus.outcome  # type: ignore[union-attr]
        elif _KINDS[kind] >= _OPERATORS:
            key = zlib.crc32(repr(stimulus).encode())
        else:
            key = int(stimulus.session)  # type: ignore[union-attr]
        self._times.append(now)
        self._keys.append(
            _KINDS[kind] << 60 | (len(instructions) & 0xFFF) << 48 | key & 0xFFFFFFFFFFFF
        )
        self.stimuli += 1

    def hexdigest(self) -> str:
        """Return 16 hexadecimal digits."""
        digest = hashlib.sha256(self._times.tobytes())
        digest.update(self._keys.tobytes())
        return digest.hexdigest()[:16]


class TraceWriter:
    """Writes a model's run as the server writes its own (mta/trace.py)."""

    def __init__(self, path: Path, header: Record) -> None:
        """Begin a file; one that is there is replaced.

        Raises:
            OSError: it can't be written.
        """
        self._file: IO[bytes] = path.open("wb")
        self._write(header)

    def _write(self, record: Record) -> None:
        self._file.write(json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n")

    def observe(self, stimulus: Stimulus, now: float, instructions: list[Instruction]) -> None:
        """Write one stimulus."""
        self._write(to_record(stimulus, now))

    def gauges(self, values: Mapping[str, int | float], now: float) -> None:
        """Write how many there are of everything."""
        self._write({"t": now, "k": GAUGES, **values})

    def measured(self, kind: str, now: float, **fields: float) -> None:
        """Write a duration, whose end is ``now``."""
        self._write({"t": now, "k": kind, **fields})

    def close(self) -> None:
        """Write what waits and close. Idempotent."""
        self._file.close()


_new: Final = tuple.__new__
"""Of a named tuple, without the call of Python code that its own is."""


class Step(NamedTuple):
    """One stimulus of a trace and what the core said to it."""

    t: float
    stimulus: Stimulus
    instructions: list[Instruction]


class Retrace:
    """A core that hears again what a trace says it heard."""

    def __init__(self, header: Record, *, config: ModelConfig | None = None) -> None:
        """Make the core that the header describes.

        Args:
            header: first line of a trace.
            config: settings to use instead of the header's.

        Raises:
            TraceError: the header lacks something.
        """
        self.header = header
        self.config = config or config_of(header)
        try:
            started_at = float(header["started_at"])
            seed = int(header["seed"])
            settings = dict(header["config"])
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"header: {type(error).__name__}: {error}") from None
        first = 0
        own_names: tuple[str, ...] = ()
        own: dict[int, tuple[str, ...]] = {}
        if header.get("clock") == "epoch":
            first = (int(started_at) & 0xFFFFFFFF) << 32 | OUTBOUND_SESSIONS
            own_names = (str(settings.get("hostname", "")).lower(),)
            with contextlib.suppress(AttributeError, TypeError, ValueError):
                told = dict(header.get("host", {})).get("own", {})
                own = {int(port): tuple(map(str, addresses)) for port, addresses in told.items()}
        self.engine = Engine(
            representation=self.config.envelope,
            limits=self.config.limits,
            retry=self.config.retry,
            concurrency=self.config.concurrency,
            stream=lambda name: Random(f"{seed}/{name}"),
            now=started_at,
            first_session=SessionId(first),
            own_names=own_names,
            own_addresses=own.get(int(settings.get("relay.port") or 0), ()),
            own_by_port=own,
            warn_after_s=self.config.bounce.warn_interval_s,
            rules=self.config.relay_rules(
                smart_host=str(settings.get("relay.smart_host", "")), hops=_hops(settings)
            ),
        )

    def step(self, record: Record) -> Step | None:
        """Tell the core what one record says; None if it is a measurement.

        Raises:
            TraceError: the record is wrong, or lines before it are lost.
        """
        kind = record["k"]
        if kind == LOST:
            raise TraceError(f"{record.get('lines')} lines are lost: this is no replay")
        if kind not in STIMULI:
            return None
        stimulus, now = from_record(record)
        try:
            return _new(Step, (now, stimulus, self.engine.handle(stimulus, now=now)))
        except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError):
            # An answer to what was never asked, or a value that no server writes.
            problem = f"{kind} at {now}: not what this core would have been told"
            raise TraceError(problem) from None


def retrace(trace: records.Trace) -> Iterator[Step]:
    """Yield every stimulus of a trace with the instructions that it must have caused.

    Raises:
        TraceError: the trace has a hole, or a record is wrong.
    """
    again = Retrace(trace.header)
    for record in trace.records:
        step = again.step(record)
        if step is not None:
            yield step


def tree_of(header: Record) -> dict[str, Any]:
    """Return the settings that a trace's header names, as tables.

    Raises:
        TraceError: it lacks something.
    """
    try:
        flat: dict[str, Any] = {**header["config"], **header["limits"]}
    except (KeyError, TypeError) as error:
        raise TraceError(f"header: {type(error).__name__}: {error}") from None
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        node = tree
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    tree["seed"] = header.get("seed", 0)
    return {key: _with_lists(value) for key, value in tree.items()}


def _with_lists(value: Any) -> Any:
    """Return a table with lists where its keys are numbers."""
    if not isinstance(value, dict):
        return value
    if value and all(key.isdecimal() for key in value):
        return [_with_lists(item) for item in value.values()]
    return {key: _with_lists(item) for key, item in value.items()}


def _hops(settings: Record) -> list[str]:
    """Return the smart hosts that rules name."""
    return [
        str(value)
        for key, value in settings.items()
        if key.startswith("rules.") and key.endswith(".smart_host") and value
    ]


def config_of(header: Record) -> ModelConfig:
    """Return the settings that decide, of those that a trace's header names.

    Raises:
        TraceError: it lacks something, or has a value that can't be.
    """
    try:
        return model_config(tree_of(header), source="header")
    except ConfigError as error:
        raise TraceError(str(error)) from None
