"""What a recorded run waited for beside its own work: the network, other processes, the clients.

Of durations of transactions and connections (`sim.measure`) what the remote host was scripted to take is taken off, and
lower quartiles stand for the time without a queue: three of four may have waited.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from mta.core.settings import ConfigError
from sim.costs import Costs
from sim.measure import Measured
from sim.outbound import PEER
from sim.remote import Conn, RemoteHost, Verdict

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
            [
                (seconds - costs.transaction_s - costs.delivery_s * count, address)
                for seconds, count, address in measured.transactions
            ],
            lambda address: _scripted_transaction(hosts.get(address)),
        )
        costs = replace(costs, network_s=left)
    if len(measured.connected) < SAMPLES_MIN:
        notes.append("too few connections: connect_network_s is a default")
    else:
        handshake_s = costs.tls_connect_s + costs.tls_network_s
        left = _beside(
            [
                (seconds - costs.connect_s - (handshake_s if address in secured else 0.0), address)
                for _, seconds, address in measured.connected
            ],
            lambda address: _scripted_connect(hosts.get(address)),
        )
        costs = replace(costs, connect_network_s=left)
    misses = [seconds for seconds in measured.lookups if seconds > 1e-3]
    if misses:
        costs = replace(costs, lookup_network_s=max(0.0, min(misses) - costs.lookup_s))
    return costs


def _beside(
    measured: Sequence[tuple[float, str]], scripted: Callable[[str], Sequence[float]]
) -> float:
    """Return what the quicker ones took beside what their hosts were scripted to take; not below 0.

    Args:
        measured: (seconds, address) of each.
        scripted: returns draws of what the host at an address takes.
    """
    by_address: dict[str, list[float]] = {}
    for seconds, address in measured:
        by_address.setdefault(address, []).append(seconds)
    left = 0.0
    for address, each in by_address.items():
        drawn = scripted(address)
        quick = float(np.quantile(each, QUICK)) - (
            float(np.quantile(drawn, QUICK)) if drawn else 0.0
        )
        left += quick * len(each) / len(measured)
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


class _Dialogue(NamedTuple):
    """One message as its client saw it."""

    scheduled: float
    sent: float
    done: float
    recipients: int


def clients(
    costs: Costs, path: Path, sessions: int, notes: list[str], *, tls: float = 0.0
) -> Costs:
    """Return the clients' own time: what a dialogue took beside our CPU and the commit.

    Where the quicker ones had a handshake, because a part ``tls`` of all had, its time is no part of this.
    """
    if not path.is_file():
        notes.append("no load.jsonl: the clients' times are defaults")
        return costs
    try:
        dialogues = list(_dialogues(path))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(str(path), problem=f"is no record of a load: {error}") from None
    if len(dialogues) < SAMPLES_MIN:
        notes.append("too few messages: the clients' times are defaults")
        return costs
    by_count: dict[int, list[float]] = {}
    for each in dialogues:
        by_count.setdefault(each.recipients, []).append(each.done - each.sent)
    counts = np.array(sorted(by_count), dtype=float)
    quick = np.array([float(np.quantile(by_count[int(count)], QUICK)) for count in counts])
    weight = np.sqrt([len(by_count[int(count)]) for count in counts])
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
    closing = _closing(dialogues, sessions)
    if closing is None:
        notes.append("clients never had to wait for each other: client_close_s is a default")
        closing = costs.client_close_s
    return replace(
        costs,
        client_s=max(0.0, client_s),
        client_recipient_s=max(0.0, recipient_s),
        client_close_s=closing,
    )


def _dialogues(path: Path) -> Iterator[_Dialogue]:
    """Yield the messages that were accepted at the first try."""
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return  # A load that was killed leaves half a line.
            record = json.loads(line)
            if record["kind"] == "message" and record["code"] == 250 and record["attempts"] == 1:
                yield _Dialogue(
                    record["scheduled"], record["sent"], record["done"], len(record["rcpts"])
                )


def _closing(dialogues: Sequence[_Dialogue], sessions: int) -> float | None:
    """Return how long a client is busy after its 250, by Little's law; None if that can't be seen.

    While messages wait for a client, every session is in a dialogue or closing its connection. So
    the number that is closing is known, and so is the rate at which they begin to.
    """
    sent = np.sort([each.sent for each in dialogues])
    done = np.sort([each.done for each in dialogues])
    waited = np.sort([each.sent for each in dialogues if each.sent - each.scheduled > WAITED_S])
    if len(waited) < WAITED_MIN or not sessions:
        return None
    running = np.searchsorted(sent, waited, side="right") - np.searchsorted(
        done, waited, side="right"
    )
    gaps = np.diff(waited)
    gaps = gaps[gaps < 10 * float(np.median(gaps)) + 1e-6]
    return max(0.0, sessions - float(running.mean())) * float(gaps.mean())
