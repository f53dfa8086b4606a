"""Asks the model for the run that was just made, and says how far off it is.

The model gets the scenario and the instants at which the load really sent each message, so that a generator that was late on
a busy machine is not the model's error. Its costs are calibrated with the very run that it predicts, so the errors are
in-sample: they show whether the mechanism is right, not how well another limit or another machine would be predicted.
Reports say so.
"""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sim.calibrate import calibrate
from sim.costs import Costs, save
from sim.replay import arrivals
from sim.result import told
from sim.runner import SERIES, simulate
from sim.scenario import Scenario
from sim.workload import Schedule
from testbed import beside, diskphases
from testbed.rundir import Run, Samples, write_samples

if TYPE_CHECKING:
    from testbed.fit import Floats

TOLD: Final = ("accepted", "delivered", "duplicates", "duplicates_client", "unacknowledged")
"""Counts of the model that a prediction keeps."""

REPEATED: Final = ("duplicates", "duplicates_client", "unacknowledged")
NEAR: Final = 9
"""Instants about that of a kill at which the model is asked what it repeats."""
NEAR_S: Final = 0.1
"""Seconds that these are spread over."""

ERRORS: Final = ("peak_queue_error", "drain_time_error", "peak_rss_error", "end_rss_error")
"""Relative, 0 for none; the worst over representations is what a run is judged by."""


def costs_of(run: Run) -> Costs:
    """Return what things cost in a run; calibration.json in its directory keeps it, with what it was learnt from.

    Raises:
        ConfigError: a trace is missing or can't be read.
    """
    costs = calibrate(run.directory)
    save(costs, run.directory / "calibration.json")
    return costs


def predict(run: Run, representation: str, costs: Costs) -> dict[str, Any]:
    """Simulate one representation's run; write ``model.csv`` and return what it comes to."""
    directory = run.directory / representation
    schedule, _, _ = arrivals(directory / "load.jsonl", run.scenario)
    result = simulate(
        run.scenario, representation=representation, costs=costs, start=0.0, schedule=schedule
    )
    columns: dict[str, Floats] = {
        name: np.asarray(getattr(result, name), dtype=float) for name in ("t", *SERIES)
    }
    for restart in result.restarts:
        # As in the run: nobody answers.
        down = (columns["t"] > restart.gone_s) & ~(columns["t"] >= restart.opened_s)
        for name in SERIES:
            columns[name][down] = np.nan
    write_samples(directory / "model.csv", columns)
    return {
        # Of the samples, as in the run: the largest between two samples is nobody's measurement.
        "peak_queue": int(np.nanmax(columns["queued"], initial=0)),
        "peak_rss_bytes": int(np.nanmax(columns["rss_bytes"], initial=0)),
        # As long as it goes on, memory comes back: who is not empty yet is not compared.
        "end_rss_bytes": None if result.drain_time_s is None else int(columns["rss_bytes"][-1]),
        "drain_time_s": result.drain_time_s,
        "restarts": [told(each) for each in result.restarts],
        "beside": beside.predicted(result),
        "disk": diskphases.predicted(result, diskphases.phases_of(run.scenario)),
        # In recipients, as the ledger counts.
        "near": _near(run.scenario, representation, costs, schedule) if result.restarts else {},
        "counts": {
            "refused": int(schedule.first[-1]) - result.counts["accepted"],
            **{key: result.counts[key] for key in TOLD},
        },
    }


def _near(
    scenario: Scenario, representation: str, costs: Costs, schedule: Schedule
) -> dict[str, tuple[int, int]]:
    """Return the least and the most of what a kill at about those instants repeats.

    It is a matter of milliseconds who is in the middle of what, and the bench meets an instant to some hundredths of a second.
    """
    found: dict[str, list[int]] = {name: [] for name in REPEATED}
    if not any(event.restart == "kill" for event in scenario.timeline):
        return {}
    for number in range(NEAR):
        later_s = (number - NEAR // 2) * NEAR_S / NEAR
        moved = copy.deepcopy(scenario)
        for event in moved.timeline:
            if event.restart == "kill":
                event.at_s = max(0.0, event.at_s + later_s)
        result = simulate(
            moved,
            representation=representation,
            costs=costs,
            schedule=schedule,
            fingerprint=False,
            backend="heapq",
        )
        for name, values in found.items():
            values.append(result.counts[name])
    return {name: (min(values), max(values)) for name, values in found.items()}


def compare(
    predictions: Mapping[str, Mapping[str, Any]],
    parts: Mapping[str, Mapping[str, Any]],
    run: Run,
) -> dict[str, Any]:
    """Return the ``model`` part of a summary.

    Args:
        predictions: what `predict` returned, by representation.
        parts: what was measured, by representation.
        run: for the curves.
    """
    found: dict[str, Any] = {}
    for name, predicted in predictions.items():
        part = parts[name]
        measured, model = run.samples(name).at_or_after(0.0), run.prediction(name)
        assert model is not None, name
        found[name] = {
            "peak_queue_error": off(predicted["peak_queue"], part["peak_queue"]),
            "drain_time_error": off(predicted["drain_time_s"], part["drain_time_s"]),
            "peak_rss_error": off(predicted["peak_rss_bytes"], part["peak_rss_bytes"]),
            "end_rss_error": off(
                predicted.get("end_rss_bytes"), part["end_rss_bytes"] if part["drained"] else None
            ),
            "queue_area_error": area_between(measured, model),
            "peak_queue": predicted["peak_queue"],
            "drain_time_s": predicted["drain_time_s"],
            "peak_rss_bytes": predicted["peak_rss_bytes"],
            "end_rss_bytes": predicted.get("end_rss_bytes"),
            "restarts": predicted.get("restarts", []),
            "disk": predicted.get("disk", []),
            "beside": predicted.get("beside", {}),
            "counts": predicted.get("counts", {}),
            "near": predicted.get("near", {}),
        }
    worst = {
        key: max((each[key] for each in found.values() if each[key] is not None), default=None)
        for key in ERRORS
    }
    return {
        **worst,
        "representations": found,
        "calibration": "in-sample: costs from the same run that is predicted",
    }


def off(model: float | None, real: float | None) -> float | None:
    """Return the relative error ``|model - real| / real``; None where there is nothing to compare."""
    if model is None or not real:
        return None
    return round(abs(model - real) / real, 4)


def area_between(measured: Samples, model: Samples) -> float | None:
    """Return the area between two queue curves as a share of the measured one's.

    Why not a mean of relative errors? Queues touch 0.
    """
    t, queued = measured["t"], np.nan_to_num(measured["scheduler.envelope"], nan=0.0)
    if len(t) < 2:
        return None
    # A model that ends sooner is empty from then on; one that is down says nothing.
    known = np.isfinite(model["queued"])
    at, length = model["t"][known], model["queued"][known]
    predicted = np.interp(t, at, length, right=float(length[-1]))
    total = float(np.trapezoid(queued, t))
    return round(float(np.trapezoid(np.abs(predicted - queued), t)) / total, 4) if total else None
