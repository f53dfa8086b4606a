"""What the server asks of its durable queue.

Losing mail is forbidden, duplicates are counted: `submit` completes only when message and envelopes
are on stable storage; `remove` may lag, so a crash can only repeat a delivery.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from mta.core.envelopes.base import MtaEnvelope, Recipient, Transaction
from mta.core.ids import EvpId, MsgId

if TYPE_CHECKING:
    import asyncio


class QueueUnavailableError(Exception):
    """The queue can't take or give mail now: disk full, I/O error, too much waiting. Temporary."""


class Submission(NamedTuple):
    """A message to make durable."""

    msgid: MsgId
    transaction: Transaction
    recipients: tuple[Recipient, ...]
    """Numbered from 1 in this order."""
    body: bytes
    """Header and body with CRLF line ends, not dot-stuffed."""
    created_at: float
    expires_at: float
    flags: tuple[int, ...]
    """`Flag` bits, one per recipient."""


class StoredEnvelope(NamedTuple):
    """One envelope as the queue has it."""

    evpid: EvpId
    recipient: Recipient
    transaction: Transaction
    created_at: float
    expires_at: float
    attempts: int
    due_at: float
    flags: int
    status: str
    """Last reply, or empty."""


class DurableQueue(Protocol):
    """Messages and envelopes on stable storage. One writer; group commit."""

    async def submit(self, submission: Submission, *, replaces: tuple[EvpId, ...] = ()) -> None:
        """Make a message durable, and forget the envelopes ``replaces`` in the same commit.

        The commit belongs to the queue: a caller that is cancelled does not stop it.

        Raises:
            QueueUnavailableError: nothing was kept.
        """
        ...

    def enqueue(
        self, submission: Submission, *, replaces: tuple[EvpId, ...] = ()
    ) -> "asyncio.Future[None]":
        """Begin `submit`, and return the future of its end. Cancelling that stops nothing.

        Raises:
            QueueUnavailableError: nothing was begun.
        """
        ...

    def remove(self, evpid: EvpId) -> None:
        """Forget an envelope, and its message with the last one; durable with some later commit."""
        ...

    def defer(self, evpid: EvpId, *, attempts: int, due_at: float, status: str) -> None:
        """Write down a temporary failure; durable with some later commit."""
        ...

    def set_flags(self, evpid: EvpId, flags: int) -> None:
        """Write down an envelope's flags; durable with some later commit."""
        ...

    def envelope(self, evpid: EvpId) -> StoredEnvelope | None:
        """Return one envelope, or None if it is not there."""
        ...

    def mta_envelope(self, evpid: EvpId) -> MtaEnvelope | None:
        """Return what the relaying agent needs of one envelope, or None if it is not there."""
        ...

    def page(self, *, after: int = 0, limit: int = 256) -> list[StoredEnvelope]:
        """Return up to ``limit`` envelopes with ids above ``after``, in order of their ids."""
        ...

    def of_message(self, msgid: MsgId) -> list[StoredEnvelope]:
        """Return the envelopes of a message, in order of their ids."""
        ...

    def body(self, msgid: MsgId) -> bytes:
        """Return a message's bytes.

        Raises:
            QueueUnavailableError: it can't be read now.
        """
        ...

    def restore(self) -> Iterator[StoredEnvelope]:
        """Iterate over all envelopes, in the order (due_at, evpid). For the start."""
        ...

    def next_msgid(self) -> MsgId:
        """Return a message id that was never used in this queue."""
        ...

    async def flush(self) -> None:
        """Wait until everything asked for so far is durable."""
        ...

    async def close(self) -> None:
        """Flush, stop the writer, release the lock. Idempotent."""
        ...
