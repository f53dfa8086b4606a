"""Hosts that take so much and no more: connections at a time, connections or messages a second.

This is what Postfix's anvil(8) does to clients, and what test sinks are asked for and lack: a 421
that depends on what the sender does.
"""

import random
from dataclasses import dataclass
from typing import Literal

from mta.core.reply import Reply
from sim.behaviours.base import (
    CONNECT,
    ENTRIES_MAX,
    Behaviour,
    Conn,
    Problems,
    Refusal,
    enhanced_of,
    range_problem,
    reply_problems,
)

_SLACK = 1e-9
"""What rounding may take from a token that is due just now."""


class LimitConnectionsBehaviour(Behaviour):
    """Counts the connections that were let in and are not gone."""

    __slots__ = ("_max", "_open", "_per_peer", "_refusal")

    judges = (CONNECT,)

    def __init__(self, max_open: int, refusal: Refusal, *, per_peer: bool) -> None:
        self._max = max_open
        self._refusal = refusal
        self._per_peer = per_peer
        self._open: dict[str, int] = {}

    def judge(self, conn: Conn, verb: str, argument: str, size: int, now: float) -> Refusal | None:
        """Refuse a connection above the limit."""
        key = conn.peer if self._per_peer else ""
        return self._refusal if self._open.get(key, 0) >= self._max else None

    def opened(self, conn: Conn, now: float) -> None:
        """Count a connection."""
        key = conn.peer if self._per_peer else ""
        self._open[key] = self._open.get(key, 0) + 1

    def left(self, conn: Conn, now: float) -> None:
        """Uncount a connection; who has none is forgotten."""
        key = conn.peer if self._per_peer else ""
        left = self._open[key] - 1
        assert left >= 0, (key, left)
        if left:
            self._open[key] = left
        else:
            del self._open[key]


@dataclass(frozen=True, slots=True)
class LimitConnections:
    """``limit-connections``: 421 to a connection above so many at a time."""

    max: int = 5
    """Open connections. Stress mixes have 5; Postfix ``smtpd_client_connection_count_limit`` is 50."""
    per: Literal["host", "client"] = "host"
    """All connections to this host together, or those from one client address."""
    code: int = 421
    enhanced: str = "4.7.0"
    text: str = "Too many connections"

    def problems(self) -> Problems:
        """Yield what makes no sense."""
        yield from range_problem("max", self.max, 0, 1_000_000)
        yield from reply_problems(self.code, self.enhanced, self.text)

    def make(self, rng: random.Random) -> LimitConnectionsBehaviour:
        """Return the behaviour with nothing open; it draws nothing."""
        reply = Reply(self.code, enhanced_of(self.code, self.enhanced), self.text)
        refusal = Refusal(reply, close=True)
        return LimitConnectionsBehaviour(self.max, refusal, per_peer=self.per == "client")


class LimitRateBehaviour(Behaviour):
    """Keeps token buckets: what is taken in any t seconds is at most ``burst + rate * t``."""

    __slots__ = ("_buckets", "_parameters", "_per_peer", "_refusal", "judges")

    def __init__(self, parameters: "LimitRate", refusal: Refusal) -> None:
        where = {"connections": CONNECT, "messages": "MAIL", "recipients": "RCPT"}
        self.judges = (where[parameters.what],)
        self._parameters = parameters
        self._per_peer = parameters.per == "client"
        self._refusal = refusal
        self._buckets: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def judge(self, conn: Conn, verb: str, argument: str, size: int, now: float) -> Refusal | None:
        """Take a token, or refuse."""
        parameters, buckets = self._parameters, self._buckets
        key = conn.peer if self._per_peer else ""
        level, at = buckets.pop(key, (parameters.burst, now))
        level = min(parameters.burst, level + parameters.rate * (now - at))
        enough = level >= 1.0 - _SLACK
        if len(buckets) >= parameters.max_entries:
            del buckets[next(iter(buckets))]
        buckets[key] = (max(0.0, level - 1.0) if enough else level, now)
        return None if enough else self._refusal


@dataclass(frozen=True, slots=True)
class LimitRate:
    """``limit-rate``: connections, messages or recipients above a rate are refused."""

    rate: float = 10.0
    """Per second, in the long run."""
    burst: float = 1.0
    """So many at once after a pause; at least 1."""
    what: Literal["connections", "messages", "recipients"] = "messages"
    """Counted at CONNECT, MAIL or RCPT; what is refused is not counted."""
    per: Literal["host", "client"] = "host"
    """One bucket for all, or one for each client address."""
    code: int = 0
    """0: 421 for connections, 450 for messages and recipients. 421 closes the connection."""
    enhanced: str = ""
    text: str = "Too much mail, slow down"
    max_entries: int = 10_000
    """Buckets kept; the one that was not used for longest goes first."""

    def problems(self) -> Problems:
        """Yield what makes no sense."""
        yield from range_problem("rate", self.rate, 0, 1e9)
        yield from range_problem("burst", self.burst, 1, 1e9)
        yield from range_problem("max_entries", self.max_entries, 1, ENTRIES_MAX)
        if self.code:
            yield from reply_problems(self.code, self.enhanced, self.text)
        else:
            yield from reply_problems(450, self.enhanced, self.text)

    def make(self, rng: random.Random) -> LimitRateBehaviour:
        """Return the behaviour with full buckets; it draws nothing."""
        code = self.code or (421 if self.what == "connections" else 450)
        reply = Reply(code, enhanced_of(code, self.enhanced or f"{code // 100}.7.1"), self.text)
        close = code == 421 or self.what == "connections"
        return LimitRateBehaviour(self, Refusal(reply, close=close))
