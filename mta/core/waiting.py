"""Mail that waits at its relay: transactions, and the envelopes held behind them.

Envelopes of one message for one relay make one transaction. Above the high-water mark of waiting
transactions further envelopes are held where they cost least, and asked back in the order they came in.
"""

from typing import TYPE_CHECKING

from mta.core.envelopes.base import EnvelopeState, Handle
from mta.core.ids import MsgId, msgid_of
from mta.core.instructions import Instruction, Note
from mta.core.relay import Relay, Task

if TYPE_CHECKING:
    from mta.core.scheduler import Scheduler


class Waiting:
    """Puts envelopes into relays, and takes them out again."""

    def __init__(self, scheduler: "Scheduler") -> None:
        self._scheduler = scheduler

    def put(
        self,
        relay: Relay,
        handle: Handle,
        now: float,
        out: list[Instruction],
        *,
        held: bool = False,
    ) -> bool:
        """Put an envelope into a waiting transaction; at high water hold it instead, and return False.

        Args:
            relay: its relay.
            handle: the envelope, in flight.
            now: the clock.
            out: takes notes.
            held: it has been held already.
        """
        scheduler = self._scheduler
        store = scheduler.store
        message = msgid_of(store.evpid_of(handle))
        task = relay.tasks.get(message)
        if task is None or len(task.handles) >= relay.limits.max_rcpt_per_task:
            if not held and relay.held.must_hold(len(relay.tasks)):
                if relay.held.is_full():
                    scheduler.overflowed(handle, now, out)
                    return False
                if not relay.held:
                    out.append(
                        Note(
                            f"smtp-out: hiwat reached on [relay:{relay.domain}]: holding envelopes"
                        )
                    )
                scheduler.hold(handle)
                relay.held.hold(handle)
                return False
            if task is not None:
                # A full transaction of the same message steps aside under a key that no message has.
                relay.tasks[MsgId(-int(store.evpid_of(handle)))] = task
                del relay.tasks[message]
            task = Task(message)
            relay.tasks[message] = task
        task.handles.append(handle)
        relay.waiting_envelopes += 1
        return True

    def release(self, relay: Relay, now: float, out: list[Instruction]) -> bool:
        """Take the next held envelopes on, if it is time; return whether there were any."""
        released = relay.held.release(len(relay.tasks))
        if not released:
            return False
        if not relay.held:
            out.append(Note(f"smtp-out: back to lowat on [relay:{relay.domain}]: releasing"))
        scheduler = self._scheduler
        scheduler.release(len(released))
        for handle in released:
            if scheduler.store.expires_at_of(handle) <= now:
                scheduler.expired_in_flight(handle)
            else:
                self.put(relay, handle, now, out, held=True)
        return True

    def next_task(self, relay: Relay, now: float) -> Task | None:
        """Take the oldest transaction out; None if all its envelopes are too old."""
        tasks = relay.tasks
        task = tasks.pop(next(iter(tasks)))
        scheduler = self._scheduler
        expires_at_of = scheduler.store.expires_at_of
        handles = task.handles
        relay.waiting_envelopes -= len(handles)
        if len(handles) == 1 and expires_at_of(handles[0]) > now:
            return task
        expired = [handle for handle in handles if expires_at_of(handle) <= now]
        if expired:
            task.handles = [handle for handle in task.handles if handle not in expired]
            for handle in expired:
                scheduler.expired_in_flight(handle)
        return task if task.handles else None

    def empty(self, relay: Relay) -> list[Handle]:
        """Take all waiting and held envelopes of a relay out; they are in flight."""
        handles = [handle for task in relay.tasks.values() for handle in task.handles]
        relay.tasks.clear()
        relay.waiting_envelopes = 0
        held = relay.held.release_all()
        self._scheduler.release(len(held))
        return handles + held

    def withdraw(self, relay: Relay, handle: Handle) -> bool:
        """Take one envelope out; False if it does not wait, because its transaction is running."""
        if self._scheduler.store.state_of(handle) is EnvelopeState.HELD:
            relay.held.withdraw(handle)
            self._scheduler.release(1)
            return True
        for message, task in relay.tasks.items():
            if handle in task.handles:
                task.handles.remove(handle)
                relay.waiting_envelopes -= 1
                if not task.handles:
                    del relay.tasks[message]
                return True
        return False
