"""What became of each envelope that the relaying agent had, told to the scheduler.

Between the start of a transaction and its end the operator may have wanted something else: that is
remembered here, and done if the envelope was not delivered.
"""

from array import array
from typing import TYPE_CHECKING

from mta.core.envelopes.base import EnvelopeState, Handle
from mta.core.ids import EvpId
from mta.core.instructions import BounceKind, Instruction
from mta.core.reply import Outcome

if TYPE_CHECKING:
    from mta.core.limits import MtaLimits
    from mta.core.relay import Relay, Session, Task
    from mta.core.scheduler import Scheduler
    from mta.core.stimuli import Result

_RELAYED = BounceKind.RELAYED


class Outcomes:
    """Settles envelopes; remembers the latest that failed, by destination."""

    def __init__(self, scheduler: "Scheduler", limits: "MtaLimits") -> None:
        self.deferred: dict[str, array[int]] = {}
        """Per domain, the latest envelopes that failed: tried again at once when it works again."""
        self._scheduler = scheduler
        self._limits = limits
        self._doomed: set[EvpId] = set()
        """Envelopes in a running transaction that the operator removed."""
        self._paused: set[EvpId] = set()
        """Envelopes in a running transaction that the operator suspended."""

    def settle(
        self,
        session: "Session",
        task: "Task",
        results: "tuple[Result, ...]",
        now: float,
        out: list[Instruction],
    ) -> bool:
        """Give each envelope of a transaction its outcome; return whether one was delivered."""
        scheduler = self._scheduler
        any_ok = False
        if len(results) == 1:
            evpid, outcome, status, reports = results[0]
            if outcome is Outcome.OK and len(task.handles) == 1:
                # The common case without the book-keeping of the others.
                session.failures = 0
                if self._doomed or self._paused:
                    self._doomed.discard(evpid)
                    self._paused.discard(evpid)
                scheduler.delivered(task.handles[0], status, out, None if reports else _RELAYED)
                return True
        by_id = {result.evpid: result for result in results}
        for handle in task.handles:
            evpid = scheduler.store.evpid_of(handle)
            result = by_id[evpid]
            if result.outcome is Outcome.OK:
                any_ok = True
                session.failures = 0
                self._doomed.discard(evpid)
                self._paused.discard(evpid)
                scheduler.delivered(
                    handle, result.status, out, None if result.reports else _RELAYED
                )
            elif result.outcome is Outcome.TEMPFAIL:
                session.failures += 1
                self.tempfail(session.relay, handle, result.status, now, out)
            else:
                session.failures += 1
                self._doomed.discard(evpid)
                self._paused.discard(evpid)
                scheduler.permfailed(handle, result.status)
        return any_ok

    def tempfail(
        self, relay: "Relay", handle: Handle, status: str, now: float, out: list[Instruction]
    ) -> None:
        """Defer an envelope of a transaction, unless the operator wanted something else meanwhile."""
        evpid = self._scheduler.store.evpid_of(handle)
        if evpid in self._doomed:
            self._doomed.discard(evpid)
            self._paused.discard(evpid)
            self._scheduler.removed(handle, out)
        elif evpid in self._paused:
            self._paused.discard(evpid)
            self._scheduler.set_suspended(handle, True, out)
            self._scheduler.suspended(handle)
        else:
            self.defer(relay, handle, status, now, out)

    def defer(
        self, relay: "Relay", handle: Handle, status: str, now: float, out: list[Instruction]
    ) -> None:
        """Fail an envelope for now, and remember it: see `try_deferred`."""
        evpid = self._scheduler.store.evpid_of(handle)
        deferred = self.deferred.get(relay.domain)
        if deferred is None and len(self.deferred) < self._limits.max_relays:
            deferred = self.deferred[relay.domain] = array("Q")
        if deferred is not None:
            deferred.append(evpid)
            if len(deferred) > relay.limits.max_deferred:
                del deferred[0]
        self._scheduler.tempfailed(handle, status, now, out)

    def try_deferred(self, relay: "Relay") -> None:
        """The destination works: try the latest failures at once. OpenSMTPD, ``mta max-deferred``."""
        store = self._scheduler.store
        for evpid in self.deferred.pop(relay.domain):
            handle = store.find(EvpId(evpid))
            if handle is not None and store.state_of(handle) is EnvelopeState.PENDING:
                self._scheduler.take_out(handle)
                self._scheduler.put_scheduled(handle)

    def doom(self, handle: Handle) -> None:
        """Remember that an envelope of a running transaction is to be removed if it is not delivered."""
        self._doomed.add(self._scheduler.store.evpid_of(handle))

    def suspend_later(self, handle: Handle, suspended: bool) -> None:
        """Remember that an envelope of a running transaction is to be suspended if it is not delivered."""
        evpid = self._scheduler.store.evpid_of(handle)
        if suspended:
            self._paused.add(evpid)
        else:
            self._paused.discard(evpid)

    def validate(self, running: set[EvpId]) -> None:
        """Assert that only envelopes of running transactions are remembered."""
        assert self._doomed <= running
        assert self._paused <= running
