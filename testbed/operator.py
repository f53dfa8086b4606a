"""The operator of a real server: says on its control socket, at the instants of the scenario's timeline, what `mtactl` says.

Instants are met to a tenth of a second or so, and written down as they were. What the server refuses ends the run: a
timeline that was not followed is another experiment.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

from mta.core.settings import typed
from sim.scenario import Scenario
from sim.settings import model_config
from sim.timeline import Change, changes_of
from testbed.children import RunError

Restart: TypeAlias = Callable[[Literal["kill", "stop"], float], dict[str, Any]]
"""Lets the server end and start again; see `testbed.targets.ours.OurServer.restart`."""

SetDisk: TypeAlias = Callable[[Literal["well", "slow", "full"], float], None]
"""Makes the disk slow or full; see `testbed.targets.ours.OurServer.set_disk`."""

Ask: TypeAlias = Callable[..., object]
"""Sends a verb with its fields to the control socket."""


def checked(scenario: Scenario) -> list[Change]:
    """Return the scenario's timeline, if it can be followed.

    Raises:
        ConfigError: it has a limit that there is not, or a value that makes no sense.
    """
    if not scenario.timeline:
        return []
    limits = model_config(scenario.server, source=scenario.name).limits
    return changes_of(scenario.timeline, limits, source=scenario.name)


class Operator:
    """Follows a timeline from the start of the load on."""

    def __init__(
        self,
        timeline: Sequence[Change],
        ask: Ask,
        restart: Restart | None = None,
        set_disk: SetDisk | None = None,
    ) -> None:
        """Get ready; nothing is said before `begin`.

        Args:
            timeline: what to do.
            ask: sends it.
            restart: lets the server end and start again; wanted if the timeline says so.
            set_disk: makes its disk slow or full; wanted likewise.
        """
        self._left = list(timeline)
        self._ask = ask
        self._restart = restart
        self._set_disk = set_disk
        self._start: float | None = None
        self.done: list[dict[str, Any]] = []
        """What was said: seconds of load, the instant it was wanted at, and the words of ``mtactl``."""
        self.restarts: list[dict[str, Any]] = []
        """Each end of the server and its next start: ``at_s``, ``how``, ``down_s``, and what `Restart` returned, in seconds of load."""

    def begin(self, load_start: float) -> None:
        """Count from here, in seconds since the epoch."""
        self._start = load_start

    def act(self) -> None:
        """Say what is due.

        Raises:
            RunError: the server refused or did not answer.
        """
        while self._start is not None and self._left:
            change = self._left[0]
            if time.time() < self._start + change.event.at_s:
                return
            del self._left[0]
            if change.event.restart:
                self._let_it_restart(change, self._start)
                continue
            for verb, fields in _requests(change):
                try:
                    self._ask(verb, **fields)
                except OSError as error:
                    words = " ".join(change.event.words())
                    raise RunError(
                        f"timeline: {change.event.at_s:g} s: {words}: {error}"
                    ) from error
            if change.event.disk:
                assert self._set_disk is not None, change
                self._set_disk(change.event.disk, change.event.slower)
            now = round(time.time() - self._start, 3)
            for words in change.event.words():
                self.done.append({"t": now, "at_s": change.event.at_s, "said": words})

    def _let_it_restart(self, change: Change, start: float) -> None:
        event = change.event
        assert self._restart is not None, event
        assert event.restart, event
        began = round(time.time() - start, 3)
        found = self._restart(event.restart, event.down_s)
        instants = ("asked", "gone", "started", "opened", "restored")
        self.restarts.append(
            {
                "at_s": event.at_s,
                "how": event.restart,
                "down_s": event.down_s,
                **{f"{name}_s": round(found[name] - start, 3) for name in instants},
                **{name: value for name, value in found.items() if name not in instants},
            }
        )
        for words in event.words():
            self.done.append({"t": began, "at_s": event.at_s, "said": words})


def _requests(change: Change) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield verbs with their fields, in the order in which the model does it."""
    event = change.event
    for key, value in change.limits:
        yield "set", {"assignment": f"{key}={typed(value)}"}
    for part in event.pause:
        yield f"pause {part}", {}
    for part in event.resume:
        yield f"resume {part}", {}
    if event.schedule:
        yield "schedule", {"id": "all"}
