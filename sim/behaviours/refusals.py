"""Hosts that say no: by chance, to strangers, or the first few times."""

import fnmatch
import random
import zlib
from dataclasses import dataclass, field
from typing import Literal

from mta.core.reply import Reply
from sim.behaviours.base import (
    CONNECT,
    END_OF_DATA,
    ENTRIES_MAX,
    VERBS,
    Behaviour,
    Conn,
    Problems,
    Refusal,
    enhanced_of,
    range_problem,
    reply_problems,
    verb_problems,
)

_REJECTABLE = tuple(verb for verb in VERBS if verb != "QUIT")


class RejectBehaviour(Behaviour):
    """Refuses one verb with a probability."""

    __slots__ = ("_match", "_per_recipient", "_probability", "_refusal", "_rng", "_salt", "judges")

    def __init__(self, parameters: "Reject", refusal: Refusal, rng: random.Random) -> None:
        verb = parameters.verb
        self.judges = ("HELO", "EHLO") if verb in ("HELO", "EHLO") else (verb,)
        self._probability = parameters.probability
        self._match = tuple(pattern.lower() for pattern in parameters.match)
        self._per_recipient = parameters.per_recipient
        self._refusal = refusal
        self._rng = rng
        self._salt = rng.getrandbits(32)

    def judge(self, conn: Conn, verb: str, argument: str, size: int, now: float) -> Refusal | None:
        """Refuse by chance; see `Reject`."""
        if self._match:
            address = argument.lower()
            if not any(fnmatch.fnmatchcase(address, pattern) for pattern in self._match):
                return None
        if self._per_recipient:
            # A hash is a draw that needs no memory and comes out the same each time.
            drawn = zlib.crc32(argument.lower().encode(), self._salt) / 2**32
        else:
            drawn = self._rng.random()
        return self._refusal if drawn < self._probability else None


@dataclass(frozen=True, slots=True)
class Reject:
    """``reject``: a verb is refused with a probability. smtp-sink's -f, -r and -Q, with odds."""

    probability: float = 1.0
    """Part of the times that it is."""
    verb: str = "RCPT"
    """``CONNECT``, ``MAIL``, ``RCPT``, ``DATA``, ``.`` and so on; EHLO and HELO mean each other."""
    code: int = 450
    """4xx or 5xx; 421 closes the connection (RFC 5321 3.8)."""
    enhanced: str = ""
    """As ``4.2.1``; by default the class and ``.0.0``."""
    text: str = "Not now"
    per_recipient: bool = False
    """One draw for each recipient for ever, instead of one for each attempt. RCPT only."""
    match: list[str] = field(default_factory=list)
    """Only addresses like one of these, as ``bad*@*``. RCPT and MAIL only."""

    def problems(self) -> Problems:
        """Yield what makes no sense."""
        yield from range_problem("probability", self.probability, 0, 1)
        yield from verb_problems("verb", [self.verb], _REJECTABLE)
        yield from reply_problems(self.code, self.enhanced, self.text)
        if self.per_recipient and self.verb != "RCPT":
            yield "per_recipient", self.per_recipient, "belongs to the verb RCPT"
        if self.match and self.verb not in ("RCPT", "MAIL"):
            yield "match", self.match, "belongs to the verbs RCPT and MAIL"

    def make(self, rng: random.Random) -> RejectBehaviour:
        """Return the behaviour; ``rng`` is its own."""
        reply = Reply(self.code, enhanced_of(self.code, self.enhanced), self.text)
        return RejectBehaviour(self, Refusal(reply, close=self.code == 421), rng)


class DropBehaviour(Behaviour):
    """Breaks off without a reply."""

    __slots__ = ("_probability", "_refusal", "_rng", "judges")

    def __init__(self, verb: str, probability: float, refusal: Refusal, rng: random.Random) -> None:
        self.judges = ("HELO", "EHLO") if verb in ("HELO", "EHLO") else (verb,)
        self._probability = probability
        self._refusal = refusal
        self._rng = rng

    def judge(self, conn: Conn, verb: str, argument: str, size: int, now: float) -> Refusal | None:
        """Drop by chance."""
        return self._refusal if self._rng.random() < self._probability else None


@dataclass(frozen=True, slots=True)
class Drop:
    """``drop``: a verb gets no reply: the connection is reset, or hangs. smtp-sink's -q, with odds.

    At ``.`` the message is not taken.
    """

    probability: float = 1.0
    """Part of the times that it does not."""
    verb: str = END_OF_DATA
    """As of ``reject``; ``.`` is the end of the message."""
    mode: Literal["reset", "silent"] = "reset"
    """``silent``: the connection stays, and nothing more is said."""

    def problems(self) -> Problems:
        """Yield what makes no sense."""
        yield from range_problem("probability", self.probability, 0, 1)
        yield from verb_problems("verb", [self.verb], VERBS)

    def make(self, rng: random.Random) -> DropBehaviour:
        """Return the behaviour; ``rng`` is its own."""
        refusal = Refusal(None, close=self.mode == "reset")
        return DropBehaviour(self.verb, self.probability, refusal, rng)


_NEVER = float("-inf")


class GreylistBehaviour(Behaviour):
    """Remembers triplets: when each was first seen, and when it last passed."""

    __slots__ = ("_parameters", "_refusal", "_triplets")

    judges = ("RCPT",)

    def __init__(self, parameters: "Greylist", refusal: Refusal) -> None:
        self._parameters = parameters
        self._refusal = refusal
        self._triplets: dict[tuple[str, str, str], tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._triplets)

    def judge(self, conn: Conn, verb: str, argument: str, size: int, now: float) -> Refusal | None:
        """Refuse a triplet that is new or came back too soon or too late."""
        parameters, triplets = self._parameters, self._triplets
        key = (conn.peer, (conn.sender or "").lower(), argument.lower())
        known = triplets.pop(key, None)
        if known is not None:
            first_at, passed_at = known
            if now - passed_at <= parameters.remember_s:
                triplets[key] = (first_at, now)
                return None
            waited = now - first_at
            if passed_at == _NEVER and waited <= parameters.retry_window_s:
                if waited >= parameters.wait_s:
                    triplets[key] = (first_at, now)
                    return None
                triplets[key] = known
                return self._refusal
        elif len(triplets) >= parameters.max_entries:
            del triplets[next(iter(triplets))]
        triplets[key] = (now, _NEVER)
        return self._refusal


@dataclass(frozen=True, slots=True)
class Greylist:
    """``greylist``: a new (client, sender, recipient) has to come again later (RFC 6647).

    The defaults are postgrey's: --delay 300, --retry-window 2 days, --max-age 35 days.
    """

    wait_s: float = 300.0
    """Seconds from the first sight of a triplet until it passes."""
    retry_window_s: float = 172_800.0
    """A triplet that comes back later than this is new again."""
    remember_s: float = 3_024_000.0
    """A triplet that passed passes again for so long after its last message."""
    max_entries: int = 100_000
    """Triplets kept; the one that was not seen for longest goes first."""
    code: int = 451
    enhanced: str = "4.7.1"
    text: str = "Greylisted, please try again later"

    def problems(self) -> Problems:
        """Yield what makes no sense."""
        yield from range_problem("wait_s", self.wait_s, 0, 1e7)
        yield from range_problem("retry_window_s", self.retry_window_s, self.wait_s, 1e9)
        yield from range_problem("remember_s", self.remember_s, 0, 1e9)
        yield from range_problem("max_entries", self.max_entries, 1, ENTRIES_MAX)
        yield from reply_problems(self.code, self.enhanced, self.text)
        if self.code >= 500:
            yield "code", self.code, "must be 4xx: greylisting is temporary"

    def make(self, rng: random.Random) -> GreylistBehaviour:
        """Return the behaviour with an empty table; it draws nothing."""
        reply = Reply(self.code, enhanced_of(self.code, self.enhanced), self.text)
        return GreylistBehaviour(self, Refusal(reply, close=self.code == 421))


class FailThenAcceptBehaviour(Behaviour):
    """Counts attempts."""

    __slots__ = ("_attempts", "_parameters", "_refusal", "judges")

    def __init__(self, parameters: "FailThenAccept", refusal: Refusal) -> None:
        where = {"recipient": "RCPT", "message": END_OF_DATA, "client": CONNECT}
        self.judges = (where[parameters.per],)
        self._parameters = parameters
        self._refusal = refusal
        self._attempts: dict[object, int] = {}

    def __len__(self) -> int:
        return len(self._attempts)

    def judge(self, conn: Conn, verb: str, argument: str, size: int, now: float) -> Refusal | None:
        """Refuse the first attempts of each recipient, message or client."""
        parameters, attempts = self._parameters, self._attempts
        key: object
        if parameters.per == "recipient":
            key = argument.lower()
        elif parameters.per == "message":
            key = (conn.sender, tuple(conn.rcpts), size)
        else:
            key = conn.peer
        failed = attempts.pop(key, None)
        if failed is None:
            if len(attempts) >= parameters.max_entries:
                del attempts[next(iter(attempts))]
            failed = 0
        if failed < parameters.failures:
            attempts[key] = failed + 1
            return self._refusal
        if parameters.per != "message":
            attempts[key] = failed
        return None


@dataclass(frozen=True, slots=True)
class FailThenAccept:
    """``fail-then-accept``: the first attempts fail, then all is well."""

    failures: int = 1
    """Attempts that fail."""
    per: Literal["recipient", "message", "client"] = "recipient"
    """``recipient``: at RCPT, each address once and for all. ``message``: after the dot; a message
    is known by its sender, recipients and size, and forgotten when it was accepted. ``client``: at
    CONNECT, each client address."""
    code: int = 451
    enhanced: str = "4.3.0"
    text: str = "Try again"
    max_entries: int = 100_000
    """Recipients, messages or clients kept; the one that was not seen for longest goes first."""

    def problems(self) -> Problems:
        """Yield what makes no sense."""
        yield from range_problem("failures", self.failures, 0, 1_000_000)
        yield from range_problem("max_entries", self.max_entries, 1, ENTRIES_MAX)
        yield from reply_problems(self.code, self.enhanced, self.text)

    def make(self, rng: random.Random) -> FailThenAcceptBehaviour:
        """Return the behaviour with nothing counted; it draws nothing."""
        reply = Reply(self.code, enhanced_of(self.code, self.enhanced), self.text)
        return FailThenAcceptBehaviour(self, Refusal(reply, close=self.code == 421))
