"""Counts what is in a server of the model at one instant: who stands where, for whoever reckons memory."""

from sim.driver import Driver
from sim.layout import Census, Standing
from sim.memory import NO_LOCAL


def local_standing(driver: Driver) -> Standing:
    """Return where the envelopes of local deliveries stand; `NO_LOCAL` itself if the scenario has none."""
    if driver.ledger is None:
        return NO_LOCAL
    engine, known = driver.engine, driver.fill.local
    local = engine.local
    held = sum(len(user.held) for user in local.users.values())
    scheduled = len(engine.scheduler._scheduled_local)
    return Standing(known - local.envelopes - held - scheduled, scheduled, held, local.envelopes)


def census_of(driver: Driver) -> Census:
    """Return what is in the server now."""
    gauges, local = driver.engine.gauges(), local_standing(driver)
    every = Standing(
        gauges["scheduler.envelope.pending"],
        gauges["scheduler.envelope.scheduled"],
        gauges["scheduler.ramqueue.hold"],
        gauges["scheduler.envelope.inflight"],
    )
    return Census(
        relayed=Standing(*(a - b for a, b in zip(every, local, strict=True))),
        local=local,
        messages=len(driver.messages),
        body_bytes=driver.fill.size_bytes,
        tasks=gauges["mta.task"] + gauges["mta.task.running"],
        users=gauges["mda.user"],
        hold_queues=gauges["scheduler.ramqueue.holdq"],
        sessions=driver.inbound.connections,
        connections=len(driver.outbound.connections),
    )
