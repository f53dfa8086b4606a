"""How many bytes an envelope takes in the store alone: a fresh process that fills one and looks at itself.

``python -m testbed.footprint slim --scenario FILE --count 100000`` prints one JSON line. A whole server's memory moves by
more than what a few thousand packed envelopes take; here nothing else moves. Envelopes are those of the scenario,
made as the door makes them: each message has strings of its own, because each came over the network; all
have failed once and wait for their next try, or, with ``--in-flight``, are where they came: with an agent.
"""

import argparse
import gc
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Final

from mta.core.envelopes import REPRESENTATIONS, make_store
from mta.core.envelopes.base import EnvelopeStore, Recipient, Transaction, local_key
from mta.core.ids import MsgId, SessionId, evpid
from mta.core.settings import ConfigError
from sim.scenario import Scenario, load
from sim.workload import Mailbox, Schedule, draw, message_bytes
from testbed.sampler import memory_of

COUNT: Final = 100_000
"""Envelopes."""

EPOCH: Final = 1_359_192_000.0
"""An instant; nothing here depends on which."""

WAIT_MAX_S: Final = 4 * 86_400.0
"""Next tries are spread over so long, as in a queue of a server that runs for days."""

_TTL_S: Final = 4 * 86_400.0


def fill(
    store: EnvelopeStore,
    scenario: Scenario,
    schedule: Schedule,
    count: int,
    *,
    in_flight: bool = False,
) -> int:
    """Put envelopes of a scenario into a store; return the bytes of the bodies it was given.

    They are left in flight if that is said, else deferred. The schedule is used again from its start when it is too short.
    """
    rng = Random(scenario.seed)
    made = message = body_bytes = 0
    while made < count:
        i = message % len(schedule)
        message += 1
        msgid = MsgId(message)
        sender = schedule.sender(i)
        transaction = Transaction(
            sender=sender,
            size=int(schedule.size[i]),
            session=SessionId((1 << 40) + message),
            # New objects each time: a server reads these from every connection anew.
            helo=b"client.testbed.test".decode(),
            peer_address=b"127.0.0.1".decode(),
            declared_size=int(schedule.size[i]),
        )
        body: bytes | None = None
        if store.keeps_bodies:
            body = message_bytes(schedule, i, "footprint")
            body_bytes += len(body)
        created_at = EPOCH + message / 64
        for number, mailbox in enumerate(schedule.recipients(i)[: count - made], 1):
            recipient = _recipient(mailbox)
            handle = store.add(
                evpid(msgid, number),
                recipient,
                transaction,
                created_at=created_at,
                expires_at=created_at + _TTL_S,
                body=body,
            )
            wait_s = rng.randrange(1, int(WAIT_MAX_S * 64)) / 64
            if not in_flight:
                store.defer(handle, due_at=created_at + wait_s, attempts=1)
            made += 1
    return body_bytes


def _recipient(mailbox: Mailbox) -> Recipient:
    """Return a recipient as the door and the rules make it. The key is one string for all that share it."""
    if mailbox.destination >= 0:
        return Recipient(mailbox.address, sys.intern(mailbox.domain))
    user = mailbox.local_part
    key = sys.intern(local_key(user))
    return Recipient(mailbox.address, key, delivery="local", user=user, rule="local")


def measure(
    representation: str, scenario: Scenario, count: int, *, in_flight: bool = False
) -> dict[str, Any]:
    """Return what ``count`` envelopes take in this process, which must be a fresh one.

    Returns:
        representation, envelopes, messages' ``body_bytes`` kept in memory, ``rss_bytes`` and ``uss_bytes`` by which the process
        grew, and ``bytes_per_envelope``, of RSS.
    """
    if scenario.load.messages:
        messages = max(1, min(scenario.load.messages, count))
        scenario = replace(scenario, load=replace(scenario.load, messages=messages))
    schedule = draw(scenario)
    # Imports, code paths and the allocator's first arenas are in before anything is measured.
    rehearsal = make_store(representation, epoch=EPOCH)
    fill(rehearsal, scenario, schedule, min(count, 500), in_flight=in_flight)
    del rehearsal
    gc.collect()
    store = make_store(representation, epoch=EPOCH)
    before = memory_of(os.getpid())
    body_bytes = fill(store, scenario, schedule, count, in_flight=in_flight)
    gc.collect()
    after = memory_of(os.getpid())
    assert len(store) == count, (len(store), count)
    rss = after.rss - before.rss
    return {
        "representation": representation,
        "envelopes": count,
        "body_bytes": body_bytes,
        "rss_bytes": rss,
        "uss_bytes": after.uss - before.uss,
        "bytes_per_envelope": round(rss / count, 2),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m testbed.footprint", description="Bytes per envelope in the store alone."
    )
    parser.add_argument("representation", choices=REPRESENTATIONS)
    parser.add_argument("--scenario", default="backlog", help="name or TOML file")
    parser.add_argument("--count", type=int, default=COUNT, help=f"envelopes (default {COUNT})")
    parser.add_argument("--in-flight", action="store_true", help="an agent has them all")
    options = parser.parse_args(arguments)
    if not 1 <= options.count <= 10_000_000:
        parser.error("--count: must be from 1 to 10000000")
    try:
        scenario = load(Path(options.scenario) if "/" in options.scenario else options.scenario)
    except ConfigError as error:
        parser.error(str(error))
    found = measure(options.representation, scenario, options.count, in_flight=options.in_flight)
    json.dump(found, sys.stdout)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
