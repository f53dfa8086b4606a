"""`packed`: no object per envelope at all, only columns of machine integers.

A handle is a row number. A row has an id, three instants as ticks from the store's epoch, its domain
as a number, how often it was tried, and two links: about 35 bytes. What would be objects elsewhere is
columns too: lists and the agenda are linked through ``prev`` and ``next``, free rows through ``next``, and
the way from id to row is a hash table of row numbers.

The agenda is a hierarchical timing wheel (Varghese and Lauck, SOSP 1987, scheme 7): four levels of
256 slots, so any instant within 2**32 ticks is found in at most four moves. The envelopes of one
tick are sorted by id when their tick comes up, which makes the order exact, not approximate.
"""

from array import array
from collections.abc import Iterator
from typing import ClassVar

from mta.core.envelopes.base import (
    ATTEMPTS_MAX,
    WARNED_SHIFT,
    EnvelopeState,
    Handle,
    MdaEnvelope,
    MtaEnvelope,
    Recipient,
    Transaction,
)
from mta.core.ids import EvpId, MsgId, evpid

_NONE = 0xFFFFFFFF
"""No row."""
_TICKS_PER_S = 64
_SLOT_BITS = 8
_SLOTS = 1 << _SLOT_BITS
_SLOT_MASK = _SLOTS - 1
_LEVELS = 4
_STATE_MASK = 0b111
_FLAG_SHIFT = 3
_STATE_FLAGS = 0b11111
"""Flags that are kept with the state."""
_ATTEMPTS_BITS = ATTEMPTS_MAX.bit_length()
"""Of the attempts' column; above them are the flags that count warnings."""
_FREE = 0b111
"""The state of a row that holds no envelope."""
_HASH_MULTIPLIER = 0x9E3779B97F4A7C15
"""2**64 / golden ratio: Knuth, The Art of Computer Programming 3, 6.4, multiplicative hashing."""
_INDEX_MIN = 16
_INT32_MAX = 0x7FFFFFFF

_PENDING = int(EnvelopeState.PENDING)
_IN_FLIGHT = int(EnvelopeState.IN_FLIGHT)


class PackedList:
    """A list linked through the columns; costs nothing per member."""

    __slots__ = ("_count", "_head", "_state", "_store", "_tail")

    def __init__(self, store: "PackedStore", state: EnvelopeState) -> None:
        self._store = store
        self._state = int(state)
        self._head = _NONE
        self._tail = _NONE
        self._count = 0

    def append(self, handle: Handle) -> None:
        store = self._store
        store._set_state(handle, _IN_FLIGHT, self._state)
        tail = self._tail
        store._prev[handle] = tail
        store._next[handle] = _NONE
        if tail == _NONE:
            self._head = handle
        else:
            store._next[tail] = handle
        self._tail = handle
        self._count += 1

    def popleft(self) -> Handle | None:
        head = self._head
        if head == _NONE:
            return None
        self.remove(head)
        return head

    def remove(self, handle: Handle) -> None:
        store = self._store
        store._set_state(handle, self._state, _IN_FLIGHT)
        before, after = store._prev[handle], store._next[handle]
        if before == _NONE:
            self._head = after
        else:
            store._next[before] = after
        if after == _NONE:
            self._tail = before
        else:
            store._prev[after] = before
        self._count -= 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Handle]:
        row = self._head
        while row != _NONE:
            yield row
            row = self._store._next[row]


class Names:
    """Strings as small numbers, counted, so that a name nobody uses any more is forgotten."""

    __slots__ = ("_free", "_numbers", "_uses", "names")

    def __init__(self) -> None:
        self.names: list[str] = []
        self._uses: list[int] = []
        self._numbers: dict[str, int] = {}
        self._free: list[int] = []

    def take(self, name: str) -> int:
        """Return the number of a name, and count one use."""
        number = self._numbers.get(name)
        if number is None:
            if self._free:
                number = self._free.pop()
                self.names[number] = name
            else:
                number = len(self.names)
                self.names.append(name)
                self._uses.append(0)
            self._numbers[name] = number
        self._uses[number] += 1
        return number

    def give(self, number: int) -> None:
        """Count one use less; with the last one the name is forgotten."""
        self._uses[number] -= 1
        if self._uses[number] == 0:
            del self._numbers[self.names[number]]
            self.names[number] = ""
            self._free.append(number)

    def __len__(self) -> int:
        return len(self._numbers)


class PackedStore:
    """Every envelope as a row of machine integers."""

    name: ClassVar[str] = "packed"
    keeps_envelopes: ClassVar[bool] = False
    keeps_bodies: ClassVar[bool] = False

    def __init__(self, *, epoch: float) -> None:
        self._epoch = int(epoch)
        self._count = 0
        self._clear()
        # The wheel: where it stands, the first row of each slot, the earliest tick in it, and one bit
        # per slot that has rows.
        self._cursor = 0
        self._slots = array("I", [_NONE]) * (_LEVELS * _SLOTS)
        self._slot_min = array("i", [0]) * (_LEVELS * _SLOTS)
        self._occupied = [0] * _LEVELS
        self._sorted_tick = -1

    def _clear(self) -> None:
        self._evpid = array("Q")
        self._due = array("i")
        self._created = array("i")
        self._expires = array("i")
        self._domain = array("I")
        self._attempts = array("H")
        self._state = array("B")
        self._prev = array("I")
        self._next = array("I")
        self._free = _NONE
        self._names = Names()
        self._index = array("I", [_NONE]) * _INDEX_MIN
        self._index_shift = 64 - (_INDEX_MIN.bit_length() - 1)

    # Rows

    def __len__(self) -> int:
        return self._count

    def ages(self) -> Iterator[tuple[str, float]]:
        row = 0
        while row < len(self._state):  # they may be fewer than a moment ago
            if self._state[row] & _STATE_MASK != _FREE:
                yield self.domain_of(row), self.created_at_of(row)
            row += 1

    def __iter__(self) -> Iterator[Handle]:
        for row, state in enumerate(self._state):
            if state & _STATE_MASK != _FREE:
                yield row

    def _tick(self, instant: float) -> int:
        tick = int((instant - self._epoch) * _TICKS_PER_S)
        return max(-_INT32_MAX, min(tick, _INT32_MAX))

    def _set_state(self, row: int, before: int, after: int) -> None:
        bits = self._state[row]
        assert bits & _STATE_MASK == before, (row, bits, before)
        self._state[row] = bits & ~_STATE_MASK | after

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
    ) -> Handle:
        created, expires = self._tick(created_at), self._tick(expires_at)
        domain = self._names.take(recipient.domain)
        state = (flags & _STATE_FLAGS) << _FLAG_SHIFT | _IN_FLIGHT
        attempts |= flags >> WARNED_SHIFT << _ATTEMPTS_BITS
        row = self._free
        if row != _NONE:
            self._free = self._next[row]
            self._evpid[row] = evpid
            self._created[row] = created
            self._expires[row] = expires
            self._domain[row] = domain
            self._attempts[row] = attempts
            self._state[row] = state
            self._next[row] = _NONE
        else:
            row = len(self._evpid)
            self._evpid.append(evpid)
            self._due.append(0)
            self._created.append(created)
            self._expires.append(expires)
            self._domain.append(domain)
            self._attempts.append(attempts)
            self._state.append(state)
            self._prev.append(_NONE)
            self._next.append(_NONE)
        self._count += 1
        # Why so full? Each place is 4 bytes; at four fifths a look-up still takes about three probes.
        if self._count * 5 > len(self._index) * 4:
            self._grow_index()
        else:
            self._index_insert(row)
        return row

    def discard(self, handle: Handle) -> None:
        assert self._state[handle] & _STATE_MASK == _IN_FLIGHT, self._state[handle]
        self._count -= 1
        if self._count == 0:
            # An empty queue costs nothing; and a long-lived one starts again without holes.
            self._clear()
            return
        self._index_remove(handle)
        self._names.give(self._domain[handle])
        self._state[handle] = _FREE
        self._next[handle] = self._free
        self._free = handle

    # From id to row: open addressing with linear probing; a removal moves later rows back

    def _home(self, evpid: int) -> int:
        return (evpid * _HASH_MULTIPLIER & 0xFFFFFFFFFFFFFFFF) >> self._index_shift

    def _index_insert(self, row: int) -> None:
        index = self._index
        mask = len(index) - 1
        place = self._home(self._evpid[row])
        while index[place] != _NONE:
            assert self._evpid[index[place]] != self._evpid[row], row
            place = (place + 1) & mask
        index[place] = row

    def _grow_index(self) -> None:
        size = len(self._index) * 2
        self._index = array("I", [_NONE]) * size
        self._index_shift = 64 - (size.bit_length() - 1)
        for row in self:
            self._index_insert(row)

    def _index_place(self, evpid: int) -> int | None:
        index, ids = self._index, self._evpid
        mask = len(index) - 1
        place = self._home(evpid)
        while (row := index[place]) != _NONE:
            if ids[row] == evpid:
                return place
            place = (place + 1) & mask
        return None

    def _index_remove(self, row: int) -> None:
        index = self._index
        mask = len(index) - 1
        hole = self._index_place(self._evpid[row])
        assert hole is not None, row
        place = hole
        while True:
            place = (place + 1) & mask
            candidate = index[place]
            if candidate == _NONE:
                break
            home = self._home(self._evpid[candidate])
            # A row may fill the hole unless its home lies cyclically after the hole.
            if (place - home) & mask >= (place - hole) & mask:
                index[hole] = candidate
                hole = place
        index[hole] = _NONE

    def find(self, evpid: EvpId) -> Handle | None:
        place = self._index_place(evpid)
        return None if place is None else self._index[place]

    def of_message(self, msgid: MsgId, *, recipients_max: int = 1000) -> list[Handle]:
        rows = (self.find(evpid(msgid, number)) for number in range(1, recipients_max + 1))
        return [row for row in rows if row is not None]

    # Fields

    def evpid_of(self, handle: Handle) -> EvpId:
        return EvpId(self._evpid[handle])

    def domain_of(self, handle: Handle) -> str:
        return self._names.names[self._domain[handle]]

    def state_of(self, handle: Handle) -> EnvelopeState:
        return EnvelopeState(self._state[handle] & _STATE_MASK)

    def created_at_of(self, handle: Handle) -> float:
        return self._epoch + self._created[handle] / _TICKS_PER_S

    def expires_at_of(self, handle: Handle) -> float:
        return self._epoch + self._expires[handle] / _TICKS_PER_S

    def attempts_of(self, handle: Handle) -> int:
        return self._attempts[handle] & ATTEMPTS_MAX

    def flags_of(self, handle: Handle) -> int:
        warned = self._attempts[handle] >> _ATTEMPTS_BITS
        return self._state[handle] >> _FLAG_SHIFT | warned << WARNED_SHIFT

    def set_flags(self, handle: Handle, flags: int) -> None:
        bits = (flags & _STATE_FLAGS) << _FLAG_SHIFT
        self._state[handle] = bits | self._state[handle] & _STATE_MASK
        warned = flags >> WARNED_SHIFT << _ATTEMPTS_BITS
        self._attempts[handle] = warned | self._attempts[handle] & ATTEMPTS_MAX

    def due_at_of(self, handle: Handle) -> float:
        return self._epoch + self._due[handle] / _TICKS_PER_S

    # The agenda

    def _place(self, tick: int) -> int:
        """Return the slot for a tick: its level is that of the highest digit it differs in."""
        level = max(0, (tick ^ self._cursor).bit_length() - 1) >> 3
        return level << _SLOT_BITS | tick >> (level * _SLOT_BITS) & _SLOT_MASK

    def _link(self, row: int, tick: int) -> None:
        place = self._place(tick)
        head = self._slots[place]
        self._prev[row] = _NONE
        self._next[row] = head
        self._slots[place] = row
        if head == _NONE:
            self._slot_min[place] = tick
            self._occupied[place >> _SLOT_BITS] |= 1 << (place & _SLOT_MASK)
        else:
            self._prev[head] = row
            if tick < self._slot_min[place]:
                self._slot_min[place] = tick
        if tick == self._sorted_tick:
            self._sorted_tick = -1

    def _unlink(self, row: int, place: int) -> None:
        before, after = self._prev[row], self._next[row]
        if after != _NONE:
            self._prev[after] = before
        if before != _NONE:
            self._next[before] = after
            return
        self._slots[place] = after
        if after == _NONE:
            self._occupied[place >> _SLOT_BITS] &= ~(1 << (place & _SLOT_MASK))

    def defer(self, handle: Handle, *, due_at: float, attempts: int) -> None:
        self._set_state(handle, _IN_FLIGHT, _PENDING)
        tick = max(self._tick(due_at), self._cursor)
        self._due[handle] = tick
        self._attempts[handle] = attempts | self._attempts[handle] & ~ATTEMPTS_MAX
        self._link(handle, tick)

    def _first_place(self) -> int | None:
        """Return the slot with the earliest envelopes: the first one of the lowest level."""
        for level, occupied in enumerate(self._occupied):
            if occupied:
                # Slots never lie before the cursor's digit of their level.
                return level << _SLOT_BITS | (occupied & -occupied).bit_length() - 1
        return None

    def _cascade(self, place: int) -> None:
        """Move the cursor to a slot of a higher level, and its envelopes down to where they belong."""
        level = place >> _SLOT_BITS
        shift = level * _SLOT_BITS
        row = self._slots[place]
        self._cursor = self._due[row] >> shift << shift
        self._slots[place] = _NONE
        self._occupied[level] &= ~(1 << (place & _SLOT_MASK))
        while row != _NONE:
            after = self._next[row]
            self._link(row, self._due[row])
            row = after

    def _sort(self, place: int, tick: int) -> None:
        """Bring the envelopes of one tick into the order of their ids."""
        rows = []
        row = self._slots[place]
        while row != _NONE:
            rows.append(row)
            row = self._next[row]
        rows.sort(key=self._evpid.__getitem__)
        before = _NONE
        for row in rows:
            self._prev[row] = before
            if before == _NONE:
                self._slots[place] = row
            else:
                self._next[before] = row
            before = row
        self._next[before] = _NONE
        self._sorted_tick = tick

    def pop_due(self, now: float) -> Handle | None:
        limit = int((now - self._epoch) * _TICKS_PER_S)
        while (place := self._first_place()) is not None:
            if self._slot_min[place] > limit:
                return None
            if place >= _SLOTS:
                self._cascade(place)
                continue
            tick = self._cursor & ~_SLOT_MASK | place
            self._cursor = tick
            if self._sorted_tick != tick:
                self._sort(place, tick)
            row = self._slots[place]
            self._unlink(row, place)
            self._set_state(row, _PENDING, _IN_FLIGHT)
            return row
        return None

    def unschedule(self, handle: Handle) -> None:
        self._set_state(handle, _PENDING, _IN_FLIGHT)
        self._unlink(handle, self._place(self._due[handle]))

    def next_due(self) -> float | None:
        place = self._first_place()
        if place is None:
            return None
        return self._epoch + self._slot_min[place] / _TICKS_PER_S

    # Lists, and what this representation does not keep

    def new_list(self, state: EnvelopeState) -> PackedList:
        return PackedList(self, state)

    def note(self, handle: Handle, status: str) -> None:
        """Remember nothing: the queue has it."""

    def mta_envelope_of(self, handle: Handle) -> MtaEnvelope | None:
        return None

    def mda_envelope_of(self, handle: Handle) -> MdaEnvelope | None:
        return None

    def body_of(self, msgid: MsgId) -> bytes | None:
        return None

    def shrink(self) -> None:
        """There is nothing that could be read again."""

    def validate(self) -> None:
        rows = list(self)
        assert len(rows) == self._count
        assert len({self._evpid[row] for row in rows}) == len(rows)
        for row in rows:
            assert self.find(EvpId(self._evpid[row])) == row
        assert sum(1 for row in self._index if row != _NONE) == self._count
        in_wheel = 0
        for place, head in enumerate(self._slots):
            assert (head != _NONE) == bool(
                self._occupied[place >> _SLOT_BITS] >> (place & _SLOT_MASK) & 1
            ), place
            row, before = head, _NONE
            while row != _NONE:
                assert self._prev[row] == before
                assert self._state[row] & _STATE_MASK == _PENDING
                assert self._place(self._due[row]) == place
                assert self._cursor <= self._due[row]
                assert self._slot_min[place] <= self._due[row]
                in_wheel += 1
                before, row = row, self._next[row]
        assert in_wheel == sum(1 for row in rows if self._state[row] & _STATE_MASK == _PENDING)
        assert len(self._names) == len({self._domain[row] for row in rows})
