"""What local deliveries cost in a recorded run: the part of `sim.calibrate` that needs to know a scenario's groups."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from sim.costs import Costs
from sim.measured import Measured
from sim.scenario import Scenario
from sim.workload import draw

DELIVERIES_MIN: Final = 10
"""Fewer deliveries to a group say nothing."""


def methods(scenario: Scenario | None) -> dict[str, str]:
    """Return how the mail of each local group is delivered, by the group's name."""
    return {group.name: group.delivery for group in scenario.local} if scenario else {}


def group_of(user: str) -> str:
    """Return the group of a user: the name without its number."""
    return user.rstrip("0123456789")


def units(costs: Costs, methods: Mapping[str, str], user: str) -> float:
    """Return the loop's time for a delivery to a user, in units of `Costs.local_s`.

    It brings its RCPT, its end and, if it is a command, its fork: runs do them in step, so that their ratios stay.
    """
    beside = costs.local_rcpt_s + costs.local_done_s
    return (costs.delivery_cpu_s(methods.get(group_of(user), "")) + beside) / costs.local_s


def waits(costs: Costs, measured: Measured, scenario: Scenario, notes: list[str]) -> Costs:
    """Return what deliveries wait for beside the loop's work and the time that was planned for them.

    Means, not the lower quartiles of `sim.calibrate`: a command waits for a processor among all programs of the machine
    and a mailbox for the disk, neither in a queue of ours, and what drains a burst is the mean. What waits for our loop is
    in it as well, a bias that a busier loop makes larger.
    """
    schedule = draw(scenario)
    found: dict[str, list[tuple[float, int]]] = {}
    for number, group in enumerate(scenario.local):
        own = [seconds for _, seconds, user in measured.delivered if group_of(user) == group.name]
        if len(own) < DELIVERIES_MIN:
            notes.append(f"too few deliveries to {group.name}: what they wait for is a default")
            continue
        planned = float(schedule.service_s[schedule.group == number].mean())
        left = float(np.mean(own)) - planned - costs.delivery_cpu_s(group.delivery)
        if group.delivery != "lmtp":
            cost = "command_wait_s" if group.delivery == "command" else "mailbox_wait_s"
            found.setdefault(cost, []).append((max(left, 0.0), len(own)))
    changes: dict[str, Any] = {
        cost: sum(left * count for left, count in each) / sum(count for _, count in each)
        for cost, each in found.items()
    }
    return replace(costs, **changes)
