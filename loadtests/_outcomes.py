"""Which answers of a server under stress are expected, and what they are called in the statistics.

A server that says 452 because it is full does what it should: that is an outcome with a name, not a
failure. Only what nobody expected fails the run.
"""

from dataclasses import dataclass
from typing import Final

LOST: Final = "lost"
"""The word for a connection that was refused, closed or timed out; its code is 0."""

DEFAULT: Final = "4xx"


class UnexpectedReplyError(Exception):
    """A reply that nobody expected; the text has few variants, as Locust counts failures by it."""


@dataclass(frozen=True, slots=True)
class Expectations:
    """The replies other than success that do not fail a run."""

    codes: frozenset[int]
    classes: frozenset[int]
    """First digits."""
    lost: bool

    @classmethod
    def parse(cls, text: str) -> "Expectations":
        """Read a list as ``4xx,550,lost``; empty expects nothing but success.

        Raises:
            ValueError: with the word that is none of these.
        """
        codes: set[int] = set()
        classes: set[int] = set()
        lost = False
        for word in text.replace(",", " ").split():
            if word == LOST:
                lost = True
            elif len(word) == 3 and word[0] in "45" and word[1:].lower() == "xx":
                classes.add(int(word[0]))
            elif len(word) == 3 and word.isascii() and word.isdigit() and word[0] in "45":
                codes.add(int(word))
            else:
                raise ValueError(word)
        return cls(frozenset(codes), frozenset(classes), lost)

    def covers(self, code: int) -> bool:
        """Return True if a reply, or code 0 for none, is expected."""
        if code == 0:
            return self.lost
        return code // 100 in (2, 3) or code // 100 in self.classes or code in self.codes


def name_of(what: str, code: int) -> str:
    """Return what the statistics call an outcome: ``message``, ``message 452``, ``RCPT lost``."""
    if code // 100 in (2, 3):
        return what
    return f"{what} {code or LOST}"


def failure_of(what: str, code: int, text: str) -> UnexpectedReplyError:
    """Return the failure that an unexpected reply is: code and enhanced code, without the rest.

    The rest may name an address or an id, and Locust keeps each variant of a failure for ever.
    """
    if code == 0:
        return UnexpectedReplyError(f"{what}: {text}")
    return UnexpectedReplyError(f"{what}: {code} {enhanced_of(text)}".rstrip())


def enhanced_of(text: str) -> str:
    """Return the enhanced status code (RFC 3463) that the text of a reply begins with, or nothing."""
    word = text.split(" ", 1)[0]
    return word if word.count(".") == 2 and word.replace(".", "").isdigit() else ""
