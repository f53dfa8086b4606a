"""Words of the tests of the relaying agent: hosts, mail, and what a core said."""

from collections.abc import Sequence
from typing import Any

from mta.core.concurrency import ConcurrencySettings
from mta.core.instructions import Instruction, OpenConnection, StartTransaction
from mta.core.reply import Outcome
from tests.support.core import Core, only

A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"
FIXED = ConcurrencySettings(policy="fixed", limit=20)
OFF, OK, PERM = Outcome.TEMPFAIL, Outcome.OK, Outcome.PERMFAIL


def core_with(concurrency: ConcurrencySettings = FIXED, **mta: Any) -> Core:
    """Return a core with some limits of relaying."""
    return Core(mta=mta, concurrency=concurrency)


def submit(core: Core, count: int, domain: str = "one.test") -> list[Instruction]:
    """Submit so many messages for a domain; return what the core said."""
    out = []
    for _ in range(count):
        out += core.submit(domain)
    return out


def opened(instructions: Sequence[Instruction]) -> list[tuple[int, str]]:
    """Return session and address of each connection that is to be opened."""
    return [(o.session, o.address) for o in only(OpenConnection, instructions)]


def started(instructions: Sequence[Instruction]) -> list[tuple[int, int]]:
    """Return session and message of each transaction that is to be started."""
    return [(s.session, s.msgid) for s in only(StartTransaction, instructions)]


def grow(core: Core, session: int) -> list[tuple[int, str]]:
    """Let the first connection of a route become ready, so that more may follow; it is busy then."""
    return opened(core.ready(session))
