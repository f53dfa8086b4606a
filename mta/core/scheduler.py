"""The scheduler: which envelope is tried when, and what becomes of it afterwards.

It knows every envelope of the queue. An envelope is pending until it is due, scheduled until there is
a slot, in flight while the relaying agent has it, held when its relay is at high water, suspended when
the operator says so. It leaves the queue delivered, bounced, expired or removed; nothing else.

State changes in the methods below, which `mta.core.engine.Engine.handle` calls; each appends
instructions to the list it is given. Ties are broken by evpid.
"""

import math
from typing import TYPE_CHECKING, Final

from mta.core.bounce import Failure, after_warning, flags_for, settle
from mta.core.envelopes.base import (
    ATTEMPTS_MAX,
    FLAGS_MAX,
    EnvelopeList,
    EnvelopeState,
    EnvelopeStore,
    Flag,
    Handle,
    is_local_key,
    to_tick,
)
from mta.core.ids import EvpId, evpid, number_of
from mta.core.instructions import (
    BounceKind,
    DeferEnvelope,
    Instruction,
    Removal,
    RemoveEnvelope,
    SendBounce,
    SuspendEnvelope,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from mta.core.limits import SchedulerLimits
    from mta.core.retry import RetryPolicy
    from mta.core.stimuli import EnvelopeRestored, MessageSubmitted, Selector

EXPIRED_STATUS = "550 5.4.7 Envelope expired"
"""RFC 3463: delivery time expired. OpenSMTPD logs ``stat=Envelope expired``."""

_EXPIRED_PER_CALL = 1000
"""Envelopes that `hand_out` lets expire in one go, so that a long pause does not end in a long stall;
as many as a message has recipients by default, because those are reported together."""

_IN_FLIGHT = EnvelopeState.IN_FLIGHT
_PENDING = EnvelopeState.PENDING
_SCHEDULED = EnvelopeState.SCHEDULED
_HELD = EnvelopeState.HELD
_SUSPENDED = EnvelopeState.SUSPENDED
_DELIVERED = Removal.DELIVERED
_new: Final = tuple.__new__  # of a named tuple, without a call of Python code


class Counts:
    """What the scheduler has done since the start; each only ever grows."""

    __slots__ = (
        "bounced",
        "dequeued",
        "enqueued",
        "expired",
        "hold_overflow",
        "ok",
        "permfail",
        "removed",
        "tempfail",
        "updated",
    )

    def __init__(self) -> None:
        self.enqueued = self.dequeued = 0
        self.ok = self.tempfail = self.permfail = 0
        self.expired = self.removed = self.updated = self.bounced = 0
        self.hold_overflow = 0


class Scheduler:
    """All envelopes of the queue, by state."""

    def __init__(
        self,
        store: EnvelopeStore,
        *,
        limits: "SchedulerLimits",
        retry: "RetryPolicy",
        overflow: "RetryPolicy",
        rng: "Random",
        warn_after_s: "Sequence[float]" = (),
    ) -> None:
        self.store = store
        self.limits = limits
        self.counts = Counts()
        self.in_flight = 0
        self.held = 0
        self.scheduled = 0
        self.due_at = math.inf
        """When the agenda is next worth a look, as `EnvelopeStore.next_due` says; never if nothing is pending."""
        self._retry = retry
        self._overflow = overflow
        self._rng = rng
        self._warn_after_s = tuple(warn_after_s)
        self._scheduled = store.new_list(_SCHEDULED)
        self._scheduled_local = store.new_list(_SCHEDULED)
        """Why a list of their own? One agent may be paused while the other goes on."""
        self.has_local = False
        """There has been a local delivery. Until then nothing here costs anything for it."""
        self._local_first = False
        self._has_success = False
        """Somebody has asked to hear of a delivery. Until then nothing here costs anything for it."""
        self._suspended = store.new_list(_SUSPENDED)
        self._recipients_max = 1
        """The greatest number of a recipient seen."""
        self.failures: dict[BounceKind, list[Failure]] = {}
        """What has left the queue and is not settled yet, and what somebody has to be told of."""

    @property
    def recipients_max(self) -> int:
        """No envelope has a recipient with a greater number."""
        return self._recipients_max

    # Into the queue

    def submit(self, message: "MessageSubmitted", now: float) -> list[Handle]:
        """Take a durable message over; return the envelopes that may be tried at once."""
        add = self.store.add
        transaction = message.transaction
        created_at = to_tick(now)
        limits = self.limits
        bounce = not transaction.sender
        ttl = limits.bounce_ttl_s if bounce else limits.envelope_ttl_s
        expires_at = to_tick(created_at + ttl)
        plain = int(flags_for("")) if bounce else 0
        self.counts.enqueued += len(message.recipients)
        if len(message.recipients) > self._recipients_max:
            self._recipients_max = len(message.recipients)
        ready = []
        first = evpid(message.msgid, 1)
        for number, recipient in enumerate(message.recipients):
            # Without NOTIFY, which is nearly always, only the null sender counts.
            if recipient.notify:
                flags = int(flags_for(transaction.sender, recipient.notify))
                if flags & Flag.SUCCESS:
                    self._has_success = True
            else:
                flags = plain
            handle = add(
                first + number,  # type: ignore[arg-type]  # a call of `evpid` for each is felt
                recipient,
                transaction,
                created_at=created_at,
                expires_at=expires_at,
                flags=flags,
                body=message.body,
            )
            if recipient.delivery:
                self.has_local = True
            if self.in_flight < limits.max_inflight:
                self.in_flight += 1
                ready.append(handle)
            else:
                self.put_scheduled(handle)
        return ready

    def restore(self, found: "EnvelopeRestored", now: float) -> None:
        """Take over an envelope that the durable queue had at the start."""
        attempts = min(found.attempts, ATTEMPTS_MAX)
        self._recipients_max = max(self._recipients_max, number_of(found.evpid))
        handle = self.store.add(
            found.evpid,
            found.recipient,
            found.transaction,
            created_at=to_tick(found.created_at),
            expires_at=to_tick(found.expires_at),
            attempts=attempts,
            flags=found.flags & FLAGS_MAX,
            body=found.body,
        )
        if found.flags & Flag.SUCCESS:
            self._has_success = True
        self.counts.enqueued += 1
        if is_local_key(found.recipient.domain):
            self.has_local = True
        if found.flags & Flag.SUSPENDED:
            self._suspended.append(handle)
        else:
            due_at = to_tick(max(found.due_at, now))
            self._put_pending(handle, due_at, attempts)

    # To the agents

    def hand_out(
        self, now: float, out: list[Instruction], *, relayed: bool = True, local: bool = True
    ) -> list[Handle]:
        """Return the next batch of envelopes to try: due, in order, while there are slots.

        Args:
            now: the clock.
            out: takes instructions.
            relayed: the relaying agent takes envelopes.
            local: local delivery takes envelopes.
        """
        store = self.store
        limits = self.limits
        batch: list[Handle] = []
        expired = parked = 0
        is_due = self.due_at <= now
        while len(batch) < limits.max_schedule and self.in_flight < limits.max_inflight:
            handle = self._pop_scheduled(relayed, local)
            if handle is None:
                handle = store.pop_due(now) if is_due else None
                if handle is None:
                    break
                if not (relayed and local) and not (local if self._is_local(handle) else relayed):
                    # Its agent is paused: it is due, and waits for a slot.
                    self.put_scheduled(handle)
                    parked += 1
                    if parked == _EXPIRED_PER_CALL:
                        break
                    continue
            if store.expires_at_of(handle) <= now:
                self._expire(handle)
                expired += 1
                if expired == _EXPIRED_PER_CALL:
                    break
                continue
            self.in_flight += 1
            batch.append(handle)
        if is_due:
            self._look_at_agenda()
        return batch

    def _pop_scheduled(self, relayed: bool, local: bool) -> Handle | None:
        """Take the next scheduled envelope of an agent that takes them; both have every other turn."""
        if not self.has_local:
            # Nobody else has turns.
            if not (relayed and self.scheduled):
                return None
            self.scheduled -= 1
            return self._scheduled.popleft()
        self._local_first = not self._local_first
        for is_local in (self._local_first, not self._local_first):
            if is_local and local:
                handle = self._scheduled_local.popleft()
            elif not is_local and relayed:
                handle = self._scheduled.popleft()
            else:
                continue
            if handle is not None:
                self.scheduled -= 1
                return handle
        return None

    def _put_pending(self, handle: Handle, due_at: float, attempts: int) -> None:
        self.store.defer(handle, due_at=due_at, attempts=attempts)
        if due_at < self.due_at:
            self.due_at = due_at

    def _look_at_agenda(self) -> None:
        due_at = self.store.next_due()
        self.due_at = math.inf if due_at is None else due_at

    def _is_local(self, handle: Handle) -> bool:
        return self.has_local and is_local_key(self.store.domain_of(handle))

    def _scheduled_of(self, handle: Handle) -> EnvelopeList:
        return self._scheduled_local if self._is_local(handle) else self._scheduled

    def next_wakeup(self, now: float, relayed: bool, local: bool) -> float:
        """Return when `hand_out` is next worth a call; ``now`` if it is at once, infinity if never."""
        if self.in_flight >= self.limits.max_inflight:
            return math.inf
        if self.scheduled and ((relayed and self._scheduled) or (local and self._scheduled_local)):
            return now
        return self.due_at

    def back_to_scheduled(self, handle: Handle) -> None:
        """Take an envelope back untried: its agent is paused or draining."""
        self.in_flight -= 1
        self.put_scheduled(handle)

    def hold(self, handle: Handle) -> None:
        """Note that a relay holds an envelope: it gives its slot back."""
        self.in_flight -= 1
        self.held += 1

    def release(self, count: int) -> None:
        """Note that a relay takes held envelopes on: in flight again, even above the limit.

        Why above? They were counted when they were first handed out; making them queue again would
        let a busy relay starve its own oldest mail.
        """
        self.held -= count
        self.in_flight += count

    # Outcomes of envelopes in flight

    def delivered(
        self,
        handle: Handle,
        status: str,
        out: list[Instruction],
        kind: BounceKind | None = BounceKind.RELAYED,
    ) -> None:
        """The remote host took the envelope over, or it is in a mailbox.

        Args:
            handle: the envelope.
            status: the reply.
            out: takes instructions.
            kind: what a sender that asks for it is told; None if the remote host does that.
        """
        store = self.store
        counts = self.counts
        counts.ok += 1
        self._leave(handle)
        if self._has_success and kind is not None and store.flags_of(handle) & Flag.SUCCESS:
            self._bounce(handle, status, kind)
            return
        envelope = store.evpid_of(handle)
        store.discard(handle)
        counts.dequeued += 1
        out.append(_new(RemoveEnvelope, (envelope, _DELIVERED, status)))

    def tempfailed(
        self,
        handle: Handle,
        status: str,
        now: float,
        out: list[Instruction],
        *,
        retry: "RetryPolicy | None" = None,
    ) -> None:
        """The envelope failed for now: try again later, or give up if it is too old.

        Args:
            handle: the envelope.
            status: why.
            now: the clock.
            out: takes instructions.
            retry: when to try again; the scheduler's own policy if None.
        """
        self.counts.tempfail += 1
        self._leave(handle)
        attempts = min(self.store.attempts_of(handle) + 1, ATTEMPTS_MAX)
        self._defer(handle, status, retry or self._retry, attempts, attempts, now, out)

    def overflowed(self, handle: Handle, now: float, out: list[Instruction]) -> None:
        """There was no room for an envelope: it is pending again, soon, and was not tried."""
        self.counts.hold_overflow += 1
        self._leave(handle)
        # Why 0? Slots of the overflow timetable are seconds apart, and it counts no attempts.
        self._defer(handle, "", self._overflow, 0, self.store.attempts_of(handle), now, out)

    def permfailed(self, handle: Handle, status: str) -> None:
        """The envelope failed for good: a bounce tells the sender, if there is one."""
        self.counts.permfail += 1
        self._leave(handle)
        self._bounce(handle, status, BounceKind.FAILED)

    def removed(self, handle: Handle, out: list[Instruction]) -> None:
        """The operator removed an envelope that was in flight."""
        self._leave(handle)
        self._remove(handle, out)

    def suspended(self, handle: Handle) -> None:
        """The operator suspended an envelope that was in flight."""
        self._leave(handle)
        self._suspended.append(handle)

    def expired(self, handle: Handle) -> None:
        """An envelope became too old that is nowhere."""
        self._expire(handle)

    def expired_in_flight(self, handle: Handle) -> None:
        """An envelope became too old while it waited for its transaction."""
        self._leave(handle)
        self._expire(handle)

    def settle_failures(self, out: list[Instruction]) -> None:
        """Report what there is to report since the last call: one bounce for each message and kind.

        Called once per stimulus, because what fails together is reported together.
        """
        failures, self.failures = self.failures, {}
        for kind, failed in failures.items():
            for instruction in settle(failed, kind):
                if type(instruction) is SendBounce:
                    self.counts.bounced += 1
                out.append(instruction)

    # The operator; envelopes that are in flight or held are the relaying agent's to find

    def matching(self, which: "Selector") -> list[Handle]:
        """Return the envelopes that the operator means, in the order of their ids."""
        store = self.store
        if which.evpid is not None:
            handle = store.find(which.evpid)
            return [] if handle is None else [handle]
        if which.msgid is not None:
            return store.of_message(which.msgid, recipients_max=self._recipients_max)
        return sorted(store, key=store.evpid_of)

    def take_out(self, handle: Handle) -> None:
        """Take a pending, scheduled or suspended envelope out of its place."""
        state = self.store.state_of(handle)
        if state is _PENDING:
            self.store.unschedule(handle)
            self._look_at_agenda()
        elif state is _SCHEDULED:
            self._scheduled_of(handle).remove(handle)
            self.scheduled -= 1
        else:
            assert state is _SUSPENDED, state
            self._suspended.remove(handle)

    def put_scheduled(self, handle: Handle) -> None:
        """Make an envelope that is nowhere due now."""
        self._scheduled_of(handle).append(handle)
        self.scheduled += 1

    def put_removed(self, handle: Handle, out: list[Instruction]) -> None:
        """Remove an envelope that is nowhere, because the operator said so."""
        self._remove(handle, out)

    def put_suspended(self, handle: Handle) -> None:
        """Park an envelope that is nowhere."""
        self._suspended.append(handle)

    def set_suspended(self, handle: Handle, suspended: bool, out: list[Instruction]) -> None:
        """Set or clear the durable flag."""
        flags = self.store.flags_of(handle)
        wanted = flags | Flag.SUSPENDED if suspended else flags & ~Flag.SUSPENDED
        assert wanted != flags, self.store.evpid_of(handle)
        self.store.set_flags(handle, wanted)
        out.append(SuspendEnvelope(self.store.evpid_of(handle), int(wanted)))

    # What they share

    def _leave(self, handle: Handle) -> None:
        assert self.store.state_of(handle) is _IN_FLIGHT, handle
        self.in_flight -= 1
        assert self.in_flight >= 0

    def _forget(self, handle: Handle) -> EvpId:
        envelope = self.store.evpid_of(handle)
        self.store.discard(handle)
        self.counts.dequeued += 1
        return envelope

    def _remove(self, handle: Handle, out: list[Instruction]) -> None:
        self.counts.removed += 1
        out.append(
            RemoveEnvelope(self._forget(handle), Removal.REMOVED, "Removed by administrator")
        )

    def _defer(
        self,
        handle: Handle,
        status: str,
        policy: "RetryPolicy",
        step: int,
        attempts: int,
        now: float,
        out: list[Instruction],
    ) -> None:
        store = self.store
        expires_at = store.expires_at_of(handle)
        if expires_at <= now:
            self._expire(handle)
            return
        next_at = policy.next_attempt_at(
            created_at=store.created_at_of(handle), now=now, attempts=step, rng=self._rng
        )
        # Why at expiry too? Nothing else looks at the envelope then (OpenSMTPD orders by the same).
        due_at = min(to_tick(next_at), expires_at)
        self._put_pending(handle, due_at, attempts)
        if status:
            store.note(handle, status)
            if self._warn_after_s:
                self._warn(handle, status, now)
        self.counts.updated += 1
        out.append(DeferEnvelope(store.evpid_of(handle), attempts, due_at, status))

    def _warn(self, handle: Handle, status: str, now: float) -> None:
        """Let the sender know that an envelope which failed again is late, if it is time for that."""
        store = self.store
        waited_s = now - store.created_at_of(handle)
        if waited_s < self._warn_after_s[0]:
            return
        flags = after_warning(store.flags_of(handle), waited_s, self._warn_after_s)
        if flags is not None:
            store.set_flags(handle, flags)
            failure = Failure(store.evpid_of(handle), flags, status)
            self.failures.setdefault(BounceKind.DELAYED, []).append(failure)

    def _expire(self, handle: Handle) -> None:
        self.counts.expired += 1
        self._bounce(handle, EXPIRED_STATUS, BounceKind.EXPIRED)

    def _bounce(self, handle: Handle, status: str, kind: BounceKind) -> None:
        """Take an envelope out of the queue for good; `settle_failures` says who is told."""
        flags = self.store.flags_of(handle)
        failure = Failure(self._forget(handle), flags, status)
        self.failures.setdefault(kind, []).append(failure)

    def count_of(self, state: EnvelopeState) -> int:
        """Return how many envelopes are in a state."""
        if state is _SCHEDULED:
            return self.scheduled
        if state is _SUSPENDED:
            return len(self._suspended)
        if state is _IN_FLIGHT:
            return self.in_flight
        if state is _HELD:
            return self.held
        return len(self.store) - self.scheduled - len(self._suspended) - self.in_flight - self.held

    def validate(self) -> None:
        """Assert the invariants; O(n), for tests."""
        self.store.validate()
        states = dict.fromkeys(EnvelopeState, 0)
        for handle in self.store:
            state = self.store.state_of(handle)
            states[state] += 1
            suspended = bool(self.store.flags_of(handle) & Flag.SUSPENDED)
            assert not suspended or state in (_SUSPENDED, _IN_FLIGHT), state
        for state, count in states.items():
            assert self.count_of(state) == count, (state, self.count_of(state), count)
        assert len(self._scheduled) + len(self._scheduled_local) == self.scheduled
        next_due = self.store.next_due()
        assert self.due_at == (math.inf if next_due is None else next_due), (self.due_at, next_due)
        for queued in (self._scheduled, self._scheduled_local):
            for handle in queued:
                assert self._scheduled_of(handle) is queued
        assert not self.failures
        counts = self.counts
        assert counts.enqueued - counts.dequeued == len(self.store)
