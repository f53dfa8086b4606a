"""Tracing at run time, and the record of a run.

`Tracer` is OpenSMTPD's ``smtpctl trace SUBSYSTEM``: what a subsystem does, line by line, into the log and
to whoever follows. A line that nobody wants costs one attribute test::

    if tracer.smtp:
        tracer.line("smtp", f"{session:016x} <<< {command}")

`StimulusTrace` writes every stimulus of the core with its instant, so that the model can be calibrated
with a run and can replay it. The schema is `mta.core.records`.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from mta.core.records import GAUGES, LOST, Record, to_record
from mta.core.stimuli import Stimulus
from mta.effects import Effects
from mta.log import LineFile, Log, printable

SUBSYSTEMS: Final = (
    "smtp", "mta", "mda", "scheduler", "queue", "expand", "rules", "lookup", "dns", "io", "control", "limits",
)  # fmt: skip
"""What can be traced. smtpctl's words where the subsystem is the same."""
ALL: Final = "all"


class Only:
    """Which lines of a trace are wanted: those about one address, one envelope or one message.

    An envelope's are those that have its id, or its message's; a message's those that have its id, or that of one
    of its envelopes. Any other text is looked for as it is, upper case or lower.
    """

    __slots__ = ("_pattern",)

    def __init__(self, text: str) -> None:
        wanted = re.escape(text)
        if re.fullmatch(r"[0-9A-Fa-f]{16}", text):
            wanted = rf"\b{text[:8]}(?:{text[8:]})?\b"
        elif re.fullmatch(r"[0-9A-Fa-f]{8}", text):
            wanted = rf"\b{text}(?:[0-9a-f]{{8}})?\b"
        self._pattern = re.compile(wanted, re.IGNORECASE)

    def matches(self, line: str, about: str) -> bool:
        """Say whether a line is wanted that was written while things were about something."""
        return self._pattern.search(line) is not None or self._pattern.search(about) is not None


class Tracer:
    """Which subsystems are traced, and to whom the lines go.

    The attributes named like subsystems are read, never written, by everybody else.
    """

    __slots__ = (*SUBSYSTEMS, "_followers", "_log", "_logged", "_watchers", "about")

    smtp: bool
    mta: bool
    mda: bool
    scheduler: bool
    queue: bool
    expand: bool
    rules: bool
    lookup: bool
    dns: bool
    io: bool
    control: bool
    limits: bool

    def __init__(self, log: Log) -> None:
        self.about = ""
        """The address or id that everything is about until it is set anew: lines need not repeat it for `Only`."""
        self._log = log
        self._logged: dict[str, Only | None] = {}
        self._followers: dict[
            object, tuple[frozenset[str], Callable[[str], None], Only | None]
        ] = {}
        self._watchers: list[Callable[[], None]] = []
        self._update()

    def on(self, subsystem: str) -> bool:
        """Say whether anybody wants the lines of a subsystem."""
        return bool(getattr(self, subsystem))

    def line(self, subsystem: str, text: str) -> None:
        """Pass a line on to the log, if the operator traces the subsystem, and to its followers."""
        if not getattr(self, subsystem):
            return
        if subsystem in self._logged:
            only = self._logged[subsystem]
            if only is None or only.matches(text, self.about):
                self._log.info(f"trace {subsystem}: {text}")
        if self._followers:
            clean = text if text.isprintable() else printable(text)
            # Why a copy? A follower that fails takes itself off the list.
            for wanted, write, only in list(self._followers.values()):
                if subsystem in wanted and (only is None or only.matches(text, self.about)):
                    write(f"{subsystem}: {clean}")

    def set(self, subsystem: str, on: bool, only: str = "") -> None:
        """Switch the tracing of a subsystem, or of ``all``, into the log.

        Args:
            subsystem: which.
            on: begin or end.
            only: an address or an id; only lines about it are wanted. See `Only`.

        Raises:
            ValueError: there is no such subsystem; the text is one line.
        """
        chosen = _subsystems(subsystem)
        about = Only(only) if only else None
        self._logged = {name: it for name, it in self._logged.items() if name not in chosen}
        if on:
            self._logged |= dict.fromkeys(chosen, about)
        self._update()

    def watch(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever another set of subsystems may be traced."""
        self._watchers.append(changed)

    def logged(self) -> list[str]:
        """Return the subsystems that are traced into the log."""
        return [name for name in SUBSYSTEMS if name in self._logged]

    def follow(
        self, subsystem: str, write: Callable[[str], None], only: str = ""
    ) -> Callable[[], None]:
        """Send the lines of a subsystem, or of ``all``, to ``write`` too, until what is returned is called.

        A subsystem that only followers want does not go into the log. ``write`` must not fail or wait.

        Raises:
            ValueError: there is no such subsystem.
        """
        key = object()
        self._followers[key] = (_subsystems(subsystem), write, Only(only) if only else None)
        self._update()

        def stop() -> None:
            if self._followers.pop(key, None) is not None:
                self._update()

        return stop

    def _update(self) -> None:
        wanted = set(self._logged).union(*(chosen for chosen, _, _ in self._followers.values()))
        for name in SUBSYSTEMS:
            setattr(self, name, name in wanted)
        for changed in self._watchers:
            changed()


def _subsystems(name: str) -> frozenset[str]:
    if name == ALL:
        return frozenset(SUBSYSTEMS)
    if name not in SUBSYSTEMS:
        raise ValueError(f"{name!r} is not a subsystem; there are {', '.join(SUBSYSTEMS)} and all")
    return frozenset((name,))


class _RecordFile(LineFile):
    """The file of a trace: what is missing is a record."""

    def __init__(self, effects: Effects, path: Path, *, now: Callable[[], float]) -> None:
        super().__init__(effects, path, site="stimuli", buffer_max=8 << 20, flush_s=0.25)
        self._now = now

    def missing(self, lines: int) -> bytes:
        return encode({"t": self._now(), "k": LOST, "lines": lines})


class StimulusTrace:
    """The record of a run, line by line into a file."""

    def __init__(self, effects: Effects, path: Path, header: Record) -> None:
        """Start a new file; one that is there is replaced, because a trace is of one run.

        Args:
            effects: how it is written.
            path: the file.
            header: what `mta.core.records.header` made.

        Raises:
            OSError: it can't be written.
        """
        effects.write_file(path, encode(header), site="stimuli")
        self._file = _RecordFile(effects, path, now=effects.now)

    @property
    def lost(self) -> int:
        """Lines that could not be written; the file says where."""
        return self._file.lost

    def stimulus(self, stimulus: Stimulus, now: float) -> None:
        """Record what the core was told at ``now``."""
        self._file.add(encode(to_record(stimulus, now)))

    def gauges(self, values: Mapping[str, int | float], now: float) -> None:
        """Record how many there are of everything at ``now``."""
        self._file.add(encode({"t": now, "k": GAUGES, **values}))

    def measured(self, kind: str, now: float, **fields: int | float | str) -> None:
        """Record something that was measured, such as ``commit`` with ``batch`` and ``seconds``.

        Durations are seconds, and the instant is their end.
        """
        self._file.add(encode({"t": now, "k": kind, **fields}))

    def flush(self) -> None:
        """Write what waits."""
        self._file.flush()

    def close(self) -> None:
        """Write what waits and close. Idempotent."""
        self._file.close()


_encoder: Final = msgspec.json.Encoder()


def encode(record: Record | Mapping[str, Any]) -> bytes:
    """Return a record as one line of JSON, whatever text is in it."""
    try:
        return _encoder.encode(record) + b"\n"
    except UnicodeEncodeError:
        # Half a surrogate pair, from bytes of the network that were no UTF-8. JSON can say it, escaped;
        # msgspec can't.
        return json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"
