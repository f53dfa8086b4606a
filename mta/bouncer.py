"""Reports to senders: a DSN into the queue, and the envelopes it reports out of it, in one commit.

The rule: an envelope is in the queue until its report is. If the report of a failure can't be written now, the
core gets the envelope back and fails it again later. Of success it is dropped then: the mail has arrived, and must
not be sent again for want of a report.
"""

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING

from mta.core.address import domain_key
from mta.core.bounce import Gathering, flags_for
from mta.core.envelopes.base import Recipient, Transaction, to_tick
from mta.core.ids import EvpId, evpid, show_evpid, show_msgid
from mta.core.instructions import BounceKind, SendBounce
from mta.dsn import compose
from mta.queue.base import QueueUnavailableError, StoredEnvelope, Submission

if TYPE_CHECKING:
    from mta.driver import Driver


class Bouncer:
    """Gathers, composes and submits reports."""

    def __init__(self, driver: "Driver") -> None:
        self._driver = driver
        self._settings = driver.config.bounce
        self._gathering = Gathering(
            wait_s=self._settings.gather_s, recipients_max=self._settings.max_recipients
        )
        self._timer: asyncio.TimerHandle | None = None
        self._reporting: set[EvpId] = set()
        self._submitting = 0
        self.submitted = 0
        """Reports that became durable, since the start."""

    @property
    def messages(self) -> int:
        """Reports that wait for others of their message, or are being submitted."""
        return self._submitting + len(self._gathering)

    @property
    def envelopes(self) -> int:
        """Envelopes whose report is being submitted."""
        return len(self._reporting)

    def reports(self, envelope: EvpId) -> bool:
        """Say whether an envelope's report is being submitted: it is in the queue, not in the core."""
        return envelope in self._reporting

    def send(self, instruction: SendBounce) -> None:
        """Report envelopes, together with others of their message that follow within a moment."""
        driver = self._driver
        reported = len(instruction.failures)
        if instruction.kind is not BounceKind.DELAYED:
            self._reporting.update([envelope for envelope, _ in instruction.failures])
            reported = 0
        # How many recipients the message had is known as long as it is recent; else it could be any number.
        recent = driver.recent.get(instruction.msgid)
        engine = driver.engine
        most = len(recent.recipients) if recent else engine.scheduler.recipients_max
        others = engine.store.of_message(instruction.msgid, recipients_max=most)
        ready = self._gathering.add(
            instruction, driver.effects.now(), is_last=len(others) == reported
        )
        self._begin(ready)
        self._arm()

    def flush(self) -> None:
        """Wait for no others any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._begin(self._gathering.due(math.inf))

    def _arm(self) -> None:
        due = self._gathering.next_due()
        if due is not None and self._timer is None:
            delay = max(0.0, due - self._driver.effects.now())
            self._timer = self._driver.call_later(delay, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._begin(self._gathering.due(self._driver.effects.now()))
        self._arm()

    def _begin(self, ready: list[SendBounce]) -> None:
        for instruction in ready:
            self._submitting += 1
            task = asyncio.get_running_loop().create_task(
                self._send(instruction), name=f"bounce {show_msgid(instruction.msgid)}"
            )
            # Why not in the coroutine? One that is cancelled before its first step never gets anywhere.
            task.add_done_callback(partial(self._ended, instruction))
            self._driver.keep(task)

    async def _send(self, instruction: SendBounce) -> None:
        driver = self._driver
        name = show_msgid(instruction.msgid)
        address = "-"
        try:
            found = [
                (stored, status)
                for envelope, status in instruction.failures
                # Of the null sender nobody is told anything (RFC 5321 6.1); the core knows that, too.
                if (stored := driver.queue.envelope(envelope)) is not None
                and stored.transaction.sender
            ]
            if not found:
                # What was delayed may have been delivered meanwhile.
                if instruction.kind is not BounceKind.DELAYED:
                    driver.log.warn(f"queue: nothing left of message {name} to report")
                return
            address = found[0][0].transaction.sender
            await self._submit(instruction, found)
        except Exception as error:
            # The line is OpenSMTPD's (bounce.c).
            count = len(instruction.failures)
            what = "failure" if instruction.kind.is_failure else instruction.kind.value
            driver.log.warn(
                f"TempFail injecting {what} report on message {name} to {address} for {count}"
                f" envelope{'s' if count > 1 else ''}: {str(error) or type(error).__name__}"
            )
            raise

    def _ended(self, instruction: SendBounce, task: "asyncio.Task[None]") -> None:
        """Settle a report that was made durable, was not, or was cancelled by the end of the server."""
        self._submitting -= 1
        evpids = tuple([envelope for envelope, _ in instruction.failures])
        kind = instruction.kind
        if kind is not BounceKind.DELAYED:
            self._reporting.difference_update(evpids)
        error = None if task.cancelled() else task.exception()
        if kind.is_success and (error is not None or task.cancelled()):
            for envelope in evpids:
                self._driver.queue.remove(envelope)
        if error is None:
            return
        if kind.is_failure:
            self._driver.restorer.bring_back(evpids)
        if not isinstance(error, QueueUnavailableError):
            self._driver.report_fault(task.get_name(), error)

    async def _submit(
        self, instruction: SendBounce, found: list[tuple[StoredEnvelope, str]]
    ) -> None:
        driver, settings = self._driver, self._settings
        kind = instruction.kind
        evpids: tuple[EvpId, ...] = ()
        if kind is not BounceKind.DELAYED:
            evpids = tuple([envelope for envelope, _ in instruction.failures])
        first = found[0][0]
        original = first.transaction
        now = driver.effects.now()
        msgid = driver.queue.next_msgid()
        try:
            message = driver.body(instruction.msgid)
        except QueueUnavailableError:
            # A report without the message's header tells more than none.
            message = b""
        body = compose(
            kind,
            original,
            _named(kind, found),
            hostname=driver.config.hostname,
            message=message,
            now=now,
            msgid=msgid,
            arrived_at=first.created_at,
            until=first.expires_at,
            size_max=settings.max_size,
            header_max=settings.max_header,
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
            f" to=<{original.sender}> envelopes={len(found)} kind={kind.value}"
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
            return (recipient,)
        expansion = addressing.of_ours(recipient)
        if expansion.reply is None:
            return addressing.envelopes(recipient, expansion)
        if expansion.reply.code < 500:
            raise QueueUnavailableError(str(expansion.reply))
        # As for a report that fails (RFC 5321 6.1): nobody is left to be told but the operator.
        driver.log.warn(
            f"bounce: nowhere to send a report to <{recipient.address}>: {expansion.reply}; dropped"
        )
        for envelope in evpids:
            driver.queue.remove(envelope)
        return ()


def _named(
    kind: BounceKind, found: list[tuple[StoredEnvelope, str]]
) -> list[tuple[Recipient, str]]:
    """Return who is named, with what happened: what an address became is one entry if it fared alike.

    The sender knows the address that it wrote to, and need not know what is behind it.
    """
    named: dict[tuple[str, str, str], tuple[Recipient, str]] = {}
    for envelope, status in found:
        recipient, cause = envelope.recipient, _cause(kind, envelope, status)
        named.setdefault((recipient.address, recipient.orcpt, cause), (recipient, cause))
    return list(named.values())


def _cause(kind: BounceKind, envelope: StoredEnvelope, status: str) -> str:
    """Return what a report says: of an expired envelope its last failure (RFC 3463 3.5), if there was one."""
    return (envelope.status or status) if kind is BounceKind.EXPIRED else status


__all__ = ["Bouncer"]
