"""What the core is told and what it orders, step by step: for ``mtactl trace`` and ``mtactl profile``.

The driver has no `StepWatch` unless somebody wants to see the steps, so that they cost nothing otherwise.
Ids are written as the log writes them: a trace and a log can be searched for the same word.
"""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from mta.core import instructions as orders
from mta.core import stimuli as news
from mta.core.ids import show_evpid, show_msgid, show_session
from mta.core.records import to_record

if TYPE_CHECKING:
    from mta.core.engine import Engine
    from mta.core.instructions import Instruction
    from mta.core.stimuli import Stimulus
    from mta.profile import Profile
    from mta.trace import Tracer

_TEXT_MAX: Final = 600
"""Characters of a step; a message with a thousand recipients is one step."""

SUBSYSTEM_OF: Final[Mapping[type, str]] = {
    news.ConnectionReady: "mta",
    news.ConnectionFailed: "mta",
    news.ConnectionClosed: "mta",
    news.TransactionDone: "mta",
    news.DomainResolved: "mta",
    news.RouteEnabled: "mta",
    news.LocalDeliveryDone: "mda",
    news.LimitChanged: "limits",
    orders.ResolveDomain: "mta",
    orders.OpenConnection: "mta",
    orders.StartTransaction: "mta",
    orders.CloseConnection: "mta",
    orders.DeliverLocally: "mda",
}
"""Whose step it is; all others are the scheduler's."""

STEP_SUBSYSTEMS: Final = ("mta", "mda", "scheduler", "limits")


def subsystem_of(step: "Stimulus | Instruction") -> str:
    """Return whose step a stimulus or an instruction is."""
    if isinstance(step, news.AgentPaused | news.AgentResumed):
        return step.agent.value
    if isinstance(step, orders.Note):
        return "limits" if "hiwat" in step.text or "lowat" in step.text else "mta"
    return SUBSYSTEM_OF.get(type(step), "scheduler")


def show_stimulus(stimulus: "Stimulus") -> str:
    """Return ``<- TransactionDone session=... results=[...]``."""
    record = to_record(stimulus, 0.0)
    del record["t"]
    return _cut(f"<- {record.pop('k')} {_pairs(record)}")


_SHOWN: Final[Mapping[str, Callable[[Any], Any]]] = {
    "evpid": show_evpid,
    "msgid": show_msgid,
    "session": show_session,
    "evpids": lambda ids: [show_evpid(one) for one in ids],
    "failures": lambda failed: [[show_evpid(one), status] for one, status in failed],
    "kind": lambda kind: kind.value,
    "reason": lambda reason: reason.value,
}


def show_instruction(instruction: "Instruction") -> str:
    """Return ``-> OpenConnection session=... domain=...``."""
    fields = {
        name: _SHOWN[name](value) if name in _SHOWN else value
        for name, value in instruction._asdict().items()
    }
    return _cut(f"-> {type(instruction).__name__} {_pairs(fields)}")


def _pairs(fields: Mapping[str, Any]) -> str:
    words = []
    for name, value in fields.items():
        plain = isinstance(value, str) and value and not set(value) & set(' "=')
        shown = value if plain else json.dumps(value, ensure_ascii=False)
        words.append(f"{name}={shown}")
    return " ".join(words)


def _cut(text: str) -> str:
    text = text.rstrip()
    return text if len(text) <= _TEXT_MAX else text[: _TEXT_MAX - 1] + "…"


class StepWatch:
    """Handles a stimulus as the driver does, and lets others see it."""

    def __init__(
        self, tracer: "Tracer", profile: "Profile", monotonic: Callable[[], float]
    ) -> None:
        self._tracer = tracer
        self._profile = profile
        self._monotonic = monotonic

    def watch(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever `wanted` may be another."""
        self._tracer.watch(changed)
        self._profile.watch(changed)

    @property
    def wanted(self) -> bool:
        """Somebody traces steps, or they are profiled."""
        tracer = self._tracer
        return self._profile.on or any(tracer.on(name) for name in STEP_SUBSYSTEMS)

    def handle(
        self,
        stimulus: "Stimulus",
        now: float,
        engine: "Engine",
        carry_out: Mapping[type, Callable[[Any], None]],
    ) -> None:
        """Give the core a stimulus and carry out what it orders, seen and timed."""
        tracer, clock, profile = self._tracer, self._monotonic, self._profile
        if tracer.on(subsystem := subsystem_of(stimulus)):
            tracer.line(subsystem, show_stimulus(stimulus))
        started = clock()
        instructions = engine.handle(stimulus, now=now)
        ended = clock()
        if profile.on:
            profile.add("stimulus", type(stimulus).__name__, ended - started)
        for instruction in instructions:
            kind = type(instruction)
            if tracer.on(subsystem := subsystem_of(instruction)):
                tracer.line(subsystem, show_instruction(instruction))
            started = clock()
            carry_out[kind](instruction)
            if profile.on:
                profile.add("instruction", kind.__name__, clock() - started)
