"""Tables that fail when a test wants it, and what they answered."""

import os
from typing import Literal

from mta.core.expansionlimits import ExpansionLimits
from mta.core.lookup import Found
from tests.support.faults import FaultyEffects, Plan

LIMITS = ExpansionLimits()


def failing(number: int, code: int, when: Literal["before", "after"]) -> FaultyEffects:
    return FaultyEffects(Plan(number, lambda: OSError(code, os.strerror(code)), when=when))


def texts(answer: object) -> list[str]:
    assert isinstance(answer, Found), answer
    return [entry.text for entry in answer.entries]


class Watch(FaultyEffects):
    """Effects with a clock that a test sets."""

    def __init__(self, plan: Plan | None = None) -> None:
        super().__init__(plan)
        self.time = 0.0
        self.monotonic = lambda: self.time
