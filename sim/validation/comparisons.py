"""Rules that hold the model against another reckoning of the same thing: a recursion, a recount, or a second run.

They need no theory of chance: what is compared has the same draws, so that it agrees exactly.
"""

import heapq
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mta.core.envelopes.base import EnvelopeState, is_local_key
from mta.core.ids import MsgId, msgid_of
from mta.core.instructions import DeliverLocally, Instruction, StartTransaction
from mta.core.settings import build
from mta.core.stimuli import LocalDeliveryDone, Stimulus, TransactionDone
from sim.runner import Model
from sim.scenario import Scenario, to_dict
from sim.validation.audit import SLOW, rough
from sim.validation.degenerate import (
    Probe,
    answers_after,
    degenerate,
    merged,
    only_connections,
    run,
)
from sim.validation.rules import Finding, Rule

if TYPE_CHECKING:
    from sim.result import SimResult


def _recursion(messages: int) -> Iterator[Finding]:
    """Connections as servers: each message begins when it is there and one of them is free (Kiefer and Wolfowitz 1955).

    The recursion is an engine of ten lines that shares nothing with the model but when messages came and how long each took.
    """
    for conns in (1, 3, 20):
        probe, served = Probe(), _Served()
        result = run(
            degenerate(
                "recursion",
                load={"messages": messages, "rate": 17.0 * conns},
                server=only_connections(conns),
                behaviours=answers_after("exponential", mean_s=0.05),
            ),
            prepare=lambda model, probe=probe, served=served: served.watch(model, probe),  # type: ignore[misc]  # early binding
        )
        free = [0.0] * conns
        worst = 0.0
        for number, came in sorted(probe.submitted_s.items()):
            begin = max(came, heapq.heappop(free))
            heapq.heappush(free, begin + served.seconds[number])
            worst = max(worst, abs(begin - probe.started_s[number]))
        assert len(served.seconds) == result.counts["delivered"] == messages
        what = f"{conns} connection{'s' * (conns > 1)}: begins, away from the recursion's"
        yield Finding(what, "s, worst", 0, worst, 1e-9)


class _Served:
    """Notes how long each message's transaction takes."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}
        """By number in the schedule."""
        self._began: dict[int, tuple[int, float]] = {}

    def watch(self, model: Model, probe: Probe) -> None:
        """Look on at a run that has not begun, beside a probe."""
        messages = model.driver.messages

        def observe(stimulus: Stimulus, now: float, instructions: list[Instruction]) -> None:
            told: Any = stimulus
            if type(stimulus) is TransactionDone:
                number, at = self._began.pop(told.session)
                self.seconds[number] = now - at
            for each in instructions:
                if type(each) is StartTransaction:
                    self._began[each.session] = (messages[each.msgid].number, now)
            probe.observe(stimulus, now, instructions)

        probe.watch(model)
        model.driver.observer = observe


def _memory(messages: int) -> Iterator[Finding]:
    """The gauge of memory, kept by adding and taking away, against a count of every envelope in the store."""
    for representation in ("whole", "fixed"):
        table = to_dict(rough(messages))
        table["server"]["envelope"] = representation
        recount = _Recount()
        run(build(Scenario, table, source="memory"), costs=SLOW, prepare=recount.watch)
        assert recount.most_bytes > 0 and recount.most_local > 0
        what = f"{representation}: the gauge, away from a recount at {recount.samples:,} samples"
        yield Finding(what, "bytes, worst", 0, recount.worst_bytes, 0.5)


class _Recount:
    """Asks the store for the state of each envelope whenever memory is looked at."""

    def __init__(self) -> None:
        self.samples = 0
        self.worst_bytes = 0.0
        self.most_bytes = 0.0
        """That the queue took."""
        self.most_local = 0
        """Local envelopes that were there at a time."""

    def watch(self, model: Model) -> None:
        """Look on at a run that has not begun."""
        honest = model._bytes

        def _bytes() -> tuple[int, int]:
            found = honest()
            expected = self._recount(model)
            self.samples += 1
            self.most_bytes = max(self.most_bytes, expected)
            self.worst_bytes = max(self.worst_bytes, abs(found[1] - expected))
            return found

        model._bytes = _bytes  # type: ignore[method-assign]  # to look on

    def _recount(self, model: Model) -> float:
        store, costs = model.engine.store, model.costs.memory_of(model.config.envelope)
        states = {
            EnvelopeState.PENDING: costs.local.pending,
            EnvelopeState.SCHEDULED: costs.local.scheduled,
            EnvelopeState.HELD: costs.local.held,
            EnvelopeState.IN_FLIGHT: costs.local.in_flight,
        }
        live, local = 0.0, 0
        messages: set[MsgId] = set()
        for handle in store:
            state = store.state_of(handle)
            messages.add(msgid_of(store.evpid_of(handle)))
            if is_local_key(store.domain_of(handle)):
                local += 1
                live += states[state]
            else:
                due = state in (EnvelopeState.SCHEDULED, EnvelopeState.HELD)
                live += costs.envelope_bytes * (costs.due_share if due else 1.0)
                live += costs.in_flight_bytes * (state is EnvelopeState.IN_FLIGHT)
        known = model.driver.messages
        live += costs.body_share * sum(known[msgid].transaction.size for msgid in messages)
        self.most_local = max(self.most_local, local)
        return live


def _monotone(messages: int) -> Iterator[Finding]:
    """First in, first out, and constant times: with more connections nobody is delivered later, and all sooner in the mean."""
    found: list[SimResult] = [
        run(
            degenerate(
                "monotone",
                load={"messages": messages, "rate": 70.0},
                server=only_connections(conns),
                behaviours=answers_after("fixed", delay_s=0.05),
            )
        )
        for conns in (1, 2, 3, 5, 8)
    ]
    later = 0
    for fewer, more in pairwise(found):
        later += int((more.delivery_latency_s > fewer.delivery_latency_s + 1e-9).sum())
    yield Finding("delivered later with more connections", "messages", 0, later)
    means = [float(each.delivery_latency_s.mean()) for each in found]
    sooner = sum(more < fewer for fewer, more in pairwise(means))
    yield Finding("raises of the limit that helped", "of 4", len(means) - 1, sooner)


def _relabelled(messages: int) -> Iterator[Finding]:
    """Names mean nothing: destinations that change theirs have each other's results."""
    near, far = answers_after("fixed", delay_s=0.03), answers_after("fixed", delay_s=0.11)
    found: list[SimResult] = []
    for names in (("aa", "zz"), ("zz", "aa")):
        table = to_dict(
            degenerate(
                "relabelled",
                load={"messages": messages, "rate": 60.0},
                server=merged(only_connections(2), {"limits": {"mta": {"max_conn": 3}}}),
            )
        )
        table["destinations"] = [
            {"name": name, "domain": f"{name}.test", "share": share, "behaviours": behaviours}
            for name, behaviours, share in zip(names, (near, far), (3, 1), strict=True)
        ]
        found.append(run(build(Scenario, table, source="relabelled")))
    one, two = found
    away = np.abs(two.delivery_latency_s - one.delivery_latency_s)
    yield Finding("latency under other names, away", "s, worst", 0, float(away.max()), 1e-9)
    different = sum(one.counts[key] != two.counts[key] for key in one.counts)
    yield Finding("counts under other names", "different", 0, different)


def _shares(messages: int) -> Iterator[Finding]:
    """Two users with a backlog take turns, so that time is divided as their deliveries are long: 60 to 1."""
    slow_s, fast_s = 0.6, 0.01
    each = messages // 2
    began: list[tuple[bool, float]] = []
    busy = {True: 0.0, False: 0.0}
    since: dict[Any, tuple[bool, float]] = {}

    def prepare(model: Model) -> None:
        def observe(stimulus: Any, now: float, instructions: list[Any]) -> None:
            if type(stimulus) is LocalDeliveryDone and stimulus.evpid in since:
                is_slow, at = since.pop(stimulus.evpid)
                busy[is_slow] += now - at
            for one in instructions:
                # Half of it: then there is a backlog of both to the end.
                if type(one) is DeliverLocally and len(began) < each:
                    is_slow = one.user.startswith("slow")
                    began.append((is_slow, now))
                    since[one.evpid] = (is_slow, now)

        model.driver.observer = observe

    group = {"users": 1, "messages": each, "to_s": 0.0, "delivery": "maildir"}
    run(
        degenerate(
            "shares",
            load={"messages": 0},
            local=[
                {**group, "name": "fast", "seconds": fast_s},
                {**group, "name": "slow", "seconds": slow_s},
            ],
            server={"limits": {"mda": {"max_session": 1, "task_high_water": 1_000_000}}},
        ),
        prepare=prepare,
    )
    turns = sum(is_slow for is_slow, _ in began)
    yield Finding("turns of the slow user", f"of {each}", each / 2, turns, 1)
    share = busy[False] / (busy[True] + busy[False])
    expected = fast_s / (fast_s + slow_s)
    yield Finding("time of the fast user", "share", expected, share, 0.02 * expected)


COMPARISONS: Final = (
    Rule("recursion", "waits for connections are those of the recursion of Kiefer and Wolfowitz (1955)", _recursion, 2000),
    Rule("memory", "the gauge of memory is the sum over what is in the queue, by its state", _memory, 300),
    Rule("monotone", "raising a limit delays nobody, first in, first out", _monotone, 2000),
    Rule("relabelled", "the names of destinations change nothing", _relabelled, 1000),
    Rule("shares", "two backlogs take turns", _shares, 4000),
)  # fmt: skip
