"""Messages to put into a durable queue, and queues to put them into."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mta.core.envelopes.base import Recipient, Transaction
from mta.core.ids import EvpId, MsgId, SessionId, evpid
from mta.core.limits import QueueLimits
from mta.effects import Effects
from mta.queue.base import StoredEnvelope, Submission
from mta.queue.sqlite import SqliteQueue

TRANSACTION = Transaction(
    "sender@example.com",
    19,
    SessionId(0xFEDCBA9876543210),
    "client.example.com",
    "127.0.0.1",
    "localhost",
    "TLSv1.3 TLS_AES_256_GCM_SHA384",
    "joe",
    True,
    "8BITMIME",
    "FULL",
    "QQ+2B314159",
    4096,
    True,
)


def recipient(name: str = "user") -> Recipient:
    return Recipient(f"{name}@Example.org", "example.org", "FAILURE", f"rfc822;{name}@example.org")


def submission(
    msgid: int, *, recipients: int = 1, body: bytes = b"Subject: x\r\n\r\nbody\r\n", **changes: Any
) -> Submission:
    return Submission(
        MsgId(msgid),
        TRANSACTION,
        tuple(recipient(f"user{number}") for number in range(1, recipients + 1)),
        body,
        1000.015625,
        2000.25,
        (0,) * recipients,
    )._replace(**changes)


def ids(msgid: int, recipients: int = 1) -> list[EvpId]:
    return [evpid(MsgId(msgid), number) for number in range(1, recipients + 1)]


def held(queue: SqliteQueue) -> list[EvpId]:
    """Return the ids of all envelopes, in order."""
    return sorted(stored.evpid for stored in queue.restore())


def expected(message: Submission, number: int = 1, **changes: Any) -> StoredEnvelope:
    """Return what the queue says of an envelope after its submission."""
    return StoredEnvelope(
        evpid(message.msgid, number),
        message.recipients[number - 1],
        message.transaction,
        message.created_at,
        message.expires_at,
        0,
        message.created_at,
        message.flags[number - 1],
        "",
    )._replace(**changes)


@asynccontextmanager
async def opened(
    directory: Path,
    *,
    effects: Effects | None = None,
    notes: list[str] | None = None,
    deaths: list[str] | None = None,
    **limits: Any,
) -> AsyncIterator[SqliteQueue]:
    """Open a queue, and close it in the end, whatever happens."""
    queue = SqliteQueue(
        directory,
        effects=effects or Effects(),
        limits=QueueLimits(**limits),
        note=notes.append if notes is not None else (lambda line: None),
        on_death=deaths.append if deaths is not None else (lambda problem: None),
    )
    await queue.open()
    try:
        yield queue
    finally:
        await queue.close()
