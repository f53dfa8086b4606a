"""Input becomes commands, and each is obeyed: the half of an inbound session between its transport and its verbs.

Commands are cut out of what `mta.inbound_connection` reads, and obeyed one by one without suspending; their
replies go out in one write when no complete command is left (RFC 2920). Input behind a command that must be
the last of its group comes from a client that doesn't listen: it is told 554 5.5.0 and sent away, as Postfix
3.9 does (``smtpd_forbid_unauth_pipelining``). It may be a web browser or a smuggler; it is no mail client.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Final

from mta.core import admission
from mta.core.reply import Reply
from mta.core.sasl import TOO_LONG as AUTH_TOO_LONG
from mta.inbound_connection import Connection
from mta.inbound_data import BARE
from mta.inbound_door import PLAIN, Door, Listener
from mta.inbound_log import line_for_log
from mta.inbound_phase import WAITING, Phase
from mta.queue.base import QueueUnavailableError

OUT_OF_STEP: Final = Reply(554, "5.5.0", "SMTP protocol synchronization")
BDAT: Final = re.compile(rb"BDAT +([0-9]{1,20})( +LAST)? *", re.IGNORECASE)
"""RFC 3030 2; as many digits as SIZE may have."""
_LINE_TOO_LONG: Final = Reply(500, "5.5.2", "Line too long")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LAST_OF_GROUP: Final = frozenset(
    {b"EHLO", b"HELO", b"DATA", b"VRFY", b"HELP", b"QUIT", b"XCLIENT", b"STARTTLS", b"AUTH"}
)
"""Commands that nothing may follow unasked. RFC 2920 3.1, with Postfix's leniency for NOOP and EXPN; RFC 3207 4."""
_OTHER_PROTOCOLS: Final = frozenset({b"GET", b"POST", b"CONNECT", b"HEAD", b"PUT", b"OPTIONS"})
"""Postfix ``smtpd_forbidden_commands``: a browser that was talked into talking to a mail server."""
_COMMAND: Final = Phase.COMMAND
_CHUNK: Final = Phase.CHUNK
"""For the hottest loop: a member of an enumeration is found by its metaclass."""


def reply_to_fault(error: BaseException) -> Reply:
    """Return what the client is told of a fault of ours: temporary, and nothing of its cause."""
    if isinstance(error, QueueUnavailableError | OSError | MemoryError):
        return admission.NO_STORAGE
    return admission.LOCAL_ERROR


class Session(Connection):
    """One connection whose input is commands; `Inbound` adds the commands."""

    _verbs: ClassVar[dict[bytes, Callable[..., Coroutine[Any, Any, None]]]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._verbs = cls._find_verbs()

    @classmethod
    def _find_verbs(cls) -> dict[bytes, Callable[..., Coroutine[Any, Any, None]]]:
        """Return what aiosmtpd's constructor looks for, once per class and not per connection."""
        return {
            name.removeprefix("smtp_").encode(): getattr(cls, name)
            for name in dir(cls)
            if name.startswith("smtp_")
        }

    def __init__(
        self,
        door: Door,
        listener: Listener = PLAIN,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Prepare a session; `connection_made` starts it."""
        super().__init__(door, listener, loop=loop)
        self.messages = 0
        """Messages accepted."""
        self.errors = 0
        """Rejected commands since the last accepted message."""
        self._junk = 0
        self._line = b""
        self._secret = False
        """The line may be a password: whoever was refused AUTH may send it all the same."""
        self._locked = False
        """Some commands are refused until there is TLS, or a login."""
        self._obeying = False

    def _take_chunk(self, data: bytes, at: int) -> int:
        """Take what is the chunk's of ``data[at:]``; return where it ended. The phase says if there is more."""
        raise NotImplementedError

    def _respond(self, line: bytes, more: bool) -> None:
        """Take the answer to a challenge; ``more`` input is waiting behind it."""
        raise NotImplementedError

    def _refusal(self, verb: bytes) -> Reply | None:
        """Return why a command has to wait, or None."""
        raise NotImplementedError

    def _obey(self, data: bytes) -> None:
        """Carry out the complete commands in ``data`` with their chunks; keep what is left."""
        self._obeying = True
        try:
            at = self._obey_each(data)
        finally:
            self._obeying = False
        if self.phase is not Phase.CLOSING:
            self._input = data[at:]
            if self._draining and self.phase is Phase.COMMAND:
                # Its chunk was let in to the end.
                self._shut_down()
                return
        self._flush()

    def _obey_each(self, data: bytes) -> int:
        """Obey; return where the first command that is not complete begins."""
        at = 0
        while not self._write_paused:
            phase = self.phase
            if phase is _COMMAND:
                line_max, too_long = self.limits.max_line, _LINE_TOO_LONG
            elif phase is _CHUNK:
                at = self._take_chunk(data, at)
                if self.phase is _CHUNK:
                    break
                continue
            elif phase is Phase.AUTH:
                line_max, too_long = self.limits.max_auth_line + 1, AUTH_TOO_LONG  # and its CR
            else:
                break
            end = data.find(b"\n", at)
            if (end if end >= 0 else len(data)) - at > line_max:
                self._reject_input(too_long)
                break
            if end < 0:
                break
            if end == at or data[end - 1] != 13:
                # After this the two sides may disagree on where commands begin: SMTP smuggling.
                self._reject_input(BARE)
                break
            self._line = data[at : end - 1]
            at = end + 1
            if phase is _COMMAND:
                self._command(self._line, at < len(data))
            else:
                self._respond(self._line, at < len(data))
        return at

    def _command(self, line: bytes, more: bool) -> None:
        """Carry out one command; ``more`` input is waiting behind it."""
        self._active_at = self.loop.time()
        verb, _, rest = line.partition(b" ")
        verb = verb.upper()
        method = self._verbs.get(verb)
        if method is not None:
            self._secret = verb == b"AUTH"
        if self.door.tracing:
            self.door.trace("smtp", f"{self._id} <<< {self._shown_line()}")
        if method is None and (verb in _OTHER_PROTOCOLS or (verb and not verb[:1].isalpha())):
            self._reject_input(Reply(421, "4.7.0", "This is a mail server, goodbye"))
            return
        if more and (verb in _LAST_OF_GROUP or not self.esmtp):
            self._reject_input(OUT_OF_STEP)
            return
        if verb[:4] == b"BDAT" and BDAT.fullmatch(line) is None:
            # Nobody can know any more where the next command begins.
            self._reject_input(Reply(501, "5.5.4", "Syntax: BDAT size [LAST]"))
            return
        if method is None:
            self.fail(Reply(500, "5.5.1", "Command unrecognized"))
            return
        # BDAT says so itself, when its octets are read: they are no commands.
        if self._locked and verb != b"BDAT" and (refusal := self._refusal(verb)) is not None:
            self.fail(refusal)
            return
        try:
            text = rest.decode()
        except UnicodeDecodeError:
            self.fail(Reply(500, "5.5.2", "Invalid UTF-8"))
            return
        if _CONTROL.search(text):
            self.fail(Reply(501, "5.5.2", "Invalid character in command"))
            return
        step = method(self, text.strip(" "))
        try:
            step.send(None)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001 - our fault, whatever it is, is a 4xx for the client
            self._reset()
            self._log_fault(verb.decode("ascii", "replace"), error)
            self.fail(reply_to_fault(error))
            return
        step.close()
        raise AssertionError(f"{verb!r} waited: nothing would go on with it")

    def _shown_line(self) -> str:
        """Return the last line for the log."""
        line = self._line
        if self._secret and line[:4].upper() != b"AUTH":
            return "****"
        return line_for_log(line)

    def fail(self, reply: Reply, *, is_error: bool = False) -> None:
        """Refuse a command or a message; too many of the client's errors end the session.

        Every 5xx is one; a 4xx for want of room is not, unless ``is_error`` says so.
        """
        self.door.log(
            f'{self._id} smtp failed-command command="{self._shown_line()}" result="{reply}"'
        )
        self.door.rejected(reply)
        if reply.code == 421:
            self._reason = "refused"
            self._abandon(reply)
            return
        self._say(reply)
        if is_error or reply.code >= 500:
            self.errors += 1
            goodbye = admission.on_error(errors=self.errors, limits=self.limits)
            if goodbye is not None:
                self._reason = "errors"
                self._abandon(goodbye)

    def _reject_input(self, reply: Reply) -> None:
        """End a session whose input can't be trusted any more."""
        self.door.log(f'{self._id} smtp bad-input result="{reply}"')
        self.door.rejected(reply)
        self._reason = "bad-input"
        self._abandon(reply)

    def _go_on(self) -> None:
        """Read and obey again after a wait."""
        if self._obeying:
            return  # a message that came in chunks: whoever obeys goes on
        if self._draining and self.phase in (Phase.COMMAND, Phase.AUTH):
            self._shut_down()
            return
        if self._input:
            if not self.esmtp:
                # After HELO nobody was offered PIPELINING.
                self._reject_input(OUT_OF_STEP)
                return
            data, self._input = self._input, b""
            self._obey(data)
        else:
            self._flush()
        if self._wire is None or self.phase in WAITING or self._write_paused:
            return
        if self._ended:
            self._close()
        elif self._read_paused:
            self._read_paused = False
            self._wire.resume_reading()
