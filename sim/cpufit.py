"""CPU seconds of a server regressed on what it did, over the windows of one or several runs.

Where the runs can't tell two costs apart, their ratio stays that of the defaults (`sim.leastsquares.near_prior`). The process
has two threads, the event loop and the queue's writer. They share one interpreter, and so one server of the model; what
SQLite does without the interpreter is counted as if it did not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sim import localcosts
from sim.costs import Costs
from sim.leastsquares import near_prior
from sim.measured import Measured

Floats = npt.NDArray[np.float64]

WINDOW_S: Final = 1.0
"""Grain of the regression of CPU time: /proc counts in hundredths of a second."""
PRIOR_SPREAD: Final = 0.5
"""How far a cost may lie from its default, relative to it, before the runs have to insist: one standard deviation."""
IDLE_PRIOR: Final = 0.01
"""Share of its time that a server needs while it is watched and has nothing to do."""
SAMPLES_MIN: Final = 10
"""Fewer windows say nothing."""

REGRESSED: Final = (
    "idle_share",
    "message_s",
    "byte_s",
    "recipient_s",
    "transaction_s",
    "delivery_s",
    "deferral_s",
    "local_s",
    "tls_s",
)
GO_WITH: Final = {
    "session_s": "message_s",
    "connect_s": "transaction_s",
    "sent_byte_s": "byte_s",
    "local_rcpt_s": "local_s",
    "fork_s": "local_s",
    "local_done_s": "local_s",
    "tls_connect_s": "tls_s",
}
"""Costs that keep their ratio to one that is regressed, because runs do both in step."""


class TlsShares(NamedTuple):
    """What of a run's connections had a handshake, as its scenario says: a trace has none."""

    inbound: float = 0.0
    """Part of the messages that brought one."""
    hosts: frozenset[str] = frozenset()
    """Addresses to which every connection had one."""


NO_TLS: Final = TlsShares()


class Windows(NamedTuple):
    """What was done in each window of time, and what it took."""

    done: Floats
    """float64[window, cost], in the order of `REGRESSED`."""
    spent: Floats
    """float64[window]: CPU seconds."""


def fit(
    defaults: Costs, windows: Sequence[Windows], notes: list[str]
) -> tuple[Costs, dict[str, float], float]:
    """Return costs, the standard error of each that was regressed, and R squared.

    Args:
        defaults: what to stay near to.
        windows: of each run.
        notes: takes what could not be measured.
    """
    if not windows or sum(len(each.spent) for each in windows) < SAMPLES_MIN:
        notes.append("too few samples: CPU costs are defaults")
        return defaults, {}, 0.0
    done = np.vstack([each.done for each in windows])
    spent = np.concatenate([each.spent for each in windows])
    if not spent.sum() > 0:
        notes.append("the run is too short: CPU costs are defaults")
        return defaults, {}, 0.0
    prior = np.array(
        [IDLE_PRIOR, *(getattr(defaults, name) for name in REGRESSED[1:])], dtype=float
    )
    found = near_prior(done, spent, prior, PRIOR_SPREAD)
    fitted = done @ found.values
    # What was used in all is known best of all.
    factor = float(spent.sum()) / float(fitted.sum())
    residual = spent - fitted * factor
    spread = float(((spent - spent.mean()) ** 2).sum())
    explained = 1 - float((residual**2).sum()) / spread if spread > 0 else 0.0
    values = dict(zip(REGRESSED, map(float, found.values * factor), strict=True))
    # Of what the runs never did, the error is that of the prior, which nobody needs to be told.
    did = [bool(column.any()) for column in done.T]
    errors = {
        name: float(error * factor)
        for name, error, seen in zip(REGRESSED, found.stderr, did, strict=True)
        if seen
    }
    values["idle_share"] = min(values["idle_share"], 0.5)
    for name, leader in GO_WITH.items():
        values[name] = getattr(defaults, name) * values[leader] / getattr(defaults, leader)
    changes: dict[str, Any] = dict(values)
    return replace(defaults, **changes), errors, max(explained, 0.0)


def windows_of(
    measured: Measured,
    samples: Mapping[str, Floats],
    defaults: Costs,
    methods: Mapping[str, str],
    *,
    tls: TlsShares = NO_TLS,
) -> Windows | None:
    """Return what a run did in each window; None if it was too short or nobody watched.

    Args:
        measured: its trace.
        samples: its samples.
        defaults: for the ratios of what goes together.
        methods: how local users get their mail.
        tls: what of it was done under TLS.
    """
    if len(samples.get("t", ())) < SAMPLES_MIN:
        return None
    t, cpu_s = samples["t"], samples["cpu_s"]
    known = np.isfinite(t) & np.isfinite(cpu_s)
    t, cpu_s = t[known], cpu_s[known]
    # Every fifth sample or so: the edges of the windows are instants of samples.
    step = max(1, round(WINDOW_S / max(float(np.median(np.diff(t))), 1e-3)))
    edges, cpu_s = t[::step], cpu_s[::step]

    def per_window(instants: npt.ArrayLike, amounts: npt.ArrayLike | None = None) -> Floats:
        order = np.asarray(instants, dtype=float)
        weights = np.ones(len(order)) if amounts is None else np.asarray(amounts, dtype=float)
        total = np.concatenate(([0.0], np.cumsum(weights)))
        counted: Floats = np.diff(total[np.searchsorted(order, edges)])
        return counted

    submitted, envelopes, size = measured.submitted.columns
    # A message brings its bytes and, in most runs, its connection; see `GO_WITH`.
    weight = np.full(len(submitted), 1 + defaults.session_s / defaults.message_s)
    finished, delivered = measured.finished.columns
    connect = defaults.connect_s / defaults.transaction_s
    columns = (
        np.diff(edges),
        per_window(submitted, weight),
        per_window(submitted, size),
        per_window(submitted, envelopes),
        per_window(finished) + connect * per_window(measured.connects),
        per_window(finished, delivered),
        per_window(measured.deferrals),
        per_window(
            [at for at, _, _ in measured.delivered],
            [localcosts.units(defaults, methods, user) for _, _, user in measured.delivered],
        ),
        tls.inbound * per_window(submitted)
        + defaults.tls_connect_s
        / defaults.tls_s
        * per_window([at for at, _, address in measured.connected if address in tls.hosts]),
    )
    return Windows(np.column_stack(columns), np.diff(cpu_s))
