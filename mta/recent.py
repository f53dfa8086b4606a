"""Messages kept ready for their first attempt, so that fresh mail is relayed without reading it back.

Bounded by envelopes and by bytes; the oldest message goes first. A message leaves when each of its
envelopes has been tried once, so an idle server keeps nothing here. OpenSMTPD's counterpart is the
queue's envelope cache of 1,024 entries (queue_backend.c).
"""

from typing import NamedTuple

from mta.core.envelopes.base import (
    MdaEnvelope,
    MtaEnvelope,
    Recipient,
    Transaction,
    mda_envelope,
    mta_envelope,
)
from mta.core.ids import EvpId, MsgId, msgid_of

_NUMBER_MASK = 0xFFFFFFFF


class RecentMessage(NamedTuple):
    """What a first attempt needs of a message."""

    transaction: Transaction
    recipients: tuple[Recipient, ...]
    body: bytes
    created_at: float


class RecentMessages:
    """The latest messages, by id."""

    def __init__(self, *, envelopes_max: int, bytes_max: int) -> None:
        self._envelopes_max = envelopes_max
        self._bytes_max = bytes_max
        self._messages: dict[MsgId, RecentMessage] = {}
        self._untried: dict[MsgId, int] = {}
        self.envelopes = 0
        self.bytes = 0
        self.closed = False
        """Nothing is kept: memory is short."""

    def clear(self) -> None:
        """Let go of everything: it is in the queue as well."""
        self._messages.clear()
        self._untried.clear()
        self.envelopes = self.bytes = 0

    def add(self, msgid: MsgId, message: RecentMessage) -> None:
        """Keep a message that was just made durable; older ones make room."""
        size, count = len(message.body), len(message.recipients)
        if self.closed or size > self._bytes_max or count > self._envelopes_max:
            return
        while self.bytes + size > self._bytes_max or self.envelopes + count > self._envelopes_max:
            self._drop(next(iter(self._messages)))
        self._messages[msgid] = message
        self._untried[msgid] = count
        self.envelopes += count
        self.bytes += size

    def resize(self, *, envelopes_max: int, bytes_max: int) -> None:
        """Go on with other bounds; the oldest messages make room at once."""
        self._envelopes_max, self._bytes_max = envelopes_max, bytes_max
        while self.bytes > bytes_max or self.envelopes > envelopes_max:
            self._drop(next(iter(self._messages)))

    def _drop(self, msgid: MsgId) -> None:
        message = self._messages.pop(msgid)
        del self._untried[msgid]
        self.envelopes -= len(message.recipients)
        self.bytes -= len(message.body)

    def tried(self, evpid: EvpId) -> None:
        """Note that an envelope had its first attempt; with the last one the message is dropped."""
        msgid = msgid_of(evpid)
        left = self._untried.get(msgid)
        if left is None:
            return
        if left == 1:
            self._drop(msgid)
        else:
            self._untried[msgid] = left - 1

    def get(self, msgid: MsgId) -> RecentMessage | None:
        """Return a message, or None if it is not kept."""
        return self._messages.get(msgid)

    def mta_envelope(self, evpid: EvpId) -> MtaEnvelope | None:
        """Return what the relaying agent needs of one envelope, or None if it is not kept."""
        message = self._messages.get(msgid_of(evpid))
        if message is None:
            return None
        recipient = message.recipients[(evpid & _NUMBER_MASK) - 1]
        return mta_envelope(message.transaction, recipient, created_at=message.created_at)

    def mda_envelope(self, evpid: EvpId) -> MdaEnvelope | None:
        """Return what a local delivery needs of one envelope, or None if it is not kept, or is relayed."""
        message = self._messages.get(msgid_of(evpid))
        if message is None:
            return None
        recipient = message.recipients[(evpid & _NUMBER_MASK) - 1]
        if not recipient.delivery:
            return None
        return mda_envelope(message.transaction, recipient, created_at=message.created_at)

    def __len__(self) -> int:
        return len(self._messages)
