"""The operator of a real server: says on its control socket, at the instants of the scenario's timeline, what `mtactl` says.

Instants are met to a tenth of a second or so, and written down as they were. What the server refuses ends the run: a
timeline that was not followed is another experiment.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeAlias

from sim.scenario import Scenario
from sim.settings import model_config
from sim.timeline import Change, changes_of
from testbed.children import RunError, UsageError

Ask: TypeAlias = Callable[..., object]
"""Sends a verb with its fields to the control socket."""

NO_RESTART: Final = "a server that ends is for the model (sim run)"
NO_DISK: Final = "a disk that is slow or full is for the model (sim run)"


def checked(scenario: Scenario) -> list[Change]:
    """Return the scenario's timeline, if it can be followed for real.

    Raises:
        UsageError: it has what only the model can do.
        ConfigError: it has a limit that there is not, or a value that makes no sense.
    """
    if not scenario.timeline:
        return []
    limits = model_config(scenario.server, source=scenario.name).limits
    for number, event in enumerate(scenario.timeline):
        if event.restart:
            raise UsageError(
                f"{scenario.name}: timeline.{number}.restart = {event.restart!r}: {NO_RESTART}"
            )
        if event.disk:
            raise UsageError(f"{scenario.name}: timeline.{number}.disk = {event.disk!r}: {NO_DISK}")
    return changes_of(scenario.timeline, limits, source=scenario.name)


class Operator:
    """Follows a timeline from the start of the load on."""

    def __init__(self, timeline: Sequence[Change], ask: Ask) -> None:
        """Get ready; nothing is said before `begin`."""
        self._left = list(timeline)
        self._ask = ask
        self._start: float | None = None
        self.done: list[dict[str, Any]] = []
        """What was said: seconds of load, the instant it was wanted at, and the words of ``mtactl``."""

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
            for verb, fields in _requests(change):
                try:
                    self._ask(verb, **fields)
                except OSError as error:
                    words = " ".join(change.event.words())
                    raise RunError(
                        f"timeline: {change.event.at_s:g} s: {words}: {error}"
                    ) from error
            now = round(time.time() - self._start, 3)
            for words in change.event.words():
                self.done.append({"t": now, "at_s": change.event.at_s, "said": words})


def _requests(change: Change) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield verbs with their fields, in the order in which the model does it."""
    event = change.event
    for key, value in change.limits:
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        yield "set", {"assignment": f"{key}={shown}"}
    for part in event.pause:
        yield f"pause {part}", {}
    for part in event.resume:
        yield f"resume {part}", {}
    if event.schedule:
        yield "schedule", {"id": "all"}
