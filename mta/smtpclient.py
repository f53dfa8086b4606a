"""The client's half of SMTP, without sockets and without a clock.

`ClientSession` is told what arrived and what time it is; it answers with events, with bytes to send
and with the instant at which its patience ends. Its rule: a message is delivered only when the
whole 2xx line that answers the final dot was read. Whatever a host says beside the protocol costs
that host its connection, never anybody's mail: recipients without a verdict fail temporarily.

Sources: RFC 5321 (SMTP), 3207 (STARTTLS), 4954 (AUTH), 2920 (PIPELINING), 1870 (SIZE), 6152 (8BITMIME), 6531 (SMTPUTF8), 3461
(DSN); OpenSMTPD mta_session.c for what is local failure and for the words.
"""

import re
from collections.abc import Sequence

from mta.core.address import mailbox_key
from mta.core.envelopes.base import MtaEnvelope
from mta.core.reply import Outcome
from mta.esmtp import Extensions
from mta.smtpgreeting import BEFORE_READY, Greeting
from mta.smtphello import CLEAR, Hello
from mta.smtpreply import ReplyReader, status_line
from mta.smtpstates import (
    Closed,
    Event,
    Failed,
    Ready,
    StartTls,
    State,
    Timeouts,
    TransactionResult,
)

CHUNK_BYTES = 256 * 1024
"""Most that `ClientSession.data_to_send` gives at once."""

CLOSED_BY_PEER = "Connection closed unexpectedly"
"""OpenSMTPD mta_session.c, IO_DISCONNECTED."""
TIMED_OUT = "Connection timeout"
"""OpenSMTPD mta_session.c, IO_TIMEOUT."""
TOO_MUCH_DATA = "Remote host sent too much data"
TOO_MANY_ERRORS = "Too many consecutive errors, closing connection"
_RCPT_CHARS = len("RCPT TO:<>")
_BARE_LINE_END = re.compile(rb"\r\n|\r|\n")


class ClientSession:
    """One SMTP connection as its client sees it. Sans-I/O.

    Call `receive`, `eof` or `lost`, and `timer` when things happen; act on the events that they
    return; then send what `data_to_send` gives until it gives nothing, and call `timer` when
    `deadline` has passed. `now` is any clock in seconds that does not go back.
    """

    __slots__ = (
        "_accepted",
        "_active",
        "_at",
        "_body",
        "_body_at",
        "_commands",
        "_dots",
        "_events",
        "_failures",
        "_greeting",
        "_lines",
        "_lmtp",
        "_mail_refused",
        "_max_failures",
        "_out",
        "_pipelining",
        "_quit_asked",
        "_reader",
        "_results",
        "_timeouts",
        "_transaction_deadline",
        "_twins",
        "deadline",
        "extensions",
        "messages",
        "state",
    )

    def __init__(
        self,
        hostname: str,
        *,
        now: float,
        pipelining: bool = True,
        timeouts: Timeouts | None = None,
        max_failures: int = 25,
        lmtp: bool = False,
        hello: Hello = CLEAR,
    ) -> None:
        """Begin to wait for the greeting, or for `secured` if TLS comes first.

        Args:
            hostname: our name, for EHLO.
            now: the time.
            pipelining: use PIPELINING if the peer offers it.
            timeouts: longest waits; the RFC's if None.
            max_failures: consecutive refused recipients after which the session is given up
                (OpenSMTPD ``max-failures-per-session``).
            lmtp: speak LMTP (RFC 2033): LHLO, and after the dot a reply for each accepted recipient.
            hello: what is to happen between greeting and first transaction: TLS, AUTH.
        """
        self._greeting = Greeting(hostname, hello, lmtp=lmtp)
        self.state = self._greeting.state
        self.extensions = Extensions()
        self.messages = 0
        """Messages that the peer took."""
        self._pipelining = pipelining
        self._timeouts = timeouts or Timeouts()
        self._max_failures = max_failures
        self._lmtp = lmtp
        self._dots = 0
        self.deadline: float | None = now + self._timeouts.banner
        """When `timer` is to be called; None while nothing is expected."""
        self._reader = ReplyReader()
        self._events: list[Event] = []
        self._out = b""
        self._body = b""
        self._body_at = 0
        self._lines: list[bytes] = []
        self._failures = 0
        self._quit_asked = False
        self._results: list[tuple[Outcome, str] | None] = []
        self._twins: list[tuple[int, int]] = []
        """(envelope, earlier one with the same RCPT), by their numbers."""
        self._active: list[int] = []
        self._accepted: list[int] = []
        self._commands: list[str] = []
        self._at = 0
        self._mail_refused = False
        self._transaction_deadline = 0.0

    @property
    def closed(self) -> bool:
        """The last event was returned."""
        return self.state is State.CLOSED

    # What the caller asks for.

    def start(self, envelopes: Sequence[MtaEnvelope], body: bytes, now: float) -> list[Event]:
        """Begin one transaction: one message for some recipients, who share sender and options.

        What this peer cannot take is refused here, before MAIL; if nobody is left, the result is
        returned at once. Envelopes that came to the same address (two aliases, one target) are one RCPT, and its
        verdict is that of all: a host that takes both would deliver twice. With parameters of their own
        (RFC 3461: each asks for its own report) they stay apart. ``body`` is header and body with CRLF line ends, not dot-stuffed.
        """
        assert self.state is State.READY, self.state
        assert envelopes, "a transaction has recipients"
        self._events = []
        first = envelopes[0]
        extensions = self.extensions
        refusal = extensions.refusal(first.sender, first.options, body)
        self._results = [None] * len(envelopes)
        self._active = []
        self._commands = []
        self._twins = []
        several = len(envelopes) > 1
        said: dict[tuple[str, str], int] = {}
        for number, envelope in enumerate(envelopes):
            why_not = refusal or extensions.recipient_refusal(envelope.rcpt)
            if why_not is None:
                command = extensions.rcpt_command(envelope)
                if several:
                    # What stands behind the address in the command are its parameters.
                    key = (mailbox_key(envelope.rcpt), command[len(envelope.rcpt) + _RCPT_CHARS :])
                    twin = said.setdefault(key, number)
                    if twin != number:
                        self._twins.append((number, twin))
                        continue
                self._active.append(number)
                self._commands.append(command)
            else:
                self._results[number] = (Outcome.PERMFAIL, why_not)
        if not self._active:
            return [TransactionResult(self._verdicts(""), usable=True)]
        self._accepted = []
        self._at = 0
        self._dots = 0
        self._mail_refused = False
        self._body = body
        mail = extensions.mail_command(envelopes, len(body))
        if extensions.pipelining and self._pipelining:
            # RFC 2920: one round trip for the whole envelope. DATA has to be the last of the group.
            self._out = f"{mail}{''.join(self._commands)}DATA\r\n".encode()
            self._commands.clear()
        else:
            self._out = mail.encode()
        self._transaction_deadline = now + self._timeouts.transaction
        self._wait(State.MAIL, now + self._timeouts.mail)
        return []

    def quit(self, now: float) -> None:
        """Say QUIT, after the transaction if one is running; `Closed` follows. Idempotent.

        Before the session is ready, it becomes ready first.
        """
        if self.state is State.READY:
            self._say_quit(now)
        else:
            self._quit_asked = True

    def data_to_send(self, now: float) -> bytes:
        """Return the next bytes for the peer, at most about `CHUNK_BYTES`, or none.

        Call it again when the transport has room.
        """
        out = self._out
        if out:
            self._out = b""
            return out
        if self.state is not State.DOT or self._body_at >= len(self._body):
            return b""
        chunk = self._body[self._body_at : self._body_at + CHUNK_BYTES]
        self._body_at += CHUNK_BYTES
        if self._body_at >= len(self._body):
            self._body = b""
            self._body_at = 0
            self._wait(State.DOT, now + self._timeouts.dot)
        else:
            self._wait(State.DOT, now + self._timeouts.block)
        return chunk

    # What happens.

    def secured(self, now: float) -> None:
        """The handshake that `StartTls` or ``hello.implicit`` asked for is done.

        What the peer said before it counts for nothing (RFC 3207 4.2).
        """
        self._greeting.secured()
        self.extensions = self._greeting.extensions
        self._say_greeting(now)

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take bytes from the peer and return what they mean."""
        if self.state is State.CLOSED:
            return []
        events: list[Event] = []
        self._events = events
        reader = self._reader
        reader.feed(data)
        while not self.closed and (line := reader.next_line()) is not None:
            if self._out:
                # An answer to what we did not say yet. Nothing that follows can be matched.
                self._break_off(TOO_MUCH_DATA)
                break
            if self.state is State.EHLO:
                self._lines.append(line)
            if reader.code:
                self._answer(reader.code, now)
            elif reader.error:
                break
        if self.state is State.TLS and reader.pending:
            # Whoever sends in clear what belongs behind the handshake wants it taken for something
            # that was said in secret (CVE-2011-0411 and its kin).
            self._break_off(TOO_MUCH_DATA)
        if not self.closed:
            if reader.error:
                self._break_off(f"Bad response: {reader.error}")
            elif self._out and reader.pending:
                self._break_off(TOO_MUCH_DATA)
        return events

    def eof(self, now: float) -> list[Event]:
        """The peer closed its side."""
        return self.lost(CLOSED_BY_PEER, now)

    def lost(self, reason: str, now: float) -> list[Event]:
        """The connection is gone, or is about to be: return the last events."""
        del now  # the same for every event
        if self.closed:
            return []
        events: list[Event] = []
        self._events = events
        self._break_off(reason)
        return events

    def timer(self, now: float) -> list[Event]:
        """Return the last events if the deadline has passed, else nothing."""
        if self.deadline is None or now < self.deadline:
            return []
        return self.lost(TIMED_OUT, now)

    # Replies.

    def _answer(self, code: int, now: float) -> None:
        """Act on one complete reply."""
        state = self.state
        if code == 421 and state is not State.QUIT:
            # RFC 5321 3.8: it may come in answer to anything, and the channel closes after it.
            self._break_off(self._status(), told=True)
            return
        if state in BEFORE_READY and state is not State.TLS:
            self._answer_greeting(code, now)
            return
        match state:
            case State.MAIL:
                self._answer_mail(code, now)
            case State.RCPT:
                self._answer_rcpt(code, now)
            case State.DATA:
                self._answer_data(code, now)
            case State.DOT:
                self._answer_dot(code, now)
            case State.LONE_DOT:
                self._end_transaction(now, usable=code // 100 != 3)
            case State.RSET:
                self._end_transaction(now, usable=code // 100 == 2)
            case State.QUIT:
                self._close("quit")
            case _:
                self._break_off(TOO_MUCH_DATA)

    def _answer_greeting(self, code: int, now: float) -> None:
        """Go on towards the first transaction, as `Greeting` says."""
        greeting = self._greeting
        lines = [line[4:] for line in self._lines] or [self._reader.text]
        self._lines = []
        greeting.answer(code, self._status(), lines)
        if greeting.failure:
            self._break_off(greeting.failure)
            return
        self.extensions = greeting.extensions
        if greeting.state is State.READY:
            self._events.append(Ready(self.extensions))
            self._become_ready(now)
            return
        if greeting.state is State.TLS:
            self._events.append(StartTls())
        self._say_greeting(now)

    def _say_greeting(self, now: float) -> None:
        greeting = self._greeting
        self._out, greeting.out = greeting.out, b""
        waits = self._timeouts
        patience = waits.banner if greeting.state is State.BANNER else waits.hello
        self._wait(greeting.state, now + patience)

    def _answer_mail(self, code: int, now: float) -> None:
        if code // 100 == 3:
            self._break_off(self._status(), told=True)
            return
        if code // 100 != 2:
            self._mail_refused = True
            verdict = (_outcome(code), self._status())
            for number in self._active:
                self._results[number] = verdict
            if not self._pipelined:
                self._end_transaction(now, usable=True)
                return
        self._wait(State.RCPT, now + self._timeouts.rcpt)
        if not self._pipelined:
            self._out = self._commands[0].encode()

    def _answer_rcpt(self, code: int, now: float) -> None:
        first = code // 100
        if first == 3:
            self._break_off(self._status(), told=True)
            return
        number = self._active[self._at]
        self._at += 1
        if not self._mail_refused:
            if first == 2:
                self._failures = 0
                self._accepted.append(number)
            else:
                self._failures += 1
                self._results[number] = (_outcome(code), self._status())
        left = self._at < len(self._active)
        if self._pipelined:
            if left:
                self._wait(State.RCPT, now + self._timeouts.rcpt)
            else:
                self._wait(State.DATA, now + self._timeouts.data)
        elif left and self._failures < self._max_failures:
            self._out = self._commands[self._at].encode()
            self._wait(State.RCPT, now + self._timeouts.rcpt)
        else:
            for number in self._active[self._at :]:
                self._results[number] = (Outcome.TEMPFAIL, TOO_MANY_ERRORS)
            if self._accepted:
                self._out = b"DATA\r\n"
                self._wait(State.DATA, now + self._timeouts.data)
            else:
                self._reset(now)

    def _answer_data(self, code: int, now: float) -> None:
        first = code // 100
        if first == 3 and self._accepted:
            self._body = end_of_data(self._body)
            self._body_at = 0
            self._wait(State.DOT, now + self._timeouts.block)
        elif first == 3:
            # The host wants a message that nobody gets: RFC 2920 3.1 says to send an empty one.
            self._body = b""
            self._out = b".\r\n"
            self._wait(State.LONE_DOT, now + self._timeouts.dot)
        elif first == 2:
            # Does it wait for the message or not? Nobody can know; the next line would be a guess.
            self._break_off(self._status(), told=True)
        else:
            verdict = (_outcome(code), self._status())
            for number in self._accepted:
                self._results[number] = verdict
            self._reset(now)

    def _answer_dot(self, code: int, now: float) -> None:
        first = code // 100
        if self._body and first in (2, 3):
            # It cannot take responsibility for what it has not got yet.
            self._break_off(TOO_MUCH_DATA)
            return
        verdict = (_outcome(code), self._status())
        if self._lmtp:
            # RFC 2033 4.2: one reply per accepted recipient, in the order of their RCPT.
            self._results[self._accepted[self._dots]] = verdict
            self._dots += 1
        else:
            for number in self._accepted:
                self._results[number] = verdict
        if self._body or first == 3:
            # Refused in the middle of the message: the rest would be read as commands.
            self._break_off(verdict[1], told=True)
            return
        if self._lmtp and self._dots < len(self._accepted):
            self._wait(State.DOT, now + self._timeouts.dot)
            return
        if first == 2:
            self.messages += 1
        self._end_transaction(now, usable=True)

    # Transitions.

    @property
    def _pipelined(self) -> bool:
        return not self._commands

    def _wait(self, state: State, deadline: float) -> None:
        self.state = state
        if state not in BEFORE_READY and deadline > self._transaction_deadline:
            deadline = self._transaction_deadline
        self.deadline = deadline

    def _status(self) -> str:
        return status_line(self._reader.code, self._reader.text)

    def _reset(self, now: float) -> None:
        """Clear the transaction that the host still has open, before the result is told."""
        self._out = b"RSET\r\n"
        self._wait(State.RSET, now + self._timeouts.reset)

    def _say_quit(self, now: float) -> None:
        self._out = b"QUIT\r\n"
        self.state = State.QUIT
        self.deadline = now + self._timeouts.quit

    def _become_ready(self, now: float) -> None:
        self.state = State.READY
        self.deadline = None
        if self._quit_asked:
            self._say_quit(now)

    def _end_transaction(self, now: float, *, usable: bool) -> None:
        usable = usable and self._failures < self._max_failures and not self._quit_asked
        self._events.append(TransactionResult(self._verdicts(""), usable))
        self._body = b""
        if not usable:
            self._quit_asked = True
        self._become_ready(now)

    def _verdicts(self, reason: str) -> tuple[tuple[Outcome, str], ...]:
        """Return what is known of each envelope; the others fail temporarily with ``reason``."""
        unknown = (Outcome.TEMPFAIL, reason)
        for number, twin in self._twins:
            self._results[number] = self._results[twin]
        return tuple([result or unknown for result in self._results])

    def _break_off(self, reason: str, *, told: bool = False) -> None:
        """End the session now. ``told``: the host said so itself, so its verdict is known."""
        state = self.state
        if state in BEFORE_READY:
            self._events.append(Failed(reason))
            self.state = State.CLOSED
            self.deadline = None
            self._out = b""
            return
        if state not in (State.READY, State.QUIT):
            ambiguous = state is State.DOT and not self._body and not told
            text = f"{reason} after the final dot" if ambiguous else reason
            self._events.append(TransactionResult(self._verdicts(text), False, ambiguous))
        self._close(reason)

    def _close(self, reason: str) -> None:
        self._events.append(Closed(reason))
        self.state = State.CLOSED
        self.deadline = None
        self._out = self._body = b""


def end_of_data(body: bytes) -> bytes:
    """Return a message as it goes over the wire: dot-stuffed, with the final dot (RFC 5321 4.5.2).

    A CR or LF that stands alone becomes CRLF: the queue should hold none, but one that went out
    could end the message early for the next host (SMTP smuggling).
    """
    ends = body.count(b"\r\n")
    if body.count(b"\n") != ends or body.count(b"\r") != ends:
        body = _BARE_LINE_END.sub(b"\r\n", body)
    if b"\r\n." in body:
        body = body.replace(b"\r\n.", b"\r\n..")
    if body.startswith(b"."):
        body = b"." + body
    return body + (b".\r\n" if body.endswith(b"\r\n") or not body else b"\r\n.\r\n")


def _outcome(code: int) -> Outcome:
    first = code // 100
    if first == 2:
        return Outcome.OK
    return Outcome.PERMFAIL if first == 5 else Outcome.TEMPFAIL
