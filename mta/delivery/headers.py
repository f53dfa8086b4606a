"""What a delivery puts before a message, how it sees that the message was here, and line ends.

Only the top of a message is looked at: who forwards mail adds on top, so the marks of a loop are there.
"""

import re
from collections.abc import Iterator
from typing import Final

from mta.core.ids import show_evpid
from mta.delivery.base import BAD_ADDRESS, BAD_SENDER, LOOP, DeliveryResult, Job

HEADER_MAX: Final = 1024 * 1024
"""Bytes of a header that are searched. A hundred hops with a kilobyte each are a tenth of this."""
PIECE: Final = 256 * 1024
"""Bytes that are worked on at once: about 0.1 ms, during which no other thread can run."""

_RECEIVED = re.compile(rb"^received[ \t]*:", re.IGNORECASE | re.MULTILINE)
_DELIVERED_TO = re.compile(
    rb"^delivered-to[ \t]*:((?:[^\r\n]|\r?\n[ \t])*)", re.IGNORECASE | re.MULTILINE
)
_FROM_LINE = re.compile(rb"^(>*From )", re.MULTILINE)


def refusal(job: Job, hops_max: int) -> DeliveryResult | None:
    """Return why a job is not to be delivered by anyone, or None."""
    if not _is_one_line(job.dest) or not job.dest:
        return BAD_ADDRESS
    if not _is_one_line(job.sender):
        return BAD_SENDER
    return LOOP if loops(job.body, job.dest, hops_max=hops_max) else None


def loops(body: bytes, dest: str, *, hops_max: int) -> bool:
    """Return whether a message was delivered to ``dest`` before, or comes from too far.

    The first Received field is our own, so ``hops_max`` others make a loop, as at the door. A local
    part is compared as it is (RFC 5321 2.4), a domain without regard to case.
    """
    end = body.find(b"\r\n\r\n", 0, HEADER_MAX)
    header = body[: HEADER_MAX if end < 0 else end]
    hops = len(_RECEIVED.findall(header))
    if hops > hops_max:
        return True
    wanted = _comparable(dest.encode())
    return any(_comparable(found[1]) == wanted for found in _DELIVERED_TO.finditer(header))


def _comparable(address: bytes) -> bytes:
    address = b"".join(address.splitlines()).strip(b" \t")
    if address[:1] == b"<" and address[-1:] == b">":
        address = address[1:-1]  # as Dovecot writes it
    local, at, domain = address.rpartition(b"@")
    return local + at + domain.lower()


def _is_one_line(address: str) -> bool:
    """Whether an address can stand in a header field: no control characters, no surrogates."""
    return address.isprintable()


def heading(job: Job, *, return_path: bool = True) -> bytes:
    """Return the fields of a delivery, with LF: Return-Path (RFC 5321 4.4) and Delivered-To.

    Unlike OpenSMTPD's mda.c this writes a Return-Path for the null sender too, as the RFC wants it.
    """
    first = f"Return-Path: <{job.sender}>\n" if return_path else ""
    return f"{first}Delivered-To: {job.dest}\n".encode()


def unix_pieces(body: bytes) -> Iterator[bytes]:
    r"""Yield a message with its CRLF as LF, in pieces of `PIECE` bytes at most.

    Why in pieces? bytes.replace on a message of 35 MiB would stop every other thread for tens of
    milliseconds, the event loop's among them.
    """
    at = 0
    while at < len(body):
        end = at + PIECE
        if body[end - 1 : end] == b"\r":
            end -= 1
        yield body[at:end].replace(b"\r\n", b"\n")
        at = end


def mbox_pieces(job: Job, from_line: bytes) -> Iterator[bytes]:
    """Yield a message as it stands in an mbox (RFC 4155, with the quoting of mboxrd).

    Every line of the message that is ``From `` behind any number of ``>`` gets one more, so that a
    reader can tell where a message begins, and can take away what was added.
    """
    yield from_line + heading(job)
    at_line_start = True
    last = b"\n"
    rest = b""
    for piece in unix_pieces(job.body):
        # Cut behind a line end, so that each line that matters is seen whole. A line longer than a
        # piece goes as it comes: it can be quoted only where it begins.
        data = rest + piece
        end = data.rfind(b"\n") + 1 or len(data)
        data, rest = data[:end], data[end:]
        yield _quoted(data, at_line_start=at_line_start)
        last = data[-1:]
        at_line_start = last == b"\n"
    if rest:
        yield _quoted(rest, at_line_start=at_line_start)
        last = rest[-1:]
    yield b"\n" if last == b"\n" else b"\n\n"


def _quoted(data: bytes, *, at_line_start: bool) -> bytes:
    if b"From " not in data:
        return data
    start = 0 if at_line_start else data.find(b"\n") + 1 or len(data)
    return data[:start] + _FROM_LINE.sub(rb">\1", data[start:])


def marker(job: Job) -> str:
    """Return how a job is named in the operator's log."""
    return f"evpid={show_evpid(job.evpid)} user={job.user}"
