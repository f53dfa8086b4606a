"""A recipient as the queue's tables have it.

Four columns were there before there were local deliveries, and four are enough: what a local one has more goes
where a relayed one has its domain, as ``@`` and a JSON array, which no domain can be taken for. So no table
changes, and a queue of before is read as it is.
"""

from typing import Final

import msgspec

from mta.core.envelopes.base import Recipient, local_key

_MARK: Final = "@"
_decode: Final = msgspec.json.Decoder(tuple[str, str, str, str, str]).decode


def columns_of(recipient: Recipient) -> tuple[str, str, str, str]:
    """Return address, domain, notify and orcpt of a recipient."""
    address, domain, notify, orcpt, delivery, user, tag, dest, rule = recipient
    if delivery:
        assert domain == local_key(user), recipient
        domain = _MARK + msgspec.json.encode((user, delivery, tag, dest, rule)).decode()
    return address, domain, notify, orcpt


def recipient_of(address: str, domain: str, notify: str, orcpt: str) -> Recipient:
    """Return the recipient that the columns describe.

    Raises:
        ValueError: they describe none.
    """
    if not domain.startswith(_MARK):
        return Recipient(address, domain, notify, orcpt)
    user, delivery, tag, dest, rule = _decode(domain[1:])
    if not delivery:
        raise ValueError("no way to deliver")
    return Recipient(address, local_key(user), notify, orcpt, delivery, user, tag, dest, rule)
