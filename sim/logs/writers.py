"""Who wrote a log: a central syslog's has the lines of several hosts, which are several servers."""

from collections.abc import Iterable, Iterator
from typing import Final

from sim.logs.lines import LINE_MAX, Clock, any_line
from sim.logs.record import Record

HOSTS_MAX: Final = 1000
"""Hosts that are told apart."""

SEVERAL: Final = "hosts in the log, read as one server (--host NAME reads one)"
OTHERS: Final = "line of another host, left out"


class Writers:
    """Counts who writes a log: it is read as one server's, which an operator has to know if it is several."""

    def __init__(self, record: Record) -> None:
        """Begin; who is seen is remembered in ``record.writers``."""
        self._record = record

    def seen(self, host: bytes) -> None:
        """Take in the name of who wrote a line."""
        known = self._record.writers
        if host and host not in known and len(known) < HOSTS_MAX:
            known.add(host)
            if len(known) > 1:
                self._record.kinds[SEVERAL] = len(known)


def is_of(writer: bytes, host: bytes) -> bool:
    """Return whether a line's host is the one that is meant: its whole name, or the part before the first dot, in any case.

    Why the part? The same host is ``mx1`` in what its own syslog writes and ``mx1.example.net`` in what a central one does.
    """
    writer, host = writer.lower(), host.lower()
    return writer == host or writer.partition(b".")[0] == host


def written_by(raws: Iterable[bytes], host: bytes, clock: Clock, record: Record) -> Iterator[bytes]:
    """Yield the lines that a host wrote; the others are counted, those too that do not say who wrote them."""
    needle = host.lower()
    left_out = 0
    for raw in raws:
        # A line without the name is not taken apart: most lines of a log of many hosts.
        head = raw[:LINE_MAX]
        if needle in head.lower():
            line = any_line(head.lstrip(b"\0"), clock)
            if line is not None and is_of(line.host, host):
                yield raw
                continue
        left_out += 1
    if left_out:
        record.kinds[OTHERS] += left_out


def writers_in(raws: Iterable[bytes], clock: Clock) -> set[bytes]:
    """Return the hosts that wrote some lines, `HOSTS_MAX` at most."""
    found: set[bytes] = set()
    for raw in raws:
        line = any_line(raw[:LINE_MAX], clock)
        if line is not None and line.host and len(found) < HOSTS_MAX:
            found.add(line.host)
    return found
