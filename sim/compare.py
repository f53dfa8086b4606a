"""One scenario under several settings: every combination, the same messages, a row of results each.

Envelopes and layouts change bytes and nothing that is decided (tests/conformance), so combinations that differ in those
alone share one run, whose census is counted in each.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, get_args, get_type_hints

import numpy as np

from mta.core.settings import ConfigError
from sim import layout as layouts
from sim import scenario as scenarios
from sim.costs import Costs, MemoryCosts
from sim.memory import Memory
from sim.runner import SimResult, simulate
from sim.settings import ModelConfig, server_config

RUNS_MAX: Final = 1000
"""Combinations of a comparison; a sweep is something else."""

ENVELOPE: Final = "server.envelope"
LAYOUT: Final = "layout"

POLICIES: Final = (
    "server.limits.mda.policy=tempfail,raised,hold",
    "server.envelope=fixed,full,slim,packed",
)
"""What a scenario with local mail is asked when nobody says what to vary."""


class Variation(NamedTuple):
    """A key and the values that it takes in turn."""

    key: str
    """As in ``--set``, or ``layout``."""
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One combination and what it came to."""

    settings: dict[str, str]
    """Value by key, of what was varied."""
    result: SimResult

    def as_dict(self) -> dict[str, Any]:
        """Return the row for JSON."""
        return {"settings": self.settings, **self.result.summary()}


def variation(text: str) -> Variation:
    """Read ``key=value,value``; keys of the server need no ``server.`` in front.

    Raises:
        ConfigError: it is nothing of the kind.
    """
    key, equals, listed = text.partition("=")
    key = key.strip()
    values = tuple(value.strip() for value in listed.split(","))
    if not equals or not key or not all(values):
        raise ConfigError("--vary", value=text, problem="must be key=value,value")
    if len(set(values)) != len(values):
        raise ConfigError("--vary", value=text, problem="names a value twice")
    if key.split(".")[0] in get_type_hints(ModelConfig) and key != "seed":
        # The scenario has a seed of its own, which is the one that is meant.
        key = f"server.{key}"
    return Variation(key, values)


def variations(texts: Sequence[str], scenario: scenarios.Scenario) -> list[Variation]:
    """Return what to vary; if nobody says, what the scenario does, or `POLICIES` if there is local mail.

    Raises:
        ConfigError: nothing to vary, a key twice, or too many combinations.
    """
    if not texts and scenario.vary:
        found = [Variation(key, tuple(map(str, values))) for key, values in scenario.vary.items()]
    elif not texts and not scenario.local:
        raise ConfigError("--vary", problem="is missing: say key=value,value")
    else:
        found = [variation(text) for text in texts or POLICIES]
    keys = [each.key for each in found]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError("--vary", value=key, problem="is varied twice")
    runs = 1
    for each in found:
        runs *= len(each.values)
    if runs > RUNS_MAX:
        raise ConfigError("--vary", value=runs, problem=f"must make {RUNS_MAX} runs at most")
    return found


def compare(
    name: str,
    overrides: Sequence[str],
    vary: Sequence[Variation],
    *,
    costs: Costs | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Row]:
    """Yield a row for each combination, the last key varied fastest.

    Args:
        name: of a scenario, or a file.
        overrides: as for `scenarios.load`; the same for all.
        vary: what differs.
        costs: what things cost; by default those of `sim.costs`.
        progress: told how many messages of all runs are settled.

    Raises:
        ConfigError: a key or a value is wrong; all of them are tried before the first run.
    """
    costs = costs or Costs()
    decides = [each for each in vary if each.key not in (ENVELOPE, LAYOUT)]
    counts = [each for each in vary if each.key in (ENVELOPE, LAYOUT)]
    prepared = []
    for chosen in _combinations(decides):
        said = [*overrides, *(f"{key}={value}" for key, value in chosen.items())]
        scenario = scenarios.load(name, said)
        prepared.append((chosen, scenario, server_config(scenario.server, name, said)))
    for each in counts:
        for value in each.values:
            _counted(each.key, value)
    rows: dict[tuple[str, ...], Row] = {}
    settled = 0
    for chosen, scenario, config in prepared:

        def advance(_: float, done: int, __: int, before: int = settled) -> None:
            if progress is not None:
                progress(before + done)

        result = simulate(
            scenario,
            config=config,
            costs=costs,
            backend="heapq",
            census=True,
            progress=advance,
            source=name,
        )
        settled += scenario.messages
        for view in _combinations(counts):
            envelope = view.get(ENVELOPE, config.envelope)
            layout = layouts.load(view[LAYOUT]) if LAYOUT in view else None
            seen = recount(result, costs.memory_of(envelope), envelope=envelope, layout=layout)
            settings = {each.key: {**chosen, **view}[each.key] for each in vary}
            rows[tuple(settings.values())] = Row(settings, seen)
    for values in itertools.product(*(each.values for each in vary)):
        yield rows[values]


def recount(
    result: SimResult, costs: MemoryCosts, *, envelope: str, layout: layouts.Layout | None = None
) -> SimResult:
    """Return a run that kept its census with its memory counted anew.

    Args:
        result: the run.
        costs: of the representation.
        envelope: its name.
        layout: count in this server's bytes instead.
    """
    assert len(result.census) == len(result.t), result.scenario
    if layout is not None:
        live = np.array([layout.live_bytes(census) for census, _ in result.census])
        return replace(result, rss_bytes=live, live_bytes=live, layout=layout.name)
    memory = Memory(costs)
    rss_bytes, live_bytes = [], []
    for census, accepted in result.census:
        of = census.relayed
        there = {
            "envelopes": sum(of),
            "body_bytes": census.body_bytes,
            "in_flight": of.in_flight,
            "due": of.scheduled + of.held,
            "local": census.local,
        }
        live_bytes.append(round(memory.live_bytes(**there)))  # type: ignore[arg-type]  # as in the dict
        rss_bytes.append(
            memory.rss_bytes(
                messages=accepted,
                sessions=census.sessions,
                connections=census.connections,
                **there,  # type: ignore[arg-type]  # as above
            )
        )
    return replace(
        result,
        representation=envelope,
        rss_bytes=np.array(rss_bytes),
        live_bytes=np.array(live_bytes),
        layout="",
    )


def messages(name: str, overrides: Sequence[str], vary: Sequence[Variation]) -> int:
    """Return how many messages all runs will settle, for a bar."""
    decides = [each for each in vary if each.key not in (ENVELOPE, LAYOUT)]
    return sum(
        scenarios.load(name, [*overrides, *(f"{k}={v}" for k, v in chosen.items())]).messages
        for chosen in _combinations(decides)
    )


def _combinations(vary: Sequence[Variation]) -> Iterator[dict[str, str]]:
    for values in itertools.product(*(each.values for each in vary)):
        yield {each.key: value for each, value in zip(vary, values, strict=True)}


def _counted(key: str, value: str) -> None:
    """See that an envelope or a layout exists."""
    if key == LAYOUT:
        layouts.load(value)
        return
    known = get_args(get_type_hints(ModelConfig)["envelope"])
    if value not in known:
        problem = f"must be one of {', '.join(known)}"
        raise ConfigError("--vary", ENVELOPE, value, problem)


def table(rows: Sequence[Row]) -> None:
    """Print a line for each row."""
    from rich.console import Console
    from rich.table import Table

    first = rows[0].result
    shown = Table(title=f"{first.scenario}, seed {first.seed}", title_justify="left")
    for key in rows[0].settings:
        shown.add_column(key.rpartition(".")[2])
    columns = list(_columns(first))
    for title, _ in columns:
        shown.add_column(title, justify="right")
    for row in rows:
        shown.add_row(*row.settings.values(), *(cell(row.result) for _, cell in columns))
    console = Console()
    if not console.is_terminal:
        # A file has no width to fit into.
        console.width = 200
    console.print(shown)


def _columns(first: SimResult) -> Iterator[tuple[str, Callable[[SimResult], str]]]:
    """Yield titles, with units, and what makes the cells."""
    yield "peak RSS\nMB", lambda r: f"{r.peak_rss_bytes / 1e6:,.1f}"
    yield "queue\nMB", lambda r: f"{r.peak_live_bytes / 1e6:,.1f}"
    yield "an envelope\nB", lambda r: _number(r.bytes_per_envelope)
    yield "peak\nqueued", lambda r: f"{r.peak_queued:,}"
    if first.local is None:
        yield "drain\ns", lambda r: _number(r.drain_time_s)
        yield "deferred", lambda r: f"{r.counts['deferred']:,}"
        for name in ("p50", "p99"):
            yield f"{name}\ns", lambda r, name=name: _number(r.quantiles()[name])  # type: ignore[misc]
        return
    yield "with the\nagent", lambda r: _number(_local(r)["peak_agent"])
    yield "drain\ns", lambda r: _number(_local(r)["burst_drain_s"])
    yield "tempfails", lambda r: _number(_local(r)["tempfails"])
    yield "overflows", lambda r: _number(_local(r)["overflows"])
    yield "oldest\ns", lambda r: _number(_local(r)["oldest_age_s"])
    yield "Jain", lambda r: _number(_local(r)["jain"])
    for group in first.local.groups:
        if group.name != first.local.burst:
            for name in ("p50", "p99"):

                def cell(r: SimResult, group: str = group.name, name: str = name) -> str:
                    return _number(_local(r)["groups"][group]["latency_s"][name])

                yield f"{group.name}\n{name}, s", cell


def _local(result: SimResult) -> dict[str, Any]:
    assert result.local is not None, result.scenario
    return result.local.summary()


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
