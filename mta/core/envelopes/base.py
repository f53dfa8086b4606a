"""What an envelope is at the door, and what the core asks of whoever keeps it in memory.

An accepted message arrives as one `Transaction` and its `Recipient`s. How much of that stays in
memory, and in which shape, is the business of an `EnvelopeStore`: the scheduler and the relays hold
opaque handles, and no other part of the server knows which representation is on.

A handle is in exactly one place at a time: in the agenda (pending), in one `EnvelopeList` (scheduled,
held or suspended), or in none (in flight). Times are seconds since the epoch; instants that a store keeps are
multiples of `TICK`, so that all representations agree to the last bit.
"""

import enum
import math
from collections.abc import Iterator
from typing import Any, ClassVar, Final, NamedTuple, Protocol, TypeAlias

from mta.core.ids import EvpId, MsgId, SessionId

TICK = 1 / 64
"""Grain of every instant that a store keeps, in seconds; a power of two, so floats hold it exactly."""

Handle: TypeAlias = Any
"""An envelope in a store: an object in one representation, a row number in another. Opaque."""


def to_tick(instant: float) -> float:
    """Return the first multiple of `TICK` that is not before ``instant``."""
    return math.ceil(instant * 64) / 64


class EnvelopeState(enum.IntEnum):
    """Where an envelope stands. Words of OpenSMTPD, scheduler_ramqueue.c."""

    PENDING = 0
    """Waits for its next try."""
    SCHEDULED = 1
    """Due, waits for a slot."""
    IN_FLIGHT = 2
    """Handed to its relay; the outcome is unknown."""
    HELD = 3
    """Parked because its relay is at high water."""
    SUSPENDED = 4
    """Parked by the operator; the flag of the same name is its durable form."""


class Flag(enum.IntFlag):
    """Bits that every representation keeps for each envelope."""

    NONE = 0
    SUSPENDED = 1
    """Parked by the operator (`mtactl pause envelope`)."""
    NO_BOUNCE = 2
    """The null sender, or NOTIFY=NEVER: nobody may be told of a failure (RFC 5321 4.5.5, RFC 3461)."""
    SUCCESS = 4
    """NOTIFY=SUCCESS: the sender wants to hear of the delivery too (RFC 3461 4.1)."""
    NO_WARNING = 8
    """The null sender, or NOTIFY without DELAY: nobody may be told that the envelope still waits."""


WARNED_SHIFT = 5
"""From this bit on flags say how many delay warnings were sent, up to `WARNINGS_MAX`."""
WARNINGS_MAX = 4
"""Delay warnings per envelope. OpenSMTPD MAX_BOUNCE_WARN."""
FLAGS_MAX = 0xFF
"""All flags together: as many bits as every representation has for them."""
ATTEMPTS_MAX = 0x1FFF
"""Attempts are counted up to here: one number for all representations, and `packed` has 13 bits."""


class Transaction(NamedTuple):
    """What the recipients of one message have in common, as the door learnt it."""

    sender: str
    """Reverse-path; empty for ``<>``."""
    size: int
    """Bytes of header and body as accepted, line ends counted as CRLF."""
    session: SessionId = SessionId(0)
    helo: str = ""
    peer_address: str = ""
    peer_name: str = ""
    tls: str = ""
    """Protocol and cipher, or empty."""
    auth_user: str = ""
    smtputf8: bool = False
    """The client asked for SMTPUTF8 (RFC 6531)."""
    body_type: str = ""
    """``8BITMIME``, ``7BIT`` or empty, as the client said (RFC 6152)."""
    ret: str = ""
    """RET of RFC 3461: ``FULL``, ``HDRS`` or empty."""
    envid: str = ""
    """ENVID of RFC 3461."""
    declared_size: int = 0
    """What the client said with SIZE= (RFC 1870); 0 if it did not."""
    esmtp: bool = True
    """The client said EHLO."""


class Recipient(NamedTuple):
    """One recipient, as the door learnt it."""

    address: str
    """Forward-path, ``local@domain``."""
    domain: str
    """The relay's key: the part after @, lower case, A-labels; of a local delivery `local_key`."""
    notify: str = ""
    """NOTIFY of RFC 3461, or empty."""
    orcpt: str = ""
    """ORCPT of RFC 3461, or empty."""
    delivery: str = ""
    """How it is delivered here: ``local`` (as its rule says), ``file:/path`` or ``pipe:command``; empty for
    a recipient that is relayed."""
    user: str = ""
    """Whose mail it is here, or as whom a file is written or a command runs; empty for the server's own."""
    tag: str = ""
    """Sub-address of the user. Untrusted."""
    dest: str = ""
    """The address that expansion arrived at, for Delivered-To; empty if it is ``address``."""
    rule: str = ""
    """Name of the rule that decided; empty for mail that no rule was asked about."""


LOCAL_KEY_END = "@"
"""What the key of a local delivery ends in, and no domain ever does."""


def local_key(user: str) -> str:
    """Return the key under which a user's mail is queued: ``user@``."""
    return f"{user}{LOCAL_KEY_END}"


def is_local_key(key: str) -> bool:
    """Say whether a key is of a local delivery."""
    return key.endswith(LOCAL_KEY_END)


_new: Final = tuple.__new__
_OTHER_OF_TRANSACTION: Final = tuple(Transaction._field_defaults.values())
_OTHER_OF_RECIPIENT: Final = tuple(Recipient._field_defaults.values())


def plain_transaction(sender: str, size: int) -> Transaction:
    """Return ``Transaction(sender, size)`` in a third of the time: a million of them are read from a trace, or drawn."""
    return _new(Transaction, (sender, size, *_OTHER_OF_TRANSACTION))


def plain_recipient(address: str, domain: str) -> Recipient:
    """Return ``Recipient(address, domain)`` in a third of the time; see `plain_transaction`."""
    return _new(Recipient, (address, domain, *_OTHER_OF_RECIPIENT))


class MtaEnvelope(NamedTuple):
    """All that the relaying agent needs to try one envelope; OpenSMTPD's ``struct mta_envelope``."""

    sender: str
    """Shared by all recipients of a message."""
    rcpt: str
    created_at: float
    size: int
    options: tuple[str, ...] = ()
    """ESMTP and DSN parameters as ``KEY=value``, in order; empty for plain mail.
    Parameters of MAIL have no prefix; those of RCPT begin with ``RCPT:``."""


def mta_envelope(
    transaction: Transaction, recipient: Recipient, *, created_at: float
) -> MtaEnvelope:
    """Return what the relaying agent needs of an accepted envelope."""
    sender, size = transaction.sender, transaction.size
    if not (
        transaction.body_type
        or transaction.smtputf8
        or transaction.ret
        or transaction.envid
        or recipient.notify
        or recipient.orcpt
    ):
        return _new(MtaEnvelope, (sender, recipient.address, created_at, size, ()))
    options: list[str] = []
    if transaction.body_type == "8BITMIME":
        options.append("BODY=8BITMIME")
    if transaction.smtputf8:
        options.append("SMTPUTF8")
    if transaction.ret:
        options.append(f"RET={transaction.ret}")
    if transaction.envid:
        options.append(f"ENVID={transaction.envid}")
    if recipient.notify:
        options.append(f"RCPT:NOTIFY={recipient.notify}")
    if recipient.orcpt:
        options.append(f"RCPT:ORCPT={recipient.orcpt}")
    return MtaEnvelope(sender, recipient.address, created_at, size, tuple(options))


class MdaEnvelope(NamedTuple):
    """All that a local delivery needs of one envelope; OpenSMTPD's ``struct mda_envelope``."""

    sender: str
    """Shared by all recipients of a message."""
    rcpt: str
    """The address that RCPT named."""
    dest: str
    """The address that expansion arrived at."""
    user: str
    method: str
    """`Recipient.delivery`."""
    created_at: float
    tag: str = ""
    rule: str = ""


def mda_envelope(
    transaction: Transaction, recipient: Recipient, *, created_at: float
) -> MdaEnvelope:
    """Return what a local delivery needs of an accepted envelope."""
    assert recipient.delivery, recipient
    return MdaEnvelope(
        transaction.sender,
        recipient.address,
        recipient.dest or recipient.address,
        recipient.user,
        recipient.delivery,
        created_at,
        recipient.tag,
        recipient.rule,
    )


class EnvelopeList(Protocol):
    """A first-in first-out list of handles, linked through the store; every operation is O(1)."""

    def append(self, handle: Handle) -> None:
        """Put a handle that is nowhere at the end; its state becomes that of the list."""
        ...

    def popleft(self) -> Handle | None:
        """Take the oldest handle out, or return None; its state becomes IN_FLIGHT."""
        ...

    def remove(self, handle: Handle) -> None:
        """Take one handle out, wherever it is in this list; its state becomes IN_FLIGHT."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Handle]:
        """Iterate from the oldest; the list must not change meanwhile."""
        ...


class EnvelopeStore(Protocol):
    """The envelopes that the queue knows, in one representation.

    `add` and `discard` are the only ways in and out. All times are absolute seconds and multiples of
    `TICK` (see `to_tick`).
    """

    name: ClassVar[str]
    """What the configuration calls it."""
    keeps_envelopes: ClassVar[bool]
    """True if `mta_envelope_of` answers for every envelope: after a restart the queue must be read whole."""
    keeps_bodies: ClassVar[bool]
    """True if `body_of` answers for every message."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Handle]:
        """Iterate over all handles, in no promised order; nothing may change meanwhile."""
        ...

    def ages(self) -> Iterator[tuple[str, float]]:
        """Iterate over (relay's key, when it was accepted) of all envelopes, in no promised order.

        Envelopes may come and go between two steps: each that is there all the time is met once. For a
        listing that gives the event loop its turns.
        """
        ...

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
        """Keep a new envelope and return its handle: IN_FLIGHT until it is put somewhere."""
        ...

    def discard(self, handle: Handle) -> None:
        """Forget an envelope that is in flight; its handle is dead from now on."""
        ...

    def find(self, evpid: EvpId) -> Handle | None:
        """Return the handle of an envelope, or None if the store does not know it."""
        ...

    def of_message(self, msgid: MsgId, *, recipients_max: int = 1000) -> list[Handle]:
        """Return the handles of a message's envelopes, in the order of their ids.

        Args:
            msgid: the message.
            recipients_max: recipients with a greater number are not looked for.
        """
        ...

    def evpid_of(self, handle: Handle) -> EvpId:
        """Return the envelope's id."""
        ...

    def domain_of(self, handle: Handle) -> str:
        """Return the key of its relay."""
        ...

    def state_of(self, handle: Handle) -> EnvelopeState:
        """Return where it stands."""
        ...

    def created_at_of(self, handle: Handle) -> float:
        """Return when it was accepted."""
        ...

    def expires_at_of(self, handle: Handle) -> float:
        """Return when it is too old."""
        ...

    def attempts_of(self, handle: Handle) -> int:
        """Return how often it failed so far."""
        ...

    def flags_of(self, handle: Handle) -> int:
        """Return its `Flag` bits."""
        ...

    def set_flags(self, handle: Handle, flags: int) -> None:
        """Replace its `Flag` bits."""
        ...

    def due_at_of(self, handle: Handle) -> float:
        """Return when a PENDING envelope is next due; meaningless in other states."""
        ...

    def defer(self, handle: Handle, *, due_at: float, attempts: int) -> None:
        """Put a handle that is in flight into the agenda: PENDING until ``due_at``.

        What only the relaying agent needed may be dropped here.
        """
        ...

    def pop_due(self, now: float) -> Handle | None:
        """Take out the first envelope with ``due_at <= now``, or return None; it is IN_FLIGHT then.

        The order is (due_at, evpid). ``now`` never decreases from call to call, and nothing is ever
        deferred to an instant before the last ``now``.
        """
        ...

    def unschedule(self, handle: Handle) -> None:
        """Take a PENDING envelope out of the agenda before it is due; it is IN_FLIGHT then."""
        ...

    def next_due(self) -> float | None:
        """Return when `pop_due` is next worth a call; never later than the first due envelope."""
        ...

    def new_list(self, state: EnvelopeState) -> EnvelopeList:
        """Return an empty list whose members are in ``state`` (SCHEDULED, HELD or SUSPENDED)."""
        ...

    def note(self, handle: Handle, status: str) -> None:
        """Remember the last reply, if this representation has a place for it."""
        ...

    def mta_envelope_of(self, handle: Handle) -> MtaEnvelope | None:
        """Return what the relaying agent needs, or None if it has to be read from the queue."""
        ...

    def mda_envelope_of(self, handle: Handle) -> MdaEnvelope | None:
        """Return what a local delivery needs, or None if it has to be read from the queue, or is relayed."""
        ...

    def body_of(self, msgid: MsgId) -> bytes | None:
        """Return the message's bytes, or None if they have to be read from the queue."""
        ...

    def shrink(self) -> None:
        """Let go of what can be read again from the queue: memory is short."""
        ...

    def validate(self) -> None:
        """Assert that every link, index and count is consistent. O(n); for tests."""
        ...
