"""Reads Exim's main log.

The letters are those of Exim's specification, chapter 52, "Log files": ``<=`` arrival, ``=>`` and ``->`` delivery, ``==``
deferral, ``**`` failure, ``Completed``. ``log_selector = +millisec +deliver_time +queue_time_overall
+received_recipients`` says more: DT is how long the delivery took.
"""

import re
from typing import Final

from mta.core.reply import Outcome
from sim.logs.lines import Line
from sim.logs.record import Record

_ID: Final = rb"([0-9A-Za-z]{6}-[0-9A-Za-z]{6,11}-[0-9A-Za-z]{2,4})"
_MARKED: Final = re.compile(_ID + rb" (<=|=>|->|>>|\*>|==|\*\*) (.*)", re.DOTALL)
_COMPLETED: Final = re.compile(_ID + rb" Completed\b")
_PLAIN: Final = re.compile(_ID + rb" ")
_SIZE: Final = re.compile(rb" S=(\d{1,18})\b")
_REPORTED: Final = re.compile(rb"<> R=" + _ID)
_FOR: Final = re.compile(rb".* for (\S+@\S.*)$", re.DOTALL)
"""The last one: a subject, which Exim may log before it, can have one of its own."""
_STAMPED: Final = re.compile(
    rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,6})?(?: [+-]\d{4})?(?: \[\d{1,10}\])? "
)
"""In syslog Exim repeats the instant, unless ``syslog_timestamp`` is off; its own file's stamp is gone when a line comes here."""
_ADDRESS: Final = re.compile(rb"(?:[^\s<]+ )?<([^<>\s]*)>|(\"[^\"]*\"@[^\s:]+|[^\s<>:]+)")
_HOST: Final = re.compile(rb" H=(\S+ \[[0-9A-Fa-f.:]+\])")
_TAKEN_S: Final = re.compile(rb" DT=([0-9dhms.]{1,24})\b")
_REFUSED: Final = re.compile(rb"(?:^| )(?:rejected|temporarily rejected) ")
_SPAN: Final = re.compile(rb"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")
_NOT_TRIED: Final = (b"retry time not reached", b"(-52)", b"(-53)", b"(-54)")
_NO_CONNECTION: Final = (
    b"Connection refused", b"Connection timed out", b"No route to host", b"Network is unreachable",
    b"host lookup", b"lookup of host", b"Connection reset",
)  # fmt: skip
_UNIQUE: Final = re.compile(r"\b(?=\w*\d)\w{6,}")
_REPLY_AT: Final = re.compile(r": (\d{3}[ -].*)")
REPLY_MAX: Final = 160
"""Characters of a reply that are kept."""
DEFERRED_MAX: Final = 1_000_000
"""Recipients that are remembered because they were put off."""


class EximReader:
    """Takes lines of Exim's main log and tells a record."""

    name = "exim"

    def __init__(self, record: Record) -> None:
        self.record = record
        self._deferred: set[int] = set()
        """Recipients that were put off, up to `DEFERRED_MAX`."""

    @staticmethod
    def knows(line: Line) -> bool:
        """Return whether a line is one of Exim's, in its own file or in syslog."""
        text = _unstamped(line)
        return _MARKED.match(text) is not None or _COMPLETED.match(text) is not None

    def finish(self) -> None:
        """Nothing more comes."""

    def take(self, line: Line) -> bool:
        """Take a line; return False if it is about a message and can't be understood."""
        text = _unstamped(line)
        found = _MARKED.match(text)
        if found is None:
            found = _COMPLETED.match(text)
            if found is not None:
                self.record.ended(found[1].decode("ascii"), line.at)
            elif _REFUSED.search(text):
                code = "4xx" if b"temporarily rejected" in text else "5xx"
                self.record.kinds[f"refused at the door: {code}"] += 1
            elif _PLAIN.match(text) and b" removed by " in text:
                # "Completed" follows.
                self.record.expire(text.partition(b" ")[0].decode("ascii"), line.at)
            return True
        key, mark, rest = found[1].decode("ascii"), found[2], found[3]
        if mark == b"<=":
            return self._came(key, rest, line.at)
        if mark in (b"*>", b">>"):
            # A delivery that was only tried out, or one to be withdrawn.
            return True
        return self._attempt(key, mark, rest, line.at)

    def _came(self, key: str, rest: bytes, at: float) -> bool:
        record = self.record
        report = _REPORTED.match(rest) is not None
        if record.arrived(key, at, report=report) is None:
            return True
        size = _SIZE.search(rest)
        named = _FOR.search(rest)
        count = len(named[1].split()) if named else 0
        if size is not None:
            record.describe(key, size=int(size[1]), recipients=count)
        return size is not None

    def _attempt(self, key: str, mark: bytes, rest: bytes, at: float) -> bool:
        record = self.record
        found = _ADDRESS.match(rest)
        if found is None:
            return False
        number = record.number_of(key)
        if number is None:
            number = record.arrived(key, at, late=True)
            if number is None:
                return True
            record.kinds["message seen for the first time at an attempt"] += 1
        address = (found[1] or found[2] or b"").decode("utf-8", "replace")
        recipient = record.recipient(key, address)
        if recipient is None:
            return True
        outcome = {b"==": Outcome.TEMPFAIL, b"**": Outcome.PERMFAIL}.get(mark, Outcome.OK)
        host = _HOST.search(rest)
        taken = _TAKEN_S.search(rest)
        failed = outcome is not Outcome.OK
        service_s = 0.0
        if taken is not None:
            service_s = _seconds(taken[1])
        elif not failed and not record.is_late[number]:
            # A delivery of its own begins as soon as a message is there.
            service_s = (
                max(0.0, at - record.arrived_at[number]) if recipient not in self._deferred else 0.0
            )
            record.kinds["delivery without DT: taken to begin with the message"] += 1
        if outcome is Outcome.TEMPFAIL and len(self._deferred) < DEFERRED_MAX:
            self._deferred.add(recipient)
        else:
            self._deferred.discard(recipient)
        record.attempt(
            recipient,
            at,
            outcome,
            tried=not (failed and any(words in rest for words in _NOT_TRIED)),
            connected=not (failed and any(words in rest for words in _NO_CONNECTION)),
            service_s=service_s,
            host=host[1].decode("utf-8", "replace") if host else "",
            reply=_reply(rest) if failed else "",
        )
        return True


def _unstamped(line: Line) -> bytes:
    """Return the text without an instant of its own."""
    if not line.program:
        return line.text
    found = _STAMPED.match(line.text)
    return line.text[found.end() :] if found is not None else line.text


def _reply(rest: bytes) -> str:
    """Return what a host said, or why there was none, without what is different each time."""
    text = rest.decode("utf-8", "replace")
    said = _REPLY_AT.search(text)
    words = said[1] if said else text.partition(": ")[2] or text.partition(" defer ")[2] or text
    return _UNIQUE.sub("#", words[:REPLY_MAX])


def _seconds(text: bytes) -> float:
    """Return the length of ``1m3.250s``; 0 for what is none."""
    found = _SPAN.fullmatch(text)
    if found is None:
        return 0.0
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
