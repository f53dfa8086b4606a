"""Tells the core of envelopes that only the durable queue knows: at the start, and after a mishap.

The rule: whatever is in the queue is known to the core, or being reported, or on its way back. A queue
that can't be read now is asked again, for as long as it takes; nothing waits for the next start.
"""

import asyncio
from typing import TYPE_CHECKING, Final

from mta.core.ids import EvpId, msgid_of, show_evpid
from mta.core.stimuli import EnvelopeRestored, Selector
from mta.queue.base import QueueUnavailableError, StoredEnvelope

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mta.driver import Driver

AGAIN_S: Final = 60.0
"""Seconds until what could not be read, or not be reported, is tried again. Ours."""
TURN: Final = 500
"""Envelopes after which the event loop goes on with other things."""


class Restorer:
    """Brings envelopes back from the queue."""

    def __init__(self, driver: "Driver") -> None:
        self._driver = driver
        self._astray: dict[EvpId, None] = {}
        """Envelopes that are in the queue and could not be read."""
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    def __len__(self) -> int:
        """Return how many envelopes are to be read again."""
        return len(self._astray)

    async def restore(self) -> int:
        """Tell the core of every envelope that the queue holds; return how many there were.

        The earliest due come first, and deliveries begin before all are known. If the queue can't be
        read it starts again, some time later.
        """
        count = 0
        faults = 0
        while True:
            try:
                for found in self._driver.queue.restore():
                    if self._is_known(found.evpid):
                        continue  # It was accepted, or restored, while we were reading.
                    # Why ask again after a fault? An envelope may have come and gone since its row
                    # was read, and must not come back from the dead.
                    if faults and self._driver.queue.envelope(found.evpid) is None:
                        continue
                    count += self._tell(found)
                    if count % TURN == 0:
                        await asyncio.sleep(0)
            except QueueUnavailableError as error:
                faults += 1
                self._driver.log.warn(
                    f"queue: restored {count} envelopes, more in a while: {error}"
                )
                await asyncio.sleep(AGAIN_S)
            else:
                return count

    def bring_back(self, evpids: "Iterable[EvpId]") -> None:
        """Give the core envelopes back that it had given up: they are due again in a while."""
        now = self._driver.effects.now()
        for envelope in evpids:
            if self._is_known(envelope):
                continue
            try:
                found = self._driver.queue.envelope(envelope)
                if found is not None:
                    self._tell(found._replace(due_at=now + AGAIN_S))
            except QueueUnavailableError:
                self._astray[envelope] = None
        self._arm()

    def discover(self, which: Selector) -> int:
        """Tell the core of envelopes of one message that it does not know; return how many there were.

        They are due at once, whatever the queue says.

        Raises:
            QueueUnavailableError: the queue can't be read now.
        """
        queue = self._driver.queue
        if which.evpid is not None:
            one = queue.envelope(which.evpid)
            found = [] if one is None else [one]
        else:
            assert which.msgid is not None, which
            found = queue.of_message(which.msgid)
        now = self._driver.effects.now()
        return sum(
            self._tell(one._replace(due_at=now)) for one in found if not self._is_known(one.evpid)
        )

    def stop(self) -> None:
        """Read nothing any more; the next start does."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_known(self, envelope: EvpId) -> bool:
        driver = self._driver
        return driver.engine.store.find(envelope) is not None or driver.bouncer.reports(envelope)

    def _tell(self, found: StoredEnvelope) -> bool:
        """Tell the core of an envelope, unless its body is needed and can't be read now."""
        driver = self._driver
        body = None
        if driver.engine.store.keeps_bodies:
            try:
                body = driver.queue.body(msgid_of(found.evpid))
            except QueueUnavailableError as error:
                driver.log.warn(f"queue: envelope {show_evpid(found.evpid)} waits: {error}")
                self._astray[found.evpid] = None
                self._arm()
                return False
        driver.tell(
            EnvelopeRestored(
                found.evpid,
                found.recipient,
                found.transaction,
                found.created_at,
                found.expires_at,
                found.attempts,
                found.due_at,
                found.flags,
                body,
            )
        )
        return True

    def _arm(self) -> None:
        if self._astray and self._timer is None and not self._stopped:
            self._timer = asyncio.get_running_loop().call_later(AGAIN_S, self._again)

    def _again(self) -> None:
        self._timer = None
        astray, self._astray = self._astray, {}
        self.bring_back(astray)


__all__ = ["Restorer"]
