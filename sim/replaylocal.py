"""What a replayed run came to for local mail: rows from its trace, and the same rows from a run of the model."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from mta.core.ids import EvpId, evpid
from mta.core.instructions import (
    DeferEnvelope,
    DeliverLocally,
    Instruction,
    Removal,
    RemoveEnvelope,
    SendBounce,
)
from mta.core.stimuli import MessageSubmitted
from sim.local import LocalResult

Rows = tuple[tuple[str, str], ...]

_COUNTS: Final[Rows] = (
    ("local_accepted", "envelopes"),
    ("local_delivered", "envelopes"),
    ("local_attempts", "deliveries started"),
    ("local_tempfails", "attempts and refusals"),
    ("local_overflows", "of hold queues"),
    ("local_oldest_s", "s in the queue"),
)
_QUANTILES: Final = (("p50", 50), ("p99", 99))


def rows_of(groups: Sequence[str]) -> Rows:
    """Return the rows, with units, of a scenario with these local groups; none without any."""
    if not groups:
        return ()
    each = [(f"{name} {key}", "s from 250 to delivery") for name in groups for key, _ in _QUANTILES]
    return (*_COUNTS, *each)


def of_model(result: LocalResult | None) -> dict[str, Any]:
    """Return the rows of a run of the model; empty without local mail."""
    if result is None:
        return {}
    found: dict[str, Any] = {
        "local_accepted": sum(group.accepted for group in result.groups),
        "local_delivered": sum(group.delivered for group in result.groups),
        "local_attempts": result.attempts,
        "local_tempfails": sum(group.tempfails for group in result.groups),
        "local_overflows": sum(group.overflows for group in result.groups),
        "local_oldest_s": result.oldest_age_s,
    }
    for group in result.groups:
        found.update(_quantiles(group.name, group.latency_s.tolist()))
    return found


def _quantiles(name: str, latency_s: list[float]) -> dict[str, float | None]:
    if not latency_s:
        return {f"{name} {key}": None for key, _ in _QUANTILES}
    return {
        f"{name} {key}": float(np.percentile(latency_s, part, method="inverted_cdf"))
        for key, part in _QUANTILES
    }


class LocalStory:
    """Listens to a trace that is told again."""

    def __init__(self, groups: Sequence[str]) -> None:
        """``groups``: names of the scenario's local groups; a user of one is its name and a number."""
        self._groups = tuple(groups)
        self._waiting: dict[EvpId, tuple[float, str]] = {}
        """Of envelopes in the queue: when they were accepted, and the group."""
        self._latency_s: dict[str, list[float]] = {name: [] for name in groups}
        self._accepted = self._attempts = self._tempfails = self._overflows = 0
        self._oldest_s = 0.0
        self._now = 0.0

    def submitted(self, stimulus: MessageSubmitted, t: float) -> None:
        """Take note of a message that was accepted at ``t``."""
        self._now = t
        for number, recipient in enumerate(stimulus.recipients, 1):
            if recipient.delivery:
                name = recipient.user.rstrip("0123456789")
                if name in self._latency_s:
                    self._accepted += 1
                    self._waiting[evpid(stimulus.msgid, number)] = (t, name)

    def told(self, instruction: Instruction, t: float) -> None:
        """Take note of what the core said at ``t``."""
        self._now = t
        match instruction:
            case DeliverLocally(envelope, _):
                self._attempts += envelope in self._waiting
            case DeferEnvelope() if instruction.evpid in self._waiting:
                # Without a status it was sent back untried: a full hold queue.
                self._tempfails += bool(instruction.status)
                self._overflows += not instruction.status
            case RemoveEnvelope(envelope, reason, _) if envelope in self._waiting:
                self._settle(envelope, t, delivered=reason is Removal.DELIVERED)
            case SendBounce(_, kind, reported) if kind.is_failure or kind.is_success:
                for envelope, _ in reported:
                    if envelope in self._waiting:
                        self._settle(envelope, t, delivered=kind.is_success)

    def _settle(self, envelope: EvpId, t: float, *, delivered: bool) -> None:
        since, name = self._waiting.pop(envelope)
        took_s = t - since
        self._oldest_s = max(self._oldest_s, took_s)
        if delivered:
            self._latency_s[name].append(took_s)

    def rows(self) -> dict[str, Any]:
        """Return the rows; empty without local groups."""
        if not self._groups:
            return {}
        waits = [self._now - since for since, _ in self._waiting.values()]
        found: dict[str, Any] = {
            "local_accepted": self._accepted,
            "local_delivered": sum(map(len, self._latency_s.values())),
            "local_attempts": self._attempts,
            "local_tempfails": self._tempfails,
            "local_overflows": self._overflows,
            "local_oldest_s": max([self._oldest_s, *waits]),
        }
        for name, values in self._latency_s.items():
            found.update(_quantiles(name, values))
        return found
