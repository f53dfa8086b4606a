"""Reads OpenSMTPD's log, and this server's own, which has the same lines.

Three dialects (usr.sbin/smtpd: mta.c, mta_session.c, mda.c, smtp_session.c, queue.c): ``key=value`` with and without
quotes, and the sentences of 2013. The patterns are here for everybody who reads such a log (testbed/maillog.py reads
more of it: connections, routes).
"""

import re
from typing import Final

from mta.core.reply import Outcome
from sim.logs.lines import Line
from sim.logs.record import Record

SID: Final = r"(?P<sid>[0-9a-f]{16})"
DURATION: Final = re.compile(r"(-?)(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?")
# Addresses, twice as long as they may be, and no longer (RFC 5321 4.5.3.1: 256 bytes): in a line that a stranger has filled with what
# looks like their ends, each of three could begin and end anywhere else.
RELAYED: Final = re.compile(
    # Quotes may be missing, and a reply may have quotes of its own.
    SID
    + r" mta delivery evpid=(?P<evpid>[0-9a-f]{16}) from=<(?P<sender>.{0,512}?)> to=<(?P<to>.{0,512}?)>"
    r' rcpt=<(?P<rcpt>.{0,512}?)> source="?(?P<source>[^" ]*)"? relay="?(?P<relay>[^"]{0,512}?)"?'
    r' delay=(?P<delay>\S+) result="?(?P<result>Ok|TempFail|PermFail)"?'
    r' stat=(?P<quote>"?)(?P<status>.*)(?P=quote)'
)
"""An attempt of the relaying agent."""
LOCAL: Final = re.compile(
    SID
    + r" mda delivery evpid=(?P<evpid>[0-9a-f]{16}) from=<(?P<sender>.{0,512}?)> to=<(?P<to>.{0,512}?)>"
    r' rcpt=<(?P<rcpt>.{0,512}?)> user="?(?P<user>[^" ]+)"? delay=(?P<delay>\S+)'
    r' result="?(?P<result>Ok|TempFail|PermFail)"? stat=(?P<quote>"?)(?P<status>.*)(?P=quote)'
)
"""An attempt at a local delivery."""
END: Final = re.compile(
    r"(?:relay|delivery): (?P<word>Expire|Remove) for (?P<evpid>[0-9a-f]{16}): from=<(?P<sender>.{0,512}?)>,"
    r" to=<(?P<to>.{0,512}?)>, rcpt=<.{0,512}?>, delay=(?P<delay>[^,]+), stat=(?P<status>.*)"
)
"""An envelope left without an attempt."""

_OLD: Final = re.compile(
    r"(?P<agent>relay|delivery): (?P<result>Ok|TempFail|PermFail) for (?P<evpid>[0-9a-f]{16}): from=<(?P<sender>.{0,512}?)>,"
    r" to=<(?P<to>.{0,512}?)>,(?: rcpt=<.{0,512}?>,)? (?:relay=(?P<relay>[^,]{0,512}?),?|user=[^,]*,)(?: method=[^,]*,)?"
    r" delay=(?P<delay>[^,]+), stat=(?P<status>.*)"
)
_MESSAGE: Final = re.compile(
    SID
    + r" smtp message msgid=(?P<msgid>[0-9a-f]{8}) size=(?P<size>\d{1,18}) nrcpt=(?P<count>\d{1,9})"
)
_OLD_MESSAGE: Final = re.compile(
    r"smtp-in: Accepted message (?P<msgid>[0-9a-f]{8}) on session [0-9a-f]{16}: from=<(?P<sender>.{0,512}?)>,"
    r"(?: to=<.{0,512}?>,)? size=(?P<size>\d{1,18}), n(?:rcpts?|dest)=(?P<count>\d{1,9})"
)
_ENVELOPE: Final = re.compile(
    SID
    + r" smtp envelope evpid=(?P<evpid>[0-9a-f]{16}) from=<(?P<sender>.{0,512}?)> to=<(?P<to>.{0,512}?)>"
)
_CONNECTED: Final = re.compile(
    SID + r" (?P<way>smtp|mta) (?P<what>connected|connecting|disconnected)\b(?P<rest>.*)"
)
_REPORT: Final = re.compile(r"(?P<msgid>[0-9a-f]{8})[0-9a-f]{8} bounce message=[0-9a-f]{8}\b")
"""This server's line about a report that it wrote; OpenSMTPD's come in over a session of its own."""
_REFUSED: Final = re.compile(SID + r" smtp failed-command .*result=\"?(?P<class>[45])\d\d")
_OURS: Final = re.compile(
    r"[0-9a-f]{16} (?:smtp (?:message|envelope)|mta delivery|mda delivery) |(?:relay|delivery): |smtp-in: Accepted"
)
_OUTCOMES: Final = {"Ok": Outcome.OK, "TempFail": Outcome.TEMPFAIL, "PermFail": Outcome.PERMFAIL}
_NO_CONNECTION: Final = (
    "Network error on destination MXs", "Connection refused", "Connection timeout", "Connection reset",
    "No MX found", "Temporary failure in MX lookup", "Connection closed unexpectedly", "No valid route",
)  # fmt: skip
_UNIQUE: Final = re.compile(r"\b(?=\w*\d)\w{6,}")
OURS: Final = b"mta"
"""What this server calls itself."""
_SESSIONS_MAX: Final = 100_000
REPLY_MAX: Final = 160


def seconds(text: str) -> int | None:
    """Return the length of ``1d2h3m4s``, or None."""
    match = DURATION.fullmatch(text)
    if match is None or not any(match.groups()[1:]):
        return None
    sign, *parts = match.groups()
    days, hours, minutes, rest = (int(part or 0) for part in parts)
    total = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    return -total if sign else total


class OpenSmtpdReader:
    """Takes lines of OpenSMTPD or of this server and tells a record."""

    name = "opensmtpd"

    def __init__(self, record: Record) -> None:
        self.record = record
        self._local: dict[str, None] = {}
        """Sessions of its own, which reports come in over."""
        self._since: dict[str, float] = {}
        """Outbound session -> when it began, or ended its last transaction."""

    @staticmethod
    def knows(line: Line) -> bool:
        """Return whether a line is one of its."""
        return _OURS.match(line.text[:60].decode("latin-1")) is not None

    def finish(self) -> None:
        """Nothing more comes."""

    def take(self, line: Line) -> bool:
        """Take a line; return False if it is about mail and can't be understood."""
        if line.program == OURS:
            self.name = "ours"
        text = line.text.decode("utf-8", "replace").rstrip()
        found = _MESSAGE.match(text)
        if found is not None:
            self._came(found["msgid"], found, line.at)
            if found["sid"] in self._local:
                self._mark(found["msgid"])
            return True
        found = _ENVELOPE.match(text)
        if found is not None:
            self._recipient(found["evpid"], found["to"], line.at)
            return True
        found = RELAYED.fullmatch(text) or LOCAL.fullmatch(text) or _OLD.fullmatch(text)
        if found is not None:
            return self._attempt(found, line.at)
        found = _CONNECTED.match(text)
        if found is not None:
            self._session(found, line.at)
            return True
        found = END.fullmatch(text)
        if found is not None:
            self._end(found, line.at)
            return True
        found = _OLD_MESSAGE.match(text)
        if found is not None:
            self._came(found["msgid"], found, line.at)
            return True
        found = _REPORT.match(text)
        if found is not None:
            key = found["msgid"]
            if (
                self.record.number_of(key) is not None
                or self.record.arrived(key, line.at) is not None
            ):
                # One sender, one envelope.
                self.record.describe(key, recipients=1)
            self._mark(key)
            return True
        found = _REFUSED.match(text)
        if found is not None:
            self.record.kinds[f"refused at the door: {found['class']}xx"] += 1
            return True
        return _OURS.match(text) is None

    def _came(self, msgid: str, found: re.Match[str], at: float) -> None:
        if self.record.number_of(msgid) is not None or self.record.arrived(msgid, at) is not None:
            self.record.describe(msgid, size=int(found["size"]), recipients=int(found["count"]))
            # Who is fast says that it delivered before it says that it accepted.
            if self.record.settled(msgid):
                self.record.ended(msgid, at)

    def _mark(self, msgid: str) -> None:
        number = self.record.number_of(msgid)
        if number is not None:
            self.record.is_report[number] = 1

    def _recipient(self, evpid: str, to: str, at: float) -> int | None:
        """Return the number of an envelope's recipient: told apart by its evpid, as forwarding makes equal ones."""
        msgid = evpid[:8]
        if self.record.number_of(msgid) is None and self.record.arrived(msgid, at) is None:
            return None
        return self.record.recipient(msgid, evpid, to.rpartition("@")[2].lower())

    def _session(self, found: re.Match[str], at: float) -> None:
        sid, way, what = found["sid"], found["way"], found["what"]
        known: dict[str, float] | dict[str, None] = self._since if way == "mta" else self._local
        if what == "disconnected":
            known.pop(sid, None)
        elif way == "mta" and what == "connecting":
            self._since[sid] = at
        elif way == "smtp" and "address=local" in found["rest"]:
            self._local[sid] = None
        # A session whose end the log does not have must not be remembered for ever.
        if len(known) > _SESSIONS_MAX:
            del known[next(iter(known))]

    def _attempt(self, found: re.Match[str], at: float) -> bool:
        delay_s = seconds(found["delay"])
        if delay_s is None:
            return False
        record = self.record
        msgid = found["evpid"][:8]
        number = record.number_of(msgid)
        if number is None:
            arrived_at = at - max(0, delay_s)
            if record.arrived(msgid, arrived_at, late=arrived_at < record.first_at - 1) is None:
                return True
            record.kinds["message seen for the first time at an attempt"] += 1
        if not found["sender"]:
            # Whoever relays reports of others has a few of these counted as its own; nothing tells them apart later.
            self._mark_if_unseen(msgid)
        recipient = self._recipient(found["evpid"], found["to"], at)
        if recipient is None:
            return True
        groups = found.groupdict()
        sid, relay, status = groups.get("sid", ""), groups.get("relay") or "", found["status"]
        is_session = bool(sid) and bool(sid.strip("0")) and bool(relay)
        since = self._since.get(sid)
        service_s = 0.0
        if is_session and since is not None:
            service_s = max(0.0, min(at - since, float(max(0, delay_s)) + 1.0))
            self._since[sid] = at
        outcome = _OUTCOMES[found["result"]]
        failed = outcome is not Outcome.OK
        flushed = failed and bool(relay) and not is_session and bool(sid)
        record.attempt(
            recipient,
            at,
            outcome,
            # What is flushed without a session was not tried itself: others were.
            tried=not flushed,
            connected=not (failed and (flushed or status.startswith(_NO_CONNECTION))),
            service_s=service_s,
            host=relay if is_session else "",
            reply=_UNIQUE.sub("#", status[:REPLY_MAX]) if failed else "",
        )
        if record.settled(msgid):
            record.ended(msgid, at)
        return True

    def _mark_if_unseen(self, msgid: str) -> None:
        number = self.record.number_of(msgid)
        if number is not None and self.record.size[number] < 0:
            self.record.is_report[number] = 1

    def _end(self, found: re.Match[str], at: float) -> None:
        recipient = self._recipient(found["evpid"], found["to"], at)
        if recipient is not None:
            self.record.given_up(recipient, at)
            word = "too old" if found["word"] == "Expire" else "removed by the operator"
            self.record.kinds[f"envelope given up: {word}"] += 1
            msgid = found["evpid"][:8]
            if self.record.settled(msgid):
                self.record.ended(msgid, at)
