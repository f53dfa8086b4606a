"""What an inbound session is at: what the next byte from the client is, and who may hurry whom meanwhile."""

import enum
from typing import Final


class Phase(enum.Enum):
    """What the next byte from the client is."""

    COMMAND = "command"
    MESSAGE = "message"
    CHUNK = "chunk"
    """An octet of BDAT: so many of them follow, then a command."""
    HANDSHAKE = "handshake"
    """TLS, not yet ours to read."""
    AUTH = "auth"
    """The answer to a challenge."""
    VERIFY = "verify"
    """Nothing is read: a password is being checked."""
    LOOKUP = "lookup"
    """Nothing is read: tables are being asked who a recipient is."""
    COMMIT = "commit"
    """Nothing is read: the last message is being made durable."""
    CLOSING = "closing"
    """Whatever comes is thrown away."""


BUSY: Final = (Phase.COMMIT, Phase.LOOKUP, Phase.VERIFY)
"""Phases in which input waits."""
WAITING: Final = (Phase.CLOSING, *BUSY, Phase.HANDSHAKE)
"""Phases in which no command is obeyed."""
