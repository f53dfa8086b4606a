"""Resident memory of the server, from what is in it.

Memory that an allocator has touched is given back late or never: an arena goes back when nothing in it lives any more, and what lives is
spread over all of them. So the estimate follows growth at once; as the queue drains nothing comes back until few are left, and then
the part that was seen to come back in a run that was filled and drained. What was kept is used first when the queue grows again, as is what
a server has free that was busy before: ``slack_bytes``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from sim.costs import MemoryCosts
from sim.layout import Standing
from sim.leastsquares import Fit, nonnegative

Floats = npt.NDArray[np.float64]
_Columns: TypeAlias = tuple[Floats, Floats, Floats, Floats]
"""RSS, queued, warmth, in flight."""

SAMPLES_MIN: Final = 10
"""Fewer samples say nothing."""
QUEUE_MIN: Final = 100
"""A queue that never held so many envelopes says nothing of what one costs."""
IN_FLIGHT_MAX: Final = 10_000.0
"""No envelope in flight takes more bytes, its body aside: `fixed`, C's envelope of 2013, takes 8,985. A run with hardly a hundred of them at once said
28 kB for each, give or take 11; when a thousand came after a restart, the model was 23 MB too high."""

RELEASE_POWER: Final = 8
"""How late memory comes back in a drain: of what does in the end, 43 % when nine tenths of what lived are gone, 10 % at three quarters."""
SLACK_MAX: Final = 12 * 1024 * 1024
SLACK_STEP: Final = 256 * 1024
"""Slack is looked for up to the one, in steps of the other."""
ROUNDS: Final = 6
"""Of a fit whose regressors follow from its coefficients."""

WARMED: Final = "warmed"
"""Column of samples: 1 from the end of the server's warm-up on, if it had one."""

NO_LOCAL: Final = Standing()

WARM_MESSAGES: Final = 500
"""After so many messages a server has grown by two thirds of what it grows by once."""


def warmth(messages: int) -> float:
    """Return how warm a server is after so many messages: 0 is cold, 1 is as large as it gets."""
    return -math.expm1(-messages / WARM_MESSAGES)


class Memory:
    """The estimate of one server's RSS over time."""

    __slots__ = ("_costs", "_full_bytes", "_held_bytes", "_session_bytes")

    def __init__(self, costs: MemoryCosts, tls: float = 0.0) -> None:
        """Begin with an empty server, of whose inbound sessions such a part is in TLS."""
        self._costs = costs
        self._session_bytes = costs.session_bytes + tls * costs.session_tls_bytes
        self._held_bytes = costs.slack_bytes
        """What the allocator has, in use or free."""
        self._full_bytes = 0.0
        """The same when all of it was in use last; 0 if it never was."""

    def live_bytes(
        self,
        *,
        envelopes: int,
        body_bytes: int,
        in_flight: int = 0,
        due: int = 0,
        local: Standing = NO_LOCAL,
    ) -> float:
        """Return what the queue takes now, the process and what its allocator keeps not counted."""
        costs = self._costs
        weighed = envelopes + (costs.due_share - 1.0) * due
        live = costs.envelope_bytes * weighed + costs.body_share * body_bytes
        live += costs.in_flight_bytes * in_flight
        return live + costs.local.of(local) if local is not NO_LOCAL else live

    def rss_bytes(
        self,
        *,
        envelopes: int,
        body_bytes: int,
        messages: int,
        in_flight: int = 0,
        due: int = 0,
        local: Standing = NO_LOCAL,
        sessions: int = 0,
        connections: int = 0,
    ) -> int:
        """Return the estimate now; calls are in order of time.

        Args:
            envelopes: queued envelopes that are relayed.
            body_bytes: bytes of the queued messages.
            messages: messages accepted so far.
            in_flight: those of ``envelopes`` that the agent has.
            due: those of them that are scheduled or held.
            local: queued envelopes of local deliveries.
            sessions: open inbound connections.
            connections: open outbound connections.
        """
        costs = self._costs
        live = self.live_bytes(
            envelopes=envelopes,
            body_bytes=body_bytes,
            in_flight=in_flight,
            due=due,
            local=local,
        )
        live += self._session_bytes * max(0.0, sessions - costs.warm_sessions)
        live += costs.connection_bytes * max(0.0, connections - costs.warm_connections)
        if live >= self._held_bytes:
            self._held_bytes = self._full_bytes = live
        else:
            kept = _kept_bytes(live, self._full_bytes, costs.kept_share)
            self._held_bytes = max(live, min(self._held_bytes, kept))
        return round(costs.base_bytes + costs.warm_bytes * warmth(messages) + self._held_bytes)


def _kept_bytes(live: float, full: float, share: float) -> float:
    """Return how much an allocator keeps at most that was full and has so much in use."""
    if not full:
        return math.inf
    return full - (1.0 - share) * full * (1.0 - live / full) ** RELEASE_POWER


def fit(*runs: Mapping[str, Floats]) -> MemoryCosts | None:
    """Fit RSS to what is in a server, over runs with one representation; None if they say nothing. See `fit_together`."""
    return fit_together({"": runs}).get("")


def fit_together(
    runs: Mapping[str, Sequence[Mapping[str, Floats]]],
    due_shares: Mapping[str, float] | None = None,
) -> dict[str, MemoryCosts]:
    """Fit RSS to what is queued, what is in flight and how warm the server is, over runs that were filled and drained.

    The regressors are not the counts but what an allocator has for them, which is how `Memory` reckons. No coefficient is negative.
    What an envelope in flight takes besides counts only if the runs insist: more than two standard errors, and no more than can be
    (`IN_FLIGHT_MAX`). An empty server is the same with every representation, and so are its caches and what it has free: one base, one warmth and one slack for all, so that what
    envelopes are compared by is not the chance of where a process begins. A server that was warmed up is as warm as it gets.

    Args:
        runs: by representation, of each run the columns ``rss_bytes``, ``scheduler.envelope`` and, if they were had,
            ``scheduler.envelope.inflight``, ``scheduler.envelope.scheduled``, ``scheduler.ramqueue.hold``, ``smtp.message``,
            ``queue.bytes``, ``smtp.session``, ``mta.session`` and `WARMED`.
        due_shares: `MemoryCosts.due_share` by representation; 1 where there is none.

    Returns:
        What each representation costs, without those of which there are too few samples or whose queue did not grow.
    """
    every = [one for each in runs.values() for one in each]
    warm_sessions = max((_while_warming(one, "smtp.session") for one in every), default=0.0)
    warm_connections = max((_while_warming(one, "mta.session") for one in every), default=0.0)
    shares = {name: (due_shares or {}).get(name, 1.0) for name in runs}
    usable = {
        name: filled
        for name, each in runs.items()
        if (filled := [run for one in each if (run := _filled(one, shares[name])) is not None])
    }
    if not usable:
        return {}
    credible = {name: IN_FLIGHT_MAX + max(map(_body_bytes, runs[name])) for name in usable}
    best: _Trial | None = None
    # A cold server has nothing free: its first growth is its warmth.
    most = SLACK_MAX if all(WARMED in one for each in runs.values() for one in each) else 0
    for slack in range(0, most + 1, SLACK_STEP):
        trial = _tried(usable, float(slack), credible)
        # Slack is for what nothing else explains: a little better is no better.
        if best is None or trial.squares < 0.98 * best.squares:
            best = trial
    assert best is not None
    found = best.found
    return {
        name: MemoryCosts(
            base_bytes=float(found.values[0]),
            envelope_bytes=float(found.values[2 + 2 * i]),
            warm_bytes=float(found.values[1]),
            in_flight_bytes=float(found.values[3 + 2 * i]),
            due_share=shares[name],
            warm_sessions=warm_sessions,
            warm_connections=warm_connections,
            slack_bytes=best.slack,
            body_share=0.0,
            kept_share=best.kept[name],
            base_stderr=float(found.stderr[0]),
            envelope_stderr=float(found.stderr[2 + 2 * i]),
            in_flight_stderr=float(found.stderr[3 + 2 * i]),
            samples=sum(len(each[0]) for each in usable[name]),
        )
        for i, name in enumerate(usable)
    }


def _body_bytes(samples: Mapping[str, Floats]) -> float:
    """Return how many bytes of messages there were for each queued envelope; 0 if nobody knows."""
    if "queue.bytes" not in samples:
        return 0.0
    envelopes = np.nan_to_num(samples["scheduler.envelope"], nan=0.0).max(initial=0.0)
    stored = np.nan_to_num(samples["queue.bytes"], nan=0.0).max(initial=0.0)
    return float(stored / envelopes) if envelopes else 0.0


def _while_warming(samples: Mapping[str, Floats], gauge: str) -> float:
    """Return the largest value of a gauge while the server was warmed up, as far as samples have seen."""
    if WARMED not in samples or gauge not in samples:
        return 0.0
    values = np.nan_to_num(samples[gauge][samples[WARMED] == 0], nan=0.0)
    return float(values.max(initial=0.0))


class _Trial(NamedTuple):
    """A fit with one slack."""

    slack: float
    kept: dict[str, float]
    found: Fit
    squares: float
    """Sum of the squares of what is left."""


def _tried(
    usable: Mapping[str, Sequence[_Columns]], slack: float, credible: Mapping[str, float]
) -> _Trial:
    """Fit with so much slack: which samples are above it, and what is kept, follows from the coefficients, and these from the samples."""
    kept = _kept_by(usable, slack, 0.0)
    coefficients = dict.fromkeys(usable, (math.inf, 0.0))
    found, squares = _solved(usable, kept, slack, coefficients, credible)
    best = _Trial(slack, kept, found, squares)
    for _ in range(ROUNDS):
        coefficients = {
            name: (float(found.values[2 + 2 * i]), float(found.values[3 + 2 * i]))
            for i, name in enumerate(usable)
        }
        kept = _kept_by(usable, slack, float(found.values[1]))
        found, squares = _solved(usable, kept, slack, coefficients, credible)
        if squares >= best.squares:
            break
        best = _Trial(slack, kept, found, squares)
    return best


def _kept_by(
    usable: Mapping[str, Sequence[_Columns]], slack: float, warm_bytes: float
) -> dict[str, float]:
    return {
        name: float(
            np.median(
                [_kept(rss - warm_bytes * warm, queued, slack) for rss, queued, warm, _ in each]
            )
        )
        for name, each in usable.items()
    }


def _solved(
    usable: Mapping[str, Sequence[_Columns]],
    kept: Mapping[str, float],
    slack: float,
    coefficients: Mapping[str, tuple[float, float]],
    credible: Mapping[str, float],
) -> tuple[Fit, float]:
    """Return the least squares where samples are above the slack that are so by the coefficients, and their sum."""
    width = 2 + 2 * len(usable)
    blocks, observed = [], []
    for i, (name, each) in enumerate(usable.items()):
        envelope, flying = coefficients[name]
        for rss, queued, warm, in_flight in each:
            columns = np.column_stack(
                (_with_kept(queued, kept[name]), _with_kept(in_flight, kept[name]))
            )
            above = np.ones(len(rss), dtype=bool)
            if slack and math.isfinite(envelope):
                live = np.maximum.accumulate(envelope * queued + flying * in_flight)
                above = live > slack
            elif slack:
                # At first, those that have grown.
                above = np.maximum.accumulate(rss) > rss[0] + 0.1 * (rss.max() - rss[0])
            block = np.zeros((len(rss), width))
            block[:, 0] = 1.0
            block[:, 1] = warm
            block[:, 2 + 2 * i : 4 + 2 * i] = columns * above[:, None]
            blocks.append(block)
            observed.append(np.where(above, rss, rss - slack))
    table, target = np.vstack(blocks), np.concatenate(observed)
    found = nonnegative(table, target)
    vague = [
        3 + 2 * i
        for i, name in enumerate(usable)
        if not 2 * found.stderr[3 + 2 * i] < found.values[3 + 2 * i] <= credible[name]
    ]
    if vague:
        table[:, vague] = 0.0
        found = nonnegative(table, target)
    return found, float(((target - table @ found.values) ** 2).sum())


def _filled(samples: Mapping[str, Floats], due_share: float) -> _Columns | None:
    """Return RSS, queued as they weigh, warmth and in flight, from the first message of the load on; None if they say nothing."""
    if "rss_bytes" not in samples:
        return None
    rss, queued = samples["rss_bytes"], samples["scheduler.envelope"]
    nothing = np.zeros(len(rss))
    accepted = samples.get("smtp.message", nothing)
    in_flight = np.nan_to_num(samples.get("scheduler.envelope.inflight", nothing), nan=0.0)
    for name in ("scheduler.envelope.scheduled", "scheduler.ramqueue.hold"):
        queued = queued + (due_share - 1.0) * np.nan_to_num(samples.get(name, nothing), nan=0.0)
    known = np.isfinite(rss) & np.isfinite(queued) & np.isfinite(accepted)
    warm = np.array([warmth(int(count)) for count in np.nan_to_num(accepted)])
    if WARMED in samples:
        # What it grew by once and for all it has.
        known &= samples[WARMED] > 0
        warm = nothing
    columns = [each[known] for each in (rss, queued, accepted, in_flight, warm)]
    # From the first message of the load on: before, modules are loaded.
    busy = np.flatnonzero(np.diff(columns[2], prepend=columns[2][:1]) > 0)
    if len(busy):
        columns = [each[busy[0] :] for each in columns]
    if len(columns[0]) < SAMPLES_MIN or columns[1].max() < QUEUE_MIN:
        return None
    return columns[0], columns[1], columns[4], columns[3]


def _kept(rss: Floats, queued: Floats, slack: float) -> float:
    """Return the share of the growth that is still there when the queue has drained; 1 if it did not."""
    top = int(np.argmax(queued))
    floor, peak = float(rss[: top + 1].min()) - slack, float(rss.max())
    if queued[-1] >= 0.2 * queued[top] or peak <= floor:
        return 1.0
    # What has come back by the end, of what had grown.
    gone = (1 - float(queued[-1] / queued[top])) ** RELEASE_POWER
    return min(max(1 - (peak - float(rss[-1])) / (peak - floor) / gone, 0.0), 1.0)


def _with_kept(count: Floats, kept: float) -> Floats:
    """Return how many an allocator has room for, as `Memory` reckons it for bytes."""
    found = np.empty(len(count))
    held = full = 0.0
    for i, now in enumerate(count.tolist()):
        if now >= held:
            held = full = now
        else:
            held = max(now, min(held, _kept_bytes(now, full, kept)))
        found[i] = held
    return found
