"""From the connection to the first transaction: greeting, EHLO, STARTTLS, AUTH, as the client sees them. Sans-I/O.

`Greeting` is told each reply and says what to send next; `mta.smtpclient` has the bytes and the clock.
"""

from collections.abc import Sequence
from typing import Final

from mta.esmtp import Extensions, read_extensions
from mta.smtphello import NO_STARTTLS, REFUSED_STARTTLS, AuthDialog, Hello
from mta.smtpstates import State

LOOPS_BACK: Final = "Mail loops back to myself"
"""The peer says that it has our name: 5.4.6 in Postfix smtp_proto.c. It is the route that is wrong,
not the recipient, so the connection fails and the mail waits."""
BEFORE_READY: Final = frozenset(
    (State.BANNER, State.EHLO, State.HELO, State.STARTTLS, State.TLS, State.AUTH)
)
"""No transaction can start yet, and none has."""


class Greeting:
    """What happens before the first transaction."""

    __slots__ = (
        "_auth",
        "_greeted",
        "_hello",
        "_hostname",
        "_lmtp",
        "_secure",
        "extensions",
        "failure",
        "out",
        "state",
    )

    def __init__(self, hostname: str, hello: Hello, *, lmtp: bool) -> None:
        """Begin to wait: for the greeting, or for `secured` if TLS comes first."""
        self.state = State.TLS if hello.implicit else State.BANNER
        """One of `BEFORE_READY`, or READY when all is done."""
        self.extensions = Extensions()
        self.out = b""
        """What to send now."""
        self.failure = ""
        """Why it is over without success."""
        self._hostname = hostname
        self._hello = hello
        self._lmtp = lmtp
        self._greeted = False
        self._secure = False
        self._auth: AuthDialog | None = None

    def secured(self) -> None:
        """The handshake is done. What the peer said before it counts for nothing (RFC 3207 4.2)."""
        assert self.state is State.TLS, self.state
        self._secure = True
        self.extensions = Extensions()
        if self._greeted:
            self._say_hello()
        else:
            self.state = State.BANNER

    def answer(self, code: int, status: str, lines: Sequence[bytes]) -> None:
        """Take a reply.

        Args:
            code: of the reply.
            status: the reply in one safe line.
            lines: its lines without their codes; needed of the answer to EHLO only.
        """
        assert self.state is not State.TLS, "nothing may be said in clear now"
        accepted = code // 100 == 2
        match self.state:
            case State.STARTTLS if accepted:
                self.state = State.TLS
            case State.STARTTLS if self._hello.must:
                self.failure = f"{REFUSED_STARTTLS}: {status}"
            case State.STARTTLS:
                self._log_in_or_go_on()
            case State.AUTH if accepted:
                self._auth = None
                self.state = State.READY
            case State.AUTH:
                assert self._auth is not None
                self._say_auth(self._auth.answer(code, status))
            case State.BANNER if accepted:
                self._greeted = True
                self._say_hello()
            case State.EHLO if code // 100 == 5 and not self._lmtp:
                self._say("HELO", State.HELO)
            case _ if accepted:
                self._welcome(lines)
            case _:
                self.failure = status

    def _welcome(self, lines: Sequence[bytes]) -> None:
        name = lines[0].split(maxsplit=1)[:1]
        # A local LMTP server has our name by right.
        if not self._lmtp and name and name[0].lower() == self._hostname.lower().encode():
            self.failure = LOOPS_BACK
            return
        self.extensions = read_extensions(lines[1:])
        if self._secure or not self._hello.starttls:
            self._log_in_or_go_on()
        elif self.extensions.starttls:
            self.out = b"STARTTLS\r\n"
            self.state = State.STARTTLS
        elif self._hello.must:
            self.failure = NO_STARTTLS
        else:
            self._log_in_or_go_on()

    def _log_in_or_go_on(self) -> None:
        if self._hello.login is None:
            self.state = State.READY
            return
        self._auth = AuthDialog(self._hello, self.extensions.auth, secure=self._secure)
        self._say_auth(self._auth.first())

    def _say_auth(self, line: bytes) -> None:
        assert self._auth is not None
        self.failure = self._auth.failure
        self.out = line
        self.state = State.AUTH

    def _say_hello(self) -> None:
        self._say("LHLO" if self._lmtp else "EHLO", State.EHLO)

    def _say(self, verb: str, state: State) -> None:
        self.out = f"{verb} {self._hostname}\r\n".encode()
        self.state = state
