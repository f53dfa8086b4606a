"""What clients got while the queue's disk was well, slow or full, in a run and in the model.

A message counts where it was settled: an answer that came late, from a disk that was slow, is that disk's.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from sim.pages import NONE, number, table
from sim.result import SimResult
from sim.scenario import Scenario
from testbed.ledger import spread
from testbed.rundir import Run


class Phase(NamedTuple):
    """The time between two entries of a timeline that say what the disk is like."""

    begin_s: float
    end_s: float
    words: str
    """What it is like."""


def phases_of(scenario: Scenario) -> list[Phase]:
    """Return the phases of a scenario's disk, from the start of the load; none if it is well throughout."""
    events = sorted((each for each in scenario.timeline if each.disk), key=lambda each: each.at_s)
    if not events:
        return []
    begins = [(0.0, "well")]
    begins += [(each.at_s, each.words()[-1].removeprefix("disk ")) for each in events]
    ends = [begin for begin, _ in begins[1:]] + [math.inf]
    return [Phase(begin, end, words) for (begin, words), end in zip(begins, ends, strict=True)]


def measured(
    lines: Iterable[Mapping[str, Any]], start: float, phases: Sequence[Phase]
) -> list[dict[str, float]]:
    """Return what the load's record says of each phase: messages ``accepted`` and ``refused``, ``p50`` and ``p95`` of the 250.

    From the first attempt to the 250, as in the model, which is given the instants at which messages were really sent.
    Where nothing was accepted there are no quantiles.

    Args:
        lines: of the record.
        start: what its phases count from, in seconds since the epoch.
        phases: of the scenario.
    """
    if not phases:
        return []  # The disk is well throughout, as in most scenarios.
    waits: list[list[float]] = [[] for _ in phases]
    refused = [0] * len(phases)
    for line in lines:
        if line.get("kind") != "message":
            continue
        at = line["done"] - start
        number = max((i for i, each in enumerate(phases) if each.begin_s <= at), default=0)
        if line["code"] == 250:
            waits[number].append(line["done"] - line["sent"])
        else:
            refused[number] += 1
    return [_row(each, count) for each, count in zip(waits, refused, strict=True)]


def predicted(result: SimResult, phases: Sequence[Phase]) -> list[dict[str, float]]:
    """Return what the model says of each; ``refused`` is not known by instants, and left out.

    Its latencies are in the order of the answers, so that the curve of accepted recipients says which are whose: exactly if all
    messages have the same number of them.
    """
    waits = result.accept_latency_s
    total = max(result.counts["accepted"], 1)
    found, before = [], 0
    for each in phases:
        by = np.interp(min(each.end_s, result.end_s), result.t, result.accepted) / total
        until = round(float(by) * len(waits)) if each.end_s < math.inf else len(waits)
        found.append(_row(waits[before:until].tolist(), None))
        before = until
    return found


def _row(waits: Sequence[float], refused: int | None) -> dict[str, float]:
    found = spread(waits)
    row: dict[str, float] = {"accepted": len(waits)}
    if waits:
        row |= {"p50": found.p50, "p95": found.p95}
    if refused is not None:
        row["refused"] = refused
    return row


def section(run: Run, summary: Mapping[str, Any]) -> str:
    """Return the report's part about the disk; nothing if it was well throughout."""
    phases = phases_of(run.scenario)
    if not phases:
        return ""
    models = (summary["model"] or {}).get("representations", {})
    rows, totals = [], []
    for name, part in summary["representations"].items():
        real = run.notes(name).disk
        other = models.get(name, {}).get("disk") or [{} for _ in phases]
        for phase, each, model in zip(phases, real, other, strict=True):
            until = "the end" if phase.end_s == math.inf else f"{phase.end_s:g}"
            rows.append(
                [
                    f"<strong>{escape(name)}</strong>",
                    f"{phase.begin_s:g} to {until}",
                    escape(phase.words),
                    f"{each['accepted']:,} / {number(model.get('accepted'))}",
                    f"{each['refused']:,}",
                    *(f"{_ms(each.get(q))} / {_ms(model.get(q))}" for q in ("p50", "p95")),
                ]
            )
        refused = models.get(name, {}).get("counts", {}).get("refused")
        totals.append(f"{escape(name)} {part['refused']:,} / {number(refused)}")
    return "\n".join(
        [
            "<h2>The disk</h2>",
            "<p>Messages by the instant of their last answer, with the time since their client first tried; run / model. On a slow disk each commit takes so many times as"
            " long as it did, on a full one none succeeds: the server refuses mail with 452 4.3.1 and goes on relaying. That"
            " there is room again it finds when it looks: 1, 3, 7, 15, 31 s after the first commit that failed, then every 30 s."
            f" Refused recipients in all: {'; '.join(totals)}.</p>",
            table(
                [
                    "",
                    "Seconds of load",
                    "Disk",
                    "Accepted",
                    "Refused",
                    "250 after, p50, ms",
                    "p95, ms",
                ],
                rows,
                text_columns=3,
            ),
        ]
    )


def _ms(seconds: float | None) -> str:
    return NONE if seconds is None else f"{seconds * 1e3:,.1f}"
