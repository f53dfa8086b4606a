"""What to do: everything that the core ever asks of a driver, in the imperative.

A driver carries instructions out in the order given. Each `ResolveDomain` is answered by one
`DomainResolved`, each `OpenConnection` by one `ConnectionReady` or `ConnectionFailed`, each
`StartTransaction` by one `TransactionDone` or `ConnectionClosed`, each `CloseConnection` by one
`ConnectionClosed`, each `DeliverLocally` by one `LocalDeliveryDone`.
"""

import enum
from typing import NamedTuple, TypeAlias

from mta.core.ids import EvpId, MsgId, SessionId


class ResolveDomain(NamedTuple):
    """Look up the mail exchangers of a domain (RFC 5321 5.1)."""

    domain: str


class OpenConnection(NamedTuple):
    """Connect to a host, read its greeting, say EHLO."""

    session: SessionId
    domain: str
    """The relay's key."""
    source: str
    """Local address to send from; empty for the system's choice."""
    address: str
    host: str
    """Name of the MX that the address belongs to."""


class StartTransaction(NamedTuple):
    """Send one message over a connection that is ready."""

    session: SessionId
    msgid: MsgId
    evpids: tuple[EvpId, ...]


class CloseConnection(NamedTuple):
    """Say QUIT and close."""

    session: SessionId


class DeliverLocally(NamedTuple):
    """Put a message where its local recipient wants it."""

    evpid: EvpId
    user: str


class DeferEnvelope(NamedTuple):
    """Write down that an envelope failed temporarily. Losing this costs one early retry, never mail."""

    evpid: EvpId
    attempts: int
    due_at: float
    status: str


class Removal(enum.Enum):
    """Why an envelope leaves the queue."""

    DELIVERED = "delivered"
    BOUNCED = "bounced"
    """Failed for good, and nobody may be told."""
    EXPIRED = "expired"
    """Too old, and nobody may be told."""
    REMOVED = "removed"
    """The operator said so."""


class RemoveEnvelope(NamedTuple):
    """Delete an envelope from the durable queue, and its message with the last one."""

    evpid: EvpId
    reason: Removal
    status: str


class BounceKind(enum.Enum):
    """What a report says of its recipients."""

    FAILED = "failed"
    EXPIRED = "expired"
    DELAYED = "delayed"
    """Still waiting; the envelopes stay in the queue, and their flags have changed."""
    DELIVERED = "delivered"
    """In a mailbox here; asked for with NOTIFY=SUCCESS (RFC 3461 4.1)."""
    RELAYED = "relayed"
    """Asked for too, and taken by a host that does not know DSN (RFC 3461 5.2.2)."""

    @property
    def is_failure(self) -> bool:
        """The sender has to do something."""
        return self in (BounceKind.FAILED, BounceKind.EXPIRED)

    @property
    def is_success(self) -> bool:
        """The message has arrived, as far as can be seen from here."""
        return self in (BounceKind.DELIVERED, BounceKind.RELAYED)


class SendBounce(NamedTuple):
    """Submit one DSN (RFC 3464) on envelopes of one message, and delete them, in one commit.

    Those of `BounceKind.DELAYED` are not deleted.
    """

    msgid: MsgId
    kind: BounceKind
    failures: tuple[tuple[EvpId, str], ...]
    """(envelope, last reply in one line). Not all are failures."""


class Note(NamedTuple):
    """Write a line to the log: a decision that the operator will want to find."""

    text: str


class SuspendEnvelope(NamedTuple):
    """Write down that an envelope's flags changed."""

    evpid: EvpId
    flags: int


Instruction: TypeAlias = (
    ResolveDomain
    | OpenConnection
    | StartTransaction
    | CloseConnection
    | DeliverLocally
    | DeferEnvelope
    | RemoveEnvelope
    | SendBounce
    | SuspendEnvelope
    | Note
)
