"""Clients that send no mail that counts: slow ones, and ones that break the rules.

How many of each there are is in the scenario (``[[load.beside]]``); or they are named on the command line. They have
one connection at a time until every message of the schedule is sent. A connection counts when the server ends it, or
the client does: the time is how long it lasted, the name what the server said last (``slow-body 421 4.4.2``, or ``lost``
for nothing at all; no code if it was content). Nothing that a server does to them is a failure.
"""

import time
from collections.abc import Iterator
from typing import ClassVar, Final

import gevent
from locust import User, task
from locust.exception import StopUser

from loadtests import _hooks
from loadtests._dialogue import ProtocolError, Replies, Reply
from loadtests._hooks import HELO, Run
from loadtests._outcomes import enhanced_of, name_of
from loadtests._wire import Wire
from sim.clients import ClientGroup, Kind

LINES: Final = (b"EHLO %b\r\n" % HELO.encode(), b"MAIL FROM:<slow@client.test>\r\n")
GARBAGE: Final = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n",  # TLS where there is none
    b"GET / HTTP/1.1\r\n",
    b"\xff\xfe\x00\x80\r\n",
    b"MAIL FROM:<a@b.test\r\n",
    b"X" * 4096 + b"\r\n",
    b"\r\n",
    b"RCPT\tTO:<>\n",
)
"""Lines that are no commands, one after the other."""

LINE_S: Final = 3600.0
"""Longest life of a connection; servers that wait longer than an hour are not measured."""


class _RudeUser(User):
    """One client of a kind."""

    abstract = True
    kind: ClassVar[Kind]

    def on_start(self) -> None:
        """Join the run, with what the scenario says of this kind."""
        run = _hooks.current_run()
        self._turn = 0
        self._stands_by = run is None  # it could not begin
        if run is not None:
            self._run: Run = run
            self._group = run.beside.get(self.kind) or ClientGroup(self.kind)

    @task
    def connection(self) -> None:
        """Have one connection, from its opening to its end."""
        if self._stands_by or self._run.player.finished.is_set():
            raise StopUser
        run = self._run
        self._replies = Replies()
        self._last = Reply(0, "")
        started = time.perf_counter()
        wire = None
        try:
            wire = Wire(
                run.settings.address,
                deadline=started + run.settings.timeout_s,
                source=run.wants().source,
            )
            self._converse(wire)
        except (OSError, ProtocolError):
            pass  # what it said last is what counts
        finally:
            if wire is not None:
                wire.close()
            run.tally.add(self._name(), time.perf_counter() - started)
            self._turn += 1
        gevent.sleep(self._group.pause_s)

    def _name(self) -> str:
        name = name_of(self.kind, self._last.code)
        return name if name == self.kind else f"{name} {enhanced_of(self._last.text)}".rstrip()

    def _converse(self, wire: Wire) -> None:
        raise NotImplementedError

    def _listen(self, wire: Wire, seconds: float) -> bool:
        """Read replies for so long; return whether the connection still stands."""
        deadline = time.perf_counter() + seconds
        while True:
            try:
                data = wire.receive(deadline=deadline)
            except TimeoutError:
                return True
            if not data:
                return False
            for reply in self._replies.feed(data):
                self._last = reply

    def _await(self, wire: Wire) -> bool:
        """Wait for one piece of reply; return whether there was one."""
        data = wire.receive(deadline=time.perf_counter() + self._run.settings.timeout_s)
        for reply in self._replies.feed(data):
            self._last = reply
        return bool(data)

    def _say(self, wire: Wire, line: bytes) -> None:
        wire.send((line,), deadline=time.perf_counter() + self._run.settings.timeout_s)

    def _drip(self, wire: Wire, octets: Iterator[int]) -> None:
        """Write a byte at a time until the server has had enough."""
        for octet in octets:
            self._say(wire, bytes((octet,)))
            if not self._listen(wire, 1 / self._group.bytes_per_s):
                return


def _for_ever(lines: tuple[bytes, ...]) -> Iterator[int]:
    while True:
        for line in lines:
            yield from line


class SlowCommands(_RudeUser):
    """Says its commands a byte at a time: slowloris."""

    kind = "slow-commands"

    def _converse(self, wire: Wire) -> None:
        if self._await(wire):
            self._drip(wire, _for_ever((LINES[0], LINES[1], b"RSET\r\n")))


class SlowBody(_RudeUser):
    """Gets as far as DATA, then sends a byte at a time and never ends."""

    kind = "slow-body"

    def _converse(self, wire: Wire) -> None:
        address = self._run.recipient.encode("ascii")
        for line in (*LINES, b"RCPT TO:<%b>\r\n" % address, b"DATA\r\n"):
            if not self._await(wire):
                return
            self._say(wire, line)
        if self._await(wire) and self._last.code == 354:
            self._drip(wire, _for_ever((b"X-Slow: " + b"x" * 60 + b"\r\n",)))


class Idle(_RudeUser):
    """Connects and says nothing."""

    kind = "idle"

    def _converse(self, wire: Wire) -> None:
        self._listen(wire, LINE_S)


class Garbage(_RudeUser):
    """Says what is no command, until it is thrown out."""

    kind = "garbage"

    def _converse(self, wire: Wire) -> None:
        if not self._await(wire):
            return
        while True:
            for line in GARBAGE:
                self._say(wire, line)
                if not self._listen(wire, max(self._group.pause_s, 0.001)):
                    return


class HangUp(_RudeUser):
    """Leaves without QUIT, each time one verb later: before the greeting, after it, in the middle of the message."""

    kind = "hang-up"

    def _converse(self, wire: Wire) -> None:
        address = self._run.recipient.encode("ascii")
        lines = (*LINES, b"RCPT TO:<%b>\r\n" % address, b"DATA\r\n", b"Subject: half a mess")
        for line in lines[: self._turn % (len(lines) + 1)]:
            if not self._await(wire):
                return
            self._say(wire, line)


class EarlyTalker(_RudeUser):
    """Says everything in one write before the greeting, the message before a 354 asks for it."""

    kind = "early-talker"

    def _converse(self, wire: Wire) -> None:
        body = b"Subject: early\r\n\r\nearly\r\n.\r\nQUIT\r\n"
        # To nobody, so that no message comes of it that the ledger would not know.
        self._say(wire, b"".join((*LINES, b"RCPT TO:<>\r\nDATA\r\n", body)))
        self._listen(wire, self._run.settings.timeout_s)


class Noop(_RudeUser):
    """Says NOOP without an end."""

    kind = "noop"

    def _converse(self, wire: Wire) -> None:
        while self._await(wire):
            if self._last.code == 421:
                return
            gevent.sleep(self._group.pause_s)
            self._say(wire, b"NOOP\r\n")
