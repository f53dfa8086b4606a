"""The door of the model: clients that follow a schedule, as many at a time as there are sessions.

Open loop: a message is due whatever the server does, and waits for a client when all of them are busy
(loadtests/_player.py). Closed loop: users think, send, wait for their answer, and think again. What the server answers is decided by `mta.core.admission`, as at its door.
"""

from array import array
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mta.core.admission import (
    NO_STORAGE,
    SHUTTING_DOWN,
    Pressure,
    on_connect,
    on_mail,
    on_message,
)
from mta.core.envelopes.base import Recipient, plain_recipient, plain_transaction
from mta.core.limits import Limits
from mta.core.pressure import MemoryLevel
from mta.core.reply import Reply
from sim.costs import Costs
from sim.cpu import EventLoop
from sim.kernel import Kernel
from sim.message import Message, local_recipient
from sim.queue import Fill, GroupCommit
from sim.scenario import Load
from sim.shares import in_share
from sim.workload import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sim.beside import Beside

RETRY_WAIT_S: Final = 1.0
"""Between two attempts of a client that hears 421; loadtests/_hooks.py."""
NOBODY: Final = Reply(421, "", "Connection refused")
"""No reply of ours: there is no process that could give one. What a client makes of it is the same."""
SPACE_AGE_S: Final = 1.0
"""Seconds for which the door uses its last look at the disk's free space again; mta/queue/sqlite.py."""
AHEAD_S: Final = 0.1
"""How far ahead messages are given to clients that are free."""


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
        fill: Fill,
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
            fill: what is in the queue; the driver keeps it.
        """
        self._kernel = kernel
        self._loop = loop
        self._costs = costs
        self._limits = limits
        self._load = load
        self._queue = queue
        self._fill = fill
        self._dialogue: Callable[[int], None] = partial(loop.do, self._receive)
        # Plain lists: an index into an array of numpy makes an object each time.
        self._due_s: list[float] = schedule.due_s.tolist()
        self._sizes: list[int] = schedule.size.tolist()
        self._senders: list[int] = schedule.sender_number.tolist()
        self._first: list[int] = schedule.first.tolist()
        self._domain_of: list[int] = schedule.recipient_domain.tolist()
        self._mailbox: list[int] = schedule.mailbox.tolist()
        self._domains = [domain for _, domain in schedule.domains]
        self._users = [
            schedule.prefix(destination) if destination < 0 else ""
            for destination, _ in schedule.domains
        ]
        """Of local domains, what a user's number is put behind."""
        self._has_local = bool(schedule.users)
        self._sender_domain = schedule.sender_domain
        # Reckoned for all at once: to the last bit what the same sum gives for each.
        count = np.diff(schedule.first)
        self._client_s: list[float] = (costs.client_s + costs.client_recipient_s * count).tolist()
        """The client's own part of each dialogue."""
        server_s = costs.message_s + costs.recipient_s * count + costs.byte_s * schedule.size
        if schedule.users:
            server_s[schedule.group >= 0] += costs.local_rcpt_s
        self._server_s: list[float] = server_s.tolist()
        """The server's, without the connection's."""
        # What STARTTLS takes goes with the messages where each has a connection, else with the first ones.
        self._tls = load.tls if load.keep else 0.0
        if load.tls and not load.keep:
            for number in range(len(self._server_s)):
                if in_share(number, load.tls):
                    self._server_s[number] += costs.tls_s
                    self._client_s[number] += costs.client_tls_s
        self._next = 0
        self._count = len(self._due_s)
        self._keeps = load.keep
        self._close_s = costs.client_close_s
        self._awaited = 0
        """Clients that will be free at an event, each for one message that waits."""
        self._clients_free = load.clients
        self._is_closed = load.loop == "closed"
        self._think_s: list[float] = schedule.think_s.tolist()
        self._tries_max = load.tries
        self._clients_waiting: deque[int] = deque()
        self._closing: deque[tuple[float, int]] = deque()
        """When clients that have their answer will be free, and to which process they close a connection then; 0 if they
        close none. An event is made only for one that is waited for."""
        self._process = 1
        """Number of the server's process: a connection to one that is gone counts no more."""
        self._connections = 0
        self._opened = 0
        self._tries: dict[int, int] = {}
        self._paused = False
        self._doubts_disk = False
        """The disk was full, and it is not known yet that it is not."""
        self._has_space = True
        """At the last look."""
        self._space_at = 0.0
        self._memory = MemoryLevel.OK
        self._shut: Reply | None = None
        """What everybody hears while the server stops or is down."""
        self.limits_changed()
        self.accepted = 0
        """Messages that were answered with 250."""
        self.accepted_envelopes = 0
        self.refused = 0
        """Messages that were refused with 4xx or 5xx for good, as far as the client is concerned."""
        self.turned_away = 0
        """Times that a client heard 421, whether it came again or not."""
        self.broken = 0
        """Times that a client found no server, or lost it before it had its answer."""
        self.ended_at: float | None = None
        """When the last message was settled; None until then."""
        self.beside: Beside | None = None
        """Clients that send no mail, if there are any."""
        self.latency_s = array("d")
        """From the instant at which a message was due to its 250."""

    def start(self) -> None:
        """Let the clients begin."""
        if not self._is_closed:
            self._kernel.schedule(max(0.0, self._due_s[0]), self._arrive, None)
            return
        for _ in range(min(self._clients_free, self._count)):
            self._think()

    def limits_changed(self) -> None:
        """Take changed limits over: far below every limit nobody is refused, whatever the rules say in detail."""
        smtp, queue = self._limits.smtp, self._limits.queue
        self._few_connections = min(smtp.max_conn, smtp.max_conn_per_client)
        self._few_recipients = smtp.max_rcpt
        self._small = min(
            smtp.max_message_size, smtp.max_bytes_in_memory // 2 // self._load.clients
        )
        self._few_envelopes = queue.max_envelopes // 2
        self._few_bytes = queue.max_bytes // 2
        self._few_waiting = queue.max_waiting // 2
        if (
            self._paused
            or self._doubts_disk
            or self._memory >= MemoryLevel.SOFT
            or self._shut is not None
        ):
            # Everybody is asked about; a process that ended leaves clients who still count as going.
            self._few_connections = -(1 << 30)

    def pause(self, paused: bool) -> None:
        """Take no new connection, or take them again; those that are open go on (mta/door.py)."""
        self._paused = paused
        self.limits_changed()

    def doubt_disk(self) -> None:
        """Look at the disk from now on, until it is found well."""
        if not self._doubts_disk:
            self._doubts_disk = True
            # When the server looked last, nobody knows.
            self._space_at = self._kernel.now
            self.limits_changed()

    def memory_is(self, level: MemoryLevel) -> None:
        """Take in as much as the memory allows."""
        self._memory = level
        self.limits_changed()

    # The end of the process, and the next one

    def stop(self) -> None:
        """Send everybody away who is not in the middle of a message."""
        self._shut = SHUTTING_DOWN
        self.limits_changed()

    def lose(self, numbers: "Iterable[int]") -> None:
        """The process is gone: every connection is reset, and nobody listens.

        Args:
            numbers: messages that were in its hands and not answered.
        """
        self._shut = NOBODY
        self._paused = False
        self.limits_changed()
        self._process += 1
        self._connections = 0
        if self.beside is not None:
            self.beside.lose()
        for number in numbers:
            self._cut_off(number)

    def open(self) -> None:
        """A new process listens; every client has to connect anew."""
        self._shut = None
        self._opened = 0
        self.limits_changed()

    def number_of(self, job: "Callable[[Any], None]", argument: Any) -> int | None:
        """Return the message that a job of the loop would have taken in or refused; None if it is no such job."""
        if job == self.not_kept:
            refused: Message = argument
            return refused.number
        return int(argument) if job == self._receive else None

    @property
    def connections(self) -> int:
        """Open inbound connections."""
        self._reap()
        return self._connections

    # Clients

    def _arrive(self, _: None) -> None:
        """Let clients take the messages that are due, and those of the next moment if clients are free.

        Why ahead of time? A client that is free now is free when the next message is due, since messages
        are taken in their order. It saves an event for each message.
        """
        kernel, due_s, client_s = self._kernel, self._due_s, self._client_s
        schedule, dialogue = kernel.schedule, self._dialogue
        now = kernel.now
        number, count = self._next, self._count
        if self._closing:
            self._reap()
        free = self._clients_free
        until = now + AHEAD_S
        while number < count:
            due = due_s[number]
            if due > now and (not free or due > until):
                schedule(due - now, self._arrive, None)
                break
            if free:
                free -= 1
                seconds = client_s[number]
                if due > now:
                    seconds += due - now
                schedule(seconds, dialogue, number)
            else:
                self._clients_waiting.append(number)
                if self._closing:
                    free_at, process = self._closing.popleft()
                    self._awaited += 1
                    kernel.schedule(free_at - now, self._free, process)
            number += 1
        self._next = number
        self._clients_free = free

    def _reap(self) -> None:
        """Count those as free who have closed meanwhile."""
        closing, now = self._closing, self._kernel.now
        while closing and closing[0][0] <= now:
            self._connections -= closing.popleft()[1] == self._process
            self._clients_free += 1

    def _think(self) -> None:
        """A user of a closed loop thinks, then sends the next message."""
        number = self._next
        self._next += 1
        self._kernel.schedule(self._think_s[number], self._thought, number)

    def _thought(self, number: int) -> None:
        self._due_s[number] = self._kernel.now
        self._begin(number)

    def _closed(self, process: int) -> None:
        """A user of a closed loop has closed."""
        self._connections -= process == self._process
        if self._next < self._count:
            self._think()

    def _begin(self, number: int) -> None:
        """A free client sends a message: its own part of the dialogue, all at once."""
        self._kernel.schedule(self._client_s[number], self._dialogue, number)

    def _settled(self, *, has_connection: bool = True) -> None:
        """A client knows what became of its message; it is free when it has closed.

        Args:
            has_connection: the server has counted its connection, which one that was turned away never was.
        """
        now = self._kernel.now
        if self.accepted + self.refused == self._count:
            self.ended_at = now
            if self.beside is not None:
                self.beside.end()
        free_at = self._loop.done_at
        if free_at < now:
            free_at = now
        free_at += self._close_s
        process = 0 if self._keeps or not has_connection else self._process
        if self._is_closed:
            self._kernel.schedule(free_at - now, self._closed, process)
        elif len(self._clients_waiting) > self._awaited:
            self._awaited += 1
            self._kernel.schedule(free_at - now, self._free, process)
        else:
            self._closing.append((free_at, process))

    def _free(self, process: int) -> None:
        """A client that is waited for is free."""
        self._awaited -= 1
        self._connections -= process == self._process
        self._begin(self._clients_waiting.popleft())

    # The server

    def _receive(self, number: int) -> None:
        """Take a whole message in."""
        first = self._first
        size = self._sizes[number]
        count = first[number + 1] - first[number]
        seconds = self._server_s[number]
        opens = not self._keeps or (
            self._opened < self._load.clients and self._has_no_connection(number)
        )
        if opens:
            seconds += self._costs.session_s
            if self._tls and in_share(self._opened, self._tls):
                seconds += self._costs.tls_s
        fill, queue, loop = self._fill, self._queue, self._loop
        if not (
            self._connections < self._few_connections
            and count <= self._few_recipients
            and size <= self._small
            and fill.envelopes < self._few_envelopes
            and fill.size_bytes < self._few_bytes
            and queue.waiting < self._few_waiting
        ):
            refusal, count = self._asked(count, size, opens)
            if refusal is NOBODY:
                self._cut_off(number)
                return
            if refusal is not None:
                # Who is refused instead of a greeting says nothing that would cost anything.
                loop.done_at += seconds if count else self._costs.session_s
                if refusal.code == 421:
                    self._turn_away(number)
                else:
                    self._connections += opens
                    self._tries.pop(number, None)
                    self.refused += 1
                    self._settled()
                return
        if opens:
            self._connections += 1
            self._opened += 1
            if self.beside is not None:
                self.beside.look()
        loop.done_at += seconds
        queue.waiting_bytes += size
        queue.put(self._message(number, size, count), loop.done_at - self._kernel.now, last=True)

    def _has_no_connection(self, number: int) -> bool:
        """Return whether the client of a message has to connect, where some have and keep what they have.

        Those who come again after 421 are among those without; others are only if there are more.
        """
        tries = self._tries
        return not tries or number in tries or self._opened + len(tries) < self._load.clients

    def _asked(self, count: int, size: int, opens: bool) -> tuple[Reply | None, int]:
        """Ask the admission rules; return the refusal, if any, and the recipients that are let in."""
        limits, queue = self._limits, self._queue
        if self._shut is not None:
            return self._shut, 0
        self._reap()
        pressure = Pressure(
            self._connections,
            self._fill.envelopes,
            self._fill.size_bytes,
            queue.waiting,
            queue.waiting_bytes,
            paused=self._paused,
            memory=self._memory,
        )
        if opens:
            refusal = on_connect(pressure, from_client=self._from_client(), limits=limits.smtp)
            if refusal is not None:
                return refusal, 0
        if self._memory >= MemoryLevel.SOFT:
            refusal = on_mail(
                pressure, declared_size=size, messages=0, limits=limits.smtp, queue=limits.queue
            )
            if refusal is not None:
                return refusal, 0
        if self._doubts_disk and not self._finds_room():
            return NO_STORAGE, count
        # The client may send the rest separately; these do not.
        count = min(count, limits.smtp.max_rcpt)
        refusal = on_message(
            pressure,
            size=size,
            recipients=count,
            received=0,
            limits=limits.smtp,
            queue=limits.queue,
        )
        return refusal, count

    def _from_client(self) -> int:
        """Return how many connections a client's address has: they come from all addresses in turn."""
        return self._connections // self._load.sources

    # Clients that send no mail

    @property
    def is_down(self) -> bool:
        """There is no process that could answer."""
        return self._shut is NOBODY

    def connect(self) -> Reply | None:
        """Count a connection of a client beside, or refuse it."""
        if self._shut is not None:
            return self._shut
        self._reap()
        pressure = Pressure(self._connections, paused=self._paused, memory=self._memory)
        refusal = on_connect(pressure, from_client=self._from_client(), limits=self._limits.smtp)
        if refusal is None:
            self._connections += 1
        return refusal

    def disconnect(self) -> None:
        """One of those is gone."""
        self._connections -= 1

    def _finds_room(self) -> bool:
        """Return whether the disk takes messages, as far as the server knows."""
        now, queue = self._kernel.now, self._queue
        if now - self._space_at >= SPACE_AGE_S:
            self._space_at = now
            self._has_space = not queue.full
        if queue.sick or not self._has_space:
            return False
        if not queue.full:
            self._doubts_disk = False
            self.limits_changed()
        return True

    def not_kept(self, message: Message) -> None:
        """The commit of a message failed: its client hears 452."""
        self.refused += 1
        self._queue.waiting_bytes -= message.transaction.size
        self._settled()

    def _turn_away(self, number: int) -> None:
        """The client heard 421: it comes again a little later, a few times."""
        self.turned_away += 1
        self._try_again(number)

    def _cut_off(self, number: int) -> None:
        """The client found nobody, or lost its connection: it does the same."""
        self.broken += 1
        self._try_again(number)

    def _try_again(self, number: int) -> None:
        tries = self._tries.pop(number, 1)
        if tries < self._tries_max:
            self._tries[number] = tries + 1
            self._kernel.schedule(RETRY_WAIT_S, self._begin, number)
            return
        self.refused += 1
        self._settled(has_connection=False)

    def _message(self, number: int, size: int, count: int) -> Message:
        first = self._first[number]
        domains, domain_of, mailbox = self._domains, self._domain_of, self._mailbox
        if count == 1:
            where = domain_of[first]
            domain = domains[where]
            recipients: tuple[Recipient, ...]
            if self._has_local and (user := self._users[where]):
                recipients = (local_recipient(user, mailbox[first], domain),)
            else:
                recipients = (plain_recipient(f"user{mailbox[first]}@{domain}", domain),)
        else:
            recipients = tuple(
                [
                    plain_recipient(
                        f"user{mailbox[i]}@{domains[domain_of[i]]}", domains[domain_of[i]]
                    )
                    for i in range(first, first + count)
                ]
            )
        transaction = plain_transaction(
            f"sender{self._senders[number]}@{self._sender_domain}", size
        )
        return Message(self._due_s[number], transaction, recipients, None, number)

    def durable(self, message: Message) -> None:
        """The commit of a message is done, and the core was told: answer its client."""
        if self._tries:
            self._tries.pop(message.number, None)
        self.accepted += 1
        self.accepted_envelopes += len(message.recipients)
        self._queue.waiting_bytes -= message.transaction.size
        self.latency_s.append(self._loop.done_at - message.due_s)
        self._settled()
