"""Rules that hold exactly, in every run: nothing is lost, limits are limits, Little's law, the same seed the same run.

Each is looked at on runs of the model, at every event where that is the point.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np

from mta.core.ids import msgid_of
from mta.core.instructions import (
    DeliverLocally,
    StartTransaction,
)
from mta.core.reply import Outcome
from mta.core.stimuli import (
    LocalDeliveryDone,
    MessageSubmitted,
    TransactionDone,
)
from sim import theory
from sim.costs import Costs
from sim.kernel import Backend
from sim.records import Fingerprint
from sim.result import SimResult
from sim.runner import Model
from sim.validation.audit import CAPS, SLOW, audited, rough
from sim.validation.degenerate import (
    FAR,
    FREE,
    Probe,
    answers_after,
    degenerate,
    merged,
    only_connections,
    run,
)
from sim.workload import draw


class Finding(NamedTuple):
    """What a rule asks for and what the model did."""

    what: str
    unit: str
    expected: float
    found: float
    tolerance: float = 0.0
    """Absolute."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule."""

    name: str
    about: str
    check: Callable[[int], Iterator[Finding]]
    """(messages) -> what was found."""
    messages: int
    """As many as the profile ``quick`` has."""


def _conservation(messages: int) -> Iterator[Finding]:
    auditor, result, model = audited(messages)
    counts = result.counts
    yield Finding("books that do not balance", f"of {auditor.events:,} events", 0, auditor.wrong)
    yield Finding("events before the last one", "events", 0, auditor.late)
    settled = counts["accepted_messages"] + counts["refused_messages"]
    yield Finding("offered - accepted - refused", "messages", 0, counts["messages"] - settled)
    ours = counts["delivered"] + counts["failed"]
    yield Finding(
        "accepted - delivered - failed", "envelopes", counts["queued"], counts["accepted"] - ours
    )
    yield Finding("left at the end", "envelopes", 0, counts["queued"] + len(model.driver.messages))


def _little(messages: int) -> Iterator[Finding]:
    auditor, _, _ = audited(messages)
    for name, area in auditor.areas.items():
        spent = auditor.sojourns[name]
        assert spent > 0, name
        yield Finding(f"{name}: area under the number", "s", spent, area, 1e-9 * spent)


def _restarts(messages: int) -> Iterator[Finding]:
    """The same with a process that ends three times in the middle of it, once in good order."""
    ends = [(0.8, "kill"), (3.0, "stop"), (6.0, "kill")]
    timeline = [{"at_s": at, "restart": how, "down_s": 0.5} for at, how in ends]
    auditor, result, model = audited(messages, timeline=timeline)
    counts = result.counts
    yield Finding("restarts", "of the process", len(ends), len(result.restarts))
    yield Finding("books that do not balance", f"of {auditor.events:,} events", 0, auditor.wrong)
    settled = counts["accepted_messages"] + counts["refused_messages"]
    yield Finding("offered - accepted - refused", "messages", 0, counts["messages"] - settled)
    ours = counts["delivered"] + counts["failed"]
    yield Finding("accepted - delivered - failed", "envelopes", 0, counts["accepted"] - ours)
    yield Finding("left at the end", "envelopes", 0, counts["queued"] + len(model.driver.messages))
    area, spent = sum(auditor.areas.values()), sum(auditor.sojourns.values())
    yield Finding("area under all numbers", "s", spent, area, 1e-9 * spent)


def _limits(messages: int) -> Iterator[Finding]:
    auditor, _, model = audited(messages)
    # Without holds, because what comes back from one may pass this limit (`mta.core.scheduler.Scheduler.release`).
    dry = {"task_high_water": FAR}
    unheld, _, _ = audited(messages, caps={"mta": dry, "mda": dry})
    most, caps = auditor.most, CAPS
    for what, expected, found in (
        ("smtp.max_conn", caps["smtp"]["max_conn"], most["door"]),
        ("mta.max_conn_per_host", caps["mta"]["max_conn_per_host"], most["host"]),
        ("mta.max_conn", caps["mta"]["max_conn"], most["all"]),
        ("mda.max_session", caps["mda"]["max_session"], most["local"]),
        ("mda.max_session_per_user", caps["mda"]["max_session_per_user"], most["user"]),
        ("scheduler.max_inflight", caps["scheduler"]["max_inflight"], unheld.most["in flight"]),
        ("scheduler.max_held", caps["scheduler"]["max_held"], most["held"]),
        (
            "queue.commit_batch_max",
            caps["queue"]["commit_batch_max"],
            model.driver.queue.longest_batch,
        ),
    ):
        yield Finding(f"most ever, {what}", "at a time", expected, found)


def _zero_load(messages: int) -> Iterator[Finding]:
    """Nobody waits for anybody: latency is the sum of what it costs."""
    size, delay_s, gap_s = 4096, 0.125, 2.0
    costs = Costs()
    result = run(
        degenerate(
            "zero-load",
            load={"messages": messages, "rate": 1 / gap_s, "arrivals": "constant", "sizes": {"bytes": size}},
            behaviours=[{"kind": "latency", "delay_s": delay_s}],
        ),
        costs=costs,
    )  # fmt: skip
    commit_s = costs.commit_s + costs.commit_message_s
    door_s = costs.client_s + costs.client_recipient_s + costs.session_s + costs.message_s
    door_s += costs.recipient_s + costs.byte_s * size + commit_s
    # The job that answers the client has begun the transaction before.
    begin_s = costs.transaction_s + costs.sent_byte_s * size
    warm_s = door_s + begin_s + 2 * delay_s + costs.network_s
    look_up_s = costs.lookup_s + costs.lookup_network_s
    cold_s = warm_s + look_up_s + costs.connect_s + 2 * delay_s + costs.connect_network_s
    accepted, delivered = result.accept_latency_s, result.delivery_latency_s
    yield Finding(
        "due to 250", "s, worst", door_s + begin_s, _farthest(accepted[1:], door_s + begin_s), 1e-9
    )
    yield Finding(
        "due to delivery, connection open",
        "s, worst",
        warm_s,
        _farthest(delivered[1:], warm_s),
        1e-9,
    )
    yield Finding("due to delivery, the first", "s", cold_s, float(delivered[0]), 1e-9)


def _farthest(values: Any, expected: float) -> float:
    return float(values[np.abs(values - expected).argmax()])


def _timetable(messages: int) -> Iterator[Finding]:
    """OpenSMTPD's: created + base * n**2, whatever else is going on."""
    base_s, most = 2.0, 4
    tried: dict[int, list[float]] = {}
    born: dict[int, float] = {}

    def prepare(model: Model) -> None:
        def observe(stimulus: Any, now: float, instructions: list[Any]) -> None:
            if (
                type(stimulus) is MessageSubmitted
                and not model.driver.messages[stimulus.msgid].is_bounce
            ):
                born[stimulus.msgid] = now
            for each in instructions:
                if type(each) is StartTransaction and each.msgid in born:
                    tried.setdefault(each.msgid, []).append(now - born[each.msgid])

        model.driver.observer = observe

    run(
        degenerate(
            "timetable",
            load={"messages": messages, "rate": 20.0},
            behaviours=[{"kind": "reject"}],
            server={
                "retry": {"base_s": base_s},
                "limits": {"scheduler": {"envelope_ttl_s": base_s * (most - 1) ** 2 + 1, "bounce_ttl_s": 1.0}},
            },
        ),
        prepare=prepare,
    )  # fmt: skip
    yield Finding("tries of each message", "fewest", most, min(map(len, tried.values())))
    yield Finding("tries of each message", "most", most, max(map(len, tried.values())))
    late = [at - base_s * n * n for each in tried.values() for n, at in enumerate(each)]
    # Instants of the queue are multiples of 1/64 s: that of its birth, and that of the slot.
    yield Finding("latest after its slot", "s", 0, max(late), 2 / 64)
    yield Finding("earliest before its slot", "s", 0, min(late), 1e-6)


def _scaling(messages: int) -> Iterator[Finding]:
    """All times twice as long: all results twice as long. A power of two is exact in floating point."""
    found = []
    for k in (1.0, 2.0):
        usual = Costs()
        slow = replace(FREE, **{
            each.name: k * getattr(usual, each.name) for each in fields(Costs)
            if each.type is float and each.name not in ("commit_s", "commit_message_s", "commit_lagging_s", "idle_share")
        })  # fmt: skip
        found.append(
            run(
                degenerate(
                    "scaling",
                    load={"messages": messages, "rate": 400.0 / k, "sessions": 5},
                    server=merged(
                        only_connections(3),
                        {"limits": {"mta": {"session_keepalive_s": 10.0 * k, "task_high_water": 20, "task_low_water": 10}}},
                    ),
                    behaviours=[{"kind": "latency", "law": "lognormal", "median_s": 0.01 * k, "sigma": 0.7}],
                ),
                costs=slow,
            )
        )  # fmt: skip
    once, twice = found
    for what, one, two in (
        ("due to 250", once.accept_latency_s, twice.accept_latency_s),
        ("due to delivery", once.delivery_latency_s, twice.delivery_latency_s),
    ):
        assert len(one) == len(two) == messages
        yield Finding(
            f"{what}, away from twice as long", "s, worst", 0, _farthest(two - 2 * one, 0.0), 1e-9
        )


def _fingerprint(messages: int, backend: Backend) -> tuple[str, SimResult]:
    prints = Fingerprint()

    def prepare(model: Model) -> None:
        model.driver.observer = prints.observe

    result = run(rough(messages), costs=SLOW, backend=backend, prepare=prepare)
    return prints.hexdigest(), result


def _repeatable(messages: int) -> Iterator[Finding]:
    heap, one = _fingerprint(messages, "heapq")
    again, _ = _fingerprint(messages, "heapq")
    simpy, two = _fingerprint(messages, "simpy")
    yield Finding("fingerprints of the same seed", "different", 1, len({heap, again}))
    yield Finding("fingerprints of heapq and SimPy", "different", 1, len({heap, simpy}))
    different = sum(one.counts[key] != two.counts[key] for key in one.counts)
    yield Finding("counts of heapq and SimPy", "different", 0, different)


def _common(messages: int) -> Iterator[Finding]:
    """What is drawn for a message does not depend on limits: only so are two settings compared over the same mail."""
    narrow, wide = (
        rough(messages),
        rough(messages, caps={"smtp": {"max_conn": 100}, "mda": {"max_session": 50}}),
    )
    one, two = draw(narrow), draw(wide)
    different = sum(
        not np.array_equal(getattr(one, each.name), getattr(two, each.name)) for each in fields(one)
    )
    yield Finding("columns of the schedule", "different", 0, different)
    times: list[list[float]] = []
    failed: list[tuple[set[int], int]] = []
    for conns in (2, 3):
        looked = _Outcomes()
        relayed = degenerate(
            "common",
            load={"messages": messages, "rate": 40.0},
            server=only_connections(conns),
            behaviours=answers_after("exponential", mean_s=0.03),
        )
        run(relayed, prepare=looked.watch)
        times.append(looked.served_s)
        looked = _Outcomes()
        group = {
            "name": "some",
            "users": 4,
            "messages": messages // 4,
            "seconds": 0.02,
            "delivery": "maildir",
        }
        local = degenerate(
            "common",
            load={"messages": 0},
            server={"limits": {"mda": {"max_session": conns}}, "retry": {"mda_base_s": 1.0}},
            local=[{**group, "to_s": messages / 40, "tempfail": 0.2, "permfail": 0.3}],
        )
        run(local, prepare=looked.watch)
        failed.append((looked.lost, looked.delivered))
    pairs = list(zip(*times, strict=True))
    different = sum(abs(one - other) > 1e-9 for one, other in pairs)
    yield Finding("n-th reply of the host, by its time", "different", 0, different)
    yield Finding(
        "local messages that fail for good", "different", 0, len(failed[0][0] ^ failed[1][0])
    )
    yield Finding("local deliveries begun", "more", 0, failed[1][1] - failed[0][1])


class _Outcomes:
    """Notes how long each transaction takes, in the order in which they begin, and which local messages fail."""

    def __init__(self) -> None:
        self.served_s: list[float] = []
        self.lost: set[int] = set()
        self.delivered = 0
        self._began: dict[int, tuple[int, float]] = {}
        self._model: Model | None = None

    def watch(self, model: Model) -> None:
        self._model = model
        model.driver.observer = self._observe

    def _observe(self, stimulus: Any, now: float, instructions: list[Any]) -> None:
        assert self._model is not None
        if type(stimulus) is TransactionDone:
            number, at = self._began.pop(stimulus.session)
            self.served_s[number] = now - at
        elif type(stimulus) is LocalDeliveryDone and stimulus.outcome is Outcome.PERMFAIL:
            self.lost.add(self._model.driver.messages[msgid_of(stimulus.evpid)].number)
        for each in instructions:
            if type(each) is StartTransaction:
                self._began[each.session] = (len(self.served_s), now)
                self.served_s.append(math.nan)
            elif type(each) is DeliverLocally:
                self.delivered += 1


def _holds(messages: int) -> Iterator[Finding]:
    """Held envelopes go first in, first out: as if there were no holds, but for what is in memory."""
    found: list[tuple[SimResult, Probe]] = []
    for water in ({"task_high_water": 3, "task_low_water": 1, "task_release": 1}, {}):
        probe = Probe()
        probe.servers = 2
        result = run(
            degenerate(
                "holds",
                load={"messages": messages, "rate": 35.0},
                server=merged(only_connections(2), {"limits": {"mta": water}}),
                behaviours=answers_after("exponential", mean_s=0.05),
            ),
            prepare=probe.watch,
        )
        found.append((result, probe))
    (held, looked), (free, _) = found
    order = list(looked.started_s)
    yield Finding(
        "tried out of turn",
        "messages",
        0,
        sum(a > b for a, b in pairwise(order)),
    )
    yield Finding("runs in which something was held", "of one", 1, int(held.held.max() > 0))
    late = held.delivery_latency_s - free.delivery_latency_s
    yield Finding(
        "latency, away from that without holds", "s, worst", 0, _farthest(late, 0.0), 1e-9
    )
    yield Finding("a connection idle while something waits", "s", 0, looked.idle_while_waiting_s)


def _users(messages: int) -> Iterator[Finding]:
    """A closed loop of constant times stays on its asymptotes (Denning and Buzen 1978)."""
    think_s, service_s = 0.5, 0.0625
    for users in (1, 8, 30):
        probe = Probe()
        run(
            degenerate(
                "users",
                load={"messages": messages, "loop": "closed", "users": users, "think_s": think_s, "arrivals": "constant"},
                server={"limits": {"queue": {"commit_batch_max": 1}}},
            ),
            costs=replace(FREE, commit_message_s=service_s),
            prepare=probe.watch,
        )  # fmt: skip
        done = sorted(probe.submitted_s.values())[
            users : users + (messages - 2 * users) // users * users + 1
        ]
        rate = (len(done) - 1) / (done[-1] - done[0])
        expected = theory.throughput_bound(users, think_s, [service_s])
        what = f"{users} user{'s' * (users > 1)}"
        yield Finding(what, "messages/s", expected, rate, 1e-9)


def _commits(messages: int) -> Iterator[Finding]:
    """Whoever waits for a group commit waits for one at least and two at most; a full one is the writer's capacity."""
    commit_s, most = 0.02, 8
    behaviours = answers_after("fixed", delay_s=3600.0)
    alone: dict[str, Any] = {"limits": {"scheduler": {"max_inflight": 1}}}
    free = run(
        degenerate(
            "commits",
            load={"messages": messages, "rate": 100.0},
            server=merged(only_connections(1), alone),
            behaviours=behaviours,
            drain_s=0.1,
        ),
        costs=replace(FREE, commit_s=commit_s),
    )
    shortest, longest = float(free.accept_latency_s.min()), float(free.accept_latency_s.max())
    yield Finding("shortest wait for a commit", "s", commit_s, shortest, 1e-9)
    yield Finding("longest beyond two commits", "s", 0, max(0.0, longest - 2 * commit_s), 1e-9)
    # Far more than it can: all commits but the first are full.
    messages = messages // most * most + 1
    full = run(
        degenerate(
            "commits",
            load={"messages": messages, "rate": 100 * most / commit_s, "arrivals": "constant"},
            server=merged(
                only_connections(1),
                merged(alone, {"limits": {"queue": {"commit_batch_max": most}}}),
            ),
            behaviours=behaviours,
            drain_s=0.1,
        ),
        costs=replace(FREE, commit_s=commit_s),
    )
    first_s = commit_s / (100 * most)
    rate = (messages - 1) / (full.load_s - first_s - commit_s)
    yield Finding("saturated", "messages/s", most / commit_s, rate, 1e-6)


def _drain(messages: int) -> Iterator[Finding]:
    """A burst drains along a straight line: what the deliveries can do, less what goes on arriving."""
    sessions, service_s, rate = 20, 0.1, 100.0
    burst = messages // 50 * 50
    expected = theory.drain_s(burst, rate, sessions, service_s)
    emptied: list[float] = []
    until_s = 2 * expected

    def prepare(model: Model) -> None:
        local = model.engine.local

        def observe(stimulus: Any, now: float, instructions: list[Any]) -> None:
            if not emptied and now > 1.0 and len(local.running) < sessions:
                emptied.append(now)

        model.driver.observer = observe

    run(
        degenerate(
            "drain",
            load={"messages": 0},
            local=[
                {"name": "burst", "users": 50, "messages": burst // 50, "to_s": 0.0, "seconds": service_s, "delivery": "maildir"},
                {"name": "steady", "users": 50, "messages": int(rate * until_s) // 50, "to_s": until_s, "seconds": service_s,
                 "arrivals": "constant", "delivery": "maildir"},
            ],
            server={"limits": {"mda": {"max_session": sessions, "max_session_per_user": sessions, "task_high_water": 1_000_000}}},
        ),
        prepare=prepare,
    )  # fmt: skip
    # As many as there are deliveries are in the last round, and a round takes service_s.
    slack_s = sessions / (sessions / service_s - rate) + service_s
    yield Finding("burst gone", "s", expected, emptied[0], slack_s)


EXACT: Final = (
    Rule("conservation", "no envelope is lost or made, at every event of a rough run", _conservation, 300),
    Rule("little", "Little's law as an identity: area under a number = time spent (Little 1961)", _little, 300),
    Rule("restarts", "both of these over processes that end and start again", _restarts, 300),
    Rule("limits", "a limit is reached and never passed", _limits, 300),
    Rule("zero-load", "latency without load is the sum of its costs", _zero_load, 100),
    Rule("timetable", "a message is tried at created + base * n**2 (OpenSMTPD, scheduler_next)", _timetable, 200),
    Rule("scaling", "all times twice as long, all results twice as long", _scaling, 2000),
    Rule("repeatable", "the same seed gives the same run, on either clock", _repeatable, 300),
    Rule("common", "limits do not change what is drawn", _common, 1000),
    Rule("holds", "a hold queue is first in, first out, and costs no time", _holds, 3000),
    Rule("users", "a closed loop on its asymptotes (Denning and Buzen 1978)", _users, 2000),
    Rule("commits", "group commit between its bounds", _commits, 2000),
    Rule("drain", "a burst drains at capacity less arrivals", _drain, 2000),
)  # fmt: skip
