"""What a session at the door needs of the server behind it.

The session speaks SMTP; the door decides whom to admit, owns every commit, and keeps the accounts that
all sessions share. None of these may block. A `Reply` that a method returns is sent as it is.
"""

import asyncio
import enum
import ssl
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

from mta.core.envelopes.base import Recipient, Transaction
from mta.core.ids import MsgId, SessionId
from mta.core.limits import SmtpLimits
from mta.core.reply import Reply

TlsMode: TypeAlias = Literal["none", "starttls", "required", "implicit"]
AuthMode: TypeAlias = Literal["none", "optional", "required"]


class Listener(NamedTuple):
    """What a session knows of the place where its client came in."""

    name: str = "smtp"
    tls: TlsMode = "none"
    """``starttls``: offered; ``required``: nothing goes without; ``implicit``: from the first byte on."""
    auth: AuthMode = "none"
    """``optional``: offered; ``required``: no mail without."""
    auth_requires_tls: bool = True
    """No login in clear."""


PLAIN: Final = Listener()
"""A place where everybody speaks in clear and nobody says who he is."""


class Verdict(enum.Enum):
    """What came of a login."""

    OK = "ok"
    PERMFAIL = "permfail"
    """No such user, or another password: nobody is told which."""
    TEMPFAIL = "tempfail"
    """It can't be said now."""


class Door(Protocol):
    """The server, as one inbound session sees it.

    If a method raises, the client gets a 4xx and the transaction is dropped: a local fault is never
    the client's.
    """

    hostname: str

    @property
    def limits(self) -> SmtpLimits:
        """Those that count now: under stress they are smaller (`mta.core.stress`)."""
        ...

    @property
    def commit_timeout_s(self) -> float:
        """How long a client waits for the answer to its message, stress or not.

        Who is sent away without an answer sends again what we may have.
        """
        ...

    @property
    def reads_ahead(self) -> bool:
        """Input may be read while the message before it is being made durable; not when memory is short."""
        ...

    @property
    def tracing(self) -> bool:
        """The operator traces ``smtp``: call `trace` for every line sent and received."""
        ...

    def next_session(self) -> SessionId:
        """Return an id for a new session."""
        ...

    def next_msgid(self) -> MsgId:
        """Return a message id that was never used; called at DATA, so that Received can name it."""
        ...

    def now(self) -> float:
        """Return the seconds since the epoch."""
        ...

    def connect(self, peer: str) -> Reply | None:
        """Decide on a connection: `mta.core.admission.on_connect`.

        If the answer is None it is counted, and `disconnect` will be called once; else it is not.
        """
        ...

    def disconnect(self, peer: str) -> None:
        """Uncount a connection; exactly once for each `connect` that returned None."""
        ...

    def move(self, peer: str, other: str) -> Reply | None:
        """Count a connection as another client's from now on, or say why not: the same limits hold."""
        ...

    def may_say_xclient(self, peer: str) -> bool:
        """Say whether a client is trusted to name others with XCLIENT."""
        ...

    def begin(self, declared_size: int, messages: int) -> Reply | None:
        """Decide on MAIL: `mta.core.admission.on_mail`.

        Args:
            declared_size: what SIZE= said, or 0.
            messages: messages that this connection has sent already.
        """
        ...

    def recipient(
        self, peer: str, recipient: Recipient, recipients: int, *, user: str = ""
    ) -> "Reply | tuple[Recipient, ...] | asyncio.Future[Reply | tuple[Recipient, ...]] | None":
        """Decide on RCPT: `mta.core.admission.on_recipient`.

        The answer is a refusal, or the envelopes that the recipient becomes; None if that is itself; a future
        of it if somebody has to be asked who may take his time. No command is obeyed until then.

        Args:
            peer: address of the client.
            recipient: who the mail is for.
            recipients: envelopes of this transaction so far.
            user: as whom the client has logged in; such clients may relay.
        """
        ...

    def message(self, *, size: int, recipients: int, received: int) -> Reply | None:
        """Decide on a whole message, after the dot: `mta.core.admission.on_message`.

        Args:
            size: bytes as the client sent them, without our Received field.
            recipients: envelopes that it becomes.
            received: its Received fields, without ours.
        """
        ...

    def tls_context(self) -> ssl.SSLContext:
        """Return certificate, key and versions for one more connection.

        Asked only on listeners that have TLS; what it raises makes STARTTLS a 454.
        """
        ...

    def tls_began(self, *, implicit: bool) -> None:
        """Count a connection whose handshake went well."""
        ...

    def tls_ended(self, *, implicit: bool) -> None:
        """Uncount it; exactly once for each `tls_began`."""
        ...

    def tls_failed(self) -> None:
        """Count a handshake that failed, took too long, or lost its client."""
        ...

    def authenticate(self, user: str, password: str) -> "asyncio.Future[Verdict]":
        """Check credentials. The future is decided within the limits, also if the client goes away."""
        ...

    def reserve(self, size: int) -> bool:
        """Take bytes of the budget of messages being received; False and nothing taken if it is spent."""
        ...

    def release(self, size: int) -> None:
        """Give back what `reserve` took."""
        ...

    def submit(
        self,
        msgid: MsgId,
        transaction: Transaction,
        recipients: tuple[Recipient, ...],
        body: bytes,
    ) -> asyncio.Future[Reply | None]:
        """Make a message durable. The future's result is None when it is, or why it is not.

        The commit belongs to the door: nobody here cancels the future, and it goes on if the client
        goes away. A future that raises or is cancelled means that nothing was promised: a 4xx.
        """
        ...

    def rejected(self, reply: Reply, *, connection: bool = False) -> None:
        """Count a refused ``connection``, command or message, or one that took too long."""
        ...

    def log(self, line: str) -> None:
        """Write a line to the log; never raises."""
        ...

    def trace(self, subsystem: str, line: str) -> None:
        """Write a line to the trace; never raises."""
        ...
