"""What name servers do to mail exchangers: our resolver, asking the world's name server through real sockets, and the model's.

Both are asked for one scenario; what they come to must be the same resolution, down to how long it holds.
"""

import random
from typing import Any

import pytest

from mta.config import DnsConfig
from mta.core.reply import Outcome
from mta.core.routing import MxHost, Resolution, ResolutionStatus, failure_of, order_targets
from mta.effects import Effects
from mta.resolver import Resolver
from sim.heapkernel import HeapKernel
from sim.remote import build_name_servers
from sim.resolver import DnsSettings
from sim.resolver import Resolver as ModelResolver
from sim.scenario import Destination, Load, Scenario, mx_records
from testbed.world.clock import WorldClock
from testbed.world.dns import DnsServer
from testbed.world.zone import destinations_of, zone_of

DOMAIN = "a.test"
MAX_MX = 5
SETTINGS: dict[str, Any] = {"timeout_s": 5.0, "lifetime_s": 15.0}
IMPATIENT: dict[str, Any] = {"timeout_s": 0.1, "lifetime_s": 0.3}
TRUTH = (
    MxHost(10, "mx0.a.test", ("127.0.10.1",)),
    MxHost(10, "mx1.a.test", ("127.0.10.2",)),
)


def scenario(*behaviours: dict[str, Any]) -> Scenario:
    tables = [{"kind": "dns", **each} for each in behaviours]
    one = Destination("a", DOMAIN, hosts=2, behaviours=tables)
    return Scenario("names", load=Load(messages=1), destinations=[one])


def model(told: Scenario, at: float, settings: dict[str, Any]) -> Resolution:
    """What the model's resolver comes to, asked at an instant of the scenario."""
    kernel = HeapKernel()
    resolver = ModelResolver(
        kernel,
        DnsSettings(**settings),
        records=mx_records(told),
        destinations=destinations_of(told),
        servers=build_name_servers(told),
        network_s=0.0,
        max_mx=MAX_MX,
    )
    found: list[Resolution] = []
    resolver.look_up(DOMAIN, at, lambda answer: found.append(answer[1]))
    kernel.run()
    return found[0]


async def server(told: Scenario, at: float, settings: dict[str, Any]) -> tuple[Resolution, Any]:
    """What our resolver comes to, and what the world was asked; the scenario stands still at an instant."""
    clock = WorldClock(0.0, monotonic=lambda: at, wall=lambda: at)
    async with DnsServer(
        zone_of(told),
        clock,
        destinations=destinations_of(told),
        servers=build_name_servers(told),
    ) as world:
        config = DnsConfig(nameserver=f"127.0.0.1:{world.port}", **settings)
        resolver = Resolver(config, Effects(), max_mx=MAX_MX, max_addresses=20)
        try:
            return await resolver.resolve(DOMAIN), dict(world.queries)
        finally:
            await resolver.close()


def decision(resolution: Resolution) -> object:
    """What the core makes of it."""
    return failure_of(resolution) or order_targets(
        resolution,
        own_names=(),
        own_addresses=(),
        max_mx=MAX_MX,
        max_addresses=20,
        rng=random.Random(1),
    )


FLAPPING = {"answer": "servfail", "from_s": 0.0, "to_s": 10.0, "every_s": 30.0}
OK, RETRY = ResolutionStatus.OK, ResolutionStatus.RETRY


@pytest.mark.parametrize(
    ("behaviours", "at", "status", "outcome", "hosts"),
    [
        ([], 0.0, OK, None, TRUTH),
        ([{"answer": "truncated"}], 0.0, OK, None, TRUTH),
        ([{"answer": "wrong-id"}], 0.0, OK, None, TRUTH),
        ([{"answer": "wrong-question"}], 0.0, OK, None, TRUTH),
        ([{"answer": "alias"}], 0.0, OK, None, TRUTH),
        ([{"answer": "many-mx", "exchangers": 2000}], 0.0, OK, None, TRUTH),
        # Those without addresses come first, and are as many as are considered.
        ([{"answer": "many-mx", "preference": 1}], 0.0, RETRY, Outcome.TEMPFAIL, ()),
        ([{"answer": "many-mx", "preference": 1, "exchangers": 4}], 0.0, OK, None, TRUTH[:1]),
        ([{"answer": "null-mx"}], 0.0, ResolutionStatus.NULL_MX, Outcome.PERMFAIL, ()),
        ([{"answer": "nxdomain"}], 0.0, ResolutionStatus.NO_DOMAIN, Outcome.PERMFAIL, ()),
        ([{"answer": "nodata"}], 0.0, ResolutionStatus.NO_MX, Outcome.PERMFAIL, ()),
        ([{"answer": "servfail"}], 0.0, RETRY, Outcome.TEMPFAIL, ()),
        ([{"answer": "refused"}], 0.0, RETRY, Outcome.TEMPFAIL, ()),
        ([{"answer": "lame"}], 0.0, RETRY, Outcome.TEMPFAIL, ()),
        ([{"answer": "timeout"}], 0.0, RETRY, Outcome.TEMPFAIL, ()),
        # One of the two hosts is lost; the other takes the mail, and the answer does not hold for long.
        ([{"answer": "servfail", "domains": ["mx0.*"]}], 0.0, OK, None, TRUTH[1:]),
        ([{"answer": "lame", "domains": ["mx1.*"]}], 0.0, OK, None, TRUTH[:1]),
        ([{"answer": "nxdomain", "domains": ["mx1.*"]}], 0.0, OK, None, TRUTH[:1]),
        ([{"answer": "truncated", "domains": ["mx1.*"]}], 0.0, OK, None, TRUTH),
        # Servers that flap: away for ten seconds of each thirty.
        ([FLAPPING], 9.9, RETRY, Outcome.TEMPFAIL, ()),
        ([FLAPPING], 10.0, OK, None, TRUTH),
        ([FLAPPING], 35.0, RETRY, Outcome.TEMPFAIL, ()),
        ([FLAPPING], 45.0, OK, None, TRUTH),
        # How long answers hold is clamped.
        ([{"ttl_s": 0}], 0.0, OK, None, TRUTH),
        ([{"ttl_s": 2**31 - 1}], 0.0, OK, None, TRUTH),
    ],
)
async def test_the_server_and_the_model_come_to_the_same(
    behaviours: list[dict[str, Any]],
    at: float,
    status: ResolutionStatus,
    outcome: Outcome | None,
    hosts: tuple[MxHost, ...],
) -> None:
    """The status, the hosts, for how long; and what the core decides."""
    silent = any(each.get("answer") == "timeout" for each in behaviours)
    settings = IMPATIENT if silent else SETTINGS
    told = scenario(*behaviours)
    ours, asked = await server(told, at, settings)
    theirs = model(told, at, settings)
    assert (ours.status, ours.hosts) == (status, hosts)
    assert (theirs.status, theirs.hosts, theirs.ttl_s) == (ours.status, ours.hosts, ours.ttl_s)
    assert decision(theirs) == decision(ours)
    if outcome is not None:
        assert failure_of(ours) is not None
        assert failure_of(ours)[0] is outcome
    # However many exchangers there are: an address question and one for IPv6 for each that counts, once more over TCP.
    assert sum(count for kind, count in asked.items() if not kind.startswith("MX")) <= 4 * MAX_MX


async def test_truncated_answers_are_asked_for_again_over_tcp() -> None:
    """Once each."""
    _, asked = await server(scenario({"answer": "truncated"}), 0.0, SETTINGS)
    assert asked == {"MX NOERROR": 2, "A NOERROR": 4, "AAAA NOERROR": 4}
