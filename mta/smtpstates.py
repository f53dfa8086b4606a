"""What a client's session waits for and for how long, and what it tells: the values of `mta.smtpclient`."""

import enum
from typing import NamedTuple, TypeAlias

from mta.core.reply import Outcome
from mta.esmtp import Extensions


class Timeouts(NamedTuple):
    """Longest waits, in seconds. The defaults are those of RFC 5321 4.5.3.2."""

    banner: float = 300.0
    hello: float = 300.0
    mail: float = 300.0
    rcpt: float = 300.0
    data: float = 120.0
    block: float = 180.0
    """For the transport to take the next `CHUNK_BYTES` of the message."""
    dot: float = 600.0
    """Long, because giving up between the dot and its reply makes a duplicate (RFC 1047)."""
    reset: float = 300.0
    quit: float = 5.0
    """Ours: by then nothing is at stake."""
    transaction: float = 3600.0
    """Ours: for one transaction, so that a host that answers each of 1,000 RCPT at the last moment
    cannot keep a connection for days."""

    @classmethod
    def scaled(cls, timeout_s: float) -> "Timeouts":
        """Return the RFC's waits in proportion to ``timeout_s``, which stands for its 5 minutes."""
        assert timeout_s > 0, timeout_s
        waits = cls()
        factor = timeout_s / waits.mail
        return cls(*(wait * factor for wait in waits))._replace(quit=min(waits.quit, timeout_s))


class Ready(NamedTuple):
    """Greeted and welcomed: a transaction can start."""

    extensions: Extensions


class Failed(NamedTuple):
    """The session ended before it was ready. The last event."""

    reason: str


class TransactionResult(NamedTuple):
    """A transaction ended."""

    results: tuple[tuple[Outcome, str], ...]
    """One verdict with its reply per envelope, in the order of `ClientSession.start`."""
    usable: bool
    """Another transaction can start. If not, `Closed` follows."""
    ambiguous: bool = False
    """The end came between the final dot and its reply: the host may have taken the message, and
    the next try may make a duplicate."""


class Closed(NamedTuple):
    """A session that had been ready is over. The last event."""

    reason: str
    """``quit`` after a QUIT that was answered."""


class StartTls(NamedTuple):
    """The peer waits for a TLS handshake: make it, then call `ClientSession.secured`."""


Event: TypeAlias = Ready | Failed | TransactionResult | Closed | StartTls


class State(enum.Enum):
    """What the session waits for."""

    BANNER = "banner"
    EHLO = "ehlo"
    HELO = "helo"
    STARTTLS = "starttls"
    TLS = "tls"
    """The handshake."""
    AUTH = "auth"
    READY = "ready"
    """Nothing: it is our turn."""
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    DOT = "dot"
    LONE_DOT = "lone-dot"
    """The end of a message that nobody gets (RFC 2920 3.1)."""
    RSET = "rset"
    QUIT = "quit"
    CLOSED = "closed"
