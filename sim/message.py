"""A message of the model, from the door until its last envelope is gone."""

from typing import Final

from mta.core.envelopes.base import Recipient, Transaction, local_key
from mta.core.ids import EvpId

RULE: Final = "local"
"""Name of the rule that a local address finds."""


def local_recipient(prefix: str, number: int, domain: str) -> Recipient:
    """Return what the door makes of a local address: its user, and no relay's key (mta/addressing.py)."""
    user = f"{prefix}{number}"
    return Recipient(f"{user}@{domain}", local_key(user), delivery="local", user=user, rule=RULE)


class Message:
    """A message on its way into the queue, and there until its last envelope is gone."""

    __slots__ = (
        "due_s",
        "is_bounce",
        "is_local",
        "left",
        "number",
        "recipients",
        "reports",
        "transaction",
    )

    def __init__(
        self,
        due_s: float,
        transaction: Transaction,
        recipients: tuple[Recipient, ...],
        reports: tuple[EvpId, ...] | None = None,
        number: int = -1,
    ) -> None:
        self.due_s = due_s
        """When it was due, or when the bounce was decided."""
        self.transaction = transaction
        self.recipients = recipients
        self.left = len(recipients)
        """Envelopes that are not gone yet."""
        self.is_local = recipients[0].delivery != ""
        self.is_bounce = reports is not None
        self.reports = reports or ()
        """Envelopes that a bounce replaces."""
        self.number = number
        """Its number in the schedule; -1 for a bounce."""
