"""Whether the model's predictions of settings that it has not seen are good enough, and if not, why.

A gate is a relative error that a prediction must not exceed. Beside it stand what nothing can beat, the spread of the real
runs among themselves, and what anything should beat, a naive prediction: the training setting's number as it is, or in
proportion to the setting. Of the two, a quantity is held against the one that does better on it, which favours the naive.
Pure functions of what `testbed.heldout` has measured.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Gate:
    """What is asked of one quantity."""

    title: str
    error_max: float
    """Largest relative error that is let through."""
    unit: str = ""
    factor: float = 1.0
    """From the quantity's own unit to the one that is shown."""
    power: int = 0
    """How a naive engineer would scale it with the limit: 1, -1, or 0 for not at all."""
    nothing: float = 0.0
    """Real and model both below this: nothing is there of which an error could be told. ``peak_queue``: part of all
    envelopes."""
    is_distance: bool = False
    """Between two curves over time: what is measured is itself the error."""


GATES: Final[Mapping[str, Gate]] = {
    "peak_queue": Gate("Longest queue", 0.25, "envelopes", power=-1, nothing=0.05),
    "queue_curve": Gate("Queue over time", 0.25, is_distance=True),
    "drain_time": Gate("Empty after", 0.15, "s", power=-1),
    "messages_per_s": Gate("Throughput", 0.10, "messages/s", power=1),
    "peak_rss": Gate("Peak RSS", 0.15, "MiB", 1 / MIB),
    "end_rss": Gate("RSS after the drain", 0.15, "MiB", 1 / MIB),
    "rss_curve": Gate("RSS over time", 0.15, is_distance=True),
    "saving": Gate("Saved by slim", 0.20, "MiB", 1 / MIB, power=-1, nothing=1.0 * MIB),
}
"""The largest errors are those of the design for held-out limits, stricter ones hold for what is predicted in-sample."""

HOLDS: Final = "holds"
NOTHING: Final = "too little"
MISSES: Final = "misses"
NOISE: Final = "within spread"
MISSING: Final = "not measured"
MISSES_ALL: Final = "does not"
TOO_NOISY: Final = "can't tell"
"""No setting is within the gate, and none further off than real runs are from each other."""

BUSY_SHARE: Final = 0.15
"""Other programs took so much of the machine: part of the error is theirs."""


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity at one setting."""

    quantity: str
    representation: str
    value: Any
    trains: bool
    """In-sample: shown, and not judged."""
    real: float | None
    """Median of the repeats."""
    low: float | None
    high: float | None
    model: float | None
    error: float | None
    """(model - real) / real; of a distance, the distance."""
    spread: float | None
    """How far a real run is from the median of all, at worst, relative to it; of a distance, between real runs."""
    naive: float | None
    """Error of the better of the naive predictions; None for the training setting."""
    verdict: str
    why: str

    @property
    def gate(self) -> Gate:
        """What is asked of it."""
        return GATES[self.quantity]


def judged(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``verdict`` of a result: rows, a line for each quantity, and whether all holds."""
    rows = [row for quantity in GATES for row in _rows(result, quantity)]
    quantities = [_line(quantity, rows) for quantity in GATES]
    lines = [line for line in quantities if line is not None]
    return {
        "ok": bool(lines) and all(line["ok"] for line in lines),
        "quantities": lines,
        "rows": [asdict(row) for row in rows],
    }


def rows_of(result: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a result that was judged."""
    return [Row(**row) for row in result["verdict"]["rows"]]


def _rows(result: Mapping[str, Any], quantity: str) -> Iterator[Row]:
    gate = GATES[quantity]
    names: Sequence[str] = ["saving"] if quantity == "saving" else result["representations"]
    settings: Sequence[Mapping[str, Any]] = result["settings"]
    trained = next((each for each in settings if each["trains"]), None)
    for name in names:
        key = "saving.peak_rss" if quantity == "saving" else f"{name}.{quantity}"
        if not any(key in each["distances" if gate.is_distance else "real"] for each in settings):
            continue
        naive = _naive(gate, key, settings, trained)
        for setting in settings:
            if gate.is_distance:
                yield _distance_row(quantity, name, key, setting, trained)
            else:
                yield _value_row(quantity, name, key, setting, trained, naive, result)


def _value_row(
    quantity: str,
    name: str,
    key: str,
    setting: Mapping[str, Any],
    trained: Mapping[str, Any] | None,
    naive: Mapping[Any, float | None],
    result: Mapping[str, Any],
) -> Row:
    gate = GATES[quantity]
    real = _known(setting["real"].get(key, ()))
    model = _median(setting["model"].get(key, ()))
    middle = statistics.median(real) if real else None
    error = _off(model, middle)
    spread = None
    if middle and len(real) > 1:
        spread = max(abs(max(real) - middle), abs(min(real) - middle)) / abs(middle)
    nothing = gate.nothing * (result["envelopes"] if quantity == "peak_queue" else 1)
    verdict, why = "", ""
    if not setting["trains"]:
        if middle is None or model is None:
            verdict, why = MISSING, "the queue was not empty in the end, or no run succeeded"
        elif abs(middle) < nothing and abs(model) < nothing:
            verdict = NOTHING
        elif error is not None and abs(error) <= gate.error_max:
            verdict = HOLDS
        elif spread is not None and error is not None and abs(error) <= spread:
            verdict, why = NOISE, "the error is within the real runs' own range"
        else:
            verdict = MISSES
            why = _why(error, _trained_error(trained, key), setting)
            if quantity == "saving" and model * middle < 0:
                why = "even its sign is wrong; " + why
    return Row(
        quantity=quantity,
        representation=name,
        value=setting["value"],
        trains=setting["trains"],
        real=middle,
        low=min(real) if real else None,
        high=max(real) if real else None,
        model=model,
        error=error,
        spread=spread,
        naive=None if setting["trains"] else naive.get(setting["value"]),
        verdict=verdict,
        why=why,
    )


def _distance_row(
    quantity: str,
    name: str,
    key: str,
    setting: Mapping[str, Any],
    trained: Mapping[str, Any] | None,
) -> Row:
    gate = GATES[quantity]
    known = _known(setting["distances"].get(key, ()))
    apart = _median(setting["real_distances"].get(key, ()))
    error = statistics.median(known) if known else None
    verdict, why = "", ""
    if not setting["trains"]:
        before = _median(trained["distances"].get(key, ())) if trained else None
        if error is None:
            verdict, why = MISSING, "no run succeeded"
        elif error <= gate.error_max:
            verdict = HOLDS
        elif apart is not None and error <= apart:
            verdict, why = NOISE, "real runs are as far from each other"
        else:
            verdict, why = MISSES, _why(error, before, setting)
    return Row(
        quantity=quantity,
        representation=name,
        value=setting["value"],
        trains=setting["trains"],
        real=None,
        low=None,
        high=None,
        model=None,
        error=error,
        spread=apart,
        naive=None,
        verdict=verdict,
        why=why,
    )


def _why(error: float | None, trained: float | None, setting: Mapping[str, Any]) -> str:
    """Return what is known of the reason of an error."""
    busy = setting["foreign_cpu_share"]
    if busy > BUSY_SHARE:
        return f"other programs took up to {busy:.0%} of the machine meanwhile"
    if error is None or trained is None:
        return "no error in-sample to compare with"
    if error * trained > 0 and abs(trained) >= abs(error) / 2:
        return f"{trained:+.0%} at the training setting already: a cost is wrong, not what the setting does"
    return f"{trained:+.0%} at the training setting: what the setting changes is not in the model as it is"


def _naive(
    gate: Gate,
    key: str,
    settings: Sequence[Mapping[str, Any]],
    trained: Mapping[str, Any] | None,
) -> dict[Any, float | None]:
    """Return the error of the naive prediction at each held-out value: that of two which does better over all."""
    if trained is None or gate.is_distance:
        return {}
    known = _median(trained["real"].get(key, ()))
    if known is None:
        return {}
    found: list[dict[Any, float | None]] = []
    for power in {0, gate.power}:
        errors: dict[Any, float | None] = {}
        for each in settings:
            if each["trains"]:
                continue
            guess = known
            if power and _is_number(each["value"]) and _is_number(trained["value"]):
                guess = known * (each["value"] / trained["value"]) ** power
            errors[each["value"]] = _off(guess, _median(each["real"].get(key, ())))
        found.append(errors)
    return min(found, key=lambda errors: _middle_size(errors.values()))


def word_of(result: Mapping[str, Any], line: Mapping[str, Any]) -> str:
    """Return the verdict on a quantity in words: where real runs differ too much to tell, nothing holds either."""
    rows = [row for row in rows_of(result) if row.quantity == line["quantity"] and not row.trains]
    if not line["ok"]:
        return MISSES_ALL
    return HOLDS if any(row.verdict == HOLDS for row in rows) else TOO_NOISY


def _line(quantity: str, rows: Sequence[Row]) -> dict[str, Any] | None:
    """Return what all held-out settings come to for one quantity; None if it was not measured."""
    own = [row for row in rows if row.quantity == quantity and not row.trains]
    told = [row for row in own if row.verdict != NOTHING]
    if not told:
        return None
    errors = [abs(row.error) for row in told if row.error is not None]
    naive = [abs(row.naive) for row in told if row.naive is not None]
    spreads = [row.spread for row in told if row.spread is not None]
    middle = statistics.median(errors) if errors else None
    baseline = statistics.median(naive) if naive else None
    bad = [row for row in told if row.verdict in (MISSES, MISSING)]
    why = [f"{row.representation} at {row.value}: {row.why}" for row in told if row.why]
    ok = not bad
    if (
        middle is not None
        and baseline is not None
        and middle > baseline
        and middle > (statistics.median(spreads) if spreads else 0.0)
    ):
        ok = False
        why.insert(0, f"no better than the naive prediction, which is off by {baseline:.0%}")
    return {
        "quantity": quantity,
        "title": GATES[quantity].title,
        "gate": GATES[quantity].error_max,
        "settings": len(told),
        "held": len(told) - len(bad),
        "median_error": middle,
        "worst_error": max(errors, default=None),
        "real_spread": statistics.median(spreads) if spreads else None,
        "naive_error": baseline,
        "ok": ok,
        "why": why,
    }


def _trained_error(trained: Mapping[str, Any] | None, key: str) -> float | None:
    if trained is None:
        return None
    return _off(_median(trained["model"].get(key, ())), _median(trained["real"].get(key, ())))


def _known(values: Sequence[float | None]) -> list[float]:
    return [float(value) for value in values if value is not None]


def _median(values: Sequence[float | None]) -> float | None:
    known = _known(values)
    return statistics.median(known) if known else None


def _off(model: float | None, real: float | None) -> float | None:
    """Return the signed relative error; None where there is nothing to compare."""
    if model is None or not real:
        return None
    return (model - real) / abs(real)


def _middle_size(errors: Any) -> float:
    known = [abs(error) for error in errors if error is not None]
    return statistics.median(known) if known else float("inf")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
