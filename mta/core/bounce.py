"""What becomes of a failure: who is told, in how many reports, and with which status code.

Never a bounce for a bounce: a report has the null sender, and nothing that has it is reported
(RFC 5321 4.5.5 and 6.1). One report tells of all failures of a message that are known together, because a
report for each of a thousand recipients is how one message becomes a flood.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from mta.core.envelopes.base import Flag
from mta.core.ids import EvpId, MsgId, msgid_of
from mta.core.instructions import BounceKind, Removal, RemoveEnvelope, SendBounce

_STATUS = re.compile(
    r"""(?: (?P<code> [2-5][0-9]{2}) (?: [ -]+ | $))?
        (?: (?P<class> [245]) \. (?P<subject> [0-9]{1,3}) \. (?P<detail> [0-9]{1,3}) (?![0-9.]))?
    """,
    re.VERBOSE | re.ASCII,
)
"""RFC 2034 4: the enhanced code follows the reply code and a space. RFC 3463 2: up to three digits."""

_UNKNOWN = "5.0.0"
"""RFC 3463 3.1: other undefined status; all that is known is that it failed for good."""

_EXPIRED = "4.4.7"
"""RFC 3463 3.5: delivery time expired; useful only as a persistent transient error."""


class Failure(NamedTuple):
    """An envelope that leaves the queue undelivered."""

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
    wishes = {wish.strip() for wish in notify.upper().split(",") if wish.strip()}
    return not wishes or ("FAILURE" in wishes and "NEVER" not in wishes)


def flags_for(sender: str, notify: str = "") -> Flag:
    """Return the flags that an envelope is born with."""
    return Flag.NONE if may_bounce(sender, notify) else Flag.NO_BOUNCE


def settle(failures: Iterable[Failure], kind: BounceKind) -> list[RemoveEnvelope | SendBounce]:
    """Return what to do with envelopes that failed for good: one report per message.

    Messages come in the order of their first failure, failures in the order given. Envelopes of which
    nobody may be told are removed; the others are deleted by the report's own commit.
    """
    unreported = Removal.BOUNCED if kind is BounceKind.FAILED else Removal.EXPIRED
    instructions: list[RemoveEnvelope | SendBounce] = []
    reports: dict[MsgId, list[tuple[EvpId, str]]] = {}
    for evpid, flags, status in failures:
        if flags & Flag.NO_BOUNCE:
            instructions.append(RemoveEnvelope(evpid, unreported, status))
        else:
            reports.setdefault(msgid_of(evpid), []).append((evpid, status))
    instructions.extend(
        SendBounce(message, kind, tuple(reported)) for message, reported in reports.items()
    )
    return instructions


def status_of(line: str, kind: BounceKind = BounceKind.FAILED) -> str:
    """Return the status code for a report: ``550 5.1.1 no such user`` gives 5.1.1.

    Args:
        line: the last reply in one line, or the network's error in words.
        kind: what the report is about.

    A failure has class 5, whatever the host made of it: where its two codes contradict each other,
    the reply code is what was obeyed. An expired envelope keeps the code of its last temporary failure,
    as RFC 3463 3.5 asks ("the code for the actual problem ... should be returned rather"), and has
    4.4.7 if there was none; RFC 3464 2.3.4 lets a failed recipient have class 4.
    """
    found = _STATUS.match(line)
    assert found is not None, line  # every part of it is optional
    code, given, subject, detail = found.group("code", "class", "subject", "detail")
    if given is None:
        return _UNKNOWN if kind is BounceKind.FAILED else _EXPIRED
    obeyed = "5" if kind is BounceKind.FAILED else (code or given)[0]
    if obeyed not in "45":
        return _EXPIRED
    if kind is BounceKind.EXPIRED and subject == "0" and detail == "0":
        return _EXPIRED
    return f"{obeyed}.{int(subject)}.{int(detail)}"
