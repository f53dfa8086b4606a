"""Reads Postfix's log, from 2.3 on.

Who says what (src/global/log_adhoc.c, src/qmgr/qmgr_active.c, src/smtpd/smtpd.c, src/bounce/bounce_notify_util.c): smtpd,
pickup and cleanup that a message came; qmgr its size, that it became too old, and that it is gone; each delivery
agent what became of a recipient; bounce that it wrote a report. A daemon is known by the last part of its name, so
that ``postfix-out/relay/smtp`` is an smtp.

Instants are better than the log's whole seconds: a queue id holds the microsecond of its making
(src/global/mail_queue.h), and an attempt ends ``delay`` after the message's arrival.
"""

import re
from typing import TYPE_CHECKING, Final

from mta.core.reply import Outcome
from sim.logs.lines import Line
from sim.logs.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable

_ID: Final = rb"([0-9A-Za-z]{6,24})"
_ATTEMPT: Final = re.compile(
    # Addresses end somewhere: see opensmtpd.py.
    _ID + rb": to=<(.{0,512}?)>, (?:orig_to=<.{0,512}?>, )?relay=([^,]*), (?:conn_use=\d+, )?"
    rb"delay=(\d{1,9}(?:\.\d{1,6})?), "
    rb"(?:delays=(\d[\d.]{0,15})/(\d[\d.]{0,15})/(\d[\d.]{0,15})/(\d[\d.]{0,15}), )?"
    rb".*?status=([a-z]+)(?: \((.*))?", re.DOTALL
)  # fmt: skip
_ACTIVE: Final = re.compile(
    _ID + rb": from=<.*>, size=(\d{1,18}), nrcpt=(\d{1,9}) \(queue active\)", re.DOTALL
)
_EXPIRED: Final = re.compile(_ID + rb": from=<.*>, status=(?:force-)?expired", re.DOTALL)
_REMOVED: Final = re.compile(_ID + rb": removed\s*")
_CAME: Final = re.compile(
    _ID + rb": (?:(client=|uid=)|(?:resent-)?message-id=|replace: |prepend: |warning: |info: )"
)
_REQUEUED: Final = re.compile(_ID + rb": uid=.* orig_id=" + _ID)
_REPORT: Final = re.compile(
    _ID + rb": (?:sender|postmaster) (?:non-delivery|delivery status|delay(?:ed)?) notification: "
    rb"([0-9A-Za-z]{6,24})"
)
_REFUSED: Final = re.compile(
    rb"(?:NOQUEUE|[0-9A-Za-z]{6,24}): (?:milter-)?reject: .*?: ([45])\d\d "
)
_SAID: Final = re.compile(r"said: (\d{3})[ -](.*)", re.DOTALL)
_STARTS_WITH_ID: Final = re.compile(_ID + rb": ")
_UNIQUE: Final = re.compile(r"\b(?=\w*\d)\w{6,}")

_BASE52: Final = {
    character: value
    for value, character in enumerate(b"0123456789BCDFGHJKLMNPQRSTVWXYZbcdfghjklmnpqrstvwxyz")
}
_OLDEST_S: Final = 1e9
"""Long queue ids are of 2011 (Postfix 2.9); what looks like one from 2001 or before is none."""
_LATE_S: Final = 2.5
"""More than two whole seconds, of the line and of the delay, can be wrong together."""
_ROUND_S: Final = 900
"""Zones differ from UTC by quarters of an hour."""
_OUTCOMES: Final = {
    b"sent": Outcome.OK,
    b"deferred": Outcome.TEMPFAIL,
    b"bounced": Outcome.PERMFAIL,
    b"expired": Outcome.PERMFAIL,
    b"delivered": Outcome.OK,
}
_PROBES: Final = (b"deliverable", b"undeliverable")
"""What verify(8) asks is no mail."""

REPLY_MAX: Final = 160
"""Characters of a reply that are kept."""
_REPLIES_KNOWN: Final = 4096


class PostfixReader:
    """Takes lines of Postfix's daemons and tells a record."""

    name = "postfix"

    def __init__(self, record: Record) -> None:
        self.record = record
        self._offset: float | None = None
        """What the log's clock says more than UTC, seconds, where queue ids say so."""
        self._kinds: dict[bytes, Callable[[Line], bool] | None] = {}
        """Program -> what takes its lines; None for programs that say nothing for us."""
        self._replies: dict[bytes, str] = {}

    @staticmethod
    def knows(line: Line) -> bool:
        """Return whether a line is one of Postfix's."""
        daemon = line.program.rpartition(b"/")[2]
        return daemon in _DAEMONS and (
            b"postfix" in line.program or _STARTS_WITH_ID.match(line.text) is not None
        )

    def take(self, line: Line) -> bool:
        """Take a line; return False if it is Postfix's and can't be understood."""
        program = line.program
        kinds = self._kinds
        try:
            take = kinds[program]
        except KeyError:
            if len(kinds) >= 1000:
                kinds.clear()
            name = _DAEMONS.get(program.rpartition(b"/")[2])
            take = kinds[program] = None if name is None else getattr(self, name)
        return take is None or take(line)

    def finish(self) -> None:
        """Nothing more comes."""

    # One method per kind of daemon; False says that a line could not be understood.

    def _agent(self, line: Line) -> bool:
        """Smtp, lmtp, local, virtual, pipe, error, retry, discard."""
        found = _ATTEMPT.match(line.text)
        if found is None:
            # Warnings, TLS, lost connections: nothing is settled by them.
            return b": to=<" not in line.text
        identity, to, relay, delay, _, _, setup, sending, status, words = found.groups()
        outcome = _OUTCOMES.get(status)
        if outcome is None:
            return status in _PROBES
        record = self.record
        key = identity.decode("ascii")
        after_s = float(delay)
        number = record.number_of(key)
        if number is None:
            arrived_at = line.at - after_s
            number = record.arrived(key, arrived_at, late=arrived_at < record.first_at - 1)
            if number is None:
                return True
            record.kinds["message seen for the first time at an attempt"] += 1
        elif record.arrived_at[number] > line.at - after_s + _LATE_S:
            # A short id says the microsecond and not the day: an old message that was tried again.
            record.arrived_at[number] = line.at - after_s
            record.is_late[number] = line.at - after_s < record.first_at - 1
        at = line.at
        if b"." in delay:
            exact = record.arrived_at[number] + after_s
            if abs(exact - at) <= 2.0:
                at = exact
        service_s = 0.0
        if setup is not None:
            try:
                service_s = float(setup) + float(sending)
                # Of a message that is tried again it is the whole time since its arrival.
                if not record.is_late[number] and not record.has_recipients(key):
                    record.queued_s[number] = min(float(found[5]), after_s)
            except ValueError:
                return False  # "1.2.3"
        recipient = record.recipient(key, to.decode("utf-8", "replace"))
        if recipient is None:
            return True
        host = "" if relay == b"none" else relay.decode("utf-8", "replace")
        record.attempt(
            recipient,
            at,
            outcome,
            tried=line.program[-5:] not in (b"error", b"retry"),
            connected=relay != b"none",
            service_s=service_s,
            host=host,
            reply="" if outcome is Outcome.OK else self._reply(words or b""),
        )
        return True

    def _reply(self, words: bytes) -> str:
        """Return what a host said, without what is different each time."""
        known = self._replies.get(words)
        if known is None:
            text = words.decode("utf-8", "replace").rstrip().removesuffix(")")
            said = _SAID.search(text)
            if said is not None:
                text = f"{said[1]} {said[2].partition(' (in reply to')[0]}"
            known = _UNIQUE.sub("#", text[:REPLY_MAX])
            if len(self._replies) >= _REPLIES_KNOWN:
                self._replies.clear()
            self._replies[words] = known
        return known

    def _queue(self, line: Line) -> bool:
        """Qmgr, postsuper."""
        text = line.text
        found = _REMOVED.match(text)
        if found is not None:
            self.record.ended(found[1].decode("ascii"), line.at)
            return True
        found = _ACTIVE.match(text)
        if found is not None:
            key = found[1].decode("ascii")
            if self.record.number_of(key) is None and self._came(key, line.at) is None:
                return True
            self.record.describe(key, size=int(found[2]), recipients=int(found[3]))
            return True
        found = _EXPIRED.match(text)
        if found is not None:
            self.record.expire(found[1].decode("ascii"), line.at)
            self.record.kinds["message given up: too old"] += 1
            return True
        return b"(queue active)" not in text

    def _door(self, line: Line) -> bool:
        """Smtpd, cleanup, pickup."""
        found = _CAME.match(line.text)
        if found is not None:
            key = found[1].decode("ascii")
            number = self.record.number_of(key)
            # Short ids are used again, and the line that says that the first owner is gone may be missing.
            if number is None or (found[2] is not None and self.record.has_recipients(key)):
                again = _REQUEUED.match(line.text)
                if again is not None:
                    self.record.ended(again[2].decode("ascii"), line.at)
                self._came(key, line.at)
            return True
        found = _REFUSED.match(line.text)
        if found is not None:
            self.record.kinds[f"refused at the door: {found[1].decode('ascii')}xx"] += 1
        return True

    def _report(self, line: Line) -> bool:
        """Bounce."""
        found = _REPORT.match(line.text)
        if found is not None:
            key = found[2].decode("ascii")
            number = self.record.number_of(key)
            if number is None:
                number = self._came(key, line.at)
            if number is not None:
                self.record.is_report[number] = 1
        return True

    def _came(self, key: str, at: float) -> int | None:
        """Note a message that no line has mentioned so far."""
        made_at = made_of(key)
        late = False
        if made_at is None:
            pass
        elif made_at < 1_000_000.0:
            # A short id: the fraction of a second. A line is written after what it is about.
            whole = at // 1.0
            made_at = whole + made_at
            at = made_at if made_at <= at or at == whole else made_at - 1.0
        else:
            offset = round((at - made_at) / _ROUND_S) * _ROUND_S
            if self._offset is None or offset < self._offset:
                self._offset = offset
            made_at += self._offset
            # Ids that look like it by accident are of another century.
            if abs(made_at - at) < 400 * 86_400:
                late = made_at < self.record.first_at - 5
                at = made_at
        return self.record.arrived(key, at, late=late)


def made_of(key: str) -> float | None:
    """Return when a queue id was made: seconds since the epoch, or below 1 the fraction of an unknown second; None if it is no id.

    Source: Postfix src/global/mail_queue.h. Long ids: seconds in base 52, at least six digits, four digits of
    microseconds, ``z``, the inode in base 51. Short ids: five hexadecimal digits of microseconds, the inode.
    """
    head, separator, inode = key.rpartition("z")
    if separator and inode and len(head) >= 10:
        seconds = micros = 0
        try:
            for character in head[:-4].encode("ascii"):
                seconds = seconds * 52 + _BASE52[character]
            for character in head[-4:].encode("ascii"):
                micros = micros * 52 + _BASE52[character]
        except (KeyError, UnicodeEncodeError):
            return None
        return seconds + micros / 1e6 if micros < 1_000_000 and _OLDEST_S < seconds < 1e11 else None
    try:
        micros = int(key[:5], 16)
        int(key[5:], 16)
    except ValueError:
        return None
    return micros / 1e6 if micros < 1_000_000 else None


_DAEMONS: Final = {
    **dict.fromkeys(
        (b"smtp", b"lmtp", b"relay", b"local", b"virtual", b"pipe", b"error", b"retry", b"discard", b"uucp"),
        "_agent",
    ),
    **dict.fromkeys((b"qmgr", b"nqmgr", b"oqmgr", b"postsuper"), "_queue"),
    **dict.fromkeys((b"smtpd", b"cleanup", b"pickup"), "_door"),
    b"bounce": "_report",
}  # fmt: skip
"""Last part of a program's name -> the method that takes its lines."""
