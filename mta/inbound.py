"""The door: SMTP as a server speaks it.

`Inbound` is a subclass of aiosmtpd's `SMTP` that keeps its shape (a protocol with one ``smtp_VERB``
coroutine per command) and replaces what fails under stress: its reader, its constructor, its address
parser and its error handling. The rules:

- What goes wrong here is a 4xx without a word about why; only the client's own faults are 5xx.
- Whatever ends a transaction, nothing of it reaches the next.
- A message is answered once its commit is decided. The commit is the door's: a client that leaves,
  half-closes or times out can't cancel it, and what was not ended by CRLF.CRLF is never submitted.
"""

import asyncio
import itertools
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache, partial

from aiosmtpd.smtp import syntax

from mta.core import admission
from mta.core.address import is_helo_name, parse_mail, parse_rcpt
from mta.core.envelopes.base import Recipient, Transaction
from mta.core.ids import MsgId, evpid, show_evpid, show_msgid
from mta.core.reply import Reply
from mta.inbound_chunks import ChunkedSession
from mta.inbound_data import ChunkReader, MessageReader, count_hops
from mta.inbound_door import PLAIN, Door, Listener
from mta.inbound_phase import Phase
from mta.inbound_session import reply_to_fault
from mta.inbound_xclient import XclientSession
from mta.xclient import ATTRIBUTES as XCLIENT

OVERSHOOT_MAX = 1000
"""RCPT commands over the limit in one transaction before each is an error of the client: RFC 5321
4.5.3.1.10 lets it go on, but not for ever. Postfix ``smtpd_recipient_overshoot_limit``."""

_BAD_SEQUENCE = Reply(503, "5.5.1", "Command not allowed at this point")
_NO_RECIPIENTS = Reply(554, "5.5.1", "No valid recipients")
_NOT_IMPLEMENTED = Reply(502, "5.5.1", "Command not implemented")


@lru_cache(maxsize=4)
def _date(second: int) -> str:
    """Return an instant as RFC 5322 3.3 writes it."""
    return format_datetime(datetime.fromtimestamp(second, UTC))


@lru_cache(maxsize=16)
def _ehlo(hostname: str, size_max: int, *more: str) -> bytes:
    # No BINARYMIME: see `mta.inbound_data.ChunkReader`.
    extensions = (
        "PIPELINING",
        f"SIZE {size_max}",
        "8BITMIME",
        "ENHANCEDSTATUSCODES",
        "CHUNKING",
        "DSN",
    )
    lines = [f"250-{line}\r\n" for line in (hostname, *extensions, *more)]
    return ("".join(lines) + "250 SMTPUTF8\r\n").encode()


class Inbound(ChunkedSession, XclientSession):
    """One session with one client. Make one per connection: ``lambda: Inbound(door)``."""

    def __init__(
        self,
        door: Door,
        listener: Listener = PLAIN,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Prepare a session; `connection_made` starts it."""
        super().__init__(door, listener, loop=loop)
        self._mail: Transaction | None = None
        self._recipients: dict[str, tuple[Recipient, ...]] = {}
        """The envelopes of each address that RCPT named."""
        self._envelopes = 0
        """How many these are."""
        self._tried = 0
        self._message: MessageReader | None = None
        self._msgid = MsgId(0)
        self._head_size = 0
        self._reserved = 0

    def _has_transaction(self) -> bool:
        return self._mail is not None

    def _reset(self) -> None:
        self._mail = None
        if self._recipients:
            self._recipients = {}
            self._envelopes = 0
        self._tried = 0
        self._message = None
        if self._reserved:
            self.door.release(self._reserved)
            self._reserved = 0

    # -- commands ----------------------------------------------------------------------------------

    @syntax("HELO hostname")
    async def smtp_HELO(self, hostname: str) -> None:
        """RFC 5321 4.1.1.1."""
        if self._greet(hostname):
            self.esmtp = False
            self._output.append(f"250 {self.hostname}\r\n".encode())

    @syntax("EHLO hostname")
    async def smtp_EHLO(self, hostname: str) -> None:
        """RFC 5321 4.1.1.1; also ends a transaction (4.1.4)."""
        if self._greet(hostname):
            self.esmtp = True
            more = (f"XCLIENT {XCLIENT}",) if self._may_say_xclient() else ()
            self._output.append(
                _ehlo(self.hostname, self.limits.max_message_size, *more, *self.secure_extensions())
            )

    def _greet(self, name: str) -> bool:
        if not is_helo_name(name):
            self.fail(Reply(501, "5.5.2", "Invalid domain name"))
            return False
        # The first one is no junk.
        if self.helo and not self._may_idle():
            return False
        self._reset()
        self.helo = name
        return True

    def _may_idle(self) -> bool:
        """Count a command that carries no mail; end the session if it is one too many."""
        self._junk += 1
        goodbye = admission.on_junk(junk=self._junk, limits=self.limits)
        if goodbye is not None:
            self.fail(goodbye)
        return goodbye is None

    @syntax("MAIL FROM:<address>", extended=" [parameters]")
    async def smtp_MAIL(self, arg: str | None) -> None:
        """RFC 5321 4.1.1.2."""
        if not self.helo or self._mail is not None:
            self.fail(_BAD_SEQUENCE)
            return
        mail = parse_mail(arg or "", esmtp=self.esmtp)
        if isinstance(mail, Reply):
            self.fail(mail)
            return
        refusal = self.door.begin(mail.size, self.messages)
        if refusal is not None:
            self.fail(refusal)
            return
        self._mail = Transaction(
            mail.path.address,
            0,
            self.session_id,
            self.helo,
            self.peer,
            self._name(),
            tls=self.tls,
            auth_user=self.login,
            smtputf8=mail.smtputf8,
            body_type=mail.body_type,
            ret=mail.ret,
            envid=mail.envid,
            declared_size=mail.size,
            esmtp=self.esmtp,
        )
        self._output.append(b"250 2.1.0 Ok\r\n")

    @syntax("RCPT TO:<address>", extended=" [parameters]")
    async def smtp_RCPT(self, arg: str | None) -> None:
        """RFC 5321 4.1.1.3. An address that was given already is one envelope, not two (Postfix cleanup)."""
        mail = self._mail
        if mail is None or self._message is not None:
            self.fail(_BAD_SEQUENCE)
            return
        rcpt = parse_rcpt(
            arg or "", hostname=self.hostname, esmtp=self.esmtp, smtputf8=mail.smtputf8
        )
        if isinstance(rcpt, Reply):
            self.fail(rcpt)
            return
        recipient = Recipient(rcpt.path.address, rcpt.path.domain, rcpt.notify, rcpt.orcpt)
        recipients = self._recipients
        self._tried += 1
        too_many = self._tried > self.limits.max_rcpt + OVERSHOOT_MAX
        if too_many or recipient.address not in recipients:
            answer = (
                admission.TOO_MANY_RECIPIENTS
                if too_many
                else self.door.recipient(self.peer, recipient, self._envelopes, user=self.login)
            )
            if isinstance(answer, asyncio.Future):
                self.phase = Phase.LOOKUP
                answer.add_done_callback(partial(self._looked_up, recipient))
            else:
                self._take_recipient(recipient, answer, is_error=too_many)
            return
        self._output.append(b"250 2.1.5 Ok\r\n")

    def _take_recipient(
        self,
        recipient: Recipient,
        answer: Reply | tuple[Recipient, ...] | None,
        *,
        is_error: bool = False,
    ) -> None:
        if isinstance(answer, Reply):
            self.fail(answer, is_error=is_error)
            return
        envelopes = answer or (recipient,)
        self._recipients[recipient.address] = envelopes
        self._envelopes += len(envelopes)
        self._output.append(b"250 2.1.5 Ok\r\n")

    def _looked_up(
        self, recipient: Recipient, done: "asyncio.Future[Reply | tuple[Recipient, ...]]"
    ) -> None:
        """Take what tables said of a recipient, if the client is still there, and go on with the next command."""
        error = None if done.cancelled() else done.exception()
        if self.phase is not Phase.LOOKUP:
            return  # the client left, or was sent away
        self.phase = Phase.COMMAND
        if error is not None:
            self._reset()
            self._log_fault("RCPT", error)
            self.fail(reply_to_fault(error))
        else:
            self._take_recipient(
                recipient, admission.LOOKUP_FAILED if done.cancelled() else done.result()
            )
        if self.phase is Phase.COMMAND:  # else that was one error too many
            self._go_on()

    @syntax("DATA")
    async def smtp_DATA(self, arg: str) -> None:
        """RFC 5321 4.1.1.4. From here on input is the message; the msgid is taken for Received."""
        mail = self._mail
        if mail is None or arg or self._message is not None:
            # Not after BDAT either (RFC 3030 2).
            self.fail(_BAD_SEQUENCE if not arg else Reply(501, "5.5.4", "Syntax: DATA"))
            return
        if not self._recipients:
            self.fail(_NO_RECIPIENTS)
            return
        self._message = MessageReader(
            self._begin_message(mail),
            size_max=self.limits.max_message_size,
            line_max=self.limits.max_text_line,
        )
        self.phase = Phase.MESSAGE
        self._output.append(b"354 End data with <CR><LF>.<CR><LF>\r\n")

    @syntax("RSET")
    async def smtp_RSET(self, arg: str) -> None:
        """RFC 5321 4.1.1.5."""
        if arg:
            self.fail(Reply(501, "5.5.4", "Syntax: RSET"))
        elif self._may_idle():
            self._reset()
            self._output.append(b"250 2.0.0 Ok\r\n")

    @syntax("NOOP [ignored]")
    async def smtp_NOOP(self, arg: str) -> None:
        """RFC 5321 4.1.1.9."""
        if self._may_idle():
            self._output.append(b"250 2.0.0 Ok\r\n")

    @syntax("VRFY <address>")
    async def smtp_VRFY(self, arg: str) -> None:
        """RFC 5321 7.3: no answer to harvesters."""
        if not arg:
            self.fail(Reply(501, "5.5.4", "Syntax: VRFY <address>"))
        elif self._may_idle():
            self._output.append(b"252 2.5.2 Can't verify, but will take mail and try\r\n")

    @syntax("HELP")
    async def smtp_HELP(self, arg: str) -> None:
        """RFC 5321 4.1.1.8."""
        if self._may_idle():
            self._output.append(b"214 2.0.0 See RFC 5321\r\n")

    @syntax("QUIT")
    async def smtp_QUIT(self, arg: str) -> None:
        """RFC 5321 4.1.1.10."""
        if arg:
            self.fail(Reply(501, "5.5.4", "Syntax: QUIT"))
            return
        self._output.append(b"221 2.0.0 Bye\r\n")
        self._reason = "quit"
        self._close()

    async def smtp_EXPN(self, arg: str) -> None:
        """Not here."""
        self.fail(_NOT_IMPLEMENTED)

    # -- the message -------------------------------------------------------------------------------

    def _begin_message(self, mail: Transaction) -> bytes:
        """Take a msgid; return the header fields that we add."""
        self._msgid = self.door.next_msgid()
        head = self._received_field(mail)
        self._head_size = len(head)
        return head

    def _begin_chunk(self, size: int) -> ChunkReader | Reply:
        """Return who reads a chunk, or why nobody does: as DATA, and also not after DATA (RFC 3030 2)."""
        if self._locked and (refusal := self._refusal(b"BDAT")) is not None:
            return refusal
        mail = self._mail
        if mail is None:
            return _BAD_SEQUENCE
        if not self._recipients:
            return _NO_RECIPIENTS
        message = self._message
        if message is None:
            message = self._message = ChunkReader(
                self._begin_message(mail),
                size_max=self.limits.max_message_size,
                line_max=self.limits.max_text_line,
                chunks_max=self.limits.max_chunks,
            )
        assert isinstance(message, ChunkReader), "after DATA no command is read"
        message.begin(size)
        return message

    def _received_field(self, mail: Transaction) -> bytes:
        """Return the trace field of RFC 5321 4.4; ``with`` from RFC 3848 and RFC 6531 3.7.3."""
        protocol = "UTF8SMTP" if mail.smtputf8 else "ESMTP" if mail.esmtp else "SMTP"
        if mail.esmtp:
            protocol += ("S" if mail.tls else "") + ("A" if mail.auth_user else "")
        # In the comment, as OpenSMTPD has it: version, cipher, bits, and that the client showed no certificate.
        tls = f" ({mail.tls}:NO)" if mail.tls else ""
        address = f"IPv6:{self.peer}" if ":" in self.peer else self.peer
        return (
            f"Received: from {mail.helo} ({mail.peer_name} [{address}])\r\n"
            f"\tby {self.hostname} with {protocol} id {show_msgid(self._msgid)}{tls};\r\n"
            f"\t{_date(int(self.door.now()))}\r\n"
        ).encode()

    def _receive(self, data: bytes) -> None:
        message = self._message
        assert message is not None
        rest = self._feed(message, data)
        if rest is not None:
            self._input = rest
            self._end_of_message(message)
        elif message.is_endless:
            assert message.refusal is not None
            self._reject_input(message.refusal)

    def _feed(self, message: MessageReader, data: bytes) -> bytes | None:
        """Give a message what was read, within the budget; return what followed its end, or None."""
        try:
            if message.refusal is None:
                if self.door.reserve(len(data)):
                    self._reserved += len(data)
                else:
                    message.refuse(admission.NO_MEMORY)
            rest = message.feed(data)
            if message.refusal is not None and self._reserved:
                self.door.release(self._reserved)
                self._reserved = 0
        except Exception as error:  # noqa: BLE001 - our fault, whatever it is, is a 4xx for the client
            self._log_fault("DATA", error)
            message.refuse(reply_to_fault(error))
            rest = message.feed(data)
        return rest

    def _end_of_message(self, message: MessageReader) -> None:
        """Submit what was read, or say why not."""
        mail = self._mail
        assert mail is not None
        self._message = None
        if message.refusal is not None:
            self._answer(message.refusal)
            return
        recipients = tuple(itertools.chain.from_iterable(self._recipients.values()))
        try:
            body = message.body()
            refusal = self.door.message(
                size=len(body) - self._head_size,
                recipients=len(recipients),
                received=count_hops(body, hops_max=self.limits.max_hops),
            )
            if refusal is not None:
                self._answer(refusal)
                return
            mail = mail._replace(size=len(body))
            commit = self.door.submit(self._msgid, mail, recipients, body)
        except Exception as error:  # noqa: BLE001 - our fault, whatever it is, is a 4xx for the client
            self._log_fault("commit", error)
            self._answer(reply_to_fault(error))
            return
        self.phase = Phase.COMMIT
        if not self.door.reads_ahead:
            self._pause_reading()
        reserved, self._reserved = self._reserved, 0
        done = partial(self._committed, self._msgid, mail, recipients, reserved)
        if commit.done():
            done(commit)
        else:
            commit.add_done_callback(done)

    def _committed(
        self,
        msgid: MsgId,
        mail: Transaction,
        recipients: tuple[Recipient, ...],
        reserved: int,
        commit: asyncio.Future[Reply | None],
    ) -> None:
        """Account for a decided commit, and answer if the client is still there."""
        door = self.door
        door.release(reserved)
        if commit.cancelled():
            refusal: Reply | None = admission.LOCAL_ERROR
        elif (error := commit.exception()) is not None:
            self._log_fault("commit", error)
            refusal = reply_to_fault(error)
        else:
            refusal = commit.result()
        if refusal is None:
            self.messages += 1
            self.errors = self._junk = 0
            door.log(
                f"{self._id} smtp message msgid={show_msgid(msgid)} size={mail.size}"
                f" nrcpt={len(recipients)} proto={'ESMTP' if mail.esmtp else 'SMTP'}"
            )
            for number, recipient in enumerate(recipients, 1):
                door.log(
                    f"{self._id} smtp envelope evpid={show_evpid(evpid(msgid, number))}"
                    f" from=<{mail.sender}> to=<{recipient.address}>"
                )
        if self.phase is not Phase.COMMIT:
            return  # the client left, or was sent away
        if refusal is None:
            self._output.append(
                f"250 2.0.0 {show_msgid(msgid)} Message accepted for delivery\r\n".encode()
            )
            self._reset()
            self.phase = Phase.COMMAND
            self._go_on()
        else:
            self._answer(refusal)

    def _answer(self, refusal: Reply) -> None:
        """Refuse a message, and go on with the next command."""
        self._reset()
        self.phase = Phase.COMMAND
        self.fail(refusal)
        if self.phase is Phase.COMMAND:  # else that was one error too many
            self._go_on()


Inbound._verbs = Inbound._find_verbs()
