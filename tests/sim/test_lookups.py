"""The model's resolver when many domains are asked for at once."""

import random
from collections import Counter
from typing import Any

import pytest

import mta.resolver
from mta.core.routing import Resolution
from sim.behaviours import read
from sim.behaviours.dns import DnsBehaviour
from sim.heapkernel import HeapKernel
from sim.remote import NameServer
from sim.resolver import LOOKUPS_MAX, DnsSettings, Resolver
from sim.scenario import MxAnswer


def name_server(behaviour: dict[str, Any]) -> NameServer:
    """Return one that behaves like this."""
    (read_one,) = read([{"kind": "dns", **behaviour}], source="test", key="behaviours")
    made = read_one.make(random.Random(1))
    assert isinstance(made, DnsBehaviour)
    return NameServer([made])


def answers(count: int, behaviour: dict[str, Any], **settings: float) -> list[tuple[float, str]]:
    """Return when each of so many domains was answered, and how, if all were asked for at once."""
    kernel = HeapKernel()
    domains = [f"d{n}.test" for n in range(count)]
    resolver = Resolver(
        kernel,
        DnsSettings(**settings),  # type: ignore[arg-type]
        records=dict.fromkeys(domains, (MxAnswer(10, "mx.test", "127.0.10.1"),)),
        destinations=dict.fromkeys(domains, 0),
        servers=[name_server(behaviour)],
        network_s=0.5,
    )
    told: list[tuple[float, str]] = []

    def tell(answer: tuple[str, Resolution]) -> None:
        domain, resolution = answer
        told.append((kernel.now, resolution.status.name))
        kept = resolver.cached(domain)
        assert kept is not None
        assert kept.status is resolution.status

    for domain in domains:
        resolver.look_up(domain, 0.0, tell)
    kernel.run()
    return told


def test_it_is_the_servers_number():
    assert mta.resolver.LOOKUPS_MAX == LOOKUPS_MAX


def test_those_above_the_number_wait_for_the_others():
    """Two waits of a quarter of a second and the network's half: a second for each hundred."""
    found = Counter(answers(250, {"delay_s": 0.25}))
    assert found == {(1.0, "OK"): 100, (2.0, "OK"): 100, (3.0, "OK"): 50}


def test_who_waits_too_long_hears_of_a_temporary_failure():
    """Silent servers take 2 s and the network's half, and so long nobody waits: the answer comes after 2 s."""
    found = answers(120, {"answer": "timeout"}, lifetime_s=2.0)
    assert Counter(found) == {(2.0, "RETRY"): 20, (2.5, "RETRY"): 100}


def test_what_was_not_asked_is_forgotten_sooner():
    """It says nothing about the domain: the least TTL, not that of a failure."""
    kernel = HeapKernel()
    domains = [f"d{n}.test" for n in range(101)]
    resolver = Resolver(
        kernel,
        DnsSettings(lifetime_s=2.0, ttl_min_s=5.0, negative_ttl_s=60.0),
        records=dict.fromkeys(domains, (MxAnswer(10, "mx.test", "127.0.10.1"),)),
        destinations=dict.fromkeys(domains, 0),
        servers=[name_server({"answer": "timeout"})],
        network_s=0.5,
    )
    ttls: list[float] = []
    for domain in domains:
        resolver.look_up(domain, 0.0, lambda answer: ttls.append(answer[1].ttl_s))
    kernel.run()
    assert ttls == [5.0] + [60.0] * 100
    assert resolver.gave_up == 1


@pytest.mark.parametrize("count", [1, 100])
def test_up_to_the_number_nobody_waits(count: int):
    assert Counter(answers(count, {"delay_s": 0.25})) == {(1.0, "OK"): count}
