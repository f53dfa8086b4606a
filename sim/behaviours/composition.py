"""What a host is made of for a while: its behaviours, sorted by what they are asked."""

import math
from collections.abc import Sequence
from typing import Final

from sim.behaviours.base import END_OF_DATA, VERBS, Behaviour
from sim.behaviours.delays import LatencyBehaviour, TarpitBehaviour
from sim.behaviours.windows import WindowBehaviour

_TRANSACTION_VERBS: Final = ("MAIL", "RCPT", "DATA", END_OF_DATA)


class Composition:
    """Behaviours that hold from one instant until another; they have the state, not this."""

    __slots__ = (
        "begin",
        "behaviours",
        "delayed",
        "end",
        "is_plain",
        "is_straight",
        "judges",
        "sample",
        "samplers",
        "windows",
        "work_s",
    )

    def __init__(self, begin: float, end: float, behaviours: Sequence[Behaviour]) -> None:
        """Sort; the order of behaviours that refuse is the order in which they are asked."""
        self.begin = begin
        self.end = end
        self.behaviours = tuple(behaviours)
        self.windows = tuple(one for one in behaviours if isinstance(one, WindowBehaviour))
        latencies = [one for one in behaviours if isinstance(one, LatencyBehaviour)]
        self.samplers = tuple(one.sample for one in latencies)
        self.sample = self.samplers[0] if len(latencies) == 1 else None
        self.delayed = {
            verb: tuple(i for i, one in enumerate(latencies) if verb in one.verbs) for verb in VERBS
        }
        tarpits = [one for one in behaviours if isinstance(one, TarpitBehaviour)]
        self.work_s = {
            verb: math.fsum(one.delay_s for one in tarpits if verb in one.verbs) for verb in VERBS
        }
        self.judges = {
            verb: tuple(one.judge for one in behaviours if verb in one.judges) for verb in VERBS
        }
        alike = not any(self.work_s[verb] for verb in _TRANSACTION_VERBS) and (
            not latencies or (self.sample is not None and latencies[0].verbs >= set(VERBS))
        )
        # What almost every host is almost always: nothing to judge in a transaction, one delay for
        # every verb, no tarpit. The model spends its time here.
        self.is_plain = alike and not any(self.judges[verb] for verb in _TRANSACTION_VERBS)
        # The next best: somebody judges, but all replies wait alike and nobody goes away.
        self.is_straight = alike and not self.windows
