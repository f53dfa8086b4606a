"""Who is told what became of an envelope, in how many reports, and with which status code.

Of failures the sender hears unless it must not, of delays unless NOTIFY says otherwise, of success only if
NOTIFY asks for it (RFC 3461 4.1). Never a bounce for a bounce: a report has the null sender, and nothing that has it is reported
(RFC 5321 4.5.5 and 6.1). One report tells of all failures of a message that are known together, because a
report for each of a thousand recipients is how one message becomes a flood.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mta.core.envelopes.base import WARNED_SHIFT, WARNINGS_MAX, Flag
from mta.core.ids import EvpId, MsgId, msgid_of
from mta.core.instructions import BounceKind, Removal, RemoveEnvelope, SendBounce

_STATUS = re.compile(
    r"""(?: (?P<code> [2-5][0-9]{2}) (?: [ -]+ | $))?
        (?: (?P<class> [245]) \. (?P<subject> [0-9]{1,3}) \. (?P<detail> [0-9]{1,3}) (?![0-9.]))?
    """,
    re.VERBOSE | re.ASCII,
)
"""RFC 2034 4: the enhanced code follows the reply code and a space. RFC 3463 2: up to three digits."""

_GATHER_MAX_S = 60.0
"""A report that waits is lost by a crash, and its failure has to happen again."""

_UNKNOWN = "5.0.0"
"""RFC 3463 3.1: other undefined status; all that is known is that it failed for good."""

_EXPIRED = "4.4.7"
"""RFC 3463 3.5: delivery time expired; useful only as a persistent transient error."""


@dataclass(slots=True)
class BounceSettings:
    """What reports are sent, and how much they hold."""

    warn_interval_s: list[float] = field(default_factory=lambda: [4 * 3600.0])
    """After how many seconds in the queue the sender is told that a message is delayed, at the next attempt
    that fails; up to 4 values, none for no warnings. OpenSMTPD ``bounce warn-interval`` 4h; Postfix
    ``delay_warning_time`` 0h."""
    gather_s: float = 1.0
    """How long a report waits for other recipients of its message. OpenSMTPD, bounce.c."""
    max_recipients: int = 1000
    """Recipients in one report; more make several. Ours: as many as a message may have."""
    max_size: int = 50_000
    """Bytes of the longest message that is returned whole (RET=FULL). Postfix ``bounce_size_limit``; a report
    must not be worth sending for its size (Frei, Silvestri, Ollmann 2004: 3.6 MB in, 1.2 GB out)."""
    max_header: int = 16 * 1024
    """Bytes of the message's header in a report. Ours; Postfix ``header_size_limit`` is 100 KiB."""

    def problems(self) -> Iterator[tuple[str, object, str]]:
        """Yield values that can't be used."""
        if len(self.warn_interval_s) > WARNINGS_MAX:
            yield "warn_interval_s", self.warn_interval_s, f"has more than {WARNINGS_MAX} values"
        for number, value in enumerate(self.warn_interval_s):
            if not 0 < value < math.inf:
                yield f"warn_interval_s.{number}", value, "must be above 0"
            elif number and value <= self.warn_interval_s[number - 1]:
                yield f"warn_interval_s.{number}", value, "must be above the one before"
        if not 0 <= self.gather_s <= _GATHER_MAX_S:
            yield "gather_s", self.gather_s, f"must be between 0 and {_GATHER_MAX_S:g}"
        for key in ("max_recipients", "max_size", "max_header"):
            if getattr(self, key) < 1:
                yield key, getattr(self, key), "must be above 0"


class Failure(NamedTuple):
    """An envelope that leaves the queue undelivered, or whose sender is to hear something else of it."""

    evpid: EvpId
    flags: int
    """`Flag` bits."""
    status: str
    """The last reply in one line."""


def may_bounce(sender: str, notify: str = "") -> bool:
    """Return False if nobody may be told that an envelope failed; its flag is `Flag.NO_BOUNCE` then.

    Args:
        sender: reverse-path, empty for ``<>``.
        notify: NOTIFY of RFC 3461 4.1, comma-separated, or empty: then failures are reported.
    """
    if not sender:
        return False
    wishes = _wishes(notify)
    return not wishes or ("FAILURE" in wishes and "NEVER" not in wishes)


def flags_for(sender: str, notify: str = "") -> Flag:
    """Return the flags that an envelope is born with."""
    flags = Flag.NONE if may_bounce(sender, notify) else Flag.NO_BOUNCE
    if not sender:
        return flags | Flag.NO_WARNING
    wishes = _wishes(notify)
    if wishes and ("DELAY" not in wishes or "NEVER" in wishes):
        flags |= Flag.NO_WARNING
    if "SUCCESS" in wishes and "NEVER" not in wishes:
        flags |= Flag.SUCCESS
    return flags


def _wishes(notify: str) -> set[str]:
    return {wish.strip() for wish in notify.upper().split(",") if wish.strip()}


def after_warning(flags: int, waited_s: float, intervals_s: Sequence[float]) -> int | None:
    """Return the flags of an envelope whose sender is to be warned now, or None if it is not.

    Args:
        flags: as they are.
        waited_s: how long it is in the queue.
        intervals_s: when to warn, in ascending order. Those that passed together are one warning.
    """
    if flags & Flag.NO_WARNING:
        return None
    passed = sum(waited_s >= interval for interval in intervals_s)
    if passed <= flags >> WARNED_SHIFT:
        return None
    return flags & ((1 << WARNED_SHIFT) - 1) | passed << WARNED_SHIFT


def settle(failures: Iterable[Failure], kind: BounceKind) -> list[RemoveEnvelope | SendBounce]:
    """Return what to do with envelopes that failed for good, or that are reported otherwise: one report per message.

    Messages come in the order of their first failure, failures in the order given. Envelopes of which
    nobody may be told are removed; the others are deleted by the report's own commit.
    """
    unreported = Removal.BOUNCED if kind is BounceKind.FAILED else Removal.EXPIRED
    instructions: list[RemoveEnvelope | SendBounce] = []
    reports: dict[MsgId, list[tuple[EvpId, str]]] = {}
    for evpid, flags, status in failures:
        if flags & Flag.NO_BOUNCE and kind.is_failure:
            instructions.append(RemoveEnvelope(evpid, unreported, status))
        else:
            reports.setdefault(msgid_of(evpid), []).append((evpid, status))
    instructions.extend(
        SendBounce(message, kind, tuple(reported)) for message, reported in reports.items()
    )
    return instructions


class Gathering:
    """Reports that wait a moment for other recipients of their message: for which, and until when.

    One of which no more is to come goes at once, and so does one that is full.
    """

    __slots__ = ("_recipients_max", "_wait_s", "_waiting")

    def __init__(self, *, wait_s: float, recipients_max: int) -> None:
        """Wait for ``wait_s`` seconds from the first recipient on, for ``recipients_max`` of them."""
        self._wait_s = wait_s
        self._recipients_max = recipients_max
        self._waiting: dict[tuple[MsgId, BounceKind], tuple[float, list[tuple[EvpId, str]]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, report: SendBounce, now: float, *, is_last: bool) -> list[SendBounce]:
        """Take a report; return those that go now.

        Args:
            report: what is to be reported.
            now: the clock.
            is_last: nothing else of its message can follow.
        """
        key = (report.msgid, report.kind)
        since, gathered = self._waiting.setdefault(key, (now, []))
        gathered.extend(report.failures)
        ready = []
        while len(gathered) > self._recipients_max:
            ready.append(self._report(key, gathered[: self._recipients_max]))
            del gathered[: self._recipients_max]
        if is_last or len(gathered) == self._recipients_max or since + self._wait_s <= now:
            del self._waiting[key]
            ready.append(self._report(key, gathered))
        return ready

    def due(self, now: float) -> list[SendBounce]:
        """Return what has waited for long enough; `math.inf` stands for all."""
        ready = []
        for key, (since, gathered) in list(self._waiting.items()):
            if since + self._wait_s <= now:
                del self._waiting[key]
                ready.append(self._report(key, gathered))
        return ready

    def next_due(self) -> float | None:
        """Return when `due` is next worth a call."""
        # In the order of their first recipients, hence of their instants.
        return next((since + self._wait_s for since, _ in self._waiting.values()), None)

    def _report(
        self, key: tuple[MsgId, BounceKind], reported: list[tuple[EvpId, str]]
    ) -> SendBounce:
        return SendBounce(*key, tuple(reported))


def status_of(line: str, kind: BounceKind = BounceKind.FAILED) -> str:
    """Return the status code for a report: ``550 5.1.1 no such user`` gives 5.1.1.

    Args:
        line: the last reply in one line, or the network's error in words.
        kind: what the report is about.

    Delivery is class 2 and a delay class 4. A failure has class 5, whatever the host made of it: where its two codes contradict each other,
    the reply code is what was obeyed. An expired envelope keeps the code of its last temporary failure,
    as RFC 3463 3.5 asks ("the code for the actual problem ... should be returned rather"), and has
    4.4.7 if there was none; RFC 3464 2.3.4 lets a failed recipient have class 4.
    """
    found = _STATUS.match(line)
    assert found is not None, line  # every part of it is optional
    code, given, subject, detail = found.group("code", "class", "subject", "detail")
    if kind.is_success or kind is BounceKind.DELAYED:
        obeyed = "2" if kind.is_success else "4"
        if given != obeyed:
            return f"{obeyed}.0.0"
        return f"{obeyed}.{int(subject)}.{int(detail)}"
    if given is None:
        return _UNKNOWN if kind is BounceKind.FAILED else _EXPIRED
    obeyed = "5" if kind is BounceKind.FAILED else (code or given)[0]
    if obeyed not in "45":
        return _EXPIRED
    if kind is BounceKind.EXPIRED and subject == "0" and detail == "0":
        return _EXPIRED
    return f"{obeyed}.{int(subject)}.{int(detail)}"
