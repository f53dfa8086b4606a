"""The log lines of deliveries and of their ends, as OpenSMTPD writes them.

Several log readers exist that know these lines by heart (OpenSMTPD: mta.c, ``mta_delivery_log``, and
queue.c, ``queue_log``), so they differ in nothing, down to the two dialects.
"""

from typing import TYPE_CHECKING

from mta.core.envelopes.base import MdaEnvelope, MtaEnvelope
from mta.core.ids import EvpId, SessionId, show_evpid, show_session
from mta.core.reply import OUTCOME_WORDS
from mta.outbound import delivery_line, show_duration
from mta.queue.base import QueueUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mta.core.reply import Outcome

NO_SESSION = SessionId(0)
"""OpenSMTPD logs deliveries that failed without a connection under session 0."""

_UNKNOWN = "-"


class DeliveryLog:
    """Writes them. Between `of_session` and `of_nobody` lines are on behalf of that session."""

    def __init__(
        self,
        info: "Callable[[str], None]",
        *,
        now: "Callable[[], float]",
        details: "Callable[[EvpId], MtaEnvelope | MdaEnvelope | None]",
        relay_of: "Callable[[str], str]",
    ) -> None:
        """Write nothing yet.

        Args:
            info: takes a line.
            now: the clock.
            details: returns an envelope that no session carries; it may raise `QueueUnavailableError`.
            relay_of: returns the key of the relay for a domain.
        """
        self._info = info
        self._now = now
        self._details = details
        self._relay_of = relay_of
        self._session = NO_SESSION
        self._source = ""
        self._relay = ""
        self._carried: Mapping[EvpId, MtaEnvelope | MdaEnvelope] = {}

    def of_session(
        self,
        session: SessionId,
        *,
        source: str,
        relay: str,
        carried: "Mapping[EvpId, MtaEnvelope | MdaEnvelope]",
    ) -> None:
        """Write what follows on behalf of a session, for the envelopes that it carried."""
        self._session, self._source, self._relay = session, source, relay
        self._carried = carried

    def of_delivery(self, envelope: EvpId, details: MdaEnvelope) -> None:
        """Write what follows on behalf of a local delivery."""
        self._session, self._source, self._relay = NO_SESSION, "", ""
        self._carried = {envelope: details}

    def of_nobody(self) -> None:
        """Write what follows on behalf of no session."""
        if self._session or self._carried:
            self.of_session(NO_SESSION, source="", relay="", carried={})

    def attempt(self, envelope: EvpId, outcome: "Outcome", status: str) -> None:
        """Log what became of an attempt; of one without a connection, under session 0 and the relay's name."""
        session, source, relay = self._session, self._source, self._relay
        details = self._carried.get(envelope)
        if details is None:
            session, source = NO_SESSION, ""
            details = self._of(envelope)
        if isinstance(details, MdaEnvelope):
            self._info(
                mda_line(envelope, details, self._now() - details.created_at, outcome, status)
            )
            return
        if envelope not in self._carried:
            relay = self._relay_of(details.rcpt.rpartition("@")[2].lower()) or _UNKNOWN
        self._info(
            delivery_line(
                session,
                envelope,
                sender=details.sender,
                rcpt=details.rcpt,
                source=source,
                relay=relay,
                delay_s=max(0.0, self._now() - details.created_at),
                outcome=outcome,
                status=status,
            )
        )

    def end(self, envelope: EvpId, word: str, status: str) -> None:
        """Log an end without an attempt: ``Expire`` or ``Remove``."""
        details = self._carried.get(envelope) or self._of(envelope)
        delay = show_duration(max(0.0, self._now() - details.created_at))
        kind = "delivery" if isinstance(details, MdaEnvelope) else "relay"
        self._info(
            f"{kind}: {word} for {show_evpid(envelope)}: from=<{details.sender}>,"
            f" to=<{details.rcpt}>, rcpt=<->, delay={delay}, stat={status}"
        )

    def _of(self, envelope: EvpId) -> MtaEnvelope | MdaEnvelope:
        try:
            details = self._details(envelope)
        except QueueUnavailableError:
            details = None  # A line with gaps is better than none.
        return details or MtaEnvelope(_UNKNOWN, _UNKNOWN, self._now(), 0)


def mda_line(
    evpid: EvpId, details: MdaEnvelope, delay_s: float, outcome: "Outcome", status: str
) -> str:
    """Return the log line of a local delivery, unquoted as OpenSMTPD's mda.c, mda_log, writes it."""
    if outcome.value == 0:
        stat = status
    else:
        stat = status if status.startswith("Error (") else f"Error ({status})"
    return (
        f"{show_session(NO_SESSION)} mda delivery evpid={show_evpid(evpid)} from=<{details.sender}>"
        f" to=<{details.dest}> rcpt=<{details.rcpt}> user={details.user or '-'}"
        f" delay={show_duration(max(0.0, delay_s))} result={OUTCOME_WORDS[outcome]} stat={stat}"
    )


__all__ = ["DeliveryLog", "mda_line"]
