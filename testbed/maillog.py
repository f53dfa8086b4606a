"""Reads a mail log: what was tried for each envelope, over which connection, and what became of it.

Nothing but the lines is asked, so it works on the log of any run, and on OpenSMTPD's own maillog: three dialects, with and
without quotes, with and without ``key=value`` (OpenSMTPD mta.c, mta_session.c, queue.c). The rule: a line of the way
out is understood completely or kept in `MailLog.unread`; nothing is guessed.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import Final, NamedTuple

from sim.logs.opensmtpd import END, LOCAL, RELAYED, SID, seconds

_PREFIX: Final = re.compile(
    r"(?P<month>[A-Z][a-z]{2}) +(?P<day>\d+) (?P<clock>\d\d:\d\d:\d\d) \S+ [\w.-]+(?:\[\d+\])?: (?P<line>.*)"
)
_MONTHS: Final = [
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "May",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
]
_OURS: Final = re.compile(
    r"[0-9a-f]{16} (?:mta |mda delivery )|smtp-out: |(?:relay|delivery): (?:Expire|Remove) "
)
"""Lines that this module promises to understand. ``cert-check`` says smtp there, and no session needs it."""


@dataclass(slots=True)
class Session:
    """One outbound connection."""

    session: str
    """16 hexadecimal digits."""
    connecting_at: float
    """Seconds since the epoch, as all instants here: the log has whole ones."""
    scheme: str
    address: str
    port: int
    host: str
    """Name of the mail exchanger."""
    connected_at: float | None = None
    ciphers: str = ""
    certificate: str = ""
    """``valid``, ``unverified``; empty without TLS."""
    messages: int = 0
    """Messages that the host took before the connection ended."""
    errors: list[str] = field(default_factory=list)
    """Why it ended, or was tried again with less."""
    rejects_all: bool = False
    """The host took none of many messages."""
    ended_at: float | None = None


class Attempt(NamedTuple):
    """One attempt to deliver one envelope."""

    evpid: str
    number: int
    """From 1, in the order of the log."""
    t: float
    session: str
    """Empty if it failed without a connection."""
    sender: str
    to: str
    rcpt: str
    source: str
    """Local address; empty for the system's choice."""
    relay: str
    """What the line says: ``address (host)``, or the destination without a connection."""
    address: str
    """Of the host; empty without a connection."""
    host: str
    delay_s: int
    """Since the envelope was created."""
    result: str
    """``Ok``, ``TempFail`` or ``PermFail``."""
    status: str
    """The reply."""
    user: str = ""
    """Whose mailbox it is; empty for what is relayed."""


class RouteChange(NamedTuple):
    """A route was left alone, or used again."""

    t: float
    source: str
    address: str
    rest_s: float | None
    """For how long it is disabled; None if it is enabled."""
    by_operator: bool


class Trouble(NamedTuple):
    """What a destination or a source could not do: a look-up, an address family."""

    t: float
    what: str
    name: str
    text: str


class Holding(NamedTuple):
    """A relay's envelopes are held from here on, or no longer."""

    t: float
    relay: str
    on: bool


class End(NamedTuple):
    """An envelope left without an attempt."""

    t: float
    evpid: str
    word: str
    """``Expire`` or ``Remove``."""
    sender: str
    to: str
    delay_s: int
    status: str


class MailLog:
    """What lines say; `read` them in order."""

    def __init__(self, *, year: int, zone: tzinfo | None = None) -> None:
        """Know nothing yet.

        Args:
            year: of the first line, which does not say.
            zone: of the log's clock; None for this machine's.
        """
        self.sessions: dict[str, Session] = {}
        self.attempts: dict[str, list[Attempt]] = {}
        """By envelope."""
        self.routes: list[RouteChange] = []
        self.holds: list[Holding] = []
        self.troubles: list[Trouble] = []
        self.ends: list[End] = []
        self.unread: list[str] = []
        """Lines of the way out that could not be understood."""
        self._year = year
        self._zone = zone
        self._month = 0

    def read(self, lines: Iterable[str]) -> None:
        """Take lines in, in their order; those of other programs and of the way in are left out."""
        for line in lines:
            match = _PREFIX.fullmatch(line.rstrip("\n"))
            if match is None or not _OURS.match(match["line"]):
                continue
            if not self._take(match["line"], self._instant(match)):
                self.unread.append(line)

    def _instant(self, match: re.Match[str]) -> float:
        month = _MONTHS.index(match["month"]) + 1
        if month < self._month - 6:
            self._year += 1  # The log went on over New Year.
        self._month = month
        text = f"{self._year} {month} {match['day']} {match['clock']}"
        return datetime.strptime(text, "%Y %m %d %H:%M:%S").replace(tzinfo=self._zone).timestamp()

    def _take(self, line: str, t: float) -> bool:
        for pattern, take in _TAKERS:
            match = pattern.fullmatch(line)
            if match is not None:
                return take(self, match, t) is not False
        return False

    # One method per kind of line; False says that it can't be.

    def _connecting(self, match: re.Match[str], t: float) -> None:
        known = self.sessions.get(match["sid"])
        if known is not None and known.ended_at is None:
            # Tried again, with less TLS, under the same id.
            known.scheme, known.connected_at = match["scheme"], None
            return
        self.sessions[match["sid"]] = Session(
            match["sid"],
            t,
            match["scheme"],
            match["address"].strip("[]"),
            int(match["port"]),
            match["host"],
        )

    def _about(self, match: re.Match[str], t: float) -> bool:
        """Take a line about a connection that is there."""
        session = self.sessions.get(match["sid"])
        if session is None:
            return False
        what, rest = match["what"], match["rest"] or ""
        if what == "connected":
            session.connected_at = t
        elif what == "tls":
            session.ciphers = rest.removeprefix("ciphers=")
        elif what == "cert-check":
            session.certificate = rest.partition('"')[2].partition('"')[0]
        elif what == "host-rejects-all-mails":
            session.rejects_all = True
        elif what == "closing":
            session.errors.append(rest.removeprefix("reason="))
        else:
            assert what in ("error", "disconnected"), what
            session.ended_at = t
            reason, _, messages = rest.removeprefix("reason=").partition(" messages=")
            if what == "error":
                session.errors.append(rest.removeprefix("reason="))
            elif messages.isdecimal():
                session.messages = int(messages)
            else:
                return reason == "quit" and not messages
        return True

    def _error(self, match: re.Match[str], t: float) -> bool:
        session = self.sessions.get(match["sid"])
        if session is None:
            return False
        session.errors.append(match["text"])
        if match["count"]:
            session.messages, session.ended_at = int(match["count"]), t
        return True

    def _delivery(self, match: re.Match[str], t: float) -> bool:
        delay_s = seconds(match["delay"])
        if delay_s is None:
            return False
        session = match["sid"] if match["sid"].strip("0") else ""
        source, relay = match["source"], match["relay"]
        address, _, host = relay.partition(" (")
        tried = self.attempts.setdefault(match["evpid"], [])
        tried.append(
            Attempt(
                match["evpid"],
                len(tried) + 1,
                t,
                session,
                match["sender"],
                match["to"],
                "" if match["rcpt"] == "-" else match["rcpt"],
                "" if source == "-" else source,
                relay,
                address if session else "",
                host.removesuffix(")") if session else "",
                delay_s,
                match["result"],
                match["status"],
            )
        )
        return True

    def _local(self, match: re.Match[str], t: float) -> bool:
        delay_s = seconds(match["delay"])
        if delay_s is None:
            return False
        tried = self.attempts.setdefault(match["evpid"], [])
        tried.append(
            Attempt(
                match["evpid"],
                len(tried) + 1,
                t,
                session="",
                sender=match["sender"],
                to=match["to"],
                rcpt="" if match["rcpt"] == "-" else match["rcpt"],
                source="",
                relay="",
                address="",
                host="",
                delay_s=delay_s,
                result=match["result"],
                status=match["status"],
                user=match["user"],
            )
        )
        return True

    def _route(self, match: re.Match[str], t: float) -> None:
        rest_s = float(match["rest"]) if match["rest"] else None
        source = "" if match["source"] == "[]" else match["source"]
        self.routes.append(RouteChange(t, source, match["address"], rest_s, bool(match["admin"])))

    def _held(self, match: re.Match[str], t: float) -> None:
        self.holds.append(Holding(t, match["relay"], match["what"].startswith("hiwat")))

    def _trouble(self, match: re.Match[str], t: float) -> None:
        self.troubles.append(Trouble(t, match["what"], match["name"], match["text"] or ""))

    def _end(self, match: re.Match[str], t: float) -> bool:
        delay_s = seconds(match["delay"])
        if delay_s is None:
            return False
        sender, to = match["sender"], match["to"]
        self.ends.append(
            End(t, match["evpid"], match["word"], sender, to, delay_s, match["status"])
        )
        return True


def read_log(lines: Iterable[str], *, year: int, zone: tzinfo | None = None) -> MailLog:
    """Return what the lines of a log say; see `MailLog`."""
    log = MailLog(year=year, zone=zone)
    log.read(lines)
    return log


_TAKERS: Final[
    tuple[tuple[re.Pattern[str], Callable[[MailLog, re.Match[str], float], bool | None]], ...]
] = (
    (RELAYED, MailLog._delivery),
    (LOCAL, MailLog._local),
    (
        re.compile(
            SID + r" mta connecting address=(?P<scheme>[a-z+]+)://(?P<address>\S+):(?P<port>\d+)"
            r" host=(?P<host>\S+)(?: tls-policy=\S+)?"
        ),
        MailLog._connecting,
    ),
    (
        re.compile(
            SID
            + r" mta (?P<what>connected|tls|cert-check|error|closing|disconnected|host-rejects-all-mails)"
            r"(?: (?P<rest>.*))?"
        ),
        MailLog._about,
    ),
    (
        re.compile(
            r"smtp-out: Error on session "
            + SID
            + r"(?: after (?P<count>\d+) messages? sent)?: (?P<text>.*)"
        ),
        MailLog._error,
    ),
    (
        re.compile(
            r"smtp-out: (?:Disabling|Enabling) route (?P<source>\S+) <-> (?P<address>\S+)(?: \([^)]*\))?"
            r"(?: for (?P<rest>[\d.]+)s)?(?P<admin> per admin request)?"
        ),
        MailLog._route,
    ),
    (
        re.compile(
            r"smtp-out: (?P<what>hiwat reached|back to lowat) on \[relay:(?P<relay>.*)\]: (?:holding envelopes|releasing)"
        ),
        MailLog._held,
    ),
    (
        re.compile(
            r"smtp-out: (?P<what>Failed to resolve MX for|Address family mismatch on|No MX found for|No valid route for)"
            r" \[(?:relay|connector):(?P<name>.*?)\](?:: (?P<text>.*))?"
        ),
        MailLog._trouble,
    ),
    (
        re.compile(r"smtp-out: (?P<what>Error on) (?P<name>\S+ <-> \S+): (?P<text>.*)"),
        MailLog._trouble,
    ),
    (END, MailLog._end),
)
"""What a line looks like, and what takes it; the first that fits."""
