"""What the model's disk has of the queue: what a process that is started finds.

Kept only where a process ends (`sim.restarts`); all other runs need to know how long a commit takes, and no more. The rule:
a fact is here from the end of its commit on. What the core has decided and no commit has taken yet is in the journal, in the order
in which the writer takes it, and is lost with the process (mta/queue/writer.py).
"""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from mta.core.bounce import flags_for
from mta.core.envelopes.base import to_tick
from mta.core.ids import EvpId, MsgId
from mta.core.instructions import Removal
from mta.core.limits import SchedulerLimits
from mta.core.stimuli import EnvelopeRestored
from sim.message import Message


class Put(NamedTuple):
    """An envelope is tried again later."""

    envelope: EvpId
    attempts: int
    due_at: float


class Taken(NamedTuple):
    """An envelope leaves the queue."""

    envelope: EvpId
    reason: Removal


class Flagged(NamedTuple):
    """An envelope has other flags."""

    envelope: EvpId
    flags: int


Change: TypeAlias = Put | Taken | Flagged


class Spool:
    """Rows of envelopes, and the changes that are on their way to them."""

    def __init__(self, limits: SchedulerLimits) -> None:
        """Begin empty; ``limits`` say how long envelopes live."""
        self._limits = limits
        self._rows: dict[EvpId, EnvelopeRestored] = {}
        self._message_of: dict[MsgId, Message] = {}
        self._left: dict[MsgId, int] = {}
        self._journal: deque[Change] = deque()

    def __len__(self) -> int:
        """Return how many envelopes the disk has."""
        return len(self._rows)

    def add(self, msgid: MsgId, message: Message, now: float) -> None:
        """Take the envelopes of a message that a commit has made durable."""
        transaction = message.transaction
        created_at = to_tick(now)
        limits = self._limits
        ttl = limits.envelope_ttl_s if transaction.sender else limits.bounce_ttl_s
        expires_at = to_tick(created_at + ttl)
        self._message_of[msgid] = message
        self._left[msgid] = len(message.recipients)
        for number, recipient in enumerate(message.recipients, 1):
            envelope = EvpId(msgid << 32 | number)
            flags = int(flags_for(transaction.sender, recipient.notify))
            self._rows[envelope] = EnvelopeRestored(
                envelope, recipient, transaction, created_at, expires_at, 0, created_at, flags
            )

    def note(self, change: Change) -> None:
        """Let a change wait for its commit."""
        self._journal.append(change)

    def commit(self, count: int) -> None:
        """Make the oldest changes durable."""
        for _ in range(count):
            self._apply(self._journal.popleft())

    def flush(self) -> None:
        """Make every change durable: the process ends in good order."""
        self.commit(len(self._journal))

    def lose(self) -> list[Change]:
        """The process is gone: return the changes that went with it."""
        lost = list(self._journal)
        self._journal.clear()
        return lost

    def remove(self, envelope: EvpId) -> None:
        """Forget an envelope."""
        if self._rows.pop(envelope, None) is None:
            return
        msgid = MsgId(envelope >> 32)
        self._left[msgid] -= 1
        if not self._left[msgid]:
            del self._left[msgid], self._message_of[msgid]

    def flag(self, envelope: EvpId, flags: int) -> None:
        """Set the flags of an envelope, if it is there."""
        row = self._rows.get(envelope)
        if row is not None:
            self._rows[envelope] = row._replace(flags=flags)

    def _apply(self, change: Change) -> None:
        if isinstance(change, Taken):
            self.remove(change.envelope)
        elif isinstance(change, Flagged):
            self.flag(change.envelope, change.flags)
        else:
            row = self._rows.get(change.envelope)
            if row is not None:
                _, attempts, due_at = change
                self._rows[change.envelope] = row._replace(attempts=attempts, due_at=due_at)

    # For the start

    def order(self) -> list[EvpId]:
        """Return all envelopes in the order in which a start reads them: the earliest due first (mta/queue/reader.py)."""
        rows = self._rows
        return sorted(rows, key=lambda envelope: (rows[envelope].due_at, envelope))

    def row(self, envelope: EvpId) -> EnvelopeRestored | None:
        """Return what the core is told of an envelope; None if it is gone."""
        return self._rows.get(envelope)

    def message_of(self, envelope: EvpId) -> Message:
        """Return the message of an envelope that the disk has."""
        return self._message_of[MsgId(envelope >> 32)]

    def messages(self) -> Iterator[tuple[MsgId, Message, int]]:
        """Yield each message with its id and how many of its envelopes are left."""
        for msgid, message in self._message_of.items():
            yield msgid, message, self._left[msgid]


__all__ = ["Change", "Flagged", "Put", "Spool", "Taken"]
