"""What a client wants done between the greeting and its first message: TLS (RFC 3207) and AUTH (RFC 4954).

The rule: a secret goes out only to a peer that may have it, and never comes back in a reason, a log line or a
trace. Whatever goes wrong here is a mistake of a configuration, theirs or ours, so it is temporary, as in Postfix
(``smtp_tls_security_level``, ``smtp_sasl_auth_soft_bounce``); the enhanced codes are Postfix's.
"""

import base64
from typing import Final, Literal, NamedTuple, TypeAlias

TlsLevel: TypeAlias = Literal["none", "may", "encrypt", "verify", "dane", "implicit"]
"""``none``: never. ``may``: if it is offered, and in clear if it fails. ``encrypt``: always, with anybody. ``verify``: always,
with a certificate for the host's name from an authority that we trust. ``dane``: as the host's TLSA records say
(RFC 7672), ``may`` without any. ``implicit``: as ``verify``, TLS from the first byte (RFC 8314), for port 465."""

NO_STARTTLS: Final = "454 4.7.4 TLS is required, but was not offered by host"
"""Postfix smtp_proto.c."""
REFUSED_STARTTLS: Final = "454 4.7.4 TLS is required, but host refused to start TLS"
AUTH_IN_CLEAR: Final = "454 4.7.0 Authentication needs TLS, and host has none"
NO_MECHANISM: Final = "454 4.7.0 Host offers neither AUTH PLAIN nor LOGIN"
AUTH_FAILED: Final = "454 4.7.0 Authentication failed"
MECHANISMS: Final = ("PLAIN", "LOGIN")
"""What we speak, the best first. CRAM-MD5 needs clear passwords on the host and protects nothing under TLS."""


class Login(NamedTuple):
    """User and password at a host."""

    user: str
    password: str

    def __repr__(self) -> str:
        """Say nothing that must not be in a log."""
        return "Login(...)"


class Hello(NamedTuple):
    """What has to happen before the first transaction."""

    starttls: bool = False
    """Use STARTTLS if it is offered."""
    must: bool = False
    """Nothing is sent without TLS."""
    implicit: bool = False
    """The handshake comes before the greeting (RFC 8314)."""
    login: Login | None = None
    """Log in; not without TLS."""
    login_in_clear: bool = False
    """Log in without TLS, too."""


CLEAR: Final = Hello()
"""Neither TLS nor AUTH."""


class AuthDialog:
    """One AUTH, as the client sees it: what to say to each reply. Sans-I/O."""

    __slots__ = ("_login", "_mechanism", "_step", "failure")

    def __init__(self, hello: Hello, offered: tuple[str, ...], *, secure: bool) -> None:
        """Choose a mechanism from those ``offered``; `failure` says so if there is none."""
        assert hello.login is not None
        self._login = hello.login
        self._mechanism = next((name for name in MECHANISMS if name in offered), "")
        self._step = 0
        self.failure = ""
        """Why the dialogue is over without success."""
        if not secure and not hello.login_in_clear:
            self.failure = AUTH_IN_CLEAR
        elif not self._mechanism:
            self.failure = NO_MECHANISM

    def first(self) -> bytes:
        """Return the command line, or nothing after a `failure`."""
        if self.failure:
            return b""
        if self._mechanism == "PLAIN":
            # RFC 4616: the identity to act as is that of the login.
            return b"AUTH PLAIN " + _base64(f"\0{self._login.user}\0{self._login.password}")
        return b"AUTH LOGIN\r\n"

    def answer(self, code: int, status: str) -> bytes:
        """Return the line that answers a reply other than 2xx, or nothing after a `failure`."""
        steps = (self._login.user, self._login.password) if self._mechanism == "LOGIN" else ()
        if code == 334 and self._step < len(steps):
            self._step += 1
            return _base64(steps[self._step - 1])
        # A host may send back what it got: only its code and enhanced code are sure to hold no secret.
        words = [word for word in status.split()[:2] if word.replace(".", "").isdigit()]
        self.failure = f"{AUTH_FAILED}; host said {' '.join(words)}"
        return b""


def _base64(text: str) -> bytes:
    return base64.b64encode(text.encode()) + b"\r\n"
