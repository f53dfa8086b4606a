"""`slim`: a scheduler's record, and beside it what the relaying agent needs while it needs it.

OpenSMTPD's design of January 2013 (commit e032b844, ``struct mta_envelope``): the scheduler knows an
envelope by a small record, the full one is on disk, and the agent keeps id, sender and recipient.
Here the `MtaEnvelope`, or the `MdaEnvelope` of a local delivery (commit e7bd0313), is dropped when the envelope is deferred, and read from the queue again when it
is next tried.
"""

from typing import ClassVar

from mta.core.envelopes.base import (
    MdaEnvelope,
    MtaEnvelope,
    Recipient,
    Transaction,
    mda_envelope,
    mta_envelope,
)
from mta.core.envelopes.objects import ObjectStore, Record


class SlimRecord(Record):
    """A scheduler's record with room for the agent's envelope."""

    __slots__ = ("part",)

    part: MtaEnvelope | MdaEnvelope | None


class SlimStore(ObjectStore[SlimRecord]):
    """Only what the scheduler needs, for every envelope; the agent's part while it is in flight."""

    name: ClassVar[str] = "slim"

    def _make(
        self, recipient: Recipient, transaction: Transaction, created_at: float, body: bytes | None
    ) -> SlimRecord:
        record = SlimRecord()
        make = mda_envelope if recipient.delivery else mta_envelope
        record.part = make(transaction, recipient, created_at=created_at)
        return record

    def _deferred(self, record: SlimRecord) -> None:
        record.part = None

    def mta_envelope_of(self, handle: SlimRecord) -> MtaEnvelope | None:
        part = handle.part
        return part if type(part) is MtaEnvelope else None

    def mda_envelope_of(self, handle: SlimRecord) -> MdaEnvelope | None:
        part = handle.part
        return part if type(part) is MdaEnvelope else None
