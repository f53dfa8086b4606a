"""What the door answers when it must say no: pure functions of counts and limits.

Each returns the reply to send, or None to go on. A refusal for want of room is temporary (4xx); only what
the client asked for can be refused for good (5xx). A text says the reason in the client's terms and
nothing of our inside: no number, path, errno or name of a limit.

A reply with code 421 closes the connection (RFC 5321 3.8).
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import NamedTuple, TypeAlias

from mta.core.limits import QueueLimits, SmtpLimits
from mta.core.pressure import MemoryLevel
from mta.core.reply import Reply

Network: TypeAlias = IPv4Network | IPv6Network

SHUTTING_DOWN = Reply(421, "4.3.2", "Service is shutting down")
"""RFC 5321 3.8, RFC 3463 X.3.2: system not accepting network messages."""
PAUSED = Reply(421, "4.3.2", "Service is paused, try again later")
"""The operator said ``mtactl pause smtp``."""
TOO_MANY_CONNECTIONS = Reply(421, "4.3.2", "Too many connections, try again later")
"""All clients together. OpenSMTPD stops listening instead, which the client sees as a timeout."""
TOO_MANY_FROM_CLIENT = Reply(421, "4.7.0", "Too many connections from your address")
"""Postfix smtpd.c, ``smtpd_client_connection_count_limit``."""
TOO_MANY_MESSAGES = Reply(421, "4.7.0", "Too many messages on this connection, open another")
"""OpenSMTPD says 452 4.5.3 and keeps the connection, on which the client may try the same message for
ever; Exim says 421 (``smtp_accept_max_per_connection``)."""
MESSAGE_TOO_BIG = Reply(552, "5.3.4", "Message size exceeds fixed limit")
"""RFC 1870 6.1, RFC 3463 X.3.4."""
NO_STORAGE = Reply(452, "4.3.1", "Insufficient system storage, try again later")
"""RFC 1870 6.1, RFC 3463 X.3.1: the queue is full, the disk is short, or the queue can't write."""
NO_MEMORY = Reply(452, "4.3.1", "Too much mail is being received, try again later")
"""All messages that are being received or wait for the disk are too many."""
SHORT_OF_MEMORY = Reply(452, "4.3.1", "Insufficient system resources, try again later")
"""RFC 3463 X.3.1: the process is near its limit of memory; what was taken goes out first."""
LOAD_SHEDDING = Reply(421, "4.3.2", "Load shedding, try again later")
"""The same for connections, nearer to the limit. KumoMTA's words."""
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "Too many recipients, send the rest separately")
"""RFC 5321 4.5.3.1.10: 452, and the recipients accepted before remain."""
LOOKUP_FAILED = Reply(451, "4.3.0", "Temporary lookup failure")
"""Tables take too long to say who a recipient is, or too many wait for them. Postfix's words (smtpd_check.c)."""
RELAYING_DENIED = Reply(550, "5.7.1", "Relaying denied")
"""RFC 5321 3.6.2, RFC 3463 X.7.1."""
TOO_MANY_ERRORS = Reply(421, "4.7.0", "Too many errors")
"""Postfix ``smtpd_hard_error_limit``."""
TOO_MUCH_JUNK = Reply(421, "4.7.0", "Too many commands without mail")
"""Postfix ``smtpd_junk_command_limit``; there each further one counts as an error."""
TOO_MANY_HOPS = Reply(554, "5.4.6", "Too many hops, the message loops")
"""RFC 5321 6.3, RFC 3463 X.4.6."""
IDLE = Reply(421, "4.4.2", "Timeout, closing connection")
"""RFC 5321 4.5.3.2.7, RFC 3463 X.4.2."""
SESSION_TOO_LONG = Reply(421, "4.4.2", "Connection was open too long, open another")
"""The lifetime of a connection is over."""
LOCAL_ERROR = Reply(451, "4.3.0", "Local error, try again later")
"""Anything that we did not foresee: never permanent, never with its cause."""


class Pressure(NamedTuple):
    """The state of the server as its shell measured it."""

    connections: int = 0
    """Open inbound connections, without the one that asks."""
    queued_envelopes: int = 0
    """Envelopes in the durable queue."""
    queued_bytes: int = 0
    """Bytes of messages in the durable queue."""
    waiting: int = 0
    """Submissions that wait for a commit."""
    bytes_in_memory: int = 0
    """Bytes of all messages that are being received and are not durable yet."""
    free_bytes: int = 2**63 - 1
    """Free space on the queue's file system, for us (``f_bavail``)."""
    total_bytes: int = 2**63 - 1
    """Size of the queue's file system."""
    draining: bool = False
    """The server is about to stop."""
    paused: bool = False
    """The operator stopped the door."""
    healthy: bool = True
    """The queue could write when it last tried."""
    memory: MemoryLevel = MemoryLevel.OK
    """How short of memory the process is."""


def on_connect(pressure: Pressure, *, from_client: int, limits: SmtpLimits) -> Reply | None:
    """Decide on a new connection, instead of the greeting.

    Args:
        pressure: the state of the server.
        from_client: open connections from the same address, without this one.
        limits: the door's.
    """
    if pressure.draining:
        return SHUTTING_DOWN
    if pressure.paused:
        return PAUSED
    if pressure.memory >= MemoryLevel.HARD:
        return LOAD_SHEDDING
    # The client before the total: it says who can do something about it.
    if from_client >= limits.max_conn_per_client:
        return TOO_MANY_FROM_CLIENT
    if pressure.connections >= limits.max_conn:
        return TOO_MANY_CONNECTIONS
    return None


def on_mail(
    pressure: Pressure, *, declared_size: int, messages: int, limits: SmtpLimits, queue: QueueLimits
) -> Reply | None:
    """Decide on MAIL.

    A pause lets open connections go on, as OpenSMTPD's does.

    Args:
        pressure: the state of the server.
        declared_size: what the client said with SIZE=, or 0 (RFC 1870).
        messages: messages that this connection has sent already.
        limits: the door's.
        queue: the queue's.
    """
    if pressure.draining:
        return SHUTTING_DOWN
    if messages >= limits.max_mails:
        return TOO_MANY_MESSAGES
    if declared_size > limits.max_message_size:
        return MESSAGE_TOO_BIG
    # Only here: a message that was received is in memory already, and leaves it soonest when it is taken.
    if pressure.memory >= MemoryLevel.SOFT:
        return SHORT_OF_MEMORY
    return room_for(pressure, size=declared_size, envelopes=1, limits=limits, queue=queue)


def on_recipient(
    pressure: Pressure, *, recipients: int, may_relay: bool, limits: SmtpLimits, queue: QueueLimits
) -> Reply | None:
    """Decide on RCPT, whose address is known to be well formed.

    Args:
        pressure: the state of the server.
        recipients: recipients accepted in this transaction so far.
        may_relay: the client may send to this domain; see `is_in`.
        limits: the door's.
        queue: the queue's.
    """
    # Denied first: a client that may not relay learns nothing of our load.
    if not may_relay:
        return RELAYING_DENIED
    if recipients >= limits.max_rcpt:
        return TOO_MANY_RECIPIENTS
    if pressure.queued_envelopes + recipients >= queue.max_envelopes:
        return NO_STORAGE
    return None


def on_message(
    pressure: Pressure,
    *,
    size: int,
    recipients: int,
    received: int,
    limits: SmtpLimits,
    queue: QueueLimits,
) -> Reply | None:
    """Decide on a whole message, after the dot.

    Args:
        pressure: the state of the server, ``bytes_in_memory`` without this message.
        size: bytes of header and body.
        recipients: envelopes that it becomes.
        received: its Received header fields, without ours.
        limits: the door's.
        queue: the queue's.
    """
    if size > limits.max_message_size:
        return MESSAGE_TOO_BIG
    if received >= limits.max_hops:
        # At the limit already, as OpenSMTPD (MAX_HOPS_COUNT) and Postfix (hopcount_limit) do.
        return TOO_MANY_HOPS
    return room_for(pressure, size=size, envelopes=recipients, limits=limits, queue=queue)


def on_error(*, errors: int, limits: SmtpLimits) -> Reply | None:
    """Decide after a command was rejected, ``errors`` of them by now.

    Source: Postfix smtpd.c: the reply is sent, then 421 once the count has reached the limit.
    """
    return TOO_MANY_ERRORS if errors >= limits.max_errors else None


def on_junk(*, junk: int, limits: SmtpLimits) -> Reply | None:
    """Decide on a command that carries no mail, the ``junk``-th since the last message."""
    return TOO_MUCH_JUNK if junk > limits.max_junk else None


def room_for(
    pressure: Pressure, *, size: int, envelopes: int, limits: SmtpLimits, queue: QueueLimits
) -> Reply | None:
    """Decide whether a message of ``size`` bytes can be taken now.

    Source of the disk check: Postfix smtpd_check.c, smtpd_check_queue, and Exim's
    ``check_spool_space``; what is being received will need the disk as well, so it counts.
    """
    if not pressure.healthy:
        return NO_STORAGE
    if pressure.queued_envelopes + envelopes > queue.max_envelopes:
        return NO_STORAGE
    if pressure.queued_bytes + size > queue.max_bytes:
        return NO_STORAGE
    if pressure.bytes_in_memory + size > limits.max_bytes_in_memory:
        return NO_MEMORY
    if pressure.waiting >= queue.max_waiting:
        return NO_MEMORY
    left = pressure.free_bytes - pressure.bytes_in_memory - size
    if left < queue.min_free_bytes or left < queue.min_free_ratio * pressure.total_bytes:
        return NO_STORAGE
    return None


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Return networks from ``address/prefix`` or single addresses.

    Raises:
        ValueError: one of them is neither; the text names it. Host bits set are an error: who writes
            10.0.0.1/8 may have meant one address.
    """
    return tuple(ip_network(text) for text in texts)


def is_in(peer: str, networks: Sequence[Network]) -> bool:
    """Return True if a client's address is in one of the networks.

    An IPv4 client of a dual-stack socket (``::ffff:127.0.0.1``) is an IPv4 client. What is no address is
    in no network.
    """
    try:
        address = ip_address(peer.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        address = mapped
    return any(address in network for network in networks)
