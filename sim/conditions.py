"""Conditions on what a run came to, as ``p99_accepted > 800 ms``: how they are written, not what the names mean.

A scenario says with them what a healthy server shows, and a command line what fails a build. What quantities there are is
`testbed.quantities`; a name is checked there. Nothing here knows a run.
"""

import math
import operator
import re
from collections.abc import Callable
from typing import Final, NamedTuple


class ConditionError(ValueError):
    """A condition that is not understood; the text says what is wrong with it."""


class Unit(NamedTuple):
    """What a number is counted in."""

    dimension: str
    """``time`` in seconds, ``size`` in bytes, ``share`` of one, ``rate`` per second."""
    factor: float
    """What one of it is in the dimension's own unit."""


UNITS: Final = {
    "us": Unit("time", 1e-6),
    "ms": Unit("time", 1e-3),
    "s": Unit("time", 1.0),
    "min": Unit("time", 60.0),
    "h": Unit("time", 3600.0),
    "B": Unit("size", 1.0),
    "kB": Unit("size", 1e3),
    "MB": Unit("size", 1e6),
    "GB": Unit("size", 1e9),
    "KiB": Unit("size", 2.0**10),
    "MiB": Unit("size", 2.0**20),
    "GiB": Unit("size", 2.0**30),
    "%": Unit("share", 0.01),
    "/s": Unit("rate", 1.0),
    "/min": Unit("rate", 1 / 60),
}
"""By what is written behind a number. SI and IEC prefixes mean what they say."""

OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}

_FORM: Final = re.compile(
    r"\s*([A-Za-z][A-Za-z0-9_.-]*)\s*(>=|<=|==|!=|>|<)\s*([-+]?(?:\d[\d_]*)(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*(\S*)\s*"
)


class Condition(NamedTuple):
    """One of them."""

    text: str
    """As it was written, without spaces around it."""
    name: str
    operator: str
    number: float
    """In the unit's own dimension: seconds, bytes, of one, per second; or as it was written if it has no unit."""
    unit: str
    """Key of `UNITS`, or empty."""

    @property
    def dimension(self) -> str:
        """Return what the number is of; empty for a plain number."""
        return UNITS[self.unit].dimension if self.unit else ""

    def holds(self, value: float) -> bool:
        """Return whether a value, in its dimension's own unit, fulfils it."""
        return OPERATORS[self.operator](value, self.number)


def parse(text: str) -> Condition:
    """Return what a condition says.

    Raises:
        ConditionError: it is none.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise ConditionError(
            "must be as 'p99_accepted > 800ms': a name, one of > >= < <= == !=, a number"
        )
    name, sign, digits, unit = found.groups()
    if unit and unit not in UNITS:
        raise ConditionError(f"{unit} is no unit; there are {', '.join(UNITS)}")
    value = float(digits) * (UNITS[unit].factor if unit else 1.0)
    if not math.isfinite(value):
        raise ConditionError(f"{digits} is too large")
    return Condition(text.strip(), name, sign, value, unit)
