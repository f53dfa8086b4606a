"""Local mail: the server's driver, with real Maildirs and real commands, and the model's carry out the same.

What the server's core heard and said is told to the model's driver, which rings its own timer, and to a core again
from the trace. The model's door makes of an address what rules and expansion make of it.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mta.addressing import Addressing
from mta.core.address import Path as Mailbox
from mta.core.envelopes import REPRESENTATIONS
from mta.core.envelopes.base import Recipient, Transaction
from mta.core.ids import SessionId
from mta.core.instructions import DeferEnvelope, DeliverLocally, SendBounce
from mta.core.local import TOO_MANY
from mta.core.records import parse, to_record
from mta.core.stimuli import (
    Agent,
    AgentPaused,
    AgentResumed,
    LocalDeliveryDone,
    RemoveRequested,
    ScheduleRequested,
    Selector,
    TimeReached,
)
from mta.localmail import LocalMail
from mta.trace import Tracer, encode
from sim.groups import LocalGroup
from sim.message import RULE, local_recipient
from sim.records import Fingerprint
from sim.runner import simulate
from tests.conformance.test_drivers import (
    Heard,
    Played,
    header_of,
    listen,
    model_driver,
    play,
    sessions_from,
)
from tests.support.driver import Rig, rig
from tests.support.model import model, scenario

USERS = ("flood0", "others0", "others1", "others2")


def config_of(directory: Path, **limits: Any) -> dict[str, Any]:
    """Return a server with users in four domains: a Maildir, and commands that accept, defer and refuse."""
    homes = {}
    for user in USERS:
        home = directory / user
        home.mkdir(parents=True)
        homes[user] = {"home": str(home)}

    def rule(name: str, **more: Any) -> dict[str, Any]:
        domain = f"{name}.test"
        return {
            "name": name,
            "match_domains": [domain],
            "action": "local",
            "userbase": "people",
            "forward": False,
            **more,
        }

    return {
        "local": {"allow_root": True},
        "userbases": {"people": homes},
        "rules": [
            rule("local"),
            rule("slow", delivery="pipe", command=["/bin/sleep", "0.01"]),
            rule("later", delivery="pipe", command=["/bin/sh", "-c", "exit 75"]),
            rule("never", delivery="pipe", command=["/bin/sh", "-c", "exit 69"]),
            {"name": "out", "match_domains": ["*"], "action": "relay"},
        ],
        "retry": {"base_s": 5.0, "mda_base_s": 2.0, "overflow_base_s": 0.5},
        "limits": limits,
    }


class Local:
    """A server's driver with local mail."""

    def __init__(self, it: Rig) -> None:
        self.it = it
        driver = it.driver
        tracer = Tracer(it.log)  # type: ignore[arg-type]
        self.addressing = Addressing(
            driver.config,
            effects=driver.effects,
            source="test",
            log=it.log,  # type: ignore[arg-type]
            tracer=tracer,
        )
        driver.addressing = self.addressing
        driver.local = LocalMail(
            driver.config,
            self.addressing,
            effects=driver.effects,
            log=it.log,  # type: ignore[arg-type]
            load=driver._local_details,
            body=driver.body,
            on_done=driver.tell,
            on_fault=driver.report_fault,
        )
        driver._carry_out[DeliverLocally] = driver.local.start

    def recipients(self, address: str) -> tuple[Recipient, ...]:
        """Return what the door makes of an address."""
        domain = address.rpartition("@")[2]
        client = self.addressing.client("127.0.0.1")
        expansion = self.addressing.expand(Mailbox(address, domain), client)
        assert expansion.reply is None, expansion
        return self.addressing.envelopes(Recipient(address, domain), expansion)

    async def submit(self, *addresses: str) -> None:
        queue = self.it.queue
        every = tuple(one for address in addresses for one in self.recipients(address))
        body = b"Subject: hello\r\n\r\nbody\r\n"
        await self.it.driver.enqueue(
            queue.next_msgid(), Transaction("a@one.test", len(body), SessionId(7)), every, body
        )

    async def quiet(self) -> None:
        """Wait until no delivery runs."""
        await self.it.until(lambda: not self.it.driver.local.running)


async def eventful(local: Local) -> None:
    """Floods, refusals, retries, an agent that is paused, an operator who takes mail away."""
    it = local.it
    await local.submit("others0@local.test", "others1@slow.test", "x@two.test")
    # At once: more than any of the caps lets wait.
    await asyncio.gather(*[local.submit("flood0@slow.test") for _ in range(12)])
    await local.submit("flood0@later.test", "others2@never.test")
    await local.submit("others0@local.test")
    await local.quiet()
    it.driver.tell(AgentPaused(Agent.MDA))
    for n in range(6):
        await local.submit(f"others{n % 3}@local.test", "flood0@slow.test")
    queued = sorted(it.engine.store.evpid_of(handle) for handle in it.engine.store)
    it.driver.tell(RemoveRequested(Selector(evpid=queued[-1])))
    it.driver.tell(AgentResumed(Agent.MDA))
    await local.quiet()
    for _ in range(6):
        await it.advance(0.7)
        await local.quiet()
    it.driver.tell(ScheduleRequested(Selector()))
    await local.quiet()
    for _ in range(40):
        if not it.loop.timers:
            break
        await it.advance(max(it.loop.timers[0], 0.0))
        await local.quiet()


LIMITS: dict[str, dict[str, Any]] = {
    "hold": {
        "mda": {"max_session": 3, "max_session_per_user": 1, "task_high_water": 2, "task_low_water": 1},
        "scheduler": {"max_held": 4},
    },
    "tempfail": {
        "mda": {
            "policy": "tempfail",
            "max_session": 3,
            "max_session_per_user": 2,
            "tempfail_max_pending": 8,
            "tempfail_max_pending_per_user": 4,
        }
    },
    "raised": {
        "mda": {
            "policy": "raised",
            "max_session_per_user": 1,
            "raised_max_pending": 100,
            "raised_max_pending_per_user": 4,
        }
    },
}  # fmt: skip


@pytest.mark.parametrize("policy", LIMITS)
async def test_both_drivers_deliver_the_same(tmp_path: Path, policy: str):
    """The same orders at the same instants, for each policy; and from the trace, in every representation."""
    heard: list[Heard]
    async with rig(tmp_path / "queue", **config_of(tmp_path, **LIMITS[policy])) as it:
        local = Local(it)
        try:
            heard = listen(it.engine)
            await eventful(local)
            heard = list(heard)
        finally:
            local.addressing.close()
    orders = [one for each in heard for one in each.instructions]
    delivered = [one for one in orders if isinstance(one, DeliverLocally)]
    assert len(delivered) > 25
    assert {order.user for order in delivered} == set(USERS)
    assert sum(type(each.stimulus) is TimeReached for each in heard) > 2
    deferred = [one.status for one in orders if isinstance(one, DeferEnvelope)]
    # Each policy is seen at what it is for: an overflow has no status, a refusal says why.
    assert ("" in deferred) == (policy == "hold")
    assert (TOO_MANY in deferred) == (policy != "hold")
    assert any(isinstance(one, SendBounce) for one in orders)
    ended = {
        each.stimulus.outcome for each in heard if isinstance(each.stimulus, LocalDeliveryDone)
    }
    assert len(ended) == 3

    model_, played = model_driver(it)
    play(model_, heard)
    expected = [Played(each.now, one) for each in heard for one in each.instructions]
    assert [each.instruction for each in played] == [each.instruction for each in expected]
    assert [each.now for each in played] == pytest.approx([each.now for each in expected], abs=1e-5)

    for representation in REPRESENTATIONS:
        lines = [encode(header_of(it, representation))]
        for stimulus, now, _, _ in heard:
            if representation == "whole" and hasattr(stimulus, "body"):
                stimulus = stimulus._replace(body=b"")
            lines.append(encode(to_record(stimulus, now)))
        trace = parse(lines)
        again = sessions_from(trace.header)
        for record, before in zip(trace.records, heard, strict=True):
            step = again.step(record)
            assert step is not None
            assert step.instructions == before.instructions
        again.engine.validate()


async def test_both_doors_make_the_same_of_an_address(tmp_path: Path):
    """A user's mail has the key, the method and the rule that the server's rules and expansion give it."""
    async with rig(tmp_path / "queue", **config_of(tmp_path)) as it:
        local = Local(it)
        try:
            (found,) = local.recipients("flood0@local.test")
            assert found == local_recipient("flood", 0, "local.test")
            assert found.rule == RULE
        finally:
            local.addressing.close()


def test_backends_agree_about_local_mail():
    """SimPy's clock and a plain heap give the same run, to the last bit; another seed gives another."""
    of = scenario(messages=100, server={"limits": LIMITS["hold"], "retry": {"mda_base_s": 1.0}})
    of.local = [
        LocalGroup("flood", messages=150, to_s=0.5, seconds=0.02, law="exponential", tempfail=0.2),
        LocalGroup("others", users=9, messages=3, to_s=2.0, seconds=0.01, permfail=0.1),
    ]
    of.drain_s = 1000.0
    simpy, heap = simulate(of, backend="simpy"), simulate(of, backend="heapq")
    assert simpy.fingerprint == heap.fingerprint
    assert simpy.summary() == heap.summary()
    of.seed += 1
    assert simulate(of, backend="heapq").fingerprint != heap.fingerprint


def test_a_fingerprint_sees_local_outcomes():
    """Two runs that differ in one outcome alone are not the same run."""
    prints = []
    for failing in (0, 1):
        of = scenario(messages=1)
        of.load.messages, of.local = 0, [LocalGroup("a", messages=1, to_s=0.0)]
        it = model(of)
        it.driver.local._fatal = [bool(failing)]
        found = Fingerprint()
        seen: list[str] = []

        def observe(
            stimulus: Any,
            now: float,
            instructions: Any,
            seen: list[str] = seen,
            found: Fingerprint = found,
        ) -> None:
            if isinstance(stimulus, LocalDeliveryDone):
                found.observe(stimulus, 0.0, [])
                seen.append(found.hexdigest())

        it.driver.observer = observe
        it.run()
        prints.append(seen)
    assert prints[0] != prints[1]
    assert all(len(each) == 1 for each in prints)
