"""How connections ended of clients that send no mail, in a run and in the model."""

from collections.abc import Mapping
from html import escape
from typing import Any

from sim.pages import NONE, number, table
from sim.result import SimResult
from sim.scenario import Scenario
from testbed.rundir import Run


def measured(scenario: Scenario, load: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return how many ended with which word and how long half of them lasted, by kind and word.

    Args:
        scenario: says which kinds there were.
        load: the last line of the load's record.
    """
    kinds = {group.kind for group in scenario.load.beside}
    return {
        name: {"times": each["count"], "p50_s": each["p50"]}
        for name, each in load.get("verbs", {}).items()
        if name.partition(" ")[0] in kinds
    }


def predicted(result: SimResult) -> dict[str, dict[str, float]]:
    """Return the same of the model, with the mean of how long they lasted."""
    return {
        name: {"times": said.times, "mean_s": said.mean_s} for name, said in result.beside.items()
    }


def section(run: Run, summary: Mapping[str, Any]) -> str:
    """Return the report's part about them; nothing if there were none."""
    if not run.scenario.load.beside:
        return ""
    models = (summary["model"] or {}).get("representations", {})
    rows = []
    for representation in summary["representations"]:
        real = measured(run.scenario, run.notes(representation).load)
        model = models.get(representation, {}).get("beside", {})
        for name in sorted(real.keys() | model.keys()):
            one, other = real.get(name, {}), model.get(name, {})
            # Of none at all the model says nothing, if there is one.
            count = other.get("times", 0) if models else None
            rows.append(
                [
                    f"<strong>{escape(representation)}</strong>",
                    escape(name),
                    f"{one.get('times', 0):,} / {number(count)}",
                    f"{_s(one.get('p50_s'))} / {_s(other.get('mean_s'))}",
                ]
            )
    return "\n".join(
        [
            "<h2>Clients that send no mail</h2>",
            "<p>Connections by the kind of client and the last word that it heard; run / model. How long they lasted is the"
            " median of the run and the mean of the model. The load's clients come a moment before its first message, and those"
            " that are there at its end are not counted, so that a round more or less is no difference.</p>",
            table(["", "Client and last word", "Connections", "Lasted, s"], rows, text_columns=2),
        ]
    )


def _s(seconds: float | None) -> str:
    return NONE if seconds is None else f"{seconds:,.2f}"
