"""What queueing theory says of the systems that the model becomes when most of it is switched off.

Closed formulas only: no draw, no run. Rates are per second, times seconds, ``load`` is offered load in erlangs (arrival rate
times mean service time). Sources are the ones to look a formula up in; `tests/sim/test_theory.py` holds each against published
values, identities and its own special cases.

    Erlang 1917      Solution of some problems in the theory of probabilities of significance in automatic telephone exchanges
    Ashcroft 1950    The productivity of several machines under the care of one operator, J. R. Statist. Soc. B 12
    Bailey 1954      On queueing processes with bulk service, J. R. Statist. Soc. B 16
    Little 1961      A proof for the queuing formula L = lambda W, Operations Research 9
    Takacs 1962      Introduction to the Theory of Queues, chapter 5
    Kleinrock 1975   Queueing Systems, volume 1
    Reiser and Lavenberg 1980   Mean-value analysis of closed multichain queueing networks, J. ACM 27
    Denning and Buzen 1978      The operational analysis of queueing network models, Computing Surveys 10
"""

import math
from collections.abc import Callable
from typing import NamedTuple


def erlang_b(servers: int, load: float) -> float:
    """Return the share of calls that are lost when all servers are busy, M/G/c/c; the law of service does not matter.

    Erlang 1917, by the recursion B(c) = a B(c-1) / (c + a B(c-1)), which neither overflows nor cancels.
    """
    assert servers >= 0 and load >= 0, (servers, load)
    blocked = 1.0
    for busy in range(1, servers + 1):
        blocked = load * blocked / (busy + load * blocked)
    return blocked


def erlang_c(servers: int, load: float) -> float:
    """Return the share of customers that have to wait, M/M/c. Erlang 1917; Kleinrock 1975, 3.40.

    Needs ``load < servers``: otherwise the queue has no end.
    """
    assert 0 <= load < servers, (servers, load)
    blocked = erlang_b(servers, load)
    return servers * blocked / (servers - load * (1 - blocked))


class MMc(NamedTuple):
    """What is known of M/M/c. Kleinrock 1975, 3.5."""

    waits: float
    """Share of customers that wait."""
    wait_s: float
    """Mean wait of all customers, before service."""
    queue: float
    """Mean number of customers that wait."""
    sojourn_s: float
    """Mean time from arrival to departure."""
    decay: float
    """P(wait > t) is ``waits * exp(-decay * t)``."""


def mmc(servers: int, rate: float, service_s: float) -> MMc:
    """Return M/M/c with this arrival rate and mean service time."""
    waits = erlang_c(servers, rate * service_s)
    decay = servers / service_s - rate
    wait_s = waits / decay
    return MMc(waits, wait_s, rate * wait_s, wait_s + service_s, decay)


def pollaczek_khinchine(rate: float, mean_s: float, variance_s2: float) -> float:
    """Return the mean wait before service of M/G/1, seconds. Pollaczek 1930, Khinchine 1932; Kleinrock 1975, 5.67.

    Needs ``rate * mean_s < 1``.
    """
    busy = rate * mean_s
    assert 0 <= busy < 1, busy
    return rate * (variance_s2 + mean_s**2) / (2 * (1 - busy))


def second_turn(rate: float, mean_s: float, variance_s2: float) -> float:
    """Return the mean time until both turns are over, for M/G/1 whose customers queue a second time for a turn of no length.

    That is a message at the event loop: received, and once it is durable, answered. When its first turn ends, those who came
    meanwhile are before it, all of them unserved: by Little rate * W of them, with independent times of ``mean_s`` on average.
    So the second wait is rho * W, and both are W (1 + rho).
    """
    sojourn_s = pollaczek_khinchine(rate, mean_s, variance_s2) + mean_s
    return sojourn_s * (1 + rate * mean_s)


def little(rate: float, sojourn_s: float) -> float:
    """Return the mean number in a system. Little 1961."""
    return rate * sojourn_s


def poisson_cdf(mean: float, count: int) -> float:
    """Return P(N <= count) of the Poisson law: the number of busy servers of M/G/infinity at a rate times service of ``mean``."""
    term = total = math.exp(-mean)
    for k in range(1, count + 1):
        term *= mean / k
        total += term
    return total


class GroupCommit(NamedTuple):
    """What is known of a server that takes whoever waits at once, for a fixed time, M/D[infinity]/1."""

    batch: float
    """Mean number of customers served at once."""
    sojourn_s: float
    """Mean time from arrival to the end of service."""


def group_commit(rate: float, commit_s: float) -> GroupCommit:
    """Return group commit without a limit of the batch; a case of Bailey 1954 that has a short answer.

    A commit takes those who came during the one before, or, if nobody did, waits for the next one: batches are independent,
    max(1, Poisson(rate * commit_s)). Who comes during a commit waits half of it on average; who finds the writer idle does not.
    """
    come = rate * commit_s
    nobody = math.exp(-come)
    batch = come + nobody
    return GroupCommit(batch, commit_s * (1.5 * come + nobody) / batch)


def takacs(users: int, think_s: float, mean_s: float, transform: Callable[[float], float]) -> float:
    """Return the throughput of M/G/1//N: users who think exponentially long, then queue for one server.

    Takacs 1962, chapter 5; for constant service Ashcroft 1950.

    Args:
        users: how many.
        think_s: mean time between an answer and the next request.
        mean_s: mean service time.
        transform: Laplace transform of the service time; ``lambda s: exp(-s * d)`` for constant d.
    """
    rate = 1 / think_s
    total, product = 0.0, 1.0
    for j in range(users):
        if j:
            served = transform(j * rate)
            product *= served / (1 - served)
            if product < 1e-300:
                return 1 / mean_s  # Never idle, as far as a float can tell.
        total += math.comb(users - 1, j) / product
    idle = 1 / (1 + users * rate * mean_s * total)
    return (1 - idle) / mean_s


def mean_value_analysis(users: int, think_s: float, demands_s: list[float]) -> float:
    """Return the throughput of a closed network of exponential queues and a think time. Reiser and Lavenberg 1980."""
    waiting = [0.0] * len(demands_s)
    throughput = 0.0
    for n in range(1, users + 1):
        responses = [d * (1 + q) for d, q in zip(demands_s, waiting, strict=True)]
        throughput = n / (think_s + math.fsum(responses))
        waiting = [throughput * r for r in responses]
    return throughput


def throughput_bound(users: int, think_s: float, demands_s: list[float]) -> float:
    """Return what no closed system can do more than: min(N / (D + Z), 1 / Dmax). Denning and Buzen 1978, table V."""
    return min(users / (math.fsum(demands_s) + think_s), 1 / max(demands_s))


def mean_tries(refused: float, most: int) -> float:
    """Return the mean number of attempts, each refused independently, when ``most`` of them are made: (1 - p^k) / (1 - p)."""
    assert 0 <= refused < 1 and most >= 1, (refused, most)
    return (1 - refused**most) / (1 - refused)


def given_up(refused: float, most: int) -> float:
    """Return the share of envelopes all of whose attempts are refused: p^k."""
    return float(refused**most)


def drain_s(backlog: float, rate: float, servers: int, service_s: float) -> float:
    """Return how long a backlog lasts while more comes: a straight line with the slope of what is left of the capacity."""
    left = servers / service_s - rate
    assert left > 0, left
    return backlog / left
