"""Stress mode: when connections run out, clients that do no work have to go sooner.

The rule is Postfix's (STRESS_README): when the door is nearly full, time limits and error limits shrink, so that
those who send mail find room. Postfix starts other processes with ``stress=yes`` and keeps doing so for 1,000 s
after the last shortage (master_avail.c). Here connections that are open already are bound by the smaller limits
too, hence the mode may end as soon as there is room again: at a lower mark, so that it does not flap.
"""

import math
from dataclasses import replace

from mta.core.limits import SmtpLimits


class Stress:
    """Whether there is stress, and which limits count."""

    __slots__ = ("_limits", "active", "entered", "limits")

    def __init__(self, limits: SmtpLimits) -> None:
        """Begin without stress, unless the operator says that there is.

        Args:
            limits: the door's; may change, see `refresh`.
        """
        self._limits = limits
        self.active = False
        """There is stress now."""
        self.entered = 0
        """How often it began."""
        self.limits = limits
        """The limits that count now."""
        self.update(0)

    def update(self, connections: int) -> bool:
        """Take in how many connections are open; return whether stress began or ended with that."""
        active = self._is_stress(connections)
        if active == self.active:
            return False
        self.active = active
        self.entered += active
        self.refresh()
        return True

    def refresh(self) -> None:
        """Make the limits that count anew: somebody has changed one."""
        self.limits = tightened(self._limits) if self.active else self._limits

    def _is_stress(self, connections: int) -> bool:
        limits = self._limits
        if limits.stress != "auto":
            return limits.stress == "yes"
        if self.active:
            return connections > math.floor(limits.stress_off_at * limits.max_conn)
        return connections >= max(1, math.ceil(limits.stress_at * limits.max_conn))


def tightened(limits: SmtpLimits) -> SmtpLimits:
    """Return the limits under stress: none is wider than without."""
    return replace(
        limits,
        timeout_s=min(limits.timeout_s, limits.stress_timeout_s),
        max_errors=min(limits.max_errors, limits.stress_max_errors),
        max_junk=min(limits.max_junk, limits.stress_max_junk),
        min_data_rate=max(limits.min_data_rate, limits.stress_min_data_rate),
    )
