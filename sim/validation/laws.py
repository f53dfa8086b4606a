"""Experiments whose answer theory knows: the model made so simple that a formula applies.

Each draws independent replications. What a run starts with, an empty server, is left out: the first tenth of its messages.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from sim import theory
from sim.costs import Costs
from sim.distributions import Floats, LogNormal
from sim.validation.degenerate import (
    FREE,
    Probe,
    answers_after,
    degenerate,
    only_connections,
    run,
)


class Quantity(NamedTuple):
    """A number that theory knows."""

    what: str
    unit: str
    theory: float
    tolerance: float
    """Relative, of the profile ``quick``: the mean must be this near to the theory, and its 95 % interval this narrow."""


@dataclass(frozen=True, slots=True)
class Law:
    """One experiment."""

    name: str
    about: str
    """The system that the model becomes, and who solved it."""
    quantities: tuple[Quantity, ...]
    messages: int
    """Messages of one replication."""
    measure: Callable[[int, int], tuple[float, ...]]
    """(messages, replication) -> what the model says of each quantity."""


def _costs(**seconds: float) -> Costs:
    return replace(FREE, **seconds)  # type: ignore[arg-type]  # names of costs in seconds


# Loss: the door's limit on connections


def refused_share(
    conns: int, rate: float, hold_s: float, *, messages: int, replication: int
) -> float:
    """Return the share of clients that a door of so many connections refuses, each of which lasts ``hold_s``."""
    probe, first = Probe(), messages // 10
    run(
        degenerate(
            "erlang-b",
            load={"messages": messages, "rate": rate, "tries": 1},
            server={"limits": {"smtp": {"max_conn": conns}}},
        ),
        costs=_costs(client_close_s=hold_s),
        replication=replication,
        prepare=probe.watch,
    )
    taken = sum(1 for number in probe.submitted_s if number >= first)
    return 1 - taken / (messages - first)


def _erlang_b() -> Law:
    conns, rate, hold_s = 5, 40.0, 0.1

    def measure(messages: int, replication: int) -> tuple[float, ...]:
        return (refused_share(conns, rate, hold_s, messages=messages, replication=replication),)

    lost = theory.erlang_b(conns, rate * hold_s)
    return Law(
        "erlang-b",
        "M/D/c/c: connections at a full door are refused (Erlang 1917)",
        (Quantity("refused", "share", lost, 0.03),),
        8000,
        measure,
    )


# Delay: connections to one host


def connection_waits_s(
    conns: int, rate: float, service_s: float, *, messages: int, replication: int
) -> Floats:
    """Return float64[message]: how long each waits for one of so many connections; transactions are exponential."""
    probe = Probe()
    run(
        degenerate(
            "mmc",
            load={"messages": messages, "rate": rate},
            server=only_connections(conns),
            behaviours=answers_after("exponential", mean_s=service_s),
        ),
        replication=replication,
        prepare=probe.watch,
    )
    return np.array(probe.waits_s(messages // 10))


def _mmc() -> Law:
    conns, rate, service_s = 4, 26.0, 0.1
    expected = theory.mmc(conns, rate, service_s)
    long_s = 1 / expected.decay

    def measure(messages: int, replication: int) -> tuple[float, ...]:
        waits = connection_waits_s(
            conns, rate, service_s, messages=messages, replication=replication
        )
        return float(np.mean(waits > 0)), float(waits.mean()), float(np.mean(waits > long_s))

    return Law(
        "mmc",
        "M/M/c: c connections to a host (Erlang 1917; Kleinrock 1975, 3.5)",
        (
            Quantity("waited", "share", expected.waits, 0.03),
            Quantity("wait", "s", expected.wait_s, 0.08),
            Quantity(f"waited over {long_s:.3f} s", "share", expected.waits / math.e, 0.08),
        ),
        8000,
        measure,
    )


def _mg1_remote() -> Law:
    rate, law = 10.0, LogNormal(0.04, 0.6)
    wait_s = theory.pollaczek_khinchine(rate, law.mean, law.variance)

    def measure(messages: int, replication: int) -> tuple[float, ...]:
        probe = Probe()
        run(
            degenerate(
                "mg1",
                load={"messages": messages, "rate": rate},
                server=only_connections(1),
                behaviours=answers_after("lognormal", median_s=law.median, sigma=law.sigma),
            ),
            replication=replication,
            prepare=probe.watch,
        )
        waits = np.array(probe.waits_s(messages // 10))
        return float(np.mean(waits > 0)), float(waits.mean())

    return Law(
        "mg1",
        "M/G/1: one connection, lognormal replies (Pollaczek 1930, Khinchine 1932)",
        (
            Quantity("waited", "share", rate * law.mean, 0.02),
            Quantity("wait", "s", wait_s, 0.05),
        ),
        6000,
        measure,
    )


def _md1_client() -> Law:
    rate, service_s = 12.0, 0.05

    def measure(messages: int, replication: int) -> tuple[float, ...]:
        result = run(
            degenerate("md1", load={"messages": messages, "rate": rate, "sessions": 1}),
            costs=_costs(client_s=service_s),
            replication=replication,
        )
        return (float(result.accept_latency_s[messages // 10 :].mean()),)

    sojourn_s = theory.pollaczek_khinchine(rate, service_s, 0.0) + service_s
    return Law(
        "md1",
        "M/D/1: one client with one connection sends it all (Kleinrock 1975, 5.67)",
        (Quantity("due to 250", "s", sojourn_s, 0.02),),
        8000,
        measure,
    )


def _event_loop() -> Law:
    rate, byte_s, law = 20.0, 1e-6, LogNormal(20_000.0, 0.8)

    def measure(messages: int, replication: int) -> tuple[float, ...]:
        result = run(
            degenerate(
                "event-loop",
                load={
                    "messages": messages,
                    "rate": rate,
                    "sizes": {"law": "lognormal", "median": law.median, "sigma": law.sigma, "max": 2**30},
                },
            ),
            costs=_costs(byte_s=byte_s),
            replication=replication,
        )  # fmt: skip
        return (
            result.busy_share * result.end_s / result.load_s,
            float(result.accept_latency_s[messages // 10 :].mean()),
        )

    mean_s, variance = law.mean * byte_s, law.variance * byte_s**2
    return Law(
        "event-loop",
        "M/G/1 whose customers come back for a turn of no length: reading a message, answering it (Pollaczek-Khinchine, Little)",
        (
            Quantity("loop busy", "share", rate * mean_s, 0.02),
            Quantity("due to 250", "s", theory.second_turn(rate, mean_s, variance), 0.05),
        ),
        8000,
        measure,
    )


# No limit


def _infinite() -> Law:
    rate, law = 40.0, LogNormal(0.2, 0.8)
    mean = theory.little(rate, law.mean)

    def measure(messages: int, replication: int) -> tuple[float, ...]:
        end_s = messages / rate
        probe = Probe(from_s=end_s / 10, to_s=end_s * 0.95)
        run(
            degenerate(
                "mginf",
                load={"messages": messages, "rate": rate},
                behaviours=answers_after("lognormal", median_s=law.median, sigma=law.sigma),
            ),
            replication=replication,
            prepare=probe.watch,
        )
        average, variance = probe.moments()
        total = sum(probe.spent_s.values())
        few = sum(s for n, s in probe.spent_s.items() if n <= mean - math.sqrt(mean)) / total
        return average, variance, few

    few = theory.poisson_cdf(mean, math.floor(mean - math.sqrt(mean)))
    return Law(
        "mginf",
        "M/G/infinity: no limits, lognormal replies; in flight is Poisson (Kleinrock 1975, 3.4; Little 1961)",
        (
            Quantity("in flight", "mean", mean, 0.02),
            Quantity("in flight", "variance", mean, 0.06),
            Quantity(f"{math.floor(mean - math.sqrt(mean))} or fewer", "share", few, 0.08),
        ),
        8000,
        measure,
    )


# Users who wait for their answers


def _closed() -> Law:
    users, think_s, service_s = 6, 0.2, 0.04

    def measure(messages: int, replication: int) -> tuple[float, ...]:
        probe = Probe()
        run(
            degenerate(
                "closed",
                load={"messages": messages, "loop": "closed", "users": users, "think_s": think_s},
                server={"limits": {"queue": {"commit_batch_max": 1}}},
            ),
            costs=_costs(commit_message_s=service_s),
            replication=replication,
            prepare=probe.watch,
        )
        # Not to the very end, when users find nothing more to send.
        done = sorted(probe.submitted_s.values())[messages // 10 : -users]
        return ((len(done) - 1) / (done[-1] - done[0]),)

    throughput = theory.takacs(users, think_s, service_s, lambda s: math.exp(-s * service_s))
    return Law(
        "closed",
        "M/D/1//N: users think, then wait for the writer, one message a commit (Ashcroft 1950, Takacs 1962)",
        (Quantity("accepted", "messages/s", throughput, 0.01),),
        4000,
        measure,
    )


# Group commit


def _group_commit() -> Law:
    rate, commit_s = 100.0, 0.02
    expected = theory.group_commit(rate, commit_s)

    def measure(messages: int, replication: int) -> tuple[float, ...]:
        # A host that answers when all is over: removals would have commits of their own.
        result = run(
            degenerate(
                "group-commit",
                load={"messages": messages, "rate": rate},
                server={**only_connections(1), "limits": {"scheduler": {"max_inflight": 1}}},
                behaviours=answers_after("fixed", delay_s=3600.0),
                drain_s=0.1,
            ),
            costs=_costs(commit_s=commit_s),
            replication=replication,
        )
        latency_s = result.accept_latency_s[messages // 10 :]
        return result.counts["accepted_messages"] / result.counts["commits"], float(
            latency_s.mean()
        )

    return Law(
        "group-commit",
        "M/D[inf]/1: a commit takes whoever waits (Bailey 1954)",
        (
            Quantity("messages a commit", "mean", expected.batch, 0.01),
            Quantity("due to 250", "s", expected.sojourn_s, 0.01),
        ),
        4000,
        measure,
    )


# Attempts


def _tries() -> Law:
    refused, base_s, ttl_s, most = 0.4, 1.0, 6.0, 3

    def measure(messages: int, replication: int) -> tuple[float, ...]:
        probe = Probe()
        result = run(
            degenerate(
                "tries",
                load={"messages": messages, "rate": 200.0},
                server={
                    "retry": {"policy": "quadratic", "base_s": base_s},
                    # Tries at 0, 1 and 4 s; the next one would be at 9 s.
                    "limits": {"scheduler": {"envelope_ttl_s": ttl_s, "bounce_ttl_s": ttl_s}},
                },
                behaviours=[{"kind": "reject", "probability": refused, "verb": "RCPT"}],
            ),
            replication=replication,
            prepare=probe.watch,
        )
        tries = probe.tries.values()
        return sum(tries) / messages, result.counts["failed"] / messages

    return Law(
        "tries",
        f"each of {most} tries is refused with the same odds: they are geometric, cut at {most}",
        (
            Quantity("tries", "mean", theory.mean_tries(refused, most), 0.02),
            Quantity("given up", "share", theory.given_up(refused, most), 0.08),
        ),
        2000,
        measure,
    )


LAWS: Final = (
    _erlang_b(),
    _mmc(),
    _mg1_remote(),
    _md1_client(),
    _event_loop(),
    _infinite(),
    _closed(),
    _group_commit(),
    _tries(),
)
