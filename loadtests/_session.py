"""An SMTP client that times every verb: no retries, no threads, no opinion about what is expected.

smtplib would do, but knows no pipelining, looks up the host's name when it is made, scans every body for line ends, and
tells nobody how long a verb took. Replies are bounded in lines, bytes and time, since the server is
the one that is being tested.
"""

import base64
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

from loadtests._dialogue import (
    GROUP_MAX,
    Attempt,
    Command,
    Greeted,
    Message,
    ProtocolError,
    Replies,
    Reply,
    Step,
    check,
    describe,
    envelope,
    offers,
)
from loadtests._wire import Wire

Observe: TypeAlias = Callable[[str, float, Reply | None, Exception | None], None]
"""Told (verb, seconds, reply, error) of each verb; exactly one of the last two is None."""


class Wants(NamedTuple):
    """What one connection shall be like."""

    source: str = ""
    """Address to come from; empty for the system's choice."""
    tls: bool = False
    login: tuple[str, str] | None = None
    """User and password of AUTH PLAIN."""


def _any_certificate() -> ssl.SSLContext:
    """Return a context that trusts everybody: the server is on this machine, and its name is of no zone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


_TLS: Final = _any_certificate()


class Session:
    """One connection at a time to one server, opened when a message needs it.

    Used by one greenlet. After any error, and when the server says 421, the connection is closed and the next message
    opens another.
    """

    def __init__(
        self,
        address: tuple[str, int],
        *,
        helo: str,
        timeout_s: float,
        observe: Observe,
        pipelining: bool = True,
        wants: Callable[[], Wants] = Wants,
    ) -> None:
        """Remember where to connect to; nothing is opened yet.

        Args:
            address: Address in figures, and port.
            helo: What to say with EHLO.
            timeout_s: Longest wait for the connection, and for the replies to each group of commands.
            observe: Told of each verb; it must not raise.
            pipelining: Whether to use it where it is offered.
            wants: Asked for each connection.
        """
        self._address = address
        self._hello = Command("EHLO", b"EHLO %b\r\n" % helo.encode("ascii"))
        self._timeout_s = timeout_s
        self._observe = observe
        self._may_pipeline = pipelining
        self._wants = wants
        self._wire: Wire | None = None
        self._replies = Replies()
        self._goodbye: Reply | None = None
        """A 421 that came unasked: the answer to whatever is said next (RFC 5321 3.8)."""
        self._verb = "CONNECT"
        self._offers = Greeted()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that the next message would use."""
        return self._wire is not None

    @property
    def verb(self) -> str:
        """The last verb said."""
        return self._verb

    def close(self) -> None:
        """Close the connection without a word. Idempotent."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    def quit(self) -> None:
        """Say QUIT and close; whatever happens then is nobody's loss."""
        if self._wire is None:
            return
        try:
            self._say(Command("QUIT", b"QUIT\r\n"))
        except (OSError, ProtocolError):
            # It is over either way, and it was observed.
            pass
        finally:
            self.close()

    def send(
        self, sender: str, recipients: Sequence[str], message: Message, *, bdat: bool = False
    ) -> Attempt:
        """Try once to send a message, over a new connection if there is none.

        Args:
            sender: Reverse-path without brackets.
            recipients: Forward-paths without brackets; at least one.
            message: What to send.
            bdat: Whether to use BDAT where CHUNKING is offered.
        """
        accepted: list[str] = []
        refused: list[tuple[str, int, str]] = []
        try:
            opened = self._open()
            if opened.code // 100 != 2:
                self.close()
                return Attempt(self._verb, *opened, (), (), unsure=False)
            bdat = bdat and self._offers.chunking
            size = message.size if self._offers.size else None
            commands = envelope(sender, recipients, size, data=not bdat)
            stopped = self._say_envelope(commands, recipients, accepted, refused)
            if stopped is not None:
                verb, reply = stopped
                attempt = Attempt(verb, *reply, (), tuple(refused), unsure=False)
                return self._abandoned(attempt)
            reply = self._say_message(message, bdat=bdat)
            if reply.code == 421:
                self.close()
            taken = tuple(accepted) if reply.code // 100 == 2 else ()
            return Attempt(self._verb, *reply, taken, tuple(refused), unsure=False)
        except (OSError, ProtocolError) as error:
            self.close()
            unsure = self._verb in (".", "BDAT") and bool(accepted)
            return Attempt(self._verb, 0, describe(error), (), tuple(refused), unsure)
        except BaseException:
            # Stopped in the middle: what is on this connection is nobody's business any more.
            self.close()
            raise

    def _say_envelope(
        self,
        commands: Sequence[Command],
        recipients: Sequence[str],
        accepted: list[str],
        refused: list[tuple[str, int, str]],
    ) -> tuple[str, Reply] | None:
        """Say MAIL to DATA; return what ended the transaction, or None if the message is wanted.

        What is answered to commands that went along with one that failed is a consequence: only the failure counts.
        """
        width = GROUP_MAX if self._offers.pipelining and self._may_pipeline else 1
        failed: tuple[str, Reply] | None = None
        refusal: tuple[str, Reply] | None = None
        said = 0
        while said < len(commands):
            group = commands[said : said + width]
            if failed or (group[0].verb == "DATA" and not accepted):
                break
            for verb, reply, seconds in self._exchange(group):
                said += 1
                if verb == "DATA" and reply.code == 354 and (failed or not accepted):
                    # It goes on as if there were a message: an empty one ends that (RFC 2920 3.1).
                    self._say(Command(".", b".\r\n"), counts=False)
                elif failed and reply.code != 421:
                    continue
                elif verb == "DATA" and not accepted:
                    break
                else:
                    self._observe(verb, seconds, reply, None)
                    if verb == "RCPT":
                        recipient = recipients[said - 2]
                        if reply.code // 100 == 2:
                            accepted.append(recipient)
                        else:
                            refused.append((recipient, *reply))
                            refusal = verb, reply
                    elif reply.code // 100 not in (2, 3):
                        failed = verb, reply
                    if reply.code == 421:
                        self._verb = verb
                        self.close()
                        return verb, reply
        if failed is None and not accepted:
            failed = refusal
        if failed is not None:
            self._verb = failed[0]
        return failed

    def _say_message(self, message: Message, *, bdat: bool) -> Reply:
        if not bdat:
            return self._ask(".", message.stuffed)
        plain = message.plain()
        return self._ask("BDAT", (b"BDAT %d LAST\r\n" % len(plain), plain))

    def _abandoned(self, attempt: Attempt) -> Attempt:
        """Make the connection fit for the next message after a refusal."""
        if self._wire is not None:
            try:
                self._say(Command("RSET", b"RSET\r\n"))
            except (OSError, ProtocolError):
                # The refusal stands; only the connection is gone.
                self.close()
        return attempt

    def _open(self) -> Reply:
        """Return the last reply of the opening: 250, or the one that refused; open already counts as 250."""
        if self._wire is not None:
            return Reply(250, "")
        wants = self._wants()
        self._verb = "CONNECT"
        started = time.perf_counter()
        try:
            deadline = started + self._timeout_s
            self._wire = Wire(self._address, deadline=deadline, source=wants.source)
            self._replies, self._goodbye = Replies(), None
            [greeting] = self._read(("CONNECT",), started, [])
        except (OSError, ProtocolError) as error:
            self._observe("CONNECT", time.perf_counter() - started, None, error)
            raise
        self._observe("CONNECT", greeting.seconds, greeting.reply, None)
        if greeting.reply.code != 220:
            return greeting.reply
        reply = self._hail()
        # Many servers offer AUTH only in TLS (RFC 4954 4 leaves it to them).
        hidden = wants.login and self._offers.starttls and not self._offers.auth_plain
        if (wants.tls or hidden) and reply.code == 250:
            reply = self._start_tls()
        if wants.login and reply.code == 250:
            reply = self._log_in(*wants.login)
        return reply

    def _hail(self) -> Reply:
        reply = self._say(self._hello)
        self._offers = offers(reply.text)
        return reply

    def _start_tls(self) -> Reply:
        self._verb = "STARTTLS"
        if not self._offers.starttls:
            self._missing("STARTTLS is not offered")
        reply = self._say(Command("STARTTLS", b"STARTTLS\r\n"))
        if reply.code != 220:
            return reply
        if self._goodbye is not None:
            return self._goodbye
        assert self._wire is not None
        self._verb = "TLS"
        started = time.perf_counter()
        try:
            self._wire.secure(_TLS, deadline=started + self._timeout_s)
        except OSError as error:
            self._observe("TLS", time.perf_counter() - started, None, error)
            raise
        self._observe("TLS", time.perf_counter() - started, Reply(220, ""), None)
        return self._hail()

    def _log_in(self, user: str, password: str) -> Reply:
        self._verb = "AUTH"
        if not self._offers.auth_plain:
            self._missing("AUTH PLAIN is not offered")
        secret = base64.b64encode(f"\0{user}\0{password}".encode())
        return self._say(Command("AUTH", b"AUTH PLAIN %b\r\n" % secret))

    def _missing(self, problem: str) -> None:
        error = ProtocolError(problem)
        self._observe(self._verb, 0.0, None, error)
        raise error

    def _say(self, command: Command, *, counts: bool = True) -> Reply:
        return self._ask(command.verb, (command.line,), counts=counts)

    def _ask(
        self, verb: str, pieces: Sequence[bytes | memoryview], *, counts: bool = True
    ) -> Reply:
        """Write something and return the one reply to it."""
        assert self._wire is not None, verb
        self._verb = verb
        started = time.perf_counter()
        try:
            self._write(pieces, started)
            [step] = self._read((verb,), started, [])
        except (OSError, ProtocolError) as error:
            self._observe(verb, time.perf_counter() - started, None, error)
            raise
        if counts:
            self._observe(verb, step.seconds, step.reply, None)
        return step.reply

    def _exchange(self, group: Sequence[Command]) -> list[Step]:
        """Send commands together and return their replies; a 421 is the last one."""
        assert self._wire is not None
        self._verb = group[0].verb
        started = time.perf_counter()
        steps: list[Step] = []
        try:
            pieces = (b"".join([command.line for command in group]),)
            self._write(pieces, started)
            return self._read([command.verb for command in group], started, steps)
        except (OSError, ProtocolError) as error:
            for step in steps:
                self._observe(step.verb, step.seconds, step.reply, None)
            self._observe(self._verb, time.perf_counter() - started, None, error)
            raise

    def _write(self, pieces: Sequence[bytes | memoryview], started: float) -> None:
        """Write, unless nobody listens any more."""
        assert self._wire is not None
        if self._goodbye is None:
            self._wire.send(pieces, deadline=started + self._timeout_s)

    def _read(self, verbs: Sequence[str], started: float, steps: list[Step]) -> list[Step]:
        """Add a step for each verb; `verb` is the one that is waited for meanwhile."""
        assert self._wire is not None
        if self._goodbye is not None:
            steps.append(Step(verbs[0], self._goodbye, time.perf_counter() - started))
            return steps
        deadline = started + self._timeout_s
        while True:
            data = self._wire.receive(deadline=deadline)
            if not data:
                raise ProtocolError("connection closed")
            seconds = time.perf_counter() - started
            for reply in self._replies.feed(data):
                if len(steps) == len(verbs):
                    if reply.code != 421 or self._goodbye is not None:
                        raise ProtocolError("more than one reply")
                    self._goodbye = reply
                    continue
                verb = verbs[len(steps)]
                check(verb, reply)
                steps.append(Step(verb, reply, seconds))
                if reply.code == 421:
                    return steps
                if len(steps) < len(verbs):
                    self._verb = verbs[len(steps)]
            if len(steps) == len(verbs):
                if not self._replies.is_empty:
                    raise ProtocolError("more than one reply")
                return steps
