"""The model's operator: does at its instant what the timeline says, as `mta/operations.py` does for ``mtactl``."""

from collections import deque
from collections.abc import Sequence
from typing import Final

from mta.core.stimuli import (
    Agent,
    AgentPaused,
    AgentResumed,
    LimitChanged,
    ScheduleRequested,
    Selector,
)
from sim.driver import Driver
from sim.kernel import Kernel
from sim.restarts import RestartDriver
from sim.timeline import Change, Event

AGAIN_S: Final = 0.1
"""How long an operator waits who finds the server starting; testbed/observe.py."""


class Operator:
    """Nobody waits for its answers: it costs the server nothing, which is what a line on a control socket costs."""

    def __init__(self, kernel: Kernel, driver: Driver, timeline: Sequence[Change]) -> None:
        """Get ready; `start` begins."""
        self._kernel = kernel
        self._driver = driver
        self._timeline = timeline
        self._late: deque[Change] = deque()
        """Entries whose time has come, in their order: whoever waits lets those behind wait, too."""
        self._unheard = 0
        """What was said and the server has not come to yet."""

    def start(self) -> None:
        """Let every entry come when its time has come."""
        for change in self._timeline:
            self._kernel.schedule(change.event.at_s, self._due, change)

    def _due(self, change: Change) -> None:
        self._late.append(change)
        if len(self._late) == 1:
            self._say(None)

    def _say(self, _: None) -> None:
        driver, late = self._driver, self._late
        while late:
            event = late[0].event
            away = isinstance(driver, RestartDriver) and driver.is_away
            if away or (event.restart and self._unheard):
                # Nobody listens yet; mtactl would be called again. And nobody ends a server before it has answered.
                self._kernel.schedule(AGAIN_S, self._say, None)
                return
            change = late.popleft()
            if event.restart:
                assert isinstance(driver, RestartDriver), "made for a timeline without restarts"
                driver.restart(event)
            else:
                self._unheard += 1
                driver.loop.do(self._act, change)

    def _act(self, change: Change) -> None:
        self._unheard -= 1
        driver, event = self._driver, change.event
        for key, value in change.limits:
            driver.tell(LimitChanged(key, value))
        if change.limits:
            driver.limits_changed()
        for part in event.pause:
            if part == "smtp":
                driver.inbound.pause(True)
            else:
                driver.tell(AgentPaused(Agent(part)))
        for part in event.resume:
            if part == "smtp":
                driver.inbound.pause(False)
            else:
                driver.tell(AgentResumed(Agent(part)))
        if event.schedule:
            driver.tell(ScheduleRequested(Selector()))
        self._disk(event)

    def _disk(self, event: Event) -> None:
        if event.disk:
            self._driver.queue.slower = event.slower if event.disk == "slow" else 1.0
            self._driver.queue.full = event.disk == "full"
            self._driver.inbound.doubt_disk()
