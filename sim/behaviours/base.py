"""What all behaviours of a remote host have in common.

A behaviour is a pure state machine: it is told verbs and instants, it answers with a refusal or with
seconds. `now` is seconds since the scenario's start and may be negative before it; it never decreases
for one host. Chance comes from the `random.Random` that the behaviour was made with. What is
remembered about strangers has a limit, and the oldest goes first.
"""

import random
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from mta.core.reply import Reply

CONNECT: Final = "CONNECT"
END_OF_DATA: Final = "."

VERBS: Final = (
    "CONNECT",
    "HELO",
    "EHLO",
    "MAIL",
    "RCPT",
    "DATA",
    ".",
    "RSET",
    "NOOP",
    "VRFY",
    "QUIT",
)
"""What a behaviour can be about; the names are smtp-sink's (postfix/src/smtpstone/smtp-sink.c)."""

NONE: Final = "none"
"""As an enhanced code: the host sends none."""

ENTRIES_MAX: Final = 1_000_000
"""Most entries that an operator may let a behaviour remember."""

DELAY_MAX_S: Final = 3600.0
"""Longest delay of one reply; RFC 5321 4.5.3.2 lets no client wait longer than 10 minutes."""

Problems = Iterator[tuple[str, object, str]]
"""(key, value, what is wrong) of each parameter that has the right type but makes no sense."""


class Conn:
    """What a host knows of one connection. Made by `RemoteHost.connect`; shells only hand it back."""

    __slots__ = ("closed", "greeted", "peer", "rcpts", "sender", "silent", "wave_at", "waves")

    def __init__(self, peer: str) -> None:
        self.peer = peer
        """Address of the client, without its port."""
        self.greeted = False
        """EHLO or HELO was accepted."""
        self.sender: str | None = None
        """Reverse-path of the running transaction; empty for ``<>``; None if there is none."""
        self.rcpts: list[str] = []
        """Accepted recipients of the running transaction."""
        self.silent = False
        """The host will never say anything on this connection again."""
        self.closed = False
        """The host has closed, or was told that the client has."""
        self.wave_at = float("nan")
        """When the last commands came; those that came together wait together."""
        self.waves: list[float] = []
        """What each latency of the host drew for that instant, seconds."""


class Refusal(NamedTuple):
    """A behaviour does not let a verb pass."""

    reply: Reply | None
    """None: no reply at all."""
    close: bool = False
    """Close after the reply; without a reply: reset."""


class Behaviour:
    """One thing that a host does. Every hook's default is to do nothing."""

    __slots__ = ()

    judges: tuple[str, ...] = ()
    """Verbs for which the host asks `judge`."""

    def judge(self, conn: Conn, verb: str, argument: str, size: int, now: float) -> Refusal | None:
        """Return why a verb is refused, or None to let it pass.

        Args:
            conn: The connection, as it was before this verb.
            verb: One of `VERBS`.
            argument: Sender for MAIL, recipient for RCPT, as in ``local@domain``; else what it is.
            size: Bytes of the message, at ``.`` only.
            now: When the verb arrived.
        """
        raise NotImplementedError

    def opened(self, conn: Conn, now: float) -> None:
        """Take note that a connection was let in by all behaviours."""

    def left(self, conn: Conn, now: float) -> None:
        """Take note that a connection that had been let in is gone."""


class Parameters(Protocol):
    """The parameters of one kind of behaviour, as the scenario has them."""

    def make(self, rng: random.Random) -> Behaviour:
        """Return the behaviour in its first state, with a random stream that is its own."""
        ...


def enhanced_of(code: int, enhanced: str) -> str:
    """Return the enhanced code, by default the one that says no more than the code (RFC 3463 3.1); empty for `NONE`."""
    return "" if enhanced == NONE else enhanced or f"{code // 100}.0.0"


def reply_problems(code: int, enhanced: str, text: str) -> Problems:
    """Yield what is wrong with a reply that an operator wrote."""
    if not 400 <= code <= 599:
        yield "code", code, "must be from 400 to 599"
    parts = enhanced.split(".")
    if enhanced not in ("", NONE) and not (
        len(parts) == 3
        and all(part.isascii() and part.isdigit() and len(part) <= 3 for part in parts)
        and parts[0] == str(code)[0]
    ):
        yield "enhanced", enhanced, f"must be {str(code)[0]}.subject.detail (RFC 3463)"
    if not (text.isprintable() and text.isascii() and len(text) <= 400):
        yield "text", text, "must be printable ASCII, 400 characters at most"


def range_problem(key: str, value: float, low: float, high: float) -> Problems:
    """Yield a problem unless ``low <= value <= high``."""
    if not low <= value <= high:
        yield key, value, f"must be from {low:g} to {high:g}"


def verb_problems(key: str, verbs: tuple[str, ...] | list[str], known: tuple[str, ...]) -> Problems:
    """Yield the verbs that nobody knows."""
    for verb in verbs:
        if verb not in known:
            yield key, verb, f"must be one of {' '.join(known)}"
