"""What other servers take for a queued envelope, as far as anybody knows, and from where we know it.

These are not measured in the run that a report is about, and they do not all count the same thing: each line says what its
number means. Sizes of C structures were derived with a compiler from the sources named, on 64-bit Linux with glibc.
"""

from typing import Final, NamedTuple


class Peer(NamedTuple):
    """One published or derived number."""

    system: str
    bytes_shown: str
    """As a report prints it."""
    bytes_low: float
    """For a plot; of several parts the one that each queued envelope costs."""
    kind: str
    """How it is known."""
    meaning: str
    source: str


PEERS: Final = (
    Peer(
        "OpenSMTPD, January 2013, full",
        "8,584",
        8584,
        "derived",
        "struct envelope, which the relay and local agents kept for each envelope they had (8,592 on the heap)",
        "smtpd.h before commit e032b844 (2013-01-28)",
    ),
    Peer(
        "OpenSMTPD, January 2013, slim",
        "56 (112 on the heap)",
        112,
        "derived",
        "struct mta_envelope and its address string, for each envelope the relay agent has",
        "mta.c at commit e032b844 (2013-01-28)",
    ),
    Peer(
        "OpenSMTPD today, scheduler",
        "240",
        240,
        "derived",
        "rq_envelope, rq_message and tree nodes, for every queued envelope (160 for each further recipient of a message)",
        "scheduler_ramqueue.c",
    ),
    Peer(
        "OpenSMTPD today, in flight",
        "about 2,450",
        2450,
        "derived",
        "mta_envelope, which has a status line and DSN fields inside again, with its task and strings; 50 tasks per relay, then held",
        "mta.c, mta_session.c",
    ),
    Peer(
        "OpenSMTPD 6.8.0p2",
        "233",
        233,
        "measured by us, another run",
        "growth of the scheduler process per queued envelope (164 with 100 recipients per message)",
        "20,000 envelopes queued for a dead host, Debian package",
    ),
    Peer(
        "Postfix",
        "720",
        720,
        "derived",
        "queue manager structures for one message with one recipient, strings excluded; 20,000 at most in memory, deferred mail takes none",
        "qmgr.h, qmgr_message_active_limit",
    ),
    Peer(
        "KumoMTA",
        "72",
        72,
        "asserted in its tests",
        "a message after its body and metadata were dropped from memory; both stay there until the first attempt",
        "message.rs, memory documentation",
    ),
    Peer(
        "Stalwart",
        "24",
        24,
        "from its source",
        "one queue event: due time, id, queue name; the message is read again for each attempt",
        "queue/mod.rs",
    ),
)
"""From OpenSMTPD of 2013 on, which is where the question comes from."""
