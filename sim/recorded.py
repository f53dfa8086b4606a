"""What the traces of a server's directory say that a run came to, with the keys of a replay's rows.

A trace holds stimuli only: a core hears them again and says what it did. Whoever else wants to hear that, as a calibration does,
is told in the same pass, because a million messages take a while to tell.
"""

import csv
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from mta.core.engine import Engine
from mta.core.ids import EvpId, MsgId, evpid, msgid_of
from mta.core.instructions import (
    DeferEnvelope,
    Instruction,
    OpenConnection,
    Removal,
    RemoveEnvelope,
    SendBounce,
    StartTransaction,
)
from mta.core.records import TraceError
from mta.core.settings import ConfigError
from mta.core.stimuli import EnvelopeRestored, MessageSubmitted, Stimulus
from sim.collector import no_collector
from sim.records import Retrace
from sim.replaylocal import LocalStory
from sim.runner import SAMPLE_S
from sim.tracefile import parse, traces_of

SILENCE_S: Final = 86_400.0
"""Longer than that nothing is sampled one by one: a load that did not say when it began counts as if in 1970."""

_QUANTILES: Final = (("p50", 50), ("p95", 95), ("p99", 99))


class Story:
    """Listens to the traces of one server, each told again by a core, and counts.

    Of each trace: `begins`, then for every record `passes`, and for those that are stimuli `hears`.
    """

    def __init__(
        self,
        *,
        sent: Mapping[int, float] | None = None,
        load_start: float = 0.0,
        groups: Sequence[str] = (),
    ) -> None:
        """Listen.

        Args:
            sent: when each message was sent, by message id; without it the time to delivery counts from the
                commit.
            load_start: mail that came before belongs to the warm-up, and so does all that became of it: the model has none.
            groups: names of the scenario's local groups.
        """
        self._sent: Mapping[int, float] = sent or {}
        self._load_start = load_start
        self._groups = bool(groups)
        self._local = LocalStory(groups)
        self._accepted = self._delivered = self._deferred = self._bounced = 0
        self._transactions = self._opened = 0
        self._latency = array("d")
        self._began: dict[int, float] = {}
        self._peak = self._queued = 0
        self._sampling = False
        self._due = load_start
        self._emptied_at: float | None = None
        self._gone: set[EvpId] = set()
        """Delivered; kept only if there is more than one trace."""
        self._warm_up: set[EvpId] = set()
        """Envelopes of the warm-up that were queued when somebody looked."""
        self._lost: set[MsgId] = set()
        """Messages that no trace has the beginning of."""
        self._engine: Engine | None = None
        self._ends = False
        self.heard: list[Path] = []
        """Traces, in the order in which they began."""

    def begins(self, path: Path, engine: Engine, *, more: bool) -> None:
        """Hear of a process that starts; ``more`` if its run has others."""
        self.heard.append(path)
        self._engine = engine
        self._ends = more
        self._warm_up.clear()

    def passes(self, at: float) -> None:
        """Let time come to the next record."""
        if self._due <= at and (self._sampling or at >= self._load_start):
            assert self._engine is not None
            self._sampling = True
            self._peak = max(self._peak, self._left())
            if at - self._due > SILENCE_S:
                self._due = at
            # An instant that is none of ours is so large that a step makes no difference.
            while self._due <= at and self._due < self._due + SAMPLE_S:
                self._due += SAMPLE_S

    def hears(self, t: float, stimulus: Stimulus, instructions: Sequence[Instruction]) -> None:
        """Take one stimulus and what the core said to it."""
        kind = type(stimulus)
        if kind is MessageSubmitted:
            if t >= self._load_start:
                self._submitted(stimulus, t)  # type: ignore[arg-type]  # the line above
            else:
                msgid, count = stimulus.msgid, len(stimulus.recipients)  # type: ignore[union-attr]
                self._warm_up.update(evpid(msgid, number) for number in range(1, count + 1))
        elif kind is EnvelopeRestored:
            if stimulus.created_at >= self._load_start:  # type: ignore[union-attr]
                self._restored(stimulus)  # type: ignore[arg-type]
            else:
                self._warm_up.add(stimulus.evpid)  # type: ignore[union-attr]
        for instruction in instructions:
            if self._groups:
                self._local.told(instruction, t)
            self._told(instruction, t)
        assert self._engine is not None
        if len(self._engine.store) > len(self._warm_up) or self._left():
            self._emptied_at = None
        elif self._emptied_at is None:
            self._emptied_at = t

    def _left(self) -> int:
        """Return how many envelopes are queued, without those of the warm-up."""
        assert self._engine is not None
        store = self._engine.store
        if self._warm_up:
            self._warm_up = {each for each in self._warm_up if store.find(each) is not None}
        return len(store) - len(self._warm_up)

    def _submitted(self, stimulus: MessageSubmitted, t: float) -> None:
        self._local.submitted(stimulus, t)
        self._began[stimulus.msgid] = self._sent.get(stimulus.msgid, t)
        if stimulus.transaction.sender:
            self._accepted += len(stimulus.recipients)

    def _restored(self, stimulus: EnvelopeRestored) -> None:
        # A process that was killed took the end of its trace along.
        msgid = msgid_of(stimulus.evpid)
        if msgid not in self._began or msgid in self._lost:
            self._lost.add(msgid)
            self._began[msgid] = self._sent.get(msgid, stimulus.created_at)
            self._accepted += bool(stimulus.transaction.sender)

    def _told(self, instruction: Instruction, t: float) -> None:
        kind = type(instruction)
        if kind is RemoveEnvelope:
            self._removed(instruction, t)  # type: ignore[arg-type]  # the line above
        elif kind is DeferEnvelope:
            # Without a status it was sent back untried: a full hold queue.
            if msgid_of(instruction.evpid) in self._began:  # type: ignore[union-attr]
                self._deferred += bool(instruction.status)  # type: ignore[union-attr]
        elif kind is StartTransaction:
            self._transactions += instruction.msgid in self._began  # type: ignore[union-attr]
        elif kind is OpenConnection:
            self._opened += t >= self._load_start
        elif kind is SendBounce:
            msgid, why, reported = instruction.msgid, instruction.kind, instruction.failures  # type: ignore[union-attr]
            if msgid not in self._began:
                return
            self._bounced += 1
            if why.is_success:
                self._delivered += len(reported)
                for _ in reported:
                    self._latency.append(t - self._began[msgid])

    def _removed(self, instruction: RemoveEnvelope, t: float) -> None:
        gone = instruction.evpid
        if instruction.reason is not Removal.DELIVERED or msgid_of(gone) not in self._began:
            return
        if self._ends:
            if gone in self._gone:
                return  # once more, after a restart
            self._gone.add(gone)
        self._delivered += 1
        self._latency.append(t - self._began[msgid_of(gone)])

    def numbers(self) -> dict[str, Any]:
        """Return what it came to, memory not included."""
        quantiles: dict[str, float | None] = {name: None for name, _ in _QUANTILES}
        if self._latency:
            values = np.percentile(
                np.array(self._latency), [part for _, part in _QUANTILES], method="inverted_cdf"
            )
            quantiles = dict(zip(quantiles, map(float, values), strict=True))
        start, end = self._load_start, self._emptied_at
        return {
            "accepted": self._accepted,
            "delivered": self._delivered,
            "deferred": self._deferred,
            "bounced": self._bounced,
            "queued": self._left() if self._engine else 0,
            "peak_queued": self._peak,
            "drain_time_s": None if end is None else end - start,
            **quantiles,
            "transactions": self._transactions,
            "connections_opened": self._opened,
            **self._local.rows(),
        }


def tell(directory: Path, story: Story) -> None:
    """Tell a story from all traces of a server's directory.

    Raises:
        ConfigError: a trace is missing or damaged.
    """
    paths = list(traces_of(directory))
    path = paths[0]
    try:
        for path in paths:
            with no_collector(), path.open("rb") as file:
                trace = parse(file, source=str(path))
                core = Retrace(trace.header)
                story.begins(path, core.engine, more=len(paths) > 1)
                for record in trace.records:
                    story.passes(record["t"])
                    step = core.step(record)
                    if step is not None:
                        story.hears(*step)
    except OSError as error:
        raise ConfigError(str(path), problem=f"can't be read: {error.strerror}") from None
    except (TraceError, AssertionError) as error:
        problem = str(error) or "not what this core would have been told"
        raise ConfigError(str(path), problem=problem) from None


def recorded(directory: Path, story: Story | None = None) -> dict[str, Any]:
    """Return what a run came to, with the keys of `sim.replay.ROWS`, and of `sim.replaylocal` for local mail.

    Args:
        directory: of one server.
        story: what has heard its traces; one that has not is told them here.

    Raises:
        ConfigError: a file is missing or damaged.
    """
    story = story or Story()
    if not story.heard:
        tell(directory, story)
    return {**story.numbers(), "peak_rss_bytes": _peak_rss(directory / "samples.csv")}


def _peak_rss(path: Path) -> int | None:
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8", newline="") as file:
            values = [row.get("rss_bytes") for row in csv.DictReader(file)]
    except OSError as error:
        raise ConfigError(str(path), problem=f"can't be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        raise ConfigError(str(path), problem="is no table") from None
    try:
        return max((int(value) for value in values if value), default=None)
    except ValueError as error:
        raise ConfigError(str(path), "rss_bytes", problem=str(error)) from None
