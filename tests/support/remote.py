"""Scripted hosts for tests, and what a client asks of them."""

import random
from collections.abc import Mapping
from typing import Any

from sim.remote import Conn, RemoteHost, build_host

PEER = "127.0.0.1"


SENDER = "alice@sender.test"


RCPT = "bob@flaky.test"


def host_of(*behaviours: Mapping[str, Any], seed: int = 1) -> RemoteHost:
    return build_host(behaviours, rng=random.Random(seed))


def ready(host: RemoteHost, now: float = 0.0, peer: str = PEER) -> Conn:
    """Return a connection that has said EHLO."""
    conn, verdict = host.connect(peer, now)
    assert verdict.reply is not None, verdict
    assert not verdict.close, verdict
    host.command(conn, "EHLO", "client.test", now)
    return conn


def rcpt_code(host: RemoteHost, rcpt: str, now: float, *, sender: str = SENDER) -> int:
    """Return what one RCPT on a connection of its own is answered."""
    conn = ready(host, now)
    host.command(conn, "MAIL", sender, now)
    verdict = host.command(conn, "RCPT", rcpt, now)
    host.disconnect(conn, now)
    assert verdict.reply is not None
    return verdict.reply.code
