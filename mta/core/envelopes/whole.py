"""`whole`: envelope and message body in memory, as a plain aiosmtpd handler would keep them.

aiosmtpd hands its handler an ``Envelope`` with ``content``; who queues that object queues the body. The
body is shared by the envelopes of one message and goes with the last of them, or when memory is short: it is in
the queue too, and read from there then.
"""

from typing import ClassVar

from mta.core.envelopes.base import Recipient, Transaction
from mta.core.envelopes.full import FullRecord, FullRecordStore, fill
from mta.core.ids import MsgId, evpid, msgid_of


class WholeRecord(FullRecord):
    """All that is known of an envelope, and its message."""

    __slots__ = ("body",)

    body: bytes | None
    """None after memory was short."""


class WholeStore(FullRecordStore[WholeRecord]):
    """Every field of every envelope, and every message."""

    name: ClassVar[str] = "whole"
    keeps_bodies: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._has_bodies = False

    def _make(
        self, recipient: Recipient, transaction: Transaction, created_at: float, body: bytes | None
    ) -> WholeRecord:
        assert body is not None, "the whole representation needs the message"
        record = WholeRecord()
        fill(record, recipient, transaction)
        record.body = body
        self._has_bodies = True
        return record

    def body_of(self, msgid: MsgId) -> bytes | None:
        first = self._records.get(evpid(msgid, 1))
        if first is not None:
            return first.body
        for record in self.of_message(msgid):
            assert msgid_of(record.evpid) == msgid
            return record.body
        return None

    def shrink(self) -> None:
        if not self._has_bodies:  # asked again and again for as long as memory is short
            return
        for record in self._records.values():
            record.body = None
        self._has_bodies = False
