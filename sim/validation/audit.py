"""A run in which everything happens, and somebody who keeps its own books of it."""

from collections.abc import Sequence
from typing import Any, Final

from mta.core.instructions import (
    BounceKind,
    DeliverLocally,
    Instruction,
    OpenConnection,
    RemoveEnvelope,
    SendBounce,
    StartTransaction,
)
from mta.core.settings import build
from mta.core.stimuli import (
    ConnectionClosed,
    ConnectionFailed,
    EnvelopeRestored,
    LocalDeliveryDone,
    MessageSubmitted,
    Stimulus,
    TransactionDone,
)
from sim.costs import Costs
from sim.restarts import RestartDriver
from sim.result import SimResult
from sim.runner import Model
from sim.scenario import Scenario, to_dict
from sim.validation.degenerate import degenerate, merged, run

CAPS: Final[dict[str, Any]] = {
    "smtp": {"max_conn": 8},
    "mta": {"max_conn_per_host": 3, "max_conn": 5, "task_high_water": 5, "task_low_water": 2, "task_release": 2},
    "mda": {"max_session": 4, "max_session_per_user": 2, "task_high_water": 5, "task_low_water": 2, "task_release": 2},
    "scheduler": {"max_inflight": 40, "max_held": 20},
    "queue": {"commit_batch_max": 3},
}  # fmt: skip


def rough(
    messages: int,
    *,
    caps: dict[str, Any] | None = None,
    timeline: Sequence[dict[str, Any]] = (),
) -> Scenario:
    """Return a scenario in which everything happens: refusals, outages, silence, greylisting, local mail, full queues."""
    known = merged(CAPS, caps or {})
    near = {"kind": "latency", "law": "lognormal", "median_s": 0.02, "sigma": 0.8}
    data = degenerate(
        "rough",
        load={
            "messages": messages,
            "rate": 150.0,
            "sessions": 12,
            "recipients": {"law": "zipf", "s": 1.33, "max": 20, "mailboxes": 500},
            "sizes": {"law": "lognormal", "median": 3300.0, "sigma": 0.66},
        },
        behaviours=[
            near,
            {"kind": "reject", "probability": 0.1, "verb": "RCPT"},
            {"kind": "reject", "probability": 0.02, "verb": "RCPT", "code": 550},
            {"kind": "drop", "probability": 0.02, "verb": "."},
            {"kind": "outage", "from_s": 1.0, "to_s": 3.0, "mode": "refuse"},
        ],
        local=[
            {"name": "few", "users": 3, "messages": max(1, messages // 6), "to_s": messages / 150, "seconds": 0.02,
             "law": "lognormal", "delivery": "maildir", "tempfail": 0.1, "permfail": 0.05},
        ],
        server={
            "retry": {"base_s": 0.5, "overflow_base_s": 0.25, "mda_base_s": 0.25},
            "limits": merged(known, {"mta": {"route_delay_base_s": 0.1, "route_delay_max_s": 0.4, "max_failures_per_session": 5},
                                     "scheduler": {"envelope_ttl_s": 30.0}}),
        },
        drain_s=600.0,
    )  # fmt: skip
    table = to_dict(data)
    grey = [near, {"kind": "greylist", "wait_s": 1.0}]
    table["destinations"].append(
        {"name": "grey", "domain": "grey.test", "hosts": 2, "domains": 5, "behaviours": grey}
    )
    table["timeline"] = list(timeline)
    return build(Scenario, table, source="rough")


SLOW: Final = Costs(client_close_s=0.01, commit_s=0.004)


class Auditor:
    """Keeps its own books beside the engine's, from what it is told and what it asks for."""

    def __init__(self, model: Model, *, validate_every: int = 500) -> None:
        """Look on at a run that has not begun."""
        self._model = model
        self._every = validate_every
        model.driver.observer = self.observe
        if isinstance(model.driver, RestartDriver):
            model.driver.died = self.died
        self.events = 0
        self.wrong = 0
        """Events after which the books do not balance."""
        self.late = 0
        """Events before the one before."""
        self.areas = dict.fromkeys(
            ("queue", "transactions", "connections", "local deliveries"), 0.0
        )
        """Number times time, by the engine's own numbers."""
        self.sojourns = dict.fromkeys(self.areas, 0.0)
        """Sum of what each stayed, by ours."""
        self.most = dict.fromkeys(("host", "all", "in flight", "held", "door", "local", "user"), 0)
        self._since: dict[str, dict[Any, float]] = {name: {} for name in self.areas}
        self._host_of: dict[Any, str] = {}
        self._users: dict[Any, str] = {}
        self._last_s = 0.0
        self._numbers = (0, 0, 0, 0)

    def _begin(self, what: str, key: Any, now: float) -> None:
        assert key not in self._since[what], (what, key)
        self._since[what][key] = now

    def _end(self, what: str, key: Any, now: float) -> None:
        self.sojourns[what] += now - self._since[what].pop(key)

    def died(self, now: float) -> None:
        """The process is gone: whatever stayed with it stays no longer, and its numbers are 0 from here on."""
        self._pass(now)
        for what, since in self._since.items():
            for key in list(since):
                self._end(what, key, now)
        self._host_of.clear()
        self._users.clear()
        self._numbers = (0, 0, 0, 0)

    def _pass(self, now: float) -> None:
        """Let time go by with the numbers of before."""
        elapsed = now - self._last_s
        for name, number in zip(self.areas, self._numbers, strict=True):
            self.areas[name] += elapsed * number
        self._last_s = now

    def observe(self, stimulus: Stimulus, now: float, instructions: list[Instruction]) -> None:
        """Take one event in."""
        engine = self._model.engine
        self.events += 1
        self.late += now < self._last_s
        self._pass(now)
        kind: type = type(stimulus)
        told: Any = stimulus
        if kind is MessageSubmitted:
            for number in range(1, len(told.recipients) + 1):
                self._begin("queue", told.msgid << 32 | number, now)
        elif kind is EnvelopeRestored:
            self._begin("queue", told.evpid, now)
        elif kind is TransactionDone:
            self._end("transactions", told.session, now)
        elif kind is ConnectionClosed or kind is ConnectionFailed:
            self._end("connections", told.session, now)
            del self._host_of[told.session]
            if told.session in self._since["transactions"]:
                self._end("transactions", told.session, now)
        elif kind is LocalDeliveryDone:
            self._end("local deliveries", told.evpid, now)
            del self._users[told.evpid]
        for each in instructions:
            self._take(each, now)
        scheduler, agent, local = engine.scheduler, engine.agent, engine.local
        self._numbers = (
            len(engine.store),
            sum(relay.busy for relay in agent.relays.values()),
            len(agent.sessions),
            len(local.running),
        )
        self.wrong += self._numbers[0] != len(self._since["queue"])
        held = [len(relay.held) for relay in agent.relays.values()]
        held += [len(user.held) for user in local.users.values()]
        hosts, users = list(self._host_of.values()), list(self._users.values())
        now_there = {
            "host": max(map(hosts.count, set(hosts)), default=0),
            "all": len(hosts),
            "in flight": scheduler.in_flight,
            "held": max(held, default=0),
            "door": self._model.driver.inbound.connections,
            "local": len(users),
            "user": max(map(users.count, set(users)), default=0),
        }
        for name, number in now_there.items():
            if number > self.most[name]:
                self.most[name] = number
        if self.events % self._every == 0:
            engine.validate()

    def _take(self, asked: Any, now: float) -> None:
        kind = type(asked)
        if kind is RemoveEnvelope:
            self._end("queue", asked.evpid, now)
        elif kind is SendBounce and asked.kind is not BounceKind.DELAYED:
            for envelope, _ in asked.failures:
                self._end("queue", envelope, now)
        elif kind is OpenConnection:
            self._begin("connections", asked.session, now)
            self._host_of[asked.session] = asked.address
        elif kind is StartTransaction:
            self._begin("transactions", asked.session, now)
        elif kind is DeliverLocally:
            self._begin("local deliveries", asked.evpid, now)
            self._users[asked.evpid] = asked.user


def audited(
    messages: int,
    *,
    caps: dict[str, Any] | None = None,
    timeline: Sequence[dict[str, Any]] = (),
) -> tuple[Auditor, SimResult, Model]:
    """Run the rough scenario with an auditor."""
    seen: list[tuple[Auditor, Model]] = []
    result = run(
        rough(messages, caps=caps, timeline=timeline),
        costs=SLOW,
        prepare=lambda model: seen.append((Auditor(model), model)),
    )
    auditor, model = seen[0]
    return auditor, result, model
