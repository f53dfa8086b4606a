"""The door of the model: clients that follow a schedule, as many at a time as there are sessions.

Open loop: a message is due whatever the server does, and waits for a client when all of them are busy
(loadtests/_player.py). What the server answers is decided by `mta.core.admission`, as at its door.
"""

from array import array
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from mta.core.admission import Pressure, on_connect, on_message
from mta.core.envelopes.base import Recipient, Transaction
from mta.core.limits import Limits
from sim.costs import Costs
from sim.cpu import EventLoop
from sim.kernel import Kernel
from sim.queue import GroupCommit
from sim.scenario import Load
from sim.workload import Schedule

TRIES: Final = 5
"""Attempts of a client that hears 421; loadtests/_hooks.py."""
RETRY_WAIT_S: Final = 1.0
"""Between two of them."""


class Submission(NamedTuple):
    """A message on its way into the queue."""

    number: int
    """Of the schedule; -1 for a bounce."""
    due_s: float
    """When it was due, or when the bounce was decided."""
    transaction: Transaction
    recipients: tuple[Recipient, ...]
    reports: tuple[int, ...] = ()
    """Envelopes that a bounce replaces."""


class Inbound:
    """All clients, and the server's side of their dialogues."""

    def __init__(
        self,
        kernel: Kernel,
        loop: EventLoop,
        costs: Costs,
        limits: Limits,
        *,
        load: Load,
        schedule: Schedule,
        queue: GroupCommit,
        queued: Callable[[], tuple[int, int]],
    ) -> None:
        """Get ready; `start` lets the clients begin.

        Args:
            kernel: the clock.
            loop: the server's CPU.
            costs: what a message costs both sides.
            limits: the server's.
            load: how many sessions, and whether they are kept.
            schedule: every message.
            queue: makes messages durable.
            queued: returns the envelopes in the queue, and the bytes of their messages.
        """
        self._kernel = kernel
        self._loop = loop
        self._costs = costs
        self._limits = limits
        self._load = load
        self._queue = queue
        self._queued = queued
        # Plain lists: an index into an array of numpy makes an object each time.
        self._due_s: list[float] = schedule.due_s.tolist()
        self._sizes: list[int] = schedule.size.tolist()
        self._senders: list[int] = schedule.sender_number.tolist()
        self._first: list[int] = schedule.first.tolist()
        self._domain_of: list[int] = schedule.recipient_domain.tolist()
        self._mailbox: list[int] = schedule.mailbox.tolist()
        self._domains = [domain for _, domain in schedule.domains]
        self._sender_domain = schedule.sender_domain
        self._next = 0
        self._clients_free = load.sessions
        self._clients_waiting: deque[int] = deque()
        self._connections = 0
        self._opened = 0
        self._receiving_bytes = 0
        self._tries: dict[int, int] = {}
        self.accepted = 0
        """Messages that were answered with 250."""
        self.accepted_envelopes = 0
        self.refused = 0
        """Messages that were refused with 4xx or 5xx for good, as far as the client is concerned."""
        self.ended_at: float | None = None
        """When the last message was settled; None until then."""
        self.latency_s = array("d")
        """From the instant at which a message was due to its 250."""

    def start(self) -> None:
        """Let the clients begin."""
        self._kernel.schedule(max(0.0, self._due_s[0]), self._arrive, None)

    @property
    def connections(self) -> int:
        """Open inbound connections."""
        return self._connections

    # Clients

    def _arrive(self, _: None) -> None:
        number = self._next
        self._next = number + 1
        if self._clients_free:
            self._clients_free -= 1
            self._begin(number)
        else:
            self._clients_waiting.append(number)
        if self._next < len(self._due_s):
            gap = self._due_s[self._next] - self._kernel.now
            self._kernel.schedule(gap if gap > 0.0 else 0.0, self._arrive, None)

    def _begin(self, number: int) -> None:
        """A free client sends a message: its own part of the dialogue, all at once."""
        costs = self._costs
        count = self._first[number + 1] - self._first[number]
        self._kernel.schedule(
            costs.client_s + costs.client_recipient_s * count, self._dialogue, number
        )

    def _dialogue(self, number: int) -> None:
        self._loop.do(self._receive, number)

    def _settled(self, number: int) -> None:
        """A client knows what became of its message; it is free when it has closed."""
        if self.accepted + self.refused == len(self._due_s):
            self.ended_at = self._kernel.now
        done = max(0.0, self._loop.done_at - self._kernel.now)
        self._kernel.schedule(done + self._costs.client_close_s, self._free, None)

    def _free(self, _: None) -> None:
        if not self._load.keep:
            self._connections -= 1
        if self._clients_waiting:
            self._begin(self._clients_waiting.popleft())
        else:
            self._clients_free += 1

    # The server

    def _receive(self, number: int) -> None:
        """Take a whole message in."""
        costs, limits = self._costs, self._limits
        size = self._sizes[number]
        count = self._first[number + 1] - self._first[number]
        envelopes, queued_bytes = self._queued()
        pressure = Pressure(
            self._connections,
            envelopes,
            queued_bytes,
            self._queue.waiting,
            self._queue.waiting_bytes,
        )
        seconds = costs.message_s + costs.recipient_s * count + costs.byte_s * size
        opens = not self._load.keep or self._opened < self._load.sessions
        if opens:
            seconds += costs.session_s
            refusal = on_connect(pressure, from_client=self._connections, limits=limits.smtp)
            if refusal is not None:
                self._loop.charge(costs.session_s)
                self._turn_away(number)
                return
            self._connections += 1
            self._opened += 1
        self._loop.charge(seconds)
        # The client sends the rest separately where it may; here those recipients are refused.
        count = min(count, limits.smtp.max_rcpt)
        if on_message(
            pressure,
            size=size,
            recipients=count,
            received=0,
            limits=limits.smtp,
            queue=limits.queue,
        ):
            self.refused += 1
            self._settled(number)
            return
        submission = self._submission(number, size, count)
        self._queue.waiting_bytes += size
        self._queue.put(submission, self._loop.done_at - self._kernel.now)

    def _turn_away(self, number: int) -> None:
        """The client heard 421: it comes again a little later, a few times."""
        tries = self._tries.get(number, 1)
        if tries < TRIES:
            self._tries[number] = tries + 1
            self._kernel.schedule(RETRY_WAIT_S, self._begin, number)
            return
        self._tries.pop(number, None)
        self.refused += 1
        self._connections += not self._load.keep  # `_free` takes it off again
        self._settled(number)

    def _submission(self, number: int, size: int, count: int) -> Submission:
        first = self._first[number]
        domains, domain_of, mailbox = self._domains, self._domain_of, self._mailbox
        if count == 1:
            domain = domains[domain_of[first]]
            recipients: tuple[Recipient, ...] = (
                Recipient(f"user{mailbox[first]}@{domain}", domain),
            )
        else:
            recipients = tuple(
                [
                    Recipient(f"user{mailbox[i]}@{domains[domain_of[i]]}", domains[domain_of[i]])
                    for i in range(first, first + count)
                ]
            )
        sender = f"sender{self._senders[number]}@{self._sender_domain}"
        return Submission(number, self._due_s[number], Transaction(sender, size), recipients)

    def durable(self, submission: Submission) -> None:
        """The commit of a message is done, and the core was told: answer its client."""
        self.accepted += 1
        self.accepted_envelopes += len(submission.recipients)
        self._queue.waiting_bytes -= submission.transaction.size
        self.latency_s.append(self._loop.done_at - submission.due_s)
        self._settled(submission.number)
