"""Where the time goes, at run time: ``mtactl profile``, ``show profile``, ``unprofile``.

Three groups are timed. ``stimulus``: what the core took to decide. ``instruction``: what the driver took to carry
one out, or to begin it. ``effect``: each touch of the world by operation and site, from `mta.effects`; one that is
awaited counts from its begin to its end, and other things ran meanwhile. OpenSMTPD's counterpart
(``smtpctl profile imsg`` and ``queue``) logs a line for each; here they are added up.

Off it costs nothing: the hooks of `mta.effects` are put there when it is switched on and taken away again.
"""

import asyncio
import math
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mta.effects import Effects
    from mta.trace import Tracer

_STEPS: Final = 16
"""Buckets per doubling: a percentile is right to 1/16."""
_OPEN_MAX: Final = 4096
"""Effects under way that are remembered; those that failed never end, and the oldest make room."""


class Timing:
    """Durations of one thing: how many, their sum, the longest, and percentiles."""

    __slots__ = ("_buckets", "count", "max_s", "total_s")

    def __init__(self) -> None:
        self.count = 0
        self.total_s = 0.0
        self.max_s = 0.0
        self._buckets: dict[int, int] = {}

    def add(self, seconds: float) -> None:
        """Count one."""
        self.count += 1
        self.total_s += seconds
        self.max_s = max(self.max_s, seconds)
        mantissa, exponent = math.frexp(max(seconds, 1e-9))
        bucket = exponent * _STEPS + int((mantissa - 0.5) * 2 * _STEPS)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1

    def percentile(self, percent: float) -> float:
        """Return what so many percent of the durations do not exceed, seconds, to 1/16; 0 for none."""
        left = math.ceil(self.count * percent / 100)
        for bucket in sorted(self._buckets):
            left -= self._buckets[bucket]
            if left <= 0:
                exponent, step = divmod(bucket, _STEPS)
                return min(math.ldexp(0.5 + (step + 1) / (2 * _STEPS), exponent), self.max_s)
        return 0.0


class Profile:
    """Timings by group and name; may be added to from any thread."""

    def __init__(self) -> None:
        self.on = False
        self._watchers: list[Callable[[], None]] = []
        self._timings: dict[tuple[str, str], Timing] = {}
        self._mutex = threading.Lock()

    def start(self) -> None:
        """Forget what was measured and begin; nothing if it runs."""
        if not self.on:
            with self._mutex:
                self._timings = {}
            self.on = True
            self._changed()

    def stop(self) -> None:
        """Measure no more; what was measured stays to be looked at. Idempotent."""
        self.on = False
        self._changed()

    def watch(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` after every `start` and `stop`."""
        self._watchers.append(changed)

    def _changed(self) -> None:
        for changed in self._watchers:
            changed()

    def add(self, group: str, name: str, seconds: float) -> None:
        """Count one duration."""
        with self._mutex:
            timing = self._timings.get((group, name))
            if timing is None:
                timing = self._timings[group, name] = Timing()
            timing.add(seconds)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row for each thing that was timed, by group, the costliest first; durations in seconds."""
        with self._mutex:
            timings = sorted(
                self._timings.items(), key=lambda item: (item[0][0], -item[1].total_s, item[0])
            )
            for (group, name), timing in timings:
                yield {
                    "group": group,
                    "name": name,
                    "count": timing.count,
                    "total_s": timing.total_s,
                    "p50_s": timing.percentile(50),
                    "p99_s": timing.percentile(99),
                    "max_s": timing.max_s,
                }


class EffectProbe:
    """Times every effect for the profile, and tells subsystem ``io`` of it."""

    def __init__(
        self,
        effects: "Effects",
        profile: Profile,
        tracer: "Tracer",
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._effects = effects
        self._profile = profile
        self._tracer = tracer
        self._loop = loop
        self._thread = threading.get_ident()
        self._open: dict[tuple[str, str, int], float] = {}
        self._point: Callable[[str, str], None]
        self._done: Callable[[str, str], None]
        self._installed = False

    def install(self, wanted: bool) -> None:
        """Put the probe into the seam, or take it out. Idempotent."""
        effects = self._effects
        if wanted == self._installed:
            return
        self._installed = wanted
        if wanted:
            self._point, self._done = effects.point, effects.done
            effects.point = self._before  # type: ignore[method-assign]
            effects.done = self._after  # type: ignore[method-assign]
        else:
            del effects.point, effects.done
            self._open = {}

    def _key(self, op: str, site: str) -> tuple[str, str, int]:
        here = threading.get_ident()
        task = asyncio.current_task() if here == self._thread else None
        return op, site, here if task is None else id(task)

    def _before(self, op: str, site: str) -> None:
        key = self._key(op, site)
        self._open.pop(key, None)
        while len(self._open) >= _OPEN_MAX:
            self._open.pop(next(iter(self._open)), None)
        self._open[key] = self._effects.monotonic()
        self._point(op, site)

    def _after(self, op: str, site: str) -> None:
        started = self._open.pop(self._key(op, site), None)
        if started is not None:
            seconds = self._effects.monotonic() - started
            if self._profile.on:
                self._profile.add("effect", f"{op} {site}", seconds)
            # Why not the log's? Each line would make the next one.
            if self._tracer.io and site != "log":
                self._tell(f"{op} site={site} seconds={seconds:.6f}")
        self._done(op, site)

    def _tell(self, text: str) -> None:
        if threading.get_ident() == self._thread:
            self._tracer.line("io", text)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._tracer.line, "io", text)
