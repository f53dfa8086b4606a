"""What real hosts say when they do not take mail: ``replies.toml``, by provider and name."""

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final, Literal

from mta.core.reply import Reply
from mta.core.settings import build
from sim.behaviours.base import Problems, reply_problems

_SOURCE: Final = "replies.toml"


@dataclass(frozen=True, slots=True)
class KnownReply:
    """One reply and where it is said."""

    verb: Literal["CONNECT", "MAIL", "RCPT", "."]
    code: int
    text: str
    enhanced: str = ""
    """Empty where the host says none."""

    def problems(self) -> Problems:
        """Yield what makes no sense."""
        yield from reply_problems(self.code, self.enhanced, self.text)

    @property
    def reply(self) -> Reply:
        """As it is sent."""
        return Reply(self.code, self.enhanced, self.text)


@functools.cache
def providers() -> Mapping[str, Mapping[str, KnownReply]]:
    """Return the replies of every provider by their names, in the order of the file."""
    text = (resources.files("sim") / "behaviours" / _SOURCE).read_text(encoding="utf-8")
    found: dict[str, dict[str, KnownReply]] = {}
    for provider, table in tomllib.loads(text).items():
        assert table.pop("source"), provider
        found[provider] = {
            name: build(KnownReply, each, source=f"{_SOURCE}: {provider}.{name}")
            for name, each in table.items()
        }
    return found


def known_replies() -> dict[str, KnownReply]:
    """Return all replies by ``provider/name``."""
    return {
        f"{provider}/{name}": each
        for provider, replies in providers().items()
        for name, each in replies.items()
    }
