"""Scenarios from which everything is taken away that theory does not speak of, and what looks on while they run.

It is the whole model that runs, core included; only costs are 0 and limits far away, except those that an experiment is
about.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

from mta.core.instructions import Instruction, StartTransaction
from mta.core.settings import build
from mta.core.stimuli import MessageSubmitted, Stimulus, TransactionDone
from sim.costs import Costs
from sim.kernel import Backend
from sim.result import SimResult
from sim.runner import Model
from sim.scenario import Scenario
from sim.settings import model_config
from sim.workload import draw

FREE: Final = Costs()
"""Nothing takes any time."""
for _each in fields(Costs):
    if _each.type is float:
        setattr(FREE, _each.name, 0.0)

FAR: Final = 1_000_000
"""A limit that no experiment reaches."""

_OPEN: Final[dict[str, Any]] = {
    "concurrency": {"policy": "fixed", "initial": FAR, "limit": FAR},
    "limits": {
        "smtp": {"max_conn": FAR, "max_conn_per_client": FAR, "max_message_size": 2**30, "max_bytes_in_memory": 2**50},
        "mta": {
            "max_conn_per_host": FAR,
            "max_conn_per_route": FAR,
            "max_conn_per_source": FAR,
            "max_conn_per_connector": FAR,
            "max_conn_per_relay": FAR,
            "max_conn_per_domain": FAR,
            "max_conn": FAR,
            "session_mail_max": FAR * FAR,
            "session_timeout_s": 4000.0,
            "max_failures_per_session": FAR,
            "max_try_before_disable": FAR,
            "task_high_water": FAR,
            "max_deferred": 0,
        },
        "scheduler": {"max_inflight": FAR, "max_schedule": FAR, "max_held": FAR},
        "queue": {"max_waiting": FAR, "commit_batch_max": FAR, "max_bytes": 2**60},
    },
}  # fmt: skip


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of both; where both say something, the second is right."""
    result = dict(first)
    for key, value in second.items():
        known = result.get(key)
        result[key] = (
            merged(known, value)
            if isinstance(known, Mapping) and isinstance(value, Mapping)
            else value
        )
    return result


def only_connections(count: int) -> dict[str, Any]:
    """Return settings that let one destination have so many connections."""
    return {"concurrency": {"limit": count}, "limits": {"mta": {"max_conn_per_host": count}}}


def degenerate(
    name: str,
    *,
    load: Mapping[str, Any],
    server: Mapping[str, Any] | None = None,
    behaviours: Sequence[Mapping[str, Any]] = (),
    local: Sequence[Mapping[str, Any]] = (),
    drain_s: float = 1e6,
    seed: int = 1,
) -> Scenario:
    """Return a scenario with one host, one recipient a message, and no limit but those in ``server``."""
    usual = {
        "sessions": 10_000,
        "sizes": {"law": "fixed", "bytes": 1024},
        "recipients": {"law": "fixed", "count": 1},
    }
    data = {
        "name": name,
        "seed": seed,
        "drain_s": drain_s,
        "load": merged(usual, load),
        "destinations": [
            {"name": "remote", "domain": "remote.test", "behaviours": list(behaviours)}
        ],
        "local": list(local),
        "server": merged(_OPEN, server or {}),
    }
    return build(Scenario, data, source=name)


def answers_after(law: str, **parameters: float) -> list[dict[str, Any]]:
    """Return the behaviours of a host that takes this long for a message: one draw each, at its end."""
    return [{"kind": "latency", "law": law, "verbs": ["."], "max_s": 3600.0, **parameters}]


class Probe:
    """Looks on: when each message of ours was submitted, first tried and last tried, and how many were under way for how long."""

    def __init__(self, *, from_s: float = 0.0, to_s: float = float("inf")) -> None:
        """Weigh by time what is between two instants."""
        self.submitted_s: dict[int, float] = {}
        """By number in the schedule."""
        self.started_s: dict[int, float] = {}
        """The first attempt."""
        self.tries: dict[int, int] = {}
        self.running = 0
        """Transactions under way."""
        self.waiting = 0
        """Messages that were never tried."""
        self.spent_s: dict[int, float] = {}
        """Transactions under way -> seconds with so many."""
        self.idle_while_waiting_s = 0.0
        """Seconds in which something waited and less than `servers` were busy."""
        self.servers = FAR
        self._from_s = from_s
        self._to_s = to_s
        self._last_s = 0.0
        self._numbers: dict[int, int] = {}
        self._model: Model | None = None

    def watch(self, model: Model) -> None:
        """Look on at a run that has not begun."""
        self._model = model
        model.driver.observer = self.observe

    def observe(self, stimulus: Stimulus, now: float, instructions: list[Instruction]) -> None:
        """Take one stimulus in, and what the core said to it."""
        assert self._model is not None
        if now > self._last_s:
            since, until = max(self._last_s, self._from_s), min(now, self._to_s)
            if until > since:
                self.spent_s[self.running] = self.spent_s.get(self.running, 0.0) + until - since
                if self.waiting and self.running < self.servers:
                    self.idle_while_waiting_s += until - since
            self._last_s = now
        kind = type(stimulus)
        if kind is MessageSubmitted:
            msgid: int = stimulus.msgid  # type: ignore[union-attr]  # the line above
            number = self._model.driver.messages[msgid].number  # type: ignore[index]  # an int is a MsgId
            if number >= 0:
                self._numbers[msgid] = number
                self.submitted_s[number] = now
                self.waiting += 1
        elif kind is TransactionDone:
            self.running -= 1
        for instruction in instructions:
            if type(instruction) is StartTransaction:
                self.running += 1
                found = self._numbers.get(instruction.msgid)
                if found is None:
                    continue
                if found not in self.started_s:
                    self.started_s[found] = now
                    self.waiting -= 1
                self.tries[found] = self.tries.get(found, 0) + 1

    def waits_s(self, first: int) -> list[float]:
        """Return how long each message waited for its first attempt, from the ``first``-th message on."""
        return [at - self.submitted_s[n] for n, at in self.started_s.items() if n >= first]

    def moments(self) -> tuple[float, float]:
        """Return mean and variance over time of the number of transactions under way."""
        total = sum(self.spent_s.values())
        mean = sum(n * seconds for n, seconds in self.spent_s.items()) / total
        square = sum(n * n * seconds for n, seconds in self.spent_s.items()) / total
        return mean, square - mean**2


def run(
    scenario: Scenario,
    *,
    costs: Costs = FREE,
    replication: int = 0,
    backend: Backend = "heapq",
    prepare: Callable[[Model], None] | None = None,
) -> SimResult:
    """Run the model of a scenario; ``prepare`` may look at it before it begins."""
    model = Model(
        scenario,
        config=model_config(scenario.server, source=scenario.name),
        costs=costs,
        schedule=draw(scenario, replication),
        replication=replication,
        backend=backend,
        source=scenario.name,
    )
    if prepare is not None:
        prepare(model)
    model.run()
    return model.result()
