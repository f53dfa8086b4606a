"""How envelopes are kept in memory: one interface, five representations.

- base.py: the interface, and the values that cross it
- objects.py: what the object representations share
- fixed.py: OpenSMTPD's buffer of January 2013, while an agent has the envelope
- whole.py: envelope and body
- full.py: every field of the envelope
- slim.py: a scheduler's record, and the agent's part while it is in flight
- packed.py: columns of machine integers
"""

from mta.core.envelopes.base import EnvelopeStore
from mta.core.envelopes.fixed import FixedStore
from mta.core.envelopes.full import FullStore
from mta.core.envelopes.packed import PackedStore
from mta.core.envelopes.slim import SlimStore
from mta.core.envelopes.whole import WholeStore

REPRESENTATIONS = ("fixed", "whole", "full", "slim", "packed")
"""From the fattest to the slimmest, by what an agent has of an envelope; the values of `envelope` in the configuration."""


def make_store(name: str, *, epoch: float) -> EnvelopeStore:
    """Return an empty store in the named representation.

    Args:
        name: one of `REPRESENTATIONS`.
        epoch: about now, seconds since the epoch; `packed` counts its ticks from there.
    """
    if name == "packed":
        return PackedStore(epoch=epoch)
    if name == "slim":
        return SlimStore()
    if name == "fixed":
        return FixedStore()
    if name == "full":
        return FullStore()
    assert name == "whole", name
    return WholeStore()
