"""Whether a run can tell what its scenario asks: what is done to a server that has nothing to do shows nothing.

A scenario that is made short enough is over before the entries of its timeline are due. All that it expects holds then, of
a server that was never asked.
"""

from collections.abc import Sequence
from typing import Final

from sim.timeline import Event
from testbed.rundir import Notes, Samples

NEAR_S: Final = 1.0
"""Samples so near to an instant show whether something waited then."""


def untested(timeline: Sequence[Event], notes: Notes, samples: Samples) -> str:
    """Return why a run's conditions can't be said to hold; empty if they can.

    An entry that only undoes what one before it did, as ``resume``, may find nothing to do.

    Args:
        timeline: the scenario's.
        notes: of one server; another server's than ours has no timeline.
        samples: of the same; ``t`` counts from the start of the load.
    """
    done = {each["at_s"]: each["t"] for each in notes.operated}
    load_s = notes.load_end - notes.load_start
    for event in sorted(timeline, key=lambda each: each.at_s):
        if not (event.set or event.pause or event.schedule or event.restart) and event.disk in (
            "",
            "well",
        ):
            continue
        if event.at_s not in done:
            return f"the run was over before {event.at_s:g} s"
        at = done[event.at_s]
        near = (samples["t"] >= at - NEAR_S) & (samples["t"] <= at + NEAR_S)
        if at > load_s and not (samples.queue[near] > 0).any():
            return f"nothing waited at {event.at_s:g} s"
    return ""
