"""`full`: every field of the envelope in memory, the body on disk.

What OpenSMTPD's agents kept before January 2013 (``struct envelope``, 8,584 bytes of C), written as a
careful engineer would write it in Python: slots, no copies of strings that the transaction already
has, no padding. It keeps what a full envelope is for: any question about it is answered without disk.
"""

from typing import ClassVar, TypeVar

from mta.core.envelopes.base import (
    MdaEnvelope,
    MtaEnvelope,
    Recipient,
    Transaction,
    mda_envelope,
    mta_envelope,
)
from mta.core.envelopes.objects import ObjectStore, Record
from mta.core.ids import SessionId


class FullRecord(Record):
    """All that is known of an envelope."""

    __slots__ = (
        "auth_user",
        "body_type",
        "declared_size",
        "delivery",
        "dest",
        "envid",
        "esmtp",
        "helo",
        "last_status",
        "notify",
        "orcpt",
        "peer_address",
        "peer_name",
        "rcpt",
        "ret",
        "rule",
        "sender",
        "session",
        "size",
        "smtputf8",
        "tag",
        "tls",
        "user",
    )

    sender: str
    rcpt: str
    session: SessionId
    helo: str
    peer_address: str
    peer_name: str
    tls: str
    auth_user: str
    smtputf8: bool
    body_type: str
    ret: str
    envid: str
    size: int
    declared_size: int
    esmtp: bool
    notify: str
    orcpt: str
    delivery: str
    user: str
    tag: str
    dest: str
    rule: str
    last_status: str


F = TypeVar("F", bound=FullRecord)


def fill(record: FullRecord, recipient: Recipient, transaction: Transaction) -> None:
    """Copy every field of an accepted envelope into its record."""
    record.sender = transaction.sender
    record.rcpt = recipient.address
    record.session = transaction.session
    record.helo = transaction.helo
    record.peer_address = transaction.peer_address
    record.peer_name = transaction.peer_name
    record.tls = transaction.tls
    record.auth_user = transaction.auth_user
    record.smtputf8 = transaction.smtputf8
    record.body_type = transaction.body_type
    record.ret = transaction.ret
    record.envid = transaction.envid
    record.size = transaction.size
    record.declared_size = transaction.declared_size
    record.esmtp = transaction.esmtp
    record.notify = recipient.notify
    record.orcpt = recipient.orcpt
    record.delivery = recipient.delivery
    record.user = recipient.user
    record.tag = recipient.tag
    record.dest = recipient.dest
    record.rule = recipient.rule
    record.last_status = ""


class FullRecordStore(ObjectStore[F]):
    """What `full` and `whole` share: the relaying agent's view is made from the record."""

    keeps_envelopes: ClassVar[bool] = True

    def note(self, handle: F, status: str) -> None:
        handle.last_status = status

    def mta_envelope_of(self, handle: F) -> MtaEnvelope | None:
        transaction = Transaction(
            sender=handle.sender,
            size=handle.size,
            smtputf8=handle.smtputf8,
            body_type=handle.body_type,
            ret=handle.ret,
            envid=handle.envid,
        )
        recipient = Recipient(handle.rcpt, handle.domain, handle.notify, handle.orcpt)
        return mta_envelope(transaction, recipient, created_at=handle.created_at)

    def mda_envelope_of(self, handle: F) -> MdaEnvelope | None:
        if not handle.delivery:
            return None
        recipient = Recipient(
            handle.rcpt,
            handle.domain,
            delivery=handle.delivery,
            user=handle.user,
            tag=handle.tag,
            dest=handle.dest,
            rule=handle.rule,
        )
        transaction = Transaction(handle.sender, handle.size)
        return mda_envelope(transaction, recipient, created_at=handle.created_at)


class FullStore(FullRecordStore[FullRecord]):
    """Every field of every envelope."""

    name: ClassVar[str] = "full"

    def _make(
        self, recipient: Recipient, transaction: Transaction, created_at: float, body: bytes | None
    ) -> FullRecord:
        record = FullRecord()
        fill(record, recipient, transaction)
        return record
