"""What a recorded run waited for beside its own work: the network, other processes, the clients.

Of durations of transactions and connections (`sim.measure`) what the remote host was scripted to take is taken off, and
lower quartiles stand for the time without a queue: three of four may have waited.
"""

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from sim.costs import Costs
from sim.loadrecord import LoadRecord
from sim.measured import Measured
from sim.outbound import PEER
from sim.remote import Conn, RemoteHost, Verdict

Floats = npt.NDArray[np.float64]

REMOTE_DRAWS: Final = 1000
"""Transactions drawn from a scripted host to learn how long it takes."""
QUICK: Final = 0.25
"""Quantile that stands for the time without a queue."""
WAITED_S: Final = 0.005
"""A message that is sent so much later than planned has waited for a client."""
WAITED_MIN: Final = 50
"""Fewer of them say nothing."""
SAMPLES_MIN: Final = 10
"""Fewer measurements of a kind say nothing."""


def waits(
    costs: Costs,
    measured: Measured,
    hosts: Mapping[str, RemoteHost],
    notes: list[str],
    *,
    secured: Set[str] = frozenset(),
) -> Costs:
    """Return the time of the network and of other processes: what is left of the quicker ones.

    Connections to ``secured`` addresses had a handshake, whose time is no part of this.

    Quantiles do not add up, but the lower quartile of a sum lies near the sum of one part's quartile and the other's
    constant, which is what the network is next to a scripted delay.
    """
    if len(measured.transactions) < SAMPLES_MIN:
        notes.append("too few transactions: network_s is a default")
    else:
        left = _beside(
            (
                (seconds - costs.transaction_s - costs.delivery_s * count, address)
                for seconds, count, address in measured.transactions
            ),
            lambda address: _scripted_transaction(hosts.get(address)),
        )
        costs = replace(costs, network_s=left)
    if len(measured.connected) < SAMPLES_MIN:
        notes.append("too few connections: connect_network_s is a default")
    else:
        handshake_s = costs.tls_connect_s + costs.tls_network_s
        left = _beside(
            (
                (seconds - costs.connect_s - (handshake_s if address in secured else 0.0), address)
                for _, seconds, address in measured.connected
            ),
            lambda address: _scripted_connect(hosts.get(address)),
        )
        costs = replace(costs, connect_network_s=left)
    misses = [seconds for seconds in measured.lookups if seconds > 1e-3]
    if misses:
        costs = replace(costs, lookup_network_s=max(0.0, min(misses) - costs.lookup_s))
    return costs


def _beside(
    measured: Iterable[tuple[float, str]], scripted: Callable[[str], Sequence[float]]
) -> float:
    """Return what the quicker ones took beside what their hosts were scripted to take; not below 0.

    Args:
        measured: (seconds, address) of each.
        scripted: returns draws of what the host at an address takes.
    """
    by_address: dict[str, array[float]] = {}
    count = 0
    for seconds, address in measured:
        by_address.setdefault(address, array("d")).append(seconds)
        count += 1
    left = 0.0
    for address, each in by_address.items():
        drawn = scripted(address)
        quick = float(np.quantile(each, QUICK)) - (
            float(np.quantile(drawn, QUICK)) if drawn else 0.0
        )
        left += quick * len(each) / count
    return max(left, 0.0)


BEFORE_START: Final = -1e6
"""Scenario time at which no outage of a scenario has begun, with room for every draw."""


def _greeted(host: RemoteHost) -> Iterator[tuple[Conn, Verdict, Verdict, float]]:
    """Yield connections that were told something after EHLO, with both answers and their instant; each is closed later."""
    now = BEFORE_START
    for _ in range(REMOTE_DRAWS):
        conn, greeting = host.connect(PEER, now)
        if greeting.reply is not None and not greeting.close:
            hello = host.command(conn, "EHLO", "relay", now + 10)
            if hello.reply is not None:
                yield conn, greeting, hello, now
        host.disconnect(conn, now + 400)
        now += 1000


def _scripted_transaction(host: RemoteHost | None) -> list[float]:
    """Return draws of a scripted host's part of a transaction; none if it never takes one."""
    if host is None:
        return []
    drawn = []
    for conn, _, hello, now in _greeted(host):
        if hello.reply is not None and hello.reply.code < 400:
            taken = host.transaction(
                conn, "sender@calibrate.test", ("rcpt@calibrate.test",), 4096, now + 20
            )
            if math.isfinite(taken.duration_s):
                drawn.append(taken.duration_s)
    return drawn


def _scripted_connect(host: RemoteHost | None) -> list[float]:
    """Return draws of a scripted host's time until EHLO is answered."""
    if host is None:
        return []
    return [greeting.due_at(0, 0) + hello.due_at(0, 0) for _, greeting, hello, _ in _greeted(host)]


def clients(
    costs: Costs, load: LoadRecord | None, sessions: int, notes: list[str], *, tls: float = 0.0
) -> Costs:
    """Return the clients' own time: what a dialogue took beside our CPU and the commit.

    Where the quicker ones had a handshake, because a part ``tls`` of all had, its time is no part of this.
    """
    if load is None:
        notes.append("no load.jsonl: the clients' times are defaults")
        return costs
    at_once = (np.array(load.code) == 250) & (np.array(load.attempts) == 1)
    if at_once.sum() < SAMPLES_MIN:
        notes.append("too few messages: the clients' times are defaults")
        return costs
    sent, done = np.array(load.sent)[at_once], np.array(load.done)[at_once]
    recipients = np.array(load.recipients)[at_once]
    counts, number = np.unique(recipients, return_counts=True)
    took_s = done - sent
    quick = np.array([float(np.quantile(took_s[recipients == count], QUICK)) for count in counts])
    weight = np.sqrt(number)
    # A message may meet a commit, of which it waits for the end; these are the quicker ones.
    ours = costs.session_s + costs.message_s + 1.25 * costs.commit_s
    if tls > 1 - QUICK:
        ours += costs.tls_s + costs.client_tls_s
    if len(counts) > 1:
        table = np.column_stack((np.ones(len(counts)), counts)) * weight[:, None]
        fixed, each_s = map(float, np.linalg.lstsq(table, quick * weight, rcond=None)[0])
        client_s, recipient_s = fixed - ours, each_s - costs.recipient_s
    else:
        # What a message and what a recipient takes can't be told apart: they keep their ratio.
        left = float(quick[0]) - ours - costs.recipient_s * float(counts[0])
        guess = costs.client_s + costs.client_recipient_s * float(counts[0])
        client_s, recipient_s = (
            left / guess * each for each in (costs.client_s, costs.client_recipient_s)
        )
    closing = _closing(np.array(load.scheduled)[at_once], sent, done, sessions)
    if closing is None:
        notes.append("clients never had to wait for each other: client_close_s is a default")
        closing = costs.client_close_s
    return replace(
        costs,
        client_s=max(0.0, client_s),
        client_recipient_s=max(0.0, recipient_s),
        client_close_s=closing,
    )


def _closing(scheduled: Floats, sent: Floats, done: Floats, sessions: int) -> float | None:
    """Return how long a client is busy after its 250, by Little's law; None if that can't be seen.

    While messages wait for a client, every session is in a dialogue or closing its connection. So
    the number that is closing is known, and so is the rate at which they begin to.
    """
    waited = np.sort(sent[sent - scheduled > WAITED_S])
    sent, done = np.sort(sent), np.sort(done)
    if len(waited) < WAITED_MIN or not sessions:
        return None
    running = np.searchsorted(sent, waited, side="right") - np.searchsorted(
        done, waited, side="right"
    )
    gaps = np.diff(waited)
    gaps = gaps[gaps < 10 * float(np.median(gaps)) + 1e-6]
    return max(0.0, sessions - float(running.mean())) * float(gaps.mean())
