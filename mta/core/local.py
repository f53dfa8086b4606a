"""Local delivery: whose message is delivered next, and what becomes of those that wait.

OpenSMTPD's mda process as a state machine. Each user has a queue, first in first out; users take turns, so
that one user's flood costs the others one place in a round and not the whole of it. What happens when more
arrives than can wait is a policy with three names (`mta.core.limits.MdaLimits.policy`), one for each of the
answers that OpenSMTPD has had.

Unlike there, an envelope that became too old while it waited or was held expires when its turn comes
(OpenSMTPD tests only what is pending), and the oldest held envelope is released first.

Nothing here waits for an instant: whatever can start, starts in the call that made it possible.
"""

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from mta.core.envelopes.base import EnvelopeState, Handle, local_key
from mta.core.holdqueue import HoldQueue
from mta.core.instructions import BounceKind, DeliverLocally, Instruction, Note
from mta.core.reply import Outcome

if TYPE_CHECKING:
    from mta.core.ids import EvpId
    from mta.core.limits import Limits
    from mta.core.retry import RetryPolicy
    from mta.core.scheduler import Scheduler
    from mta.core.stimuli import LocalDeliveryDone

TOO_MANY = "4.3.2 Too many envelopes in the delivery agent: will try again later"
"""Words of OpenSMTPD's mda.c of 2012; RFC 3463 X.3.2, not accepting messages now."""


class User:
    """One user's mail on its way into the mailbox."""

    __slots__ = ("held", "key", "running", "waiting")

    def __init__(self, key: str, held: HoldQueue) -> None:
        self.key = key
        """`mta.core.envelopes.base.local_key` of the name."""
        self.held = held
        self.running = 0
        # Why not a deque? The operator takes envelopes out of the middle.
        self.waiting: OrderedDict[Handle, None] = OrderedDict()

    @property
    def name(self) -> str:
        """The user's name."""
        return self.key[:-1]

    def is_idle(self) -> bool:
        """Return whether nothing is known of the user any more."""
        return not (self.waiting or self.running or self.held)


class LocalAgent:
    """All local deliveries, by user."""

    def __init__(self, scheduler: "Scheduler", *, limits: "Limits", retry: "RetryPolicy") -> None:
        self.scheduler = scheduler
        self.limits = limits.mda
        self.paused = False
        self.draining = False
        self.users: dict[str, User] = {}
        """By key."""
        self.running: dict[EvpId, Handle] = {}
        self.waiting = 0
        """Envelopes that wait, of all users; those held not counted."""
        self.refused = 0
        """Envelopes that were sent back because too many waited, since the start."""
        self._scheduler_limits = limits.scheduler
        self._retry = retry
        self._turns: deque[User] = deque()
        """Users who may start a delivery, in turn."""
        self._queued: set[User] = set()
        """Those in it."""
        self._doomed: set[EvpId] = set()
        """Running deliveries whose envelope the operator removed."""
        self._suspended: set[EvpId] = set()
        """Running deliveries whose envelope the operator suspended."""
        self.paused_users: set[str] = set()
        """Keys of users whose mail the operator wants left alone."""
        self._limits_changed = False
        """More may be under way than the caps say, until it ends."""

    @property
    def envelopes(self) -> int:
        """Envelopes in flight here."""
        return self.waiting + len(self.running)

    # Envelopes arrive

    def take(self, handle: Handle, now: float, out: list[Instruction]) -> None:
        """Take an envelope in flight over from the scheduler; `start` starts its delivery."""
        scheduler = self.scheduler
        key = scheduler.store.domain_of(handle)
        user = self.users.get(key)
        if user is None:
            user = self._new_user(key)
        caps = self.limits.max_pending()
        if caps is None:
            if user.held.must_hold(len(user.waiting)):
                self._hold(user, handle, now, out)
                return
        elif self.envelopes >= caps[0] or len(user.waiting) + user.running >= caps[1]:
            self.refused += 1
            self._forget_if_idle(user)
            scheduler.tempfailed(handle, TOO_MANY, now, out, retry=self._retry)
            return
        self._enlist(user, handle)

    def _new_user(self, key: str) -> User:
        limits = self.limits
        held = HoldQueue(
            self.scheduler.store.new_list(EnvelopeState.HELD),
            high_water=limits.task_high_water,
            low_water=limits.task_low_water,
            release=limits.task_release,
            held_max=self._scheduler_limits.max_held,
        )
        user = self.users[key] = User(key, held)
        return user

    def _hold(self, user: User, handle: Handle, now: float, out: list[Instruction]) -> None:
        if user.held.is_full():
            self.scheduler.overflowed(handle, now, out)
            return
        if not user.held:
            out.append(Note(f"mda: hiwat reached on [user:{user.name}]: holding envelopes"))
        self.scheduler.hold(handle)
        user.held.hold(handle)

    def _enlist(self, user: User, handle: Handle) -> None:
        user.waiting[handle] = None
        self.waiting += 1
        self._offer_turn(user)

    def _offer_turn(self, user: User) -> None:
        """Let a user queue for a turn who has something to deliver and may."""
        if (
            user.waiting
            and user.running < self.limits.max_session_per_user
            and user not in self._queued
            and user.key not in self.paused_users
        ):
            self._queued.add(user)
            self._turns.append(user)

    # Deliveries

    def start(self, now: float, out: list[Instruction]) -> None:
        """Start what may be started: one delivery of each user in turn, while there are places."""
        if self.paused or self.draining:
            return
        scheduler = self.scheduler
        store = scheduler.store
        while self._turns and len(self.running) < self.limits.max_session:
            user = self._turns.popleft()
            self._queued.remove(user)
            if (
                not user.waiting
                or user.running >= self.limits.max_session_per_user
                or user.key in self.paused_users
            ):
                # The operator took them, lowered the cap, or paused this user.
                continue
            handle, _ = user.waiting.popitem(last=False)
            self.waiting -= 1
            if store.expires_at_of(handle) <= now:
                scheduler.expired_in_flight(handle)
            else:
                evpid = store.evpid_of(handle)
                user.running += 1
                self.running[evpid] = handle
                out.append(DeliverLocally(evpid, user.name))
            self._release(user)
            self._offer_turn(user)
            self._forget_if_idle(user)

    def done(self, done: "LocalDeliveryDone", now: float, out: list[Instruction]) -> None:
        """Take the end of a delivery."""
        evpid = done.evpid
        handle = self.running.pop(evpid, None)
        if handle is None:
            return
        scheduler = self.scheduler
        user = self.users[scheduler.store.domain_of(handle)]
        user.running -= 1
        doomed = evpid in self._doomed
        suspended = evpid in self._suspended
        self._doomed.discard(evpid)
        self._suspended.discard(evpid)
        if done.outcome is Outcome.OK:
            scheduler.delivered(handle, done.status, out, BounceKind.DELIVERED)
        elif done.outcome is not Outcome.TEMPFAIL:
            scheduler.permfailed(handle, done.status)
        elif doomed:
            scheduler.removed(handle, out)
        elif suspended:
            scheduler.set_suspended(handle, True, out)
            scheduler.suspended(handle)
        else:
            scheduler.tempfailed(handle, done.status, now, out, retry=self._retry)
        self._offer_turn(user)
        self._forget_if_idle(user)

    def _release(self, user: User) -> None:
        """Ask held envelopes back at low water."""
        handles = user.held.release(len(user.waiting))
        self.scheduler.release(len(handles))
        for handle in handles:
            self._enlist(user, handle)

    def _forget_if_idle(self, user: User) -> None:
        if user.is_idle():
            del self.users[user.key]

    # The operator

    def withdraw(self, handle: Handle, now: float) -> bool:
        """Take an envelope that waits or is held back; False if its delivery is running."""
        store = self.scheduler.store
        user = self.users[store.domain_of(handle)]
        if store.state_of(handle) is EnvelopeState.HELD:
            user.held.withdraw(handle)
            self.scheduler.release(1)
        elif handle in user.waiting:
            del user.waiting[handle]
            self.waiting -= 1
            # Otherwise the last one withdrawn would leave nobody to ask for those held.
            self._release(user)
        else:
            return False
        self._forget_if_idle(user)
        return True

    def doom(self, handle: Handle) -> None:
        """Remember that an envelope of a running delivery is to be removed if that fails for now."""
        self._doomed.add(self.scheduler.store.evpid_of(handle))

    def suspend_later(self, handle: Handle, suspended: bool) -> None:
        """Remember that an envelope of a running delivery is to be suspended if that fails for now."""
        evpid = self.scheduler.store.evpid_of(handle)
        if not suspended:
            self._suspended.discard(evpid)
        elif evpid in self.running:
            self._suspended.add(evpid)

    def pause_user(self, name: str) -> None:
        """Start no more deliveries for a user; mail waits and is held as ever. Idempotent."""
        self.paused_users.add(local_key(name))

    def resume_user(self, name: str) -> None:
        """Deliver a user's mail again. Idempotent."""
        key = local_key(name)
        self.paused_users.discard(key)
        user = self.users.get(key)
        if user is not None:
            self._offer_turn(user)

    def limits_changed(self) -> None:
        """Take changed limits over; the caller starts what may be started now."""
        limits = self.limits
        self._limits_changed = True
        for user in self.users.values():
            user.held.set_marks(
                high_water=limits.task_high_water,
                low_water=limits.task_low_water,
                release=limits.task_release,
                held_max=self._scheduler_limits.max_held,
            )
            self._release(user)
            self._offer_turn(user)

    # For tests

    def validate(self) -> None:
        """Assert the invariants; O(n), for tests."""
        limits = self.limits
        store = self.scheduler.store
        changed = self._limits_changed
        assert changed or len(self.running) <= limits.max_session
        assert self._queued == set(self._turns)
        assert len(self._queued) == len(self._turns)
        running = dict.fromkeys(self.users, 0)
        for evpid, handle in self.running.items():
            assert store.evpid_of(handle) == evpid
            running[store.domain_of(handle)] += 1
        assert sum(len(user.waiting) for user in self.users.values()) == self.waiting
        caps = limits.max_pending()
        assert changed or caps is None or self.envelopes <= caps[0]
        for key, user in self.users.items():
            assert user.key == key
            assert not user.is_idle(), key
            assert user.running == running[key]
            assert changed or user.running <= limits.max_session_per_user
            for handle in user.waiting:
                assert store.domain_of(handle) == key
                assert store.state_of(handle) is EnvelopeState.IN_FLIGHT
            assert caps is None or not user.held
            assert changed or caps is None or len(user.waiting) + user.running <= caps[1]
            # What is held has somebody before it who will ask for it.
            assert not user.held or user.waiting
            may_start = user.waiting and user.running < limits.max_session_per_user
            may_start = may_start and key not in self.paused_users
            assert not may_start or user in self._queued, key
        assert self._doomed | self._suspended <= self.running.keys()
