"""Envelopes as Python objects: what `whole`, `full`, `slim` and `fixed` have in common.

One record per envelope, found by a dict, ordered by a heap, linked into lists through two of its own
slots. The heap holds plain integers, ``due tick << 64 | evpid``, and the record keeps the one that is
valid: an envelope that leaves the agenda early leaves its integer behind, to be skipped when it
comes up. Integers compare in C and cost less than half of a tuple.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import ClassVar, Generic, TypeVar

from mta.core.envelopes.base import (
    EnvelopeState,
    MdaEnvelope,
    MtaEnvelope,
    Recipient,
    Transaction,
)
from mta.core.ids import EvpId, MsgId, evpid

_EVPID_BITS = 64
_EVPID_MASK = (1 << _EVPID_BITS) - 1
_TICKS_PER_S = 64

_PENDING = EnvelopeState.PENDING
_IN_FLIGHT = EnvelopeState.IN_FLIGHT

_COMPACT_MIN = 64
"""Stale heap entries that are not worth a clean-up."""


class Record:
    """What the scheduler needs of every envelope, in whatever representation."""

    __slots__ = (
        "agenda_key",
        "attempts",
        "created_at",
        "domain",
        "evpid",
        "flags",
        "lifetime",
        "next",
        "prev",
        "state",
    )

    evpid: EvpId
    domain: str
    created_at: float
    lifetime: float
    """Seconds from creation to expiry; one float object for all envelopes with the same."""
    attempts: int
    flags: int
    state: EnvelopeState
    agenda_key: int
    """The valid entry in the heap, or 0 outside the agenda."""
    prev: "Record | None"
    next: "Record | None"


R = TypeVar("R", bound=Record)


class RecordList(Generic[R]):
    """A list linked through the records themselves; costs no memory per member."""

    __slots__ = ("_count", "_head", "_state", "_tail")

    def __init__(self, state: EnvelopeState) -> None:
        self._state = state
        self._head: Record | None = None
        self._tail: Record | None = None
        self._count = 0

    def append(self, handle: R) -> None:
        assert handle.state is _IN_FLIGHT, handle.state
        handle.state = self._state
        tail = self._tail
        handle.prev = tail
        if tail is None:
            self._head = handle
        else:
            tail.next = handle
        self._tail = handle
        self._count += 1

    def popleft(self) -> R | None:
        head = self._head
        if head is None:
            return None
        self.remove(head)  # type: ignore[arg-type]  # only R are ever appended
        return head  # type: ignore[return-value]  # as above

    def remove(self, handle: R) -> None:
        assert handle.state is self._state, handle.state
        before, after = handle.prev, handle.next
        if before is None:
            self._head = after
        else:
            before.next = after
        if after is None:
            self._tail = before
        else:
            after.prev = before
        handle.prev = handle.next = None
        handle.state = _IN_FLIGHT
        self._count -= 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[R]:
        record = self._head
        while record is not None:
            yield record  # type: ignore[misc]  # only R are ever appended
            record = record.next


class ObjectStore(ABC, Generic[R]):
    """An `EnvelopeStore` of records; subclasses say which record and what is in it."""

    name: ClassVar[str]
    keeps_envelopes: ClassVar[bool] = False
    keeps_bodies: ClassVar[bool] = False

    def __init__(self) -> None:
        self._records: dict[EvpId, R] = {}
        self._agenda: list[int] = []
        self._stale = 0
        self._lifetimes: dict[float, float] = {}

    @abstractmethod
    def _make(
        self, recipient: Recipient, transaction: Transaction, created_at: float, body: bytes | None
    ) -> R:
        """Return a new record with what this representation keeps of an envelope."""

    def _deferred(self, record: R) -> None:
        """A record leaves the relaying agent: drop what only that needed."""

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[R]:
        return iter(self._records.values())

    def ages(self) -> Iterator[tuple[str, float]]:
        for record in list(self._records.values()):
            yield record.domain, record.created_at

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
    ) -> R:
        assert evpid not in self._records, evpid
        record = self._make(recipient, transaction, created_at, body)
        record.evpid = evpid
        record.domain = sys.intern(recipient.domain)
        record.created_at = created_at
        lifetime = expires_at - created_at
        record.lifetime = self._lifetimes.setdefault(lifetime, lifetime)
        record.attempts = attempts
        record.flags = flags
        record.state = _IN_FLIGHT
        record.agenda_key = 0
        record.prev = record.next = None
        self._records[evpid] = record
        return record

    def discard(self, handle: R) -> None:
        assert handle.state is _IN_FLIGHT, handle.state
        del self._records[handle.evpid]
        if not self._records:
            # Why new ones? A dict keeps the table of its largest size; an empty queue should cost nothing.
            self._records = {}
            self._agenda = []
            self._lifetimes = {}
            self._stale = 0

    def find(self, evpid: EvpId) -> R | None:
        return self._records.get(evpid)

    def of_message(self, msgid: MsgId, *, recipients_max: int = 1000) -> list[R]:
        records = self._records
        found = []
        for number in range(1, recipients_max + 1):
            record = records.get(evpid(msgid, number))
            if record is not None:
                found.append(record)
        return found

    def evpid_of(self, handle: R) -> EvpId:
        return handle.evpid

    def domain_of(self, handle: R) -> str:
        return handle.domain

    def state_of(self, handle: R) -> EnvelopeState:
        return handle.state

    def created_at_of(self, handle: R) -> float:
        return handle.created_at

    def expires_at_of(self, handle: R) -> float:
        return handle.created_at + handle.lifetime

    def attempts_of(self, handle: R) -> int:
        return handle.attempts

    def flags_of(self, handle: R) -> int:
        return handle.flags

    def set_flags(self, handle: R, flags: int) -> None:
        handle.flags = flags

    def due_at_of(self, handle: R) -> float:
        return (handle.agenda_key >> _EVPID_BITS) / _TICKS_PER_S

    def defer(self, handle: R, *, due_at: float, attempts: int) -> None:
        assert handle.state is _IN_FLIGHT, handle.state
        key = int(due_at * _TICKS_PER_S) << _EVPID_BITS | handle.evpid
        handle.agenda_key = key
        handle.attempts = attempts
        handle.state = _PENDING
        heappush(self._agenda, key)
        self._deferred(handle)

    def _first(self) -> R | None:
        """Return the first envelope of the agenda; stale entries before it are dropped."""
        agenda = self._agenda
        while agenda:
            key = agenda[0]
            record = self._records.get(EvpId(key & _EVPID_MASK))
            if record is not None and record.agenda_key == key:
                return record
            heappop(agenda)
            self._stale -= 1
        return None

    def pop_due(self, now: float) -> R | None:
        agenda = self._agenda
        # Nothing comes before the first entry, even if that is stale: the usual answer at no cost.
        if not agenda or agenda[0] >> _EVPID_BITS > now * _TICKS_PER_S:
            return None
        record = self._first()
        if record is None or record.agenda_key >> _EVPID_BITS > now * _TICKS_PER_S:
            return None
        heappop(self._agenda)
        record.agenda_key = 0
        record.state = _IN_FLIGHT
        return record

    def unschedule(self, handle: R) -> None:
        assert handle.state is _PENDING, handle.state
        handle.agenda_key = 0
        handle.state = _IN_FLIGHT
        self._stale += 1
        if self._stale > _COMPACT_MIN and self._stale * 2 > len(self._agenda):
            self._agenda = [r.agenda_key for r in self._records.values() if r.agenda_key]
            heapify(self._agenda)
            self._stale = 0

    def next_due(self) -> float | None:
        if self._stale:
            self._first()
        agenda = self._agenda
        return (agenda[0] >> _EVPID_BITS) / _TICKS_PER_S if agenda else None

    def new_list(self, state: EnvelopeState) -> RecordList[R]:
        return RecordList(state)

    def note(self, handle: R, status: str) -> None:
        """Remember the last reply, if this representation has a place for it."""

    @abstractmethod
    def mta_envelope_of(self, handle: R) -> MtaEnvelope | None:
        """Return what the relaying agent needs, or None if it has to be read from the queue."""

    @abstractmethod
    def mda_envelope_of(self, handle: R) -> MdaEnvelope | None:
        """Return what a local delivery needs, or None."""

    def body_of(self, msgid: MsgId) -> bytes | None:
        return None

    def shrink(self) -> None:
        """There is nothing that could be read again."""

    def validate(self) -> None:
        agenda = set(self._agenda)
        pending = 0
        for identity, record in self._records.items():
            assert record.evpid == identity
            assert (record.state is _PENDING) == (record.agenda_key != 0), identity
            if record.agenda_key:
                pending += 1
                assert record.agenda_key in agenda, identity
                assert record.agenda_key & _EVPID_MASK == identity
                assert record.prev is None and record.next is None
        assert len(self._agenda) == pending + self._stale, (len(self._agenda), pending, self._stale)
