"""What the expander asks of tables, users and files, and what they can answer.

The core asks, a shell looks. Three answers: here it is, there is none, and I can't say now. The third is
never taken for the second: a database that is down must not bounce mail.
"""

from typing import Final, NamedTuple, Protocol, TypeAlias

from mta.core.aliases import Entry


class Found(NamedTuple):
    """There is something, if only an empty file."""

    entries: tuple[Entry, ...] = ()


class NotFound(NamedTuple):
    """There is nothing of this name."""


class TemporaryError(NamedTuple):
    """It can't be said now."""

    text: str
    """Why, for the log. Never for a reply."""


NOT_FOUND: Final = NotFound()

Answer: TypeAlias = Found | NotFound | TemporaryError


class Account(NamedTuple):
    """A user who can have mail; passwd(5)."""

    name: str
    home: str
    """Absolute path."""
    uid: int
    gid: int


class Tables(Protocol):
    """Everything that expansion looks up. Nothing here raises; each call is short."""

    def lookup(self, table: str, key: str) -> Answer:
        """Return what a table says to a key as `mta.core.aliases.alias_key` gives it."""
        ...

    def user(self, userbase: str, name: str) -> Account | NotFound | TemporaryError:
        """Return a user; ``userbase`` is empty for the system's users."""
        ...

    def forward(self, account: Account) -> Answer:
        """Return what the user's ``.forward`` says. One that can't be trusted is a `TemporaryError`."""
        ...

    def include(self, path: str) -> Answer:
        """Return what an included file says."""
        ...
