"""What a local delivery is given, what it answers, and what it may take.

The rule: a delivery answers; it does not raise. Whatever goes wrong on this machine is a temporary
failure in general words. Paths and error numbers are the operator's business: they go to the log,
never into a status, which may end in a bounce to a stranger.
"""

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeAlias

from mta.core.ids import EvpId, show_evpid
from mta.core.limits import Problem
from mta.core.reply import Outcome

Log: TypeAlias = Callable[[str], None]
"""Takes one line for the operator."""


class Job(NamedTuple):
    """One message for one local recipient."""

    evpid: EvpId
    sender: str
    """Reverse-path; empty for ``<>``."""
    rcpt: str
    """The address that RCPT named."""
    dest: str
    """The address that expansion arrived at, ``local@domain``."""
    user: str
    """Name of the recipient's account."""
    uid: int
    gid: int
    home: Path
    """The account's directory; trusted, as the operator configured it."""
    tag: str
    """Sub-address, what stands between the delimiter and @; empty for none. Untrusted."""
    body: bytes
    """Header and body with CRLF line ends."""
    created_at: float
    """When the message was accepted."""
    target: str = ""
    """Command of a ``|command`` entry or path of a ``/file`` entry; empty for what the deliverer is set to."""


class DeliveryResult(NamedTuple):
    """What became of a job."""

    outcome: Outcome
    status: str
    """One printable line for log and bounce; begins with ``class.subject.detail`` (RFC 3463) or a
    reply code, unless the outcome is OK."""


class Deliverer(Protocol):
    """One way to deliver."""

    async def deliver(self, job: Job) -> DeliveryResult:
        """Deliver a message, within a bounded time.

        OK means that the message is where it belongs and, if that is a file, on stable storage. Any
        other outcome means that it is not there, but for what only a crash, a deadline that passes in
        the instant of success, or a disk that fails twice can leave: a copy too many.

        Raises:
            asyncio.CancelledError: and nothing else.
        """
        ...


@dataclass(slots=True)
class DeliveryLimits:
    """What one local delivery may take."""

    timeout_s: float = 300.0
    """Longest delivery. OpenSMTPD smtpd.c, forkmda: alarm(300). Over LMTP it is the wait for a reply,
    and a transaction may take twice as long, as after the dot in RFC 5321 4.5.3.2.6."""
    kill_grace_s: float = 5.0
    """From SIGTERM to SIGKILL for a command that took too long, and from SIGKILL until it is left to
    the reaper. Ours; Postfix kills at once, OpenSMTPD never."""
    output_max: int = 2048
    """Bytes of a command's output that are remembered, the last ones. OpenSMTPD's LINE_MAX."""
    output_flood: int = 1024 * 1024
    """Bytes of output after which we stop reading, and a command that goes on gets SIGPIPE. Ours:
    whoever writes so much is not talking to us."""
    command_max: int = 2048
    """Bytes of a command line. OpenSMTPD's LINE_MAX (mda_unpriv.c)."""
    lock_timeout_s: float = 20.0
    """Longest wait for a mailbox's locks. Postfix: deliver_lock_attempts (20) times deliver_lock_delay (1 s)."""
    lock_stale_s: float = 500.0
    """Age from which a mailbox's dotlock is taken away. Postfix ``stale_lock_time``."""
    connect_timeout_s: float = 30.0
    """Longest wait for a connection to an LMTP server. Postfix ``smtp_connect_timeout``."""
    hops_max: int = 100
    """Received fields, the first of which is ours. RFC 5321 6.3; OpenSMTPD MAX_HOPS_COUNT."""

    def problems(self) -> Iterator[Problem]:
        """Yield every value that makes no sense."""
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if not value > 0:  # not `<= 0`: that would let NaN pass
                yield field_.name, value, "must be above 0; a cap of 0 is not unlimited"
        if self.output_flood < self.output_max:
            yield (
                "output_flood",
                self.output_flood,
                f"must not be below output_max ({self.output_max})",
            )


DELIVERED: Final = DeliveryResult(Outcome.OK, "Delivered")
"""The word of OpenSMTPD's mda.c."""
LOOP: Final = DeliveryResult(Outcome.LOOP, "5.4.6 Loop detected")
"""Words of OpenSMTPD's mda.c, code of RFC 3463."""
FULL: Final = DeliveryResult(Outcome.TEMPFAIL, "4.2.2 Mailbox full")
SHORTAGE: Final = DeliveryResult(Outcome.TEMPFAIL, "4.3.0 Local resource shortage")
STORAGE: Final = DeliveryResult(Outcome.TEMPFAIL, "4.3.0 Local storage error")
INACCESSIBLE: Final = DeliveryResult(Outcome.TEMPFAIL, "4.3.5 Mailbox is not accessible")
TIMED_OUT: Final = DeliveryResult(Outcome.TEMPFAIL, "4.3.0 Delivery took too long")
LOCKED: Final = DeliveryResult(Outcome.TEMPFAIL, "4.2.0 Mailbox is locked by another program")
NOT_OURS: Final = DeliveryResult(Outcome.TEMPFAIL, "4.3.5 Mailbox does not belong to the recipient")
NOT_PLAIN: Final = DeliveryResult(
    Outcome.TEMPFAIL, "4.3.5 Mailbox is not a plain file or directory"
)
WRITABLE: Final = DeliveryResult(Outcome.TEMPFAIL, "4.3.5 Mailbox can be written by anyone")
NO_RIGHT: Final = DeliveryResult(Outcome.TEMPFAIL, "4.3.5 Server may not act for this user")
BAD_NAME: Final = DeliveryResult(Outcome.TEMPFAIL, "4.3.5 Mailbox name is not usable")
BAD_ADDRESS: Final = DeliveryResult(Outcome.PERMFAIL, "5.1.3 Bad recipient address syntax")
BAD_SENDER: Final = DeliveryResult(Outcome.PERMFAIL, "5.1.7 Bad sender address syntax")
OUR_FAULT: Final = DeliveryResult(Outcome.TEMPFAIL, "4.3.0 Internal error")

_FULL_ERRNOS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_SHORTAGE_ERRNOS = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS, errno.E2BIG)
)
_ACCESS_ERRNOS = frozenset(
    (
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENXIO,
        errno.EXDEV,
    )
)


class RefusedError(Exception):
    """A delivery can't be made, and the result says why."""

    def __init__(self, result: DeliveryResult, detail: str = "") -> None:
        super().__init__(detail or result.status)
        self.result = result


def result_of(error: BaseException) -> DeliveryResult:
    """Return what an error of this machine means: always temporary, never its number or its path."""
    if isinstance(error, RefusedError):
        return error.result
    if isinstance(error, MemoryError):
        return SHORTAGE
    if isinstance(error, TimeoutError):
        return TIMED_OUT
    if not isinstance(error, OSError):
        return OUR_FAULT
    if error.errno in _FULL_ERRNOS:
        return FULL
    if error.errno in _SHORTAGE_ERRNOS:
        return SHORTAGE
    return INACCESSIBLE if error.errno in _ACCESS_ERRNOS else STORAGE


def report(log: Log | None, job: Job, error: BaseException) -> DeliveryResult:
    """Return what an error means, and tell the operator what it was."""
    if log is not None:
        words = "; ".join([repr(error), *getattr(error, "__notes__", ())])
        log(f"warn: mda: evpid={show_evpid(job.evpid)} user={job.user}: {words}")
    return result_of(error)
