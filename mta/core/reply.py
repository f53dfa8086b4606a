"""What a host answered, and what that means for mail.

A reply is data, never an exception: 2xx delivered, 4xx try later, 5xx give up (RFC 5321 4.2.1).
Everything that is not a well-formed 2xx or 5xx reply is temporary, because only the remote host may
declare a failure permanent.
"""

import enum
from typing import NamedTuple


class Outcome(enum.IntEnum):
    """What became of one attempt for one envelope."""

    OK = 0
    """The remote host took responsibility: 2xx after the dot."""
    TEMPFAIL = 1
    """4xx, a network error, a protocol error or a local fault: try again later."""
    PERMFAIL = 2
    """5xx: the sender gets a bounce."""
    LOOP = 3
    """Too many hops; permanent."""


OUTCOME_WORDS = {
    Outcome.OK: "Ok",
    Outcome.TEMPFAIL: "TempFail",
    Outcome.PERMFAIL: "PermFail",
    Outcome.LOOP: "Loop",
}
"""The words of OpenSMTPD's ``result=`` (mta.c, ``mta_delivery_log``)."""


class Reply(NamedTuple):
    """One SMTP reply, folded into one line."""

    code: int
    """Three digits (RFC 5321 4.2)."""
    enhanced: str
    """``class.subject.detail`` (RFC 3463), or empty."""
    text: str
    """The rest; printable, without line breaks."""

    @property
    def outcome(self) -> Outcome:
        """What the first digit says; anything but 2 and 5 is temporary."""
        first = self.code // 100
        if first == 2:
            return Outcome.OK
        return Outcome.PERMFAIL if first == 5 else Outcome.TEMPFAIL

    def __str__(self) -> str:
        """Return the reply as it is sent: ``250 2.0.0 Ok``, parts that are empty left out."""
        return " ".join(part for part in (f"{self.code:03d}", self.enhanced, self.text) if part)
