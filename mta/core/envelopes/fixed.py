"""`fixed`: what OpenSMTPD's agents kept until January 2013, one buffer of 8,584 bytes for each envelope they had.

The fields are those of ``struct envelope`` before commit e032b844, in its order and with its sizes on Linux
(64-bit). They are really stored into the buffer and read from it, and every byte is written, as C's assignment of a
struct does: the memory is resident, not promised. The scheduler had a small record of its own then as now,
so the buffer lives while an agent has the envelope: it goes when the envelope is deferred, held or scheduled, and
is there again when it is handed out again, with what the scheduler knows; the rest is read from the queue by then.

What is longer than its field is kept beside the buffer, never cut: C would have refused it. So is what has no field:
ESMTP's and DSN's parameters came later. The links of a ``TAILQ_ENTRY`` are in the record here; their
16 bytes have session and size, which the struct did not have.
"""

from struct import Struct
from typing import Any, ClassVar, Final

from mta.core.envelopes.base import (
    EnvelopeState,
    MdaEnvelope,
    MtaEnvelope,
    Recipient,
    Transaction,
    mda_envelope,
    mta_envelope,
)
from mta.core.envelopes.objects import ObjectStore, Record, RecordList
from mta.core.ids import EvpId

_ENVELOPE: Final = Struct(
    "<QQ"  # entry
    "32s"  # tag: MAX_TAG_SIZE
    "I4xQI"  # version, id, flags
    "64s64s"  # helo, hostname: MAXHOSTNAMELEN
    "2049s3x"  # errorline: MAX_LINE_SIZE + 1
    "128s"  # ss: struct sockaddr_storage
    "64s255s64s255s64s255s3x"  # sender, rcpt, dest: struct mailaddr
    "I4x"  # type
    "5192s"  # agent: a union, the larger arm of which is the relay's
    "H6x"  # retry
    "ddddd"  # creation, expire, lasttry, nexttry, lastbounce: time_t
)
_AGENT_MDA: Final = Struct("<I256s256s1024s")
"""method, usertable, username, buffer: ``struct delivery_mda``, 1,540 bytes."""

SIZE: Final = 8584
"""``sizeof(struct envelope)`` on Linux, 64-bit, January 2013."""
assert _ENVELOPE.size == SIZE

_VERSION: Final = 1
_FLAG_AUTHENTICATED: Final = 1
"""Place of OpenSMTPD's DF_AUTHENTICATED."""
_FLAGS_SHIFT: Final = 8
"""Bits of `Flag` are above those."""

_TYPE_MDA, _TYPE_MTA, _TYPE_BLANK = 0, 1, 3
"""Values of ``type``; the last one, which C does not have, says that only the scheduler's fields are filled."""

_AT_SIZE, _AT_TAG, _AT_ERRORLINE = 8, 16, 196
_AT_SENDER, _AT_RCPT, _AT_DEST, _AT_TYPE, _AT_AGENT = 2376, 2695, 3014, 3336, 3344
_AT_CREATION: Final = 8544
_USER, _ADDRESS = 64, 319
_ERRORLINE: Final = 2049
_NUMBER: Final = Struct("<Q")
_WORD: Final = Struct("<I")
_INSTANT: Final = Struct("<d")

_METHODS: Final = ("", "local", "file", "pipe")
"""Values of the agent's ``method``: first word of `Recipient.delivery`."""

_LATER: Final = ("smtputf8", "body_type", "ret", "envid")
"""Fields of a transaction that came after the struct."""


class FixedRecord(Record):
    """A scheduler's record with room for the agent's copy."""

    __slots__ = ("aside", "buffer")

    buffer: bytearray | None
    """Of `SIZE` bytes while the envelope is in flight; None otherwise."""
    aside: dict[str, Any] | None
    """What does not fit into the buffer, or has no field there."""


class _Writer:
    """Makes fields of text, and keeps aside what does not fit."""

    __slots__ = ("aside",)

    def __init__(self) -> None:
        self.aside: dict[str, Any] = {}

    def text(self, name: str, value: str, room: int) -> bytes:
        """Return the bytes of a field; empty if they are not all of it."""
        data = value.encode("utf-8", "surrogatepass")
        if len(data) > room or "\0" in value:
            self.aside[name] = value
            return b""
        return data

    def address(self, name: str, value: str) -> tuple[bytes, bytes]:
        """Return user and domain of a ``struct mailaddr``."""
        user, at, domain = value.rpartition("@")
        if not at:
            user, domain = domain, ""
        elif not domain:
            self.aside[name] = value
            return b"", b""
        halves = self.text(name, user, _USER), self.text(name, domain, _ADDRESS - _USER)
        if name in self.aside:
            self.aside[name] = value
            return b"", b""
        return halves

    def method(self, delivery: str) -> tuple[int, bytes]:
        """Return method and buffer of a local delivery."""
        word, _, target = delivery.partition(":")
        if word and word in _METHODS and delivery == (f"{word}:{target}" if target else word):
            return _METHODS.index(word), self.text("delivery", target, 1024)
        self.aside["delivery"] = delivery
        return 0, b""


def _write(record: FixedRecord, recipient: Recipient, transaction: Transaction) -> None:
    """Give a record a buffer with every field of an accepted envelope."""
    writer = _Writer()
    is_local = bool(recipient.delivery)
    dest = recipient.dest or recipient.address
    buffer = bytearray(SIZE)
    _ENVELOPE.pack_into(
        buffer,
        0,
        transaction.session,
        transaction.size,
        writer.text("tag", recipient.tag, 32),
        _VERSION,
        record.evpid,
        record.flags << _FLAGS_SHIFT | (_FLAG_AUTHENTICATED if transaction.auth_user else 0),
        writer.text("helo", transaction.helo, 64),
        writer.text("peer_name", transaction.peer_name, 64),
        b"",
        writer.text("peer_address", transaction.peer_address, 128),
        *writer.address("sender", transaction.sender),
        *writer.address("rcpt", recipient.address),
        *writer.address("dest", dest),
        _TYPE_MDA if is_local else _TYPE_MTA,
        b"",
        record.attempts,
        record.created_at,
        record.created_at + record.lifetime,
        0.0,
        0.0,
        0.0,
    )
    if is_local:
        method, target = writer.method(recipient.delivery)
        _AGENT_MDA.pack_into(
            buffer,
            _AT_AGENT,
            method,
            writer.text("rule", recipient.rule, 256),
            writer.text("user", recipient.user, 256),
            target,
        )
    for name in _LATER:
        if value := getattr(transaction, name):
            writer.aside[name] = value
    if recipient.notify or recipient.orcpt:
        writer.aside["dsn"] = recipient.notify, recipient.orcpt
    record.buffer = buffer
    record.aside = writer.aside or None


def _write_blank(record: FixedRecord) -> None:
    """Give a record a buffer with what the scheduler knows: the agent has it again."""
    buffer = bytearray(SIZE)
    _ENVELOPE.pack_into(
        buffer, 0, 0, 0, b"", _VERSION, record.evpid, record.flags << _FLAGS_SHIFT,
        *[b""] * 10, _TYPE_BLANK, b"", record.attempts,
        record.created_at, record.created_at + record.lifetime, 0.0, 0.0, 0.0,
    )  # fmt: skip
    record.buffer = buffer


def _drop(record: FixedRecord) -> None:
    record.buffer = None
    record.aside = None


def _text(record: FixedRecord, name: str, at: int, room: int) -> str:
    if record.aside is not None and name in record.aside:
        value: str = record.aside[name]
        return value
    buffer = record.buffer
    assert buffer is not None
    end = buffer.find(0, at, at + room)
    return buffer[at : end if end >= 0 else at + room].decode("utf-8", "surrogatepass")


def _address(record: FixedRecord, name: str, at: int) -> str:
    user = _text(record, name, at, _USER)
    if record.aside is not None and name in record.aside:
        return user
    domain = _text(record, name, at + _USER, _ADDRESS - _USER)
    return f"{user}@{domain}" if domain else user


def _delivery(record: FixedRecord, buffer: bytearray) -> str:
    (number,) = _WORD.unpack_from(buffer, _AT_AGENT)
    target = _text(record, "delivery", _AT_AGENT + 516, 1024)
    word = _METHODS[number]
    if not word:
        return target  # all of it: a method that C did not have
    return f"{word}:{target}" if target else word


class _ParkedList(RecordList[FixedRecord]):
    """Envelopes that no agent has: joining drops the agent's copy, leaving makes a new one."""

    __slots__ = ()

    def append(self, handle: FixedRecord) -> None:
        super().append(handle)
        _drop(handle)

    def remove(self, handle: FixedRecord) -> None:
        super().remove(handle)
        _write_blank(handle)


class FixedStore(ObjectStore[FixedRecord]):
    """A small record for the scheduler, and the buffer of January 2013 for whichever agent has the envelope."""

    name: ClassVar[str] = "fixed"

    def _make(
        self, recipient: Recipient, transaction: Transaction, created_at: float, body: bytes | None
    ) -> FixedRecord:
        record = FixedRecord()
        _drop(record)
        return record

    def add(
        self,
        evpid: EvpId,
        recipient: Recipient,
        transaction: Transaction,
        *,
        created_at: float,
        expires_at: float,
        attempts: int = 0,
        flags: int = 0,
        body: bytes | None = None,
    ) -> FixedRecord:
        record = super().add(
            evpid,
            recipient,
            transaction,
            created_at=created_at,
            expires_at=expires_at,
            attempts=attempts,
            flags=flags,
            body=body,
        )
        _write(record, recipient, transaction)
        return record

    def _deferred(self, record: FixedRecord) -> None:
        _drop(record)

    def pop_due(self, now: float) -> FixedRecord | None:
        record = super().pop_due(now)
        if record is not None:
            _write_blank(record)
        return record

    def unschedule(self, handle: FixedRecord) -> None:
        super().unschedule(handle)
        _write_blank(handle)

    def new_list(self, state: EnvelopeState) -> RecordList[FixedRecord]:
        return _ParkedList(state)

    def note(self, handle: FixedRecord, status: str) -> None:
        """Put the last reply into ``errorline``; what is longer is cut, as strlcpy does: it is in the log."""
        if handle.buffer is not None:
            line = status.encode("utf-8", "replace")[: _ERRORLINE - 1]
            handle.buffer[_AT_ERRORLINE : _AT_ERRORLINE + _ERRORLINE] = line.ljust(
                _ERRORLINE, b"\0"
            )

    def mta_envelope_of(self, handle: FixedRecord) -> MtaEnvelope | None:
        buffer = handle.buffer
        if buffer is None or _WORD.unpack_from(buffer, _AT_TYPE)[0] != _TYPE_MTA:
            return None
        aside = handle.aside or {}
        (size,) = _NUMBER.unpack_from(buffer, _AT_SIZE)
        later = {name: aside[name] for name in _LATER if name in aside}
        transaction = Transaction(_address(handle, "sender", _AT_SENDER), size, **later)
        notify, orcpt = aside.get("dsn", ("", ""))
        address = _address(handle, "rcpt", _AT_RCPT)
        return mta_envelope(
            transaction,
            Recipient(address, handle.domain, notify, orcpt),
            created_at=_INSTANT.unpack_from(buffer, _AT_CREATION)[0],
        )

    def mda_envelope_of(self, handle: FixedRecord) -> MdaEnvelope | None:
        buffer = handle.buffer
        if buffer is None or _WORD.unpack_from(buffer, _AT_TYPE)[0] != _TYPE_MDA:
            return None
        transaction = Transaction(_address(handle, "sender", _AT_SENDER), 0)
        recipient = Recipient(
            _address(handle, "rcpt", _AT_RCPT),
            handle.domain,
            delivery=_delivery(handle, buffer),
            user=_text(handle, "user", _AT_AGENT + 260, 256),
            tag=_text(handle, "tag", _AT_TAG, 32),
            dest=_address(handle, "dest", _AT_DEST),
            rule=_text(handle, "rule", _AT_AGENT + 4, 256),
        )
        return mda_envelope(
            transaction, recipient, created_at=_INSTANT.unpack_from(buffer, _AT_CREATION)[0]
        )

    def validate(self) -> None:
        super().validate()
        for record in self._records.values():
            in_flight = record.state is EnvelopeState.IN_FLIGHT
            assert in_flight == (record.buffer is not None), record.evpid
            assert record.buffer is None or len(record.buffer) == SIZE
            assert record.aside is None or in_flight
