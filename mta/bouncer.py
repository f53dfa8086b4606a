"""Reports failures to senders: a DSN into the queue, and the envelopes it reports out of it, in one commit.

The rule: an envelope is in the queue until its report is. If the report can't be written now, the
core gets the envelope back and fails it again later.
"""

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from mta.core.address import domain_key
from mta.core.bounce import flags_for
from mta.core.envelopes.base import Recipient, Transaction, to_tick
from mta.core.ids import EvpId, evpid, show_evpid, show_msgid
from mta.core.instructions import BounceKind, SendBounce
from mta.dsn import compose
from mta.queue.base import QueueUnavailableError, StoredEnvelope, Submission

if TYPE_CHECKING:
    from mta.driver import Driver


class Bouncer:
    """Composes and submits reports."""

    def __init__(self, driver: "Driver") -> None:
        self._driver = driver
        self._reporting: set[EvpId] = set()
        self.messages = 0
        """Reports that are being submitted."""
        self.submitted = 0
        """Reports that became durable, since the start."""

    @property
    def envelopes(self) -> int:
        """Envelopes whose report is being submitted."""
        return len(self._reporting)

    def reports(self, envelope: EvpId) -> bool:
        """Say whether an envelope's report is being submitted: it is in the queue, not in the core."""
        return envelope in self._reporting

    def send(self, instruction: SendBounce) -> "asyncio.Task[None]":
        """Begin a report; return the task that ends it."""
        evpids = tuple([envelope for envelope, _ in instruction.failures])
        self._reporting.update(evpids)
        self.messages += 1
        task = asyncio.get_running_loop().create_task(
            self._send(instruction, evpids), name=f"bounce {show_msgid(instruction.msgid)}"
        )
        # Why not in the coroutine? One that is cancelled before its first step never gets anywhere.
        task.add_done_callback(partial(self._ended, evpids))
        return task

    async def _send(self, instruction: SendBounce, evpids: tuple[EvpId, ...]) -> None:
        driver = self._driver
        name = show_msgid(instruction.msgid)
        address = "-"
        try:
            stored = [driver.queue.envelope(envelope) for envelope in evpids]
            found = [
                (envelope, status)
                for envelope, (_, status) in zip(stored, instruction.failures, strict=True)
                if envelope is not None
            ]
            if not found:
                driver.log.warn(f"queue: nothing left of message {name} to report")
                return
            address = found[0][0].transaction.sender
            await self._submit(instruction, found, evpids)
        except Exception as error:
            # The line is OpenSMTPD's (bounce.c).
            driver.log.warn(
                f"TempFail injecting failure report on message {name} to {address} for {len(evpids)}"
                f" envelope{'s' if len(evpids) > 1 else ''}: {str(error) or type(error).__name__}"
            )
            raise

    def _ended(self, evpids: tuple[EvpId, ...], task: "asyncio.Task[None]") -> None:
        """Settle a report that was made durable, was not, or was cancelled by the end of the server."""
        self.messages -= 1
        self._reporting.difference_update(evpids)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._driver.restorer.bring_back(evpids)
            if not isinstance(error, QueueUnavailableError):
                self._driver.report_fault(task.get_name(), error)

    async def _submit(
        self,
        instruction: SendBounce,
        found: list[tuple[StoredEnvelope, str]],
        evpids: tuple[EvpId, ...],
    ) -> None:
        driver = self._driver
        original = found[0][0].transaction
        now = driver.effects.now()
        msgid = driver.queue.next_msgid()
        try:
            message = driver.body(instruction.msgid)
        except QueueUnavailableError:
            # A report without the message's header tells more than none.
            message = b""
        body = compose(
            instruction.kind,
            original,
            [
                (envelope.recipient, _cause(instruction.kind, envelope, status))
                for envelope, status in found
            ],
            hostname=driver.config.hostname,
            message=message,
            now=now,
            msgid=msgid,
        )
        transaction = Transaction("", len(body), smtputf8=not original.sender.isascii())
        domain = original.sender.rpartition("@")[2]
        recipients = self._addressed(
            Recipient(original.sender, domain_key(domain) or domain.lower()), evpids
        )
        if not recipients:
            return
        created_at = to_tick(now)
        submission = Submission(
            msgid,
            transaction,
            recipients,
            body,
            created_at,
            driver.expiry(created_at, transaction),
            (int(flags_for("")),) * len(recipients),
        )
        await driver.queue.submit(submission, replaces=evpids)
        self.submitted += 1
        driver.log.info(
            f"{show_evpid(evpid(msgid, 1))} bounce message={show_msgid(instruction.msgid)}"
            f" to=<{original.sender}> envelopes={len(evpids)} kind={instruction.kind.value}"
        )
        driver.accepted(submission)

    def _addressed(self, recipient: Recipient, evpids: tuple[EvpId, ...]) -> tuple[Recipient, ...]:
        """Return the envelopes of a report; none if the sender's address leads nowhere, and all is forgotten.

        Raises:
            QueueUnavailableError: it can't be said now.
        """
        driver = self._driver
        addressing = driver.addressing
        if addressing is None:
            return driver.routed((recipient,))
        expansion = addressing.of_ours(recipient)
        if expansion.reply is None:
            return addressing.envelopes(recipient, expansion)
        if expansion.reply.code < 500:
            raise QueueUnavailableError(str(expansion.reply))
        # As for a report that fails (RFC 5321 6.1): nobody is left to be told but the operator.
        driver.log.warn(
            f"bounce: nowhere to send a failure report to <{recipient.address}>:"
            f" {expansion.reply}; dropped"
        )
        for envelope in evpids:
            driver.queue.remove(envelope)
        return ()


def _cause(kind: BounceKind, envelope: StoredEnvelope, status: str) -> str:
    """Return what a report says: of an expired envelope its last failure (RFC 3463 3.5), if there was one."""
    return (envelope.status or status) if kind is BounceKind.EXPIRED else status


__all__ = ["Bouncer"]
