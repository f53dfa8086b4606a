"""What ended an outbound connection, in words for replies, bounces and the log.

The rule: errors that say something about the network are told; faults of this machine all look alike, and are nobody's
business.
"""

import contextlib
import errno
import os

from mta.effects import NotLoopbackError

CONNECT_TIMED_OUT = "Connection timed out"
LOCAL_FAULT = "Local resource shortage"
"""What a reply, a bounce or a log says when we could not connect for a reason of our own."""
NOT_LOOPBACK = "Not a loopback address, and relay.allow is loopback"
STOPPED = "Server is stopping"

_NETWORK_ERRNOS = frozenset(
    (
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.EHOSTDOWN,
        errno.ETIMEDOUT,
        errno.EPIPE,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
    )
)
"""Errors that say something about the network. All others are ours, and nobody's business."""


def is_source_fault(error: OSError, source: str) -> bool:
    """Return whether an address of ours that was asked for can't be used."""
    return bool(source) and error.errno == errno.EADDRNOTAVAIL


def network_error(error: OSError) -> str:
    """Return an error of the network in words; faults of this machine all look alike."""
    if isinstance(error, TimeoutError):
        return CONNECT_TIMED_OUT
    if isinstance(error, NotLoopbackError):
        return NOT_LOOPBACK
    # asyncio raises one OSError without errno when several attempts failed.
    with contextlib.suppress(TypeError, ValueError):
        if error.errno in _NETWORK_ERRNOS:
            return os.strerror(error.errno)
    return LOCAL_FAULT
