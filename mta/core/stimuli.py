"""What has happened: everything that the core is ever told, in the past tense.

Stimuli are named tuples, because one is made for each step of each message and nothing makes an
immutable record with fields more cheaply.
"""

import enum
from typing import NamedTuple, TypeAlias

from mta.core.envelopes.base import Recipient, Transaction
from mta.core.ids import EvpId, MsgId, SessionId
from mta.core.reply import Outcome
from mta.core.routing import Resolution


class MessageSubmitted(NamedTuple):
    """A message is durable in the queue; its recipients are numbered from 1 in this order."""

    msgid: MsgId
    transaction: Transaction
    recipients: tuple[Recipient, ...]
    body: bytes | None = None
    """Header and body, if the representation wants them; else None."""


class EnvelopeRestored(NamedTuple):
    """An envelope was found in the durable queue after a start."""

    evpid: EvpId
    recipient: Recipient
    """Only `domain` is needed unless the store keeps envelopes."""
    transaction: Transaction
    created_at: float
    expires_at: float
    attempts: int
    due_at: float
    flags: int = 0
    body: bytes | None = None


class TimeReached(NamedTuple):
    """The instant that `next_wakeup` named has come."""


class DomainResolved(NamedTuple):
    """The answer to `ResolveDomain`."""

    domain: str
    resolution: Resolution


class ConnectionReady(NamedTuple):
    """A connection was opened, greeted, and its EHLO was accepted: it can take a transaction."""

    session: SessionId


class ConnectionFailed(NamedTuple):
    """A connection did not become ready: refused, timed out, or a bad greeting."""

    session: SessionId
    reason: str
    """For the log and the bounce: the reply, or the network error in words."""
    source_fault: bool = False
    """Our own address could not be used: that says nothing about the host."""


class Result(NamedTuple):
    """What became of one envelope in a transaction."""

    evpid: EvpId
    outcome: Outcome
    status: str
    """The remote host's reply in one line."""
    reports: bool = False
    """The remote host offered DSN (RFC 3461): it was told the sender's wishes, and reports success itself."""


class TransactionDone(NamedTuple):
    """A transaction ended; every envelope of it has a result."""

    session: SessionId
    results: tuple[Result, ...]
    usable: bool
    """The connection can take another transaction."""


class ConnectionClosed(NamedTuple):
    """A connection that had been ready is gone.

    If a transaction was running, its envelopes fail temporarily with this reason.
    """

    session: SessionId
    reason: str


class LocalDeliveryDone(NamedTuple):
    """A local delivery ended."""

    evpid: EvpId
    outcome: Outcome
    status: str
    """Why, in one line, as a reply without its code."""


class Agent(enum.Enum):
    """What the operator can stop as a whole."""

    MTA = "mta"
    MDA = "mda"


class Selector(NamedTuple):
    """Which envelopes the operator means: one, those of a message, or (both None) all."""

    evpid: EvpId | None = None
    msgid: MsgId | None = None


class ScheduleRequested(NamedTuple):
    """The operator wants envelopes tried now (`mtactl schedule`)."""

    which: Selector


class RemoveRequested(NamedTuple):
    """The operator wants envelopes gone (`mtactl remove`)."""

    which: Selector


class SuspendRequested(NamedTuple):
    """The operator wants envelopes left alone (`mtactl pause envelope`)."""

    which: Selector


class UnsuspendRequested(NamedTuple):
    """The operator lets suspended envelopes go on (`mtactl resume envelope`)."""

    which: Selector


class AgentPaused(NamedTuple):
    """The operator stopped an agent (`mtactl pause mta`), or one part of its work."""

    agent: Agent = Agent.MTA
    only: str = ""
    """The domain or the user that is left alone; empty for all."""
    source: str = ""
    """The local address from which the domain is left alone; empty for any."""


class AgentResumed(NamedTuple):
    """The operator started an agent again (`mtactl resume mta`), or undid one pause of a part."""

    agent: Agent = Agent.MTA
    only: str = ""
    source: str = ""


class RouteEnabled(NamedTuple):
    """The operator re-enabled a disabled route (`mtactl resume route`)."""

    address: str
    source: str | None = None
    """Of this source only; None for all."""


class LimitChanged(NamedTuple):
    """The operator set a limit (`mtactl set`); it was checked."""

    key: str
    """``limits.smtp.max_rcpt``."""
    value: int | float | str | bool


class DrainRequested(NamedTuple):
    """The server is about to stop: start nothing new, let what is in flight end."""


Stimulus: TypeAlias = (
    MessageSubmitted
    | EnvelopeRestored
    | TimeReached
    | DomainResolved
    | ConnectionReady
    | ConnectionFailed
    | TransactionDone
    | ConnectionClosed
    | LocalDeliveryDone
    | ScheduleRequested
    | RemoveRequested
    | SuspendRequested
    | UnsuspendRequested
    | AgentPaused
    | AgentResumed
    | RouteEnabled
    | LimitChanged
    | DrainRequested
)
