"""Logging in: PLAIN (RFC 4616) and LOGIN, as RFC 4954 carries them over SMTP.

Pure: lines of the client in; a challenge, credentials or a refusal out. Whether credentials are right is not
decided here. Nothing here shows a password: neither `repr` nor a reply.
"""

import binascii
import unicodedata
from typing import Final, NamedTuple, TypeAlias

from mta.core.reply import Reply

MECHANISMS: Final = ("PLAIN", "LOGIN")
"""As EHLO offers them. LOGIN was never a standard, and is what old clients speak."""

NAME_MAX: Final = 255
"""Bytes of a user's name. RFC 4616 2: servers take 255."""
PASSWORD_MAX: Final = 1024
"""Bytes of a password; RFC 4616 2 asks for 255. Ours: what is hashed is bounded."""

CANCELLED: Final = Reply(501, "5.7.0", "Authentication cancelled")
"""The client said ``*``. RFC 4954 4."""
MALFORMED: Final = Reply(501, "5.5.2", "Cannot decode response")
"""RFC 4954 4: what is not base64, or not what the mechanism says."""
REFUSED: Final = Reply(535, "5.7.8", "Authentication credentials invalid")
"""RFC 4954 6. The same for a user that is not there and a password that is wrong."""
UNKNOWN_MECHANISM: Final = Reply(504, "5.5.4", "Unrecognized authentication type")
"""RFC 4954 4, with the enhanced code of Postfix and Exim."""
TOO_LONG: Final = Reply(500, "5.5.6", "Authentication exchange line is too long")
"""RFC 4954 6."""
NEEDS_TLS: Final = Reply(538, "5.7.11", "Encryption required, say STARTTLS first")
"""RFC 4954 6."""
REQUIRED: Final = Reply(530, "5.7.0", "Authentication required")
"""RFC 4954 6."""
UNAVAILABLE: Final = Reply(454, "4.7.0", "Temporary authentication failure, try again later")
"""RFC 4954 6: we can't say now."""
TOO_MANY_FAILURES: Final = Reply(421, "4.7.0", "Too many authentication failures")
"""The connection is closed (RFC 5321 3.8)."""

_USERNAME: Final = "334 VXNlcm5hbWU6"
_PASSWORD: Final = "334 UGFzc3dvcmQ6"  # noqa: S105 - "Password:" in base64


class Challenge(NamedTuple):
    """What to say next; the client's next line answers it."""

    line: str


class Credentials(NamedTuple):
    """Who the client says it is. To be checked; a name alone proves nothing."""

    user: str
    password: str

    def __repr__(self) -> str:
        """Return it without the password."""
        return f"Credentials(user={self.user!r})"


Outcome: TypeAlias = Challenge | Credentials | Reply


def clean_name(text: str) -> str | None:
    """Return a user's name in the form in which names are compared, or None if it can't be one.

    NFC, letters as they are, no control characters (RFC 8265 3.4, UsernameCasePreserved, without its width
    mapping); no white space either, which a file of passwords could not hold.
    """
    name = unicodedata.normalize("NFC", text)
    if not name or not name.isprintable() or any(map(str.isspace, name)):
        return None
    return name if len(name.encode()) <= NAME_MAX else None


def clean_password(text: str) -> str | None:
    """Return a password in the form that is hashed, or None if it can't be one.

    RFC 8265 4.2 (OpaqueString): other spaces are a space, NFC, no control characters, not empty.
    """
    spaced = "".join(" " if unicodedata.category(char) == "Zs" else char for char in text)
    password = unicodedata.normalize("NFC", spaced)
    if not password or any(unicodedata.category(char) in ("Cc", "Cs") for char in password):
        return None
    return password if len(password.encode()) <= PASSWORD_MAX else None


class Exchange:
    """One exchange: `start`, then `respond` to each challenge, until credentials or a refusal come out."""

    __slots__ = ("_mechanism", "_user")

    def __init__(self, mechanism: str) -> None:
        self._mechanism = mechanism.upper()
        self._user: str | None = None

    def start(self, initial: str) -> Outcome:
        """Begin.

        Args:
            initial: the initial response in base64, ``=`` for an empty one, empty for none.
        """
        if self._mechanism not in MECHANISMS:
            return UNKNOWN_MECHANISM
        if initial:
            return self.respond(b"" if initial == "=" else initial.encode())
        return Challenge("334 " if self._mechanism == "PLAIN" else _USERNAME)

    def respond(self, line: bytes) -> Outcome:
        """Take a line of the client, in base64."""
        if line == b"*":
            return CANCELLED
        try:
            text = binascii.a2b_base64(line, strict_mode=True).decode()
        except ValueError:  # binascii.Error and UnicodeDecodeError are
            return MALFORMED
        if self._mechanism == "PLAIN":
            parts = text.split("\0")
            if len(parts) != 3:
                return MALFORMED
            authority, user, password = parts
            if authority not in ("", user):
                return REFUSED  # nobody here may act for another
            return _credentials(user, password)
        if self._user is None:
            self._user = text
            return Challenge(_PASSWORD)
        return _credentials(self._user, text)


def _credentials(user: str, password: str) -> Credentials | Reply:
    name, secret = clean_name(user), clean_password(password)
    if name is None or secret is None:
        return REFUSED
    return Credentials(name, secret)
