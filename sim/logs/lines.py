"""What stands before the text of a line: instant, host, program, process.

Traditional syslog (RFC 3164: no year, no zone, whole seconds), ISO 8601 and RFC 3339 (rsyslog's and journald's, with
and without fractions and zone), RFC 5424 with its fields, and Exim's own. Instants without a zone are taken for
UTC, and a year that is missing is inferred; differences stay right, and nothing else is asked of them.
"""

import re
from datetime import date
from typing import Final, NamedTuple

LINE_MAX: Final = 16 * 1024
"""Bytes of a line that are looked at; syslog's own limit is 1 KiB to 8 KiB. The rest is not needed to know what it is."""

_MONTHS: Final = {
    name: number
    for number, name in enumerate(
        (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"), 1
    )
}  # fmt: skip
_YEARS: Final = range(date.min.year + 1, date.max.year)
_EPOCH: Final = date(1970, 1, 1).toordinal()
_DAY: Final = 86_400

_HOST: Final = rb"(?P<host>[^\s:\[]+|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*[0-9A-Fa-f])"
"""A name, or an address: what a relay of syslog writes for who has no name."""
_TAG: Final = rb"(?P<tag>[^\s\[:]+)(?:\[(?P<pid>\d{1,10})\])?: (?P<text>.*)"
_OLD: Final = re.compile(
    rb"(?:<\d{1,3}>)?(?P<stamp>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d)(?P<fraction>\.\d{1,9})? (?:"
    + _HOST + rb" )?" + _TAG,
    re.DOTALL,
)  # fmt: skip
_ISO_STAMP: Final = (
    rb"(?P<stamp>\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?P<fraction>[.,]\d{1,9})?"
    rb"(?P<zone> ?[+-]\d\d:?\d\d|Z)?"
)
_ISO: Final = re.compile(_ISO_STAMP + rb" (?:" + _HOST + rb" )?" + _TAG, re.DOTALL)
_RFC5424: Final = re.compile(
    rb"(?:<\d{1,3}>)?1 "
    + _ISO_STAMP
    + rb" (?P<host>\S+) (?P<tag>\S+) (?P<pid>\S+) \S+ (?:-|(?:\[(?:[^\]\\]|\\.)*\])+) ?(?:\xef\xbb\xbf)?(?P<text>.*)",
    re.DOTALL,
)
_EXIM: Final = re.compile(_ISO_STAMP + rb"(?: \[\d{1,10}\])? (?P<text>.*)", re.DOTALL)


class Line(NamedTuple):
    """A line of a log, taken apart."""

    at: float
    """Seconds since the epoch."""
    program: bytes
    """``postfix/smtp``; empty if the log is of one program only."""
    text: bytes
    host: bytes = b""
    """Who wrote it, as the line says; empty if it does not."""


class Clock:
    """Reads instants; a log's are nearly in order, so that the last one is often the next."""

    def __init__(self, year: int) -> None:
        """``year`` of the first line, if lines do not say."""
        self.year = year
        self._month = 0
        self._stamp = b""
        self._at = 0.0
        self._day = b""
        self._midnight = 0

    def traditional(self, stamp: bytes, fraction: bytes | None = None) -> float | None:
        """Return the instant of ``Nov 22 21:55:50``, or None if there is no such."""
        if stamp != self._stamp:
            day = stamp[:6]
            if day != self._day:
                month = _MONTHS.get(day[:3])
                number = int(day[4:])  # "Nov  2": int() does not mind the space
                if month is None or not 1 <= number <= 31:
                    return None
                if month < self._month - 6 and self.year + 1 in _YEARS:
                    self.year += 1  # The log went on over New Year.
                elif self._month and month > self._month + 6 and self.year - 1 in _YEARS:
                    self.year -= 1  # A line of the old year came late.
                self._month = month
                # Why not date(year, month, day)? The 29th of February of a year that was guessed wrong.
                self._midnight = (
                    date(self.year, month, 1).toordinal() - _EPOCH + number - 1
                ) * _DAY
                self._day = day
            seconds = _clock(stamp[7:])
            if seconds is None:
                return None
            self._at = float(self._midnight + seconds)
            self._stamp = stamp
        return self._at if fraction is None else self._at + _fraction(fraction)

    def iso(self, stamp: bytes, fraction: bytes | None, zone: bytes | None) -> float | None:
        """Return the instant of ``2026-11-22T21:55:50.123+01:00``, or None if there is no such."""
        if stamp != self._stamp:
            day = stamp[:10]
            if day != self._day:
                try:
                    midnight = date(int(day[:4]), int(day[5:7]), int(day[8:])).toordinal() - _EPOCH
                except ValueError:
                    return None
                self._midnight = midnight * _DAY
                self._day = day
            seconds = _clock(stamp[11:])
            if seconds is None:
                return None
            self._at = float(self._midnight + seconds)
            self._stamp = stamp
        at = self._at
        if fraction is not None:
            at += _fraction(fraction)
        if zone is not None and zone != b"Z":
            zone = zone.lstrip()
            minutes = int(zone[1:3]) * 60 + int(zone[-2:])
            at += minutes * 60 if zone[:1] == b"-" else -minutes * 60
        return at


def _clock(text: bytes) -> int | None:
    """Return the seconds since midnight of ``21:55:50``; a leap second is one."""
    hours, minutes, seconds = int(text[:2]), int(text[3:5]), int(text[6:])
    if hours > 23 or minutes > 59 or seconds > 60:
        return None
    return hours * 3600 + minutes * 60 + seconds


def _fraction(text: bytes) -> float:
    return int(text[1:]) / 10.0 ** (len(text) - 1)


def syslog_line(raw: bytes, clock: Clock) -> Line | None:
    """Take a line of syslog or journald apart; None if it is none."""
    found = _OLD.match(raw)
    if found is not None:
        at = clock.traditional(found["stamp"], found["fraction"])
        return None if at is None else Line(at, found["tag"], found["text"], found["host"] or b"")
    found = _ISO.match(raw) or _RFC5424.match(raw)
    if found is not None:
        at = clock.iso(found["stamp"], found["fraction"], found["zone"])
        return None if at is None else Line(at, found["tag"], found["text"], found["host"] or b"")
    return None


def exim_line(raw: bytes, clock: Clock) -> Line | None:
    """Take a line of Exim's own log apart; None if it is none."""
    found = _EXIM.match(raw)
    if found is None:
        return None
    at = clock.iso(found["stamp"], found["fraction"], found["zone"])
    return None if at is None else Line(at, b"", found["text"])


def any_line(raw: bytes, clock: Clock) -> Line | None:
    """Take a line apart, whatever it is; None if it has no instant."""
    return syslog_line(raw, clock) or exim_line(raw, clock)
